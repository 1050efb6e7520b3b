"""What training costs beside the network: images/s of `train.py`'s own steps against a plain PyTorch loop.

    uv run python benchmarks/training_speed.py [--config digits] [--steps 40] [--rounds 3] [--out FILE] [key=value ...]

Both train the network of a configuration at its batch size, on one device and with one precision. The plain loop is
what one would write by hand: random rows, times and noise from torch's generator, the error of the network's output,
the clipped gradient and AdamW, and nothing else. Ours is the Lightning module with all that a run has: keyed noise and
batches, the objective, the average of the weights, the gradient guard, metrics. Rounds of the two alternate, so that a
busy machine slows both; the first steps of each are left out. On a GPU each of float32 and bf16 is measured, as it is
and compiled; on a CPU float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from diffusion.config import Config, load_config
from diffusion.devices import choose_device, device_name
from diffusion.models.build import Data, build_data
from diffusion.training.fit import fit
from diffusion.training.modules.build import build_module

WARM_UP = 5


class Clock(L.Callback):
    """Seconds from the end of the warm-up to the end of training."""

    def __init__(self) -> None:
        self.start = self.seconds = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step in (WARM_UP, trainer.max_steps):
            wait()
            now = time.perf_counter()
            self.seconds = now - self.start
            self.start = now


def wait() -> None:
    """Until a GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ours(config: Config) -> float:
    """Seconds of the steps after the warm-up, of a run in a folder of its own."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        fit(config.replace(runs=folder), callbacks=[clock])
    return clock.seconds


def plain(config: Config, data: Data, device: torch.device) -> float:
    """The same of a plain loop."""
    denoiser = build_module(config, data.facts, {}).model.to(device)
    network: Any = denoiser.get_submodule("network")
    if config.trainer.compile is True:
        network.compile()
    assert data.images is not None
    images = data.images.train.to(device)
    schedule = denoiser.schedule
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.optimizer.lr, betas=config.optimizer.betas)
    precision = torch.autocast(device.type, torch.bfloat16, enabled=config.trainer.precision == "bf16")

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            x = images[torch.randint(len(images), (config.trainer.batch_size,), device=device)]
            x = x.float() / (0.5 * (data.images.levels - 1)) - 1.0
            yield x, torch.rand(len(x), device=device), torch.randn_like(x)

    start = 0.0
    for step, (x, t, eps) in zip(range(config.trainer.steps), batches(), strict=False):
        alpha, sigma = (part.float().reshape(-1, 1, 1, 1) for part in schedule(t.clamp(1e-4, 1.0 - 1e-4)))
        optimizer.zero_grad()
        with precision:
            output = network(alpha * x + sigma * eps, 5.0 - 10.0 * t, None)
        (output - (alpha * eps - sigma * x)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step + 1 == WARM_UP:
            wait()
            start = time.perf_counter()
    wait()
    return time.perf_counter() - start


def settings(device: torch.device) -> dict[str, list[str]]:
    """What is measured on a device: names, and overrides of the configuration."""
    if device.type == "cpu":
        return {"float32": ["trainer.precision=32", "trainer.compile=false"]}
    return {
        f"{precision}{', compiled' if compiled else ''}": [
            f"trainer.precision={'32' if precision == 'float32' else precision}",
            f"trainer.compile={str(compiled).lower()}",
        ]
        for precision in ("float32", "bf16")
        for compiled in (False, True)
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="digits", help="a diffusion model of images without labels")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the configuration, e.g. data.root=...")
    options = parser.parse_args()
    quiet = ["logging.wandb=off", "trainer.validate_every=0", "trainer.sample_every=0", "denoiser.conditional=false"]
    quiet += [f"trainer.steps={WARM_UP + options.steps}", f"trainer.checkpoint_every={10**9}"]
    base = load_config(options.config, [*options.overrides, *quiet])
    device = choose_device(base.device)
    data = build_data(base)
    found = {}
    print(f"{options.config} on {device_name(device)}, images/s:  {'plain loop':>12}{'train.py':>12}{'ratio':>8}")
    for name, overrides in settings(device).items():
        config = load_config(options.config, [*options.overrides, *quiet, *overrides])
        seconds = [(plain(config, data, device), ours(config)) for _ in range(options.rounds)]
        images = options.steps * config.trainer.batch_size
        rates = [images / statistics.median(column) for column in zip(*seconds, strict=True)]
        ratio = statistics.median(b / a for a, b in seconds)
        found[name] = {"plain_loop": rates[0], "train_py": rates[1], "seconds_ratio": ratio}
        print(f"{name:40}{rates[0]:12.0f}{rates[1]:12.0f}{ratio:8.2f}", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
