"""`load_images`: the digits, named sets read from elsewhere, folders, and what it says where it cannot."""

import ast
import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffusion.data
from diffusion.data import ImageData, image_names, load_images
from diffusion.errors import UserError

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def write_images(root: Path, n: int, colour: bool = False, size: tuple[int, int] = (6, 5)) -> Path:
    rng = np.random.default_rng(0)
    for i in range(n):
        path = root / ("even" if i % 2 == 0 else "odd") / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (size[1], size[0], 3) if colour else (size[1], size[0]), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


def check(data: ImageData) -> None:
    """What holds for every data set."""
    for split in ("train", "validation", "test"):
        images, labels = getattr(data, split), getattr(data, f"{split}_labels")
        assert images.shape[1:] == data.shape
        assert images.dtype == torch.uint8
        assert images.numel() == 0 or images.max().item() < data.levels
        assert (labels is None) == (data.num_classes == 0)
        if labels is not None:
            assert labels.shape == (len(images),)
            assert labels.numel() == 0 or 0 <= labels.min() <= labels.max() < data.num_classes
        assert data.provenance[f"{split}_images"] == len(images)
        assert data.provenance[f"{split}_sha256"] == hashlib.sha256(images.numpy().tobytes()).hexdigest()
    assert all(isinstance(value, str | int | float) for value in data.provenance.values())


def test_digits() -> None:
    from sklearn.datasets import load_digits

    data = load_images("digits")
    check(data)
    assert (len(data.train), len(data.validation), len(data.test)) == (1347, 90, 360)
    assert data.shape == (1, 8, 8)
    assert (data.levels, data.num_classes, data.flip) == (17, 10, False)
    # The rule, from its words: rows in the order of the SHA-256 of their number.
    order = sorted(range(1797), key=lambda row: hashlib.sha256(str(row).encode()).hexdigest())
    pixels, target = load_digits(return_X_y=True)
    images = np.asarray(pixels).astype(np.uint8).reshape(-1, 1, 8, 8)
    assert (data.test.numpy() == images[sorted(order[:360])]).all()
    assert (data.validation.numpy() == images[sorted(order[360:450])]).all()
    assert (data.train.numpy() == images[sorted(order[450:])]).all()
    assert data.test_labels is not None
    assert (data.test_labels.numpy() == np.asarray(target)[sorted(order[:360])]).all()
    assert data.test_labels.bincount(minlength=10).min() >= 20
    # Published figures are of these images.
    assert str(data.provenance["test_sha256"]).startswith("13093a645cb01010")
    assert len(repr(data)) < 200


def test_digits_resized_and_with_another_validation_set() -> None:
    data = load_images("digits", size=12, validation=0)
    check(data)
    assert data.shape == (1, 12, 12)
    assert (len(data.train), len(data.validation), len(data.test)) == (1437, 0, 360)
    assert data.train.max() == 16


def test_folder_of_classes(tmp_path: Path) -> None:
    data = load_images("folder", path=write_images(tmp_path, 40))
    check(data)
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 4, 4)
    assert data.shape == (1, 5, 6)
    assert (data.levels, data.num_classes, data.flip) == (256, 2, False)
    assert data.provenance["classes"] == "even, odd"
    again = load_images("folder", path=str(tmp_path))
    assert again.provenance == data.provenance
    assert load_images("folder", path=tmp_path, validation=0.25).validation.shape[0] == 10


@pytest.mark.filterwarnings("ignore::diffusion.data.DataNote")  # its test images are among the training images
def test_a_named_set_from_a_folder_or_zips(tmp_path: Path) -> None:
    for split, n in (("train", 30), ("test", 7)):
        root = write_images(tmp_path / "sets" / split, n, colour=True, size=(32, 32))
        with zipfile.ZipFile(tmp_path / f"{split}.zip", "w") as archive:
            for file in sorted(root.rglob("*.png")):
                archive.write(file, file.relative_to(root))
    folders = load_images("cifar10", path=tmp_path / "sets")
    zips_only = tmp_path / "zips"
    zips_only.mkdir()
    for split in ("train", "test"):
        (tmp_path / f"{split}.zip").rename(zips_only / f"{split}.zip")
    zips = load_images("cifar10", path=zips_only)
    for data in (folders, zips):
        check(data)
        assert (len(data.train), len(data.validation), len(data.test)) == (29, 1, 7)
        assert (data.shape, data.flip, data.num_classes) == ((3, 32, 32), True, 2)
    assert {k: v for k, v in folders.provenance.items() if k != "source"} == {
        k: v for k, v in zips.provenance.items() if k != "source"
    }
    alone = load_images("cifar10", path=zips_only / "train.zip", size=16)
    check(alone)
    assert (len(alone.train), len(alone.validation), len(alone.test)) == (26, 1, 3)
    assert alone.shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar"}, r"data.name: 'cifar' is not known; accepted: digits, .*Did you mean 'cifar10'"),
        ({"name": "folder"}, r"data.path: found none; data.name=folder needs"),
        ({"name": "digits", "path": "x"}, r"data.path: digits .* take no path"),
        ({"name": "digits", "size": 0}, r"data.size: found 0"),
        ({"name": "digits", "validation": 5000}, r"data.validation: cannot take 5000"),
        ({"name": "mnist", "path": "no/such/place"}, r"data.path: no/such/place does not exist"),
    ],
)
def test_errors(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_images(**arguments)
    assert "\n" not in str(error.value)


def test_names() -> None:
    assert image_names() == ["digits", "mnist", "fashion-mnist", "kmnist", "cifar10", "folder"]


def test_imports_are_light_and_point_upwards() -> None:
    """What a file imports outside its functions: nothing slow, and of this package only what stands above `data`."""
    own = {
        "diffusion",
        "diffusion.errors",
        "diffusion.storage.paths",
        "diffusion.numerics.random",
        "diffusion.numerics.broadcasting",
    }  # `from diffusion.storage import atomic`
    for file in Path(diffusion.data.__file__).parent.glob("*.py"):
        modules = []
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Import):
                modules += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules.append(node.module or "")
        for module in modules:
            assert module.partition(".")[0] not in ("sklearn", "scipy", "torchvision", "lightning", "wandb"), file
            assert not module.startswith("diffusion") or module in own or module.startswith("diffusion.data"), file


@pytest.mark.skipif(not (SHARED / "MNIST").is_dir(), reason="no MNIST beside the repository")
def test_mnist_itself() -> None:
    data = load_images("mnist", root=SHARED, download=False)
    check(data)
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)
    assert data.shape == (1, 28, 28)
    assert load_images("mnist", path=SHARED).provenance == data.provenance
    assert data.test_labels is not None
    assert data.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "cifar10-jpeg").is_dir(), reason="no CIFAR-10 beside the repository")
def test_cifar10_as_jpeg() -> None:
    calls = []
    data = load_images("cifar10", path=SHARED / "cifar10-jpeg", progress=lambda done, n: calls.append((done, n)))
    check(data)
    assert (len(data.train), len(data.validation), len(data.test)) == (49_000, 1_000, 10_000)
    assert data.shape == (3, 32, 32)
    assert data.test_labels is not None
    assert data.test_labels.bincount().tolist() == [1_000] * 10
    assert calls[-1] == (60_000, 60_000)
