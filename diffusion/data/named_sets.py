"""The data sets by name: the digits, and through torchvision, in its own folder layout, MNIST, its relatives, CIFAR-10.

Files are downloaded into a hidden folder next to their place, and moved there when all are complete and verified;
a failure or an interruption leaves nothing that looks like a data set.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import tempfile
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import IMAGE_SETS, imported
from ..errors import UserError
from ..storage.paths import named_path
from .files.fitting import Size, resize_arrays
from .files.raw_images import RawImages


@dataclass(frozen=True)
class ImageSet:
    """What holds for a data set.

    Args:
        validation_fraction: The share of the training images that is held out for validation by default.
        class_name: Its class in `torchvision.datasets`, if it is there.
        folder: The folder under the root where torchvision keeps its files.
        flip: Whether mirrored images belong to it.
        test_fraction: The share of all images that is held out for tests, where nothing else says which are.
    """

    validation_fraction: float
    class_name: str = ""
    folder: str = ""
    flip: bool = False
    test_fraction: float = 0.1


DIGITS = ImageSet(90 / 1797, test_fraction=360 / 1797)
MNIST = ImageSet(5_000 / 60_000, "MNIST", "MNIST/raw")
FASHION_MNIST = ImageSet(5_000 / 60_000, "FashionMNIST", "FashionMNIST/raw")
KMNIST = ImageSet(5_000 / 60_000, "KMNIST", "KMNIST/raw")
CIFAR10 = ImageSet(1_000 / 50_000, "CIFAR10", "cifar-10-batches-py", flip=True)
# Images may be letters or faces: nobody knows whether mirrored ones belong, so they are not made by default.
FOLDER = ImageSet(0.1)


def image_set(name: str) -> ImageSet:
    """What holds for a data set by its name, or for images of the user's own, `folder`."""
    return imported(IMAGE_SETS[name]) if name in IMAGE_SETS else FOLDER


def load_named(name: str, root: str | Path, download: bool, size: Size | None = None) -> RawImages:
    """Read a data set by its name.

    Raises:
        UserError: As `load_torchvision`.
    """
    if name == "digits":
        return load_digits(size)
    return load_torchvision(name, named_path(root, "data.root"), download, size)


def load_digits(size: Size | None = None) -> RawImages:
    """Return the digits, unsplit; `size` resizes them (values stay within the 17 levels)."""
    from sklearn import datasets

    pixels, target = datasets.load_digits(return_X_y=True)
    images = torch.as_tensor(pixels).to(torch.uint8).reshape(-1, 1, 8, 8)
    labels = torch.as_tensor(target).long()
    return RawImages(
        images=resize_arrays(images, size, levels=17),
        labels=labels,
        keys=[str(row) for row in range(len(images))],
        parts={"train": range(len(images))},
        source="scikit-learn load_digits (UCI optical recognition of handwritten digits, test part)",
        levels=17,
        num_classes=10,
        class_names=tuple("0123456789"),
    )


TIMEOUT = 10.0  # seconds without an answer that count as no network


def has_layout(name: str, root: Path) -> bool:
    """Return whether `root` holds torchvision's folder of this data set."""
    folder = image_set(name).folder
    return bool(folder) and (root / folder).is_dir()


class NotFetchedError(UserError):
    """A data set that is not in its folder, and is not to be fetched or cannot be.

    Args:
        root: The folder.
        reason: What the matter is.
        way_out: What to do.
    """

    def __init__(self, root: Path, reason: str, way_out: str):
        super().__init__(f"data.root: {root} {reason}{way_out}")
        self.root, self.reason = root, reason


