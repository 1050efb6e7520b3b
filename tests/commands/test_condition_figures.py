"""Figures under conditions: quality by class, and what a condition tells."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conditional_runs import EVALUATED, digits, run, trained
from labelled_folders import written

from diffusion.commands import records
from diffusion.commands.compare.groups import group
from diffusion.commands.evaluate.evaluate import values_of
from diffusion.commands.evaluate.given import _digest, given_to, given_to_samples
from diffusion.commands.quality.arguments import parse_quality_arguments
from diffusion.commands.quality.by_class import each_class
from diffusion.commands.quality.candidates import Candidate, load_candidate
from diffusion.commands.subjects import images_of, load_data_of, load_subject
from diffusion.data import load_images
from diffusion.errors import UserError
from diffusion.models.load import load

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


def test_samples_stand_under_the_conditions_of_test_images_and_by_class(here):
    """Each sample has the condition of one test image, and is among the samples of that image's class."""
    assert trained(*digits("downsample:4")) == 0
    drawing = ("--samples", "400", "--steps", "1", "--sampler", "ddim")
    whole = load_candidate("digits-0001", parse_quality_arguments(["digits-0001", "--by-class", *drawing]))
    model = whole.subject.model
    given, rows = given_to_samples(model, whole.data, None, 400)
    assert len(set(rows[:360].tolist())) == len(whole.data.test) == 360, "each once before any twice"
    centre = model.dequantizer.center(whole.data.test[rows])
    assert torch.equal(given.values["downsample:4"], torch.nn.functional.avg_pool2d(centre, 4))
    assert torch.equal(whole.classes["label"], whole.data.test_labels[rows])
    drawn, _ = whole.draw(torch.device("cpu"), lambda *_: None)
    wanted = model.sample(400, steps=1, sampler="ddim", cond=given.values)
    assert torch.equal(drawn, model.dequantizer.quantize(wanted))
    classes = list(each_class(whole))
    assert [one.name for one in classes] == [f"digits-0001: {k}" for k in range(10)]
    assert sum(one.count for one in classes) == 400
    three = classes[3]
    assert torch.equal(three.draw(torch.device("cpu"), lambda *_: None)[0], drawn[whole.classes["label"] == 3])
    assert bool((three.data.train_labels == 3).all())
    assert len(three.data.train) == int((whole.data.train_labels == 3).sum())
    assert len({json.dumps(one.question, default=str) for one in (whole, *classes)}) == 11
    for more in (["--condition", "none"], ["--condition", "downsample:4=none"]):
        with pytest.raises(UserError, match="--by-class: the samples of digits-0001 are of no class"):
            load_candidate("digits-0001", parse_quality_arguments(["digits-0001", "--by-class", *more]))


