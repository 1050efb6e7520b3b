"""The moments that Analytic-DPM needs of a model, estimated once and kept beside its file.

They are taken over samples of the model itself, so that they need no data; the file names the weights that they belong
to, and is made anew where those have changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import torch

from .. import atomic
from ..denoisers.denoiser import Denoiser
from ..samplers import ExponentialSDE, Moments, estimate_moments
from ..sampling import sample

_SAMPLES, _STEPS = 64, 25


def moments_of(denoiser: Denoiser, source: str, error_bound: float) -> Moments:
    """The moments of a model from the file beside its own, or estimated, and then written there if it can be.

    Args:
        denoiser: The model.
        source: Its file; one that does not exist (a shipped model's name) has none beside it.
        error_bound: As `Moments`.
    """
    digest = weights_digest(denoiser)
    path = Path(source).with_suffix(".moments.json")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a damaged file is as good as none
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["weights"] == digest:
            return Moments(tuple(found["log_snrs"]), tuple(found["values"]), error_bound)
    x = sample(denoiser, _SAMPLES, ExponentialSDE(), _STEPS, seed=2**31)
    moments = estimate_moments(denoiser, x, error_bound)
    if Path(source).is_file():
        with contextlib.suppress(OSError):  # a folder that is not ours to write in
            text = {"weights": digest, "log_snrs": moments.log_snrs, "values": moments.values}
            atomic.write_text(path, json.dumps(text, indent=1) + "\n")
    return moments


def weights_digest(denoiser: Denoiser) -> str:
    """The SHA-256 of the weights, wherever they are kept."""
    digest = hashlib.sha256()
    for name, value in sorted(denoiser.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
