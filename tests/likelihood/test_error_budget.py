"""The error budget against the truth: each entry covers the error that it names, on exact denoisers."""

import math

import numpy as np
import pytest
import torch
from laws import f64, name, seeded

from diffusion import log_density, log_likelihood
from diffusion.commands.evaluation import narrow_data_warning
from diffusion.data import normalizer as normalizers
from diffusion.denoisers.denoiser import Denoiser
from diffusion.denoisers.exact import Empirical, Gaussian, GaussianMixture
from diffusion.errors import UserError
from diffusion.likelihood import Dequantizer
from diffusion.likelihood.error_budget import subsample, subsample_size
from diffusion.schedules import DDPM, EDM, VE, VP, Cosine, Rectified, SubVP

CAUSES = {"test set", "probes", "draws", "solver", "data end", "noise end"}


def plane(schedule, std=0.2):
    return GaussianMixture(0.6 * seeded(5, 2), torch.full((5,), std).double(), schedule)


def ends_of(model, x):
    """The log-density with the noise of t_min left in the data: what a perfect solve between the ends would give."""
    t_min = f64(model.schedule.t_min)
    alpha, _ = model.schedule(t_min)
    return model.log_prob_at(alpha * x, t_min) + x[0].numel() * alpha.log()


class Oblique(Denoiser):
    """The exact denoiser of a Gaussian of any covariance."""

    def __init__(self, mean, covariance, schedule):
        super().__init__()
        self.schedule, self.shape, self.mean = schedule, tuple(mean.shape), mean
        self.variances, self.directions = torch.linalg.eigh(covariance)
        self.variances.clamp_(min=0.0)

    def forward(self, x_t, t, cond=None):
        alpha, sigma = (of.reshape(-1, 1) for of in self.schedule(t))
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        return self.mean + (gain * ((x_t - alpha * self.mean) @ self.directions)) @ self.directions.T


def mean_bits(estimate, values):
    return float((estimate.log_prob - values).mean()) / estimate.nats_per_bit_per_dim


ADAPTIVE, EULER, HEUN = {"tolerance": 1e-2}, {"solver": "euler", "steps": 30}, {"solver": "heun2", "steps": 20}
SOLVES = [
    pytest.param(schedule, settings, marks=() if quick else pytest.mark.slow, id=f"{name(schedule)}-{solver}")
    for schedule, chosen in (
        (VP(), (ADAPTIVE, EULER)), (VE(), (ADAPTIVE, HEUN)), (EDM(), (EULER,)), (Rectified(), (HEUN,)),
        (DDPM(), (ADAPTIVE,)),
    )
    for solver, settings in (("adaptive", ADAPTIVE), ("euler", EULER), ("heun2", HEUN))
    for quick in (settings in chosen,)
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "settings"), SOLVES)
def test_the_solvers_entry_covers_its_error(schedule, settings):
    """Of few steps, whose errors are 1e-4 to 0.3 bits/dim; and it is not ten times too large where that is sizeable."""
    model = plane(schedule)
    x = model.draw(96, seed=1)
    estimate = log_density(model, x, error_budget=True, **settings)
    error = abs(mean_bits(estimate, ends_of(model, x)))
    solver = estimate.error_budget["solver"]
    assert error < 1.8 * solver + estimate.error_budget["noise end"]
    if error > 0.02:
        assert solver < 3 * error
    assert set(estimate.error_budget) == {"test set", "solver", "data end", "noise end"}


@pytest.mark.parametrize("sigma_min", [0.02, 0.1, 0.2])
def test_the_data_ends_entry_covers_what_the_path_leaves_out(sigma_min):
    """Smooth data (deviation 0.3): the distance to the path without end, known exactly, and at most ten times it."""
    model = Gaussian(f64([0.2, -0.4, 0.1]), f64(0.3), VE(sigma_min=sigma_min))
    x = model.draw(2000, seed=2)[:400]
    estimate = log_density(model, x, error_budget=True, tolerance=1e-5)
    error = abs(mean_bits(estimate, model.log_prob(x)))
    assert error < estimate.error_budget["data end"]
    assert estimate.measurement_error == pytest.approx(estimate.systematic_error) != 0
    if sigma_min >= 0.1:
        assert estimate.error_budget["data end"] < 12 * max(error, 0.5 * (sigma_min / 0.3) ** 2)


