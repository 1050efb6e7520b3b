"""Figures of likelihoods: bars with intervals, bits/dim by log-SNR, histograms, and images by rank."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .. import pictures
from ..likelihood import Estimate
from ..likelihood.dequantization import Dequantizer

RANKED = 10


def bars(names: Sequence[str], intervals: Sequence[tuple[float, float, float]], label: str = "bits/dim") -> Image.Image:
    """Horizontal bars of (mean, low, high), the first on top."""
    figure, axis = _figure(7.0, 1.0 + 0.35 * len(names))
    means = [mean for mean, _, _ in intervals]
    errors = [[mean - low for mean, low, _ in intervals], [high - mean for mean, _, high in intervals]]
    places = list(range(len(names)))
    axis.barh(places, means, xerr=errors, height=0.6, color="#6a8caf", ecolor="#222222", capsize=3)
    axis.set_yticks(places, [_plain(name) for name in names])
    axis.invert_yaxis()
    axis.set_xlabel(f"{label} (95 % interval)")
    return _image(figure)


def curves(found: Mapping[str, tuple[tuple[float, float], Sequence[float]]]) -> Image.Image:
    """Bits/dim by log-SNR: where the nats go.

    Args:
        found: For each name the two ends of the log-SNR axis, and bits/dim of bins of equal width between them.
    """
    figure, axis = _figure(7.0, 4.0)
    for name, ((low, high), values) in found.items():
        width = (high - low) / len(values)
        edges = [low + width * i for i in range(len(values) + 1)]
        axis.stairs([value / width for value in values], edges, label=_plain(name), linewidth=1.5)
    axis.set(xlabel="log-SNR", ylabel="bits/dim for each unit of log-SNR")
    axis.legend(frameon=False)
    return _image(figure)


def histograms(values: Mapping[str, Tensor], title: str) -> Image.Image:
    """Densities of several sets of bits/dim over one axis."""
    figure, axis = _figure(7.0, 4.0)
    joined = torch.cat(list(values.values()))
    low, high = float(joined.min()), float(joined.max())
    for name, found in values.items():
        axis.hist(
            found.numpy(), bins=40, range=(low, max(high, low + 1e-9)), density=True, alpha=0.55, label=_plain(name)
        )
    axis.set(xlabel="bits/dim", ylabel="density", title=_plain(title))
    axis.legend(frameon=False)
    return _image(figure)


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


def _plain(text: str) -> str:
    """Text as it is: matplotlib takes dollars for mathematics."""
    return text.replace("$", r"\$")


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: no display and no global state
    return figure, figure.subplots()


def _image(figure: Any) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
