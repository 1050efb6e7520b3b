"""The page that draws in the browser: the noise of `sample.py` to the last bit, and its pictures within rounding."""

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import opened, served
from made_runs import make_run
from PIL import Image
from tiny_configs import digits_config

import diffusion
from diffusion.commands.app import command
from diffusion.commands.dispatch import main
from diffusion.commands.export import page
from diffusion.commands.export.plans import plan
from diffusion.commands.sample.arguments import parse_sample_arguments
from diffusion.config import load_config
from diffusion.data.class_names import number_of
from diffusion.denoisers import NetworkDenoiser
from diffusion.models import DiffusionModel
from diffusion.models.build import DataFacts
from diffusion.numerics.random import STREAM_INITIAL, STREAM_SOLVER, normal, philox4x32
from diffusion.schedules import VP, Cosine, Rectified

STATIC = Path(page.__file__).parent / "static"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def by_node(script):
    """What a script prints, as JSON; it may import from the page's files."""
    done = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_words_are_those_published_and_ours():
    """The vectors of Random123's kat_vectors for philox4x32 with 10 rounds; and of ours, words of random counters."""
    ones = 0xFFFFFFFF
    published = [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ones] * 4, [ones] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]
    numbers = np.random.default_rng(0).integers(0, 2**32, (50, 6)).tolist()
    ours = [
        [int(word) for word in philox4x32(tuple(torch.tensor([c]) for c in row[:4]), (row[4], row[5]))]
        for row in numbers
    ]
    counters = [[counter, key] for counter, key, _ in published] + [[row[:4], row[4:]] for row in numbers]
    found = by_node(
        f"import {{ philox4x32 }} from '{STATIC}/noise.mjs';"
        f"console.log(JSON.stringify({json.dumps(counters)}.map(([counter, key]) => philox4x32(counter, key))))"
    )
    assert found == [words for *_, words in published] + ours


@needs_node
@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3, 2**63 - 1])
def test_normals_are_ours(seed):
    """Bit for bit except where the last bit of a float64 logarithm or sine moves a rounding to float32."""
    cases = [(0, 0, STREAM_INITIAL), (5, 3, STREAM_SOLVER), (2**33 + 1, 70_000, STREAM_SOLVER)]
    found = by_node(
        f"import {{ normal }} from '{STATIC}/noise.mjs';"
        f"const out = {json.dumps([[str(index), step, stream] for index, step, stream in cases])}"
        f".map(([index, step, stream]) => [...normal(BigInt('{seed}'), BigInt(index), step, stream, 1001)]);"
        "console.log(JSON.stringify(out))"
    )
    ours = torch.cat([normal(seed, torch.tensor([index]), step, (1001,), stream) for index, step, stream in cases])
    found = torch.tensor(found, dtype=torch.float32)
    torch.testing.assert_close(found, ours, rtol=2**-22, atol=1e-7)
    assert float((found == ours).double().mean()) > 0.999


def _network(x, c_noise, labels):
    """A network that JavaScript can write as well; an answer of 0 would let a wrong factor of it pass."""
    return torch.tanh(x) + 0.3 * torch.sin(c_noise)[:, None, None, None] + 0.05 * labels[:, None, None, None]


_SAME_NETWORK = """
const network = async (x, c_noise, label) =>
  x.map((value) => Math.tanh(value) + 0.3 * Math.sin(c_noise) + 0.05 * label);
"""


