"""A run: what it leaves, that it repeats, and that one which was cut off ends as if it had not been."""

import os
import re
import signal

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from safetensors.torch import load_file
from tiny_configs import digits_config, toy_config
from tiny_training import LIGHTNING_WARNINGS
from tqdm import tqdm

import diffusion
from diffusion import load, sample
from diffusion.data import describe
from diffusion.errors import UserError
from diffusion.storage import runs, tensor_files
from diffusion.training import callbacks
from diffusion.training.checkpoint_io import read_checkpoint
from diffusion.training.fit import fit
from diffusion.training.logs.metrics import read_metrics
from diffusion.training.modules.denoiser import DenoiserModule

pytestmark = [*LIGHTNING_WARNINGS, pytest.mark.usefixtures("quick")]

SPEED = "train/images_per_second"  # the one figure that is not a function of the configuration
CHECKS = ("trainer.validate_every=2", "trainer.checkpoint_every=3")
LOOKS = (*CHECKS, "trainer.sample_every=3")


def metrics(run) -> list[dict]:
    """The lines of metrics without the speed."""
    rows = [{key: value for key, value in row.items() if key != SPEED} for row in read_metrics(run / "metrics.jsonl")]
    return [row for row in rows if len(row) > 1]


def assert_same_run(a, b):
    ours, theirs = load_file(a / runs.MODEL), load_file(b / runs.MODEL)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert metrics(a) == metrics(b)
    states = [read_checkpoint(run / runs.CHECKPOINTS / "last.ckpt") for run in (a, b)]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name
    assert states[0]["global_step"] == states[1]["global_step"]


@pytest.fixture
def interrupt(monkeypatch):
    """Make training meet something in the middle of a step (and part of it), once."""

    def arrange(step, action, part=0):
        original, left = DenoiserModule.training_step, [action]

        def training_step(self, batch, batch_idx):
            if (int(batch["step"]), int(batch["slice"])) == (step, part) and left:
                left.pop()()
            return original(self, batch, batch_idx)

        monkeypatch.setattr(DenoiserModule, "training_step", training_step)

    return arrange


def test_a_run_shorter_than_its_warmup_says_so(tmp_path):
    said = []
    short = fit(toy_config(tmp_path, "optimizer.warmup=24", "optimizer.decay=constant"), report=said.append).run
    line = "note: optimizer.warmup is 24 steps and trainer.steps 6: the learning rate rises to 0.25 of optimizer.lr"
    assert line in said[0]
    rates = [row["train/learning_rate"] for row in metrics(short) if "train/learning_rate" in row]
    assert max(rates) == pytest.approx(0.25e-3)
    fit(toy_config(tmp_path, "optimizer.warmup=6"), report=said.append)
    assert "warmup" not in said[1]


def test_a_run_leaves_its_configuration_weights_metrics_and_samples(tmp_path):
    config = digits_config(tmp_path, *LOOKS, "denoiser.conditional=true", "name=tiny")
    done = fit(config)
    assert done.run == tmp_path / "runs" / "tiny-0001"
    assert (done.exit_code, done.is_main, done.mirror) == (0, True, None)
    files = {str(path.relative_to(done.run)) for path in done.run.rglob("*") if path.is_file()}
    assert files >= {
        "config.yaml", "model.safetensors", "metrics.jsonl", "metrics.csv", "checkpoints/last.ckpt",
        "checkpoints/best.ckpt", "samples/step-00000003.png", "samples/step-00000006.png",
    }  # fmt: skip
    rows = read_metrics(done.run / "metrics.jsonl")
    keys = {key for row in rows for key in row}
    assert keys >= {"train/loss", "train/grad_norm", "train/learning_rate", SPEED, "validation/loss"}
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(6))
    assert [row["step"] for row in rows if "validation/loss" in row] == [1, 3, 5]
    assert sum(key.startswith("validation/eps_error/log_snr_") for key in keys) == 12
    rates = [row["train/learning_rate"] for row in rows if "train/learning_rate" in row]
    assert rates[0] == pytest.approx(0.5e-3), "the rate that the first step was made with: half of lr, the warmup is 2"
    assert all(rate > 0 for rate in rates)
    with Image.open(done.run / "samples" / "step-00000006.png") as picture:
        assert picture.size[0] > 64

    model = load(done.run)
    assert (model.config, model.facts, model.step) == (config, done.data.facts, 6)
    assert not model.denoiser.training
    checkpoint = load(done.run / "checkpoints" / "last.ckpt")
    assert (checkpoint.config, checkpoint.facts, checkpoint.step) == (config, model.facts, 6)
    for name, tensor in model.denoiser.state_dict().items():
        assert torch.equal(tensor, checkpoint.denoiser.state_dict()[name]), name
    drawn = sample(model, 3, "ddim", steps=2, label=[0, 4, 9], guidance=2.0)
    assert drawn.shape == (3, 1, 8, 8)
    assert float(drawn.abs().max()) <= 1.0

    state = read_checkpoint(done.run / "checkpoints" / "last.ckpt")
    raw = {name.removeprefix("denoiser."): tensor for name, tensor in state["state_dict"].items()}
    assert any(not torch.equal(raw[name], tensor) for name, tensor in model.denoiser.state_dict().items()), (
        "the model is the average, the checkpoint's own weights are raw"
    )
    assert state["weight_average"]["images_seen"] == 6 * 8


