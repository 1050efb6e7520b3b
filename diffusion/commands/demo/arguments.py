"""The command line of `demo`, read before torch is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..options import Parser, path, whole


def parse_demo_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of `demo`."""
    parser = Parser(
        "demo",
        "A page on this machine: draw with any sampler, look at the path from noise, compare two samplers, edit, "
        "encode and measure an image. It listens to this machine alone and requests nothing from the network.",
    )
    add = parser.add_argument
    add("model", type=path, nargs="?", metavar="MODEL", help="a run folder or its name, a model file, or "
        "pretrained:NAME (default: the newest run, or a shipped model; the page offers the others)")  # fmt: skip
    parser.add_runs()
    parser.add_device()
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="the address to listen at; 0.0.0.0 lets other machines "
        "in, without a password (default: 127.0.0.1)")  # fmt: skip
    add("--port", type=_port, metavar="N", help="the port (default: the first free one from 7860 on)")
    add("--images", type=path, metavar="DIR", default="samples/demo", help="where images that are dropped on the page, "
        "and masks, are kept, as the commands name them (default: samples/demo)")  # fmt: skip
    return parser.parse_args(list(argv))


def _port(text: str) -> int:
    value = whole(text)
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"found {value}; must be 1 to 65535")
    return value
