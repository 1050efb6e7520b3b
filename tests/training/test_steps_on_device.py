"""A run as a GPU would see it: in the steady step no host waits for it, and nothing but the batch is copied to it."""

import sys

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from pretended_device import DEVICE, Device
from tiny_configs import autoencoder_config, digits_config, toy_config

import diffusion
import diffusion.training.fit as fitting
from diffusion.numerics import placement
from diffusion.training.distributed.launch import process_options
from diffusion.training.gradient_guard import TrainingDivergedError
from diffusion.training.logs.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("quick")
COMMON = ("trainer.steps=5", "trainer.log_every=50", "trainer.precision=32", "evaluation.enabled=false")
FIRST, LAST = 2, 4  # the steps between which is counted


class Anywhere(CPUAccelerator):
    def setup_device(self, device):
        """The device is not a CPU's."""


class Steps(L.Callback):
    """What the steps between the first and the last cost."""

    def __init__(self, device):
        self.device = device
        self.counts = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == FIRST:
            self.device.clear()
        if trainer.global_step == LAST:
            self.counts, self.places = dict(self.device.counts), list(self.device.places)


@pytest.fixture
def fit_there(monkeypatch):
    strategy = {"strategy": SingleDeviceStrategy(device=DEVICE, accelerator=Anywhere())}
    monkeypatch.setattr(fitting, "choose_device", lambda name: DEVICE)
    monkeypatch.setattr(fitting, "process_options", lambda config, device: strategy)
    monkeypatch.setattr(fitting, "meet", lambda device: None)
    # torch has a list of the devices that have a fused kernel; the pretended one is not on it
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_, **__: None)

    # nor a type for autocast
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, *given, **more: autocast("cpu", *given, **more))

    def fit(config, kind=Steps, float64=True):
        device = Device(float64)
        steps = kind(device)
        with device:
            run = fitting.fit(config, callbacks=[steps]).run
        return run, steps

    return fit


# Operations of a step, at most: the network and its gradient, keyed draws (142 of a normal, 118 of a uniform, each one
# with Triton), and five of each parameter for the norm of the gradient (one of all on a GPU).
MOST = {"digits": 1500, "learned, with labels": 1320, "levels": 670, "flow": 805, "ddpm": 940, "vae": 475, "eae": 250,
        "toy": 405}  # fmt: skip
CASES = {
    "digits": ("digits", "data.place=device", "trainer.accumulate=2"),
    "learned, with labels": (
        "digits", "data.place=device", "schedule.name=learned", "objective.time=uniform", "denoiser.conditional=true",
    ),
    "levels": ("digits", "data.place=device", "denoiser.prediction=levels", "objective.dequantize=false"),
    "flow": ("digits", "data.place=device", "schedule.name=rectified", "objective.time=logit-normal"),
    "ddpm": ("digits", "data.place=device", "schedule.name=ddpm", "objective.weighting=simple"),
    "vae": ("vae", "data.place=device"),
    "eae": ("eae", "data.place=device"),
}  # fmt: skip


def config_of(folder, family, *overrides):
    if family in ("vae", "eae"):
        return autoencoder_config(family, folder, *COMMON, *overrides)
    return {"digits": digits_config, "toy": toy_config}[family](folder, *COMMON, *overrides)


@pytest.mark.usefixtures("quick_fit")
@pytest.mark.parametrize("case", CASES)
def test_a_steady_step_waits_for_nothing_and_copies_nothing(tmp_path, fit_there, case):
    _, steps = fit_there(config_of(tmp_path, *CASES[case]))
    assert {name: n for name, n in steps.counts.items() if name != "operations"} == {}, steps.places
    assert 100 < steps.counts["operations"] <= (LAST - FIRST) * MOST[case]


@pytest.mark.parametrize(("family", "copies"), [("digits", 2), ("toy", 1)])
def test_of_data_in_memory_the_batch_is_copied(tmp_path, fit_there, family, copies):
    """Images and labels; points."""
    _, steps = fit_there(config_of(tmp_path, family))
    assert steps.counts["operations"] <= (LAST - FIRST) * MOST[family]
    assert steps.counts["to_device"] == copies * (LAST - FIRST), steps.places
    assert not steps.counts.keys() & {"waits", "to_host"}


