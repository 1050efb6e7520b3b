"""A comparison's tables, for the terminal, Markdown and the page, and the comparison as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ...likelihood import Interval
from ..records import Evaluation
from ..table import UNKNOWN, Column, Table, markdown_text
from .content import Content, name_of
from .curves import TERMS, parts_of
from .exports import figures
from .groups import APART, Group, between, kind_text

BETWEEN = (
    "The best model of each group compared with that of the first group, paired on the same images. If a value is a "
    "bound, its model may be better than it says, by an unknown gap."
)
SPLITS = (
    "What is lost on images that the model was not trained on. The two splits hold different images, so nothing can be "
    "paired: the intervals are Welch's, and wider than those between models on the same images."
)


def interval_text(interval: Interval, sign: bool = False) -> str:
    """`low to high`; a dash if it is unknown."""
    if not math.isfinite(interval.low):
        return UNKNOWN
    form = "+.4f" if sign else ".4f"
    return f"{interval.low:{form}} to {interval.high:{form}}"


def difference_text(interval: Interval) -> str:
    """`mean (low to high)`."""
    return f"{interval.mean:+.4f} ({interval_text(interval, sign=True)})"


def half_width(interval: Interval, sign: bool = True) -> str:
    """`mean ± half`, or `mean +up -down` for an asymmetric interval: the same in less space."""
    mean = f"{interval.mean:+.4f}" if sign else f"{interval.mean:.4f}"
    up, down = (f"{side:.4f}" for side in (interval.high - interval.mean, interval.mean - interval.low))
    if not math.isfinite(interval.high):
        return mean
    return f"{mean} ± {up}" if up == down else f"{mean} +{up} -{down}"


def lines(content: Content) -> list[dict[str, Any]]:
    """The rows of the table: results with their intervals, and the group of each."""
    made = []
    for shown, (group, row, difference) in zip(figures(content), content.lines(), strict=True):
        gap, best = content.gap(row), "best" if len(group.rows) > 1 else None
        intervals = {"interval": row.estimate.mean(), "to_best": difference or best, "gap": gap and gap.difference}
        made.append({**shown, **intervals, "of_group": group, "name": name_of(row)})
    return made


def _count(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else UNKNOWN


def _training_seconds(line: dict[str, Any]) -> str:
    seconds, cpu = line["training_seconds"], line["training_cpu_seconds"]
    return _count(seconds) + (f" ({_count(cpu)} CPU)" if cpu is not None else "")


def _protocol(line: dict[str, Any]) -> str:
    hardware = line["trained_on"]
    return line["protocol"] + ("" if hardware is None else f"; trained on {hardware}")


def _or_best(write: Callable[[Interval], str]) -> Callable[[Interval | str], str]:
    return lambda value: value if isinstance(value, str) else write(value)


_GROUP = Column("", "group", left=True, wraps=True)
_MODEL = (
    Column("model", "run", left=True, wraps=True), Column("family", "family", left=True),
    Column("parameters", "parameters", _count), Column("images seen", "images_seen", _count),
)  # fmt: skip
_FIGURE = (
    Column("method", lambda line: None if line["family"] == "classical" else line["method"], left=True, wraps=True),
    Column("kind", "kind", kind_text, left=True), Column("law", "law", left=True),
)  # fmt: skip
_COST = (
    Column("NFE", lambda line: line["nfe"] or None, ".0f"), Column("seconds", "seconds", ".1f"),
    Column("images", "images"),
)  # fmt: skip
COLUMNS: tuple[Column, ...] = (
    Column("group", "group", left=True), *_MODEL, Column("training seconds", _training_seconds), *_FIGURE,
    Column("bits/dim", lambda line: line["interval"].mean, ".4f"), Column("95 % interval", "interval", interval_text),
    Column("difference to the best (paired)", "to_best", _or_best(difference_text)),
    Column("test - train (unpaired)", "gap", difference_text), *_COST,
    Column("trained on", "trained_on"), Column("protocol", "protocol"),
)  # fmt: skip
# Where there is less room; the protocol, which is long, has a place of its own.
_TRAINING = Column("training seconds", "training_seconds", _count)
FIGURE = "bits/dim ± 95 %"
_SHORT = (
    Column(FIGURE, "interval", partial(half_width, sign=False)),
    Column("to the best, paired", "to_best", _or_best(half_width)),
)  # fmt: skip
_GAP = Column("test - train, unpaired", "gap", half_width)
NARROW: tuple[Column, ...] = (_MODEL[0], *_SHORT, *_FIGURE, _GAP, *_MODEL[1:], _TRAINING, *_COST)
PROTOCOL = Column("protocol", _protocol)


def named_for(content: Content, columns: Sequence[Column]) -> list[Column]:
    """Columns under the headings of these data: nats/dim of densities."""
    return [replace(column, name=content.words(column.name)) for column in columns]


def terminal_tables(content: Content) -> tuple[Table, Table]:
    """The results, with a line between groups, and their cost: each fits 80 columns.

    Kind and law are named with the group; test against train and the long protocols are printed separately.
    """
    rows, (model, _, *costs), (method, *_) = lines(content), _MODEL, _FIGURE
    named = Column("model (method)", lambda line: line["name"], left=True, wraps=True)
    figured = Table((_GROUP, named, *named_for(content, _SHORT)), rows, content.title, section=_GROUP)
    return figured, Table((model, method, *named_for(content, costs), _TRAINING, *_COST[:2]), rows, "Cost")


def gap_table(content: Content) -> Table:
    """Test against train."""
    made = []
    for gap in content.gaps:
        test, train = gap.test.estimate, gap.train.estimate
        found = {"test": f"{test.mean().mean:.4f}", "test images": len(test)}
        found |= {"train": f"{train.mean().mean:.4f}", "train images": len(train)}
        found = {content.words(name): value for name, value in found.items()}
        made.append({"model": name_of(gap.test), **found, "test - train": half_width(gap.difference)})
    return Table.of(made, title="Test against train, unpaired")


def part_table(content: Content) -> Table:
    """The terms of the bounds, test and train below each other; without rows where no figure has them."""
    made = []
    for row in content.rows:
        gap = content.gap(row)
        for side in (row,) if gap is None else (gap.test, gap.train):
            parts, data = parts_of(side), side.protocol.data
            if parts is not None:
                unit, what = content.words("bits/dim"), content.words("images")
                parts[unit] = side.estimate.mean().mean
                shown = {name: f"{parts[name]:.4f}" if name in parts else None for name in (*TERMS, unit)}
                shown = {"KL to the prior": shown.pop("prior"), **shown}
                made.append({"model": name_of(side), what: f"{data['split']}, {data['images']}", **shown})
    return Table.of(made)


def budget_table(rows: Sequence[Evaluation]) -> Table:
    """The error budgets, one column per cause."""
    causes = dict.fromkeys(cause for row in rows for cause in row.estimate.error_budget)
    made = []
    for row in rows:
        errors = {**dict.fromkeys(causes), **row.estimate.error_budget}
        sums = {"measurement": row.estimate.measurement_error, "total": row.estimate.total_error}
        made.append({"model": name_of(row), **errors, **sums})
    return Table.of(made, _error)


def _error(value: float) -> str:
    if not math.isfinite(value):
        return UNKNOWN
    return f"{value:.1e}" if 0 < value < 5e-5 else f"{value:.4f}"


def sentences(groups: Sequence[Group]) -> list[str]:
    """The differences between the groups, one line each."""
    return [
        f"{name_of(row)} against {name_of(best)}: {difference_text(difference)} "
        f"{'nats/dim' if groups[0].is_of_densities else 'bits/dim'}"
        for row, best, difference in between(groups)
    ]


def markdown(content: Content) -> str:
    """The comparison as Markdown: one table, then why its groups are apart, and what else was found."""
    words = content.words
    parts = [f"# {content.title}", content.about, Table(named_for(content, COLUMNS), lines(content)).markdown()]
    if content.left_out:
        parts.append(_list(content.left_out))
    parts += ["## Why the groups are apart", APART]
    parts.append("\n".join(f"- **{g.letter}**, {markdown_text(f'{g.title}. {g.why}')}" for g in content.groups))
    if len(content.groups) > 1:
        parts += ["## Between the groups", words(BETWEEN), _list(sentences(content.groups))]
    if content.gaps:
        parts += ["## Test against train", words(SPLITS), gap_table(content).markdown()]
    if (parted := part_table(content)).rows:
        parts += [f"## {words('Where the bits go')}", parted.markdown()]
    parts += ["## Error budgets", budget_table(content.rows).markdown()]
    if content.data_sets:
        parts += ["## Other data sets", _list(content.data_sets)]
    return "\n\n".join(parts) + "\n"


def _list(texts: Sequence[str]) -> str:
    return "\n".join(f"- {markdown_text(text)}" for text in texts)
