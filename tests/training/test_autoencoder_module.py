"""The steps of training autoencoders: keyed draws, the units that are logged, and runs that repeat and resume."""

import math
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from tiny_configs import autoencoder_config
from tiny_training import LIGHTNING_WARNINGS

from diffusion import load
from diffusion.baselines.entropy import knn_entropy
from diffusion.data import load_images
from diffusion.errors import UserError
from diffusion.models.build import Data, DataFacts
from diffusion.storage import runs
from diffusion.training.checkpoint_io import read_checkpoint
from diffusion.training.data_module import TrainingBatches
from diffusion.training.fit import fit
from diffusion.training.logs.metrics import read_metrics
from diffusion.training.modules.autoencoder import EAEModule, VAEModule
from diffusion.training.modules.build import build_module

pytestmark = LIGHTNING_WARNINGS

FACTS = DataFacts("digits", (1, 8, 8), 17, 10)
DIMS = 64
CHECKS = ("trainer.validate_every=2", "trainer.checkpoint_every=3", "trainer.sample_every=3")


@pytest.fixture(scope="module")
def digits():
    return Data(FACTS, images=load_images("digits"))


@pytest.fixture
def quick_fit(monkeypatch):
    """The declared density is fitted in few steps, where how well does not matter."""
    from diffusion.baselines.eae import EAE

    original = EAE.fit_after_training
    monkeypatch.setattr(
        EAE, "fit_after_training", lambda self, images, seed=0, **more: original(self, images, seed, 3, **more)
    )


def make_module(config):
    torch.manual_seed(0)
    module = build_module(config, FACTS, {})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    module.logged = {}
    module.is_logged = lambda: True  # there is no trainer
    module.log_dict = lambda values, **_: module.logged.update(
        {k: float(torch.as_tensor(v).detach()) for k, v in values.items()}
    )
    return module


def gradient(module, parts) -> list[torch.Tensor]:
    module.zero_grad()
    for part in parts:
        (module.training_step(part, 0) / len(parts)).backward()
    return [parameter.grad.clone() for parameter in module.model.parameters()]


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize(("accumulate", "world_size"), [(2, 1), (1, 2), (2, 2)])
def test_the_gradient_of_a_vae_is_the_same_however_the_batch_is_cut(tmp_path, digits, draws, accumulate, world_size):
    whole = autoencoder_config("vae", tmp_path, f"autoencoder.iwae_samples={draws}")
    expected = gradient(make_module(whole), [TrainingBatches(digits, whole).part(3)])
    config = autoencoder_config(
        "vae", tmp_path, f"autoencoder.iwae_samples={draws}", f"trainer.accumulate={accumulate}"
    )
    parts = [
        TrainingBatches(digits, config, 0, rank, world_size).part(3 * accumulate + micro)
        for rank in range(world_size)
        for micro in range(accumulate)
    ]
    found = gradient(make_module(config), parts)
    largest = max(float(value.abs().max()) for value in expected)
    assert largest > 1e-2
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * largest, rtol=1e-4)


@pytest.mark.parametrize("family", ["vae", "eae"])
def test_a_step_draws_nothing_from_a_state(tmp_path, digits, family):
    module = make_module(autoencoder_config(family, tmp_path)).train()
    batches = TrainingBatches(digits, module.config)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append([float(module.training_step(batches.part(k), k).detach()) for k in (5, 6)])
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]


def test_the_loss_of_a_vae_is_its_bound_in_bits_a_dimension(tmp_path, digits):
    module = make_module(autoencoder_config("vae", tmp_path))
    assert isinstance(module, VAEModule)
    batch = TrainingBatches(digits, module.config).part(0)
    module.training_step(batch, 0)
    logged = dict(module.logged)
    assert logged["train/loss"] == pytest.approx(logged["train/reconstruction"] + logged["train/kl"], rel=1e-5)
    mean, std = module.autoencoder.proposal(batch["x"])
    kl = (0.5 * (mean**2 + std**2 - 1) - std.log()).sum(1).mean().detach() / (DIMS * math.log(2))
    assert logged["train/kl"] == pytest.approx(float(kl), rel=1e-5)
    assert module.noise(0, 0, batch["positions"]).shape == (8, 1, 3)
    # beta weighs the KL term of the loss, and changes neither of its parts
    other = make_module(autoencoder_config("vae", tmp_path, "autoencoder.beta=3"))
    other.training_step(batch, 0)
    assert other.logged["train/loss"] == pytest.approx(logged["train/loss"] + 2 * logged["train/kl"], rel=1e-5)
    assert other.logged["train/kl"] == logged["train/kl"]


class Alone:
    """A trainer of one process, as far as the end of a validation asks it."""

    def __init__(self):
        self.strategy = self

    def reduce(self, tensor, reduce_op):
        return tensor


def validate(module, x, size):
    module.eval()
    module.__class__.trainer = property(lambda self: Alone())
    try:
        module.on_validation_epoch_start()
        with torch.no_grad():
            for rows in torch.arange(len(x)).split(size):
                module.validation_step({"x": x[rows], "positions": rows}, 0)
        module.on_validation_epoch_end()
    finally:
        del module.__class__.trainer
    return dict(module.logged)


@pytest.mark.parametrize("family", ["vae", "eae"])
def test_validation_meets_the_same_draws_however_it_is_batched_and_seeded(tmp_path, digits, family):
    x = digits.images.validation[:50]
    module = make_module(autoencoder_config(family, tmp_path))
    whole = validate(module, x, 50)
    torch.manual_seed(99)
    assert validate(module, x, 50) == whole
    assert validate(module, x, 7) == pytest.approx(whole, rel=1e-5), "a last batch of one image too"
    other = validate(make_module(autoencoder_config(family, tmp_path, "seed=5")), x, 50)
    assert other == pytest.approx(whole, rel=1e-5)


