"""The command line of `convert`, read before torch is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..options import Parser, path


def parse_convert_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of `convert`."""
    parser = Parser(
        "convert",
        "Write the averaged weights of a model as one .safetensors file, with its configuration and facts "
        "inside: all that sampling and likelihoods need.",
    )
    add = parser.add_argument
    add("model", type=path, metavar="MODEL", help="a run folder or its name, a model file, a checkpoint, "
        "or pretrained:NAME")  # fmt: skip
    add("out", type=path, metavar="OUT.safetensors", help="the file to write; one that is there is not replaced")
    add("--bits", type=int, choices=(32, 16, 8), default=32, help="of a weight: 16 is float16, 8 whole numbers with a "
        "scale a row, half and a quarter of the bytes; they are computed with as float32 (default: 32)")  # fmt: skip
    parser.add_runs()
    return parser.parse_args(list(argv))
