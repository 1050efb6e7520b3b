"""Images of a folder in class order: a part of them is a sample of all, each image with its noise of the whole."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_configs import digits_config

from diffusion.commands import records
from diffusion.commands.evaluate import measuring
from diffusion.commands.records import Protocol
from diffusion.commands.subjects import first_of, identify, images_of, load_images_of, load_subject, rows_of
from diffusion.config import dump_config
from diffusion.likelihood import Estimate
from diffusion.likelihood.estimate import mean_error
from diffusion.models.build import build_data, build_denoiser
from diffusion.models.load import FACTS
from diffusion.numerics import random
from diffusion.numerics.random import FIXED_ORDER, fixed_order
from diffusion.storage import runs, tensor_files

# Lightning's own: it uses a deprecated class of PyTorch (tests/training/tiny_training.py has the same mark).
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

RUN, COUNT = Path("runs/classes"), 120
ELBO = ("evaluate", "classes", "--method", "elbo", "--draws", "8", "--wandb", "off")


@pytest.fixture
def classes(diffusion_command, tmp_path, monkeypatch):
    """A run on a source's own test split, 60 images of each of two classes in order, whose bits/dim are 2 and 7."""
    folder = tmp_path / "images"
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", COUNT // 2)):
        for name, low in (("dark", 0), ("light", 128)):
            (folder / split / name).mkdir(parents=True)
            for i, pixels in enumerate(generator.integers(low, low + 128, (count, 8, 8)).astype(np.uint8)):
                Image.fromarray(pixels).save(folder / split / name / f"{i:03d}.png")
    config = digits_config(tmp_path, "data.name=folder", f"data.path={folder}")
    facts = build_data(config).facts
    state = build_denoiser(config, facts).state_dict()
    tensor_files.save_model(RUN / runs.MODEL, state, dump_config(config), {FACTS: facts.to_json()})
    monkeypatch.setattr(measuring, "_chunk", _by_class)
    return diffusion_command


def _by_class(model, images, rows, protocol, batch_size):
    """An estimator whose values are those of the class, with noise that the image's own row keys."""
    draws = int(protocol.options["evaluations"])
    noise = 64 / draws**0.5 * random.normal(0, rows, draws, (), random.STREAM_EVALUATE, torch.float64)
    bits = 2 + 5 * (images.double().mean((1, 2, 3)) > 128)
    error = torch.full_like(noise, 64 / draws**0.5)
    stated = {"estimator": "ELBO", "evaluations": draws, "seed": 0}
    budget = {"noise": mean_error(error, 64)}
    log_prob = noise - bits * 64 * math.log(2)
    return Estimate(log_prob, 64, 256, error, "lower bound", stated, rows, error_budget=budget)


def kept():
    """The figures by their number of images."""
    return {len(found.estimate): found for found in records.read_all(RUN)}


def compared():
    return json.loads(Path("comparison/comparison.json").read_text())["rows"]


def by_index(evaluation):
    estimate = evaluation.estimate
    return dict(zip(estimate.indices.tolist(), estimate.log_prob.tolist(), strict=True))


def test_parts_are_samples_of_the_whole_nested_and_with_its_values(classes, tmp_path):
    for more in ((), ("--images", "30"), ("--images", "20", "--ood", str(tmp_path / "images"))):
        assert classes(*ELBO, *more)[0] == 0
    found = kept()
    whole, part = found[COUNT], found[30]
    values = by_index(whole)
    for evaluation in records.read_all(RUN):
        for row, value in by_index(evaluation).items():
            if not evaluation.protocol.data.get("foreign"):
                assert value == pytest.approx(values[row], rel=1e-12), "the noise of the image's own row"
    rows = set(by_index(part))
    assert 8 <= len([row for row in rows if row < 60]) <= 22, "both classes"
    assert rows == set(fixed_order(COUNT)[:30].tolist())
    assert part.protocol.data["order"] == FIXED_ORDER
    assert part.protocol.data["of"] == COUNT
    assert "order" not in whole.protocol.data, "all images have one question in every release"
    twenty = [e for e in records.read_all(RUN) if len(e.estimate) == 20]
    assert len(twenty) == 2, "of its own data, and of the other's"
    assert all(set(by_index(evaluation)) < rows for evaluation in twenty)


def test_a_target_error_holds_for_all_images(classes):
    assert classes(*ELBO)[0] == 0
    whole = kept()[COUNT].estimate.mean().mean
    code, out, _ = classes(*ELBO, "--target-error", "0.35")
    assert code == 0
    assert "met" in out
    (part,) = [e for e in records.read_all(RUN) if len(e.estimate) < COUNT]
    rows = part.estimate.indices
    assert 32 <= len(rows) < COUNT
    assert set(rows.tolist()) == set(fixed_order(COUNT)[: len(rows)].tolist())
    assert abs(part.estimate.mean().mean - whole) < 3 * part.estimate.total_error
    assert part.estimate.total_error <= 0.35
    # the figure is an evaluation like any other
    draws = str(part.protocol.options["evaluations"])
    again = (*ELBO[:4], "--draws", draws, "--images", str(len(rows)), *ELBO[6:])
    assert "cached" in classes(*again)[1]


def test_figures_of_the_first_images_of_a_file_are_read_and_answer_no_new_question(classes, small_baselines):
    subject = load_subject("classes", "runs")
    data = load_images_of(subject)
    images = data.test[:30]
    old = identify(images, data.name, "test", data.levels)
    options = {"seed": 0, "evaluations": 8}
    estimate = _by_class(None, images, torch.arange(30), Protocol({}, "", "elbo", options), None)
    records.write(
        RUN / records.FOLDER, records.Protocol(old, subject.weights, "elbo", options), subject.facts, estimate
    )
    assert rows_of(old).tolist() == list(range(30))
    compare = ("compare", "classes", "--wandb", "off")
    for more in ((), ("--split", "train")):
        assert "cached" not in classes(*ELBO, "--images", "30", *more)[1]
    code, _, err = classes(*compare)
    assert (code, err) == (0, "")
    assert (
        f"first of the split's {COUNT} in the order of the {FIXED_ORDER}"
        in Path("comparison/comparison.md").read_text()
    )
    rows = compared()
    assert [row["images"] for row in rows] == [30] * 6, "the run, and what is there for scale"
    assert [row["question"]["data"].get("of") for row in rows] == [COUNT] * 6
    assert [row["train_images"] for row in rows if row["run"] == "classes"] == [30]
    for path in (RUN / records.FOLDER).glob("*.json"):
        if "of" in records.read(path).protocol.data:
            path.unlink()
    code, out, err = classes(*compare)
    assert (code, err) == (0, ""), "where there is nothing else they are compared among themselves"
    assert "independent pixels" in out
    assert [row["train_images"] for row in compared()] == [None] * 6, "they say nothing of a split"


def test_a_part_of_a_part_is_that_of_the_whole(classes):
    data = load_images_of(load_subject("classes", "runs"))
    images, identity = images_of(data, "test", 50)
    less, of_part = first_of(images, identity, 12)
    direct, of_whole = images_of(data, "test", 12)
    assert torch.equal(less, direct)
    assert of_part == of_whole
    assert torch.equal(data.test[rows_of(of_part)], less)
