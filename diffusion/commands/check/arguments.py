"""The command line of `check`, read before torch is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ...config import SPLITS
from ..options import Parser, condition, path, positive, seed


def parse_check_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of `check`."""
    parser = Parser(
        "check",
        "Check on images that a diffusion model denoises as it should, at every noise level: the error of "
        "its noise estimate against that of a linear filter, the mean and deviation of its clean estimate against "
        "those of the data. Of an adopted network the neighbouring conventions are tried too (path, prediction, time, "
        "range of the data), and one that fits better is named. Exit code 0 if nothing is wrong, 1 if something is.",
    )
    add = parser.add_argument
    add("model", type=path, metavar="MODEL",
        help="a run folder or its name, a model file, pretrained:NAME, or FILE.py:NAME, a model that your own Python "
        "file makes with diffusion.adopt")  # fmt: skip
    add("--data", type=path, metavar="PATH", help="the images, where the model does not know them: a folder, a .zip, "
        ".tar, .npy or .npz file")  # fmt: skip
    add("--split", choices=SPLITS, default="test", help="(default: test)")
    add("--images", type=positive, default=64, metavar="N", help="how many (default: 64)")
    add("--condition", nargs="+", type=condition, metavar="NAME=VALUE",
        help="data: each image under its own condition (default), "
        "none, or one for all, as in sample.py")  # fmt: skip
    add("--levels", type=positive, default=16, metavar="K", help="noise levels (default: 16)")
    add("--seed", type=seed, default=0, help="of the noise (default: 0)")
    parser.add_device()
    parser.add_runs()
    add("--json", action="store_true", help="print what was found as JSON")
    return parser.parse_args(list(argv))
