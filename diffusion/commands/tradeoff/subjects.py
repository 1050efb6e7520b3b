"""What `tradeoff` samples, and its reference: a trained denoiser, or one in closed form."""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import imported
from ...data import ImageData, SplitData
from ...denoisers import Denoiser
from ...denoisers.exact import GaussianMixture
from ...errors import UserError, choose
from ...likelihood import Dequantizer
from ...metrics import FeatureStatistics, KernelReference, extract, spread
from ...models.load import DiffusionModel
from ...schedules import Cosine
from ..app import ProgressBar
from ..evaluate.given import CONDITION, given_to_samples
from ..features import choose_extractor, reference_of
from ..preflight import EXACT, EXACT_MODELS
from ..records import FOLDER
from ..subjects import CONDITION_DIGEST, images_of, load_data_of, load_subject

# Features of the reference that KID takes; its error from more of them is far below that from the samples.
KERNEL_IMAGES = 4000
_DRAWS, _DRAWS_SEED = 10_000, 1
_MOST_NUMBERS = 1024  # in a row: FID takes their covariance
_F64 = torch.float64


@dataclass(frozen=True, eq=False)
class Subject:
    """A denoiser with a reference for its samples.

    Args:
        name: What tables call it.
        folder: Where the figures are kept.
        tuned: A context that knows what was tuned to the model, and keeps what is tuned in it.
        denoiser: On its device.
        dtype: Of the solvers' state.
        tolerance: Of the solve that samples are compared with.
        identity: What identifies the model and the reference, as plain values.
        reference: The reference in words.
        features: From samples, as the denoiser makes them, to features.
        statistics: Of the reference's features.
        some: Of the reference, the features of `KERNEL_IMAGES` at most, the first in the fixed order.
        log_prob: The true log-density, where it is known.
        second_moment: E|x|^2 / D of the data, in the denoiser's units.
        project, group: Of W&B.
        cond: What the samples are drawn under; None for no condition.
    """

    name: str
    folder: Path
    tuned: Callable[[], AbstractContextManager[None]]
    denoiser: Denoiser
    dtype: torch.dtype
    tolerance: float
    identity: Mapping[str, Any]
    reference: str
    features: Callable[[Tensor], Tensor]
    statistics: FeatureStatistics
    some: KernelReference
    log_prob: Callable[[Tensor], Tensor] | None
    second_moment: float
    project: str
    group: str | None
    cond: Mapping[str, Tensor | None] | None = None


def load(options: argparse.Namespace, device: torch.device, bar: ProgressBar) -> Subject:
    """The model that the command line names.

    Raises:
        UserError: For one that is not there or is not sampled by a solver, and features that do not fit.
    """
    return _exact(options, device) if options.run.startswith(EXACT) else _trained(options, device, bar)


def mixture_2d() -> GaussianMixture:
    """8 modes of deviation 0.08 in the plane, their means uniform in [-1, 1]: narrow modes, which solvers differ on."""
    means = 2.0 * torch.rand(8, 2, dtype=_F64, generator=torch.Generator().manual_seed(0)) - 1.0
    return GaussianMixture(means, torch.full((8,), 0.08, dtype=_F64), _path())


def mixture_3x8x8() -> GaussianMixture:
    """10 modes of 3x8x8 images, of deviations 0.08 to 0.2."""
    generator = torch.Generator().manual_seed(0)
    means = 2.0 * torch.rand(10, 3, 8, 8, dtype=_F64, generator=generator) - 1.0
    return GaussianMixture(means, 0.08 + 0.12 * torch.rand(10, dtype=_F64, generator=generator), _path())


def _path() -> Cosine:
    return Cosine(log_snr_min=-10.0, log_snr_max=14.0)


def _exact(options: argparse.Namespace, device: torch.device) -> Subject:
    name = choose(EXACT.rstrip(":"), options.run.removeprefix(EXACT), EXACT_MODELS)
    if options.condition is not None:
        raise UserError(f"--condition: {options.run} has none; leave it out")
    _refuse_features(options)
    model = imported(EXACT_MODELS[name])().to(device)
    drawn = model.draw(_DRAWS, _DRAWS_SEED).flatten(1)
    return Subject(
        name=options.run,
        folder=Path(FOLDER) / name / "tradeoff",
        tuned=nullcontext,
        denoiser=model,
        dtype=_F64,
        tolerance=1e-8,
        identity={"model": options.run, "sha256": _digest(drawn), "features": "the numbers themselves"},
        reference=f"{_DRAWS} exact draws; features: the numbers themselves",
        features=lambda x: x.flatten(1),
        statistics=FeatureStatistics.of(drawn),
        some=KernelReference(spread(drawn, KERNEL_IMAGES)),
        log_prob=model.log_prob,
        second_moment=_second_moment(model),
        project="diffusion",
        group=name,
    )


