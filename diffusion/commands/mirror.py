"""Figures to W&B, as runs of their own, of job type `eval` or `compare`; the files in the run folder are the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL.Image import Image

from ..random import fixed_order
from . import exports, records
from .content import Content, name_of
from .records import Evaluation
from .subjects import Subject

# W&B joins tables of at most this many rows.
LARGEST_TABLE = 10_000


def mirror_evaluation(subject: Subject, evaluation: Evaluation, choice: str, values: Mapping[str, Any]) -> Path | None:
    """Log an evaluation once, in the group of the run that was measured.

    Args:
        subject: What was measured.
        evaluation: The figures.
        choice: off, offline, online or auto.
        values: Entries of W&B's run table.

    Returns:
        The folder of the W&B run; None where there is none, or it was there before.
    """
    folder = subject.home / records.FOLDER / evaluation.protocol.name
    logging = subject.model.config.logging
    if (folder / "wandb").exists():
        return None
    config = {"model": dict(evaluation.model), "protocol": asdict(evaluation.protocol)}
    table = {image_key(evaluation): image_table([evaluation])}
    return log(folder, choice, logging.project, logging.group or subject.name, config, values, table, {})


def image_key(evaluation: Evaluation) -> str:
    """The key of the table of images: the same for every evaluation of a split, so that W&B joins them by index."""
    return f"likelihood/{evaluation.protocol.data['name']}-{evaluation.protocol.data['split']}"


def image_table(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of each image's bits/dim, by a stable index; at most 10,000, the first in the fixed order."""
    first = evaluations[0].estimate
    assert first.indices is not None
    columns = [
        "index",
        *(f"{e.model['run']} {e.protocol.method}" if len(evaluations) > 1 else "bits_per_dim" for e in evaluations),
    ]
    values = [e.estimate.bits_per_dim.tolist() for e in evaluations]
    rows = [list(row) for row in zip(first.indices.tolist(), *values, strict=True)]
    return columns, [rows[i] for i in fixed_order(first.indices)[:LARGEST_TABLE].sort().values.tolist()]


def mirror_comparison(
    folder: Path, subject: Subject, content: Content, images: Mapping[str, Image], choice: str
) -> Path | None:
    """Log a comparison as a run of its own: the joint table, what is beside it, and every chart.

    Args:
        folder: Where the comparison's files are.
        subject: Whose project and group it belongs to.
        content: The comparison.
        images: Charts and samples by key.
        choice: off, offline, online or auto.

    Returns:
        The folder of the W&B run; None where there is none.
    """
    rows, logging = content.rows, subject.model.config.logging
    values: dict[str, Any] = {}
    for row in rows:  # the best of a run's figures by one method comes first
        values.setdefault(f"compare/{row.model['run']}/{row.protocol.method}", row.estimate.mean().mean)
    for gap in content.gaps:
        key = f"compare/{gap.test.model['run']}/{gap.test.protocol.method}/test_minus_train"
        values.setdefault(key, gap.difference.mean)
    budgets = [{"row": name_of(row), **row.estimate.error_budget} for row in rows]
    named = {"comparison": _joint(exports.figures(content)), "error_budgets": _joint(budgets)}
    if content.curves:
        named["curves"] = _joint(exports.curve_values(content.curves))
    named[image_key(rows[0])] = image_table(rows)
    config = {"rows": [{"model": dict(row.model), "protocol": asdict(row.protocol)} for row in rows]}
    lines = {curve.label: (curve.middles, curve.density.tolist()) for pair in content.curves for curve in pair.curves}
    return log(
        folder, choice, logging.project, logging.group, config, values, named, images, "compare",
        bars={"charts/bits_per_dim": {name_of(row): row.estimate.mean().mean for row in rows}},
        lines={"charts/bits_per_dim_by_log_snr": lines} if lines else {},
    )  # fmt: skip


def _joint(plain: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of records that need not have the same keys."""
    columns = list(dict.fromkeys(key for record in plain for key in record))
    return columns, [[record.get(column) for column in columns] for record in plain]


def log(
    folder: Path,
    choice: str,
    project: str,
    group: str | None,
    config: Mapping[str, Any],
    values: Mapping[str, Any],
    tables: Mapping[str, tuple[list[str], list[list[Any]]]],
    images: Mapping[str, Image],
    job_type: str = "eval",
    bars: Mapping[str, Mapping[str, float]] | None = None,
    lines: Mapping[str, Mapping[str, tuple[list[float], list[float]]]] | None = None,
) -> Path | None:
    """Log a run of a job type, named after `folder`; returns the folder of W&B's files, or None without one."""
    if choice == "off":
        return None
    # here, since Lightning takes seconds
    from ..training.wandb_mode import make_wandb_logger, resolve_mode

    # absolute, since W&B's writing process may stand in another folder
    mirror = make_wandb_logger(
        folder.absolute(), resolve_mode(choice), project, group, config=config, job_type=job_type
    )
    if mirror is None:
        return None
    mirror.summarise(values)
    for key, (columns, rows) in tables.items():
        mirror.log_table(key, columns=columns, data=rows)
    for key, image in images.items():
        mirror.log_image(key, [image])
    for key, named in (bars or {}).items():
        mirror.log_bars(key, named, "bits/dim")
    for key, series in (lines or {}).items():
        mirror.log_lines(key, series, "log-SNR")
    mirror.finish()
    return folder / "wandb"
