"""Images that are dropped on the page: kept as files, so that a command line can name them; and measured."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ...data import pictures
from ...data.charts import COLOURS, draw, panels
from ...errors import UserError
from ...likelihood import Estimate
from ...models import TrainedModel
from ...storage import atomic, runs
from ..compare.figures import mark_fine_noise
from ..sample.control import image_for, levels_for, of_images
from .drawing import Picture, png_of

EVALUATIONS = 128  # noise levels for the bits of one image


def kept(path: str, folder: Path) -> str:
    """A copy of an image file in `folder`, named by its content; returns its path."""
    return _kept(Path(path).read_bytes(), folder, "image", Path(path).suffix.lower())


def _kept(content: bytes, folder: Path, name: str, suffix: str = ".png") -> str:
    target = folder / f"{name}-{hashlib.sha256(content).hexdigest()[:8]}{suffix}"
    atomic.write_bytes(target, content)
    return str(target)


def kept_sample(sample: Tensor, folder: Path) -> str:
    """A sample, (C, H, W) in [-1, 1], as an image file in `folder` with all its channels; returns its path.

    Raises:
        UserError: For more than four channels.
    """
    if len(sample) > 4:
        raise UserError(f"image: a PNG has up to 4 channels, this sample has {len(sample)}; drop a TIFF with as many")
    picture = pictures.from_bytes(pictures.to_bytes(sample).numpy(), opacity=len(sample) % 2 == 0)
    return _kept(pictures.encode(picture), folder, "image")


def kept_mask(marks: str, shape: Sequence[int], folder: Path) -> str:
    """A mask in `folder`, white where `marks` has a 1, row by row; returns its path.

    Raises:
        UserError: For marks of another size, and none at all.
    """
    height, width = shape[-2:]
    if len(marks) not in (0, height * width) or set(marks) - {"0", "1"}:
        raise UserError(f"--mask: found marks for {len(marks)} pixels; this model's images have {height * width}")
    if "1" not in marks:
        raise UserError("--mask: nothing is marked; paint over the part of the image that is to be filled in")
    image = Image.frombytes("L", (width, height), bytes(255 * int(mark) for mark in marks))
    return _kept(pictures.encode(image), folder, "mask")


def seen(model: TrainedModel, path: str) -> Tensor:
    """An image as a model sees it, (1, C, H, W) in [-1, 1].

    Raises:
        UserError: For a model of other data, and a file that is no image.
    """
    return image_for(of_images(model, "image"), "image", path)


def to_paint(x: Tensor, opacity: bool) -> Image.Image:
    """An image (1, C, H, W) in [-1, 1] at its own size, to be painted on.

    Of four channels without opacity it shows the first three as colour, of two or of five and more their mean.
    """
    pixels = pictures.to_bytes(x)[0]
    if not opacity and len(pixels) == 4:
        pixels = pixels[:3]
    elif not opacity and len(pixels) != 3:
        pixels = pixels.float().mean(0, keepdim=True).round().to(torch.uint8)
    return pictures.from_bytes(pixels.numpy(), opacity)


def channels_in_words(channels: int) -> str:
    """How pictures show all channels of images, in words; nothing to be said of grey and of colour."""
    if channels in (1, 3):
        return ""
    shown = "three as colour, the fourth next to them in grey" if channels == 4 else "in grey, next to each other"
    return f"{channels} channels: {shown}"


@dataclass(frozen=True, eq=False)
class Bits:
    """The likelihood of one image.

    Args:
        estimate: The evidence lower bound.
        bits_per_dim: Its bits/dim.
        parts: Its terms, in bits/dim.
        chart: Bits/dim by log-SNR.
    """

    estimate: Estimate
    bits_per_dim: float
    parts: dict[str, float]
    chart: Picture


def bits(model: TrainedModel, path: str, seed: int) -> Bits:
    """Measure an image: its variational bound, and at which noise levels its bits are spent."""
    of_images(model, "image")
    images = levels_for(model, "image", path)
    estimate = model.log_likelihood(images, method="elbo", evaluations=EVALUATIONS, seed=seed)
    unit = -1.0 / (estimate.dims * math.log(2.0))
    terms = ("prior", "diffusion", "reconstruction")
    parts = {name: unit * float(estimate.terms[name][0]) for name in terms}
    about = {
        "image": runs.file_digest(path), "model": model.source, "weights": model.weights, "kind": estimate.kind,
        "bits_per_dim": float(estimate.bits_per_dim[0]), "protocol": dict(estimate.protocol),
    }  # fmt: skip
    chart = Picture(png_of(_chart(estimate, unit), about), "bits.png")
    return Bits(estimate, float(estimate.bits_per_dim[0]), parts, chart)


def _chart(estimate: Estimate, unit: float) -> Image.Image:
    """Bits/dim per unit of log-SNR, as a staircase."""
    curve = unit * estimate.terms["curve"][0].double()
    low, high = (float(end) for end in estimate.protocol["curve_log_snr"])  # type: ignore[attr-defined]
    edges = torch.linspace(low, high, len(curve) + 1, dtype=torch.float64)
    density = curve / (edges[1] - edges[0])
    figure, (axis,) = panels(6.4, 2.6)
    axis.stairs(density.tolist(), edges.tolist(), color=COLOURS[0], fill=True, alpha=0.25)
    axis.stairs(density.tolist(), edges.tolist(), color=COLOURS[0], linewidth=1.6, baseline=None)
    mark_fine_noise(axis)
    axis.set(xlabel="log-SNR: noise to the left, data to the right", ylabel="bits/dim per unit of log-SNR")
    return draw(figure)
