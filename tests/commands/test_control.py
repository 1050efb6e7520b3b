"""sample.py under control: guides, images to fill in and to restore; and that what does not go together is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_configs import digits_config, toy_config

from diffusion import load
from diffusion.commands.app import command, sample
from diffusion.config import dump_config
from diffusion.data import pictures
from diffusion.denoisers.guidance import Autoguidance
from diffusion.models import noisy_classifier
from diffusion.models.build import DataFacts, build_denoiser
from diffusion.models.load import FACTS
from diffusion.storage import runs, tensor_files


def make_run(folder, config, facts, seed=0):
    torch.manual_seed(seed)
    run = runs.create_run(folder, config.name)
    weights = {k: v + 0.02 * torch.randn_like(v) for k, v in build_denoiser(config, facts).state_dict().items()}
    tensor_files.save_model(run / runs.MODEL, weights, dump_config(config), {FACTS: facts.to_json(), "step": "6"})


def save_image(path, x):
    pictures.save(Path(path), pictures.from_bytes(pictures.to_bytes(x[None])[0].numpy()))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with two runs of digits, an image, its means of 2 x 2, and a mask, white below."""
    monkeypatch.chdir(tmp_path)
    facts = DataFacts("digits", (1, 8, 8), 17, 10)
    for seed in (0, 1):
        make_run(tmp_path / "runs", digits_config(tmp_path, "denoiser.conditional=true"), facts, seed)
    image = (torch.linspace(-0.8, 0.8, 64).reshape(1, 8, 8) * 4).round() / 4
    save_image("image.png", image)
    save_image("small.png", torch.nn.functional.avg_pool2d(image[None], 2)[0])
    mask = torch.full((1, 8, 8), -1.0)
    mask[:, 4:] = 1.0
    save_image("mask.png", mask)
    return image


def draw(capsys, line, run="digits-0001"):
    out = Path("x.npz")
    out.unlink(missing_ok=True)
    arguments = ["--run", run, "--n", "2", "--steps", "12", "--device", "cpu", "--out", str(out)]
    code = command(sample, [*line.split(), *arguments])
    found = capsys.readouterr()
    assert code == 0, found.err
    with np.load(out) as arrays:
        x = torch.from_numpy(arrays["images"]).float() / 127.5 - 1
    return x[:, None], int(re.search(r"NFE (\d+)", found.out)[1])


@pytest.mark.parametrize("posterior", ["moment-matching", "pseudo-inverse", "repaint"])
def test_what_the_mask_keeps_is_kept_and_the_rest_is_drawn(here, capsys, posterior):
    x, nfe = draw(capsys, f"--inpaint image.png --mask mask.png --posterior {posterior}")
    off = (x - here).abs()
    tolerance = 0.01 if posterior == "repaint" else 0.25  # known to a level, of a width of 0.12
    assert float(off[:, :, :4].max()) < tolerance
    assert float(off[:, :, 4:].max()) > 0.5
    assert nfe == (11 * 10 + 1 if posterior == "repaint" else 12)


def test_repaint_takes_the_moments_of_the_model(here, capsys):
    x, _ = draw(capsys, "--inpaint image.png --mask mask.png --posterior repaint --variance analytic --steps 2")
    assert bool(torch.isfinite(x).all())


def test_an_edit_takes_any_field_of_its_sampler(here, capsys):
    edit = "--edit image.png --sampler heun --seed 3"
    plain, churned = (draw(capsys, f"{edit}{more}")[0] for more in ("", " --option s_churn=40.5"))
    assert not torch.equal(plain, churned)


def test_grey_in_a_mask_is_told(here, capsys):
    mask = torch.full((1, 8, 8), -1.0)
    mask[:, 4:], mask[:, :, 0] = 0.95, 0.1  # white as JPEG has it, and a grey column
    save_image("mask.png", mask)
    argv = ["--inpaint", "image.png", "--mask", "mask.png", "--n", "1", "--steps", "2", "--device", "cpu"]
    assert command(sample, argv) == 0
    assert "note: --mask: 8 of 64 pixels of mask.png are grey; those nearer to white" in capsys.readouterr().err


def test_a_small_image_is_the_means_of_what_is_drawn(here, capsys):
    x, _ = draw(capsys, "--restore small.png --degradation downsample --observation-noise 0.01 --label 3")
    seen = torch.nn.functional.avg_pool2d(here[None], 2)
    # the median: the wild pixels of an untrained model are cut to [-1, 1] after drawing
    assert float((torch.nn.functional.avg_pool2d(x, 2) - seen).abs().median()) < 0.02


