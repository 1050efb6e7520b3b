"""Tensors of which each process holds a part: DTensors, as `fully_shard` leaves the parameters of a network.

What works entry by entry (an average of the weights, their exchange) works on this process's part. What leaves the run
(a checkpoint, a picture) is gathered first, which all processes have to do together.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ...errors import UserError


def part(tensor: Tensor) -> Tensor:
    """The part of a tensor on this process, as a view; the whole tensor if it is not sharded."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """The part of `whole` that corresponds to what this process holds of `like`."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None).to_local()


def whole(own: Tensor, like: Tensor) -> Tensor:
    """The tensor whose parts, laid out as those of `like`, are `own` on each process; all processes call it."""
    if not isinstance(like, DTensor):
        return own
    spread = DTensor.from_local(
        own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return spread.full_tensor()


def plain(tensor: Tensor) -> Tensor:
    """A scalar that was computed from sharded tensors, as an ordinary one; all processes call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard(networks: Iterable[nn.Module], model: nn.Module, mesh: DeviceMesh | None) -> None:
    """Spread the parameters of networks over the processes of a mesh, gathered block by block as they are used.

    Args:
        networks: The networks; the members of their module lists are the blocks.
        model: What is trained.
        mesh: The processes.

    Raises:
        UserError: For a model with parameters outside of its networks, whose gradients nobody would sum.
    """
    networks = tuple(networks)
    inside = {parameter for network in networks for parameter in network.parameters()}
    for name, parameter in model.named_parameters():
        if parameter not in inside:
            raise UserError(
                f"trainer.strategy: found 'sharded'; the model's '{name}' is outside of its network; use ddp"
            )
    for network in networks:
        lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
        for blocks in reversed(lists):  # inner ones first
            for block in blocks:
                if any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh, reshard_after_forward=True)


def is_sharded(module: nn.Module) -> bool:
    """Whether a process holds only a part of some parameter."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def group_is_up() -> bool:
    """Whether a process group is initialised."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
