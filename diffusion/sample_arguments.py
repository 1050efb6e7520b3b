"""The command line of sample.py, read before torch is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from .errors import UserError, did_you_mean


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of ours."""

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            unknown = message.removeprefix(prefix).split()
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            first = next((word for word in unknown if word.startswith("-")), unknown[0])
            raise UserError(f"unknown option '{first}'.{did_you_mean(first.partition('=')[0], flags)}")
        raise UserError(message.replace("argument ", "", 1))


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found '{text}'; must be a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found '{text}'; must be a number") from None


def _positive(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {value}; must be at least 1")
    return value


def _tolerance(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"found {text}; must be between 0 and 1, e.g. 1e-4")
    return value


def _seed(text: str) -> int:
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"found {value}; must be at least 0")
    return value


def parse_sample_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of sample.py.

    Raises:
        UserError: For anything that is not understood, in one line.
        SystemExit: With code 0, after `--help` has printed.
    """
    parser = _Parser(
        prog="sample.py",
        description="Draw samples from the newest run, or from a pretrained model where there is none.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--run", metavar="RUN", help="a run folder or its name, a .safetensors file, or pretrained:NAME")
    add("--runs", metavar="DIR", default="runs", help="the folder of runs (default: runs)")
    add("--sampler", help="ode, ddim, ancestral, sde, euler-maruyama (default: the run's own)")
    add("--n", type=_positive, metavar="N", help="number of samples (default: the run's own, 64)")
    add("--steps", type=_positive, metavar="N", help="intervals of the grid (default: 50); an adaptive ode ignores it")
    add("--seed", type=_seed, default=0, help="sample i depends on the seed and i alone (default: 0)")
    add("--eta", type=_number, help="fresh noise: 0 none, 1 the reverse SDE (ddim, sde, euler-maruyama)")
    add("--variance", help="lower or upper (ancestral)")
    add("--grid", help="where the steps are: log-snr, karras, angle, time, quadratic (default: log-snr)")
    add("--label", type=_whole, metavar="CLASS", help="draw this class (a model trained with labels)")
    add("--guidance", type=_number, default=1.0, help="classifier-free guidance towards --label; 1 is off")
    add("--tolerance", type=_tolerance, help="error allowed a step (adaptive ode; default: 1e-4)")
    add("--method", help="ode: dopri5, dopri8, bosh3, adaptive_heun, euler, midpoint, heun2, heun3, rk4")
    add("--dtype", choices=("float32", "float64"), default="float32", help="of the solver's state (default: float32)")
    add("--batch-size", type=_positive, metavar="N", help="samples drawn at once (default: 256)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:0, ... (default: auto)")
    add("--out", metavar="PATH", help="where to: x.png a grid; x.npz, x.zip or dir/ the images themselves and a grid")
    return parser.parse_args(list(argv))