def test_the_same_configuration_gives_the_same_bits(tmp_path):
    config = toy_config(tmp_path, *CHECKS, "network.dropout=0.2")
    first = fit(config).run
    torch.manual_seed(1234)
    assert_same_run(first, fit(config).run)
    other = fit(toy_config(tmp_path, *CHECKS, "network.dropout=0.2", "seed=1")).run
    assert metrics(other) != metrics(first)


def test_looking_does_not_change_the_training(tmp_path):
    """Validation, samples and checkpoints draw nothing that training draws."""
    looked = fit(toy_config(tmp_path, *LOOKS, "network.dropout=0.2")).run
    blind = fit(toy_config(tmp_path, "network.dropout=0.2")).run
    ours, theirs = (load_file(run / runs.MODEL) for run in (looked, blind))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("accumulate", "part"), [(1, 0), (2, 0), (2, 1)])
def test_a_run_that_was_signalled_goes_on_bit_equal(tmp_path, interrupt, accumulate, part):
    config = toy_config(tmp_path, *CHECKS, "network.dropout=0.2", f"trainer.accumulate={accumulate}")
    whole = fit(config).run
    interrupt(4, lambda: os.kill(os.getpid(), signal.SIGTERM), part)
    cut = fit(config)
    assert cut.exit_code == 75
    assert not (cut.run / runs.MODEL).exists()
    assert read_checkpoint(cut.run / "checkpoints" / "last.ckpt")["global_step"] < 6
    assert fit(config, cut.run).exit_code == 0
    assert_same_run(whole, cut.run)


def test_a_run_that_crashed_goes_on_from_its_last_checkpoint_bit_equal(tmp_path, interrupt):
    config = digits_config(tmp_path, *LOOKS, "trainer.steps=8", "network.dropout=0.2")
    whole = fit(config).run

    def crash():
        raise OSError("power cut")

    interrupt(5, crash)
    with pytest.raises(OSError, match="power cut"):
        fit(config)
    cut = tmp_path / "runs" / "digits-0002"
    assert read_checkpoint(cut / "checkpoints" / "last.ckpt")["global_step"] == 4, "written before the validation"
    fit(config, cut)
    assert_same_run(whole, cut)


LEARNED = ("schedule.name=learned", "objective.weighting=elbo", "objective.time=uniform", "optimizer.lr=0.01")


