"""Runs of a table and of digits that are conditioned on what a test says, and the commands on them."""

import numpy as np
from tiny_configs import DIGITS, TOY

from diffusion.commands.app import command, sample
from diffusion.commands.dispatch import main
from diffusion.commands.train.train import train

N = 60
QUICK = ("--steps", "2", "--sampler", "ddim", "--n", "4", "--device", "cpu")
EVALUATED = ("--tolerance", "0.1", "--wandb", "off", "--device", "cpu", "--images", "5")


def trained(*overrides):
    return command(train, list(overrides))


def run(*argv):
    return command(main, list(argv))


def sampled(*argv):
    return command(sample, list(argv))


def table(**more):
    """An .npz of vectors with a vector and a class, and the settings of a run on it."""
    draws = np.random.default_rng(0)
    c = draws.normal(5.0, 3.0, (N, 2))
    arrays = {"x": c @ [[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]] + draws.normal(size=(N, 3)), "c": c,
              "kind": draws.choice(["cat", "dog"], N), **more}  # fmt: skip
    np.savez("t.npz", **arrays)
    return ["--config", "table", *TOY, "data.path=t.npz", "name=t", "denoiser.condition=[c,kind]",
            "evaluation.enabled=false"]  # fmt: skip


def digits(*parts):
    return ["--config", "digits", *DIGITS, f"denoiser.condition=[{','.join(parts)}]", "evaluation.enabled=false",
            "trainer.steps=2"]  # fmt: skip
