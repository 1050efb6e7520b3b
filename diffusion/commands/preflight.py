"""Checks of the command lines of sample.py and `python -m diffusion` that need no torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from ..config import FITTED, FITTED_STEPS, IMAGE_SETS, SamplingConfig
from ..config.preflight import check_device
from ..errors import UserError, choose, did_you_mean
from ..storage import atomic, runs
from .options import RUNS
from .sample.record import SampleRecord

SAMPLERS = (*SamplingConfig.words("sampler"), FITTED)
GRIDS = SamplingConfig.words("grid")
# Feature networks: those shipped for a data set, by its name, and Inception.
INCEPTION = "inception"
FEATURES = (*runs.shipped(runs.FEATURES), INCEPTION)
EXACT = "exact:"
EXACT_MODELS = {
    "mixture-2d": "commands.tradeoff.subjects:mixture_2d",
    "mixture-3x8x8": "commands.tradeoff.subjects:mixture_3x8x8",
}
_OF_A_RUN = (runs.MODEL, runs.CHECKPOINTS, runs.CONFIG)


def check_sample(options: argparse.Namespace) -> None:
    """Check the command line of sample.py."""
    if options.sampler is not None:
        choose("--sampler", options.sampler, SAMPLERS)
    if options.sampler == FITTED:
        _check_fitted(options)
    if options.grid is not None:
        choose("--grid", options.grid, GRIDS)
    if options.classifier is not None:
        if options.label is None:
            raise UserError("--classifier: steers towards a class; give --label too")
        if options.guide is not None:
            raise UserError("--guide, --classifier: use only one of them")
        runs.resolve_classifier(options.classifier)
    check_device(options.device)
    if options.run is not None:
        check_models([options.run], options.runs, checkpoints=True)
    elif options.runs != RUNS and not Path(options.runs).is_dir():
        raise UserError(f"--runs: {options.runs} does not exist; a folder of runs is accepted")
    if options.from_image is not None:
        SampleRecord.read(options.from_image)
    for option in ("inpaint", "mask", "restore", "edit", "encode", "interpolate"):
        given = getattr(options, option) or ()
        for path in (given,) if isinstance(given, str) else given:
            if not Path(path).is_file():
                found = "is no file" if Path(path).exists() else "does not exist"
                raise UserError(f"--{option}: {path} {found}; an image file is accepted")
    if options.out is not None:
        _check_out(options.out, not (options.animate or options.encode or options.interpolate or options.from_image))


def _check_out(path: str, may_be_folder: bool = False, name: str = "--out") -> None:
    try:
        atomic.check_writable(path, may_be_folder)
    except OSError as error:
        raise UserError(f"{name}: {path} cannot be written ({error.strerror})") from error


def _check_fitted(options: argparse.Namespace) -> None:
    """Refuse options that the fitted sampler does not accept."""
    if options.steps is not None and options.steps not in FITTED_STEPS:
        raise UserError(
            f"--steps: found {options.steps}; --sampler {FITTED} takes {FITTED_STEPS[0]} to {FITTED_STEPS[-1]}"
        )
    if options.grid is not None:
        raise UserError(f"--grid: --sampler {FITTED} has its own; leave it out")
    for option in ("inpaint", "restore", "edit", "encode", "interpolate"):
        if getattr(options, option) is not None:
            raise UserError(f"--{option}: not with --sampler {FITTED}, whose numbers are for plain draws")


def check_models(names: Iterable[str], runs_dir: str, checkpoints: bool = False) -> None:
    """Refuse models that do not exist: run folders, names of runs, model files, `pretrained:NAME`.

    Args:
        names: The models on the command line.
        runs_dir: The folder of runs.
        checkpoints: Whether checkpoints are accepted too.
    """
    resolve = runs.resolve_weights if checkpoints else runs.resolve_model
    for name in names:
        resolve(name, runs_dir)


def check_named(options: argparse.Namespace) -> None:
    """Refuse what a command line names that is not there: its `run` or `model`, and its device."""
    named = vars(options).get("run") or vars(options).get("model") or ()
    check_models((named,) if isinstance(named, str) else named, vars(options).get("runs", RUNS))
    check_device(vars(options).get("device", "auto"))


def check_conversion(options: argparse.Namespace) -> None:
    """Refuse a conversion that cannot begin."""
    check_models([options.model], options.runs, checkpoints=True)
    check_model_file(Path(options.out), "OUT")


def check_model_file(out: Path, name: str) -> None:
    """Refuse a place for a model file."""
    if out.suffix != ".safetensors":
        raise UserError(f"{name}: found {out}; the name of a model file ends in .safetensors")
    if out.exists():
        raise UserError(f"{name}: {out} is there already; name another file")
    _check_out(str(out), name=name)


def check_export(options: argparse.Namespace) -> None:
    """Refuse an export that cannot begin."""
    check_models([options.model], options.runs, checkpoints=True)
    if options.runtime is not None and options.to != "web":
        raise UserError(f"--runtime: is for --to web, the page; found --to {options.to}")
    if Path(options.folder).exists():
        raise UserError(f"DIR: {options.folder} is there already; name another folder")
    _check_out(str(Path(options.folder) / "model.safetensors"), name="DIR")


def check_takes_figures(folder: str | Path) -> None:
    """Refuse, before anything is measured, a folder to which the results could not be written."""
    try:
        atomic.check_writable(Path(folder) / "x.json")
    except OSError as error:
        raise UserError(f"{folder}: results cannot be stored there ({error.strerror})") from error


def check_quality(options: argparse.Namespace) -> None:
    """Check the command line of `quality`."""
    check_device(options.device)
    _check_drawing(options.sampler, options.grid)
    if options.data is not None:
        check_reference(options.data, options.runs)
    for name in options.run:
        if not are_images(name, options.runs):
            check_models([name], options.runs)
        elif not Path(name).exists():
            raise UserError(f"{name}: does not exist; accepted: a folder, .zip, .tar, .npz or .npy of images, or a run")
        elif options.data is None:
            raise UserError(f"--data: {name} holds images; name the data set that they are to be compared with")
    check_features(options.features)


def check_tradeoff(options: argparse.Namespace) -> None:
    """Check the command line of `tradeoff`."""
    check_device(options.device)
    for name in options.samplers or ():
        choose("--samplers", name, (*SAMPLERS, "all"))
    _check_drawing(None, options.grid)
    if options.run.startswith(EXACT):
        choose(EXACT.rstrip(":"), options.run.removeprefix(EXACT), EXACT_MODELS)
        if options.data is not None:
            raise UserError(f"--data: {options.run} was trained on no images; leave it out")
    else:
        check_models([options.run], options.runs)
    check_features(options.features)


def _check_drawing(sampler: str | None, grid: str | None) -> None:
    if sampler is not None:
        choose("--sampler", sampler, SAMPLERS)
    if grid is not None:
        choose("--grid", grid, GRIDS)


def are_images(text: str, runs_dir: str) -> bool:
    """Whether a command line names images, and not a run or a model file."""
    path = Path(text)
    if path.suffix.lower() in (".zip", ".tar", ".npz", ".npy"):
        return True
    is_run = runs.of_another_project(path) or any(
        (folder / name).exists() for folder in (path, Path(runs_dir) / text) for name in _OF_A_RUN
    )
    return path.is_dir() and not is_run


def check_reference(text: str, runs_dir: str) -> None:
    """Refuse reference data that are no data set, run or images."""
    if text in IMAGE_SETS or (Path(text).exists() and are_images(text, runs_dir)):
        return
    try:
        check_models([text], runs_dir)
    except UserError as error:
        if Path(text).exists() or ":" in text:
            raise
        accepted = f"{', '.join(IMAGE_SETS)}, a run, or a path of images"
        raise UserError(f"--data: found '{text}'; accepted: {accepted}.{did_you_mean(text, IMAGE_SETS)}") from error


def check_training(options: argparse.Namespace) -> None:
    """Check the command lines of `train-classifier` and `train-features`."""
    choose("DATA", options.data, (*IMAGE_SETS, "folder"))
    if options.path is not None and not Path(options.path).exists():
        raise UserError(f"--path: {options.path} does not exist; accepted: a folder, a .zip, .tar, .npz or .npy file")
    _check_out(options.out)
    if Path(options.out).suffix != ".safetensors":
        raise UserError(f"--out: found '{options.out}'; a .safetensors file is written, x.safetensors")


def check_comparison(options: argparse.Namespace) -> None:
    """Check the command line of `compare`."""
    check_models(options.run, options.runs)
    _check_out(str(Path(options.out) / "comparison.html"))


def check_features(name: str | None) -> None:
    """Refuse an unknown feature network, and a file of one that does not exist."""
    if name is None or name in FEATURES:
        return
    if Path(name).suffix not in (".safetensors", ".pt", ".pth"):
        raise UserError(
            f"--features: found '{name}'; accepted: {', '.join(FEATURES)}, a .safetensors file of train-features, or a "
            f".pt or .pth file of Inception's weights.{did_you_mean(name, FEATURES)}"
        )
    if not Path(name).is_file():
        raise UserError(f"--features: {name} does not exist")
