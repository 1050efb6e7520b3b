"""Run folders are never shared or overwritten; model files that changed by one bit are refused."""

import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from diffusion.errors import UserError
from diffusion.storage import runs, tensor_files


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    torch.manual_seed(0)
    tensors = {
        "weight": torch.randn(3, 4),
        "half": torch.randn(5).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "transposed": torch.randn(3, 2).T,
    }
    tensor_files.save_model(path, tensors, "name: tïny\nseed: 3\n", {"step": "12"})
    return path, tensors


def test_runs_are_numbered_and_never_taken_twice(tmp_path):
    first, second = runs.create_run(tmp_path, "digits"), runs.create_run(tmp_path, "digits")
    assert [first.name, second.name] == ["digits-0001", "digits-0002"]
    assert runs.create_run(tmp_path, "digits-0001").name == "digits-0001-0001"
    assert (first / "checkpoints").is_dir()
    (tmp_path / "digits-0009").mkdir()
    assert runs.create_run(tmp_path, "digits").name == "digits-0010"


def test_runs_started_at_once_get_different_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: runs.create_run(tmp_path, "race"), range(40)))
    assert len(set(made)) == 40


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "-x", "a\nb"])
def test_names_that_are_no_file_names_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="name"):
        runs.create_run(tmp_path, name)


def test_the_newest_run_is_the_one_whose_weights_are_newest(tmp_path):
    assert runs.newest_run(tmp_path) is None
    assert runs.newest_run(tmp_path / "absent") is None
    old, new, unfinished = (runs.create_run(tmp_path, name) for name in ("zebra", "ant", "bee"))
    for age, run in ((100, old), (50, new)):
        (run / runs.MODEL).write_bytes(b"")
        os.utime(run / runs.MODEL, (1e9 - age, 1e9 - age))
    assert runs.newest_run(tmp_path) == new
    (unfinished / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert runs.newest_run(tmp_path, "checkpoints/last.ckpt") == unfinished


def test_a_model_is_read_back_as_it_was(model):
    path, tensors = model
    read, metadata = tensor_files.read_model(path)
    assert metadata == {"config": "name: tïny\nseed: 3\n", "step": "12"}
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_the_same_model_is_the_same_file(tmp_path, model):
    """To the byte, whatever the order of the entries: models are known by the SHA-256 of their file."""
    path, tensors = model
    entries = {f"entry {i}": "ü" * i for i in range(8)}
    for name, order in (("a", 1), ("b", -1)):
        tensor_files.save_model(tmp_path / name, tensors, "seed: 3\n", dict(list(entries.items())[::order]))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert tensor_files.read_model(tmp_path / "a")[1] == {"config": "seed: 3\n", **entries}
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0, "tensors begin at a multiple of 8 bytes"


def test_eight_bits_a_weight(tmp_path):
    path = tmp_path / "m.safetensors"
    weights = {"a": torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0)), "b": torch.randn(3)}
    weights["a"][2] = 0.0
    tensor_files.save_model(path, tensor_files.in_eight_bits(weights), "")
    read = tensor_files.read_model(path)[0]
    assert read.keys() == weights.keys()
    assert torch.equal(read["b"], weights["b"])
    assert torch.equal(read["a"][2], weights["a"][2]), "a row of zeros has no scale"
    error = (read["a"] - weights["a"]).flatten(1).abs()
    assert bool((error <= weights["a"].flatten(1).abs().amax(1, keepdim=True) / 254 * 1.0001).all())
    assert float(error.amax()) > 0
    tensor_files.save_model(path, {"a": torch.zeros(3, 2, dtype=torch.int8), "a/scale": torch.ones(2)}, "")
    with pytest.raises(UserError, match="the scale of 'a'"):
        tensor_files.read_model(path)


def test_tied_weights_are_written(tmp_path):
    shared = torch.arange(3.0)
    tensor_files.save_model(tmp_path / "m.safetensors", {"a": shared, "b": shared}, "")
    assert torch.equal(tensor_files.read_model(tmp_path / "m.safetensors")[0]["b"], shared)


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(UserError, match="'w' is not finite"):
        tensor_files.save_model(tmp_path / "m.safetensors", {"w": torch.tensor([1.0, float("nan")])}, "")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("flips", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_caught(model, flips):
    path, _ = model
    good = path.read_bytes()
    draw = random.Random(0)
    for _ in range(flips):
        position, bit = draw.randrange(len(good)), draw.randrange(8)
        bad = bytearray(good)
        bad[position] ^= 1 << bit
        path.write_bytes(bytes(bad))
        with pytest.raises(UserError, match=r"model\.safetensors"):
            tensor_files.read_model(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_model_is_caught(model, share):
    path, _ = model
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match="cut short or corrupt"):
        tensor_files.read_model(path)


def test_foreign_safetensors_and_missing_files_are_explained(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="no configuration"):
        tensor_files.read_model(tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="no such model file"):
        tensor_files.read_model(tmp_path / "absent.safetensors")


def test_models_are_found_by_folder_by_file_and_by_name(tmp_path):
    run = runs.create_run(tmp_path, "digits")
    file = run / runs.MODEL
    file.write_bytes(b"")
    for meant in (run, str(run), file):
        assert runs.resolve_model(meant) == file
    assert runs.resolve_model("digits-0001", runs_dir=tmp_path) == file


def test_pretrained_models_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "PRETRAINED", tmp_path)
    (tmp_path / "digits.safetensors").write_bytes(b"")
    assert runs.resolve_model("pretrained:digits") == tmp_path / "digits.safetensors"
    with pytest.raises(UserError, match=r"accepted: pretrained:digits\. Did you mean 'pretrained:digits'\?"):
        runs.resolve_model("pretrained:digit")


def test_what_is_no_model_is_explained(tmp_path):
    finished, unfinished = runs.create_run(tmp_path, "digits"), runs.create_run(tmp_path, "mnist")
    (finished / runs.MODEL).write_bytes(b"")
    (finished / "checkpoints" / "last.ckpt").write_bytes(b"")
    (unfinished / runs.CONFIG).write_text("")
    with pytest.raises(UserError, match=r"Did you mean 'digits-0001'"):
        runs.resolve_model(tmp_path / "digits-001")
    with pytest.raises(UserError, match=r"Did you mean 'digits-0001'"):
        runs.resolve_model("digits-01", runs_dir=tmp_path)
    with pytest.raises(UserError, match=r"Did you mean 'mnist-0001'"):  # which has no model yet
        runs.resolve_model(tmp_path / "mnist")
    with pytest.raises(UserError, match="has not reached"):
        runs.resolve_model(unfinished)
    with pytest.raises(UserError, match=r"newest in it is .*digits-0001"):
        runs.resolve_model(tmp_path)
    with pytest.raises(UserError, match=r"The model of that run is .*digits-0001.model\.safetensors"):
        runs.resolve_model(finished / "checkpoints" / "last.ckpt")
