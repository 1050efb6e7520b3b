"""`python -m diffusion compare`: what `evaluate` measured, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from rich.markup import escape

from .. import atomic, pictures, runs
from ..errors import UserError
from ..report import console
from . import figures, html_page, mirror, records, tables
from .baselines import classical_rows
from .comparison import Group, common_images, group, is_own
from .records import Evaluation
from .subjects import Subject, images_of, load_images_of, load_subject

SAMPLES = 36
# Larger pictures than any of ours are not decoded.
_LARGEST_PICTURE = 50_000_000


def run(options: argparse.Namespace) -> int:
    """Compare what the command line asks for; returns the exit code."""
    subjects = [load_subject(name, options.runs) for name in options.run]
    found: dict[str, list[Evaluation]] = {}
    for subject in subjects:
        if subject.name in found:
            raise UserError(f"compare: {subject.name} is named twice")
        kept = records.read_all(subject.home)
        # those of former weights are of another model
        found[subject.name] = [e for e in kept if e.protocol.weights == subject.weights]
    evaluations = common_images(found, options.split)
    identity = dict(evaluations[0].protocol.data)
    out = Path(options.out)
    if options.baselines:
        data = load_images_of(subjects[0])
        images, now = images_of(data, options.split, int(identity["images"]))
        if now["sha256"] != identity["sha256"]:
            raise UserError(f"compare: the {options.split} images of '{data.name}' are not those that were measured")
        evaluations = evaluations + classical_rows(out / "classical", data, images, identity)
    groups = group(evaluations)
    gaps = tables.gap_sentences(found)
    charts = _charts(groups, found)
    title = f"Likelihood of {identity['images']} {identity['split']} images of {identity['name']}"
    about = (
        f"Levels: {identity['levels']}. SHA-256 of the images: {identity['sha256']}. Every figure is of each of these "
        "images once; lower is better. Intervals are Student's, over images; differences are paired on the same images."
    )
    samples = {subject.name: _samples(subject) for subject in subjects}
    page = html_page.page(title, about, groups, gaps, charts, samples)
    written = {"comparison.html": page, "comparison.md": tables.markdown(title, groups, gaps)}
    written |= {"comparison.csv": tables.csv_text(groups), "comparison.json": tables.json_text(groups)}
    for name, text in written.items():
        atomic.write_text(out / name, text)
    mirrored = _mirror(out, subjects, groups, charts, options.wandb)

    printer = console()
    printer.print(escape(title), style="bold")
    for table in tables.rich_tables(groups):
        printer.print(table)
    if len(groups) > 1:
        printer.print(f"Between the groups. {tables.BETWEEN}", style="dim")
    for line in (*tables.sentences(groups), *gaps):
        printer.print(f"- {escape(line)}")
    for name in written:
        printer.print(f"wrote {escape(str(out / name))}", soft_wrap=True)
    if mirrored is not None:
        printer.print(f"W&B run: {escape(str(mirrored))}", soft_wrap=True)
    return 0


def _charts(groups: Sequence[Group], found: dict[str, list[Evaluation]]) -> dict[str, Image.Image]:
    rows = [row for group in groups for row in group.rows]
    intervals = [row.estimate.mean() for row in rows]
    names = [tables.name_of(row) for row in rows]
    charts = {"bits/dim of all rows": figures.bars(names, [(i.mean, i.low, i.high) for i in intervals])}
    curves = {}
    for row in [row for evaluations in found.values() for row in evaluations]:
        curve, ends = row.terms.get("curve"), row.estimate.protocol.get("curve_log_snr")
        data = row.protocol.data
        if isinstance(curve, list) and isinstance(ends, list) and len(ends) == 2 and is_own(row):
            curves[f"{row.model['run']} ({data['split']}, {data['images']} images)"] = (tuple(ends), curve)
    if curves:
        charts["where the bits go: the bound's diffusion term by log-SNR"] = figures.curves(curves)
    return charts


def _samples(subject: Subject) -> Image.Image:
    """The run's own picture of samples; where there is none, drawn here."""
    path = subject.home / runs.SAMPLES / "samples.png"
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.width * picture.height <= _LARGEST_PICTURE:
                return picture.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
        pass  # not there, or no picture
    model = subject.model
    return pictures.grid(model.sample(SAMPLES, seed=0, **model.sampling_settings({})).cpu())


def _mirror(
    out: Path, subjects: Sequence[Subject], groups: Sequence[Group], charts: dict[str, Image.Image], choice: str
) -> Path | None:
    rows = [row for group in groups for row in group.rows]
    plain = tables.figures(groups)
    joint = (list(plain[0]), [list(figure.values()) for figure in plain])
    images = {"bits_per_dim": charts["bits/dim of all rows"]}
    values = {f"compare/{row.model['run']}/{row.protocol.method}": row.estimate.mean().mean for row in rows}
    config = {"rows": [{"model": dict(row.model), "protocol": asdict(row.protocol)} for row in rows]}
    named = {"comparison": joint, mirror.image_key(rows[0]): mirror.image_table(rows)}
    logging = subjects[0].model.config.logging
    return mirror.log(out, choice, logging.project, logging.group, config, values, named, images)
