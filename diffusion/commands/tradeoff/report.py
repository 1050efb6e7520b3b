"""A trade-off as text: the observed orders, the cheapest good cell, a table, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from .cells import Measured

SHARE = 0.02
UNKNOWN = "—"
COLUMNS = ("sampler", "NFE", "steps", "rms", "median", "order", "FID", "KID", "excess, nats", "ms/image")
_NAMES = {"fid": "FID", "kid": "KID", "distance": "distance"}


@dataclass(frozen=True)
class Row:
    """A cell with the order observed from the cell before it.

    Args:
        found: The cell's figures.
        order: log(ratio of medians) / log(ratio of intervals walked); None where there are no two.
    """

    found: Measured
    order: float | None

    def values(self) -> dict[str, Any]:
        """Plain values, flat: a line of CSV and JSON."""
        found, cell = self.found, self.found.cell
        return {
            "sampler": cell.sampler,
            "nfe": found.nfe,
            "steps": cell.steps,
            "tolerance": cell.tolerance,
            "distance": found.distance,
            "median_distance": found.median,
            "order": self.order,
            "fid": found.fid,
            "fid_sem": found.fid_sem,
            "kid": found.kid,
            "kid_sem": found.kid_sem,
            "excess_nats": found.excess,
            "excess_nats_sem": found.excess_sem,
            "seconds_an_image": found.seconds,
            "failure": found.failure,
        }

    def cells(self) -> list[str]:
        """The texts of a row, in the order of COLUMNS."""
        found, cell = self.found, self.found.cell
        quality = [
            with_error(found.fid, found.fid_sem),
            with_error(found.kid, found.kid_sem),
            with_error(found.excess, found.excess_sem),
        ]
        return [
            cell.sampler,
            f"{found.nfe:.0f}" if found.nfe == round(found.nfe) else f"{found.nfe:.1f}",
            f"tol {cell.tolerance:g}" if cell.steps is None else str(cell.steps),
            *(UNKNOWN if value is None else f"{value:.1e}" for value in (found.distance, found.median)),
            UNKNOWN if self.order is None else f"{self.order:.1f}",
            *(quality if found.failure is None else [found.failure, UNKNOWN, UNKNOWN]),
            f"{1e3 * found.seconds:.2f}",
        ]


def with_error(value: float | None, error: float | None) -> str:
    """`value ± error`, two digits of the error."""
    if value is None:
        return UNKNOWN
    if not error or not math.isfinite(error):
        return f"{value:.3g}"
    if value != 0 and max(abs(value), error) >= 1e4:
        return f"{value:.1e} ± {error:.1e}"
    digits = min(4, max(0, 1 - math.floor(math.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def in_rows(of_sampler: Sequence[Measured]) -> list[Row]:
    """The rows of one sampler, in the order of their cost."""
    rows, last = [], None
    for found in of_sampler:
        rows.append(Row(found, None if last is None else _order(last, found)))
        last = found
    return rows


def _order(coarse: Measured, fine: Measured) -> float | None:
    if coarse.cell.steps is None or fine.cell.steps is None or not coarse.median or not fine.median:
        return None
    # the last interval is x_hat for every sampler
    return math.log(coarse.median / fine.median) / math.log((fine.cell.steps - 1) / (coarse.cell.steps - 1))


def verdict(rows: Sequence[Row], by: str) -> str:
    """One line: the cheapest cell within 2 % of the best, and within the best's standard error where that is more."""
    known = [row.found for row in rows if getattr(row.found, by) is not None]
    if not known:
        return f"cheapest within 2 % of the best {_NAMES[by]}: no cell has one"

    def value(found: Measured) -> float:
        return getattr(found, by)

    def error(found: Measured) -> float:
        return (getattr(found, f"{by}_sem", None) or 0.0) if by != "distance" else 0.0

    def text(found: Measured) -> str:
        figure = f"{value(found):.2e}" if by == "distance" else with_error(value(found), error(found))
        return f"{found.cell.sampler}, {found.nfe:.0f} evaluations ({_NAMES[by]} {figure})"

    best = min(known, key=value)

    def cheapest(allowed: float) -> Measured:
        near = [found for found in known if value(found) <= value(best) + allowed]
        return min(near, key=lambda found: (round(found.nfe), value(found)))

    share = SHARE * abs(value(best))
    chosen = cheapest(share)
    line = f"cheapest within 2 % of the best: {text(chosen)}"
    if chosen is not best:
        line += f"; the best is {text(best)}"
    if error(best) > share and (other := cheapest(error(best))) is not chosen:
        line += f". The best's standard error is more than 2 %; within it: {text(other)}"
    return line


def table(rows: Sequence[Row], title: str, caption: str) -> Table:
    """The trade-off for the terminal, a line between samplers."""
    made = Table(
        title=escape(title), title_justify="left", header_style="bold", caption=escape(caption), caption_justify="left",
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    shown = _shown(rows)
    for i in shown:
        made.add_column(COLUMNS[i], justify="right" if i else "left", no_wrap=True)
    for i, row in enumerate(rows):
        texts = row.cells()
        last = i + 1 == len(rows) or rows[i + 1].found.cell.sampler != row.found.cell.sampler
        made.add_row(*(escape(texts[column]) for column in shown), end_section=last)
    return made


def _shown(rows: Sequence[Row]) -> list[int]:
    """The columns that have anything in them."""
    texts = [row.cells() for row in rows]
    return [i for i in range(len(COLUMNS)) if any(row[i] != UNKNOWN for row in texts)]


def markdown(rows: Sequence[Row], title: str, caption: str, line: str) -> str:
    """The same as Markdown."""
    shown = _shown(rows)
    lines = [f"# {title}", "", f"{line}.", "", "| " + " | ".join(COLUMNS[i] for i in shown) + " |"]
    lines.append("|" + "---|" * len(shown))
    for row in rows:
        texts = row.cells()
        lines.append("| " + " | ".join(texts[i].replace("|", "\\|") for i in shown) + " |")
    return "\n".join([*lines, "", caption, ""])


def csv_text(rows: Sequence[Row]) -> str:
    """The same as CSV, full precision."""
    made = io.StringIO()
    writer = csv.DictWriter(made, list(rows[0].values()))
    writer.writeheader()
    writer.writerows(row.values() for row in rows)
    return made.getvalue()


def json_text(rows: Sequence[Row], protocol: Mapping[str, Any], line: str) -> str:
    """The same as JSON, with the protocol."""
    return json.dumps({"protocol": dict(protocol), "verdict": line, "rows": [row.values() for row in rows]}, indent=1)
