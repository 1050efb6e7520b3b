"""The command line of `evaluate`, read before torch is loaded, and what `compare` shares of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ...config import DENOISING, SPLITS, LoggingConfig
from ...errors import UserError
from ..options import Parser, add_fitted_start, condition, number, path, positive, seed, setting, tolerance

WANDB = LoggingConfig.words("wandb")


def parse_evaluate_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of `evaluate`."""
    parser = Parser(
        "evaluate",
        "Measure the likelihood of images under models. Results are stored in RUN/evaluations, keyed by "
        "everything they depend on: repeating the command prints them at once, and an interrupted one resumes. Each "
        "comes with an error budget; errors that a single run cannot reveal are measured on a few of the images.",
    )
    add = parser.add_argument
    add("run", nargs="+", type=path, metavar="RUN", help="a run folder or its name, a model file, or pretrained:NAME")
    _common(parser)
    add(
        "--method",
        metavar="NAME",
        help="ode, elbo, elbo-discrete, iwae, ais, ..., or several: ode,elbo (default: ode for diffusion, iwae else)",
    )
    add("--images", type=positive, metavar="N", help="only N images, always the same: the first in the order of the "
        "SHA-256 of their row (default: all)")  # fmt: skip
    add("--condition", nargs="+", type=condition, metavar="NAME=VALUE",
        help="data: each image under its own condition, and their "
        "mutual information, I(x; c); none; or one condition for all, as in sample.py (default: data for models with "
        "denoiser.condition, else none)")  # fmt: skip
    add("--target-error", type=error, metavar="E",
        help="spend compute on the largest entry of the error budget until one standard error plus the biases is at "
        "most E bits/dim (a 95 %% interval is then about E times 2 to either side), and report what was spent: more "
        "images (at most --images N), draws, probes, or a tighter tolerance. Once all images are used, E refers to the "
        "error of measuring these. --draws, --probes and --tolerance are the starting values")  # fmt: skip
    add_fitted_start(parser)
    add("--tolerance", type=tolerance, metavar="X", help="error tolerance per step (ode)")
    add("--draws", type=positive, metavar="K", help="random draws per image: dequantised points (ode), "
        "noise levels or codes (elbo), importance samples (iwae), chains (ais)")  # fmt: skip
    add("--probes", type=positive, metavar="P", help="probe vectors of the trace estimator per draw (ode)")
    add("--option", type=setting, action="append", default=[], metavar="KEY=VALUE",
        help="any other option of the estimator, e.g. trace=exact; may be repeated")  # fmt: skip
    add("--batch-size", type=positive, metavar="B",
        help="images measured and stored at a time (default: 128; on a CPU 64 at most)")  # fmt: skip
    add("--seed", type=seed, default=0, metavar="S", help="the random seed (default: 0)")
    parser.add_device()
    add("--again", action="store_true", help="measure again, replacing stored results")
    add("--ranked", action="store_true", help="also write a picture of the most and the least likely images")
    add("--ood", type=path, metavar="DATA",
        help="also measure the images of another data set (a name, a folder, .zip or .npz), "
        "and plot both histograms with their AUROC")  # fmt: skip
    return parser.parse_args(list(argv))


DATA_HELP = "where the training images are now, if they have moved (default: the run's data.path)"


def _common(parser: Parser) -> None:
    add = parser.add_argument
    parser.add_runs()
    add("--split", choices=SPLITS[::-1], default="test", help="which images (default: test)")
    add("--data", type=path, metavar="PATH", help=DATA_HELP)
    add("--wandb", choices=WANDB, default="auto", help="auto: online if there is a key, else offline (default: auto)")


def error(text: str) -> float:
    """A number above 0."""
    value = number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"found {text}; must be above 0, in bits/dim, e.g. 0.005")
    return value


# What `--draws` is called by each estimator.
_DRAWS = {"elbo-discrete": "evaluations", "immse": "evaluations", "iwae": "samples", "ais": "chains"}
NAMES_OF_DRAWS = ("draws", "evaluations", "samples", "chains")
_OWN = (
    "condition", "fitted_start", "method", "indices", "progress", "batch_size", "levels", "cond", "seed", "tolerance",
    "probes", "self", "x", "model", "images_uint8", "error_budget", "target_error",
)  # fmt: skip


def estimator_options(arguments: argparse.Namespace, method: str, family: str, alone: bool = True) -> dict[str, object]:
    """The estimator options given on the command line of `evaluate`, for a family of models.

    With several estimators (not `alone`) the options of the ODE are for it only; unknown options are refused.

    Raises:
        UserError: For an `--option` that is given twice, or has its own argument.
    """
    found: dict[str, object] = {"seed": arguments.seed}
    for key, value in (("tolerance", arguments.tolerance), ("probes", arguments.probes)):
        if value is not None and (alone or method == "ode"):
            found[key] = value
    if arguments.draws is not None:
        # noise levels are drawn for a diffusion model's bound, codes for the others'
        of_elbo = "evaluations" if family in DENOISING else "samples"
        found[of_elbo if method == "elbo" else _DRAWS.get(method, "draws")] = arguments.draws
    for key, value in arguments.option:
        if key in _OWN:
            raise UserError(f"--option: '{key}' is not set here; python -m diffusion evaluate --help has what there is")
        if key in found:
            raise UserError(f"--option: '{key}' is given twice")
        found[key] = value
    return found
