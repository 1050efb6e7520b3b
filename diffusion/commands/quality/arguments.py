"""The command line of `quality`, read before torch is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ...config import SamplingConfig
from ..evaluate.arguments import WANDB
from ..options import Parser, add_tuning_seconds, condition, number, path, positive, seed, tolerance

OF_REFERENCE = "reference"  # a label of its own for each sample


def parse_quality_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of `quality`."""
    parser = Parser(
        "quality",
        "Compare samples with training images: FID and KID with standard errors, precision, recall, "
        "density, coverage, and the fraction of suspiciously close copies. Results are stored in "
        "RUN/evaluations/quality, keyed by everything they depend on.",
    )
    add = parser.add_argument
    add("run", nargs="+", type=path, metavar="RUN|FOLDER",
        help="a run folder or its name, a model file, pretrained:NAME; or "
        "images: a folder, .zip, .tar or .npz (with --data)")  # fmt: skip
    parser.add_runs()
    add("--data", type=path, metavar="DATA",
        help="what a folder of images is compared with: a named data set, a run (its data), "
        "or a path of images; for a run, where its training images are now")  # fmt: skip
    add(
        "--reference",
        choices=("train", "test"),
        default="train",
        help="the split of the reference images (default: train)",
    )
    add("--flips", action="store_true", help="also use the mirror image of each reference image")
    add("--features", type=path, metavar="NAME|FILE",
        help="digits, mnist, inception, or a file: .safetensors of train-features, "
        "or Inception's weights (default: digits and mnist for these, else inception)")  # fmt: skip
    add("--download", action="store_true", help="download the data set of --data and torchvision's Inception "
        "weights if they are missing")  # fmt: skip
    add("--samples", type=positive, metavar="N", help="how many (default: 1000 drawn ones, or all of a "
        "folder); of a folder the first in the order of the SHA-256 of their row")  # fmt: skip
    add("--sampler", help="as in sample.py (default: the run's own; so for all sampling options)")
    add("--steps", type=positive, metavar="N", help="number of steps")
    add("--eta", type=number, help="fresh noise: 0 none, 1 the reverse SDE")
    add("--variance", help="lower, upper, analytic or learned (ancestral)")
    add("--label", metavar="CLASS", help=f"draw this class, by number or name; {OF_REFERENCE}: all classes, in the "
        "proportion of the reference images (default: no label)")  # fmt: skip
    add("--guidance", type=number, help="weight of classifier-free guidance towards the label (default: 1, off)")
    add("--grid", help="the times of the steps")
    add("--log-snr-end", type=number, metavar="L", help="log-SNR at which sampling ends")
    add_tuning_seconds(parser)
    add("--tolerance", type=tolerance, metavar="X", help="error tolerance per step (adaptive ode)")
    add("--method", help="the solver of ode")
    add("--prior", choices=SamplingConfig.words("prior"), help="the law from which the codes of an eae are drawn")
    add("--output", choices=("mean", "draw"), help="mean or draw of p(image | code) (vae, eae)")
    add("--condition", nargs="+", type=condition, metavar="NAME=VALUE",
        help="data: samples under the conditions of test images; none; "
        "or one for all, as in sample.py (default: data for models with denoiser.condition, else none)")  # fmt: skip
    add("--by-class", action="store_true", help="also the figures of each class, against the reference images of this "
        "class; of a model of classes with --label reference")  # fmt: skip
    add("--seed", type=seed, default=0, metavar="S", help="the random seed (default: 0)")
    add("--batch-size", type=positive, default=256, metavar="B", help="images processed at a time (default: 256)")
    parser.add_device()
    add("--no-scale", dest="scale", action="store_false", help="omit the rows for scale: held-out images and uniform "
        "noise, compared with the same reference")  # fmt: skip
    add("--again", action="store_true", help="measure again, replacing stored results")
    add("--wandb", choices=WANDB, default="auto", help="auto: online if there is a key, else offline (default: auto)")
    return parser.parse_args(list(argv))
