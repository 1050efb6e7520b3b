"""Control over what sample.py draws: guidance, inpainting, restoration, and variations of an image.

Each wraps the model's denoiser in another, or the sampler in another, so that all samplers and options work as before.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Integer
from torch import Tensor

from ... import samplers
from ...data.files.alike import EIGHT_BITS, Alike
from ...data.files.decoding import ImageFile, decode
from ...denoisers.condition import LABEL
from ...denoisers.given import type_of_levels
from ...denoisers.guidance import ALWAYS, Autoguidance, ClassifierGuided, Interval, PathClassifier
from ...denoisers.inverse_problems import METHODS, Blur, Downsample, Grey, LinearOperator, Mask, Observation
from ...denoisers.inverse_problems.operators import LUMA
from ...errors import UserError, choose
from ...models import noisy_classifier
from ...models.load import DiffusionModel, TrainedModel, load
from ...numerics.placement import weights_on
from ...samplers import LinearSampler, RePaint, Sampler, SDEdit
from ...samplers.sdedit import log_snr_of_strength
from ...sampling.settings import CONTROLS, fields_of_sampler
from ...storage import runs
from ..options import flag
from .record import SampleRecord

REPAINT = "repaint"
DEGRADATIONS = ("blur", "downsample", "grey")
_WHITE = 0.9  # of a mask: JPEG takes away a little of 1
_GOES_WITH = {
    "mask": "--inpaint",
    "degradation": "--restore",
    "posterior": "--inpaint or --restore",
    "observation_noise": "--inpaint or --restore",
}


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling options; with an observation the default sampler is ancestral, whose fresh noise corrects errors.

    Its grid ends at log-SNR 9.25 even with few steps, since an observation is matched only up to the remaining noise.
    """
    observed = {"sampler": "ancestral", "grid": "log-snr"} if "inpaint" in given or "restore" in given else {}
    return {**observed, **given}


def controlled(model: TrainedModel, record: SampleRecord, runs_dir: str) -> tuple[TrainedModel, SampleRecord]:
    """Apply the control options of a record to a model.

    Args:
        model: The model.
        record: Its settings may hold those of `CONTROLS`.
        runs_dir: Where a guide is looked up by name.

    Returns:
        The model with its denoiser wrapped, and the record with the settings that are left for its sampler.

    Raises:
        UserError: For options that do not go together, and images that do not fit the model.
    """
    given = record.settings
    if "guidance_interval" in given:
        Interval(*given["guidance_interval"])  # refused before anything is written
        if given.get("guidance", 1.0) == 1.0 and "classifier" not in given:
            raise UserError("--guidance-interval: needs --guidance, which is 1 (off); try --guidance 2")
    if not any(name in given for name in CONTROLS):
        return model, record
    if not isinstance(model, DiffusionModel):  # only a picture's record can ask it: the command line is checked before
        requested = ", ".join(name for name in CONTROLS if name in given)
        raise UserError(f"{requested}: {model.source} is of family '{model.config.family}', which does not accept it")
    left = {name: value for name, value in given.items() if name not in CONTROLS}
    if "guide" in given and "classifier" in given:
        raise UserError("--guide, --classifier: use only one of them")
    if "classifier" in given:
        model = _classified(model, given["classifier"], left)
    if "guide" in given:
        model = _guided(model, given["guide"], left, runs_dir)
    if "condition" in given:
        from .condition import read_conditions

        cond = read_conditions(model, given["condition"], None if "inpaint" in given else given.get("mask"))
        if LABEL in cond and left.get("label") is not None:
            raise UserError(f"--label, --condition: both say '{LABEL}'; use only one of them")
        left["cond"] = cond
    if "edit" in given:
        left["sampler"] = _edited(model, given, left)
    elif "strength" in given:
        raise UserError("--strength: needs --edit")
    if "inpaint" in given or "restore" in given:
        model = _observed(model, given, left)
    else:
        for name, other in _GOES_WITH.items():
            if name in given and not (name == "mask" and "condition" in given):
                raise UserError(f"{flag(name)}: needs {other}")
    return model, replace(record, settings=left)


def _guided(model: DiffusionModel, path: str, left: dict[str, Any], runs_dir: str) -> DiffusionModel:
    """The model under autoguidance; takes its weight and interval out of the settings that are left."""
    weight = left.pop("guidance", 1.0)
    if weight == 1.0:
        raise UserError("--guide: needs --guidance, which is 1 (off); try --guidance 2")
    interval = Interval(*left.pop("guidance_interval")) if "guidance_interval" in left else ALWAYS
    guide = load(path, weights_on(model.denoiser), runs_dir)
    if not isinstance(guide, DiffusionModel):
        raise UserError(f"--guide: {guide.source} is of family '{guide.config.family}'; needs a diffusion model")
    denoiser = (
        guide.denoiser.at_size(left["size"]) if "size" in left else guide.denoiser
    )  # where it begins is no matter
    return model.around(Autoguidance(model.denoiser, denoiser, weight, interval))


