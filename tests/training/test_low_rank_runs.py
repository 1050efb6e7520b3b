"""`train.py --from MODEL --lora RANK`: a file of factors, read together with its base, and a run like any other."""

import json
from dataclasses import replace

import pytest
import torch
from made_runs import DIGITS, make_run
from tiny_configs import autoencoder_config, digits_config, toy_config
from tiny_training import LIGHTNING_WARNINGS

import diffusion
from diffusion.commands.app import command
from diffusion.commands.dispatch import main
from diffusion.config import parse_train_arguments, preflight
from diffusion.errors import UserError
from diffusion.models import factors
from diffusion.models.build import build_denoiser
from diffusion.models.factors import learned_names
from diffusion.storage import runs, tensor_files
from diffusion.training.fit import fit
from diffusion.training.start import start_from

pytestmark = LIGHTNING_WARNINGS
RATE = "optimizer.lr=0.05"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("factors")


@pytest.fixture(scope="module")
def source(folder):
    """A model of ten classes."""
    return make_run(folder / "runs", digits_config(folder, "denoiser.conditional=true", "name=source"))


def config_from(source, folder, *overrides):
    start = (f"trainer.start={source}", "trainer.lora=2", "trainer.steps=4", RATE)
    return digits_config(folder, "denoiser.conditional=true", *start, *overrides)


@pytest.fixture(scope="module")
def trained(source, folder):
    """A run of factors on it."""
    said = []
    done = fit(config_from(source, folder, "name=trained"), report=said.append)
    assert "training factors of rank 2 of" in said[1]
    return done.run


def weights_of(path):
    return diffusion.load(path).module.state_dict()


def test_the_file_holds_factors_and_the_model_differs_by_their_rank(source, trained):
    state, metadata = tensor_files.read_model(trained / runs.MODEL)
    assert all(name.endswith((".weight.up", ".weight.down")) for name in state)
    assert json.loads(metadata[factors.KEY])["base"] == str(source / runs.MODEL)
    assert (trained / runs.MODEL).stat().st_size < (source / runs.MODEL).stat().st_size
    before, after = weights_of(source), weights_of(trained)
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {name.removesuffix(".up") for name in state if name.endswith(".up")}
    for name in changed:
        difference = (after[name] - before[name]).flatten(1).double()
        values = torch.linalg.svdvals(difference)
        assert bool((values[2:] < 1e-5 * values[0]).all()), name


def test_step_0_has_the_figures_of_the_source_to_the_bit(source, trained):
    before, start = weights_of(source), weights_of(trained / runs.START)
    assert all(torch.equal(start[name], value) for name, value in before.items())
    assert (trained / runs.START).stat().st_size < (source / runs.MODEL).stat().st_size


def test_a_run_that_was_cut_off_ends_like_one_that_was_not(source, trained, tmp_path):
    """Its checkpoints hold no more than the factors, and are models by themselves."""
    constant = "optimizer.decay=constant"
    half = fit(config_from(source, tmp_path / "a", constant, "trainer.steps=2")).run
    last = torch.load(half / runs.CHECKPOINTS / "last.ckpt", weights_only=True)
    held = [*last["state_dict"], *last["weight_average"]["averages"][0]]
    assert held
    assert all(name.endswith((".up", ".down")) for name in held)
    read, model = weights_of(half / runs.CHECKPOINTS / "last.ckpt"), weights_of(half)
    assert all(torch.equal(read[name], value) for name, value in model.items())
    done = fit(config_from(source, tmp_path / "a", constant), half).run
    whole = fit(config_from(source, tmp_path / "b", constant)).run
    found, expected = weights_of(done), weights_of(whole)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert any(not torch.equal(found[name], value) for name, value in model.items())


def test_factors_on_factors_and_all_weights_on_factors(trained, tmp_path):
    second = fit(config_from(trained, tmp_path, "trainer.lora=1")).run
    before, after = weights_of(trained), weights_of(second)
    changed = [name for name, value in before.items() if not torch.equal(after[name], value)]
    for name in changed:
        values = torch.linalg.svdvals((after[name] - before[name]).flatten(1).double())
        assert bool((values[1:] < 1e-5 * values[0]).all()), name
    config = parse_train_arguments(["--from", str(trained), f"runs={tmp_path / 'runs'}", "trainer.steps=1"]).config
    assert config.trainer.lora is None, "all weights, unless the command says otherwise"
    third = fit(config.replace(trainer=config.trainer.replace(start=str(second)))).run
    state, metadata = tensor_files.read_model(third / runs.MODEL)
    assert factors.KEY not in metadata
    assert state.keys() == after.keys()


