"""Pictures: grids of samples, signals, volumes, the denoising path, densities in the plane. PNG, written atomically."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, PngImagePlugin
from torch import Tensor

from ..errors import UserError
from ..storage import atomic
from . import Toy
from .charts import INK, colour, draw, panels

# Small images are enlarged, pixel by pixel, until a cell of a grid is about this large.
_CELL = 64
_GAP = 2
# Signals, volumes or entries that a picture shows, and slices of a volume.
_MOST_PANELS, _MOST_SLICES = 16, 12


def to_bytes(x: Tensor) -> Tensor:
    """Images in [-1, 1], (..., C, H, W), as 8-bit values for the eye."""
    return ((x.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def columns_for(n: int) -> int:
    """The columns of a grid of n: those that leave the fewest places empty, at most three times as wide as high; of
    such the fewest from a square on.
    """
    wide = (columns for columns in range(math.isqrt(n - 1) + 1, n + 1) if columns <= 3 * -(-n // columns))
    return min(wide, key=lambda columns: -n % columns)


def grid(x: Tensor, columns: int | None = None, background: int = 255) -> Image.Image:
    """A grid of images in [-1, 1], (N, C, H, W), enlarged where they are small; neither grey nor colour: `_in_view`."""
    x = _in_view(x)
    n, _, height, width = x.shape
    columns = columns or columns_for(n)
    scale = max(1, _CELL // max(height, width))
    cells = to_bytes(x).repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    cells = torch.nn.functional.pad(cells, (0, _GAP, 0, _GAP), value=background)
    missing = -n % columns
    blank = torch.full((missing, *cells.shape[1:]), background, dtype=torch.uint8)
    pixels = rearrange(torch.cat((cells, blank)), "(r c) ch h w -> (r h) (c w) ch", c=columns).numpy()
    return _image(pixels[:-_GAP, :-_GAP])


def from_bytes(pixels: np.ndarray, opacity: bool = False) -> Image.Image:
    """One image of 8-bit values, (C, H, W), at its own size; neither grey nor colour: `_in_view`.

    With `opacity` the last of 2 or 4 channels is that of the picture.
    """
    if opacity and len(pixels) in (2, 4):
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))  # LA or RGBA
    return _image(_in_view(torch.from_numpy(pixels)[None])[0].numpy().transpose(1, 2, 0))


def _in_view(x: Tensor) -> Tensor:
    """Images as an eye can see them: of four channels three as colour and the fourth, opacity or a band, next to it in
    grey; others in grey too, as tiles row by row, as near to a square as can be.
    """
    channels = x.shape[1]
    if channels in (1, 3):
        return x
    if channels == 4:
        return torch.cat([x[:, :3], x[:, 3:].expand(-1, 3, -1, -1)], dim=3)
    columns = columns_for(channels)
    blank = torch.full_like(x[:, :1], 255 if x.dtype == torch.uint8 else 1.0).expand(-1, -channels % columns, -1, -1)
    return rearrange(torch.cat([x, blank], dim=1), "n (r c) h w -> n 1 (r h) (c w)", c=columns)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels))


def encode(image: Image.Image, text: dict[str, str] | None = None) -> bytes:
    """A picture as the bytes of a PNG, with text entries in its metadata."""
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def save(path: Path, image: Image.Image, text: dict[str, str] | None = None) -> None:
    """Write a picture as PNG, with text entries in its metadata."""
    atomic.write_bytes(path, encode(image, text))


def save_samples(
    path: Path, x: Tensor, toy: Toy | None = None, text: dict[str, str] | None = None, continuous: bool = False
) -> None:
    """Draw samples (`samples_picture`) and write them."""
    save(path, samples_picture(x, toy, continuous), text)


def samples_picture(x: Tensor, toy: Toy | None = None, continuous: bool = False) -> Image.Image:
    """Samples as fits their shape: images as a grid, volumes as slices, signals as lines, vectors by their entries.

    Args:
        x: Images (N, C, H, W), volumes (N, C, D, H, W) of which a row of slices is shown, signals (N, C, L), points
            (N, 2), over their true density where that is known, or vectors (N, d), whose entries have a histogram each.
        toy: The distribution they are of.
        continuous: Whether images are of any units, shown between their 1 % and 99 % quantiles, and not in [-1, 1].
    """
    if x.ndim == 4:
        return grid(_at_own_range(x) if continuous else x)
    if x.ndim == 5:
        return _slices_picture(_at_own_range(x[:_MOST_PANELS]))
    if x.ndim == 3:
        return _lines_picture(x)
    return _points_picture(x, toy) if x.shape[1:] == (2,) else _histograms_picture(x.flatten(1))


def path_picture(states: Sequence[Tensor], times: Sequence[float], x_hats: Sequence[Tensor]) -> Image.Image:
    """The denoising path of a few images: a pair of rows an image, x_t above and x_hat below, noise on the left.

    Args:
        states: x_t at some times, each (N, C, H, W).
        times: Those times.
        x_hats: E[x | x_t] at the same times.

    Raises:
        UserError: For unlike numbers of them.
    """
    if not len(states) == len(times) == len(x_hats):
        raise UserError(
            f"states, times, x_hats: found {len(states)}, {len(times)} and {len(x_hats)}; one of each a time"
        )
    rows = [torch.stack([_at_own_contrast(x) for x in states], 1), torch.stack(list(x_hats), 1)]  # (N, T, C, H, W) each
    cells = rearrange(torch.stack(rows, 1), "n k t c h w -> (n k t) c h w")
    return grid(cells, columns=len(states))


def path_halves(states: Sequence[Tensor], x_hats: Sequence[Tensor]) -> list[tuple[Image.Image, Image.Image]]:
    """The denoising path of images, as a picture of x_t and one of x_hat at each of its times; arguments as below."""
    return [(grid(_at_own_contrast(x)), grid(x_hat)) for x, x_hat in zip(states, x_hats, strict=True)]


def path_frames(states: Sequence[Tensor], x_hats: Sequence[Tensor]) -> list[Image.Image]:
    """The denoising path of images as the frames of a film: x_t on the left and x_hat on the right.

    Args:
        states: x_t at some times, each (N, C, H, W).
        x_hats: E[x | x_t] at the same times.
    """
    frames = []
    for halves in path_halves(states, x_hats):
        width, height = halves[0].size
        frame = Image.new(halves[0].mode, (2 * width + _CELL // 4, height), "white")
        frame.paste(halves[0], (0, 0))
        frame.paste(halves[1], (width + _CELL // 4, 0))
        frames.append(frame)
    return frames


def save_animation(path: Path, frames: Sequence[Image.Image], comment: str = "", seconds: float = 5.0) -> None:
    """Write frames as a GIF that repeats for ever, its last frame held; `comment` goes into its metadata."""
    buffer = io.BytesIO()
    # GIFs count time in hundredths of a second, and viewers take less than two of them for ten
    each = max(20, int(1000 * seconds / len(frames)) // 10 * 10)
    durations = [each] * (len(frames) - 1) + [1500]
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, comment=comment.encode()
    )
    atomic.write_bytes(path, buffer.getvalue())


def _at_own_contrast(x: Tensor) -> Tensor:
    """x_t at the contrast of its own scale, which a variance-exploding path would lose."""
    return x / x.flatten(1).abs().quantile(0.99, 1).clamp(min=1.0).reshape(-1, 1, 1, 1)


def _at_own_range(x: Tensor) -> Tensor:
    """Numbers of any units with their 1 % and 99 % quantiles at -1 and 1."""
    x = x.detach().cpu().double()
    # of a million at most, evenly spread: torch's quantile takes no more than 16 million
    low, high = x.flatten()[:: max(1, x.numel() // 2**20)].quantile(torch.tensor([0.01, 0.99], dtype=x.dtype))
    return (2 * (x - low) / (high - low).clamp(min=1e-300) - 1).clamp(-1, 1)


def _slices_picture(x: Tensor) -> Image.Image:
    """Volumes (N, C, D, H, W) in [-1, 1], a row each: slices at even distances along the depth."""
    shown = min(x.shape[2], _MOST_SLICES)
    depths = ((torch.arange(shown) + 0.5) * x.shape[2] / shown).long()
    return grid(rearrange(x[:, :, depths], "n c d h w -> (n d) c h w"), columns=shown)


def _lines_picture(x: Tensor) -> Image.Image:
    """Signals (N, C, L), a panel each, a line a channel, all on one scale."""
    signals = x[:_MOST_PANELS].detach().cpu().double().numpy()
    columns = columns_for(len(signals))
    rows = math.ceil(len(signals) / columns)
    figure, axes = panels(2.4 * columns, 1.6 * rows, rows=(1.0,) * rows, columns=columns)
    low, high = float(signals.min()), float(signals.max())
    margin = 0.05 * (high - low) or 1.0
    for axis, signal in zip(axes, signals, strict=False):
        for channel, values in enumerate(signal):
            axis.plot(values, linewidth=0.8, color=colour(channel))
        axis.set(ylim=(low - margin, high + margin))
    for axis in axes[len(signals) :]:
        axis.set_visible(False)
    return draw(figure)


def _histograms_picture(x: Tensor) -> Image.Image:
    """The histogram of each of the first entries of vectors (N, d)."""
    entries = x.detach().cpu().double().numpy().T[:_MOST_PANELS]
    columns = columns_for(len(entries))
    rows = math.ceil(len(entries) / columns)
    figure, axes = panels(2.4 * columns, 1.8 * rows, rows=(1.0,) * rows, columns=columns)
    for number, (axis, values) in enumerate(zip(axes, entries, strict=False)):
        axis.hist(values, bins=40, color=colour(0))
        axis.set(xlabel=f"entry {number}")
    for axis in axes[len(entries) :]:
        axis.set_visible(False)
    return draw(figure)


def _points_picture(x: Tensor, toy: Toy | None) -> Image.Image:
    points = x.detach().cpu().numpy()
    figure, axes = _panels(1 if toy is None else 2)
    extent = 3.2
    if toy is not None:
        side = torch.linspace(-extent, extent, 200)
        mesh = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).reshape(-1, 2)
        density = toy.log_prob(mesh).exp().reshape(200, 200)
        axes[0].imshow(density.numpy(), origin="lower", extent=(-extent, extent, -extent, extent), cmap="magma")
        axes[0].set_title("true density")
    axes[-1].scatter(points[:, 0], points[:, 1], s=3, alpha=0.6, linewidths=0)
    axes[-1].set_title(f"{len(points)} samples")
    for axis in axes:
        limits = {} if toy is None else {"xlim": (-extent, extent), "ylim": (-extent, extent)}  # else of any units
        axis.set(aspect="equal", **limits)
    return draw(figure)


def density_picture(toy: Toy, log_density: Any, samples: Tensor, side: int = 60) -> Image.Image:
    """Three panels of a toy: the true density, the model's density and the model's samples.

    Args:
        toy: The distribution.
        log_density: Maps points (M, 2) to the model's log-density (M,).
        samples: Points drawn from the model, (N, 2).
        side: Points of the mesh along an axis.
    """
    extent = 3.2
    line = torch.linspace(-extent, extent, side)
    mesh = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    truth, model = toy.log_prob(mesh).exp(), log_density(mesh).detach().cpu().exp()
    figure, axes = _panels(3)
    top = float(truth.max())
    for axis, values, title in ((axes[0], truth, "true density"), (axes[1], model, "model's density (PF-ODE)")):
        axis.imshow(
            values.reshape(side, side).numpy(),
            origin="lower",
            extent=(-extent, extent) * 2,
            cmap="magma",
            vmin=0,
            vmax=top,
        )
        axis.set_title(title)
    points = samples.detach().cpu().numpy()
    axes[2].scatter(points[:, 0], points[:, 1], s=3, alpha=0.6, linewidths=0)
    axes[2].set_title(f"{len(points)} samples")
    for axis in axes:
        axis.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
    return draw(figure)


def codes_picture(codes: Mapping[str, Tensor]) -> Image.Image:
    """Codes against N(0, I): the histogram of all their entries, and each dimension's quantiles against the normal's.

    Args:
        codes: Of each set of images, shape (N, d).
    """
    figure, axes = _panels(2)
    for i, (name, z) in enumerate(codes.items()):
        z = z.detach().cpu().double()
        style = ("-", "--", ":")[i % 3]
        axes[0].hist(
            z.flatten().numpy(), bins=60, range=(-4, 4), density=True, histtype="step", label=name, color=colour(i),
            linestyle=style, linewidth=1.4,
        )  # fmt: skip
        probability = (torch.arange(len(z), dtype=torch.float64) + 0.5) / len(z)
        normal = torch.special.ndtri(probability)
        axes[1].plot(normal.numpy(), z.sort(dim=0).values.numpy(), style, color=colour(i), linewidth=0.7, alpha=0.7)
    line = torch.linspace(-4, 4, 200, dtype=torch.float64)
    density = (-0.5 * line.square()).exp() / math.sqrt(2 * math.pi)
    axes[0].plot(line.numpy(), density.numpy(), color=INK, linewidth=1, label="N(0, 1)")
    axes[1].plot([-4, 4], [-4, 4], color=INK, linewidth=1)
    axes[0].set(xlabel="entry of a code", ylabel="density")
    axes[1].set(xlabel="quantile of N(0, 1)", ylabel="quantile of a code's dimension", xlim=(-4, 4), ylim=(-4, 4))
    axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    return draw(figure)


def _panels(count: int) -> tuple[Any, list[Any]]:
    return panels(4.0 * count, 4.3, columns=count, grid=None)  # room for titles above square axes
