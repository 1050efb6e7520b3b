"""`train.py --from`: a run that starts from another model has its figures at step 0, to the bit, and all else fresh."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_configs import DIGITS, autoencoder_config, digits_arguments, digits_config, toy_config

import diffusion
from diffusion.config import load_config, parse_train_arguments
from diffusion.errors import UserError
from diffusion.models.build import build_denoiser
from diffusion.storage import runs
from diffusion.training.fit import fit
from diffusion.training.start import start_from


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run of ten classes."""
    config = digits_config(tmp_path_factory.mktemp("source"), "denoiser.conditional=true", "optimizer.lr=1e-2")
    return fit(config).run


def config_from(source, folder, *overrides):
    return digits_config(folder, "denoiser.conditional=true", f"trainer.start={source}", *overrides)


def test_step_0_has_the_figures_of_the_source_to_the_bit(source, tmp_path):
    said = []
    done = fit(config_from(source, tmp_path, "trainer.steps=2"), report=said.append)
    before, start, after = (diffusion.load(path) for path in (source, done.run / runs.START, done.run))
    images = done.data.images.test[:2]
    for method, options in {"elbo": {"evaluations": 4}, "ode": {"solver": "heun2", "steps": 3}}.items():
        found = diffusion.log_likelihood(start, images, method=method, **options).log_prob
        assert torch.equal(found, diffusion.log_likelihood(before, images, method=method, **options).log_prob)
    assert torch.equal(start.sample(2, label=3), before.sample(2, label=3))
    assert not torch.equal(after.sample(2, label=3), before.sample(2, label=3))
    assert "starting from" in said[1]
    # the optimiser and the counters are those of two steps, not of eight
    last = torch.load(done.run / runs.CHECKPOINTS / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert last["weight_average"]["images_seen"] == 16
    assert {float(state["step"]) for state in last["optimizer_states"][0]["state"].values()} == {2.0}


def test_the_average_starts_there_too(source, tmp_path):
    """With no learning rate to speak of, both it and the weights stay."""
    done = fit(config_from(source, tmp_path, "optimizer.lr=1e-12", "trainer.steps=3"))
    before, after = (diffusion.load(path).module.state_dict() for path in (source, done.run))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)


def test_the_same_command_continues_from_its_own_checkpoint(source, tmp_path):
    """Also where the source is gone by then."""
    moved = tmp_path / "source.safetensors"
    moved.write_bytes((source / runs.MODEL).read_bytes())
    constant = "optimizer.decay=constant"  # whose first steps are those of a longer run
    half = fit(config_from(moved, tmp_path / "a", constant, "trainer.steps=3"))
    whole = fit(config_from(moved, tmp_path / "b", constant))
    moved.unlink()
    done = fit(config_from(moved, tmp_path / "a", constant), half.run)
    found, expected = (diffusion.load(fitted.run).module.state_dict() for fitted in (done, whole))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("classes", [3, 12])
def test_other_classes_get_a_new_embedding_and_nothing_else_changes(source, tmp_path, classes):
    config = config_from(source, tmp_path)
    before = diffusion.load(source)
    facts = replace(before.facts, num_classes=classes, provenance={})
    model = build_denoiser(config, facts)
    notes = start_from(model, config, facts)
    assert f"labels: 10 classes in its training, {classes} now: a new label embedding" in notes
    x, t = torch.randn(3, 1, 8, 8), torch.tensor(0.5)
    model.eval()
    assert torch.equal(model(x, t), before.module(x, t))
    assert model(x, t, torch.tensor([0, 1, 2])).shape == x.shape


def test_labels_that_come_or_go_are_said(source, tmp_path):
    before = diffusion.load(source)
    plain = digits_config(tmp_path, f"trainer.start={source}")
    model = build_denoiser(plain, before.facts)
    assert any("10 classes are left out" in note for note in start_from(model, plain, before.facts))
    done = fit(digits_config(tmp_path, "trainer.steps=1"))
    config = config_from(done.run, tmp_path)
    model = build_denoiser(config, before.facts).eval()
    assert any("0 classes in its training, 10 now" in note for note in start_from(model, config, before.facts))
    x, t = torch.randn(3, 1, 8, 8), torch.tensor(0.5)
    assert torch.equal(model(x, t), diffusion.load(done.run).module(x, t))


def test_what_is_other_and_allowed_is_said(source, tmp_path):
    config = config_from(source, tmp_path, "schedule.name=vp", "network.dropout=0.3")
    facts = replace(diffusion.load(source).facts, shape=(1, 12, 12), levels=256)
    notes = start_from(build_denoiser(config, facts), config, facts)
    for text in ("size: (8, 8) in its training, (12, 12) now", "grey levels: 17", "path: "):
        assert any(text in note for note in notes), notes


