"""The command lines of train-features and train-classifier, read before torch is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..options import Parser, path, positive, seed

FEATURES_STEPS = 1500
CLASSIFIER_STEPS = 2000


def parse_training_arguments(argv: Sequence[str], name: str, steps: int) -> argparse.Namespace:
    """Read the command line of `name`, which trains for `steps` by default."""
    parser = Parser(name)
    add = parser.add_argument
    add("data", metavar="DATA", help="a named data set with labels: digits, mnist, ...")
    add("--path", type=path, help="a folder, .zip, .tar or .npz of images to use instead of the data set's own")
    add("--root", type=path, default="data", help="the folder of data sets (default: data)")
    add("--size", type=positive, metavar="PIXELS", help="resize the images, like data.size (default: unchanged)")
    add("--steps", type=positive, default=steps, metavar="N", help=f"training steps (default: {steps})")
    add("--seed", type=seed, default=0, metavar="S", help="the random seed (default: 0)")
    add("--out", type=path, required=True, metavar="FILE", help="the .safetensors file to write")
    return parser.parse_args(list(argv))
