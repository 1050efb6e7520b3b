"""Conditions through the commands: trained, resumed, sampled, recorded, evaluated by one and by several."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conditional_runs import EVALUATED, QUICK, N, digits, measured_alike, run, sampled, table, trained
from PIL import Image
from tiny_configs import DIGITS, TOY

import diffusion
from diffusion.commands import records
from diffusion.commands.evaluate.given import given_to
from diffusion.commands.sample import condition
from diffusion.commands.sample.record import SampleRecord
from diffusion.commands.subjects import images_of, load_data_of, load_subject
from diffusion.data import pictures
from diffusion.errors import UserError
from diffusion.models.load import load
from diffusion.networks.parts import CLASSES, Part
from diffusion.storage import tensor_files

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


def test_a_table_with_a_vector_and_a_class_goes_through_every_command(here, capsys):
    assert trained(*table(), "evaluation.enabled=true", "evaluation.elbo_draws=4", "evaluation.tolerance=0.1") == 0
    out = capsys.readouterr().out
    assert "condition: c (2 numbers), kind (2 classes)" in out
    assert "I(x; c, kind) by ELBO: " in out
    model = load("runs/t-0001")
    (c, kind) = model.facts.parts
    assert kind.names == ("cat", "dog")
    with np.load("t.npz") as arrays:
        assert c.mean == pytest.approx(arrays["c"][sorted(train_rows(model))].mean(0))

    assert (
        sampled("--run", "t-0001", "--condition", "c=1,2.5", "kind=dog", "--guidance", "2", *QUICK, "--out", "a.npy")
        == 0
    )
    given = {"c": torch.tensor([1.0, 2.5]), "kind": 1}
    wanted = model.sample(4, steps=2, sampler="ddim", cond=given, guidance=2.0)
    assert np.array_equal(np.load("a.npy"), wanted.numpy())
    np.save("c.npy", np.arange(8.0).reshape(4, 2))
    assert sampled("--run", "t-0001", "--condition", "c=c.npy", *QUICK, "--batch-size", "3", "--out", "b.npy") == 0
    wanted = model.sample(4, steps=2, sampler="ddim", cond={"c": torch.from_numpy(np.load("c.npy"))})
    np.testing.assert_allclose(np.load("b.npy"), wanted.numpy(), rtol=1e-5, atol=1e-5)

    capsys.readouterr()
    assert run("evaluate", "t-0001", *EVALUATED) == 0
    assert "I(x; c, kind) by ode: " in capsys.readouterr().out
    found = [records.read(path) for path in Path("runs/t-0001/evaluations").glob("ode-*.json")]
    conditional, none = sorted((one for one in found if one.protocol.data["images"] == 5),
                               key=lambda one: "condition" not in one.protocol.options)  # fmt: skip
    assert conditional.protocol.options["condition"] == "data"
    rows, split = conditional.estimate.indices, load_data_of(load_subject("t-0001", "runs", points=True))
    x = split.test[rows]
    cond = {name: split.columns[name]["test"].values[rows] for name in ("c", "kind")}
    for evaluation, of in ((conditional, {"cond": cond}), (none, {})):
        again = model.log_density(x, indices=rows, tolerance=0.1, **of)
        torch.testing.assert_close(again.log_prob, evaluation.estimate.log_prob, rtol=1e-6, atol=1e-6)
    capsys.readouterr()
    assert run("evaluate", "t-0001", *EVALUATED) == 0
    assert "(cached)" in capsys.readouterr().out
    assert run("check", "t-0001", "--images", "4", "--levels", "2", "--device", "cpu") in (0, 1)


def train_rows(model):
    return [int(name) for name in load_data_of(load_subject("t-0001", "runs", points=True)).train_names]


def test_a_run_resumes_to_the_bit_and_on_its_own_conditions_alone(here, capsys):
    settings = [*table(), "trainer.checkpoint_every=2", "denoiser.label_dropout=0.5", "optimizer.decay=constant"]
    assert trained(*settings, "trainer.steps=4") == 0, capsys.readouterr().err
    whole = load("runs/t-0001").module.state_dict()
    assert trained(*settings, "trainer.steps=2", "--resume", "never") == 0, capsys.readouterr().err
    assert trained(*settings, "trainer.steps=4", "--resume", "t-0002", "--resume-changed") == 0, capsys.readouterr().err
    resumed = load("runs/t-0002").module.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    Path("runs/t-0001/model.safetensors").unlink()
    with np.load("t.npz") as arrays:
        table(x=arrays["x"], kind=arrays["kind"], c=arrays["c"] + 1)
    capsys.readouterr()
    assert trained(*settings, "trainer.steps=4", "--resume", "t-0001") == 2
    assert "SHA-256 of the train conditions" in capsys.readouterr().err


def test_several_processes_measure_what_one_does(here):
    assert trained(*digits("label", "mask")) == 0

    alone = measured_alike("digits-0001", 7, 3)
    assert alone.estimate.protocol["condition"] == "its label, mask"
    subject = load_subject("digits-0001", "runs")
    data = load_data_of(subject)
    images, identity = images_of(data, "test", 7)
    (part,) = images_of(data, "test", 3)[:1]
    some = given_to(subject.model, data, part, images_of(data, "test", 3)[1], None)
    every = given_to(subject.model, data, images, identity, None)
    known = {image.numpy().tobytes(): mask for image, mask in zip(images, every.values["mask"], strict=True)}
    for image, mask in zip(part, some.values["mask"], strict=True):
        assert torch.equal(known[image.numpy().tobytes()], mask), "the mask of an image is that of its row"


def test_pictures_are_drawn_from_images_and_again_from_their_record(here, capsys):
    assert trained(*digits("downsample:4", "mask")) == 0
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save("whole.png")
    Image.fromarray(np.full((2, 2), 90, np.uint8)).save("small.png")
    white = np.zeros((8, 8), np.uint8)
    white[:, 4:] = 255
    Image.fromarray(white).save("mask.png")
    asked = ("--run", "digits-0001", "--condition", "downsample:4=small.png", "mask=whole.png", "--mask", "mask.png")
    capsys.readouterr()
    assert sampled(*asked, *QUICK, "--out", "x.png") == 0, capsys.readouterr().err
    record = SampleRecord.read("x.png")
    assert record.settings["condition"] == ["downsample:4=small.png", "mask=whole.png"]
    assert [len(record.images[name]) for name in ("condition", "mask")] == [2, 1]
    model = load("runs/digits-0001")
    whole = torch.from_numpy(np.arange(64).reshape(1, 1, 8, 8) * 4) / 127.5 - 1.0
    known = torch.from_numpy(white == 0)[None, None]
    given = {"downsample:4": torch.full((1, 1, 2, 2), 90 / 127.5 - 1.0), "mask": torch.cat((whole * known, known), 1)}
    wanted = model.sample(4, steps=2, sampler="ddim", cond=given, batch_size=4)
    assert sampled(*asked, *QUICK, "--out", "x.npz") == 0
    with np.load("x.npz") as arrays:
        assert np.abs(arrays["images"].astype(int) - pictures.to_bytes(wanted)[:, 0].numpy().astype(int)).max() <= 1
    capsys.readouterr()
    assert sampled("--from", "x.png", "--out", "again.png") == 0
    assert "the same pixels" in capsys.readouterr().out
    Image.fromarray(np.full((2, 2), 91, np.uint8)).save("small.png")
    assert sampled("--from", "x.png", "--out", "again.png") == 2
    assert "drawn with another image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("c=1",), "c (2 numbers): found shape (1, 1)"),
        (("c=1,x",), "found '1,x', no numbers"),
        (("c=missing.npy",), "missing.npy does not exist"),
        (("d=1",), "found 'd=1'; accepted: NAME=VALUE"),
        (("kind=cow",), "--condition cow: kind (2 classes): found 'cow'; the model has the classes 0 cat, 1 dog"),
        (("kind=2",), "--condition 2: kind (2 classes): found 2; the model has the classes 0 cat, 1 dog"),
        (("kind=two.npy",), "kind (2 classes): sample 1 has 2; the classes are 0 to 1 (kind=none leaves it out)"),
        (("c=none", "kind=none", "--guidance", "2"), "--guidance: steers towards a condition; give one in place of"),
        (("kind=0", "kind=1"), "'kind' is given twice"),
        (("c=five.npy",), "'c' has 5 entries, for 4 samples"),
        (("c=nan.npy",), "has NaN"),
        (("c=pickle.npy",), "is not a readable .npy file"),
        (("c=words.npy",), "is not a readable .npy file"),
    ],
)
def test_values_that_do_not_fit_are_refused_in_a_line(shared_run, capsys, asked, message):
    np.save("five.npy", np.zeros((5, 2)))
    np.save("nan.npy", np.full((4, 2), np.nan))
    np.save("two.npy", np.array([0, 2, 1, 2], np.uint16))
    np.save("pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("words.npy", np.array(["a", "b"]))
    assert sampled("--run", "t-0001", "--condition", *asked, *QUICK) == 2
    err = capsys.readouterr().err
    assert message in err, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "change", [{"kind": "vector"}, {"size": 10**9}, {"std": [0.0, 1.0]}, {"name": "kind"}, {"more": 1}]
)
def test_a_model_file_whose_parts_are_damaged_is_refused(shared_run, tmp_path, change):
    state, metadata = tensor_files.read_model(shared_run / "runs/t-0001/model.safetensors")
    facts = json.loads(metadata["data"])
    facts["parts"][0 if "std" in change or "name" in change else 1].update(change)
    text = metadata.pop("config")
    tensor_files.save_model(tmp_path / "m.safetensors", state, text, {**metadata, "data": json.dumps(facts)})
    with pytest.raises(ValueError, match=r"m.safetensors: ") as error:
        load(tmp_path / "m.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("to", ["torch", "diffusers"])
def test_what_cannot_say_a_condition_is_no_export(shared_run, capsys, to):
    assert run("export", "t-0001", f"out-{to}", "--to", to) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert to == "diffusers" or "conditioned on c (2 numbers), kind (2 classes)" in err
    assert not Path(f"out-{to}").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["denoiser.condition=[d]"], "found 'd'; t.npz has no such array; it has x, c, kind"),
        (["denoiser.condition=[downsample]"], "must be downsample:N"),
        (
            ["denoiser.condition=[grey]"],
            "'grey', which is of images, signals and volumes; 'array' has the shape (3,)",
        ),
        (
            ["denoiser.condition=[label]"],
            "denoiser.condition: the data 'array' have no labels (labels or y of an .npz); leave 'label' out",
        ),
        (["denoiser.condition=[x]"], "denoiser.condition: found 'x'; it is the data of t.npz"),
        (["denoiser.condition=[c,c]"], "a part is given once"),
        (["denoiser.condition=[c]", "denoiser.conditional=true"], "have no labels"),
    ],
)
def test_parts_that_are_not_there_are_refused_before_a_run_is_made(shared_run, capsys, overrides, message):
    settings = ["--config", "table", *TOY, "data.path=t.npz", "name=v", *overrides]
    assert trained(*settings) == 2
    err = capsys.readouterr().err
    assert message.replace("t.npz", str(shared_run / "t.npz")) in err, err
    assert err.count("\n") == 1
    assert not Path("runs/v-0001").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"c": np.zeros((N - 1, 2))}, "needs one entry for each of 60 rows"),
        ({"c": np.array([[np.nan, 0.0]] + [[0.0, 0.0]] * (N - 1))}, "row 0 is nan at 0"),
        ({"c": np.zeros((N, 2), complex)}, "accepted: whole numbers or words"),
        ({"c": np.zeros((N, 2), int)}, "accepted: whole numbers or words"),
        ({"c": np.full((N, 1), -1)}, "accepted: integers from 0"),
        ({"c": np.zeros((N, 2, 3))}, "has 1 sides, and the data 'array' have 0"),
        ({"c": np.zeros((N, 1, 2, 2), np.uint8)}, "has 2 sides, and the data 'array' have 0"),
    ],
)
def test_hostile_arrays_of_conditions_are_refused_in_a_line(here, capsys, arrays, message):
    assert trained(*table(**arrays)) == 2
    err = capsys.readouterr().err
    assert message in err, err
    assert err.count("\n") == 1


def test_a_label_alone_is_a_model_of_classes(here, capsys):
    """`condition: [label]` is `conditional: true`: the same weights, and so the same bits."""
    for name, setting in (("a", "denoiser.condition=[label]"), ("b", "denoiser.conditional=true")):
        assert trained("--config", "digits", *DIGITS, setting, f"name={name}", "evaluation.enabled=false") == 0
    a, b = (load(f"runs/{name}-0001") for name in "ab")
    assert a.denoiser.num_classes == b.denoiser.num_classes == 10
    assert all(torch.equal(one, other) for one, other in zip(a.module.state_dict().values(),
                                                             b.module.state_dict().values(), strict=True))  # fmt: skip
    for i, asked in enumerate((("--label", "3"), ("--condition", "3"), ("--condition", "label=3"))):
        assert sampled("--run", "a-0001", *asked, *QUICK, "--out", f"{i}.npz") == 0
    capsys.readouterr()
    for asked in ("label=4", "label=none"):
        assert sampled("--run", "a-0001", "--label", "3", "--condition", asked, *QUICK, "--out", "both.npz") == 2
        assert capsys.readouterr().err == "error: --label, --condition: both say 'label'; use only one of them\n"
    assert not list(here.glob("both*"))
    drawn = [np.load(f"{i}.npz")["images"] for i in range(3)]
    assert all(np.array_equal(drawn[0], other) for other in drawn[1:])
    assert replace(a.facts) == b.facts


def test_images_are_encoded_and_drawn_back_under_their_condition(here, capsys):
    assert trained(*digits("label", "downsample:4")) == 0
    for i in (1, 2):
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * i).save(f"{i}.png")
    Image.fromarray(np.full((2, 2), 90, np.uint8)).save("small.png")
    asked = ("--run", "digits-0001", "--sampler", "ddim", "--steps", "3", "--device", "cpu", "--condition",
             "label=3", "downsample:4=small.png")  # fmt: skip
    assert sampled(*asked, "--encode", "1.png", "2.png", "--out", "z.npz") == 0, capsys.readouterr().err
    model = load("runs/digits-0001")
    x = torch.stack([torch.from_numpy(np.arange(64).reshape(1, 8, 8) * i) for i in (1, 2)]) / 127.5 - 1.0
    given = {"label": 3, "downsample:4": torch.full((1, 1, 2, 2), 90 / 127.5 - 1.0)}
    how = {"sampler": "ddim", "steps": 3, "cond": given}
    with np.load("z.npz") as arrays:
        wanted = diffusion.encode(model, x.float(), **how).numpy()
        np.testing.assert_allclose(arrays["noise"], wanted, rtol=1e-5, atol=1e-5)
    assert sampled(*asked, "--interpolate", "1.png", "2.png", "--n", "3", "--out", "s.png") == 0
    wanted = pictures.grid(diffusion.interpolate(model, *x.float(), n=3, **how), columns=3)
    pictures.save(Path("wanted.png"), wanted)
    assert np.array_equal(np.asarray(Image.open("s.png")), np.asarray(Image.open("wanted.png")))
    capsys.readouterr()
    assert sampled("--from", "s.png", "--out", "again.png") == 0
    assert "the same pixels" in capsys.readouterr().out
    np.save("three.npy", np.array([1, 2, 3]))
    for way in ("--encode", "--interpolate"):
        assert sampled(*asked[:-2], "label=three.npy", way, "1.png", "2.png", "--out", "no") == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_condition_is_read_from_the_home_folder_and_from_words_in_a_file(shared_run, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "c.npy", np.array([[1.0, 2.0]], ">f8"))
    np.save(tmp_path / "kind.npy", np.array(["dog", "cat", "dog", "cat"]))
    out = tmp_path / "x.npy"
    assert sampled("--run", "t-0001", "--condition", "c=~/c.npy", "kind=~/kind.npy", *QUICK, "--out", str(out)) == 0
    model = load("runs/t-0001")
    wanted = model.sample(4, steps=2, sampler="ddim", cond={"c": [1.0, 2.0], "kind": [1, 0, 1, 0]})
    np.testing.assert_allclose(np.load(out), wanted.numpy(), rtol=1e-5, atol=1e-5)
    for name, value in {"folder.npy": None, "empty.npy": np.zeros((0, 2))}.items():
        (tmp_path / name).mkdir() if value is None else np.save(tmp_path / name, value)
    capsys.readouterr()
    assert sampled("--run", "t-0001", "--condition", "c=~/folder.npy", *QUICK) == 2
    assert f"--condition: {tmp_path}/folder.npy is no file" in capsys.readouterr().err
    assert sampled("--run", "t-0001", "--condition", "c=~/empty.npy", *QUICK) == 2
    assert "found shape (0, 2); needs (1, 2)" in capsys.readouterr().err
    assert sampled("--run", "t-0001", "--condition", "c", *QUICK) == 2
    assert "Did you mean" not in capsys.readouterr().err


def test_none_is_not_taken_for_a_class_of_that_name_nor_the_class_for_none(shared_run, monkeypatch):
    model = load("runs/t-0001")
    monkeypatch.setattr(condition, "parts_of", lambda of: (Part("kind", CLASSES, 2, names=("dog", "none")),))
    with pytest.raises(UserError, match=r"'none' is the name of class 1, .*; accepted: #1, or leave the part out"):
        condition.read_conditions(model, ["kind=none"])
    assert condition.read_conditions(model, ["kind=#1"])["kind"].tolist() == [1]
