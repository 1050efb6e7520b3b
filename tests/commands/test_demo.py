"""The page to play with: what it shows is what its command draws, and a browser finds nothing to complain about."""

import base64
import gc
import io
import json
import re
import shlex
import socket
import sys
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from browser import opened
from made_runs import DIGITS, make_run
from PIL import Image
from tiny_configs import autoencoder_config, digits_config

import diffusion
from diffusion.commands.app import command, sample
from diffusion.commands.demo import drawing, images, view
from diffusion.commands.demo.arguments import parse_demo_arguments
from diffusion.commands.demo.demo import names
from diffusion.commands.demo.launch import first_address, launched
from diffusion.commands.demo.page import ANY, Page
from diffusion.commands.dispatch import main
from diffusion.data import pictures
from diffusion.data.files.raw_images import OPACITY
from diffusion.errors import BY_UV, UserError, way_to_install
from diffusion.models.build import DataFacts
from diffusion.networks.parts import CLASSES, FIELD, Part
from diffusion.schedules import time_grid

# Gradio's own, of its dependencies.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with runs: a conditional model of digits, and a VAE."""
    place = tmp_path_factory.mktemp("demo")
    make_run(place / "runs", digits_config(place, "denoiser.conditional=true"))
    make_run(place / "runs", autoencoder_config("vae", place))
    return place


@pytest.fixture
def place(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def models():
    return drawing.Models("runs", "cpu")


def image_file(name="drop.png"):
    pixels = (
        (15 * (np.arange(64) % 17) + 7).reshape(8, 8).astype(np.uint8)
    )  # the middles of 17 levels, one after another
    Image.fromarray(pixels).save(name)
    return name


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image)


def mask_file(models):
    return images.kept_mask("0" * 20 + "1" * 12 + "0" * 32, (1, 8, 8), images.Path("kept"))


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "abm", "steps": 6},
        {"sampler": "sde", "steps": 5, "eta": 0.7, "label": 3, "guidance": 2},
        {"steps": 5, "edit": "drop.png", "strength": 0.6},
        {"steps": 3, "inpaint": "drop.png", "mask": None},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_the_command_draws_the_same_picture(settings, place, models, capsys):
    image_file()
    settings = {**settings, **({"mask": mask_file(models)} if "mask" in settings else {})}
    argv = drawing.with_settings(models.arguments("digits-0001"), seed=4, n=5, **settings)
    found = drawing.draw(models, argv)
    (place / "saved.png").write_bytes(found.picture.png)
    words = shlex.split(found.command)
    assert words[:4] == ["python", "-m", "diffusion", "sample"]
    assert command(main, [*words[3:], "--out", "again.png"]) == 0
    assert np.array_equal(pixels_of("saved.png"), pixels_of("again.png"))
    assert pixels_of("saved.png").std() > 5
    # and the saved file says itself how it was drawn
    assert command(sample, ["--from", "saved.png", "--out", "third.png"]) == 0
    assert "the same pixels as saved.png" in capsys.readouterr().out


def test_the_path_is_that_of_the_grid(place, models):
    found = drawing.draw(models, [*models.arguments("digits-0001"), "--sampler", "ddim", "--steps", "6", "--n", "2"])
    schedule = models["digits-0001"].denoiser.schedule
    grid = time_grid(schedule, 6, "cauchy")[:-1]
    assert found.log_snrs[-1] == float("inf")
    np.testing.assert_allclose(found.log_snrs[:-1], schedule.log_snr(grid.clamp(max=schedule.t_max)), rtol=1e-9)
    assert (len(found.frames), found.nfe) == (7, 6)
    assert len(set(found.frames)) == 7


def test_models_of_other_families_are_drawn_too(place, models):
    found = drawing.draw(models, [*models.arguments("vae-digits-0001"), "--n", "3"])
    assert found.samples.shape == (3, 1, 8, 8)
    assert found.frames == []
    with pytest.raises(UserError, match="no path from noise to an image"):
        images.seen(models["vae-digits-0001"], image_file())


def test_a_difference_is_of_the_same_noise(place, models):
    first = [*models.arguments("digits-0001"), "--sampler", "ddim", "--steps", "4", "--n", "3"]
    second = [*models.arguments("digits-0001"), "--sampler", "heun", "--steps", "3", "--n", "3"]
    a, b, picture, rms = drawing.difference(models, (first, second))
    expected = 127.5 * (a.samples.numpy() - b.samples.numpy())
    assert rms == pytest.approx(np.sqrt(np.mean(expected.astype(float) ** 2)), rel=1e-4)
    assert 0 < rms < 127
    assert drawing.difference(models, (first, first))[3] == 0.0
    (place / "difference.png").write_bytes(picture.png)
    assert pixels_of("difference.png").max() == 255


