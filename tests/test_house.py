"""The rooms of the package: what each may import, and how large a room and a file may be.

The table is that of docs/architecture.md: a room knows those above it and none below. A new room fails until it has a
place here and there.
"""

import ast
import importlib
import sys
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import pytest

from diffusion.config import Config
from diffusion.config.files import SECTIONS

PACKAGE = Path(__file__).parents[1] / "diffusion"
THEORY = "torch einops torchdiffeq jaxtyping"
# From the ground up: a room, and the libraries beside the standard one that it may import.
ROOMS = {
    "moved": "",
    "errors": "",
    "processes": "",
    "devices": "torch",
    "numerics": THEORY + " triton",
    "storage": "torch safetensors",
    "config": "yaml pydantic",
    "networks": THEORY,
    "schedules": THEORY,
    "data": THEORY + " numpy PIL sklearn torchvision matplotlib tifffile",
    "metrics": THEORY + " torchvision",
    "denoisers": THEORY,
    "objectives": THEORY,
    "samplers": THEORY,
    "sampling": THEORY,
    "likelihood": THEORY + " scipy",
    "baselines": THEORY + " scipy sklearn PIL",
    "models": THEORY + " PIL",
    "training": "torch lightning wandb tqdm",
    "commands": THEORY + " rich PIL numpy scipy matplotlib tqdm",
    "__main__": "",
}
ORDER = list(ROOMS)
MOST_FILES_IN_THE_ROOT, MOST_FILES_IN_A_ROOM, MOST_LINES = 6, 14, 400


def imported(path: Path) -> set[str]:
    """The dotted names that a file imports, wherever in the file, relative ones made absolute."""
    package = ("diffusion", *path.relative_to(PACKAGE).parts[:-1])
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join((*package[: len(package) - node.level + 1],) if node.level else ())
            base = ".".join(filter(None, (base, node.module)))
            # `from . import x` names a room, `from .x import y` something in it
            names |= {f"{base}.{alias.name}" for alias in node.names} if base == "diffusion" else {base}
    return names


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_from_rooms_above_it(room):
    assert {room_of(path) for path in FILES} == set(ROOMS), "a new room has a place in the table above"
    wrong = []
    for path in FILES:
        if room_of(path) != room:
            continue
        for name in imported(path):
            head, _, rest = name.partition(".")
            if head == "diffusion":
                if ORDER.index(rest.partition(".")[0]) > ORDER.index(room):
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
            elif head not in sys.stdlib_module_names and head not in ROOMS[room].split():
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_lightning_and_wandb_are_of_the_training_room_alone():
    users = {room_of(path) for path in FILES if {"lightning", "wandb"} & {n.partition(".")[0] for n in imported(path)}}
    assert users == {"training"}


def test_the_reader_of_imports_sees_them():
    """`imported` finds what is there: relative, absolute, nested and of the package itself."""
    assert "diffusion.denoisers.guidance.classifier_free" in imported(PACKAGE / "sampling" / "sample.py")
    assert "diffusion.samplers" in imported(PACKAGE / "sampling" / "sample.py")
    assert "wandb" in imported(PACKAGE / "training" / "logs" / "wandb.py")
    assert "diffusion.training.fit" in imported(PACKAGE / "commands" / "train" / "train.py")


def scripts():
    """What the package does not hold: the scripts beside it, and those within strings of tests, as syntax trees."""
    for path in sorted((PACKAGE.parent / "benchmarks").glob("*.py")) + sorted((PACKAGE.parent / "docs").glob("*.py")):
        yield ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\nfrom diffusion" in node.value:
                with suppress(SyntaxError):
                    yield ast.parse(node.value)


def test_scripts_import_what_there_is():
    found = [node for tree in scripts() for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in found if (node.module or "").partition(".")[0] == "diffusion"]
    assert len(ours) > 50
    for node in ours:
        module = importlib.import_module(node.module)
        for name in (alias.name for alias in node.names if not hasattr(module, alias.name)):
            importlib.import_module(f"{node.module}.{name}")  # else a module of it


# Lists that choose among the names of an option: what is compared by default, what a page or another's format can do,
# functions by the prediction, and the types of devices, which are above the configuration.
CHOSEN = [
    "commands/tradeoff/tradeoff.py",
    "commands/export/page.py",
    "models/formats/diffusers_export.py",
    "denoisers/predictions.py",
    "devices.py",
]


def lists_of_words(path: Path) -> list[set[str]]:
    """The words of each tuple, list, set and `Literal`, and of the keys of each dictionary, of three or more."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", ())
        found.append({part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)})
    return [words for words in found if len(words) > 2]


def test_the_names_that_an_option_takes_are_listed_in_one_file():
    """Its section's, from which what builds them and what tells of them takes them. Longer lists are others' words."""
    lists = {path: lists_of_words(path) for path in FILES if str(path.relative_to(PACKAGE)) not in CHOSEN}
    options = [(section, name) for section in (Config, *SECTIONS.values()) for name in section.model_fields]
    for section, name in options:
        words = set(section.words(name))
        of_it = [(path, listed) for path, some in lists.items() for listed in some if listed <= words]
        for (path, listed), (other, more) in combinations(of_it, 2):
            both = listed & more
            assert path == other or len(both) < 3, f"{section.key(name)}: {sorted(both)} in {path} and {other}"


def test_rooms_and_files_can_be_held_in_mind():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_FILES_IN_THE_ROOT
    folders = {path.parent for path in FILES} - {PACKAGE}
    counts = {str(folder.relative_to(PACKAGE)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES_IN_A_ROOM} == {}
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}
