"""A training run, from its configuration to its model file, with a Lightning trainer."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ..config import Config, adopting, dump_config, load_config, parse_config, plain_values, preflight, with_places
from ..devices import choose_compile, choose_device, choose_precision, has_bf16_tiles
from ..errors import UserError
from ..models.build import Data
from ..models.load import NOT_FITTED, STEP, TrainedModel, load
from ..networks.layers import channels_last
from ..processes import end_with_parent, is_child, is_helper, launched
from ..storage import atomic, full_disk, run_lock, run_status, runs, tensor_files
from .callbacks import EMACallback, OptimizerOptions, Progress, SampleGrid
from .checkpoint_io import AtomicCheckpointIO, Checkpoints
from .data_module import DataModule
from .distributed.launch import agree, meet, process_options
from .distributed.waiting import Waiting
from .gradient_guard import GradientGuard
from .logs.busy_machine import BusyMachine
from .logs.metrics import ContinueMetrics, MetricsLog
from .logs.wandb import WandbMirror, make_wandb_logger, resolve_mode
from .modules.base import ModelModule
from .profiles import Profiles
from .record import TrainingRecord
from .resume import continuing, run_to_continue
from .stopping import EXIT_CODES, GracefulStop, exits_on_sigterm
from .subject import Subject, prepare

# Child processes of a run on several devices find the folder that the first one made.
_RUN_VARIABLE = "DIFFUSION_RUN"

# How each figure enters W&B's run table; the eval/ names are the same for every family of model.
SUMMARIES = {
    "train/loss": "last",
    "validation/loss": "min",
    "eval/bits_per_dim": "last",
    "eval/bits_per_dim_low": "last",
    "eval/bits_per_dim_high": "last",
    "eval/bits_per_dim_sem": "last",
    "eval/nfe": "last",
}


def train(config: Any = "digits", /, *, resume: str | Path = "auto", **overrides: Any) -> TrainedModel:
    """Train a model as `train.py` does, in a run folder, and return it as `diffusion.load` does.

        model = diffusion.train("digits", name="mine", trainer={"steps": 2000}, optimizer={"lr": 1e-3})

    What was found in the data, and the progress, are printed as `train.py` does, on the standard error. The same call
    resumes an interrupted run. No likelihood is measured, so `evaluation.*` is ignored: call
    `diffusion.log_likelihood`, or run `python -m diffusion evaluate RUN`.

    Args:
        config: The name of a configuration, its path, or a configuration.
        resume: `auto`: resume the last unfinished run of this name and configuration, if any; `never`: start a new
            run; or the run to resume.
        overrides: Keys of the configuration, by section as in its file (`train.py --help` explains them).

    Returns:
        The model with its averaged weights, on the device that it was trained on; its `source` is in the run folder.

    Raises:
        UserError: For a configuration, data, devices or a run that cannot be trained, in one line; for several
            processes, which `train.py` starts; for divergence, a full disk, and a SIGTERM that stopped training.
        KeyboardInterrupt: For a SIGINT that stopped training. The same call continues it.
    """
    if isinstance(config, Config):
        settings = parse_config(dump_config(config), overrides)
    elif isinstance(config, str | Path):
        settings = load_config(config, overrides)
    else:
        raise UserError(f"config: found a {type(config).__name__}; a name, a path or a Config is accepted")
    if not isinstance(resume, str | Path):
        raise UserError(f"resume: found {resume!r}; accepted: 'auto', 'never', or a run")
    settings = adopting(settings, overrides)
    settings = settings.replace(evaluation=settings.evaluation.replace(enabled=False))
    preflight.check(settings, makes_run=resume in ("auto", "never"))
    if (count := preflight.process_count(settings)) > 1:
        raise UserError(f"trainer.devices: found {count} processes; diffusion.train is one, train.py takes several")
    run = run_to_continue(settings, str(resume), flag="resume")
    if run is None:
        preflight.check_start(settings)
    else:
        print(continuing(run, settings), file=sys.stderr)
    with torch.random.fork_rng(devices=[]):
        with full_disk.reported("Free some space; the same call resumes the run."):
            done = fit(settings, run, report=_say)
        if done.mirror is not None:
            done.mirror.finish(done.exit_code)
        if done.exit_code:
            stopped = f"stopped early; the same call resumes {done.run}"
            raise KeyboardInterrupt(stopped) if done.exit_code == EXIT_CODES[signal.SIGINT] else UserError(stopped)
        return load(done.run, choose_device(settings.device))


def _say(text: str) -> None:
    """Print a message, if there is one, next to the progress."""
    if text:
        print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Fit:
    """The result of a training run.

    Attributes:
        run: The run folder.
        data: The data it was trained on.
        mirror: The W&B logger, still open, if there is one.
        exit_code: 0 if training is complete, else that of the signal that stopped it, or that came after the last step
            but before the evaluation.
        is_main: Whether this is the process that writes.
    """

    run: Path
    data: Data
    mirror: WandbMirror | None
    exit_code: int
    is_main: bool


def fit(
    config: Config,
    run: Path | None = None,
    callbacks: Sequence[Callback] = (),
    report: Callable[[str], object] | None = None,
) -> Fit:
    """Train, and write the averaged weights to the run folder.

    Args:
        config: The configuration.
        run: The folder of a run to continue; None starts a new one.
        callbacks: Further callbacks of the trainer.
        report: Called in the main process with a description of the data.

    Raises:
        UserError: For data, devices or settings that do not fit, before anything is written; for a run that another
            process trains; for divergence, and a disk that is full.
    """
    if is_child():
        end_with_parent()
    device = choose_device(config.device)
    placement = process_options(config, device)
    meet(device)
    subject = prepare(with_places(config), run, None if is_helper() else report)
    config, module, options = subject.config, subject.module, subject.config.trainer
    wandb_mode = resolve_mode(config.logging.wandb)
    run, resuming = _run_folder(config, run)
    if rank_zero_only.rank == 0:
        _write_start(subject, run)

    metrics = MetricsLog(run)
    mirror = make_wandb_logger(
        run, wandb_mode, config.logging.project, config.logging.group, list(config.logging.tags),
        {**plain_values(config), "data_facts": subject.data.facts.plain}, SUMMARIES,
    )  # fmt: skip
    checkpoints = Checkpoints(run / runs.CHECKPOINTS, options.checkpoint_every, options.keep_last)
    ema = EMACallback(config.ema.half_life, options.batch_size, config.ema.ramp_up, submodule=module.averaged)
    record = TrainingRecord(options.batch_size, device, preflight.process_count(config))
    stop = GracefulStop()
    compiled = choose_compile(options.compile, device)
    guard = GradientGuard(
        config.optimizer.gradient_clip,
        last_checkpoint=checkpoints.last,
        step_losses=module.step_losses,
        read_every=1 if device.type == "cpu" else options.log_every,
    )
    profiles = [Profiles(run / runs.AVERAGES, config, module.averaged)] if config.ema.widths else []
    by_network = _compile(subject, device) if compiled else False
    samples = run / runs.SAMPLES
    with _quiet_lightning(), run_lock.held(run) if rank_zero_only.rank == 0 else nullcontext():
        trainer = L.Trainer(
            **placement,
            **_trainer_options(config, device),
            logger=[metrics] if mirror is None else [metrics, mirror],
            callbacks=[
                record,
                ContinueMetrics(metrics),
                guard,
                ema,
                *profiles,
                OptimizerOptions(config.optimizer),
                SampleGrid(samples, subject.model, subject.data, ema, Waiting(stop.requested), mirror, by_network),
                Progress(options.batch_size, compiled),
                BusyMachine(options.batch_size),
                stop,
                *callbacks,
                checkpoints,
            ],
            plugins=[AtomicCheckpointIO()],
            default_root_dir=run,
        )
        with stop.caught():
            trainer.fit(module, DataModule(subject.data, config), ckpt_path=checkpoints.last if resuming else None)
    # gathered by all processes together
    averaged = ema.average.whole() if subject.sharded and not stop.exit_code else {}
    if trainer.is_global_zero and not stop.exit_code:
        with exits_on_sigterm(run), ema.average.applied():
            _write_model(subject, run, device, trainer.global_step, averaged)
            record.write(run)
    exit_code = stop.exit_code or (stop.late_code if config.evaluation.enabled else 0)
    if exit_code and trainer.is_global_zero:
        run_status.record(run, exit_code, trainer.global_step)
    return Fit(run, subject.data, mirror, exit_code, trainer.is_global_zero)


def _compile(subject: Subject, device: torch.device) -> bool:
    """Compile what is trained: its networks alone where True is returned, else network and loss as one graph.

    Weights are gathered between the parts of a network, not within a graph; conventions of another project look at
    values.
    """
    if choose_precision(subject.config.trainer.precision, device) == "bf16-mixed" and has_bf16_tiles(device):
        channels_last(subject.module.networks)
    by_network = subject.sharded or subject.config.family == "adopted"
    subject.module.compiles = not by_network
    if by_network:
        for network in subject.module.networks:
            network.compile()
    return by_network


def _trainer_options(config: Config, device: torch.device) -> dict[str, Any]:
    """The options of Lightning's trainer: steps are counted, not epochs, and nothing is drawn on the terminal."""
    options = config.trainer
    validate_every = options.validate_every * options.accumulate
    return {
        "precision": choose_precision(options.precision, device),
        "max_steps": options.steps,
        "max_epochs": -1,
        "accumulate_grad_batches": options.accumulate,
        "use_distributed_sampler": False,
        "val_check_interval": validate_every or None,
        "limit_val_batches": None if validate_every else 0,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": options.log_every,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def _write_start(subject: Subject, run: Path) -> None:
    """Write what a run folder has before its first step."""
    text = dump_config(subject.config)
    _write_config(run, text)
    atomic.write_text(run / runs.DATA, subject.data.facts.to_json())
    run_status.clear(run)
    if subject.starts:
        tensor_files.save_model(run / runs.START, subject.module.kept(), text, {**subject.metadata, STEP: "0"})


def _write_model(
    subject: Subject, run: Path, device: torch.device, step: int, averaged: Mapping[str, torch.Tensor]
) -> None:
    """Write the model file, with `averaged` weights or those that the module has, fitted where its family asks for it.

    Raises:
        UserError: For a fit that failed; the file as trained is there.
    """

    def write(**more: str) -> None:
        entries = {**subject.metadata, STEP: str(step), **more}
        weights = averaged or subject.module.kept()
        tensor_files.save_model(run / runs.MODEL, weights, dump_config(subject.config), entries)

    if subject.module.fits_after_training:  # whatever becomes of the fit, what was trained is there
        write(**{NOT_FITTED: "true"})
        _finish(subject.module, subject.data, device, run)
    write()


def _finish(module: ModelModule, data: Data, device: torch.device, run: Path) -> None:
    """Fit what is fitted after training; a failure is reported in one line, since the model exists."""
    try:
        module.finish(data, device)
    except Exception as error:
        if isinstance(error, OSError):
            raise
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"the fit after training failed ({type(error).__name__}: {reason}). "
            f"The model as trained is {run / runs.MODEL}; the same command repeats the fit alone"
        ) from error


