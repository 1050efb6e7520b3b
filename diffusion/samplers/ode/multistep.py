"""Solvers defined by a plan: where the denoiser is evaluated, and which outputs form the next state.

Every fast deterministic solver here, single-step or multistep, is a list of stages. A stage evaluates the denoiser
once, and forms a state from the start of the step (the base) and the available outputs m (see `coordinates`):

    x_to = keep x_base + sum_j weight_j m_j

A stage that lands forms the base of the next step; one that does not is a point inside a step (Runge-Kutta). Outputs
are passed from stage to stage in a tuple: a solver has no state between calls. All coefficients are computed once, in
float64, for the whole grid.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import UserError
from ...schedules import Schedule
from ..sampler import RowSampler, WithSteps, remembered
from .coordinates import Nodes, Variables, step_weights
from .fused import linear, linear_


@dataclass(frozen=True)
class Stage:
    """One evaluation and the state formed from it, by the indices of nodes.

    Args:
        ask: Where the denoiser is evaluated, at the newest state.
        base: Where the step starts.
        to: The node of the new state.
        using: The nodes of the outputs that form it, among those evaluated so far.
        lands: Whether the state is the base of the next step.
    """

    ask: int
    base: int
    to: int
    using: tuple[int, ...]
    lands: bool = True


@dataclass(frozen=True)
class Row:
    """A stage in numbers, as the loop reads it.

    The output of the stage itself enters through its parts, x_hat and x; the latter is included in `keep` if x is the
    base. So does an output at the base. Only one used in other steps is computed, once, as a separate tensor.

    Args:
        t: The time at which the denoiser is evaluated, ().
        keep: The factor of the base.
        from_x: The factor of the state where the denoiser was evaluated, if that is not the base; else 0.
        weights: Of this stage's x_hat, then of the available outputs, newest first.
        made: The stored output is x_hat - made x_t; None if x_hat is stored.
        retires: Whether the oldest output used is a separate tensor not used again: the result reuses its memory.
        lands: The time reached, or None inside a step.
        renoise: (factor, standard deviation) of a step that first adds noise to its base, or None.
    """

    t: Tensor
    keep: float
    from_x: float
    weights: tuple[float, ...]
    made: float | None
    retires: bool
    lands: float | None
    renoise: tuple[float, float] | None = None


class StagedSampler(WithSteps, RowSampler):
    """A sampler defined by a plan: a subclass declares its variables and its stages."""

    is_stochastic: ClassVar[bool] = False

    @property
    @abstractmethod
    def variables(self) -> Variables:
        """The variables in which outputs are stored and interpolated."""

    @abstractmethod
    def plan(self, schedule: Schedule, times: Tensor) -> tuple[Nodes, list[Stage]]:
        """The nodes, starting with those of the grid, and the stages from the first time to the last."""

    def weights(self, t: Nodes, s: Nodes, using: Nodes) -> Tensor:
        """The weights of m in steps from t to s (rows,) by outputs at the nodes `using` (rows, k)."""
        return step_weights(self.variables, t, s, using)

    def rows(self, schedule: Schedule, times: Tensor) -> list[Row]:
        """The plan in numbers."""
        nodes, stages = self.plan(schedule, times)
        scale = self.variables.scale(nodes).tolist()
        factor, from_x = (value.tolist() for value in self.variables.output(nodes))
        t, moments = nodes.t.unbind(), nodes.t.tolist()
        weights = [
            {node: weight * factor[node] for node, weight in by_node.items()}
            for by_node in self.stage_weights(nodes, stages)
        ]
        last_use = {node: i for i, by_node in enumerate(weights) for node in by_node}
        made = {
            node
            for stage, by_node in zip(stages, weights, strict=True)
            for node in by_node
            if node not in (stage.ask, stage.base) and from_x[node] != 0.0
        }
        rows, evaluated = [], []
        for i, (stage, by_node) in enumerate(zip(stages, weights, strict=True)):
            evaluated.insert(0, stage.ask)
            oldest = max(map(evaluated.index, by_node))
            at_x = -by_node.get(stage.ask, 0.0) * from_x[stage.ask]
            keep = scale[stage.to] / scale[stage.base]
            if stage.ask == stage.base:
                keep, at_x = keep + at_x, 0.0
            elif stage.base not in made:
                keep -= by_node.get(stage.base, 0.0) * from_x[stage.base]
            rows.append(
                Row(
                    t[stage.ask],
                    keep,
                    at_x,
                    tuple(by_node.get(node, 0.0) for node in evaluated[: oldest + 1]),
                    from_x[stage.ask] if stage.ask in made else None,
                    oldest > 0 and evaluated[oldest] in made and last_use[evaluated[oldest]] == i,
                    moments[stage.to] if stage.lands else None,
                )
            )
        return rows

    def stage_weights(self, nodes: Nodes, stages: Sequence[Stage]) -> list[dict[int, float]]:
        """The weight of each node's output m, stage by stage; stages with equally many are computed together."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, stage in enumerate(stages):
            by_length[len(stage.using)].append(i)
        found: list[dict[int, float]] = [{} for _ in stages]
        for length, group in by_length.items():
            numbers = torch.tensor([(stages[i].base, stages[i].to, *stages[i].using) for i in group])
            base, to, using = numbers.split((1, 1, length), 1)
            weights = self.weights(nodes.take(base[:, 0]), nodes.take(to[:, 0]), nodes.take(using))
            for i, row in zip(group, weights.tolist(), strict=True):
                found[i] = dict(zip(stages[i].using, row, strict=True))
        return found

    def integrate(self, denoiser, x, times, noise, cond, callback):
        rows = remembered(self, denoiser.schedule, times)
        depth = max(len(row.weights) for row in rows) - 1
        base, memory, step = x, (), 0
        for row in rows:
            if row.renoise is not None:
                assert noise is not None  # `sample` has seen to it
                x = base = linear(row.renoise[0], base, row.renoise[1], noise(step))
            x_hat = denoiser(x, row.t, cond)
            output = x_hat if row.made is None else torch.sub(x_hat, x, alpha=row.made)
            newest, *others = row.weights
            if row.retires:
                to = linear_(others.pop(), memory[len(others)], row.keep, base).add_(x_hat, alpha=newest)
            else:
                to = linear(row.keep, base, newest, x_hat)
            if row.from_x != 0.0:
                to.add_(x, alpha=row.from_x)
            for weight, m in zip(others, memory, strict=False):
                if weight != 0.0:
                    to.add_(m, alpha=weight)
            memory = (output, *memory)[:depth]
            x = to
            if row.lands is not None:
                base = x
                if callback is not None:
                    callback(step, row.lands, x, x_hat)
                step += 1
        return x


