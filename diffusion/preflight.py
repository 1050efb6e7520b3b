"""What of a configuration can be known to be wrong before torch is loaded, which takes seconds.

The parts that these concern check them too; here the user is told at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from .config import Config
from .config.sections import Toys
from .errors import UserError, choose

SAMPLERS = (
    "ode", "ddim", "ancestral", "sde", "euler-maruyama", "predictor-corrector", "dpm-solver++sde", "sa-solver",
    "adaptive-sde", "euler", "heun", "dpm-solver-2", "dpm-solver-3", "dpm-solver++2m", "dpm-solver++3m", "unipc",
    "deis", "adams",
)  # fmt: skip


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
