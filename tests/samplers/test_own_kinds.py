"""Samplers and schedules of one's own, whose numbers change between draws: a notebook's sweep over a setting."""

from dataclasses import dataclass

import pytest
import torch
from laws import F64, f64, gaussian, learned

from diffusion import sample
from diffusion.samplers import DDIM, Adams, ExponentialSDE, LinearSampler, RePaint
from diffusion.samplers.sampler import Coefficients, is_value
from diffusion.samplers.sde.stochasticity import NoiseProfile
from diffusion.sampling.auto_grid import auto_grid
from diffusion.schedules import VP, Cosine


class Damped(LinearSampler):
    damp = 1.0

    def __init__(self, damp=1.0):
        self.damp = damp

    @property
    def is_stochastic(self):
        return False

    def coefficients(self, schedule, t, s):
        (a, b), (c, d) = schedule(t), schedule(s)
        r = d / b * self.damp
        return Coefficients(r, c - r * a, torch.zeros_like(r))


class DampedByClass(Damped):
    def __init__(self):
        pass


@dataclass
class Unfrozen(Damped):
    damp: float = 1.0


@dataclass(frozen=True)
class Frozen(Damped):
    damp: float = 1.0


@dataclass(frozen=True)
class WithList(Damped):
    factors: list

    @property
    def damp(self):
        return self.factors[0]


class HalfDDIM(DDIM):
    """A subclass of one of ours, with a number that no comparison of ours knows of."""

    def coefficients(self, schedule, t, s):
        found = super().coefficients(schedule, t, s)
        return Coefficients(found.from_x_t * self.__dict__.get("damp", 1.0), found.from_x, found.fresh)


class Stretched(VP):
    """A schedule of one's own."""

    stretch = 1.0

    def _integral(self, t):
        return super()._integral(t) * self.stretch

    def _time_of_integral(self, b):
        return super()._time_of_integral(b / self.stretch)


def drawn(sampler, schedule=None):
    return sample(gaussian(schedule or VP()), 4, sampler, steps=6, dtype=F64)


def changed(make, change):
    """(the draw before a change, the draw after it, that of a new object of the same setting)."""
    mine = make()
    before = drawn(mine)
    change(mine)
    new = make()
    change(new)
    return before, drawn(mine), drawn(new)


CHANGES = {
    "a class": (Damped, lambda s: setattr(s, "damp", 0.5)),
    "a dataclass that is not frozen": (Unfrozen, lambda s: setattr(s, "damp", 0.5)),
    "a frozen dataclass, by force": (Frozen, lambda s: object.__setattr__(s, "damp", 0.5)),
    "a list in a frozen dataclass": (lambda: WithList([1.0]), lambda s: s.factors.__setitem__(0, 0.5)),
    "a subclass of ours": (HalfDDIM, lambda s: object.__setattr__(s, "damp", 0.5)),
    "one of ours, by force": (lambda: DDIM(0.0), lambda s: object.__setattr__(s, "eta", 0.5)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_sampler_draws_by_its_present_numbers(what):
    before, after, new = changed(*CHANGES[what])
    assert torch.equal(after, new)
    assert not torch.equal(before, after)


def test_a_number_of_the_class(monkeypatch):
    mine = DampedByClass()
    before = drawn(mine)
    monkeypatch.setattr(DampedByClass, "damp", 0.5)
    assert torch.equal(drawn(mine), drawn(Damped(0.5)))
    assert not torch.equal(drawn(mine), before)


@pytest.mark.parametrize("sampler", [DDIM(), Adams(), ExponentialSDE()], ids=str)
def test_a_schedule_whose_numbers_changed(sampler, monkeypatch):
    schedule = Stretched()
    before = drawn(sampler, schedule)
    object.__setattr__(schedule, "stretch", 0.5)
    after, new = drawn(sampler, schedule), Stretched()
    object.__setattr__(new, "stretch", 0.5)
    assert torch.equal(after, drawn(sampler, new))
    assert not torch.equal(before, after)


def test_a_learned_schedule_whose_weights_changed():
    """Also through `.data`, as optimisers and averages of old have it, which torch does not count."""
    schedule, other, t = learned(0), learned(1), torch.linspace(0.1, 0.9, 5, dtype=F64)
    before = schedule.log_snr(t)
    schedule.log_density.data.copy_(other.log_density.data)
    assert torch.equal(schedule.log_snr(t), other.log_snr(t))
    assert not torch.equal(before, schedule.log_snr(t))


def test_a_tuned_grid_is_not_kept_for_what_may_change():
    model, mine = gaussian(VP()), Damped()
    before = auto_grid(model, mine, 3)
    mine.damp = 0.3
    assert torch.equal(auto_grid(model, mine, 3), auto_grid(gaussian(VP()), Damped(0.3), 3))
    assert not torch.equal(before, auto_grid(model, mine, 3))


def test_what_is_kept():
    """The rows of our own samplers are: values, all the way down."""
    assert all(map(is_value, (DDIM(), Adams(), ExponentialSDE(NoiseProfile((0.0, 1.0), (1.0,))), VP(), Cosine())))
    own = Damped(), Unfrozen(), Frozen(), HalfDDIM(), Stretched(), learned(), RePaint(f64([0.0]), f64([1.0]) > 0)
    assert not any(map(is_value, own))
    assert not is_value(DDIM)
