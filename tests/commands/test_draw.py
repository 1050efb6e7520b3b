"""sample.py in process: which model it takes, what it writes, and that bad input leaves nothing."""

import io
import json
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from made_runs import make_run
from PIL import Image
from tiny_configs import digits_config, toy_config

from diffusion import load
from diffusion.commands.app import command, sample
from diffusion.data.pictures import to_bytes
from diffusion.models.build import DataFacts
from diffusion.storage import runs


@pytest.fixture(scope="module")
def run_of_digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return make_run(folder, digits_config(folder, "denoiser.conditional=true")).parent


@pytest.fixture
def here(tmp_path, monkeypatch, run_of_digits):
    """An empty working directory, with a run of digits in runs/."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_of_digits, tmp_path / "runs")
    return tmp_path


def run_sample(capsys, *argv):
    code = command(sample, [*argv, "--device", "cpu"])
    found = capsys.readouterr()
    return code, found.out, found.err


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_newest_run_is_drawn_from_with_its_own_settings(here, capsys):
    code, out, err = run_sample(capsys)
    assert (code, err) == (0, "")
    assert f"model: runs/digits-0001/{runs.MODEL} (diffusion, digits, step 6) on cpu; it is the newest run," in out
    assert re.search(r"4 samples, sampler ddim, NFE 3, \d+\.\d s", out)
    (written,) = (here / "runs/digits-0001/samples").iterdir()
    assert f"wrote runs/digits-0001/samples/{written.name}" in out
    with Image.open(written) as picture:
        record = json.loads(picture.text["diffusion"])
        assert record["settings"] | {"sampler": "ddim", "steps": 3} == record["settings"]
        assert (record["seed"], record["count"]) == (0, 4)
        assert "model.safetensors" in picture.text["model"]


def test_without_a_run_the_pretrained_model_is_drawn_from(here, capsys, monkeypatch):
    pretrained = here / "pretrained"
    pretrained.mkdir()
    (here / "runs/digits-0001" / runs.MODEL).rename(pretrained / "digits.safetensors")
    monkeypatch.setattr(runs, "PRETRAINED", pretrained)
    code, out, _ = run_sample(capsys, "--n", "2")
    assert code == 0
    assert "model: pretrained:digits (" in out
    assert len(list((here / "samples").iterdir())) == 1, "not in the folder of the package"
    assert files(pretrained) == {"digits.safetensors"}


def test_images_are_written_as_arrays_as_files_and_as_an_archive(here, capsys):
    options = ("--n", "5", "--steps", "2", "--seed", "3", "--label", "7", "--guidance", "2", "--sampler", "ddim")
    for out in ("x.npz", "x.zip", "images", "deep/er/x.npz"):
        code, text, _ = run_sample(capsys, *options, "--out", out)
        assert code == 0
        assert f"wrote {out}" in text
        assert "NFE 4" in text, "a guided pair counts two"
    model = load("runs/digits-0001")
    expected = to_bytes(model.sample(5, seed=3, sampler="ddim", steps=2, label=7, guidance=2.0))[:, 0].numpy()
    with np.load("x.npz") as arrays:
        assert np.array_equal(arrays["images"], expected)
    assert sorted(path.name for path in (here / "images").iterdir()) == [f"{i:06d}.png" for i in range(5)]
    with zipfile.ZipFile("x.zip") as archive:
        for i, name in enumerate(sorted(archive.namelist())):
            with Image.open(io.BytesIO(archive.read(name))) as a, Image.open(here / "images" / name) as b:
                assert np.array_equal(np.asarray(a), expected[i])
                assert np.array_equal(np.asarray(b), expected[i])
                assert b.text["index"] == str(i)


def test_a_picture_of_the_grid_goes_where_it_is_asked_for(here, capsys):
    before = files(here)
    assert run_sample(capsys, "--out", "grid.png", "--n", "3")[0] == 0
    assert files(here) - before == {"grid.png"}


def test_points_are_drawn_over_their_density(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs", toy_config(tmp_path, "sampling.sampler=ode"), DataFacts("gaussians", (2,), None, 0))
    code, out, _ = run_sample(capsys, "--n", "20", "--out", "points.npz", "--dtype", "float64", "--tolerance", "1e-3")
    assert code == 0
    assert re.search(r"20 samples, sampler ode, NFE \d+", out)
    with np.load("points.npz") as arrays:
        assert arrays["samples"].shape == (20, 2)
        assert arrays["samples"].dtype == np.float64
    code, _, err = run_sample(capsys, "--out", "points.zip")
    assert code == 2
    assert "are numbers; accepted: x.npz, x.npy, x.png" in err


def test_the_batch_size_does_not_change_the_images(here, capsys):
    for size in ("1", "4"):
        run_sample(capsys, "--n", "4", "--batch-size", size, "--sampler", "sde", "--steps", "2", "--out", f"{size}.npz")
    with np.load("1.npz") as one, np.load("4.npz") as four:
        assert np.abs(one["images"].astype(int) - four["images"]).max() <= 1


def test_another_sampler_does_not_inherit_the_dial_of_the_runs_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = digits_config(tmp_path, "sampling.eta=0.5")
    make_run(tmp_path / "runs", config, DataFacts("digits", (1, 8, 8), 17, 10))
    assert run_sample(capsys, "--sampler", "ode", "--tolerance", "0.1", "--n", "1")[0] == 0
    assert run_sample(capsys, "--n", "1")[0] == 0
    code, _, err = run_sample(capsys, "--sampler", "ode", "--eta", "0.5")
    assert code == 2
    assert "eta: sampler 'ode' does not take it" in err


BAD = [
    (["--sampler", "dimm"], r"--sampler: 'dimm' is not known; .*Did you mean 'ddim'"),
    (["--grid", "karas"], r"--grid: .*Did you mean 'karras'"),
    (["--steps", "0"], r"--steps: found 0; must be at least 1"),
    (["--steps", "many"], r"--steps: found 'many'; must be a whole number"),
    (["--n", "0"], r"--n: found 0; must be at least 1"),
    (["--n", "2.5"], r"--n: found '2\.5'; must be a whole number"),
    (["--batch-size", "0"], r"--batch-size: found 0"),
    (["--seed", "-1"], r"--seed: found -1; must be at least 0"),
    (["--tolerance", "-1"], r"--tolerance: found -1; must be between 0 and 1"),
    (["--tolerance=-1e-4"], r"--tolerance: found -1e-4; must be between 0 and 1"),
    (["--tolerance", "small"], r"--tolerance: found 'small'; must be a number"),
    (["--eta", "-0.5", "--sampler", "sde"], r"--eta: found -0\.5"),
    (["--method", "dopri4", "--sampler", "ode"], r"--method: 'dopri4'.*Did you mean"),
    (["--method", "rk4", "--sampler", "ddim"], r"--method: sampler 'ddim' does not take it"),
    (["--variance", "lowest", "--sampler", "ancestral"], r"--variance: 'lowest'.*Did you mean 'lower'"),
    (["--dtype", "float16"], r"--dtype: invalid choice: 'float16'"),
    (["--device", "cuda"], r"--device: 'cuda' does not exist: 0 GPU\(s\) found"),
    (["--device", "gpu"], r"--device: found 'gpu'; accepted: auto, cpu"),
    (["--label", "10"], r"--label: found 10; the model has the classes 0 to 9"),
    (["--guidance", "2"], r"--guidance: .*give a label"),
    (["--smapler", "ode"], r"unknown option '--smapler'\. Did you mean '--sampler'"),
    (["ode"], r"unknown option 'ode'"),
    (["--n"], r"--n: expected one argument"),
    (["--run", "digits-001"], r"digits-001: there is no such run or model file\. Did you mean 'digits-0001'"),
    (["--run", "pretrained:cats"], r"pretrained:cats: there is no such model; accepted: [^?]*"),
    (["--run", "pretrained:mnits"], r"pretrained:mnits: .*Did you mean 'pretrained:mnist'\?"),
    (["--run", "empty"], r"empty: has no model\.safetensors"),
    (["--run", "cut.safetensors"], r"cut\.safetensors: .*cut short or corrupt"),
    (["--out", "x.gif"], r"--out: found 'x\.gif'; accepted: x\.png, x\.npz, x\.npy, x\.zip or a folder"),
    (["--out", "full"], r"--out: the folder full is not empty"),
    (["--out", "file"], r"--out: file is a file"),
    (["--out", "file/x.png"], r"--out: file/x\.png cannot be written \(Not a directory\)"),
    (["--from", "file"], r"--from: file cannot be read as a PNG"),
    (["--edit", "none.png"], r"--edit: none\.png does not exist; an image file is accepted"),
    (["--interpolate", "file", "none.png"], r"--interpolate: none\.png does not exist"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_input_is_one_line_and_leaves_nothing(here, capsys, monkeypatch, argv, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (here / "empty").mkdir()
    (here / "full").mkdir()
    (here / "full/x").write_text("")
    (here / "file").write_text("")
    (here / "cut.safetensors").write_bytes((here / "runs/digits-0001" / runs.MODEL).read_bytes()[:-50])
    before = files(here)
    code = command(sample, [*(["--device", "cpu"] if "--device" not in argv else []), *argv])
    err = capsys.readouterr().err
    assert code == 2
    assert re.fullmatch(rf"error: {message}.*\n", err), err
    assert files(here) == before


def test_no_run_and_no_pretrained_model_is_explained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "PRETRAINED", tmp_path)
    code, out, err = run_sample(capsys)
    assert (code, out) == (2, "")
    assert re.fullmatch(
        r"error: pretrained:digits: there is no such model; accepted: none in this installation.*\n", err
    )
    assert files(tmp_path) == set()


def test_the_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        command(sample, ["--help"])
    assert stop.value.code == 0
    page = capsys.readouterr().out
    options = "run n steps seed eta grid label tolerance method dtype batch-size device out sampler"
    assert all(f"--{option}" in page for option in options.split())
