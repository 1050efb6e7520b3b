"""`python -m diffusion quality`: samples of runs, or images, against training images, in one table.

    RUN/evaluations/quality/<digest>.json          the results, and the question they answer
    RUN/evaluations/quality/<digest>-closest.png   the samples closest to training images, above these
    RUN/evaluations/quality/scale/                 the same of test images and of noise

The digest is of the question: the reference with its provenance, and what was drawn how. Figures with unlike references
or numbers of samples are refused before anything is drawn.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...data import ImageData, pictures
from ...denoisers.given import type_of_levels
from ...devices import choose_device
from ...errors import UserError
from ...likelihood import Dequantizer
from ...metrics import Copy, FeatureExtractor, Quality, QualityReference, describe, require_comparable, spread
from ...metrics.quality import FEWEST
from ...numerics.random import FIXED_ORDER
from ...sampling.settings import given_settings
from ...storage.records import digest, keep, reading
from .. import mirror
from ..app import ProgressBar
from ..features import choose_extractor, reference_of
from ..options import flag
from ..preflight import check_takes_figures
from ..subjects import named_apart
from ..terminal import console, print_next, print_places, say
from .by_class import each_class
from .candidates import Candidate, load_candidate, moved
from .table import Row, class_table, remarks, table

CLOSEST = 10


class Reference:
    """The reference of all rows, whose features are computed when the first figure needs them.

    Args:
        data: All splits.
        extractor: The feature network.
        options: Of the command line.
        device: Where features are computed.
    """

    def __init__(
        self,
        data: ImageData,
        extractor: FeatureExtractor,
        options: argparse.Namespace,
        device: torch.device,
    ):
        self.data, self.extractor, self.options, self.device = data, extractor, options, device
        self.images: Tensor = getattr(data, options.reference)
        self.provenance = describe(self.images, extractor, data.name, options.reference, data.levels, options.flips)
        self._made: QualityReference | None = None

    def get(self, bar: ProgressBar, mirrored: bool) -> QualityReference:
        """The reference with its features, found in the cache or computed.

        Args:
            bar: Shows how far it is.
            mirrored: Whether mirror images of training images count as copies of these.
        """
        if self._made is None:
            split, flips = self.options.reference, self.options.flips
            self._made = reference_of(
                self.data, split, self.extractor, held_out=self.data.test if split == "train" else None, flips=flips,
                device=self.device, batch_size=self.options.batch_size,
                progress=partial(bar.named, "features of the reference"),
            )  # fmt: skip
        return self._made.counting(mirrored)


def run(options: argparse.Namespace) -> int:
    """Carry out the command line; returns the exit code."""
    candidates, reference = _asked(options, choose_device(options.device))
    scale = _scale(candidates, reference)
    for candidate in [*candidates, *scale]:  # before any of them is drawn
        if candidate.count < FEWEST:
            what = candidate.name if options.samples is None else "--samples"
            raise UserError(f"{what}: found {candidate.count}; at least {FEWEST} are needed, and 1,000 or more advised")
        if options.again or not _question(candidate, reference)[1].is_file():
            check_takes_figures(candidate.folder)
    bar, rows, places = ProgressBar(), [], []
    for candidate in candidates:
        row, written = _measured(candidate, reference, options, bar)
        rows.append(row)
        places += written
    rows += [_measured(candidate, reference, options, bar)[0] for candidate in scale]
    by_class, left_out = [], []
    for candidate in candidates if options.by_class else ():
        for of_class in each_class(candidate):
            if of_class.count < FEWEST or len(getattr(of_class.data, options.reference)) < FEWEST:
                left_out.append(f"{of_class.name}: left out, fewer than {FEWEST} samples or reference images")
                continue
            own = Reference(of_class.data, reference.extractor, options, reference.device)
            row, _ = _measured(of_class, own, options, bar)
            if options.scale and (held_out := _held_out(of_class, own)) is not None:
                fresh, _ = _measured(held_out, own, options, bar)
                row = replace(row, figures={**row.figures, **{f"test_{k}": v for k, v in fresh.figures.items()}})
            by_class.append(row)
        places.append(("its classes in", candidate.folder))
    bar.close()
    out = console()
    out.print(table(rows, reference.provenance))
    if by_class:
        out.print(class_table(by_class, options.reference))
    for line in left_out:
        say(out, f"- {line}")
    for line in remarks(rows):
        say(out, f"- {line}")
    for what, place in places:
        print_places(out, {what: place})
    for text in [text for text, of in zip(options.run, candidates, strict=True) if of.subject is not None][:1]:
        features = () if options.features is None else ("--features", options.features)
        print_next(out, "tradeoff", text, *features, data=moved(options), runs=options.runs)
    return 0


def kept(options: argparse.Namespace) -> list[Row]:
    """The rows that `run` has kept of a command line: of its runs and folders, and for scale; not of classes.

    Raises:
        UserError: For one that is not there, or damaged.
    """
    candidates, reference = _asked(options, torch.device("cpu"))
    found = []
    for candidate in [*candidates, *_scale(candidates, reference)]:
        question, path = _question(candidate, reference)
        found.append(replace(_read(path, question), name=candidate.name))
    return found


def _asked(options: argparse.Namespace, device: torch.device) -> tuple[list[Candidate], Reference]:
    """What a command line asks about, and what that is compared with."""
    candidates = [load_candidate(text, options) for text in options.run]
    names = named_apart([candidate.name for candidate in candidates], [candidate.place for candidate in candidates])
    candidates = [replace(candidate, name=name) for candidate, name in zip(candidates, names, strict=True)]
    _require_used(candidates, options)
    first = candidates[0].data
    reference = Reference(first, choose_extractor(options.features, first, options.download), options, device)
    if not len(reference.images):
        raise UserError(f"--reference: '{first.name}' has no {options.reference} images")
    _require_alike(candidates, reference, options)
    return candidates, reference


def _require_used(candidates: Sequence[Candidate], options: argparse.Namespace) -> None:
    """Refuse options that apply to nothing on the command line."""
    drawn = [candidate.subject is not None for candidate in candidates]
    if options.data is not None and all(drawn) and moved(options) is None:
        raise UserError(
            f"--data: {candidates[0].name} is a model, compared with the images that it was trained on; for a model "
            "--data takes only the path where these are now"
        )
    requested = [flag(name) for name in given_settings(options, "figure")]
    if requested and not any(drawn):
        raise UserError(f"{requested[0]}: {candidates[0].name} holds images, which need no sampling")


def _require_alike(candidates: Sequence[Candidate], reference: Reference, options: argparse.Namespace) -> None:
    """Refuse to compare results with different references or numbers of samples, before hours of work."""
    for other in candidates[1:]:
        images = getattr(other.data, options.reference)
        found = describe(
            images, reference.extractor, other.data.name, options.reference, other.data.levels, options.flips
        )
        require_comparable(reference.provenance, candidates[0].count, found, other.count)


def _question(candidate: Candidate, reference: Reference) -> tuple[dict[str, Any], Path]:
    """The question that a figure answers, and its file."""
    how = {"order": FIXED_ORDER, "mirrored_copies": candidate.mirrored}
    question = {"reference": asdict(reference.provenance), "samples": candidate.count, **how, **candidate.question}
    return question, candidate.folder / f"{digest(question)}.json"


def _measured(
    candidate: Candidate, reference: Reference, options: argparse.Namespace, bar: ProgressBar
) -> tuple[Row, list[tuple[str, Path]]]:
    question, path = _question(candidate, reference)
    closest = path.with_name(f"{path.stem}-closest.png")
    places = [("stored in", path)]
    if not path.is_file() or options.again:
        samples, nfe = candidate.draw(reference.device, partial(bar.named, f"{candidate.name}: samples"))
        made = reference.get(bar, candidate.mirrored)
        made = made.without_held_out() if candidate.held_out else made
        quality = made.measure(samples, options.batch_size, partial(bar.named, f"{candidate.name}: features"))
        copies = [_plain(copy, candidate) for copy in quality.copies or ()]
        if (picture := closest_pairs(samples, made, quality)) is not None:
            pictures.save(closest, picture, {"copies": json.dumps(copies)})
        plain = {"question": question, "name": candidate.name, "nfe": nfe, "figures": _known(quality), "copies": copies,
                 "features": made.features.shape[1]}  # fmt: skip
        keep(path, plain)
    row = replace(_read(path, question), name=candidate.name)
    if closest.is_file():
        places.append(("closest pairs", closest))
    if (logged := _mirror(candidate, row, question, path.with_suffix(""), closest, options.wandb)) is not None:
        places.append(("W&B run", logged))
    return row, places


def _read(path: Path, question: dict[str, Any]) -> Row:
    with reading(f"{path}: no figures of quality, or damaged; quality --again replaces it"):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["question"] != json.loads(json.dumps(question)):
            raise ValueError("it answers another question")
        figures = {str(name): None if value is None else float(value) for name, value in found["figures"].items()}
        copies = [{str(key): value for key, value in copy.items()} for copy in found["copies"]]
        return Row(
            str(found["name"]),
            int(found["question"]["samples"]),
            figures,
            float(found["nfe"]),
            copies,
            found.get("features"),
        )


def _known(quality: Quality) -> dict[str, float | None]:
    """The values; None for unknown ones."""
    return {name: value if math.isfinite(value) else None for name, value in quality.figures().items()}


def _scale(candidates: Sequence[Candidate], reference: Reference) -> list[Candidate]:
    """What stands below the samples for scale, as many images: held-out ones of the data, and uniform noise."""
    if not reference.options.scale:
        return []
    first = replace(candidates[0], mirrored=any(candidate.mirrored for candidate in candidates))
    levels, shape = reference.provenance.levels, reference.provenance.shape
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(levels, (first.count, *shape), generator=generator).to(type_of_levels(levels))
    held_out = _held_out(first, reference)
    return [*([] if held_out is None else [held_out]), first.for_scale("noise", noise)]


def _held_out(candidate: Candidate, reference: Reference) -> Candidate | None:
    """Test images, as many as the samples of a candidate at most; None where too few were held out."""
    if reference.options.reference != "train" or len(images := spread(reference.data.test, candidate.count)) < FEWEST:
        return None
    return candidate.for_scale("test set", images, held_out=True)


def closest_pairs(samples: Tensor, reference: QualityReference, quality: Quality) -> Image.Image | None:
    """The samples nearest to training images, these below them: two rows of copies, two by pixels, two by features."""
    rows, columns = [], min(CLOSEST, len(samples))
    if quality.copies:
        shown = quality.copies[:columns]
        assert reference.training is not None
        images = [reference.training[0][copy.image] for copy in shown]
        images = [image.flip(-1) if copy.mirrored else image for image, copy in zip(images, shown, strict=True)]
        missing = [torch.full_like(images[0], reference.provenance.levels - 1)] * (columns - len(shown))
        rows += [torch.stack([*(samples[copy.sample] for copy in shown), *missing]), torch.stack([*images, *missing])]
    for copies in (quality.pixel_copies, quality.feature_copies):
        if copies is not None:
            chosen = copies.distances.argsort()[:columns].cpu()
            rows += [samples[chosen], reference.images[copies.neighbours[chosen.to(copies.neighbours.device)].cpu()]]
    if not rows:
        return None
    x = Dequantizer(quality.reference.levels).center(torch.cat(rows))
    return pictures.grid(x, columns=columns)


def _plain(copy: Copy, candidate: Candidate) -> dict[str, Any]:
    """A copy for a record, with the names of the sample's file and of the training image's where they have one."""
    name = str(copy.sample) if candidate.names is None else candidate.names[copy.sample]
    known = candidate.data.train_names
    file = known[copy.image] if copy.image < len(known) and not known[copy.image].isdecimal() else None
    named = {} if file is None else {"file": file}
    return {"name": f"sample {name}" if name.isdecimal() else name, "exact": copy.exact, **asdict(copy), **named}


def _mirror(
    candidate: Candidate, row: Row, question: dict[str, Any], folder: Path, closest: Path, choice: str
) -> Path | None:
    """Log once, in the group of the run that was measured; images that are there belong to no run."""
    if candidate.subject is None or "class" in question or (folder / "wandb").exists():
        return None
    logging = candidate.subject.model.config.logging
    values = {f"quality/{name}": value for name, value in row.figures.items() if value is not None}
    images = {"quality/closest": Image.open(closest).convert("RGB")} if closest.is_file() else {}
    config = {"model": candidate.subject.facts, "question": question}
    group = logging.group or candidate.name
    return mirror.log(folder, choice, logging.project, group, config, values, {}, images)
