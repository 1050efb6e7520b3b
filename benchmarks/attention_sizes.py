"""What `attention_scale: entropy_invariant` brings where a model is sampled at larger sizes than that of its training.

    python benchmarks/attention_sizes.py DATA [--runs runs] [--samples 500] [--picture FILE.png]

DATA is the folder that holds `MNIST/raw`. A U-Net and a DiT are trained on MNIST at 14 x 14, each with the constant
scale and with the one of constant entropy (1,200 steps each; runs that are complete are not trained again), and drawn
from at 14, 20 and 28 pixels with the same seed. At the trained size the two scales are one, so that the trainings of a
network give the same weights: the largest difference is printed, and what the table shows is the scale's alone.

Samples are held against MNIST's test images *of their own size* (bicubic, as `data.size`), both brought to 28 x 28 for
the shipped feature network: KID and FID with their jackknife errors. For scale: as many training images, and the
samples of 14 pixels enlarged, which is what one has without sampling at another size.

The entropy is that of the softmax, in nats, recomputed from queries and keys while the network looks at noisy test
images of each size: the mean over layers, heads, queries, images and five log-SNRs; at the trained size as it is,
beside the most that it could be (log n), at the others less that of the trained size. At 28 pixels there are four times
the tokens of 14: +1.39 is attention to the same share of the picture, and 0, which the option is for, to the same
number of tokens.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from diffusion import load
from diffusion.commands.app import command
from diffusion.data import load_images
from diffusion.data.files.fitting import resize_arrays
from diffusion.data.pictures import grid, save
from diffusion.errors import UserError
from diffusion.likelihood.dequantization import Dequantizer
from diffusion.metrics import ClassifierFeatures, FeatureStatistics, extract, frechet_estimate, kernel_distance
from diffusion.metrics.quality import spread
from diffusion.models import DiffusionModel
from diffusion.networks.attention import TokenAttention
from diffusion.schedules.forward_process import diffuse
from diffusion.storage import runs

TRAINED, SIZES, FULL = 14, (14, 20, 28), 28
STEPS = 1200
SCALES = ("constant", "entropy_invariant")
NETWORKS = {
    "unet": ["network.base_channels=24", "network.multipliers=[1, 2]", "network.blocks=1", "network.attention=[14, 7]",
             "network.dropout=0", "network.fourier_features=[]"],
    "dit": ["network.name=dit", "network.patch_size=2", "network.width=96", "network.depth=4", "network.heads=4",
            *(f"network.{key}=null" for key in ("base_channels", "multipliers", "blocks", "attention", "dropout",
                                                "fourier_features"))],  # the U-Net's, in configs/mnist.yaml
}  # fmt: skip
TRAINING = [
    "device=cpu", f"data.size={TRAINED}", "data.download=false", "objective.weighting=simple", "objective.time=uniform",
    "optimizer.lr=2e-3", "optimizer.betas=[0.9, 0.99]", "optimizer.warmup=100", "ema.half_life=500_000",
    "ema.ramp_up=0.1", f"trainer.steps={STEPS}", "trainer.batch_size=64", "trainer.validate_every=0",
    "trainer.sample_every=0", "trainer.checkpoint_every=600", "sampling.sampler=ddim", "sampling.steps=30",
    "sampling.n=36", "evaluation.enabled=false", "logging.wandb=off",
]  # fmt: skip
LEVELS = Dequantizer(256)
LOG_SNRS = (-4.0, -2.0, 0.0, 2.0, 4.0)
ENTROPY_IMAGES = 32
SHOWN = 5


def trained(network: str, scale: str, data: str, folder: Path) -> DiffusionModel:
    """The model of a complete run, trained where there is none; a run that was cut off is gone on with."""
    name = f"sizes-{network}-{scale}"

    def complete() -> DiffusionModel | None:
        found = [load(run) for run in sorted(folder.glob(f"{name}-[0-9]*")) if (run / runs.MODEL).is_file()]
        return next((model for model in found if model.step >= STEPS), None)

    if (model := complete()) is not None:
        return model
    train = Path(__file__).parent.parent / "train.py"
    settings = [f"name={name}", f"runs={folder}", f"data.root={data}", f"network.attention_scale={scale}"]
    subprocess.run(
        [sys.executable, str(train), "--config", "mnist", *TRAINING, *NETWORKS[network], *settings], check=True
    )
    model = complete()
    assert model is not None, "train.py ended well, and has left no complete run"
    return model


def largest_difference(a: DiffusionModel, b: DiffusionModel) -> float:
    """Between the weights of two models of one architecture."""
    weights = b.module.state_dict()
    return max(float((value - weights[name]).abs().max()) for name, value in a.module.state_dict().items())


@contextmanager
def watched_attention(network: nn.Module) -> Iterator[list[tuple[float, float]]]:
    """Of each attention that a network computes meanwhile: its mean entropy, and the most it could be, in nats."""
    found: list[tuple[float, float]] = []

    def watch(layer: TokenAttention, inputs: tuple[Tensor, ...]) -> None:
        n = inputs[0].shape[1]
        q, k, _ = rearrange(layer.qkv(inputs[0]), "b n (qkv h d) -> qkv b h n d", qkv=3, h=layer.heads).unbind(0)
        scale = layer.scale(n, q.shape[-1]) or q.shape[-1] ** -0.5
        log_p = (q @ k.mT * scale).log_softmax(-1)
        found.append((float(-(log_p.exp() * log_p).sum(-1).mean()), math.log(n)))

    layers = [module for module in network.modules() if isinstance(module, TokenAttention)]
    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def attention_entropy(model: DiffusionModel, images: Tensor) -> tuple[float, float]:
    """The mean entropy of a model's attention on noisy images of levels, (N, C, H, W), and the most it could be."""
    denoiser = model.at_size(images.shape[-1]).denoiser
    x = LEVELS.center(images)
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with watched_attention(denoiser) as found:
        for log_snr in LOG_SNRS:
            t = denoiser.schedule.inverse_log_snr(torch.tensor(log_snr, dtype=torch.float64))
            denoiser(diffuse(denoiser.schedule, x, t, eps), t)
    mean, most = torch.tensor(found, dtype=torch.float64).mean(0).tolist()
    return mean, most


