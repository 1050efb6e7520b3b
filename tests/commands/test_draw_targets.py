"""Where sample.py writes: nothing before all is checked, no draw takes another's parts, or another's picture."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from made_runs import make_run
from PIL import Image
from test_draw import files, here, run_of_digits, run_sample  # noqa: F401
from tiny_configs import digits_config

from diffusion import load
from diffusion.commands.dispatch import COMMANDS
from diffusion.commands.sample import files as sample_files
from diffusion.commands.sample.arguments import parse_sample_arguments
from diffusion.data.pictures import to_bytes
from diffusion.models.build import DataFacts
from diffusion.storage import atomic, run_lock, runs
from diffusion.storage.paths import expanded

DRAW = ("--run", "digits-0001", "--sampler", "ddim", "--steps", "2", "--n", "5", "--batch-size", "2")


def images(path):
    with np.load(path) as arrays:
        return arrays["images"]


def expected(seed, **settings):
    x = load("runs/digits-0001").sample(5, seed=seed, batch_size=2, sampler="ddim", steps=2, **settings)
    return to_bytes(x)[:, 0].numpy()


def cut_off(capsys, monkeypatch, *argv, after=1):
    """A draw that is killed when it has kept so many batches."""
    keep = sample_files.SampleFiles.keep

    def cut(self, first, samples):
        keep(self, first, samples)
        if first >= 2 * (after - 1):
            raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(sample_files.SampleFiles, "keep", cut)
        with pytest.raises(SystemExit):
            run_sample(capsys, *DRAW, *argv)


REFUSED = [
    ("--label", "10"),
    ("--guidance", "2"),
    ("--sampler", "sde", "--eta", "1000"),
    ("--option", "predictor=3"),
    ("--label", "3", "--guidance-interval", "1", "2"),
    ("--posterior", "dps"),
    ("--method", "rk4"),
]


@pytest.mark.parametrize("argv", REFUSED, ids=" ".join)
@pytest.mark.parametrize("out", ["y.npz", "deep/y.zip", "folder"])
def test_a_refused_draw_leaves_nothing_and_its_correction_draws(here, capsys, argv, out):  # noqa: F811
    before = files(here)
    code, _, err = run_sample(capsys, *DRAW, *argv, "--out", out)
    assert code == 2
    assert err.count("\n") == 1
    assert files(here) == before
    assert not list(here.rglob(".*.parts"))
    assert not (here / "deep").exists()
    assert run_sample(capsys, *DRAW, "--out", out)[0] == 0


def test_a_draw_that_fails_on_its_way_does_not_block_its_correction(here, capsys, monkeypatch):  # noqa: F811
    model = type(load("runs/digits-0001"))
    drawn = model.sample

    def fail(self, n, seed=0, start=0, **settings):
        if start:
            raise sample_files.UserError("sampler ddim: samples are not finite")
        return drawn(self, n, seed, start=start, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(model, "sample", fail)
        code, _, err = run_sample(capsys, *DRAW, "--out", "x.npz")
    assert code == 2
    assert "not finite" in err
    assert not (here / "x.npz").exists()
    assert not (here / ".x.npz.parts").exists()
    assert run_sample(capsys, *DRAW, "--seed", "1", "--out", "x.npz")[0] == 0


def test_the_beginning_of_another_draw_is_refused_and_its_own_goes_on(here, capsys, monkeypatch):  # noqa: F811
    cut_off(capsys, monkeypatch, "--out", "x.npz")
    code, _, err = run_sample(capsys, *DRAW, "--out", "x.npz", "--seed", "7")
    assert code == 2
    assert re.search(r"holds an unfinished draw with other settings \(seed 0 there, 7 here\)", err)
    code, out, _ = run_sample(capsys, *DRAW, "--out", "x.npz")
    assert code == 0
    assert "2 of 5 samples are there already; resuming" in out
    assert np.array_equal(images("x.npz"), expected(0))
    assert not (here / ".x.npz.parts").exists()


@pytest.mark.parametrize("killed_after", range(1, 6))
def test_a_kill_while_the_parts_are_removed_leaves_a_beginning_or_nothing(
    here, capsys, monkeypatch, killed_after  # noqa: F811
):  # fmt: skip
    unlink, removed = sample_files.Path.unlink, []

    def kill(self, missing_ok=False):
        unlink(self, missing_ok=missing_ok)
        if self.parent.name == ".x.npz.parts" and not self.name.endswith(".tmp"):
            removed.append(self.name)
            if len(removed) == killed_after:
                raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(sample_files.Path, "unlink", kill)
        if killed_after <= 4:  # the question and three parts
            with pytest.raises(SystemExit):
                run_sample(capsys, *DRAW, "--out", "x.npz")
    for seed in (7, 0):
        code, _, err = run_sample(capsys, *DRAW, "--seed", str(seed), "--out", "x.npz")
        assert (code, err) == (0, "")
        assert np.array_equal(images("x.npz"), expected(seed))


@pytest.mark.parametrize("question", ["none", "ours", "damaged"])
def test_parts_of_no_question_are_not_taken(here, capsys, question):  # noqa: F811
    parts = here / ".x.npz.parts"
    parts.mkdir()
    for name in ("000000000-000000002.npy", "000000000-000000002-0123456789ab.npy", "000000002-000000005.npy"):
        np.save(parts / name, np.zeros((3, 1, 8, 8), np.uint8))
    if question == "ours":
        (parts / "question.json").write_text(json.dumps({"n": 5, "seed": 0}))
    if question == "damaged":
        (parts / "question.json").write_text("[" * 5000)
    assert run_sample(capsys, *DRAW, "--out", "x.npz")[0] == 0
    assert np.array_equal(images("x.npz"), expected(0))
    assert not parts.exists()


def test_another_image_of_the_same_name_is_another_draw(here, capsys, monkeypatch):  # noqa: F811
    for level in (40, 200):
        Image.fromarray(np.full((8, 8), level, np.uint8)).save("given.png")
        if level == 40:
            cut_off(capsys, monkeypatch, "--edit", "given.png", "--out", "x.npz")
    code, _, err = run_sample(capsys, *DRAW, "--edit", "given.png", "--out", "x.npz")
    assert code == 2
    assert "unfinished draw with other settings (images" in err


def test_a_damaged_part_is_drawn_again(here, capsys, monkeypatch):  # noqa: F811
    cut_off(capsys, monkeypatch, "--out", "x.npz", after=2)
    first, _ = sorted((here / ".x.npz.parts").glob("*.npy"))
    first.write_bytes(first.read_bytes()[:-9])
    code, _, err = run_sample(capsys, *DRAW, "--out", "x.npz")
    assert code == 2
    assert "is damaged and has been removed" in err
    code, out, _ = run_sample(capsys, *DRAW, "--out", "x.npz")
    assert code == 0
    assert "3 of 5 samples are there" in out
    assert np.array_equal(images("x.npz"), expected(0))


HOLD = """
import sys, time
from pathlib import Path
from diffusion.storage import run_lock
with run_lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_part_that_vanishes_is_told(here, capsys, monkeypatch):  # noqa: F811
    finish = sample_files.SampleFiles.finish

    def finish_without(self):
        next(self._parts.glob("*.npy")).unlink()
        return finish(self)

    with monkeypatch.context() as patch:
        patch.setattr(sample_files.SampleFiles, "finish", finish_without)
        code, _, err = run_sample(capsys, *DRAW, "--out", "x.npz")
    assert (code, err.count("\n")) == (2, 1), err
    assert "parts are missing; the same command draws them again" in err
    assert run_sample(capsys, *DRAW, "--out", "x.npz")[0] == 0


