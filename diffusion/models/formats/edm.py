"""Network pickles of NVlabs' EDM: `ema`, a network inside its preconditioning, and the arguments that made it.

The preconditioning is the convention (Karras et al. 2022, arXiv 2206.00364, table 1): EDM's own, or that of the
networks which the paper compares with.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...storage.module_pickles import read_pickled
from .fields import Fields
from .known import Known
from .networks import NETWORKS
from .renamed import Pair, layers, renamed, sines_first, sites, under, with_none

CLASSES = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")
NETWORK_CLASSES = {"SongUNet": "song", "DhariwalUNet": "adm"}
MOST, WIDEST = 64, 2**13  # levels, blocks of a level, and multiples of channels; channels
_RESIDUAL = ("norm0", "conv0", "affine", "norm1", "conv1", "skip")
_ATTENTION = ("norm2", "qkv", "proj")
_QKV = "heads width qkv"  # the order of theirs
_UNUSED = ("resample_filter", "map_augment.weight")  # constants; of augmentation, which is only there in training
_NAMES = {"conv_in": "conv", "downsample": "down", "inputs": "aux_residual", "upsample": "up"}


def recognises(path: Path) -> bool:
    """Whether this is a pickle of theirs."""
    if path.suffix != ".pkl" or not path.is_file():
        return False
    with path.open("rb") as file:
        return b"torch_utils.persistence" in file.read(1024)


def read(path: Path) -> Known:
    """The averaged network of a pickle.

    Raises:
        UserError: For a pickle of something else, a class or an argument that is not known.
    """
    found = read_pickled(path, "ema")
    if found.class_name not in CLASSES or not isinstance(found.arguments, dict):
        raise UserError(f"{path}: holds a {str(found.class_name)[:60]}; accepted: {', '.join(CLASSES)}")
    given = Fields(path, found.arguments)
    size, channels = given.whole("img_resolution", None, 2, WIDEST), given.whole("img_channels", 3, high=WIDEST)
    default = "SongUNet" if found.class_name in ("VPPrecond", "VEPrecond") else "DhariwalUNet"
    network = NETWORK_CLASSES[given.word("model_type", default, NETWORK_CLASSES)]
    song = network == "song"
    options = {"channels": channels, "image_size": size, **(_song if song else _adm)(given)}
    if not song and found.class_name == "iDDPMPrecond":
        options["out_channels"] = 2 * channels
    options["unit_range"] = True if song and found.class_name == "VEPrecond" else None
    options = {key: value for key, value in options.items() if value is not None}
    conventions = {"shape": [channels, size, size], "levels": 256, **_conventions(found.class_name, given)}
    if options["num_classes"]:
        none = given.number("label_dropout", 0.0, 0.0, 1.0) > 0
        conventions["labels"] = [options["num_classes"]] * 2 if none else options["num_classes"]
    theirs = {
        name.removeprefix("model."): tensor
        for name, tensor in found.tensors.items()
        if not name.endswith(_UNUSED) and name != "u"
    }
    weights = _weights(network, options, theirs, path)
    sampling = {"sampler": "heun", "grid": "karras", "steps": 18 if size <= 32 else 40, "log_snr_end": 14.0}
    return Known(network, options, weights, conventions, sampling if found.class_name == "EDMPrecond" else {})


def _song(given: Fields) -> dict[str, Any]:
    residual = given.word("encoder_type", "standard", ("standard", "residual")) == "residual"
    given.word("decoder_type", "standard", ("standard",))
    embedding = given.word("embedding_type", "positional", ("positional", "fourier"))
    if given.whole("channel_mult_noise", 1) != (2 if embedding == "fourier" else 1):
        raise given.refuse("channel_mult_noise", "1 with positional, 2 with fourier embedding")
    taps = given.wholes("resample_filter", [1, 1])
    if len(taps) % 2 or len(taps) > MOST:
        raise given.refuse("resample_filter", "an even number of weights")
    multipliers = _counts(given, [1, 2, 2, 2])
    return {
        **_common(given, 128, 4, [16]),
        "multipliers": multipliers,
        "embedding": embedding,
        "taps": taps,
        "residual_input": residual or None,
    }


def _adm(given: Fields) -> dict[str, Any]:
    return {**_common(given, 192, 3, [32, 16, 8]), "multipliers": _counts(given, [1, 2, 3, 4])}


def _counts(given: Fields, default: list[int]) -> list[int]:
    found = given.wholes("channel_mult", default, high=MOST)
    if len(found) > MOST:
        raise given.refuse("channel_mult", f"at most {MOST} numbers")
    return found


def _common(given: Fields, channels: int, blocks: int, attention: list[int]) -> dict[str, Any]:
    return {
        "base_channels": given.whole("model_channels", channels, high=WIDEST),
        "blocks": given.whole("num_blocks", blocks, high=MOST),
        "attention": given.wholes("attn_resolutions", attention),
        "embedding_multiplier": given.whole("channel_mult_emb", 4, high=MOST),
        "num_classes": given.whole("label_dim", 0, 0, 2**20),
        "dropout": given.number("dropout", 0.1, 0.0, 0.999),
    }


def _conventions(kind: str, given: Fields) -> dict[str, Any]:
    """The path, the output and the time argument of the network, by the preconditioning."""
    if kind == "EDMPrecond":
        sigma_data = given.number("sigma_data", 0.5, 1e-6, 1e6)
        return {"path": {"name": "edm"}, "predicts": "edm", "time": "log-sigma/4", "sigma_data": sigma_data}
    if kind == "VEPrecond":  # noise of images in [-1, 1]; the network takes that of images in [0, 1]
        low, high = given.number("sigma_min", 0.02, 1e-9, 1e9), given.number("sigma_max", 100.0, 1e-9, 1e9)
        path = {"name": "ve", "sigma_min": 0.5 * low, "sigma_max": 0.5 * high}
        return {"path": path, "predicts": "-eps", "time": "log-sigma", "data_range": [0, 1]}
    _only(given, "M", 1000.0)
    if kind == "VPPrecond":
        low, more = given.number("beta_min", 0.1, 0.0, 1e6), given.number("beta_d", 19.9, 0.0, 1e6)
        return {"path": {"name": "vp", "beta_min": low, "beta_max": low + more}, "predicts": "eps", "time": "999t"}
    _only(given, "C_1", 0.001)
    _only(given, "C_2", 0.008)
    return {"path": {"name": "ddpm", "steps": 1000, "betas": "cosine"}, "predicts": "eps", "time": "index"}


def _only(given: Fields, key: str, value: float) -> None:
    given.number(key, value, value, value)


def _weights(network: str, options: dict[str, Any], theirs: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    with torch.device("meta"):
        ours = NETWORKS[network](**options)
    made = {}
    if network == "song":
        if "map_noise.freqs" in theirs:
            made["noise.frequencies"] = theirs.pop("map_noise.freqs").float()
        table, none = theirs.pop("map_label.weight", None), theirs.pop("map_label.bias", None)
        if table is not None and none is not None and table.ndim == 2 and none.shape == table.shape[:1]:
            made["classes.weight"] = with_none(math.sqrt(table.shape[1]) * table.T + none, none)
    else:
        table = theirs.pop("map_label.weight", None)
        if table is not None and table.ndim == 2:
            made["conditioning.classes.weight"] = with_none(table.T)
        first = theirs.get("map_layer0.weight")
        if first is not None and first.ndim == 2:
            theirs["map_layer0.weight"] = sines_first(first)
    return renamed(ours, _pairs(ours, options["image_size"]), theirs, str(path), _QKV, made)


def _pairs(ours: Any, size: int) -> list[Pair]:
    """Our layers and theirs: of an encoder and a decoder, each part with its resolution in its name."""
    song = hasattr(ours, "noise")
    embedding = "" if song else "conditioning."
    pairs = [(f"{embedding}dense_{1 + i}", f"map_layer{i}") for i in range(2)]
    last = "dec.{}_aux_{}" if song else "out_{}"
    at = f"{size}x{size}"
    pairs += [(f"body.{part}_out", last.format(at, part) if song else last.format(part)) for part in ("norm", "conv")]
    for name, kind, level, i in sites(ours.body):
        side = f"{size >> level}x{size >> level}"
        if kind in ("conv_in", "inputs"):
            pairs.append((name, f"enc.{side}_{_NAMES[kind]}"))
        elif kind not in ("norm_out", "conv_out"):
            part = _NAMES.get(kind, f"in{i}" if kind == "middle" else f"block{i}")
            half = "enc" if kind in ("down", "downsample") else "dec"
            theirs = f"{half}.{side}_{part}"
            pairs += layers(ours, name, under(theirs, _RESIDUAL), under(theirs, _ATTENTION))
    return pairs
