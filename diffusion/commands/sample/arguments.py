"""The command line of sample.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ...config import FITTED, FITTED_STEPS, SamplingConfig
from ...errors import UserError
from ..options import (
    Parser,
    add_fitted_start,
    add_tuning_seconds,
    bound,
    condition,
    eta,
    number,
    path,
    positive,
    seed,
    setting,
    size,
    tolerance,
)


def parse_sample_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of sample.py."""
    parser = Parser("sample.py", "Draw samples from the newest run, or from a pretrained model where there is none.")
    add = parser.add_argument
    add("--run", type=path, metavar="RUN", help="a run folder or its name, a .safetensors file, or pretrained:NAME")
    parser.add_runs()
    add("--sampler", help=f"{', '.join(SamplingConfig.words('sampler'))}, or {FITTED}, to the model, for "
        f"{FITTED_STEPS[0]} to {FITTED_STEPS[-1]} steps (default: the run's own, abm)")  # fmt: skip
    add("--n", type=positive, metavar="N", help="number of samples (default: the run's own, 64)")
    add("--steps", type=positive, metavar="N", help="number of steps (default: the run's own, else 20 for abm "
        "and 50 for others); ignored by an adaptive ode")  # fmt: skip
    add("--seed", type=seed, default=0, help="the random seed; sample i depends on the seed and i only (default: 0)")
    add("--eta", type=eta, help="stochasticity: 0 for the ODE, 1 for the reverse SDE (ddim, SDE samplers); 1@-3:5 is "
        "1 for log-SNRs from -3 to 5 and 0 elsewhere (SDE samplers)")  # fmt: skip
    add("--variance", help="lower, upper, analytic or learned (ancestral)")
    add("--grid", help=f"the times of the steps: {', '.join(SamplingConfig.words('grid'))}; auto: tuned to the model "
        "(default: the run's own, else that which suits the sampler)")  # fmt: skip
    add("--log-snr-end", type=number, metavar="L", help="log-SNR at which sampling ends (default: 3 log(steps) for "
        "shifted and cauchy, else 9.25, later if no grid is given); details below exp(-L / 2) are lost")  # fmt: skip
    add_tuning_seconds(parser)
    add("--label", metavar="CLASS", help="draw this class, given by number or name (for models trained with labels; "
        "for any model with --classifier)")  # fmt: skip
    add("--condition", nargs="+", type=condition, metavar="NAME=VALUE",
        help="what a model with denoiser.condition is given: a class "
        "by name or number, numbers with commas, an image, or x.npy with one entry or one a sample; without NAME= "
        "where there is one (--mask says where an image is to be filled in)")  # fmt: skip
    add("--size", type=size, metavar="PIXELS", help="draw images of another size than the training images: 16, or "
        "12x16 (height x width); unet and dit only")  # fmt: skip
    add("--classifier", type=path, metavar="FILE",
        help="draw --label with a classifier of noisy images, from a model that needs no "
        "labels itself: digits, or a file from python -m diffusion train-classifier")  # fmt: skip
    add("--guidance", type=number, help="weight of classifier-free guidance (towards --label, --condition) or of "
        "--guide (1 is off), or of --classifier (0 is off; default: 1)")  # fmt: skip
    add("--guidance-interval", type=bound, nargs=2, metavar=("LO", "HI"), help="guide only where the noise level "
        "sigma / alpha is in (LO, HI] (default: at all levels)")  # fmt: skip
    add(
        "--guide",
        type=path,
        metavar="RUN",
        help="autoguidance by a worse model, e.g. an earlier checkpoint; needs --guidance",
    )
    add("--inpaint", type=path, metavar="IMAGE", help="fill in the part of an image where --mask is white")
    add("--mask", type=path, metavar="IMAGE", help="with --inpaint or --condition: white is filled in, black "
        "is kept")  # fmt: skip
    add("--restore", type=path, metavar="IMAGE", help="undo the --degradation of an image")
    add("--degradation", metavar="KIND", help="with --restore: downsample (IMAGE is smaller than the model's images "
        "by a whole factor), grey (IMAGE has no colour), blur or blur:STD (in pixels; default: 1)")  # fmt: skip
    add("--posterior", metavar="METHOD", help="how --inpaint and --restore use IMAGE: moment-matching (default), "
        "pseudo-inverse (3 times as fast), dps, repaint (--inpaint only; no gradient, 10 times the steps)")  # fmt: skip
    add("--observation-noise", type=number, metavar="STD",
        help="noise of IMAGE, in units of [-1, 1] (default: that of rounding to grey levels)")  # fmt: skip
    add(
        "--edit",
        type=path,
        metavar="IMAGE",
        help="variations of an image: noise is added, as much as --strength says, and removed",
    )
    add("--strength", type=number, metavar="S",
        help="with --edit: between 0 (IMAGE itself) and 1 (another image) (default: 0.5)")  # fmt: skip
    add("--encode", type=path, metavar="IMAGE", nargs="+",
        help="write the noise from which a deterministic sampler draws these images "
        "to --out x.npz")  # fmt: skip
    add("--interpolate", type=path, metavar=("A", "B"), nargs=2,
        help="a strip of --n pictures (default: 8) from image A to image B, along "
        "the arc between their noises")  # fmt: skip
    add_fitted_start(parser)
    add("--data", type=path, metavar="PATH", help="with --fitted-start: the images that it is fitted to (default: the "
        "training images of the run)")  # fmt: skip
    add("--tolerance", type=tolerance, help="error tolerance per step (adaptive ode; default: 1e-4)")
    add("--method", help="ode: dopri5, dopri8, bosh3, adaptive_heun, euler, midpoint, heun2, heun3, rk4")
    add("--option", type=setting, action="append", metavar="KEY=VALUE", help="any other parameter of the sampler, e.g. "
        "predictor=3 (unipc, adams, deis), s_churn=40 (euler, heun); may be repeated")  # fmt: skip
    add(
        "--prior",
        choices=(*SamplingConfig.words("prior"), "hubs"),
        help="vae, eae: the law from which codes are drawn: normal, mixture (eae; default: the run's own), or hubs: of "
        "128 draws the one that most others are near, for typical images; not the model's law",
    )
    add("--output", choices=("mean", "draw"), help="mean or draw of p(image | code) (vae, eae; default: mean)")
    add("--dtype", choices=("float32", "float64"), help="precision of the solver (default: float32)")
    add("--batch-size", type=positive, metavar="N", help="samples drawn at a time (default: 256)")
    parser.add_device()
    add("--out", type=path, metavar="PATH",
        help="x.png: a grid; x.npz, x.zip or dir/: the images themselves, and a grid; "
        "repeating an interrupted command resumes it")  # fmt: skip
    add(
        "--from",
        dest="from_image",
        type=path,
        metavar="PNG",
        help="draw a picture of sample.py again, with the settings recorded in it",
    )
    add("--animate", action="store_true", help="write the path from noise to images as a GIF, x_t next to E[x | x_t]")
    options = parser.parse_args(list(argv))
    if options.from_image is not None:
        _refuse_beside_from(parser, options)
    return options


def _refuse_beside_from(parser: Parser, options: argparse.Namespace) -> None:
    """`--from` takes all settings from the picture."""
    for action in parser._actions:
        flag = action.option_strings[-1] if action.option_strings else ""
        if flag in ("--run", "--runs", "--device", "--out", "--from", "-h", "--help"):
            continue
        if getattr(options, action.dest, action.default) != action.default:
            raise UserError(f"{flag}: --from takes it from the picture; accepted with it: --run, --device, --out")
