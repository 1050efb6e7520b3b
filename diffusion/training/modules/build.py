"""Builds the Lightning module of each family of models from a configuration."""

from __future__ import annotations

from collections.abc import Mapping

from ... import samplers
from ...baselines.eae import EAE
from ...baselines.vae import VAE
from ...config import Config
from ...errors import reported_as
from ...models.adopt import AdoptedModel
from ...models.build import DataFacts, build_dequantizer, build_model, build_objective
from .autoencoder import EAEModule, VAEModule
from .base import ModelModule
from .denoiser import DenoiserModule


def build_module(
    config: Config, facts: DataFacts, metadata: Mapping[str, str], adopted: AdoptedModel | None = None
) -> ModelModule:
    """The module that trains a configuration's model on data of these facts, with fresh weights.

    Args:
        config: The configuration.
        facts: The facts of the data.
        metadata: What makes a checkpoint a model by itself (see `models.load`).
        adopted: The model itself, where another project made it.

    Raises:
        UserError: Where parts do not fit together, or do not fit the data.
    """
    model = build_model(config, facts) if adopted is None else adopted.adopted
    if isinstance(model, VAE):
        return VAEModule(model, config, metadata)
    if isinstance(model, EAE):
        return EAEModule(model, config, metadata)
    with reported_as({"eta": "sampling.eta"}):  # a wrong one is reported now, not after training
        samplers.build(config.sampling.sampler, eta=config.sampling.eta)
    return DenoiserModule(
        model, build_objective(config, model), config, build_dequantizer(facts), metadata, facts.normalizer
    )