@pytest.mark.filterwarnings("ignore::diffusion.data.DataNote")
def test_classes_of_columns_are_those_of_the_reference_by_name(tmp_path):
    data = load_images("folder", path=written(tmp_path, 24), columns=("kind", "score", "depth"))
    names = {"kind": torch.tensor([0, 1, 1, 2]), "score": torch.tensor([0, 0, 2, 1])}  # of no kind: 2
    samples = torch.arange(4)
    whole = Candidate("r", tmp_path, tmp_path, data, 4, {}, None, lambda *_: (samples, 0.0), False, classes=names)
    classes = list(each_class(whole))
    assert [one.name for one in classes] == ["r: kind cat", "r: kind dog", "r: score 0", "r: score 1", "r: score 2"]
    assert [one.count for one in classes] == [1, 2, 2, 1, 1]
    dog = classes[1]
    assert dog.draw(torch.device("cpu"), lambda *_: None)[0].tolist() == [1, 2]
    assert bool(((dog.data.train[:, 0, 1, 1] - 1) // 7 >= 6).all())
    assert len(dog.data.train) == len(dog.data.train_labels) == int((data.columns["kind"]["train"].values == 1).sum())
    assert len({json.dumps(one.question, default=str) for one in (whole, *classes)}) == 6


def test_the_digest_of_conditions_is_that_of_figures_that_are_stored():
    """Of parts by name, and then of files, whatever the parts are called."""
    label, field = torch.tensor([3]), torch.ones(1, 2)
    parts = b"label " + label.numpy().tobytes(), b"zoom " + field.numpy().tobytes()
    files = b'files {"condition": ["ab"]}'
    for values in ({"label": label, "a": None, "zoom": field}, {"zoom": field, "label": label}):
        assert _digest(values) == hashlib.sha256(b"".join(parts)).hexdigest()
        assert _digest(values, {"condition": ["ab"]}) == hashlib.sha256(b"".join((*parts, files))).hexdigest()


def test_one_condition_for_all_is_no_information_and_a_group_of_its_own(table_run, tmp_path, monkeypatch, capsys):
    """E[log p(x | c) - log p(x)] is I(x; c) only where c is that of x."""
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to(table_run / "runs")
    asked = (("kind=dog",), ("kind=1", "c=none"), ("c=1,2.5",), ("data",))
    lines = []
    for condition in asked:
        assert run("evaluate", "t-0001", "--condition", *condition, *EVALUATED) == 0, capsys.readouterr().err
        lines += [line for line in capsys.readouterr().out.splitlines() if line.startswith(("given", "I(x"))]
    starts = ("given kind=dog", "given kind=dog", "given c=1,2.5", "I(x; c, kind)")
    assert [line.partition(" by ")[0].rstrip(",") for line in lines] == list(starts)
    assert run("evaluate", "t-0001", "--condition", "c=none", "kind=none", *EVALUATED) == 0
    out = capsys.readouterr().out
    assert "(cached)" in out, "no part is given: the question without conditions"
    assert "given" not in out
    found = [records.read(path) for path in Path("runs/t-0001/evaluations").glob("ode-*.json")]
    groups = group([one for one in found if one.protocol.data["images"] == 5])
    told = sorted((of.dequantization.partition("given ")[2], len(of.rows)) for of in groups)
    assert told == [("", 1), ("c=1,2.5", 1), ("its c, kind", 1), ("kind=dog", 2)]

    model = load("runs/t-0001")
    split = load_data_of(load_subject("t-0001", "runs", points=True))
    dog = next(one for one in found if one.estimate.protocol.get("condition") == "kind=dog")
    (none,) = (one for of in groups if "given" not in of.dequantization for one in of.rows)
    identity = {**images_of(split, "test", 5)[1]}
    given = given_to(model, split, images_of(split, "test", 5)[0], identity, ["kind=dog"])
    x = split.test[dog.estimate.indices]
    density = [model.log_density(x, indices=dog.estimate.indices, tolerance=0.1, **cond).log_prob.mean() for cond in
               ({"cond": {"kind": 1}}, {})]  # fmt: skip
    wanted = float(density[0] - density[1]) / np.log(2.0) / 3
    values = values_of(dog, None, none, given)
    assert values["eval/bits_per_dim_less_than_with_none"] == pytest.approx(wanted, abs=1e-6)
    assert not any("information" in name for name in values)
    assert f"{wanted * np.log(2.0):.4f} less" in lines[0]


def test_a_label_among_several_parts_is_a_class_for_quality(here):
    assert trained(*digits("label", "mask")) == 0
    drawing = ("--samples", "20", "--steps", "1", "--sampler", "ddim")
    for text, classes in (("3", [3] * 20), ("reference", None)):
        one = load_candidate("digits-0001", parse_quality_arguments(["digits-0001", "--label", text, *drawing]))
        labels = torch.tensor(classes) if classes else one.classes["label"]
        assert torch.equal(one.classes["label"], labels)
        assert one.question["classes"] == torch.bincount(labels, minlength=10).tolist()
        model = one.subject.model
        drawn, _ = one.draw(torch.device("cpu"), lambda *_: None)
        wanted = model.sample(20, steps=1, sampler="ddim", cond={"label": labels})
        assert torch.equal(drawn, model.dequantizer.quantize(wanted))
    assert (one.classes["label"].bincount(minlength=10) > 0).all(), "every class of the reference"
    with pytest.raises(UserError, match="--label: "):
        load_candidate("digits-0001", parse_quality_arguments(["digits-0001", "--label", "12", *drawing]))


def test_conditions_that_have_changed_are_not_those_of_the_model(shared_run):
    subject = load_subject("t-0001", "runs", points=True)
    data = load_data_of(subject)
    rows, identity = images_of(data, "test", 4)
    key = "test_condition_sha256"
    assert key in data.provenance
    changed = replace(data, provenance={**data.provenance, key: "0" * 64})
    message = r"--condition: found .data.; the conditions of .array. have changed .*SHA-256 of the test conditions"
    with pytest.raises(UserError, match=message):
        given_to(subject.model, changed, rows, identity, None)
    with pytest.raises(UserError, match=message):
        given_to_samples(subject.model, changed, ["data"], 4)
    assert given_to_samples(subject.model, changed, ["none"], 4) == (None, None)
    assert given_to(subject.model, data, rows, identity, None) is not None
