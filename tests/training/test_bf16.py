"""In bf16 the networks round and nothing else does: what is computed from their outputs keeps float32's digits."""

import pytest
import torch
from torch import Tensor, nn

from diffusion.baselines.decoders import DiscretizedLogisticMixture
from diffusion.baselines.vae import VAE
from diffusion.config import PREDICTIONS
from diffusion.denoisers import LevelDenoiser, NetworkDenoiser
from diffusion.likelihood.dequantization import Dequantizer
from diffusion.objectives import Objective, time_distribution, weighting
from diffusion.schedules import Cosine


class Says(nn.Module):
    """The same values whatever it is given, which bf16 represents, in the dtype that autocast gives a network."""

    def __init__(self, *shape: int):
        super().__init__()
        values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        self.values = nn.Parameter(values.float())

    def forward(self, x: Tensor, *more: Tensor | None) -> Tensor:
        values = self.values.expand(len(x), *self.values.shape)
        return values.bfloat16() if torch.is_autocast_enabled("cpu") else values


@pytest.mark.parametrize("prediction", [*PREDICTIONS, "levels"])
def test_a_denoisers_loss(prediction):
    schedule, shape, n = Cosine(), (1, 4, 4), 64
    if prediction == "levels":
        denoiser = LevelDenoiser(Says(256, 4, 4), schedule, Dequantizer(256).places(), shape)
    else:
        denoiser = NetworkDenoiser(Says(*shape), schedule, prediction, shape)
    loss = Objective(weighting("elbo", schedule), time_distribution("log-snr"))
    draws = torch.Generator().manual_seed(2)
    x = Dequantizer(256).center(torch.randint(256, (n, *shape), generator=draws, dtype=torch.uint8))
    u, eps = torch.rand(n, generator=draws, dtype=torch.float64), torch.randn(n, *shape, generator=draws)
    exact = loss(denoiser, x, u, eps).weighted
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(denoiser, x, u, eps).weighted
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)


def test_a_vaes_loss():
    observation = DiscretizedLogisticMixture(256)
    vae = VAE((1, 4, 4), 3, observation, Says(6), Says(observation.parameters, 4, 4))
    draws = torch.Generator().manual_seed(3)
    images = torch.randint(256, (64, 1, 4, 4), generator=draws, dtype=torch.uint8)
    eps = torch.randn(64, 1, 3, generator=draws)
    exact = vae.loss(images, eps).loss
    with torch.autocast("cpu", torch.bfloat16):
        found = vae.loss(images, eps).loss
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
