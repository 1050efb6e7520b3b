"""The part of YAML that a configuration needs, read strictly.

There are mappings, lists and scalars, and the type of a scalar is left to the key that it is given to. Refused is what
YAML allows and a configuration has no use for: the same key twice, tags (so that no text can build an object), aliases.
"""

from __future__ import annotations

import os
import re
from typing import Any

import yaml

from ..errors import UserError

NULL = re.compile(r"|~|null|Null|NULL")
BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,30}(_[0-9]{1,30}){0,9})")
FLOAT = re.compile(r"[-+]?([0-9]+(_[0-9]+)*(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


class Plain(str):
    """Text without quotes, as YAML and the command line give it: its type is that of the key that it is given to.

    Hence `1e-4` is a number, `name: 2024` is text and `wandb: off` is the word, all of which YAML 1.1 reads otherwise.
    """


def readings(value: Any) -> list[Any]:
    """The values that what was read may stand for, in the order in which a key tries them.

    Plain text is first of all text, then a number or a truth value; null and ~ are nothing but null. What comes from
    Python stands for itself, a path or a number of numpy for its text or value.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif hasattr(value, "tolist"):  # of numpy, of torch
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        first, last = zip(*((of[0], of[-1]) for of in map(readings, value)), strict=True) if value else ((), ())
        return [first, last]
    if not isinstance(value, Plain):
        return [value]
    if NULL.fullmatch(value):
        return [None]
    if BOOL.fullmatch(value):
        return [str(value), value.lower() == "true"]
    if FLOAT.fullmatch(value):
        return [str(value), int(value) if INT.fullmatch(value) else float(value)]
    return [str(value)]


def show(value: Any) -> str:
    """Write a value that was found, in one line."""
    if isinstance(value, Plain) and (NULL.fullmatch(value) or BOOL.fullmatch(value) or FLOAT.fullmatch(value)):
        text = value or "null"
    elif isinstance(value, str):
        text = f"'{value}'" if value.isprintable() else repr(str(value))
    elif isinstance(value, dict):
        text = "a mapping"
    elif isinstance(value, (list, tuple)):
        text = f"[{', '.join(map(show, value))}]"
    else:
        text = {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_yaml(text: str, source: str) -> Any:
    """Read YAML as dicts, lists and text (`Plain` where it has no quotes); None if there is nothing in it.

    Args:
        text: The YAML.
        source: What error messages call it.

    Raises:
        UserError: For what is not YAML, and for what is refused; names the line.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise UserError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    return None if node is None else _tree(node, source)


def write_yaml(tree: dict[str, Any]) -> str:
    """Write nested dicts of values, with tuples for lists, as YAML that `read_yaml` reads."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _tree(node: yaml.Node, source: str) -> Any:
    """A YAML node as dict, list, text, or `Plain` text."""
    where = f"{source}:{node.start_mark.line + 1}"
    if node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"):
        raise UserError(f"{where}: the tag {show(node.tag)} is not accepted; values are text, numbers and lists")
    if isinstance(node, yaml.ScalarNode):
        return Plain(node.value) if node.style is None else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_tree(item, source) for item in node.value]
    tree = {}
    for key_node, value_node in node.value:
        key = _tree(key_node, source)
        where = f"{source}:{key_node.start_mark.line + 1}"
        if not isinstance(key, str):
            raise UserError(f"{where}: found {show(key)} as a key; must be a word")
        if key in tree:
            raise UserError(f"{where}: key {show(str(key))} is given twice")
        tree[str(key)] = _tree(value_node, source)
    return tree


class _Loader(yaml.BaseLoader):
    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not accepted", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Writes without quotes just what is not text to the reader."""

    yaml_implicit_resolvers: dict[str | None, Any] = {}  # noqa: RUF012  (not YAML 1.1's: they decide what needs quotes)

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern in {"null": NULL, "bool": BOOL, "int": INT, "float": FLOAT}.items():
    # None: whatever the first character of the text
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern.pattern})\Z"), None)
_Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True))


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    """Text with a line break of any kind in double quotes: PyYAML folds it wrongly next to blanks in single ones."""
    style = '"' if value.splitlines() not in ([], [value]) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)
