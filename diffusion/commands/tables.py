"""A comparison as text: rows for the terminal, Markdown, CSV and JSON, all from the same cells."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from ..evaluation import describe, effective_samples
from ..likelihood import Interval
from .comparison import Group, between, generalisation, is_classical
from .records import Evaluation

COLUMNS = (
    "model", "family", "parameters", "method", "bits/dim", "95 % interval", "difference to the best (paired)",
    "NFE", "seconds", "images", "protocol",
)  # fmt: skip
BETWEEN = (
    "The best model of each group against the best of all, paired on the same images. These are differences of "
    "figures: where one is a bound, its model may be better than it says, by a gap that is not known."
)


def interval_text(interval: Interval, sign: bool = False) -> str:
    """`low to high`; a dash where one value leaves it unknown."""
    if not math.isfinite(interval.low):
        return "-"
    form = "+.4f" if sign else ".4f"
    return f"{interval.low:{form}} to {interval.high:{form}}"


def difference_text(interval: Interval | None) -> str:
    """`mean (low to high)`; `best` for the row that the others are compared with."""
    return "best" if interval is None else f"{interval.mean:+.4f} ({interval_text(interval, sign=True)})"


def name_of(row: Evaluation) -> str:
    """The run and the method, or the classical model."""
    return str(row.model["run"]) if is_classical(row) else f"{row.model['run']} ({row.protocol.method})"


def cells(row: Evaluation, difference: Interval | None) -> list[str]:
    """The texts of a row, in the order of COLUMNS."""
    estimate, interval = row.estimate, row.estimate.mean()
    parameters = row.model.get("parameters")
    return [
        str(row.model["run"]),
        str(row.model["family"]),
        f"{parameters:,}" if isinstance(parameters, int) else "-",
        "-" if is_classical(row) else row.protocol.method,
        f"{interval.mean:.4f}",
        interval_text(interval),
        difference_text(difference),
        f"{estimate.nfe:.0f}" if estimate.nfe else "-",
        f"{estimate.seconds:.1f}",
        str(len(estimate)),
        describe(estimate),
    ]


def rich_tables(groups: Sequence[Group]) -> list[Table]:
    """A table a group; the protocol, which is long, is left to the files."""
    made = []
    for group in groups:
        table = Table(title=escape(group.title), title_justify="left", header_style="bold", caption_justify="left")
        table.caption = escape(group.why)
        for column in COLUMNS[:-1]:
            table.add_column(column, justify="left" if column in ("model", "family", "method") else "right")
        for row, difference in zip(group.rows, group.differences, strict=True):
            table.add_row(*map(escape, cells(row, difference)[:-1]))
        made.append(table)
    return made


def sentences(groups: Sequence[Group]) -> list[str]:
    """The differences between the groups, a line each."""
    return [
        f"{name_of(row)} against {name_of(best)}: {difference_text(difference)} bits/dim"
        for row, best, difference in between(groups)
    ]


def gap_sentences(found: dict[str, list[Evaluation]]) -> list[str]:
    """Test against training images, a line a run that has both."""
    return [
        f"{name_of(test)}: test {test.estimate.mean().mean:.4f}, "
        f"train {train.estimate.mean().mean:.4f}, gap {difference_text(gap)} bits/dim (Welch)"
        for test, train, gap in generalisation(found)
    ]


def markdown(title: str, groups: Sequence[Group], gaps: Sequence[str]) -> str:
    """The comparison as Markdown."""

    def line(texts: Sequence[str]) -> str:
        safe = (text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") for text in texts)
        return f"| {' | '.join(safe)} |"

    parts = [f"# {title}"]
    for group in groups:
        rows = zip(group.rows, group.differences, strict=True)
        lines = [line(COLUMNS), line(["---"] * len(COLUMNS)), *(line(cells(*row)) for row in rows)]
        parts += [f"## {group.title}", group.why, "\n".join(lines)]
    for heading, texts in (("Between the groups", sentences(groups)), ("Test against train", gaps)):
        if texts:
            parts += [f"## {heading}", *([BETWEEN] if heading.startswith("Between") else [])]
            parts.append("\n".join(f"- {text.replace('<', '&lt;')}" for text in texts))
    return "\n\n".join(parts) + "\n"


def figures(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Every row as plain values: numbers as numbers, None where one is unknown."""
    return [
        {
            "group": group.title,
            **{key: row.model.get(key) for key in ("run", "family", "parameters")},
            "method": row.protocol.method,
            "kind": group.kind,
            "dequantization": group.dequantization,
            **_named("bits_per_dim", row.estimate.mean()),
            **_named("difference", difference),
            "nfe": row.estimate.nfe,
            "seconds": row.estimate.seconds,
            "images": len(row.estimate),
            "effective_samples": effective_samples(row.estimate),
            "protocol": describe(row.estimate),
        }
        for group in groups
        for row, difference in zip(group.rows, group.differences, strict=True)
    ]


def _named(name: str, interval: Interval | None) -> dict[str, float | None]:
    values = (None,) * 4 if interval is None else (interval.mean, interval.low, interval.high, interval.sem)
    plain = (value if value is not None and math.isfinite(value) else None for value in values)
    return dict(zip((name, f"{name}_low", f"{name}_high", f"{name}_sem"), plain, strict=True))


def csv_text(groups: Sequence[Group]) -> str:
    """The comparison as CSV, full precision."""
    rows = figures(groups)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def json_text(groups: Sequence[Group]) -> str:
    """The comparison as JSON: every row with its protocol and error budget, and the differences between groups."""
    rows = [row for group in groups for row in group.rows]
    full = [
        {
            **figure,
            "question": asdict(row.protocol),
            "estimator": dict(row.estimate.protocol),
            "error_budget": {k: v if math.isfinite(v) else None for k, v in row.estimate.error_budget.items()},
        }
        for figure, row in zip(figures(groups), rows, strict=True)
    ]
    differences = [
        {
            "row": name_of(row),
            "best": name_of(best),
            **_named("difference", difference),
        }
        for row, best, difference in between(groups)
    ]
    return json.dumps({"rows": full, "between_groups": differences}, indent=1)
