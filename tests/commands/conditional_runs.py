"""Runs of a table and of digits that are conditioned on what a test says, and the commands on them."""

from pathlib import Path

import numpy as np
import torch
from by_ranks import by_ranks
from tiny_configs import DIGITS, TOY

from diffusion.commands.app import command, sample
from diffusion.commands.dispatch import main
from diffusion.commands.evaluate import measuring
from diffusion.commands.evaluate.given import given_to
from diffusion.commands.subjects import images_of, load_data_of, load_subject
from diffusion.commands.train.train import train
from diffusion.processes import Processes

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


def measured_alike(name, images, batch_size):
    """The ELBO of test images under their own conditions, by one process; two of them find the same to the bit."""

    def by(count, home):
        def one(rank):
            subject = load_subject(name, "runs", points=True)
            object.__setattr__(subject, "home", home)
            data = load_data_of(subject)
            rows, identity = images_of(data, "test", images)
            given = given_to(subject.model, data, rows, identity, None)
            question = measuring.question(subject, identity, "elbo", {"seed": 0, "evaluations": 4})
            processes = Processes(rank, count, rank, count)
            how = measuring.How(torch.device("cpu"), batch_size=batch_size, processes=processes)
            return measuring.measure(subject, rows, measuring.conditioned(question, given), how, given)

        return by_ranks(count, one)

    (alone,) = by(1, Path("one"))
    for evaluation in by(2, Path("two")):
        assert torch.equal(evaluation.estimate.log_prob, alone.estimate.log_prob)
        assert evaluation.protocol == alone.protocol
    return alone