def _trained(options: argparse.Namespace, device: torch.device, bar: ProgressBar) -> Subject:
    subject = load_subject(options.run, options.runs, device, points=True)
    model = subject.model
    if not isinstance(model, DiffusionModel):
        raise UserError(f"{options.run}: is of family '{model.config.family}', whose samples need no solver")
    data = load_data_of(subject, options.data)
    given, _ = given_to_samples(model, data, options.condition, options.n)
    if isinstance(data, ImageData):
        of = _of_images(options, model, data, device, bar)
    else:
        of = _of_array(options, model, data)
    logging = model.config.logging
    requested = {} if given is None else {CONDITION: given.requested, CONDITION_DIGEST: given.digest}
    return Subject(
        name=subject.name,
        folder=subject.home / "tradeoff",
        tuned=model.tuned,
        denoiser=model.denoiser,
        dtype=torch.float32,
        tolerance=1e-5,
        identity={"model": subject.weights, "reference": of.identity, **requested},
        reference=of.words,
        features=of.features,
        statistics=of.statistics,
        some=KernelReference(spread(of.values, KERNEL_IMAGES)),
        log_prob=None,
        second_moment=of.second_moment,
        project=logging.project,
        group=logging.group or subject.name,
        cond=None if given is None else given.values,
    )


@dataclass(frozen=True, eq=False)
class _Reference:
    """What a trained model's samples are compared with, as in `Subject`; `values` are the features."""

    identity: Mapping[str, Any]
    words: str
    features: Callable[[Tensor], Tensor]
    statistics: FeatureStatistics
    values: Tensor
    second_moment: float


def _of_images(
    options: argparse.Namespace, model: DiffusionModel, data: ImageData, device: torch.device, bar: ProgressBar
) -> _Reference:
    extractor, dequantizer = choose_extractor(options.features, data, options.download), model.dequantizer
    assert dequantizer is not None  # images have levels
    made = reference_of(
        data, "train", extractor, device=device, batch_size=options.batch_size,
        progress=lambda *done: bar.named("features of the reference", *done),
    )  # fmt: skip

    def features(x: Tensor) -> Tensor:
        images = dequantizer.quantize(x.clamp(-1.0, 1.0).float().cpu())
        return extract(extractor, images, device, options.batch_size)

    return _Reference(
        identity=asdict(made.provenance),
        words=f"{len(data.train)} train images of {data.name}; features: {extractor.name}",
        features=features,
        statistics=made.statistics,
        values=made.features,
        second_moment=_moment_of_images(data.train, dequantizer, model.config.objective.dequantize),
    )


def _of_array(options: argparse.Namespace, model: DiffusionModel, data: SplitData) -> _Reference:
    dims = math.prod(data.shape)
    _refuse_features(options)
    if dims > _MOST_NUMBERS:
        raise UserError(f"{options.run}: its rows are of {dims:,} numbers; accepted: up to {_MOST_NUMBERS:,}")
    rows, identity = images_of(data, "train", min(len(data.train), _DRAWS))
    z = (rows if model.normalizer is None else model.normalizer.normalize(rows)).double().flatten(1).cpu()
    return _Reference(
        identity=identity,
        words=f"{len(rows)} training rows of {data.name}; features: the numbers themselves, normalised as in training",
        features=lambda x: x.double().flatten(1).cpu(),
        statistics=FeatureStatistics.of(z),
        values=z,
        second_moment=float(z.square().mean()),
    )


def _refuse_features(options: argparse.Namespace) -> None:
    if options.features is not None:
        raise UserError(f"--features: {options.run} has numbers, which are their own features; leave it out")


def _second_moment(model: GaussianMixture) -> float:
    each = model.means.flatten(1).square().mean(1) + model.stds.square()
    return float(model.weights @ each)


def _moment_of_images(images: Tensor, dequantizer: Dequantizer, spread_over_bins: bool) -> float:
    """E|x|^2 / D of images as a denoiser is trained on them: the centres of bins, or uniform within them."""
    counts = torch.bincount(images.flatten().int(), minlength=dequantizer.levels).double()
    centres = float(counts @ dequantizer.places().square() / counts.sum())
    return centres + (dequantizer.width**2 / 12.0 if spread_over_bins else 0.0)


def _digest(values: Tensor) -> str:
    """A hash of the first draws, rounded, since the last bits differ between devices."""
    return hashlib.sha256(values[:100].cpu().mul(1e6).round().numpy().tobytes()).hexdigest()