class Multistep(StagedSampler):
    """One evaluation per step: a polynomial through the last `predictor` outputs predicts, and may be corrected.

    The first steps have fewer outputs. A first step of order 1 would limit the whole solve to order 2, so a solver of
    order 3 uses the midpoint method there, whose output then serves as the third: one additional evaluation.

    A corrector corrects a predicted state once the denoiser has been evaluated there, without another evaluation: it
    integrates the polynomial that also includes the new output over the step that led there. It raises the order by
    one, and also corrects the first step, to an error of order 3 in its length: predictor 3 is of order 4 if that step
    is short in h, or in a region where the outputs are constant, and of order 3 otherwise.

    Corrected states are never needed as tensors. Corrector and next predictor are both linear in the state and the
    outputs,

        x_t^c = x_t + sum_j (q_j - p_j) m_j,           p: the weights that predicted x_t, q: those that correct it
        x_s   = (c_s / c_t) x_t^c + sum_j b_j m_j

    so a step is one linear combination of the predicted state and predictor + 1 outputs.
    """

    predictor: int
    corrector: bool

    @property
    def order(self) -> int:
        return self.predictor + self.corrector

    @property
    def starting_evaluations(self) -> int:
        return 1 if self.predictor > 2 and not self.corrector else 0

    def plan(self, schedule: Schedule, times: Tensor) -> tuple[Nodes, list[Stage]]:
        nodes, last = Nodes.at_times(schedule, times), len(times) - 1
        evaluated: list[int] = []
        stages: list[Stage] = []
        for i in range(last):
            evaluated.insert(0, i)
            if i == 0 and self.starting_evaluations:
                nodes += Nodes.at_half_log_snrs(schedule, nodes.h[:2].mean()[None])
                middle = last + 1
                stages.append(Stage(0, 0, middle, (0,), lands=False))
                evaluated.insert(0, middle)
                stages.append(Stage(middle, 0, 1, (middle, 0)))
            else:
                stages.append(Stage(i, i, i + 1, tuple(evaluated[: self.predictor])))
        return nodes, stages

    def stage_weights(self, nodes: Nodes, stages: Sequence[Stage]) -> list[dict[int, float]]:
        if not self.corrector:
            return super().stage_weights(nodes, stages)
        with_end = [Stage(stage.ask, stage.base, stage.to, (stage.to, *stage.using)) for stage in stages[:-1]]
        weights = super().stage_weights(nodes, [*stages, *with_end])
        predicted, corrected = weights[: len(stages)], weights[len(stages) :]
        scale = self.variables.scale(nodes).tolist()
        folded = predicted[:1]
        for stage, own, p, q in zip(stages[1:], predicted[1:], predicted, corrected, strict=False):
            keep = scale[stage.to] / scale[stage.base]
            folded.append({node: own.get(node, 0.0) + keep * (weight - p.get(node, 0.0)) for node, weight in q.items()})
        return folded


def check_predictor(predictor: int) -> None:
    """Raise a `UserError` for a number of outputs that these methods do not support."""
    if predictor not in (1, 2, 3):
        raise UserError(f"predictor: found {predictor}; accepted: 1, 2, 3")
