"""Every family under one roof: the same commands, files and contract; what one does not take is refused in one line."""

import json
import re

import numpy as np
import pytest
import torch
from made_runs import DIGITS, make_run
from PIL import Image
from tiny_configs import autoencoder_arguments, autoencoder_config, digits_config

import diffusion
from diffusion.commands.app import command, sample
from diffusion.commands.sample.record import SampleRecord
from diffusion.commands.train.train import train
from diffusion.config import Config, dump_config, load_config, parse_config
from diffusion.config.options import choices
from diffusion.denoisers import exact
from diffusion.errors import UserError
from diffusion.likelihood import Dequantizer
from diffusion.models import DiffusionModel
from diffusion.models.build import DataFacts
from diffusion.models.load import GenerativeModel, load
from diffusion.schedules import Cosine

# Lightning's own: it uses a deprecated class of PyTorch (tests/training/tiny_training.py has the same mark).
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

QUICK = ("evaluation.images=20", "evaluation.elbo_draws=4", "evaluation.iwae_samples=60", "evaluation.batch_size=100")
# All but `adopted`, whose networks are others' (tests/training/test_start_adopted.py).
FAMILIES = [family for family in choices(Config.accepts("family")) if family != "adopted"]


def config_of(family, folder, *overrides):
    if family == "diffusion":
        return digits_config(folder, *overrides)
    return autoencoder_config(family, folder, *overrides)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_any_family_answers_the_contract(tmp_path, family):
    model = load(make_run(tmp_path, config_of(family, tmp_path)))
    assert isinstance(model, GenerativeModel)
    assert (model.config.family, model.facts, model.step) == (family, DIGITS, 6)
    drawn = diffusion.sample(model, 5, seed=3)
    assert drawn.shape == (5, 1, 8, 8)
    assert drawn.dtype == torch.float32
    assert float(drawn.abs().max()) <= 1.0
    assert torch.allclose(diffusion.sample(model, 2, seed=3, start=3), drawn[3:], atol=1e-2), (
        "but for the tolerance of an ODE"
    )
    assert torch.allclose(diffusion.sample(model, 5, seed=3, batch_size=2), drawn, atol=1e-2)
    assert not torch.allclose(diffusion.sample(model, 5, seed=4), drawn, atol=3e-2)
    images = torch.randint(0, 17, (3, 1, 8, 8), dtype=torch.uint8)
    options = {"diffusion": {"tolerance": 1e-2}, "vae": {"samples": 10}, "eae": {"samples": 10}}[family]
    estimate = diffusion.log_likelihood(model, images, **options)
    assert (len(estimate), estimate.levels, estimate.kind) == (3, 17, "lower bound")
    assert "estimator" in estimate.protocol
    assert model.to("cpu") is model
    with pytest.raises(UserError, match="nonsense"):
        diffusion.log_likelihood(model, images, nonsense=3)
    with model.counted() as count:
        model.sample(4, **model.sampling_settings({}))
    assert count.rows % 4 == 0
    assert count.rows > 0


def test_a_model_of_bin_centres_is_asked_about_them():
    """Its density is all within the noise of t_min around the centres: uniform dequantisation would miss it by bits."""
    dequantizer = Dequantizer(17)
    images = torch.tensor([3, 9, 14, 0], dtype=torch.uint8).reshape(4, 1, 1, 1)
    denoiser = exact.Empirical(dequantizer.center(images, torch.float64), Cosine())
    facts = DataFacts("folder", (1, 1, 1), 17, 0)

    def model(dequantize):
        config = Config()
        return DiffusionModel(
            denoiser, config.replace(objective=config.objective.replace(dequantize=dequantize)), facts
        )

    estimate = model(False).log_likelihood(images, trace="exact")
    assert (estimate.protocol["dequantization"], estimate.protocol["tolerance"]) == ("truncated-normal", 1e-5)
    assert abs(float(estimate.mean().mean) - 2.0) < 0.05, "four images, one pixel: 2 bits"
    asked = model(False).log_likelihood(images, dequantization="uniform", tolerance=1e-2)
    assert (asked.protocol["dequantization"], asked.protocol["tolerance"]) == ("uniform", 1e-2)
    assert model(True).log_likelihood(images, tolerance=1e-2).protocol["dequantization"] == "uniform"