def _classified(model: DiffusionModel, path: str, left: dict[str, Any]) -> DiffusionModel:
    """The model under classifier guidance; takes its weight and interval out of the settings that are left."""
    if left.get("label") is None:
        raise UserError("--classifier: steers towards a class; give --label too")
    interval = Interval(*left.pop("guidance_interval")) if "guidance_interval" in left else ALWAYS
    network = noisy_classifier.load(runs.resolve_classifier(path))
    if network.shape != model.facts.shape:
        raise UserError(f"--classifier: {path} is of images {network.shape}; the model's are {model.facts.shape}")
    if left["label"] >= network.num_classes:
        raise UserError(f"--label: found {left['label']}; the classifier {path} knows 0 to {network.num_classes - 1}")
    classifier = PathClassifier(network, model.denoiser.schedule).to(weights_on(model.denoiser))
    weight = left.pop("guidance", 1.0)
    return model.around(ClassifierGuided(model.denoiser, classifier, network.num_classes, weight, interval))


def _edited(model: DiffusionModel, given: Mapping[str, Any], left: dict[str, Any]) -> SDEdit:
    """The sampler, starting from an image with noise; takes its fields out of the settings that are left."""
    if "inpaint" in given or "restore" in given:
        raise UserError("--edit: not with --inpaint or --restore; use only one of them")
    if len(model.facts.shape) != 3:
        raise UserError(f"--edit: is for images of levels; '{model.facts.name}' has none")
    level = log_snr_of_strength(given.get("strength", 0.5))
    return SDEdit(image_for(model, "--edit", given["edit"]), level, _sampler(model, left))


def _sampler(model: DiffusionModel, left: dict[str, Any]) -> Sampler:
    """The sampler of the settings that are left; takes its fields out of them."""
    options = {name: left.pop(name) for name in fields_of_sampler(left)}
    if options.get("variance") == "analytic":
        options["moments"] = model.moments
    return samplers.build(left["sampler"], **options)


def _observed(model: DiffusionModel, given: Mapping[str, Any], left: dict[str, Any]) -> DiffusionModel:
    """The model given a part of an image, or a degraded one; RePaint takes the sampler's place in what is left."""
    if "inpaint" in given and "restore" in given:
        raise UserError("--inpaint, --restore: use only one of them")
    if len(model.facts.shape) != 3 or model.dequantizer is None:
        raise UserError(f"--inpaint, --restore: are for images of levels; '{model.facts.name}' has none")
    operator, y = _inpainting(model, given) if "inpaint" in given else _restoration(model, given)
    posterior = choose("--posterior", given.get("posterior", next(iter(METHODS))), (*METHODS, REPAINT))
    if posterior == REPAINT:
        if not isinstance(operator, Mask):
            raise UserError(f"--posterior {REPAINT}: fills in (--inpaint); to restore take {', '.join(METHODS)}")
        if "observation_noise" in given:
            raise UserError(f"--observation-noise: not with --posterior {REPAINT}, which assumes no observation noise")
        step = _sampler(model, left)
        if not isinstance(step, LinearSampler):
            raise UserError(
                f"--sampler: --posterior {REPAINT} takes ancestral, ddim or euler-maruyama; found '{left['sampler']}'"
            )
        left["sampler"] = RePaint(operator.adjoint(y), operator.kept, step)
        return model
    # An image is known to a level; the error within is that of rounding.
    noise_std = given.get("observation_noise", model.dequantizer.width / math.sqrt(12.0))
    return model.around(METHODS[posterior](model.denoiser, Observation(operator, y, noise_std)))


def _inpainting(model: DiffusionModel, given: Mapping[str, Any]) -> tuple[LinearOperator, Tensor]:
    if "mask" not in given:
        raise UserError("--inpaint: needs --mask, an image that is white where --inpaint is to be filled")
    if "degradation" in given:
        raise UserError("--degradation: needs --restore")
    shape = model.facts.shape
    image = image_for(model, "--inpaint", given["inpaint"])
    operator = Mask(known_part(given["mask"], shape).expand(shape))
    return operator, operator(image)


def known_part(mask: str, shape: tuple[int, ...]) -> Tensor:
    """Where an image of this shape is known, by the picture of a mask: boolean (1, H, W)."""
    shown = read_image("--mask", mask, (1, *shape[1:]))
    white = shown > 0.0
    if grey := int((shown.abs() < _WHITE).sum()):
        print(
            f"note: --mask: {grey} of {shown.numel()} pixels of {mask} are grey; those nearer to white are "
            "filled in, those nearer to black are kept",
            file=sys.stderr,
        )
    if not bool(white.any()):
        raise UserError(f"--mask: {mask} has no white pixel; white is filled, black is kept")
    return ~white[0]


