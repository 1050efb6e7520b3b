"""Tables and paired images inside archives, and tables of any bytes."""

import tarfile
import zipfile

import numpy as np
import pytest
import torch
from hostile_files import FUZZ, mutated, one_line
from hypothesis import given
from hypothesis import strategies as st
from labelled_folders import TABLE, written
from PIL import Image

from diffusion.data import load_images
from diffusion.errors import UserError


def packed(folder, kind, target, pairs=False):
    """The images of `written` and labels.csv as an archive, in a folder that wraps them, or as shards beside it."""
    files = sorted(path for path in folder.rglob("*.*") if path.is_file() and (pairs or "depth" not in path.parts))
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            for path in files:
                archive.write(path, f"faces/{path.relative_to(folder).as_posix()}")
        return target
    if kind == "tar":
        with tarfile.open(target, "w") as archive:
            for path in files:
                archive.add(path, path.relative_to(folder).as_posix())
        return target
    target.mkdir()
    (target / "labels.csv").write_bytes((folder / "labels.csv").read_bytes())
    for shard in range(2):
        with tarfile.open(target / f"shard-{shard}.tar", "w") as archive:
            for path in files[shard::2]:
                if path.name != "labels.csv":
                    archive.add(path, path.relative_to(folder).as_posix())
    return target


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.filterwarnings("ignore::diffusion.data.DataNote")
def test_paired_folders_in_an_archive_are_those_of_the_folder(tmp_path, kind):
    folder, target = written(tmp_path / "folder"), tmp_path / f"x.{kind}"
    data = load_images("folder", path=packed(folder, kind, target, pairs=True), columns=("depth", "kind"))
    assert data.num_classes == 2, "the folder of pairs is no class"
    for split in ("train", "validation", "test"):
        number = (getattr(data, split)[:, 0, 1, 1].long() - 1) // 7
        paired = data.columns["depth"][split]
        assert (paired.values[:, 0, 2, 2].long() - (255 - 7 * number)).abs().max() <= 2
        assert torch.equal(data.columns["kind"][split].values, (number >= 6).long())
        assert paired.levels == 256
    assert load_images("folder", path=target).num_classes == 3, "without being asked for it, it is a class"
    (folder / "depth" / "a" / "1.jpg").unlink()
    target.unlink()
    packed(folder, kind, target, pairs=True)
    with pytest.raises(UserError, match=r": (faces/)?depth: has no image for a/1\.png") as error:
        load_images("folder", path=target, columns=("depth",))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"found 'deep'; .*, and .* no folder of that name"):
        load_images("folder", path=target, columns=("deep",))


@pytest.mark.parametrize("kind", ["zip", "tar", "shards"])
@pytest.mark.filterwarnings("ignore::diffusion.data.DataNote")
def test_a_table_in_an_archive_is_that_of_the_folder(tmp_path, kind):
    names = ("age", "kind", "pose")
    folder = written(tmp_path / "folder")
    for path in (folder / "depth").rglob("*.jpg"):
        path.unlink()
    data = load_images("folder", path=packed(folder, kind, tmp_path / f"x.{kind}"), columns=names)
    for split in ("train", "validation", "test"):
        of = {name: data.columns[name][split].values for name in names}
        number = (getattr(data, split)[:, 0, 1, 1].long() - 1) // 7
        assert torch.equal(torch.isnan(of["age"][:, 0]), number == 3)
        assert torch.equal(of["age"][number != 3, 0], number[number != 3] + 0.5)
        assert torch.equal(of["kind"], (number >= 6).long())
        assert torch.equal(of["pose"], torch.stack((number, -number), 1).double())


@pytest.mark.filterwarnings("ignore::diffusion.data.DataNote")
def test_tables_in_archives_that_do_not_fit_are_refused_in_a_line(tmp_path):
    folder = written(tmp_path / "folder")

    def refused(path, message, names=("age",)):
        with pytest.raises(UserError, match=message) as error:
            load_images("folder", path=path, columns=names)
        assert "\n" not in str(error.value)

    path = packed(folder, "zip", tmp_path / "x.zip")
    refused(path, r"found 'depth'; .*x\.zip: faces/labels\.csv has age, kind, score, pose\.x, pose\.y", ("depth",))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.csv", "file,age\n1.png,2.5\n")
    refused(path, r"x\.zip: holds 2 files called labels\.csv; needs one")
    (folder / "labels.csv").write_text("file,age\nb/0.png,1.5\n")
    refused(packed(folder, "tar", tmp_path / "x.tar"), r"x\.tar: labels\.csv: has no line for (a|b)/\d+\.png")
    (folder / "labels.csv").unlink()
    refused(
        packed(folder, "tar", tmp_path / "y.tar"), r"found 'age'; .*y\.tar has neither a folder 'age' nor a labels\.csv"
    )
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for i, name in zip((1, 3, 5, 7), ("1.png", "1.png", "2.png", "3.png"), strict=True):
            archive.add(folder / "a" / f"{i}.png", name)
        (folder / "labels.csv").write_text("file,age\n1.png,1.5\n2.png,1.5\n3.png,1.5\n")
        archive.add(folder / "labels.csv", "labels.csv")
    refused(tmp_path / "twice.tar", r"1\.png is the name of 2 images")


GOOD = (TABLE + "".join(f"{i}.png,{i / 2},cat,1,2,3\n" for i in range(3))).encode()


@FUZZ
@given(damaged=mutated(GOOD) | st.binary(max_size=60))
@pytest.mark.filterwarnings("ignore::diffusion.data.DataNote")
def test_any_bytes_as_a_table_are_read_or_refused_in_a_line(tmp_path_factory, damaged):
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    if not folder.exists():
        folder.mkdir()
        for i in range(3):
            Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2) + i).save(folder / f"{i}.png")
    (folder / "labels.csv").write_bytes(damaged)
    assert one_line(lambda path: load_images("folder", path=path, columns=("age", "kind")), folder)
