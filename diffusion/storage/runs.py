"""Run folders and model files.

    runs/<name>-0001/   config.yaml        the complete configuration
                        model.safetensors  the averaged weights, with the configuration inside: all that sampling needs
                        data.json          what was found in the data, with the SHA-256 of each split
                        checkpoints/       last.ckpt, best.ckpt: all that resuming needs
                        metrics.jsonl      the record of training, and metrics.csv, the same as a table
                        averages/          snapshots of averages of several widths, for `average` (ema.widths)
                        start.safetensors  the model before step 1, of a run that starts from another (--from)
                        training.json      images seen, seconds, hardware
                        samples/  evaluation.json  evaluations/  wandb/
                        stopped.json       while a signal has stopped the run: its exit code and step

Model files are read and written by `tensor_files`; here they are only found, without torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path

from ..errors import UserError, did_you_mean
from . import hub
from .paths import named_path
from .records import DAMAGED

CONFIG, MODEL, CHECKPOINTS, SAMPLES, EVALUATION, TRAINING = (
    "config.yaml",
    "model.safetensors",
    "checkpoints",
    "samples",
    "evaluation.json",
    "training.json",
)
DATA = "data.json"
START = "start.safetensors"
AVERAGES = "averages"
# The text entry of a model file that holds the conventions of a network that another project made.
KNOWN = "known"
PRETRAINED = Path(__file__).parents[1] / "pretrained"
# Files in the folder of a model that another project wrote, and the endings of its files.
FOREIGN_MARKS = (
    "model_index.json", "unet/config.json", "transformer/config.json", "scheduler_config.json",
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin",
)  # fmt: skip
FOREIGN_SUFFIXES = (".pkl", ".pt", ".pth")
_PREFIX = "pretrained:"
_OF_PYTHON = re.compile(r"(.+\.py):([A-Za-z_]\w*)")
_LONGEST_HEADER = 2**26
# Endings of the networks shipped next to the models: features, and classifiers of noisy images.
FEATURES, CLASSIFIER = "-features", "-classifier"


def create_run(runs_dir: str | Path, name: str) -> Path:
    """Make the next folder `<name>-0001`, `<name>-0002`, ... of `runs_dir` and return its path.

    An existing folder is never reused, even if two processes start at once.

    Raises:
        UserError: `name` is not a plain file name.
    """
    if not re.fullmatch(r"\w[\w.+=-]*", name):
        raise UserError(f"name: '{name}' found; letters, digits and . _ - + = are accepted in the name of a run.")
    runs_dir = named_path(runs_dir, "runs")
    runs_dir.mkdir(parents=True, exist_ok=True)
    pattern = re.compile(re.escape(name) + r"-(\d{4,})")
    taken = (pattern.fullmatch(path.name) for path in runs_dir.iterdir())
    number = max((int(match[1]) for match in taken if match), default=0) + 1
    while True:
        run = runs_dir / f"{name}-{number:04d}"
        try:
            run.mkdir()  # atomic: of several processes exactly one succeeds
        except FileExistsError:
            number += 1
            continue
        for folder in (CHECKPOINTS, SAMPLES):
            (run / folder).mkdir()
        return run


def newest_run(runs_dir: str | Path, containing: str = MODEL) -> Path | None:
    """Return the run folder whose file `containing` was written last, or None if no run has one.

    Args:
        runs_dir: The folder of runs.
        containing: The file that makes a run usable: `model.safetensors` for sampling,
            `checkpoints/last.ckpt` for resuming.
    """
    files = [path / containing for path in named_path(runs_dir, "runs").glob("*") if (path / containing).is_file()]
    if not files:
        return None
    newest = max(files, key=lambda file: (file.stat().st_mtime_ns, str(file)))
    return newest.parents[len(Path(containing).parts) - 1]


def resolve_weights(path_or_name: str | Path, runs_dir: str | Path = "runs") -> Path:
    """As `resolve_model`; also takes a training checkpoint, by its path or `RUN/checkpoints/NAME.ckpt`.

    Raises:
        UserError: As `resolve_model`, and for a checkpoint that is not there.
    """
    path = named_path(path_or_name, "model")
    for place in (path, named_path(runs_dir, "runs") / path):
        if place.suffix == ".ckpt" and place.is_file():
            return place
    if path.suffix == ".ckpt" and not path.exists():
        raise UserError(f"{path}: there is no such checkpoint.")
    return resolve_model(path_or_name, runs_dir)


def resolve_model(path_or_name: str | Path, runs_dir: str | Path = "runs") -> Path:
    """Return the model file meant by a run folder, the name of a run, a `.safetensors` file or `pretrained:NAME`.

    `FILE.py:NAME`, a model that a Python file makes, is returned as it is, and so is what another project wrote; of
    `hf:OWNER/NAME`, a model on the Hugging Face hub, the local copy.

    Raises:
        UserError: There is no such run, file or pretrained model, or the run has no weights yet.
    """
    text = str(path_or_name)
    if text.startswith(_PREFIX):
        return _pretrained(text)
    if (found := python_model(text)) is not None:
        if not found[0].is_file():
            raise UserError(f"{found[0]}: there is no such file.")
        return Path(text)
    if text.startswith(hub.PREFIX):
        path_or_name = hub.fetched(text)
    path, runs_dir = named_path(path_or_name, "model"), named_path(runs_dir, "runs")
    if not path.exists() and (runs_dir / path).is_dir():
        path = runs_dir / path
    if path.is_dir():
        if (path / MODEL).is_file():
            return path / MODEL
        if of_another_project(path):
            return path
        if (inner := newest_run(path)) is not None:
            raise UserError(f"{path}: is a folder of runs, not a run; the newest in it is {inner}.")
        if (last := path / CHECKPOINTS / "last.ckpt").is_file():
            raise UserError(f"{path}: its training is not finished; load {last} for the model so far.")
        raise UserError(f"{path}: has no {MODEL}; it is no run, or its training has not reached its first checkpoint.")
    if (path.suffix == ".safetensors" and path.is_file()) or of_another_project(path):
        return path
    if path.is_file():
        near = [folder / MODEL for folder in path.resolve().parents[:2] if (folder / MODEL).is_file()]
        hint = f" The model of that run is {near[0]}." if near else ""
        raise UserError(f"{path}: a run folder, a .safetensors file or {_PREFIX}NAME is accepted as a model.{hint}")
    raise UserError(f"{path}: there is no such run or model file.{others(path, runs_dir)}")


def of_another_project(path: Path) -> bool:
    """Whether this looks like a model that another project wrote; `models.formats` knows which, and reads it."""
    if path.is_dir():
        return any((path / mark).is_file() for mark in FOREIGN_MARKS)
    return path.is_file() and path.suffix in FOREIGN_SUFFIXES


def is_adopted(path: Path) -> bool:
    """Whether another project made the model at a path, in its own files or in one of ours; looked at without torch."""
    return of_another_project(path) or isinstance(_entries(path).get(KNOWN), str)


def config_inside(path: Path) -> str | None:
    """The configuration in a model file, as text, read without torch; None where there is none to be read."""
    found = _entries(path).get("config")
    return found if isinstance(found, str) else None


def _entries(path: Path) -> dict[str, object]:
    """The text entries of a model file; none where there are none to be read."""
    with suppress(*DAMAGED), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return dict(json.loads(file.read(min(length, _LONGEST_HEADER)))["__metadata__"])
    return {}


def python_model(text: str) -> tuple[Path, str] | None:
    """The file and the name of `FILE.py:NAME`, a model that the user's own Python file makes; None for anything else.

    The file is run: nothing but what the user names so is taken for one.
    """
    match = _OF_PYTHON.fullmatch(text)
    return None if match is None else (named_path(match[1], "model"), match[2])


def others(path: Path, runs_dir: Path, most: int = 8) -> str:
    """A sentence for an error about a run or model file that does not exist: the closest of those in its folder and in
    `runs_dir`, or else what `runs_dir` holds.
    """
    near = [entry.name for folder in (path.parent, runs_dir) for entry in _runs_and_models(folder)]
    if hint := did_you_mean(path.name, near):
        return hint
    names = sorted(entry.name for entry in _runs_and_models(runs_dir))
    if not names:
        return f" {runs_dir} holds no run yet."
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f" In {runs_dir}: {', '.join(names[:most])}{more}."


def file_digest(path_or_name: str | Path) -> str:
    """The SHA-256 of a file or of `pretrained:NAME`, which identifies a model."""
    text = str(path_or_name)
    with open(_pretrained(text) if text.startswith(_PREFIX) else named_path(text), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shipped(ending: str) -> dict[str, Path]:
    """The shipped networks of a kind (`FEATURES`, `CLASSIFIER`) by data set."""
    return {path.stem.removesuffix(ending): path for path in sorted(PRETRAINED.glob(f"*{ending}.safetensors"))}


def shipped_models() -> list[str]:
    """The shipped models, `pretrained:NAME`."""
    # the networks that samples are measured by (metrics/classifier.py) lie next to the models
    stems = sorted(p.stem for p in PRETRAINED.glob("*.safetensors") if not p.stem.endswith((FEATURES, CLASSIFIER)))
    return [f"{_PREFIX}{stem}" for stem in stems]


def names_of_runs(runs_dir: str | Path) -> list[str]:
    """The runs with weights in a folder, by name, the newest first."""
    found = [path for path in _models_in(named_path(runs_dir, "runs")) if path.is_dir()]
    return [path.name for path in sorted(found, key=lambda path: -(path / MODEL).stat().st_mtime_ns)]


def resolve_classifier(name: str) -> Path:
    """The file of a classifier of noisy images, given by its path or by the data set it is shipped for.

    Raises:
        UserError: There is no such file.
    """
    known = shipped(CLASSIFIER)
    path = known.get(name) or named_path(name, "--classifier")
    if not path.is_file():
        accepted = f"{', '.join(known)}, or a file of python -m diffusion train-classifier"
        raise UserError(f"--classifier: {name} does not exist; accepted: {accepted}")
    return path


def shipped_file(source: str) -> Path | None:
    """The file of `pretrained:NAME`; None for any other source, or if there is no such file."""
    path = PRETRAINED / f"{source.removeprefix(_PREFIX)}.safetensors"
    return path if source.startswith(_PREFIX) and path.is_file() else None


def _pretrained(text: str) -> Path:
    name = text.removeprefix(_PREFIX)
    options = [model.removeprefix(_PREFIX) for model in shipped_models()]
    if name not in options:
        accepted = ", ".join(shipped_models()) or "none in this installation"
        # Compared without what all names begin with, which would make any two of them close.
        hint = did_you_mean(name, options).replace("mean '", f"mean '{_PREFIX}")
        raise UserError(f"{text}: there is no such model; accepted: {accepted}.{hint}")
    return PRETRAINED / f"{name}.safetensors"


def _models_in(folder: Path) -> list[Path]:
    return [entry for entry in _runs_and_models(folder) if entry.suffix == ".safetensors" or (entry / MODEL).is_file()]


def _runs_and_models(folder: Path) -> list[Path]:
    """Model files, and runs, also those that have no model yet."""
    if not folder.is_dir():
        return []
    kept = (CONFIG, MODEL)
    return [
        entry
        for entry in folder.iterdir()
        if entry.suffix == ".safetensors" or any((entry / name).is_file() for name in kept)
    ]


def user_cache(kind: str) -> Path:
    """A folder in the user's cache, $XDG_CACHE_HOME/diffusion or ~/.cache/diffusion; it may not exist."""
    return named_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "diffusion" / kind
