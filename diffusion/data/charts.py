"""Charts by matplotlib, which is loaded where one is drawn: without display or global state, in one set of colours."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

from PIL import Image

INK, PALE, LINE = "#222222", "#888888", "#DDDDDD"
# Okabe and Ito's, which can be told apart without colour vision, too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*<>"
# Pixels of a chart for each pixel of a page: sharp on fine screens.
SCALE = 2
LONGEST = 48  # characters of a name


def colour(i: int) -> str:
    """The i-th colour, in a circle."""
    return COLOURS[i % len(COLOURS)]


def panels(
    width: float, height: float, rows: Sequence[float] = (1.0,), columns: int = 1, grid: str | None = "x"
) -> tuple[Any, list[Any]]:
    """A figure and its panels, row by row.

    Args:
        width, height: Of the figure, in hundreds of the page's pixels.
        rows: The relative heights of the rows.
        columns: The number of columns.
        grid: The axes whose ticks have lines: x, y or both. None for pictures of the plane, framed and not enlarged.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100 * (SCALE if grid else 1), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: no display and no global state
    axes = list(figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": list(rows)}).flat)
    for axis in axes if grid else ():
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis=grid, color=LINE, linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8, color=PALE)
        axis.xaxis.label.set_size(8.5)
        axis.yaxis.label.set_size(8.5)
    return figure, axes


def plain(text: str) -> str:
    """Text as it is: matplotlib takes dollars for mathematics, and keeps a leading underscore out of legends."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def short_name(text: str) -> str:
    """A name as `plain` text; a long one without its middle, so that the chart keeps its room."""
    half = LONGEST // 2
    return plain(text if len(text) <= LONGEST else f"{text[:half]}…{text[-half:]}")


def draw(figure: Any) -> Image.Image:
    """The figure as a picture."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # names in letters that no font here has: tables show them
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
