"""--resume: which run a command continues, and what stops it from continuing one."""

import os

import pytest
from tiny_configs import toy_config

from diffusion.config import dump_config
from diffusion.errors import UserError
from diffusion.resume import run_to_continue


def make(folder, name, config, *, checkpoint=True, finished=False, age=0):
    """A run folder as training leaves it, so many seconds old."""
    run = folder / "runs" / name
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config))
    if checkpoint:
        last = run / "checkpoints" / "last.ckpt"
        last.write_bytes(b"")
        os.utime(last, (1e9 - age, 1e9 - age))
    if finished:
        (run / "model.safetensors").write_bytes(b"")
        (run / "evaluation.json").write_bytes(b"")
    return run


def test_auto_is_the_newest_unfinished_run_of_the_name_and_configuration(tmp_path):
    config = toy_config(tmp_path)
    assert run_to_continue(config, "auto") is None, "there is no folder of runs at all"
    make(tmp_path, "toy-0001", config, age=90)
    newest = make(tmp_path, "toy-0002", config, age=80)
    make(tmp_path, "toy-0003", config, finished=True)
    make(tmp_path, "toy-0004", config, checkpoint=False)
    make(tmp_path, "toy-0005", toy_config(tmp_path, "optimizer.lr=0.5"))
    make(tmp_path, "other-0001", config)
    make(tmp_path, "toy-wide-0001", config)
    assert run_to_continue(config, "auto") == newest
    assert run_to_continue(config, "never") is None
    assert run_to_continue(toy_config(tmp_path, "seed=3"), "auto") is None


def test_where_it_runs_and_what_it_is_called_make_no_difference(tmp_path):
    run = make(tmp_path, "toy-0001", toy_config(tmp_path))
    moved = toy_config(tmp_path, "device=auto", "logging.wandb=offline")
    assert run_to_continue(moved, "auto") == run
    renamed = toy_config(tmp_path, "name=renamed")
    assert run_to_continue(renamed, "auto") is None
    assert run_to_continue(renamed, "toy-0001") == run


@pytest.mark.parametrize("bare", [True, False])
def test_a_run_is_named_by_its_folder_or_its_name(tmp_path, bare):
    config = toy_config(tmp_path)
    run = make(tmp_path, "toy-0001", config)
    make(tmp_path, "toy-0002", config)
    assert run_to_continue(config, "toy-0001" if bare else str(run)) == run


def test_a_finished_run_may_be_named(tmp_path):
    config = toy_config(tmp_path)
    run = make(tmp_path, "toy-0001", config, finished=True)
    assert run_to_continue(config, "toy-0001") == run


def test_every_difference_is_listed(tmp_path):
    make(tmp_path, "toy-0001", toy_config(tmp_path))
    given = toy_config(tmp_path, "optimizer.lr=0.5", "trainer.steps=9", "network.width=16")
    with pytest.raises(UserError) as error:
        run_to_continue(given, "toy-0001")
    text = str(error.value)
    for difference in ("optimizer.lr: 0.001 -> 0.5", "trainer.steps: 6 -> 9", "network.width: 8 -> 16"):
        assert difference in text
    assert text.count("->") == 3
    assert "\n" not in text
    assert "--resume never" in text


def test_what_cannot_be_continued_is_explained(tmp_path):
    config = toy_config(tmp_path)
    make(tmp_path, "toy-0001", config, checkpoint=False)
    with pytest.raises(UserError, match=r"--resume: .*toy-0001 has no checkpoints/last\.ckpt"):
        run_to_continue(config, "toy-0001")
    with pytest.raises(UserError, match=r"there is no run 'toy-001'.*Did you mean 'toy-0001'"):
        run_to_continue(config, "toy-001")
    run = make(tmp_path, "toy-0002", config)
    (run / "config.yaml").write_text("optimiser: {}\n")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        run_to_continue(config, "toy-0002")
    assert run_to_continue(config, "auto") != run, "a run that cannot be read is left alone"


