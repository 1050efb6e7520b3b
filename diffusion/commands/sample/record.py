"""The record in the metadata of a sample's PNG: everything needed to draw it again.

The same seed and index give the same noise whatever the batch; the pixels are equal to the bit where the batch has the
same shape too (matrix products differ in the last bits between batch sizes), so the record holds the batches.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import UserError
from ...sampling.settings import SETTINGS, are_settings, is_whole
from ...storage import runs
from ...storage.paths import named_path
from ...storage.records import reading

MOST_ROWS = 2**20  # samples that a picture can have been drawn with


def are_batches(batches: tuple[tuple[int, int], ...], count: int, index: int | None) -> bool:
    """Whether these are the batches of a picture of so many samples, or of the one of that index."""
    if not is_whole(count) or not (index is None or is_whole(index)):
        return False
    rows = sum(stop - first for first, stop in batches)
    in_order = all(0 <= first < stop for first, stop in batches)
    has_index = index is None or bool(batches and batches[0][0] <= index < batches[-1][1])
    return in_order and 0 < count <= rows <= MOST_ROWS and has_index


KEY = "diffusion"
ARRAY_ENDING = ".npy"  # of a file that holds a condition
_MOST_PIXELS = 2**27


@dataclass(frozen=True)
class SampleRecord:
    """How the samples of a picture were drawn.

    Args:
        model: The model: a file, or `pretrained:NAME`.
        weights: The SHA-256 of the model's file.
        data: The name of the data set that it was trained on.
        seed: The seed.
        settings: The options of the draw, as given to `model.sample`, as plain values.
        shown: The effective settings by name, for the reader: also those that a sampler has by default.
        device: Where it was drawn: `cpu`, or the name of the GPU.
        torch: The version of torch.
        index: The index of a single sample; None for a grid of samples.
        batches: [first, stop) of each batch that the samples of the picture were drawn in.
        count: The number of samples in the picture.
        classifier: The SHA-256 of the file of `--classifier`; None without one.
        guide: The SHA-256 of the model of `--guide`; None without one, and in pictures of earlier versions.
        images: The SHA-256 of the image files that settings name, by setting; none in pictures of earlier versions.
    """

    model: str
    weights: str
    data: str
    seed: int
    settings: Mapping[str, Any]
    shown: Mapping[str, Any]
    device: str
    torch: str
    index: int | None = None
    batches: tuple[tuple[int, int], ...] = ()
    count: int = 1
    classifier: str | None = None
    guide: str | None = None
    images: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def one(self, index: int, batch: tuple[int, int]) -> SampleRecord:
        """The record of a single sample that was drawn in a batch."""
        return replace(self, index=index, batches=(batch,), count=1)

    def draws(self) -> dict[str, Any]:
        """What identifies a draw, as in JSON: neither the device nor the batches."""
        return _draws(json.loads(json.dumps(asdict(self), default=repr)))

    def to_text(self) -> dict[str, str]:
        """As text entries of a PNG: one a setting, for the reader, and the whole under the key `diffusion`."""
        settings = {
            name: value if isinstance(value, str) else json.dumps(value, default=repr)
            for name, value in self.shown.items()
        }
        index = {} if self.index is None else {"index": str(self.index)}
        facts = {"model": self.model, "weights": self.weights, "data": self.data, "seed": str(self.seed), **index}
        return {**settings, **facts, KEY: json.dumps(asdict(self), default=repr)}

    def _is_sound(self) -> bool:
        """Whether all values have valid types and ranges: the file may come from anywhere."""
        texts = (self.model, self.weights, self.data, self.device, self.torch)
        return (
            are_settings(self.settings)
            and all(isinstance(part, Mapping) for part in (self.shown, self.images))
            and are_batches(self.batches, self.count, self.index)
            and all(isinstance(part, str) for part in texts)
            and is_whole(self.seed)
            and (self.classifier is None) == ("classifier" not in self.settings)
            and (self.guide is None or "guide" in self.settings)
            and all(name in self.settings for name in self.images)
        )

    @classmethod
    def read(cls, path: str | Path) -> SampleRecord:
        """The record in a PNG.

        Raises:
            UserError: For a file that is not there, is no picture, or carries no record.
        """
        path = named_path(path, "--from")
        if not path.is_file():
            raise UserError(f"--from: there is no file '{path}'; accepted: a PNG that sample.py wrote")
        try:
            with Image.open(path, formats=("PNG",)) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise UserError(f"--from: {path} has more than {_MOST_PIXELS:,} pixels and is refused")
                text = getattr(image, "text", {})
        except UserError:
            raise
        except Exception as error:  # PIL fails in many ways on what is no PNG
            raise UserError(f"--from: {path} cannot be read as a PNG ({error})") from error
        if KEY not in text:
            raise UserError(f"--from: {path} does not say how it was drawn; accepted: a PNG that sample.py wrote")
        with reading(f"--from: the record in {path} is damaged, or of another version"):
            values = json.loads(text[KEY])
            values["batches"] = tuple((int(first), int(stop)) for first, stop in values["batches"])
            record = cls(**values)
            if not record._is_sound():
                raise ValueError("its values do not fit together")
        return record


def split_condition(text: str, names: Sequence[str] | None = None) -> tuple[str | None, str]:
    """NAME=VALUE of `--condition` in two; the name is None where there is none, or none of those that there are."""
    name, equals, value = text.partition("=")
    known = bool(equals) and (names is None or name in names)
    return (name, value) if known else (None, text)


def image_digests(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """The SHA-256 of the files that settings name, by setting; of those that are there."""
    named = {name: settings[name] for name, setting in SETTINGS.items() if setting.image and name in settings}
    paths = {name: [given] if isinstance(given, str) else list(given) for name, given in named.items()}
    if "condition" in paths:  # words and numbers, too
        values = [value for text in paths["condition"] for value in (text, split_condition(text)[1])]
        paths["condition"] = [value for value in dict.fromkeys(values) if Path(value).is_file()]
        paths = {name: files for name, files in paths.items() if files}
    return {
        name: [runs.file_digest(path) for path in several]
        for name, several in paths.items()
        if all(Path(path).is_file() for path in several)
    }


def free_name(path: Path, record: SampleRecord) -> Path:
    """`path`, or with a number appended the first that is free, or holds the same draw: no draw replaces another's."""
    names = (path if n == 1 else path.with_name(f"{path.stem}-{n}{path.suffix}") for n in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name) or _drawn(name) == record.draws())


def _draws(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in record if key not in ("model", "shown", "device", "torch", "batches")}


def _drawn(path: Path) -> dict[str, Any] | None:
    """`SampleRecord.draws` of a file that sample.py wrote, a picture, an animation or noise; None of another."""
    try:
        if path.suffix == ".npz":
            import numpy as np

            with np.load(path, allow_pickle=False) as arrays:
                text = str(arrays["record"])
        elif path.suffix == ".gif":
            with Image.open(path, formats=("GIF",)) as image:
                text = json.loads(image.info["comment"])[KEY]
        else:
            return SampleRecord.read(path).draws()
        return _draws(json.loads(text))
    except Exception:  # whatever else has that name
        return None
