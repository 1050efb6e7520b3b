"""`load` makes a model of any family from its file.

A model file is safetensors: weights, with the configuration and the facts about the data as text. Loading
reads no data, imports no Lightning and runs no code from the file.
"""

from __future__ import annotations

import runpy
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..config import SamplingConfig, parse_config
from ..errors import UserError, did_you_mean
from ..storage import hub, runs, tensor_files
from ..storage.checkpoint_files import read_checkpoint
from . import BY_FAMILY, DiffusionModel, GenerativeModel, TrainedModel, factors
from .adopt import AdoptedModel
from .build import DataFacts, build_model, check_state
from .formats import KNOWN, load_known
from .formats.known import Known, own_names

__all__ = ["FACTS", "STEP", "DiffusionModel", "GenerativeModel", "TrainedModel", "load"]

FACTS = "data"
STEP = "step"
Moved = TypeVar("Moved", nn.Module, TrainedModel)
NOT_FITTED = "not_fitted"  # marks a model that is trained, but lacks what is fitted after training


def load(
    path_or_name: Any, device: Any = "cpu", runs_dir: str | Path = "runs", configuration: Any = None
) -> TrainedModel:
    """Make a model from a run folder, a model file, a training checkpoint, the name of a pretrained model, or what
    another project wrote in a known format (`formats`).

    Args:
        path_or_name: `runs/<run>`, `x.safetensors`, `last.ckpt`, `pretrained:digits`, a folder of diffusers, a file of
            EDM, score_sde, improved-diffusion or guided-diffusion, or `hf:OWNER/NAME[@REVISION]`.
        device: The device of the model.
        runs_dir: The folder in which runs are looked up by name.
        configuration: Of a file of another project that does not say it, and has another name than published ones: the
            name of one (`vp/cifar10_ddpmpp_continuous`, `64x64_diffusion`), or flags of their scripts.

    Returns:
        The model with its averaged weights, in evaluation mode.

    Raises:
        UserError: For a file that is missing, damaged, of another kind, or whose weights do not fit its configuration.
    """
    if not isinstance(path_or_name, str | Path):
        raise UserError(f"model: found a {type(path_or_name).__name__}; needs a run, a file, or a pretrained: name")
    if runs.python_model(str(path_or_name)) is not None:
        raise UserError(f"{path_or_name}: a Python file is run only where a command names it as its model; import it")
    path = runs.resolve_weights(path_or_name, runs_dir)
    if path.suffix == ".ckpt":
        state, metadata = _of_checkpoint(path)
    else:
        if runs.of_another_project(path):
            name = hub.name_of(str(path_or_name)) or path.resolve().stem
            return _moved(load_known(path, name, configuration), device)
        state, metadata = tensor_files.read_model(path)
    if configuration is not None:
        raise UserError(f"{path}: configuration: it says its own; leave it out")
    if KNOWN in metadata:
        return _moved(_known(path, state, metadata), device)
    return _built(path, state, metadata, device, ())


def _known(path: Path, state: dict[str, Tensor], metadata: Mapping[str, str]) -> AdoptedModel:
    """The model of a file of ours that holds a network of another project, converted or trained further."""
    known = Known.from_json(metadata[KNOWN], _adopted_state(path, state, metadata, ()), str(path))
    if "config" not in metadata or FACTS not in metadata:
        return known.model(path)
    config = parse_config(metadata["config"], source=str(path))
    if config.family != "adopted" or config.trainer.start is None:
        return known.model(path)
    return known.model(path, config, *_facts(path, metadata))


def _adopted_state(
    path: Path, state: dict[str, Tensor], metadata: Mapping[str, str], above: tuple[Path, ...]
) -> dict[str, Tensor]:
    """The weights of such a file, with factors merged into those of their base."""
    if factors.KEY not in metadata:
        return own_names(state)
    base = factors.base_of(metadata[factors.KEY], path, above)
    own, said = _of_checkpoint(base) if base.suffix == ".ckpt" else tensor_files.read_model(base)
    if KNOWN not in said:
        raise UserError(f"{path}: its base, {base}, holds no network of another project")
    weights = _adopted_state(base, own, said, (*above, path))
    return _with_factors(path, base, weights, own_names(factors.for_file(state)), list(weights))


def _with_factors(
    path: Path, base: Path, weights: dict[str, Tensor], learned: dict[str, Tensor], names: list[str]
) -> dict[str, Tensor]:
    try:
        return factors.merge(weights, learned, names)
    except ValueError as error:
        raise UserError(f"{path}: {error} of {base}") from error


