"""Files of EDM, score_sde and OpenAI's projects: our networks answer what theirs did, and nothing of a file is run."""

from collections import OrderedDict
from functools import partial

import pytest
import torch
from published_files import Stored, edm_pickle, song_checkpoint

from diffusion import load, sample
from diffusion.denoisers.evaluations import count_evaluations
from diffusion.errors import UserError
from diffusion.models.formats import openai, score_sde
from diffusion.networks import ADM, SongUNet
from diffusion.schedules.time_grids import time_grid

SONG = {
    "img_resolution": 8, "img_channels": 3, "model_type": "SongUNet", "model_channels": 16, "channel_mult": [1, 2],
    "num_blocks": 1, "attn_resolutions": [4], "augment_dim": 2,
}  # fmt: skip
NCSNPP = {
    **SONG, "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1], "channel_mult": [1, 2, 2],
}  # fmt: skip
DHARIWAL = {
    "img_resolution": 8, "img_channels": 3, "model_type": "DhariwalUNet", "model_channels": 64, "channel_mult": [1, 2],
    "num_blocks": 1, "attn_resolutions": [4],
}  # fmt: skip
EDM = {
    "edm-ddpmpp-cond": ("EDMPrecond", {**SONG, "label_dim": 3}),
    "edm-ncsnpp": ("EDMPrecond", NCSNPP),
    "edm-adm-cond": ("EDMPrecond", {**DHARIWAL, "label_dim": 3}),
    "vp-ddpmpp": ("VPPrecond", SONG),
    "ve-ncsnpp": ("VEPrecond", NCSNPP),
    "iddpm-adm": ("iDDPMPrecond", DHARIWAL),
}
OURS = {"channels": 3, "image_size": 8, "base_channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4]}
OURS_NCSNPP = {**OURS, "multipliers": [1, 2, 2], "taps": [1, 3, 3, 1], "residual_input": True}
SCORE_SDE = {  # a configuration of which all but the sizes is that of the case
    "song-ddpmpp": ("vp/cifar10_ddpmpp_continuous", OURS),
    "song-subvp-ncsnpp": ("subvp/cifar10_ncsnpp_continuous", OURS_NCSNPP),
    "song-ncsnpp": ("ve/cifar10_ncsnpp_continuous", OURS_NCSNPP),
    "song-ddpm": ("vp/cifar10_ddpm", {**OURS, "base_channels": 32}),
}
FLAGS = {
    "image_size": 8, "num_channels": 32, "num_res_blocks": 1, "attention_resolutions": "4", "channel_mult": "1,2",
    "learn_sigma": True,
}  # fmt: skip
COSINE = {"noise_schedule": "cosine"}
OPENAI = {
    "guided-new-order": {
        **FLAGS, **COSINE, "class_cond": True, "num_head_channels": 16, "resblock_updown": True,
        "use_new_attention_order": True,
    },
    "guided-legacy": {**FLAGS, "resblock_updown": True},
    "improved": {**FLAGS, **COSINE, "diffusion_steps": 4000, "rescale_timesteps": True},
    "improved-plain": {**FLAGS, "num_heads": 1, "use_scale_shift_norm": False},
}  # fmt: skip
# The largest difference, by the largest number: both are float32.
CLOSE = 1e-5


def edm_file(folder, case, **changes):
    stored, (name, arguments) = Stored(case), EDM[case]
    path = folder / "network.pkl"
    path.write_bytes(edm_pickle(name, {**arguments, **changes}, stored.weights, folder / "executed"))
    return path, stored


def close(model, stored, t, labels=None, images_in_01=False):
    """Whether eps is theirs, for data that have no levels, as the network sees them."""
    convention, path = model.denoiser.convention, model.denoiser.schedule.path
    x = 0.5 * (stored.x + 1.0) if images_in_01 else stored.x
    alpha, sigma = (value.reshape(-1, 1, 1, 1).float() for value in path(t))
    scale, middle = convention.units
    x_t = (alpha * x + sigma * stored.noise - alpha * middle) / scale
    with torch.no_grad():
        eps = model.denoiser.prediction("eps", x_t, t, labels)
    torch.testing.assert_close(eps, stored.answer[:, :3], rtol=0, atol=CLOSE * float(stored.answer.abs().max()))
    return x_t


@pytest.mark.parametrize("case", EDM)
def test_pickles_of_edm_are_the_same_function(tmp_path, case):
    path, stored = edm_file(tmp_path, case)
    model = load(path)
    unit = case == "ve-ncsnpp"  # their sigma is that of images in [-1, 1]
    log_snr = -2.0 * (stored.at * (0.5 if unit else 1.0)).log()
    labels = torch.tensor([0, 2, 1]) if "cond" in case else None
    if case == "iddpm-adm":
        stored.at = torch.tensor([100, 500, 900]) / 1000
        close(model, stored, stored.at.double(), labels)
    else:
        close(model, stored, model.denoiser.schedule.path.inverse_log_snr(log_snr), labels, unit)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("case", SCORE_SDE)
def test_checkpoints_of_score_sde_are_the_same_function(tmp_path, monkeypatch, case):
    stored, (name, sizes) = Stored(case), SCORE_SDE[case]
    options, conventions = score_sde.CONFIGURATIONS[name]
    monkeypatch.setitem(score_sde.CONFIGURATIONS, name, ({**options, **sizes}, conventions))
    monkeypatch.setattr(score_sde, "SIZE", 8)
    path = tmp_path / name / "checkpoint_8.pth"
    path.parent.mkdir(parents=True)
    song_checkpoint(path, stored.weights)
    close(load(path), stored, stored.at, images_in_01=name.startswith("ve"))


@pytest.mark.parametrize("case", OPENAI)
def test_files_of_improved_and_guided_diffusion_are_the_same_function(tmp_path, monkeypatch, case):
    monkeypatch.setattr(openai, "CLASSES", 5)
    stored = Stored(case)
    torch.save(stored.weights, tmp_path / "ema.pt")
    model = load(tmp_path / "ema.pt", configuration=OPENAI[case])
    labels = torch.tensor([0, 4, 2]) if "class_cond" in OPENAI[case] else None
    x_t = close(model, stored, stored.at, labels)
    with torch.no_grad():
        _, variance = model.denoiser.with_variance(x_t, stored.at, labels)
    torch.testing.assert_close(variance, 0.5 * (stored.answer[:, 3:] + 1.0), rtol=0, atol=CLOSE)


def test_a_conditional_network_of_edm(tmp_path):
    """Drawn by the command as the paper has it; a label is needed where none was dropped in training."""
    model = load(edm_file(tmp_path, "edm-ddpmpp-cond")[0])
    drawn = model.config.sampling
    assert (drawn.sampler, drawn.grid, drawn.steps) == ("heun", "karras", 18)
    times = time_grid(model.denoiser.schedule, 18, "karras", drawn.log_snr_end)
    sigmas = torch.exp(-0.5 * model.denoiser.schedule.path.log_snr(times[:-1]))
    roots = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 18, dtype=torch.float64)  # 2206.00364, eq. 5
    torch.testing.assert_close(sigmas, roots**7, rtol=1e-4, atol=0)
    with count_evaluations(model.denoiser) as count:
        sample(model, 1, sampler="heun", grid="karras", steps=18, log_snr_end=14.0, label=1)
    assert count.rows == 35
    with pytest.raises(UserError, match="label: this network needs one"):
        sample(model, 2)
    optional = load(edm_file(tmp_path, "edm-ddpmpp-cond", label_dropout=0.1)[0])
    assert sample(optional, 2, sampler="heun", steps=2).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (partial(SongUNet, multipliers=(2, 2, 2)), 55_732_739),
        (SongUNet, 61_804_419),
        (partial(SongUNet, embedding="fourier", taps=(1, 3, 3, 1), residual_input=True), 62_758_787),
        (partial(ADM, num_classes=1000), 295_899_267 + 768),  # a row of ours stands for no class
    ],
    ids=["EDM", "DDPM++", "NCSN++", "ADM"],
)
def test_networks_of_the_published_sizes(network, parameters):
    """As many parameters as EDM's code gives them: 55.7, 61.8, 62.8 and 295.9 million."""
    with torch.device("meta"):
        assert sum(value.numel() for value in network(3).parameters()) == parameters


