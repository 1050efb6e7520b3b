"""What is measured: a run's model, the folder of its evaluations, and the images of a split, identified by hash."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import with_places
from ..data import ImageData, SplitData
from ..data.files.mapped_rows import MappedRows
from ..data.named_sets import NotFetchedError
from ..errors import UserError, reported_as
from ..models.build import build_data, parameter_count
from ..models.load import TrainedModel, load_named
from ..numerics.random import FIXED_ORDER, fixed_order, fixed_subset
from ..storage import hub, runs
from ..storage.records import find

# Of the conditions that images are measured under, in what identifies the images.
CONDITION_DIGEST = "condition_sha256"


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to measure.

    Args:
        name: The name of its run, or of its file.
        home: The folder that holds its `evaluations/`.
        model: The model.
        weights: The SHA-256 of its file.
    """

    name: str
    home: Path
    model: TrainedModel
    weights: str

    @property
    def facts(self) -> dict[str, Any]:
        """The model's description in the record of a result, as plain values."""
        return {
            "run": self.name,
            "family": self.model.config.family,
            "parameters": parameter_count(self.model.module),
            "data": self.model.facts.name,
        }

    @property
    def training(self) -> dict[str, Any]:
        """What its training cost, as the run's training.json has it; None for what is not known.

        Images seen (steps x batch), seconds of the steps, CPU seconds of the process, and on what.
        """
        unknown = {"images_seen": None, "training_seconds": None, "training_cpu_seconds": None, "trained_on": None}

        def known(found: dict[str, Any]) -> dict[str, Any] | None:
            numbers = [found[name] for name in ("images", "seconds", "cpu_seconds")]
            if not all(n is None or (isinstance(n, int | float) and math.isfinite(n) and n >= 0) for n in numbers):
                return None
            return dict(zip(unknown, [*numbers, "; ".join(map(str, found["hardware"])) or None], strict=True))

        return find(self.home / runs.TRAINING, known) or unknown  # of an earlier version, or no run at all


def locate(path_or_name: str, runs_dir: str) -> tuple[str, Path, Path]:
    """The name of a run or model, the folder that holds its `evaluations/`, and its file.

    A file that is in no run has its evaluations in `evaluations/<name>` of the working folder.

    Raises:
        UserError: If there is no such model.
    """
    source = runs.resolve_model(path_or_name, runs_dir)
    if (name := hub.name_of(str(path_or_name))) is not None:
        return name, Path("evaluations") / name, source
    if source.name == runs.MODEL:
        return source.resolve().parent.name, source.parent, source
    return source.stem, Path("evaluations") / source.stem, source


def load_subject(path_or_name: str, runs_dir: str, device: torch.device | str = "cpu", points: bool = False) -> Subject:
    """Load a model to measure; with `points` it may be a model of continuous data.

    Raises:
        UserError: For a model that is not there, damaged, or of continuous data where those are not taken.
    """
    name, home, source = locate(path_or_name, runs_dir)
    model = load_named(source, device)
    if model.facts.levels is None and not points:
        raise UserError(f"{path_or_name}: its data '{model.facts.name}' are not of levels; images are measured here")
    return Subject(name, home, model, model.weights)


def named_apart(names: Sequence[str], places: Sequence[Path]) -> list[str]:
    """The names, those that are there more than once with what differs in their places: `x-0001 (cluster/runs)`.

    Raises:
        UserError: For one place that is named twice.
    """
    parts = [place.expanduser().resolve().parts for place in places]
    apart = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        rows = [row for row, other in enumerate(names) if other == name]
        paths = [parts[row] for row in rows]
        if len(set(paths)) < len(paths):
            raise UserError(f"{name} is named twice")
        shared = _common(paths)
        rest = [path[shared:] for path in paths]
        ending = min(_common([path[::-1] for path in rest]), min(map(len, rest)) - 1)
        for row, path in zip(rows, rest, strict=True):
            apart[row] = f"{name} ({'/'.join(path[: len(path) - ending])})"
    return apart


def _common(paths: Sequence[tuple[str, ...]]) -> int:
    """How many parts the paths begin with alike."""
    return next((i for i, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1), min(map(len, paths)))


def load_images_of(subject: Subject, path: str | None = None) -> ImageData:
    """As `load_data_of`, of a model of images."""
    data = load_data_of(subject, path)
    if not isinstance(data, ImageData):
        raise UserError(f"{subject.name}: its data '{data.name}' are not of levels; images are measured here")
    return data


