import pytest
import torch

from diffusion.errors import UserError
from diffusion.networks import MLP
from diffusion.networks.mlp import MLPBlock


@pytest.mark.parametrize("length", [1, 2, 17])
def test_any_length(length, waken):
    x = torch.randn(3, length)
    assert waken(MLP(length, width=8, depth=1))(x, torch.zeros(3)).shape == x.shape


def test_blocks_are_the_identity_at_initialisation():
    h, embedding = torch.randn(3, 8), torch.randn(3, 8)
    assert torch.equal(MLPBlock(8, dropout=0.0)(h, embedding), h)


def test_fits_a_function_of_x_and_noise_level():
    """A network of the default depth learns x -> c x, c the noise level, to a tenth of its variance in 300 steps."""
    torch.manual_seed(0)
    network = MLP(2, width=32)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(300):
        x, c_noise = torch.randn(256, 2), torch.rand(256) * 4 - 2
        loss = (network(x, c_noise) - c_noise[:, None] * x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * 4 / 3  # the variance of c x is E[c^2] = 4/3


@pytest.mark.parametrize(("options", "message"), [({"width": 5}, "width: 5"), ({"depth": 0}, "depth: 0")])
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        MLP(2, **options)
