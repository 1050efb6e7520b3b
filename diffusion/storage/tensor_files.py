"""Tensors and text in one safetensors file, which cannot execute code; every flipped bit is detected.

The format has no checksum of its own, so a SHA-256 over every name, type, shape, value and metadata entry is stored in
the metadata and verified on reading.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import UserError
from . import atomic
from .paths import named_path

_DIGEST = "sha256"
_SCALE = "/scale"


def write(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, of any shape, type and device, and text entries, atomically.

    Raises:
        UserError: A tensor is not finite; nothing is written.
    """
    path = named_path(path)
    # Copies, since safetensors refuses tensors that share memory (tied weights).
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    for name, tensor in plain.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{path}: not written, the weight '{name}' is not finite.")
    data = save(plain, {**metadata, _DIGEST: digest(plain, metadata)})
    header, start = _ordered_header(data)
    with atomic.writer(path) as file:
        file.write(header)
        file.write(memoryview(data)[start:])


def _ordered_header(data: bytes) -> tuple[bytes, int]:
    """The header with its text entries sorted, and the position where the tensors begin.

    safetensors writes the entries in the order of a hash table, which changes each time. Models are identified by the
    SHA-256 of their file, so the same model written twice would count as two.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    entries = dict(sorted(header.pop("__metadata__").items()))
    text = json.dumps({"__metadata__": entries, **header}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text, start


def read(path: str | Path, kind: str, key: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of `write` and verify its checksum.

    Args:
        path: The file.
        kind: What it is, for messages: "model", ...
        key: The metadata entry that a file of this kind has.

    Returns:
        The tensors (on the CPU) and the metadata.

    Raises:
        UserError: The file is missing, no safetensors file, not of this kind, cut short, or changed since.
    """
    path = named_path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such {kind} file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (SafetensorError, ValueError, TypeError, RuntimeError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file, or cut short or corrupt ({error}).") from error
    stored = metadata.pop(_DIGEST, None)
    if stored is None or key not in metadata:
        what = "configuration" if key == "config" else f"'{key}'"
        raise UserError(f"{path}: holds no {what} and checksum; a {kind} file of this package is accepted.")
    if stored != digest(tensors, metadata):
        raise UserError(f"{path}: corrupt, its content does not match its checksum; copy or fetch it again.")
    return tensors, metadata


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """The SHA-256 of tensors on the CPU (names, types, shapes, values) and text entries."""
    found = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def save_model(
    path: str | Path, tensors: Mapping[str, Tensor], config_yaml: str, metadata: Mapping[str, str] | None = None
) -> None:
    """Write weights and configuration as one safetensors file, atomically.

    Args:
        path: The file.
        tensors: The weights by name, of any shape, type and device.
        config_yaml: The configuration that builds the network, kept under the metadata key `config`.
        metadata: Further text entries (`step`, `images_seen`, ...).

    Raises:
        UserError: A weight is not finite; nothing is written.
    """
    write(path, tensors, {**(metadata or {}), "config": config_yaml})


def read_model(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of `save_model` and verify its checksum.

    Returns:
        The tensors (on the CPU), those of `in_eight_bits` as float32, and the metadata, with the configuration's YAML
        under `config`.

    Raises:
        UserError: The file is missing, no safetensors file, not one of `save_model`, cut short, or changed since.
    """
    tensors, metadata = read(path, "model", "config")
    scales = {name: tensors.pop(name) for name in list(tensors) if name.endswith(_SCALE)}
    for name, scale in scales.items():
        rounded = tensors.get(name := name.removesuffix(_SCALE))
        if rounded is None or rounded.ndim < 1 or rounded.shape[:1] != scale.shape:
            raise UserError(f"{path}: the scale of '{name}' is not of its rows; this is no file of `convert --bits 8`")
        tensors[name] = rounded.float() * scale.view(-1, *(1,) * (rounded.ndim - 1))
    return tensors, metadata


def in_eight_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float32 matrices as whole numbers from -127 to 127 with a scale a row, for a quarter of the bytes.

    No entry changes by more than a 254th of the largest of its row, the first dimension. Vectors stay as they are.
    """
    small: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.ndim < 2:
            small[name] = tensor
            continue
        scale = tensor.flatten(1).abs().amax(1) / 127
        rows = scale.clamp(min=torch.finfo(torch.float32).tiny).view(-1, *(1,) * (tensor.ndim - 1))
        small |= {name: (tensor / rows).round().to(torch.int8), name + _SCALE: scale}
    return small
