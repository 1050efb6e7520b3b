"""Configuration files: strict YAML to `Config` and back.

In files a key is written `steps` below `trainer`, or in full, `trainer.steps`, as on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, did_you_mean
from ..storage import runs
from ..storage.paths import named_path
from .options import Section, declared
from .run_sections import Config
from .sections import TOY_SETS
from .strict_yaml import NULL, Plain, read_yaml, show, write_yaml

SECTIONS: dict[str, type[Section]] = {section.section: type(section) for section in Config().sections()}
KEYS: list[str] = [name for name in Config.model_fields if name not in SECTIONS] + [
    section.key(name) for section in SECTIONS.values() for name in section.model_fields
]
_ADOPTED = "adopted"
COMMAND_LINE, CALL = "on the command line", "in the call"


def load_config(config: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """Read a configuration file.

    Args:
        config: Its path, or its bare name in ./configs or in the configs folder of the repository or of the installed
            package. It names the run, where the file does not.
        overrides: `key=value` each, the last one of a key wins, e.g. `trainer.steps=1000`; or values as in a file,
            `{"trainer": {"steps": 1000}}` or `{"trainer.steps": 1000}`.

    Raises:
        UserError: For a file that is missing or not YAML, for unknown keys (all of them at once) and for wrong values.
    """
    path = find_config(config)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise UserError(f"{path}: cannot be read as a configuration: {reason}") from None
    return parse_config(text, overrides, source=str(path), name=_run_name(path.stem))


def parse_config(
    text: str,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    source: str = "the configuration",
    name: str | None = None,
) -> Config:
    """Read a configuration from YAML text.

    Args:
        text: The YAML, as in a file or from `dump_config`.
        overrides: As in `load_config`.
        source: What error messages call the text.
        name: The name of the run, where neither the text nor the overrides give one.

    Raises:
        UserError: As in `load_config`.
    """
    values = _flatten(_read(text, source), source)
    unknown = [_unknown_key(key, f"in {source}") for key in values if key not in KEYS]
    if isinstance(overrides, Mapping):
        where, given = CALL, _flatten(dict(overrides), CALL.removeprefix("in "))
    else:
        where, given = COMMAND_LINE, {key: _value(value, key) for key, value in map(split_override, overrides)}
    unknown += [_unknown_key(key, where) for key in given if key not in KEYS]
    if unknown:
        raise UserError(" ".join(unknown))
    values = _of_given_kinds(values, given) | given
    values.setdefault("name", name)
    arguments = {key: value for key, value in values.items() if "." not in key}
    for section_name, section in SECTIONS.items():
        keys = {option: section.key(option) for option in section.model_fields}
        arguments[section_name] = section(**{option: values[key] for option, key in keys.items() if key in values})
    return Config(**arguments)


def _of_given_kinds(values: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file, without the options of a kind that another replaces: `network.base_channels` of a DiT."""
    left_out = {
        section.key(name)
        for section in SECTIONS.values()
        for chooser, kinds in section.variants().items()
        if (chosen := given.get(section.key(chooser))) in section.words(chooser)
        for options in kinds.values()
        for name in options.keys() - kinds.get(chosen, {}).keys()
    }
    return {key: value for key, value in values.items() if key not in left_out}