def test_a_second_draw_into_a_target_says_that_the_first_is_drawing_it(here, capsys, monkeypatch):  # noqa: F811
    cut_off(capsys, monkeypatch, "--out", "x.npz")
    parts = here / ".x.npz.parts"
    before = files(here)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(parts)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        code, _, err = run_sample(capsys, *DRAW, "--out", "x.npz")
        assert code == 2
        assert re.fullmatch(r"error: --out: \.x\.npz\.parts is being written by process \d+ on .*\n", err)
        # one that had begun before the first made its folder
        monkeypatch.setattr(run_lock, "holder", lambda folder: None)
        assert run_sample(capsys, *DRAW, "--out", "x.npz")[0] == 2
        assert files(here) == before | {".x.npz.parts/.lock"}
        first.stdin.close()
    assert run_sample(capsys, *DRAW, "--out", "x.npz")[0] == 0
    assert np.array_equal(images("x.npz"), expected(0))


def test_draws_of_other_settings_have_pictures_of_their_own(here, capsys):  # noqa: F811
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save("given.png")
    others = [
        (), ("--label", "3"), ("--label", "4"), ("--label", "3", "--guidance", "4"), ("--size", "16"), ("--seed", "1"),
        ("--n", "2"), ("--edit", "given.png"), ("--edit", "given.png", "--strength", "0.3"), ("--dtype", "float64"),
    ]  # fmt: skip
    for argv in others:
        assert run_sample(capsys, *DRAW, *argv)[0] == 0
    pictures = list((here / "runs/digits-0001/samples").iterdir())
    assert len(pictures) == len(others)
    names = {path.name for path in pictures}
    assert {"digits-ddim-seed0-steps2.png", "digits-ddim-seed0-edit-steps2-strength0.3.png"} <= names
    for argv in others:  # the very same draws replace theirs
        assert run_sample(capsys, *DRAW, *argv)[0] == 0
    assert len(list((here / "runs/digits-0001/samples").iterdir())) == len(others)
    for argv in ((), ("--label", "3"), ("--label", "3")):
        assert run_sample(capsys, *DRAW, "--animate", *argv)[0] == 0
    assert len(list((here / "runs/digits-0001/samples").glob("*.gif"))) == 2
    Image.fromarray(np.full((8, 8), 190, np.uint8)).save("other.png")
    for name in ("given.png", "other.png", "given.png"):
        assert run_sample(capsys, "--steps", "2", "--sampler", "ddim", "--encode", name)[0] == 0
    assert {path.name for path in here.glob("*.npz")} == {"noise.npz", "noise-2.npz"}
    for a, b in (("given.png", "other.png"), ("other.png", "given.png"), ("other.png", "given.png")):
        assert run_sample(capsys, "--steps", "2", "--sampler", "ddim", "--interpolate", a, b)[0] == 0
    assert len(list((here / "runs/digits-0001/samples").glob("*between*"))) == 2


