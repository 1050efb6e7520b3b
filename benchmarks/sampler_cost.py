"""What a sampler costs beside the network: against a plain loop with one fused update a step.

    uv run python benchmarks/sampler_cost.py [--steps 20 50] [--rounds 15] [--out FILE]

The denoiser is trivial (it gives the same tensor at every step), so that all the time is the sampler's own. The plain
loop is `x = torch.add(x, x_hat, alpha=b)` for the same number of steps and the same denoiser: the least that any solver
can do. That of a sampler that draws noise also has `x.add_(torch.randn_like(x), alpha=c)`: what a solver pays whose
noise is of no seed, sample or path. Figures are for an evaluation of the denoiser, with the sampler's own set-up in
them. Rounds of all samplers alternate, so that a busy machine slows each alike; ratios are medians over rounds.
Dispatch is the time at batch 1 of 1x8x8, where only Python and the launching of operations count, with the trivial
denoiser and with a `NetworkDenoiser` around a trivial network, whose conversions of v are then in it.

Adaptive solvers choose their own steps and are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion import samplers, schedules
from diffusion.denoisers import NetworkDenoiser
from diffusion.denoisers.denoiser import Denoiser
from diffusion.numerics.random import Noise
from diffusion.schedules import time_grid


class Trivial(Denoiser):
    """The same x_hat at every step: as with a network, a tensor of its own, but one that costs nothing."""

    def __init__(self, x_hat: Tensor):
        super().__init__()
        self.schedule = schedules.VP()
        self.shape = tuple(x_hat.shape[1:])
        self.x_hat = x_hat

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.x_hat


class TrivialNetwork(nn.Module):
    """f(x) = x."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        return x


def plain_loop(denoiser: Denoiser, x: Tensor, grid: Tensor, noisy: bool) -> Tensor:
    """One fused update a step, and noise without a key."""
    for t in grid[:-1]:
        x = torch.add(x, denoiser(x, t), alpha=0.01)
        if noisy:
            x.add_(torch.randn_like(x), alpha=0.01)
    return x


def seconds(methods: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each method in each round; the methods take turns."""
    found: dict[str, list[float]] = {name: [] for name in methods}
    for round_ in range(rounds + 1):  # the first one warms up
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            if round_:
                found[name].append(time.perf_counter() - start)
    return found


def measure(batch: int, shape: tuple[int, ...], network: bool, steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds an evaluation, and their ratio to the plain loop's, of every sampler with steps of a grid."""
    schedule = schedules.VP()
    x, x_hat = torch.randn(2, batch, *shape)
    denoiser = NetworkDenoiser(TrivialNetwork(), schedule, "v", shape) if network else Trivial(x_hat)
    grid = time_grid(schedule, steps)
    noise = Noise(0, torch.arange(batch), shape, torch.float32, torch.device("cpu"))
    plain = {False: "plain loop", True: "plain loop with noise"}
    methods: dict[str, Callable[[], object]] = {
        name: partial(plain_loop, denoiser, x, grid, noisy) for noisy, name in plain.items()
    }
    against, evaluations = dict.fromkeys(methods, ""), dict.fromkeys(methods, steps)
    for name in samplers.names():
        sampler = samplers.build(name)
        if sampler.is_adaptive or sampler.evaluations_per_step is None:
            continue
        against[name] = plain[sampler.is_stochastic]
        evaluations[name] = (steps - 1) * sampler.evaluations_per_step + sampler.starting_evaluations + 1
        methods[name] = lambda sampler=sampler: sampler.sample(
            denoiser, x, grid, sampler.noise_along(noise, schedule, grid) if sampler.is_stochastic else None
        )
    with torch.no_grad():
        found = seconds(methods, rounds)
    return {
        name: {
            "microseconds_an_evaluation": 1e6 * statistics.median(times) / evaluations[name],
            "ratio_to_plain_loop": statistics.median(
                a / b for a, b in zip(times, found[against[name] or name], strict=True)
            )
            * steps
            / evaluations[name],
            "evaluations": evaluations[name],
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
    cases = {
        "64x3x32x32": (64, (3, 32, 32), False),
        "1x3x32x32": (1, (3, 32, 32), False),
        "dispatch": (1, (1, 8, 8), False),
        "dispatch, NetworkDenoiser": (1, (1, 8, 8), True),
    }
    found = {
        f"{name}, {steps} steps": measure(*case, steps, options.rounds)
        for name, case in cases.items()
        for steps in options.steps
    }
    for case, table in found.items():
        print(f"\n{case:36} {'us an evaluation':>16} {'ratio':>7} {'evaluations':>12}")
        for name, row in table.items():
            us, ratio = row["microseconds_an_evaluation"], row["ratio_to_plain_loop"]
            print(f"{name:36} {us:16.1f} {ratio:7.2f} {row['evaluations']:12.0f}")
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
