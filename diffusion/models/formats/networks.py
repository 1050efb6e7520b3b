"""The networks of known formats by name, each built from plain options: ours, and those of an installed library."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from ...errors import UserError, choose
from ...networks import ADM, DiT, SongUNet, UNet

LIBRARY_CLASSES = ("UNet2DModel", "DiTTransformer2DModel")


def of_diffusers(kind: str, config: dict[str, Any]) -> nn.Module:
    """A network of the library diffusers, from the content of its config.json.

    Raises:
        UserError: Where the library is not installed, or does not take this configuration.
    """
    choose("_class_name", kind, LIBRARY_CLASSES)
    try:
        library = importlib.import_module("diffusers")
    except ImportError as error:
        raise UserError(
            f"{kind}: this network is none of ours, and is computed by the library diffusers, which is not installed; "
            "pip install 'diffusion[diffusers]'"
        ) from error
    return getattr(library, kind).from_config(config)


# The arguments of each are the `options` of a `known.Known`.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "dit": DiT,
    "song": SongUNet,
    "adm": ADM,
    "diffusers": of_diffusers,
}
