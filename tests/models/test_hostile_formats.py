"""Folders and files of known formats that anybody may have made: each is read, or refused in one line."""

import json
import shutil
import sys

import pytest
import torch
from hostile_files import ANYTHING, FORMATS, FUZZ, mutated, one_line, refuses_a_pickle
from hypothesis import given
from hypothesis import strategies as st

import diffusion
from diffusion.commands.dispatch import main
from diffusion.errors import UserError, way_to_install
from diffusion.models.formats.diffusers_unet import to_theirs
from diffusion.networks import UNet
from diffusion.storage import tensor_files

UNET = {
    "_class_name": "UNet2DModel", "act_fn": "silu", "attention_head_dim": None, "block_out_channels": [8],
    "center_input_sample": False, "down_block_types": ["DownBlock2D"], "downsample_padding": 0, "dropout": 0.0,
    "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 1, "layers_per_block": 1, "mid_block_scale_factor": 1,
    "norm_eps": 1e-6, "norm_num_groups": 4, "out_channels": 1, "sample_size": 4, "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D"],
}  # fmt: skip
SCHEDULER = {
    "_class_name": "DDPMScheduler", "beta_end": 0.3, "beta_schedule": "linear", "beta_start": 0.001,
    "clip_sample": True, "num_train_timesteps": 10, "prediction_type": "epsilon", "timestep_spacing": "leading",
}  # fmt: skip
FILES = {"unet/config.json": UNET, "scheduler/scheduler_config.json": SCHEDULER}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A pipeline as diffusers saves one, made without it."""
    folder = tmp_path_factory.mktemp("good")
    network = UNet(1, 8, [1], 1, [], 0.0, 0, 4, noise_embedding="index-endpoint", norm_groups=4, pad_end=True)
    for name, values in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    tensor_files.write(folder / WEIGHTS, to_theirs(network.state_dict()), {"format": "pt"})
    (folder / "model_index.json").write_text("{}")
    assert diffusion.load(folder).known.network == "unet"
    return folder


@pytest.fixture
def copied(good, tmp_path):
    """A copy of it."""
    return shutil.copytree(good, tmp_path / "copy")


def put(folder, name, key, *value):
    """Give a key of a JSON file another value, or none at all."""
    values = {k: v for k, v in FILES[name].items() if k != key}
    (folder / name).write_text(json.dumps(values | ({key: value[0]} if value else {}), default=repr))


@pytest.mark.parametrize("kind", FORMATS)
def test_no_pickle_is_executed(copied, kind):
    (copied / WEIGHTS).unlink()
    refuses_a_pickle(copied / "unet", "diffusion_pytorch_model.bin", lambda path: diffusion.load(path.parents[1]), kind)


WRONG = [
    ("unet/config.json", "_class_name", "UNet2DConditionModel"),
    ("unet/config.json", "block_out_channels", "8"),
    ("unet/config.json", "block_out_channels", [8] * 100),
    ("unet/config.json", "layers_per_block", 10**9),
    ("unet/config.json", "norm_num_groups", 0),
    ("unet/config.json", "norm_eps", float("nan")),
    ("unet/config.json", "sample_size", None),
    ("unet/config.json", "in_channels", True),
    ("scheduler/scheduler_config.json", "_class_name", "CMStochasticIterativeScheduler"),
    ("scheduler/scheduler_config.json", "beta_schedule", "lineal"),
    ("scheduler/scheduler_config.json", "beta_end", 3.0),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 1e3),
    ("scheduler/scheduler_config.json", "prediction_type", "eps"),
    ("scheduler/scheduler_config.json", "timestep_spacing", ["leading"]),
    ("scheduler/scheduler_config.json", "clip_sample", "yes"),
    ("scheduler/scheduler_config.json", "trained_betas", {"0": 1}),
]


@pytest.mark.parametrize(("name", "key", "value"), WRONG, ids=lambda value: str(value)[:20])
def test_a_wrong_field_is_named_with_its_file(copied, name, key, value):
    put(copied, name, key, value)
    with pytest.raises(UserError) as error:
        diffusion.load(copied)
    assert f"{copied / name}: {key}: found" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [("unet/config.json", key) for key in ("_class_name", "sample_size", "in_channels")]
    + [("scheduler/scheduler_config.json", key) for key in ("_class_name", "beta_start", "num_train_timesteps")],
)
def test_a_missing_field_is_named_with_its_file(copied, name, key):
    put(copied, name, key)
    with pytest.raises(UserError) as error:
        diffusion.load(copied)
    assert f"{copied / name}: {key}: found nothing" in str(error.value)


def test_without_the_library_a_line_says_what_to_install(copied, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    put(copied, "unet/config.json", "resnet_time_scale_shift", "scale_shift")  # no network of ours
    with pytest.raises(UserError) as error:
        diffusion.load(copied)
    assert str(error.value).startswith(f"{copied}: UNet2DModel: ")
    assert str(error.value).endswith(f"not installed; {way_to_install('diffusers')}")


def test_missing_files_and_weights_are_named(copied):
    tensors, _ = tensor_files.read(copied / WEIGHTS, "any", "format")
    name = "mid_block.resnets.0.conv1.weight"
    for changed in ({**tensors, name: torch.zeros(2)}, {k: v for k, v in tensors.items() if k != name}):
        tensor_files.write(copied / WEIGHTS, changed, {})
        with pytest.raises(UserError, match=r"middle_1\.residual\.conv_1\.weight"):
            diffusion.load(copied)
    for missing in (WEIGHTS, "scheduler/scheduler_config.json", "unet/config.json"):
        (copied / missing).unlink()
        with pytest.raises(UserError) as error:
            diffusion.load(copied)
        assert str(copied / missing.partition("/")[0]) in str(error.value)


@pytest.mark.parametrize("name", FILES)
def test_files_of_random_bytes(copied, name):
    @FUZZ
    @given(st.binary(max_size=50) | mutated(json.dumps(FILES[name]).encode()))
    def fuzz(data):
        (copied / name).write_bytes(data)
        assert one_line(diffusion.load, copied)

    fuzz()


@pytest.mark.parametrize("name", FILES)
def test_fields_of_anything(copied, name):
    @FUZZ
    @given(st.sampled_from(sorted(FILES[name])), ANYTHING | st.integers(-(2**70), 2**70))
    def fuzz(key, value):
        put(copied, name, key, value)
        assert one_line(diffusion.load, copied)

    fuzz()


def test_a_converted_file_that_says_anything(good, tmp_path):
    """The checksum is right, as anybody can make it; what it covers is not."""
    path = tmp_path / "x.safetensors"
    assert main(["convert", str(good), str(path)]) == 0
    tensors, metadata = tensor_files.read_model(path)
    known = json.loads(metadata["known"])
    keys = [(part, key) for part in ("options", "conventions", "sampling") for key in known[part]]

    @FUZZ
    @given(st.sampled_from([*keys, ("network", None), ("options", "x")]), ANYTHING | st.integers(-(2**70), 2**70))
    def fuzz(where, value):
        part, key = where
        changed = value if key is None else {**known[part], key: value}
        text = json.dumps({**known, part: changed}, default=repr)
        tensor_files.write(path, tensors, {**metadata, "known": text})
        assert one_line(diffusion.load, path)

    fuzz()
