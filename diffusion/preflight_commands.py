"""What of the command lines of sample.py, `evaluate` and `compare` can be known to be wrong before torch is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from . import atomic, runs
from .errors import UserError, choose
from .preflight import SAMPLERS, check_device
from .sample_record import SampleRecord

FITTED, FITTED_STEPS = "fitted", range(2, 11)  # by sample.py alone: weights in training change
GRIDS = ("log-snr", "karras", "angle", "time", "quadratic", "auto")


def check_sample(options: argparse.Namespace) -> None:
    """Refuse a draw that cannot begin: the command line of sample.py.

    Raises:
        UserError: For an unknown sampler, grid or device, a model, a classifier or an image that is not there,
            a classifier without a label, and a place that cannot be written to.
    """
    if options.sampler is not None:
        choose("--sampler", options.sampler, (*SAMPLERS, FITTED))
    if options.sampler == FITTED:
        _check_fitted(options)
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


def _check_fitted(options: argparse.Namespace) -> None:
    """Refuse what the fitted sampler does not take."""
    if options.steps is not None and options.steps not in FITTED_STEPS:
        raise UserError(
            f"--steps: found {options.steps}; --sampler {FITTED} takes {FITTED_STEPS[0]} to {FITTED_STEPS[-1]}"
        )
    if options.grid is not None:
        raise UserError(f"--grid: --sampler {FITTED} has its own; leave it out")
    for option in ("inpaint", "restore", "edit", "encode", "interpolate"):
        if getattr(options, option) is not None:
            raise UserError(f"--{option}: not with --sampler {FITTED}, whose numbers are for plain draws")


def check_models(names: Iterable[str], runs_dir: str) -> None:
    """Refuse models that are not there: run folders, names of runs, model files, checkpoints, `pretrained:NAME`.

    Raises:
        UserError: For the first of them.
    """
    for name in names:
        if Path(name).suffix != ".ckpt" or not Path(name).is_file():
            runs.resolve_model(name, runs_dir)
