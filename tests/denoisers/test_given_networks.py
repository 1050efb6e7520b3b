"""Networks as people have them: taken as meant, or refused at their first call in one line."""

import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from given_models import SHAPE, Net, denoiser, draw
from torch import nn

from diffusion import log_density
from diffusion.denoisers import Denoiser
from diffusion.denoisers.levels import LevelDenoiser
from diffusion.errors import UserError
from diffusion.objectives import Objective, draw_u, time_distribution, weighting
from diffusion.schedules import VP, Cosine


class Two(Net):
    def forward(self, x, t):
        return self.c(x)


class ByName(Net):
    def forward(self, x, t, *, class_labels=None):
        return self.c(x)


class LikeDiffusers(Net):
    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        return SimpleNamespace(sample=self.c(sample)) if return_dict else (self.c(sample),)


class WithOtherTypes(Net):
    """A counter and a small table in double precision before the weights."""

    def __init__(self):
        super().__init__()
        own = dict(self._parameters), dict(self._modules)
        self._modules.clear()
        self.count = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
        self.table = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self._modules.update(own[1])


def closure():
    two = Two()
    return lambda x, c: two(x, c)


def traced():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        return torch.jit.trace(Two(), (torch.zeros(1, *SHAPE), torch.zeros(1)), check_trace=False)


NETWORKS = {
    "(x, t)": Two,
    "a tuple": lambda: Net(lambda y: (y, None)),
    "a list": lambda: Net(lambda y: [y]),
    ".sample": lambda: Net(lambda y: SimpleNamespace(sample=y)),
    "a dict": lambda: Net(lambda y: {"sample": y}),
    "labels by name": ByName,
    "diffusers": LikeDiffusers,
    "a bound method": lambda: Two().forward,
    "a function": closure,
    "a partial": lambda: partial(LikeDiffusers(), return_dict=False),
    "within another module": lambda: nn.DataParallel(Two()),
    "traced": traced,
    "compiled": lambda: torch.compile(Two(), backend="eager"),
    "other types": WithOtherTypes,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", NETWORKS)
def test_networks_as_people_have_them(what):
    expected = draw(denoiser(Net()), 2)
    model = denoiser(NETWORKS[what]())
    assert torch.equal(draw(model, 2), expected)
    x = torch.zeros(2, *SHAPE)
    here = log_density(model, x, trace="hutchinson", tolerance=1e-2).log_prob
    there = log_density(denoiser(Net()), x, trace="hutchinson", tolerance=1e-2).log_prob
    torch.testing.assert_close(here, there)


@pytest.mark.parametrize(
    ("net", "told"),
    [
        (Net(lambda y: None), "network: returned a NoneType"),
        (Net(lambda y: {"out": y}), "network: returned a dict"),
        (Net(lambda y: torch.distributions.Normal(0.0, 1.0)), "network: returned a Normal"),
        (Net(lambda y: y.long()), r"network: returned numbers of type torch\.int64"),
        (nn.Conv2d(1, 1, 1), r"network: takes \(input\)"),
        (Net(lambda y: y[:, 0]), r"network: returned \(2, 8, 8\) for x of shape \(2, 1, 8, 8\)"),
        (Net(lambda y: y.mean((2, 3), keepdim=True)), r"network: returned \(2, 1, 1, 1\)"),
        (Net(lambda y: y[:1]), r"network: returned \(1, 1, 8, 8\)"),
        (Net(out=2), "return the first half"),
    ],
)
def test_networks_that_are_refused_at_their_first_call(net, told):
    model = denoiser(net)
    x = torch.zeros(2, *SHAPE)
    loss = Objective(weighting("elbo", Cosine()), time_distribution("log-snr"))
    calls = [
        lambda: draw(model, 2),
        lambda: loss(model, x, draw_u(0, 0, torch.arange(2), 2, stratified=True), x),
        lambda: log_density(model, x),
        lambda: model.v(x, torch.tensor(0.5)),
    ]
    for call in calls:
        with pytest.raises(UserError, match=told) as error:
            call()
        assert "\n" not in str(error.value)


def test_an_own_denoiser_of_another_shape():
    class Mean(Denoiser):
        schedule, shape = VP(), (2,)

        def forward(self, x_t, t, cond=None):
            return x_t.mean(1, keepdim=True)

    for call in (lambda: draw(Mean(), 3), lambda: log_density(Mean(), torch.zeros(3, 2))):
        with pytest.raises(UserError, match=r"Mean: returned \(3, 1\) for x of shape \(3, 2\)"):
            call()


def test_levels_ask_for_their_own_shape():
    places = torch.linspace(-1, 1, 4)
    model = LevelDenoiser(Net(), Cosine(), places, SHAPE)
    with pytest.raises(UserError, match=r"it must return \(2, 4, 8, 8\)"):
        draw(model, 2)
    assert draw(LevelDenoiser(Net(out=4), Cosine(), places, SHAPE), 2).shape == (2, *SHAPE)


def test_a_condition_that_a_network_does_not_take():
    with pytest.raises(UserError, match="network: takes"):
        draw(denoiser(Two(), num_classes=3), 2, label=1)
