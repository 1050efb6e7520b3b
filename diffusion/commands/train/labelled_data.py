"""What `train-features` and `train-classifier` share: labelled images, and what a file says of them."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...data import ImageData, image_names, load_images
from ...denoisers.condition import LABEL
from ...errors import UserError, choose, reported_as
from ...models.conditions import no_labels

Network = TypeVar("Network", bound=nn.Module)


def labelled(options: argparse.Namespace) -> tuple[ImageData, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The data, and the images and labels of the training and of the test split.

    Raises:
        UserError: For data that are not known or have no labels, or what `load_images` refuses.
    """
    choose("DATA", options.data, image_names())
    with reported_as({"data.path": "--path", "data.root": "--root", "data.size": "--size", "data.name": "DATA"}):
        data = load_images(options.data, path=options.path, root=options.root, size=options.size, columns=(LABEL,))
    if data.train_labels is None or data.test_labels is None:
        raise UserError(f"DATA: {no_labels(options.data)}; a classifier cannot be trained on it")
    return data, (data.train, data.train_labels), (data.test, data.test_labels)


def drawn(make: Callable[[], Network], seed: int) -> Network:
    """A network with initial weights of a seed; nothing else that is random is moved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def about(data: ImageData, options: argparse.Namespace) -> dict[str, str | int | float]:
    """What a network was trained on, for its file."""
    return {
        "data": data.name,
        "train_images": len(data.train),
        "train_sha256": hashlib.sha256(data.train.numpy().tobytes()).hexdigest(),
        "steps": options.steps,
        "seed": options.seed,
        "test_images": len(data.test),
    }


def written(options: argparse.Namespace) -> str:
    """The file and its size, in words."""
    return f"{options.out}: {Path(options.out).stat().st_size / 1000:.0f} kB"