def test_arrays_of_other_draws_do_not_replace_each_others_pictures(here, capsys):  # noqa: F811
    for seed, out in ((0, "a.npz"), (0, "b.npz"), (1, "b.npz")):
        assert run_sample(capsys, *DRAW, "--seed", str(seed), "--out", out)[0] == 0
    assert len(list((here / "runs/digits-0001/samples").iterdir())) == 2


def test_a_file_that_is_no_picture_of_ours_is_not_replaced(here, capsys):  # noqa: F811
    name = here / "runs/digits-0001/samples/digits-ddim-seed0-steps2.png"
    name.parent.mkdir(exist_ok=True)
    name.write_text("mine")
    assert run_sample(capsys, *DRAW)[0] == 0
    assert name.read_text() == "mine"
    assert name.with_stem(f"{name.stem}-2").is_file()


def test_the_working_folder_and_an_empty_one_are_filled(here, capsys, monkeypatch):  # noqa: F811
    run = str(here / "runs/digits-0001")
    argv = ("--run", run, *DRAW[2:])
    for i, target in enumerate((".", "./", "../empty-2", "v1.0/", "new.folder/", "a.png/")):
        folder = here / f"empty-{i}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        code, _, err = run_sample(capsys, *argv, "--out", target)
        assert (code, err) == (0, "")
        found = sorted(path.name for path in (folder / target).iterdir())
        assert found == [f"{k:06d}.png" for k in range(5)]
        assert not list(here.rglob(".*.parts"))
    code, _, err = run_sample(capsys, *argv, "--out", "..")
    assert code == 2
    assert "is not empty; name a new one" in err


TARGETS = [
    ("taken.gif", ("--animate",)), ("taken.npz", ("--encode", "given.png")),
    ("taken.png", ("--interpolate", "given.png", "given.png")), ("file/x.npz", ()), ("n" * 250 + ".npz", ()),
    ("n" * 250, ()), ("", ()), ("~nobody-of-this-name/x.npz", ()), ("x.jpg", ()), ("file", ()),
]  # fmt: skip


