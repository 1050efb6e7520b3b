"""Checkpoints of improved-diffusion (arXiv 2102.09672) and guided-diffusion (2105.05233): a state dict of the average.

What it does not say is in the flags of their scripts, here by the names of the published files. A file of another name
takes `configuration=` of `load`, one of these names or their flags.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError, did_you_mean
from ...storage.foreign_weights import read_weights
from .fields import Fields
from .known import Known
from .networks import NETWORKS
from .renamed import Pair, attended, layers, renamed, sines_first, sites, under, with_none

MOST, WIDEST = 64, 2**13  # levels, and blocks of a level; channels
CHANNELS, CLASSES = 3, 1000
# Their flags where a file says nothing else, and levels of each size.
DEFAULTS = {
    "image_size": 64, "num_channels": 128, "num_res_blocks": 2, "num_heads": 4, "num_head_channels": -1,
    "attention_resolutions": "16,8", "channel_mult": "", "dropout": 0.0, "class_cond": False, "learn_sigma": False,
    "use_scale_shift_norm": True, "resblock_updown": False, "use_new_attention_order": False, "diffusion_steps": 1000,
    "noise_schedule": "linear", "rescale_timesteps": False, "predict_xstart": False,
}  # fmt: skip
MULTIPLIERS = {
    512: [0.5, 1, 1, 2, 2, 4, 4], 256: [1, 1, 2, 2, 4, 4], 128: [1, 1, 2, 3, 4], 64: [1, 2, 3, 4], 32: [1, 2, 2, 2],
}  # fmt: skip
_COSINE = {"learn_sigma": True, "diffusion_steps": 4000, "noise_schedule": "cosine", "num_res_blocks": 3}
_CIFAR10 = {**_COSINE, "image_size": 32, "dropout": 0.3, "rescale_timesteps": True}
_IMAGENET = {**_COSINE, "rescale_timesteps": True}
_BEDROOM = {
    "image_size": 256, "num_heads": 1, "learn_sigma": True, "use_scale_shift_norm": False,
    "attention_resolutions": "16",
}  # fmt: skip
_ADM = {
    "attention_resolutions": "32,16,8", "learn_sigma": True, "num_channels": 256, "num_head_channels": 64,
    "resblock_updown": True,
}  # fmt: skip
_LSUN = {**_ADM, "image_size": 256, "dropout": 0.1}
# From the name of a published file to flags.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "cifar10_uncond_50M_500K": _CIFAR10,
    "cifar10_uncond_vlb_50M_500K": _CIFAR10,
    "imagenet64_uncond_100M_1500K": _IMAGENET,
    "imagenet64_uncond_vlb_100M_1500K": _IMAGENET,
    "imagenet64_cond_270M_250K": {**_COSINE, "num_channels": 192, "class_cond": True},
    "lsun_uncond_100M_1200K_bs128": _BEDROOM,
    "lsun_uncond_100M_2400K_bs64": _BEDROOM,
    "64x64_diffusion": {
        **_ADM, "num_channels": 192, "num_res_blocks": 3, "class_cond": True, "noise_schedule": "cosine",
        "dropout": 0.1, "use_new_attention_order": True,
    },
    "128x128_diffusion": {**_ADM, "image_size": 128, "class_cond": True, "num_head_channels": -1},
    "256x256_diffusion": {**_ADM, "image_size": 256, "class_cond": True},
    "256x256_diffusion_uncond": {**_ADM, "image_size": 256},
    "512x512_diffusion": {**_ADM, "image_size": 512, "class_cond": True},
    "lsun_bedroom": _LSUN,
    "lsun_cat": _LSUN,
    "lsun_horse": _LSUN,
    "lsun_horse_nodropout": {**_LSUN, "dropout": 0.0},
}  # fmt: skip
_RESIDUAL = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
_ATTENTION = ("norm", "qkv", "proj_out")


def recognises(path: Path) -> bool:
    """Whether this is a file of theirs, by the names in it."""
    if path.suffix != ".pt" or not path.is_file():
        return False
    with path.open("rb") as file:
        return b"time_embed.0.weight" in file.read(2**20)


def read(path: Path, configuration: Any = None) -> Known:
    """The network of a file.

    Args:
        path: The file.
        configuration: A name of `CONFIGURATIONS`, or flags by name; by default that of the file.

    Raises:
        UserError: For a configuration that is not known, and weights that are not its own.
    """
    named = path.stem if configuration is None else configuration
    if isinstance(named, Mapping):
        flags = dict(named)
        for key in flags:
            if key not in DEFAULTS:
                near = did_you_mean(str(key), DEFAULTS)
                raise UserError(f"{path}: configuration: no flag '{key}'; accepted: {', '.join(DEFAULTS)}.{near}")
    elif isinstance(named, str) and named in CONFIGURATIONS:
        flags = CONFIGURATIONS[named]
    else:
        raise UserError(
            f"{path}: configuration: '{named}' is unknown; accepted: {', '.join(CONFIGURATIONS)}; as the name of the "
            "file, or as configuration= of load, which takes a dictionary of the flags of their scripts too."
            f"{did_you_mean(str(named), CONFIGURATIONS)}"
        )
    given = Fields(path, {**DEFAULTS, **flags})
    options, conventions = _options(given), _conventions(given)
    with torch.device("meta"):
        ours = NETWORKS["adm"](**options)
    theirs, made = read_weights(path, prefix=""), {}
    if (table := theirs.pop("label_emb.weight", None)) is not None:
        made["conditioning.classes.weight"] = with_none(table)
    first = theirs.get("time_embed.0.weight")
    if first is not None and first.ndim == 2:
        theirs["time_embed.0.weight"] = sines_first(first)
    order = "qkv heads width" if given.flag("use_new_attention_order", False) else "heads qkv width"
    return Known("adm", options, renamed(ours, _pairs(ours), theirs, str(path), order, made), conventions)


def _options(given: Fields) -> dict[str, Any]:
    size = given.whole("image_size", 64, 8, 2**16)
    multipliers = MULTIPLIERS.get(size) if given.get("channel_mult") in ("", None) else _numbers(given, "channel_mult")
    if multipliers is None:
        raise given.refuse("channel_mult", f"one number a level, as '1,2,2,2', for images of {size}")
    several = given.whole("num_head_channels", -1, -1)
    steps = given.whole("diffusion_steps", 1000, 2, 1_000_000)
    return {
        "channels": CHANNELS,
        "image_size": size,
        "base_channels": given.whole("num_channels", 128, high=WIDEST),
        "multipliers": multipliers,
        "blocks": given.whole("num_res_blocks", 2, high=MOST),
        "attention": _numbers(given, "attention_resolutions"),
        "heads": given.whole("num_heads", 4, high=WIDEST),
        "head_channels": several if several > 0 else None,
        "scale_shift": given.flag("use_scale_shift_norm", True),
        "norm_groups": 32,
        "resampling_blocks": given.flag("resblock_updown", False),
        "out_channels": 2 * CHANNELS if given.flag("learn_sigma", False) else CHANNELS,
        "step_scale": 1000 / steps if given.flag("rescale_timesteps", False) else 1.0,
        "num_classes": CLASSES if given.flag("class_cond", False) else 0,
        "dropout": given.number("dropout", 0.0, 0.0, 0.999),
    }


def _numbers(given: Fields, key: str) -> list[int]:
    """The numbers of a flag, separated by commas."""
    try:
        found = [int(part) for part in str(given.get(key)).split(",")]
    except ValueError:
        found = []
    if not 0 < len(found) <= MOST or not 1 <= min(found) <= max(found) <= WIDEST:
        raise given.refuse(key, "whole numbers separated by commas")
    return found


def _conventions(given: Fields) -> dict[str, Any]:
    size, steps = given.whole("image_size", 64), given.whole("diffusion_steps", 1000)
    betas = given.word("noise_schedule", "linear", ("linear", "cosine"))
    path: dict[str, Any] = {"name": "ddpm", "steps": steps, "betas": betas}
    if betas == "linear":  # as steep whatever the number of steps
        path |= {"beta_start": 0.1 / steps, "beta_end": 20 / steps}
    said: dict[str, Any] = {"labels": CLASSES} if given.flag("class_cond", False) else {}
    return {
        "shape": [CHANNELS, size, size],
        "levels": 256,
        "path": path,
        "predicts": "x" if given.flag("predict_xstart", False) else "eps",
        "time": "index",
        "clip": 1.0,  # clip_denoised of their scripts
        **said,
    }


def _pairs(ours: Any) -> list[Pair]:
    """Our layers and theirs: numbered in both halves, where a layer that doubles the size ends the block before it."""
    pairs = [("conditioning.dense_1", "time_embed.0"), ("conditioning.dense_2", "time_embed.2")]
    pairs += [("body.norm_out", "out.0"), ("body.conv_out", "out.2")]
    place, last = {"in": 0, "out": 0}, ""
    for name, kind, _, i in sites(ours.body):
        if kind == "middle":
            residual, attention = f"middle_block.{2 * i}", "middle_block.1"
        elif kind == "upsample":
            residual, attention = f"output_blocks.{place['out'] - 1}.{1 + attended(ours, last)}", ""
        else:
            half = "out" if kind == "up" else "in"
            residual, attention = (f"{half}put_blocks.{place[half]}.{part}" for part in range(2))
            place[half] += 1
        if kind == "conv_in":
            pairs.append((name, residual))
        elif kind in ("downsample", "upsample") and not ours.resampling_blocks:
            pairs.append((f"{name}.conv", f"{residual}.{'op' if kind == 'downsample' else 'conv'}"))
        elif kind not in ("norm_out", "conv_out"):
            pairs += layers(ours, name, under(residual, _RESIDUAL), under(attention, _ATTENTION))
        last = name
    return pairs
