"""Run folders with random weights, for tests that need a model and not what it has learned."""

from pathlib import Path

import torch

from diffusion.config import Config, dump_config
from diffusion.models.build import DataFacts, build_model
from diffusion.models.load import FACTS
from diffusion.storage import runs, tensor_files

DIGITS = DataFacts("digits", (1, 8, 8), 17, 10)


def make_run(folder: Path, config: Config, facts: DataFacts = DIGITS) -> Path:
    """A run folder in `folder` of a model of any family."""
    torch.manual_seed(0)
    run = runs.create_run(folder, config.name)
    weights = {k: v + 0.02 * torch.randn(v.shape).to(v) for k, v in build_model(config, facts).state_dict().items()}
    if config.family == "eae":
        weights["proposal_std"] = torch.full((3,), 0.1)  # as if its density had been fitted
    tensor_files.save_model(run / runs.MODEL, weights, dump_config(config), {FACTS: facts.to_json(), "step": "6"})
    return run
