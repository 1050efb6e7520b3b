"""sample.py: which model, which sampler, the drawing itself, and the files it leaves."""

from __future__ import annotations

import argparse
import io
import json
import os
import secrets
import shutil
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import atomic, pictures, runs, samplers
from .devices import choose_device
from .errors import UserError, choose
from .model import TrainedModel, load
from .sample_arguments import SAMPLING_OPTIONS
from .schedules import time_grids

DEFAULT_MODEL = "pretrained:digits"


def draw(options: argparse.Namespace) -> int:
    """Draw what the command line asks for; returns the exit code."""
    if options.sampler is not None:
        choose("--sampler", options.sampler, samplers.names())
    if options.grid is not None:
        choose("--grid", options.grid, time_grids.names())
    device = choose_device(options.device)
    model = load(_which(options), device, options.runs)
    print(f"model: {model.source} ({model.facts.name}, step {model.step}) on {device}")

    given = {name: getattr(options, name) for name in SAMPLING_OPTIONS if getattr(options, name) is not None}
    for name in given:
        if name not in model.sampling_options:
            taken = ", ".join(f"--{option}" for option in ("n", "seed", *model.sampling_options))
            raise UserError(f"--{name}: {model.source} is of family '{model.config.family}', which takes {taken}")
    settings = model.sampling_settings(given)
    (shown, way), *_ = settings.items()
    n = options.n or model.config.sampling.n
    if "steps" in given and samplers.build(way, method=options.method).is_adaptive:
        print(
            "note: --steps is not used by an adaptive ode (--tolerance is); --method rk4 takes steps", file=sys.stderr
        )
    out = _Target(options.out, n, model, f"{way}-seed{options.seed}")
    start = time.perf_counter()
    with (
        model.counted() as count,
        tqdm(total=n, desc=f"sampling ({way})", unit="image", miniters=0, disable=not sys.stderr.isatty()) as bar,
    ):
        count.watch = lambda: bar.set_postfix_str(f"NFE {count.rows / n:.0f}", refresh=False) or bar.update(0)
        images = model.sample(
            n,
            options.seed,
            batch_size=options.batch_size,
            progress=lambda done, _: bar.update(done - bar.n),
            **{**settings, **({"dtype": getattr(torch, options.dtype)} if options.dtype else {})},
        ).cpu()
    seconds = time.perf_counter() - start
    text = {"model": model.source, "settings": json.dumps({**settings, "seed": options.seed, "n": n})}
    for path in out.write(images, text):
        print(f"wrote {path}")
    print(f"{n} samples, {shown} {way}, NFE {count.rows / n:.0f}, {seconds:.1f} s")
    return 0


def _which(options: argparse.Namespace) -> str | Path:
    """The model asked for: the one named, else the newest run, else the pretrained one."""
    if options.run is not None:
        return options.run
    return runs.newest_run(options.runs) or DEFAULT_MODEL


class _Target:
    """Where samples go. Made before drawing, so that a name that cannot be written fails at once."""

    def __init__(self, out: str | None, n: int, model: TrainedModel, name: str):
        self.model = model
        self.n = n
        folder = Path(model.source).parent / runs.SAMPLES if Path(model.source).name == runs.MODEL else Path("samples")
        self.grid = folder / f"{model.facts.name}-{name}.png"
        self.images: Path | None = None
        if out is not None and Path(out).suffix == ".png":
            self.grid = Path(out)
        elif out is not None:
            self.images = Path(out)
            kinds = (".npz", ".zip", "")
            if self.images.suffix not in kinds:
                raise UserError(f"--out: found '{out}'; accepted: x.png, x.npz, x.zip or a folder")
            if self.images.suffix == "" and self.images.is_dir() and any(self.images.iterdir()):
                raise UserError(f"--out: the folder {out} is not empty; name a new one")
            if self.images.suffix == "" and self.images.exists() and not self.images.is_dir():
                raise UserError(f"--out: {out} is a file; name a folder, x.png, x.npz or x.zip")
        if model.facts.levels is None and self.images is not None and self.images.suffix != ".npz":
            raise UserError(f"--out: found '{out}'; samples of '{model.facts.name}' are points; accepted: x.npz, x.png")

    def write(self, x: Tensor, text: dict[str, str]) -> list[Path]:
        """Write the grid, and the images where they are asked for; returns the files."""
        from .data import load_toy

        toy = load_toy(self.model.facts.name) if self.model.facts.levels is None else None
        pictures.save_samples(self.grid, x[:256] if toy is None else x, toy, text)
        if self.images is None:
            return [self.grid]
        if toy is not None:
            self._write_npz({"points": x.numpy()})
        elif self.images.suffix == ".npz":
            pixels = pictures.to_bytes(x).permute(0, 2, 3, 1).numpy()
            self._write_npz({"images": pixels[..., 0] if pixels.shape[-1] == 1 else pixels})
        else:
            self._write_images(x, text)
        return [self.grid, self.images]

    def _write_npz(self, arrays: dict[str, np.ndarray]) -> None:
        assert self.images is not None
        with atomic.writer(self.images) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    def _write_images(self, x: Tensor, text: dict[str, str]) -> None:
        assert self.images is not None
        digits = max(6, len(str(self.n)))
        files = (
            (f"{i:0{digits}d}.png", pictures.encode(pictures.single(image), {**text, "index": str(i)}))
            for i, image in enumerate(x)
        )
        if self.images.suffix == ".zip":
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:  # PNGs are compressed already
                for name, data in files:
                    archive.writestr(name, data)
            atomic.write_bytes(self.images, buffer.getvalue())
            return
        # The folder appears whole: an interrupt leaves none that the next try would find "not empty".
        partial = self.images.with_name(f".{self.images.name}.{secrets.token_hex(4)}.tmp")
        try:
            for name, data in files:
                atomic.write_bytes(partial / name, data)
            if self.images.is_dir():
                self.images.rmdir()
            os.replace(partial, self.images)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
