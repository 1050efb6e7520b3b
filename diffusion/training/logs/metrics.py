"""The log of a run: `metrics.jsonl`, one line per logged step, written to disk at once.

Every line is written with one system call, so a killed process loses nothing that it logged; W&B only mirrors this
file. A line is `{"step": s, "train/loss": ..., ...}` with Lightning's step: the s-th optimiser step counting from 0,
logged when s + 1 steps are done. A run that continues from n steps therefore keeps the lines with step < n and drops
the later ones, which it is about to log again. The line of step n - 1 itself is written after the checkpoint, and a
kill may come between the two, so the checkpoint holds it too: the curve has neither gaps nor duplicates. `metrics.csv`
is the same as a table.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ...errors import UserError
from ...storage import atomic, full_disk
from ...storage.paths import named_path
from ...storage.records import reading


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read `metrics.jsonl`; a last line that was cut short by a kill is left out.

    Raises:
        UserError: The file is missing, or a line other than the last is no JSON object with a step.
    """
    path = named_path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is a torn line or nothing
        with reading(f"{path}, line {number}: not a record of metrics"):
            row = json.loads(line)
            rows.append({"step": int(row.pop("step")), **{key: float(value) for key, value in row.items()}})
    return rows


class MetricsLog(Logger):
    """Lightning logger that writes `metrics.jsonl` at once and `metrics.csv` when training ends.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.jsonl"
        self._file: FileIO | None = None

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration is in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one line, without Lightning's `epoch`, which is meaningless: batches are functions of the step."""
        values = {key: float(value) for key, value in metrics.items() if key != "epoch"}
        if not values:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(self.path, "a")  # without a buffer: a line is one system call
        try:
            self._file.write(_line({"step": int(step or 0), **values}).encode())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}). {full_disk.CONTINUE}") from error

    @rank_zero_only
    def continue_from(self, step: int, last: Mapping[str, Any] | None = None) -> None:
        """Drop every line that a run resumed after `step` optimiser steps will log again.

        Args:
            step: The number of steps done.
            last: What the checkpoint says of the last of them: `names`, what a training line holds; `line`, that of
                this step, empty if none was due; `validated`, whether its validation is complete.
        """
        if not self.path.is_file():
            return
        self._close()
        kept = [row for row in read_metrics(self.path) if row["step"] < step]
        if last is not None:
            end = [row for row in kept if row["step"] == step - 1]
            kept = kept[: len(kept) - len(end)]
            # the order in which they are logged: the speed, the training line, the validation
            validations = [row for row in end if any(key.startswith("validation/") for key in row)]
            kept += [row for row in end if row not in validations and not row.keys() & set(last["names"])]
            kept += [{"step": step - 1, **last["line"]}] if last["line"] else []
            kept += validations if last["validated"] else []
        atomic.write_text(self.path, "".join(_line(row) for row in kept))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write `metrics.csv`: a row per step, a column per metric, empty where it was not logged."""
        self._close()
        if not self.path.is_file():
            return
        merged: dict[int, dict[str, Any]] = {}
        for row in read_metrics(self.path):
            merged.setdefault(row["step"], {}).update(row)
        columns = dict.fromkeys(key for row in merged.values() for key in row)
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=list(columns) or ["step"], lineterminator="\n")
        table.writeheader()
        table.writerows(merged[step] for step in sorted(merged))
        try:
            atomic.write_text(self.path.with_suffix(".csv"), text.getvalue())
        except OSError:
            if status == "success":  # else what has ended the training is about to be reported, and comes first
                raise

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class ContinueMetrics(Callback):
    """Makes a `MetricsLog` continue at the step that a resumed run starts from."""

    def __init__(self, metrics: MetricsLog) -> None:
        self.metrics = metrics  # not `log`: Lightning puts a function of that name on every callback
        self._last: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics.continue_from(trainer.global_step, self._last)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._last is not None:
            self._last["validated"] = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.training:  # and not after a validation, which belongs to the step that was saved before it
            values = trainer._logger_connector.metrics["log"]  # what Lightning is about to log, were it due
            due = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
            line = {name: float(value) for name, value in values.items()} if due else {}
            self._last = {"names": list(values), "line": line, "validated": False}
        checkpoint["metrics"] = self._last

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._last = checkpoint.get("metrics")


def _line(row: Mapping[str, float | int]) -> str:
    # JSON has no NaN and no infinity: they are written as strings, which float() reads.
    plain = {key: value if math.isfinite(value) else str(value) for key, value in row.items()}
    return json.dumps(plain, allow_nan=False) + "\n"
