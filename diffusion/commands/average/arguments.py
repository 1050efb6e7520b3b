"""The command line of `average`, read before torch is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..options import Parser, number, path


def parse_average_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of `average`."""
    parser = Parser(
        "average",
        "Make a model of a finished run whose weights are another average of those of training, of a width chosen now: "
        "from the snapshots of a run that was trained with 'ema.widths=[0.05,0.1]'.",
    )
    add = parser.add_argument
    add("run", type=path, metavar="RUN", help="a run folder or its name")
    add("--width", type=number, required=True, metavar="W", help="the standard deviation of the average's profile as a "
        "share of the training's length: 0.05 looks back on the last twentieth, more or less; below 0.288")  # fmt: skip
    add("--out", type=path, metavar="OUT.safetensors", help="the file to write; one that is there is not replaced "
        "(default: RUN/average-W.safetensors)")  # fmt: skip
    parser.add_runs()
    return parser.parse_args(list(argv))
