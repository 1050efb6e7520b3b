"""`python -m diffusion check`, and a model of a user's own Python file under every command."""

import json

import numpy as np
import pytest

ADOPTED = """
import sys
sys.path.insert(0, {tests!r})
import diffusion
from foreign_networks import CASES, LEVELS, SHAPE

case = CASES["DDPM"]
model = diffusion.adopt(case.network, **case.said, shape=SHAPE, levels=LEVELS)
wrong = lambda: diffusion.adopt(case.network, **{{**case.said, "predicts": "v"}}, shape=SHAPE, levels=LEVELS)
number = 3
"""


@pytest.fixture
def adopted(place, request):
    from pathlib import Path

    tests = Path(__file__).parents[1] / "models"
    (place / "mine.py").write_text(ADOPTED.format(tests=str(tests)))
    import sys

    sys.path.insert(0, str(tests))
    from foreign_networks import images

    some = images(24).repeat(1, 1, 1, 1).numpy()
    np.savez(place / "images.npz", train_images=some, test_images=images(24, 1).numpy())
    return "mine.py:model"


def test_a_run_is_checked_on_its_own_images(diffusion_command):
    code, out, _ = diffusion_command("check", "digits-0001", "--images", "12", "--levels", "4", "--json")
    found = json.loads(out)
    assert code == (0 if found["passed"] else 1)
    assert len(found["levels"]) == 4
    assert found["data"]["images"] == 12
    code, out, _ = diffusion_command("check", "pretrained:digits", "--images", "16", "--levels", "5")
    assert (code, "nothing wrong on 16 images" in out) == (0, True)
    assert "linear filter" in out
    assert out.splitlines()[-1].endswith(" evaluate pretrained:digits"), "the next command"


def test_an_adopted_network_under_every_command(diffusion_command, adopted, capsys):
    options = ("--data", "images.npz", "--images", "16")
    code, out, err = diffusion_command("check", adopted, *options, "--levels", "6")
    assert code == 0, out + err
    assert "neighbouring conventions" in " ".join(out.split())
    assert out.splitlines()[-1].endswith(" evaluate mine.py:model --data images.npz"), "which does not know its data"
    code, out, err = diffusion_command("check", "mine.py:wrong", *options, "--levels", "6")
    assert code == 1
    assert "predicts='eps' fits better" in " ".join(out.split())
    code, out, err = diffusion_command(
        "evaluate", adopted, "--data", "images.npz", "--images", "8", "--method", "elbo", "--wandb", "off"
    )
    assert code == 0, out + err
    assert out.splitlines()[-1].endswith(" compare mine.py:model --data images.npz")
    code, out, err = diffusion_command(
        "sample", "--run", adopted, "--n", "4", "--sampler", "ddim", "--steps", "4", "--out", "x.png"
    )
    assert code == 0, out + err


def test_a_python_file_that_a_file_names_is_not_run(diffusion_command, adopted, place):
    """Only the command line names one: not the record of a picture, nor a configuration, a guide or `load`."""
    import diffusion
    from diffusion.errors import UserError

    code, out, err = diffusion_command("sample", "--run", adopted, "--n", "4", "--steps", "4", "--out", "x.png")
    assert code == 0, out + err
    (place / "mine.py").write_text("open('executed', 'w').close()\nmodel = None\n")
    code, _, err = diffusion_command("sample", "--from", "x.png")
    assert (code, err.count("\n")) == (2, 1), err
    code, _, err = diffusion_command(
        "sample", "--run", "digits-0001", "--n", "1", "--guide", adopted, "--guidance", "2"
    )
    assert (code, err.count("\n")) == (2, 1), err
    code, _, err = diffusion_command("train", f"trainer.start={adopted}", "--resume", "never", "logging.wandb=off")
    assert (code, err.count("\n")) == (2, 1), err
    with pytest.raises(UserError, match="a Python file is run only where a command names it"):
        diffusion.load(adopted)
    assert not (place / "executed").exists()


def test_what_is_refused(diffusion_command, adopted):
    for argv, told in (
        (("check", "mine.py:modl", "--data", "images.npz"), "Did you mean 'model'"),
        (("check", "mine.py:number", "--data", "images.npz"), "found a int; needs a model"),
        (("check", "yours.py:model"), "yours.py: there is no such file"),
        (("check", adopted), "--data PATH says where the data"),
        (("check", "digits-0001", "--images", "1"), "two or more"),
        (("check", "digits-0001", "--imags", "1"), "Did you mean '--images'"),
        (("check", "nothing"), "no such run or model"),
    ):
        code, _, err = diffusion_command(*argv)
        assert (code, err.count("\n")) == (2, 1), err
        assert told in err, err


def test_a_file_finds_its_neighbours_and_says_where_it_fails(diffusion_command, adopted, place):
    folder = place / "elsewhere"
    folder.mkdir()
    (folder / "neighbour_of_mine.py").write_text((place / "mine.py").read_text())
    (folder / "uses.py").write_text("from neighbour_of_mine import model\n")
    code, _, err = diffusion_command("check", "elsewhere/uses.py:model", "--data", "images.npz")
    assert code == 0, err
    for text, told in (
        ("x = 1\nimport nothing_of_that_name\n", r":2: ModuleNotFoundError: "),
        ("x = (\n", ":1: SyntaxError: "),
    ):
        (folder / "fails.py").write_text(text)
        code, _, err = diffusion_command("check", "elsewhere/fails.py:model")
        assert code == 2
        assert told in err
        assert len(err.strip().splitlines()) == 1


def test_a_file_may_load_a_model(diffusion_command, place):
    """It is known by the file that it was loaded from."""
    (place / "loads.py").write_text('import diffusion\nmodel = diffusion.load("runs/digits-0001")\n')
    line = ("evaluate", "loads.py:model", "--method", "elbo", "--images", "4", "--draws", "2", "--wandb", "off")
    code, out, err = diffusion_command(*line)
    assert code == 0, err
    assert "cached" not in out
    assert "cached" in diffusion_command(*line)[1]