def test_a_learned_schedule_is_trained_averaged_saved_and_continued_bit_equal(tmp_path, interrupt):
    config = toy_config(tmp_path, *CHECKS, *LEARNED)
    whole = fit(config).run
    interrupt(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    cut = fit(config).run
    fit(config, cut)
    assert_same_run(whole, cut)

    model, state = load(whole), read_checkpoint(whole / "checkpoints" / "last.ckpt")
    schedule, raw = model.denoiser.schedule, state["state_dict"]["denoiser.schedule.log_density"]
    averaged = state["weight_average"]["averages"][0]["schedule.log_density"]
    assert float(raw.abs().min()) > 0
    assert not torch.equal(raw, averaged)
    assert torch.equal(schedule.log_density, averaged)
    moments = [s["exp_avg"] for s in state["optimizer_states"][0]["state"].values()]
    assert any(moment.shape == raw.shape and float(moment.abs().max()) > 0 for moment in moments)
    times = schedule.inverse_log_snr(torch.tensor([14.0, 2.0, -10.0], dtype=torch.float64))
    assert times[[0, 2]].tolist() == pytest.approx([schedule.t_min, schedule.t_max], rel=1e-12)
    assert abs(float(times[1]) - 0.5) > 1e-5
    estimate = model.log_density(torch.zeros(1, 2), tolerance=1e-2)
    assert estimate.protocol["schedule"] == repr(schedule)
    assert sample(model, 2, "ddim", steps=2).shape == (2, 2)


def test_the_gradient_of_two_parts_is_that_of_one(tmp_path):
    """The whole of Lightning in between: the same weights after a step, but for rounding."""
    one, two = (fit(toy_config(tmp_path, f"trainer.accumulate={n}", "trainer.steps=1")) for n in (1, 2))
    state = [
        read_checkpoint(done.run / "checkpoints" / "last.ckpt")["optimizer_states"][0]["state"] for done in (one, two)
    ]
    assert state[0]
    for key, moments in state[0].items():
        assert torch.allclose(moments["exp_avg"], state[1][key]["exp_avg"], atol=1e-7, rtol=1e-4)


def test_validation_and_samples_use_the_averaged_weights(tmp_path, monkeypatch):
    seen = []
    original = DenoiserModule.validation_step

    def validation_step(self, batch, batch_idx):
        seen.append({name: value.clone() for name, value in self.denoiser.state_dict().items()})
        return original(self, batch, batch_idx)

    monkeypatch.setattr(DenoiserModule, "validation_step", validation_step)
    done = fit(toy_config(tmp_path, "trainer.validate_every=6", "optimizer.lr=0.01"))
    model = load(done.run).denoiser.state_dict()
    raw = read_checkpoint(done.run / "checkpoints" / "last.ckpt")["state_dict"]
    assert seen
    assert all(torch.equal(value, model[name]) for name, value in seen[0].items())
    assert any(not torch.allclose(raw[f"denoiser.{name}"], value) for name, value in model.items())


def test_a_finished_run_that_is_continued_stays_as_it_is(tmp_path):
    config = toy_config(tmp_path)
    run = fit(config).run
    (tensors, metadata), lines = tensor_files.read_model(run / runs.MODEL), (run / "metrics.jsonl").read_text()
    assert fit(config, run).exit_code == 0
    again, metadata_again = tensor_files.read_model(run / runs.MODEL)
    assert metadata_again == metadata
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    assert (run / "metrics.jsonl").read_text() == lines


BAD = {
    "a sampler that there is not": (toy_config, ["sampling.sampler=odee"], "Did you mean 'ode'"),
    "an option its sampler does not take": (toy_config, ["sampling.sampler=ode", "sampling.eta=0.5"], "eta"),
    "labels of points": (toy_config, ["denoiser.conditional=true"], "no labels"),
    "a network for points": (digits_config, ["data.name=moons"], "network.name: found 'unet'"),
    "a learned schedule at fixed times": (digits_config, ["schedule.name=learned"], "'learned' takes uniform"),
    "a learned schedule without the bound": (toy_config, [*LEARNED[:1], LEARNED[2]], "takes elbo or likelihood"),
    "a folder that there is not": (digits_config, ["data.name=folder", "data.path=/nowhere"], "/nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_leaves_no_run_folder(tmp_path, case):
    make, overrides, message = BAD[case]
    with pytest.raises(UserError, match=message):
        fit(make(tmp_path, *overrides))
    assert not (tmp_path / "runs").exists()


def toy_settings(folder, **trainer):
    """Those of `toy_config`, as `diffusion.train` takes them."""
    return {
        "runs": str(folder / "runs"),
        "device": "cpu",
        "logging": {"wandb": "off"},
        "network": {"width": 8, "depth": 1},
        "optimizer": {"lr": 1e-3, "warmup": 2},
        "sampling.n": 4,
        "trainer": {"batch_size": 8, "log_every": 1, "validate_every": 0, "sample_every": 0, "steps": 6} | trainer,
    }


def test_train_returns_the_model_that_the_same_run_leaves(tmp_path, capsys):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    model = diffusion.train("toy", **toy_settings(tmp_path / "call"))
    assert torch.equal(torch.rand(2), expected), "the caller's own random numbers go on"
    said = capsys.readouterr()
    assert said.err.startswith("\n".join(describe(model.facts.provenance, 0)))
    assert not said.out
    run = fit(toy_config(tmp_path / "command")).run
    assert_same_run(tmp_path / "call" / "runs" / "toy-0001", run)
    theirs = load(run).module.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.module.state_dict().items())
    assert (model.step, model.config.optimizer.lr, model.module.training) == (6, 1e-3, False)
    assert diffusion.sample(model, 3, steps=2).shape == (3, 2)
    again = diffusion.train(model.config, trainer={"steps": 2}, name="short")
    assert (again.step, again.source) == (2, str(tmp_path / "call" / "runs" / "short-0001" / runs.MODEL))


def test_train_goes_on_where_a_signal_stopped_it(tmp_path, interrupt):
    whole = diffusion.train("toy", **toy_settings(tmp_path / "whole"))
    for step, number, told in ((2, signal.SIGINT, KeyboardInterrupt), (4, signal.SIGTERM, UserError)):
        interrupt(step, lambda number=number: os.kill(os.getpid(), number))
        with pytest.raises(told, match=r"stopped early; the same call resumes .*toy-0001"):
            diffusion.train("toy", **toy_settings(tmp_path / "cut"))
    ended = diffusion.train("toy", **toy_settings(tmp_path / "cut"))
    for name, tensor in ended.module.state_dict().items():
        assert torch.equal(tensor, whole.module.state_dict()[name]), name
    assert [run.name for run in (tmp_path / "cut" / "runs").iterdir()] == ["toy-0001"]


@pytest.mark.parametrize(
    ("config", "overrides", "told"),
    [
        ("toyy", {}, "configuration 'toyy': not found.*Did you mean 'toy'"),
        (3, {}, "config: found a int; a name, a path or a Config is accepted"),
        ("toy", {"trainer__steps": 3}, "unknown key 'trainer__steps' in the call.*Did you mean 'trainer.steps'"),
        ("toy", {"trainer": {"stps": 3}}, "unknown key 'trainer.stps' in the call.*Did you mean 'trainer.steps'"),
        ("toy", {"trainer": 3}, "trainer: found 3 in the call; must be a mapping"),
        ("toy", {"trainer": {"steps": 3}, "trainer.steps": 4}, "the call: key 'trainer.steps' is given twice"),
        ("toy", {"trainer": {"steps": "many"}}, "trainer.steps: found 'many'"),
        ("toy", {"trainer": {"devices": 2}}, "trainer.devices: found 2 processes"),
        ("toy", {"resume": "nowhere"}, "nowhere"),
    ],
)
def test_what_train_does_not_take_is_one_line(tmp_path, config, overrides, told):
    with pytest.raises(UserError, match=told) as error:
        diffusion.train(config, **{"runs": str(tmp_path / "runs"), **overrides})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_a_log_file_hears_of_the_first_steps(tmp_path, monkeypatch, capfd):
    """Without a terminal: a line after the first seconds, and then now and then, with what is left."""
    monkeypatch.setattr(callbacks.Progress, "FIRST", 0.0)
    monkeypatch.setattr(callbacks.Progress, "EVERY", 0.0)
    fit(toy_config(tmp_path, "trainer.validate_every=0", "trainer.steps=4", "trainer.log_every=1"))
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in lines] == [f"step {step} of 4" for step in range(1, 5)]
    assert all("loss " in line and "images/s " in line for line in lines[1:])
    assert ["min left" in line for line in lines] == [False, True, True, False]  # the first step may compile


def test_the_bar_of_a_terminal_of_80_columns_shows_it_all(tmp_path, monkeypatch, capfd):
    """The step, the time left, the losses and images/s, none of which the bar's end cuts off."""
    monkeypatch.setattr(callbacks.sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TQDM_NCOLS", "80")
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    fit(toy_config(tmp_path, "trainer.validate_every=2", "trainer.steps=8", "trainer.log_every=1"))
    last = re.split(r"[\r\n]+", capfd.readouterr().err.strip())[-1]
    assert re.search(r"8/8 .* \d\d:\d\d<00:00, loss=\S+, validation=\S+, images/s=\d+$", last), last
    longest = "loss=-12.1234, validation=-12.1234, images/s=12345"
    shown = tqdm.format_meter(29_999, 30_000, 3599, ncols=80, bar_format=callbacks.Progress.BAR, postfix=longest)
    assert shown.endswith(longest), shown


@pytest.mark.parametrize("compiles", [True, False])
def test_a_run_that_compiles_says_why_its_first_step_takes_long(compiles, capfd):
    trainer = Trainer(max_steps=4, logger=False, barebones=True)
    callbacks.Progress(8, compiles).on_train_start(trainer, LightningModule())
    assert ("compiling: the first step" in capfd.readouterr().err) is compiles


def test_what_a_killed_process_was_writing_goes_when_the_run_goes_on(tmp_path, interrupt):
    config = toy_config(tmp_path, "ema.widths=[0.05,0.1]", "trainer.sample_every=2")
    interrupt(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run = fit(config).run
    left = [run / part / f".a{part}.01234567.tmp" for part in ("", "samples", "averages", "checkpoints")]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    fit(config, run)
    assert not any(path.exists() for path in left)
