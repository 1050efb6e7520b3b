"""Builds the Lightning module of each family of models from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ... import samplers
from ...config import Config
from ...denoisers import NetworkDenoiser
from ...denoisers.adopted import AdoptedDenoiser
from ...errors import reported_as
from ...models.adopt import AdoptedModel
from ...models.build import DataFacts, build_denoiser, build_dequantizer, build_eae, build_objective, build_vae
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
    if adopted is not None:
        return _around(adopted.adopted, config, facts, metadata)
    return _BUILDERS[config.family](config, facts, metadata)


def _denoiser(config: Config, facts: DataFacts, metadata: Mapping[str, str]) -> DenoiserModule:
    return _around(build_denoiser(config, facts), config, facts, metadata)


def _around(
    denoiser: NetworkDenoiser | AdoptedDenoiser, config: Config, facts: DataFacts, metadata: Mapping[str, str]
) -> DenoiserModule:
    with reported_as({"eta": "sampling.eta"}):  # a wrong one is reported now, not after training
        samplers.build(config.sampling.sampler, eta=config.sampling.eta)
    return DenoiserModule(
        denoiser, build_objective(config, denoiser), config, build_dequantizer(facts), metadata, facts.normalizer
    )


def _vae(config: Config, facts: DataFacts, metadata: Mapping[str, str]) -> VAEModule:
    return VAEModule(build_vae(config, facts), config, metadata)


def _eae(config: Config, facts: DataFacts, metadata: Mapping[str, str]) -> EAEModule:
    return EAEModule(build_eae(config, facts), config, metadata)


_BUILDERS: dict[str, Callable[[Config, DataFacts, Mapping[str, str]], ModelModule]] = {
    "diffusion": _denoiser,
    "vae": _vae,
    "eae": _eae,
}
