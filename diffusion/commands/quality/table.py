"""What `quality` found, as a table and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...metrics import ENOUGH, Provenance
from ...metrics.hubness import NEIGHBOURS
from ..table import UNKNOWN, Column, Table, figure, with_error

# Copies that are named below the table; all are in the record.
NAMED = 5


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        name: What was measured.
        samples: The number of images.
        figures: By name (`Quality.figures`); None for one that is not known.
        nfe: Network evaluations a sample, 0 without a network.
        copies: The samples that are training images, or nearly so, as plain values.
        features: The number of features; None where the record does not say.
    """

    name: str
    samples: int
    figures: Mapping[str, float | None]
    nfe: float = 0.0
    copies: Sequence[Mapping[str, Any]] = ()
    features: int | None = None

    def values(self) -> dict[str, Any]:
        """Plain values, flat."""
        return {**self.figures, "name": self.name, "samples": self.samples, "nfe": self.nfe}


def _percent(value: float, sem: float | None) -> str:
    return f"{100.0 * value:.1f}" + (" %" if sem is None else f" ± {100.0 * sem:.1f} %")


def _copies(row: Mapping[str, Any]) -> str | None:
    exact, near = row.get("copies_exact"), row.get("copies_near")
    if exact is None or near is None:
        return None
    return f"{exact:.0f}" + (f" + {near:.0f}" if near else "")


_number = partial(with_error, alone=".3f")
_FID = figure("FID", "fid", _number)
_CORRECTED = figure("corrected", "fid_corrected", _number)
COLUMNS = (
    Column("", "name", left=True),
    Column("n", "samples"),
    _FID,
    figure("KID", "kid", _number),
    *(figure(name, name, _number) for name in ("precision", "recall", "density", "coverage")),
    Column("copies", _copies),
)


def table(rows: Sequence[Row], provenance: Provenance) -> Table:
    """The figures, and in the caption what they are of."""
    caption = (
        f"Against {provenance.images} {provenance.split} images of {provenance.data}"
        f"{' and their mirror images' if provenance.flips else ''}; features: {provenance.extractor} "
        f"({provenance.extractor_sha256[:12]}). FID falls with the number of samples even for a perfect model: compare "
        "equal numbers, or the corrected figure. Copies: samples that are training images, exactly + nearly."
    )
    return Table(COLUMNS, [row.values() for row in rows], "Quality of samples", caption)


def class_table(rows: Sequence[Row], split: str) -> Table:
    """The figures of each class, each against the reference images of its class."""
    features = next((row.features for row in rows if row.features), None)
    caption = (
        f"Each against the {split} images of its class. FID grows as samples get fewer: compare classes of equal "
        "numbers, and with the whole only the corrected figure"
        f"{'' if features is None else f', which takes {ENOUGH * features} samples of a class'}."
    )
    columns = list(COLUMNS)
    if any("test_fid" in row.figures for row in rows):
        caption += " FID of test: of as many test images of the class, or all, against the same."
        columns.insert(1 + columns.index(_FID), figure("FID of test", "test_fid", _number))
    if any(row.figures.get("fid_corrected") is not None for row in rows):
        columns.insert(1 + columns.index(_FID), _CORRECTED)
    return Table(columns, [row.values() for row in rows], "By class", caption)


def remarks(rows: Sequence[Row]) -> list[str]:
    """What stands below the table, a line each: copies, the corrected FID, near samples, evaluations, and hubness."""
    lines = []
    for row in rows:
        for exact, what in ((True, "training images to the bit"), (False, "training images but for a little")):
            found = [copy for copy in row.copies if copy["exact"] == exact]
            listed = ", ".join(
                f"{copy['name']} = {'the mirrored ' if copy['mirrored'] else ''}"
                f"{copy['file'] if 'file' in copy else 'train image ' + str(copy['image'])}"
                for copy in found[:NAMED]
            )
            if found:
                more = f", ... ({len(found) - NAMED} more in its record)" if len(found) > NAMED else ""
                lines.append(f"{row.name}: {len(found)} of {row.samples} samples are {what}: {listed}{more}")
    lines += _listed("corrected FID, of infinitely many samples", rows, _CORRECTED)
    few = [f"{row.name} ({row.samples})" for row in rows if row.figures.get("fid_corrected", 0.0) is None]
    if few:
        features = next((f"{row.features} " for row in rows if row.features), "")
        lines.append(
            f"corrected: withheld for {', '.join(few)}: fewer than {ENOUGH} times the {features}features, where the "
            "correction takes too much"
        )
    near = "as near to a training image as the nearest 1 % of test images are"
    for space in ("pixels", "features"):
        lines += _listed(f"{near}, in {space}", rows, figure("", f"near_training_{space}", _percent))
    lines += _listed("network evaluations a sample", rows, Column("", lambda row: row["nfe"] or None, ".0f"))
    keys = ("hubness", "hubness_normal", "hubness_normal_std")
    hubs = [(row.name, *(row.figures.get(key) for key in keys)) for row in rows]
    listed = [f"{name} {own:.2f} ({normal:.2f} ± {std:.2f})" for name, own, normal, std in hubs if own is not None]
    if listed:
        lines.append(
            f"hubness, the skewness of {NEIGHBOURS}-occurrences among features (in brackets that of normal samples of "
            f"the same size and dimension): {', '.join(listed)}"
        )
    return lines


def _listed(what: str, rows: Sequence[Row], column: Column) -> list[str]:
    """A line with the figure of each row that has it; none where no row has."""
    texts = {row.name: column.text(row.values()) for row in rows}
    known = [f"{name} {text}" for name, text in texts.items() if text != UNKNOWN]
    return [f"{what}: {', '.join(known)}"] if known else []
