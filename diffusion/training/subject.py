"""What a run trains: its data, the same as before where it continues, and the module with the weights it starts from.

A run resumes only on the data it was started on, identified by content, not by name or place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..config import Config, dump_config, preflight
from ..data import describe
from ..errors import UserError
from ..models import BY_FAMILY, factors
from ..models.build import Data, DataFacts, build_data
from ..models.load import FACTS, TrainedModel
from ..numerics.random import state_seed
from ..storage import runs
from ..storage.checkpoint_files import read_checkpoint
from .distributed.launch import first_on_each_machine
from .modules.base import ModelModule
from .modules.build import build_module
from .start import adopted_start, start_from


@dataclass(frozen=True)
class Subject:
    """What is trained, and on what.

    Attributes:
        config: The configuration.
        data: The data.
        module: The Lightning module.
        model: What pictures on the way are drawn from; it shares the module's weights unless processes share those.
        metadata: What makes a model file, and a checkpoint, a model by itself; without the configuration.
        starts: Whether this is the beginning of a run that starts from another model.
        sharded: Whether no process has the whole of the weights.
    """

    config: Config
    data: Data
    module: ModelModule
    model: TrainedModel
    metadata: dict[str, str]
    starts: bool
    sharded: bool


def prepare(config: Config, run: Path | None, report: Callable[[str], object] | None) -> Subject:
    """Read the data and build what is trained on it, with the weights that it starts from; nothing is written.

    Raises:
        UserError: For data and settings that do not fit.
    """
    report = report or (lambda text: None)
    continues = run if run is not None and (run / runs.CHECKPOINTS / "last.ckpt").is_file() else None
    with first_on_each_machine():
        data = build_data(config, trained=continues is not None)
    if continues is not None:
        data = replace(data, facts=require_same_data(continues, data.facts))
    facts = data.facts
    condition = [f"  condition: {', '.join(map(str, facts.parts))}"] if facts.parts else []
    report("\n".join([*describe(facts.provenance, facts.num_classes), *condition, *_short_warmup(config)]))
    torch.manual_seed(state_seed(config.seed, 0))
    metadata = {FACTS: facts.to_json()}
    starts = config.trainer.start is not None and continues is None
    adopted, notes = None, []
    if config.family == "adopted":
        adopted, notes = adopted_start(config, facts, continues)
        assert adopted.known is not None
        metadata[runs.KNOWN] = adopted.known.to_json()
    module = build_module(config, facts, {"config": dump_config(config), **metadata}, adopted)
    module.check_data(data)
    if adopted is None and (starts or config.trainer.lora is not None):  # factors are nothing without their base
        notes = start_from(module.model, config, facts)
    if starts:
        report("\n".join(notes))
    if config.trainer.lora is not None:
        module.metadata[factors.KEY] = metadata[factors.KEY] = factors.describe(config)
    sharded = config.trainer.strategy == "sharded" and preflight.process_count(config) > 1
    shown = copy.deepcopy(module.model) if sharded else module.model
    model = BY_FAMILY[config.family](shown, config, facts) if adopted is None else adopted
    _check_drawing(model)
    module.train()  # Lightning leaves the mode as it finds it
    return Subject(config, data, module, model, metadata, starts, sharded)


def _short_warmup(config: Config) -> list[str]:
    """A line for a run that ends before its learning rate has risen."""
    steps, warmup = config.trainer.steps, config.optimizer.warmup
    if steps >= warmup:
        return []
    return [
        f"  note: optimizer.warmup is {warmup:,} steps and trainer.steps {steps:,}: the learning rate rises to "
        f"{steps / warmup:.2g} of optimizer.lr at most"
    ]


def _check_drawing(model: TrainedModel) -> None:
    """Check `sampling.*` before training, not only when the first samples are drawn."""
    settings = model.sampling_settings_in_training()
    model.effective_settings(settings)
    if settings.get("eta"):  # whether an eta is too large depends on the path
        model.sample(1, **{**settings, "steps": min(settings["steps"], 2)})


def require_same_data(run: Path, now: DataFacts) -> DataFacts:
    """Refuse to continue a run on other data than its own.

    Args:
        run: The run's folder, with a checkpoint.
        now: The data found now.

    Returns:
        The data found now, with the normaliser of the run: fitted anew it may differ by rounding, or, where two
        directions have the same variance, by more. So with the scale of its conditions.

    Raises:
        UserError: If number, shape, levels, classes or the SHA-256 of a split differ; all differences are listed.
    """
    known = _known(run)
    if known is not None and (differences := known.differences(now)):
        raise UserError(
            f"data: these are not the data that {run} was trained on: {'; '.join(differences)}. Bring those back "
            "(data.path may say where they are now), or start a new run with --resume never"
        )
    return now if known is None else replace(now, normalizer=known.normalizer, parts=known.parts)


def _known(run: Path) -> DataFacts | None:
    """The facts about its data that a run has stored: in its folder, or, for older versions, only in the checkpoint."""
    try:
        return DataFacts.from_json((run / runs.DATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass
    metadata = read_checkpoint(run / runs.CHECKPOINTS / "last.ckpt").get("model", {})
    try:
        return DataFacts.from_json(metadata[FACTS])
    except (KeyError, TypeError, ValueError):
        return None
