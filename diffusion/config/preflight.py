"""What of a run can be known to be wrong before torch is loaded, which takes seconds: places, devices, processes.

Keys, types and ranges are checked where a configuration is read. Whether parts fit each other and the data, the parts
say, before a run folder is made.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import zipfile
from pathlib import Path

from ..errors import UserError
from ..processes import launched
from ..storage import runs
from ..storage.paths import expanded, kind_of_file
from . import Config


def check(config: Config, makes_run: bool = True) -> None:
    """Refuse a run that cannot begin.

    Args:
        config: The configuration.
        makes_run: Whether a run folder may be made in `runs`.
    """
    if config.seed >= 2**64:
        raise UserError(f"seed: found {config.seed}; must be a whole number of 64 bits, below 2^64")
    _check_places(config, makes_run)
    check_device(config.device)
    process_count(config)


def check_start(config: Config) -> None:
    """Refuse a model to start from that is not there; a run that continues does not need it any more."""
    if config.trainer.start is None:
        if config.family == "adopted":
            raise UserError("trainer.start: family 'adopted' trains a model of another project; give --from MODEL")
        return
    try:
        runs.resolve_weights(config.trainer.start, config.runs)
    except UserError as error:
        raise UserError(f"trainer.start: {error}") from error


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
    if config.device == "mps" and count > 1:
        raise UserError(f"trainer.devices: found {count} processes; mps is one device")
    if options.strategy == "sharded" and config.family != "diffusion":
        raise UserError(f"trainer.strategy: found 'sharded'; family '{config.family}' takes ddp")
    if options.strategy == "sharded" and options.lora is not None:
        raise UserError(f"trainer.strategy: found 'sharded'; with trainer.lora={options.lora}: ddp")
    if options.strategy == "sharded" and count > 1 and config.schedule.name == "learned":
        raise UserError("trainer.strategy: found 'sharded'; schedule.name 'learned' takes ddp")
    if options.strategy == "sharded" and count > 1 and config.objective.weighting == "learned":
        raise UserError("trainer.strategy: found 'sharded'; objective.weighting 'learned' takes ddp")
    part, neighbours = options.batch_size // parts, config.autoencoder.neighbours
    if config.family == "eae" and part <= neighbours:
        raise UserError(f"autoencoder.neighbours: found {neighbours}; must be below the images taken together, {part}")
    return count


def _check_places(config: Config, makes_run: bool) -> None:
    data = config.data
    for key, named in (("runs", config.runs), ("data.root", data.root), ("data.path", data.path),
                       ("data.cache", data.cache)):  # fmt: skip
        if named is not None:
            expanded(named, key)
    if config.name is not None and not re.fullmatch(r"\w[\w.+=-]*", config.name):
        raise UserError(f"name: found '{config.name}'; letters, digits and . _ - + = are accepted in a run's name")
    if makes_run:
        _check_writable("runs", Path(config.runs))
    if data.path is None:
        return
    if data.cache is not None:
        cache = Path(data.cache)
        if not any(
            cache.glob("*.npy")
        ):  # what is filled may be read-only; only its key, of all files, says whose it is
            _check_writable("data.cache", cache)
    path = Path(data.path)
    arrays, archives = (".npz", ".npy"), "a folder, a .zip, .tar, .npz or .npy file."
    accepted = "a .npy or .npz file, or a folder of .npy files" if data.name == "array" else archives
    if not path.exists():
        raise UserError(f"data.path: {data.path} does not exist; accepted: {accepted}")
    if data.name == "array":
        if path.is_file() and path.suffix.lower() not in arrays:
            raise UserError(f"data.path: {data.path} is no array; accepted: {accepted}")
    elif path.is_file() and path.suffix.lower() not in (*arrays, ".tar") and not zipfile.is_zipfile(path):
        try:
            kind = kind_of_file(path)
        except OSError as error:
            kind = f"cannot be read ({error.strerror})"
        raise UserError(f"data.path: {data.path} {kind}; accepted: {accepted}")


def _check_writable(key: str, folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{key}: {folder} cannot be made; {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{key}: {folder} cannot be written; {there} belongs to another user, or is read-only")


def check_device(name: str) -> None:
    """Refuse what is no name of a device, and a GPU that is not there."""
    found = re.fullmatch(r"auto|cpu|mps|cuda(?::(\d+))?", name)
    if found is None:
        raise UserError(f"device: found '{name}'; accepted: auto, cpu, cuda, cuda:0, ..., mps")
    if name == "mps" and sys.platform != "darwin":
        raise UserError("device: 'mps' does not exist: no GPU of a Mac found; accepted: auto, cpu, cuda")
    if name.startswith("cuda"):
        count = _gpu_count()
        if count is not None and int(found[1] or 0) >= count:
            raise UserError(f"device: '{name}' does not exist: {count} GPU(s) found; accepted: auto, cpu")


def _gpu_count() -> int | None:
    """The GPUs that NVIDIA's driver reports, to which CUDA_VISIBLE_DEVICES applies; None where that is not known."""
    if sys.platform != "linux" or Path("/dev/kfd").exists():  # an AMD driver, whose GPUs torch calls cuda too
        return None
    try:
        driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError:
        return 0
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value
