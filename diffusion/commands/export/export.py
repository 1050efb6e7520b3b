"""The work of `export`."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from ...models import DiffusionModel
from ...models.formats import diffusers_export
from ...models.load import load
from ...models.trained_model import TrainedModel
from ...storage import atomic
from ..convert.convert import write_file
from .card import facts_without_places, without_places, write_card
from .network import DESCRIPTION, ONNX, TORCH, check_onnx, write_onnx, write_torch
from .page import check_runtime, write_page


def run(options: argparse.Namespace) -> int:
    """Write the folder and say what is in it. It is made next to its place, so that it appears whole or not at all."""
    if options.to in ("onnx", "web"):
        check_onnx()
    if options.to == "web":
        check_runtime(options.runtime)
    model, folder = load(options.model, runs_dir=options.runs), Path(os.path.abspath(options.folder))
    write, line = _LAYOUTS[options.to]
    made = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        with atomic.naming(folder, made):
            write(model, made, options)
            os.rename(made, folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    print(line.format(folder=options.folder))
    if options.to == "diffusers" and isinstance(model, DiffusionModel) and model.denoiser.num_classes:
        print("its classes are class_labels of the network, which DDPMPipeline does not pass")
    return 0


def _write_hub(model: TrainedModel, folder: Path) -> None:
    model.facts = facts_without_places(model.facts, model.config)  # by its places, while these are whole
    model.config = without_places(model.config)
    folder.mkdir(parents=True)
    write_file(model, folder / "model.safetensors")
    write_card(model, folder)


# By the name of the layout: what writes it, and what is said of it.
_LAYOUTS: dict[str, tuple[Callable[[TrainedModel, Path, argparse.Namespace], None], str]] = {
    "diffusers": (
        lambda model, folder, options: diffusers_export.write(model, folder),
        "pipeline: {folder}, for diffusers.DDPMPipeline.from_pretrained",
    ),
    "hub": (
        lambda model, folder, options: _write_hub(model, folder),
        "model: {folder}, with its card; `hf upload OWNER/NAME {folder}` puts it on the Hub",
    ),
    "onnx": (
        lambda model, folder, options: write_onnx(model, folder),
        f"network: {{folder}}/{ONNX}, for onnxruntime.InferenceSession; {DESCRIPTION} says how it is called",
    ),
    "torch": (
        lambda model, folder, options: write_torch(model, folder),
        f"network: {{folder}}/{TORCH}, for torch.export.load; {DESCRIPTION} says how it is called",
    ),
    "web": (
        lambda model, folder, options: write_page(model, folder, options.runtime),
        "page: {folder}, for any server of files; to look at it here: python -m http.server -b 127.0.0.1 -d {folder}",
    ),
}
