"""What a sample carries: drawn again to the pixel, cut off and continued, shared by processes, shown as a film."""

import contextlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from made_runs import make_run
from PIL import Image, PngImagePlugin
from test_draw import files, here, run_of_digits, run_sample  # noqa: F401
from tiny_configs import autoencoder_config, toy_config

from diffusion import load
from diffusion.commands.app import command, sample
from diffusion.commands.sample.record import SampleRecord
from diffusion.data.pictures import to_bytes
from diffusion.models import DiffusionModel
from diffusion.models.build import DataFacts
from diffusion.storage import runs, tensor_files

FORK = multiprocessing.get_context("fork")  # with all modules loaded
SETTINGS = ("--sampler", "sde", "--eta", "1.5", "--steps", "3", "--seed", "9", "--label", "4", "--guidance", "2")


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def text(path):
    with Image.open(path) as image:
        return dict(image.text)


def test_a_picture_says_how_it_was_drawn(here, capsys):  # noqa: F811
    assert run_sample(capsys, *SETTINGS, "--n", "5", "--batch-size", "2", "--out", "images")[0] == 0
    found = text("images/000003.png")
    assert found["weights"] == runs.file_digest(here / "runs/digits-0001" / runs.MODEL)
    expected = {"seed": "9", "index": "3", "sampler": "sde", "steps": "3", "eta": "1.5", "guidance": "2.0"}
    assert {key: found[key] for key in expected} == expected
    assert (found["grid"], found["label"], found["data"]) == ("log-snr", "4", "digits")
    assert SampleRecord.read("images/000003.png").batches == ((2, 4),)


@pytest.mark.parametrize("which", ["images/000003.png", "images/000004.png", "grid.png"])
def test_it_is_drawn_again_to_the_pixel(here, capsys, which):  # noqa: F811
    out = "images" if which.startswith("images") else "grid.png"
    assert run_sample(capsys, *SETTINGS, "--n", "5", "--batch-size", "2", "--out", out)[0] == 0
    code, said, _ = run_sample(capsys, "--from", which)
    assert code == 0
    assert f"the same pixels as {which}" in said
    again = which.replace(".png", "-again.png")
    assert np.array_equal(pixels(which), pixels(again))
    assert text(which) == text(again)


def test_a_picture_that_was_changed_is_told(here, capsys):  # noqa: F811
    run_sample(capsys, *SETTINGS, "--n", "1", "--out", "images")
    changed, info = pixels("images/000000.png").copy(), PngImagePlugin.PngInfo()
    changed[0, 0] ^= 8
    for key, value in text("images/000000.png").items():
        info.add_text(key, value)
    Image.fromarray(changed).save("changed.png", pnginfo=info)
    code, said, _ = run_sample(capsys, "--from", "changed.png")
    assert code == 0
    assert "1.56% of the values differ from changed.png, by at most 8 of 255" in said


def test_points_are_drawn_again_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs", toy_config(tmp_path, "sampling.sampler=ode"), DataFacts("gaussians", (2,), None, 0))
    assert run_sample(capsys, "--n", "20", "--out", "x.png", "--tolerance", "1e-2")[0] == 0
    assert "the same pixels" in run_sample(capsys, "--from", "x.png")[1]


