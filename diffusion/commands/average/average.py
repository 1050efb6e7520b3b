"""The work of `average`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ...errors import UserError
from ...storage import runs, tensor_files
from ...training.profiles import of_width
from ..preflight import check_model_file
from ..terminal import console, print_next, print_places, say

AVERAGE = "average"  # the entry of a model file that says how its weights were averaged


def run(options: argparse.Namespace) -> int:
    """Write the model and say where it is."""
    path = runs.resolve_model(options.run, options.runs)
    folder = path.parent / runs.AVERAGES
    if path.name != runs.MODEL or not folder.is_dir():
        raise UserError(f"RUN: {options.run} has no snapshots of averages; train one with 'ema.widths=[0.05,0.1]'")
    out = Path(options.out or path.parent / f"average-{options.width:g}.safetensors")
    check_model_file(out, "--out")
    own, metadata = tensor_files.read_model(path)
    weights, how = of_width(folder, options.width, int(metadata["step"]))
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in weights.items()}:
        raise UserError(f"{folder}: its snapshots hold other weights than {path}; they are of another run")
    config = metadata.pop("config")
    tensor_files.save_model(out, weights, config, {**metadata, AVERAGE: json.dumps(how)})
    widths = ", ".join(f"{width:g}" for width in how["of_widths"])
    printer = console()
    print_places(printer, {"model": out})
    say(
        printer,
        f"width {options.width:g}, from {how['snapshots']} snapshots of widths {widths}; the profile is met to "
        f"{100 * how['error']:.2g} %",
    )
    print_next(printer, "evaluate", str(out))
    return 0