# One of those that have the same network.
OF_SCORE_SDE = {str(options): name for name, (options, _) in score_sde.CONFIGURATIONS.items()}


@pytest.mark.parametrize("name", OF_SCORE_SDE.values())
def test_every_configuration_of_score_sde_makes_a_network(name):
    options, _ = score_sde.CONFIGURATIONS[name]
    with torch.device("meta"):
        network = SongUNet(channels=3, image_size=32, **options)
        assert network(torch.zeros(1, 3, 32, 32), torch.zeros(1)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"img_resolution": "8"}, "img_resolution: found '8'; needs a whole number"),
        ({"model_type": "SongUnet"}, "Did you mean 'SongUNet'"),
        ({"num_blocks": 10**9}, "num_blocks: found 1000000000; needs a whole number from 1 to 64"),
        ({"channel_mult": [1] * 65}, "channel_mult: found .* needs at most 64"),
        ({"model_channels": 2**30}, "model_channels: found 1073741824; needs a whole number from 1 to 8192"),
        ({"model_channels": 2**13}, "weight 'map_layer0.weight' has shape"),
        ({"num_blocks": 2}, "has no weight 'enc.8x8_block1.norm0.weight', which its configuration needs"),
        ({"attn_resolutions": [2]}, "holds a weight '.*' that its configuration does not know"),
        ({"encoder_type": "skip"}, "encoder_type: found 'skip'; needs one of standard, residual"),
        ({"decoder_type": "skip"}, "decoder_type: found 'skip'"),
        ({"label_dropout": 2.0}, "label_dropout: found 2.0; needs a number from 0 to 1"),
    ],
)
def test_arguments_of_a_pickle_that_are_refused(tmp_path, changes, told):
    path, _ = edm_file(tmp_path, "edm-ddpmpp-cond", **changes)
    with pytest.raises(UserError, match=told) as error:
        load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [list, dict, OrderedDict])
