"""What a fixed seed gives stays what it was, within what another processor rounds (`golden.py` tells the bits)."""

import json

import golden
import pytest
import torch
from safetensors.torch import load_file


def assert_kept(found):
    kept = load_file(golden.TENSORS)
    for key, value in found.items():
        torch.testing.assert_close(value, kept[key], rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


def assert_alike(kept, found, where=""):
    """Numbers of records that were computed within rounding, everything else as it is."""
    if isinstance(kept, dict):
        assert kept.keys() == found.keys(), where
        for key, value in kept.items():
            assert_alike(value, found[key], f"{where}/{key}")
    elif isinstance(kept, list):
        assert len(kept) == len(found), where
        for i, value in enumerate(kept):
            assert_alike(value, found[i], f"{where}/{i}")
    else:
        assert found == (pytest.approx(kept, rel=1e-3, abs=1e-4) if isinstance(kept, float) else kept), where


@pytest.mark.slow
def test_draws_stay():
    found = golden.draws()
    assert len(found) > 30
    assert_kept(found)


@pytest.mark.slow
def test_figures_stay():
    assert_kept(golden.figures())


@pytest.mark.slow
def test_losses_and_records_stay(tmp_path):
    assert_kept(golden.losses(tmp_path))
    kept = json.loads(golden.RECORDS.read_text(encoding="utf-8"))
    assert_alike(kept, json.loads(json.dumps(golden.records(tmp_path))))
