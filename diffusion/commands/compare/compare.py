"""`python -m diffusion compare`: what `evaluate` measured, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from rich.text import Text

from ...data import ImageData, find_toy, pictures
from ...errors import UserError
from ...models.tuning_cache import reported_tuning
from ...processes import by_uv
from ...storage import atomic, runs
from ...storage.paths import file_name
from .. import ood, records
from ..app import ProgressBar
from ..options import TUNING_SECONDS
from ..records import Evaluation
from ..subjects import Subject, identify, load_images_of, load_subject, named_apart, rows_of
from ..table import Table
from ..terminal import console, note_replaced, print_next, print_places, say
from . import exports, figures, page, tables
from .classical import classical_rows
from .comparison import common_images, gaps, is_of_first_images, of_other_images
from .content import Content, name_of
from .curves import pair_curves
from .groups import APART, group, leader, of_densities
from .mirror import mirror_comparison

SAMPLES = 36
# Larger pictures than any of ours are not decoded.
_LARGEST_PICTURE = 50_000_000


def run(options: argparse.Namespace) -> int:
    """Carry out the command line; returns the exit code."""
    subjects = [load_subject(name, options.runs, points=True) for name in options.run]
    if drawn := next((subject for subject in subjects if find_toy(subject.model.facts.name) is not None), None):
        raise UserError(
            f"{drawn.name}: its data '{drawn.model.facts.name}' are drawn anew, and its figures not kept; accepted: "
            "models of images or arrays (evaluate says what this one's density is)"
        )
    names = named_apart([subject.name for subject in subjects], [Path(subject.model.source) for subject in subjects])
    subjects = [replace(subject, name=name) for subject, name in zip(subjects, names, strict=True)]
    found: dict[str, list[Evaluation]] = {}
    old: set[str] = set()
    for subject in subjects:
        kept = records.read_all(subject.home)
        # those of former weights are of another model
        own = [e.in_its_unit() for e in kept if e.protocol.weights == subject.weights]
        found[subject.name] = [replace(e, model={**e.model, "run": subject.name, **subject.training}) for e in own]
        sizes = subject.model.facts.provenance
        old |= {e.protocol.name for e in found[subject.name] if is_of_first_images(e, sizes)}
    evaluations = common_images(found, options.split, lambda e: e.protocol.name in old)
    identity = dict(evaluations[0].protocol.data)
    out = Path(options.out)
    ranked, left_out = {}, of_other_images(found, evaluations)
    if options.baselines and evaluations[0].estimate.levels is not None:
        data = load_images_of(subjects[0], options.data)
        whole, rows = getattr(data, options.split), rows_of(identity)
        images = whole[rows[rows < len(whole)]]
        if identify(images, data.name, options.split, data.levels)["sha256"] != identity["sha256"]:
            raise UserError(f"compare: the {options.split} images of '{data.name}' are not those that were measured")
        ranked = _ranked(evaluations, data, options.split)
        bar = ProgressBar()
        classical, too_large = classical_rows(
            out / "classical", data, images, identity, lambda name: partial(bar.named, f"fitting: {name}")
        )
        bar.close()
        evaluations, left_out = evaluations + classical, left_out + too_large
    new = {n: [e for e in kept if e.protocol.name not in old] for n, kept in found.items()}
    content = replace(_content(evaluations, new), left_out=left_out)
    charts = _charts(content, found)
    samples = {subject.name: _samples(subject) for subject in subjects}
    written = {
        "comparison.html": page.page(content, charts, samples, ranked),
        "comparison.md": tables.markdown(content),
        "comparison.csv": Table.of(exports.figures(content)).csv(),
        "comparison.json": exports.json_text(content),
    }
    note_replaced(out / "comparison.json", written["comparison.json"], "a comparison", _about)
    for name, text in written.items():
        atomic.write_text(out / name, text)
    for name, image in charts.items():
        pictures.save(out / f"{file_name(name)}.png", image)
    mirrored = mirror_comparison(out, subjects[0], content, {**charts, **_prefixed(samples)}, options.wandb)
    _print(content, [*written, *(f"{file_name(name)}.png" for name in charts)], out, mirrored)
    best = str(leader(content.groups[0]).model["run"])
    print_next(console(), "sample", "--run", options.run[names.index(best)], runs=options.runs)
    return 0


def _about(kept: Mapping[str, Any]) -> tuple[list[str], str]:
    """The runs of a comparison, and the images they were measured on."""
    return [str(row["run"]) for row in kept["rows"] if row["family"] != "classical"], kept["images"]


def _content(evaluations: Sequence[Evaluation], found: dict[str, list[Evaluation]]) -> Content:
    """What the page says.

    Args:
        evaluations: The rows.
        found: All evaluations by run that represent a split.
    """
    groups, identity = group(evaluations), evaluations[0].protocol.data
    rows = [row for each in groups for row in each.rows]
    names = {e.protocol.name for kept in found.values() for e in kept}
    both = gaps([row for row in rows if row.protocol.name in names], found)
    densities = groups[0].is_of_densities
    about = (
        f"Levels: {identity['levels']}. {_chosen(identity)}SHA-256 of the images: {identity['sha256']}. "
        "Every figure is of each of "
        "these images once; lower is better. Intervals are 95 % over images, Student's and wider where these are skew; "
        "differences to the best of a group are paired on the same images."
    )
    return Content(
        title=f"Likelihood of {identity['images']} {identity['split']} {'rows' if densities else 'images'} of "
        f"{identity['name']}",
        about=of_densities(about).removeprefix("Levels: None. ") if densities else about,
        groups=groups,
        gaps=both,
        curves=pair_curves(rows, both),
        data_sets=[f"{name_of(native)}: {ood.sentence(native, foreign)}" for native, foreign in ood.pairs(rows, found)],
    )


def _chosen(identity: Mapping[str, object]) -> str:
    if "of" not in identity:
        return ""
    return f"They are the first of the split's {identity['of']} in the order of the {identity['order']}. "


def _charts(content: Content, found: dict[str, list[Evaluation]]) -> dict[str, Image.Image]:
    charts = {content.key("bits_per_dim"): figures.intervals(content)}
    if content.curves:
        charts["curves"] = figures.curves(content)
    charts["error_budgets"] = figures.budgets(content)
    for native, foreign in ood.pairs(content.rows, found):
        charts[f"{name_of(native)} on {foreign.protocol.data['name']}"] = ood.picture(native, foreign)
    return charts


def _ranked(evaluations: Sequence[Evaluation], data: ImageData, split: str) -> dict[str, Image.Image]:
    """The most and the least likely images under each model, by its best result."""
    images, found = getattr(data, split), {}
    for row in sorted(evaluations, key=lambda row: row.estimate.mean().mean):
        if row.model["run"] not in {known.model["run"] for known in found.values()}:
            found[name_of(row)] = row
    return {
        name: figures.ranked_picture(images[row.estimate.indices], row.estimate, data.levels)
        for name, row in found.items()
    }


def _samples(subject: Subject) -> Image.Image:
    """The run's own picture of samples; drawn here if there is none."""
    path = subject.home / runs.SAMPLES / "samples.png"
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.width * picture.height <= _LARGEST_PICTURE:
                return picture.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
        pass  # not there, or no picture
    model = subject.model
    with reported_tuning(TUNING_SECONDS):
        x = model.sample(SAMPLES, seed=0, **model.sampling_settings({})).cpu()
        return pictures.samples_picture(x, continuous=model.facts.levels is None)