def _restoration(model: DiffusionModel, given: Mapping[str, Any]) -> tuple[LinearOperator, Tensor]:
    if "degradation" not in given:
        raise UserError(f"--restore: needs --degradation; accepted: {', '.join(DEGRADATIONS)}")
    if "mask" in given:
        raise UserError("--mask: needs --inpaint")
    kind, _, value = given["degradation"].partition(":")
    choose("--degradation", kind, DEGRADATIONS)
    path, (channels, height, width) = given["restore"], model.facts.shape
    if value and kind != "blur":
        raise UserError(f"--degradation: found '{given['degradation']}'; only blur takes a number (blur:1.5)")
    if kind == "blur":
        try:
            operator = Blur(float(value or 1.0))
        except ValueError as error:
            raise UserError(f"--degradation: found 'blur:{value}'; needs a deviation in pixels, blur:1.5") from error
        return operator, image_for(model, "--restore", path)
    if kind == "grey":
        if channels != len(LUMA):
            raise UserError(f"--degradation grey: the model's images have {channels} channels; needs {len(LUMA)}")
        return Grey(), read_image("--restore", path, (1, height, width), alike_to(model))
    small = read_image("--restore", path, (channels, None, None), alike_to(model))
    factor = height // small.shape[-2]
    if factor < 2 or (factor * small.shape[-2], factor * small.shape[-1]) != (height, width):
        found, needed = f"{small.shape[-1]} x {small.shape[-2]}", f"{width} x {height}"
        raise UserError(f"--restore: {path} is {found} pixels; the model's {needed} must be a multiple of it")
    return Downsample(factor), small


def of_images(model: TrainedModel, option: str) -> DiffusionModel:
    """The model, if it has a path from noise to an image."""
    if not isinstance(model, DiffusionModel) or len(model.facts.shape) != 3 or model.dequantizer is None:
        raise UserError(f"{option}: {model.source} has no path from noise to an image; a diffusion model of images has")
    return model


def alike_to(model: TrainedModel, channels: int | None = None) -> Alike:
    """How files are read as the images of a model are, or as its paired fields of so many channels."""
    facts = model.facts
    return Alike.of(channels or facts.shape[0], facts.levels or 256, model.config.data.bits)


def image_for(model: TrainedModel, option: str, path: str) -> Tensor:
    """An image file as a model sees its images, (1, *shape) in [-1, 1]; as `read_image`."""
    return read_image(option, path, model.facts.shape, alike_to(model))


def levels_for(model: TrainedModel, option: str, path: str) -> Integer[Tensor, "1 c h w"]:
    """An image file in the levels of a model that has some; errors as `read_image`."""
    assert model.dequantizer is not None
    alike, own = alike_to(model), model.dequantizer.levels
    images = _values(option, path, model.facts.shape, alike).round().to(type_of_levels(alike.most + 1))
    return images if own == alike.most + 1 else model.dequantizer.regraded(images, alike.most + 1)


def read_image(
    option: str,
    path: str,
    shape: tuple[int, int | None, int | None] | tuple[int, ...],
    alike: Alike = EIGHT_BITS,
) -> Tensor:
    """An image file as (1, *shape) in [-1, 1], resized and cropped where a shape is required, which is reported.

    Args:
        option: What it was given for, for messages.
        path: The file.
        shape: Channels, height and width; None for those of the file.
        alike: How it is read.

    Raises:
        UserError: For a file that is not there, no image, or of other sides or channels.
    """
    return _values(option, path, shape, alike) / (0.5 * alike.most) - 1.0


def _values(
    option: str, path: str, shape: tuple[int, int | None, int | None] | tuple[int, ...], alike: Alike
) -> Tensor:
    """As `read_image`, from 0 to `alike.most`; not whole where colours are turned grey."""
    file = Path(path)
    if not file.is_file():
        found = "is no file" if file.exists() else "does not exist"
        raise UserError(f"{option}: {path} {found}; an image file is accepted")
    channels, height, width = shape
    size = height if height == width else None
    image = ImageFile(file.name, path, file.read_bytes)
    read = partial(decode, image, how=alike)
    whole = read(None)
    fitting = whole if size is None or whole.shape[:2] == (size, size) else read(size)
    pixels, changes = torch.from_numpy(fitting.copy()).float(), []
    x = pixels.reshape(*pixels.shape[:2], -1).permute(2, 0, 1)
    if height is not None and tuple(x.shape[1:]) != (height, width):
        raise UserError(f"{option}: {path} is {x.shape[2]} x {x.shape[1]} pixels; needs {width} x {height}")
    if fitting is not whole:
        changes.append(f"{whole.shape[1]} x {whole.shape[0]} pixels resized and cropped to {size} x {size}")
    if len(x) == 3 and channels == 1:
        x = Grey()(x[None])[0]
        changes.append("turned grey")
    if len(x) != channels and (len(x), channels) != (1, 3):
        raise UserError(f"{option}: {path} has {len(x)} channels; needs {channels}")
    if changes:
        print(f"{option}: {path}: {', '.join(changes)}", file=sys.stderr)
    return x.expand(channels, *x.shape[1:])[None]
