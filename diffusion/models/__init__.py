"""A trained model of each family, under one contract: samples, likelihoods, figures and pictures of a run."""

from ..config import FAMILIES, imported
from .diffusion_model import DiffusionModel
from .latent_model import EAEModel, LatentModel
from .trained_model import GenerativeModel, TrainedModel

BY_FAMILY: dict[str, type[TrainedModel]] = {name: imported(place) for name, place in FAMILIES.items()}

__all__ = ["BY_FAMILY", "DiffusionModel", "EAEModel", "GenerativeModel", "LatentModel", "TrainedModel"]
