"""What a sampler costs beside the network: against a plain loop with one fused update a step.

    uv run python benchmarks/sampler_cost.py [--steps 20 50] [--rounds 15] [--out FILE]

The denoiser is trivial (it returns its input), so that all the time is the sampler's own. The plain loop is `x =
torch.add(x, x_hat, alpha=b)` for the same number of steps and the same denoiser: the least that any solver can do.
Figures are for an evaluation of the denoiser, with the sampler's own set-up in them. Rounds of all samplers
alternate, so that a busy machine slows each alike; ratios are medians over rounds. Dispatch is the time at batch 1,
where only Python and the launching of operations count, with the trivial denoiser and with a `NetworkDenoiser` around
a trivial network, whose conversions of v are then in it.

Adaptive solvers choose their own steps and are left out; stochastic ones pay for their noise, drawn by key.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion import samplers, schedules
from diffusion.denoisers import NetworkDenoiser
from diffusion.denoisers.denoiser import Denoiser
from diffusion.random import Noise
from diffusion.schedules import time_grid


class Trivial(Denoiser):
    """x_hat = x_t."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.schedule = schedules.VP()
        self.shape = shape

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return x_t


class TrivialNetwork(nn.Module):
    """f(x) = x."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        return x


def plain_loop(denoiser: Denoiser, x: Tensor, grid: Tensor) -> Tensor:
    """One fused update a step."""
    for t in grid[:-1]:
        x = torch.add(x, denoiser(x, t), alpha=0.01)
    return x


def seconds_a_step(methods: dict[str, Callable[[], object]], steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a step of each method in each round; the methods take turns."""
    found: dict[str, list[float]] = {name: [] for name in methods}
    for round_ in range(rounds + 1):  # the first one warms up
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            if round_:
                found[name].append((time.perf_counter() - start) / steps)
    return found


def measure(shape: tuple[int, ...], batch: int, steps: int, rounds: int, network: bool) -> dict[str, dict[str, float]]:
    """Microseconds an evaluation, and their ratio to the plain loop's, of every sampler of fixed steps."""
    schedule = schedules.VP()
    denoiser: Denoiser = NetworkDenoiser(TrivialNetwork(), schedule, "v", shape) if network else Trivial(shape)
    x = torch.randn(batch, *shape)
    grid = time_grid(schedule, steps)
    noise = Noise(0, torch.arange(batch), shape, torch.float32, torch.device("cpu"))
    methods: dict[str, Callable[[], object]] = {"plain loop": lambda: plain_loop(denoiser, x, grid)}
    evaluations = {"plain loop": 1}
    for name in samplers.names():
        sampler = samplers.build(name)
        if sampler.is_adaptive or sampler.evaluations_per_step is None:
            continue
        evaluations[name] = sampler.evaluations_per_step
        methods[name] = lambda sampler=sampler: sampler.sample(
            denoiser, x, grid, sampler.noise_along(noise, schedule, grid) if sampler.is_stochastic else None
        )
    with torch.no_grad():
        found = seconds_a_step(methods, steps, rounds)
    plain = found["plain loop"]
    return {
        name: {
            "microseconds_an_evaluation": 1e6 * statistics.median(times) / evaluations[name],
            "ratio_to_plain_loop": statistics.median(a / b for a, b in zip(times, plain, strict=True))
            / evaluations[name],
            "evaluations_a_step": evaluations[name],
        }
        for name, times in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = (("64x3x32x32", 64, False), ("batch 1", 1, False), ("batch 1, NetworkDenoiser", 1, True))
    found = {
        f"{case}, {steps} steps": measure((3, 32, 32), batch, steps, options.rounds, network)
        for case, batch, network in cases
        for steps in options.steps
    }
    for case, table in found.items():
        print(f"\n{case:36} {'us an evaluation':>16} {'ratio':>7} {'evaluations':>12}")
        for name, row in table.items():
            us, ratio = row["microseconds_an_evaluation"], row["ratio_to_plain_loop"]
            print(f"{name:36} {us:16.1f} {ratio:7.2f} {row['evaluations_a_step']:12.0f}")
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
