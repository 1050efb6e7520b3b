"""What was understood of a data set, in a few lines, from what a model knows of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .class_names import names_of, numbered
from .splits import SPLITS


def describe(provenance: Mapping[str, Any], num_classes: int) -> list[str]:
    """Number, size, levels, splits, classes and what was left out, a line each; nothing for what is no image.

    Args:
        provenance: Of `ImageData`, or as a model file keeps it.
        num_classes: The number of classes.
    """
    if "train_images" not in provenance:
        return []
    of = provenance
    is_array = "shape" in of
    kind = "rows" if is_array else "images"
    counts = {split: int(of[f"{split}_images"]) for split in SPLITS}
    numbers = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    classes = (
        f"{num_classes:,}: {numbered(names_of(of, num_classes))}" if num_classes else f"none, {kind} have no labels"
    )
    about = f"{of['shape']} numbers each, {of['type']}" if is_array else _of_images(of)
    return [
        f"data: {sum(counts.values()):,} {kind} from {of['source']}: {about}",
        f"  splits: {numbers} ({of['split']})",
        f"  classes: {classes}",
        *(f"  note: {line}" for line in str(of.get("notes", "")).splitlines()),
    ]


def _of_images(of: Mapping[str, Any]) -> str:
    what = "grey" if of["channels"] == 1 else f"{of['channels']} channels"
    used = f", of which {of['used']} are used" if "used" in of else ""
    return f"{of['width']} x {of['height']} (width x height), {what}, {of['levels']} levels{used}"
