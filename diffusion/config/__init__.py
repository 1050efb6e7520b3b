"""The configuration of a run: pydantic models, strict YAML, and the command line of train.py, without torch.

config = load_config("cifar", ["trainer.steps=1000", "optimizer.lr=1e-4"])
assert parse_config(dump_config(config)) == config
"""

from .arguments import TrainArguments, help_text, parse_train_arguments
from .files import (
    adopting,
    available_configs,
    dump_config,
    find_config,
    load_config,
    parse_config,
    plain_values,
    with_places,
)
from .run_sections import (
    FITTED,
    FITTED_STEPS,
    Config,
    EMAConfig,
    EvaluationConfig,
    LoggingConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainerConfig,
)
from .sections import (
    DENOISING,
    IMAGE_SETS,
    SPLITS,
    TOY_SETS,
    AutoencoderConfig,
    DataConfig,
    DenoiserConfig,
    NetworkConfig,
    ObjectiveConfig,
    ScheduleConfig,
)

__all__ = [
    "DENOISING",
    "FITTED",
    "FITTED_STEPS",
    "IMAGE_SETS",
    "SPLITS",
    "TOY_SETS",
    "AutoencoderConfig",
    "Config",
    "DataConfig",
    "DenoiserConfig",
    "EMAConfig",
    "EvaluationConfig",
    "LoggingConfig",
    "NetworkConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "SamplingConfig",
    "ScheduleConfig",
    "TrainArguments",
    "TrainerConfig",
    "adopting",
    "available_configs",
    "dump_config",
    "find_config",
    "help_text",
    "load_config",
    "parse_config",
    "parse_train_arguments",
    "plain_values",
    "with_places",
]
