"""The work of `convert`."""

from __future__ import annotations

import argparse

import torch

from ...config import dump_config
from ...errors import UserError
from ...models.load import FACTS, STEP, load
from ...storage import tensor_files
from ...storage.runs import python_model


def run(options: argparse.Namespace) -> int:
    """Write the file and say where it is.

    Raises:
        UserError: For a model that cannot be loaded, and weights beyond the range of float16 with `--half`.
    """
    if python_model(options.model) is not None:
        raise UserError(f"{options.model}: is no file of this package's own networks; convert takes those")
    model = load(options.model, runs_dir=options.runs)
    state = model.module.state_dict()
    if options.half:
        state = {name: value.half() if value.dtype == torch.float32 else value for name, value in state.items()}
    metadata = {FACTS: model.facts.to_json(), STEP: str(model.step)}
    tensor_files.save_model(options.out, state, dump_config(model.config), metadata)
    size = sum(value.numel() * value.element_size() for value in state.values())
    print(f"model: {options.out} ({size / 2**20:.1f} MiB of weights)")
    return 0
