"""The moments that Analytic-DPM needs of a model, estimated once and kept with it (`tuned_files`).

They are taken over samples of the model itself, so that they need no data.
"""

from __future__ import annotations

import contextlib

from ..denoisers.denoiser import Denoiser
from ..samplers import ExponentialSDE, Moments, estimate_moments
from ..sampling import sample
from .tuned_files import read_tuned, write_tuned

_SAMPLES, _STEPS = 64, 25
_KIND = "moments"


def moments_of(denoiser: Denoiser, source: str, error_bound: float) -> Moments:
    """The moments of a model as they are kept, or estimated, and then kept.

    Args:
        denoiser: The model.
        source: Where, as `tuned_files`.
        error_bound: As `Moments`.
    """
    with contextlib.suppress(ValueError, KeyError, TypeError):
        found = read_tuned(denoiser, source, _KIND)
        return Moments(tuple(found["log_snrs"]), tuple(found["values"]), error_bound)
    x = sample(denoiser, _SAMPLES, ExponentialSDE(), _STEPS, seed=2**31)
    moments = estimate_moments(denoiser, x, error_bound)
    write_tuned(denoiser, source, _KIND, {"log_snrs": moments.log_snrs, "values": moments.values})
    return moments
