"""Several processes that train one model: how they are identified, connected and described to Lightning.

They come from torchrun (on one machine or many), or, with `trainer.devices`, from this process itself on this machine.
The model is replicated (DistributedDataParallel) or sharded (`fully_shard`, Zhao et al. 2023, arXiv 2304.11277: each
process holds a part of weights, gradients and moments). A batch does not depend on how many share it (`data_module`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy

from ...config import Config
from ...config.preflight import process_count
from ...processes import launched
from ...storage.checkpoint_files import read_checkpoint
from .shards import group_is_up


class Sharded(ModelParallelStrategy):
    """`fully_shard` over all processes; a checkpoint is one whole file, which any number of processes reads."""

    def __init__(self, processes: int):
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint after it has been checked as every other is (Lightning reads this one past our plugin)."""
        read_checkpoint(checkpoint_path)
        return super().load_checkpoint(checkpoint_path, weights_only=True)


def process_options(config: Config, device: torch.device) -> dict[str, Any]:
    """The options of Lightning's trainer that describe the processes."""
    processes, count = launched(), process_count(config)
    accelerator = {"cuda": "gpu", "mps": "mps"}.get(device.type, "cpu")
    if count == 1:
        devices: Any = 1 if device.index is None else [device.index]
        return {"accelerator": accelerator, "devices": devices, "strategy": "auto"}
    where = {"devices": count} if processes.count == 1 else {
        "devices": processes.local_count, "num_nodes": processes.machines,
    }  # fmt: skip
    strategy: Any = Sharded(count) if config.trainer.strategy == "sharded" else "ddp"
    return {"accelerator": accelerator, **where, "strategy": strategy}


def meet(device: torch.device) -> None:
    """Connect the processes started by a launcher; Lightning then uses this group."""
    processes = launched()
    if processes.count == 1:
        return
    # Where a launcher says no more than RANK and WORLD_SIZE, Lightning would take each process for the main one of
    # its own, start others next to it, and let all of them write.
    os.environ.setdefault("LOCAL_RANK", str(processes.local_rank))
    os.environ.setdefault("NODE_RANK", str(processes.rank // processes.local_count))
    if group_is_up():
        return
    if device.type == "cuda":
        torch.cuda.set_device(processes.local_rank)
        dist.init_process_group("nccl", device_id=torch.device("cuda", processes.local_rank))
    else:
        dist.init_process_group("gloo")


def agree(value: Any) -> Any:
    """The main process's value, on all processes started by torchrun."""
    if launched().count == 1:
        return value
    found = [value]
    dist.broadcast_object_list(found, src=0)
    return found[0]


@contextmanager
def first_on_each_machine() -> Iterator[None]:
    """Run a block on one process per machine first, then on the others, which find what it downloaded."""
    processes = launched()
    several = processes.count > 1
    if several and processes.local_rank:
        dist.barrier()
    yield
    if several and not processes.local_rank:
        dist.barrier()
