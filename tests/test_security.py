"""Files from elsewhere: none runs code, none leaves its folder or fills the memory, and each bad one is one line."""

import ast
import io
import os
import re
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hostile_files import (
    FORMATS,
    Hostile,
    png_of,
    refuses_a_pickle,
    saved,
)
from PIL import Image
from tiny_configs import toy_config

from diffusion import load
from diffusion.commands import records
from diffusion.commands.app import command
from diffusion.commands.sample.record import SampleRecord
from diffusion.commands.train.train import train
from diffusion.config import dump_config, parse_config
from diffusion.data.files import image_files
from diffusion.data.files.image_files import load_files
from diffusion.errors import UserError
from diffusion.storage import runs
from diffusion.storage.checkpoint_files import read_checkpoint

PACKAGE = Path(__file__).parents[1] / "diffusion"
SECRET = "5ec12e7" * 5 + "abcde"  # as long as a W&B key


READERS = {
    "checkpoint": ("last.ckpt", read_checkpoint),
    "model of a checkpoint": ("last.ckpt", load),
    "model": ("model.safetensors", load),
    "array": ("images.npz", load_files),
    "archive": ("images.zip", load_files),
    "picture": ("x.png", SampleRecord.read),
    "evaluation": ("ode-0123456789ab.json", records.read),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("reader", READERS)
def test_no_pickle_is_executed(tmp_path, reader, kind):
    refuses_a_pickle(tmp_path, *READERS[reader], kind)


def test_parts_of_an_evaluation_run_no_code(tmp_path):
    (tmp_path / "00000000-00000001.part").write_bytes(saved({"summary": Hostile(tmp_path / "executed")}))
    assert records.read_parts(tmp_path, {0, 1}) == []
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
def test_all_of_it_holds_without_assertions():
    """`python -O` takes every `assert` of the product away; those of tests stay, as pytest rewrites them."""
    files = ["test_security.py", "test_fuzzing.py", "test_hostile_readers.py", "commands/test_sample_record.py"]
    which = "elsewhere or family or pickle or bombs or json or random_bytes or says_anything or leave or members"
    options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestConfigWarning"]
    done = subprocess.run(
        [sys.executable, "-O", "-m", "pytest", *options, "-k", which, *files], cwd=Path(__file__).parent,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_package_loads_by_nothing_that_could():
    """Every call that could unpickle or evaluate says that it does not."""
    safe = {"load": {"weights_only": True, "allow_pickle": False}}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            given_ = {
                word.arg: ast.literal_eval(word.value) for word in node.keywords if isinstance(word.value, ast.Constant)
            }
            if called in ("torch.load", "np.load", "numpy.load"):
                assert any(given_.get(word) is value for word, value in safe["load"].items()), f"{path}: {called}"
            assert called not in (
                "eval",
                "exec",
                "os.system",
                "pickle.load",
                "pickle.loads",
                "yaml.load",
                "yaml.unsafe_load",
            ), path
            assert given_.get("shell") is not True, path


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!python/object/apply:os.mkdir [executed]",
        "seed: !!python/object/new:os.mkdir [executed]",
        "!!python/object/apply:os.mkdir [executed]",
        "data: {name: !!python/name:os.system }",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
    ],
)
def test_yaml_builds_no_objects(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        parse_config(text)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", ".", "", "x\n", "~", "a\0b"])
def test_a_run_cannot_leave_its_folder(tmp_path, name):
    with pytest.raises(UserError):
        runs.create_run(tmp_path / "runs", name)
    assert {path.name for path in tmp_path.rglob("*")} <= {"runs"}


@pytest.mark.parametrize("name", ["../../out.png", "/out.png", "..\\out.png", "a/../../../out.png"])
def test_members_of_an_archive_stay_in_it(tmp_path, name):
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "PNG")
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for member in ("a.png", "b.png", name):
            archive.writestr(member, buffer.getvalue())
    with pytest.raises(UserError, match="absolute path or"):
        load_files(folder / "images.zip")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["images.zip"]


def test_bombs_are_refused_by_their_size_before_they_are_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MEMBER_BYTES", 2**20)  # for speed; it is 2^28
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "bomb.png").write_bytes(png_of(60_000, 60_000))
    with zipfile.ZipFile(tmp_path / "member.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.bmp", bytes(2**20 + 1))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**13, 16, 16)})
    with zipfile.ZipFile(tmp_path / "array.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(2**21))
    lie = io.BytesIO()
    np.lib.format.write_array_header_1_0(lie, {"descr": "|u1", "fortran_order": False, "shape": (2**30, 2**10, 2**10)})
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("images.npy", lie.getvalue() + bytes(100))
    for name in ("folder", "member.zip", "array.npz", "lie.npz"):
        with pytest.raises(UserError) as error:
            load_files(tmp_path / name)
        assert re.search("refused|cannot be read|not a readable", str(error.value))
        assert "\n" not in str(error.value)


def test_a_key_never_lands_in_a_file_or_a_line(tmp_path, monkeypatch, capfd):
    for key in [key for key in os.environ if key.startswith("WANDB")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = toy_config(tmp_path, "trainer.steps=2", "logging.wandb=offline", "evaluation.enabled=false")
    (tmp_path / "tiny.yaml").write_text(dump_config(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert command(train, ["--config", "tiny.yaml"]) == 0
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert any(path.suffix == ".ckpt" for path in files)
    for path in files:
        found = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found += b"".join(archive.read(name) for name in archive.namelist())
        assert SECRET.encode() not in found, path
