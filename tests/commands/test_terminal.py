"""What commands print fits a terminal of 80 columns, and their last line is the next command, as one types it."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_evaluations import normal
from rich.console import Console
from terminal_width import fits, next_words

from diffusion.commands import dispatch, terminal
from diffusion.commands.app import command
from diffusion.commands.dispatch import main
from diffusion.commands.doctor import doctor
from diffusion.commands.doctor.check import Check, within
from diffusion.commands.quality import quality
from diffusion.commands.quality.candidates import Candidate
from diffusion.commands.quality.table import Row, remarks
from diffusion.commands.quality.table import table as quality_table
from diffusion.commands.report import likelihood_table
from diffusion.commands.subjects import Subject
from diffusion.commands.tradeoff.report import cost_table
from diffusion.data import load_images
from diffusion.likelihood import Estimate
from diffusion.metrics import Provenance

LONG = "a-run-with-a-name-that-is-longer-than-any-line-of-a-terminal-of-eighty-columns-can-be-0001"


def printed(*renderables, width=80):
    console = Console(width=width)
    with console.capture() as capture:
        for each in renderables:
            each(console) if callable(each) else console.print(each)
    return capture.get()


def test_texts_are_cut_between_words():
    text = f"- {LONG}: 3.1415 of 9,  two  spaces,\n  and a second line that has an indent and more words than fit in it"
    shown = printed(lambda console: terminal.say(console, text))
    assert fits(shown)
    assert shown.split() == text.split()
    assert "\n  and a second" in shown
    assert len(shown.splitlines()) == 4
    assert printed(lambda console: terminal.say(console, "[red] is text")) == "[red] is text\n"


@pytest.mark.parametrize("words", [(), ("--run", "a b/$x"), ("--run", LONG, *["digits-0001"] * 12)], ids=len)
def test_the_next_command_can_be_typed_as_it_stands(words):
    shown = printed(lambda console: terminal.print_next(console, "sample", *words, data="my images", runs="else where"))
    assert fits(shown)
    assert next_words(shown) == ["sample", *words, "--data", "my images", "--runs", "else where"]


def test_places_stay_whole():
    places = {"run folder": "runs/a b", "samples": f"runs/{LONG}/a b.png"}
    shown = printed(lambda console: terminal.print_places(console, places))
    assert shown == f"run folder: runs/a b\nsamples:\nruns/{LONG}/a b.png\n"


def test_tables_of_the_doctor_have_a_line_for_each_check():
    long = "U-Net, bf16-mixed, compiled"
    checks = [
        Check("network", long, "forward, against float64", "1.3e-06", "at most 5.0e-03", True),
        *(
            within("samplers", "predictor-corrector", f"mixture, {i} steps, E log p", -11.87, -11.87, 1e-5)
            for i in "123"
        ),
        replace(
            within("estimators", "ais, from both sides", "means, nats", 0.0, 9.0, 1.0), found="-14.6925 to -14.6392"
        ),
        Check("samplers", "ode", "runs", "RuntimeError: " + "no room " * 18, "no error", False),
    ]
    for every in (False, True):
        shown = printed(doctor.table(checks, every))
        assert fits(shown)
        lines = [line for line in shown.splitlines() if re.search("  (pass|FAIL) ", line + " ")]
        assert len(lines) == len(checks) - (0 if every else 2)
        assert shown.count("predictor-corrector") == shown.count(long) == 1
        assert "-11.87000 ± 1e-05" in shown


def test_a_title_and_protocols_are_cut_between_words():
    estimate = Estimate(normal(0), 2, None, torch.zeros(50), "exact", {"estimator": LONG, "law": "flow"})
    table = likelihood_table({"PF-ODE": estimate}, f"{LONG}: 50 fresh points of gaussians, and more of them")
    shown = printed(table, width=100)
    assert fits(shown, 100)
    assert shown.count(LONG) == 2


def test_likelihoods_of_images_are_one_table_on_a_narrow_terminal():
    names = {"PF-ODE": "flow", "ELBO": "reverse SDE", "mixture of categoricals": "declared"}
    table = likelihood_table({
        name: Estimate(normal(0), 192, 256, torch.zeros(50), "lower bound", {"estimator": LONG, "law": law}, nfe=133.4)
        for name, law in names.items()
    })  # fmt: skip
    shown = printed(table)
    assert fits(shown)
    rows = [line.split("  ")[0] for line in shown.splitlines() if "upper bound" in line]
    assert rows == [*names]
    assert " ".join(shown.split()).count("NFE 133, 0.0 s, estimator") == 3


_QUICK = ("--wandb", "off", "--seed", "1")
COMMANDS = {
    "check": (("pretrained:digits", "--levels", "3", "--images", "8", "--split", "train"),
              ("evaluate", "pretrained:digits", "--split", "train")),
    "evaluate": (("digits-0001", "digits-0002", "--method", "elbo", "--draws", "1", "--images", "4", "--split",
                  "validation", *_QUICK), ("compare", "digits-0001", "digits-0002", "--split", "validation")),
    "tradeoff": (("digits-0001", "--n", "8", "--budgets", "2", "--samplers", "ddim", "--by", "distance", *_QUICK),
                 ("sample", "--run", "digits-0001")),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_end_with_the_next(name, diffusion_command, place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shutil.move(place / "runs", place / "else where")
    argv, expected = COMMANDS[name]
    code, out, err = diffusion_command(name, *argv, "--runs", "else where")
    assert code == 0, err
    assert fits(out), out
    assert next_words(out) == [*expected, "--runs", "else where"]


def test_quality_and_cost_are_one_table_each():
    """With names of any length, and figures as wide as they come."""
    names = ("fid", "kid", "precision", "recall", "density", "coverage")
    figures = {**dict.fromkeys(names, 0.5), "fid": 152.5, "fid_sem": 3.0, "kid": 36.59, "kid_sem": 0.31,
               "copies_exact": 0.0, "copies_near": 0.0, "fid_corrected": 3.25}  # fmt: skip
    rows = [Row("mnist-class-0001", 10_000, figures, 10.0), Row("noise", 10_000, {**figures, "fid_corrected": None})]
    found = Provenance("mnist", "train", 55_000, "", False, (1, 28, 28), 256, "digits", "7c221ac755c6")
    cells = [
        {"sampler": name, "nfe": nfe, "steps": 9, "distance": 0.36, "median_distance": 0.35, "order": 0.9, "fid": 152.5,
         "fid_sem": 3.0, "kid": 36.59, "kid_sem": 0.31, "exposure": 0.81742, "exposure_sem": 0.0051, "failure": "",
         "seconds_an_image": 0.01213}
        for name in ("predictor-corrector", "ddim") for nfe in (10, 100)
    ]  # fmt: skip
    for shown, count in (
        (printed(quality_table(rows, found)), 2),
        (printed(cost_table(cells, "Quality against cost: mnist-class-0001", "")), 4),
    ):
        assert fits(shown)
        assert sum("FID " in line and "KID" in line for line in shown.splitlines()) == 1
        assert shown.count("152.5 ± 3.0") == count
        assert shown.count("36.59 ± 0.31") == count
    assert shown.count("predictor-corrector") == shown.count("ddim") == 1
    assert any(line.endswith("mnist-class-0001 3.250") for line in remarks(rows))


def test_quality_ends_with_the_next(tmp_path, monkeypatch, capsys):
    """With what it was given, where the next needs it, too: the images of a run that have moved, the features."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    np.savez("moved.npz", images=np.zeros((4, 8, 8), dtype=np.uint8))
    data = load_images("digits")
    subject = object.__new__(Subject)
    object.__setattr__(subject, "name", "mine")
    made = Candidate("mine", tmp_path, tmp_path, data, 100, {}, subject, lambda *_: (data.test, 1.0), False)
    figures = {"fid": 1.0, "fid_corrected": None, "hubness": 1.0, "hubness_normal": 1.0, "hubness_normal_std": 0.1}
    monkeypatch.setattr(quality, "load_candidate", lambda text, options: made)
    monkeypatch.setattr(quality, "_measured", lambda *_: (Row("mine", 100, figures), [("stored in", tmp_path / "x")]))
    unchecked = replace(dispatch.COMMANDS["quality"], check=lambda options: None)
    monkeypatch.setitem(dispatch.COMMANDS, "quality", unchecked)
    argv = ["quality", "mine", "--data", "moved.npz", "--features", "digits", "--runs", "r", "--no-scale"]
    assert command(main, argv) == 0
    out = capsys.readouterr().out
    assert fits(out), out
    assert next_words(out) == ["tradeoff", "mine", "--features", "digits", "--data", "moved.npz", "--runs", "r"]
