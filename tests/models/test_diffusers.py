"""Pipelines that the library diffusers itself made and saved, with random weights, against our reading of them."""

import json
import warnings

import pytest
import torch
from diffusers_pipelines import ATTENTION, PLAIN, network_of, save  # first: without diffusers all is skipped
from made_runs import make_run
from tiny_configs import DIGITS as TINY

import diffusion
from diffusion.commands.dispatch import main
from diffusion.config import load_config
from diffusion.data import normalizer as normalizers
from diffusion.denoisers.network_call import output_tensor
from diffusion.errors import UserError
from diffusion.models.build import DataFacts
from diffusion.models.formats import diffusers_export, diffusers_unet
from diffusion.models.formats.fields import Fields
from diffusion.networks import UNet
from diffusion.schedules import time_grid

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import (
        DDIMScheduler,
        DDPMPipeline,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        ScoreSdeVeScheduler,
        UNet2DModel,
    )

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
# Their network for CIFAR-10 (google/ddpm-cifar10-32), narrow: as it is in every field but the widths.
CIFAR10 = {
    "sample_size": 16, "block_out_channels": (32, 64, 64), "attention_head_dim": None, "norm_eps": 1e-6,
    "down_block_types": (PLAIN, ATTENTION, PLAIN), "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
}  # fmt: skip
DIT = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 3, "out_channels": 6, "num_layers": 2,
    "sample_size": 8, "num_embeds_ada_norm": 3,
}  # fmt: skip
# Each configuration, its scheduler, and the network of ours that is the same function.
CASES = {
    "cifar10": (CIFAR10, DDPMScheduler(), "unet"),
    "defaults": ({"sample_size": 16, "block_out_channels": (32, 64, 96, 128)}, DDIMScheduler(), "unet"),
    "grey, two sides": (
        {"sample_size": [8, 16], "in_channels": 1, "out_channels": 1, "block_out_channels": (32, 64),
         "layers_per_block": 1, "down_block_types": (PLAIN, PLAIN), "norm_num_groups": 8},
        DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
        "unet",
    ),
    "classes": (
        {"sample_size": 8, "block_out_channels": (32, 32), "down_block_types": (ATTENTION, ATTENTION),
         "num_class_embeds": 3},
        DDIMScheduler(beta_schedule="scaled_linear", prediction_type="sample", clip_sample=False),
        "unet",
    ),
    "no signal at the end": (
        {"sample_size": 8, "block_out_channels": (32,), "down_block_types": (PLAIN,)},
        DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"),
        "unet",
    ),
    "learned variance": (
        {"sample_size": 8, "block_out_channels": (32, 64), "down_block_types": (PLAIN, PLAIN), "out_channels": 6},
        DDPMScheduler(variance_type="learned_range", beta_schedule="sigmoid"),
        "unet",
    ),
    "scale and shift": (
        {"sample_size": 8, "block_out_channels": (32, 64), "down_block_types": (PLAIN, ATTENTION),
         "resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"},
        DPMSolverMultistepScheduler(),
        "diffusers",
    ),
    "a table of levels": (
        {"sample_size": 8, "block_out_channels": (32,), "down_block_types": (PLAIN,),
         "time_embedding_type": "learned", "num_train_timesteps": 100},
        DDIMScheduler(num_train_timesteps=100, trained_betas=[0.001 * i for i in range(1, 101)]),
        "diffusers",
    ),
    "transformer": (DIT, DDIMScheduler(clip_sample=False), "dit"),
    "transformer, an embedding a block": ({**DIT, "patch_size": 4}, DDIMScheduler(clip_sample=False), "diffusers"),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def saved(request, tmp_path_factory):
    """The name of a case, its network, and the folder it is in."""
    folder = tmp_path_factory.mktemp("pipeline")
    options, scheduler, _ = CASES[request.param]
    network = network_of(options)
    save(folder, network, scheduler, safe_serialization=request.param != "classes")
    return request.param, network, folder


def batch_of(model):
    """Noisy data, indices and labels for a model."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, *model.denoiser.shape, generator=generator)
    labels = torch.tensor([0, 2, 1]) if model.denoiser.num_classes else None
    return x, torch.tensor([0, 7, 99]), labels


def told(model, index):
    """Indices as the network is told them."""
    return index if model.adopted.convention.time == "index-rounded" else index.float()


def test_the_network_is_theirs(saved):
    name, network, folder = saved
    model = diffusion.load(folder)
    assert model.known.network == CASES[name][2]
    x, index, labels = batch_of(model)
    with torch.no_grad():
        theirs = network(x, index, class_labels=labels).sample
        ours = output_tensor(model.adopted.network(x, told(model, index), labels))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_path_is_theirs(saved):
    name, _, folder = saved
    schedule = diffusion.load(folder).adopted.convention.path.schedule
    times = torch.arange(1, schedule.steps + 1).double() / schedule.steps
    table = CASES[name][1].alphas_cumprod.double()  # summed up in float32
    torch.testing.assert_close(schedule.log_snr(times).sigmoid(), table, rtol=1e-4, atol=1e-6)


def test_draws_are_those_of_their_own_ddim(saved):
    name, network, folder = saved
    model = diffusion.load(folder)
    steps = 10
    scheduler = CASES[name][1]
    table = {"trained_betas": scheduler.betas.tolist(), "beta_schedule": "linear"}
    theirs = DDIMScheduler.from_config(scheduler.config, clip_sample=model.clip is not None, **table)
    theirs.set_timesteps(steps)
    noise, _, labels = batch_of(model)
    x = noise
    with torch.no_grad():
        for index in theirs.timesteps:
            output = network(x, index.expand(3), class_labels=labels).sample[:, : x.shape[1]]
            x = theirs.step(output, index, x, use_clipped_model_output=True).prev_sample
    grid = torch.tensor([*(theirs.timesteps + 1), 0]).double() / theirs.config.num_train_timesteps
    if name != "scale and shift":  # whose scheduler is not one that we draw as
        named = model.config.sampling.grid
        torch.testing.assert_close(time_grid(model.denoiser.schedule, steps, named), grid, rtol=0, atol=1e-12)
    scale = model.adopted.convention.units[0]  # their 255 is at 1, ours at 1 - 1 / 256
    with model.counted() as counter:
        ours = diffusion.sample(model.drawn_with, 3, "ddim", grid=grid, noise=noise / scale, label=labels)
    assert counter.rows == 3 * steps, "as many evaluations as theirs"
    torch.testing.assert_close(scale * ours, x, rtol=1e-4, atol=1e-4)


def test_a_network_of_score_sde(tmp_path):
    """VE with data in [0, 1]: the network, one of theirs, is told sigma and answers the score."""
    options = {
        "sample_size": 8, "block_out_channels": (32, 32), "norm_num_groups": 8, "time_embedding_type": "fourier",
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    }  # fmt: skip
    network = network_of(options)
    save(tmp_path, network, ScoreSdeVeScheduler(sigma_min=0.02, sigma_max=50.0))
    model = diffusion.load(tmp_path)
    x, t = torch.rand(2, 3, 8, 8), torch.tensor([0.3, 0.8])
    sigma = 0.02 * (50.0 / 0.02) ** t
    y_t = x + sigma.reshape(-1, 1, 1, 1) * torch.randn_like(x)
    with torch.no_grad():
        x_hat = y_t + sigma.square().reshape(-1, 1, 1, 1) * network(y_t, sigma).sample
        scale, middle = model.adopted.convention.units
        ours = model.denoiser((y_t - middle) / scale, t)
    torch.testing.assert_close(scale * ours + middle, x_hat, rtol=1e-4, atol=1e-4)


def test_convert_makes_it_a_file_of_ours(saved, tmp_path):
    _, _, folder = saved
    model = diffusion.load(folder)
    assert main(["convert", str(folder), str(tmp_path / "x.safetensors")]) == 0
    again = diffusion.load(tmp_path / "x.safetensors")
    x, index, labels = batch_of(model)
    with torch.no_grad():
        assert torch.equal(*(output_tensor(one.adopted.network(x, told(one, index), labels)) for one in (model, again)))
    assert again.weights == model.weights
    assert again.facts == model.facts
    assert model.facts.name == folder.name
    assert again.config == model.config


def test_a_pipeline_is_written_back(saved, tmp_path):
    """Exported and read again, a pipeline is the same function; theirs loads it, too."""
    name, network, folder = saved
    model = diffusion.load(folder)
    if name.startswith("transformer"):
        with pytest.raises(UserError, match="cannot express"):
            diffusers_export.write(model, tmp_path / "x")
        return
    diffusers_export.write(model, tmp_path / "x")
    x, index, labels = batch_of(model)
    back, again = DDPMPipeline.from_pretrained(tmp_path / "x"), diffusion.load(tmp_path / "x")
    with torch.no_grad():
        theirs = network(x, index, class_labels=labels).sample
        for one in (back.unet(x, index, labels).sample, again.adopted.network(x, told(again, index), labels)):
            torch.testing.assert_close(output_tensor(one), theirs, rtol=1e-5, atol=1e-5)
    table = CASES[name][1].alphas_cumprod
    torch.testing.assert_close(back.scheduler.alphas_cumprod, table, rtol=1e-4, atol=1e-6)
    assert again.clip == model.clip


OWN = {
    "ours": ("schedule.name=cosine", "denoiser.prediction=v"),
    "ddpm": ("schedule.name=ddpm", "schedule.steps=200", "denoiser.prediction=eps", "network.noise_embedding=fourier"),
    "edm": ("schedule.name=edm", "denoiser.prediction=edm", "network.head_channels=32"),
    "flow, x": ("schedule.name=rectified", "denoiser.prediction=x", "network.attention_scale=entropy_invariant"),
}
UNET = ("network.multipliers=[1]", "network.blocks=1", "network.attention=[8]", "network.fourier_features=[]")
WIDE = ("network.base_channels=128", *UNET)  # from there on, all norms have as many groups


@pytest.mark.parametrize("case", OWN)
def test_a_model_of_ours_draws_the_same_images_in_their_pipeline(tmp_path, case):
    run = make_run(tmp_path, load_config("digits", (*TINY[:2], "name=x", *WIDE, *OWN[case])))
    assert main(["export", str(run), str(tmp_path / "out"), "--to", "diffusers"]) == 0
    pipeline, model = DDPMPipeline.from_pretrained(tmp_path / "out"), diffusion.load(run)
    pipeline.set_progress_bar_config(disable=True)
    times = diffusers_export.levels_of(model.denoiser.schedule)
    steps, count = 10, len(times)
    drawn = pipeline(
        2, torch.Generator().manual_seed(3), steps, output_type="np", return_dict=False
    )[0]  # fmt: skip
    grid = torch.cat((times.flip(0)[:: count // steps], torch.zeros(1)))
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    std = torch.hypot(*model.denoiser.schedule(grid[0]))
    ours = diffusion.sample(model.denoiser, 2, "ddim", grid=grid, noise=noise * std.float())
    theirs = 2.0 * torch.from_numpy(drawn).permute(0, 3, 1, 2) - 1.0
    torch.testing.assert_close(ours.clamp(-1, 1), theirs, rtol=1e-4, atol=2e-4)
    again = diffusion.load(tmp_path / "out")  # through their library, as a table of levels is not ours
    x, levels = torch.randn(2, 1, 8, 8), torch.tensor([count // 4, count - 1])
    alpha, sigma = model.denoiser.schedule(times[levels])
    label = torch.full((2,), model.denoiser.num_classes) if model.denoiser.num_classes else None
    ratio = torch.hypot(alpha, sigma).float().reshape(-1, 1, 1, 1)
    scale = again.adopted.convention.units[0]
    with torch.no_grad():
        x_hat = model.denoiser(ratio * x, times[levels], label)
        theirs = scale * again.denoiser(x / scale, (levels + 1.0).double() / count, label)
    torch.testing.assert_close(theirs, x_hat, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (("network.patch_size=2", "network.attention=[]"), "patch_size 2"),
        (("network.base_channels=16",), "normalisations of [4, 8] groups"),
        (("network.multipliers=[1,1,1,1,1]", "network.attention=[]"), "pads images"),
        (("denoiser.prediction=velocity",), "predicts 'velocity'"),
        (("schedule.name=rectified", "denoiser.prediction=v"), "predicts 'v' on the path 'rectified'"),
        (("denoiser.sigma_data=0.5",), "sigma_data 0.5"),
    ],
)
def test_what_they_cannot_express_is_refused_in_one_line(tmp_path, overrides, found):
    run = make_run(tmp_path, load_config("digits", (*TINY[:2], "name=x", *UNET, *overrides)))
    with pytest.raises(UserError, match="cannot express") as error:
        diffusers_export.write(diffusion.load(run), tmp_path / "out")
    assert found in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("normalize", [None, "standard"])
def test_a_model_of_real_numbers_is_no_pipeline_of_images(tmp_path, normalize):
    """Theirs has no place for the mean and the standard deviation, and clips what it draws."""
    rows = torch.randn(20, 1, 8, 8) * 3.0 + 7.0
    made = None if normalize is None else normalizers.fit(normalize, lambda: [rows], (1, 8, 8))
    facts = DataFacts("array", (1, 8, 8), None, 0, normalizer=made)
    settings = ("data.name=array", "data.path=x.npy", f"data.normalize={normalize or 'none'}")
    run = make_run(tmp_path, load_config("digits", (*TINY[:2], "name=x", *WIDE, *settings)), facts)
    with pytest.raises(UserError, match=r"draws real numbers \('array'\).*cannot express"):
        diffusers_export.write(diffusion.load(run), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_of_their_cifar10_is_ours_weight_by_weight():
    """google/ddpm-cifar10-32, of which every field is known: as many parameters in both."""
    options = {**CIFAR10, "sample_size": 32, "block_out_channels": [128, 256, 256, 256], "down_block_types": [
        PLAIN, ATTENTION, PLAIN, PLAIN]}  # fmt: skip
    with torch.device("meta"):
        up = [kind.replace("Down", "Up") for kind in reversed(options["down_block_types"])]
        theirs = UNet2DModel(**options, up_block_types=up)
        fields = Fields.__new__(Fields)
        fields.values, fields.path = json.loads(theirs.to_json_string()), "config.json"
        ours = UNet(**diffusers_unet.options_of(fields))
    counts = {sum(one.numel() for one in network.parameters()) for network in (theirs, ours)}
    assert counts == {35_746_307}