def _run_folder(config: Config, run: Path | None) -> tuple[Path, bool]:
    """The folder of this run, and whether it holds a checkpoint to resume from."""
    if launched().count > 1:
        if run is None and launched().is_main:
            run = runs.create_run(config.runs, config.name or "run")
        run = Path(agree(str(run)))
    elif _RUN_VARIABLE in os.environ and is_child():
        run = Path(os.environ[_RUN_VARIABLE])
    elif run is None:
        run = runs.create_run(config.runs, config.name or "run")
    os.environ[_RUN_VARIABLE] = str(run)
    return run, (run / runs.CHECKPOINTS / "last.ckpt").is_file()


def _write_config(run: Path, text: str) -> None:
    """Write the configuration of a run; a previous one is kept under a numbered name."""
    path = run / runs.CONFIG
    for folder in (run, run / runs.SAMPLES, run / runs.AVERAGES):
        atomic.sweep(folder)
    if path.is_file():
        if path.read_text(encoding="utf-8") == text:
            return
        kept = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(1))
        atomic.link_or_copy(path, next(other for other in kept if not other.exists()))
    atomic.write_text(path, text)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence advice of Lightning that does not apply: batches are made by index, in memory, without workers."""
    import logging

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
            warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists.*")
            # what is logged at the end of a validation has been summed over the processes already
            warnings.filterwarnings("ignore", ".*recommended to use `self.log.*sync_dist=True.*")
            # a network's output is a view where it was cropped; denoisers compute nothing in place
            warnings.filterwarnings("ignore", ".*returned a view tensor.*")
            # torch.compile looks at it by itself where a compiled network is given what another one computed
            warnings.filterwarnings("ignore", ".*The .grad attribute of a Tensor that is not a leaf.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
