"""Networks of the conventions that public checkpoints have, exact for a mixture of Gaussians: nothing is trained.

Each is written from its paper's formulas, and uses nothing of the package but the posterior mean of a mixture given
(alpha, sigma).
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import diffusion
from diffusion.denoisers.exact import GaussianMixture
from diffusion.likelihood import Dequantizer
from diffusion.schedules import VP

SHAPE, LEVELS = (1, 8, 8), 256


def law(schedule=None, means=None) -> GaussianMixture:
    """Six modes of deviation 0.05 whose bins fill [-1, 1]."""
    generator = torch.Generator().manual_seed(3)
    means = 1.2 * torch.rand(6, *SHAPE, generator=generator, dtype=torch.float64) - 0.7
    return GaussianMixture(means, torch.full((6,), 0.05, dtype=torch.float64), schedule or VP())


def images(n: int, seed: int = 0) -> Tensor:
    return Dequantizer(LEVELS).quantize(law().draw(n, seed))


class Foreign(nn.Module):
    """The posterior mean of the law, in the network's own range, told (alpha, sigma) by `where`."""

    def __init__(self, where, answer, data_range=(-1.0, 1.0), sees=None):
        super().__init__()
        self.where, self.answer, self.sees = where, answer, sees
        low, high = data_range
        scale, middle = 0.5 * (high - low) * LEVELS / (LEVELS - 1), 0.5 * (low + high)
        ours = law()
        self.own = GaussianMixture(scale * ours.means + middle, scale * ours.stds, VP())

    def forward(self, x, time):
        alpha, sigma = (value.to(x).reshape(-1, *(1,) * len(SHAPE)) for value in self.where(time.double()))
        if self.sees is not None:
            x = x / self.sees(alpha, sigma)
        x_hat = self.own.posterior_mean(x, alpha.flatten(), sigma.flatten())
        return self.answer(x, x_hat, (x - alpha * x_hat) / sigma, alpha, sigma)


def table(alphas_cumprod: Tensor, first: int = 0):
    """(alpha, sigma) of an index, between levels linear in log-SNR."""
    log_snr = torch.log(alphas_cumprod) - torch.log1p(-alphas_cumprod)

    def where(index):
        place = index - first
        left = place.floor().clamp(0, len(log_snr) - 2).long()
        value = log_snr[left] + (place - left) * (log_snr[left + 1] - log_snr[left])
        return torch.sigmoid(value).sqrt(), torch.sigmoid(-value).sqrt()

    return where


LINEAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
_u = torch.arange(1001, dtype=torch.float64) / 1000
_bar = torch.cos((_u + 0.008) / 1.008 * math.pi / 2) ** 2
COSINE = torch.cumprod(1 - (1 - _bar[1:] / _bar[:-1]).clamp(max=0.999), 0)


def vp(t):
    b = 0.1 * t + 0.5 * 19.9 * t**2
    return torch.exp(-0.5 * b), torch.sqrt(-torch.expm1(-b))


def sub_vp(t):
    alpha, sigma = vp(t)
    return alpha, sigma**2


def song(t):
    return torch.ones_like(t), torch.sqrt((25.0 ** (2 * t) - 1) / (2 * math.log(25.0)))


def of_sigma(sigma):
    return torch.ones_like(sigma), sigma


def eps(x, x_hat, eps, alpha, sigma):
    return eps


def with_variance(x, x_hat, eps, alpha, sigma):
    return torch.cat((eps, torch.zeros_like(eps)), 1)


def v(x, x_hat, eps, alpha, sigma):
    return alpha * eps - sigma * x_hat


def score(x, x_hat, eps, alpha, sigma):
    return -eps / sigma


def velocity(x, x_hat, eps, alpha, sigma):
    return eps - x_hat


def to_data(x, x_hat, eps, alpha, sigma):
    return x_hat - eps


SD = 0.5


def raw(x, x_hat, eps, alpha, sigma):
    """EDM's F: D = c_skip x + c_out F."""
    total = sigma**2 + SD**2
    return (x_hat - SD**2 / total * x) * total.sqrt() / (sigma * SD)


def edm_in(alpha, sigma):
    return (alpha**2 * SD**2 + sigma**2).rsqrt()


@dataclass(frozen=True)
class Case:
    network: Any
    said: dict[str, Any]
    wrong: dict[str, dict[str, Any]] = field(default_factory=dict)  # by what the check says is better
    data_range: tuple[float, float] = (-1.0, 1.0)