def adopting(config: Config, given: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """The configuration itself; one of family `adopted` where a diffusion model starts from one of another project.

    Path, network and prediction are then those of that model, and what a file says of others is left out.

    Args:
        config: A configuration.
        given: What was given in addition to its file, as `overrides` of `load_config`.

    Raises:
        UserError: For keys among `given` that the model itself says.
    """
    start = config.trainer.start
    if config.family != "diffusion" or start is None or not _of_another_project(start, config.runs):
        return config
    flat = _flatten(dict(given), CALL) if isinstance(given, Mapping) else dict(map(split_override, given))
    sections: dict[str, Section] = {}
    for section in config.sections():
        taken = [name for name in type(section).model_fields if _takes(section, name, _ADOPTED)]
        said = [section.key(name) for name in type(section).model_fields if name not in taken]
        if found := [key for key in said if key in flat and _takes(section, key.rpartition(".")[2], config.family)]:
            raise UserError(f"{found[0]}: {start}, which another project made, says its own; leave it out")
        sections[section.section] = type(section)(**{name: getattr(section, name) for name in taken})
    return config.replace(family=_ADOPTED, **sections)


def _of_another_project(start: str, runs_dir: str) -> bool:
    try:
        return runs.is_adopted(runs.resolve_weights(start, runs_dir))
    except UserError:  # said by a run that needs it
        return False


def _takes(section: Section, name: str, family: str) -> bool:
    families = declared(type(section).model_fields[name], "families") or section.families
    return not families or family in families


def dump_config(config: Config) -> str:
    """Write a configuration as YAML from which `parse_config` makes an equal one, without what other kinds take."""
    return write_yaml(plain_values(config))


def with_places(config: Config) -> Config:
    """The configuration with whole paths to its data, so that they are found from any working folder."""
    data = config.data
    fetched = data.path is None and data.name not in ("digits", *TOY_SETS)
    places = {"path": data.path, "cache": data.cache, **({"root": data.root} if fetched else {})}
    whole = {key: str(named_path(place).absolute()) for key, place in places.items() if place is not None}
    return config.replace(data=data.replace(**whole))


def plain_values(config: Config) -> dict[str, Any]:
    """A configuration as nested dicts, without the options that other kinds and families take."""
    tree = config.model_dump()
    for section in config.sections():
        kinds = [options for kinds in section.variants().values() for options in kinds.values()]
        for option in {option for options in kinds for option in options} - section.options().keys():
            del tree[section.section][option]
    for section, option, _ in config.foreign():
        tree[section.section].pop(option, None)
    return {name: value for name, value in tree.items() if value != {}}


def find_config(config: str | Path) -> Path:
    """The file of a configuration that is given by path or by bare name.

    Raises:
        UserError: If there is none; names those that there are.
    """
    path = named_path(config, "--config")
    is_bare = path.name == str(config) != ""
    folders = config_folders() if is_bare else []
    for candidate in (path, *(folder / f"{path.name.removesuffix('.yaml')}.yaml" for folder in folders)):
        # a bare name without suffix is no file of that name: `digits` may well be somebody's data
        if candidate.is_file() and (candidate.suffix or not is_bare):
            return candidate
    found = "is a folder" if path.is_dir() and not is_bare else "not found"
    names = available_configs()
    hint = did_you_mean(path.stem, names)
    raise UserError(f"configuration {show(str(config))}: {found}; available: {', '.join(names) or 'none'}.{hint}")


def _run_name(stem: str) -> str:
    """The name of runs of a file: what a run's name takes of the file's."""
    name = re.sub(r"[^\w.+=-]+", "-", stem)[:80].strip("-.")
    return name if re.match(r"[A-Za-z0-9_]", name) else f"run-{name}".rstrip("-")


def config_folders() -> list[Path]:
    """Where bare names are looked up, in this order."""
    package = Path(__file__).parents[1]
    return [Path("configs"), package.parent / "configs", package / "configs"]


def available_configs() -> list[str]:
    """The bare names that `--config` takes."""
    return sorted({path.stem for folder in config_folders() for path in folder.glob("*.yaml")})


def split_override(text: str) -> tuple[str, str]:
    """Split `key=value`."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{show(text)}: must be key=value, e.g. trainer.steps=1000")
    return key.strip(), value.strip()


def _read(text: str, source: str) -> dict[str, Any]:
    """The mapping that a YAML text holds; an empty text is an empty mapping."""
    tree = read_yaml(text, source)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{source}: found {show(tree)}; must be a mapping of keys to values")
    return tree


def _flatten(tree: dict[str, Any], source: str) -> dict[str, Any]:
    """The values of a mapping by full key, `trainer.steps`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if name not in SECTIONS:
            entries = {name: value}
        elif isinstance(value, dict):
            entries = {f"{name}.{option}": item for option, item in value.items()}
        elif isinstance(value, Plain) and NULL.fullmatch(value):
            entries = {}  # a section whose lines are all commented out
        else:
            raise UserError(f"{name}: found {show(value)} in {source}; must be a mapping of keys to values")
        for key in entries.keys() & flat.keys():
            raise UserError(f"{source}: key '{key}' is given twice")
        flat |= entries
    return flat


def _value(text: str, key: str) -> Any:
    """A value from the command line: lists and quotes as in YAML, all else as it stands."""
    if text[:1] not in tuple("[{'\""):
        return Plain(text)
    try:
        return read_yaml(text, key)
    except UserError:
        raise UserError(f"{key}: found {show(text)}; not valid YAML, a list is written [1, 2]") from None


def _unknown_key(key: str, where: str) -> str:
    if key in SECTIONS:
        return (
            f"'{key}' {where} is a section; give one of its keys, e.g. {key}.{next(iter(SECTIONS[key].model_fields))}."
        )
    return f"unknown key {show(str(key))} {where}.{key_hint(key, KEYS if '.' in key else [*SECTIONS, *KEYS])}"


def key_hint(key: str, options: Iterable[str], before: str = "") -> str:
    """'Did you mean', for what is not a key: the right option of the wrong section, or of none, before one that only
    looks alike.

    Args:
        key: What was found.
        options: What it may stand for.
        before: What stands in front of a key there, `--` on a command line.
    """
    same = [before + known for known in KEYS if known.rpartition(".")[2] == key.rpartition(".")[2]]
    written = before + key
    return did_you_mean(written, same) or (f" Did you mean '{same[0]}'?" if same else did_you_mean(written, options))
