"""Low-rank factors on the weights of a trained network, which stay as they are: W + B A (Hu et al. 2021, LoRA).

Factors are of the weights of attention and of convolutions, a convolution's as the matrix of its outputs by everything
else. B (outputs, rank) begins at zero, so that the network begins as it was, to the bit; A (rank, inputs) begins as a
linear layer's weight does. Their product has no further factor (the paper's alpha is the rank).

In a module the factors are a parametrisation of torch; in a file they are `NAME.weight.up`, B, and `NAME.weight.down`,
A.

The entry `low_rank` of such a file says where the base was and the SHA-256 of its file. It is looked for there and,
where runs have been moved together, next to the model.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from ..config import Config
from ..errors import UserError
from ..networks.attention import TokenAttention
from ..networks.layers import CONVOLUTIONS
from ..storage import runs

KEY = "low_rank"
_LONGEST = 8  # files on top of one another
_UP, _DOWN = ".up", ".down"
_IN_MODULE = ".parametrizations.weight.0."


class LowRank(nn.Module):
    """weight + up @ down.

    Args:
        weight: Shape (outputs, ...), of at least two dimensions.
        rank: The rank of the product, at most that of the weight.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outputs, inputs = weight.flatten(1).shape
        rank = min(rank, outputs, inputs)
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))
        self.down = nn.Parameter(weight.new_empty(rank, inputs))
        nn.init.kaiming_uniform_(self.down, math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return _sum(weight, self.up, self.down)


def _sum(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return weight + (up @ down).view_as(weight)


def add_factors(model: nn.Module, rank: int, whole: Collection[str] = ()) -> int:
    """Put factors on the weights of attention and of convolutions of a model, in place, and freeze all else.

    Args:
        model: A model with a network of ours.
        rank: Their rank.
        whole: The names of parameters to train as they are.

    Returns:
        How many weights have factors.

    Raises:
        UserError: For a network that has neither attention nor convolutions.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in whole)
    layers = list(_layers(model))
    if not layers:
        raise UserError(
            f"trainer.lora: found {rank}; factors are of attention and convolutions, and the network has none"
        )
    for layer in layers:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        register_parametrization(layer, "weight", LowRank(weight, rank))
    return len(layers)


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    for part in model.modules():
        if isinstance(part, tuple(CONVOLUTIONS.values())):
            yield part
        elif isinstance(part, TokenAttention):
            yield from (part.qkv, part.out)


def learned_names(model: nn.Module) -> list[str]:
    """The names, in the model's state dict, of what is trained of it."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def for_file(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Factors, and weights that are trained whole, by their names in a file."""
    return {name.replace(_IN_MODULE, ".weight."): value for name, value in state.items()}


def merge(base: Mapping[str, Tensor], learned: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The weights of a model, of those of its base and of what a file of factors holds.

    Args:
        base: The base's weights.
        learned: As of `for_file`.
        names: Of the model's weights; what else the base has is left out.

    Raises:
        ValueError: For factors of nothing, or of shapes that do not fit.
    """
    made = {name: learned[name] if name in learned else base[name] for name in names if name in learned or name in base}
    left = set(learned) - set(made)
    for name in [name for name in left if name.endswith(_UP)]:
        of, other = name.removesuffix(_UP), name.removesuffix(_UP) + _DOWN
        if of not in made or of in learned or other not in left:
            continue
        up, down, weight = learned[name], learned[other], made[of]
        matrix = weight.flatten(1).shape if weight.ndim > 1 else None
        if up.ndim != 2 or down.ndim != 2 or len(down) != up.shape[1] or (len(up), down.shape[1]) != matrix:
            raise ValueError(
                f"factors {tuple(up.shape)} and {tuple(down.shape)} do not fit '{of}' {tuple(weight.shape)}"
            )
        made[of] = _sum(weight, up.to(weight.dtype), down.to(weight.dtype))
        left -= {name, other}
    if left:
        raise ValueError(f"'{min(left)}' belongs to no weight")
    return made


def describe(config: Config) -> str:
    """The entry for a run that trains factors on `trainer.start`."""
    start = str(config.trainer.start)
    path = runs.resolve_weights(start, config.runs)
    base = start if runs.shipped_file(start) == path else str(path.absolute())
    return json.dumps({"base": base, "sha256": runs.file_digest(path)})


def _said(entry: str, source: str) -> tuple[str, str]:
    try:
        said = json.loads(entry)
        base, sha256 = said["base"], said["sha256"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise UserError(f"{source}: what it says of its base is damaged; train it again") from error
    if not (isinstance(base, str) and isinstance(sha256, str)):
        raise UserError(f"{source}: what it says of its base is damaged; train it again")
    return base, sha256


def require_same_base(here: Mapping[str, str], there: Mapping[str, str]) -> None:
    """Refuse to go on with factors on another model than before.

    Raises:
        UserError: For other weights of `trainer.start` than those that a checkpoint's factors were trained on.
    """
    base, sha256 = _said(here[KEY], "the run")
    if KEY not in there or _said(there[KEY], "the checkpoint")[1] != sha256:
        raise UserError(f"trainer.start: {base} is not the model any more that this run started from; bring that back")


def _files(base: str, path: Path) -> list[Path]:
    """The files that may be the base of the model at a path.

    Raises:
        ValueError, OSError: For what is no name of a file.
    """
    if b"\0" in os.fsencode(base):
        raise ValueError("embedded null byte")  # some versions of Python say so, others that there is no such file
    if (shipped := runs.shipped_file(base)) is not None:
        return [shipped]
    named, folder = Path(base), path.absolute().parent
    of_run = named.parent.name if named.name == runs.MODEL else "."
    places = [named, folder.parent / of_run / named.name, folder / named.name]
    files = [place for place in places if place.suffix in (".safetensors", ".ckpt") and place.is_file()]
    return [place for place in files if not place.samefile(path)]


def base_of(entry: str, path: Path, above: tuple[Path, ...]) -> Path:
    """The file of the model that a file's factors are on.

    Args:
        entry: What the file says.
        path: The file.
        above: The files whose factors are on this one's model.

    Raises:
        UserError: For a base that is not there, or has changed, and for files that go round in a circle.
    """
    base, sha256 = _said(entry, str(path))
    if len(above) >= _LONGEST or path in above:
        raise UserError(f"{above[0]}: its base has a base, and so on, more than {_LONGEST} times")
    try:
        found = _files(base, path)
    except PermissionError as error:
        raise UserError(f"{path}: its base, {error.filename}, cannot be read ({error.strerror})") from error
    except (OSError, ValueError) as error:  # no name of a file: one that is too long, or has a zero in it
        raise UserError(f"{path}: what it says of its base is damaged; train it again") from error
    for place in found:
        if runs.file_digest(place) == sha256:
            return place
    what = f"{found[0]} is another model now (its SHA-256 differs)" if found else f"{base} is not there"
    raise UserError(
        f"{path}: holds factors on the weights of another model, and {what}; bring it back, there or next to this one"
    )