def test_bits_are_those_of_the_library_and_add_up(place, models, monkeypatch):
    monkeypatch.setattr(images, "EVALUATIONS", 8)
    path, model = image_file(), models["digits-0001"]
    found = images.bits(model, path, seed=3)
    levels = (torch.arange(64) % 17).to(torch.uint8).reshape(1, 1, 8, 8)
    expected = diffusion.log_likelihood(model, levels, method="elbo", evaluations=8, seed=3)
    assert found.bits_per_dim == pytest.approx(float(expected.bits_per_dim[0]), rel=1e-6)
    assert sum(found.parts.values()) == pytest.approx(found.bits_per_dim, rel=1e-6)


def test_an_image_comes_back_from_its_noise(place, models):
    path = image_file()
    shown, found = drawing.encode_image(models, [*models.arguments("digits-0001"), "--encode", path])
    torch.testing.assert_close(found.back, found.x, atol=0.1, rtol=0)
    assert command(main, [*shlex.split(shown)[3:], "--out", "noise.npz"]) == 0
    with np.load("noise.npz") as arrays:
        np.testing.assert_array_equal(arrays["noise"], found.noise.numpy())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--seed", "x"), "--seed: found 'x'; must be a whole number"),
        (("--n", "2000"), "--n: found 2000; the page draws up to 100 at a time"),
        (("--sampler", "dim"), "--sampler: 'dim' is not known; accepted: "),
        (("--label", "11"), "--label: "),
        (("--sampler", "ddim", "--eta", "1.5"), "eta: found 1.5; DDIM takes 0 to 1"),
    ],
)
def test_what_is_refused(more, message, place, models):
    with pytest.raises(UserError, match=message):
        drawing.draw(models, [*models.arguments("digits-0001"), *more])


