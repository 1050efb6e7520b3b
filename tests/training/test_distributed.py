"""Two processes train as one does: the same losses, weights and files; a run goes on with another number of them."""

import os
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from safetensors.torch import load_file
from tiny_configs import autoencoder_config, toy_config
from tiny_training import LIGHTNING_WARNINGS
from two_processes import HALF, STEPS, config_of, cut

from diffusion.config.preflight import process_count
from diffusion.errors import UserError
from diffusion.models.build import DataFacts
from diffusion.processes import Processes, launched
from diffusion.storage import runs
from diffusion.storage.checkpoint_files import read_checkpoint
from diffusion.training.distributed import launch as training_launch
from diffusion.training.distributed.shards import shard
from diffusion.training.fit import fit
from diffusion.training.logs.metrics import read_metrics
from diffusion.training.modules.build import build_module

pytestmark = [*LIGHTNING_WARNINGS, pytest.mark.usefixtures("quick")]

TOLERANCE = 1e-6


def in_two_processes(forked, folder, program, *arguments, timeout=300):
    """Run a program beside this file as two processes of one launch, and return what it printed."""
    code, *said = forked("ranks.py", Path(__file__).with_name(program), *arguments, folder=folder, timeout=timeout)
    assert code == 0, said[1][-4000:]
    return said


def losses(run, key="train/loss"):
    return torch.tensor([row[key] for row in read_metrics(run / "metrics.jsonl") if key in row], dtype=torch.float64)


def launch(forked, folder, name, *more):
    said = in_two_processes(forked, folder, "two_processes.py", str(folder), name, *more)
    assert "Warning" not in said[1], said[1]
    return name, fit(config_of(name, folder / "alone")).run, folder


@pytest.fixture(scope="module", params=["toy", pytest.param("digits", marks=pytest.mark.slow)])
def together(request, tmp_path_factory, forked):
    """The name of a run, its folder from one process, and the folder of those from two."""
    return launch(forked, tmp_path_factory.mktemp(request.param), request.param)


def same_run(one, two):
    for key in ("train/loss", "validation/loss", "train/grad_norm"):
        ours, theirs = losses(one, key), losses(two, key)
        assert len(ours) == (STEPS if key.startswith("train") else STEPS // 5), "none twice and none missing"
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    ours, theirs = (load_file(run / runs.MODEL) for run in (one, two))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5)
    pictures = [sorted(path.name for path in (run / "samples").iterdir()) for run in (one, two)]
    assert pictures[0] == pictures[1] == ["step-00000005.png", "step-00000010.png"]


@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_two_processes_are_as_one(together, strategy):
    _, alone, folder = together
    (run,) = (folder / strategy / "runs").iterdir()  # one run folder, not one a process
    same_run(alone, run)


@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_saved_by_two_continued_by_one(together, strategy, tmp_path):
    name, alone, folder = together
    half = cut(folder / strategy / "runs" / f"{name}-0001", tmp_path / "half")
    assert read_checkpoint(half / "checkpoints" / "last.ckpt")["global_step"] == HALF
    fit(config_of(name, tmp_path), half)
    same_run(alone, half)


@pytest.mark.slow
def test_saved_by_two_continued_by_two_to_the_same_bits(tmp_path, forked):
    launch(forked, tmp_path, "toy", "again")
    for strategy in ("ddp", "sharded"):
        whole, again = (tmp_path / strategy / part for part in ("runs/toy-0001", "again"))
        assert torch.equal(losses(whole), losses(again))
        ours, theirs = (load_file(run / runs.MODEL) for run in (whole, again))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_sharded_checkpoint_is_that_of_one_process(together):
    """Names, shapes and kinds of all that is kept: what one process needs to go on."""
    name, alone, folder = together

    def layout(value):
        if isinstance(value, dict):
            return {key: layout(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [layout(entry) for entry in value]
        return (value.dtype, value.shape) if isinstance(value, torch.Tensor) else type(value)

    ours, theirs = (
        read_checkpoint(run / "checkpoints" / "last.ckpt")
        for run in (alone, folder / "sharded" / "runs" / f"{name}-0001")
    )
    for key in ("state_dict", "weight_average"):
        assert layout(ours[key]) == layout(theirs[key])
    states = [state["optimizer_states"][0]["state"] for state in (ours, theirs)]
    assert {key: {name: value.shape for name, value in entry.items()} for key, entry in states[0].items()} == {
        key: {name: value.shape for name, value in entry.items()} for key, entry in states[1].items()
    }


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Processes()),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, Processes()),  # a child of Lightning's own launcher
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Processes(5, 8, 1, 4)),
        ({"RANK": "2", "WORLD_SIZE": "3"}, Processes(2, 3, 2, 3)),
    ],
)
def test_the_launcher_is_understood(environment, expected):
    assert launched(environment) == expected
    assert expected.is_main == (expected.rank == 0)
    assert expected.machines == max(1, expected.count // expected.local_count)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, {"LOCAL_RANK": "1", "NODE_RANK": "0"}),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, {"NODE_RANK": "1"}),
        ({}, {}),
    ],
)
def test_lightning_is_told_that_the_launcher_has_started_all(monkeypatch, environment, expected):
    """Without LOCAL_RANK it would start others itself, and take each process for the one that writes."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    now = dict(environment)
    monkeypatch.setattr(os, "environ", now)
    monkeypatch.setattr(training_launch, "launched", lambda: launched(now))
    monkeypatch.setattr(training_launch, "group_is_up", lambda: True)
    training_launch.meet(torch.device("cpu"))
    assert now == {**environment, **expected}
    assert LightningEnvironment().creates_processes_externally == bool(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "two"},
    ],
)
def test_a_launcher_that_makes_no_sense_is_told(environment):
    with pytest.raises(UserError, match="WORLD_SIZE="):
        launched(environment)


BAD = {
    "a batch that cannot be shared": (toy_config, "trainer.batch_size=9", "multiple of accumulate x processes, 2"),
    "two counts": (toy_config, "trainer.devices=4", "the launcher has started 2 processes"),
    "a family that is not sharded": (
        lambda folder, *given: autoencoder_config("vae", folder, *given), "trainer.strategy=sharded", "'vae' takes ddp",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_processes_cannot_share_is_told(tmp_path, monkeypatch, case):
    make, setting, message = BAD[case]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=message):
        process_count(make(tmp_path, setting))


def test_parameters_outside_of_the_network_are_not_sharded(tmp_path):
    learned = ("schedule.name=learned", "objective.time=uniform")
    config = toy_config(tmp_path, *learned, "objective.weighting=elbo")
    module = build_module(config, DataFacts("gaussians", (2,), None, 0), {})
    with pytest.raises(UserError, match=r"'schedule\.log_density' is outside of its network; use ddp"):
        shard(module.networks, module.model, None)
