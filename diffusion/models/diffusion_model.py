"""A trained denoiser as a model: samples from any solver, likelihoods from the flow or the variational bound."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Integer
from PIL import Image
from torch import Tensor

from .. import samplers
from ..config import AUTO_GRID, Config, EvaluationConfig
from ..data import pictures
from ..data.class_names import check_number, names_of, number_of
from ..denoisers.condition import LABEL
from ..denoisers.denoiser import Denoiser
from ..denoisers.evaluations import EvaluationCount, count_evaluations
from ..denoisers.given import real_data
from ..errors import UserError
from ..likelihood import Estimate, measure
from ..samplers import ODE, Ancestral, Moments
from ..sampling.fit import DEFAULT_STEPS, FITTED, Progress, fitted_to, to_numbers
from ..sampling.fitted import Fitted
from ..sampling.sample import grid_for, labels_for, sample, sampler_for, unnamed_sampler, with_label
from ..sampling.settings import SETTINGS, fields_of_sampler
from ..schedules.fitted_start import FittedStart
from ..schedules.time_grids import later_end
from .build import Data, DataFacts
from .check import Check, check, data_of
from .trained_model import TrainedModel
from .tuning_cache import kept_grids, moments_of

PATH_IMAGES, PATH_TIMES = 6, 12
# A density that is all at the centres of bins has the noise of t_min for its width: of exact denoisers, bits/dim at a
# tolerance of 1e-4 are 3e-3 off, at 1e-5 they are 1e-4 off (at 256 levels, 16 and 192 dimensions, VP and cosine).
CENTRES_TOLERANCE = 1e-5
# Dimensions of continuous data up to which the trace of the flow is exact by default, at the cost of one backward pass
# for each; above, it is Hutchinson's, which is unbiased.
EXACT_TRACE = 16


class DiffusionModel(TrainedModel):
    """A trained denoiser with the map between grey levels and its inputs.

    Args:
        denoiser: The denoiser.
        config, facts, source, step: As `TrainedModel`.
        cache_at: The file that grids and moments of the model are kept next to, by default its own; where there is no
            such file they stay in memory.

    Attributes:
        start: Where draws and likelihoods begin if nothing else is said (`fitted_start`); None: in noise.
    """

    sampling_options: ClassVar[tuple[str, ...]] = tuple(
        name for name, setting in SETTINGS.items() if setting.option and not setting.codes
    )

    def __init__(
        self,
        denoiser: Denoiser,
        config: Config,
        facts: DataFacts,
        source: str = "",
        step: int = 0,
        cache_at: str | None = None,
    ):
        super().__init__(denoiser, config, facts, source, step)
        self.denoiser = denoiser
        self.cache_at = source if cache_at is None else cache_at
        self.start: FittedStart | None = None
        self._at_sizes: dict[tuple[int, ...], DiffusionModel] = {}

    def _path(self) -> str:
        return f", path {self.denoiser.schedule!r}"

    @property
    def drawn_with(self) -> Denoiser:
        """The denoiser of plain draws."""
        return self.denoiser

    def around(self, denoiser: Denoiser) -> DiffusionModel:
        """The model with another denoiser, most often one around its own; what is tuned to that stays in memory."""
        around = DiffusionModel(denoiser, self.config, self.facts, self.source, self.step, cache_at="")
        around.start = self.start
        return around

    def begun_in(self, start: FittedStart | None) -> DiffusionModel:
        """The same model, which begins in another start; None: in noise."""
        begun = copy.copy(self)
        begun.start = start
        return begun

    def at_size(self, size: int | Sequence[int]) -> DiffusionModel:
        """As `TrainedModel.at_size`; what is tuned to the new size is kept in memory alone, with its model.

        Raises:
            UserError: Also for a model with a start, which is of data of its own size.
        """
        denoiser = self.denoiser.at_size(size)
        if denoiser is self.denoiser:
            return self
        if self.start is not None:
            raise UserError(
                f"size: found {size}; {self.source or 'the model'} begins in a start of data {self.facts.shape}: "
                "draw at that size, or with another start (--fitted-start diagonal, model.begun_in(None))"
            )
        if denoiser.shape in self._at_sizes:
            return self._at_sizes[denoiser.shape]
        normalizer = None if self.normalizer is None else self.normalizer.at_shape(denoiser.shape)
        facts = replace(self.facts, shape=denoiser.shape, normalizer=normalizer)
        sized = DiffusionModel(denoiser, self.config, facts, self.source, self.step, cache_at="")
        self._at_sizes[denoiser.shape] = sized
        return sized

    def sample(self, n: int, seed: int = 0, **options: Any) -> Float[Tensor, " n *shape"]:
        """Draw n data (`diffusion.sample` has the options); images are cut to [-1, 1], numbers in their own units.

        The optimal variance (`variance="analytic"`, or `samplers.Ancestral("analytic")`) takes the model's own moments,
        estimated once.
        """
        if (size := options.pop("size", None)) is not None:
            return self.at_size(size).sample(n, seed, **options)
        label, cond = with_label(self.denoiser, options.pop("label", None), options.pop("cond", None))
        options |= {} if label is None else {"label": self.class_numbers(label)}
        options |= {} if cond is None else {"cond": cond}
        options = self._begun(self._with_moments(options))
        fitted_now = options.get("sampler") == FITTED and "numbers" not in options
        grid = options.get("grid")  # a name, or the times
        tuned = (isinstance(grid, str) and grid == AUTO_GRID) or fitted_now
        with self.tuned() if tuned else nullcontext():
            x = sample(self.drawn_with, n, seed=seed, **options)
        if self.facts.levels is not None:
            return x.clamp(-1.0, 1.0)
        return x if self.normalizer is None else self.normalizer.denormalize(x)

    def _begun(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a draw or a likelihood, begun where the model begins, unless they say where."""
        said = self.start is None or options.get("noise") is not None or options.get("fitted_start") is not None
        return dict(options) if said else {**options, "fitted_start": self.start}

    def _with_moments(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options of a draw, with the model's own moments for the optimal variance, by name or of a sampler."""
        sampler = options.get("sampler")
        if options.get("variance") == "analytic":
            return {"moments": self.moments, **options}
        if isinstance(sampler, Ancestral) and sampler.variance == "analytic" and sampler.moments is None:
            return {**options, "sampler": replace(sampler, moments=self.moments)}
        return options

    def class_numbers(self, label: Any) -> Any:
        """Labels with the names of classes in them as numbers; what has no names in it stays as it is.

        Raises:
            UserError: For a name or a number that no class of the model has; the line names those that there are.
        """
        if isinstance(label, list | tuple):
            return [self.class_numbers(one) for one in label]
        is_part = LABEL in [part.name for part in self.denoiser.parts]
        count = self.facts.num_classes if is_part else self.denoiser.num_classes
        names = names_of(self.facts.provenance, count)
        if isinstance(label, str) and not names:
            raise UserError(f"label: found '{label}'; {self.source or 'the model'} was trained without labels")
        if isinstance(label, str):
            return number_of(label, names)
        is_number = isinstance(label, int) and not isinstance(label, bool)
        return check_number(label, names) if is_number and names else label

    @cached_property
    def moments(self) -> Moments:
        """E||eps_hat||^2 / D over log-SNR, from the file next to the model's or estimated now."""
        return moments_of(self.denoiser, self.cache_at, math.inf if self.facts.levels is None else 1.0)

    def log_likelihood(self, images_uint8: Integer[Tensor, " b *shape"], **options: Any) -> Estimate:
        """The log-probability of images of levels (`diffusion.log_likelihood` has the options).

        The model is evaluated as it was trained. One that was trained on bin centres has no density between them worth
        asking for: its ODE is dequantised by the noise that t_min leaves (`truncated-normal`), at a tolerance of 1e-5.

        Raises:
            UserError: For a model of continuous data (`diffusion.log_density` measures those).
        """
        if self.dequantizer is None:
            raise UserError("log_likelihood: this model's data are continuous; use log_density")
        options = self._begun({**self._as_trained(options), **options})
        return measure.log_likelihood(self.denoiser, images_uint8, levels=self.dequantizer.levels, **options)

    def _as_trained(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults of an estimator that depend on whether the model has seen dequantised images."""
        dequantize = self.config.objective.dequantize
        method = options.get("method", "ode")
        if method.startswith("elbo"):
            return {"dequantize": dequantize}
        if method != "ode" or dequantize or options.get("dequantization") == "uniform":
            return {}
        return {"dequantization": "truncated-normal", "tolerance": CENTRES_TOLERANCE}

    def log_density(self, x: Float[Tensor, " b *shape"], **options: Any) -> Estimate:
        """The log-density of continuous data in their own units (`diffusion.log_density` has the options).

        By default the trace is exact up to 16 dimensions, and Hutchinson's above. The normaliser's constant is part of
        the density, and stands in the protocol as `log_det`.
        """
        if options.get("method", "ode") == "ode" and math.prod(self.facts.shape) > EXACT_TRACE:
            options = {"trace": "hutchinson", **options}
        options = self._begun(options)
        if self.normalizer is None:
            return measure.log_density(self.denoiser, x, **options)
        x = real_data("x", x, self.denoiser.shape)
        found = measure.log_density(self.denoiser, self.normalizer.normalize(x), **options)
        constant = {"normalizer": self.normalizer.kind, "log_det": self.normalizer.log_det}
        return found.shifted(self.normalizer.log_det, constant)

    def fitted_start(self, images: Any, covariance: str = "diagonal") -> FittedStart:
        """A start for a path that does not end in noise, for `sample` and the likelihoods (`fitted_start=`).

        Args:
            images: Held-out images of levels, or continuous data, shape (N, *shape): not those that are measured.
            covariance: `diagonal`, or `full`, for more data than dimensions.

        Raises:
            UserError: For images that do not fit, or too few.
        """
        data = data_of(images, self.dequantizer, self.denoiser.shape)
        data = data if self.normalizer is None else self.normalizer.normalize(data)
        return FittedStart.of(data, covariance, images)

    def check(self, images: Any, **options: Any) -> Check:
        """As `TrainedModel.check`; the neighbours are those of an adopted network's conventions."""
        data = data_of(images, self.dequantizer, self.denoiser.shape)
        return check(self.denoiser, data if self.normalizer is None else self.normalizer.normalize(data), **options)

    def sampling_settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The given options, completed by the run's own sampler, steps, grid, its end, and eta.

        A different sampler does not inherit the run's eta, nor a different grid its end. If neither names a grid, the
        sampler's own is used, and its end becomes a setting if it is not the grid's default. A tolerance or a
        method that the run's own does not take means `ode` (`sampling.unnamed_sampler`).
        """
        own = self.config.sampling
        given = {"sampler": unnamed_sampler(own.sampler, given), **given}
        if not isinstance(given.get("grid"), str | None):  # the times themselves
            given = {"steps": len(given["grid"]) - 1, **given}
        if given.get("sampler") == FITTED:  # has its own grid
            return {"sampler": FITTED, "steps": DEFAULT_STEPS, **given}
        eta = {} if given.get("sampler", own.sampler) != own.sampler else {"eta": own.eta}
        end = {} if own.log_snr_end is None or "grid" in given else {"log_snr_end": own.log_snr_end}
        made = {"sampler": own.sampler, "steps": own.steps, **eta, "grid": own.grid, **end, **given}
        if None not in (made["steps"], made["grid"]):
            return made
        sampler = self._sampler(made)
        if made["steps"] is None:
            made["steps"] = sampler.default_steps
        if made["grid"] is None:
            made["grid"] = sampler.default_grid
            if not sampler.is_adaptive and (later := later_end(made["grid"], made["steps"])) is not None:
                made.setdefault("log_snr_end", later)
        return made

    def effective_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Also the sampler's own fields, the grid and where it ends, the label and the guidance."""
        sampler = self._sampler(settings)
        given = {key: value for key, value in settings.items() if value is not None}
        defaults = {"eta": 0.0, "grid": sampler.default_grid, "label": None, "guidance": 1.0}
        if given.get("grid") != AUTO_GRID:
            where = (given.get(name) for name in ("steps", "grid", "log_snr_end"))
            times = grid_for(self.denoiser, sampler, *where)
            given["log_snr_end"] = round(float(self.denoiser.schedule.log_snr(times[-2])), 4)
        return {**defaults, **sampler.settings, **given}

    def resolved(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A tuned grid or sampler as numbers, so that a picture's record does not depend on caches."""
        if settings.get("sampler") == FITTED and "numbers" not in settings:
            return {**settings, "numbers": to_numbers(self.fitted(settings["steps"]))}
        if settings.get("grid") != AUTO_GRID:
            return dict(settings)
        with self.tuned():
            times = grid_for(
                self.denoiser, self._sampler(settings), settings.get("steps"), AUTO_GRID, settings.get("log_snr_end")
            )
        return {**settings, "grid": times.tolist()}

    def sampling_settings_in_training(self) -> dict[str, Any]:
        """The run's own options; grids are tuned only to final weights."""
        tuned = self.config.sampling.grid == AUTO_GRID
        return self.sampling_settings({"grid": None} if tuned else {})

    def tuned(self) -> AbstractContextManager[None]:
        """Within the block, earlier tuning results are used and new ones are stored, next to the model's file."""
        return kept_grids(self.denoiser, self.cache_at)

    def fitted(self, steps: int, progress: Progress | None = None) -> Fitted:
        """The sampler fitted to the model, from the file next to the model's or fitted now (`fit_sampler`)."""
        with self.tuned():
            return fitted_to(self.denoiser, steps, progress)

    def _sampler(self, settings: Mapping[str, Any]) -> samplers.Sampler:
        options = fields_of_sampler(settings)
        return sampler_for(self.denoiser, settings["sampler"], settings.get("steps"), **options)

    def counted(self) -> AbstractContextManager[EvaluationCount]:
        """Count network evaluations, one per row of a batch."""
        return count_evaluations(self.denoiser)

    def estimators(self, options: EvaluationConfig) -> dict[str, tuple[str, dict[str, Any]]]:
        """The probability flow's likelihood (with the exact trace in few dimensions), and the variational bound."""
        bound = ("elbo", {"evaluations": options.elbo_draws})
        if self.dequantizer is None:
            set_ones = {"tolerance": options.tolerance, "probes": options.probes}
            defaults = EvaluationConfig().model_dump()
            return {"PF-ODE": ("ode", {k: v for k, v in set_ones.items() if v != defaults[k]}), "ELBO": bound}
        own, defaults = self._as_trained({}).get("tolerance"), EvaluationConfig()  # the estimator has the same ones
        requested = {"tolerance": min(options.tolerance, own or 1.0), "probes": options.probes}
        known = {"tolerance": own or defaults.tolerance, "probes": defaults.probes}
        return {"PF-ODE": ("ode", {k: v for k, v in requested.items() if v != known[k]}), "ELBO": bound}

    def pictures(self, data: Data, seed: int) -> dict[str, tuple[str, Image.Image]]:
        """The denoising path of a few images, or the density in the plane."""
        if data.toy is not None and data.toy.shape == (2,):
            drawn = self.sample(self.config.sampling.n, seed=seed, **self.sampling_settings({}))
            image = pictures.density_picture(
                data.toy, lambda x: self.log_density(x, trace="exact", tolerance=1e-3).log_prob, drawn
            )
            return {"density": ("density.png", image)}
        if data.facts.levels is not None:
            return {"denoising path": ("path.png", self.denoising_path(seed))}
        return {}

    def denoising_path(self, seed: int) -> Image.Image:
        """A picture of x_t and E[x | x_t] along the probability-flow ODE, from noise to data."""
        return pictures.path_picture(
            *self.trajectory(PATH_IMAGES, seed, sampler=ODE(tolerance=1e-3), steps=PATH_TIMES, eta=None)
        )

    def trajectory(self, n: int, seed: int = 0, **options: Any) -> tuple[list[Tensor], list[float], list[Tensor]]:
        """The path of n samples, drawn together: the states after each step, their times, and E[x | x_t] there.

        Args:
            n: The number of samples.
            seed: The seed.
            options: As `diffusion.sample`.
        """
        states: list[Tensor] = []
        times: list[float] = []

        def keep(step: int, t: float, x: Tensor, x_hat: Tensor | None) -> None:
            states.append(x)
            times.append(t)

        options = self._begun(self._with_moments(options))
        label, cond = with_label(self.denoiser, options.pop("label", None), options.pop("cond", None))
        label = self.class_numbers(label)
        given = {} if cond is None else {"cond": cond}
        sample(self.denoiser, n, seed=seed, batch_size=n, callback=keep, label=label, **given, **options)
        cond = labels_for(self.denoiser, label, n) if cond is None else cond
        with torch.no_grad():
            x_hats = [
                x if t == 0 else self.denoiser(x, torch.tensor(t, dtype=torch.float64), cond)
                for x, t in zip(states, times, strict=True)
            ]
        return states, times, x_hats
