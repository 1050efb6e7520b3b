"""The work of `convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ...config import dump_config
from ...errors import UserError
from ...models.adopt import AdoptedModel
from ...models.formats import KNOWN
from ...models.load import FACTS, STEP, load
from ...models.trained_model import TrainedModel
from ...storage import tensor_files
from ...storage.runs import python_model


def run(options: argparse.Namespace) -> int:
    """Write the file and say where it is."""
    if python_model(options.model) is not None:
        raise UserError(f"{options.model}: is no file of this package's own networks; convert takes those")
    size = write_file(load(options.model, runs_dir=options.runs), options.out, options.bits)
    print(f"model: {options.out} ({size / 2**20:.1f} MiB of weights)")
    return 0


def write_file(model: TrainedModel, path: str | Path, bits: int = 32) -> int:
    """Write a model as one file, from which `load` makes it again; returns the bytes of its weights.

    Args:
        model: A model that was loaded from a file.
        path: The file.
        bits: Of a weight: 32, 16 (float16) or 8 (`tensor_files.in_eight_bits`).
    """
    known = model.known if isinstance(model, AdoptedModel) else None
    state = model.module.state_dict() if known is None else known.weights
    if bits == 8:
        state = tensor_files.in_eight_bits(state)
    elif bits == 16:
        state = {name: value.half() if value.dtype == torch.float32 else value for name, value in state.items()}
    metadata = {FACTS: model.facts.to_json(), STEP: str(model.step)}
    metadata |= {} if known is None else {KNOWN: known.to_json()}
    tensor_files.save_model(path, state, dump_config(model.config), metadata)
    return sum(value.numel() * value.element_size() for value in state.values())