# Each convention as it is, and planted mistakes: what is said instead, by the line that has to name the truth.
CASES = {
    "DDPM": Case(
        Foreign(table(LINEAR), eps),
        {"path": "ddpm", "predicts": "eps", "time": "index"},
        {
            "predicts='eps'": {"predicts": "v"},
            "'betas': 'linear'": {"path": {"name": "ddpm", "betas": "cosine"}},
            "an index one lower": {"path": {"alphas_cumprod": torch.cat((torch.ones(1).double(), LINEAR))}},
            "time='index'": {"time": "t"},
            "data_range=(-1, 1)": {"data_range": (0.0, 1.0)},
            "scaled=False": {"scaled": True},
        },
    ),
    "improved DDPM": Case(
        Foreign(table(COSINE), with_variance),
        {"path": {"name": "ddpm", "betas": "cosine"}, "predicts": "eps", "time": "index-rounded"},
        {"'betas': 'cosine'": {"path": "ddpm"}},
    ),
    "DDPM, levels from 1": Case(
        Foreign(table(LINEAR, first=1), eps),
        {"path": {"alphas_cumprod": torch.cat((torch.ones(1).double(), LINEAR))}, "predicts": "eps", "time": "index"},
        {"an index one higher": {"path": "ddpm"}},
    ),
    "v of a table": Case(
        Foreign(table(COSINE), v),
        {"path": {"alphas_cumprod": COSINE}, "predicts": "v", "time": "index"},
        {"predicts='v'": {"predicts": "-v"}},
    ),
    "score_sde VP": Case(
        Foreign(lambda time: vp(time / 999), eps),
        {"path": "vp", "predicts": "eps", "time": "999t"},
        {"time='999t'": {"time": "t"}, "path='vp'": {"path": "sub-vp"}},
    ),
    "score_sde sub-VP": Case(
        Foreign(sub_vp, score),
        {"path": "sub-vp", "predicts": "score", "time": "t"},
        {"predicts='score'": {"predicts": "-eps"}},
    ),
    "Song's VE": Case(
        Foreign(song, score, (0.0, 1.0)),
        {"path": "ve-song", "predicts": "score", "time": "t", "data_range": (0.0, 1.0)},
        {"data_range=(0, 1)": {"data_range": (-1.0, 1.0)}, "path='ve-song'": {"path": "ve"}},
        (0.0, 1.0),
    ),
    "NCSN++": Case(
        Foreign(lambda time: of_sigma(time.exp()), score, (0.0, 1.0)),
        {"path": "ve", "predicts": "score", "time": "log-sigma", "data_range": (0.0, 1.0)},
        {"time='log-sigma'": {"time": "log-snr"}},
        (0.0, 1.0),
    ),
    "EDM": Case(
        Foreign(lambda time: of_sigma((4 * time).exp()), raw, sees=edm_in),
        {"path": "edm", "predicts": "edm", "time": "log-sigma/4"},
        {"time='log-sigma/4'": {"time": "log-snr/4"}, "predicts='edm'": {"predicts": "x"}},
    ),
    "EDM, scaled": Case(
        Foreign(of_sigma, eps, sees=edm_in),
        {"path": "edm", "predicts": "eps", "time": "sigma", "scaled": True},
        {"scaled=True": {"scaled": False}},
    ),
    "flow matching": Case(
        Foreign(lambda time: (time, 1 - time), to_data),
        {"path": "flow-to-data", "predicts": "velocity", "time": "t"},
        {
            "path='flow-to-data'": {"path": "flow"},
            "time='t'": {"time": "1-t"},
            "predicts='velocity'": {"predicts": "-velocity"},
        },
    ),
    "rectified flow": Case(
        Foreign(lambda time: (1 - time / 1000, time / 1000), velocity),
        {"path": "flow", "predicts": "velocity", "time": "1000t"},
        {"time='1000t'": {"time": "t"}},
    ),
    "two functions": Case(
        Foreign(lambda time: (torch.cos(time), torch.sin(time)), v),
        {
            "path": (lambda t: torch.cos(math.pi / 2 * t), lambda t: torch.sin(math.pi / 2 * t)),
            "predicts": "v",
            "time": lambda t: math.pi / 2 * t,
        },
    ),
}  # fmt: skip


HELD_OUT = images(32)


def adopt(case, **changes):
    return diffusion.adopt(case.network, **{**case.said, "shape": SHAPE, "levels": LEVELS, **changes})
