"""Arrays under the names and in the numbers that people have: taken as meant and told, or refused in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.data import DataNote, load_images
from diffusion.data.class_names import check_number, names_of, number_of
from diffusion.data.files.alike import Alike
from diffusion.data.files.image_files import load_files
from diffusion.data.files.raw_images import RawImages
from diffusion.errors import UserError

N = 12
X = np.random.default_rng(0).integers(0, 256, (N, 6, 5, 3), dtype=np.uint8)
X[0, 0, 0] = 255
Y = np.arange(N) % 4


def read(path: Path, **arrays: np.ndarray) -> RawImages:
    np.savez(path / "a.npz", **arrays)  # type: ignore[arg-type]
    return load_files(path / "a.npz")


@pytest.mark.parametrize(
    "names",
    [("images", "labels"), ("arr_0", "arr_1"), ("x", "y"), ("X", "Y"), ("data", "targets"), ("images", "label")],
)
@pytest.mark.parametrize("column", [False, True])
def test_images_and_labels_of_every_usual_name(tmp_path: Path, names: tuple[str, str], column: bool) -> None:
    raw = read(tmp_path, **{names[0]: X, names[1]: Y[:, None] if column else Y})
    assert (raw.images.numpy() == X.transpose(0, 3, 1, 2)).all()
    assert raw.labels is not None
    assert raw.labels.tolist() == Y.tolist()
    assert (raw.num_classes, raw.notes) == (4, ())


@pytest.mark.parametrize("pattern", ["{}_{}", "{1}_{0}"])
@pytest.mark.parametrize("roles", [("images", "labels"), ("x", "y"), ("data", "target")])
def test_splits_of_keras_and_medmnist(tmp_path: Path, pattern: str, roles: tuple[str, str]) -> None:
    arrays = {}
    for split, rows in (("train", slice(0, 8)), ("val", slice(8, 10)), ("test", slice(10, 12))):
        arrays |= {pattern.format(split, roles[0]): X[rows], pattern.format(split, roles[1]): Y[rows, None]}
    raw = read(tmp_path, **arrays)
    assert raw.parts == {"train": range(8), "validation": range(8, 10), "test": range(10, 12)}
    assert (raw.images.numpy() == X.transpose(0, 3, 1, 2)).all()
    assert raw.labels is not None
    assert raw.labels.tolist() == Y.tolist()


def test_a_plain_array_and_what_is_not_used(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    assert (load_files(tmp_path / "x.npy").images.numpy() == X.transpose(0, 3, 1, 2)).all()
    raw = read(tmp_path, images=X, labels=Y, ids=np.arange(N), mean=np.zeros(3))
    assert raw.notes == (
        "the array 'ids' (int64 (12,), one entry an image) is not used",
        "the array 'mean' (float64 (3,)) is not used",
    )
    raw = read(tmp_path, train_images=X, train_labels=Y, test_images=X)
    assert raw.labels is None
    assert raw.notes == ("the array 'train_labels' (int64 (12,), one entry an image) is not used",)


def test_images_and_labels_themselves_win_over_other_names(tmp_path: Path) -> None:
    masks, names = X[..., 0] > 99, np.array(["cat", "dog", "eel", "fox"])
    for other in ({"x": X[:3]}, {"target": masks}, {"y": Y[:3]}, {"y": Y + 1}, {"data": np.arange(3)}):
        raw = read(tmp_path, images=X, labels=Y, **other)
        assert (raw.images.numpy() == X.transpose(0, 3, 1, 2)).all()
        assert raw.labels is not None
        assert raw.labels.tolist() == Y.tolist()
        (note,) = raw.notes
        assert note.startswith(f"the array '{next(iter(other))}' (")
    for labels in ("labels", "y", "train_labels"):
        split = "train_" if labels.startswith("train") else ""
        raw = read(tmp_path, **{f"{split}images": X, labels: Y, "classes": names})
        assert (raw.class_names, raw.num_classes, raw.notes) == (tuple(names), 4, ())
    assert read(tmp_path, images=X, labels=Y, classes=names[:3]).class_names == ()
    for none in (masks, Y[:3], Y + 0.5):
        raw = read(tmp_path, x=X, target=none)
        assert raw.labels is None
        assert len(raw.notes) == 1
    raw = read(tmp_path, x=X, y=Y, target=masks, data=Y)
    assert raw.labels is not None
    assert len(raw.notes) == 2
    with pytest.raises(UserError, match="'labels' is int64 \\(3,\\); accepted"):
        read(tmp_path, images=X, labels=Y[:3])
    with pytest.raises(UserError, match="'y' and 'target' may both be the labels"):
        read(tmp_path, images=X, y=Y, target=Y)


def test_numbers_that_are_exactly_levels(tmp_path: Path) -> None:
    unit = X / 255
    for array in (
        unit,
        unit.astype(np.float32),
        unit.astype(np.float16),
        (unit * 2 - 1).astype(np.float32),
        X.astype(int),
        X.astype(np.float32),
    ):
        raw = read(tmp_path, images=array)
        assert (raw.images.numpy() == X.transpose(0, 3, 1, 2)).all(), array.dtype
        (note,) = raw.notes
        assert f"'images' is {array.dtype}" in note
    assert set(read(tmp_path, images=X > 99).images.unique().tolist()) == {0, 255}
    swapped = read(tmp_path, images=X.transpose(0, 3, 1, 2))
    assert (swapped.images.numpy() == X.transpose(0, 3, 1, 2)).all()
    assert swapped.notes == ("'images' (12, 3, 6, 5) is taken as (N, C, H, W)",)
    assert "though it may be (N, C, H, W)" in read(tmp_path, images=X[:, :3, :, :1]).notes[0]


@pytest.mark.parametrize("channels", [2, 4, 7])
@pytest.mark.parametrize("size", [None, 8])
def test_a_few_channels_are_bands_of_an_image(tmp_path: Path, channels: int, size: int | None) -> None:
    """Each is read, and resized, as a grey image of its own."""
    bands = np.random.default_rng(channels).integers(0, 256, (N, 12, 10, channels), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=bands)
    np.savez(tmp_path / "b.npz", images=bands.transpose(0, 3, 1, 2))
    found = [load_files(tmp_path / name, size).images.numpy() for name in ("a.npz", "b.npz")]
    assert (found[0] == found[1]).all()
    for band in range(channels):
        np.savez(tmp_path / "one.npz", images=bands[..., band])
        one = load_files(tmp_path / "one.npz", size).images.numpy()
        assert (found[0][:, band] == one[:, 0]).all()


def test_channels_that_are_more_than_a_side_are_none(tmp_path: Path) -> None:
    for shape in ((N, 6, 5, 5), (N, 40, 40, 33), (N, 2, 2, 2)):
        with pytest.raises(UserError, match="C = 1, 3, or up to 32 and below H and W"):
            read(tmp_path, images=np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": X / 255 - 0.4}, r"is float64 \(12, 6, 5, 3\), -0\.4 to 0\.6; accepted.* data\.name=array takes"),
        ({"images": X.astype(np.uint16) * 16}, r"0 to 4080; accepted.*data\.levels=all takes .* up to 16 bits\.$"),
        ({"images": np.sqrt(X / 255)}, "exactly 8-bit levels"),
        ({"images": np.full((3, 4, 4), np.nan)}, "'images' is float64"),
        ({"data": X, "x": X}, "'data' and 'x' may both be the images"),
        ({"val_images": X, "test_images": X}, "found the images val_images, test_images; .* train among them"),
        ({"images": X, "train_images": X}, "found the images images, train_images"),
        ({"train_x": X, "test_x": X[:, :4]}, r"the splits differ in shape: train_x \(6, 5, 3\), test_x \(4, 5, 3\)"),
        ({"images": X, "labels": Y - 1}, "'labels' holds -1 to 2; accepted: integers from 0"),
        ({"images": X, "labels": Y + 0.5}, "'labels' is float64"),
        ({"images": X, "labels": np.ones((N, 4))}, "'labels' is float64"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, **arrays)
    assert "\n" not in str(error.value)


def test_labels_that_are_identities_are_numbered_anew(tmp_path: Path) -> None:
    for labels, names in ((Y * 10**9, ("0", "1000000000", "2000000000", "3000000000")), (3 + Y % 2 * 2, ("3", "5"))):
        raw = read(tmp_path, images=X, labels=labels)
        assert (raw.class_names, raw.num_classes) == (names, len(names))
        assert raw.labels is not None
        assert [names[label] for label in raw.labels.tolist()] == [str(label) for label in labels]
        assert "numbered anew by their order: 0 is " in raw.notes[0]
    words = np.array(["dog", "cat", "a, b", "eel"])[Y]
    for labels in (words, words.astype("S")):
        raw = read(tmp_path, images=X, labels=labels)
        assert raw.labels is not None
        assert [raw.class_names[label] for label in raw.labels.tolist()] == words.tolist()
    assert read(tmp_path, images=X, labels=Y.astype(np.float32)).num_classes == 4
    raw = read(tmp_path, images=X, labels=np.eye(4)[Y])
    assert raw.labels is not None
    assert raw.labels.tolist() == Y.tolist()
    assert raw.notes == ("'labels' (12, 4) has one 1 a row: taken as the place of it",)


def test_classes_by_name_and_number() -> None:
    names = ["cat", "dog"]
    assert [number_of(text, names) for text in ("cat", "dog", "0", "1", "#1")] == [0, 1, 0, 1, 1]
    for text in ("2", "-1", "#2"):
        with pytest.raises(UserError, match=r"label: found -?\d; the model has the classes 0 cat, 1 dog"):
            number_of(text, names)
    with pytest.raises(UserError, match=r"found 'dgo'; the model has the classes 0 cat, 1 dog\. Did you mean 'dog'"):
        number_of("dgo", names)
    assert [number_of(text, ["3", "5"]) for text in ("3", "5", "0", "1")] == [0, 1, 0, 1]
    with pytest.raises(UserError, match="'1' is the name of class 0, and the number of class '2'; accepted: #0 or #1"):
        number_of("1", ["1", "2"])
    assert number_of("7", [str(i) for i in range(10)]) == 7
    with pytest.raises(UserError, match="found 10; the model has the classes 0 to 9"):
        check_number(10, [str(i) for i in range(10)])
    with pytest.raises(UserError, match=r"the model has the classes 0 - zero, 1 - one$"):
        check_number(2, ["0 - zero", "1 - one"])
    assert names_of({"classes": "cat, dog"}, 2) == names
    assert names_of({"classes": "a, b, c", "class_names": json.dumps(["a, b", "c"])}, 2) == ["a, b", "c"]
    assert names_of({"classes": "a, b, c"}, 2) == names_of({"classes": 2}, 2) == names_of({}, 2) == ["0", "1"]


def sixteen(folder: Path, top: int) -> Path:
    folder.mkdir()
    for i in range(N):
        Image.fromarray((X[i, ..., 0] / 255 * top).astype(np.uint16)).save(folder / f"{i:02}.png")
    return folder


@pytest.mark.parametrize(
    ("top", "bits"), [(32767, 15), (16383, 14), (8191, 13), (4095, 12), (1023, 10), (255, 8), (200, 8)]
)
def test_sixteen_bits_that_use_fewer(tmp_path: Path, top: int, bits: int) -> None:
    folder = sixteen(tmp_path / "d", top)
    with pytest.raises(UserError, match=f"with no value above {top} of 65535: data.bits={bits} takes 0 to"):
        load_images("folder", folder)
    for cache in (None, tmp_path / "cache"):
        raw = load_files(folder, how=Alike(bits), cache=cache)
        assert (raw.images[:, 0].numpy() == (X[..., 0] / 255 * top).astype(np.uint16) >> bits - 8).all()
    with pytest.raises(UserError, match=r"00\.png: cannot be read .*needs more than the 8 bits of data\.bits"):
        load_files(sixteen(tmp_path / "whole", 65535), how=Alike(8))
    with pytest.raises(UserError, match=f"no value above {top}"):  # kept images are of the whole question
        load_files(folder, cache=tmp_path / "cache")
    with pytest.warns(DataNote, match="nearly black"):
        load_images("folder", sixteen(tmp_path / "e", 999), bits=16)


def test_eight_bits_among_sixteen_are_told_and_hide_nothing(tmp_path: Path) -> None:
    folder = sixteen(tmp_path / "d", 4095)
    Image.fromarray(X[0, ..., 0]).save(folder / "eight.png")
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        with pytest.raises(UserError, match=r"no value above 4095 of 65535: data\.bits=12 takes"):
            load_files(folder, cache=cache)
        (note,) = load_files(folder, cache=cache, how=Alike(12)).notes
        assert note.startswith("12 of 13 files are grey of 16 bits")
    assert load_files(sixteen(tmp_path / "dark", 2**15)).notes == ()


def test_images_that_hold_next_to_nothing_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=X * 0 + 7)
    with pytest.raises(UserError, match="all 12 images are of the one value 7"):
        load_images("folder", tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", images=X // 128)
    with pytest.warns(DataNote, match="no value above 1 of 255: the images are nearly black"):
        load_images("folder", tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", images=np.broadcast_to(X[:, :1, :1, :1], X.shape))
    with pytest.warns(DataNote, match="every image is of one value"):
        load_images("folder", tmp_path / "a.npz")
