"""What `quality` measures: samples drawn from a model, or existing images, and the data they are compared with."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import IMAGE_SETS
from ...data import ImageData, load_images
from ...data.files.alike import Alike, EightBitsError
from ...data.files.image_files import load_files
from ...data.files.raw_images import RawImages
from ...denoisers.condition import LABEL
from ...errors import UserError, reported_as
from ...likelihood import Dequantizer
from ...models import DiffusionModel, TrainedModel
from ...models.adopt import AdoptedModel
from ...models.tuning_cache import reported_tuning
from ...networks.parts import CLASSES
from ...numerics.random import fixed_subset
from ...sampling.settings import SETTINGS, given_settings
from ..evaluate.given import CONDITION, NONE, given_to_samples
from ..options import flag
from ..preflight import are_images, check_reference
from ..records import FOLDER
from ..sample.condition import parts_of
from ..subjects import CONDITION_DIGEST, Subject, load_images_of, load_subject
from .arguments import OF_REFERENCE

DRAWN = 1000
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Candidate:
    """Samples to measure.

    Args:
        name: The name of the run or the file.
        place: The model's file, or the place of the images.
        folder: The folder of its results.
        data: The data it is compared with, all splits.
        count: The number of samples.
        question: What identifies the samples, as plain values.
        subject: The model; None for existing images.
        draw: Makes the samples, uint8 level indices, and returns the network evaluations per sample.
        mirrored: Whether mirror images of training images count as copies: where they are an augmentation.
        names: The names of the samples' files; None for drawn samples.
        classes: By part of the condition that is one of classes, or `label`: the class of each sample, that which it
            was drawn under, or that of the test image whose condition it has.
        held_out: Whether they are the test images that the nearness to training images is measured by.
    """

    name: str
    place: Path
    folder: Path
    data: ImageData
    count: int
    question: dict[str, Any]
    subject: Subject | None
    draw: Callable[[torch.device, Progress], tuple[Tensor, float]]
    mirrored: bool
    names: Sequence[str] | None = None
    classes: Mapping[str, Tensor] = field(default_factory=dict)
    held_out: bool = False

    def for_scale(self, name: str, images: Tensor, held_out: bool = False) -> Candidate:
        """Existing images beside these samples, of one folder, data and reference."""
        return replace(
            self, name=name, folder=self.folder / "scale", count=len(images), question=_of_images(images), subject=None,
            draw=lambda *_: (images, 0.0), names=None, classes={}, held_out=held_out,
        )  # fmt: skip


def load_candidate(text: str, options: argparse.Namespace) -> Candidate:
    """The run, model or images named on the command line.

    Raises:
        UserError: For what is not there or does not fit its data, and options that the model does not take.
    """
    return _images(text, options) if are_images(text, options.runs) else _model(text, options)


def _model(text: str, options: argparse.Namespace) -> Candidate:
    subject = load_subject(text, options.runs)
    model = subject.model
    given = given_settings(options, "figure")
    for name in given:
        if name not in model.sampling_options:
            figure = [option for option, setting in SETTINGS.items() if setting.figure]
            taken = ", ".join(flag(option) for option in figure if option in model.sampling_options)
            raise UserError(f"{flag(name)}: {text} is of family '{model.config.family}', which takes {taken}")
    count = options.samples or DRAWN
    data, flip = load_images_of(subject, moved(options)), model.config.data.flip
    denoiser = getattr(model, "denoiser", None)
    label = given.pop("label", None)
    if options.by_class and label is None and options.condition is None and getattr(denoiser, "num_classes", 0):
        label = OF_REFERENCE
    labels, numbers = _labels(model, label, data, options.reference, count)
    requested = [NONE] if label is not None else options.condition
    if label is not None and options.condition is not None:
        raise UserError("--label, --condition: use only one of them")
    condition, rows = given_to_samples(model, data, requested, count)
    if "guidance" in given and label is None and condition is None:
        raise UserError("--guidance: steers towards a class; give --label too, or a --condition")
    cond = labels if condition is None else {"cond": condition.of(torch.arange(count))}
    classes = dict(labels)
    if condition is not None:
        known = {*data.columns, *([] if data.train_labels is None else [LABEL])}
        found = {part.name: condition.values.get(part.name) for part in parts_of(model) if part.kind == CLASSES}
        classes |= {name: v.expand(count) for name, v in found.items() if v is not None and name in known}
    if rows is not None and data.test_labels is not None:
        classes[LABEL] = data.test_labels[rows]
    if options.by_class and not classes:
        raise UserError(
            f"--by-class: the samples of {text} are of no class; accepted: a model of classes "
            "(denoiser.conditional=true, or classes in denoiser.condition), with --label reference or --condition data"
        )
    settings = model.sampling_settings(given)
    kept: list[tuple[Tensor, float]] = []  # of the whole, and of each class

    def draw(device: torch.device, progress: Progress) -> tuple[Tensor, float]:
        assert model.dequantizer is not None
        if kept:
            return kept[0]
        model.to(device)
        with reported_tuning(options.tuning_seconds):
            drawing = model.resolved(settings)  # what is tuned to the model is no cost of its samples
        with model.counted() as counter:
            size = options.batch_size
            x = model.sample(count, options.seed, batch_size=size, progress=progress, **drawing, **cond)
        model.to("cpu")
        kept.append((model.dequantizer.quantize(x.cpu()), counter.rows / count))
        return kept[0]

    question = {"weights": subject.weights, "settings": settings, "seed": options.seed, **numbers}
    question |= {} if condition is None else {CONDITION: condition.requested, CONDITION_DIGEST: condition.digest}
    folder, place = subject.home / FOLDER / "quality", Path(model.source)
    mirrored = data.flip if flip is None else flip
    return Candidate(
        subject.name, place, folder, data, count, question, subject, draw, mirrored, classes=classes
    )  # fmt: skip


def _labels(
    model: TrainedModel, label: str | None, data: ImageData, split: str, count: int
) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """The argument `label` of a draw of `count` samples, and how many of them are of each class: for --label.

    In the proportion of the reference no class is off by a sample or more.
    """
    if label is None and isinstance(model, AdoptedModel) and model.adopted.labels.is_needed:
        raise UserError(f"--label: the network needs one of every sample; --label {OF_REFERENCE} draws all classes")
    if label is None:
        return {}, {}
    assert isinstance(model, DiffusionModel)  # other families take no label
    known: Tensor | None = getattr(data, f"{split}_labels")
    count_of = {part.name: part.size for part in parts_of(model)}  # `sample` gives a label to the part of that name
    if LABEL not in count_of:
        raise UserError(f"--label: found '{label}'; {model.source} was trained without labels")
    if label != OF_REFERENCE:
        with reported_as({"label": "--label"}):
            chosen = torch.tensor(model.class_numbers(label)).expand(count)
    elif known is None:
        raise UserError(f"--label {OF_REFERENCE}: the {split} images of '{data.name}' have no classes")
    else:
        chosen = known.sort().values[((torch.arange(count) + 0.5) * (len(known) / count)).long()]
    return {LABEL: chosen}, {"classes": chosen.bincount(minlength=count_of[LABEL]).tolist()}


def _images(text: str, options: argparse.Namespace) -> Candidate:
    if options.data is None:
        raise UserError(f"--data: {text} holds images; name the data set that they are to be compared with")
    if options.by_class or options.condition is not None:
        raise UserError(f"--by-class, --condition: {text} holds images, of no condition; leave them out")
    data = _reference_data(options.data, options.runs, options.download)
    raw = _files(text, data)
    pixels = raw.images
    if tuple(pixels.shape[1:]) != data.shape:
        raise UserError(f"{text}: holds images of {tuple(pixels.shape[1:])}; those of '{data.name}' are {data.shape}")
    if options.samples is not None and options.samples > len(pixels):
        raise UserError(f"--samples: found {options.samples}; {text} holds {len(pixels)} images")
    rows = fixed_subset(len(pixels), options.samples)
    pixels, names = pixels[rows], [raw.keys[int(row)] for row in rows]
    images = Dequantizer(data.levels).regraded(pixels, raw.levels or 256)
    path = Path(text)
    question, folder = _of_images(images), Path("evaluations") / path.stem / FOLDER / "quality"
    return Candidate(
        path.name, path, folder, data, len(images), question, None, lambda *_: (images, 0.0), data.flip, names
    )


def _of_images(images: Tensor) -> dict[str, Any]:
    """What identifies existing images."""
    return {"images_sha256": hashlib.sha256(images.numpy().tobytes()).hexdigest()}


def _files(text: str, data: ImageData) -> RawImages:
    """Images in the levels and the channels of the data that they are compared with."""
    alike = Alike.of(data.shape[0], data.levels)
    try:
        with reported_as({"data.path": text}):
            return load_files(Path(text), how=alike)
    except EightBitsError as error:
        raise UserError(f"{text}: has images of 256 levels; those of '{data.name}' have {data.levels:,}") from error


def moved(options: argparse.Namespace) -> str | None:
    """Where the images of runs are now: what --data names, where that is a path of images, and all that is measured are
    runs; next to images to measure it is what these are held against."""
    runs_alone = not any(are_images(text, options.runs) for text in options.run)
    is_path = options.data is not None and options.data not in IMAGE_SETS and are_images(options.data, options.runs)
    return options.data if is_path and runs_alone else None


def _reference_data(text: str, runs_dir: str, download: bool) -> ImageData:
    check_reference(text, runs_dir)
    with reported_as({"data.path": "--data", "data.name": "--data"}):
        if text in IMAGE_SETS:
            return load_images(text, download=download)
        if Path(text).exists() and are_images(text, runs_dir):
            return load_images("folder", path=text)
    return load_images_of(load_subject(text, runs_dir))
