"""Super-resolution and inpainting of digits: a model trained on the condition beside methods that need no training.

    python benchmarks/conditions.py [FOLDER]

Trains two small models in FOLDER (runs/ by default; those that are there are taken), one given the 4x4 means of the
8x8 image, one given the image outside of a rectangle at random. Then 20 test images are restored 8 times each, from
their means and without their inner 4x4, by these and, from the shipped model that knows no condition, by moment
matching, DPS and pseudo-inverse guidance. All are drawn from the same noises, 160 samples at a time.

    PSNR          of a sample, in dB, over what was hidden
    mean error    root mean square of E[x | y], the mean of the samples, over what was hidden; the part that is due to
                  there being 8 of them, their variance / 8, is taken off
    diversity     standard deviation of the samples of one observation, over what was hidden
    spread/error  diversity over mean error: 1 for draws from the posterior of the data
    misfit        root mean square of A x - y, in grey levels
    +-            one standard error over the 20 images

A sample of an exact posterior is off by sqrt(2) times what its mean is off by: no method has both the least mean error
and the best PSNR with all of the diversity.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import diffusion
from diffusion.data import load_images
from diffusion.denoisers.inverse_problems import METHODS, Downsample, LinearOperator, Mask, Observation
from diffusion.likelihood import Dequantizer
from diffusion.models import DiffusionModel
from diffusion.models.conditions import masked
from diffusion.numerics.random import fixed_subset

IMAGES, EACH = 20, 8
PARTS = {"super-resolution": "downsample:2", "inpainting": "mask"}
# A fifth of the work of configs/digits.yaml a step.
NETWORK = {"base_channels": 16, "blocks": 1}
STEPS = 1500


def trained(part: str, folder: Path) -> tuple[DiffusionModel, str]:
    """A model given this part, trained now or found in the folder, and what its training cost."""
    name = f"digits-{part.partition(':')[0]}"
    run = folder / f"{name}-0001"
    if not (run / "model.safetensors").is_file():
        diffusion.train(
            "digits", name=name, runs=str(folder), device="cpu", network=NETWORK, denoiser={"condition": [part]},
            trainer={"steps": STEPS, "validate_every": 0, "sample_every": 0}, logging={"wandb": "off"},
        )  # fmt: skip
    model = diffusion.load(run)
    assert isinstance(model, DiffusionModel)
    cost = json.loads((run / "training.json").read_text())
    return model, f"{cost['images']:,} images, {cost['cpu_seconds']:.0f} CPU seconds"


def measure(x: Tensor, truth: Tensor, hidden: Tensor, operator: LinearOperator, levels: int) -> dict[str, str]:
    """The figures of samples (IMAGES * EACH, 1, 8, 8), each truth repeated, over the pixels that are hidden."""
    each = x.double().reshape(IMAGES, EACH, -1)[..., hidden.flatten()]
    clean = truth.double().reshape(IMAGES, EACH, -1)[:, 0][..., hidden.flatten()]
    variance = each.var(1).mean(1)  # of each image
    of_sample = (each - clean[:, None]).square().mean((1, 2))
    of_mean = (each.mean(1) - clean).square().mean(1) - variance / EACH
    error, diversity = float(of_mean.mean().clamp(min=0).sqrt()), float(variance.mean().sqrt())
    misfit = (operator(x.double()) - operator(truth.double())).square().mean().sqrt()

    def sem(values: Tensor) -> float:
        return float(values.std()) / math.sqrt(IMAGES)

    decibels = 10.0 / math.log(10.0) * sem(of_sample) / float(of_sample.mean())
    return {
        "PSNR": f"{10.0 * math.log10(4.0 / float(of_sample.mean())):.2f} +- {decibels:.2f}",
        "mean error": f"{error:.3f} +- {sem(of_mean) / (2.0 * error):.3f}",
        "diversity": f"{diversity:.3f}",
        "spread/error": f"{diversity / error:.2f} +- {diversity * sem(of_mean) / (2.0 * error**3):.2f}",
        "misfit": f"{float(misfit) * levels / 2.0:.2f}",
    }


def main(folder: Path) -> None:
    """Print a line for each problem and method."""
    torch.set_num_threads(1)
    data = load_images("digits")
    dequantizer = Dequantizer(data.levels)
    truth = dequantizer.center(data.test[fixed_subset(len(data.test), IMAGES)]).float().repeat_interleave(EACH, 0)
    free = diffusion.load("pretrained:digits")
    assert isinstance(free, DiffusionModel)
    inner = torch.zeros(1, 8, 8, dtype=torch.bool)
    inner[:, 2:6, 2:6] = True
    rounding = dequantizer.width / math.sqrt(12.0)
    for problem, part in PARTS.items():
        operator = Downsample(2) if problem == "super-resolution" else Mask(~inner)
        hidden = torch.ones_like(inner) if problem == "super-resolution" else inner
        y = operator(truth)
        model, cost = trained(part, folder)
        print(f"{problem}: {part} trained on {cost}; {IMAGES} test images, {EACH} samples each", flush=True)
        given = y if problem == "super-resolution" else masked(truth, (~inner).float()[None])
        draws = {"trained, abm, 20 steps": (model, {"cond": {part: given}, "sampler": "abm", "steps": 20})}
        draws["trained, ancestral, 50 steps"] = (model, {"cond": {part: given}, "sampler": "ancestral", "steps": 50})
        for name, method in METHODS.items():
            around = free.around(method(free.denoiser, Observation(operator, y, rounding)))
            draws[f"{name}, ancestral, 50 steps"] = (around, {"sampler": "ancestral", "steps": 50, "grid": "log-snr"})
        for name, (drawn_by, options) in draws.items():
            with drawn_by.counted() as count:
                start = time.process_time()
                x = drawn_by.sample(len(truth), seed=0, batch_size=len(truth), **options)
                seconds = (time.process_time() - start) / len(truth)
            found = measure(x, truth, hidden, operator, data.levels)
            figures = ", ".join(f"{key} {value}" for key, value in found.items())
            print(f"  {name}: {figures}, NFE {count.rows / len(truth):.0f}, {seconds:.3f} CPU s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
