"""Builds objects from a configuration: the only place that matches on kinds.

What a model must know about its data (shape, levels, classes) is `DataFacts` (`data_facts`), stored with the weights.
"""

from __future__ import annotations

import math
import warnings
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, nn

from .. import schedules
from ..baselines.eae import EAE
from ..baselines.observation import ObservationModel
from ..baselines.vae import VAE
from ..config import NETWORKS, OBSERVATIONS, TOY_SETS, Config, DenoiserConfig, imported
from ..config.options import Section
from ..data import ARRAY, DataNote, SplitData, load_array, load_images, load_toy
from ..data import normalizer as normalizers
from ..data.normalizer import Normalizer
from ..denoisers import LevelDenoiser, NetworkDenoiser
from ..denoisers.adopted import AdoptedDenoiser
from ..denoisers.condition import LABEL
from ..errors import UserError, reported_as
from ..likelihood.dequantization import Dequantizer
from ..networks.autoencoder import Decoder, Encoder
from ..objectives import Objective, Uncertainty, time_distribution, weighting
from ..schedules.schedule import log_snr_ends
from .conditions import columns_of, no_labels, parts_of
from .data_facts import Data, DataFacts


def build_data(config: Config, trained: bool = False) -> Data:
    """Load the data of a configuration.

    Args:
        config: The configuration.
        trained: Whether a model was trained on them: values of 16 bits are then what they were taken for.

    Raises:
        UserError: For data that are missing or cannot be read.
    """
    options = config.data
    if options.name in TOY_SETS:
        toy = load_toy(options.name)
        return Data(DataFacts(options.name, toy.shape, None, 0, {"name": options.name, "source": "drawn"}), toy=toy)
    if options.name == ARRAY:
        return _array_data(config)
    bits = 16 if trained and options.levels == "all" and options.bits is None else options.bits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataNote)  # they are in the provenance, which training prints
        images = load_images(
            options.name, options.path, options.root, options.download, options.size,
            unreadable=options.unreadable, cache=options.cache, bits=bits, levels=options.levels,
            fit=options.fit, channels=options.channels,
            columns=(*columns_of(config.denoiser), *(part for part in config.denoiser.parts if part == LABEL)),
        )  # fmt: skip
    if not len(images.train):
        raise UserError(f"data.name: '{options.name}' has no training images")
    return Data(_facts(images, config.denoiser), images=images)


def _array_data(config: Config) -> Data:
    """An array, with the normaliser that is fitted on its training part."""
    options = config.data
    assert options.path is not None
    assert options.normalize is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataNote)  # they are in the provenance
        array = load_array(options.path, columns=columns_of(config.denoiser))
    normalizer = normalizers.fit(options.normalize, array.train.pieces, array.shape)
    facts = _facts(array, config.denoiser, normalizer)
    if config.family != "diffusion":  # whose path is not that of the configuration
        return Data(facts, array=array)
    least = normalizers.narrowest(normalizer, array.train)
    schedule = schedules.BY_NAME[config.schedule.name](**config.schedule.options())
    if least < (noise := math.exp(-0.5 * log_snr_ends(schedule)[1])):
        note = (
            f"in some direction the deviation of the data is {least:.1g} of the network's units, below the noise at "
            f"the data end of the path, {noise:.1g}: densities do not resolve it; leave out numbers that follow from "
            f"the others{'' if options.normalize == 'whiten' else ', or take data.normalize=whiten'}"
        )
        notes = [line for line in (str(facts.provenance.get("notes", "")), note) if line]
        facts = replace(facts, provenance={**facts.provenance, "notes": "\n".join(notes)})
    return Data(facts, array=array)


def _facts(data: SplitData, denoiser: DenoiserConfig, normalizer: Normalizer | None = None) -> DataFacts:
    parts = parts_of(denoiser.parts, data)
    return DataFacts(data.name, data.shape, data.levels, data.num_classes, dict(data.provenance), normalizer, parts)


