"""Models of every family under one contract, and `load`, which makes one from its file.

A model file is safetensors: weights, with the configuration and the facts of the data as text beside them. Loading
reads no data, imports no Lightning and runs no code from the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from . import runs
from .checkpoint_files import read_checkpoint
from .config import Config, parse_config
from .denoisers.denoiser import Denoiser
from .errors import UserError
from .experiment import DataFacts, build_denoiser, build_dequantizer, check_state
from .likelihood import Estimate, measure
from .likelihood.dequantization import Dequantizer
from .sampling import sample

FACTS = "data"
STEP = "step"


@runtime_checkable
class GenerativeModel(Protocol):
    """What a model of any family can do: draw, and tell how likely it holds images to be."""

    def sample(self, n: int, seed: int = 0, **options: Any) -> Tensor:
        """Draw n data, shape (n, *shape); images in [-1, 1]."""
        ...

    def log_likelihood(self, images_uint8: Tensor, **options: Any) -> Estimate:
        """The log-probability of images of levels, shape (B, *shape)."""
        ...


class DiffusionModel:
    """A trained denoiser with the map between levels and what it sees.

    Args:
        denoiser: The denoiser.
        config: The configuration it was trained with.
        facts: What it knows of its data.
        source: The file it came from, for messages.
        step: The training step it was taken at.
    """

    def __init__(self, denoiser: Denoiser, config: Config, facts: DataFacts, source: str = "", step: int = 0):
        self.denoiser = denoiser.eval()
        self.config = config
        self.facts = facts
        self.source = source
        self.step = step

    @property
    def dequantizer(self) -> Dequantizer | None:
        """The levels and their places; None for continuous data."""
        return build_dequantizer(self.facts)

    def to(self, device: torch.device | str) -> DiffusionModel:
        """Move the denoiser to a device; returns the model itself."""
        self.denoiser.to(device)
        return self

    def sample(self, n: int, seed: int = 0, **options: Any) -> Float[Tensor, " n *shape"]:
        """Draw n data (`diffusion.sample` has the options); images are cut to [-1, 1]."""
        x = sample(self.denoiser, n, seed=seed, **options)
        return x if self.facts.levels is None else x.clamp(-1.0, 1.0)

    def log_likelihood(self, images_uint8: UInt8[Tensor, " b *shape"], **options: Any) -> Estimate:
        """The log-probability of images of levels (`diffusion.log_likelihood` has the options).

        Raises:
            UserError: For a model of continuous data (`diffusion.log_density` measures those).
        """
        if self.dequantizer is None:
            raise UserError("log_likelihood: this model's data are continuous; use log_density")
        if options.get("method", "ode").startswith("elbo"):  # asked as it was trained
            options = {"dequantize": self.config.objective.dequantize, **options}
        return measure.log_likelihood(self.denoiser, images_uint8, levels=self.dequantizer.levels, **options)

    def log_density(self, x: Float[Tensor, " b *shape"], **options: Any) -> Estimate:
        """The log-density of continuous data (`diffusion.log_density` has the options)."""
        return measure.log_density(self.denoiser, x, **options)


def load(path_or_name: str | Path, device: torch.device | str = "cpu", runs_dir: str | Path = "runs") -> DiffusionModel:
    """Make a model from a run folder, a model file, a training checkpoint, or the name of a pretrained model.

    Args:
        path_or_name: `runs/<run>`, `x.safetensors`, `last.ckpt`, or `pretrained:digits`.
        device: Where the model goes.
        runs_dir: Where runs are looked up by bare name.

    Returns:
        The model with its averaged weights, in evaluation mode.

    Raises:
        UserError: For a file that is missing, damaged, of another kind, or whose weights do not fit its configuration.
    """
    if Path(path_or_name).suffix == ".ckpt":
        checkpoint = read_checkpoint(path_or_name)
        if "model" not in checkpoint or "weight_average" not in checkpoint:
            raise UserError(f"{path_or_name}: holds no model; accepted: a checkpoint that train.py wrote")
        metadata, state = checkpoint["model"], checkpoint["weight_average"]["averages"][0]
        path = Path(path_or_name)
    else:
        path = runs.resolve_model(path_or_name, runs_dir)
        state, metadata = runs.read_model(path)
    if FACTS not in metadata:
        raise UserError(f"{path}: does not say what data it was trained on; a model file of train.py is accepted")
    config = parse_config(metadata["config"], source=str(path))
    facts = DataFacts.from_json(metadata[FACTS])
    denoiser = build_denoiser(config, facts)
    check_state(state, denoiser, str(path))
    denoiser.load_state_dict(state)
    return DiffusionModel(denoiser.to(device), config, facts, str(path), int(metadata.get(STEP, 0)))
