"""What of a configuration can be known to be wrong before torch is loaded, which takes seconds.

The parts that these concern check them too; here the user is told at once. What only the data themselves, the GPU or
the network's own code can tell is told later.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ..errors import UserError, choose
from ..processes import launched
from ..storage.paths import expanded
from . import Config, DataConfig
from .sections import Toys
from .strict_yaml import show

SAMPLERS = (
    "ode", "ddim", "ancestral", "sde", "euler-maruyama", "predictor-corrector", "dpm-solver++sde", "sa-solver",
    "adaptive-sde", "euler", "heun", "dpm-solver-2", "dpm-solver-3", "dpm-solver++2m", "dpm-solver++3m", "unipc",
    "deis", "adams", "abm",
)  # fmt: skip
# Those with a noise dial.
TAKE_ETA = (
    "ddim", "sde", "euler-maruyama", "predictor-corrector", "dpm-solver++sde", "sa-solver", "adaptive-sde",
)  # fmt: skip
# Keys of `data` that have no use for data that are in no files, and for points.
_OF_FILES = ("bits", "unreadable", "cache")
_OF_IMAGES = ("size", *_OF_FILES, "place", "flip")
SMALLEST_CODED = 8  # pixels a side that an autoencoder takes


@dataclass(frozen=True)
class KnownData:
    """What is known of data before they are read; None: not known.

    Args:
        side: The height and width of an image; 0 for points.
        levels: The levels of a pixel.
        classes: The number of classes.
    """

    side: int | None
    levels: int | None = None
    classes: int | None = None


_POINTS = KnownData(0, None, 0)
_SETS = {
    "digits": KnownData(8, 17, 10),
    **dict.fromkeys(("mnist", "fashion-mnist", "kmnist"), KnownData(28, 256, 10)),
    "cifar10": KnownData(32, 256, 10),
    **dict.fromkeys(get_args(Toys), _POINTS),
}
IMAGE_SETS = tuple(name for name, known in _SETS.items() if known.side)


def known_data(options: DataConfig) -> KnownData:
    """What is known of the data of a configuration."""
    if options.path is not None:
        return KnownData(options.size)
    known = _SETS[options.name]
    return KnownData(options.size, known.levels, known.classes) if options.size and known.side else known


def check(config: Config, makes_run: bool = True) -> None:
    """Refuse a run that cannot begin.

    Args:
        config: The configuration.
        makes_run: Whether a run folder may be made in `runs`.

    Raises:
        UserError: For the first of what is found to be wrong.
    """
    _check_places(config, makes_run)
    check_device(config.device)
    process_count(config)
    data = known_data(config.data)
    _check_used(config.data)
    if config.family == "diffusion":
        _check_diffusion(config, data)
    else:
        _check_autoencoder(config, data)


def _check_used(options: DataConfig) -> None:
    keys = _OF_IMAGES if _SETS.get(options.name) == _POINTS else _OF_FILES if options.name == "digits" else ()
    for key in keys:
        found, default = getattr(options, key), getattr(DataConfig(), key)
        if found not in (default, False):
            raise UserError(f"data.{key}: found {show(found)}; '{options.name}' does not take it")


def process_count(config: Config) -> int:
    """The processes of this run.

    Raises:
        UserError: Where torchrun and `trainer.devices` disagree, or they cannot share a batch.
    """
    options, count = config.trainer, launched().count
    if count > 1 and options.devices not in (1, count):
        raise UserError(f"trainer.devices: found {options.devices}; the launcher has started {count} processes")
    count = max(count, options.devices)
    parts = options.accumulate * count
    if options.batch_size % parts:
        raise UserError(
            f"trainer.batch_size: found {options.batch_size}; must be a multiple of accumulate x processes, {parts}"
        )
    if config.data.place == "device" and options.workers:
        raise UserError(f"trainer.workers: found {options.workers}; data.place 'device' takes 0")
    if options.strategy == "sharded" and config.family != "diffusion":
        raise UserError(f"trainer.strategy: found 'sharded'; family '{config.family}' takes ddp")
    if options.strategy == "sharded" and count > 1 and config.schedule.name == "learned":
        raise UserError("trainer.strategy: found 'sharded'; schedule.name 'learned' takes ddp")
    return count


def _check_places(config: Config, makes_run: bool) -> None:
    data = config.data
    for key, named in (("runs", config.runs), ("data.root", data.root), ("data.path", data.path),
                       ("data.cache", data.cache)):  # fmt: skip
        if named is not None:
            expanded(named, key)
    if config.name is not None and not re.fullmatch(r"[A-Za-z0-9_][\w.+=-]*", config.name):
        raise UserError(f"name: found '{config.name}'; letters, digits and . _ - + = are accepted in a run's name")
    if makes_run:
        _check_writable("runs", Path(config.runs))
    if data.path is None:
        return
    if data.cache is not None:
        cache = Path(data.cache)
        if not any(
            cache.glob("*.npy")
        ):  # what is filled may be read-only; only its key, of all files, tells whose it is
            _check_writable("data.cache", cache)
    path = Path(data.path)
    if not path.exists():
        raise UserError(f"data.path: {data.path} does not exist; accepted: a folder, a .zip, .tar, .npz or .npy file.")
    if path.is_file() and path.suffix.lower() not in (".npz", ".npy", ".tar") and not zipfile.is_zipfile(path):
        raise UserError(
            f"data.path: {data.path} is neither a folder nor a zip file; accepted: a folder, a .zip, .tar, .npz or "
            ".npy file."
        )


def _check_writable(key: str, folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{key}: {folder} cannot be made; {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{key}: {folder} cannot be written; {there} belongs to another user, or is read-only")


def check_device(name: str) -> None:
    """Refuse what is no name of a device, and a GPU that is not there.

    Raises:
        UserError: For such a device.
    """
    found = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", name)
    if found is None:
        raise UserError(f"device: found '{name}'; accepted: auto, cpu, cuda, cuda:0, ...")
    if name.startswith("cuda"):
        count = _gpu_count()
        if count is not None and int(found[1] or 0) >= count:
            raise UserError(f"device: '{name}' is not there: {count} GPU(s) found; accepted: auto, cpu")


def _gpu_count() -> int | None:
    """The GPUs that NVIDIA's driver tells of, to which CUDA_VISIBLE_DEVICES applies; None where nobody can tell."""
    if sys.platform != "linux" or Path("/dev/kfd").exists():  # an AMD driver, whose GPUs torch calls cuda too
        return None
    try:
        driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError:
        return 0
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def _check_diffusion(config: Config, data: KnownData) -> None:
    network, objective, sampling = config.network, config.objective, config.sampling
    if data.side == 0 and network.name != "mlp":
        raise UserError(f"network.name: found '{network.name}'; data of shape (2,) need mlp")
    if data.side != 0 and network.name == "mlp":
        raise UserError(f"network.name: found '{network.name}'; images need unet or dit")
    if config.denoiser.conditional and data.classes == 0:
        raise UserError(f"denoiser.conditional: the data '{config.data.name}' have no labels; set it to false")
    if config.denoiser.prediction == "levels" and data.side == 0:
        raise UserError(f"denoiser.prediction: found 'levels'; the points of '{config.data.name}' have none")
    if network.name == "unet":
        _check_unet(config, data.side)
    if config.schedule.name == "learned":
        if objective.weighting not in ("elbo", "likelihood"):
            raise UserError(
                f"objective.weighting: found '{objective.weighting}'; a learned schedule takes elbo or likelihood"
            )
        if objective.time != "uniform":
            raise UserError(f"objective.time: found '{objective.time}'; schedule.name 'learned' takes uniform")
    choose("sampling.sampler", sampling.sampler, SAMPLERS)
    if sampling.eta is not None and sampling.sampler not in TAKE_ETA:
        raise UserError(
            f"sampling.eta: found {sampling.eta:g}; sampler '{sampling.sampler}' does not take it; "
            f"{', '.join(TAKE_ETA)} do"
        )


