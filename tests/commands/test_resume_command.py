"""--resume: which run a command continues, and what stops it from continuing one."""

import os
from pathlib import Path

import pytest
import torch
from tiny_configs import toy_config

from diffusion.commands.app import command
from diffusion.commands.train.train import train
from diffusion.config import dump_config, parse_train_arguments
from diffusion.errors import UserError
from diffusion.processes import typed
from diffusion.storage import run_status
from diffusion.training.resume import continuing, run_to_continue, status


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
    with pytest.raises(UserError, match=r"--resume: there is no run 'x' .*In .*runs: toy-0001\."):
        run_to_continue(config, "x")
    other = config.replace(runs=str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"Did you mean 'toy-0001'"):
        run_to_continue(other, str(Path(config.runs) / "toy"))
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
    assert (
        "toy-0001 is unfinished, but has a different configuration (seed: 0 -> 3); starting a new run"
        in capsys.readouterr().err
    )


def test_a_run_killed_before_its_first_checkpoint_begins_again_in_its_folder(tmp_path):
    config = toy_config(tmp_path)
    run = make(tmp_path, "toy-0001", config, checkpoint=False)
    assert run_to_continue(config, "auto") == run
    saved = make(tmp_path, "toy-0002", config, age=1000)
    assert run_to_continue(config, "auto") == saved, "one with a checkpoint comes first"


def test_a_run_in_training_is_left_alone(tmp_path, monkeypatch, capsys):
    config = toy_config(tmp_path)
    run = make(tmp_path, "toy-0001", config)
    (run / "metrics.jsonl").write_text('{"step": 3, "train/loss": 1.0}\n{"step": 4, "tr')
    monkeypatch.setattr("diffusion.storage.run_lock.holder", lambda run: "process 7 on a")
    assert run_to_continue(config, "auto") is None
    with pytest.raises(UserError, match="toy-0001 is being trained by process 7 on a"):
        run_to_continue(config, "toy-0001")
    assert status(config) == 1
    assert capsys.readouterr().out == f"{run}: is being trained by process 7 on a; step 4 of 6\n"