@needs_node
@pytest.mark.parametrize(
    ("schedule", "prediction", "guidance"),
    [(Cosine(), "v", 1.0), (VP(), "eps", 2.0), (Rectified(), "velocity", 1.0)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_loop_of_the_page_draws_as_diffusion_sample(schedule, prediction, guidance):
    """Every sampler of the page with a network that both languages have, with and without guidance."""
    denoiser = NetworkDenoiser(_network, schedule, prediction, shape=(1, 3, 4), num_classes=3)
    model = DiffusionModel(denoiser, load_config("digits"), DataFacts("digits", (1, 3, 4), 17, 3))
    cases = [(name, steps) for name in page.SAMPLERS for steps in (2, 9, 15)]
    plans = [plan(model, denoiser, name, steps) for name, steps in cases]
    found = by_node(
        f"import {{ draw }} from '{STATIC}/sampler.mjs';{_SAME_NETWORK}"
        f"const plans = {json.dumps(plans)}, out = [];"
        f"for (const plan of plans) out.push(await draw({{ plan, count: 12, n: 3, seed: 11n, network, label: 1,"
        f" noLabel: 3, guidance: {guidance}, streams: {{ initial: {STREAM_INITIAL}, solver: {STREAM_SOLVER} }} }}));"
        "console.log(JSON.stringify(out.map(({ x, nfe }) => [[...x], nfe])))"
    )
    for (name, steps), (x, nfe) in zip(cases, found, strict=True):
        with model.counted() as count:
            expected = model.sample(3, seed=11, label=1, guidance=guidance, **model.sampling_settings(
                {"sampler": name, "steps": steps}
            ))  # fmt: skip
        assert nfe == count.rows / 3, name
        assert torch.isfinite(expected).all()
        got = torch.tensor(x, dtype=torch.float32).reshape(expected.shape)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@needs_node
def test_the_command_of_the_page_is_read_back_as_it_was_meant():
    """Classes are folders 0 to 11 in the order of text, so that the number of one is the name of another."""
    names = sorted(map(str, range(12)))
    chosen = {"sampler": "abm", "steps": 5, "n": 4, "seed": "7", "guidance": 2}
    runs = ["digits-0001", "it's a run $(x)", "digits-0001/checkpoints/last.ckpt"]
    cases = [[run, {**chosen, "label": label}] for run in runs for label in (None, *range(12))]
    found = by_node(
        f"import {{ command }} from '{STATIC}/command.mjs';"
        f"console.log(JSON.stringify({json.dumps(cases)}.map(([run, chosen]) => command(run, chosen))))"
    )
    for text, (run, settings) in zip(found, cases, strict=True):
        options = parse_sample_arguments(shlex.split(text)[4:])
        assert shlex.join(shlex.split(text)) == text
        assert (options.run, options.steps, options.seed, options.n) == (run, 5, 7, 4)
        assert (None if options.label is None else number_of(options.label, names)) == settings["label"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports a model as a page, with the files of onnxruntime-web that npm has in its cache; skips without them."""
    for library in ("onnx", "onnxscript"):
        pytest.importorskip(library)
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")

    def export(model):
        folder = tmp_path_factory.mktemp("pages") / "page"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("npm_config_offline", "true")
            code = command(main, ["export", model, str(folder), "--to", "web"])
        if code and not folder.exists():
            pytest.skip("npm has no onnxruntime-web in its cache; `npm cache add onnxruntime-web@^1.20` fetches it")
        assert code == 0
        return folder

    return export


def drawn(window, model):
    """What the page has drawn last and what `diffusion.sample` draws with the settings of its command."""
    words = shlex.split(window.inner_text("#command"))
    given = dict(zip(words[4::2], words[5::2], strict=True))
    assert words[:4] == ["python", "-m", "diffusion", "sample"]
    n, seed = int(given["--n"]), int(given["--seed"])
    settings = {"sampler": given["--sampler"], "steps": int(given["--steps"])}
    if "--label" in given:
        settings["label"] = int(given["--label"].removeprefix("#"))
    if "--guidance" in given:
        settings["guidance"] = float(given["--guidance"])
    expected = model.sample(n, seed, **model.sampling_settings(settings))
    shown = torch.tensor(window.evaluate("[...window.drawn.x]"), dtype=torch.float32)
    return shown.reshape(expected.shape), expected, settings


def redrawn(window, act):
    """Do something that draws, and wait until it has."""
    window.evaluate("window.drawn = null")
    act()
    window.wait_for_function("window.drawn !== null || document.querySelector('#status.error')")
    assert window.locator("#status.error").count() == 0


def slide(window, name, value):
    window.evaluate(
        "([name, value]) => { const slider = document.getElementById(name); slider.value = value;"
        "slider.dispatchEvent(new Event('input')); slider.dispatchEvent(new Event('change')); }",
        [name, value],
    )


def try_the_page(folder, model, far):
    """Load, draw, change everything once; pictures are those of `diffusion.sample`, and no line is on the console."""
    with served(folder) as url, opened(url) as (window, complaints):
        window.wait_for_function("window.drawn || document.querySelector('#status.error')")
        assert window.locator("#status.error").count() == 0, window.inner_text("#status")
        found, expected, _ = drawn(window, model)
        assert float((found - expected).abs().max()) < far
        assert float(expected.std()) > 0.1

        redrawn(window, lambda: window.select_option("#sampler", "ancestral"))
        redrawn(window, lambda: slide(window, "steps", page.STEPS.index(5)))
        if model.denoiser.num_classes:
            redrawn(window, lambda: window.click("#labels [data-label='3']"))
            redrawn(window, lambda: slide(window, "guidance", 2))
        window.fill("#seed", "41")
        redrawn(window, lambda: window.click("#draw"))
        found, expected, settings = drawn(window, model)
        assert settings["sampler"] == "ancestral"
        assert settings["steps"] == 5
        assert (settings.get("label"), settings.get("guidance")) == (
            (3, 2.0) if model.denoiser.num_classes else (None, None)
        )
        assert float((found - expected).abs().max()) < far

        with window.expect_download() as caught:
            window.click("#save")
        check_saved(caught.value.path(), window.inner_text("#command"), folder.parent / "again.png")
        slide(window, "step", 2)
        assert "step 2 of 5" in window.inner_text("#where")
        window.fill("#seed", "-1")
        window.click("#draw")
        assert window.inner_text("#status") == 'Seed: found "-1"; a whole number from 0 on is accepted.'
        assert complaints == []


def check_saved(path, text, again):
    """The saved picture is, within a level, that of its command, which it holds."""
    with Image.open(path) as image:
        about, saved = json.loads(image.text["diffusion-web"]), np.asarray(image.convert("L")).astype(int)
    assert (about["command"], about["seed"], about["step"]) == (text, "41", 5)
    assert command(main, [*shlex.split(text)[3:], "--out", str(again)]) == 0
    with Image.open(again) as image:
        expected = np.asarray(image).astype(int)
    assert saved.shape == expected.shape
    assert np.abs(saved - expected).max() <= 1


def test_a_page_draws_as_its_model(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the command finds the run
    run = make_run(tmp_path / "runs", digits_config(tmp_path, "denoiser.conditional=true"))
    try_the_page(exported(str(run)), diffusion.load(run), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrained:digits", "pretrained:mnist-class"])
def test_pages_of_the_shipped_models(name, exported):
    try_the_page(exported(name), diffusion.load(name), 2e-3)


def test_models_that_the_page_cannot_draw_from(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("diffusion.commands.export.page.shutil.which", lambda name: None)
    run = make_run(tmp_path / "runs", digits_config(tmp_path))
    monkeypatch.setattr("diffusion.commands.export.network.find_spec", lambda name: True)
    assert command(main, ["export", str(run), str(tmp_path / "out"), "--to", "web"]) == 2
    assert "--runtime: npm is not installed, which would fetch onnxruntime-web" in capsys.readouterr().err
    model = diffusion.load(
        make_run(tmp_path / "runs", digits_config(tmp_path, "denoiser.prediction=levels", "objective.dequantize=false"))
    )
    with pytest.raises(diffusion.errors.UserError, match="predicts 'levels'; the page takes eps, x"):
        page.check_page(model)