def test_the_commands_take_it(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    out = str(tmp_path / "whole.safetensors")
    assert command(main, ["convert", str(trained), out]) == 0
    model, whole = diffusion.load(trained), diffusion.load(out)
    assert factors.KEY not in tensor_files.read_model(out)[1]
    assert torch.equal(whole.sample(2, label=3, steps=2), model.sample(2, label=3, steps=2))
    assert command(main, ["sample", "--run", str(trained), "--n", "2", "--label", "3", "--out", "x.png"]) == 0
    few = ("--images", "4", "--method", "elbo", "--draws", "4", "--wandb", "off")
    assert command(main, ["evaluate", str(trained), out, *few]) == 0
    assert command(main, ["export", str(trained), str(tmp_path / "hub"), "--to", "hub"]) == 0
    hub = weights_of(tmp_path / "hub")
    assert all(torch.equal(hub[name], value) for name, value in model.module.state_dict().items())
    assert "error" not in capsys.readouterr().err


def test_a_base_that_moves_along_is_found_and_another_one_is_refused(source, folder, tmp_path):
    place = tmp_path / "old"
    base = place / "runs" / "source-0001"
    base.mkdir(parents=True)
    (base / runs.MODEL).write_bytes((source / runs.MODEL).read_bytes())
    run = fit(config_from(base, place, "name=moved", "trainer.steps=1")).run
    expected = weights_of(run)
    place.rename(tmp_path / "new")
    run = tmp_path / "new" / "runs" / run.name
    found = weights_of(run)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    moved = tmp_path / "new" / "runs" / "source-0001" / runs.MODEL
    moved.write_bytes((source / runs.MODEL).read_bytes() + b"x")
    with pytest.raises(UserError, match=r"holds factors on the weights of another model, and .* is another model now"):
        diffusion.load(run)
    moved.unlink()
    with pytest.raises(UserError, match=rf"{base / runs.MODEL} is not there; bring it back"):
        diffusion.load(run)
    with pytest.raises(UserError, match=r"source-0001"):
        fit(config_from(base, tmp_path / "new", "name=moved"), run)


def test_a_run_does_not_go_on_from_another_base(source, tmp_path):
    copy = tmp_path / "base.safetensors"
    copy.write_bytes((source / runs.MODEL).read_bytes())
    run = fit(config_from(copy, tmp_path, "trainer.steps=1")).run
    state, metadata = tensor_files.read_model(copy)
    text = metadata.pop("config")
    tensor_files.save_model(copy, {name: value + 1 for name, value in state.items()}, text, metadata)
    with pytest.raises(UserError, match=r"trainer\.start: .*base\.safetensors is not the model any more"):
        fit(config_from(copy, tmp_path), run)


def test_new_classes_are_learned_whole(source, tmp_path):
    facts = replace(DIGITS, num_classes=3)
    config = config_from(source, tmp_path)
    model = build_denoiser(config, facts)
    notes = start_from(model, config, facts)
    assert any("and the label embedding" in note for note in notes)
    assert any(name.endswith("conditioning.classes.weight") for name in learned_names(model))


def test_what_makes_no_sense_is_refused(source, tmp_path):
    with pytest.raises(UserError, match=r"^trainer\.lora: found 2; factors are of a model to start from: give --from"):
        parse_train_arguments(["--lora", "2"])
    with pytest.raises(UserError, match=r"trainer\.lora: found .?0"):
        parse_train_arguments(["--from", str(source), "--lora", "0"])
    assert parse_train_arguments(["--from", str(source), "--lora=3"]).config.trainer.lora == 3
    toy = make_run(
        tmp_path, toy_config(tmp_path), replace(DIGITS, name="moons", shape=(2,), levels=None, num_classes=0)
    )
    with pytest.raises(UserError, match=r"trainer\.lora: found 2; .*has none"):
        fit(toy_config(tmp_path, f"trainer.start={toy}", "trainer.lora=2"))
    with pytest.raises(UserError, match=r"trainer\.lora: .*family 'vae' does not take it; diffusion, adopted do"):
        autoencoder_config("vae", tmp_path, f"trainer.start={source}", "trainer.lora=2")
    with pytest.raises(UserError, match=r"trainer\.strategy: found 'sharded'; with trainer\.lora=2: ddp"):
        preflight.process_count(config_from(source, tmp_path, "trainer.strategy=sharded"))


@pytest.mark.parametrize(
    "entry",
    [
        "{",
        "[]",
        '{"base": 1, "sha256": "x"}',
        '{"base": "x"}',
        '["base", "sha256"]',
        "[" * 9999,
        *(
            json.dumps({"base": base, "sha256": "0" * 64})
            for base in (
                f"{'x' * 5000}.safetensors",
                f"pretrained:{'x' * 5000}",
                "a\0b.safetensors",
                "pretrained:a\0b",
                "\ud800.ckpt",
            )
        ),
    ],
    ids=lambda entry: entry[:30],
)
def test_a_damaged_entry_is_one_line(trained, tmp_path, entry):
    state, metadata = tensor_files.read_model(trained / runs.MODEL)
    text = metadata.pop("config")
    tensor_files.save_model(tmp_path / "x.safetensors", state, text, {**metadata, factors.KEY: entry})
    with pytest.raises(UserError, match=r"x\.safetensors: what it says of its base is damaged"):
        diffusion.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("base", ["hf:owner/name", "made.py:model", "/dev/zero", "pretrained:nothing", "other.pkl"])
def test_a_file_makes_nobody_fetch_or_run_anything(trained, tmp_path, base):
    (tmp_path / "made.py").write_text("raise SystemExit('it was run')\n")
    (tmp_path / "other.pkl").write_bytes(b"x")
    state, metadata = tensor_files.read_model(trained / runs.MODEL)
    text, entry = metadata.pop("config"), json.dumps({"base": base, "sha256": "0" * 64})
    tensor_files.save_model(tmp_path / "x.safetensors", state, text, {**metadata, factors.KEY: entry})
    with pytest.raises(UserError, match=r"is not there; bring it back"):
        diffusion.load(tmp_path / "x.safetensors")