def test_what_is_refused(source, tmp_path):
    facts = diffusion.load(source).facts
    for overrides, told in (
        (["denoiser.prediction=eps"], r"denoiser.prediction v \(the run has eps\); it must"),
        (
            ["network.base_channels=6", "denoiser.prediction=eps"],
            r"network.base_channels 4 \(the run has 6\), denoiser.prediction v \(the run has eps\); it must",
        ),
    ):
        config = config_from(source, tmp_path, *overrides)
        with pytest.raises(UserError, match=rf"^trainer\.start: .* was trained with {told}") as error:
            start_from(build_denoiser(config, facts), config, facts)
        assert "\n" not in str(error.value)
    config, colour = config_from(source, tmp_path), replace(facts, shape=(3, 8, 8))
    with pytest.raises(UserError, match="takes data of 1 channels, and 'digits' has 3"):
        start_from(build_denoiser(config, colour), config, colour)
    for other in (toy_config(tmp_path, f"trainer.start={source}"), autoencoder_config("vae", tmp_path)):
        given = other.replace(trainer=other.trainer.replace(start=str(source)))
        with pytest.raises(UserError, match=r"trainer\.start: "):
            fit(given)
    assert not list((Path(tmp_path) / "runs").glob("*"))  # before a run folder is made


def test_the_command_line(source, tmp_path, monkeypatch):
    """`--from` takes the source's own configuration where none is named, and what is not there is one line."""
    config = parse_train_arguments(["--from", str(source), "trainer.steps=7"]).config
    own = diffusion.load(source).config
    assert (config.trainer.start, config.trainer.steps) == (str(source), 7)
    assert (config.network, config.optimizer, config.name) == (own.network, own.optimizer, own.name)
    named = parse_train_arguments(["--from", str(source), *digits_arguments(tmp_path)]).config
    assert named == load_config("digits", [f"runs={tmp_path / 'runs'}", *DIGITS, f"trainer.start={source}"])
    shipped = parse_train_arguments(["--from=pretrained:digits"]).config
    assert shipped.network == diffusion.load("pretrained:digits").config.network
    with pytest.raises(UserError, match="no such run or model"):
        parse_train_arguments(["--from", str(tmp_path / "nothing")])
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match=r"--from: .* has no configuration that can be read; give --config"):
        parse_train_arguments(["--from", str(tmp_path / "x.safetensors")])
    from diffusion.config import preflight

    with pytest.raises(UserError, match=r"trainer\.start: .*no such run"):
        preflight.check_start(digits_config(tmp_path, "trainer.start=nothing"))


def test_the_report_has_the_figures_before_step_1_and_at_the_end(source, tmp_path, capsys):
    from diffusion.commands.train.train import train

    few = ("evaluation.images=1", "evaluation.elbo_draws=2", "evaluation.tolerance=0.1")
    argv = ["--from", str(source), "--resume", "never", f"runs={tmp_path / 'runs'}", "trainer.steps=1", *few]
    assert train(argv) == 0
    out = capsys.readouterr().out
    table = " ".join(out.split())
    assert f"starting from {source / runs.MODEL} (step 6)" in table
    assert "PF-ODE before step 1" in table
    assert "ELBO before step 1" in table


@pytest.mark.parametrize("setting", ["denoiser.condition=[label]", "denoiser.conditional=true"])
def test_the_two_spellings_of_a_label_are_one_network(source, tmp_path, setting):
    facts = diffusion.load(source).facts
    other = fit(digits_config(tmp_path, "denoiser.condition=[label]", "trainer.steps=1")).run
    for start in (source, other):
        config = digits_config(tmp_path, setting, f"trainer.start={start}")
        model = build_denoiser(config, facts)
        start_from(model, config, facts)
        before = diffusion.load(start).module.state_dict()
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    config = digits_config(tmp_path, "denoiser.condition=[label,mask]", f"trainer.start={source}")
    with pytest.raises(UserError, match=r"was trained with denoiser\.condition label \(the run has label, mask\)"):
        start_from(build_denoiser(digits_config(tmp_path, setting), facts), config, facts)


@pytest.mark.parametrize("classes", [3, 12])
def test_a_class_among_several_parts_gets_a_new_embedding_for_other_classes(tmp_path, classes):
    run = fit(digits_config(tmp_path, "denoiser.condition=[label,mask]", "trainer.steps=1", "optimizer.lr=1e-2")).run
    before = diffusion.load(run)
    label, mask = before.facts.parts
    parts = (replace(label, size=classes, names=()), mask)
    facts = replace(before.facts, num_classes=classes, provenance={}, parts=parts)
    config = digits_config(tmp_path, "denoiser.conditional=true", "denoiser.condition=[mask]", f"trainer.start={run}")
    model = build_denoiser(config, facts).eval()
    notes = start_from(model, config, facts)
    assert f"label: 10 classes in its training, {classes} now: a new label embedding" in notes
    x, t = torch.randn(3, 1, 8, 8), torch.tensor(0.5)
    assert torch.equal(model(x, t), before.module(x, t)), "without a label nothing changes"
    labels = [part.none(3) for part in parts]
    labels[0] = torch.tensor([0, 1, 2])
    assert model(x, t, tuple(labels)).shape == x.shape
