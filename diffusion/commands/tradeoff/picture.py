"""Quality against evaluations, both logarithmic: a line per sampler, distinguished by colour, marker and style."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from PIL import Image

from ...data.charts import COLOURS, INK, MARKERS, colour, draw, panels, plain
from .report import Row

_TITLES = {
    "median": "distance to the tight solve (median)",
    "fid": "FID; zero within its error is left out",
    "excess": "size of the excess, nats; zero within its error is left out",
}


def picture(rows: Sequence[Row], title: str) -> Image.Image | None:
    """A panel for the distance, and one for the excess where it is known, else for FID; None without figures.

    A logarithmic axis has no place for zero: points that are zero within their standard error are left out. Samplers
    that draw noise are dashed.
    """
    second = "excess" if any(row.found.excess is not None for row in rows) else "fid"
    shown = [name for name in ("median", second) if any(_points(rows, name))]
    if not shown:
        return None
    samplers = list(dict.fromkeys(row.found.cell.sampler for row in rows))
    height = max(4.2, 1.2 + 0.19 * len(samplers))
    figure, axes = panels(2.2 + 4.2 * len(shown), height, columns=len(shown), grid="both")
    handles = {}
    for axis, name in zip(axes, shown, strict=True):
        for sampler, of_sampler in groupby(rows, key=lambda row: row.found.cell.sampler):
            points = _points(list(of_sampler), name)
            if not points:
                continue
            i = samplers.index(sampler)
            # noise says so by its style, whatever the colour
            stochastic = not any(row.found.median is not None for row in rows if row.found.cell.sampler == sampler)
            style = {"color": colour(i), "marker": MARKERS[i % len(MARKERS)], "linewidth": 1.4, "markersize": 5,
                     "linestyle": "--" if stochastic else "-", "label": sampler}  # fmt: skip
            x, y, error = zip(*points, strict=True)
            if i >= len(COLOURS):
                style["markerfacecolor"] = "white"
            drawn = axis.errorbar(x, y, yerr=None if name == "median" else _bars(y, error), elinewidth=0.8, **style)
            handles.setdefault(sampler, drawn)
        axis.set(xscale="log", yscale="log", xlabel="network evaluations a sample")
        axis.set_title(_TITLES[name], loc="left", fontsize=9)
        ticks = _ticks(rows)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8)
    figure.suptitle(plain(title), x=0.01, ha="left", fontsize=10)
    return draw(figure)


def exposure_picture(rows: Sequence[Row], title: str) -> Image.Image | None:
    """The size of the states over that of training's against log-SNR, a line for the dearest cell of each sampler.

    The last point of a line, beyond the others, is that of the samples. None where no cell has a curve.
    """
    dearest = {row.found.cell.sampler: row.found for row in rows if row.found.exposure}
    if not dearest:
        return None
    figure, (axis,) = panels(7.2, max(4.2, 1.2 + 0.19 * len(dearest)), grid="both")
    last = max((x for found in dearest.values() for x, _, _ in found.exposure or () if x is not None), default=0.0)
    for i, (sampler, found) in enumerate(dearest.items()):
        points = [(last + 1.0 if x is None else x, ratio, error) for x, ratio, error in found.exposure or ()]
        x, y, errors = zip(*points, strict=True)
        axis.errorbar(
            x, y, yerr=errors, color=colour(i), marker=MARKERS[i % len(MARKERS)], linewidth=1.4, markersize=4,
            elinewidth=0.8, label=f"{sampler}, {found.nfe:.0f}", markerfacecolor="white" if i >= len(COLOURS) else None,
        )  # fmt: skip
    axis.axhline(1.0, color=INK, linewidth=0.8)
    axis.set(xlabel="log-SNR; the last point: samples", ylabel="E|x_t|² over that of training")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, title="sampler, evaluations", title_fontsize=8)
    figure.suptitle(plain(title), x=0.01, ha="left", fontsize=10)
    return draw(figure)


def _points(rows: Sequence[Row], name: str) -> list[tuple[float, float, float]]:
    """Evaluations, size of the figure and its standard error, in the order of cost."""
    found = [(row.found.nfe, getattr(row.found, name), getattr(row.found, f"{name}_sem", None) or 0.0) for row in rows]
    return [(nfe, abs(value), error) for nfe, value, error in found if value is not None and abs(value) > error]


def _ticks(rows: Sequence[Row]) -> list[int]:
    """The numbers of evaluations that lie far enough from the next."""
    stepwise = [row for row in rows if row.found.cell.steps is not None]
    known = sorted({round(row.found.nfe) for row in stepwise or rows})
    return [tick for i, tick in enumerate(known) if tick == known[-1] or known[i + 1] > 1.3 * tick]


def _bars(values: Sequence[float], errors: Sequence[float]) -> list[list[float]]:
    """Downwards no further than to a tenth of the value: on a logarithmic axis the rest is endless."""
    low = [min(error, 0.9 * value) for value, error in zip(values, errors, strict=True)]
    return [low, list(errors)]
