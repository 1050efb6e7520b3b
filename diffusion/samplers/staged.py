"""Solvers that are a plan: where the denoiser is asked, and which of its outputs make the next state.

Every fast deterministic solver here, of one step or of many, is a list of stages. A stage asks the denoiser once, and
makes a state of the one that the step started from (the base) and of the outputs m (see `variables`) in hand:

    x_to = keep x_base + sum_j weight_j m_j

A stage that lands makes the base of the next step; one that does not is a point within a step (Runge-Kutta). Outputs
are handed from stage to stage in a tuple: a solver keeps nothing between calls. All coefficients are computed once, in
float64, for the whole grid.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import UserError
from ..schedules import Schedule
from .sampler import Sampler
from .variables import Nodes, Variables, step_weights


@dataclass(frozen=True)
class Stage:
    """One evaluation and the state made of it, by the indices of nodes.

    Args:
        ask: Where the denoiser is asked, at the newest state.
        base: Where the step starts.
        to: The node of the state that is made.
        using: The nodes of the outputs that it is made of, of those asked at so far.
        lands: Whether the state is the base of the next step.
    """

    ask: int
    base: int
    to: int
    using: tuple[int, ...]
    lands: bool = True


@dataclass(frozen=True)
class Row:
    """A stage in numbers: what the loop reads.

    Args:
        t: The time at which the denoiser is asked, ().
        from_x: The output kept is x_hat - from_x x_t; its factor is in the weights.
        keep: The factor of the base.
        weights: Of the outputs, newest first.
        lands: The time reached, or None within a step.
        renoise: (factor, deviation) of a step that first adds noise to its base, or None.
    """

    t: Tensor
    from_x: float
    keep: float
    weights: tuple[float, ...]
    lands: float | None
    renoise: tuple[float, float] | None = None


class StagedSampler(Sampler):
    """A sampler that is a plan: a subclass names its variables and its stages."""

    @property
    def is_stochastic(self) -> bool:
        return False

    @property
    @abstractmethod
    def variables(self) -> Variables:
        """In which outputs are kept and interpolated."""

    @abstractmethod
    def plan(self, schedule: Schedule, times: Tensor) -> tuple[Nodes, list[Stage]]:
        """The nodes, of which the first are those of the grid, and the stages from the first time to the last."""

    def weights(self, t: Nodes, s: Nodes, using: Nodes) -> Tensor:
        """The weights of m in steps from t to s (rows,) by outputs at the nodes `using` (rows, k)."""
        return step_weights(self.variables, t, s, using)

    def rows(self, schedule: Schedule, times: Tensor) -> list[Row]:
        """The plan in numbers."""
        nodes, stages = self.plan(schedule, times)
        scale = self.variables.scale(nodes).tolist()
        factor, from_x = (value.tolist() for value in self.variables.output(nodes))
        t, moments = nodes.t.unbind(), nodes.t.tolist()
        rows, asked = [], []
        for stage, by_node in zip(stages, self.stage_weights(nodes, stages), strict=True):
            asked.insert(0, stage.ask)
            oldest = max(map(asked.index, by_node))
            newest_first = tuple(by_node.get(node, 0.0) * factor[node] for node in asked[: oldest + 1])
            keep = scale[stage.to] / scale[stage.base]
            lands = moments[stage.to] if stage.lands else None
            rows.append(Row(t[stage.ask], from_x[stage.ask], keep, newest_first, lands))
        return rows

    def stage_weights(self, nodes: Nodes, stages: Sequence[Stage]) -> list[dict[int, float]]:
        """The weight of each node's output m, stage by stage; what uses equally many is computed together."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, stage in enumerate(stages):
            by_length[len(stage.using)].append(i)
        found: list[dict[int, float]] = [{} for _ in stages]
        for group in by_length.values():
            base, to, using = (
                torch.tensor([getattr(stages[i], key) for i in group]) for key in ("base", "to", "using")
            )
            for i, row in zip(group, self.weights(nodes[base], nodes[to], nodes[using]).tolist(), strict=True):
                found[i] = dict(zip(stages[i].using, row, strict=True))
        return found

    def integrate(self, denoiser, x, times, noise, cond, callback):
        rows = self.rows(denoiser.schedule, times)
        depth = max(len(row.weights) for row in rows)
        base, memory, step = x, (), 0
        for row in rows:
            if row.renoise is not None:
                assert noise is not None  # `sample` has seen to it
                x = base = (row.renoise[0] * base).add_(noise(step), alpha=row.renoise[1])
            x_hat = denoiser(x, row.t, cond)
            output = x_hat if row.from_x == 0.0 else torch.sub(x_hat, x, alpha=row.from_x)
            memory = (output, *memory[: depth - 1])
            x = row.keep * base
            for weight, m in zip(row.weights, memory, strict=False):
                if weight != 0.0:
                    x = x.add_(m, alpha=weight)
            if row.lands is not None:
                base = x
                if callback is not None:
                    callback(step, row.lands, x, x_hat)
                step += 1
        return x


class Multistep(StagedSampler):
    """One evaluation a step: a polynomial through the last `predictor` outputs predicts, and may be corrected.

    The first steps have fewer outputs. A first step of order 1 would keep the whole solve at order 2, so that a solver
    of order 3 makes it by the midpoint, whose output then serves as the third: one evaluation more, once.

    A corrector mends a predicted state once the denoiser has been asked there, at no evaluation: it is the polynomial
    through one output more, the new one, integrated over the step that led there. It raises the order by one, and mends
    the first step, too, to an error of order 3 in its length: predictor 3 is of order 4 where that step is short in h,
    or lies where the outputs do not change, and of order 3 where it is not.

    Corrected states are never needed as tensors. Corrector and next predictor are both linear in the state and the
    outputs,

        x_t^c = x_t + sum_j (q_j - p_j) m_j,           p: the weights that predicted x_t, q: those that correct it
        x_s   = (c_s / c_t) x_t^c + sum_j b_j m_j

    so that a step is one linear combination of the predicted state and predictor + 1 outputs.
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
        asked: list[int] = []
        stages: list[Stage] = []
        for i in range(last):
            asked.insert(0, i)
            if i == 0 and self.starting_evaluations:
                nodes += Nodes.at_half_log_snrs(schedule, nodes.h[:2].mean()[None])
                middle = last + 1
                stages.append(Stage(0, 0, middle, (0,), lands=False))
                asked.insert(0, middle)
                stages.append(Stage(middle, 0, 1, (middle, 0)))
            else:
                stages.append(Stage(i, i, i + 1, tuple(asked[: self.predictor])))
        return nodes, stages

    def stage_weights(self, nodes: Nodes, stages: Sequence[Stage]) -> list[dict[int, float]]:
        predicted = super().stage_weights(nodes, stages)
        if not self.corrector:
            return predicted
        with_end = [replace(stage, using=(stage.to, *stage.using)) for stage in stages[:-1]]
        corrected = super().stage_weights(nodes, with_end)
        scale = self.variables.scale(nodes).tolist()
        folded = predicted[:1]
        for stage, own, p, q in zip(stages[1:], predicted[1:], predicted, corrected, strict=False):
            keep = scale[stage.to] / scale[stage.base]
            folded.append({node: own.get(node, 0.0) + keep * (weight - p.get(node, 0.0)) for node, weight in q.items()})
        return folded


def check_predictor(predictor: int) -> None:
    """Raise a `UserError` for a number of outputs that these methods do not take."""
    if predictor not in (1, 2, 3):
        raise UserError(f"predictor: found {predictor}; accepted: 1, 2, 3")
