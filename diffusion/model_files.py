"""A model as one file: its weights, and the configuration that builds its network.

It is safetensors with a checksum (`tensor_files`): it cannot run code, and no flipped bit passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from . import tensor_files


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
    tensor_files.write(path, tensors, {**(metadata or {}), "config": config_yaml})


def read_model(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of `save_model` and verify its checksum.

    Returns:
        The tensors (on the CPU) and the metadata, with the configuration's YAML under `config`.

    Raises:
        UserError: The file is missing, no safetensors file, not one of `save_model`, cut short, or changed since.
    """
    return tensor_files.read(path, "model", "config")
