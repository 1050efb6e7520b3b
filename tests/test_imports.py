"""The direction of imports: what each part of the package may know, read off the syntax trees.

The table is the picture of docs/architecture.md. A part that is not in it fails, so that it is kept up to date.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffusion"


@dataclass(frozen=True)
class Allowed:
    """The parts of the package, and the libraries beside the standard one, that a part may import."""

    parts: str = ""
    libraries: str = ""


THEORY = "torch einops torchdiffeq jaxtyping"
ALLOWED = {
    # the ground
    "errors": Allowed(),
    "storage": Allowed("errors"),
    "atomic": Allowed("errors"),
    "defaults": Allowed(),
    "broadcasting": Allowed("", THEORY),
    "random": Allowed("", THEORY),
    "brownian": Allowed("errors random", THEORY),
    "nearest": Allowed("", THEORY),
    "processes": Allowed("errors"),
    "tensor_files": Allowed("errors atomic storage", "torch safetensors"),
    # theory: torch only
    "networks": Allowed("errors", THEORY),
    "schedules": Allowed("errors broadcasting", THEORY),
    "denoisers": Allowed("errors broadcasting random schedules", THEORY),
    "evaluations": Allowed("errors denoisers", THEORY),
    "sde": Allowed("errors broadcasting schedules denoisers", THEORY),
    "own_steps": Allowed("flow", THEORY),
    "flow": Allowed("errors broadcasting schedules denoisers", THEORY),
    "objectives": Allowed("errors broadcasting random schedules denoisers", THEORY),
    "samplers": Allowed("errors broadcasting random brownian evaluations schedules denoisers sde flow", THEORY),
    # measuring: knows models, not training
    "likelihood": Allowed(
        "errors defaults broadcasting random schedules denoisers sde flow own_steps evaluations samplers",
        THEORY + " scipy sklearn PIL",
    ),
    "baselines": Allowed("errors broadcasting random nearest denoisers likelihood networks", THEORY + " scipy sklearn"),
    "metrics": Allowed("errors nearest random tensor_files storage", "torch jaxtyping torchvision"),
    "data": Allowed("errors config atomic random storage", THEORY + " numpy PIL sklearn torchvision"),
    "auto_grid": Allowed("random schedules denoisers samplers evaluations", THEORY),
    "noisy_classifier": Allowed("errors tensor_files networks denoisers likelihood metrics", "torch jaxtyping"),
    "fit_sampler": Allowed("errors config schedules denoisers samplers evaluations auto_grid", "torch"),
    "sampling": Allowed(
        "errors defaults random schedules denoisers samplers evaluations auto_grid fit_sampler", THEORY
    ),
    # running
    "config": Allowed("errors storage", "yaml pydantic"),
    "runs": Allowed("errors storage"),
    "model_files": Allowed("tensor_files", "torch"),
    "checkpoint_files": Allowed("errors storage", "torch"),
    "devices": Allowed("errors processes", "torch"),
    "pictures": Allowed("errors atomic data", "torch einops numpy PIL matplotlib"),
    "sample_arguments": Allowed("config errors storage"),
    "full_disk": Allowed("errors"),
    "run_lock": Allowed("errors"),
    "user_cache": Allowed("storage"),
    "stopped_runs": Allowed("atomic"),
    "resume": Allowed("errors checkpoint_files config processes run_lock stopped_runs"),
    "preflight": Allowed("errors config processes storage"),
    "preflight_commands": Allowed("errors atomic config preflight runs sample_record"),
    "record_settings": Allowed(),
    "verify_resume": Allowed("errors checkpoint_files config runs training", "torch"),
    "experiment": Allowed(
        "errors config data schedules denoisers networks objectives samplers likelihood baselines", "torch jaxtyping"
    ),
    "families": Allowed(
        "errors atomic random config data denoisers evaluations experiment likelihood baselines samplers sampling "
        "auto_grid "
        "fit_sampler schedules pictures runs user_cache",
        "torch einops jaxtyping PIL",
    ),
    "encoding": Allowed("errors denoisers evaluations families samplers sampling schedules", "torch jaxtyping"),
    "model": Allowed("errors storage runs model_files checkpoint_files config experiment families", "torch"),
    "evaluation": Allowed("errors atomic random runs config experiment likelihood model baselines user_cache", "torch"),
    "report": Allowed(
        "runs config evaluation experiment families likelihood model pictures baselines sample_arguments", "rich"
    ),
    "sample_record": Allowed("errors runs record_settings storage", "numpy PIL"),
    "sample_files": Allowed("errors atomic data pictures processes run_lock sample_record", "torch numpy"),
    "control": Allowed("errors data denoisers families model noisy_classifier runs sample_record samplers", "torch"),
    "encode_images": Allowed("errors atomic control encoding families pictures sample_record", "torch numpy"),
    "draw": Allowed(
        "errors control encode_images fit_sampler runs data devices families model pictures processes sample_arguments "
        "sample_files sample_record samplers "
        "sampling schedules storage",
        "torch numpy PIL tqdm",
    ),
    "training": Allowed(
        "errors storage atomic full_disk random run_lock runs model_files checkpoint_files config data devices "
        "denoisers experiment families likelihood model objectives pictures preflight processes resume samplers "
        "sampling stopped_runs baselines evaluations",
        "torch lightning wandb tqdm",
    ),
    "cli": Allowed(
        "errors config devices draw evaluation experiment full_disk model preflight preflight_commands processes "
        "report resume runs sample_arguments training verify_resume",
        "tqdm",
    ),
    "commands": Allowed(
        "errors atomic baselines checkpoint_files cli config data denoisers devices evaluation evaluations experiment "
        "families fit_sampler flow likelihood metrics model networks noisy_classifier pictures preflight "
        "preflight_commands processes random report runs sample_arguments samplers sampling schedules storage "
        "tensor_files training user_cache",
        "torch rich PIL scipy matplotlib jaxtyping",
    ),
    "__main__": Allowed("cli commands"),
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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
            # `from . import x` names a part, `from .x import y` something in it
            names |= {f"{base}.{alias.name}" for alias in node.names} if base == "diffusion" else {base}
    return names


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_what_is_below_it(path):
    part = part_of(path)
    assert part in ALLOWED, f"{part} is new: say in this table, and in docs/architecture.md, what it may import"
    allowed = ALLOWED[part]
    for name in imported(path):
        head, _, rest = name.partition(".")
        if head == "diffusion":
            target = rest.partition(".")[0]
            assert target == part or target in allowed.parts.split(), f"{path}: imports diffusion.{rest}"
        elif head not in sys.stdlib_module_names:
            assert head in allowed.libraries.split(), f"{path}: imports {name}"


def test_the_table_has_no_cycle():
    order: list[str] = []
    left = {part: set(allowed.parts.split()) for part, allowed in ALLOWED.items()}
    while left:
        free = [part for part, needs in left.items() if needs <= set(order)]
        assert free, f"these import each other: {sorted(left)}"
        order += free
        left = {part: needs for part, needs in left.items() if part not in free}


def test_lightning_and_wandb_are_of_the_running_part_alone():
    users = {part for part, allowed in ALLOWED.items() if {"lightning", "wandb"} & set(allowed.libraries.split())}
    assert users == {"training"}


def test_the_reader_of_imports_sees_them():
    """The functions above find what is there: relative, absolute, nested and of the package itself."""
    assert "diffusion.denoisers.guidance.classifier_free" in imported(PACKAGE / "sampling.py")
    assert "diffusion.samplers" in imported(PACKAGE / "sampling.py")
    assert "wandb" in imported(PACKAGE / "training" / "wandb_mode.py")
    assert "diffusion.errors" in imported(PACKAGE / "denoisers" / "guidance" / "classifier_free.py")
    assert "diffusion.training.fit" in imported(PACKAGE / "cli.py")


def test_no_file_is_longer_than_400_lines():
    assert {path.name for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 400} == set()
