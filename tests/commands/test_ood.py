"""Two data sets under one model: the AUROC against its definition, and data that do not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from tiny_configs import digits_config

from diffusion.commands import ood
from diffusion.commands.compare.figures import ranked_picture
from diffusion.commands.records import Evaluation, Protocol, read_all
from diffusion.config import dump_config
from diffusion.data import ImageData
from diffusion.errors import UserError
from diffusion.likelihood import Estimate
from diffusion.models.build import build_data, build_denoiser
from diffusion.models.load import FACTS
from diffusion.storage.tensor_files import save_model

# Lightning's own: it uses a deprecated class of PyTorch (tests/training/tiny_training.py has the same mark).
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


def evaluation(log_prob, name="a"):
    log_prob = torch.as_tensor(log_prob, dtype=torch.float64)
    estimate = Estimate(log_prob, 4, 256, torch.zeros_like(log_prob), "exact", {})
    data = {"name": name, "split": "test", "images": len(log_prob)}
    return Evaluation(Protocol(data, "w", "ode", {}), {"run": "r"}, estimate, {})


def images(levels=256, shape=(1, 4, 4)):
    pixels = torch.zeros(3, *shape, dtype=torch.uint8)
    return ImageData("mine", pixels, None, pixels, None, pixels, None, levels, 0, False, {})


def test_the_auroc_is_mann_whitneys_with_ties():
    generator = np.random.default_rng(0)
    native, foreign = generator.integers(0, 9, 70), generator.integers(-4, 7, 40)
    found = ood.auroc(evaluation(native), evaluation(foreign))
    u = stats.mannwhitneyu(-foreign, -native).statistic  # bits/dim are minus the log-probability
    assert found == pytest.approx(u / (70 * 40), abs=1e-12)
    assert ood.auroc(evaluation([3.0, 4.0]), evaluation([1.0, 2.0])) == 1.0
    assert ood.auroc(evaluation([1.0, 2.0]), evaluation([3.0, 4.0])) == 0.0
    assert ood.auroc(evaluation([1.0, 2.0]), evaluation([1.0, 2.0])) == 0.5


def test_a_comparison_finds_the_other_data_sets_of_the_same_question():
    native, foreign, of_elbo = evaluation([1.0]), evaluation([2.0], "b"), evaluation([3.0], "b")
    foreign.protocol.data["foreign"] = of_elbo.protocol.data["foreign"] = True
    other = Evaluation(Protocol(of_elbo.protocol.data, "w", "elbo", {}), {"run": "r"}, of_elbo.estimate, {})
    assert ood.pairs([native], {"r": [native, other, foreign]}) == [(native, foreign)]
    assert ood.pairs([native], {"another": [foreign]}) == []


def test_other_images_come_at_the_size_of_the_model(tmp_path):
    np.savez(tmp_path / "b.npz", images=np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8))
    found = ood.load(str(tmp_path / "b.npz"), images(), "test", 2)
    assert found.images.shape == (2, 1, 4, 4)
    assert [found.identity[key] for key in ("name", "foreign", "images", "of")] == ["b.npz", True, 2, 30]
    with pytest.raises(UserError, match=r"levels 17; the model's images have 256"):
        ood.load("digits", images(shape=(1, 8, 8)), "test", None)
    assert ood.load(str(tmp_path / "b.npz"), images(shape=(1, 8, 4)), "test", 2).images.shape == (2, 1, 8, 4)


@pytest.mark.parametrize("count", [None, 1000, 7])
def test_all_images_of_a_source_without_splits_are_measured(tmp_path, count):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "pool.npz", images=pixels)
    np.savez(tmp_path / "split.npz", train_images=pixels[:20], test_images=pixels[20:])
    whole = ood.load(str(tmp_path / "pool.npz"), images(), "test", count)
    assert len(whole.images) == min(count or 30, 30)
    assert {x.numpy().tobytes() for x in whole.images} <= {x.tobytes() for x in pixels}
    assert "all 30 images, as it has no splits" in whole.note
    assert ("7 of them measured" in whole.note) == (count == 7)
    given = ood.load(str(tmp_path / "split.npz"), images(), "test", count)
    assert len(given.images) == min(count or 10, 10)
    assert {x.numpy().tobytes() for x in given.images} <= {x.tobytes() for x in pixels[20:]}
    assert "10 test images" in given.note


def test_colour_and_grey_come_as_the_model_has_them(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "colour.npz", images=pixels)
    np.savez(tmp_path / "grey.npz", images=pixels[..., 0])
    found = ood.load(str(tmp_path / "colour.npz"), images(), "test", None)
    by_pillow = {np.asarray(Image.fromarray(x).convert("L")).astype(int).tobytes() for x in pixels}
    near = [min(np.abs(np.frombuffer(y, int) - x.numpy().ravel()).max() for y in by_pillow) for x in found.images]
    assert max(near) <= 1, "Rec. 601, which Pillow computes in whole numbers"
    assert "turned grey" in found.note
    found = ood.load(str(tmp_path / "grey.npz"), images(shape=(3, 4, 4)), "test", None)
    assert found.images.shape == (30, 3, 4, 4)
    assert {x[c].numpy().tobytes() for x in found.images for c in range(3)} == {x[..., 0].tobytes() for x in pixels}


@pytest.mark.filterwarnings("ignore::diffusion.data.DataNote")
def test_other_images_come_in_the_levels_of_the_model(tmp_path):
    """Every bin of the coarse levels holds the fine levels whose centres are in its stretch of [0, 1]."""
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(30, 0)
    np.savez(tmp_path / "b.npz", images=ramp)
    fine = ood.load(str(tmp_path / "b.npz"), images(shape=(1, 16, 16)), "test", 1).images
    found = ood.load(str(tmp_path / "b.npz"), images(levels=17, shape=(1, 16, 16)), "test", 1)
    assert found.identity["levels"] == 17
    coarse = found.images
    centre = (fine + 0.5) / 256
    assert bool(((coarse / 17 < centre) & (centre < (coarse + 1) / 17)).all())
    assert coarse.unique().tolist() == list(range(17))


def test_the_command_measures_both_and_keeps_them_apart(place, diffusion_command):
    generator = np.random.default_rng(0)
    np.savez("a.npz", images=generator.integers(0, 256, (60, 8, 8), dtype=np.uint8))
    np.savez("b.npz", images=generator.integers(100, 256, (60, 8, 8), dtype=np.uint8))
    config = digits_config(place, "data.name=folder", "data.path=a.npz")
    facts = build_data(config).facts
    state = build_denoiser(config, facts).state_dict()
    save_model("runs/noise-0001/model.safetensors", state, dump_config(config), {FACTS: facts.to_json()})
    argv = ("evaluate", "noise-0001", "--method", "elbo", "--draws", "4", "--ood", "b.npz", "--wandb", "off")
    code, out, _ = diffusion_command(*argv)
    assert code == 0
    native, foreign = sorted(read_all(Path("runs/noise-0001")), key=lambda e: e.protocol.data.get("foreign", False))
    assert f"AUROC of bits/dim {ood.auroc(native, foreign):.4f}" in " ".join(out.split())
    assert "--ood b.npz: all 60 images, as it has no splits" in " ".join(out.split())
    assert len(foreign.estimate) == 60
    assert len(list(Path("runs/noise-0001/evaluations").glob("*-against-*.png"))) == 1
    code, _, _ = diffusion_command("compare", "noise-0001", "--no-baselines", "--wandb", "off")
    assert code == 0
    rows = json.loads(Path("comparison/comparison.json").read_text())["rows"]
    assert [row["bits_per_dim"] for row in rows] == [native.estimate.mean().mean]


def test_the_histograms_and_the_line_name_both():
    a, b = evaluation([1.0, 2.0, 3.0], "a_$"), evaluation([1.0, 2.0, 2.5], "b")
    line = ood.sentence(a, b)
    assert "a_$" in line
    assert f"{ood.auroc(a, b):.4f}" in line
    assert ood.picture(a, b).size == (1400, 720)


def test_ranked_images_stand_from_the_extremes():
    levels = torch.arange(6, dtype=torch.uint8).reshape(6, 1, 1, 1).expand(6, 1, 2, 2)
    log_prob = torch.tensor([0.0, 5.0, 1.0, 4.0, 2.0, 3.0], dtype=torch.float64)
    estimate = Estimate(log_prob, 4, 6, torch.zeros(6, dtype=torch.float64), "exact", {})
    pixels = np.asarray(ranked_picture(levels, estimate, 6))
    places = [(row * 66 + 5, column * 66 + 5) for row in (0, 1) for column in range(3)]
    shown = [round((int(pixels[place]) / 127.5 * 6 - 1) / 2) for place in places]
    assert shown == [1, 3, 5, 0, 2, 4]