def test_a_guide_counts_as_an_evaluation_within_its_interval(here, capsys):
    plain, alone = draw(capsys, "--sampler ddim")
    guided, pair = draw(capsys, "--sampler ddim --guide digits-0002 --guidance 2")
    assert (alone, pair) == (12, 24)
    assert not torch.equal(plain, guided)
    _, some = draw(capsys, "--sampler ddim --guide digits-0002 --guidance 2 --guidance-interval 0.5 5")
    assert alone < some < pair
    _, labelled = draw(capsys, "--sampler ddim --label 3 --guidance 2 --guidance-interval 0.5 5")
    assert labelled == some
    itself, _ = draw(capsys, "--sampler ddim --guide digits-0001 --guidance 2")
    assert float((itself - plain).abs().max()) < 0.01


def test_a_picture_under_control_is_drawn_again_from_itself(here, capsys):
    line = "--inpaint image.png --mask mask.png --steps 4 --n 2 --run digits-0001 --device cpu --out a.png"
    assert command(sample, line.split()) == 0
    assert command(sample, ["--from", "a.png", "--out", "b.png", "--device", "cpu"]) == 0
    assert "the same pixels as a.png" in capsys.readouterr().out


def test_a_model_without_labels_draws_one_by_the_classifier(here, capsys, tmp_path):
    make_run(tmp_path / "runs", digits_config(tmp_path), DataFacts("digits", (1, 8, 8), 17, 10))
    line = "--sampler ddim --label 3 --classifier digits"
    off, _ = draw(capsys, f"{line} --guidance 0", "digits-0003")
    plain, nfe = draw(capsys, "--sampler ddim", "digits-0003")
    on, same = draw(capsys, f"{line} --guidance 2", "digits-0003")
    assert torch.equal(off, plain)
    assert nfe == same, "the classifier is no evaluation of the model"
    assert not torch.equal(on, plain)
    network = noisy_classifier.load(runs.resolve_classifier("digits"))
    with torch.no_grad():
        score, before = (network(x, torch.full((2,), 4.0)).log_softmax(1)[:, 3].mean() for x in (on, plain))
    assert score > before, "what is drawn is more of the class"


def test_a_picture_by_a_classifier_is_drawn_again_by_that_one_alone(here, capsys):
    torch.manual_seed(0)
    for part in range(2):
        network = noisy_classifier.build((1, 8, 8), 10, base_channels=4)
        torch.nn.init.normal_(network.dense_out.weight)
        noisy_classifier.save(f"{part}.safetensors", network, {})
    line = "--label 3 --classifier 0.safetensors --steps 4 --sampler ddim --n 2 --run digits-0001 --device cpu"
    assert command(sample, [*line.split(), "--out", "a.png"]) == 0
    again = ["--from", "a.png", "--out", "b.png", "--device", "cpu"]
    assert command(sample, again) == 0
    assert "the same pixels as a.png" in capsys.readouterr().out
    Path("1.safetensors").replace("0.safetensors")
    assert command(sample, again) == 2
    assert "was drawn with another classifier than 0.safetensors is now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--inpaint image.png", "--inpaint: needs --mask"),
        ("--mask mask.png", "--mask: needs --inpaint"),
        ("--posterior dps", "--posterior: needs --inpaint or --restore"),
        ("--restore image.png", "--restore: needs --degradation; accepted: blur, downsample, grey"),
        ("--restore image.png --degradation blurr", "Did you mean 'blur'?"),
        ("--restore image.png --degradation blur:x", "found 'blur:x'; needs a deviation in pixels"),
        ("--restore image.png --degradation grey:2", "only blur takes a number"),
        ("--restore image.png --degradation grey", "images have 1 channels; needs 3"),
        ("--restore image.png --degradation downsample", "is 8 x 8 pixels; the model's 8 x 8 must be a multiple"),
        ("--inpaint nowhere.png --mask mask.png", "--inpaint: nowhere.png does not exist"),
        ("--inpaint image.png --mask mask.png --posterior mmps", "--posterior: 'mmps' is not known"),
        (
            "--inpaint image.png --mask mask.png --posterior repaint --sampler ode",
            "takes ancestral, ddim or euler-maruyama",
        ),
        ("--restore small.png --degradation downsample --posterior repaint", "fills in (--inpaint)"),
        ("--inpaint image.png --mask mask.png --observation-noise -1", "noise_std: found -1"),
        ("--guide digits-0002", "--guide: needs --guidance"),
        ("--classifier digits", "--classifier: steers towards a class; give --label too"),
        (
            "--classifier digits --label 3 --guide digits-0002 --guidance 2",
            "--guide, --classifier: use only one of them",
        ),
        ("--classifier nope --label 3", "--classifier: nope does not exist; accepted: digits, or a file of"),
        ("--classifier digits --label 3 --size 6x10", "digits is of images (1, 8, 8); the model's are (1, 6, 10)"),
        ("--classifier digits --label 10", "--label: found 10; the classifier digits knows 0 to 9"),
        ("--guidance-interval 1 2", "--guidance-interval: needs --guidance"),
        ("--label 3 --guidance 2 --guidance-interval 2 1", "needs 0 <= low < high"),
    ],
)
def test_what_does_not_go_together_is_refused(here, capsys, line, message):
    before = set(Path().iterdir())
    code = command(sample, [*line.split(), "--run", "digits-0001", "--device", "cpu", "--out", "x.npz"])
    assert code == 2
    assert message in capsys.readouterr().err
    assert set(Path().iterdir()) == before