@pytest.mark.parametrize("family", ["vae", "eae"])
def test_what_an_autoencoder_does_not_take_is_refused(tmp_path, family):
    model = load(make_run(tmp_path, config_of(family, tmp_path)))
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match=f"sampler: family '{family}' does not take it; it takes .*output"):
        diffusion.sample(model, 2, "ode")
    with pytest.raises(UserError, match="steps: family"):
        diffusion.sample(model, 2, steps=5)
    with pytest.raises(UserError, match="method: 'ode' is not known; accepted: iwae, ais, elbo"):
        diffusion.log_likelihood(model, images, method="ode")
    with pytest.raises(UserError, match="models images of levels"):
        diffusion.log_density(model, torch.zeros(2, 1, 8, 8))
    if family == "vae":
        with pytest.raises(UserError, match="prior: 'mixture' is not known; accepted: normal, hubs"):
            model.sample(2, prior="mixture")


def run_command(capsys, body, argv):
    code = command(body, argv)
    found = capsys.readouterr()
    return code, found.out, found.err


@pytest.mark.parametrize("family", ["vae", "eae"])
def test_from_the_command_to_the_table_and_to_samples(
    tmp_path, monkeypatch, capsys, quick_fit, small_baselines, family
):
    monkeypatch.chdir(tmp_path)
    for key in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    more = ("trainer.validate_every=3", "evaluation.baselines=true", "--wandb", "offline")
    argv = autoencoder_arguments(family, tmp_path, *QUICK, *more)
    code, out, err = run_command(capsys, train, argv)
    assert code == 0
    assert "step 6 of 6" in err
    run = tmp_path / "runs" / f"{family}-digits-0001"
    written = json.loads((run / "evaluation.json").read_text())["estimates"]
    assert list(written) == [
        "IWAE", "ELBO", "independent pixels", "Gaussian mixture", "mixture of categoricals", "autoregressive forest",
    ]  # fmt: skip
    for name in ("IWAE", "ELBO"):
        entry = written[name]
        assert (entry["kind"], entry["images"]) == ("lower bound", 20)
        assert f"{entry['bits_per_dim']:.4f}" in out
        assert entry["protocol"]["model"].startswith(family.upper())
    assert written["IWAE"]["protocol"]["samples"] == written["IWAE"]["nfe"] == 60
    assert written["IWAE"]["bits_per_dim"] < written["ELBO"]["bits_per_dim"], "the tighter bound"
    ess = np.asarray(written["IWAE"]["effective_samples"])
    assert ess.shape == (20,)
    assert np.all((ess > 0.999) & (ess < 60.001))
    assert "(median)" in out, "the effective samples are in the table, broken over lines"
    assert ("declared model" in written["IWAE"]["protocol"]["model"]) == (family == "eae")
    (record,) = (run / "wandb").glob("offline-run-*/*.wandb")
    content = record.read_bytes()
    for word in (b"eval/bits_per_dim_low", b"eval/iwae/effective_samples", b"eval/protocol", b"validation/loss"):
        assert word in content, word
    with Image.open(run / "samples" / "reconstructions.png") as picture:
        assert picture.size == (12 * 66 - 2, 4 * 66 - 2)
    assert "reconstructions:" in out
    reports = json.loads((run / "codes.json").read_text())  # of a vae: draws of q(z | x)
    assert list(reports) == ["training images", "test images"]
    assert {report["hubness"]["k"] for report in reports.values()} == {10}
    if family == "eae":
        assert np.allclose(reports["training images"]["mean"], 0, atol=1e-5)
        assert np.allclose(reports["training images"]["std"], 1, atol=1e-3)
        assert {"skewness", "ks_p_value", "entropy", "normal_entropy"} <= reports["test images"].keys()
        assert f"{reports['test images']['entropy']:.3f}" in out
        assert b"codes/negentropy" in content
        assert (run / "samples" / "mixture.png").is_file()

    model = load(run)
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert torch.equal(
        model.log_likelihood(images, samples=7).log_prob, load(run).log_likelihood(images, samples=7).log_prob
    )
    code, out, err = run_command(capsys, sample, ["--run", str(run), "--n", "4", "--device", "cpu", "--out", "x.npz"])
    assert (code, err) == (0, "")
    assert re.search(r"4 samples, (output mean|prior normal), NFE 1, \d+\.\d s", out)
    with np.load("x.npz") as arrays:
        assert arrays["images"].shape == (4, 8, 8)
    if family == "eae":
        code, out, _ = run_command(capsys, sample, ["--run", str(run), "--prior", "mixture", "--output", "draw"])
        assert code == 0
        assert "prior mixture" in out
    code, out, err = run_command(capsys, sample, ["--run", str(run), "--prior", "hubs", "--out", "hubs.png"])
    assert code == 0
    assert "prior hubs" in out
    assert "note: --prior hubs: not the model's law" in err
    assert SampleRecord.read("hubs.png").shown["law"].startswith("not the model's law")