def test_the_validation_of_a_vae_is_the_bound_whatever_it_trains_on(tmp_path, digits):
    x = digits.images.validation[:20]
    plain = validate(make_module(autoencoder_config("vae", tmp_path)), x, 20)
    settings = ("autoencoder.beta=4", "autoencoder.free_bits=0.5")
    assert validate(make_module(autoencoder_config("vae", tmp_path, *settings)), x, 20) == plain
    tighter = validate(make_module(autoencoder_config("vae", tmp_path, "autoencoder.iwae_samples=8")), x, 20)
    assert tighter["validation/loss"] < plain["validation/loss"]


def test_the_entropy_of_validation_is_that_of_all_codes_at_once(tmp_path, digits):
    x = digits.images.validation[:30]
    module = make_module(autoencoder_config("eae", tmp_path, "autoencoder.entropy_weight=0.5"))
    assert isinstance(module, EAEModule)
    found = validate(module, x, 7)
    z = module.autoencoder.codes(x)
    assert found["validation/entropy"] == pytest.approx(float(knn_entropy(z, 3)), rel=1e-5)
    with torch.no_grad():
        error = (module.autoencoder.decoder(z) - module.autoencoder.centred(x)).square().sum() / 30
    assert found["validation/reconstruction"] == pytest.approx(float(error), rel=1e-5)
    assert found["validation/loss"] == pytest.approx(float(error) - 0.5 * found["validation/entropy"], rel=1e-5)


def same_run(a, b):
    ours, theirs = load_file(a / runs.MODEL), load_file(b / runs.MODEL)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    rows = [
        [{k: v for k, v in row.items() if k != "train/images_per_second"} for row in read_metrics(r / "metrics.jsonl")]
        for r in (a, b)
    ]
    assert [row for row in rows[0] if len(row) > 1] == [row for row in rows[1] if len(row) > 1]


@pytest.mark.parametrize(("family", "module"), [("vae", VAEModule), ("eae", EAEModule)])
def test_a_run_that_was_signalled_goes_on_bit_equal(tmp_path, monkeypatch, quick_fit, family, module):
    config = autoencoder_config(family, tmp_path, *CHECKS)
    whole = fit(config).run
    rows = read_metrics(whole / "metrics.jsonl")
    part = {"vae": "kl", "eae": "entropy"}[family]
    for name in ("loss", "reconstruction", part):
        assert [row["step"] for row in rows if f"train/{name}" in row] == list(range(6)), name
        assert [row["step"] for row in rows if f"validation/{name}" in row] == [1, 3, 5], name
    assert (whole / "samples" / "step-00000006.png").is_file()

    original, left = module.training_step, [None]

    def training_step(self, batch, batch_idx):
        if int(batch["step"]) == 4 and left:
            left.pop()
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(module, "training_step", training_step)
    cut = fit(config)
    assert cut.exit_code == 75
    assert not (cut.run / runs.MODEL).exists()
    assert fit(config, cut.run).exit_code == 0
    same_run(whole, cut.run)


def test_the_model_of_an_eae_is_the_average_fitted_after_training(tmp_path, quick_fit):
    done = fit(autoencoder_config("eae", tmp_path))
    images = done.data.images.test[:4]
    model, checkpoint = load(done.run), load(done.run / "checkpoints" / "last.ckpt")
    ours, theirs = model.module.state_dict(), checkpoint.module.state_dict()
    fitted = {"raw_scale", "proposal_std", "mixture_weights", "mixture_means", "mixture_factors"}
    fitted |= {"norm.running_mean", "norm.running_var"}
    assert {name for name in ours if not torch.equal(ours[name], theirs[name])} == fitted
    assert len(model.log_likelihood(images, samples=5)) == 4
    with pytest.raises(UserError, match="not fitted yet"):
        checkpoint.log_likelihood(images, samples=5)
    raw = read_checkpoint(done.run / "checkpoints" / "last.ckpt")["state_dict"]
    assert not torch.equal(raw["autoencoder.encoder.dense.weight"], ours["encoder.dense.weight"])


BAD = {
    "points": ("vae", ["data.name=moons"], "models images of levels; 'moons' has none"),
    "levels": ("vae", ["autoencoder.observation=bernoulli"], "takes 2 levels, the data have 17"),
    "depth": ("vae", ["autoencoder.multipliers=[1,1,1,1,1]"], "multipliers"),
    "neighbours": ("eae", ["autoencoder.neighbours=8"], "neighbours: found 8; must be below .*, 8"),
    "parts": ("eae", ["trainer.accumulate=4"], "neighbours: found 3; must be below .*, 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_leaves_no_run_folder(tmp_path, case):
    family, overrides, message = BAD[case]
    with pytest.raises(UserError, match=message):
        fit(autoencoder_config(family, tmp_path, *overrides))
    assert not (tmp_path / "runs").exists()


def test_a_fit_that_fails_after_training_leaves_the_model_and_is_repeated(tmp_path, monkeypatch, quick_fit):
    from diffusion.baselines.eae import EAE
    from diffusion.training.resume import run_to_continue

    def fails(*_, **__):
        raise RuntimeError("no room")

    config = autoencoder_config("eae", tmp_path, *CHECKS, "evaluation.enabled=false")
    with monkeypatch.context() as patch:
        patch.setattr(EAE, "fit_after_training", fails)
        with pytest.raises(UserError, match="no room"):
            fit(config)
    run = run_to_continue(config, "auto")
    assert run is not None
    assert load(run).step == config.trainer.steps
    fit(config, run)
    assert run_to_continue(config, "auto") is None
