"""The card of a model on the Hugging Face hub: README.md and config.json beside the weights.

The first lines of the card are metadata of the Hub, in YAML; the figures are those of evaluation.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...config import Config, dump_config
from ...config.files import plain_values
from ...likelihood import Estimate
from ...models.build import parameter_count
from ...models.trained_model import TrainedModel
from ...storage import atomic, runs
from ...storage.records import find
from ..evaluation import describe


def write_card(model: TrainedModel, folder: Path) -> None:
    """Write config.json and README.md to a folder.

    Args:
        model: The model; its evaluation.json is looked for beside its file.
        folder: The folder.
    """
    facts = {"parameters": parameter_count(model.module), "data": json.loads(model.facts.to_json())}
    config = {"library_name": "diffusion", **plain_values(model.config), "facts": facts}
    atomic.write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    atomic.write_text(folder / "README.md", card_of(model))


def without_places(config: Config) -> Config:
    """The configuration with the names of its files and folders alone, not where they are on this machine."""
    data = config.data
    places = {key: getattr(data, key) for key in ("path", "cache", "root")}
    named = {key: Path(place).name for key, place in places.items() if place is not None}
    start = None if config.trainer.start is None else Path(config.trainer.start).name
    changed = {"data": data.replace(**named), "trainer": config.trainer.replace(start=start)}
    return config.replace(**changed, runs=Path(config.runs).name)


def card_of(model: TrainedModel) -> str:
    """The text of the card."""
    facts, config = model.facts, model.config
    size = " x ".join(map(str, facts.shape))
    levels = "" if facts.levels is None else f" of {facts.levels} levels"
    classes = f", {facts.num_classes} classes" if facts.num_classes else ""
    lines = [
        "---",
        "library_name: diffusion",
        "pipeline_tag: unconditional-image-generation",
        "---",
        "",
        f"# {config.family} model of {facts.name}",
        "",
        f"{parameter_count(model.module):,} parameters, step {model.step:,}; data {size}{levels}{classes}.",
        "",
        "```python",
        "import diffusion",
        "",
        'model = diffusion.load("hf:OWNER/NAME")',
        "images = diffusion.sample(model, 16)",
        "```",
    ]
    estimates = find(Path(model.source).parent / runs.EVALUATION, _estimates)
    if estimates:
        lines += ["", "## Evaluation", "", *_table(estimates)]
    return "\n".join([*lines, "", "## Configuration", "", "```yaml", dump_config(config).rstrip(), "```", ""])


def _estimates(values: Any) -> dict[str, Estimate]:
    return {name: Estimate.from_dict(plain) for name, plain in values["estimates"].items()}


def _table(estimates: dict[str, Estimate]) -> list[str]:
    rows = ["| estimate | bits/dim | 95 % interval | kind | images | protocol |", "|---|---|---|---|---|---|"]
    for name, estimate in estimates.items():
        mean = estimate.mean()
        interval = f"{mean.low:.4f} to {mean.high:.4f}"
        rows.append(
            f"| {name} | {mean.mean:.4f} | {interval} | {estimate.kind} | {len(estimate)} | {describe(estimate)} |"
        )
    return rows
