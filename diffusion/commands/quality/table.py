"""What `quality` found, as a table and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from ...metrics import ENOUGH, Provenance

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


def table(rows: Sequence[Row], provenance: Provenance) -> Table:
    """The figures, and in the caption what they are of."""
    made = Table(
        title="Quality of samples", title_justify="left", header_style="bold", caption_justify="left",
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    made.caption = escape(
        f"Against {provenance.images} {provenance.split} images of {provenance.data}"
        f"{' and their mirror images' if provenance.flips else ''}; features: {provenance.extractor} "
        f"({provenance.extractor_sha256[:12]}). FID falls with the number of samples even for a perfect model: compare "
        "equal numbers, or the corrected figure. Near: the share as near to a training image as the nearest 1 % of "
        "test images are. Copies: samples that are training images, exactly + nearly."
    )
    columns = ("", "n", "FID", "corrected", "KID", "precision", "recall", "density", "coverage", "copies",
               "near: pixels", "features", "NFE")  # fmt: skip
    for column in columns:
        made.add_column(column, justify="left" if not column else "right", no_wrap=bool(column))
    for row in rows:
        cell = partial(_cell, row.figures)
        made.add_row(
            escape(row.name), str(row.samples), cell("fid", "fid_sem"), cell("fid_corrected"), cell("kid", "kid_sem"),
            cell("precision"), cell("recall"), cell("density"), cell("coverage"), _copies(row),
            cell("near_training_pixels", "near_training_pixels_sem", 100.0),
            cell("near_training_features", "near_training_features_sem", 100.0),
            f"{row.nfe:.0f}" if row.nfe else "-",
        )  # fmt: skip
    return made


def _copies(row: Row) -> str:
    exact, near = (row.figures.get(f"copies_{kind}") for kind in ("exact", "near"))
    if exact is None or near is None:
        return "-"
    return f"{exact:.0f}" + (f" + {near:.0f}" if near else "")


def _cell(figures: Mapping[str, float | None], name: str, error: str | None = None, percent: float = 0.0) -> str:
    value, sem = figures.get(name), None if error is None else figures.get(error)
    if value is None:
        return "-"
    if percent:
        return f"{percent * value:.1f}" + (" %" if sem is None else f" ± {percent * sem:.1f} %")
    if not sem:
        return f"{value:.3f}"
    digits = min(6, max(0, 1 - math.floor(math.log10(sem))))  # two digits of the error
    return f"{value:.{digits}f} ± {sem:.{digits}f}"


def remarks(rows: Sequence[Row]) -> list[str]:
    """What the table cannot say: which samples are copies, and why there is no corrected figure; a line each."""
    told = []
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
                told.append(f"{row.name}: {len(found)} of {row.samples} samples are {what}: {listed}{more}")
    few = [f"{row.name} ({row.samples})" for row in rows if row.figures.get("fid_corrected", 0.0) is None]
    if few:
        features = next((f"{row.features} " for row in rows if row.features), "")
        told.append(
            f"corrected: withheld for {', '.join(few)}: fewer than {ENOUGH} times the {features}features, where the "
            "correction takes too much"
        )
    return told
