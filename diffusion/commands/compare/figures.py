"""Charts of likelihoods: rows with intervals, bits/dim by log-SNR, error budgets, histograms, and images by rank.

The colours are those of Okabe and Ito, distinguishable by the colour-blind; whatever a colour shows, a line style, a
marker or a position shows too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...data import pictures
from ...data.charts import COLOURS, INK, LINE, MARKERS, PALE, colour, draw, panels, plain, short_name
from ...likelihood import Estimate
from ...likelihood.dequantization import Dequantizer
from .comparison import is_classical
from .content import Content, name_of
from .curves import overfit

RANKED = 10
# Classical rows beyond this many times the worst trained one are drawn at the edge, and the trained ones keep the room.
_BEYOND = 1.3


def span(content: Content) -> tuple[float, float]:
    """The ends of an axis of bits/dim for all rows; classical ones that are far worse than any other lie beyond it."""
    rows = content.rows
    means = [row.estimate.mean() for row in rows]
    trained = [i.mean for row, i in zip(rows, means, strict=True) if not is_classical(row)] or [i.mean for i in means]
    edge = _BEYOND * max(trained)
    shown = [interval for interval in means if interval.mean <= edge]
    low = min(i.low if math.isfinite(i.low) else i.mean for i in shown)
    high = max(i.high if math.isfinite(i.high) else i.mean for i in shown)
    room = 0.08 * max(high - low, 1e-3)
    return low - room, high + room


def intervals(content: Content) -> Image.Image:
    """Bits/dim of every row with its 95 % interval, a panel per group; dots are trained models, rings classical."""
    rows = content.rows
    low, high = span(content)
    heights = [len(group.rows) + 0.5 for group in content.groups]
    figure, axes = panels(7.6, 0.9 + 0.27 * len(rows) + 0.32 * len(heights), heights)
    for axis, group in zip(axes, content.groups, strict=True):
        for place, row in enumerate(group.rows):
            interval = row.estimate.mean()
            face = "white" if is_classical(row) else COLOURS[0]
            if interval.mean > high:
                axis.plot(high, place, ">", color=PALE, clip_on=False)
                axis.annotate(
                    f"{interval.mean:.2f}", (high, place), (-8, 0), textcoords="offset points", va="center", ha="right"
                )
                continue
            if math.isfinite(interval.low):
                axis.plot([interval.low, interval.high], [place, place], color=INK, linewidth=1.4)
            axis.plot(interval.mean, place, "o", markerfacecolor=face, markeredgecolor=COLOURS[0], markersize=6)
        axis.set_yticks(range(len(group.rows)), [short_name(name_of(row)) for row in group.rows])
        axis.set(xlim=(low, high), ylim=(len(group.rows) - 0.4, -0.6))
        axis.set_title(plain(f"{group.letter}: {group.title}"), loc="left", fontsize=8, color=INK)
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", labelbottom=axis is axes[-1])
    rings = "" if content.is_of_densities else "; rings: classical models"
    axes[-1].set_xlabel(content.words("bits/dim") + f" with 95 % interval (lower is better within a panel){rings}")
    return draw(figure)


def curves(content: Content) -> Image.Image:
    """Bits/dim by log-SNR of every model, test solid and train dashed; below, what test images cost more."""
    pairs = content.curves
    lost = [overfit(pair) for pair in pairs]
    heights = (3.4, 2.4) if any(lost) else (3.4,)
    figure, axes = panels(7.6, sum(heights), heights)
    mark_fine_noise(axes[0], content.is_of_densities)
    for i, pair in enumerate(pairs):
        for curve, style in ((pair.test, "-"), (pair.train, "--")):
            if curve is not None:
                axes[0].stairs(
                    curve.density.tolist(), curve.edges, color=colour(i),
                    label=short_name(curve.label(content.words("images"))),
                    linestyle=style, linewidth=1.6, baseline=None,
                )  # fmt: skip
        found, side = lost[i], pair.test
        if found is not None and side is not None:
            edges = side.edges
            axes[1].stairs([v.mean for v in found], edges, color=colour(i), linewidth=1.6, baseline=None)
            band = {"color": colour(i), "alpha": 0.18, "linewidth": 0, "step": "post"}
            axes[1].fill_between(edges, *([*bound, bound[-1]] for bound in _bounds(found)), **band)
    axes[0].set_ylabel(content.words("bits/dim per unit of log-SNR"))
    axes[0].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0.0, 0.93))
    if len(heights) == 2:
        axes[1].axhline(0.0, color=PALE, linewidth=1)
        axes[1].set_ylabel("test - train, 95 %")
        axes[0].sharex(axes[1])
        axes[0].tick_params(axis="x", labelbottom=False)
    axes[-1].set_xlabel("log-SNR: noise to the left, data to the right")
    return draw(figure)


def mark_fine_noise(axis: Any, in_nats: bool = False) -> None:
    """The bits/dim per unit of log-SNR where the noise is finer than that of the dequantisation, as a dotted line; of
    densities, finer than the data."""
    height, text = (0.5, "1 / 2") if in_nats else (0.5 / math.log(2.0), "1 / (2 ln 2)")
    axis.axhline(height, color=PALE, linewidth=1, linestyle=":")
    axis.annotate(
        f"limit of fine noise: {text}", (0.01, height), (0, 3), fontsize=7, color=PALE,
        xycoords=("axes fraction", "data"), textcoords="offset points",
    )  # fmt: skip


def _bounds(found: Sequence[Any]) -> tuple[list[float], list[float]]:
    return [interval.low for interval in found], [interval.high for interval in found]


def budgets(content: Content) -> Image.Image:
    """The error budget of every row on a logarithmic axis, a marker per cause; zero and unknown ones are omitted."""
    rows = content.rows
    causes = list(dict.fromkeys(cause for row in rows for cause in row.estimate.error_budget))
    figure, (axis,) = panels(7.6, 1.3 + 0.27 * len(rows))
    for i, cause in enumerate(causes):
        errors = [row.estimate.error_budget.get(cause, math.nan) for row in rows]
        points = [(error, place) for place, error in enumerate(errors) if math.isfinite(error) and error > 0]
        if points:
            marker = MARKERS[i % len(MARKERS)]
            axis.plot(*zip(*points, strict=True), marker, color=colour(i), label=plain(cause), markersize=6)
    axis.set_xscale("log")
    axis.set_yticks(range(len(rows)), [short_name(name_of(row)) for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="y", color=LINE, linewidth=0.6)
    axis.set_xlabel(content.words("error of the mean, bits/dim"))
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=5, frameon=False, fontsize=8, handletextpad=0.2)
    return draw(figure)


def histograms(values: Mapping[str, Tensor], title: str) -> Image.Image:
    """Densities of several sets of bits/dim over one axis."""
    figure, (axis,) = panels(7.0, 3.6)
    joined = torch.cat(list(values.values()))
    low, high = float(joined.min()), float(joined.max())
    ends = (low, max(high, low + 1e-9))
    for i, (name, found) in enumerate(values.items()):
        bars = {"bins": 40, "range": ends, "density": True, "histtype": "stepfilled", "color": colour(i)}
        axis.hist(found.numpy(), alpha=0.4, label=plain(name), **bars)
        axis.hist(found.numpy(), fill=False, edgecolor=colour(i), linestyle="-" if i == 0 else "--", **bars)
    axis.set(xlabel="bits/dim", ylabel="density")
    axis.set_title(plain(title), loc="left", fontsize=9)
    axis.legend(frameon=False, fontsize=8)
    return draw(figure)


def ranked_picture(images: Tensor, estimate: Estimate, levels: int) -> Image.Image:
    """Two rows of images: the most likely ones above, the least likely ones below, each from the extreme.

    Args:
        images: Level indices, shape (B, C, H, W).
        estimate: Their likelihoods, in the same order.
        levels: The number of levels.
    """
    order = estimate.log_prob.argsort(descending=True)
    count = min(RANKED, max(1, len(order) // 2))
    chosen = torch.cat((order[:count], order.flip(0)[:count]))
    return pictures.grid(Dequantizer(levels).center(images[chosen], torch.float32), columns=count)
