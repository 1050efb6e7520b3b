"""Likelihoods that can be trusted: estimators that take a denoiser and return an `Estimate`."""

from .dequantization import Dequantizer
from .estimate import Estimate, Interval
from .immse import log_density_immse, log_likelihood_immse
from .probability_flow import log_density, log_likelihood_ode
from .variational_bound import elbo_continuous, elbo_discrete

__all__ = [
    "Dequantizer",
    "Estimate",
    "Interval",
    "elbo_continuous",
    "elbo_discrete",
    "log_density",
    "log_density_immse",
    "log_likelihood_immse",
    "log_likelihood_ode",
]
