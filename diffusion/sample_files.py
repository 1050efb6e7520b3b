"""Where samples go: a picture of the first of them, and all of them as a folder, an archive or an array.

Images are kept batch by batch in a hidden folder beside their target, `.NAME.parts`, and put together when all are
there. A draw that was cut off, or is shared by several processes, thus needs no more than to look at what is missing;
the memory it takes is that of a batch; and the target appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import atomic, pictures
from .errors import UserError
from .sample_record import SampleRecord

KINDS = (".npz", ".zip", "")
# The samples that a picture shows.
SHOWN = 256
_QUESTION = "question.json"
_POLL_SECONDS = 0.5


class SampleFiles:
    """The files of one draw. Made before drawing, so that a name that cannot be written fails at once.

    Args:
        out: What was asked for: None, x.png (the picture), or x.npz, x.zip or a folder (all samples, and the picture).
        picture: The picture's file where `out` does not name it.
        n: The number of samples.
        record: How they are drawn.
        points: Whether samples are points of a toy rather than images.

    Raises:
        UserError: For a target that cannot be written, or that was begun with other settings.
    """

    def __init__(self, out: str | None, picture: Path, n: int, record: SampleRecord, points: bool):
        self.n = n
        self.record = record
        self.points = points
        self.picture = picture
        self.target: Path | None = None
        self._shown: list[Tensor] = []
        self._batches: list[tuple[int, int]] = []
        if out is not None and Path(out).suffix == ".png":
            self.picture = Path(out)
        elif out is not None:
            self.target = Path(out)
            self._check_target(self.target)
            self._begin()

    def _check_target(self, target: Path) -> None:
        if target.suffix not in KINDS:
            raise UserError(f"--out: found '{target}'; accepted: x.png, x.npz, x.zip or a folder")
        if target.suffix == "" and target.is_dir() and any(target.iterdir()):
            raise UserError(f"--out: the folder {target} is not empty; name a new one")
        if target.suffix == "" and target.exists() and not target.is_dir():
            raise UserError(f"--out: {target} is a file; name a folder, x.png, x.npz or x.zip")
        if self.points and target.suffix != ".npz":
            raise UserError(
                f"--out: found '{target}'; samples of '{self.record.data}' are points; accepted: x.npz, x.png"
            )

    @property
    def _parts(self) -> Path:
        assert self.target is not None
        return self.target.with_name(f".{self.target.name}.parts")

    def _begin(self) -> None:
        """Make the folder of parts, or find that of the same draw."""
        question = {
            "n": self.n,
            "seed": self.record.seed,
            "weights": self.record.weights,
            **{f"settings.{key}": value for key, value in self.record.settings.items()},
        }
        question = json.loads(json.dumps(question))
        path = self._parts / _QUESTION
        if not path.is_file():
            self._parts.mkdir(parents=True, exist_ok=True)
            atomic.write_text(path, json.dumps(question))
            return
        found = json.loads(path.read_text())
        unlike = [key for key in {**found, **question} if found.get(key) != question.get(key)]
        if unlike:
            differences = ", ".join(f"{key} {found.get(key)} there, {question.get(key)} here" for key in unlike)
            raise UserError(
                f"--out: {self._parts} holds the beginning of another draw ({differences}); repeat its command to "
                "finish it, or remove that folder"
            )

    def missing(self, batch_size: int, rank: int = 0, processes: int = 1) -> Iterator[tuple[int, int]]:
        """[first, stop) of each batch that process `rank` of `processes` has to draw."""
        todo = [(first, min(first + batch_size, self.n)) for first in range(0, self.n, batch_size)]
        if self.target is not None and self._ranges():
            todo = [
                (first, min(first + batch_size, stop))
                for start, stop in self._holes()
                for first in range(start, stop, batch_size)
            ]
        # By the batch's place and not by the list's, so that processes that start at unlike moments agree.
        return iter([(first, stop) for first, stop in todo if first // batch_size % processes == rank])

    @property
    def done(self) -> int:
        """The number of samples kept by an earlier draw, or by other processes."""
        return 0 if self.target is None else sum(stop - first for first, stop in self._ranges())

    def _ranges(self) -> list[tuple[int, int]]:
        """[first, stop) of the parts that are there, disjoint and in order."""
        found = []
        for path in self._parts.glob("*.npy"):
            if match := re.fullmatch(r"(\d+)-(\d+)\.npy", path.name):
                found.append((int(match[1]), int(match[2])))
        ranges: list[tuple[int, int]] = []
        for first, stop in sorted(found):
            if first >= (ranges[-1][1] if ranges else 0):
                ranges.append((first, stop))
        return ranges

    def _holes(self) -> list[tuple[int, int]]:
        edges = [(0, 0), *self._ranges(), (self.n, self.n)]
        return [(stop, first) for (_, stop), (first, _) in pairwise(edges) if stop < first]

    def keep(self, first: int, samples: Tensor) -> None:
        """Keep a batch of samples: images (B, C, H, W) in [-1, 1], or points (B, D)."""
        stop = first + len(samples)
        if self.target is None:
            if first < SHOWN or self.points:
                self._shown.append(samples)
                self._batches.append((first, stop))
            return
        values = samples.numpy() if self.points else pictures.to_bytes(samples).numpy()
        with atomic.writer(self._parts / f"{first:09d}-{stop:09d}.npy") as file:
            np.save(file, values)

    def wait(self, progress: Callable[[int], object]) -> None:
        """Wait for the parts of the other processes."""
        while self._holes():
            progress(self.done)
            time.sleep(_POLL_SECONDS)

    def finish(self) -> list[Path]:
        """Write the picture and the samples; returns the files."""
        from .data import load_toy

        if self.target is None:
            written = []
        else:
            assert not self._holes()
            if self.points:
                self._write_npz("points")
            elif self.target.suffix == ".npz":
                self._write_npz("images")
            else:
                self._write_images()
            written = [self.target]
            for (first, stop), values in self._read():
                if first < SHOWN or self.points:
                    x = torch.from_numpy(values)
                    self._shown.append(x if self.points else x / 127.5 - 1.0)
                    self._batches.append((first, stop))
        samples = torch.cat(self._shown)
        samples = samples if self.points else samples[:SHOWN]
        text = replace(self.record, batches=tuple(self._batches), count=len(samples)).to_text()
        toy = load_toy(self.record.data) if self.points else None
        pictures.save_samples(self.picture, samples, toy, text)
        if self.target is not None:
            shutil.rmtree(self._parts)
        return [self.picture, *written]

    def _read(self) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        for first, stop in self._ranges():
            yield (first, stop), np.load(self._parts / f"{first:09d}-{stop:09d}.npy", allow_pickle=False)

    def _write_npz(self, name: str) -> None:
        """One array, written as it is read: an archive with one member in NumPy's own format."""
        assert self.target is not None
        with (
            atomic.writer(self.target) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open(f"{name}.npy", "w", force_zip64=True) as member,
        ):
            for (first, _), values in self._read():
                if name == "images":
                    values = values.transpose(0, 2, 3, 1)
                    values = values[..., 0] if values.shape[-1] == 1 else values
                if first == 0:
                    header = np.lib.format.header_data_from_array_1_0(np.ascontiguousarray(values))
                    np.lib.format.write_array_header_1_0(member, {**header, "shape": (self.n, *values.shape[1:])})
                member.write(np.ascontiguousarray(values).tobytes())

    def _images(self) -> Iterator[tuple[str, bytes]]:
        digits = max(6, len(str(self.n)))
        for batch, values in self._read():
            for index, pixels in zip(range(*batch), values, strict=True):
                text = self.record.one(index, batch).to_text()
                yield f"{index:0{digits}d}.png", pictures.encode(pictures.from_bytes(pixels), text)

    def _write_images(self) -> None:
        assert self.target is not None
        if self.target.suffix == ".zip":
            with atomic.writer(self.target) as file, zipfile.ZipFile(file, "w") as archive:  # PNGs are compressed
                for name, data in self._images():
                    archive.writestr(name, data)
            return
        with _whole_folder(self.target) as folder:
            for name, data in self._images():
                (folder / name).write_bytes(data)


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder that appears under its name when the block ends; an interrupt leaves none."""
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.is_dir():
            target.rmdir()
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    atomic.sync_folder(target.parent)