@dataclass(frozen=True)
class Reference:
    """MNIST's test images of some size, seen by the feature network at 28 x 28."""

    extractor: ClassifierFeatures
    features: Tensor
    statistics: FeatureStatistics

    @classmethod
    def of(cls, images: Tensor, extractor: ClassifierFeatures) -> Reference:
        """From level indices of any size, uint8 (N, 1, S, S)."""
        features = extract(extractor, resize_arrays(images, FULL, 256))
        return cls(extractor, features, FeatureStatistics.of(features))

    def row(self, images: Tensor) -> str:
        """KID and FID of images of levels with their standard errors: two cells of the table."""
        features = extract(self.extractor, resize_arrays(images, FULL, 256))
        kid, fid = kernel_distance(features, self.features), frechet_estimate(features, self.statistics)
        return f"{kid.value:7.2f} ± {kid.std_error:4.2f} {fid.value:8.2f} ± {fid.std_error:4.2f}"


def draw(model: DiffusionModel, n: int, size: int) -> Tensor:
    """Samples as level indices, uint8 (n, 1, size, size)."""
    return LEVELS.quantize(model.sample(n, seed=0, sampler="dpm-solver++2m", steps=15, size=size).float())


def body(argv: Sequence[str]) -> int:
    """Train what is missing, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", metavar="DATA", help="the folder that holds MNIST/raw")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--picture", type=Path, help="where to draw some of the samples")
    options = parser.parse_args(argv)
    if options.samples < max(SHOWN, 6):
        raise UserError(f"--samples: found {options.samples}; at least 6 are needed")
    load_images("mnist", root=options.data, download=False)  # refused now, not after the first training

    models = {(n, s): trained(n, s, options.data, options.runs) for n in NETWORKS for s in SCALES}
    for network in NETWORKS:
        difference = largest_difference(*(models[network, scale] for scale in SCALES))
        print(f"{network}: the weights of the two trainings differ by at most {difference:g}")

    start = time.perf_counter()
    extractor = ClassifierFeatures.load(runs.PRETRAINED / "mnist-features.safetensors")
    print(f"{'size':>4}  {'images':24}{'KID':>14} {'FID':>15}  attention's entropy, nats")
    shown: list[Tensor] = []
    at_trained: dict[tuple[str, str], tuple[Tensor, float]] = {}
    for size in SIZES:
        data = load_images("mnist", root=options.data, download=False, size=size)
        reference = Reference.of(data.test, extractor)
        print(f"{size:4}  {'training images':24}{reference.row(spread(data.train, options.samples))}", flush=True)
        for (network, scale), model in models.items():
            images = draw(model, options.samples, size)
            entropy, most = attention_entropy(model, spread(data.test, ENTROPY_IMAGES))
            if size == TRAINED:
                at_trained[network, scale] = images, entropy
            elif scale == SCALES[0]:
                enlarged = resize_arrays(at_trained[network, scale][0], size, 256)
                print(f"{size:4}  {network + f' at {TRAINED}, enlarged':24}{reference.row(enlarged)}")
            more = entropy - at_trained[network, scale][1]
            told = f"{entropy:.2f} of {most:.2f}" if size == TRAINED else f"{more:+.2f}"
            print(f"{size:4}  {f'{network} {scale}':24}{reference.row(images)}  {told}", flush=True)
            some = LEVELS.center(resize_arrays(images[:SHOWN], FULL, 256))
            if (network, scale) != next(iter(models)):
                shown.append(torch.ones(1, *some.shape[1:]))  # white between the groups
            shown.append(some)
    print(f"{time.perf_counter() - start:.0f} s without training")

    if options.picture is not None:
        # A row a size; the networks and scales in the order of the table from left to right.
        save(options.picture, grid(torch.cat(shown), columns=(SHOWN + 1) * len(models) - 1))
    return 0


if __name__ == "__main__":
    sys.exit(command(body))