def build_network(config: Config, facts: DataFacts) -> nn.Module:
    """The network of a configuration, for data of these facts.

    Raises:
        UserError: Where the network does not take data of this shape.
    """
    options = config.network.options()
    classes = _own_classes(config, facts)
    name, axes = config.network.name, len(facts.shape)
    if axes > 4:
        raise UserError(f"data: found the shape {facts.shape}; networks take vectors, or channels and up to 3 sides")
    if (name == "mlp") != (axes == 1):
        fitting = "mlp" if axes == 1 else " or ".join(other for other in NETWORKS if other != "mlp")
        raise UserError(f"network.name: found '{name}'; data of shape {facts.shape} need {fitting}")
    if name != "mlp":
        options["image_size"] = facts.shape[1:]
    if config.denoiser.prediction == "levels":
        options["out_channels"] = facts.shape[0] * _levels(config, facts)
    with _reported_as_keys(config.network):
        return imported(NETWORKS[name])(facts.shape[0], num_classes=classes, parts=facts.parts, **options)


def check_labelled(denoiser: DenoiserConfig, facts: DataFacts) -> None:
    """Refuse a class as condition of data without."""
    if LABEL in denoiser.parts and not facts.num_classes:
        key, way_out = (
            ("conditional", "set it to false") if denoiser.conditional else ("condition", "leave 'label' out")
        )
        raise UserError(f"denoiser.{key}: {no_labels(facts.name)}; {way_out}")


def build_denoiser(config: Config, facts: DataFacts) -> NetworkDenoiser:
    """The denoiser of a configuration, for data of these facts, with fresh weights.

    Raises:
        UserError: Where parts do not fit together.
    """
    names = config.denoiser.parts
    check_labelled(config.denoiser, facts)
    if tuple(part.name for part in facts.parts) != (() if names == (LABEL,) else names):
        raise UserError(f"denoiser.condition: found {', '.join(names)}; '{facts.name}' has other parts")
    schedule = schedules.BY_NAME[config.schedule.name](**config.schedule.options())
    prediction, sigma_data = config.denoiser.prediction, config.denoiser.sigma_data
    classes = _own_classes(config, facts)
    if prediction == "levels" and facts.levels is None:
        raise UserError(f"denoiser.prediction: found 'levels'; the data '{facts.name}' have none")
    network = build_network(config, facts)
    size_multiple = getattr(network, "size_multiple", None)
    if prediction == "levels":
        if _levels(config, facts) > 256:
            raise UserError(
                f"denoiser.prediction: found 'levels'; it takes up to 256, '{facts.name}' has {facts.levels:,}"
            )
        places = Dequantizer(_levels(config, facts)).places()
        return LevelDenoiser(network, schedule, places, facts.shape, sigma_data, classes, size_multiple, facts.parts)
    shape = facts.shape
    return NetworkDenoiser(network, schedule, prediction, shape, sigma_data, classes, size_multiple, facts.parts)


def _own_classes(config: Config, facts: DataFacts) -> int:
    """The classes of a model that is conditioned on these alone."""
    return facts.num_classes if config.denoiser.parts == (LABEL,) else 0


def build_observation(config: Config, levels: int) -> ObservationModel:
    """The distribution of a pixel's level given the code, for a VAE.

    Raises:
        UserError: For Bernoulli where there are not two levels.
    """
    name = config.autoencoder.observation
    if name == "bernoulli" and levels != 2:
        raise UserError(f"autoencoder.observation: found 'bernoulli'; it takes 2 levels, the data have {levels}")
    return imported(OBSERVATIONS[name])(levels, **config.autoencoder.options())


def build_vae(config: Config, facts: DataFacts) -> VAE:
    """The variational autoencoder of a configuration, for images of these facts, with fresh weights.

    Raises:
        UserError: For data that are not images of levels, and where parts do not fit together.
    """
    d, levels = config.autoencoder.latent_dim, _levels(config, facts)
    observation = build_observation(config, levels)
    return VAE(facts.shape, d, observation, *_coders(config, facts, 2 * d, observation.parameters))