def test_an_argument_that_shares_what_is_in_it(tmp_path, kind):
    """Two entries of a list are the same list, sixty times: written out, 2^60 of them."""
    value = []
    for _ in range(60):
        value = [value, value] if kind is list else kind(a=value, b=value)
    for key in ("img_resolution", "model_type", "channel_mult", "dropout"):
        path, _ = edm_file(tmp_path, "edm-ddpmpp-cond", **{key: value})
        with pytest.raises(UserError, match=f"{key}: found .*; needs") as error:
            load(path)
        assert len(str(error.value)) < 400


def test_pickles_of_other_objects(tmp_path):
    path = tmp_path / "x.pkl"
    for name, arguments in (("Generator", SONG), ("EDMPrecond", None)):
        path.write_bytes(edm_pickle(name, arguments, {}, tmp_path / "executed"))
        with pytest.raises(UserError, match=f"holds a {name}; accepted: EDMPrecond, VPPrecond"):
            load(path)
    path.write_bytes(edm_pickle("EDMPrecond", SONG, {}, tmp_path / "executed").replace(b"\x03ema", b"\x03emb"))
    with pytest.raises(UserError, match="it holds no 'ema'"):
        load(path)
    assert not (tmp_path / "executed").exists()


def test_configurations_that_are_refused(tmp_path):
    (tmp_path / "vp").mkdir()
    song_checkpoint(tmp_path / "vp" / "x.pth", Stored("song-ddpmpp").weights)
    torch.save(Stored("improved").weights, tmp_path / "64x64_diffusions.pt")
    for path, configuration, told in (
        ("vp/x.pth", None, "is in no folder with the name of its configuration; accepted: vp/cifar10_ddpm, "),
        ("vp/x.pth", "vp/cifar10_ddpmp_continuous", "Did you mean 'vp/cifar10_ddpmpp_continuous'"),
        ("vp/x.pth", "vp/cifar10_ddpmpp", "weight 'all_modules.0.weight' has shape"),
        ("vp/x.pth", 3, "'3' is unknown"),
        ("64x64_diffusions.pt", None, "Did you mean '64x64_diffusion'"),
        ("64x64_diffusions.pt", {"num_chanels": 3}, "no flag 'num_chanels'.*Did you mean 'num_channels'"),
        ("64x64_diffusions.pt", {"num_channels": "x"}, "num_channels: found 'x'; needs a whole number"),
        ("64x64_diffusions.pt", {"channel_mult": "1,a"}, "channel_mult: found '1,a'; needs whole numbers"),
        ("64x64_diffusions.pt", {"image_size": 33}, "channel_mult: found ''; needs one number a level"),
        ("64x64_diffusions.pt", "64x64_diffusion", "has no weight 'label_emb|holds|weight '"),
    ):
        with pytest.raises(UserError, match=told) as error:
            load(tmp_path / path, configuration=configuration)
        assert str(tmp_path / path) in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"configuration: .*leave it out"):
        load("pretrained:digits", configuration="64x64_diffusion")
    with pytest.raises(UserError, match=r"configuration: .*leave it out"):
        load(edm_file(tmp_path, "vp-ddpmpp")[0], configuration="64x64_diffusion")
