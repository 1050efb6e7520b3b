"""The command line of `quality`, read before torch is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ...config import SamplingConfig
from ..evaluate.arguments import WANDB
from ..options import Parser, add_tuning_seconds, number, path, positive, seed, tolerance


def parse_quality_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of `quality`."""
    parser = Parser(
        "quality",
        "Measure samples against training images: FID and KID with standard errors, precision, recall, "
        "density, coverage, and the share that is suspiciously near a training image. Figures are kept in "
        "RUN/evaluations/quality, keyed by all that they depend on.",
    )
    add = parser.add_argument
    add("run", nargs="+", type=path, metavar="RUN|FOLDER",
        help="a run folder or its name, a model file, pretrained:NAME; or "
        "images: a folder, .zip, .tar or .npz (with --data)")  # fmt: skip
    add("--runs", type=path, metavar="DIR", default="runs", help="the folder of runs (default: runs)")
    add("--data", type=path, metavar="DATA",
        help="what a folder of images is held against: a named data set, a run (its data), "
        "or a path of images; with a run, where the images of its training are now")  # fmt: skip
    add("--reference", choices=("train", "test"), default="train", help="the split held against (default: train)")
    add("--flips", action="store_true", help="count the mirror image of each reference image too")
    add("--features", type=path, metavar="NAME|FILE",
        help="digits, mnist, inception, or a file: .safetensors of train-features, "
        "or Inception's weights (default: digits and mnist for these, else inception)")  # fmt: skip
    add("--download", action="store_true", help="fetch the data set of --data, and torchvision's Inception weights, "
        "where they are absent")  # fmt: skip
    add("--samples", type=positive, metavar="N", help="how many are measured (default: 1000 drawn, all of a "
        "folder); of a folder the first in the order of the SHA-256 of their row")  # fmt: skip
    add("--sampler", help="as sample.py (default: the run's own, as all options of drawing)")
    add("--steps", type=positive, metavar="N", help="intervals of the grid")
    add("--eta", type=number, help="fresh noise: 0 none, 1 the reverse SDE")
    add("--grid", help="where the steps are")
    add("--log-snr-end", type=number, metavar="L", help="log-SNR at which the grid leaves the path for the datum")
    add_tuning_seconds(parser)
    add("--tolerance", type=tolerance, metavar="X", help="error allowed a step (adaptive ode)")
    add("--method", help="of an ode")
    add("--prior", choices=SamplingConfig.words("prior"), help="where an eae's codes are drawn")
    add("--output", choices=("mean", "draw"), help="of p(image | code), of a vae or an eae")
    add("--seed", type=seed, default=0, metavar="S", help="of the samples (default: 0)")
    add("--batch-size", type=positive, default=256, metavar="B", help="images at a time (default: 256)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:0, ... (default: auto)")
    add("--no-scale", dest="scale", action="store_false", help="leave out the rows for scale: the held-out images "
        "against the reference, and uniform noise")  # fmt: skip
    add("--again", action="store_true", help="measure again what was measured before")
    add("--wandb", choices=WANDB, default="auto", help="auto: online if there is a key, else offline (default: auto)")
    return parser.parse_args(list(argv))
