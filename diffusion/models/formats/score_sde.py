"""Checkpoints of score_sde_pytorch (Song et al. 2021, arXiv 2011.13456): layers in one list, in the order of use.

What they do not say is in their configurations, here by the names that these have there. A checkpoint is known by its
folder: `vp/cifar10_ddpmpp_continuous/checkpoint_8.pth`, or by `configuration=` of `load`.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError, did_you_mean
from ...storage.foreign_weights import read_weights
from .known import Known
from .networks import NETWORKS
from .renamed import Pair, attended, layers, renamed, sites, under

_VP = {"path": {"name": "vp"}, "predicts": "eps", "time": "999t"}
_SUB_VP = {**_VP, "path": {"name": "sub-vp"}}
_VE = {"path": {"name": "ve"}, "predicts": "-eps", "time": "log-sigma", "data_range": [0, 1]}
_DDPM, _DDPMPP = {"ddpm": True, "blocks": 2}, {"blocks": 4}
_NCSNPP = {"blocks": 4, "taps": [1, 3, 3, 1], "residual_input": True}
_FOURIER = {"embedding": "fourier", "unit_range": True}
_DEEP = {"blocks": 8}
# From the name of a configuration to options of the network and conventions. Those of discrete times are evaluated as
# those of continuous ones, as their likelihoods are.
CONFIGURATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vp/cifar10_ddpm": (_DDPM, _VP),
    "vp/cifar10_ddpm_continuous": (_DDPM, _VP),
    "vp/cifar10_ddpmpp": (_DDPMPP, _VP),
    "vp/cifar10_ddpmpp_continuous": (_DDPMPP, _VP),
    "vp/cifar10_ddpmpp_deep_continuous": ({**_DDPMPP, **_DEEP}, _VP),
    "vp/cifar10_ncsnpp": (_NCSNPP, _VP),
    "vp/cifar10_ncsnpp_continuous": (_NCSNPP, _VP),
    "vp/cifar10_ncsnpp_deep_continuous": ({**_NCSNPP, **_DEEP}, _VP),
    "subvp/cifar10_ddpm_continuous": (_DDPM, _SUB_VP),
    "subvp/cifar10_ddpmpp_continuous": (_DDPMPP, _SUB_VP),
    "subvp/cifar10_ddpmpp_deep_continuous": ({**_DDPMPP, **_DEEP}, _SUB_VP),
    "subvp/cifar10_ncsnpp_continuous": (_NCSNPP, _SUB_VP),
    "subvp/cifar10_ncsnpp_deep_continuous": ({**_NCSNPP, **_DEEP}, _SUB_VP),
    "ve/cifar10_ncsnpp_continuous": ({**_NCSNPP, **_FOURIER}, _VE),
    "ve/cifar10_ncsnpp_deep_continuous": ({**_NCSNPP, **_FOURIER, **_DEEP}, _VE),
}
SIZE, CHANNELS = 32, 3
_RESIDUAL = ("GroupNorm_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1")  # and the shortcut
_ATTENTION = ("GroupNorm_0", "NIN_0", "NIN_3")
_LAYERS = "all_modules"


def recognises(path: Path) -> bool:
    """Whether this is a checkpoint of theirs: by its suffix, and the names in it."""
    if path.suffix != ".pth" or not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            return name is not None and _LAYERS.encode() in archive.open(name).read(2**20)
    except Exception:  # of an archive from anybody
        return False


def read(path: Path, configuration: Any = None) -> Known:
    """The averaged network of a checkpoint.

    Args:
        path: The file.
        configuration: A name of `CONFIGURATIONS`; by default that of its folder.

    Raises:
        UserError: For a configuration that is not known, and weights that are not its own.
    """
    named = "/".join(path.resolve().parent.parts[-2:]) if configuration is None else configuration
    if not isinstance(named, str) or named not in CONFIGURATIONS:
        near = did_you_mean(str(named), CONFIGURATIONS)
        where = (
            "is in no folder with the name of its configuration" if configuration is None else f"'{named}' is unknown"
        )
        raise UserError(
            f"{path}: configuration: {where}; accepted: {', '.join(CONFIGURATIONS)}; as its folders, or as "
            f"configuration= of load.{near}"
        )
    options, conventions = CONFIGURATIONS[named]
    return known(path, {"channels": CHANNELS, "image_size": SIZE, **options}, conventions)


def known(path: Path, options: dict[str, Any], conventions: dict[str, Any]) -> Known:
    """A checkpoint of the network of these options."""
    with torch.device("meta"):
        ours = NETWORKS["song"](**options)
    theirs = {name: value for name, value in read_weights(path).items() if name != "sigmas"}
    made = {}
    if f"{_LAYERS}.0.W" in theirs and theirs[f"{_LAYERS}.0.W"].ndim == 1:
        made["noise.frequencies"] = theirs.pop(f"{_LAYERS}.0.W").float()
    weights = renamed(ours, _pairs(ours, 1 if made else 0), _plain(theirs), str(path), made=made)
    size, channels = options["image_size"], options["channels"]
    conventions = {"shape": [channels, size, size], "levels": 256, **conventions}
    return Known("song", options, weights, conventions)


def _plain(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Maps of the channels, `W` (in, out) and `b`, as linear ones; those of queries, keys and values as one."""
    plain: dict[str, Tensor] = {}
    for name, value in theirs.items():
        layer, _, part = name.rpartition(".")
        if part in ("W", "b") and value.ndim == (2 if part == "W" else 1):
            value, name = value.T if part == "W" else value, f"{layer}.{'weight' if part == 'W' else 'bias'}"
            attention, _, which = layer.rpartition(".")
            first = f"{attention}.NIN_0.{name.rpartition('.')[2]}"  # queries, and after them keys and values
            if which in ("NIN_1", "NIN_2") and first in plain and plain[first].shape[1:] == value.shape[1:]:
                plain[first] = torch.cat([plain[first], value])
                continue
        plain[name] = value
    return plain


def _pairs(ours: Any, first: int) -> list[Pair]:
    """Our layers and theirs, which have numbers in the order of their use; attention is a layer of its own."""
    pairs, place = [], first

    def take() -> str:
        nonlocal place
        place += 1
        return f"{_LAYERS}.{place - 1}"

    pairs += [("dense_1", take()), ("dense_2", take())]
    for name, kind, _, _ in sites(ours.body):
        theirs = take()
        if kind in ("conv_in", "norm_out", "conv_out"):
            pairs.append((name, theirs))
        elif kind == "inputs":
            pairs.append((name, f"{theirs}.Conv2d_0"))
        elif ours.ddpm and kind in ("downsample", "upsample"):
            pairs.append((f"{name}.conv", f"{theirs}.Conv_0"))
        else:
            shortcut = "NIN_0" if ours.ddpm else "Conv_2"
            attention = take() if attended(ours, name) else ""
            pairs += layers(ours, name, under(theirs, (*_RESIDUAL, shortcut)), under(attention, _ATTENTION))
    return pairs
