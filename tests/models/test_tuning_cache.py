"""What is tuned to a model is kept: beside its file, for a shipped model in the user's cache, else in memory alone."""

import pytest

import diffusion
from diffusion import samplers
from diffusion.models.tuning_cache import read_tuned, write_tuned
from diffusion.storage import runs

DRAW = {"sampler": "ddim", "steps": 2, "grid": "auto"}


@pytest.fixture
def cache(tmp_path, monkeypatch, quick_tuning):
    """The cache of a user who has tuned nothing, and a short search."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "diffusion" / "tuned"


def test_a_shipped_model_s_grid_is_tuned_once(cache, monkeypatch):
    x = diffusion.load("pretrained:digits").sample(1, **DRAW)
    (kept,) = cache.iterdir()
    again = diffusion.load("pretrained:digits")
    with again.counted() as count:
        assert (again.sample(1, **DRAW) == x).all()
    assert count.rows == 2
    text = kept.read_text()
    kept.write_text(text.replace('"weights": "', '"weights": "0'))
    other = diffusion.load("pretrained:digits")
    with other.counted() as count:
        other.sample(1, **DRAW)
    assert count.rows > 2, "of other weights: tuned again"
    assert kept.read_text() == text
    monkeypatch.setattr(samplers.DDIM, "default_grid", "angle")
    later = diffusion.load("pretrained:digits")
    with later.counted() as count:
        later.sample(1, **DRAW)
    assert count.rows > 2, "not compared with what is now the sampler's default grid: tuned again"


def test_what_comes_with_the_package_is_known_and_added_to(cache, tmp_path, monkeypatch):
    model = diffusion.load("pretrained:digits")
    shipped = tmp_path / "digits.safetensors"
    shipped.touch()
    monkeypatch.setattr(runs, "shipped_file", lambda source: shipped)
    write_tuned(model.denoiser, model.source, "grids", {"log_snrs": {"a": [1.0]}})
    (own,) = cache.iterdir()
    own.rename(shipped.with_suffix(".grids.json"))
    write_tuned(model.denoiser, model.source, "grids", {"log_snrs": {"b": [2.0]}})
    assert read_tuned(model.denoiser, model.source, "grids") == {"log_snrs": {"a": [1.0], "b": [2.0]}}


@pytest.mark.parametrize("text", ["", "[1]", "{}", "[" * 100_000, '{"weights": 3}'])
def test_a_damaged_file_is_as_good_as_none(cache, text):
    model = diffusion.load("pretrained:digits")
    write_tuned(model.denoiser, model.source, "moments", {"values": [1.0]})
    assert read_tuned(model.denoiser, model.source, "moments") == {"values": [1.0]}
    (own,) = cache.iterdir()
    own.write_text(text)
    assert read_tuned(model.denoiser, model.source, "moments") == {}


def test_a_model_of_another_size_keeps_nothing(cache):
    diffusion.load("pretrained:digits").at_size(12).sample(1, **DRAW)
    assert not cache.exists()


def test_the_shipped_digits_need_no_tuning_to_be_drawn_in_few_steps(cache):
    """What README draws: as it was tuned, for these very weights."""
    for draw in ({"sampler": "fitted", "steps": 5}, {"sampler": "adams", "steps": 10, "grid": "auto"}):
        model = diffusion.load("pretrained:digits")
        with model.counted() as count:
            model.sample(1, **draw)
        assert count.rows == draw["steps"]
    assert not cache.exists()
