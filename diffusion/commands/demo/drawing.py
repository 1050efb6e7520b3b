"""What the page draws: a command line of sample.py, carried out here, with its path and its costs.

The page makes nothing itself. It writes a command line, which is read, checked and drawn by what reads, checks and
draws those of sample.py; so the command that is shown draws the same picture, and what sample.py refuses, the page
refuses in the same words.
"""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...data import pictures
from ...devices import choose_device
from ...errors import UserError
from ...models import DiffusionModel, TrainedModel
from ...models.load import load_named
from ...numerics.random import Noise
from ...storage import runs
from ...storage.paths import file_name
from ..options import RUNS, in_flags
from ..preflight import check_sample
from ..sample.arguments import parse_sample_arguments
from ..sample.control import controlled
from ..sample.encode import Encoded, encoded
from ..sample.files import SampleFiles
from ..sample.record import SampleRecord
from ..sample.sample import ANIMATED, requested

COMMAND = "python -m diffusion sample"
MOST = 100  # samples at a time


@dataclass(frozen=True)
class Picture:
    """A picture to look at and to keep.

    Args:
        png: Its file, with how it was made in its metadata.
        name: A name for that file.
    """

    png: bytes
    name: str


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples, how they came about and what they cost.

    Args:
        command: What draws them again.
        samples: In [-1, 1] for images, (n, *shape).
        picture: What sample.py writes.
        nfe: Evaluations per sample.
        seconds: Wall time.
        log_snrs: The noise levels of the path, from noise to data, inf for clean data; none for other families.
        frames: x_t and E[x | x_t] at each of them, as PNGs; none for other data than images.
    """

    command: str
    samples: Tensor
    picture: Picture
    nfe: float
    seconds: float
    log_snrs: list[float] = field(default_factory=list)
    frames: list[tuple[bytes, bytes]] = field(default_factory=list)


class Models:
    """The models that the page has loaded, by name.

    Args:
        runs_dir: Where runs are looked up.
        device: As `--device`.
    """

    def __init__(self, runs_dir: str, device: str):
        self.runs_dir, self.device = runs_dir, device
        self._loaded: dict[tuple[str, str], TrainedModel] = {}

    def __getitem__(self, name: str) -> TrainedModel:
        """The model of this name, loaded once for each content of its file."""
        found = runs.resolve_model(name, self.runs_dir)
        key = name, runs.file_digest(found) if found.is_file() else ""
        if key not in self._loaded:
            self._loaded[key] = load_named(name, choose_device(self.device), self.runs_dir)
        return self._loaded[key]

    def arguments(self, name: str) -> list[str]:
        """The beginning of every command line."""
        where = [] if self.runs_dir == RUNS else ["--runs", self.runs_dir]
        device = [] if self.device == "auto" else ["--device", self.device]
        return ["--run", name, *where, *device]


def read(models: Models, argv: Sequence[str]) -> tuple[argparse.Namespace, TrainedModel, SampleRecord]:
    """The options of a command line of sample.py, its model, and the record of what it draws."""
    options = parse_sample_arguments(argv)
    with in_flags(options):
        check_sample(options)
        if (options.n or 1) > MOST:
            raise UserError(f"--n: found {options.n}; the page draws up to {MOST} at a time, sample.py any number")
        return options, *requested(models[options.run], options, choose_device(options.device))


def draw(models: Models, argv: Sequence[str]) -> Drawn:
    """Carry out a command line of sample.py.

    Args:
        models: The models.
        argv: The command line, without `--out`.
    """
    options, model, record = read(models, argv)
    n = options.n or model.config.sampling.n
    with in_flags(options):
        controlled_model, drawing = controlled(model, record, options.runs)
    path: list[tuple[float, Tensor, Tensor | None]] = []
    watched: dict[str, Any] = {}
    if isinstance(controlled_model, DiffusionModel):
        watched["callback"] = lambda step, t, x, x_hat: path.append((t, x[:ANIMATED].cpu(), _rows(x_hat)))
    start = time.perf_counter()
    with in_flags(options), controlled_model.counted() as count:
        samples = controlled_model.sample(n, record.seed, batch_size=n, **watched, **drawing.settings).cpu()
    seconds = time.perf_counter() - start
    picture = _picture(model, record, samples)
    log_snrs, frames = _path(controlled_model, record, path)
    return Drawn(command(argv), samples, picture, count.rows / n, seconds, log_snrs, frames)


def encode_image(models: Models, argv: Sequence[str]) -> tuple[str, Encoded]:
    """Carry out a command line of sample.py with `--encode`, without its file; and the command."""
    options, model, record = read(models, argv)
    with in_flags(options):
        return command(argv), encoded(model, record, options.encode)


def command(argv: Sequence[str]) -> str:
    """The command line as one types it."""
    return f"{COMMAND} {shlex.join(argv)}"


def png_of(image: Image.Image, about: Any) -> bytes:
    """A picture that is no plain draw as a PNG, with how it was made as JSON."""
    return pictures.encode(image, {"diffusion-demo": json.dumps(about, default=repr)})


def _rows(x: Tensor | None) -> Tensor | None:
    return None if x is None else x[:ANIMATED].cpu()


def _picture(model: TrainedModel, record: SampleRecord, samples: Tensor) -> Picture:
    """The picture as sample.py writes it."""
    first = next(iter(record.settings.values()))
    name = f"{file_name(model.facts.name)}-{first}-seed{record.seed}.png"
    with tempfile.TemporaryDirectory() as folder:
        files = SampleFiles(str(Path(folder) / name), Path(name), len(samples), record, model.facts)
        with files:
            files.keep(0, samples)
            (written,) = files.finish()
        return Picture(written.read_bytes(), name)


def _path(
    model: TrainedModel, record: SampleRecord, path: Sequence[tuple[float, Tensor, Tensor | None]]
) -> tuple[list[float], list[tuple[bytes, bytes]]]:
    """Noise levels and pictures of a path: pure noise first, unless it begins at an image; x_hat that of the step."""
    if not path or not isinstance(model, DiffusionModel):
        return [], []
    schedule = model.denoiser.schedule
    times = torch.tensor([t for t, *_ in path], dtype=torch.float64)
    log_snrs = [float("inf") if t == 0 else float(schedule.log_snr(t)) for t in times.clamp(max=schedule.t_max)]
    states, x_hats = [x.float() for _, x, _ in path], [x if x_hat is None else x_hat for _, x, x_hat in path]
    if "edit" not in record.settings:
        noise = Noise(record.seed, torch.arange(len(states[0])), model.facts.shape).initial()
        log_snrs, states = [schedule.log_snr_ends[0], *log_snrs], [noise, *states]
        x_hats = [torch.full_like(noise, -1.0), *x_hats]  # before the first evaluation there is no estimate
    if len(model.facts.shape) != 3 or model.facts.levels is None:
        return log_snrs, []
    halves = pictures.path_halves(states, [x.float() for x in x_hats])
    return log_snrs, [(pictures.encode(state), pictures.encode(estimate)) for state, estimate in halves]


def difference(models: Models, argv: tuple[Sequence[str], Sequence[str]]) -> tuple[Drawn, Drawn, Picture, float]:
    """Two draws from the same noise, |a - b| as a picture (white is the largest), and its RMS in levels of 255.

    Raises:
        UserError: As sample.py, and for data that are no images.
    """
    a, b = (draw(models, one) for one in argv)
    if a.samples.ndim != 4:
        raise UserError("compare: is for images; this model draws other data")
    gap = (a.samples - b.samples).abs()
    shown = pictures.grid(2.0 * gap / gap.max().clamp(min=1e-6) - 1.0)
    about = {"difference of": [a.command, b.command], "white is, of 255": 127.5 * float(gap.max())}
    rms = 127.5 * float(gap.square().mean().sqrt())
    return a, b, Picture(png_of(shown, about), "difference.png"), rms


def with_settings(argv: Sequence[str], **settings: Any) -> list[str]:
    """A command line with further options; those that are None are left out."""
    more = [(f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items() if value is not None]
    return [*argv, *(word for pair in more for word in pair)]
