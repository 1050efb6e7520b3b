"""A trained model of each family, under one contract: samples, likelihoods, figures and pictures of a run."""

from .adopt import AdoptedModel
from .diffusion_model import DiffusionModel
from .latent_model import EAEModel, LatentModel
from .trained_model import GenerativeModel, TrainedModel

BY_FAMILY: dict[str, type[TrainedModel]] = {
    "diffusion": DiffusionModel,
    "adopted": AdoptedModel,
    "vae": LatentModel,
    "eae": EAEModel,
}

__all__ = ["BY_FAMILY", "DiffusionModel", "EAEModel", "GenerativeModel", "LatentModel", "TrainedModel"]
