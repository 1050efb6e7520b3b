"""The same command twice, each time in a process of its own, leaves the same files to the byte but for the clock."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_configs import autoencoder_arguments, digits_arguments, toy_arguments

from diffusion.commands.train.verify_resume import compare
from diffusion.storage import runs, tensor_files
from diffusion.training.logs.metrics import read_metrics

ROOT = Path(__file__).parents[1]
COMMON = ("trainer.steps=12", "trainer.validate_every=4", "trainer.sample_every=6", "evaluation.images=8")
ARGUMENTS = {
    "toy": lambda folder: toy_arguments(folder, *COMMON, "network.dropout=0.2"),
    "digits": lambda folder: digits_arguments(folder, *COMMON, "network.dropout=0.2", "trainer.workers=2"),
    "vae": lambda folder: autoencoder_arguments("vae", folder, *COMMON),
    "eae": lambda folder: autoencoder_arguments("eae", folder, *COMMON),
}
CLOCK = ("seconds", "created", "trained_seconds", "train/images_per_second")


def command(folder, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONHASHSEED", None)  # sets and dictionaries in another order
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]


def without_clock(value):
    if isinstance(value, dict):
        return {key: without_clock(entry) for key, entry in value.items() if not any(word in key for word in CLOCK)}
    return [without_clock(entry) for entry in value] if isinstance(value, list) else value


@pytest.mark.slow
@pytest.mark.parametrize("family", ARGUMENTS)
def test_the_same_commands_twice_leave_the_same_bits(tmp_path, family):
    places = []
    for name in ("one", "two"):
        place = tmp_path / name
        place.mkdir()
        command(place, ROOT / "train.py", *ARGUMENTS[family](Path(".")))
        (run,) = (place / "runs").iterdir()
        command(place, ROOT / "sample.py", "--run", run.name, "--n", "6", "--seed", "3", "--out", "drawn.npz")
        places.append((place, run))
    (_, one), (_, two) = places
    assert compare(one, two)[0] == []
    ours, theirs = (tensor_files.read_model(run / runs.MODEL)[0] for run in (one, two))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    rows = [without_clock(read_metrics(run / "metrics.jsonl")) for run in (one, two)]
    assert rows[0] == rows[1]
    assert len(rows[0]) >= 12
    evaluations = [without_clock(json.loads((run / runs.EVALUATION).read_text())) for run in (one, two)]
    assert evaluations[0] == evaluations[1]
    pictures = [sorted(path.relative_to(run) for path in run.rglob("*.png")) for run in (one, two)]
    assert pictures[0] == pictures[1] != []
    for path in (*pictures[0], Path("config.yaml"), Path(runs.MODEL)):
        assert (one / path).read_bytes() == (two / path).read_bytes(), path
    drawn = [np.load(place / "drawn.npz", allow_pickle=False) for place, _ in places]
    assert drawn[0].files == drawn[1].files
    assert all(np.array_equal(drawn[0][key], drawn[1][key]) for key in drawn[0].files)
