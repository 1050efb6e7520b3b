"""`load` makes a model of any family from its file.

A model file is safetensors: weights, with the configuration and the facts of the data as text beside them. Loading
reads no data, imports no Lightning and runs no code from the file.
"""

from __future__ import annotations

from pathlib import Path

import torch

from . import runs
from .checkpoint_files import read_checkpoint
from .config import parse_config
from .errors import UserError
from .experiment import DataFacts, build_model, check_state
from .families import BY_FAMILY, DiffusionModel, GenerativeModel, TrainedModel

__all__ = ["FACTS", "STEP", "DiffusionModel", "GenerativeModel", "TrainedModel", "load"]

FACTS = "data"
STEP = "step"


def load(path_or_name: str | Path, device: torch.device | str = "cpu", runs_dir: str | Path = "runs") -> TrainedModel:
    """Make a model from a run folder, a model file, a training checkpoint, or the name of a pretrained model.

    Args:
        path_or_name: `runs/<run>`, `x.safetensors`, `last.ckpt`, or `pretrained:digits`.
        device: Where the model goes.
        runs_dir: Where runs are looked up by bare name.

    Returns:
        The model with its averaged weights, in evaluation mode.

    Raises:
        UserError: For a file that is missing, damaged, of another kind, or whose weights do not fit its configuration.
    """
    if Path(path_or_name).suffix == ".ckpt":
        checkpoint = read_checkpoint(path_or_name)
        if "model" not in checkpoint or "weight_average" not in checkpoint:
            raise UserError(f"{path_or_name}: holds no model; accepted: a checkpoint that train.py wrote")
        metadata, state = checkpoint["model"], checkpoint["weight_average"]["averages"][0]
        path = Path(path_or_name)
    else:
        path = runs.resolve_model(path_or_name, runs_dir)
        state, metadata = runs.read_model(path)
    if FACTS not in metadata:
        raise UserError(f"{path}: does not say what data it was trained on; a model file of train.py is accepted")
    config = parse_config(metadata["config"], source=str(path))
    facts = DataFacts.from_json(metadata[FACTS])
    module = build_model(config, facts)
    check_state(state, module, str(path))
    module.load_state_dict(state)
    # A picture's metadata names the model: for a shipped one by its name, not by where the package happens to lie.
    source = f"pretrained:{path.stem}" if path.parent == runs.PRETRAINED else str(path)
    return BY_FAMILY[config.family](module.to(device), config, facts, source, int(metadata.get(STEP, 0)))
