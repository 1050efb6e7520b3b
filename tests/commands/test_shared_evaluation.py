"""evaluate by several processes: each image once, one writer, and the figure of one process to the bit."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from by_ranks import by_ranks

from diffusion.commands import records
from diffusion.commands.evaluate import measuring, targeting
from diffusion.commands.subjects import images_of, load_images_of, load_subject, rows_of
from diffusion.processes import Processes

# Lightning's own: it uses a deprecated class of PyTorch (tests/training/tiny_training.py has the same mark).
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

HOW = measuring.How(torch.device("cpu"), batch_size=6)
OPTIONS = {"ode": {"seed": 0, "tolerance": 0.1}, "elbo": {"seed": 0, "evaluations": 4}}


def shared(count, method, home, target=None, progress=None):
    """What each of `count` processes returns: threads here, with nothing in common but the disk."""

    def one(rank):
        subject = load_subject("digits-0001", "runs")
        object.__setattr__(subject, "home", home)
        images, identity = images_of(load_images_of(subject), "test", 20)
        protocol = measuring.question(subject, identity, method, OPTIONS[method])
        how = replace(HOW, progress=progress, processes=Processes(rank, count, rank, count))
        if target is None:
            return measuring.measure(subject, images, protocol, how)
        return targeting.measure_to(target, subject, images, protocol, how)[::2]

    return by_ranks(count, one)


def same(ours, theirs):
    assert ours.protocol == theirs.protocol
    assert torch.equal(ours.estimate.log_prob, theirs.estimate.log_prob)
    # as text, where unknown is equal to unknown
    ours, theirs = ({**evaluation.estimate.to_dict(), "seconds": 0} for evaluation in (ours, theirs))
    assert ours == theirs


@pytest.mark.parametrize("method", ["elbo", pytest.param("ode", marks=pytest.mark.slow)])
def test_one_two_and_three_processes_find_the_same(place, monkeypatch, method):
    measured, written = [], []
    chunk, write = measuring._chunk, records.write

    def chunk_noted(model, images, rows, *more):
        measured.extend(rows.tolist())
        return chunk(model, images, rows, *more)

    def write_noted(*arguments):
        written.append(threading.current_thread().name)
        return write(*arguments)

    monkeypatch.setattr(measuring, "_chunk", chunk_noted)
    monkeypatch.setattr(records, "write", write_noted)
    told = []
    (alone,) = shared(1, method, Path("one"), progress=lambda *done: told.append(done))
    assert (0, 20, f"NFE {alone.estimate.nfe:.0f}") in told, "the first chunk is heard of before its end"
    rows = rows_of(alone.protocol.data).tolist()
    assert alone.estimate.indices.tolist() == rows, "20 images in chunks of 6: the last one is uneven"
    by_one = sorted(measured)
    for count in (2, 3):
        measured.clear()
        written.clear()
        for evaluation in shared(count, method, Path(str(count))):
            same(alone, evaluation)
        assert sorted(measured) == by_one, "each image once"
        assert len(written) == 1, "one writer"
        assert [path.name for path in Path(str(count), records.FOLDER).iterdir()] == [f"{alone.protocol.name}.json"]


def test_a_search_for_a_target_error_is_shared(place):
    (alone,) = shared(1, "elbo", Path("one"), target=0.01)
    assert alone.protocol.options["evaluations"] > 4, "it took more than a pilot"
    for evaluation in shared(2, "elbo", Path("two"), target=0.01):
        same(alone, evaluation)


def test_what_one_began_two_finish(place, monkeypatch):
    (alone,) = shared(1, "elbo", Path("one"))
    monkeypatch.setattr(measuring.Bench, "clear", lambda self: None)
    shared(1, "elbo", Path("two"))
    folder = Path("two", records.FOLDER)
    (folder / f"{alone.protocol.name}.json").unlink()
    for part in sorted((folder / alone.protocol.name).glob("*.part"))[1::2]:
        part.unlink()
    for evaluation in shared(2, "elbo", Path("two")):
        same(alone, evaluation)


def test_parts_that_vanish_are_told_and_not_waited_for(diffusion_command, monkeypatch):
    monkeypatch.setattr(records, "write_part", lambda *_: None)
    code, _, err = diffusion_command("evaluate", "digits-0001", "--method", "elbo", "--images", "4")
    assert (code, err.count("\n")) == (2, 1), err
    assert "parts are missing" in err


def test_again_is_for_one(diffusion_command, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = diffusion_command("evaluate", "digits-0001", "--again")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: --again: several processes")
