"""Choosing where and how to compute: the device, its precision, and whether to compile."""

from __future__ import annotations

import torch

from .errors import UserError
from .processes import launched

ACCEPTED = "auto, cpu, cuda, cuda:0, ..., mps"


def choose_device(name: str) -> torch.device:
    """The device named by `auto`, `cpu`, `cuda[:i]` or `mps`, a Mac's GPU; `auto` is a GPU of CUDA if there is one.

    Raises:
        UserError: For a device that does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    processes = launched()
    if name == "cuda" and processes.local_count > 1:  # to each process its own
        name = f"cuda:{processes.local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: found '{name}'; accepted: {ACCEPTED}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"device: '{name}' does not exist: {found} GPU(s) found; accepted: auto, cpu")
    if device.type not in ("cpu", "cuda", "mps") or (device.type == "mps" and device.index):
        raise UserError(f"device: found '{name}'; accepted: {ACCEPTED}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device: 'mps' does not exist: no GPU of a Mac found; accepted: auto, cpu")
    return device


def device_name(device: torch.device) -> str:
    """`cpu`, or the name of the GPU, on which the last bits of a result depend."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def choose_precision(name: str, device: torch.device) -> str:
    """Lightning's name for the configured precision; `auto` is bf16 on a GPU that supports it, else float32.

    On CPUs without the instruction bf16 is several times slower, so it is never chosen there.
    """
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32"
    return "bf16-mixed" if name == "bf16" else "32-true"


def choose_compile(choice: str | bool, device: torch.device) -> bool:
    """Whether to compile the network: as configured; `auto` compiles on a GPU."""
    return device.type == "cuda" if choice == "auto" else bool(choice)


def has_bf16_tiles(device: torch.device) -> bool:
    """Whether this is a CPU that multiplies tiles of bf16 (Intel's AMX), for which channels are best stored last."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)  # not in older versions
    return device.type == "cpu" and bool(capabilities().get("amx_bf16"))
