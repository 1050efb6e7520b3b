"""Seconds of a probability-flow likelihood, against the recipe in common use, at equal error on one network.

    uv run python benchmarks/likelihood_speed.py [--model pretrained:digits] [--images 64] [--rounds 5] [--out FILE]

The common recipe is SciPy's RK45 at 1e-5 over the flattened batch, in the schedule's own time, with one network call
for the drift and another, with its vector-Jacobian product, for the divergence (Song et al. 2021, arXiv 2011.13456,
app. D.2, as most code since has it). Ours is `diffusion.likelihood` with its defaults for images.

Both see the same dequantised points and the same probe, and are held against the same truth: the exact trace, one
vector-Jacobian product a dimension, at tolerance 1e-6. What is compared is the time to equal error: the variance of a
mean falls with the work put in, so a method whose root mean square error is r times larger counts r^2 times its
seconds. Rounds of the two alternate, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import diffusion
from diffusion.data import load_images
from diffusion.denoisers.denoiser import Denoiser
from diffusion.denoisers.evaluations import count_evaluations
from diffusion.likelihood.dequantization import Dequantizer
from diffusion.likelihood.flow_density import Solve, flow_log_density
from diffusion.numerics import random

RECIPE_TOLERANCE = 1e-5
TRUTH = Solve(trace="exact", tolerance=1e-5)


def recipe(denoiser: Denoiser, x: Tensor, probe: Tensor, tolerance: float = RECIPE_TOLERANCE) -> Tensor:
    """log p(x) in nats, float64 (B,), by SciPy's RK45 with two network calls an evaluation."""
    schedule, shape, dims = denoiser.schedule, x.shape, x[0].numel()

    def velocity(x: Tensor, t: float) -> Tensor:
        return denoiser.velocity(x, torch.tensor(t, dtype=torch.float64))

    def field(t: float, state: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(state[: len(state) - shape[0]]).float().reshape(shape)
        with torch.no_grad():
            drift = velocity(x, t)
        with torch.enable_grad():
            x.requires_grad_(True)
            gradient = torch.autograd.grad((velocity(x, t) * probe).sum(), x)[0]
        divergence = (gradient * probe).flatten(1).sum(1)
        return np.concatenate([drift.double().numpy().ravel(), divergence.double().numpy()])

    start = np.concatenate([x.double().numpy().ravel(), np.zeros(shape[0])])
    solution = solve_ivp(
        field, (schedule.t_min, schedule.t_max), start, method="RK45", rtol=tolerance, atol=tolerance
    ).y[:, -1]
    x_1 = torch.from_numpy(solution[: -shape[0]]).reshape(shape[0], -1) / schedule.prior_std
    log_prior = -0.5 * (x_1.square().sum(1) + dims * math.log(2.0 * math.pi)) - dims * math.log(schedule.prior_std)
    return log_prior + torch.from_numpy(solution[-shape[0] :])


def ours(denoiser: Denoiser, x: Tensor, probe: Tensor, tolerance: float) -> Tensor:
    """log p(x) in nats, float64 (B,), by the package."""
    solve = Solve(trace="hutchinson", tolerance=tolerance)
    return flow_log_density(denoiser, x, solve, probe.double()[:, None])[:, 0]


def measure(model: str, images: int, rounds: int, tolerance: float, truth_images: int) -> dict[str, object]:
    """Time both methods in turn, and their errors; a summary as plain values."""
    loaded = diffusion.load(model)
    denoiser = loaded.denoiser
    test = load_images(loaded.facts.name).test
    keys = random.fixed_order(len(test))[:images]
    data = test[keys]
    dequantizer = Dequantizer(loaded.facts.levels)
    x = dequantizer.dequantize(data, random.uniform(0, keys, 0, data.shape[1:], random.STREAM_DEQUANTIZE)).float()
    bits = x[0].numel() * math.log(2.0)
    truth = flow_log_density(denoiser, x[:truth_images], TRUTH)[:, 0]

    methods = {"recipe": lambda v: recipe(denoiser, x, v), "ours": lambda v: ours(denoiser, x, v, tolerance)}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    errors: dict[str, list[Tensor]] = {name: [] for name in methods}
    calls: dict[str, float] = {}
    for round_ in range(rounds + 1):  # the first one warms up
        probe = random.rademacher(1, keys, round_, x.shape[1:], random.STREAM_PROBE, torch.float32)
        for name, method in methods.items():
            with count_evaluations(denoiser) as counter:
                start = time.perf_counter()
                value = method(probe)
                elapsed = time.perf_counter() - start
            if round_:
                seconds[name].append(elapsed)
                errors[name].append((value[:truth_images] - truth) / bits)
                calls[name] = counter.rows / len(x)
            print(f"round {round_} {name}: {elapsed:.1f} s", flush=True)
    rms = {name: float(torch.cat(some).square().mean().sqrt()) for name, some in errors.items()}
    excess = max(1.0, rms["ours"] / rms["recipe"]) ** 2
    ratios = [a / b * excess for a, b in zip(seconds["ours"], seconds["recipe"], strict=True)]
    return {
        "model": model,
        "images": len(x),
        "tolerance": tolerance,
        "network_calls_an_image": calls,
        "seconds": {name: statistics.median(some) for name, some in seconds.items()},
        "rms_error_bits_per_dim": rms,
        "ratio_at_equal_error": statistics.median(ratios),
        "ratios": ratios,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pretrained:digits")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--truth-images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="ours; the default of `log_likelihood`")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    options = parser.parse_args()
    found = measure(options.model, options.images, options.rounds, options.tolerance, options.truth_images)
    text = json.dumps(found, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
