"""The machine: what is installed and how it will be used, and a network's two passes as training would run them."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ...devices import choose_compile, choose_precision, device_name
from ...errors import UserError
from ...networks import UNet
from ...storage import atomic
from .check import Check, attempt, below

MACHINE, NETWORK = "machine", "network"
_LEAST_SPACE = 2**30
# The relative error allowed to a pass: bf16 has 8 bits, float32 (with TF32) 10 or more.
_ROUNDING = {"bf16-mixed": 0.05, "32-true": 5e-3}


def check_machine(device: torch.device) -> list[Check]:
    """Facts of the installation; those that work depends on can fail."""
    return [
        *attempt(MACHINE, "versions", _versions),
        *attempt(MACHINE, "device", lambda: [_fact("device", _device(device))]),
        *attempt(MACHINE, "wandb", lambda: [_wandb()]),
        *attempt(MACHINE, "disk", _disk),
    ]


def _fact(name: str, found: str) -> Check:
    return Check(MACHINE, name, "is", found, "", True)


def _versions() -> list[Check]:
    made = [_fact("python", platform.python_version())]
    for package in ("torch", "lightning", "torchdiffeq"):
        try:
            made.append(_fact(package, version(package)))
        except PackageNotFoundError:
            made.append(Check(MACHINE, package, "is", "not installed", "installed", False))
    return made


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"{device_name(device)}, {memory:.0f} GiB, CUDA {torch.version.cuda}"
    return f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _wandb() -> Check:
    try:
        installed = version("wandb")
    except PackageNotFoundError:
        return Check(MACHINE, "wandb", "is", "not installed; runs go on without", "", True)
    from ...training.logs.wandb import resolve_mode

    try:
        return _fact("wandb", f"{installed}, {resolve_mode('auto')} by default")
    except UserError as error:
        return Check(MACHINE, "wandb", "WANDB_MODE", str(error), "a known mode", False)


def _disk() -> list[Check]:
    probe = Path(".diffusion-doctor")
    text = "written by diffusion doctor\n"
    try:
        atomic.write_text(probe, text)
        read = probe.read_text(encoding="utf-8")
    finally:
        probe.unlink(missing_ok=True)
    free = shutil.disk_usage(Path.cwd()).free
    return [
        Check(MACHINE, "working folder", "write, read", "as written" if read == text else "changed", "as written",
              read == text),
        Check(MACHINE, "disk", "free", f"{free / 2**30:.1f} GiB", f"{_LEAST_SPACE / 2**30:.0f} GiB or more",
              free >= _LEAST_SPACE),
    ]  # fmt: skip


def check_network(device: torch.device) -> list[Check]:
    """A U-Net forward and backward in the precision, and compiled where, `auto` says, against float64 on the CPU."""
    precision, compiled = choose_precision("auto", device), choose_compile("auto", device)
    name = f"U-Net, {precision}{', compiled' if compiled else ''}"
    return attempt(NETWORK, name, lambda: _passes(name, device, precision, compiled))


def _passes(name: str, device: torch.device, precision: str, compiled: bool) -> list[Check]:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(3, base_channels=32, multipliers=(1, 2), blocks=1, attention=(8,), dropout=0.0, image_size=16)
    with torch.no_grad():  # its last layer is zero at first, which hides the rest
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(4, 3, 16, 16, generator=generator)
    c_noise = torch.linspace(-2.0, 2.0, 4)
    truth = _forward_backward(network.double(), x.double(), c_noise.double())
    network = network.float().to(device)
    module = torch.compile(network) if compiled else network
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        output = module(x.to(device), c_noise.to(device))
    network.zero_grad()
    output.float().square().mean().backward()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    pairs = zip(("forward", "backward"), (output, gradient), truth, strict=True)
    return [
        below(NETWORK, name, f"{what}, against float64", _relative(found, exact), _ROUNDING[precision])
        for what, found, exact in pairs
    ]


def _forward_backward(network: UNet, x: torch.Tensor, c_noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    output = network(x, c_noise)
    output.square().mean().backward()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    return output.detach(), gradient.clone()


def _relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square of the error over that of the exact values."""
    return float((found.detach().cpu().double() - exact).norm() / exact.norm())
