"""Files from elsewhere: none runs code, none leaves its folder or fills the memory, and each bad one is one line."""

import ast
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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
from diffusion.models.build import DataFacts, build_model
from diffusion.storage import runs, tensor_files
from diffusion.storage import tensor_files as model_files
from diffusion.storage.checkpoint_files import read_checkpoint
from diffusion.training.logs.metrics import read_metrics

PACKAGE = Path(__file__).parents[1] / "diffusion"
SECRET = "5ec12e7" * 5 + "abcde"  # as long as a W&B key
FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def raw_zip(pickled):
    """What `torch.save` writes, with a pickle of one's own in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


READERS = {
    "checkpoint": ("last.ckpt", read_checkpoint),
    "model of a checkpoint": ("last.ckpt", load),
    "model": ("model.safetensors", load),
    "array": ("images.npz", load_files),
    "archive": ("images.zip", load_files),
    "picture": ("x.png", SampleRecord.read),
    "evaluation": ("ode-0123456789ab.json", records.read),
}
FORMATS = {
    "a pickle": pickle.dumps,
    "torch's archive": lambda hostile: saved({"state_dict": hostile, "model": hostile, "weight_average": hostile}),
    "torch's old format": lambda hostile: _old(hostile),
    "an archive of its own": lambda hostile: raw_zip(pickle.dumps(hostile)),
    "an array of objects": lambda hostile: npz(images=np.array([hostile, hostile], dtype=object)),
}


def _old(content):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def refuses_a_pickle(folder, name, read, kind):
    """A reader tells of a hostile file in one line, and does not run it."""
    (folder / name).write_bytes(FORMATS[kind](Hostile(folder / "executed")))
    with pytest.raises(UserError) as error:
        read(folder / name)
    assert "\n" not in str(error.value)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("reader", READERS)
def test_no_pickle_is_executed(tmp_path, reader, kind):
    refuses_a_pickle(tmp_path, *READERS[reader], kind)


def test_parts_of_an_evaluation_run_no_code(tmp_path):
    (tmp_path / "00000000-00000001.part").write_bytes(saved({"summary": Hostile(tmp_path / "executed")}))
    assert records.read_parts(tmp_path, {0, 1}) == []
    assert not (tmp_path / "executed").exists()


def test_all_of_it_holds_without_assertions():
    """`python -O` takes every `assert` of the product away; those of tests stay, as pytest rewrites them."""
    files = ["test_security.py", "test_hostile_readers.py", "commands/test_sample_record.py"]
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


def _png_of(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_bombs_are_refused_by_their_size_before_they_are_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MEMBER_BYTES", 2**20)  # for speed; it is 2^28
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "bomb.png").write_bytes(_png_of(60_000, 60_000))
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


# Fuzzing: random bytes and mutated good files; only UserError may come out.

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=4) | st.just(torch.zeros(2)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model", "weight_average", "averages", "config", "data", "x"]), inner)
    ),
    max_leaves=6,
)


@st.composite
def mutated(draw, good: bytes):
    """A good file with a few bytes changed, cut out, doubled, or its end cut off."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        length = draw(st.integers(1, 12))
        way = draw(st.sampled_from(["change", "cut", "insert", "double", "end"]))
        if way == "change":
            data[at] = draw(st.integers(0, 255))
        elif way == "cut":
            del data[at : at + length]
        elif way == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=length))
        elif way == "double":
            data[at:at] = data[at : at + length]
        else:
            del data[at:]
    return bytes(data)