def load_data_of(subject: Subject, path: str | None = None) -> SplitData:
    """The images or the array that a model was trained on, all splits.

    Args:
        subject: The model.
        path: Where they are now, where that is not where the training found them.

    Raises:
        UserError: For images that are not there, or not those of the training any more.
    """
    config, known = subject.model.config, subject.model.facts
    if path is not None:
        if config.data.name == "digits":
            raise UserError(f"--data: the images of {subject.name} are scikit-learn's digits, no files; leave it out")
        config = with_places(config.replace(data=config.data.replace(path=path)))
    place = config.data.path
    if place is not None and not Path(place).exists():
        raise UserError(
            f"{'data.path' if path is None else '--data'}: {place} does not exist; --data PATH says where the data "
            f"of {subject.name} are now: a folder, a .zip, .tar, .npy or .npz file"
        )
    with _fetched(subject.name) if path is None else reported_as({"data.path": "--data"}):
        data = build_data(config, trained=True)
    if data.split is None:
        raise UserError(f"{subject.name}: its data '{known.name}' are drawn anew, and have no splits")
    changed = known.images_changed(data.facts)
    if changed and path is not None:
        raise UserError(f"--data: {path} does not hold the images that {subject.name} was trained on: {changed[0]}")
    if changed:
        raise UserError(
            f"{subject.name}: the images of '{data.facts.name}' have changed since its training ({changed[0]}), so "
            "that it may have seen what it would be tested on; bring back the old ones (--data PATH, where they have "
            "moved), or train anew"
        )
    return data.split


@contextmanager
def _fetched(name: str) -> Iterator[None]:
    """Within the block, errors about data that were to be fetched say which option names their place."""
    try:
        yield
    except NotFetchedError as error:
        raise UserError(
            f"{name}: {error.root} {error.reason}; --data PATH says where the data are: the folder that torchvision "
            "keeps them in, or a folder, .zip, .tar, .npy or .npz file of them"
        ) from error


def images_of(data: SplitData, split: str, count: int | None) -> tuple[Tensor, dict[str, Any]]:
    """`count` images of a split, the first in the fixed order (`random.fixed_order`), and what identifies them.

    The images are in the order of the split, whose rows they are by `rows_of`.

    Raises:
        UserError: For a split without images, or with fewer.
    """
    images: Tensor | MappedRows = getattr(data, split)
    if not len(images):
        raise UserError(f"--split: '{data.name}' has no {split} images")
    if count is not None and count > len(images):
        raise UserError(f"--images: found {count}; the {split} split of '{data.name}' has {len(images)}")
    total = len(images)
    if count is None or count == total:
        whole = images[:]
        return whole, identify(whole, data.name, split, data.levels)
    chosen = images[fixed_subset(total, count)]
    return chosen, identify(chosen, data.name, split, data.levels, total)


def rows_of(identity: Mapping[str, Any]) -> Tensor:
    """The rows of their split that the images of an identity are, ascending: they key the images' noise.

    Records of releases that took the first images of a split have neither `of` nor `order`, nor have whole splits.
    """
    count = int(identity["images"])
    return fixed_subset(int(identity["of"]), count) if "of" in identity else torch.arange(count)


def first_of(images: Tensor, identity: Mapping[str, Any], count: int) -> tuple[Tensor, dict[str, Any]]:
    """Of some images of a split those `count` that come first in the fixed order, and what identifies them."""
    if count == len(images):
        return images, dict(identity)
    images = images[fixed_order(rows_of(identity))[:count].sort().values]
    name, split, levels = (identity[key] for key in ("name", "split", "levels"))
    more = {CONDITION_DIGEST: identity[CONDITION_DIGEST]} if CONDITION_DIGEST in identity else {}
    return images, {**identify(images, name, split, levels, int(identity.get("of", identity["images"]))), **more}


def identify(images: Tensor, name: str, split: str, levels: int | None, of: int | None = None) -> dict[str, Any]:
    """What identifies images or numbers: the SHA-256 of their bytes, and name, split, number, shape and levels.

    Args:
        images: Shape (B, C, H, W).
        name, split, levels: Of the data set.
        of: The number of images in the split, where these are the first of them in the fixed order, not all.
    """
    chosen = {} if of is None else {"of": of, "order": FIXED_ORDER}
    return {
        **chosen,
        "name": name,
        "split": split,
        "images": len(images),
        "shape": list(images.shape[1:]),
        "levels": levels,
        "sha256": hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest(),
    }
