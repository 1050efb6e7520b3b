"""The readers that test_security.py leaves out: weights of measures, shards, pictures of a command line, records."""

import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from hostile_files import (
    ANYTHING,
    FORMATS,
    FUZZ,
    PICTURES,
    Hostile,
    mutated,
    one_line,
    png_of,
    refuses_a_pickle,
    saved,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusion.commands import records
from diffusion.commands.sample import control
from diffusion.commands.sample import record as sample_record
from diffusion.commands.sample.record import SampleRecord
from diffusion.config import load_config
from diffusion.data import load_images
from diffusion.data.files import image_files
from diffusion.data.files.image_files import load_files
from diffusion.errors import UserError
from diffusion.likelihood import Estimate
from diffusion.metrics import ClassifierFeatures, FeatureStatistics, load_inception
from diffusion.models import noisy_classifier
from diffusion.storage import run_status, tensor_files
from diffusion.training.logs.metrics import read_metrics

SHAPE = (1, 7, 9)


def edited(path):
    return control.read_image("edit", str(path), SHAPE)


READERS = {
    "classifier": ("x.safetensors", noisy_classifier.load),
    "features": ("x.safetensors", ClassifierFeatures.load),
    "statistics": ("x.safetensors", FeatureStatistics.load),
    "inception": ("x.pt", load_inception),
    "shards": ("x.tar", load_files),
    "picture of the command line": ("x.png", edited),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("reader", READERS)
def test_no_pickle_is_executed(tmp_path, reader, kind):
    refuses_a_pickle(tmp_path, *READERS[reader], kind)


def test_pickles_in_the_layout_of_cifar_are_not_executed(tmp_path):
    """The official files are pickles; none is opened whose checksum is not the official one."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps({"data": Hostile(tmp_path / "executed")}))
    for where in ({"root": tmp_path}, {"path": tmp_path}):
        with pytest.raises(UserError) as error:
            load_images("cifar10", download=False, **where)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_bombs_are_refused_by_their_size_wherever_a_picture_is_read(tmp_path, monkeypatch):
    bomb = png_of(60_000, 60_000)
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(UserError, match=r"more than .* pixels and is refused"):
        edited(tmp_path / "bomb.png")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w") as archive:
        archive.writestr("bomb.png", bomb)
    monkeypatch.setattr(image_files, "MEMBER_BYTES", 2**20)  # for speed; it is 2^28
    for name, content in (("bomb.tar", bomb), ("member.tar", bytes(2**20 + 1))):
        with tarfile.open(tmp_path / name, "w") as archive:
            member = tarfile.TarInfo("bomb.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    for name in ("bomb.zip", "bomb.tar", "member.tar"):
        with pytest.raises(UserError, match="refused") as error:
            load_files(tmp_path / name)
        assert "\n" not in str(error.value)


def _evaluation(folder):
    """A good record of an evaluation."""
    data = {"name": "digits", "split": "test", "images": 3, "shape": [1, 8, 8], "levels": 17, "sha256": "0"}
    protocol = records.Protocol(data, "0" * 64, "elbo", {"seed": 0})
    estimate = Estimate(
        log_prob=torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64), dims=64, levels=17,
        std_error=torch.full((3,), 0.1, dtype=torch.float64), kind="lower bound", protocol={"estimator": "x"},
        indices=torch.arange(3), nfe=4.0, seconds=1.0, error_budget={}, terms={},
    )  # fmt: skip
    records.write(folder, protocol, {"run": "x"}, estimate)
    (path,) = folder.glob("*.json")
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A good file of each kind: its name, its bytes, and its reader."""
    folder = tmp_path_factory.mktemp("good")
    noisy_classifier.save(folder / "c.safetensors", noisy_classifier.build((1, 4, 4), 2, base_channels=2), {"a": 1})
    ClassifierFeatures((1, 4, 4), 17, 2, "x", dims=4).save(folder / "f.safetensors", {"a": 1})
    FeatureStatistics.of(torch.randn(5, 3)).save(folder / "s.safetensors")
    with tarfile.open(folder / "x.tar", "w") as archive:
        for i, picture in enumerate(PICTURES[:3]):
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(picture)
            archive.addfile(member, io.BytesIO(picture))
    buffer = io.BytesIO()
    Image.fromarray(np.arange(63, dtype=np.uint8).reshape(7, 9)).save(buffer, "PNG")
    record = _evaluation(folder)
    found = {
        "classifier": ("c.safetensors", (folder / "c.safetensors").read_bytes(), noisy_classifier.load),
        "features": ("f.safetensors", (folder / "f.safetensors").read_bytes(), ClassifierFeatures.load),
        "statistics": ("s.safetensors", (folder / "s.safetensors").read_bytes(), FeatureStatistics.load),
        "inception": ("i.pt", saved({"a.weight": torch.zeros(3)}), load_inception),
        "shards": ("x.tar", (folder / "x.tar").read_bytes(), load_files),
        "picture": ("x.png", buffer.getvalue(), edited),
        "evaluation": (record.name, record.read_bytes(), records.read),
    }
    return {**found, "stop": (run_status.STOPPED, b'{"exit_code": 75, "step": 3}\n', _stop)}


def _stop(path):
    assert isinstance(run_status.exit_code(path.parent), int)


@pytest.mark.parametrize(
    "kind", ["classifier", "features", "statistics", "inception", "shards", "picture", "evaluation", "stop"]
)
def test_random_bytes_and_mutated_files(tmp_path, good, kind):
    name, content, read = good[kind]

    @FUZZ
    @given(st.binary(max_size=200) | mutated(content) | mutated(content))
    def fuzz(data):
        (tmp_path / name).write_bytes(data)
        assert one_line(read, tmp_path / name)

    (tmp_path / name).write_bytes(content)
    if kind != "inception":  # whose weights are too large to be made here
        read(tmp_path / name)
    fuzz()


METADATA = {"classifier": "noisy_classifier", "features": "classifier", "statistics": "provenance"}


@pytest.mark.parametrize("kind", METADATA)
def test_whole_files_that_say_anything(tmp_path, good, kind):
    """The checksum is right, as anybody can make it; what it covers is not."""
    name, content, read = good[kind]
    (tmp_path / name).write_bytes(content)
    tensors, metadata = tensor_files.read(tmp_path / name, "any", METADATA[kind])

    @FUZZ
    @given(
        st.sampled_from(sorted(metadata)),
        st.text(max_size=6) | ANYTHING.map(lambda value: json.dumps(value, default=str)) | mutated(b"x" * 3).map(str)
        | st.sampled_from(sorted(metadata.values())),
    )  # fmt: skip
    def fuzz(key, text):
        tensor_files.write(tmp_path / name, tensors, {**metadata, key: text})
        assert one_line(read, tmp_path / name)

    fuzz()


DEEP = "[" * 100_000
TEXTS = (
    "", "null", "[]", "0", DEEP, '{"exit_code": Infinity}', '{"exit_code": "9"}', '{"step": Infinity}',
    '{"step": 1e999}', '{"step": "' + "9" * 5000 + '"}', '{"protocol": []}', '{"batches": [[0, Infinity]]}',
    '{"batches": 3}',
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
def test_json_that_is_other_than_expected(tmp_path, good, text):
    """Deep nesting, numbers that no integer holds, other types."""
    for name, read in ((run_status.STOPPED, _stop), ("ode-0.json", records.read), ("metrics.jsonl", read_metrics)):
        (tmp_path / name).write_text(text + "\n")
        assert one_line(read, tmp_path / name)
    entries = PngInfo()
    entries.add_text(sample_record.KEY, text)
    Image.new("L", (2, 2)).save(tmp_path / "x.png", pnginfo=entries)
    assert one_line(SampleRecord.read, tmp_path / "x.png")
    for kind, key in METADATA.items():
        name, content, read = good[kind]
        (tmp_path / name).write_bytes(content)
        tensors, metadata = tensor_files.read(tmp_path / name, "any", key)
        tensor_files.write(tmp_path / name, tensors, {**metadata, key: text})
        assert one_line(read, tmp_path / name)


KEYS = ("seed", "name", "runs", "data.name", "data.path", "data.size", "trainer", "trainer.steps", "optimizer.betas")


@FUZZ
@given(
    st.lists(
        st.text(max_size=12)
        | st.tuples(st.sampled_from(KEYS), st.text(max_size=8)).map("=".join)
        | st.tuples(st.sampled_from(KEYS), ANYTHING.map(lambda v: json.dumps(v, default=str))).map("=".join),
        max_size=3,
    )
)
def test_overrides_of_anything(overrides):
    assert one_line(lambda given_: load_config("digits", given_), overrides)
