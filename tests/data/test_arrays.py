"""Arrays of real numbers: what is read from which files, in which splits, and what is refused by name and place."""

import os
from functools import partial

import numpy as np
import pytest
import torch
from hostile_files import FORMATS, FUZZ, mutated, npz, one_line, refuses_a_pickle
from hypothesis import given
from hypothesis import strategies as st

from diffusion.data import DataNote, load_array, load_images
from diffusion.data.files.mapped_rows import MappedRows
from diffusion.errors import UserError
from diffusion.numerics.random import hashed_order

SHAPES = [(3,), (2, 5), (1, 4, 6), (2, 3, 4, 2)]


def numbers(n, *shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(n, *shape)).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">f8"])
def test_floats_of_any_shape_are_read_as_they_are(tmp_path, shape, dtype):
    x = numbers(30, *shape, dtype=dtype)
    np.save(tmp_path / "x.npy", x)
    data = load_array(tmp_path / "x.npy")
    assert data.shape == shape
    assert data.levels is None
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 3, 3)
    for part in (data.train, data.validation, data.test):
        found = part[:]
        assert found.dtype == (torch.float64 if x.dtype.itemsize == 8 else torch.float32)
        assert np.array_equal(found.numpy(), x[part.rows].astype(found.numpy().dtype))
        assert torch.equal(part[torch.tensor([2, 0])], found[[2, 0]])
        assert torch.equal(part[1], found[1])
    rows = np.concatenate([part.rows for part in (data.train, data.validation, data.test)])
    assert sorted(rows.tolist()) == list(range(30)), "each row in one split"


def test_a_vector_may_be_one_number(tmp_path):
    np.save(tmp_path / "x.npy", numbers(10))
    assert load_array(tmp_path / "x.npy").shape == (1,)


def test_the_rows_of_a_split_are_those_of_images(tmp_path):
    """The order is the SHA-256 of the row's number, whatever the row holds."""
    np.save(tmp_path / "x.npy", numbers(50, 2))
    np.save(tmp_path / "i.npy", np.random.default_rng(1).integers(0, 256, (50, 4, 4), np.uint8))
    ours, theirs = load_array(tmp_path / "x.npy"), load_images("folder", tmp_path / "i.npy")
    assert ours.provenance["split"] == theirs.provenance["split"]
    assert [int(name) for name in theirs.train_names] == ours.train.rows.tolist()


def test_rows_stay_in_the_file_until_they_are_asked_for(tmp_path):
    np.save(tmp_path / "x.npy", numbers(40, 8))
    data = load_array(tmp_path / "x.npy")
    assert all(isinstance(array.base, np.memmap) or isinstance(array, np.memmap) for array in data.train._arrays)
    assert len(list(MappedRows([numbers(5, 3)]).pieces())) == 1
    assert data.train.to(None) is data.train
    assert torch.equal(data.train.to(torch.device("cpu")), data.train[:])


@pytest.mark.parametrize("names", [("train", "test"), ("x_train", "x_test"), ("train_data", "test_data")])
def test_the_splits_of_an_archive(tmp_path, names):
    x, y = numbers(20, 3), numbers(6, 3) + 1
    np.savez(tmp_path / "x.npz", **dict(zip(names, (x, y), strict=True)))
    data = load_array(tmp_path / "x.npz")
    assert np.array_equal(data.test[:].numpy(), y)
    assert (len(data.train), len(data.validation)) == (18, 2)
    assert "test: as given by the source" in str(data.provenance["split"])


def test_a_number_that_is_none_is_found_in_its_file_or_key(tmp_path):
    good, wrong = numbers(20, 3), numbers(9, 3)
    wrong[4, 1] = np.nan
    np.savez(tmp_path / "x.npz", train=good, test=wrong)
    with pytest.raises(UserError, match=r"x\.npz: 'test': row 4 is nan at 1"):
        load_array(tmp_path / "x.npz")
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "a.npy", good)
    np.save(tmp_path / "folder" / "b.npy", wrong)
    with pytest.raises(UserError, match=r"b\.npy: row 4 is nan at 1"):
        load_array(tmp_path / "folder")


def test_labels_of_an_archive(tmp_path):
    x = numbers(30, 3)
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(30) % 3)
    data = load_array(tmp_path / "x.npz")
    assert data.num_classes == 3
    assert data.train_labels is not None
    assert data.train_labels.tolist() == (data.train.rows % 3).tolist()