@pytest.mark.parametrize(("out", "argv"), TARGETS, ids=lambda value: str(value)[:20])
def test_a_target_that_cannot_be_is_told_before_anything_is_drawn(here, capsys, monkeypatch, out, argv):  # noqa: F811
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save("given.png")
    (here / "file").write_text("")
    for suffix in ("gif", "npz", "png"):
        (here / f"taken.{suffix}").mkdir()
    before = files(here)
    for method in ("sample", "trajectory"):
        monkeypatch.setattr(type(load("runs/digits-0001")), method, lambda *_, **__: pytest.fail("drawn"))
    code, _, err = run_sample(capsys, "--sampler", "ddim", "--steps", "2", *argv, "--out", out)
    assert code == 2
    assert err.startswith("error: --out: ")
    assert err.count("\n") == 1
    assert files(here) == before


def test_home_is_meant_by_a_tilde_in_every_option(tmp_path, monkeypatch, capsys):
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    make_run(home / "my runs", digits_config(tmp_path), DataFacts("digits", (1, 8, 8), 17, 10))
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(home / "a.png")
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(home / "mask.png")
    short = ("--sampler", "ddim", "--steps", "2", "--n", "1")
    for argv in (
        ("--runs=~/my runs", "--run=digits-0001", "--out=~/x.png"),
        ("--run=~/my runs/digits-0001", "--out=~/x.npz"),
        ("--run", f"~/my runs/digits-0001/{runs.MODEL}", "--out=~/folder"),
        ("--runs=~/my runs", "--edit=~/a.png", "--out=~/edit.png"),
        ("--runs=~/my runs", "--inpaint=~/a.png", "--mask=~/mask.png", "--out=~/inpaint.png"),
        ("--runs=~/my runs", "--encode", "~/a.png", "--out=~/noise.npz"),
        ("--runs=~/my runs", "--guide=~/my runs/digits-0001", "--guidance=2", "--out=~/guided.png"),
    ):
        code, _, err = run_sample(capsys, *short, *argv)
        assert (code, err) == (0, ""), argv
    code, out, _ = run_sample(capsys, "--from=~/x.png", "--out=~/again.png")
    assert code == 0
    assert "the same pixels" in out
    assert not list(work.iterdir())
    names = {"x.png", "x.npz", "folder", "edit.png", "inpaint.png", "noise.npz", "guided.png", "again.png"}
    assert names <= {path.name for path in home.iterdir()}
    model = load("~/my runs/digits-0001")
    assert runs.file_digest("~/x.npz")
    assert load("digits-0001", runs_dir="~/my runs").facts == model.facts


@pytest.mark.parametrize(("text", "found"), [("~", ""), ("~/x", "/x"), ("~/x/", "/x/")])
def test_a_tilde_is_the_home_folder_and_what_is_none_stays(monkeypatch, text, found):
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded(text) == f"/home/me{found}"
    for other in ("a~", "./~", "a/~/b", "pretrained:digits", "dir/", " x"):
        assert expanded(other) == other
    for none in ("", " ", "a\0b", "~no-such-user-here/x"):
        with pytest.raises(ValueError, match=re.escape("data.path: found ")):
            expanded(none, "data.path")


def test_what_could_not_be_written_is_known_beforehand(tmp_path):
    atomic.check_writable(tmp_path / "new" / "deep" / "x.npz")
    assert not list(tmp_path.iterdir())
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / ("n" * 250)):
        with pytest.raises(OSError, match=os.strerror(21) if path.name == "folder" else "too long"):
            atomic.check_writable(path)


def test_the_folder_of_runs_is_meant_alike_by_every_command(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    for parse, argv in (
        (COMMANDS["average"].parse, ["r", "--width", "0.1"]),
        (COMMANDS["check"].parse, ["r"]),
        (COMMANDS["convert"].parse, ["r", "x.safetensors"]),
        (COMMANDS["demo"].parse, ["r"]),
        (COMMANDS["evaluate"].parse, ["r"]),
        (COMMANDS["export"].parse, ["r", "x", "--to", "hub"]),
        (COMMANDS["quality"].parse, ["r"]),
        (parse_sample_arguments, []),
        (COMMANDS["tradeoff"].parse, ["r"]),
    ):
        assert parse(argv).runs == "runs", parse.__name__
        assert parse([*argv, "--runs", "~/r"]).runs == "/somewhere/r", parse.__name__
