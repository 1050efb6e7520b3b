"""Averages of several widths during training, kept in snapshots, and one of any width made of them afterwards.

    RUN/averages/<images>.safetensors    the averages of `ema.widths` after so many images, as `<width>/<weight>`

See `ema` for what a width is (Karras et al. 2024, arXiv 2312.02696, sec. 3 and app. C).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ..config import Config
from ..errors import UserError
from ..storage import tensor_files
from ..storage.records import reading
from .callbacks import StepCallback
from .ema import Average, exponent, reconstruction

KEY = "profile_averages"  # of checkpoints
_WHAT = "averages"  # the entry of a snapshot that says what it holds


class Profiles(StepCallback):
    """Tracks averages of `ema.widths`, and writes `ema.snapshots` of them, evenly spaced, the last after the last step.

    Args:
        folder: Where snapshots go.
        config: Of the run.
        submodule: Dotted path of the submodule to average.
    """

    def __init__(self, folder: Path, config: Config, submodule: str):
        self.folder, self.widths, self.submodule = folder, config.ema.widths, submodule
        self.images_per_step = config.trainer.batch_size
        self.every = math.ceil(config.trainer.steps / config.ema.snapshots)
        self._averages: list[Average] = []
        self._restored: Sequence[Mapping[str, Any]] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here, and not in `setup`: the module has reached its device, and a checkpoint, if any, has been read.
        module = pl_module.get_submodule(self.submodule)
        self._averages = [Average(module, width=width) for width in self.widths]
        self._restore()

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for average in self._averages:
            average.update(self.images_per_step)
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            whole = [average.whole() for average in self._averages]  # by all processes together
            if trainer.is_global_zero:
                self._write(whole, trainer.global_step)

    def _write(self, whole: Sequence[Mapping[str, Tensor]], step: int) -> None:
        images = self._averages[0].images_seen
        named = {
            f"{width}/{name}": tensor
            for width, weights in zip(self.widths, whole, strict=True)
            for name, tensor in weights.items()
        }
        self.folder.mkdir(exist_ok=True)
        what = json.dumps({"images": images, "step": step, "widths": self.widths})
        tensor_files.write(self.folder / f"{images:012d}.safetensors", named, {_WHAT: what})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = [average.state_dict() for average in self._averages]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if KEY not in checkpoint or len(checkpoint[KEY]) != len(self.widths):
            raise UserError(
                f"ema.widths: found {list(self.widths)}, but the checkpoint was trained with "
                f"{len(checkpoint.get(KEY, []))} of them; resume with those or start a new run"
            )
        self._restored = checkpoint[KEY]
        if self._averages:  # sharded weights are read after `on_fit_start`
            self._restore()

    def _restore(self) -> None:
        for average, state in zip(self._averages, self._restored or (), strict=self._restored is not None):
            average.load_state_dict(state)
        self._restored = None


def of_width(folder: Path, width: float, last_step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The average of a width at the end of training, from the snapshots of a run.

    Args:
        folder: The snapshots.
        width: The width.
        last_step: The step at which the run ended; later snapshots are left out: the run was
            resumed from an earlier one.

    Returns:
        The weights, and how they were made: width, snapshots, the widths of these, and the relative error of the
        profile.

    Raises:
        UserError: For a folder without snapshots, and for damaged ones.
    """
    wanted = exponent(width)
    paths = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    found = [(path, _contents(path)) for path in paths]
    found = [(path, what) for path, what in found if what["step"] <= last_step]
    if not found:
        raise UserError(f"{folder}: holds no snapshots; train with 'ema.widths=[0.05,0.1]' to choose a width later")
    if len({tuple(what["widths"]) for _, what in found}) > 1:
        raise UserError(f"{folder}: its snapshots are of different widths, of more than one run")
    images, widths = found[-1][1]["images"], found[-1][1]["widths"]
    kept = [(float(what["images"]), exponent(each)) for _, what in found for each in widths]
    factors, error = reconstruction(kept, (float(images), wanted))
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    rest = iter(factors)
    for path, what in found:
        tensors = tensor_files.read(path, "snapshot", _WHAT)[0]
        for each in what["widths"]:
            own = {n.partition("/")[2]: t for n, t in tensors.items() if n.startswith(f"{each}/")}
            dtypes = {name: tensor.dtype for name, tensor in own.items()}
            _add(sums, own, next(rest), path)
    how = {"width": width, "snapshots": len(found), "of_widths": list(widths), "error": error, "images": images}
    return {name: tensor.to(dtypes[name]) for name, tensor in sums.items()}, how


def _contents(path: Path) -> dict[str, Any]:
    """What a snapshot says that it holds, from its header alone."""
    with reading(f"{path}: no snapshot of averages, or damaged; move it away"):
        with path.open("rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 2**26)))
        what = json.loads(header["__metadata__"][_WHAT])
        widths = [float(width) for width in what["widths"]]
        return {"images": int(what["images"]), "step": int(what["step"]), "widths": widths}


def _add(sums: dict[str, Tensor], tensors: Mapping[str, Tensor], factor: float, path: Path) -> None:
    if sums and {n: t.shape for n, t in sums.items()} != {n: t.shape for n, t in tensors.items()}:
        raise UserError(f"{path}: holds other weights than the snapshots before it; they are of more than one run")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            sums[name] = tensor  # a counter: the last
        elif name in sums:
            sums[name].add_(tensor, alpha=factor)
        else:
            sums[name] = tensor.to(torch.float64) * factor