def test_the_noise_ends_entry_covers_what_the_prior_leaves_out():
    """The prior of a path that ends with a fifth of the data's deviation as noise's size is not the data's own."""
    model = GaussianMixture(f64([[-1.0, 0.5], [1.0, -0.5]]), f64([0.2, 0.2]), VE(sigma_max=2.5))
    x = model.draw(200, seed=3)
    estimate = log_density(model, x, error_budget=True, tolerance=1e-4)
    error = abs(mean_bits(estimate, ends_of(model, x)))
    assert error > 1e-3
    assert error < estimate.error_budget["noise end"]
    full = log_density(plane(VP()), plane(VP()).draw(60), error_budget=True)
    assert full.error_budget["noise end"] < 1e-4


def test_a_figure_that_hangs_on_its_end_says_so():
    """Images at bin centres, the exact denoiser: uniform dequantisation hangs on t_min, truncated-normal does not."""
    dequantizer = Dequantizer(17)
    images = torch.tensor([[3, 9], [9, 3], [14, 14], [0, 16]], dtype=torch.uint8)
    model = Empirical(dequantizer.center(images, torch.float64), VE(sigma_min=0.01))
    options: dict = {"levels": 17, "draws": 2, "solver": "rk4", "steps": 20, "error_budget": True}
    uniform = log_likelihood(model, images, **options)
    truncated = log_likelihood(model, images, dequantization="truncated-normal", **options)
    assert uniform.error_budget["data end"] > 1.0
    assert truncated.error_budget["data end"] < 0.01


@pytest.mark.parametrize(("draws", "probes"), [(1, 1), (1, 3), (3, 1), (3, 2)])
def test_the_noises_entries_are_the_deviations_of_repeats(draws, probes):
    """One image 300 times, each with noise of its own: entries, total and split, against the spread of the repeats."""
    model = GaussianMixture(0.4 * seeded(3, 6), torch.full((3,), 0.15).double(), VP())
    image = Dequantizer(9).quantize(model.draw(1, seed=4)).expand(300, -1).contiguous()
    options: dict = {"levels": 9, "solver": "rk4", "steps": 8, "draws": draws, "probes": probes}
    estimate = log_likelihood(model, image, error_budget=True, **options)
    assert set(estimate.error_budget) == CAUSES
    spread = estimate.mean().sem
    # a subsample of 5 images has 5 and 10 degrees of freedom
    known = draws > 1
    assert estimate.random_error == pytest.approx(spread, rel=0.2 if known else 0.75)
    exact = log_likelihood(model, image, **{**options, "trace": "exact", "probes": 1})
    of_draws = exact.mean().sem
    assert estimate.error_budget["draws"] == pytest.approx(of_draws, rel=0.25 if min(draws, probes) > 1 else 0.9)
    of_probes = math.sqrt(max(0.0, spread**2 - of_draws**2))
    assert estimate.error_budget["probes"] == pytest.approx(of_probes, rel=0.25 if probes > 1 else 0.9)


def test_completing_changes_no_value_and_is_the_same_again():
    model = plane(VP())
    images = Dequantizer(17).quantize(model.draw(30, seed=5))
    options: dict = {"levels": 17, "tolerance": 1e-3, "indices": torch.arange(100, 130)}
    told = []
    plain = log_likelihood(model, images, progress=lambda *done: told.append(done), **options)
    whole = log_likelihood(model, images, error_budget=True, progress=lambda *done: told.append(done), **options)
    assert told == [(30, 30), (30, 30)]
    assert torch.equal(plain.log_prob, whole.log_prob)
    assert plain.protocol == whole.protocol
    assert math.isnan(plain.measurement_error)
    assert math.isfinite(whole.measurement_error)
    assert whole.total_error == pytest.approx(whole.mean().sem + whole.systematic_error)
    again = log_likelihood(model, images, error_budget=True, **options)
    assert again.error_budget == whole.error_budget


