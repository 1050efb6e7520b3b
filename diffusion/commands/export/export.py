"""The work of `export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...models.formats import diffusers_export
from ...models.load import load
from ..convert.convert import write_file
from .card import facts_without_places, without_places, write_card


def run(options: argparse.Namespace) -> int:
    """Write the folder and say what is in it.

    Raises:
        UserError: For a model that cannot be loaded, or that the layout cannot express.
    """
    model, folder = load(options.model, runs_dir=options.runs), Path(options.folder)
    if options.to == "diffusers":
        diffusers_export.write(model, folder)
        print(f"pipeline: {folder}, for diffusers.DDPMPipeline.from_pretrained")
        if model.facts.num_classes:
            print("its classes are class_labels of the network, which DDPMPipeline does not pass")
        return 0
    model.facts = facts_without_places(model.facts, model.config)  # by its places, while these are whole
    model.config = without_places(model.config)
    folder.mkdir(parents=True)
    write_file(model, folder / "model.safetensors")
    write_card(model, folder)
    print(f"model: {folder}, with its card; `hf upload OWNER/NAME {folder}` puts it on the Hub")
    return 0
