"""The optimisers by name, and their learning rate: AdamW, AdaX, and Muon for matrices with AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..config import OptimizerConfig
from ..errors import UserError

MOMENTUM = 0.95
_SMALLEST = 16  # rows and columns of a matrix; a smaller one is one of features or of outputs
# Of the odd polynomial a s + b s^3 + c s^5 which, five times applied, takes singular values in (0, 1] to about 1
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrix: Tensor, iterations: int = 5) -> Tensor:
    """About U V^T of a matrix (m, n) with the singular value decomposition U S V^T: the values become 0.7 to 1.2.

    By Newton-Schulz iterations (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"); in
    bfloat16 on a GPU, where that is fast and accurate enough. Values far below the largest stay smaller.
    """
    a, b, c = _QUINTIC
    x = matrix.mT if len(matrix) > matrix.shape[1] else matrix
    x = x.to(torch.bfloat16 if x.is_cuda else x.dtype)
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return (x.mT if len(matrix) > matrix.shape[1] else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is orthogonalised before each update (Jordan et al. 2024); AdamW for what is no matrix.

    A convolution's weight is the matrix of its outputs by everything else.

    Args:
        matrices: Weights of two or more dimensions.
        rest: All others.
        lr: The learning rate of the rest.
        muon_lr: That of the matrices: the size of an update in the spectral norm, times sqrt(outputs / inputs) where
            there are more outputs.
        betas: AdamW's.
        weight_decay: Decoupled, of both.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        rest: Iterable[nn.Parameter],
        lr: float,
        muon_lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ):
        self._adam = torch.optim.AdamW([{"params": list(rest)}], lr, betas, weight_decay=weight_decay)
        super().__init__([{"params": list(matrices), "lr": muon_lr, "weight_decay": weight_decay}], {})
        self.add_param_group(self._adam.param_groups[0])
        self._adam.param_groups, self._adam.state = self.param_groups[1:], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As any optimiser's."""
        super().load_state_dict(state_dict)
        self._adam.param_groups, self._adam.state = self.param_groups[1:], self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update."""
        loss = self._adam.step(closure)  # before the matrices: a closure computes the gradients of both
        self._step_matrices(self.param_groups[0])
        return loss

    @torch.no_grad()
    def _step_matrices(self, group: dict[str, Any]) -> None:
        for weight in group["params"]:
            if weight.grad is None:
                continue
            momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
            momentum.lerp_(weight.grad, 1 - MOMENTUM)
            ahead = weight.grad.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov's
            scale = max(1.0, ahead.shape[0] / ahead.shape[1]) ** 0.5
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(orthogonalised(ahead).view_as(weight), alpha=-group["lr"] * scale)


class AdaX(torch.optim.Optimizer):
    """Adam whose second moment remembers early gradients for longest (Li et al. 2020, arXiv 2004.09740, algorithm 1).

    Published as v <- (1 + beta2) v + beta2 g^2 with v_hat = v / ((1 + beta2)^t - 1), which overflows. The same v_hat is

        v_hat <- (1 - w) v_hat + w g^2,    w = beta2 / ((1 + beta2)^t - 1),

    a mean in which the squares of all steps count, the latest by (1 + beta2)^t, the first by 1 + beta2. w falls as
    1 / t, and exponentially once t is beyond 1 / beta2: from then on v_hat hardly moves, whatever gradients become.

    Args:
        weights: What is updated.
        lr: The learning rate.
        betas: The decay of the average of gradients, and beta2, 1e-4 in the paper.
        weight_decay: Decoupled, as in its AdaX-W.
        eps: Added to sqrt(v_hat).
    """

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 1e-4),
        weight_decay: float = 0.0,
        eps: float = 1e-12,
    ):
        super().__init__(weights, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (beta1, beta2), rate = group["betas"], group["lr"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state, gradient = self.state[weight], weight.grad
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float64)  # on the CPU, as that of torch's Adam
                    state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
                state["step"] += 1
                state["mean"].lerp_(gradient, 1 - beta1)
                newest = share_of_newest(float(state["step"]), beta2)
                state["square"].mul_(1 - newest).addcmul_(gradient, gradient, value=newest)
                weight.mul_(1 - rate * group["weight_decay"])
                weight.addcdiv_(state["mean"], state["square"].sqrt().add_(group["eps"]), value=-rate)
        return loss


def share_of_newest(step: float | int, beta2: float) -> float:
    """AdaX's w = beta2 / ((1 + beta2)^t - 1) of step t = 1, 2, ...: 1, then about 1 / t, and 0 in the end."""
    exponent = step * math.log1p(beta2)
    return beta2 * math.exp(-exponent) / -math.expm1(-exponent)


def learning_rate_factor(step: int, options: OptimizerConfig, steps: int) -> float:
    """The factor of the learning rate: linear warmup, then constant or half a cosine to 0."""
    rise = min(1.0, (step + 1) / max(1, options.warmup))
    if options.decay == "constant":
        return rise
    return rise * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / steps)))


def make_optimizer(model: nn.Module, options: OptimizerConfig, steps: int) -> dict[str, Any]:
    """The optimiser of a model's weights and its learning rate, as Lightning takes them.

    Args:
        model: What is trained.
        options: The optimizer section of the configuration.
        steps: The updates of the run, over which the learning rate falls.

    Raises:
        UserError: Muon for weights that are divided among devices.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    divided = any(isinstance(weight, DTensor) for weight in weights)
    optimizer: torch.optim.Optimizer
    if options.name == "adamw":
        fused = not divided  # parts of weights are not
        optimizer = torch.optim.AdamW(
            weights, options.lr, options.betas, weight_decay=options.weight_decay, fused=fused
        )
    elif options.name == "adax":
        optimizer = AdaX(weights, options.lr, _betas(options), options.weight_decay)
    elif divided:
        raise UserError("optimizer.name: muon takes whole matrices; with trainer.strategy=sharded: adamw")
    else:
        assert options.muon_lr is not None
        embedded = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
        matrices = [w for w in weights if _is_matrix(w) and id(w) not in embedded]
        chosen = {id(weight) for weight in matrices}
        rest = [weight for weight in weights if id(weight) not in chosen]
        optimizer = Muon(matrices, rest, options.lr, options.muon_lr, options.betas, options.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, options, steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _betas(options: OptimizerConfig) -> tuple[float, float]:
    return options.betas if options.adax_beta is None else (options.betas[0], options.adax_beta)


def _is_matrix(weight: Tensor) -> bool:
    return weight.ndim > 1 and min(len(weight), weight[0].numel()) >= _SMALLEST


def apply_options(
    optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR, options: OptimizerConfig
) -> None:
    """Replace the options with which an optimiser and its schedule were loaded, if they differ."""
    rates = []
    for group in optimizer.param_groups:
        group["weight_decay"] = options.weight_decay
        if "betas" in group:
            group["betas"] = _betas(options)
        rates.append(options.lr if "betas" in group else options.muon_lr)
    if schedule.base_lrs != rates:
        schedule.base_lrs = rates
        factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
        for group, rate, factor in zip(optimizer.param_groups, rates, factors, strict=True):
            group["initial_lr"], group["lr"] = rate, rate * factor
        schedule._last_lr = [group["lr"] for group in optimizer.param_groups]
