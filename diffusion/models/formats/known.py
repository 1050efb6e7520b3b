"""A model of a known format as plain values and tensors: all that makes it, and what a file of ours keeps of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...denoisers.given import whole_number
from ...errors import UserError, choose, shown
from ...samplers.ancestral import VARIANCES
from ...storage.records import DAMAGED, reading
from ..adopt import AdoptedModel, adopt
from ..build import check_state
from .networks import NETWORKS

_MOST = 256  # parts of a network of one kind
_SAID = ("network", "options", "conventions", "sampling")


@contextmanager
def _told_of(source: str) -> Iterator[None]:
    """Within the block, what is refused is told with the file or folder that it came from."""
    try:
        yield
    except DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise UserError(reason if reason.startswith(source) else f"{source}: {reason}") from error


@dataclass(frozen=True)
class Known:
    """A network with its weights, and the conventions that it was trained by.

    Args:
        network: A name of `NETWORKS`.
        options: The arguments of that, plain values.
        weights: The network's state.
        conventions: Arguments of `adopt`, plain values: a table is a list.
        sampling: Fields of `SamplingConfig`, and `variance` and `steps_offset` of `AdoptedModel`: how it is drawn from
            where nothing else is said.
    """

    network: str
    options: dict[str, Any]
    weights: dict[str, Tensor] = field(repr=False)
    conventions: dict[str, Any]
    sampling: dict[str, Any] = field(default_factory=dict)

    def model(self, source: str | Path) -> AdoptedModel:
        """The model, on the CPU, in evaluation mode.

        Args:
            source: The file or folder it was read from.

        Raises:
            UserError: For weights that are not the network's, and conventions that do not fit together.
        """
        source = str(source)
        with _told_of(source):
            model = adopt(self._built(source), **self.conventions)
            model.source, model.known = source, self
            sampling = dict(self.sampling)
            if (variance := sampling.pop("variance", None)) is not None:
                model.variance = choose("variance", str(variance), VARIANCES)
            model.steps_offset = whole_number("steps_offset", sampling.pop("steps_offset", 0), 0)
            model.config = model.config.replace(sampling=model.config.sampling.replace(**sampling))
        return model

    def _built(self, source: str) -> nn.Module:
        """The network with its weights; memory is taken only where the weights are of its size."""
        make = NETWORKS[choose("network", self.network, NETWORKS)]
        for key, value in self.options.items():
            count = len(value) if isinstance(value, list) else value if key in ("blocks", "depth") else 0
            if not isinstance(count, int) or count > _MOST:
                raise UserError(f"{source}: {key}: found {shown(value)}; needs at most {_MOST}")
        with torch.device("meta"):
            check_state(self.weights, make(**self.options), source)
        network = make(**self.options)
        network.load_state_dict(self.weights)
        return network

    def to_json(self) -> str:
        """All but the weights, for the metadata of a file."""
        return json.dumps({key: getattr(self, key) for key in _SAID})

    @classmethod
    def from_json(cls, text: str, weights: dict[str, Tensor], source: str) -> Known:
        """The inverse of `to_json`.

        Raises:
            UserError: For a text that is not of `to_json`.
        """
        with reading(f"{source}: what it says of its network is damaged"):
            values = {key: json.loads(text)[key] for key in _SAID}
            if not all(isinstance(values[key], dict) for key in _SAID[1:]):
                raise ValueError("not options by name")
            if not isinstance(values["conventions"].get("name"), str):
                raise ValueError("no name")
            return cls(**values, weights=weights)
