"""The command and its arguments: help at once, and mistakes in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from terminal_width import fits

from diffusion.commands.app import command
from diffusion.commands.compare.arguments import parse_compare_arguments
from diffusion.commands.dispatch import COMMANDS, main
from diffusion.commands.evaluate.arguments import estimator_options, parse_evaluate_arguments
from diffusion.commands.preflight import check_sample
from diffusion.commands.sample.arguments import parse_sample_arguments
from diffusion.config import load_config
from diffusion.errors import UserError

# All but those that print the help of train.py and sample.py, and `completion`.
HELPED = sorted(COMMANDS.keys() - {"train", "sample", "completion"})


def test_help_needs_no_torch():
    """One process says the help of each command; the first comes within two seconds."""
    code = (
        "import sys, time; from diffusion.commands.app import command; from diffusion.commands.dispatch import main\n"
        f"for argv in (['--help'], ['help', 'compare'], *([name, '--help'] for name in {HELPED!r})):\n"
        "    try: command(main, argv)\n"
        "    except SystemExit as e: assert not e.code\n"
        "    heavy = {'torch', 'numpy', 'lightning', 'wandb', 'rich'} & set(sys.modules)\n"
        "    assert not heavy, (argv, heavy)\n"
        "    if argv == ['--help']: assert time.process_time() < 2\n"  # of computing: a busy machine fails none
    )
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert fits(done.stdout)
    for name in ("COMMAND", *HELPED):
        assert f"usage: python -m diffusion {name}" in done.stdout


def test_the_module_runs_and_names_each_command():
    done = subprocess.run([sys.executable, "-m", "diffusion"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["evalute", "x"], ["command", "'evalute'", "Did you mean 'evaluate'?"]),
        (["evaluate"], ["RUN"]),
        (["evaluate", "x", "--methd", "ode"], ["--methd", "Did you mean '--method'?"]),
        (["evaluate", "x", "--split", "tset"], ["--split", "'test'"]),
        (["evaluate", "x", "--draws", "0"], ["--draws", "found 0"]),
        (["evaluate", "x", "--option", "trace"], ["--option", "KEY=VALUE"]),
        (["evaluate", "x", "--option", "trace="], ["--option", "KEY=VALUE"]),
        (["evaluate", "no-such-run"], ["no-such-run", "there is no such run"]),
        (["compare", "no-such-run"], ["no-such-run", "there is no such run"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line_and_code_2(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(main, argv) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    for word in words:
        assert word in found.err
    assert not list(Path(tmp_path).iterdir()), "nothing is left behind"


def test_draws_are_called_what_the_estimator_calls_them():
    arguments = parse_evaluate_arguments(["x", "--draws", "7", "--seed", "3", "--option", "trace=exact"])
    names = (
        ("diffusion", "ode", "draws"), ("diffusion", "elbo", "evaluations"), ("vae", "elbo", "samples"),
        ("vae", "iwae", "samples"), ("eae", "ais", "chains"),
    )  # fmt: skip
    for family, method, key in names:
        assert estimator_options(arguments, method, family) == {"seed": 3, key: 7, "trace": "exact"}


def test_options_are_typed_and_given_once():
    texts = ["a=1", "b=0.5", "c=true", "d=word"]
    arguments = parse_evaluate_arguments(["x", *(part for text in texts for part in ("--option", text))])
    assert estimator_options(arguments, "ode", "diffusion") == {
        "seed": 0,
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "word",
    }
    with pytest.raises(UserError, match="twice"):
        estimator_options(parse_evaluate_arguments(["x", "--draws", "2", "--option", "draws=3"]), "ode", "diffusion")
    for name in ("indices", "x", "images_uint8", "model", "error_budget"):  # arguments of what measures
        with pytest.raises(UserError, match=f"'{name}' is not set here"):
            estimator_options(parse_evaluate_arguments(["x", "--option", f"{name}=3"]), "ode", "diffusion")


def test_counts_have_64_bits_and_an_image_is_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"--steps: found 10{20}; must be below 2\^63"):
        parse_sample_arguments(["--steps", str(10**20)])
    for key in ("trainer.steps", "network.base_channels", "sampling.n"):
        with pytest.raises(UserError, match=rf"{key}: found 10{{20}}; must be below 2\^63"):
            load_config("digits", [f"{key}={10**20}"])
    with pytest.raises(UserError, match="is no file; an image file is accepted"):
        check_sample(parse_sample_arguments(["--run", "pretrained:digits", "--edit", str(tmp_path)]))


def test_compare_takes_its_arguments():
    arguments = parse_compare_arguments(["a", "b", "--out", "x", "--no-baselines"])
    assert (arguments.run, arguments.out, arguments.baselines, arguments.split) == (["a", "b"], "x", False, "test")
