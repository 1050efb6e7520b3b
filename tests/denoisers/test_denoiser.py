"""The waist: predictions of a denoiser against the score by autograd, and denoisers around denoisers."""

import pytest
import torch
from laws import F64, SCHEDULES, autograd_derivative, f64, log_snrs, mixture, name, seeded, times
from torch import nn

from diffusion.config import PREDICTIONS
from diffusion.denoisers import Clipped, Denoiser, NetworkDenoiser, Retimed, exact
from diffusion.denoisers.predictions import NAMES, PathPoint
from diffusion.errors import UserError
from diffusion.schedules import EDM, VE, VP, Cosine

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


class Recorder(nn.Module):
    """A network that keeps what it was called with."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5, dtype=dtype))

    def forward(self, x, c_noise, labels):
        self.called_with = x, c_noise, labels
        return self.weight * x


def _score_by_autograd(model, x_t, t):
    x = x_t.detach().requires_grad_()
    return torch.autograd.grad(model.log_prob_at(x, t).sum(), x)[0]


@every_schedule
def test_predictions_of_a_denoiser_against_the_score_by_autograd(schedule):
    model = mixture(schedule)
    t = times(schedule, 8)[1:-1] * (1 - 1e-7)
    alpha, sigma = (value[:, None] for value in schedule(t))
    x_t = alpha * seeded(6, 2) + sigma * seeded(6, 2, seed=1)
    score = _score_by_autograd(model, x_t, t)
    d_alpha = autograd_derivative(lambda t: schedule(t)[0], t)[:, None]
    d_sigma = autograd_derivative(lambda t: schedule(t)[1], t)[:, None]
    x_hat, eps_hat = (x_t + sigma**2 * score) / alpha, -sigma * score  # Tweedie
    close = {"rtol": 1e-7, "atol": 1e-7}
    torch.testing.assert_close(model(x_t, t), x_hat, **close)
    torch.testing.assert_close(model.score(x_t, t), score, **close)
    torch.testing.assert_close(model.eps(x_t, t), eps_hat, **close)
    torch.testing.assert_close(model.v(x_t, t), alpha * eps_hat - sigma * x_hat, **close)
    torch.testing.assert_close(model.velocity(x_t, t), d_alpha * x_hat + d_sigma * eps_hat, **close)


@every_schedule
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_network_denoiser_answers_every_question_alike(schedule, kind):
    """x_hat, eps, ... of one network are conversions of each other, whichever of them it predicts itself."""
    model = NetworkDenoiser(Recorder(F64), schedule, kind, (2,), sigma_data=0.7)
    t = times(schedule, 6)
    x_t = seeded(6, 2)
    with torch.no_grad():
        x_hat = model(x_t, t)
        at = PathPoint(schedule, t, x_t)
        torch.testing.assert_close(model.raw(x_t, t, None, at), model.x_to_raw(x_hat, x_t, at), rtol=1e-6, atol=1e-8)
        for question in NAMES:
            torch.testing.assert_close(
                getattr(model, question)(x_t, t) if question != "x" else x_hat,
                Denoiser.prediction(model, question, x_t, t),
                rtol=1e-6,
                atol=1e-7,
            )


def test_what_a_network_is_called_with():
    network = Recorder()
    model = NetworkDenoiser(network, VE(), "eps", (2, 3), sigma_data=0.5, num_classes=4)
    x_t, t, labels = seeded(5, 2, 3), torch.linspace(0.1, 0.9, 5, dtype=F64), torch.arange(5)
    out = model(x_t, t, labels)
    assert out.dtype == F64  # the state keeps its precision
    x, level, seen = network.called_with
    assert x.dtype == level.dtype == torch.float32  # the network runs in its own
    sigma = VE()(t)[1]
    torch.testing.assert_close(x, (x_t / torch.sqrt(0.25 + sigma**2)[:, None, None]).float())
    torch.testing.assert_close(level, (-0.5 * sigma.log()).float())  # EDM's ln(sigma) / 4, times -2
    assert torch.equal(seen, labels)
    model(x_t, t[2])
    assert network.called_with[1].shape == (5,)
    assert network.called_with[2] is None


def test_labels_without_classes_and_unknown_predictions_are_refused():
    model = NetworkDenoiser(Recorder(), VP(), "eps", (2,))
    with pytest.raises(UserError, match="label"):
        model(torch.zeros(3, 2), torch.tensor(0.5), torch.arange(3))
    with pytest.raises(UserError, match="Did you mean 'velocity'"):
        NetworkDenoiser(Recorder(), VP(), "velocty", (2,))


@every_schedule
@pytest.mark.parametrize("own", [VP(), EDM()], ids=name)
def test_retimed_is_the_exact_denoiser_of_the_other_path(schedule, own):
    carried, built = Retimed(mixture(own), schedule), mixture(schedule)
    assert carried.shape == (2,)
    t = schedule.inverse_log_snr(log_snrs(schedule, 7, -7.0, 9.0))
    alpha, sigma = (value[:, None] for value in schedule(t))
    x_t = alpha * seeded(7, 2) + sigma * seeded(7, 2, seed=1)
    torch.testing.assert_close(carried(x_t, t), built(x_t, t), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(carried.score(x_t, t), built.score(x_t, t), rtol=1e-6, atol=1e-6)
    for i in (0, 6):
        torch.testing.assert_close(carried(x_t[i : i + 1], t[i]), built(x_t[i : i + 1], t[i]), rtol=1e-8, atol=1e-8)


def test_clipped_clips_x_hat_and_all_that_follows():
    inner = exact.Gaussian(f64([0.9, -0.9]), f64([1.0, 1.0]), Cosine())
    model = Clipped(inner, -0.5, 0.75)
    x_t, t = 3 * seeded(50, 2), f64(0.3)
    x_hat = inner(x_t, t).clamp(-0.5, 0.75)
    assert torch.equal(model(x_t, t), x_hat)
    assert float(model(x_t, t).min()) == -0.5
    assert float(model(x_t, t).max()) == 0.75
    alpha, sigma = Cosine()(t)
    torch.testing.assert_close(model.eps(x_t, t), (x_t - alpha * x_hat) / sigma)
    assert model.shape == (2,)
    assert model.schedule == Cosine()
