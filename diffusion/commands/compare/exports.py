"""A comparison as plain values for other programs; None for unknown ones."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ...likelihood import Interval
from ..evaluation import describe, effective_samples
from .content import Content, name_of
from .curves import overfit, parts_of
from .groups import between

# What training cost, as `Subject.training` has it.
TRAINING = ("images_seen", "training_seconds", "training_cpu_seconds", "trained_on")


def figures(content: Content) -> list[dict[str, Any]]:
    """Every row as plain values."""
    return [{content.key(name): value for name, value in row.items()} for row in _figures(content)]


def _figures(content: Content) -> list[dict[str, Any]]:
    made = []
    for group, row, difference in content.lines():
        gap = content.gap(row)
        made.append(
            {
                "group": group.letter,
                "group_title": group.title,
                **{key: row.model.get(key) for key in ("run", "family", "parameters", *TRAINING)},
                "method": row.protocol.method,
                "kind": group.kind,
                "law": group.law,
                "dequantization": group.dequantization,
                "bound": group.bound,
                **_named("bits_per_dim", row.estimate.mean()),
                **_named("difference", difference),
                "train_bits_per_dim": None if gap is None else gap.train.estimate.mean().mean,
                "train_images": None if gap is None else len(gap.train.estimate),
                **_named("test_minus_train", None if gap is None else gap.difference),
                "nfe": row.estimate.nfe,
                "seconds": row.estimate.seconds,
                "images": len(row.estimate),
                "effective_samples": effective_samples(row.estimate),
                "protocol": describe(row.estimate),
            }
        )
    return made


def _named(name: str, interval: Interval | None) -> dict[str, float | None]:
    values = (None,) * 4 if interval is None else (interval.mean, interval.low, interval.high, interval.sem)
    plain = (value if value is not None and math.isfinite(value) else None for value in values)
    return dict(zip((name, f"{name}_low", f"{name}_high", f"{name}_sem"), plain, strict=True))


def curve_values(content: Content) -> list[dict[str, Any]]:
    """The curves as plain values, one row per bin."""
    made: list[dict[str, Any]] = []
    for pair in content.curves:
        lost = overfit(pair)
        for curve in pair.curves:
            for i in range(len(curve.density)):
                unit = content.key("bits_per_dim_per_log_snr")
                named = {unit: float(curve.density[i]), "sem": float(curve.sem[i])}
                ends = {"log_snr_low": curve.edges[i], "log_snr_high": curve.edges[i + 1]}
                values = {**ends, **named, "test_minus_train": math.nan if lost is None else lost[i].mean}
                made.append({"run": curve.name, "split": curve.split, "images": curve.images, **_finite(values)})
    return made


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def json_text(content: Content) -> str:
    """The comparison as JSON: every row with protocol, budget and terms; between groups; curves by log-SNR."""
    full = [
        {
            **figure,
            "question": asdict(row.protocol),
            "estimator": dict(row.estimate.protocol),
            "error_budget": _finite(row.estimate.error_budget),
            content.key("parts_bits_per_dim"): parts_of(row),
        }
        for figure, row in zip(figures(content), content.rows, strict=True)
    ]
    differences = [
        {"row": name_of(row), "best": name_of(best), **_named("difference", difference)}
        for row, best, difference in between(content.groups)
    ]
    apart = {group.letter: f"{group.title}. {group.why}" for group in content.groups}
    plain = {"images": content.title, "groups": apart, "rows": full, "between_groups": differences}
    return json.dumps({**plain, "curves": curve_values(content)}, indent=1)
