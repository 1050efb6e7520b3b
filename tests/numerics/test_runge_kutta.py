"""Every sample has steps of its own: right, to the tolerance, and whatever its batch mates."""

import pytest
import torch

import diffusion
from diffusion.data import load_images
from diffusion.errors import SolverError
from diffusion.numerics.runge_kutta import solve_each
from diffusion.samplers.ode.probability_flow import ADAPTIVE

RATES = torch.tensor([0.3, 5.0, 40.0, 1.0], dtype=torch.float64)


def rms(rows):
    return rows.square().mean(1).sqrt()


def relax(tolerance, method="dopri5", rows=slice(None), start=0.0, end=2.0, calls=None):
    """y' = rate (cos t - y), an easy to a stiff one."""
    rates = RATES[rows]

    def field(t, y, which):
        if calls is not None:
            calls.append(which.tolist())
            assert bool(((t - start) * (t - end) <= 0).all()), "nothing is evaluated beyond the ends"
        return rates[which, None] * (torch.cos(t)[:, None] - y)

    y = torch.full((len(rates), 2), 2.0, dtype=torch.float64) + torch.tensor([0.0, 1.0], dtype=torch.float64)
    return solve_each(field, y, start, end, method, tolerance, rms, 0.01)


def exact(t):
    """The solution that starts at t = 0 from 2 and 3."""

    def steady(t):
        return RATES * (RATES * torch.cos(t) + torch.sin(t)) / (1 + RATES**2)

    t = torch.tensor(t, dtype=torch.float64)
    start = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    return steady(t)[:, None] + (start - steady(torch.zeros(()).double())[:, None]) * torch.exp(-RATES * t)[:, None]


@pytest.mark.parametrize("method", ADAPTIVE)
def test_it_finds_the_solution_and_the_error_follows_the_tolerance(method):
    coarse, fine = (float((relax(tolerance, method) - exact(2.0)).abs().max()) for tolerance in (1e-3, 1e-6))
    assert fine < 1e-5
    assert fine < coarse / 10 or coarse < 1e-6


def test_a_sample_is_bit_equal_whatever_its_batch_mates():
    calls = []
    whole = relax(1e-4, calls=calls)
    for row in range(4):
        assert torch.equal(relax(1e-4, rows=slice(row, row + 1)), whole[row : row + 1])
    spent = [sum(row in call for call in calls) for row in range(4)]
    assert spent[2] > 2 * spent[0], "the stiff one takes more, and alone"
    assert calls[-1] == [2]


def test_time_may_run_backwards():
    forward = relax(1e-8)

    def field(t, y, which):
        return RATES[which, None] * (torch.cos(t)[:, None] - y)

    easy = torch.tensor([0, 3])
    back = solve_each(lambda t, y, which: field(t, y, easy[which]), forward[easy], 2.0, 0.0, "dopri5", 1e-8, rms, 0.01)
    torch.testing.assert_close(back, torch.tensor([[2.0, 3.0]] * 2, dtype=torch.float64), atol=1e-5, rtol=0)


def test_a_field_that_explodes_is_told():
    with pytest.raises(SolverError, match="could not go on"):
        solve_each(lambda t, y, which: y**2, torch.ones(1, 1).double(), 0.0, 2.0, "dopri5", 1e-6, rms, 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ode", "elbo", "elbo-discrete", "immse"])
def test_a_likelihood_does_not_depend_on_its_batch_at_the_default_tolerance(method):
    """Of a float32 network, within 1e-4 bits/dim; about 1e-7 is found."""
    model, images = diffusion.load("pretrained:digits"), load_images("digits").test[:6]
    whole = model.log_likelihood(images, method=method)
    for rows in ([0], [2, 3], [5, 1, 4]):
        rows = torch.tensor(rows)
        some = model.log_likelihood(images[rows], method=method, indices=rows)
        off = (some.log_prob - whole.log_prob[rows]) / whole.nats_per_bit_per_dim
        assert float(off.abs().max()) < 1e-4
