"""The command line of `tradeoff`, read before torch is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..evaluate.arguments import DATA_HELP, WANDB
from ..options import Parser, add_tuning_seconds, number, path, positive, seed

BUDGETS = (5, 10, 20, 50)
BY = ("fid", "kid", "distance")


def parse_tradeoff_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of `tradeoff`."""
    parser = Parser(
        "tradeoff",
        "Quality against cost: samplers at several numbers of network evaluations, each with its distance "
        "to a tight solve from the same noise and the observed order, FID and KID with standard errors, and seconds. "
        "Written to RUN/tradeoff; each figure is kept as it is found, so that the same command again goes on.",
    )
    add = parser.add_argument
    add("run", type=path, metavar="RUN|exact:NAME",
        help="a run folder or its name, a model file, pretrained:NAME; or a model in "
        "closed form: exact:mixture-2d, exact:mixture-3x8x8")  # fmt: skip
    add("--runs", type=path, metavar="DIR", default="runs", help="the folder of runs (default: runs)")
    add("--data", type=path, metavar="PATH", help=DATA_HELP)
    add("--samplers", nargs="+", metavar="NAME", help="names of sample.py's --sampler, or all (default: one or two of "
        "each sort; all is without fitted, which takes minutes to fit to a network)")  # fmt: skip
    add("--budgets", nargs="+", type=positive, default=list(BUDGETS), metavar="N", help="evaluations a sample, the "
        "last one included (default: 5 10 20 50); an adaptive sampler has tolerances instead")  # fmt: skip
    add("--n", type=positive, default=256, metavar="N", help="samples a cell (default: 256)")
    add("--grid", help="where the steps are, as sample.py (default: as suits each sampler)")
    add("--log-snr-end", type=number, metavar="L", help="log-SNR at which the grid leaves the path for the datum, as "
        "sample.py")  # fmt: skip
    add_tuning_seconds(parser)
    add("--by", choices=BY, default="fid", help="what the best is the best of (default: fid)")
    add("--features", type=path, metavar="NAME|FILE",
        help="of FID and KID, as quality (default: digits and mnist for these, else "
        "inception; the numbers themselves for exact:NAME)")  # fmt: skip
    add("--download", action="store_true", help="fetch torchvision's Inception weights where they are absent")
    add("--seed", type=seed, default=0, metavar="S", help="of the samples (default: 0)")
    add("--batch-size", type=positive, default=256, metavar="B", help="samples at a time (default: 256)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:0, ... (default: auto)")
    add("--again", action="store_true", help="measure again what was measured before")
    add("--wandb", choices=WANDB, default="auto", help="auto: online if there is a key, else offline (default: auto)")
    return parser.parse_args(list(argv))
