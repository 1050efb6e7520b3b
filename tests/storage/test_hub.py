"""Models by `hf:`: the library itself, without a network, on a cache laid out as it lays it out."""

import json
import sys

import pytest
from made_runs import make_run
from tiny_configs import DIGITS

import diffusion
from diffusion.commands.dispatch import main
from diffusion.config import load_config
from diffusion.errors import UserError
from diffusion.storage import hub, runs

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
    run = make_run(tmp_path, load_config("digits", (*DIGITS, "name=small", *places)))
    assert str(tmp_path).encode() in (run / "model.safetensors").read_bytes()
    out = tmp_path / "out"
    assert main(["export", str(run), str(out), "--to", "hub"]) == 0
    for path in out.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path
    assert "cats.zip" in (out / "README.md").read_text()
    assert diffusion.load(out).config.data.path == "cats.zip"


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
    with pytest.raises(UserError, match=r"diffusion\[hub\]"):
        diffusion.load("hf:owner/name")


def test_the_card_has_the_figures_of_the_evaluation(tmp_path):
    from test_hostile_readers import _evaluation

    run = make_run(tmp_path, load_config("digits", (*DIGITS, "name=small")))
    estimate = json.loads(_evaluation(tmp_path / "records").read_text())["estimate"]
    (run / runs.EVALUATION).write_text(json.dumps({"training_seconds": 1.0, "estimates": {"ELBO": estimate}}))
    assert main(["export", str(run), str(tmp_path / "out"), "--to", "hub"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusion\n")
    mean = 6.0 / 3 / 64 / 0.6931471805599453
    assert f"| ELBO | {mean:.4f} |" in card
    assert "lower bound" in card
