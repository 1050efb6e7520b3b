"""The downloaded sets: torchvision's layout, made by hand; and what happens without data or network."""

import hashlib
import pickle
import socket
import struct
import time
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from diffusion.config import IMAGE_SETS
from diffusion.data import named_sets
from diffusion.data.named_sets import answers, has_layout, load_torchvision
from diffusion.errors import UserError

TRAIN, TEST = 12, 5


def write_mnist(folder: Path) -> None:
    """Write images whose pixels all equal their row, with the label row mod 10."""
    folder.mkdir(parents=True)
    for half, n in (("train", TRAIN), ("t10k", TEST)):
        values = np.arange(n, dtype=np.uint8)
        pixels = np.repeat(values, 28 * 28).tobytes()
        (folder / f"{half}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, n, 28, 28) + pixels)
        (folder / f"{half}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, n) + (values % 10).tobytes())


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write two images a batch, and tell torchvision their checksums."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, content: dict) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    batches = [
        {"data": np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8) + np.uint8(i), "labels": [i, 9]}
        for i in range(6)
    ]
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    lists = [write(name, batch) for name, batch in zip(names, batches, strict=True)]
    meta = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", lists[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", lists[5:])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_mnist_family(tmp_path: Path, name: str, folder: str) -> None:
    assert not has_layout(name, tmp_path)
    write_mnist(tmp_path / folder / "raw")
    assert has_layout(name, tmp_path)
    raw = load_torchvision(name, tmp_path, download=False)
    assert raw.images.shape == (TRAIN + TEST, 1, 28, 28)
    assert raw.images[:, 0, 5, 7].tolist() == [*range(TRAIN), *range(TEST)]
    assert raw.labels is not None
    assert raw.labels.tolist() == [i % 10 for i in (*range(TRAIN), *range(TEST))]
    assert raw.parts == {"train": range(TRAIN), "test": range(TRAIN, TRAIN + TEST)}
    assert load_torchvision(name, tmp_path, download=True, size=16).images.shape[-2:] == (16, 16)


def test_cifar10_keeps_the_order_of_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path, monkeypatch)
    raw = load_torchvision("cifar10", tmp_path, download=False)
    assert raw.images.shape == (12, 3, 32, 32)
    expected = np.arange(2 * 3072).reshape(2, 3, 32, 32).astype(np.uint8)
    assert (raw.images[:2].numpy() == expected).all()
    assert (raw.images[10:].numpy() == expected + np.uint8(5)).all()
    assert raw.labels is not None
    assert raw.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert raw.parts == {"train": range(10), "test": range(10, 12)}


def test_damaged_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    images = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    for data in (images.read_bytes()[:-100], b"", b"nothing at all"):
        images.write_bytes(data)
        with pytest.raises(UserError, match=r"mnist in .*raw is damaged") as error:
            load_torchvision("mnist", tmp_path, download=False)
        assert "\n" not in str(error.value)
    write_cifar(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"os.system")
    with pytest.raises(UserError, match=r"cifar10 in .* is damaged"):  # by its checksum, before it is unpickled
        load_torchvision("cifar10", tmp_path, download=False)


def test_labels_and_images_of_different_numbers(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    labels = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    labels.write_bytes(struct.pack(">2i", 0x801, 3) + b"\0\1\2")
    with pytest.raises(UserError, match="numbers of images and labels differ"):
        load_torchvision("mnist", tmp_path, download=False)


@pytest.mark.parametrize("name", [name for name in IMAGE_SETS if name != "digits"])
def test_no_data_and_no_download(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path} has no {name} .* is not to download it.*data.path"):
        load_torchvision(name, tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in IMAGE_SETS if name != "digits"])
def test_no_data_and_no_network(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_sets, "answers", lambda address, seconds: False)
    root = tmp_path / "data"
    with pytest.raises(UserError, match=rf"{root} has no {name} and its servers do not answer: .*data.path"):
        load_torchvision(name, root, download=True)
    assert not root.exists()


@pytest.mark.parametrize("existed", [False, True])
def test_a_broken_download_leaves_nothing(tmp_path: Path, existed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    if existed:
        root.mkdir()

    def download(self: datasets.MNIST) -> None:
        Path(self.raw_folder).mkdir(parents=True)
        Path(self.raw_folder, "train-images-idx3-ubyte").write_bytes(b"half")
        raise urllib.error.URLError("the line\nwent dead")

    monkeypatch.setattr(named_sets, "answers", lambda address, seconds: True)
    monkeypatch.setattr(datasets.MNIST, "download", download)
    with pytest.raises(UserError, match=r"downloading it failed .*the line went dead"):
        load_torchvision("mnist", root, download=True)
    assert list(tmp_path.rglob("*")) == ([root] if existed else [])
    assert socket.getdefaulttimeout() is None


def test_a_download_is_moved_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_sets, "answers", lambda address, seconds: True)
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: write_mnist(Path(self.raw_folder)))
    raw = load_torchvision("mnist", tmp_path / "new" / "data", download=True)
    assert len(raw.images) == TRAIN + TEST
    assert [entry.name for entry in (tmp_path / "new" / "data").iterdir()] == ["MNIST"]


def test_archives_fetched_by_hand_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw_folder = tmp_path / "MNIST" / "raw"
    raw_folder.mkdir(parents=True)
    for name, _ in datasets.MNIST.resources:
        (raw_folder / name).write_bytes(b"an archive")
    seen = []

    def download(self: datasets.MNIST) -> None:
        seen.extend(sorted(path.name for path in Path(self.raw_folder).iterdir()))
        raise RuntimeError("checksum")

    monkeypatch.setattr(named_sets, "answers", lambda address, seconds: pytest.fail("asked the network"))
    monkeypatch.setattr(datasets.MNIST, "download", download)
    with pytest.raises(UserError, match="checksum"):
        load_torchvision("mnist", tmp_path, download=True)
    assert seen == sorted(name for name, _ in datasets.MNIST.resources)


def test_a_silent_server_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never says a word
        start = time.monotonic()
        assert not answers(f"http://127.0.0.1:{server.getsockname()[1]}/", 0.2)
        assert time.monotonic() - start < 2
    assert not answers("http://127.0.0.1:9/", 1.0)