@pytest.mark.parametrize(
    ("marks", "message"), [("0" * 64, "nothing is marked"), ("1" * 63, "found marks for 63 pixels"), ("", "is marked")]
)
def test_masks_that_are_none(marks, message, tmp_path):
    with pytest.raises(UserError, match=message):
        images.kept_mask(marks, (1, 8, 8), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_mask_is_white_where_it_is_marked(tmp_path):
    path = images.kept_mask("01" * 32, (1, 8, 8), tmp_path)
    assert np.array_equal(pixels_of(path), np.tile([0, 255], 32).reshape(8, 8))


def test_which_models_are_offered(place):
    shipped = ["pretrained:digits", "pretrained:mnist", "pretrained:mnist-class"]
    assert set(names(parse_demo_arguments([]))) == {"digits-0001", "vae-digits-0001", *shipped}
    assert names(parse_demo_arguments(["pretrained:mnist-class"]))[0] == "pretrained:mnist-class"
    assert names(parse_demo_arguments(["--runs", "nowhere"]))[0] == "pretrained:digits"


@pytest.mark.parametrize("condition", ["[label]", "[label,grey]"])
def test_models_with_the_class_among_their_parts_are_asked_for_one(condition, place, models):
    """Its command draws; the classes are folders 0 to 9 backwards, where a name is the number of another class."""
    names = [str(9 - number) for number in range(10)]
    config = digits_config(place, f"denoiser.condition={condition}", "name=parts")
    grey = Part("grey", FIELD, 1, (8, 8), (0.0,), (1.0,))
    parts = (Part("label", CLASSES, 10, names=tuple(names)), grey) if "grey" in condition else ()
    facts = replace(DIGITS, provenance={"class_names": json.dumps(names)}, parts=parts)
    run = make_run(place / "runs-of-parts", config, facts)
    shown = drawing.Models("runs-of-parts", "cpu")
    page = object.__new__(Page)
    page.models = shown
    assert page._shown(shown[run.name]) == {"sampler": True, "label": True}
    argv = page._command(run.name, "ddim", 3, 0, "4", 2, "3", 2)
    assert argv[argv.index("--label") + 1] == "#6"
    assert argv[argv.index("--guidance") + 1] == "2"
    page._classes = lambda model: ["any", "any class"]
    assert page._command(run.name, "ddim", 3, 0, "4", 2, "any", 1)[-2:] == ["--label", "any"], "a class of that name"
    assert "--label" not in page._command(run.name, "ddim", 3, 0, "4", 2, ANY[1], 2)
    del page._classes
    other = page._command(run.name, "ddim", 3, 0, "4", 2, "8", 2)
    found = [drawing.draw(shown, one).samples for one in (argv, other)]
    assert not torch.equal(*found)


@pytest.mark.parametrize(("channels", "opacity"), [(2, False), (2, True), (4, False), (4, True), (5, False)])
def test_images_of_many_channels_are_taken_whole_and_painted_on_at_their_size(channels, opacity, place, models):
    """The picture that is painted on is one image; all channels are below it, as in pictures of samples."""
    facts = DataFacts("x", (channels, 8, 8), 256, 0, {OPACITY: "yes"} if opacity else {})
    run = make_run(place / "bands", digits_config(place, "name=bands"), facts)
    page = object.__new__(Page)
    page.models, page.images = drawing.Models("bands", "cpu"), images.Path("kept")
    model = page.models[run.name]
    about = f"{channels} channels: {'three as colour, the fourth' if channels == 4 else 'in grey, next to'}"
    assert about in page._about(model)
    samples = torch.rand(1, channels, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if channels == 5:
        with pytest.raises(UserError, match="up to 4 channels, this sample has 5"):
            page._taken(run.name, samples)
        path = "bands.tif"
        pytest.importorskip("tifffile").imwrite(path, pictures.to_bytes(samples)[0].permute(1, 2, 0).numpy(),
                                                planarconfig="contig", photometric="minisblack")  # fmt: skip
        path, html, _ = page._dropped(run.name, path)
    else:
        path, html, _ = page._taken(run.name, samples)
    torch.testing.assert_close(images.seen(model, path), samples, atol=1.01 / 255, rtol=0)
    shown = [Image.open(io.BytesIO(base64.b64decode(text))) for text in re.findall('base64,([^)"]+)', html)]
    bytes_ = pictures.to_bytes(samples)[0].permute(1, 2, 0).numpy()
    whole = bytes_ if opacity else bytes_[..., :3] if channels == 4 else bytes_.mean(2, keepdims=True)
    np.testing.assert_allclose(np.asarray(shown[0]).reshape(whole.shape), whole, atol=0.51)
    assert shown[1].size == pictures.grid(samples).size
    assert about in html


def test_the_command_line_refuses(place, monkeypatch, capsys):
    for argv, message in (
        (["digits-0009"], "digits-0009: there is no such run"),
        (["--port", "0"], "--port: found 0; must be 1 to 65535"),
        (["--device", "gpu"], "--device: found 'gpu'"),
    ):
        assert command(main, ["demo", *argv]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert command(main, ["demo"]) == 2
    assert f"gradio, which is not installed; {way_to_install('demo')}" in capsys.readouterr().err


def test_an_extra_is_installed_by_the_names_of_its_libraries(monkeypatch):
    """A registry's `diffusion` is somebody else's package."""
    monkeypatch.setenv(BY_UV, "1")
    assert way_to_install("demo").endswith("uv run --extra demo")
    monkeypatch.delenv(BY_UV)
    pip, install, requirement = shlex.split(way_to_install("demo"))
    assert (pip, install) == ("pip", "install")
    assert sorted(re.split("[,>=<]+", requirement)) == ["6", "7", "gradio"]
    assert len(shlex.split(way_to_install("web"))) == 5


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1", "a..b"])
def test_a_place_that_cannot_be_listened_at_is_refused(host):
    """A name that is none, another machine's address, and no name at all; gradio would wait for ever."""
    with pytest.raises(UserError, match=f"--host, --port: {host}:7860 cannot be listened at"):
        launched(object.__new__(Page), host, 7860)


@pytest.mark.parametrize(("second", "taken"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_the_first_address_of_a_host_that_can_be_listened_at_is_taken(second, taken, monkeypatch):
    """A machine without IPv6 may still name ::1 first for localhost."""

    class Probe(nullcontext):
        def setsockopt(self, *_):
            pass

        def bind(self, address):
            if address[0] == "192.0.2.1":
                raise OSError("not of this machine")

    found = [socket.getaddrinfo(text, 0, type=socket.SOCK_STREAM)[0] for text in ("192.0.2.1", second)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "socket", lambda *_: Probe(Probe()))
    assert first_address("of.many.addresses", 0) == taken


def test_text_from_outside_is_text():
    assert "<script>" not in view.line("<script>") + view.code("<script>") + view.empty("<script>")


@contextmanager
def running(models, offered):
    """The page of some models, in a browser."""
    blocks, url = launched(Page(models, offered, images.Path("samples/demo")), "127.0.0.1", None)
    try:
        assert url.startswith("http://127.0.0.1:")
        with opened(url) as (window, complaints):
            yield window, complaints
    finally:
        blocks.close(verbose=False)
        with warnings.catch_warnings():  # of the event loop that gradio leaves open
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


def _choose(window, name, value):
    box = window.get_by_role("combobox", name=name)
    box.fill(value)
    box.press("Enter")


@pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed")
def test_the_page_in_a_browser(place, models, monkeypatch, tmp_path):
    """Loads, draws, changes a slider, refuses bad input with a line; compares; fills in what is painted over."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with running(models, ["digits-0001", "pretrained:digits"]) as (window, complaints):
        shown = window.locator("#stage .result code")
        shown.wait_for()  # it draws at once
        assert "--run digits-0001" in shown.inner_text()

        steps = window.get_by_label("number input for Steps")
        steps.fill("4")
        window.get_by_label("number input for Samples").fill("2")
        window.get_by_label("Seed").fill("9")
        window.get_by_role("button", name="Draw", exact=True).click()
        window.wait_for_function("document.querySelector('#stage .result code').innerText.includes('--seed 9')")
        words = shlex.split(shown.inner_text())
        assert words[words.index("--steps") + 1] == "4"
        assert command(main, [*words[3:], "--out", "again.png"]) == 0
        link = window.locator("#stage .result figcaption a")
        saved = base64.b64decode(link.get_attribute("href").partition(",")[2])
        (place / "saved.png").write_bytes(saved)
        assert np.array_equal(pixels_of("saved.png"), pixels_of("again.png"))

        slider = window.locator("#stage .path input")
        before = window.locator("#stage .path img").first.get_attribute("src")
        slider.focus()
        slider.press("ArrowLeft")
        assert "step 3 of 4" in window.locator("#stage .path output").inner_text()
        assert window.locator("#stage .path img").first.get_attribute("src") != before

        window.get_by_label("Seed").fill("-1")
        window.get_by_role("button", name="Draw", exact=True).click()
        window.locator(".line.error").wait_for()
        assert window.locator(".line.error").inner_text() == "--seed: found -1; must be at least 0"
        window.get_by_label("Seed").fill("1")

        # another model, with its own sampler and without classes, and back
        assert window.get_by_role("combobox", name="Class").count() == 1
        _choose(window, "Model", "pretrained:digits")
        window.wait_for_function(
            "document.querySelector('#stage .result code').innerText.includes('pretrained:digits')"
        )
        assert "--sampler abm --steps 20" in shown.inner_text()
        assert window.get_by_role("combobox", name="Class").count() == 0
        _choose(window, "Sampler", "sde")
        window.wait_for_function("document.querySelector('#stage .result code').innerText.includes('--eta 1')")
        _choose(window, "Model", "digits-0001")
        window.wait_for_function("document.querySelector('#stage .result code').innerText.includes('--steps 3')")

        window.get_by_role("tab", name="Compare").click()
        window.get_by_role("button", name="Compare", exact=True).click()
        window.locator("#stage .two code").first.wait_for()
        assert window.locator("#stage .two code").count() == 2
        assert window.locator(".line.error").count() == 0

        window.get_by_role("tab", name="Image").click()
        window.get_by_role("button", name="Take the first").click()
        canvas = window.locator(".painter canvas")
        canvas.wait_for()
        box = canvas.bounding_box()
        window.mouse.move(box["x"] + 0.06 * box["width"], box["y"] + 0.06 * box["height"])
        window.mouse.down()
        window.mouse.move(box["x"] + 0.94 * box["width"], box["y"] + 0.06 * box["height"], steps=3)
        window.mouse.up()
        window.get_by_role("button", name="Run", exact=True).click()
        filled = window.locator("#edited .result code")
        filled.wait_for()
        words = shlex.split(filled.inner_text())
        mask = pixels_of(words[words.index("--mask") + 1])
        assert (mask[0] == 255).all()
        assert (mask[1:] == 0).all()
        assert complaints == []


def test_pictures_of_the_page_are_pngs_with_what_they_are(place, models):
    x = torch.zeros(1, 1, 8, 8)
    (place / "x.png").write_bytes(drawing.png_of(pictures.grid(x), {"command": "c"}))
    with Image.open("x.png") as image:
        assert image.text["diffusion-demo"] == '{"command": "c"}'