def test_an_unknown_noise_of_a_bound_comes_from_two_seeds():
    model = plane(VP())
    images = Dequantizer(17).quantize(model.draw(1, seed=5)).expand(400, -1).contiguous()
    plain = log_likelihood(model, images, method="elbo", levels=17, evaluations=2)
    assert math.isnan(plain.error_budget["noise"])
    whole = log_likelihood(model, images, method="elbo", levels=17, evaluations=2, error_budget=True)
    assert whole.error_budget["noise"] == pytest.approx(plain.mean().sem, rel=0.9)


def test_the_images_that_are_measured_again():
    for n in (1, 3, 4, 50, 360, 10_000):
        indices = torch.randperm(n) + 7
        chosen = subsample(indices)
        assert len(chosen) == len(chosen.unique()) == subsample_size(n) <= min(n, 32)
        assert bool(torch.isin(chosen, indices).all())
        assert torch.equal(chosen, subsample(indices.flip(0)))


def test_ends_that_leave_no_path_are_refused():
    model = plane(VP())
    x = model.draw(2)
    with pytest.raises(UserError, match="log_snr_min, log_snr_max"):
        log_density(model, x, log_snr_min=3.0, log_snr_max=2.0)
    kept = log_density(model, x, log_snr_min=-1e9, log_snr_max=1e9)
    assert torch.equal(kept.log_prob, log_density(model, x).log_prob), "no end is moved outwards"


SCHEDULES = [VP(), Cosine(), SubVP(), VE(), EDM(), Rectified(), DDPM()]


@pytest.mark.parametrize("std", [1.0, 0.1, 1e-2, 1e-3, (1.0, 1e-3, 0.1)], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_the_truth_lies_within_the_measurements_error(schedule, std):
    """Data wider and far narrower than the noise of t_min, in all dimensions or in one: figure +- error holds log p."""
    model = Gaussian(f64([0.1, -0.2, 0.0]), f64(std), schedule)
    x = model.draw(32, seed=1)
    estimate = log_density(model, x, error_budget=True, tolerance=1e-3)  # the solver's own error is in the budget
    assert (estimate.kind, estimate.law) == ("exact", "flow")
    error = abs(mean_bits(estimate, model.log_prob(x)))
    assert error <= estimate.measurement_error
    assert estimate.measurement_error < max(1.0, 3.0 * error), "nor out of all proportion"
    if schedule.log_snr(f64(schedule.t_min)) > 9.0 and std in (1.0, 0.1):
        assert estimate.measurement_error < 0.05
    if schedule == VE() and std == 1e-3:
        assert error > 2.0, "a hundredth of the noise's variance"


@pytest.mark.parametrize("spread", [1e-5, 1e-6])
def test_a_column_that_follows_from_the_others_has_a_density_that_is_not_resolved(spread):
    """Normalised as `standard`, the figure is nats away and its error unknown; whitened, it is the closed form's."""
    own = torch.from_numpy(np.random.default_rng(0).normal(size=(400, 3)))
    x = torch.stack((own[:, 0], own[:, 1], own[:, 0] + own[:, 1] + spread * own[:, 2]), 1)
    covariance = f64([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 2.0 + spread**2]])
    truth = -0.5 * (own.square().sum(1) + 3.0 * math.log(2.0 * math.pi)) - math.log(spread)
    for kind in ("standard", "whiten"):
        units = normalizers.fit(kind, lambda: [x], (3,))
        origin, *scale = units.normalize(torch.cat((torch.zeros(1, 3), torch.eye(3))).double())
        scale = torch.stack(scale) - origin
        model = Oblique(origin, scale.T @ covariance @ scale, VP())
        found = log_density(model, units.normalize(x[:32]), tolerance=1e-4, error_budget=True)
        found = found.shifted(units.log_det, {})
        error = abs(mean_bits(found, truth[:32]))
        unknown = math.isnan(found.measurement_error)
        assert (narrow_data_warning(found) is not None) == unknown == (kind == "standard")
        assert error > 1.5 if unknown else error <= found.measurement_error < 1.0
