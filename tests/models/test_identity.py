"""What an adopted model is known by: all that its figures depend on, and nothing that differs between two processes."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

import diffusion
from diffusion.models.identity import identity
from diffusion.models.load import load_named

SAID = {"path": "cosine", "predicts": "eps", "time": "t", "shape": (2,)}
FACTOR = 0.5


def scaled_by(factor):
    def network(x, time):
        return factor * x

    return network


def by_global(x, time):
    return FACTOR * x


class Scaling(nn.Module):
    table: torch.Tensor

    def __init__(self, factor=0.5, weight=1.0):
        super().__init__()
        self.factor = factor
        self.register_buffer("table", torch.full((1,), weight), persistent=False)

    def forward(self, x, time):
        return self.factor * self.table * x


class Calling:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x, time):
        return self.factor * x


def known(network=None, **changes):
    return diffusion.adopt(network or scaled_by(0.5), **{**SAID, **changes}).weights


def table(first):
    values = torch.linspace(first, 0.02, 50)
    return lambda x, time: x * values[0]


TWO = [
    pytest.param(lambda: known(), lambda: known(scaled_by(0.6)), id="a closed-over number"),
    pytest.param(lambda: known(table(1e-4)), lambda: known(table(2e-4)), id="a closed-over tensor"),
    pytest.param(lambda: known(), lambda: known(log_snr_max=3.0), id="the end of the path"),
    pytest.param(lambda: known(), lambda: known(path="vp"), id="the path"),
    pytest.param(lambda: known(), lambda: known(shape=(3,)), id="the shape"),
    pytest.param(lambda: known(), lambda: known(labels=3), id="the labels"),
    pytest.param(lambda: known(time=lambda t: t), lambda: known(time=lambda t: 2 * t), id="the code of time"),
    pytest.param(lambda: known(time=lambda t: 3 * t), lambda: known(time=lambda t: 2 * t), id="a constant of time"),
    pytest.param(
        lambda: known(call=lambda net, x, t, y: net(x, t)),
        lambda: known(call=lambda net, x, t, y: 1.1 * net(x, t)),
        id="call",
    ),
    pytest.param(
        lambda: known(call=lambda net, x, t, y, by=1.0: by * net(x, t)),
        lambda: known(call=lambda net, x, t, y, by=2.0: by * net(x, t)),
        id="a default of call",
    ),
    pytest.param(
        lambda: known(path=(lambda t: 1 - t, lambda t: t)),
        lambda: known(path=(lambda t: 1 - t, lambda t: 0.9 * t)),
        id="functions of a path",
    ),
    pytest.param(lambda: known(Scaling()), lambda: known(Scaling(0.6)), id="a number of a module"),
    pytest.param(lambda: known(Scaling()), lambda: known(Scaling(weight=2.0)), id="a buffer that is not saved"),
    pytest.param(lambda: known(Calling(1.0)), lambda: known(Calling(2.0)), id="an object that is called"),
    pytest.param(
        lambda: known(partial(lambda x, t, by: by * x, by=1.0)),
        lambda: known(partial(lambda x, t, by: by * x, by=2.0)),
        id="an argument of a partial",
    ),
]


@pytest.mark.parametrize(("one", "other"), TWO)
def test_another_model_is_another_and_the_same_is_the_same(one, other):
    assert one() == one()
    assert other() == other()
    assert one() != other()


def test_a_global_that_a_network_looks_up(monkeypatch):
    before = known(by_global)
    assert known(by_global) == before
    monkeypatch.setitem(globals(), "FACTOR", 0.6)
    assert known(by_global) != before


def test_using_a_model_does_not_change_what_it_is():
    path = (lambda t: torch.cos(1.5 * t), lambda t: torch.sin(1.5 * t))
    model = diffusion.adopt(Scaling(), **{**SAID, "path": path})
    before = model.weights
    diffusion.sample(model, 2, sampler="ddim", steps=2)
    model.to("cpu").log_density(torch.zeros(2, 2), method="elbo", evaluations=3)
    assert model.weights == before


def test_training_a_network_on_changes_what_it_is():
    network = nn.Linear(2, 2)
    model = diffusion.adopt(lambda x, t: network(x), **SAID)
    before = model.weights
    with torch.no_grad():
        network.bias.add_(1.0)
    assert model.weights != before


def test_what_cannot_be_known_is_itself_alone():
    numbers = iter([1.0] * 9)
    one, other = (diffusion.adopt(lambda x, t: x * next(numbers), **SAID) for _ in range(2))
    assert one.weights == one.weights
    assert one.weights != other.weights
    assert identity(range(3), {"a": {1.0}}) == identity(range(3), {"a": {1.0}})
    assert identity(torch.Generator())[1] is False


FILE = """
import torch
import diffusion

FACTOR = {factor}

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.own = torch.nn.Identity()

    def forward(self, x, t):
        return self.own(x) * FACTOR if {{1.5, 2.5, "a", "b"}} else x

model = other = diffusion.adopt(Net(), "cosine", "eps", "t", (2,))
"""


def test_a_python_file_is_known_by_its_content_in_every_process(tmp_path):
    """Whatever the order of sets and the addresses are."""
    (path := tmp_path / "mine.py").write_text(FILE.format(factor=1.0))
    ask = "import sys; from diffusion.models.load import load_named; print(load_named(sys.argv[1]).weights)"
    here = load_named(f"{path}:model").weights
    there = subprocess.run([sys.executable, "-c", ask, f"{path}:model"], capture_output=True, text=True, check=True)
    assert there.stdout.split() == [here]
    assert load_named(f"{path}:other").weights != here
    path.write_text(FILE.format(factor=1.0) + "# read again\n")
    assert load_named(f"{path}:model").weights != here


def test_modules_that_call_closes_over_are_evaluated_and_moved():
    dropout = nn.Dropout(0.5)
    model = diffusion.adopt(lambda x, t: x, **SAID, call=lambda net, x, t, y: dropout(net(x, t)))
    assert dropout in list(model.module.modules())
    assert not dropout.training


def test_estimates_of_a_path_of_two_functions_can_be_joined():
    made = [diffusion.adopt(lambda x, t: x, (lambda t: 1 - t, lambda t: t), "x", "t", (2,)) for _ in range(2)]
    parts = [
        model.log_density(torch.zeros(3, 2), method="elbo", evaluations=3, indices=3 * part + torch.arange(3))
        for part, model in enumerate(made)
    ]
    assert " at 0x" not in str(parts[0].protocol)
    assert len(diffusion.likelihood.Estimate.join(parts).log_prob) == 6
    other = diffusion.adopt(lambda x, t: x, (lambda t: 1 - t, lambda t: 0.9 * t), "x", "t", (2,))
    assert repr(other.denoiser.schedule) != repr(made[0].denoiser.schedule)
