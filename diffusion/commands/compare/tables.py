"""A comparison as text: one table for the terminal, for Markdown and for the page, all from the same cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.markup import escape
from rich.table import Table

from ...likelihood import Interval
from ..evaluation import describe
from ..records import Evaluation
from .comparison import Gap, is_classical
from .content import Content, name_of
from .curves import parts_of
from .groups import APART, Group, between, kind_text

COLUMNS: tuple[str, ...] = (
    "group", "model", "family", "parameters", "images seen", "training seconds", "method", "kind", "law", "bits/dim",
    "95 % interval", "difference to the best (paired)", "test - train (unpaired)", "NFE", "seconds", "images",
    "trained on", "protocol",
)  # fmt: skip
# What training cost, as `Subject.training` has it.
TRAINING = ("images_seen", "training_seconds", "training_cpu_seconds", "trained_on")
UNKNOWN = "—"
BETWEEN = (
    "The best model of each group against the best of all, paired on the same images. These are differences of "
    "figures: where one is a bound, its model may be better than it says, by a gap that is not known."
)
SPLITS = (
    "What is lost on images that the model was not trained on. The two splits hold different images, so nothing is "
    "paired here: intervals are Welch's, from both spreads, and wider than those of models on the same images."
)
_TEXT = ("group", "model", "family", "method", "kind", "law")


def interval_text(interval: Interval, sign: bool = False) -> str:
    """`low to high`; a dash where one value leaves it unknown."""
    if not math.isfinite(interval.low):
        return UNKNOWN
    form = "+.4f" if sign else ".4f"
    return f"{interval.low:{form}} to {interval.high:{form}}"


def difference_text(interval: Interval | None) -> str:
    """`mean (low to high)`; `best` for the row that the others are compared with."""
    return "best" if interval is None else f"{interval.mean:+.4f} ({interval_text(interval, sign=True)})"


def cells(content: Content, group: Group, row: Evaluation, difference: Interval | None) -> list[str]:
    """The texts of a row, in the order of COLUMNS."""
    estimate, interval, gap = row.estimate, row.estimate.mean(), content.gap(row)
    images, seconds, cpu, hardware = (row.model.get(key) for key in TRAINING)
    return [
        group.letter,
        str(row.model["run"]),
        str(row.model["family"]),
        _count(row.model.get("parameters")),
        _count(images),
        _count(seconds) + (f" ({_count(cpu)} CPU)" if cpu is not None else ""),
        UNKNOWN if is_classical(row) else row.protocol.method,
        kind_text(group.kind),
        group.law,
        f"{interval.mean:.4f}",
        interval_text(interval),
        difference_text(difference) if len(group.rows) > 1 else UNKNOWN,
        UNKNOWN if gap is None else difference_text(gap.difference),
        f"{estimate.nfe:.0f}" if estimate.nfe else UNKNOWN,
        f"{estimate.seconds:.1f}",
        str(len(estimate)),
        UNKNOWN if hardware is None else str(hardware),
        describe(estimate),
    ]


def _count(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else UNKNOWN


def half_width(interval: Interval, sign: bool = True) -> str:
    """`mean ± half`, or `mean +up -down` where the sides are unlike: the same interval in less room."""
    mean = f"{interval.mean:+.4f}" if sign else f"{interval.mean:.4f}"
    up, down = (f"{side:.4f}" for side in (interval.high - interval.mean, interval.mean - interval.low))
    if not math.isfinite(interval.high):
        return mean
    return f"{mean} ± {up}" if up == down else f"{mean} +{up} -{down}"


NARROW: tuple[str, ...] = (
    "model", "family", "parameters", "images seen", "training seconds", "method", "kind", "law", "bits/dim ± 95 %",
    "to the best, paired", "test - train, unpaired", "NFE", "seconds", "images", "protocol",
)  # fmt: skip


def narrow_cells(content: Content, group: Group, row: Evaluation, difference: Interval | None) -> list[str]:
    """The texts of a row where there is less room, in the order of NARROW."""
    full = dict(zip(COLUMNS, cells(content, group, row, difference), strict=True))
    gap = content.gap(row)
    hardware = "" if full["trained on"] == UNKNOWN else f"; trained on {full['trained on']}"
    paired = full["difference to the best (paired)"]
    short = {
        "training seconds": _count(row.model.get("training_seconds")),
        "bits/dim ± 95 %": half_width(row.estimate.mean(), sign=False),
        "to the best, paired": paired if difference is None else half_width(difference),
        "test - train, unpaired": UNKNOWN if gap is None else half_width(gap.difference),
        "protocol": full["protocol"] + hardware,
    }
    return [{**full, **short}[column] for column in NARROW]


def rich_table(content: Content) -> Table:
    """All rows in one table, a line between groups; test against train and the protocols, which are long, apart."""
    table = Table(title=escape(content.title), title_justify="left", header_style="bold", padding=(0, 1, 0, 0))
    shown = [column for column in NARROW if column not in ("test - train, unpaired", "protocol")]
    for column in ("", *shown):
        whole = column in ("bits/dim ± 95 %", "to the best, paired")  # where there is no room, others fold
        side = "left" if column in ("", *_TEXT) else "right"
        table.add_column(column, justify=side, overflow="fold", no_wrap=whole)
    for group, row, difference in content.lines():
        narrow = dict(zip(NARROW, narrow_cells(content, group, row, difference), strict=True))
        texts = [group.letter, *(narrow[column] for column in shown)]
        table.add_row(*map(escape, texts), end_section=row is group.rows[-1])
    return table


def gap_table(gaps: Sequence[Gap]) -> Table:
    """Test against train for the terminal."""
    table = Table(title="Test against train, unpaired", title_justify="left", header_style="bold")
    for column in GAP_COLUMNS:
        table.add_column(column, justify="left" if column == "model" else "right")
    for gap in gaps:
        table.add_row(*map(escape, gap_cells(gap)))
    return table


GAP_COLUMNS = ("model", "test", "test images", "train", "train images", "test - train")


def gap_cells(gap: Gap) -> list[str]:
    """The texts of a gap, in the order of GAP_COLUMNS."""
    sides = [(f"{side.estimate.mean().mean:.4f}", str(len(side.estimate))) for side in (gap.test, gap.train)]
    return [name_of(gap.test), *sides[0], *sides[1], difference_text(gap.difference)]


PART_COLUMNS = ("model", "images", "KL to the prior", "diffusion", "reconstruction", "bits/dim")


def part_rows(content: Content) -> list[list[str]]:
    """The terms of the bounds, test and train below each other; texts in the order of PART_COLUMNS."""
    made = []
    for row in content.rows:
        gap = content.gap(row)
        for side in (row,) if gap is None else (gap.test, gap.train):
            parts = parts_of(side)
            if parts is not None:
                shown = [f"{parts[k]:.4f}" if k in parts else UNKNOWN for k in ("prior", "diffusion", "reconstruction")]
                data = side.protocol.data
                mean = f"{side.estimate.mean().mean:.4f}"
                made.append([name_of(side), f"{data['split']}, {data['images']}", *shown, mean])
    return made


def sentences(groups: Sequence[Group]) -> list[str]:
    """The differences between the groups, a line each."""
    return [
        f"{name_of(row)} against {name_of(best)}: {difference_text(difference)} bits/dim"
        for row, best, difference in between(groups)
    ]


def markdown(content: Content) -> str:
    """The comparison as Markdown: one table, then why its groups are apart, and what else was found."""
    rows = [cells(content, *line) for line in content.lines()]
    parts = [f"# {content.title}", content.about, markdown_table(COLUMNS, rows)]
    if content.left_out:
        parts.append("\n".join(f"- {_safe(text)}" for text in content.left_out))
    parts += ["## Why the groups are apart", APART]
    parts.append("\n".join(f"- **{g.letter}**, {_safe(g.title)}. {_safe(g.why)}" for g in content.groups))
    if len(content.groups) > 1:
        parts += ["## Between the groups", BETWEEN, "\n".join(f"- {_safe(text)}" for text in sentences(content.groups))]
    if content.gaps:
        parts += ["## Test against train", SPLITS, markdown_table(GAP_COLUMNS, map(gap_cells, content.gaps))]
    if parted := part_rows(content):
        parts += ["## Where the bits go", markdown_table(PART_COLUMNS, parted)]
    parts += ["## Error budgets", markdown_table(*budgets(content.rows))]
    if content.data_sets:
        parts += ["## Other data sets", "\n".join(f"- {_safe(text)}" for text in content.data_sets)]
    return "\n\n".join(parts) + "\n"


def _safe(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; bars and angle brackets in its texts break nothing."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(map(_safe, texts))} |" for texts in lines)


def budgets(rows: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    """The error budgets: the head, whatever the causes are called, and a row of texts a figure."""
    causes = list(dict.fromkeys(cause for row in rows for cause in row.estimate.error_budget))
    made = []
    for row in rows:
        estimate = row.estimate
        errors = [estimate.error_budget.get(cause, math.nan) for cause in causes]
        errors += [estimate.measurement_error, estimate.total_error]
        made.append([name_of(row), *map(_error, errors)])
    return ["model", *causes, "measurement", "total"], made


def _error(value: float) -> str:
    if not math.isfinite(value):
        return UNKNOWN
    return f"{value:.1e}" if 0 < value < 5e-5 else f"{value:.4f}"
