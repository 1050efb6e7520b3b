"""The record loses nothing that was logged, and a resumed curve has neither gaps nor duplicates."""

import csv
import json
import math

import pytest
from tiny_training import LIGHTNING_WARNINGS, Run, TinyModule

from diffusion.errors import UserError
from diffusion.training.logs.metrics import MetricsLog, read_metrics

pytestmark = LIGHTNING_WARNINGS


def test_a_line_is_on_the_disk_as_soon_as_it_is_logged(tmp_path):
    log = MetricsLog(tmp_path / "run")
    log.log_metrics({"train/loss": 0.1, "epoch": 0.0}, step=4)
    assert json.loads(log.path.read_text()) == {"step": 4, "train/loss": 0.1}
    log.finalize("failed")


def test_values_are_read_back_exactly_and_every_line_is_strict_json(tmp_path):
    log = MetricsLog(tmp_path)
    values = {"a": 1 / 3, "nan": math.nan, "inf": -math.inf, "large": 1e300}
    log.log_metrics(values, step=0)
    log.finalize("success")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads(log.path.read_text(), parse_constant=refuse)
    (row,) = read_metrics(log.path)
    assert math.isnan(row.pop("nan"))
    assert row == {"step": 0, "a": 1 / 3, "inf": -math.inf, "large": 1e300}


def test_lines_after_the_resumed_step_are_dropped(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(10):
        log.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
    log.continue_from(6)
    log.log_metrics({"loss": 7.0}, step=6)
    log.finalize("success")
    assert [row["step"] for row in read_metrics(log.path)] == list(range(7))
    assert read_metrics(log.path)[5]["loss"] == 1 / 6
    assert read_metrics(log.path)[6]["loss"] == 7.0


def test_a_torn_last_line_is_dropped_and_does_not_spoil_the_next(tmp_path):
    log = MetricsLog(tmp_path)
    log.path.write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "lo')
    assert read_metrics(log.path) == [{"step": 0, "loss": 2.0}]
    log.continue_from(1)
    log.log_metrics({"loss": 1.0}, step=1)
    log.finalize("success")
    assert [row["step"] for row in read_metrics(log.path)] == [0, 1]


def test_damage_elsewhere_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\nnonsense\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="no such file"):
        read_metrics(tmp_path / "absent.jsonl")


def test_the_table_has_a_row_per_step_and_a_column_per_metric(tmp_path):
    log = MetricsLog(tmp_path)
    log.log_metrics({"train/loss": 2.0}, step=0)
    log.log_metrics({"train/loss": 1.0}, step=1)
    log.log_metrics({"validation/loss": 1.5}, step=1)
    log.finalize("success")
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"step": "0", "train/loss": "2.0", "validation/loss": ""},
            {"step": "1", "train/loss": "1.0", "validation/loss": "1.5"},
        ]


def test_a_run_that_crashed_after_its_checkpoint_continues_the_curve(tmp_path):
    whole = Run(tmp_path / "whole", 9, every=4, validate_every=3).fit(TinyModule())

    class Crashing(TinyModule):
        def on_train_batch_start(self, batch, batch_idx):
            if self.global_step == 7:
                raise OSError("crash")

    with pytest.raises(OSError, match="crash"):
        Run(tmp_path / "cut", 9, every=4, validate_every=3).fit(Crashing())
    assert read_metrics(tmp_path / "cut" / "metrics.jsonl")[-1]["step"] == 6
    resumed = Run(tmp_path / "cut", 9, every=4, validate_every=3)
    resumed.fit(TinyModule(), resume=resumed.checkpoints.last)
    assert resumed.log.path.read_text() == whole.log.path.read_text()
    steps = [row["step"] for row in read_metrics(whole.log.path) if "train/loss" in row]
    assert steps == list(range(9))
    assert [row["step"] for row in read_metrics(whole.log.path) if "validation/loss" in row] == [2, 5, 8]
