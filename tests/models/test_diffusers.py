"""Pipelines that the library diffusers itself made and saved, with random weights, against our reading of them."""

import warnings

import pytest
import torch

import diffusion

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers", reason="an optional extra")
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
PLAIN, ATTENTION = "DownBlock2D", "AttnDownBlock2D"
# Their network for CIFAR-10 (google/ddpm-cifar10-32), narrow: as it is in every field but the widths.
CIFAR10 = {
    "sample_size": 16, "block_out_channels": (32, 64, 64), "attention_head_dim": None, "norm_eps": 1e-6,
    "down_block_types": (PLAIN, ATTENTION, PLAIN), "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
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
}  # fmt: skip


def pipeline_of(name, seed=0):
    """A pipeline with random weights, in evaluation mode."""
    options, scheduler, _ = CASES[name]
    torch.manual_seed(seed)
    down = options.get("down_block_types")
    up = {} if down is None else {"up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)]}
    unet = UNet2DModel(**{**options, **up}).eval()
    for parameter in unet.parameters():  # norms and biases, too
        parameter.data += 0.02 * torch.randn_like(parameter)
    kind = DDIMPipeline if isinstance(scheduler, DDIMScheduler) else DDPMPipeline
    return kind(unet, scheduler)


@pytest.fixture(scope="module", params=CASES)
def saved(request, tmp_path_factory):
    """The name of a case, its pipeline, and the folder it is in."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline = pipeline_of(request.param)
    pipeline.save_pretrained(folder, safe_serialization=request.param != "classes")
    return request.param, pipeline, folder


def batch_of(model):
    """Noisy data, indices and labels for a model."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, *model.denoiser.shape, generator=generator)
    labels = torch.tensor([0, 2, 1]) if model.denoiser.num_classes else None
    return x, torch.tensor([0, 7, 99]), labels


def test_the_network_is_theirs(saved):
    name, pipeline, folder = saved
    model = diffusion.load(folder)
    assert model.known.network == CASES[name][2]
    x, index, labels = batch_of(model)
    with torch.no_grad():
        theirs = pipeline.unet(x, index, labels).sample
        ours = model.adopted.network(x, index.float(), labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_path_is_theirs(saved):
    _, pipeline, folder = saved
    schedule = diffusion.load(folder).adopted.convention.path.schedule
    times = torch.arange(1, schedule.steps + 1).double() / schedule.steps
    table = pipeline.scheduler.alphas_cumprod.double()
    torch.testing.assert_close(schedule.log_snr(times), table.logit(), rtol=2e-3, atol=2e-3)


def test_draws_are_those_of_their_own_ddim(saved):
    _, pipeline, folder = saved
    model = diffusion.load(folder)
    steps = 10
    theirs = DDIMScheduler.from_config(pipeline.scheduler.config)
    theirs.set_timesteps(steps)
    noise, _, labels = batch_of(model)
    x = noise
    with torch.no_grad():
        for index in theirs.timesteps:
            output = pipeline.unet(x, index, labels).sample
            x = theirs.step(output, index, x, use_clipped_model_output=True).prev_sample
    grid = model.config.sampling.grid
    scale = model.adopted.convention.units[0]  # their 255 is at 1, ours at 1 - 1 / 256
    ours = diffusion.sample(model.drawn_with, 3, "ddim", steps=steps, grid=grid, noise=noise / scale, label=labels)
    torch.testing.assert_close(scale * ours, x, rtol=1e-4, atol=1e-4)


def test_convert_makes_it_a_file_of_ours(saved, tmp_path):
    from diffusion.commands.dispatch import main

    _, _, folder = saved
    model = diffusion.load(folder)
    assert main(["convert", str(folder), str(tmp_path / "x.safetensors")]) == 0
    again = diffusion.load(tmp_path / "x.safetensors")
    x, index, labels = batch_of(model)
    with torch.no_grad():
        assert torch.equal(*(one.adopted.network(x, index.float(), labels) for one in (model, again)))
    assert again.weights == model.weights
    assert again.config == model.config
