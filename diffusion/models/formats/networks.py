"""The networks of known formats by name, each built from plain options: ours, and those of an installed library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ...errors import UserError, choose, library, shown
from ...networks import ADM, DiT, SongUNet, UNet

LIBRARY_CLASSES = ("UNet2DModel", "DiTTransformer2DModel")
# The most parts of a kind, and the longest side of what it computes in building: a file says the numbers.
_MOST, _MOST_PATCHES, _WIDEST = 64, 128, 8192


def of_diffusers(kind: str, config: dict[str, Any]) -> nn.Module:
    """A network of the library diffusers, from the content of its config.json.

    Raises:
        UserError: Where the library is not installed, or does not take this configuration.
    """
    choose("_class_name", kind, LIBRARY_CLASSES)
    _check_size(config)
    theirs = library("diffusers", "diffusers", f"{kind}: this network is none of ours, and is computed by the library")
    try:
        return getattr(theirs, kind).from_config(config)
    except Exception as error:  # of somebody else's code, with values of a file
        raise UserError(f"config.json: {kind} does not take it ({type(error).__name__}: {error})"[:300]) from error


def _check_size(config: dict[str, Any]) -> None:
    """Refuse numbers that would be computed with for hours before they are compared with the weights."""
    sides = config.get("sample_size")
    side = max(sides) if isinstance(sides, list) else sides
    width = config.get("num_attention_heads", 1) * config.get("attention_head_dim", 1) if "num_layers" in config else 1
    counts = {
        "layers_per_block": config.get("layers_per_block", 1),
        "num_layers": config.get("num_layers", 1) / 4,
        "block_out_channels": len(config.get("block_out_channels", ())),
        "down_block_types": len(config.get("down_block_types", ())),
    }
    for key, count in counts.items():
        if not count <= _MOST:
            raise UserError(f"config.json: {key}: found {shown(config[key])}; is too many")
    if "num_layers" in config and not (side / config["patch_size"] <= _MOST_PATCHES and width <= _WIDEST):
        raise UserError(f"config.json: sample_size, attention_head_dim: found {side}, {width} in all; is too large")


# The arguments of each are the `options` of a `known.Known`.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "dit": DiT,
    "song": SongUNet,
    "adm": ADM,
    "diffusers": of_diffusers,
}
