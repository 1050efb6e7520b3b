"""Classifiers p(label | x_t, log-SNR) of noisy images: training, files, and accuracy by noise level.

What classifier guidance needs (`denoisers.guidance.ClassifierGuided`). The training images are dequantised as the
denoiser's are, and noisy at a log-SNR that is uniform in [-10, 10], on the path alpha^2 + sigma^2 = 1; any other path
is this one times a number. The cross-entropy is left as it is: with label smoothing it would have its minimum at other
probabilities than those of Bayes' rule, and the guidance is their gradient.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from ..denoisers.preconditioning import c_noise
from ..errors import UserError
from ..likelihood import Dequantizer
from ..metrics import descend, shifted_batch
from ..networks import NoisyImageClassifier
from ..numerics.placement import weights_on
from ..storage import tensor_files
from ..storage.records import reading

LOG_SNR_LIMIT = 10.0
_KIND = "classifier of noisy images"
_KEY = "noisy_classifier"
_BATCH = 1024


def build(shape: tuple[int, ...], num_classes: int, **options: int | float | Sequence[int]) -> NoisyImageClassifier:
    """A network that clamps noise levels to those of training; `options` as `NoisyImageClassifier`.

    Raises:
        UserError: For data that are no images, or options that do not work.
    """
    if len(shape) != 3:
        raise UserError(f"classifier: is of images; found data of shape {shape}")
    limit = float(c_noise(torch.tensor(LOG_SNR_LIMIT)))
    return NoisyImageClassifier((shape[0], shape[1], shape[2]), num_classes, c_noise_limit=limit, **options)  # type: ignore[arg-type]


def noisy(
    images: UInt8[Tensor, " b c h w"], levels: int, log_snr: Float[Tensor, " b"], generator: torch.Generator
) -> Float[Tensor, " b c h w"]:
    """Draws of x_t for images of levels, dequantised uniformly, on the path alpha^2 + sigma^2 = 1."""
    x = Dequantizer(levels).dequantize(images, torch.rand(images.shape, generator=generator))
    alpha, sigma = (torch.sigmoid(sign * log_snr).sqrt()[:, None, None, None] for sign in (1.0, -1.0))
    return alpha * x + sigma * torch.randn(images.shape, generator=generator)


def train(
    network: NoisyImageClassifier,
    images: UInt8[Tensor, " n c h w"],
    labels: Int[Tensor, " n"],
    levels: int,
    steps: int,
    batch_size: int = 128,
    lr: float = 3e-3,
    seed: int = 0,
) -> None:
    """Train in place by cross-entropy; the same arguments and initial weights give the same weights (on one CPU).

    Args:
        network: The network, on any device; batches are made on the CPU and copied there.
        images: Level indices, shape (N, C, H, W).
        labels: Their classes, shape (N,).
        levels: The number of values a channel can take.
        steps, batch_size, lr, seed: As `metrics.train_classifier`.
    """
    generator, device = torch.Generator().manual_seed(seed), weights_on(network)

    def loss() -> Tensor:
        batch, classes = shifted_batch(images, labels, batch_size, generator)
        places = (torch.arange(batch_size) + torch.rand(1, generator=generator)) / batch_size  # evenly spread
        log_snr = LOG_SNR_LIMIT * (2.0 * places - 1.0)
        x, level = noisy(batch, levels, log_snr, generator), c_noise(log_snr)
        return F.cross_entropy(network(x.to(device), level.to(device)), classes.to(device))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of the dropout
        network.train()
        descend(network.parameters(), loss, steps, lr)
        network.eval()


@torch.no_grad()
def by_noise_level(
    network: NoisyImageClassifier,
    images: UInt8[Tensor, " n c h w"],
    labels: Int[Tensor, " n"],
    levels: int,
    log_snrs: Sequence[int | float],
    seed: int = 0,
) -> dict[int | float, tuple[float, float]]:
    """The accuracy and the cross-entropy in nats at each log-SNR, with one noise draw per image."""
    generator, device, found = torch.Generator().manual_seed(seed), weights_on(network), {}
    for log_snr in log_snrs:
        right, nats = 0.0, 0.0
        for batch, classes in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
            at = torch.full((len(batch),), float(log_snr))
            logits = network(noisy(batch, levels, at, generator).to(device), c_noise(at).to(device)).cpu()
            right += float((logits.argmax(1) == classes).sum())
            nats += float(F.cross_entropy(logits, classes, reduction="sum"))
        found[log_snr] = (right / len(images), nats / len(images))
    return found


def save(path: str | Path, network: NoisyImageClassifier, about: Mapping[str, str | int | float]) -> None:
    """Write the weights, the architecture and the training data's description to a safetensors file.

    Args:
        path: The file.
        network: A network of `build`.
        about: What it was trained on.
    """
    built = {"shape": list(network.shape), "num_classes": network.num_classes, "options": network.options}
    tensor_files.write(path, network.state_dict(), {_KEY: json.dumps(built), "about": json.dumps(dict(about))})


def load(path: str | Path) -> NoisyImageClassifier:
    """Read a file of `save`, in evaluation mode.

    Raises:
        UserError: For a file that is missing, none of `save`, or damaged.
    """
    tensors, metadata = tensor_files.read(path, _KIND, _KEY)
    with reading(f"{path}: its weights are not those of the network it describes"):
        built = json.loads(metadata[_KEY])
        network = build(tuple(built["shape"]), built["num_classes"], **built["options"])
        network.load_state_dict(tensors)
    return network.eval()
