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
    assert json.loads(golden.RECORDS.read_text(encoding="utf-8")) == json.loads(json.dumps(golden.records(tmp_path)))
