"""The command line of `tradeoff`, read before torch is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..evaluate.arguments import DATA_HELP, WANDB
from ..options import Parser, add_tuning_seconds, condition, number, path, positive, seed
from ..preflight import EXACT, EXACT_MODELS

BUDGETS = (5, 10, 20, 50)
BY = {"fid": "FID", "kid": "KID", "distance": "distance"}  # and what tables call them


def parse_tradeoff_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of `tradeoff`."""
    parser = Parser(
        "tradeoff",
        "Quality against cost: samplers at several numbers of network evaluations, each with its distance "
        "to an accurate solution from the same noise, the observed order, FID and KID with standard errors, and "
        "seconds. Results go to RUN/tradeoff one by one, so that repeating an interrupted command resumes it.",
    )
    add = parser.add_argument
    add("run", type=path, metavar="RUN|exact:NAME",
        help="a run folder or its name, a model file, pretrained:NAME; or a model in "
        f"closed form: {', '.join(EXACT + name for name in EXACT_MODELS)}")  # fmt: skip
    parser.add_runs()
    add("--data", type=path, metavar="PATH", help=DATA_HELP)
    add("--samplers", nargs="+", metavar="NAME", help="samplers as in sample.py, or all (default: one or two of "
        "each kind; all excludes fitted, which takes minutes to fit)")  # fmt: skip
    add("--budgets", nargs="+", type=positive, default=list(BUDGETS), metavar="N", help="network evaluations per "
        "sample, including the last (default: 5 10 20 50); adaptive samplers use tolerances instead")  # fmt: skip
    add("--n", type=positive, default=256, metavar="N", help="samples per cell (default: 256)")
    add("--grid", help="the times of the steps, as in sample.py (default: that which suits each sampler)")
    add("--log-snr-end", type=number, metavar="L", help="log-SNR at which sampling ends, as in "
        "sample.py")  # fmt: skip
    add_tuning_seconds(parser)
    add("--condition", nargs="+", type=condition, metavar="NAME=VALUE",
        help="data: samples under the conditions of test images; none; "
        "or one for all, as in sample.py (default: data for models with denoiser.condition, else none)")  # fmt: skip
    add("--by", choices=list(BY), default="fid", help="what decides which is best (default: fid)")
    add("--features", type=path, metavar="NAME|FILE",
        help="features for FID and KID, as in quality (default: digits and mnist for these, "
        "else inception; raw values for exact:NAME)")  # fmt: skip
    add("--download", action="store_true", help="download torchvision's Inception weights if they are missing")
    add("--seed", type=seed, default=0, metavar="S", help="the random seed (default: 0)")
    add("--batch-size", type=positive, default=256, metavar="B", help="samples drawn at a time (default: 256)")
    parser.add_device()
    add("--again", action="store_true", help="measure again, replacing stored results")
    add("--wandb", choices=WANDB, default="auto", help="auto: online if there is a key, else offline (default: auto)")
    return parser.parse_args(list(argv))
