"""What a GPU makes of this code, in one command of a few minutes: speed, memory, and a training run with its curve.

    uv run python benchmarks/gpu.py [--config cifar] [--minutes 12] [--batches 128 512] [--out gpu] [key=value ...]

In this order, each written to OUT/gpu.md and OUT/gpu.json as soon as it is known, so that what was measured stays if
the time is up:

1. the card: its name, memory, and the rate of an 8192 x 8192 x 8192 product in bf16, the peak that shares refer to;
2. training: images/s of `train.py`'s own steps in bf16, compiled, by batch size; floating-point operations as torch
   counts them in the network (three times the forward pass), their share of the peak; memory;
3. sampling: images/s of the default sampler by batch;
4. likelihood: images/s of the ELBO and of the probability-flow ODE;
5. the configuration, trained for the minutes left, by `train.py` itself: validation loss by step and seconds, a grid of
   samples, the ELBO of some test images.

On a machine without a GPU it runs too, in float32, for a check of itself: give it a small network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from training_speed import WARM_UP, ours, wait

import diffusion
from diffusion.commands.table import Table
from diffusion.config import Config, load_config
from diffusion.data.pictures import save_samples
from diffusion.denoisers.evaluations import count_evaluations
from diffusion.devices import choose_compile, choose_device, choose_precision, device_name
from diffusion.models.build import Data, build_data, build_denoiser
from diffusion.models.diffusion_model import DiffusionModel
from diffusion.storage import atomic
from diffusion.training.logs.metrics import read_metrics

Row = dict[str, object]
QUIET = ("logging.wandb=off", "evaluation.enabled=false", "trainer.sample_every=0")
# Of a run's minutes: what its start, with compilation, and its end take.
MARGIN_SECONDS = 60.0


class Report:
    """What has been measured, written after each part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: dict[str, list[Row]] = {}

    def add(self, part: str, rows: Sequence[Row]) -> None:
        """Add a part, print it and write all there is."""
        self.parts[part] = list(rows)
        print(f"\n{part}\n{Table.of(rows).markdown()}", flush=True)
        text = "\n\n".join(f"## {name}\n\n{Table.of(found).markdown()}" for name, found in self.parts.items())
        atomic.write_text(self.folder / "gpu.md", text + "\n")
        atomic.write_text(self.folder / "gpu.json", json.dumps(self.parts, indent=1) + "\n")


def seconds_of(work: Callable[[], object]) -> tuple[float, float | None]:
    """Seconds of some work, the device's included, and the most GiB of the GPU that it held."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start, gibibytes()


def gibibytes() -> float | None:
    """The most that torch held of the GPU since it was last asked; None without one."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None


def peak(device: torch.device, side: int, repeats: int = 20) -> float:
    """Operations a second of a square bf16 product of normals (float32 on a CPU)."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    a @ b
    seconds, _ = seconds_of(lambda: [a @ b for _ in range(repeats)])
    return repeats * 2 * side**3 / seconds


def operations(config: Config, data: Data, device: torch.device) -> float:
    """Floating-point operations of the network on one image: a multiplication and an addition are two."""
    denoiser = build_denoiser(config, data.facts).to(device)
    x, level = torch.zeros(4, *data.facts.shape, device=device), torch.zeros(4, device=device)
    labels = torch.zeros(4, dtype=torch.long, device=device) if denoiser.num_classes else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        denoiser.network(x, level, labels)
    return counter.get_total_flops() / len(x)


def training(
    config: Config, data: Data, device: torch.device, batches: Sequence[int], steps: int, best: float
) -> list[Row]:
    """Images/s of `train.py`'s steps, by batch size, and their share of the `best` rate; a batch may be too large."""
    work, rows = operations(config, data, device), []
    for batch in batches:
        trainer = config.trainer.replace(
            batch_size=batch, steps=WARM_UP + steps, validate_every=0, checkpoint_every=10**9
        )
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            rate = steps * batch / ours(config.replace(trainer=trainer))
        except torch.OutOfMemoryError:
            print(f"batch {batch}: more than the memory of {device_name(device)}; left out")
            continue
        rows.append(
            {
                "batch": batch,
                "precision": choose_precision(config.trainer.precision, device),
                "compiled": choose_compile(config.trainer.compile, device),
                "images/s": round(rate, 1),
                "GFLOP an image, forward": round(work / 1e9, 3),
                "TFLOP/s": round(3 * work * rate / 1e12, 3),
                "share of the peak": round(3 * work * rate / best, 3),
                "GiB": gibibytes(),
            }
        )
    return rows


def sampling(model: DiffusionModel, batches: Sequence[int]) -> list[Row]:
    """Images/s of the default sampler, by batch."""
    rows = []
    for batch in batches:
        model.sample(batch, batch_size=batch)  # the first call chooses algorithms
        with count_evaluations(model.denoiser) as count:
            seconds, memory = seconds_of(lambda batch=batch: model.sample(batch, batch_size=batch))
        nfe = count.rows // batch
        rows.append(
            {
                "batch": batch,
                "NFE": nfe,
                "images/s": round(batch / seconds, 1),
                "milliseconds an evaluation": round(1e3 * seconds / nfe, 2),
                "GiB": memory,
            }
        )
    return rows


