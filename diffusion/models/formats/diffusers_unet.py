"""diffusers' `UNet2DModel` as our U-Net: which of their options are the same function, and what its weights are called.

Theirs halves and doubles at the end of a level, ours at the beginning of the next: the same operations. Its attention
has three maps for queries, keys and values, ours one for all.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from ...networks import UNet
from .fields import Fields

MOST = 64  # levels, and blocks of a level
_QKV = ("to_q", "to_k", "to_v")
# From a part of our name to that of theirs, in order; a match of a level's own sampling names the level before.
_NAMES = (
    (r"^conditioning\.dense_", "time_embedding.linear_"),
    (r"^conditioning\.classes", "class_embedding"),
    (r"^norm_out", "conv_norm_out"),
    (r"^(down|up)\.(\d+)\.(down|up)sample\.", lambda m: f"{m[1]}_blocks.{int(m[2]) - 1}.{m[3]}samplers.0."),
    (r"^(down|up)\.(\d+)\.blocks\.(\d+)\.(residual|attention)\.", r"\1_blocks.\2.\4.\3."),
    (r"^middle_(\d)\.(residual|attention)\.", lambda m: f"mid_block.{m[2]}.{int(m[1]) - 1}."),
    (r"\.residual\.(\d+)\.", r".resnets.\1."),
    (r"\.attention\.(\d+)\.", r".attentions.\1."),
    (r"(resnets\.\d+\.(?:norm|conv))_", r"\1"),
    (r"(resnets\.\d+\.)dense\.", r"\1time_emb_proj."),
    (r"(resnets\.\d+\.)shortcut\.", r"\1conv_shortcut."),
    (r"(attentions\.\d+\.)norm\.", r"\1group_norm."),
    (r"(attentions\.\d+\.)attention\.out\.", r"\1to_out.0."),
    (r"(attentions\.\d+\.)attention\.qkv\.", r"\1{}."),
)
# What attention was called in files of before 2023.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def options_of(unet: Fields) -> dict[str, Any] | None:
    """The arguments of our U-Net that is the same function; None where none is.

    Args:
        unet: Its config.json, whose defaults are those of their class.

    Raises:
        UserError: For a field of another kind.
    """
    get = unet.get
    widths = unet.wholes("block_out_channels", (224, 448, 672, 896))
    if len(widths) > MOST:
        raise unet.refuse("block_out_channels", f"at most {MOST} numbers")
    groups = unet.whole("norm_num_groups", 32) if get("norm_num_groups", 32) is not None else None
    heads = unet.whole("attention_head_dim", 8) if get("attention_head_dim", 8) is not None else None
    down = unet.words("down_block_types", ("DownBlock2D", *["AttnDownBlock2D"] * 3))
    up = unet.words("up_block_types", (*["AttnUpBlock2D"] * 3, "UpBlock2D"))
    attention = [kind == "AttnDownBlock2D" for kind in down]
    sides = unet.sides("sample_size")
    blocks = unet.whole("layers_per_block", 2, high=MOST)
    halvings = 2 ** (len(widths) - 1)
    classes = get("num_class_embeds")
    same = (
        {*down} <= {"DownBlock2D", "AttnDownBlock2D"},
        up == ["AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)],
        len(widths) == len(down),
        all(width % widths[0] == 0 and width % (groups or 1) == 0 for width in widths) and widths[0] % 2 == 0,
        all(side % halvings == 0 for side in sides),
        groups is not None and get("attn_norm_num_groups") in (None, groups),
        heads is None or all(width % heads == 0 for width, has in zip(widths, attention, strict=False) if has),
        heads is None or widths[-1] % heads == 0,
        get("time_embedding_type", "positional") == "positional" and get("freq_shift", 0) in (0, 1),
        get("time_embedding_dim") in (None, 4 * widths[0]),
        get("class_embed_type") is None,
        get("center_input_sample", False) is False,
        get("mid_block_type", "UNetMidBlock2D") == "UNetMidBlock2D" and get("add_attention", True) is True,
        get("mid_block_scale_factor", 1) == 1,
        classes is None or classes > 1,  # one row is "no label" and no class
        (get("downsample_type", "conv"), get("upsample_type", "conv")) == ("conv", "conv"),
        get("downsample_padding", 1) in (0, 1),
        get("act_fn", "silu") in ("silu", "swish"),
        get("resnet_time_scale_shift", "default") == "default",
    )
    if not all(same):
        return None
    return {
        "in_channels": unet.whole("in_channels", 3),
        "out_channels": unet.whole("out_channels", 3),
        "base_channels": widths[0],
        "multipliers": [width // widths[0] for width in widths],
        "blocks": blocks,
        "attention": [max(sides) >> level for level, has in enumerate(attention) if has],
        "image_size": sides,
        "head_channels": heads,
        "dropout": unet.number("dropout", 0.0, 0.0, 0.999),
        "num_classes": 0 if classes is None else classes - 1,  # our last row, "no label", is a class of theirs
        "noise_embedding": "index-endpoint" if get("freq_shift", 0) else "index",
        "norm_groups": groups,
        "norm_eps": unet.number("norm_eps", 1e-5, 1e-12, 1.0),
        "pad_end": get("downsample_padding", 1) == 0,
    }


def their_names(name: str) -> list[str]:
    """The name of a weight of our U-Net in theirs; the names of three where ours is their concatenation."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return [name.format(part) for part in _QKV] if "{}" in name else [name]


def to_ours(weights: dict[str, Tensor], options: dict[str, Any], cos_first: bool) -> dict[str, Tensor]:
    """The weights of our U-Net; what is missing is left out, and what is not known is kept as it is.

    Args:
        weights: Theirs.
        options: As `options_of`.
        cos_first: Whether cosines are first in their features of the index (`flip_sin_to_cos`); sines are in ours.
    """
    weights = {_renewed(name): value for name, value in weights.items()}
    ours = {}
    with torch.device("meta"):
        names = list(UNet(**options).state_dict())
    for name in names:
        parts = [weights.pop(part) for part in their_names(name) if part in weights]
        if parts:
            ours[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    first = "conditioning.dense_1.weight"
    if cos_first and first in ours and ours[first].ndim == 2:
        ours[first] = torch.cat(ours[first].chunk(2, dim=1)[::-1], dim=1)
    return ours | weights


def to_theirs(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_ours`, with sines first."""
    theirs = {}
    for name, value in weights.items():
        names = their_names(name)
        theirs |= dict(zip(names, value.chunk(len(names)), strict=True))
    return theirs


def _renewed(name: str) -> str:
    return re.sub(r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)", lambda match: _OLD[match[1]], name)
