"""How the files of a pipeline lie: in folders, all in one as those of google/ddpm-*, weights in several files."""

import json
import shutil

import pytest
import torch
from diffusers_pipelines import DDPMScheduler, network_of, save

import diffusion
from diffusion.errors import UserError
from diffusion.storage import runs

SMALL = {
    "sample_size": 4, "in_channels": 1, "out_channels": 1, "block_out_channels": (8,), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D",), "norm_num_groups": 4, "attention_head_dim": 8,
}  # fmt: skip
INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    """A pipeline whose weights are in several files."""
    save(tmp_path / "x", network_of(SMALL), DDPMScheduler(num_train_timesteps=20), max_shard_size="4KB")
    assert len(list((tmp_path / "x" / "unet").glob("*.safetensors"))) > 2
    return tmp_path / "x"


def in_one(folder):
    """The same, without folders in it."""
    for part in ("unet", "scheduler"):
        for path in (folder / part).iterdir():
            path.rename(folder / path.name)
        (folder / part).rmdir()
    return folder


@pytest.mark.parametrize("index", [True, False])
def test_weights_in_several_files_and_parts_in_one_folder(folder, index):
    x, level = torch.randn(2, 1, 4, 4), torch.tensor([3, 17])
    theirs = network_of(SMALL)
    with torch.no_grad():
        for place in (folder, in_one(folder)):
            if not index:
                (folder / "model_index.json").unlink(missing_ok=True)
            model = diffusion.load(place)
            found = model.adopted.network(x, level.float(), None)
            torch.testing.assert_close(found, theirs(x, level).sample, rtol=1e-5, atol=1e-5)
            assert model.adopted.convention.path.schedule.steps == 20


@pytest.mark.parametrize(
    ("places", "told"),
    [
        ({}, "weight_map: found {}; needs the name of a file next to it for every weight"),
        ({"conv_in.weight": "../x/unet/a.safetensors"}, "weight_map: found"),
        ({"conv_in.weight": 3}, "weight_map: found"),
        ({"conv_in.weight": "a.safetensors"}, "a.safetensors: there is no such file of weights"),
    ],
)
def test_an_index_of_files_that_is_refused(folder, places, told):
    (folder / "unet" / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError) as error:
        diffusion.load(folder)
    assert told in str(error.value)


def test_a_weight_that_is_in_none_of_the_files_is_named(folder):
    values = json.loads((folder / "unet" / INDEX).read_text())
    values["weight_map"]["conv_in.gain"] = next(iter(values["weight_map"].values()))
    (folder / "unet" / INDEX).write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"weight 'conv_in\.gain' is in none of its files"):
        diffusion.load(folder)


def test_a_network_without_its_scheduler_and_weights_of_another_kind_are_told(folder):
    alone = shutil.copytree(folder / "unet", folder.parent / "alone")
    (alone / INDEX).rename(alone / "diffusion_pytorch_model.bin")
    assert runs.of_another_project(alone)
    with pytest.raises(UserError, match=r"alone/scheduler_config\.json: there is no such file"):
        diffusion.load(alone)
    (folder / "unet" / INDEX).unlink()
    with pytest.raises(
        UserError, match=r"holds no weights; found diffusion_pytorch_model-00001.*; accepted: diffusion_"
    ):
        diffusion.load(folder)