BAD = [
    ("vae", ["--sampler", "ddim"], r"--sampler: .* is of family 'vae', which takes --n, --seed, --prior, --output"),
    ("vae", ["--prior", "mixture"], r"--prior: 'mixture' is not known; accepted: normal, hubs"),
    ("eae", ["--steps", "5"], r"--steps: .* is of family 'eae', which takes --n, --seed, --prior, --output"),
    ("eae", ["--guidance", "2"], r"--guidance: "),
    ("eae", ["--dtype", "float64"], r"--dtype: "),
    ("diffusion", ["--prior", "normal"], r"--prior: .* is of family 'diffusion', which takes --n, --seed, --sampler"),
    ("diffusion", ["--output", "draw"], r"--output: "),
]


@pytest.mark.parametrize(("family", "argv", "message"), BAD)
def test_an_option_of_another_family_is_one_line(tmp_path, capsys, family, argv, message):
    run = make_run(tmp_path, config_of(family, tmp_path))
    code, _, err = run_command(capsys, sample, ["--run", str(run), "--device", "cpu", *argv])
    assert code == 2
    assert re.fullmatch(rf"error: {message}.*\n", err), err


REFUSED = {
    ("vae-digits", "schedule.name=vp"): "schedule.name: found 'vp'; family 'vae' does not take it; diffusion does",
    ("vae-digits", "autoencoder.entropy_weight=2"): "autoencoder.entropy_weight: found 2.0; family 'vae' does not",
    ("eae-digits", "autoencoder.beta=2"): "autoencoder.beta: found 2.0; family 'eae' does not take it; vae does",
    ("eae-digits", "sampling.steps=7"): "sampling.steps: found 7; family 'eae' does not take it; diffusion, adopted do",
    ("vae-digits", "sampling.prior=mixture"): "sampling.prior: found 'mixture'; family 'vae' does not take it",
    ("digits", "autoencoder.latent_dim=3"): "autoencoder.latent_dim: found 3; family 'diffusion' does not take it; "
    "vae, eae do",
    ("digits", "evaluation.iwae_samples=3"): "evaluation.iwae_samples: found 3; family 'diffusion' does not",
    ("vae-digits", "autoencoder.observation=logistic"): "autoencoder.observation: found 'logistic'; must be one of ",
    ("digits", "family=vea"): "family: found 'vea'; must be one of diffusion, adopted, vae, eae. Did you mean 'vae'?",
}


@pytest.mark.parametrize(("config", "override"), REFUSED)
def test_a_key_of_another_family_is_refused(config, override):
    with pytest.raises(UserError) as error:
        load_config(config, [override])
    assert str(error.value).startswith(REFUSED[config, override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_of_a_run_holds_only_what_its_family_takes(family, tmp_path):
    text = dump_config(config_of(family, tmp_path))
    assert ("autoencoder:" in text) == (family != "diffusion")
    assert ("schedule:" in text) == ("tolerance:" in text) == (family == "diffusion")
    assert ("entropy_weight:" in text) == (family == "eae")
    assert parse_config(text) == config_of(family, tmp_path)
