"""What earlier versions wrote is read by this one: model files, checkpoints, and runs that go on from them."""

import importlib.util
import json
from pathlib import Path

import pytest
from tiny_training import LIGHTNING_WARNINGS

from diffusion import load
from diffusion.baselines.eae import EAE
from diffusion.training.fit import fit

pytestmark = LIGHTNING_WARNINGS

FIXTURES = Path(__file__).parents[1] / "fixtures"
STORED = sorted(path.parent for path in FIXTURES.glob("*/*/expected.json"))


def maker():
    """The script that made them, with what is asked of a model."""
    spec = importlib.util.spec_from_file_location("make_fixtures", FIXTURES / "make_fixtures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = maker()


def close(figures, expected):
    """Within float32 rounding, whatever the machine."""
    for key, values in expected.items():
        found = figures[key]
        if isinstance(values[0] if isinstance(values, list) else values, list):
            for row, wanted in zip(found, values, strict=True):
                assert row == pytest.approx(wanted, rel=1e-3, abs=1e-3), key
        else:
            assert found == pytest.approx(values, rel=1e-3, abs=1e-3), key


@pytest.mark.parametrize("stored", STORED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_stored_run_is_read_says_what_it_said_and_goes_on(tmp_path, monkeypatch, stored):
    monkeypatch.setattr(EAE, "fit_after_training", MAKER.quickly)
    expected = json.loads((stored / "expected.json").read_text())
    last = expected.pop("final_loss")
    # an EAE's density is fitted in the fixed order now, in that of the files when it was stored
    continued = expected.pop("continued", expected)
    model = load(MAKER.unpack(stored / "model.safetensors.gz", tmp_path / "model.safetensors"))
    assert model.step == 6
    close(MAKER.expected(model), expected)

    run = tmp_path / "run"
    for folder in ("checkpoints", "samples"):
        (run / folder).mkdir(parents=True)
    checkpoint = MAKER.unpack(stored / "last.ckpt.gz", run / "checkpoints" / "last.ckpt")
    assert load(checkpoint).step == MAKER.STOPPED
    fit(model.config, run)
    assert load(run).step == 6
    assert MAKER.final_loss(run) == pytest.approx(last, rel=1e-3)
    close(MAKER.expected(load(run)), continued)


def test_every_family_is_stored():
    assert {path.name for path in STORED} >= {"diffusion", "learned-schedule", "vae", "eae"}
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*.gz")) < 200_000