def load_torchvision(name: str, root: Path, download: bool, size: Size | None = None) -> RawImages:
    """Read a data set's official training and test images from `root`, downloading them where they are absent.

    Raises:
        NotFetchedError: Where files are absent and `download` is off or fails.
        UserError: Where files are damaged.
    """
    from torchvision import datasets

    facts = image_set(name)
    dataset_class = getattr(datasets, facts.class_name)
    files, archives, addresses = _inventory(dataset_class, facts.folder)
    missing = [file for file in files if not (root / file).is_file()]
    if missing and not download:
        raise NotFetchedError(
            root,
            f"has no {name} ({missing[0]} is missing) and is not to download it",
            "; set data.download, copy the files there, or pass data.path=... (a folder or zip of images).",
        )
    if missing:
        _download(name, dataset_class, root, files, archives, addresses)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the old pickles of CIFAR-10 upset newer numpy versions
            halves = [dataset_class(str(root), train=train) for train in (True, False)]
        images = [_channels_first(torch.as_tensor(half.data)) for half in halves]
        labels = [torch.as_tensor(half.targets).long() for half in halves]
        if any(len(x) != len(y) for x, y in zip(images, labels, strict=True)):
            raise ValueError("numbers of images and labels differ")
    except Exception as error:  # torchvision checks little: a short file fails in a view, an assertion or an unpickling
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.root: {name} in {root / facts.folder} is damaged ({reason}); remove the folder and try again."
        ) from error
    n, m = len(images[0]), len(images[1])
    return RawImages(
        images=resize_arrays(torch.cat(images), size, levels=256),
        labels=torch.cat(labels),
        keys=[str(row) for row in (*range(n), *range(m))],
        parts={"train": range(n), "test": range(n, n + m)},
        source=f"torchvision {facts.class_name}",
        num_classes=10,
        class_names=tuple(str(label) for label in halves[0].classes),
    )


def _inventory(dataset_class: Any, folder: str) -> tuple[list[str], list[str], list[str]]:
    """Return the files needed, the archives they come from (both relative to the root), and addresses to try."""
    if folder.startswith("cifar"):
        names = [name for name, _ in dataset_class.train_list + dataset_class.test_list] + [
            dataset_class.meta["filename"]
        ]
        return [f"{folder}/{name}" for name in names], [dataset_class.filename], [dataset_class.url]
    archives = [f"{folder}/{name}" for name, _ in dataset_class.resources]
    return [archive.removesuffix(".gz") for archive in archives], archives, list(dataset_class.mirrors)


def _download(
    name: str, dataset_class: Any, root: Path, files: list[str], archives: list[str], addresses: list[str]
) -> None:
    present = [archive for archive in archives if (root / archive).is_file()]
    way_out = ": download it elsewhere and copy it there, or pass data.path=... (a folder or zip of images)."
    if len(present) < len(archives) and not any(answers(address, TIMEOUT) for address in addresses):
        raise NotFetchedError(root, f"has no {name} and its servers do not answer", way_out)
    created = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as temporary, _socket_timeout(TIMEOUT):
            for archive in present:  # torchvision verifies these and fetches only the rest
                Path(temporary, archive).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / archive, Path(temporary, archive))
            dataset_class(temporary, train=True, download=True)
            for file in files:
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(temporary, file), root / file)
    except Exception as error:  # of the network, the disk, an archive's format, or a checksum
        reason = " ".join(str(error).split())
        raise NotFetchedError(root, f"has no {name} and downloading it failed ({reason})", way_out) from error
    finally:
        if created and root.is_dir() and not any(root.iterdir()):
            root.rmdir()


def answers(address: str, seconds: float) -> bool:
    """Return whether a server answers, whatever it says, within `seconds` (resolving its name included)."""
    result: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds):
                result.append(True)
        except urllib.error.HTTPError as error:
            error.close()
            result.append(True)
        except (OSError, ValueError, http.client.HTTPException):
            result.append(False)

    # A thread, because name resolution knows no timeout; as a daemon it does not hold up the end of the program.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(result) and result[0]


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Bound each wait for the network; torchvision offers no timeout of its own, so the default of sockets is set."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _channels_first(data: torch.Tensor) -> torch.Tensor:
    return data[:, None] if data.ndim == 3 else data.permute(0, 3, 1, 2).contiguous()