def _facts(path: Path, metadata: Mapping[str, str]) -> tuple[DataFacts, int]:
    """What a file says of its data, and the step of its weights."""
    try:
        return DataFacts.from_json(metadata[FACTS]), int(metadata.get(STEP, 0))
    except ValueError as error:
        raise UserError(f"{path}: what it says of its data is damaged ({error}); train it again") from error


def _built(
    path: Path, state: dict[str, Tensor], metadata: Mapping[str, str], device: Any, above: tuple[Path, ...]
) -> TrainedModel:
    """The model of a file of ours; `above` are the files whose factors are on its weights."""
    if FACTS not in metadata or "config" not in metadata:
        raise UserError(f"{path}: does not say what data it was trained on; a model file of train.py is accepted")
    config = parse_config(metadata["config"], source=str(path))
    facts, step = _facts(path, metadata)
    gradients = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):  # weights that gradients may pass
        module = build_model(config, facts)
        if factors.KEY in metadata:
            base = factors.base_of(metadata[factors.KEY], path, above)
            read = _of_checkpoint if base.suffix == ".ckpt" else tensor_files.read_model
            weights = _built(base, *read(base), "cpu", (*above, path)).module.state_dict()
            state = _with_factors(path, base, weights, factors.for_file(state), list(module.state_dict()))
        check_state(state, module, str(path))
        module.load_state_dict(state)
        module = _moved(module, device)
    # A picture's metadata names the model: for a shipped one by its name, not by where the package happens to lie.
    source = f"pretrained:{path.stem}" if path.parent == runs.PRETRAINED else str(path)
    if path.parent == runs.PRETRAINED:  # nobody chose how it is drawn: as this version does when nothing is said
        config = config.replace(sampling=SamplingConfig())
    return BY_FAMILY[config.family](module, config, facts, source, step)


def _moved(thing: Moved, device: Any) -> Moved:
    """A model or a module on a device.

    Raises:
        UserError: For a device that there is not.
    """
    try:
        return cast(Moved, thing.to(device))
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0][:80]
        raise UserError(f"device: found '{device}' ({reason}); accepted: cpu, cuda, cuda:0, ..., mps") from error


def load_named(path_or_name: Any, device: Any = "cpu", runs_dir: str | Path = "runs") -> TrainedModel:
    """As `load`, of what the user's own command line names; `FILE.py:NAME` is run, and makes the model (`adopt`).

    Never call it with a name that a file holds: the record in a picture, a configuration.
    """
    if (of_python := runs.python_model(str(path_or_name))) is not None:
        return _of_python(runs.resolve_model(path_or_name), *of_python).to(device)
    return load(path_or_name, device, runs_dir)


def _of_python(spec: Path, path: Path, name: str) -> TrainedModel:
    """What a file of the user's calls `name`, a model or a function that makes one.

    It finds the modules next to it, as a script does.

    Raises:
        UserError: For a file that fails, and one that has no such model.
    """
    sys.path.insert(0, str(path.resolve().parent))
    try:
        made = runpy.run_path(str(path))
    except UserError:
        raise
    except Exception as error:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        line = error.lineno if isinstance(error, SyntaxError) else own[-1].lineno if own else None
        where = f"{path}:{line}" if line else str(path)
        raise UserError(
            f"{where}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    finally:
        sys.path.pop(0)
    if name not in made:
        known = [key for key, value in made.items() if isinstance(value, TrainedModel)]
        raise UserError(f"{spec}: {path} makes no '{name}'.{did_you_mean(name, known or made)}")
    found = made[name]
    model = found() if callable(found) and not isinstance(found, TrainedModel) else found
    if not isinstance(model, TrainedModel):
        raise UserError(f"{spec}: found a {type(model).__name__}; needs a model, as of diffusion.adopt")
    if isinstance(model, AdoptedModel):  # what was loaded from a file is known by that file
        model.source = str(spec)
    return model


def _of_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The averaged weights of a training checkpoint, with the metadata of a model file."""
    checkpoint = read_checkpoint(path)
    try:
        metadata, state = dict(checkpoint["model"]), dict(checkpoint["weight_average"]["averages"][0])
    except (KeyError, IndexError, TypeError, ValueError):
        metadata, state = {}, {}
    texts = all(isinstance(text, str) for entry in metadata.items() for text in entry)
    if not metadata or not texts or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path}: holds no model; accepted: a checkpoint that train.py wrote")
    return state, metadata