def test_a_finished_run_that_is_made_longer_is_unfinished_until_then(tmp_path):
    config = toy_config(tmp_path, "trainer.steps=9", "evaluation.enabled=false")
    run = make(tmp_path, "toy-0001", config)
    header = b'{"__metadata__": {"step": "6"}}'
    (run / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert run_to_continue(config, "auto") == run
    (run / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.replace(b"6", b"9"))
    assert run_to_continue(config, "auto") is None


def trained(run, step):
    header = b'{"__metadata__": {"step": "%d"}}' % step
    (run / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return run


QUICK = "evaluation.enabled=false"


@pytest.mark.parametrize("asked", [(), ("trainer.steps=90",), ("trainer.steps=2",), ("evaluation.enabled=true",)])
@pytest.mark.parametrize("named", ["toy-0001", "folder"])
def test_a_named_run_stands_as_its_own_configuration_says(tmp_path, capsys, monkeypatch, asked, named):
    run = trained(make(tmp_path, "toy-0001", toy_config(tmp_path, "trainer.steps=9", QUICK)), 9)
    name = str(run) if named == "folder" else named
    assert status(toy_config(tmp_path, *asked), name) == 0
    assert capsys.readouterr().out == f"{run}: complete\n"
    monkeypatch.chdir(tmp_path)
    assert command(train, ["--status", "--resume", name, *asked]) == 0, "by its name alone, of no default configuration"
    trained(run, 6)
    capsys.readouterr()
    assert status(toy_config(tmp_path, *asked), name) == 1
    again = f"{typed('train')} --resume {run} resumes it from step 6 of 9\n"
    assert capsys.readouterr().out == f"{run}: interrupted by a failure or a kill; {again}"
    run_status.record(run, 75, 6)
    assert status(toy_config(tmp_path, *asked), name) == 75
    assert capsys.readouterr().out == f"{run}: stopped by a signal; {again}"


def test_what_is_trained_and_not_measured_is_said(tmp_path, capsys):
    run = trained(make(tmp_path, "toy-0001", toy_config(tmp_path, "trainer.steps=9")), 9)
    assert status(toy_config(tmp_path), "toy-0001") == 1
    assert "trained, but not evaluated" in capsys.readouterr().out
    (run / "evaluation.json").write_bytes(b"")
    assert status(toy_config(tmp_path), "toy-0001") == 0


def test_a_finished_run_is_not_called_unfinished_by_a_longer_command(tmp_path, capsys):
    trained(make(tmp_path, "toy-0001", toy_config(tmp_path, "trainer.steps=9", QUICK)), 9)
    longer = toy_config(tmp_path, "trainer.steps=20", QUICK)
    assert run_to_continue(longer, "auto") is None
    assert capsys.readouterr().err == ""
    assert run_to_continue(longer, "auto", changed=True).name == "toy-0001"
    make(tmp_path, "toy-0002", toy_config(tmp_path, "trainer.steps=9", QUICK), age=1e9)  # cut off long ago
    assert run_to_continue(longer, "auto") is None
    assert (
        "toy-0002 is unfinished, but has a different configuration (trainer.steps: 9 -> 20)" in capsys.readouterr().err
    )


def test_what_goes_on_says_from_which_step(tmp_path):
    config = toy_config(tmp_path)
    run = make(tmp_path, "toy-0001", config, checkpoint=False)
    assert continuing(run, config) == f"continuing {run} from its start: it has no checkpoint yet"
    torch.save({"global_step": 4, "state_dict": {"w": torch.zeros(2)}}, run / "checkpoints" / "last.ckpt")
    assert continuing(run, config) == f"continuing {run} from step 4 of 6"
    (run / "checkpoints" / "last.ckpt").write_bytes(b"no checkpoint")
    assert continuing(run, config) == f"continuing {run} from its last checkpoint"


def test_a_call_is_answered_in_its_own_words(tmp_path):
    """`diffusion.train(resume=...)` hears of `resume`, the command line of `--resume`."""
    config = toy_config(tmp_path)
    make(tmp_path, "toy-0001", config, checkpoint=False)
    make(tmp_path, "toy-0002", config)
    given = toy_config(tmp_path, "optimizer.lr=0.5")
    for name, asked in (("nope", config), ("toy-0001", config), ("toy-0002", given)):
        with pytest.raises(UserError) as error:
            run_to_continue(asked, name, flag="resume")
        assert str(error.value).startswith("resume: ")
        assert "--" not in str(error.value)


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    trained(make(tmp_path, "toy-0001", toy_config(tmp_path, "trainer.steps=9", QUICK)), 9)
    with pytest.raises(UserError, match=r"trainer\.steps: found 4; .*toy-0001 has done 9"):
        run_to_continue(toy_config(tmp_path, "trainer.steps=4", QUICK), "toy-0001", changed=True)
    checkpoint = make(tmp_path, "toy-0002", toy_config(tmp_path, "trainer.steps=9")) / "checkpoints" / "last.ckpt"
    torch.save({"global_step": 6}, checkpoint)
    for steps, refused in ((5, True), (6, False), (7, False)):
        config = toy_config(tmp_path, f"trainer.steps={steps}")
        if refused:
            with pytest.raises(UserError, match=r"found 5; .*toy-0002 has done 6"):
                run_to_continue(config, "toy-0002", changed=True)
        else:
            assert run_to_continue(config, "toy-0002", changed=True).name == "toy-0002"


@pytest.mark.parametrize("where", ["name", "folder", "runs=", "a b"])
def test_a_run_that_is_named_alone_goes_on_by_its_own_configuration(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    own = toy_config(tmp_path, "data.name=moons", "optimizer.lr=0.5", "runs=runs")
    run = make(tmp_path, "toy-0001", own)
    argv = ["--resume", "toy-0001"]
    if where == "folder":
        monkeypatch.chdir("/")
        argv = [f"--resume={run}"]
    if where in ("runs=", "a b"):
        (tmp_path / "runs").rename(tmp_path / "a b")
        argv += ["runs=a b"] if where == "runs=" else []
        argv[1] = argv[1] if where == "runs=" else "a b/toy-0001/"
    arguments = parse_train_arguments([*argv, "trainer.steps=77", "--resume-changed"])
    assert arguments.config.data.name == "moons"
    assert (arguments.config.optimizer.lr, arguments.config.trainer.steps) == (0.5, 77)
    found = run_to_continue(arguments.config, arguments.resume, arguments.resume_changed)
    assert found.resolve().name == "toy-0001"
    given = parse_train_arguments([*argv, "--config", "toy"])
    assert given.config.data.name == "gaussians", "a --config that is given is taken"


def test_a_hint_can_be_typed_as_it_is_printed(tmp_path):
    make(tmp_path / "my own", "toy-0001", toy_config(tmp_path))
    config = toy_config(tmp_path, f"runs={tmp_path}/my own/runs", "data.name=moons")
    with pytest.raises(UserError) as error:
        run_to_continue(config, "toy-0001")
    assert f"Use --config '{tmp_path}/my own/runs/toy-0001/config.yaml'" in str(error.value)
