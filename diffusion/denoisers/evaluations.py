"""Network evaluations (NFE), counted in one place; and the network in evaluation mode, without dropout.

Rows are counted: a call with a batch of B counts B, so NFE = rows / batch. A guided pair counts 2 whether the network
is called twice or once with a doubled batch, and a wrapper around a denoiser adds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from ..errors import UserError
from .denoiser import Denoiser


@dataclass
class EvaluationCount:
    """The number of network rows evaluated so far."""

    rows: int = 0
    watch: Callable[[], object] | None = None  # called after each evaluation


@contextmanager
def count_evaluations(model: nn.Module) -> Iterator[EvaluationCount]:
    """Count the evaluations of the innermost denoisers of `model` while the context is open.

    Raises:
        UserError: For a model without a denoiser.
    """
    leaves = [
        module
        for module in model.modules()
        if isinstance(module, Denoiser) and not any(isinstance(m, Denoiser) for m in list(module.modules())[1:])
    ]
    if not leaves:
        raise UserError(f"model: found a {type(model).__name__} without a denoiser, which has no evaluations to count")
    # A network denoiser's eps() reaches its network without going through forward(): the hook sits on the network.
    with count_rows(*(getattr(leaf, "network", leaf) for leaf in leaves)) as count:
        yield count


@contextmanager
def count_rows(*modules: nn.Module) -> Iterator[EvaluationCount]:
    """Count the rows that `modules` are called with while the context is open."""
    count = EvaluationCount()

    def hook(module, inputs):
        count.rows += inputs[0].shape[0]
        if count.watch is not None:
            count.watch()

    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off while the context is open; the mode of each module is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