def one_line(read, argument):
    """Whether the file was read, or refused by one line; whatever else is raised comes out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of what they mend
        try:
            read(argument)
        except UserError as error:
            return "\n" not in str(error)
    return True


def _pictures():
    noise = Image.effect_noise((9, 7), 80)
    ramp = np.arange(63, dtype=np.uint16).reshape(7, 9) * 1000
    found = []
    for image, kind, options in (
        (noise, "PNG", {}), (noise.convert("RGBA"), "PNG", {}), (Image.fromarray(ramp), "PNG", {}),
        (noise.convert("P"), "GIF", {}), (noise, "JPEG", {}), (noise, "TIFF", {"compression": "tiff_lzw"}),
        (noise.convert("RGB"), "WEBP", {}), (noise, "BMP", {}), (noise, "PPM", {}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return found


PICTURES = _pictures()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a good file of each kind, by the name that it is read under."""
    folder = tmp_path_factory.mktemp("good")
    config = toy_config(folder)
    facts = DataFacts("gaussians", (2,), None, 0)
    weights = build_model(config, facts).state_dict()
    metadata = {"data": facts.to_json(), "step": "3"}
    model_files.save_model(folder / "m.safetensors", weights, dump_config(config), metadata)
    model = {**metadata, "config": dump_config(config)}
    images = np.zeros((4, 3, 3), np.uint8)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for i, picture in enumerate(PICTURES[:3]):
            file.writestr(f"{i % 2}/{i}.png", picture)
    return {
        "m.safetensors": (folder / "m.safetensors").read_bytes(),
        "x.ckpt": saved({"model": model, "weight_average": {"averages": [weights]}, "state_dict": weights}),
        "x.npz": npz(images=images, labels=np.arange(4)),
        "x.zip": archive.getvalue(),
        "metrics.jsonl": b'{"step": 0, "train/loss": 1.5}\n{"step": 1, "train/loss": "nan"}\n',
        "x.png": PICTURES[0],
    }


BY_NAME = {
    "m.safetensors": load, "x.ckpt": load, "x.npz": load_files, "x.zip": load_files, "metrics.jsonl": read_metrics,
    "x.png": SampleRecord.read,
}  # fmt: skip


@pytest.mark.parametrize("name", BY_NAME)
def test_random_bytes_and_mutated_files(tmp_path, good, name):
    @FUZZ
    @given(st.binary(max_size=200) | mutated(good[name]) | mutated(good[name]))
    def fuzz(data):
        (tmp_path / name).write_bytes(data)
        assert one_line(BY_NAME[name], tmp_path / name)

    (tmp_path / name).write_bytes(good[name])
    if name != "x.png":  # which carries no record
        BY_NAME[name](tmp_path / name)  # the good file is read
    fuzz()


@FUZZ
@given(data=st.data())
def test_mutated_pictures(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("pictures")
    picture = data.draw(st.sampled_from(PICTURES))
    (folder / "a.png").write_bytes(data.draw(mutated(picture)))
    for i in range(3):
        (folder / f"b{i}.png").write_bytes(PICTURES[0])
    assert one_line(lambda path: load_files(path, size=data.draw(st.sampled_from([None, 4]))), folder)


@settings(FUZZ, max_examples=25)
@given(st.data())
def test_mutated_configurations(data):
    text = dump_config(parse_config("", name="x"))
    text = data.draw(st.text(max_size=60) | mutated(text.encode()).map(lambda b: b.decode(errors="surrogateescape")))
    assert one_line(parse_config, text)


@FUZZ
@given(ANYTHING)
def test_whole_checkpoints_of_anything(tmp_path, content):
    torch.save(content, tmp_path / "x.ckpt")
    assert one_line(read_checkpoint, tmp_path / "x.ckpt")
    assert one_line(load, tmp_path / "x.ckpt")


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(["config", "data", "step"]),
        st.text(max_size=6) | ANYTHING.map(lambda v: json.dumps(v, default=str)),
    )
)
def test_whole_model_files_of_anything(tmp_path, metadata):
    """The checksum is right, as anybody can make it; what it covers is not."""
    tensor_files.write(tmp_path / "x.safetensors", {"a": torch.zeros(2)}, metadata)
    assert one_line(load, tmp_path / "x.safetensors")