@pytest.mark.usefixtures("quick_fit")
@pytest.mark.parametrize("case", [*CASES, "toy"])
def test_without_float64_there_a_run_ends_as_on_the_cpu(tmp_path, fit_there, monkeypatch, case):
    """With its validations and samples: the networks' steps are taken there, all numbers are on the CPU."""
    own = CASES.get(case, ("toy",))
    more = ("trainer.validate_every=3", "trainer.sample_every=3", "trainer.steps=3", "evaluation.batch_size=200")
    with monkeypatch.context() as patch:
        patch.setattr(placement, "WITHOUT_FLOAT64", {DEVICE.type})
        run, steps = fit_there(config_of(tmp_path / "there", *own, *more), Validation, float64=False)
    monkeypatch.setattr(fitting, "choose_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(fitting, "process_options", process_options)
    here = fitting.fit(config_of(tmp_path / "here", *own, *more)).run
    assert steps.counts["to_device"] > 0, "it was there"
    found, expected = (diffusion.load(path).module.state_dict() for path in (run, here))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    logged = [[row for row in read_metrics(path / "metrics.jsonl") if "validation/loss" in row] for path in (run, here)]
    assert logged[0]
    assert logged[0][-1]["validation/loss"] == pytest.approx(logged[1][-1]["validation/loss"], rel=1e-3)


class Validation(Steps):
    """What the second batch of a validation costs."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Of no concern."""

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.device.clear()

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.counts, self.places = dict(self.device.counts), list(self.device.places)


@pytest.mark.usefixtures("quick_fit")
@pytest.mark.parametrize("family", ["digits", "vae", "eae"])
def test_a_batch_of_validation_waits_for_nothing(tmp_path, fit_there, family):
    config = config_of(tmp_path, family, "trainer.steps=2", "trainer.validate_every=2", "evaluation.batch_size=80")
    _, steps = fit_there(config, Validation)
    assert steps.counts.pop("operations") > 20
    assert steps.counts == {}, steps.places


def _nan_in(monkeypatch, bad):
    from diffusion.training.modules.denoiser import DenoiserModule

    original = DenoiserModule.training_step

    def training_step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        return loss * float("nan") if batch["step"] in bad else loss

    monkeypatch.setattr(DenoiserModule, "training_step", training_step)


def test_dropped_steps_are_read_together_and_change_nothing(tmp_path, fit_there, monkeypatch, capsys):
    """Steps 3 and 5 of 8: each is reported with its number, and the weights are those of a run of the other steps."""
    _nan_in(monkeypatch, {3, 5})
    before = {}

    class Weights(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            before[trainer.global_step] = [p.detach().clone() for p in pl_module.parameters()]

    device = Device()
    with device:
        run = fitting.fit(config_of(tmp_path, "toy", "trainer.steps=8"), callbacks=[Weights()]).run
        for dropped in (3, 5):
            for a, b in zip(before[dropped], before[dropped + 1], strict=True):
                assert bool((a == b).all())
        assert not all(bool((a == b).all()) for a, b in zip(before[5], before[5 + 2], strict=True))
        assert all(bool(torch.isfinite(p).all()) for p in before[8])
    told = capsys.readouterr().err
    assert "step 3 dropped" in told
    assert "step 5 dropped" in told
    rows = [row for row in read_metrics(run / "metrics.jsonl") if "dropped/steps" in row]
    assert [(row["step"], row["dropped/steps"]) for row in rows] == [(3, 1.0), (5, 2.0)]


def test_divergence_is_told_at_the_next_reading_with_weights_that_are_finite(tmp_path, fit_there, monkeypatch):
    _nan_in(monkeypatch, range(3, 100))
    with pytest.raises(TrainingDivergedError, match="11 steps in a row, up to step 13"):
        fit_there(config_of(tmp_path, "toy", "trainer.steps=30", "trainer.log_every=15"))
