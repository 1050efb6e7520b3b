"""Models by `hf:`: the library itself, without a network, on a cache laid out as it lays it out."""

import json
import math
import sys
from dataclasses import replace

import pytest
from made_runs import make_run
from tiny_configs import DIGITS, TOY

import diffusion
from diffusion.commands.dispatch import main
from diffusion.commands.export.card import facts_without_places
from diffusion.config import load_config
from diffusion.errors import UserError
from diffusion.likelihood import Estimate
from diffusion.models.build import DataFacts
from diffusion.models.load import FACTS
from diffusion.storage import hub, runs, tensor_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of a model OWNER/NAME in the local cache; the Hub cannot be reached."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="an optional extra")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.fetched.cache_clear()
    place = tmp_path / "cache" / "models--owner--name"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    (place / "snapshots").mkdir()
    yield place / "snapshots" / COMMIT
    hub.fetched.cache_clear()


def test_a_model_in_the_hubs_layout_and_back(tmp_path, cache, capsys):
    run = make_run(tmp_path, load_config("digits", (*DIGITS, "name=small")))
    assert main(["export", str(run), str(cache), "--to", "hub"]) == 0
    assert {path.name for path in cache.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    config = json.loads((cache / "config.json").read_text())
    assert config["network"]["base_channels"] == 4
    assert config["facts"]["data"]["levels"] == 17
    capsys.readouterr()
    for name in ("hf:owner/name", f"hf:owner/name@{COMMIT}", str(cache)):
        model = diffusion.load(name)
        assert model.weights == runs.file_digest(run / runs.MODEL)
        assert capsys.readouterr().err.count("the local cache") == name.startswith("hf:")


def test_no_path_of_this_machine_is_published(tmp_path):
    places = (f"data.path={tmp_path / 'secret' / 'cats.zip'}", f"runs={tmp_path / 'runs'}", "data.name=folder")
    inside, other = tmp_path / "secret" / "cats.zip" / "a b.png", tmp_path / "elsewhere" / "dog.png"
    notes = f"no labels: 2 of 9 images, e.g. {inside}\n1 file ({other}) passed over\n16 km/h, see https://x.org/a/b"
    provenance = {"source": str(tmp_path / "secret" / "cats.zip"), "notes": notes, "train_images": 7}
    facts = DataFacts("folder", (1, 8, 8), 17, 0, provenance)
    run = make_run(tmp_path, load_config("digits", (*DIGITS, "name=small", *places)), facts)
    metadata = tensor_files.read(run / runs.MODEL, "model", "config")[1]
    assert str(tmp_path) in metadata["config"]
    assert str(tmp_path) in metadata[FACTS]
    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--to", "hub"]) == 0
    for path in out.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path
    assert "cats.zip" in (out / "README.md").read_text()
    model = diffusion.load(out)
    assert model.config.data.path == "cats.zip"
    told = (
        "no labels: 2 of 9 images, e.g. cats.zip/a b.png\n1 file (dog.png) passed over\n16 km/h, see https://x.org/a/b"
    )
    assert model.facts.provenance == {"source": "cats.zip", "notes": told, "train_images": 7}
    assert json.loads((out / "config.json").read_text())["facts"]["data"]["provenance"] == model.facts.provenance


def test_what_is_said_of_the_data_keeps_its_words_and_classes():
    """A source in words, classes that look like paths, and a folder that is named by `data.path` in short."""
    words = {"source": "torchvision MNIST", "classes": "/a/b, c", "class_names": '["/a/b", "c"]', "notes": "x in data"}
    facts = DataFacts("mnist", (1, 28, 28), 256, 2, {**words})
    assert facts_without_places(facts, load_config("mnist", ("data.path=data",))) == facts
    relative = DataFacts(
        "folder", (1, 8, 8), 17, 0, {"source": "../private/cats", "notes": "e.g. ../private/cats/1.png"}
    )
    told = facts_without_places(relative, load_config("digits", ("data.name=folder", "data.path=../private/cats/")))
    assert told.provenance == {"source": "cats", "notes": "e.g. cats/1.png"}


@pytest.mark.parametrize("text", ["hf:", "hf:name", "hf:a/b/c", "hf:../../x", "hf:a/b@", "hf:a/b@x y"])
def test_what_is_no_name_of_the_hub_is_refused(text):
    with pytest.raises(UserError, match="hf:OWNER/NAME"):
        diffusion.load(text)


def test_a_model_that_is_not_there_is_refused_in_one_line(cache):
    with pytest.raises(UserError, match=r"hf:owner/other: .*not in the local cache") as error:
        diffusion.load("hf:owner/other")
    assert "\n" not in str(error.value)


def test_without_the_library_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub.fetched.cache_clear()
    with pytest.raises(UserError, match=r"not installed; .*(--extra hub|pip install .*huggingface)"):
        diffusion.load("hf:owner/name")


def test_the_card_has_the_figures_of_the_evaluation(tmp_path):
    from test_hostile_readers import _evaluation

    run = make_run(tmp_path, load_config("digits", (*DIGITS, "name=small")))
    estimate = json.loads(_evaluation(tmp_path / "records").read_text())["estimate"]
    (run / runs.EVALUATION).write_text(json.dumps({"training_seconds": 1.0, "estimates": {"ELBO": estimate}}))
    assert main(["export", str(run), str(tmp_path / "out"), "--to", "hub"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusion\npipeline_tag: unconditional-image-generation\n")
    assert "| estimate | bits/dim |" in card
    assert "\nimages = " in card
    mean = 6.0 / 3 / 64 / 0.6931471805599453
    assert f"| ELBO | {mean:.4f} |" in card
    assert "lower bound" in card


def test_the_card_of_real_numbers_has_a_density_and_no_images(tmp_path):
    from test_hostile_readers import _evaluation

    run = make_run(tmp_path, load_config("toy", (*TOY, "name=points")), DataFacts("gaussians", (2,), None, 0))
    plain = json.loads(_evaluation(tmp_path / "records").read_text())["estimate"]
    estimate = replace(Estimate.from_dict(plain), levels=None, dims=2)
    estimates = {"density": estimate.to_dict()}
    (run / runs.EVALUATION).write_text(json.dumps({"training_seconds": 1.0, "estimates": estimates}))
    assert main(["export", str(run), str(tmp_path / "out"), "--to", "hub"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    low, high = (math.log(2.0) * end for end in (estimate.mean().low, estimate.mean().high))
    assert "| estimate | nats/dim | 95 % interval | kind | data | protocol |" in card
    assert f"| density | {6.0 / 3 / 2:.4f} | {low:.4f} to {high:.4f} |" in card
    assert "\nsamples = diffusion.sample(model, 16)" in card
    assert "bits/dim" not in card
    assert "image" not in card.partition("## Configuration")[0]