def likelihood(model: DiffusionModel, images: torch.Tensor) -> list[Row]:
    """Images/s of the two likelihoods of a denoiser."""
    rows = []
    for method, options in (("elbo", {"evaluations": 8}), ("ode", {"tolerance": 1e-3})):
        model.log_likelihood(images[:2], method=method, **options)
        seconds, memory = seconds_of(
            lambda method=method, options=options: model.log_likelihood(images, method=method, **options)
        )
        options_text = ", ".join(f"{name} {value:g}" for name, value in options.items())
        rows.append(
            {
                "method": f"{method}, {options_text}",
                "images": len(images),
                "images/s": round(len(images) / seconds, 2),
                "GiB": memory,
            }
        )
    return rows


def curve(run: Path) -> list[Row]:
    """Validation loss by step."""
    rows = []
    for row in read_metrics(run / "metrics.jsonl"):
        if "validation/loss" in row:
            rows.append({"step": int(row["step"]) + 1, "validation loss": round(row["validation/loss"], 5)})
    return rows


def train(config_name: str, settings: Sequence[str], steps: int, folder: Path) -> Path:
    """Train by `train.py`; the run folder."""
    script = Path(__file__).resolve().parent.parent / "train.py"
    every = max(1, steps // 10)
    command = [
        sys.executable, str(script), "--config", config_name, *settings, *QUIET, f"runs={folder}", "name=gpu",
        f"trainer.steps={steps}", f"trainer.validate_every={every}", f"trainer.checkpoint_every={every}",
    ]  # fmt: skip
    print(f"$ {' '.join(command)}", flush=True)
    subprocess.run(command, check=True)
    return max(folder.glob("gpu-*"), key=lambda run: run.stat().st_mtime)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, part by part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="cifar", help="a diffusion model of images (default: cifar)")
    parser.add_argument("--minutes", type=float, default=12.0, help="for all of it (default: 12)")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512], help="of training (default: 128 512)")
    parser.add_argument("--sampling", type=int, nargs="+", default=[1, 16, 256], help="batches (default: 1 16 256)")
    parser.add_argument("--images", type=int, default=64, help="of the test set, for likelihoods (default: 64)")
    parser.add_argument("--steps", type=int, default=30, help="timed steps of training a batch size (default: 30)")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder of the report (default: gpu)")
    options, settings = parser.parse_known_args(argv)
    if wrong := [text for text in settings if "=" not in text]:
        parser.error(f"found {wrong[0]}; settings are key=value")
    end = time.monotonic() + 60.0 * options.minutes
    config = load_config(options.config, [*settings, *QUIET])
    device, data = choose_device(config.device), build_data(config)
    if data.images is None:
        parser.error(f"--config: found {options.config}, which learns points; images are needed")
    options.out.mkdir(parents=True, exist_ok=True)
    report = Report(options.out)
    best = peak(device, 8192 if device.type == "cuda" else 1024)
    report.add("Machine", [machine(device, best)])
    speeds = training(config, data, device, options.batches, options.steps, best)
    report.add("Training", speeds)

    fresh = DiffusionModel(build_denoiser(config, data.facts).eval().to(device), config, data.facts)
    report.add("Sampling", sampling(fresh, options.sampling))
    test = data.images.test[: options.images].to(device)
    report.add("Likelihood", likelihood(fresh, test))

    left = end - time.monotonic() - MARGIN_SECONDS
    rates: Mapping[Any, Any] = {row["batch"]: row["images/s"] for row in speeds}
    batch = config.trainer.batch_size
    rate = rates.get(batch) or (speeds[0]["images/s"] if speeds else 0)
    steps = int(left * float(str(rate)) / batch)
    if steps < 10:
        print(f"{left:.0f} s are left: too little for a training run")
        return 0
    start = time.monotonic()
    run = train(options.config, settings, steps, options.out / "runs")
    seconds = time.monotonic() - start
    report.add("Curve", curve(run))
    model = diffusion.load(run, device)
    save_samples(options.out / "samples.png", model.sample(64))
    bound = model.log_likelihood(test, method="elbo").mean()
    report.add(
        "Trained",
        [
            {
                "steps": steps,
                "images seen": steps * batch,
                "seconds, start and end included": round(seconds),
                f"ELBO of {len(test)} test images, bits/dim": f"{bound.mean:.3f} ({bound.low:.3f} to {bound.high:.3f})",
            }
        ],
    )
    return 0


def machine(device: torch.device, best: float) -> Row:
    """The card, and the rate of its bf16 product."""
    cuda = device.type == "cuda"
    memory = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1) if cuda else None
    return {
        "device": device_name(device),
        "GiB": memory,
        "torch": torch.__version__,
        "peak TFLOP/s": round(best / 1e12, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