def test_points_have_nothing_to_fill_in(here, tmp_path, capsys):
    make_run(tmp_path / "runs", toy_config(tmp_path), DataFacts("gaussians", (2,), None, 0))
    (run,) = (path.name for path in Path("runs").iterdir() if not path.name.startswith("digits"))
    assert command(sample, f"--run {run} --inpaint image.png --mask mask.png --device cpu".split()) == 2
    assert "are for images of levels; 'gaussians' has none" in capsys.readouterr().err


def test_a_picture_under_a_guide_is_drawn_again_by_that_one_alone(here, capsys):
    line = "--guide digits-0002 --guidance 2 --steps 4 --sampler ddim --n 2 --run digits-0001 --device cpu"
    assert command(sample, [*line.split(), "--out", "a.png"]) == 0
    again = ["--from", "a.png", "--out", "b.png", "--device", "cpu"]
    assert command(sample, again) == 0
    assert "the same pixels as a.png" in capsys.readouterr().out
    Path("runs/digits-0002/model.safetensors").write_bytes(Path("runs/digits-0001/model.safetensors").read_bytes())
    assert command(sample, again) == 2
    assert "was drawn with another guide than digits-0002 is now" in capsys.readouterr().err


def test_what_is_tuned_under_a_guide_leaves_that_of_the_model_alone(here, quick_tuning):
    model, kept = load("runs/digits-0001"), Path("runs/digits-0001/model.grids.json")
    draw = {"sampler": "ddim", "steps": 3, "grid": "auto"}
    model.sample(1, **draw)
    before = kept.read_bytes()
    guided = model.around(Autoguidance(model.denoiser, load("runs/digits-0002").denoiser, 2.0))
    guided.sample(1, **draw)
    with guided.counted() as count:
        guided.sample(1, **draw)
    assert count.rows == 2 * 3, "in memory, once"
    assert kept.read_bytes() == before


def test_a_guided_model_keeps_its_facts(here):
    model = load("runs/digits-0001")
    again = model.around(model.denoiser)
    assert (again.source, again.step, again.facts) == (model.source, model.step, model.facts)


def test_an_image_that_is_changed_to_fit_is_reported(place, capsys):
    from PIL import Image

    from diffusion.commands.sample.control import read_image

    for name, mode, size in (
        ("fits", "L", (8, 8)),
        ("large", "L", (20, 10)),
        ("colour", "RGB", (8, 8)),
        ("both", "RGB", (9, 9)),
    ):
        Image.new(mode, size).save(f"{name}.png")
        assert read_image("--inpaint", f"{name}.png", (1, 8, 8)).shape == (1, 1, 8, 8)
    assert capsys.readouterr().err.splitlines() == [
        "--inpaint: large.png: 20 x 10 pixels resized and cropped to 8 x 8",
        "--inpaint: colour.png: turned grey",
        "--inpaint: both.png: 9 x 9 pixels resized and cropped to 8 x 8, turned grey",
    ]


def test_a_folder_of_runs_that_is_not_there_is_refused(place, capsys):
    assert command(sample, ["--runs", "nowhere"]) == 2
    assert capsys.readouterr().err == "error: --runs: nowhere does not exist; a folder of runs is accepted\n"