def test_a_folder_of_files_is_one_array_or_one_a_split(tmp_path):
    x = numbers(30, 2, 4)
    for name, rows in (("b.npy", x[10:]), ("a.npy", x[:10])):
        np.save(tmp_path / name, rows)
    data = load_array(tmp_path)
    assert np.array_equal(data.train[:].numpy(), x[data.train.rows]), "in the order of their names"
    given = tmp_path / "given"
    (given / "test").mkdir(parents=True)
    np.save(given / "test" / "000.npy", x[20:])
    np.save(given / "train-1.npy", x[10:20])
    np.save(given / "train-0.npy", x[:10])
    data = load_array(given)
    assert np.array_equal(data.test[:].numpy(), x[20:])
    assert sorted([*data.train.rows, *data.validation.rows]) == list(range(20))


def test_what_is_suspicious_is_said(tmp_path):
    x = numbers(30, 3)
    x[5] = x[7]
    np.save(tmp_path / "x.npy", np.concatenate((x, x)))
    with pytest.warns(DataNote) as notes:
        load_array(tmp_path / "x.npy")
    assert any(" of 6 test rows are training rows, too, to the bit" in str(note.message) for note in notes)
    np.save(tmp_path / "whole.npy", np.round(100 * numbers(30, 3)))
    with pytest.warns(DataNote, match="the numbers are whole"):
        load_array(tmp_path / "whole.npy")


def bad(place, value):
    x = numbers(30, 2, 4)
    x[place] = value
    return x


