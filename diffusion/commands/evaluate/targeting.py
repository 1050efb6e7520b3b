"""Measuring to a target error: the question, what was spent, and the result, an ordinary evaluation.

    RUN/evaluations/targets/<method>-<digest>.json    the question with its target, what was spent, the figure's name

Every chunk of every round is stored until the result is, so an interrupted search resumes where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import UserError
from ...likelihood import Estimate
from ...likelihood.target_error import reach
from ...numerics.random import FIXED_ORDER, fixed_order
from ...storage.records import find, keep
from .. import records
from ..records import Evaluation, Protocol
from ..subjects import Subject, first_of
from ..table import Table
from .given import Given
from .measuring import AnsweredError, Bench, How

FOLDER = "targets"


def measure_to(
    target: float, subject: Subject, images: Tensor, protocol: Protocol, how: How, given: Given | None = None
) -> tuple[Evaluation, dict[str, Any], bool]:
    """Measure as many images as the target error requires, or find the stored result.

    Args:
        target: The error in bits/dim.
        subject: The model.
        images: Those that may be taken, in the fixed order (`random.fixed_order`).
        protocol: The question, with the least options that are spent.
        how, given: As `measuring.measure`.

    Returns:
        The evaluation, what was spent (see `likelihood.target_error.Reached.to_dict`), and whether it was found.

    Raises:
        UserError: For a target that is no error, or a method or option that the model does not take.
    """
    folder = subject.home / records.FOLDER
    question = replace(protocol, options={**protocol.options, "target_error": target, "order": FIXED_ORDER})
    place = folder / FOLDER / f"{question.name}.json"
    if not how.again and (kept := _find(place, folder)) is not None:
        return *kept, True
    parts = folder / question.name
    bench = Bench(subject.model, images, protocol, parts, how, place, given)
    if how.again:
        bench.clear()

    def measure(rows: Tensor, options: Mapping[str, Any]) -> Estimate:
        changes = {key: value for key, value in options.items() if protocol.options.get(key) != value}
        return bench(rows, changes, how.progress)

    try:
        reached = reach(measure, bench.rows[fixed_order(bench.rows)], protocol.options, target)
        bench.leave_to_main()
    except AnsweredError:
        answer = _find(place, folder)
        if answer is None:  # the main process has just written it, whole
            raise UserError(f"{place}: cannot be read; --again measures anew") from None
        return *answer, False
    _, taken = first_of(images, protocol.data, len(reached.estimate))
    figure = replace(protocol, data=taken, options=reached.options)
    evaluation = records.write(folder, figure, subject.facts, reached.estimate)
    spent = {"target_error": target, **reached.to_dict()}
    keep(place, {"question": asdict(question), "figure": figure.name, "spent": spent})
    bench.clear()
    return evaluation, spent, False


def _find(place: Path, folder: Path) -> tuple[Evaluation, dict[str, Any]] | None:
    """The stored result, or None if it is missing or incomplete."""
    return find(place, lambda kept: (records.read(folder / f"{kept['figure']}.json"), dict(kept["spent"])))


def spent_table(spent: dict[str, Any]) -> Table:
    """What was spent, one row per round."""
    names = list(dict.fromkeys(name for spent_round in spent["rounds"] for name in spent_round["options"]))
    rows = (
        {
            "": f"round {number}" if number else "pilot",
            "images": done["images"],
            **{name: f"{done['options'][name]:g}" if name in done["options"] else "" for name in names},
            "evaluations": f"{done['evaluations']:,.0f}",
            "seconds": f"{done['seconds']:.1f}",
            "error of the measurement": f"{done['measurement_error']:.4f}",
            "total": f"{done['total_error']:.4f}",
        }
        for number, done in enumerate(spent["rounds"])
    )
    return Table.of(rows, title="Spent")


def verdict(spent: dict[str, Any]) -> list[str]:
    """Whether the target was met, and which errors could not be reduced, one line each."""
    met = "met" if spent["met"] else "not met"
    return [
        f"target error {spent['target_error']:g} bits/dim: {met} (one standard error, biases added)",
        *(f"- {note}" for note in spent["notes"]),
    ]