def test_auto_goes_on_with_a_run_that_was_cut_off_while_it_was_measured(tmp_path):
    config = toy_config(tmp_path, "evaluation.enabled=true")
    run = make(tmp_path, "toy-0001", config, finished=True)
    assert run_to_continue(config, "auto") is None
    (run / "evaluation.json").unlink()
    assert run_to_continue(config, "auto") == run
    unmeasured = toy_config(tmp_path, "evaluation.enabled=false")
    make(tmp_path, "toy-0002", unmeasured, finished=True).joinpath("evaluation.json").unlink()
    assert run_to_continue(unmeasured, "auto") is None, "no measurement was asked for"


def test_how_a_run_is_looked_at_may_change_freely(tmp_path):
    run = make(tmp_path, "toy-0001", toy_config(tmp_path))
    looked = toy_config(tmp_path, "trainer.log_every=7", "trainer.validate_every=2", "sampling.n=9", "logging.tags=[a]")
    assert run_to_continue(looked, "auto") == run_to_continue(looked, "toy-0001") == run


@pytest.mark.parametrize("resume", ["auto", "toy-0001"])
def test_what_the_optimiser_does_changes_on_request_only(tmp_path, capsys, resume):
    run = make(tmp_path, "toy-0001", toy_config(tmp_path))
    given = toy_config(tmp_path, "optimizer.lr=0.5", "trainer.steps=9")
    assert run_to_continue(given, resume, changed=True) == run
    told = capsys.readouterr().err
    assert "optimizer.lr: 0.001 -> 0.5; trainer.steps: 6 -> 9" in told
    with pytest.raises(UserError, match="accept it with --resume-changed"):
        run_to_continue(given, "toy-0001")


def test_what_the_weights_are_never_changes(tmp_path):
    make(tmp_path, "toy-0001", toy_config(tmp_path))
    given = toy_config(tmp_path, "optimizer.lr=0.5", "network.width=16")
    with pytest.raises(UserError, match=r"network\.width: 8 -> 16\. ") as error:
        run_to_continue(given, "toy-0001", changed=True)
    assert "optimizer.lr" not in str(error.value)
    assert run_to_continue(given, "auto", changed=True) is None


def test_a_new_run_beside_an_unfinished_one_says_why(tmp_path, capsys):
    make(tmp_path, "toy-0001", toy_config(tmp_path))
    assert run_to_continue(toy_config(tmp_path, "seed=3"), "auto") is None
    assert "toy-0001 is unfinished, but of another configuration (seed: 0 -> 3); a new run" in capsys.readouterr().err


def test_a_run_killed_before_its_first_checkpoint_begins_again_in_its_folder(tmp_path):
    config = toy_config(tmp_path)
    run = make(tmp_path, "toy-0001", config, checkpoint=False)
    assert run_to_continue(config, "auto") == run
    saved = make(tmp_path, "toy-0002", config, age=1000)
    assert run_to_continue(config, "auto") == saved, "one with a checkpoint comes first"


def test_a_run_in_training_is_left_alone(tmp_path, monkeypatch):
    config = toy_config(tmp_path)
    make(tmp_path, "toy-0001", config)
    monkeypatch.setattr("diffusion.run_lock.holder", lambda run: "process 7 on a")
    assert run_to_continue(config, "auto") is None
    with pytest.raises(UserError, match="toy-0001 is being trained by process 7 on a"):
        run_to_continue(config, "toy-0001")


def test_a_finished_run_that_is_made_longer_is_unfinished_until_then(tmp_path):
    config = toy_config(tmp_path, "trainer.steps=9", "evaluation.enabled=false")
    run = make(tmp_path, "toy-0001", config)
    header = b'{"__metadata__": {"step": "6"}}'
    (run / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert run_to_continue(config, "auto") == run
    (run / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.replace(b"6", b"9"))
    assert run_to_continue(config, "auto") is None
