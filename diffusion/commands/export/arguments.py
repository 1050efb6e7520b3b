"""The command line of `export`, read before torch is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..options import Parser, path

FORMATS = ("diffusers", "hub", "onnx", "torch", "web")


def parse_export_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of `export`."""
    parser = Parser(
        "export",
        "Write a model as a folder that others read: diffusers, a pipeline that DDPMPipeline.from_pretrained loads; "
        "hub, the layout of the Hugging Face hub, with a card of its evaluation, which `hf:OWNER/NAME` takes back; "
        "onnx and torch, the network alone, for ONNX's runtimes and for torch.export.load; web, a page that draws in "
        "the browser.",
    )
    add = parser.add_argument
    add("model", type=path, metavar="MODEL", help="a run folder or its name, a model file, a checkpoint, "
        "pretrained:NAME, or another project's")  # fmt: skip
    add("folder", type=path, metavar="DIR", help="the folder to write; one that is there is not replaced")
    add("--to", required=True, choices=FORMATS, help="the layout")
    add("--runtime", type=path, metavar="DIR", help="with --to web: the folder of the npm package onnxruntime-web "
        "(default: npm fetches it)")  # fmt: skip
    parser.add_runs()
    return parser.parse_args(list(argv))
