"""A network's own condition: sample by sample, in parts, with guidance and in likelihoods."""

import pytest
import torch
from given_models import draw
from torch import nn

from diffusion import log_density, sample, samplers
from diffusion.denoisers import NetworkDenoiser
from diffusion.errors import UserError
from diffusion.schedules import Cosine


class Vector(nn.Module):
    """Three numbers a sample."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(5, 2)

    def forward(self, x, c, y=None):
        y = torch.zeros(len(x), 3) if y is None else torch.cat(y, 1) if isinstance(y, tuple) else y
        return self.l(torch.cat([x, y.to(x)], 1))


@pytest.fixture
def vector():
    torch.manual_seed(0)
    return NetworkDenoiser(Vector(), Cosine(), prediction="v", shape=(2,)), torch.randn(4, 3)


@pytest.mark.parametrize("name", samplers.names())
def test_a_network_has_its_own_condition(vector, name):
    """In float64: adaptive steps and their noise part ways at the rounding of float32, which depends on the batch."""
    (model, y), options = vector, {"tolerance": 0.3} if name == "adaptive-sde" else {"steps": 3}
    model.network.double()
    options["dtype"] = torch.float64
    together = sample(model, 4, name, cond=y, **options)
    one_by_one = [sample(model, 1, name, cond=y[i : i + 1], start=i, **options) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(one_by_one), rtol=1e-9, atol=1e-9)
    in_parts = sample(model, 4, name, cond=(y[:, :1], y[:, 1:]), batch_size=3, **options)
    torch.testing.assert_close(together, in_parts, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(together, sample(model, 4, name, **options), atol=1e-2)


def test_guidance_towards_a_condition(vector):
    """x_hat is affine in the condition here: weight w is the condition w times as far from the null."""
    model, y = vector
    null = torch.randn(1, 3)
    guided = draw(model, 4, cond=y, guidance=2.5, cond_null=null)
    torch.testing.assert_close(guided, draw(model, 4, cond=null + 2.5 * (y - null)), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="cond_null"):
        draw(model, 4, cond=y, guidance=2.0)


@pytest.mark.parametrize("method", ["ode", "elbo", "immse"])
def test_a_likelihood_given_a_condition(vector, method):
    model, y = vector
    x = torch.randn(4, 2)
    whole = log_density(model, x, method=method, cond=y, batch_size=3)
    part = log_density(model, x[2:], method=method, cond=(y[2:, :2], y[2:, 2:]), indices=torch.tensor([2, 3]))
    torch.testing.assert_close(whole.log_prob[2:], part.log_prob, rtol=1e-4, atol=1e-3)


def test_a_null_condition_is_of_the_kind_of_the_condition(vector):
    model, y = vector
    for null, guidance in ((torch.zeros(1, 2), 2.0), ((y[:, :1], y[:, 1:]), 2.0), (torch.zeros(2, 3), 2.0), (y, 1.0)):
        with pytest.raises(UserError, match=r"^cond_null: "):
            draw(model, 4, cond=y, guidance=guidance, cond_null=null)
    null = torch.randn(4, 3)
    guided = draw(model, 4, cond=y, guidance=2.5, cond_null=null, batch_size=3)
    torch.testing.assert_close(guided, draw(model, 4, cond=null + 2.5 * (y - null)), rtol=1e-4, atol=1e-4)
    needs = NetworkDenoiser(lambda x, c, cond: x + cond, Cosine(), prediction="v", shape=(2,))
    with pytest.raises(UserError, match=r"^cond: the network failed without a condition"):
        draw(needs, 4)


def test_conditions_made_in_inference_mode(vector):
    model, y = vector
    with torch.inference_mode():
        parts = (y[:, :1] + 0, y[:, 1:] + 0)
    found, wanted = (log_density(model, torch.zeros(4, 2), cond=cond).log_prob for cond in (parts, y))
    torch.testing.assert_close(found, wanted)
