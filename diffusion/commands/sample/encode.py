"""sample.py --encode and --interpolate: images to noise, and the path from one image to another."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data import pictures
from ...errors import UserError
from ...models import DiffusionModel, TrainedModel
from ...sampling.encode import encode, interpolate
from ...sampling.settings import CONTROLS
from ...storage import atomic
from ..options import flag
from .condition import check_count, read_conditions
from .control import image_for, of_images
from .record import SampleRecord, free_name, image_digests

# Where encoding goes back and forth; a run's own sampler may draw noise.
DEFAULT_SAMPLER = "ode"
_STRIP = 8


@dataclass(frozen=True, eq=False)
class Encoded:
    """Images, their noise, and the way back.

    Args:
        record: How the noise was made.
        x: The images as the model sees them, (n, *shape) in [-1, 1].
        noise: What `diffusion.sample` takes as `noise`, (n, *shape).
        back: What is drawn from it, (n, *shape).
        nfe: Evaluations per image, there and back.
        seconds: The wall time of both.
    """

    record: SampleRecord
    x: Tensor
    noise: Tensor
    back: Tensor
    nfe: tuple[float, float]
    seconds: float

    def save(self, path: Path) -> None:
        """Write `noise` and `record`, how it was made as JSON, to an npz file."""
        with atomic.writer(path) as file:
            text = json.dumps(asdict(self.record))
            np.savez_compressed(file, noise=self.noise.cpu().numpy(), record=np.array(text))

    @property
    def error(self) -> str:
        """How far the way back ends from the images, in levels of 255."""
        error = 127.5 * (self.back - self.x)
        rms, most = float(error.square().mean().sqrt()), float(error.abs().max())
        return f"off by {rms:.2g} of 255 (RMS), {most:.2g} at most"


def encoded(model: TrainedModel, record: SampleRecord, images: Sequence[str]) -> Encoded:
    """Encode image files with the settings of a record, and draw them back.

    Raises:
        UserError: For a model or settings without a way to the noise, and images that do not fit the model.
    """
    model = _of_images(model, record, "--encode")
    made = _record_of(record, images)
    x = torch.cat([image_for(model, "--encode", name) for name in images])
    settings = _plain(model, record, len(x), "images")
    start = time.perf_counter()
    with model.counted() as there:
        noise = encode(model, x, **settings)
    with model.counted() as again:
        back = model.sample(len(x), noise=noise, **settings).cpu()
    nfe = there.rows / len(x), again.rows / len(x)
    return Encoded(made, x, noise, back, nfe, time.perf_counter() - start)


def _record_of(record: SampleRecord, images: Sequence[str]) -> SampleRecord:
    settings = {**record.settings, "encode": list(images)}
    return replace(record, settings=settings, images=image_digests(settings), count=len(images))


def encode_command(model: TrainedModel, record: SampleRecord, options: argparse.Namespace) -> int:
    """Write the noise of images to an npz file and report the error of the way back; returns the exit code."""
    _of_images(model, record, "--encode")
    if options.interpolate:
        raise UserError("--encode, --interpolate: use only one of them")
    made = _record_of(record, options.encode)
    path = Path(options.out) if options.out is not None else free_name(Path("noise.npz"), made)
    if path.suffix != ".npz":
        raise UserError(f"--out: found '{path}'; --encode writes x.npz")
    found = encoded(model, record, options.encode)
    found.save(path)
    print(f"wrote {path}")
    print(f"back again: {found.error}")
    nfe = f"NFE {found.nfe[0]:.0f} there, {found.nfe[1]:.0f} back"
    print(f"{len(found.x)} images, sampler {record.settings['sampler']}, {nfe}, {found.seconds:.1f} s")
    return 0


def interpolate_command(model: TrainedModel, record: SampleRecord, options: argparse.Namespace, path: Path) -> int:
    """Write a strip of pictures from one image to another; returns the exit code."""
    _of_images(model, record, "--interpolate")
    n = options.n or _STRIP
    settings = {**record.settings, "interpolate": options.interpolate}
    record = replace(record, settings=settings, images=image_digests(settings), batches=((0, n),), count=n)
    path = Path(options.out) if options.out is not None else free_name(path, record)
    if path.suffix != ".png":
        raise UserError(f"--out: found '{path}'; --interpolate writes x.png")
    start = time.perf_counter()
    with model.counted() as count:
        save_strip(path, model, record)
    print(f"wrote {path}")
    nfe = f"NFE {count.rows / (n + 2):.0f} a path"
    print(f"{n} pictures, sampler {record.settings['sampler']}, {nfe}, {time.perf_counter() - start:.1f} s")
    return 0


def save_strip(path: Path, model: TrainedModel, record: SampleRecord) -> None:
    """Draw the strip that a record describes."""
    settings = _plain(model, record, 1, "path")
    x_a, x_b = (image_for(model, "--interpolate", name)[0] for name in settings.pop("interpolate"))
    x = interpolate(model, x_a, x_b, record.count, **settings)
    pictures.save(path, pictures.grid(x, columns=len(x)), record.to_text())


def _of_images(model: TrainedModel, record: SampleRecord, option: str) -> DiffusionModel:
    found = of_images(model, option)
    for name in (*CONTROLS, "guidance", "guidance_interval"):
        if name in record.settings and name != "condition":
            raise UserError(f"{option}: not with {flag(name)}; the way back is that of the model alone")
    return found


def _plain(model: TrainedModel, record: SampleRecord, n: int, what: str) -> dict[str, Any]:
    """The arguments of both ways, with the conditions of n images, or of one path."""
    taken = ("size", "condition")  # the size is the model's already
    settings = {name: value for name, value in record.settings.items() if name not in taken}
    if "condition" in record.settings:
        settings["cond"] = read_conditions(model, record.settings["condition"])
        check_count(settings["cond"], n, what)
    return settings
