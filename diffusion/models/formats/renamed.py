"""The state of one of our networks from the weights of somebody else's of the same function, under their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from ...errors import UserError
from ...networks.attention import TokenAttention
from ...networks.body import AttendedBlock, Body

Pair = tuple[str, str]  # a layer of ours, and its name there
# Layers of a residual block, and of the attention after it, in our names.
RESIDUAL = ("norm_1", "conv_1", "dense", "norm_2", "conv_2", "shortcut")
ATTENTION = ("norm", "attention.qkv", "attention.out")


def sites(body: Body) -> Iterator[tuple[str, str, int, int]]:
    """The layers and blocks of a body, in the order in which they are called.

    Yields:
        Its name in the network, its kind (the name of the list that holds it), its level, and its place there.
    """
    last = len(body.down) - 1
    yield "body.conv_in", "conv_in", 0, 0
    for level, blocks in enumerate(body.down):
        if level > 0:
            yield f"body.downsample.{level - 1}", "downsample", level, 0
            if body.inputs is not None:
                yield f"body.inputs.{level - 1}.conv", "inputs", level, 0
        for i in range(len(blocks)):
            yield f"body.down.{level}.{i}", "down", level, i
    for i in range(len(body.middle)):
        yield f"body.middle.{i}", "middle", last, i
    for place, blocks in enumerate(body.up):
        if place > 0:
            yield f"body.upsample.{place - 1}", "upsample", last - place, 0
        for i in range(len(blocks)):
            yield f"body.up.{place}.{i}", "up", last - place, i
    yield "body.norm_out", "norm_out", 0, 0
    yield "body.conv_out", "conv_out", 0, 0


def attended(network: nn.Module, name: str) -> bool:
    """Whether a block of this name has attention."""
    block = network.get_submodule(name)
    return isinstance(block, AttendedBlock) and not isinstance(block.attention, nn.Identity)


def layers(network: nn.Module, name: str, residual: Iterable[str], attention: Iterable[str]) -> list[Pair]:
    """The layers of a block of ours, and theirs.

    Args:
        network: Ours.
        name: The block.
        residual, attention: Their names of the layers in `RESIDUAL` and `ATTENTION`; the second, if it has attention.
    """
    inner = f"{name}.residual" if isinstance(network.get_submodule(name), AttendedBlock) else name
    pairs = [(f"{inner}.{own}", their) for own, their in zip(RESIDUAL, residual, strict=True)]
    if attended(network, name):
        pairs += [(f"{name}.attention.{own}", their) for own, their in zip(ATTENTION, attention, strict=True)]
    return pairs


def under(prefix: str, names: Iterable[str]) -> list[str]:
    """Full names of layers that lie under one."""
    return [f"{prefix}.{name}" for name in names]


def renamed(
    network: nn.Module,
    pairs: Iterable[Pair],
    theirs: dict[str, Tensor],
    source: str,
    qkv: str = "qkv heads width",
    made: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The state of our network, float32.

    Args:
        network: Ours, of which only shapes are used.
        pairs: Layers by both names.
        theirs: Their weights by name; a 1x1 convolution may stand for a linear map.
        source: The file, for messages.
        qkv: How the outputs of their map to queries, keys and values are ordered.
        made: Weights that are ready, by our names.

    Raises:
        UserError: For a weight that is missing or left over, or of another size.
    """
    own, left, state = network.state_dict(), dict(theirs), dict(made or {})
    for name, their in pairs:
        for part in ("weight", "bias"):
            key, found = f"{name}.{part}", left.pop(f"{their}.{part}", None)
            if key not in own or key in state:
                if found is not None and key not in own:
                    left[f"{their}.{part}"] = found
                continue
            if found is None:
                raise UserError(f"{source}: has no weight '{their}.{part}', which its configuration needs")
            if found.numel() != own[key].numel():
                raise UserError(
                    f"{source}: weight '{their}.{part}' has shape {tuple(found.shape)}; its configuration needs "
                    f"{tuple(own[key].shape)}"
                )
            if name.endswith("attention.qkv"):
                attention = cast(TokenAttention, network.get_submodule(name.removesuffix(".qkv")))
                found = rearrange(found, f"({qkv}) ... -> (qkv heads width) ...", qkv=3, heads=attention.heads)
            state[key] = found.reshape(own[key].shape).float()
    if left:
        raise UserError(f"{source}: holds a weight '{next(iter(left))}' that its configuration does not know")
    return state


def with_none(table: Tensor, none: Tensor | None = None) -> Tensor:
    """An embedding of classes (n, features) with one more row, for none: zero if nothing is given."""
    return torch.cat([table, torch.zeros_like(table[:1]) if none is None else none[None]]).float()


def sines_first(weight: Tensor) -> Tensor:
    """A linear map of cosines and then sines, as one of sines and then cosines."""
    return weight.roll(weight.shape[1] // 2, dims=1)
