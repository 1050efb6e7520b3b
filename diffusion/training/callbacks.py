"""Callbacks of a run: the average of the weights, progress, and grids of samples."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from ..config import OptimizerConfig
from ..data import pictures
from ..denoisers.evaluations import EvaluationCount
from ..errors import UserError
from ..models import TrainedModel
from ..models.build import Data
from ..processes import bar_size
from .distributed.shards import is_sharded
from .distributed.waiting import Waiting
from .ema import AVERAGE_KEY, Average
from .logs.wandb import WandbMirror
from .optimizers import apply_options


class StepCallback(Callback):
    """A callback with a method that is called once per optimiser step, however many batches a step takes."""

    _step = 0

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The step `trainer.global_step` is done."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._step:  # else gradients are still being accumulated
            self._step = trainer.global_step
            self.on_step(trainer, pl_module)


class EMACallback(StepCallback):
    """Averages the weights once per optimiser step and keeps the average under its own key of the checkpoint.

    The checkpoint's `state_dict` always holds the raw weights. Validation runs on the average.

    Args:
        half_life, ramp_up: As `ema.Average`.
        images_per_step: Images per optimiser step: batch x accumulation x processes.
        submodule: Dotted path of the submodule to average; "" for the whole LightningModule.
    """

    def __init__(
        self, half_life: float | int, images_per_step: int, ramp_up: float | int | None = 0.05, submodule: str = ""
    ) -> None:
        self.half_life = half_life
        self.images_per_step = images_per_step
        self.ramp_up = ramp_up
        self.submodule = submodule
        self._average: Average | None = None
        self._restored: Mapping[str, Any] | None = None
        self._swap = ExitStack()

    @property
    def average(self) -> Average:
        """The average, which exists from `on_fit_start` on."""
        assert self._average is not None
        return self._average

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here, and not in `setup`: the module has reached its device, and a checkpoint, if any, has been read.
        self._average = Average(pl_module.get_submodule(self.submodule), self.half_life, self.ramp_up)
        if self._restored is not None:
            self._average.load_state_dict(self._restored)
            self._restored = None

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.average.update(self.images_per_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._average is not None:
            self._swap.enter_context(self._average.applied())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap.close()  # checkpoint callbacks come after every other, so what they write is raw again

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._swap.close()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average is not None:
            checkpoint[AVERAGE_KEY] = self._average.state_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if AVERAGE_KEY not in checkpoint:
            raise UserError("the checkpoint holds no averaged weights, so this run cannot continue from it.")
        self._restored = checkpoint[AVERAGE_KEY]
        if self._average is not None:  # sharded weights are read after `on_fit_start`
            self._average.load_state_dict(checkpoint[AVERAGE_KEY])
            self._restored = None


class Progress(Callback):
    """A progress bar in a terminal; elsewhere a line after a few seconds, every 30 seconds, and at each validation.

    Both show the losses, images/s and the time left. Logs images/s and the learning rate.

    Args:
        images_per_step: Images per step, over all devices.
        compiles: Whether the first step compiles, which takes a while.
    """

    FIRST, EVERY = 5.0, 30.0  # seconds until the first line, and between two
    BAR = "{n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}{postfix}"  # all of it within 80 columns, also of days

    def __init__(self, images_per_step: int, compiles: bool = False):
        self.images_per_step = images_per_step
        self.compiles = compiles
        self._bar: tqdm | None = None
        self._mark = (0, 0.0)
        self._begun: tuple[int, float] | None = None  # step and time after the first step, which may compile
        self._next = 0.0
        self._lr = self._rate = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = (trainer.global_step, time.perf_counter())
        self._begun = None
        self._next = self._mark[1] + self.FIRST
        if trainer.is_global_zero and self.compiles:
            print("compiling: the first step takes a minute or more", file=sys.stderr, flush=True)
        if trainer.is_global_zero and sys.stderr.isatty():
            done, steps, (columns, rows) = trainer.global_step, trainer.max_steps, bar_size()
            self._bar = tqdm(total=steps, initial=done, bar_format=self.BAR, ncols=columns, nrows=rows)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]  # at the end of the step it is the next one's

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self._begun is None:
            self._begun = (step, time.perf_counter())
        if self._bar is not None and step != self._bar.n:
            self._bar.update(step - self._bar.n)
        elif self._bar is None and trainer.is_global_zero and time.perf_counter() >= self._next:
            self._print(trainer)
        first, since = self._mark
        if step % trainer.log_every_n_steps == 0 and step != first:  # type: ignore[attr-defined]
            now = time.perf_counter()
            rate = self._rate = (step - first) * self.images_per_step / (now - since)
            for logger in trainer.loggers:
                logger.log_metrics({"train/images_per_second": rate, "train/learning_rate": self._lr}, step=step - 1)
            self._mark = (step, now)
            if self._bar is not None:
                self._bar.set_postfix(self._figures(trainer), refresh=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self._bar is None and not trainer.sanity_checking:
            self._print(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _print(self, trainer: Trainer) -> None:
        """Print the step, the losses, and the time left."""
        step, now = trainer.global_step, time.perf_counter()
        self._next = now + self.EVERY
        parts = [f"{name} {value}" for name, value in self._figures(trainer).items()]
        first, since = self._begun or (step, now)
        if first < step < trainer.max_steps and now - since >= self.FIRST:
            parts.append(f"{(trainer.max_steps - step) * (now - since) / (step - first) / 60:.1f} min left")
        said = f"step {step:,} of {trainer.max_steps:,}: {', '.join(parts)}"
        print(said.removesuffix(": "), file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _figures(self, trainer: Trainer) -> dict[str, str]:
        known = {"loss": "train/loss", "validation": "validation/loss"}
        metrics = trainer.callback_metrics
        found = {name: f"{float(metrics[key]):.4f}" for name, key in known.items() if key in metrics}
        return {**found, "images/s": f"{self._rate:.0f}"} if self._rate else found


class OptimizerOptions(Callback):
    """Sets the optimiser's options to those of the configuration if a checkpoint has others.

    Args:
        options: The optimizer section of the configuration.
    """

    def __init__(self, options: OptimizerConfig):
        self.options = options

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer, scheduler in zip(trainer.optimizers, trainer.lr_scheduler_configs, strict=True):
            assert isinstance(scheduler.scheduler, torch.optim.lr_scheduler.LambdaLR)
            apply_options(optimizer, scheduler.scheduler, self.options)


class _Stopped(Exception):
    """Leaves the sampler."""


class SampleGrid(Callback):
    """Draws a grid from fixed noise with the averaged weights, every so many steps.

    After a signal, a grid is not drawn; the resumed run draws it before its first step.

    Args:
        folder: Where the pictures go, as step-<step>.png.
        model: The model in training, with its configuration.
        data: The data of the run (for the true density of a toy).
        ema: The callback that holds the averaged weights.
        waiting: How the other processes wait for the main one, and how it learns of signals.
        mirror: The W&B logger, if there is one.
        compiled: Whether the network is compiled by itself.
    """

    def __init__(
        self,
        folder: Path,
        model: TrainedModel,
        data: Data,
        ema: EMACallback,
        waiting: Waiting,
        mirror: WandbMirror | None = None,
        compiled: bool = False,
    ):
        self.folder = folder
        self.model = model
        self.data = data
        self.ema = ema
        self.waiting = waiting
        self.mirror = mirror
        self.compiled = compiled
        self._drawn = -1
        self._starting = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._starting = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._starting:  # and not in `on_train_start`, when signals are not heard yet
            self._starting = False
            if trainer.global_step and not trainer.strategy.broadcast(self._path(trainer.global_step).exists()):
                self._draw_if_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._draw_if_due(trainer, pl_module)

    def _draw_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        config = self.model.config
        step, every = trainer.global_step, config.trainer.sample_every
        if not every or step % every or step == self._drawn:
            return
        self._drawn = step
        if is_sharded(pl_module):
            self.model.module.load_state_dict(self.ema.average.whole())  # by all processes together
            self.model.module.to(pl_module.device)
        # The main process draws by itself: an adaptive solver takes as many steps as it likes, and nobody waits there.
        with self.waiting.main_alone(f"grid {step}", trainer.is_global_zero) as is_main:
            if is_main:
                self._draw(step)

    def _draw(self, step: int) -> None:
        config = self.model.config
        settings = self.model.sampling_settings_in_training()
        if "sampler" in settings:  # an autoencoder decodes at once
            settings = {**settings, "callback": self._leave_if_over}
        # A solver of torchdiffeq calls back at its end only, a compiled network does not say when it is called.
        watched = nullcontext(EvaluationCount()) if self.compiled else self.model.counted()
        try:
            with self.ema.average.applied(), torch.random.fork_rng(devices=[]), watched as count:
                count.watch = self._leave_if_over
                drawn = self.model.sample(config.sampling.n, seed=config.seed, **settings)
        except _Stopped:
            return
        path = self._path(step)
        pictures.save_samples(path, drawn, self.data.toy, continuous=self.model.facts.levels is None)
        if self.mirror is not None:
            self.mirror.log_image("samples", [str(path)], step=step - 1)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.png"

    def _leave_if_over(self, *_: Any) -> None:
        if self.waiting.is_over():
            raise _Stopped
