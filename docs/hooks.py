"""What the site adds to the pages of this folder: the README as its home, the models' cards, and the reference.

The reference is made from the code: every public name of a module in `MODULES` (its `__all__`, or without one what it
defines), the `--help` of every command, and that of train.py with every key. MkDocs calls `on_files` and
`on_page_markdown`; nothing here imports torch.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from diffusion.commands import dispatch
from diffusion.config import help_text

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diffusion"
CARDS = sorted((PACKAGE / "pretrained").glob("*.md"))
# Pages of the reference, and the modules on each.
MODULES = {
    "diffusion": ("",),
    "schedules": ("schedules",),
    "denoisers": ("denoisers",),
    "denoisers.exact": ("denoisers.exact",),
    "denoisers.guidance": ("denoisers.guidance",),
    "denoisers.inverse_problems": ("denoisers.inverse_problems",),
    "networks": ("networks",),
    "objectives": ("objectives",),
    "ema": ("training.ema",),
    "samplers": ("samplers",),
    "likelihood": ("likelihood",),
    "baselines": (
        "baselines.entropy",
        "baselines.vae",
        "baselines.eae",
        "baselines.importance_weighted",
        "baselines.annealed",
        "baselines.classical",
    ),
    "metrics": ("metrics",),
    "data": ("data",),
}


def source_of(module: str) -> Path:
    """The file of a module of the package, by its dotted name within it."""
    path = PACKAGE.joinpath(*module.split(".")) if module else PACKAGE
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def public_names(module: str) -> list[str]:
    """The public names of a module, without importing it; modules among them have pages of their own."""
    tree = ast.parse(source_of(module).read_text(encoding="utf-8"))
    body, modules = tree.body, set() if module else set(MODULES)
    for node in ast.walk(tree):  # a function may have the name of its file: `from . import x` is the module
        if isinstance(node, ast.ImportFrom) and node.module is None:
            modules |= {alias.name for alias in node.names}
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
            return [name for name in names if name not in modules]
    defined = (node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef))
    return [name for name in defined if not name.startswith("_")]


def reference_page(page: str) -> str:
    """A page of the reference: each module with its docstring, then its names."""
    parts = [f"# diffusion.{page}" if page != "diffusion" else "# diffusion"]
    for module in MODULES[page]:
        path = f"diffusion.{module}" if module else "diffusion"
        level = 2 if len(MODULES[page]) > 1 else 1
        if level == 2:
            parts.append(f"## {path}")
        show = "{members: false, show_root_heading: false, show_root_toc_entry: false}"
        parts.append(f"::: {path}\n    options: {show}")
        members = "" if module else ", members_order: alphabetical"
        parts += [
            f"::: {path}.{name}\n    options: {{heading_level: {level + 1}{members}}}" for name in public_names(module)
        ]
    return "\n\n".join(parts) + "\n"


def python_page() -> str:
    """All public names by page."""
    lines = ["# Public names", ""]
    for page, modules in MODULES.items():
        names = sorted({name for module in modules for name in public_names(module)}, key=str.lower)
        title = page if page == "diffusion" else f"diffusion.{page}"
        lines.append(f"- [{title}]({page}.md): {', '.join(f'`{name}`' for name in names)}")
    return "\n".join(lines) + "\n"


def printed(command: Callable[[list[str]], object]) -> str:
    """What a command prints for `--help`."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        command(["--help"])
    return out.getvalue().strip()


def commands_page() -> str:
    """The `--help` of every command but train's, which explains the keys."""
    parts = ["# Commands", "", f"```text\n{dispatch.HELP}\n```"]
    for name, command in dispatch.COMMANDS.items():
        text = "[Configuration keys](keys.md)" if name == "train" else f"```text\n{printed(command)}\n```"
        parts.append(f"## {name}\n\n{text}")
    return "\n\n".join(parts) + "\n"


def generated() -> Iterator[tuple[str, str]]:
    """The pages that are not files of this folder: (address, Markdown)."""
    yield "index.md", (ROOT / "README.md").read_text(encoding="utf-8")
    for card in CARDS:
        yield f"pretrained/{card.name}", card.read_text(encoding="utf-8")
    yield "reference/python.md", python_page()
    yield "reference/commands.md", commands_page()
    yield "reference/keys.md", f"# Configuration keys\n\n```text\n{help_text().strip()}\n```\n"
    for page in MODULES:
        yield f"reference/{page}.md", reference_page(page)


def on_files(files, config):
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for address, text in generated():
        files.append(File.generated(config, address, content=text))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Addresses in the repository become those on the site, and what is in a list is indented as MkDocs wants it."""
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.M | re.S)
    parts[::2] = [re.sub(r"^  (?=\S)", "    ", part, flags=re.M) for part in parts[::2]]  # not the blocks of code
    markdown = "".join(parts)
    if page.file.src_uri == "index.md":
        return markdown.replace("](docs/", "](")
    if page.file.src_uri.startswith("pretrained/"):
        return markdown.replace("](../../docs/", "](../")
    return markdown.replace("](../diffusion/pretrained/", "](pretrained/")
