"""What of a configuration or a command line can be known to be wrong before torch is loaded, which takes seconds.

The parts that these concern check them too; here the user is told at once.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from . import atomic, runs
from .config import Config
from .config.sections import Toys
from .errors import UserError, choose
from .sample_record import SampleRecord

SAMPLERS = (
    "ode", "ddim", "ancestral", "sde", "euler-maruyama", "predictor-corrector", "dpm-solver++sde", "sa-solver",
    "adaptive-sde", "euler", "heun", "dpm-solver-2", "dpm-solver-3", "dpm-solver++2m", "dpm-solver++3m", "unipc",
    "deis", "adams",
)  # fmt: skip
GRIDS = ("log-snr", "karras", "angle", "time", "quadratic", "auto")


def check(config: Config) -> None:
    """Refuse a run that cannot begin.

    Args:
        config: The configuration.

    Raises:
        UserError: For images that are not there, a network that does not fit the data, an unknown sampler.
    """
    path = config.data.path
    if path is not None and not Path(path).exists():
        raise UserError(f"data.path: {path} does not exist; accepted: a folder, a .zip or a .npz file.")
    if config.family != "diffusion":
        return
    is_toy, network = config.data.name in get_args(Toys), config.network.name
    if is_toy and network != "mlp":
        raise UserError(f"network.name: found '{network}'; data of shape (2,) need mlp")
    if not is_toy and network == "mlp":
        raise UserError(f"network.name: found '{network}'; images need unet or dit")
    choose("sampling.sampler", config.sampling.sampler, SAMPLERS)


def check_sample(options: argparse.Namespace) -> None:
    """Refuse a draw that cannot begin: the command line of sample.py.

    Raises:
        UserError: For an unknown sampler, grid or device, a model, a classifier or an image that is not there,
            a classifier without a label, and a place that cannot be written to.
    """
    if options.sampler is not None:
        choose("--sampler", options.sampler, SAMPLERS)
    if options.grid is not None:
        choose("--grid", options.grid, GRIDS)
    if options.classifier is not None:
        if options.label is None:
            raise UserError("--classifier: steers towards a class; give --label too")
        if options.guide is not None:
            raise UserError("--guide, --classifier: take one of them")
        runs.resolve_classifier(options.classifier)
    check_device(options.device)
    if options.run is not None:
        check_models([options.run], options.runs)
    if options.from_image is not None:
        SampleRecord.read(options.from_image)
    for option in ("inpaint", "mask", "restore", "edit", "encode", "interpolate"):
        given = getattr(options, option) or ()
        for path in (given,) if isinstance(given, str) else given:
            if not Path(path).is_file():
                raise UserError(f"--{option}: {path} does not exist; an image file is accepted")
    if options.out is not None:
        try:
            atomic.check_writable(options.out)
        except OSError as error:
            raise UserError(f"--out: {options.out} cannot be written ({error.strerror})") from error


def check_models(names: Iterable[str], runs_dir: str) -> None:
    """Refuse models that are not there: run folders, names of runs, model files, checkpoints, `pretrained:NAME`.

    Raises:
        UserError: For the first of them.
    """
    for name in names:
        if Path(name).suffix != ".ckpt" or not Path(name).is_file():
            runs.resolve_model(name, runs_dir)


def check_device(name: str) -> None:
    """Refuse what is no name of a device; whether it is there, only torch knows.

    Raises:
        UserError: For such a name.
    """
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is None:
        raise UserError(f"device: found '{name}'; accepted: auto, cpu, cuda, cuda:0, ...")