def _prefixed(samples: dict[str, Image.Image]) -> dict[str, Image.Image]:
    return {f"samples/{name}": image for name, image in samples.items()}


def _print(content: Content, files: Sequence[str], out: Path, mirrored: Path | None) -> None:
    printer = console()
    figured, costs = tables.terminal_tables(content)
    printer.print(figured)
    say(printer, APART, "dim")
    for each in content.groups:
        say(printer, Text.assemble((each.letter, "bold"), f"  {each.title}. ", (each.why, "dim")))
    if len(content.groups) > 1:
        say(printer, Text.assemble("\nBetween the groups. ", (content.words(tables.BETWEEN), "dim")))
        for line in tables.sentences(content.groups):
            say(printer, f"- {line}")
    printer.print()
    printer.print(costs)
    if content.gaps:
        printer.print()
        printer.print(tables.gap_table(content))
    for line in [*content.data_sets, *content.left_out]:
        say(printer, f"- {line}")
    printer.print()
    places: dict[str, Path | str] = {"written to": out}
    say(printer, f"files: {', '.join(files)}")
    if mirrored is not None:
        places |= {"W&B run": mirrored, "upload it with": f"{by_uv()}wandb sync {mirrored}/offline-run-*"}
    print_places(printer, {**places, "open in a browser": out / "comparison.html"})
