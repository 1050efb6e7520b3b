"""Logs a comparison to W&B, as a separate run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL.Image import Image

from ..mirror import image_key, image_table, log
from ..subjects import Subject
from ..table import Table
from . import exports
from .content import Content, name_of


def mirror_comparison(
    folder: Path, subject: Subject, content: Content, images: Mapping[str, Image], choice: str
) -> Path | None:
    """Log a comparison as a separate run: the joint table, further tables, and every chart.

    Args:
        folder: Where the comparison's files are.
        subject: Whose project and group it belongs to.
        content: The comparison.
        images: Charts and samples by key.
        choice: off, offline, online or auto.

    Returns:
        The folder of the W&B run; None without one.
    """
    rows, logging = content.rows, subject.model.config.logging
    values: dict[str, Any] = {}
    for row in rows:  # the best of a run's figures by one method comes first
        values.setdefault(f"compare/{row.model['run']}/{row.protocol.method}", row.estimate.mean().mean)
    for gap in content.gaps:
        key = f"compare/{gap.test.model['run']}/{gap.test.protocol.method}/test_minus_train"
        values.setdefault(key, gap.difference.mean)
    budgets = [{"row": name_of(row), **row.estimate.error_budget} for row in rows]
    named = {"comparison": Table.of(exports.figures(content)), "error_budgets": Table.of(budgets)}
    if content.curves:
        named["curves"] = Table.of(exports.curve_values(content))
    named[image_key(rows[0])] = image_table(rows)
    config = {"rows": [{"model": dict(row.model), "protocol": asdict(row.protocol)} for row in rows]}
    curves, unit = [curve for pair in content.curves for curve in pair.curves], content.words("images")
    lines = {curve.label(unit): (curve.middles, curve.density.tolist()) for curve in curves}
    return log(
        folder, choice, logging.project, logging.group, config, values, named, images, "compare",
        bars={content.key("charts/bits_per_dim"): {name_of(row): row.estimate.mean().mean for row in rows}},
        lines={content.key("charts/bits_per_dim_by_log_snr"): lines} if lines else {},
    )  # fmt: skip
