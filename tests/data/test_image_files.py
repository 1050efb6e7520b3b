"""Folders, zip files and arrays of images: splits, classes, and everything that can be wrong with them."""

import io
import os
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.data.files import image_files
from diffusion.data.files.image_files import load_files
from diffusion.errors import UserError


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (3, 2), value).save(buffer, "PNG")
    return buffer.getvalue()


def folder(root: Path, names: Iterable[str]) -> Path:
    """Write grey images whose values count the names, in sorted order."""
    for value, name in enumerate(sorted(names)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))
    return root


def zipped(path: Path, names: Iterable[str], data: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for value, name in enumerate(sorted(names)):
            archive.writestr(name, png(value) if data is None else data)
    return path


CLASSES = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]
SPLITS = [f"{split}/{name}" for split in ("test", "train", "val") for name in CLASSES]


@pytest.mark.parametrize("prefix", ["", "wrapper/", "outer/inner/"])
def test_a_zip_reads_like_the_folder_it_was_made_of(tmp_path: Path, prefix: str) -> None:
    names = [prefix + name for name in CLASSES]
    for raw in (load_files(folder(tmp_path / "f", names)), load_files(zipped(tmp_path / "z.zip", names))):
        assert raw.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
        assert raw.images.shape == (6, 1, 2, 3)
        assert raw.labels is not None
        assert raw.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert list(raw.keys) == CLASSES
        assert raw.class_names == ("cat", "dog")
        assert raw.parts == {"train": range(6)}


def test_splits_by_folder_zip_or_both(tmp_path: Path) -> None:
    as_folders = folder(tmp_path / "folders", SPLITS)
    as_zip = zipped(tmp_path / "all.zip", SPLITS)
    as_zips = tmp_path / "zips"
    zipped(as_zips / "train.zip", [f"train/{name}" for name in CLASSES])
    zipped(as_zips / "test.zip", CLASSES)
    zipped(as_zips / "validation.zip", CLASSES)
    mixed = tmp_path / "mixed"
    zipped(mixed / "train.zip", CLASSES)
    folder(mixed / "test", CLASSES)
    folder(mixed / "val", CLASSES)
    for path in (as_folders, as_zip, as_zips, mixed):
        raw = load_files(path)
        assert {split: len(part) for split, part in raw.parts.items()} == {"train": 6, "validation": 6, "test": 6}
        assert raw.labels is not None
        assert raw.labels.tolist() == [0, 0, 0, 1, 1, 1] * 3
    raw = load_files(as_folders)  # the values count test, train, val
    firsts = {split: int(raw.images[part[0]].max()) for split, part in raw.parts.items()}
    assert firsts == {"test": 0, "train": 6, "validation": 12}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    raw = load_files(folder(tmp_path, ["train/a.png", "ship/a.png"]))
    assert raw.class_names == ("ship", "train")
    assert raw.parts == {"train": range(2)}


def test_a_train_folder_alone_is_a_pool(tmp_path: Path) -> None:
    assert load_files(folder(tmp_path / "a", ["train/x/1.png", "train/y/2.png"])).class_names == ("x", "y")
    zipped(tmp_path / "b" / "train.zip", CLASSES)
    assert load_files(tmp_path / "b").class_names == ("cat", "dog")


def test_the_same_split_twice_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, SPLITS)
    zipped(tmp_path / "train.zip", CLASSES)
    with pytest.raises(UserError, match=r"train.zip and a folder of that split"):
        load_files(tmp_path)


@pytest.mark.parametrize("extra", ["unlabelled/1.png", "1.png", "validation/cat/1.png"])
def test_images_outside_the_splits_are_refused(tmp_path: Path, extra: str) -> None:
    with pytest.raises(UserError, match="accepted: train and test"):
        load_files(folder(tmp_path, [*SPLITS, extra]))


def test_no_labels_unless_every_image_is_in_a_class(tmp_path: Path) -> None:
    raw = load_files(folder(tmp_path / "a", [*CLASSES, "stray.png"]))
    assert raw.labels is None
    assert raw.num_classes == 0
    assert load_files(folder(tmp_path / "b", ["1.png", "2.png"])).labels is None
    assert load_files(folder(tmp_path / "c", ["only/1.png", "only/2.png"])).labels is None


def test_classes_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    raw = load_files(folder(tmp_path, [f"{i}/a.png" for i in range(12)]))
    assert raw.class_names == tuple(str(i) for i in range(12))


def test_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    names = [*CLASSES, "__MACOSX/cat/1.png", ".cache/1.png", "cat/._1.png"]
    folder(tmp_path / "f", names)
    (tmp_path / "f" / "readme.txt").write_text("about")
    assert len(load_files(tmp_path / "f").images) == 6
    assert len(load_files(zipped(tmp_path / "z.zip", names)).images) == 6