def _check_unet(config: Config, side: int | None) -> None:
    network = config.network
    multipliers, attention = network.multipliers or (), network.attention or ()
    attended = {len(multipliers) - 1}  # levels with attention; the coarsest has it in its middle
    if side is not None:
        multiple = 2 ** (len(multipliers) - 1)
        heights = [(math.ceil(side / multiple) * multiple) >> level for level in range(len(multipliers))]
        for height in attention:
            if height not in heights:
                raise UserError(
                    f"network.attention: no feature map has height {height}; with images of {side} x {side} and "
                    f"{len(heights)} levels (network.multipliers) the heights are {', '.join(map(str, heights))}"
                )
        attended |= {level for level, height in enumerate(heights) if height in attention}
    assert network.base_channels is not None
    for level in sorted(attended):
        channels = network.base_channels * multipliers[level]
        if network.head_channels is not None and channels % network.head_channels:
            raise UserError(
                f"network.head_channels: found {network.head_channels}; must divide the {channels} channels of a level "
                "that has attention"
            )


def _check_autoencoder(config: Config, data: KnownData) -> None:
    options, trainer = config.autoencoder, config.trainer
    if data.side == 0:
        raise UserError(f"family: found '{config.family}', which models images; '{config.data.name}' are points")
    if data.side is not None and data.side < SMALLEST_CODED:
        raise UserError(f"data.size: found {data.side}; family '{config.family}' takes {SMALLEST_CODED} at least")
    if data.side is not None and 2 ** (len(options.multipliers) - 1) > data.side:
        raise UserError(
            f"autoencoder.multipliers: {len(options.multipliers)} levels are too many for images of {data.side} x "
            f"{data.side}; accepted: at most {int(math.log2(data.side)) + 1}"
        )
    if options.observation == "bernoulli" and data.levels not in (None, 2):
        raise UserError(f"autoencoder.observation: found 'bernoulli'; it takes 2 levels, the data have {data.levels}")
    part = trainer.batch_size // (trainer.accumulate * process_count(config))
    if config.family == "eae" and part <= options.neighbours:
        raise UserError(
            f"autoencoder.neighbours: found {options.neighbours}; must be below the images taken together, {part}"
        )
