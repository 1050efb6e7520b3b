"""A model of a known format as plain values and tensors: all that makes it, and what a file of ours keeps of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...config import Config
from ...denoisers.adopted import Labels
from ...denoisers.given import switch
from ...errors import UserError, choose, shown
from ...numerics.arrays import whole_number
from ...samplers.ancestral import VARIANCES
from ...storage.records import DAMAGED, reading
from ..adopt import AdoptedModel, adopt
from ..build import DataFacts, check_state
from .networks import NETWORKS

IN_DENOISER = "network.network."  # what the names in the state of an `AdoptedDenoiser` begin with
_MOST = 256  # parts of a network of one kind
_SAID = ("network", "options", "conventions", "sampling")


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Within the block, errors name the file or folder that they are about."""
    try:
        yield
    except DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise UserError(reason if reason.startswith(source) else f"{source}: {reason}") from error


def own_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a network by its own names, of those of an adopted denoiser's state."""
    return {name.removeprefix(IN_DENOISER): value for name, value in weights.items()}


@dataclass(frozen=True)
class Known:
    """A network with its weights, and the conventions that it was trained by.

    Args:
        network: A name of `NETWORKS`.
        options: The arguments of that, plain values.
        weights: The network's state.
        conventions: Arguments of `adopt`, plain values: a table is a list.
        sampling: Fields of `SamplingConfig`, and `variance`, `steps_offset` and `ends_at_level` of `AdoptedModel`: how
            it is drawn from where nothing else is said.
    """

    network: str
    options: dict[str, Any]
    weights: dict[str, Tensor] = field(repr=False)
    conventions: dict[str, Any]
    sampling: dict[str, Any] = field(default_factory=dict)

    def model(
        self, source: str | Path, config: Config | None = None, facts: DataFacts | None = None, step: int = 0
    ) -> AdoptedModel:
        """The model, on the CPU, in evaluation mode.

        Args:
            source: The file or folder it was read from.
            config, facts, step: Of a run that trained it further; it is then drawn from by the run's options.

        Raises:
            UserError: For weights that are not the network's, and conventions that do not fit together.
        """
        source = str(source)
        with _naming(source):
            return self._model(self._built(source), source, config, facts, step)

    def untrained(self, config: Config, facts: DataFacts) -> AdoptedModel:
        """The model of a run, with fresh weights, in evaluation mode.

        Raises:
            UserError: As `model`.
        """
        source = str(config.trainer.start)
        with _naming(source):
            return self._model(self._network(source)(), source, config, facts, 0)

    def _model(
        self, network: nn.Module, source: str, config: Config | None, facts: DataFacts | None, step: int
    ) -> AdoptedModel:
        model = adopt(network, **self.conventions)
        model.source, model.known, model.step = source, self, step
        if config is not None and facts is not None:
            if facts.shape != model.facts.shape or facts.levels != model.facts.levels:
                raise UserError(f"{source}: its network and its data are not of the same shape and levels")
            model.config, model.facts = config, facts
            return model  # what follows is of the source's own sampler, and this one is drawn by the run's
        sampling = dict(self.sampling)
        if (variance := sampling.pop("variance", None)) is not None:
            model.variance = choose("variance", str(variance), VARIANCES)
        model.steps_offset = whole_number("steps_offset", sampling.pop("steps_offset", 0), 0)
        model.ends_at_level = switch("ends_at_level", sampling.pop("ends_at_level", False))
        model.own_grid = sampling.get("grid")
        model.config = model.config.replace(sampling=model.config.sampling.replace(**sampling))
        return model

    def for_data(self, facts: DataFacts, conditional: bool) -> tuple[Known, list[str]]:
        """The model as it begins to be trained on other data, the same function where its labels are none.

        Args:
            facts: The data.
            conditional: Whether their classes are what it is conditioned on.

        Returns:
            It, and what is other than before, a line each.

        Raises:
            UserError: For data that the network does not take.
        """
        shape, levels = tuple(self.conventions["shape"]), self.conventions.get("levels")
        name, multiple = f"'{facts.name}'", self._size_multiple()
        if len(facts.shape) != len(shape) or facts.shape[0] != shape[0]:
            needs = f"{shape[0]} channels and {len(shape) - 1} sides"
            raise UserError(f"takes data of {needs}, and {name} has {facts.shape}")
        if (facts.levels is None) != (levels is None):
            kinds = ["real numbers" if of is None else "images of levels" for of in (levels, facts.levels)]
            raise UserError(f"takes {kinds[0]}, and {name} has {kinds[1]}")
        if facts.shape != shape and (multiple is None or any(side % multiple for side in facts.shape[1:])):
            more = "" if multiple is None else f", or sides that are multiples of {multiple}"
            raise UserError(f"takes data of shape {shape}{more}, and {name} has {facts.shape}")
        made = replace(self, conventions={**self.conventions, "shape": list(facts.shape), "levels": facts.levels})
        notes = [
            f"{what}: {before} in its training, {now} now"
            for what, before, now in (("size", shape[1:], facts.shape[1:]), ("grey levels", levels, facts.levels))
            if before != now
        ]
        labels = Labels(self.conventions.get("labels"))
        if not conditional and (labels.is_needed or (self.network == "diffusers" and labels.classes)):
            way_out = f", and {name} has none" if not facts.num_classes else "; give denoiser.conditional=true"
            raise UserError(f"needs a label of every sample{way_out}")
        if not conditional and labels.classes:
            del made.conventions["labels"]
            notes.append(f"labels: its {labels.classes} classes are left out; the run takes no labels")
        elif conditional and labels.classes != facts.num_classes:
            made = made._with_classes(labels, facts.num_classes)
            notes.append(
                f"labels: {labels.classes} classes in its training, {facts.num_classes} now: a new label embedding"
            )
        if conditional and labels.is_needed:
            notes.append("labels: the network needs one of every sample, so that none is dropped")
        return made, notes

    def _size_multiple(self) -> int | None:
        """What sides have to be multiples of; None where the network takes its own size alone."""
        if self.network == "diffusers":
            return None
        return self.options["patch_size"] if self.network == "dit" else 2 ** (len(self.options["multipliers"]) - 1)

    def _with_classes(self, labels: Labels, classes: int) -> Known:
        """It with new embeddings of other classes; what stands for none stays.

        Raises:
            UserError: For a network whose labels are in no table.
        """
        options = self._options_with(labels, classes)
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in NETWORKS[self.network](**options).state_dict().items()}
        weights = dict(self.weights)
        for name, shape in shapes.items():
            before = weights.get(name)
            if before is None or before.shape != shape:
                weights[name] = torch.randn(shape)  # as torch's own
                if not labels.is_needed:
                    weights[name][-1] = 0.0 if before is None else before[-1]
        said = {**self.conventions, "labels": classes if labels.is_needed else [classes, classes]}
        return replace(self, options=options, weights=weights, conventions=said)

    def _options_with(self, labels: Labels, classes: int) -> dict[str, Any]:
        """The options of the network with as many classes, and a row of their table for none where it has one."""
        if self.network != "diffusers":
            return {**self.options, "num_classes": self.options["num_classes"] + classes - labels.classes}
        config = self.options["config"]
        if config.get("class_embed_type") is not None:
            raise UserError(
                f"has a network with class_embed_type {shown(config['class_embed_type'])}, which has no table of "
                f"classes to be replaced by one of {classes}; leave out denoiser.conditional"
            )
        of_unet = self.options["kind"] == "UNet2DModel"  # the other one adds the row for none itself
        key = "num_class_embeds" if of_unet else "num_embeds_ada_norm"
        count = classes + (of_unet and not labels.is_needed)
        return {**self.options, "config": {**config, key: count}}

    def _network(self, source: str) -> Callable[[], nn.Module]:
        """What makes the network, of as many parts as can be."""
        make = NETWORKS[choose("network", self.network, NETWORKS)]
        for key, value in self.options.items():
            count = len(value) if isinstance(value, list) else value if key in ("blocks", "depth") else 0
            if not isinstance(count, int) or count > _MOST:
                raise UserError(f"{source}: {key}: found {shown(value)}; needs at most {_MOST}")
        return partial(make, **self.options)

    def _built(self, source: str) -> nn.Module:
        """The network with its weights; memory is taken only where the weights are of its size."""
        make = self._network(source)
        with torch.device("meta"):
            check_state(self.weights, make(), source)
        network = make()
        network.load_state_dict(self.weights)
        return network

    def to_json(self) -> str:
        """All but the weights, for the metadata of a file."""
        return json.dumps({key: getattr(self, key) for key in _SAID})

    @classmethod
    def from_json(cls, text: str, weights: dict[str, Tensor], source: str) -> Known:
        """The inverse of `to_json`, with weights by the names of the network, or of the module of a run.

        Raises:
            UserError: For a text that is not of `to_json`.
        """
        with reading(f"{source}: what it says of its network is damaged"):
            values = {key: json.loads(text)[key] for key in _SAID}
            if not all(isinstance(values[key], dict) for key in _SAID[1:]):
                raise ValueError("not options by name")
            if not isinstance(values["conventions"].get("name"), str):
                raise ValueError("no name")
            return cls(**values, weights=own_names(weights))
