"""What a source of images is taken for, and that what was guessed or left out is told."""

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.data import DataNote, describe, load_images
from diffusion.data.files.alike import Alike
from diffusion.data.files.image_files import load_files
from diffusion.data.splits import split_of
from diffusion.errors import UserError


def png(value: int) -> bytes:
    pixels = np.random.default_rng(value).integers(0, 256, (3, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def as_folder(path: Path, names: Sequence[str]) -> Path:
    for value, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(png(value))
    return path


def as_zip(path: Path, names: Sequence[str]) -> Path:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for value, name in enumerate(names):
            archive.writestr(name, png(value))
    return path.with_suffix(".zip")


def as_tar(path: Path, names: Sequence[str]) -> Path:
    with tarfile.open(path.with_suffix(".tar"), "w") as archive:
        for value, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = len(png(value))
            archive.addfile(member, io.BytesIO(png(value)))
    return path.with_suffix(".tar")


Kind = Callable[[Path, Sequence[str]], Path]
every_kind = pytest.mark.parametrize("kind", [as_folder, as_zip, as_tar])
INSIDE = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(4)]
HELD = ("valid", "Validation", "val", "VAL2017", "dev", "eval", "test", "testing", "Test Set", "test_images", "tests")


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("train", ["train", "Training", "train_set"])
def test_a_split_is_known_by_every_usual_name(tmp_path: Path, train: str, held: str) -> None:
    raw = load_files(as_folder(tmp_path, [f"{split}/{name}" for split in (train, held) for name in INSIDE]))
    assert raw.class_names == ("cat", "dog")
    assert raw.parts == {"train": range(8), "test" if "est" in held.lower() else "validation": range(8, 16)}


def test_words_that_are_no_splits() -> None:
    for name in ("cat", "trainer", "evaluator", "contest", "device", "value", "tested", "", "0", "set", "images"):
        assert split_of(name) is None, name


@every_kind
def test_splits_of_other_names_in_every_kind_of_source(tmp_path: Path, kind: Kind) -> None:
    names = [f"{split}/{name}" for split in ("training", "dev", "testing") for name in INSIDE]
    raw = load_files(kind(tmp_path / "d", names))
    assert raw.class_names == ("cat", "dog")
    assert {split: len(rows) for split, rows in raw.parts.items()} == {"train": 8, "validation": 8, "test": 8}


@every_kind
def test_splits_inside_classes_are_splits(tmp_path: Path, kind: Kind) -> None:
    raw = load_files(
        kind(tmp_path / "d", [f"{name}/{split}/1.png" for name in ("cat", "dog") for split in ("train", "val")])
    )
    assert raw.class_names == ("cat", "dog")
    assert [key.replace("d:", "") for key in raw.keys] == ["cat/1.png", "dog/1.png"] * 2
    assert raw.parts == {"train": range(2), "validation": range(2, 4)}


def test_archives_and_shards_of_other_names(tmp_path: Path) -> None:
    (tmp_path / "zips").mkdir()
    (tmp_path / "tars").mkdir()
    for split in ("training", "valid"):
        as_zip(tmp_path / "zips" / split, INSIDE)
        as_tar(tmp_path / "tars" / f"{split}-0000", INSIDE)
    for folder in ("zips", "tars"):
        raw = load_files(tmp_path / folder)
        assert raw.parts == {"train": range(8), "validation": range(8, 16)}
        assert (raw.class_names, raw.notes) == (("cat", "dog"), ())


@pytest.mark.parametrize(
    "splits", [("train", "val", "dev"), ("test", "testing", "train"), ("val", "test"), ("train", "test", "cat")]
)
def test_splits_that_may_mean_two_things_are_refused(tmp_path: Path, splits: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=f"holds {', '.join(sorted(splits))}; accepted: train and test") as error:
        load_files(as_folder(tmp_path, [f"{split}/{name}" for split in splits for name in INSIDE]))
    assert "\n" not in str(error.value)


@every_kind
def test_files_that_are_passed_over_are_counted(tmp_path: Path, kind: Kind) -> None:
    images = ["a/1.png", "a/2.JPG", "b/1.jfif", "b/2.Jpe"]
    others = ["a/1.avif", "a/2.avif", "b/1.HEIC", "b/plain", "a/labels.csv"]
    hidden = [".hidden.heic", "__MACOSX/a/1.heic", "a/Thumbs.db", "b/.DS_Store"]
    raw = load_files(kind(tmp_path / "d", [*images, *others, *hidden]))
    assert sorted(raw.keys) == images if kind is not as_tar else len(raw.keys) == 4
    assert raw.notes == (
        "5 files passed over: .avif .csv .heic, no ending (not read)",
        "not used: labels.csv; labels are taken from folders, the column 'label' of labels.csv, .cls files in tar "
        "shards, and .npz files",
    )
    assert not load_files(kind(tmp_path / "clean", [*images, *hidden])).notes
    with pytest.raises(UserError, match=r"no image found in .*; 2 files passed over: \.avif \.heic"):
        load_files(kind(tmp_path / "none", ["1.avif", "2.heic"]))


def test_labels_that_vanish_are_told(tmp_path: Path) -> None:
    with pytest.warns(
        DataNote, match=r"data\.path: no labels: 1 of 9 images are in none of the folders cat, dog, e\.g\. new\.png"
    ):
        data = load_images("folder", as_folder(tmp_path / "a", [*INSIDE, "new.png"]))
    assert data.num_classes == 0
    assert "no labels: 1 of 9" in str(data.provenance["notes"])
    raw = load_files(as_folder(tmp_path / "b", [*(f"train/{name}" for name in INSIDE), "test/1.png"]))
    assert raw.notes == ("no labels: 1 of 9 images are in none of the folders cat, dog, e.g. 1.png",)
    raw = load_files(as_folder(tmp_path / "d", [f"{folder}/1.png" for folder in ("train", "ship")]))
    assert raw.notes == ("the folder 'train' is taken for a class, as no other split is beside it",)


@pytest.mark.filterwarnings("ignore:.*no training image is of the class c001, c010:diffusion.data.DataNote")
def test_what_was_understood_is_a_short_block(tmp_path: Path) -> None:
    data = load_images(
        "folder",
        as_folder(tmp_path / "pets", [f"{name}/{i}.png" for name in ("cat", "dog", "a, b") for i in range(10)]),
    )
    first, splits, classes = describe(data.provenance, data.num_classes)
    low, high = (f(torch.cat((data.train, data.validation, data.test))).item() for f in (torch.min, torch.max))
    source = f"data: 30 images from {tmp_path / 'pets'}: 4 x 3 (width x height), grey, "
    assert first == f"{source}256 levels, of which {low} to {high} are used"
    assert splits.startswith("  splits: train 24, validation 3, test 3 (test: first 3 of 30 in SHA-256 order")
    assert classes == "  classes: 3: 0 a, b, 1 cat, 2 dog"
    many = load_images("folder", as_folder(tmp_path / "many", [f"c{i:03}/1.png" for i in range(120)]))
    assert (
        describe(many.provenance, many.num_classes)[2]
        == "  classes: 120: 0 c000, 1 c001, 2 c002, 3 c003, 4 c004, 5 c005, ..., 119 c119"
    )
    digits = load_images("digits")
    assert describe(digits.provenance, 10)[2] == "  classes: 10: 0, 1, 2, 3, 4, 5, ..., 9"
    assert describe({"name": "moons", "source": "drawn"}, 0) == []


PAIRS = [("seg_train", "seg_test"), ("pets-training", "pets-val"), ("fold1_train", "fold1_valid")]


@pytest.mark.parametrize(("train", "held"), PAIRS)
@pytest.mark.parametrize("nested", [False, True])
def test_words_that_all_splits_share_make_no_difference(tmp_path: Path, train: str, held: str, nested: bool) -> None:
    """Also where an archive's folder lies in a folder of its name."""
    inside = {split: f"{split}/{split}" if nested else split for split in (train, held)}
    raw = load_files(as_folder(tmp_path, [f"{inside[split]}/{name}" for split in (train, held) for name in INSIDE]))
    assert raw.class_names == ("cat", "dog")
    assert {"train": range(8), split_of(held.split("_")[-1].split("-")[-1]): range(8, 16)} == raw.parts


def test_names_with_different_words_beside_a_split_are_classes(tmp_path: Path) -> None:
    raw = load_files(as_folder(tmp_path, [f"{name}/{i}.png" for name in ("cat_train", "dog_test") for i in range(4)]))
    assert raw.class_names == ("cat_train", "dog_test")


@pytest.mark.parametrize("folder", ["@eaDir", "__MACOSX", "#recycle", "lost+found", "$RECYCLE.BIN"])
def test_folders_of_the_system_are_no_classes(tmp_path: Path, folder: str) -> None:
    raw = load_files(as_folder(tmp_path, [*INSIDE, f"{folder}/thumbnail.png"]))
    assert raw.class_names == ("cat", "dog")
    assert len(raw.images) == 8


@pytest.mark.parametrize(
    "name", ["_annotations.coco.json", "dataset.json", "list_attr.txt", "imagelabels.mat", "y.xlsx"]
)
def test_files_that_may_hold_labels_are_named(tmp_path: Path, name: str) -> None:
    path = as_folder(tmp_path, INSIDE)
    (path / name).write_text("{}")
    assert any(note.startswith(f"not used: {name}; labels are taken from folders") for note in load_files(path).notes)


def test_a_folder_that_is_linked_to_again_is_told(tmp_path: Path) -> None:
    path = as_folder(tmp_path, INSIDE)
    (path / "pets").symlink_to(path / "cat", target_is_directory=True)
    raw = load_files(path)
    assert raw.class_names == ("cat", "dog")
    assert raw.notes == ("pets: links to folders that are read already, left out",)


def test_frames_that_are_left_out_are_told(tmp_path: Path) -> None:
    path = as_folder(tmp_path, [f"{i}.png" for i in range(3)])
    frames = [Image.open(io.BytesIO(png(value))) for value in range(10, 13)]
    frames[0].save(path / "moving.gif", save_all=True, append_images=frames[1:])
    (told,) = load_files(path).notes
    assert told.startswith("1 of 4 files hold several pictures (an animation, pages); the first of each is taken")
    assert told.endswith("e.g. moving.gif")


def sixteen_bits(values: np.ndarray, kind: int) -> bytes:
    """A PNG of 16 bits a channel; kind 2 is RGB, 4 is grey with alpha (PNG specification, 11.2.2)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("cached", [False, True])
def test_colour_of_sixteen_bits_is_told(tmp_path: Path, cached: bool) -> None:
    """The high byte is kept; what is kept in a cache says so, too."""
    levels = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3))
    path = tmp_path / "images"
    path.mkdir()
    for i, x in enumerate(levels):
        (path / f"{i}.png").write_bytes(sixteen_bits(x * 256 + 200, 2))
    for _ in range(2):
        raw = load_files(path, cache=tmp_path / "cache" if cached else None)
        assert torch.equal(raw.images, torch.tensor(levels.transpose(0, 3, 1, 2), dtype=torch.uint8))
        assert raw.notes == (
            "4 of 4 files are of 16 bits, in colour or with transparency; the upper 8 of these are kept, e.g. 0.png",
        )
    assert load_files(path, how=Alike(12)).notes[0] == "data.bits=12 changes nothing: no file is grey of 16 bits"


def test_grey_of_sixteen_bits_with_alpha_stays_grey(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (4, 4))
    opaque = np.stack([grey * 257, np.full_like(grey, 65535)], -1)
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(sixteen_bits(opaque, 4))
    assert torch.equal(load_files(tmp_path).images[0, 0], torch.tensor(grey, dtype=torch.uint8))
    assert load_files(tmp_path).images.shape == (3, 1, 4, 4)


def test_held_out_images_that_are_trained_on_are_counted(tmp_path: Path) -> None:
    names = [*(f"train/{i}.png" for i in range(6)), *(f"test/{i}.png" for i in range(4))]
    path = as_folder(tmp_path, names)
    for i in range(3):
        (path / f"test/{i}.png").write_bytes((path / "train/0.png").read_bytes())
    with pytest.warns(DataNote, match="3 of 4 test images are training images, too, to the bit"):
        data = load_images("folder", path, validation=0)
    assert "3 of 4 test images" in str(data.provenance["notes"])


@pytest.mark.parametrize(
    ("key", "value"), [("size", 8.5), ("size", True), ("size", 0), ("bits", "12"), ("validation", "5")]
)
def test_numbers_of_images_are_whole(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"^data\.{key}: found .*; must be a whole number"):
        load_images("folder", as_folder(tmp_path, INSIDE), **{key: value})
