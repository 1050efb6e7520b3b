"""The files of a draw: a picture of the first samples, and all samples as a folder, an archive or an array.

Images are kept batch by batch in a hidden folder next to their target, `.NAME.parts`, and put together when all are
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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data import find_toy, pictures
from ...data.files.raw_images import OPACITY
from ...errors import UserError
from ...likelihood.dequantization import Dequantizer
from ...models.build import DataFacts
from ...processes import ALONE, Processes
from ...storage import atomic, run_lock
from ...storage.records import DAMAGED, digest, find, keep
from .record import SampleRecord, free_name

ARRAYS = (".npz", ".npy")
KINDS = (*ARRAYS, ".zip")
# The samples that a picture shows.
SHOWN = 256
_QUESTION = "question.json"
_POLL_SECONDS = 0.5
_DRAWN = "--out: {folder} is being written by {holder}; wait for it, stop it, or choose another target"


class SampleFiles:
    """The files of one draw, a context. Made before drawing, so that a name that cannot be written fails at once.

    Nothing is on the disk before the first batch is kept, so that what is refused until then leaves nothing. A part
    has in its name the digest of the question that it answers (`n`, seed, weights, settings and the bytes of the files
    that they name), and none of another question is ever taken. A draw that ends in a `UserError` could never be
    finished: its parts go with it.

    Args:
        out: As `--out`: None, x.png (the picture), or x.npz, x.zip or a folder (all samples, and the picture).
        picture: The picture's file where `out` does not name it; a number is appended where another draw has it.
        n: The number of samples.
        record: How they are drawn.
        facts: Of the data: images of more than 256 levels, or neither grey nor colour (with opacity or without), are
            kept as arrays, numbers too.
        processes: Those that share the draw.

    Raises:
        UserError: For a target that cannot be written, that was begun with other settings, or that another process
            draws.
    """

    def __init__(
        self,
        out: str | None,
        picture: Path,
        n: int,
        record: SampleRecord,
        facts: DataFacts,
        processes: Processes = ALONE,
    ):
        self.n, self.opacity = n, OPACITY in facts.provenance
        self.record = record
        self.levels, self.continuous = facts.levels, facts.levels is None
        self.channels = facts.shape[0]
        self.processes = processes
        self.picture, self._is_named = picture, False
        self.target: Path | None = None
        self.is_folder = False
        self._shown: list[Tensor] = []
        self._batches: list[tuple[int, int]] = []
        self._lock = ExitStack()
        self._begun = self._finishing = False
        digests = {"classifier": record.classifier, "guide": record.guide, "images": dict(record.images)}
        settings = {f"settings.{key}": value for key, value in record.settings.items()}
        question = {"n": n, "seed": record.seed, "weights": record.weights, **settings, **digests}
        self._question: dict[str, Any] = json.loads(json.dumps(question))
        self._digest = digest(self._question)
        if out is not None and Path(out).suffix == ".png" and not is_folder(out):
            self.picture, self._is_named = Path(out), True
        elif out is not None:
            self.is_folder = is_folder(out)
            # `.` and `..` have no name to put the parts next to
            self.target = Path(os.path.abspath(out) if Path(out).name in ("", "..") else out)
            self._check_target(self.target)
            self._check_parts()

    def __enter__(self) -> SampleFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, UserError) and self._begun and not self._finishing:
            self._remove(f"*-{self._digest}.npy")
        self._lock.close()
        if self.target is not None:
            with suppress(OSError):  # not there, or what there is to go on with
                self._parts.rmdir()

    def _check_target(self, target: Path) -> None:
        if self.continuous and (self.is_folder or target.suffix not in ARRAYS):
            raise UserError(
                f"--out: found '{target}'; samples of '{self.record.data}' are numbers; accepted: x.npz, x.npy, x.png"
            )
        if self.levels is not None and self.levels > 256 and (self.is_folder or target.suffix not in ARRAYS):
            raise UserError(
                f"--out: found '{target}'; samples of {self.levels:,} levels are kept whole in x.npz, x.npy; a picture "
                "of them is x.png"
            )
        seen = self.channels in (1, 3) or self.opacity
        if not self.continuous and not seen and (self.is_folder or target.suffix not in ARRAYS):
            raise UserError(
                f"--out: found '{target}'; samples of {self.channels} channels are kept whole in x.npz, x.npy; a "
                "picture of them is x.png"
            )
        if not self.is_folder and target.suffix not in KINDS:
            raise UserError(f"--out: found '{target}'; accepted: x.png, x.npz, x.npy, x.zip or a folder")
        if self.is_folder and target.exists() and not target.is_dir():
            raise UserError(f"--out: {target} is a file; name a folder, x.png, x.npz, x.npy or x.zip")
        # all parts are there: it was cut off while it wrote the folder
        if self.is_folder and target.is_dir() and any(target.iterdir()) and self._holes():
            raise UserError(f"--out: the folder {target} is not empty; name a new one")

    @property
    def _parts(self) -> Path:
        assert self.target is not None
        return self.target.with_name(f".{self.target.name}.parts")

    def _check_parts(self) -> None:
        """Refuse the beginning of another draw, and a draw that is going on."""
        if self.processes.is_main and (holder := run_lock.holder(self._parts)) is not None:
            raise UserError(_DRAWN.format(folder=self._parts, holder=holder))
        found = self._question_there()
        if found == self._question or not any(self._parts.glob(f"*-{digest(found)}.npy")):
            return
        unlike = [key for key in {**found, **self._question} if found.get(key) != self._question.get(key)]
        differences = ", ".join(f"{key} {found.get(key)} there, {self._question.get(key)} here" for key in unlike)
        raise UserError(
            f"--out: {self._parts} holds an unfinished draw with other settings ({differences}); repeat its command to "
            "finish it, or remove that folder"
        )

    def _question_there(self) -> dict[str, Any]:
        """The question of the folder of parts; an empty one where there is none that can be read."""
        return find(self._parts / _QUESTION, dict) or {}

    def _begin(self) -> None:
        """Make the folder of parts, or take over what is there; parts of other questions are removed."""
        if self._begun or self.target is None:
            return
        self._parts.mkdir(parents=True, exist_ok=True)
        if self.processes.is_main:
            self._lock.enter_context(run_lock.held(self._parts, _DRAWN))
            self._clear_others()
        self._begun = True

    def _clear_others(self) -> None:
        if self._question_there() != self._question:
            (self._parts / _QUESTION).unlink(missing_ok=True)  # first: from here on nothing there answers a question
            for path in self._parts.glob("*.npy"):
                if not path.stem.endswith(f"-{self._digest}"):
                    path.unlink(missing_ok=True)
            keep(self._parts / _QUESTION, self._question)

    def _remove(self, pattern: str) -> None:
        """Remove parts, the question first: a kill on the way leaves what answers no question, and is not taken."""
        (self._parts / _QUESTION).unlink(missing_ok=True)
        for path in self._parts.glob(pattern):
            if path.name != run_lock.LOCK:
                path.unlink(missing_ok=True)

    def missing(self, batch_size: int) -> Iterator[tuple[int, int]]:
        """[first, stop) of each batch that this process has to draw."""
        todo = [(first, min(first + batch_size, self.n)) for first in range(0, self.n, batch_size)]
        if self.target is not None and self._ranges():
            todo = [
                (first, min(first + batch_size, stop))
                for start, stop in self._holes()
                for first in range(start, stop, batch_size)
            ]
        # By the batch's place and not by the list's, so that processes that start at unlike moments agree.
        rank, count = self.processes.rank, self.processes.count
        return iter([(first, stop) for first, stop in todo if first // batch_size % count == rank])

    @property
    def done(self) -> int:
        """The number of samples kept by an earlier draw, or by other processes."""
        return 0 if self.target is None else sum(stop - first for first, stop in self._ranges())

    def _ranges(self) -> list[tuple[int, int]]:
        """[first, stop) of the parts that are there, disjoint and in order."""
        found = []
        for path in self._parts.glob("*.npy"):
            if match := re.fullmatch(rf"(\d+)-(\d+)-{self._digest}\.npy", path.name):
                found.append((int(match[1]), int(match[2])))
        ranges: list[tuple[int, int]] = []
        for first, stop in sorted(found):
            if first >= (ranges[-1][1] if ranges else 0):
                ranges.append((first, stop))
        return ranges

    def _part(self, first: int, stop: int) -> Path:
        return self._parts / f"{first:09d}-{stop:09d}-{self._digest}.npy"

    def _holes(self) -> list[tuple[int, int]]:
        edges = [(0, 0), *self._ranges(), (self.n, self.n)]
        return [(stop, first) for (_, stop), (first, _) in pairwise(edges) if stop < first]

    def keep(self, first: int, samples: Tensor) -> None:
        """Keep a batch of samples: images (B, C, H, W) in [-1, 1], or numbers (B, *shape)."""
        stop = first + len(samples)
        if self.target is None:
            if first < SHOWN or self._shows_all(samples):
                self._shown.append(samples)
                self._batches.append((first, stop))
            return
        values = samples.numpy() if self.continuous else self._to_levels(samples)
        self._begin()
        with atomic.writer(self._part(first, stop)) as file:
            np.save(file, values)

    def wait(self, progress: Callable[[int], object]) -> None:
        """Wait for the parts of the other processes."""
        self._begin()
        while self._holes():
            progress(self.done)
            time.sleep(_POLL_SECONDS)

    def finish(self) -> list[Path]:
        """Write the picture and the samples; returns the files."""
        if self.target is not None:
            self._begin()
            self._finishing = True
            if self._holes():  # someone has removed parts
                raise UserError(f"{self._parts}: parts are missing; the same command draws them again")
            for (first, stop), values in self._read():
                x = torch.from_numpy(values if self.continuous else values.astype(np.float32))
                if first < SHOWN or self._shows_all(x):
                    self._shown.append(x if self.continuous else x / (0.5 * self._most) - 1.0)
                    self._batches.append((first, stop))
        samples = torch.cat(self._shown)
        samples = samples if self._shows_all(samples) else samples[:SHOWN]
        record = replace(self.record, batches=tuple(self._batches), count=len(samples))
        toy = find_toy(self.record.data) if self.continuous else None
        picture = self.picture if self._is_named else free_name(self.picture, record)
        pictures.save_samples(picture, samples, toy, record.to_text(), self.continuous)
        if self.target is None:
            return [picture]
        if self.continuous or self.target.suffix in ARRAYS:
            self._write_array("samples" if self.continuous else "images")
        elif self.is_folder or self.target.suffix == ".zip":
            self._write_images()
        self._remove("*")
        return [picture, self.target]

    @property
    def _most(self) -> int:
        """The value of white."""
        return 255 if self.levels is None or self.levels <= 256 else self.levels - 1

    def _to_levels(self, samples: Tensor) -> np.ndarray:
        """Images in [-1, 1] as the bytes of pictures, or as levels where these are more than 256."""
        if self._most == 255:
            return pictures.to_bytes(samples).numpy()
        return Dequantizer(self._most + 1).quantize(samples.double()).numpy().astype(np.uint16)

    def _shows_all(self, samples: Tensor) -> bool:
        """Whether the picture shows all samples, and not the first of them: points and vectors."""
        return self.continuous and samples.ndim == 2

    def _read(self) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        for first, stop in self._ranges():
            path = self._part(first, stop)
            try:
                values = np.load(path, allow_pickle=False)
                whole = len(values) == stop - first
            except DAMAGED:
                whole = False
            if not whole:
                path.unlink(missing_ok=True)
                raise UserError(f"{path}: is damaged and has been removed; the same command draws it again")
            yield (first, stop), values

    def _write_array(self, name: str) -> None:
        """One array, written as it is read, in NumPy's own format: a file, or an archive with this one member."""
        assert self.target is not None
        with ExitStack() as stack:
            member = stack.enter_context(atomic.writer(self.target))
            if self.target.suffix == ".npz":
                archive = stack.enter_context(zipfile.ZipFile(member, "w", zipfile.ZIP_DEFLATED))
                member = stack.enter_context(archive.open(f"{name}.npy", "w", force_zip64=True))
            for (first, _), values in self._read():
                if not self.continuous:
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
                yield f"{index:0{digits}d}.png", pictures.encode(pictures.from_bytes(pixels, self.opacity), text)

    def _write_images(self) -> None:
        assert self.target is not None
        if not self.is_folder:
            with atomic.writer(self.target) as file, zipfile.ZipFile(file, "w") as archive:  # PNGs are compressed
                for name, data in self._images():
                    archive.writestr(name, data)
            return
        with _whole_folder(self.target) as folder, atomic.naming(self.target, folder):
            for name, data in self._images():
                (folder / name).write_bytes(data)


def is_folder(out: str) -> bool:
    """Whether a target names a folder: one that is there, with a slash at its end, or without a suffix."""
    return Path(out).suffix == "" or out.endswith(("/", os.sep)) or Path(out).is_dir()


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A folder that appears under its name when the block ends; an interrupt leaves none.

    One that is there stays, and is filled: somebody may stand in it, or something be mounted there.
    """
    parent = target if target.is_dir() else target.parent
    partial = parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.is_dir():
            for path in sorted(partial.iterdir()):
                os.replace(path, target / path.name)
            partial.rmdir()
        else:
            os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    atomic.sync_folder(target.parent)