def test_another_model_is_refused(here, capsys):  # noqa: F811
    run_sample(capsys, *SETTINGS, "--n", "1", "--out", "x.png")
    other = make_run(here / "runs", load("runs/digits-0001").config, DataFacts("digits", (1, 8, 8), 17, 10))
    weights, metadata = tensor_files.read_model(other / runs.MODEL)
    config = metadata.pop("config")
    weights = {key: value + 1e-3 for key, value in weights.items()}
    tensor_files.save_model(other / runs.MODEL, weights, config, {k: metadata[k] for k in ("data", "step")})
    code, _, err = run_sample(capsys, "--from", "x.png", "--run", str(other))
    assert code == 2
    assert "--from: x.png was drawn with another model (runs/digits-0001/model.safetensors" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--from", "none.png"], "--from: there is no file 'none.png'"),
        (["--from", "plain.png"], "--from: plain.png does not say how it was drawn"),
        (["--from", "text.png"], "--from: text.png cannot be read as a PNG"),
        (["--from", "damaged.png"], "--from: the record in damaged.png is damaged"),
        (["--from", "x.png", "--steps", "4"], "--steps: --from takes it from the picture"),
        (["--from", "x.png", "--out", "x.zip"], "--out: found 'x.zip'; --from draws one picture"),
        (["--animate", "--out", "x.png"], "--out: found 'x.png'; --animate writes x.gif"),
    ],
)
def test_bad_input_is_one_line(here, capsys, argv, message):  # noqa: F811
    run_sample(capsys, *SETTINGS, "--n", "1", "--out", "x.png")
    Image.new("L", (2, 2)).save("plain.png")
    (here / "text.png").write_text("no picture")
    info = PngImagePlugin.PngInfo()
    info.add_text("diffusion", json.dumps({"batches": [[3, 1]]}))
    Image.new("L", (2, 2)).save("damaged.png", pnginfo=info)
    before = files(here)
    code, _, err = run_sample(capsys, *argv)
    assert code == 2
    assert err.startswith(f"error: {message}"), err
    assert err.count("\n") == 1
    assert files(here) == before


def interrupted_after(monkeypatch, batches):
    """Let a draw be interrupted after some batches."""
    drawn, sample = [], DiffusionModel.sample

    def counting(self, n, seed=0, **options):
        if len(drawn) == batches:
            raise KeyboardInterrupt
        drawn.append((options["start"], options["start"] + n))
        return sample(self, n, seed, **options)

    monkeypatch.setattr(DiffusionModel, "sample", counting)
    return drawn


@pytest.mark.parametrize("out", ["x.npz", "x.zip", "images"])
def test_a_draw_that_was_cut_off_goes_on(here, capsys, monkeypatch, out):  # noqa: F811
    draw = (*SETTINGS, "--n", "7", "--batch-size", "2", "--out")
    assert run_sample(capsys, *draw, f"whole-{out}")[0] == 0
    with monkeypatch.context() as patch:
        interrupted_after(patch, 2)
        assert run_sample(capsys, *draw, out)[0] == 130
    assert not (here / out).exists()
    with monkeypatch.context() as patch:
        drawn = interrupted_after(patch, 9)
        code, said, _ = run_sample(capsys, *draw, out)
    assert code == 0
    assert "4 of 7 samples are there already; resuming" in said
    assert drawn == [(4, 6), (6, 7)]
    assert not list(here.glob(".*")), "the parts are gone"
    if out == "images":
        for path in sorted((here / out).iterdir()):
            assert path.read_bytes() == (here / f"whole-{out}" / path.name).read_bytes()
    elif out == "x.npz":
        with np.load(out) as a, np.load(f"whole-{out}") as b:
            assert np.array_equal(a["images"], b["images"])
    else:
        with zipfile.ZipFile(out) as a, zipfile.ZipFile(f"whole-{out}") as b:
            assert {name: a.read(name) for name in a.namelist()} == {name: b.read(name) for name in b.namelist()}