def build_eae(config: Config, facts: DataFacts) -> EAE:
    """The entropic autoencoder of a configuration, for images of these facts, with fresh weights.

    Raises:
        UserError: For data that are not images of levels, and where parts do not fit together.
    """
    d = config.autoencoder.latent_dim
    return EAE(facts.shape, d, _levels(config, facts), *_coders(config, facts, d, 1))


def _levels(config: Config, facts: DataFacts) -> int:
    if facts.levels is None:
        raise UserError(f"family: found '{config.family}', which models images of levels; '{facts.name}' has none")
    return facts.levels


def _coders(config: Config, facts: DataFacts, features: int, parameters: int) -> tuple[Encoder, Decoder]:
    """An encoder with this many outputs, and a decoder with this many parameters per channel of a pixel."""
    widths = {name: getattr(config.autoencoder, name) for name in ("base_channels", "multipliers", "blocks")}
    with _reported_as_keys(config.autoencoder, shape="data.size"):
        encoder = Encoder(facts.shape, features, **widths)
        return encoder, Decoder(facts.shape, config.autoencoder.latent_dim, facts.shape[0] * parameters, **widths)


def _reported_as_keys(section: Section, **more: str) -> AbstractContextManager[None]:
    """Errors about an argument are reported under the configuration key it comes from."""
    return reported_as({name: section.key(name) for name in type(section).model_fields} | more)


def build_model(config: Config, facts: DataFacts) -> NetworkDenoiser | VAE | EAE:
    """The module whose weights a model file of this configuration holds, for any family, with fresh weights.

    Raises:
        UserError: Where parts do not fit together, or do not fit the data.
    """
    if config.family == "vae":
        return build_vae(config, facts)
    if config.family == "eae":
        return build_eae(config, facts)
    if config.family != "diffusion":
        raise UserError(f"family: found '{config.family}'; its network is of another project, which nothing here says")
    return build_denoiser(config, facts)


def build_objective(config: Config, denoiser: NetworkDenoiser | AdoptedDenoiser) -> Objective:
    """The training loss of a configuration on the path of a denoiser.

    Raises:
        UserError: For a weighting or a distribution of times that leaves a learned schedule nothing to learn, and times
            of which none are on the path.
    """
    options = config.objective
    if denoiser.schedule.is_learned and options.time != "uniform":
        raise UserError(f"objective.time: found '{options.time}'; schedule.name 'learned' takes uniform")
    gamma = {} if options.min_snr_gamma is None else {"min_snr_gamma": options.min_snr_gamma}
    times = time_distribution(options.time, options.time_mean, options.time_std)
    times.log_snr(denoiser.schedule, torch.tensor([0.5], dtype=torch.float64))  # refused here, before a run is made
    said = config.denoiser.prediction, config.denoiser.sigma_data
    if isinstance(denoiser, AdoptedDenoiser):
        said = denoiser.convention.predicts, denoiser.convention.sigma_data
    if options.weighting == "learned":
        return Objective(Uncertainty(said[0] == "x"), times)
    return Objective(weighting(options.weighting, denoiser.schedule, said[1], **gamma), times)


def build_dequantizer(facts: DataFacts) -> Dequantizer | None:
    """The map between levels and what the denoiser sees; None for continuous data."""
    return None if facts.levels is None else Dequantizer(facts.levels)


def parameter_count(module: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def check_state(state: dict[str, Tensor], module: nn.Module, source: str) -> None:
    """Compare weights with a module before they are loaded.

    Raises:
        UserError: For a weight that is missing, not expected, or of another shape; names the first.
    """
    own = module.state_dict()
    for name in own:
        if name not in state:
            raise UserError(f"{source}: has no weight '{name}', which its configuration needs")
        if state[name].shape != own[name].shape:
            raise UserError(
                f"{source}: weight '{name}' has shape {tuple(state[name].shape)}; "
                f"its configuration needs {tuple(own[name].shape)}"
            )
    for name in state:
        if name not in own:
            raise UserError(f"{source}: holds a weight '{name}' that its configuration does not know")
