"""Disks that are full at any moment of a run: one line, nothing torn, nothing stray, and the same command continues."""

from pathlib import Path

import pytest
from small_disk import make_room, small_disk
from test_survival import assert_equal_bits
from tiny_configs import toy_arguments

from diffusion.storage import runs
from diffusion.storage.checkpoint_files import read_checkpoint

LAST = Path(runs.CHECKPOINTS) / "last.ckpt"
OPTIONS = (
    "trainer.steps=16", "trainer.checkpoint_every=2", "trainer.keep_last=100", "trainer.validate_every=4",
    "trainer.sample_every=5", "evaluation.enabled=false",
)  # fmt: skip
# KiB; a whole run takes about 520, and its model is complete from 480 on
FEW, MANY = (88,), range(4, 480, 8)


@pytest.fixture
def train(forked):
    """Train with the runs in a folder: the exit code, and what was said."""
    arguments = [argument for argument in toy_arguments(Path(), *OPTIONS) if not argument.startswith("runs=")]

    def run(folder):
        code, *said = forked("full_disks.py", *arguments, f"runs={folder}")
        return code, "".join(said)

    return run


@pytest.mark.parametrize("sizes", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_a_full_disk_loses_nothing_and_the_same_command_continues(tmp_path, train, sizes):
    assert train(tmp_path / "whole")[0] == 0
    whole = tmp_path / "whole" / "toy-0001"
    hit = set()
    for kib in sizes:
        with small_disk(tmp_path / "disk", kib) as disk:
            code, said = train(disk)
            (told,) = (line for line in said.splitlines() if "error" in line.lower())
            assert code == 2, said
            assert told.startswith(f"error: {disk / 'toy-0001'}/"), told
            assert ": cannot be written (No space left on device" in told
            assert told.endswith("Free some space; the same command resumes the run.")
            assert not list(disk.rglob(".*")), "remnants"
            last, step = disk / "toy-0001" / LAST, 0
            if last.is_file():
                step = read_checkpoint(last)["global_step"]
                assert step >= 2
            assert ("the former checkpoint is whole" in told) == (last.is_file() and "last.ckpt" in told)
            hit.add(told.split(": ")[1].rsplit("/", 1)[1])
            make_room(disk, 4096)
            code, said = train(disk)
            assert code == 0, said
            assert f"continuing {disk / 'toy-0001'}" in said or step == 0
            assert [run.name for run in disk.iterdir()] == ["toy-0001"], "another run was begun"
            assert_equal_bits(whole, disk / "toy-0001")
    expected = {"best.ckpt"} if sizes == FEW else {"metrics.jsonl", "best.ckpt", "last.ckpt", "step-00000015.png"}
    assert expected <= hit, "the disks were not full where it matters"


@pytest.mark.slow
def test_a_disk_without_room_for_the_pictures_at_the_end_says_that_the_model_is_there(tmp_path, train):
    with small_disk(tmp_path / "disk", 492) as disk:
        code, said = train(disk)
        assert code == 2
        assert "cannot be written (No space left on device). The run is complete" in said
        model = disk / "toy-0001" / runs.MODEL
        assert f"its model is {model}." in said
        assert model.is_file()
