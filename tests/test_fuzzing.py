"""Random bytes and mutated good files: whatever is in them, nothing but a `UserError` of one line comes out."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from hostile_files import ANYTHING, FUZZ, PICTURES, mutated, npz, one_line, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_configs import toy_config

from diffusion import load
from diffusion.commands.sample.record import SampleRecord
from diffusion.config import dump_config, parse_config
from diffusion.data.files.image_files import load_files
from diffusion.models.build import DataFacts, build_model
from diffusion.storage import tensor_files
from diffusion.storage import tensor_files as model_files
from diffusion.storage.checkpoint_files import read_checkpoint
from diffusion.training.logs.metrics import read_metrics


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
