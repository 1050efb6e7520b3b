"""Evaluations of made-up figures, for tests of what is said of them."""

import torch

from diffusion.commands.records import Evaluation, Protocol
from diffusion.likelihood import Estimate

HOSTILE = '<script>alert("1")</script>|[red]$x$'


def estimate(values, kind="lower bound", indices=None, **protocol):
    log_prob = torch.as_tensor(values, dtype=torch.float64)
    return Estimate(log_prob, 4, 17, torch.zeros_like(log_prob), kind, protocol, indices)


def evaluation(run, values, split="test", data="a", family="diffusion", method="ode", foreign=None, **more):
    identity = {"name": "digits", "split": split, "images": len(values), "levels": 17, "sha256": data}
    identity |= {} if foreign is None else {"foreign": foreign}
    model = {"run": run, "family": family, "parameters": 10, "data": "digits"}
    return Evaluation(Protocol(identity, "w" + run, method, {}), model, estimate(values, **more), {})


def normal(seed, n=50):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
