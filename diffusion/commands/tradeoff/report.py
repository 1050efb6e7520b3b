"""What a trade-off says: the observed orders, the cheapest good cell, and its tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..table import Column, Table, figure, with_error
from .arguments import BY
from .cells import Measured

SHARE = 0.02


@dataclass(frozen=True)
class Row:
    """A cell with the order observed from the cell before it.

    Args:
        found: The cell's figures.
        order: log(ratio of medians) / log(ratio of steps); None where there are no two.
    """

    found: Measured
    order: float | None

    def values(self) -> dict[str, Any]:
        """Plain values, flat: a row of the table, of CSV and of JSON."""
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
            "exposure": found.exposure[-1][1] if found.exposure else None,
            "exposure_sem": found.exposure[-1][2] if found.exposure else None,
            "seconds_an_image": found.seconds,
            "failure": found.failure,
        }


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
        return f"cheapest within 2 % of the best {BY[by]}: no cell has one"

    def value(found: Measured) -> float:
        return getattr(found, by)

    def error(found: Measured) -> float:
        return (getattr(found, f"{by}_sem", None) or 0.0) if by != "distance" else 0.0

    def text(found: Measured) -> str:
        figure = f"{value(found):.2e}" if by == "distance" else with_error(value(found), error(found))
        return f"{found.cell.sampler}, {found.nfe:.0f} evaluations ({BY[by]} {figure})"

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


_FID = figure("FID", "fid", with_error)
COLUMNS = (
    Column("sampler", "sampler", left=True),
    Column("NFE", "nfe", lambda nfe: f"{nfe:.0f}" if nfe == round(nfe) else f"{nfe:.1f}"),
    Column("steps", lambda row: f"tol {row['tolerance']:g}" if row["steps"] is None else row["steps"]),
    Column("rms", "distance", ".1e"),
    Column("median", "median_distance", ".1e"),
    Column("order", "order", ".1f"),
    # why there are no figures stands in place of the first
    Column("FID", lambda row: row["failure"] or _FID.text(row)),
    figure("KID", "kid", with_error),
    figure("excess, nats", "excess_nats", with_error),
    figure("exposure", "exposure", partial(with_error, of_error=1)),
    Column("ms", lambda row: 1e3 * row["seconds_an_image"], ".2f"),
)


def cost_table(rows: Sequence[Mapping[str, Any]], title: str, caption: str) -> Table:
    """The table of the terminal; `steps` are in the files alone, so that it fits 80 columns."""
    shown = [column for column in COLUMNS if column.name != "steps"]
    return Table(shown, rows, title, caption, section=COLUMNS[0]).filled()
