"""The card of a model on the Hugging Face hub: README.md and config.json next to the weights.

The first lines of the card are metadata of the Hub, in YAML; the figures are those of evaluation.json.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...config import Config, dump_config
from ...config.files import plain_values
from ...likelihood import Estimate
from ...models.build import DataFacts, parameter_count
from ...models.trained_model import TrainedModel
from ...storage import atomic, runs
from ...storage.records import find
from ..evaluation import summary
from ..report import known, unit_of

# The folders of a whole path (/home/me/x.png, ~/x.png), and of no address of the web.
_FOLDERS = re.compile(r"(?<![\w.:/~])~?/(?:[^\s/'\",;]+/)*(?=[^\s/'\",;])")
_CLASSES = ("classes", "class_names")  # of the data, and by which samples are requested


def write_card(model: TrainedModel, folder: Path) -> None:
    """Write config.json and README.md to a folder.

    Args:
        model: The model; its evaluation.json is looked for next to its file.
        folder: The folder.
    """
    facts = {"parameters": parameter_count(model.module), "data": json.loads(model.facts.to_json())}
    config = {"library_name": "diffusion", **plain_values(model.config), "facts": facts}
    atomic.write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    atomic.write_text(folder / "README.md", card_of(model))


def without_places(config: Config) -> Config:
    """The configuration with the names of its files and folders alone, not where they are on this machine."""
    data = config.data
    named = {key: Path(place).name for key, place in _places(config).items()}
    start = None if config.trainer.start is None else Path(config.trainer.start).name
    changed = {"data": data.replace(**named), "trainer": config.trainer.replace(start=start)}
    return config.replace(**changed, runs=Path(config.runs).name)


def facts_without_places(facts: DataFacts, config: Config) -> DataFacts:
    """The facts with the names of files and folders alone in what is said of the data (their source, the notes).

    Args:
        facts: The facts.
        config: The configuration, whose places may be named.
    """
    source = Path(str(facts.provenance.get("source", "")))
    places = {Path(place) for place in _places(config).values()} | ({source} if source.is_absolute() else set())
    whole = sorted({str(place) for place in places if place.name not in ("", str(place))}, key=len, reverse=True)

    def named(text: str) -> str:
        for place in whole:
            text = text.replace(place, Path(place).name)
        return _FOLDERS.sub("", text)

    said = {
        key: named(value) if isinstance(value, str) and key not in _CLASSES else value
        for key, value in facts.provenance.items()
    }
    return replace(facts, provenance=said)


def _places(config: Config) -> dict[str, str]:
    """Where the data are, by the option that says so."""
    places = {key: getattr(config.data, key) for key in ("path", "cache", "root")}
    return {key: str(place) for key, place in places.items() if place is not None}


def card_of(model: TrainedModel) -> str:
    """The text of the card."""
    facts, config = model.facts, model.config
    size = " x ".join(map(str, facts.shape))
    is_image = facts.levels is not None
    levels = "" if not is_image else f" of {facts.levels} levels"
    classes = f", {facts.num_classes} classes" if facts.num_classes else ""
    classes += f", conditioned on {', '.join(map(str, facts.parts))}" if facts.parts else ""
    lines = [
        "---",
        "library_name: diffusion",
        *(["pipeline_tag: unconditional-image-generation"] if is_image else []),
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
        f"{'images' if is_image else 'samples'} = diffusion.sample(model, 16)",
        "```",
    ]
    estimates = find(Path(model.source).parent / runs.EVALUATION, _estimates)
    if estimates:
        lines += ["", "## Evaluation", "", *_table(estimates)]
    return "\n".join([*lines, "", "## Configuration", "", "```yaml", dump_config(config).rstrip(), "```", ""])


def _estimates(values: Any) -> dict[str, Estimate]:
    return {name: Estimate.from_dict(plain) for name, plain in values["estimates"].items()}


def _table(estimates: dict[str, Estimate]) -> list[str]:
    unit, words = unit_of(estimates)
    counted = "images" if unit == "bits_per_dim" else "data"
    rows = [f"| estimate | {words} | 95 % interval | kind | {counted} | protocol |", "|---|---|---|---|---|---|"]
    for name, estimate in estimates.items():
        row = summary(estimate, "")
        interval = known("{:.4f} to {:.4f}", row[f"{unit}_low"], row[f"{unit}_high"])
        rows.append(f"| {name} | {row[unit]:.4f} | {interval} | {row['kind']} | {row['images']} | {row['protocol']} |")
    return rows