def test_another_draw_does_not_go_on_in_its_place(here, capsys, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch:
        interrupted_after(patch, 1)
        run_sample(capsys, *SETTINGS, "--n", "4", "--batch-size", "2", "--out", "x.npz")
    code, _, err = run_sample(capsys, *SETTINGS, "--n", "4", "--steps", "2", "--out", "x.npz")
    assert code == 2
    assert "holds an unfinished draw with other settings (settings.steps 3 there, 2 here)" in err


def one_of(rank, count, argv):
    """sample.py as one of `count` processes."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
    with open(f"said-{rank}", "w") as said, contextlib.redirect_stdout(said):
        code = command(sample, argv)
    sys.exit(code)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12 on
@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_share_a_draw(here, capsys, count):  # noqa: F811
    draw = ("--n", "9", "--batch-size", "2", "--sampler", "ddim", "--steps", "2", "--device", "cpu", "--out")
    run_sample(capsys, *draw[:-3], "--out", "one.npz")
    running = [FORK.Process(target=one_of, args=(rank, count, [*draw, "shared.npz"])) for rank in range(count)]
    try:
        for process in running:
            process.start()
        for process in running:
            process.join(120)
    finally:
        for process in running:  # one that hangs is ended, and its exit code is then no 0
            if process.is_alive():
                process.kill()
                process.join()
    assert [process.exitcode for process in running] == [0] * count
    said = [(here / f"said-{rank}").read_text() for rank in range(count)]
    assert ["wrote shared.npz" in text for text in said] == [True] + [False] * (count - 1), "one writer"
    with np.load("one.npz") as one, np.load("shared.npz") as shared:
        assert one["images"].shape == (9, 8, 8)
        assert np.array_equal(one["images"], shared["images"])


def test_a_film_shows_the_path(here, capsys):  # noqa: F811
    assert run_sample(capsys, "--animate", "--n", "4", "--sampler", "ddim", "--steps", "5", "--out", "x.gif")[0] == 0
    with Image.open("x.gif") as film:
        assert film.n_frames == 5
        record = json.loads(json.loads(film.info["comment"])["diffusion"])
        assert record["settings"]["steps"] == 5
        film.seek(4)
        last = np.asarray(film.convert("L")).astype(int)
    width = (last.shape[1] - 16) // 2
    model = load("runs/digits-0001")
    drawn = to_bytes(model.sample(4, sampler="ddim", steps=5, eta=model.config.sampling.eta))
    assert np.abs(last[:64, -width:][:, :64] - np.kron(drawn[0, 0].numpy(), np.ones((8, 8)))).max() <= 8, (
        "to a GIF's palette"
    )


def test_the_states_of_a_trajectory_end_in_the_samples(here):  # noqa: F811
    model = load("runs/digits-0001")
    states, times, x_hats = model.trajectory(3, seed=2, sampler="ddim", steps=4, label=1)
    assert len(states) == len(times) == len(x_hats) == 4
    assert times == sorted(times, reverse=True)
    torch.testing.assert_close(states[-1].clamp(-1, 1), model.sample(3, seed=2, sampler="ddim", steps=4, label=1))
    assert torch.equal(states[-1], x_hats[-1])


# What a record from elsewhere may hold in place of what sample.py writes: (key, of it or of its settings, and value).
HOSTILE = [
    ("classifier", "0" * 64), ("guide", "0" * 64), ("images", {"edit": ["0"]}), ("images", 3), ("seed", "x"),
    ("seed", -1), ("seed", True), ("seed", 2**70), ("torch", 2), ("index", -4), ("index", 0.5), ("count", 0.5),
    ("index", 10**6), ("batches", [[0, 10**9]]), ("batches", [[4, 2]]), ("batches", 3),
    ("count", 10**6), ("model", 7), ("settings", [1]), ("shown", None),
    *((f"settings.{name}", value) for name, value in (
        ("classifier", 3), ("guide", ["a"]), ("edit", 3), ("steps", "x"), ("steps", -1), ("steps", 1e99),
        ("grid", [1, 2, "a"]), ("grid", 5), ("eta", [1]), ("eta", float("nan")), ("interpolate", 3),
        ("interpolate", ["a"]), ("guidance", float("nan")), ("guidance_interval", [1]), ("dtype", "nn"),
        ("size", [1, 2, 3]), ("numbers", [float("inf")]), ("label", True), ("label", [1]), ("order", {}),
        ("sampler", "dimm"), ("__class__", "x"), ("callback", "x"), ("noise", [1]),
    )),
]  # fmt: skip


def craft(source, target, key, value):
    """A picture whose record is another's but for one value."""
    record = json.loads(text(source)["diffusion"])
    part, _, name = key.rpartition(".")
    (record[part] if part else record)[name] = value
    info = PngImagePlugin.PngInfo()
    info.add_text("diffusion", json.dumps(record))
    with Image.open(source) as image:
        image.save(target, pnginfo=info)


@pytest.fixture(scope="module")
def one_sample(run_of_digits, tmp_path_factory):  # noqa: F811
    """A picture drawn from the run of `here`."""
    folder = tmp_path_factory.mktemp("drawn")
    shutil.copytree(run_of_digits, folder / "runs")
    with contextlib.chdir(folder):
        assert command(sample, [*SETTINGS, "--n", "1", "--out", "images", "--device", "cpu"]) == 0
    return folder / "images" / "000000.png"


@pytest.mark.parametrize(("key", "value"), HOSTILE, ids=str)
def test_a_record_from_elsewhere_gets_one_line(here, one_sample, capsys, key, value):  # noqa: F811
    craft(one_sample, "crafted.png", key, value)
    before = files(here)
    code, _, err = run_sample(capsys, "--from", "crafted.png")
    assert (code, err.count("\n")) == (2, 1), err
    assert files(here) == before


def test_records_from_elsewhere_are_refused_without_assertions_too(here, capsys):  # noqa: F811
    """`python -O` takes every `assert` of the product away; the slow tests run all hostile files so."""
    run_sample(capsys, *SETTINGS, "--n", "1", "--out", "images")
    for number, (key, value) in enumerate(HOSTILE):
        craft("images/000000.png", f"{number}.png", key, value)
    program = (  # without the shape checks of the tests, too
        "from diffusion.commands.sample.record import SampleRecord\n"
        f"for number in range({len(HOSTILE)}):\n"
        "    try:\n"
        "        print(SampleRecord.read(f'{number}.png').settings)\n"
        "    except ValueError as error:\n"
        "        print('refused', error)\n"
    )
    plain, optimised = (
        subprocess.run([sys.executable, *flags, "-c", program], capture_output=True, text=True, check=True).stdout
        for flags in ((), ("-O",))
    )
    assert plain == optimised
    assert optimised.count("refused") > 30


def test_a_record_that_asks_a_family_for_what_it_does_not_take_gets_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs", autoencoder_config("vae", tmp_path))
    assert run_sample(capsys, "--n", "1", "--out", "x.png")[0] == 0
    asked = {"edit": "x.png", "restore": "x.png", "inpaint": "x.png", "guidance_interval": [0.0, 1.0], "steps": 3}
    for name, value in asked.items():
        craft("x.png", "crafted.png", f"settings.{name}", value)
        code, _, err = run_sample(capsys, "--from", "crafted.png")
        assert (code, err.count("\n")) == (2, 1), err
        assert name.replace("_", "-") in err.replace("_", "-")


def test_an_image_that_was_changed_since_is_told(here, capsys):  # noqa: F811
    run_sample(capsys, "--n", "2", "--seed", "3", "--out", "images")
    for number in (0, 1):
        (here / "images" / f"00000{number}.png").rename(f"{'ab'[number]}.png")
    drawn = {
        "edit.png": ("--edit", "a.png", "--strength", "0.3", "--sampler", "ddim"),
        "strip.png": ("--interpolate", "a.png", "b.png", "--sampler", "ddim"),
    }
    for path, line in drawn.items():
        assert run_sample(capsys, *line, "--steps", "3", "--n", "2", "--out", path)[0] == 0
        code, out, _ = run_sample(capsys, "--from", path)
        assert (code, "the same pixels" in out) == (0, True)
    (here / "a.png").write_bytes((here / "b.png").read_bytes())
    for path, line in drawn.items():
        code, _, err = run_sample(capsys, "--from", path)
        assert code == 2
        assert f"was drawn with another image for {line[0]} than a.png" in err
    (here / "a.png").unlink()
    code, _, err = run_sample(capsys, "--from", "edit.png")
    assert (code, "a.png does not exist" in err) == (2, True)
