"""sample.py --encode and --interpolate: images to noise, and the path from one image to another."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data import pictures
from ...errors import UserError
from ...models import DiffusionModel, TrainedModel
from ...sampling.encode import encode, interpolate
from ...sampling.settings import CONTROLS
from ...storage import atomic
from ..options import flag
from .control import read_image
from .record import SampleRecord, free_name, image_digests

# Where encoding goes back and forth; a run's own sampler may draw noise.
DEFAULT_SAMPLER = "ode"
_STRIP = 8


def encode_command(model: TrainedModel, record: SampleRecord, options: argparse.Namespace) -> int:
    """Write the noise of images to an npz file and report the error of the way back; returns the exit code.

    The file has `noise` (n, *shape), what `diffusion.sample` takes as `noise`, and `record`, how it was made, as JSON.
    """
    model = _of_images(model, record, "--encode")
    if options.interpolate:
        raise UserError("--encode, --interpolate: use only one of them")
    settings = {**record.settings, "encode": options.encode}
    made = replace(record, settings=settings, images=image_digests(settings), count=len(options.encode))
    path = Path(options.out) if options.out is not None else free_name(Path("noise.npz"), made)
    if path.suffix != ".npz":
        raise UserError(f"--out: found '{path}'; --encode writes x.npz")
    x = torch.cat([read_image("--encode", name, model.facts.shape) for name in options.encode])
    settings = _plain(record)
    start = time.perf_counter()
    with model.counted() as there:
        noise = encode(model, x, **settings)
    with model.counted() as again:
        back = model.sample(len(x), noise=noise, **settings).cpu()
    seconds = time.perf_counter() - start
    with atomic.writer(path) as file:
        text = json.dumps(asdict(made))
        np.savez_compressed(file, noise=noise.cpu().numpy(), record=np.array(text))
    error = 127.5 * (back - x)
    print(f"wrote {path}")
    print(
        f"back again: off by {float(error.square().mean().sqrt()):.2g} of 255 (RMS), "
        f"{float(error.abs().max()):.2g} at most"
    )
    nfe = f"NFE {there.rows / len(x):.0f} there, {again.rows / len(x):.0f} back"
    print(f"{len(x)} images, sampler {record.settings['sampler']}, {nfe}, {seconds:.1f} s")
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
    settings = _plain(record)
    x_a, x_b = (read_image("--interpolate", name, model.facts.shape)[0] for name in settings.pop("interpolate"))
    x = interpolate(model, x_a, x_b, record.count, **settings)
    pictures.save(path, pictures.grid(x, columns=len(x)), record.to_text())


def _of_images(model: TrainedModel, record: SampleRecord, option: str) -> DiffusionModel:
    if not isinstance(model, DiffusionModel) or len(model.facts.shape) != 3 or model.dequantizer is None:
        raise UserError(f"{option}: {model.source} has no path from noise to an image; a diffusion model of images has")
    for name in (*CONTROLS, "guidance", "guidance_interval"):
        if name in record.settings:
            raise UserError(f"{option}: not with {flag(name)}; the way back is that of the model alone")
    return model


def _plain(record: SampleRecord) -> dict[str, Any]:
    return {name: value for name, value in record.settings.items() if name != "size"}  # the model's already
