"""The measurement itself: chunk by chunk, each stored when it is done, then the rest of the error budget.

Several processes share a measurement without communicating: each takes the chunks of its rank, whose boundaries depend
only on the question, and waits until those of the others are on disk. All then read the same parts and make the same
decisions, and the main process writes the result. No process waits inside a solver, however long another one takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import DENOISING
from ...denoisers.evaluations import EvaluationCount
from ...errors import UserError
from ...likelihood import Estimate
from ...likelihood.error_budget import Measure, complete, measurements
from ...likelihood.gaussian_reference import REFERENCES
from ...models.load import TrainedModel
from ...processes import ALONE, Processes
from ...storage.records import digest
from .. import records
from ..preflight import check_takes_figures
from ..records import Evaluation, Protocol
from ..subjects import CONDITION_DIGEST, Subject, rows_of
from .given import CONDITION, Given

CHUNK = 128
START = "fitted_start"
# On a CPU a chunk is no larger: an evaluation of the digits' network costs 10 % more an image than in one of 256, and
# the time that is left is known after a sixth of them.
CPU_CHUNK = 64
BUDGET = "error budget"
# The parts of images that are measured again, for the error budget.
_AGAIN = "again-"
_POLL_SECONDS = 0.2
Progress = Callable[..., None]


@dataclass(frozen=True)
class How:
    """How a question is answered, which is no part of it.

    Args:
        device: Where to compute; the model is there.
        batch_size: Images in a chunk, and taken together by the estimator; by default 128 a chunk, and the
            estimator's own choice. At most 64 a chunk on a CPU.
        again: Measure again, replacing the stored result.
        progress: Called with (images done, number of images), within a chunk with its NFE as a third, a text, and then
            with (measurements done, number of them, `BUDGET`) for the error budget.
        processes: The processes that share the measurement.
    """

    device: torch.device
    batch_size: int | None = None
    again: bool = False
    progress: Progress | None = None
    processes: Processes = ALONE


def measure(
    subject: Subject, images: Tensor, protocol: Protocol, how: How, given: Given | None = None
) -> tuple[Evaluation, bool]:
    """Measure images under a model, or find the stored result.

    Args:
        subject: The model.
        images: Level indices, uint8, or numbers of shape (B, *shape): those that `protocol.data` identifies.
        protocol: The question.
        how: How to answer it.
        given: The conditions of the images, which `conditioned` has put into the question.

    Returns:
        The evaluation, and whether it was stored already.

    Raises:
        UserError: For a method or option that the model does not take; for a damaged record.
    """
    folder = subject.home / records.FOLDER
    answer = folder / f"{protocol.name}.json"
    if answer.is_file() and not how.again:
        return records.read(answer), True
    bench = Bench(subject.model, images, protocol, folder / protocol.name, how, answer, given)
    if how.again:
        bench.clear()
    try:
        estimate = bench(bench.rows, {}, how.progress)
        completed = complete(estimate, _counted(bench, measurements(estimate), how.progress))
        bench.leave_to_main()
    except AnsweredError:
        return records.read(answer), False
    evaluation = records.write(folder, protocol, subject.facts, completed)
    bench.clear()
    return evaluation, False


def _counted(bench: Bench, count: int, progress: Progress | None) -> Measure:
    """The measurements of an error budget, `count` of them, which are reported."""
    if progress is None or not count:
        return bench
    progress(0, count, BUDGET)
    done = 0

    def measure(rows: Tensor, changes: Mapping[str, Any]) -> Estimate:
        nonlocal done
        found, done = bench(rows, changes), min(done + 1, count)
        progress(done, count, BUDGET)
        return found

    return measure


class AnsweredError(Exception):
    """The main process has written the result that this one was waiting for."""


class Bench:
    """Measures images under variations of a question; each chunk is stored when done, and none is measured twice.

    Args:
        model: The model.
        images: All the images, level indices; their rows in the split are the attribute `rows`.
        protocol: The question.
        parts: The folder of the parts; those under changed options are in folders of their own within.
        how: Where, in what chunks and by whom it is measured.
        answer: The file that the main process writes in the end.
        given: As `measure`.

    Raises:
        UserError: For a folder that figures cannot be kept in.
    """

    def __init__(
        self,
        model: TrainedModel,
        images: Tensor,
        protocol: Protocol,
        parts: Path,
        how: How,
        answer: Path | None = None,
        given: Given | None = None,
    ):
        check_takes_figures(parts.parent)
        self.model, self.images, self.protocol = model, images, protocol
        self.rows = rows_of(protocol.data)
        self.parts, self.how, self.answer, self.given = parts, how, answer, given
        self._requested: dict[Path, set[int]] = {}

    def __call__(self, rows: Tensor, changes: Mapping[str, Any], progress: Progress | None = None) -> Estimate:
        """The estimate of all the images that were ever requested under these changes, `rows` among them."""
        parts = self.parts / f"{_AGAIN}{digest(changes)}" if changes else self.parts
        protocol = replace(self.protocol, options={**self.protocol.options, **changes})
        requested = self._requested.setdefault(parts, set())
        requested |= set(rows.tolist())
        done = _rows(self._read(parts, requested))
        if progress is not None:
            progress(len(done & requested), len(requested))
        for number, chunk in enumerate(rows.split(self._at_once())):
            some = torch.tensor([row for row in chunk.tolist() if row not in done], dtype=torch.long)
            if not len(some) or number % self.how.processes.count != self.how.processes.rank:
                continue
            places = torch.searchsorted(self.rows, some)
            images = self.images[places].to(self.how.device)
            cond = {} if self.given is None else {"cond": self.given.of(places)}
            with self.model.counted() as count:
                if progress is not None:  # a chunk may take minutes
                    tell = partial(progress, len(done & requested), len(requested))
                    count.watch = partial(_tell_nfe, tell, count, len(some))
                part = _chunk(self.model, images, some, protocol, self.how.batch_size, **cond)
            if self.given is not None:
                part = replace(part, protocol={**part.protocol, CONDITION: self.given.in_words})
            records.write_part(parts, part)
            done |= set(some.tolist())
            if progress is not None:
                progress(len(done & requested), len(requested))
        while not requested <= _rows(found := self._read(parts, requested)):
            if progress is not None:
                progress(len(_rows(found) & requested), len(requested))
            self._wait()
        return Estimate.join(found)

    def _at_once(self) -> int:
        """Images in a chunk; of several processes, which share the chunks, all have the same."""
        given = self.how.batch_size or CHUNK
        return min(given, CPU_CHUNK) if self.how.device.type == "cpu" and self.how.processes.count == 1 else given

    def _read(self, parts: Path, requested: set[int]) -> list[Estimate]:
        """The parts with requested images; another process may already have more."""
        return [part for part in records.read_parts(parts, set(self.rows.tolist())) if requested & set(_indices(part))]

    def _wait(self) -> None:
        if self.how.processes.count == 1:  # it has written all of them
            raise UserError(f"{self.parts}: parts are missing or damaged; the same command measures them again")
        if not self.how.processes.is_main and self.answer is not None and self.answer.is_file():
            raise AnsweredError
        time.sleep(_POLL_SECONDS)

    def leave_to_main(self) -> None:
        """Return in the main process; in another, wait for its answer.

        Raises:
            AnsweredError: When it is there.
        """
        while not self.how.processes.is_main:
            self._wait()

    def clear(self) -> None:
        """Remove all parts."""
        for folder in (*self.parts.glob(f"{_AGAIN}*"), self.parts):
            records.remove_parts(folder)


def _chunk(
    model: TrainedModel, images: Tensor, rows: Tensor, protocol: Protocol, batch_size: int | None, **cond: Any
) -> Estimate:
    size = {} if batch_size is None else {"batch_size": batch_size}
    # the model knows its start
    options = {name: value for name, value in protocol.options.items() if name not in (CONDITION, START)}
    return model.log_prob(images, method=protocol.method, indices=rows, **size, **options, **cond)


def _tell_nfe(tell: Progress, count: EvaluationCount, images: int) -> None:
    tell(f"NFE {count.rows / images:.0f}")


def _rows(parts: list[Estimate]) -> set[int]:
    return {row for part in parts for row in _indices(part)}


def _indices(estimate: Estimate) -> list[int]:
    assert estimate.indices is not None
    return estimate.indices.tolist()


def conditioned(protocol: Protocol, given: Given | None) -> Protocol:
    """The question of the images under these conditions; without any the question itself."""
    if given is None:
        return protocol
    data = {**protocol.data, CONDITION_DIGEST: given.digest}
    return replace(protocol, data=data, options={**protocol.options, CONDITION: given.requested})


def unconditioned(protocol: Protocol) -> Protocol:
    """The same question without conditions."""
    data = {key: value for key, value in protocol.data.items() if key != CONDITION_DIGEST}
    return replace(protocol, data=data, options={k: v for k, v in protocol.options.items() if k != CONDITION})


def question(subject: Subject, data: dict[str, Any], method: str, options: dict[str, object]) -> Protocol:
    """The protocol of measuring images of identity `data` under a model.

    The way in which the bound's integral is sampled is part of the question: results of earlier releases differ.
    """
    if method == "elbo" and subject.model.config.family in DENOISING:
        options = {"reference": REFERENCES[0], **options}
    return Protocol(data, subject.weights, method, options)