REFUSED = {
    "nan": (bad((17, 1, 2), np.nan), r"row 17 is nan at \(1, 2\); accepted: finite numbers \(1 of 30 rows"),
    "infinity": (bad((slice(3, 5), 0, 0), -np.inf), r"row 3 is -inf at \(0, 0\); .*\(2 of 30 rows"),
    "nan of a vector": (np.array([[0.0, 1.0], [np.nan, 0.0]]), r"row 1 is nan at 0;"),
    "whole": (np.arange(30).reshape(10, 3), r"is int64 \(10, 3\); accepted: floats .*data\.name=folder"),
    "bytes": (np.zeros((10, 8, 8), np.uint8), r"is uint8 .*data\.name=folder"),
    "complex": (np.zeros((10, 3), complex), "is complex128"),
    "long": (np.zeros((10, 3), np.longdouble), r"is (float128|longdouble|float96) .*accepted: floats of up to 64 bits"),
    "text": (np.array(["a", "b"]), "is <U1"),
    "number": (np.float64(1.0), r"has the shape \(\)"),
    "no rows": (np.zeros((0, 3)), r"has the shape \(0, 3\)"),
    "no entries": (np.zeros((3, 0)), r"has the shape \(3, 0\)"),
    "six axes": (np.zeros((2, 1, 1, 1, 1, 1)), r"has the shape \(2, 1, 1, 1, 1, 1\)"),
    "two rows": (np.zeros((2, 3)), "2 to split: too few samples, at least 3"),
    "objects": (np.array([None, 1], dtype=object), "is not a readable .npy file"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_array_of_finite_floats_is_refused_by_name(tmp_path, kind):
    array, message = REFUSED[kind]
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UserError, match=message) as error:
        load_array(tmp_path / "x.npy")
    assert "\n" not in str(error.value)
    if kind != "two rows":
        assert str(tmp_path / "x.npy") in str(error.value)


@pytest.mark.parametrize(("kind", "what"), [(np.float64, "row"), (np.uint8, "image")])
def test_classes_without_training_data_and_columns_of_one_value_are_told(tmp_path, kind, what):
    held = hashed_order([str(i) for i in range(40)])[0]  # in the test part
    x, words = 250 * np.random.default_rng(0).random((40, 3, 3)), np.where(np.arange(40) % 2, "cat", "dog")
    words[held] = "owl"
    same = {"c": np.full((40, 2), 3.0), "d": np.arange(40) % 2 + 0.5}
    np.savez(tmp_path / "x.npz", x=x.astype(kind), labels=words, kind=words, **same)
    load, columns = (load_array, ()) if what == "row" else (load_images, ("folder",))
    with pytest.warns(DataNote) as notes:
        data = load(*columns, path=tmp_path / "x.npz", columns=("kind", "c", "d"))
    owls = [(split, int((data.columns["kind"][split].values == 2).sum())) for split in ("train", "test")]
    assert owls == [("train", 0), ("test", 1)]
    assert {str(note.message) for note in notes} == {
        f"data.path: no training {what} is of the class owl",
        f"data.path: kind: no training {what} is of the class owl",
        f"data.path: c: is the same in each training {what}, and tells nothing of it",
    }


@pytest.mark.parametrize(
    ("kind", "there", "message"),
    [
        (np.float64, 29, "data.path: {}: 0 GiB .* this machine has 0; a .npy, which is mapped and not read, would do"),
        (np.uint8, 3, "data.path: {}: 0 GiB .*; fewer or smaller images would do"),
        (np.uint8, 6, "data.path: 60 images of 1 x 8 x 8: 0 GiB .*; fewer or smaller images would do"),
    ],
)
def test_arrays_that_no_memory_holds_are_refused_in_a_line(tmp_path, monkeypatch, kind, there, message):
    """30 KiB of float64 are read; 4 KiB of uint8 are read, and joined to as many."""
    path, x = tmp_path / "x.npz", np.random.default_rng(0).integers(0, 256, (60, 8, 8)).astype(kind)
    np.savez(path, train=x[:40] + kind(0.5), test=x[40:] + kind(0.5))
    load = load_array if kind == np.float64 else partial(load_images, "folder")
    memory = {"SC_PHYS_PAGES": there, "SC_PAGE_SIZE": 1024}
    monkeypatch.setattr(os, "sysconf", memory.__getitem__)
    with pytest.raises(UserError, match=message.format(path)):
        load(path=path)
    memory["SC_PHYS_PAGES"] = 32
    assert load(path=path).shape[-2:] == (8, 8)


def test_files_and_folders_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"does not exist; accepted: a \.npy or \.npz file, or a folder"):
        load_array(tmp_path / "none.npy")
    (tmp_path / "x.csv").write_text("1,2\n")
    with pytest.raises(UserError, match="is no array; accepted"):
        load_array(tmp_path / "x.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.npy file"):
        load_array(tmp_path / "empty")
    folder = tmp_path / "unlike"
    folder.mkdir()
    np.save(folder / "a.npy", numbers(5, 3))
    np.save(folder / "b.npy", numbers(5, 4))
    with pytest.raises(UserError, match=r"b\.npy: is float32 \(5, 4\), and .*a\.npy is float32 \(5, 3\); all"):
        load_array(folder)
    np.save(folder / "test.npy", numbers(5, 3))
    with pytest.raises(UserError, match=r"a\.npy: is of no split, and other files are"):
        load_array(folder)
    np.savez(tmp_path / "names.npz", weights=numbers(5, 3))
    with pytest.raises(UserError, match="has no array 'x'; found: weights"):
        load_array(tmp_path / "names.npz")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_no_pickle_is_executed(tmp_path, name, kind):
    refuses_a_pickle(tmp_path, name, load_array, kind)


def test_a_header_that_promises_more_than_there_is(tmp_path):
    np.save(tmp_path / "x.npy", numbers(4, 3))
    data = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(data.replace(b"(4, 3)", b"(9**9,")[: len(data)])
    with pytest.raises(UserError, match=r"is not a readable \.npy file"):
        load_array(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(data[:-8])
    with pytest.raises(UserError, match=r"is not a readable \.npy file"):
        load_array(tmp_path / "x.npy")


def test_an_archive_that_unpacks_to_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion.data.arrays.MEMBER_BYTES", 2**16)  # for speed; it is 2^28
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((2**20, 2)))
    with pytest.raises(UserError, match="is refused"):
        load_array(tmp_path / "x.npz")


def _npy():
    import io

    buffer = io.BytesIO()
    np.save(buffer, numbers(6, 2))
    return buffer.getvalue()


@FUZZ
@given(data=st.data())
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, name, data):
    good = _npy() if name == "x.npy" else npz(x=numbers(6, 2), y=np.arange(6))
    (tmp_path / name).write_bytes(data.draw(mutated(good)))
    assert one_line(load_array, tmp_path / name)