def test_links_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    folder(tmp_path / "elsewhere", ["1.png", "2.png"])
    folder(tmp_path / "set", ["cat/1.png"])
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "dog")
    os.symlink(tmp_path / "set" / "cat", tmp_path / "set" / "cat" / "up")
    raw = load_files(tmp_path / "set")
    assert list(raw.keys) == ["cat/1.png", "dog/1.png", "dog/2.png"]


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:\\evil.png", "..\\evil.png"])
def test_hostile_names_are_refused(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "z.zip", ["a.png", "b.png", name])
    with pytest.raises(UserError, match=r"z.zip.*absolute path or '\.\.'"):
        load_files(path)


def test_members_that_unpack_to_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MEMBER_BYTES", 1000)
    with pytest.raises(UserError, match=r"z.zip: a.png: unpacks to 5,000 bytes"):
        load_files(zipped(tmp_path / "z.zip", ["a.png"], b"\0" * 5000))


def test_damaged_images_are_named_within_the_zip(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"z.zip: cat/0.png: cannot be read as an image"):
        load_files(zipped(tmp_path / "z.zip", CLASSES, png(0)[:-30]))
    folder(tmp_path / "f", CLASSES)
    (tmp_path / "f" / "cat" / "0.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cat/0.png: cannot be read as an image"):
        load_files(tmp_path / "f")


def test_a_bit_flipped_in_the_zip_is_noticed(tmp_path: Path) -> None:
    path = zipped(tmp_path / "z.zip", ["a.png"])
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"z.zip: a.png: cannot be read"):
        load_files(path)


def test_missing_empty_and_foreign_paths(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        load_files(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no image found in .*empty; accepted endings: .*\.png"):
        load_files(tmp_path / "empty")
    zipped(tmp_path / "empty" / "photos.zip", CLASSES)
    with pytest.raises(UserError, match=r"It holds photos.zip"):
        load_files(tmp_path / "empty")
    (tmp_path / "text.txt").write_text("no")
    with pytest.raises(UserError, match="is no archive, and no array; accepted: a folder"):
        load_files(tmp_path / "text.txt")
    data = zipped(tmp_path / "cut.zip", CLASSES).read_bytes()
    (tmp_path / "cut.zip").write_bytes(data[:-100])
    with pytest.raises(UserError, match=r"cut.zip is a zip file that is cut short or damaged"):
        load_files(tmp_path / "cut.zip")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cut.zip", "a.png")
    with pytest.raises(UserError, match=r"a.tar.gz is compressed \(gzip\): gunzip makes a .tar"):
        load_files(tmp_path / "a.tar.gz")
    Image.new("L", (2, 2)).save(tmp_path / "one.png")
    with pytest.raises(UserError, match=r"one.png is a single image"):
        load_files(tmp_path / "one.png")


def test_arrays(tmp_path: Path) -> None:
    grey = np.arange(60, dtype=np.uint8).reshape(5, 3, 4)
    colour = np.arange(180, dtype=np.uint8).reshape(5, 3, 4, 3)
    np.savez(tmp_path / "grey.npz", images=grey, labels=np.array([0, 2, 1, 2, 0], dtype=np.int32))
    np.savez(tmp_path / "colour.npz", images=colour)
    raw = load_files(tmp_path / "grey.npz")
    assert (raw.images.numpy()[:, 0] == grey).all()
    assert raw.labels is not None
    assert raw.labels.tolist() == [0, 2, 1, 2, 0]
    assert raw.num_classes == 3
    raw = load_files(tmp_path / "colour.npz")
    assert (raw.images.numpy() == colour.transpose(0, 3, 1, 2)).all()
    assert raw.labels is None
    assert load_files(tmp_path / "colour.npz", size=2).images.shape == (5, 3, 2, 2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 3, 3), np.uint8)}, "no array 'images'; found: pictures"),
        ({"images": np.zeros((2, 3, 3), np.float32)}, "'images' is float32"),
        ({"images": np.zeros((2, 3), np.uint8)}, "'images' is uint8"),
        ({"images": np.zeros((2, 3, 3, 5), np.uint8)}, "C = 1, 3, or up to 32"),
        ({"images": np.zeros((0, 3, 3), np.uint8)}, "no image found"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": np.zeros(3, int)}, "'labels' is int64"),
        ({"images": np.zeros((2, 3, 3), np.uint8), "labels": np.array([0, -1])}, "integers from 0"),
        ({"images": np.array([{}], dtype=object)}, "not a readable"),
    ],
)
def test_wrong_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message) as error:
        load_files(tmp_path / "a.npz")
    assert "\n" not in str(error.value)


def test_a_damaged_array_file(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UserError, match=r"a.npz"):
        load_files(tmp_path / "a.npz")
