"""diffusers' `DiTTransformer2DModel` as our DiT: which of their options are the same function, and its weights by name.

Theirs has an embedding of level and class in every block, which the published networks have alike; ours has one. A
token of theirs has the features of its column first, ours those of its row: the halves of every token are exchanged.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from ...networks import DiT
from .fields import Fields

_EMBEDDING = r"transformer_blocks\.(\d+)\.norm1\.emb\."
# From a name of ours to that of theirs, in order.
_NAMES = (
    (r"^conditioning\.dense_", "transformer_blocks.0.norm1.emb.timestep_embedder.linear_"),
    (r"^conditioning\.classes\.", "transformer_blocks.0.norm1.emb.class_embedder.embedding_table."),
    (r"^dense_in\.", "pos_embed.proj."),
    (r"^modulation_out\.", "proj_out_1."),
    (r"^dense_out\.", "proj_out_2."),
    (r"^blocks\.(\d+)\.", r"transformer_blocks.\1."),
    (r"\.attention\.qkv\.", ".attn1.{}."),
    (r"\.attention\.out\.", ".attn1.to_out.0."),
    (r"(blocks\.\d+)\.dense_1\.", r"\1.ff.net.0.proj."),
    (r"(blocks\.\d+)\.dense_2\.", r"\1.ff.net.2."),
    (r"(blocks\.\d+)\.modulation\.", r"\1.norm1.linear."),
)
_QKV = ("to_q", "to_k", "to_v")
MOST = 256  # blocks


def options_of(fields: Fields) -> dict[str, Any] | None:
    """The arguments of our DiT that is the same function; None where none is.

    Args:
        fields: Its config.json, whose defaults are those of their class.

    Raises:
        UserError: For a field of another kind.
    """
    get, heads = fields.get, fields.whole("num_attention_heads", 16, high=1024)
    width = heads * fields.whole("attention_head_dim", 72, high=1024)
    sides, patch = fields.sides("sample_size"), fields.whole("patch_size", 2)
    same = (
        width % 4 == 0 and width <= 8192,
        sides[0] == sides[1] and sides[0] % patch == 0,
        get("norm_type", "ada_norm_zero") == "ada_norm_zero",
        get("norm_elementwise_affine", False) is False,
        get("attention_bias", True) is True,
        get("activation_fn", "gelu-approximate") == "gelu-approximate",
    )
    if not all(same):
        return None
    channels = fields.whole("in_channels", 4)
    return {
        "in_channels": channels,
        "out_channels": channels if get("out_channels") is None else fields.whole("out_channels", None),
        "patch_size": patch,
        "width": width,
        "depth": fields.whole("num_layers", 28, high=MOST),
        "heads": heads,
        "num_classes": fields.whole("num_embeds_ada_norm", 1000),
        "noise_embedding": "index-endpoint",
        "image_size": sides,
        "norm_eps": fields.number("norm_eps", 1e-5, 1e-12, 1.0),
    }


def is_shared(weights: dict[str, Tensor]) -> bool:
    """Whether the embeddings of all blocks are the same."""
    first = "transformer_blocks.0.norm1.emb."
    of_blocks = {name: re.sub(rf"^{_EMBEDDING}", first, name) for name in weights if re.match(_EMBEDDING, name)}
    return all(
        one in weights and weights[one].shape == weights[name].shape and torch.equal(weights[one], weights[name])
        for name, one in of_blocks.items()
    )


def to_ours(weights: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of our DiT; what is missing is left out, and what is not known is kept as it is.

    Args:
        weights: Theirs, with embeddings that are the same in all blocks.
        options: As `options_of`.

    Raises:
        RuntimeError: For weights of other shapes.
    """
    copies = {name for name in weights if (match := re.match(_EMBEDDING, name)) and match[1] != "0"}
    left = {name: value for name, value in weights.items() if name not in {*copies, "pos_embed.pos_embed"}}
    ours = {}
    with torch.device("meta"):
        names = list(DiT(**options).state_dict())
    for name in names:
        theirs = name
        for pattern, replacement in _NAMES:
            theirs = re.sub(pattern, replacement, theirs)
        parts = [left.pop(part) for part in map(theirs.format, _QKV if "{}" in theirs else ("",)) if part in left]
        if parts:
            ours[name] = _exchanged(name, torch.cat(parts) if len(parts) > 1 else parts[0], options["patch_size"])
    return ours | left


def _exchanged(name: str, value: Tensor, patch: int) -> Tensor:
    """A weight or bias in our order of features: of tokens, of sines and cosines, of the pixels of a patch."""
    layer, _, kind = re.sub(r"^blocks\.\d+\.", "", name).rpartition(".")
    if layer == "conditioning.dense_1" and kind == "weight":
        return _halves(value, 1)
    if layer == "dense_in":
        return _halves(value.flatten(1) if kind == "weight" else value, 0)
    if layer == "dense_out":  # theirs has the channel last
        value = value.unflatten(0, (patch, patch, -1)).movedim(2, 0).flatten(0, 2)
    if layer in ("attention.qkv", "dense_1", "dense_out"):
        return _halves(value, 1) if kind == "weight" else value
    if layer in ("attention.out", "dense_2"):
        return _halves(value, 0)
    if layer in ("modulation", "modulation_out"):  # shift, scale and gate of every feature
        return torch.cat([_halves(part, 0) for part in value.chunk(6 if layer == "modulation" else 2)])
    return value


def _halves(value: Tensor, dim: int) -> Tensor:
    return torch.cat(value.chunk(2, dim)[::-1], dim)
