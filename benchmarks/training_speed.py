"""What training costs beside the network: images/s of `train.py`'s own steps against a plain PyTorch loop.

    uv run python benchmarks/training_speed.py [--config digits] [--steps 40] [--rounds 3] [--out FILE] [key=value ...]
    uv run --extra diffusers --with torchcfm python benchmarks/training_speed.py --peers [--config mnist] [...]

Both train the network of a configuration at its batch size, on one device and with one precision. The plain loop is
what one would write by hand: random rows, times and noise from torch's generator, the error of the network's output,
the clipped gradient and AdamW, and nothing else. Ours is the Lightning module with all that a run has: keyed noise and
batches, the objective, the average of the weights, the gradient guard, metrics. Rounds of the two alternate, so that a
busy machine slows both; the first steps of each are left out. On a GPU each of float32 and bf16 is measured, as it is
and compiled; on a CPU float32.

With `--peers` the U-Nets of diffusers and torchcfm, with the configuration's channels, blocks and attention, take turns
with ours in the plain loop. Their U-Nets are not the same function, so that the operations of each (forward and
backward, as torch counts them) stand beside images/s; GFLOP/s is images/s at equal operations.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion.config import Config, load_config
from diffusion.devices import choose_device, device_name
from diffusion.errors import UserError
from diffusion.models.build import Data, build_data
from diffusion.schedules import Cosine
from diffusion.training.fit import fit
from diffusion.training.modules.build import build_module

WARM_UP = 5
Call = Callable[[Tensor, Tensor], Tensor]


class Clock(L.Callback):
    """Seconds from the end of the warm-up to the end of training."""

    def __init__(self) -> None:
        self.start = self.seconds = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step in (WARM_UP, trainer.max_steps):
            wait()
            now = time.perf_counter()
            self.seconds = now - self.start
            self.start = now


def wait() -> None:
    """Until a GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ours(config: Config) -> float:
    """Seconds of the steps after the warm-up, of a run in a folder of its own."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        fit(config.replace(runs=folder), callbacks=[clock])
    return clock.seconds


def our_network(config: Config, data: Data) -> nn.Module:
    """The network of a configuration."""
    return build_module(config, data.facts, {}).model.get_submodule("network")


def samples(data: Data) -> Tensor:
    """Rows to train on: level indices of images, or points of a toy."""
    if data.images is not None:
        return data.images.train
    if data.toy is None:
        raise UserError("--config: found one of arrays; images and toys are measured")
    return data.toy.draw(10_000)


def plain(config: Config, data: Data, device: torch.device, network: Any, call: Call | None = None) -> float:
    """The same of a plain loop around a network, `call`ed with x and a noise level a sample."""
    network = network.to(device)
    if config.trainer.compile is True:
        network.compile()
    call = call or (lambda x, level: network(x, level, None))
    rows = samples(data).to(device)
    schedule = Cosine()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.optimizer.lr, betas=config.optimizer.betas)
    precision = torch.autocast(device.type, torch.bfloat16, enabled=config.trainer.precision == "bf16")

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            x = rows[torch.randint(len(rows), (config.trainer.batch_size,), device=device)].float()
            if data.images is not None:
                x = x / (0.5 * (data.images.levels - 1)) - 1.0
            yield x, torch.rand(len(x), device=device), torch.randn_like(x)

    start = 0.0
    for step, (x, t, eps) in zip(range(config.trainer.steps), batches(), strict=False):
        ends = schedule(t.clamp(1e-4, 1.0 - 1e-4))
        alpha, sigma = (part.float().reshape(-1, *[1] * (x.ndim - 1)) for part in ends)
        optimizer.zero_grad()
        with precision:
            output = call(alpha * x + sigma * eps, 5.0 - 10.0 * t)
        (output - (alpha * eps - sigma * x)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step + 1 == WARM_UP:
            wait()
            start = time.perf_counter()
    wait()
    return time.perf_counter() - start


def settings(device: torch.device) -> dict[str, list[str]]:
    """What is measured on a device: names, and overrides of the configuration."""
    if device.type == "cpu":
        return {"float32": ["trainer.precision=32", "trainer.compile=false"]}
    return {
        f"{precision}{', compiled' if compiled else ''}": [
            f"trainer.precision={'32' if precision == 'float32' else precision}",
            f"trainer.compile={str(compiled).lower()}",
        ]
        for precision in ("float32", "bf16")
        for compiled in (False, True)
    }


def peers(config: Config, data: Data) -> dict[str, tuple[nn.Module, Call]]:
    """The U-Net of a configuration, and those of other packages with its channels, blocks and attention."""
    from diffusers import UNet2DModel
    from torchcfm.models.unet.unet import UNetModel

    options, (channels, *sides) = config.network, data.facts.shape
    if options.name != "unet" or options.patch_size > 1:
        raise UserError("--peers: a U-Net without patches is compared; give network.patch_size=1")
    widths = [options.base_channels * multiplier for multiplier in options.multipliers]
    attention = [max(sides) >> level in options.attention for level in range(len(widths))]
    sides = [max(sides), max(sides)]
    diffusers = UNet2DModel(
        sample_size=max(sides),
        in_channels=channels,
        out_channels=channels,
        layers_per_block=options.blocks,
        block_out_channels=widths,
        down_block_types=["AttnDownBlock2D" if here else "DownBlock2D" for here in attention],
        up_block_types=["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)],
        norm_num_groups=min(32, options.base_channels // 4),
        attention_head_dim=None,
    )
    torchcfm = UNetModel(
        image_size=max(sides),
        in_channels=channels,
        model_channels=options.base_channels,
        out_channels=channels,
        num_res_blocks=options.blocks,
        attention_resolutions=[1 << level for level, here in enumerate(attention) if here],
        channel_mult=options.multipliers,
    )
    unet = our_network(config, data)
    return {
        "diffusion": (unet, lambda x, level: unet(x, level, None)),
        "diffusers": (diffusers, lambda x, level: diffusers(x, level).sample),
        "torchcfm": (torchcfm, lambda x, level: torchcfm(level, x)),
    }


def operations(call: Call, shape: tuple[int, ...], device: torch.device) -> float:
    """GFLOP of an image, forward and backward."""
    with FlopCounterMode(display=False) as counted:
        call(torch.zeros(1, *shape, device=device), torch.zeros(1, device=device)).sum().backward()
    return counted.get_total_flops() / 1e9


def compare_train(
    configs: dict[str, Config], data: Data, device: torch.device, steps: int, rounds: int
) -> dict[str, Any]:
    """Print the steps of `train.py` beside a plain loop, and give the figures."""
    found = {}
    print(f"{'images/s':16}{'plain loop':>12}{'train.py':>12}{'ratio':>8}")
    for name, config in configs.items():
        seconds = [(plain(config, data, device, our_network(config, data)), ours(config)) for _ in range(rounds)]
        images = steps * config.trainer.batch_size
        rates = [images / statistics.median(column) for column in zip(*seconds, strict=True)]
        ratio = statistics.median(b / a for a, b in seconds)
        found[name] = {"plain_loop": rates[0], "train_py": rates[1], "seconds_ratio": ratio}
        print(f"{name:16}{rates[0]:>12.0f}{rates[1]:>12.0f}{ratio:>8.2f}", flush=True)
    return found


def compare_peers(
    configs: dict[str, Config], data: Data, device: torch.device, steps: int, rounds: int
) -> dict[str, Any]:
    """Print ours beside peers, in float32, and give the figures."""
    config = configs["float32"]
    networks = peers(config, data)
    shape, images = data.facts.shape, steps * config.trainer.batch_size
    seconds = [
        [plain(config, data, device, network, call) for network, call in networks.values()] for _ in range(rounds)
    ]
    found = {}
    print(f"{'':16}{'parameters':>12}{'GFLOP/image':>14}{'images/s':>12}{'GFLOP/s':>12}")
    for (name, (network, call)), column in zip(networks.items(), zip(*seconds, strict=True), strict=True):
        count, rate = sum(weight.numel() for weight in network.parameters()), images / statistics.median(column)
        each = operations(call, shape, device)
        found[name] = {"parameters": count, "gflop_per_image": each, "images_per_s": rate, "gflop_per_s": rate * each}
        print(f"{name:16}{count:>12,}{each:>14.3f}{rate:>12.1f}{rate * each:>12.1f}", flush=True)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="digits", help="a diffusion model of images without labels")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", action="store_true", help="the networks of diffusers and torchcfm beside ours")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the configuration, e.g. data.root=...")
    options = parser.parse_args()
    quiet = ["logging.wandb=off", "trainer.validate_every=0", "trainer.sample_every=0", "denoiser.conditional=false"]
    quiet += [f"trainer.steps={WARM_UP + options.steps}", f"trainer.checkpoint_every={10**9}"]
    device = choose_device(load_config(options.config, options.overrides).device)
    configs = {
        name: load_config(options.config, [*options.overrides, *quiet, *overrides])
        for name, overrides in settings(device).items()
    }
    print(f"{options.config} on {device_name(device)}, {torch.get_num_threads()} threads")
    compare = compare_peers if options.peers else compare_train
    found = compare(configs, build_data(configs["float32"]), device, options.steps, options.rounds)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
