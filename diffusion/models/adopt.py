"""`adopt` makes a model of a network that was trained elsewhere, from its conventions.

The model is one as `load` returns: it draws images whose bins fill [-1, 1] with any solver, and measures likelihoods
with any estimator, while its network sees data in its own range, on its own path, unscaled by default.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import uuid
import warnings
from collections.abc import Callable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..config import Config, DataConfig
from ..denoisers import Clipped, Denoiser
from ..denoisers.adopted import AdoptedDenoiser, Thresholded
from ..denoisers.conventions import DEFAULT_RANGE, Convention, path_of
from ..denoisers.given import cond_for, outside_inference_mode, positive_number, real_number, switch
from ..errors import UserError
from ..likelihood import Dequantizer, Estimate
from ..numerics.arrays import whole_number
from ..sampling.sample import unnamed_sampler
from ..schedules import time_grid
from ..schedules.discrete import Levels, levels_drawn
from ..schedules.schedule import log_snr_ends
from ..storage import runs
from . import check
from .build import DataFacts
from .diffusion_model import DiffusionModel
from .identity import identity

if TYPE_CHECKING:
    from .formats.known import Known

BEST = "best"
# The first call with images looks at so many of them at the data end of the path.
_LOOKED_AT = 16


class AdoptedNote(UserWarning):
    """What an adopted model has to say of its own figures."""


class AdoptedModel(DiffusionModel):
    """A network of somebody else as a model.

    Args:
        denoiser: The network by its convention.
        config: Of a run that trained it further; None: where its images are is said by --data.
        facts: The shape, the levels and the classes of its data.
        source: Its file, or its name in messages.
        step: As `TrainedModel`.
        clip: What x_hat is clipped to in draws, as the network sees data; None: it is not.
        threshold: The quantile and the largest value of dynamic thresholding in draws (`Thresholded`), in its place.

    Attributes:
        known: All that makes it, as plain values and tensors, where it was read from a file of a known format.
        variance, steps_offset: How its own sampler draws where nothing else is said: the variance of `ancestral`, and
            by how many levels the grid `leading` begins earlier.
        ends_at_level: Whether its own sampler ends at the level of least noise, in place of x_hat there.
        own_grid: The grid of its own sampler, which of a path of levels is at whole ones.
    """

    known: Known | None = None
    variance: str | None = None
    steps_offset: int = 0
    ends_at_level: bool = False
    own_grid: str | None = None

    def __init__(
        self,
        denoiser: AdoptedDenoiser,
        config: Config | None,
        facts: DataFacts,
        source: str = "",
        step: int = 0,
        clip: float | None = None,
        threshold: tuple[float, float] | None = None,
    ):
        if config is None:  # where its images are is said by --data
            config = Config(family="adopted", data=DataConfig(name="folder", path="images-of-an-adopted-model"))
        super().__init__(denoiser, config, facts, source, step, cache_at="")
        self.adopted = denoiser
        self.clip, self.threshold = clip, threshold
        self._said: set[str] = set()
        self._alone = uuid.uuid4().hex

    @property
    def weights(self) -> str:
        """The SHA-256 of all that makes it: weights, code, convention, path, and the content of `FILE.py:NAME`.

        Of something that cannot be known, such as an object of a C extension, it is this object's alone.
        """
        denoiser, labels = self.adopted, self.adopted.labels
        parts = denoiser.network.network, denoiser.network.call, denoiser.convention, denoiser.schedule
        parts += () if self.clip is None else (self.clip,)
        parts += () if self.threshold is None else self.threshold
        digest, known = identity(*parts, denoiser.shape, labels.classes, labels.null)
        of_python = runs.python_model(self.source)
        if of_python is not None and of_python[0].is_file():
            digest += f" {runs.file_digest(of_python[0])} {of_python[1]}"
        return hashlib.sha256(f"{digest} {'' if known else self._alone}".encode()).hexdigest()

    def sampling_settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """As `DiffusionModel.sampling_settings`; the steps and the grid of its own are for its own sampler alone."""
        own, requested = self.config.sampling.sampler, given
        if given.get("sampler", unnamed_sampler(own, given)) != own:
            given = {"steps": None, "grid": None, **given}
        elif self.variance is not None:
            given = {"variance": self.variance, **given}
        made = super().sampling_settings(given)
        if "grid" in requested or not isinstance(made["grid"], str) or made["sampler"] != own:
            return made
        return {**made, **self._own_times(made)}

    def _own_times(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """The times of its own sampler, where they are not those of the grid: at whole levels, or ending at one.

        Where T / steps is no whole number, `ddim` of diffusers goes on to a level that is not the next one it takes;
        here each step goes to the next.
        """
        schedule, levels = self.denoiser.schedule, self.adopted.convention.path.schedule
        steps, grid = made["steps"], made["grid"]
        if self.own_grid != grid or not isinstance(levels, Levels) or made.get("log_snr_end") is not None:
            return {}
        if steps > levels.steps:  # its own sampler has no such levels; the grid between them has
            return {}
        count, offset = levels.steps, self.steps_offset if grid == "leading" else 0
        drawn = levels_drawn(count, steps, grid, offset)
        if drawn[0] > count - 1:  # all levels have none above them
            drawn, offset = drawn - offset, 0
        last = -1 if made["sampler"] != "ddim" else offset - count // steps  # -1: clean data
        end = max(last, 0 if self.ends_at_level else -1)
        before = drawn[drawn > end]  # a step from a level to itself changes nothing
        if not len(before):
            return {}
        times = ((before + 1.0) / count).clamp(max=schedule.t_max).tolist()
        own = [*times, (end + 1.0) / count]
        named = time_grid(schedule, steps, grid).tolist()
        if len(named) == len(own) and all(math.isclose(a, b, abs_tol=1e-9) for a, b in zip(named, own, strict=True)):
            return {}
        return {"grid": own, "steps": len(before)}

    @property
    def drawn_with(self) -> Denoiser:
        """As `DiffusionModel.drawn_with`; clipped, where that was said."""
        if self.threshold is not None:
            return Thresholded(self.adopted, *self.threshold)
        if self.clip is None:
            return self.denoiser
        scale, middle = self.adopted.convention.units
        return Clipped(self.denoiser, (-self.clip - middle) / scale, (self.clip - middle) / scale)

    def sample(self, n: int, seed: int = 0, **options: Any) -> Tensor:
        """As `DiffusionModel.sample`; says where the path does not begin in noise."""
        self._say_start(options)
        return super().sample(n, seed, **options)

    def log_likelihood(self, images_uint8: Tensor, **options: Any) -> Estimate:
        """As `DiffusionModel.log_likelihood`; says where the path or the network does not reach an end of it."""
        self._say_start(options)
        estimate = super().log_likelihood(images_uint8, **options)
        if "log_snr_max" not in options:
            self._say_end(images_uint8, options.get("cond"))
        return estimate

    def _say_start(self, options: Mapping[str, Any]) -> None:
        begun = self._begun(options)
        low, _ = log_snr_ends(self.denoiser.schedule)
        if begun.get("noise") is None and begun.get("fitted_start") is None and low > check.NOISY_ENOUGH:
            self._say(check.not_noise(low))

    def _say_end(self, images: Tensor, cond: Any) -> None:
        """Whether the network knows anything at the data end of the path."""
        _, high = log_snr_ends(self.denoiser.schedule)
        error = None
        with contextlib.suppress(Exception):  # the estimate is there; a remark on it must not cost it
            x = check.data_of(images[:_LOOKED_AT], self.dequantizer, self.denoiser.shape)
            cond = None if cond is None else cond_for(cond, self.denoiser.num_classes, len(images))[: len(x)]
            error = check.useless_at(self.denoiser, x, high, cond) if len(x) > 1 else None
        if error is not None:
            self._say(
                f"at log-SNR {high:.3g}, the data end of its path, the noise estimate is worse than predicting zero, "
                f"whose error is 1 (error {error:.3g}), which every likelihood pays for: adopt it with "
                "log_snr_max='best'"
            )

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            warnings.warn(f"{self.source}: {line}", AdoptedNote, stacklevel=4)


@outside_inference_mode
def adopt(
    network: Any,
    path: Any,
    predicts: str,
    time: str | Callable[[Tensor], Tensor],
    shape: Any,
    data_range: Any = None,
    levels: Any = None,
    labels: Any = None,
    call: Any = None,
    log_snr_max: Any = None,
    scaled: Any = False,
    sigma_data: Any = 0.5,
    images: Any = None,
    name: Any = "adopted",
    cond: Any = None,
    clip: Any = None,
    threshold: Any = None,
) -> AdoptedModel:
    """Make a model of a network that was trained elsewhere.

        model = diffusion.adopt(network, path="ddpm", predicts="eps", time="index", shape=(1, 28, 28), levels=256)

    Args:
        network: A module or a function of (x, time) or (x, time, labels); tuples, and objects with a `.sample`, are
            understood, and of twice the channels the first half is the prediction.
        path: The path of the network's data. `ddpm`, `vp`, `sub-vp`, `cosine`, `ve` (geometric), `ve-song` (sigma^t,
            25), `edm`, `flow` (data at t = 0) or `flow-to-data` (data at t = 1); with options `{"name": "ddpm",
            "steps": 4000, "betas": "cosine"}`; a schedule; a table, `{"betas": ...}` or `{"alphas_cumprod": ...}`, of T
            entries, or T + 1 that begin with clean data; or two functions (alpha, sigma) of time.
        predicts: `eps`, `x`, `v`, `score`, `velocity` (the derivative in the path's own time), any of them but x and
            score with the other sign (`-eps`, ...), or `edm`, the raw network inside EDM's preconditioning.
        time: The time the network takes: `index` (from 0, fractions in between), `index-rounded`, `i/T`, `t`, `1-t`,
            `999t`, `1000t`, `sigma` (sigma / alpha), `log-sigma`, `log-sigma/4`, `log-snr`, `log-snr/4`, or a function
            of the path's own t, a tensor of shape (B,), to one of that shape.
        shape: The shape of one sample.
        data_range: The values of the lowest and the highest level, by default (-1, 1).
        levels: The number of levels of a pixel, 256 for most images; None for continuous data, which are as they are.
        labels: None; the number of classes, of which the network needs one; or (classes, what stands for no label), a
            number or None.
        call: Calls a network of another signature: `lambda network, x, t, labels: ...`.
        log_snr_max: Where the path ends near the data, in log-SNR; `best` chooses it on `images`.
        scaled: Whether the network sees x_t / sqrt(alpha^2 sigma_data^2 + sigma^2), as one that predicts `edm` always
            does; otherwise it sees x_t as it is.
        sigma_data: The deviation of the data in that formula and in EDM's.
        images: Held-out images of levels (or continuous data): the model is checked on them, and the check printed.
        name: Its name in messages.
        cond: The class labels of `images`, or another condition of the network; needed if it needs a label.
        clip: x_hat is clipped to plus and minus this in draws, as the network sees data (DDPM's `clip_denoised`).
        threshold: Dynamic thresholding of x_hat in draws instead (Imagen): (quantile, largest value), e.g. (0.995, 1).

    Returns:
        The model, in evaluation mode; `model.denoiser` is its denoiser, on the path of images in [-1, 1].

    Raises:
        UserError: For names that are not known, and whatever does not fit together.
    """
    if levels is None and data_range is not None:
        raise UserError(
            "data_range: goes with levels=, the number of levels a pixel has; continuous data have no range"
        )
    levels = None if levels is None else Dequantizer(whole_number("levels", levels, 2)).levels
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"name: found {name!r}; must be a word")
    if data_range is not None and hasattr(data_range, "tolist"):  # of numpy, of torch
        data_range = data_range.tolist()
    if data_range is not None and not (isinstance(data_range, tuple | list) and len(data_range) == 2):
        raise UserError(f"data_range: found {data_range}; needs the lowest and the highest value, e.g. (0, 1)")
    low, high = (real_number("data_range", end) for end in (data_range or DEFAULT_RANGE))
    convention = Convention(
        path_of(path),
        predicts,
        time,
        switch("scaled", scaled),
        positive_number("sigma_data", sigma_data),
        levels,
        (low, high),
    )
    best = isinstance(log_snr_max, str)
    if best and log_snr_max != BEST:
        raise UserError(f"log_snr_max: found '{log_snr_max}'; accepted: a number, or '{BEST}'")
    if best and images is None:
        raise UserError(f"log_snr_max: '{BEST}' is chosen on held-out images; give images=")
    end = None if best or log_snr_max is None else real_number("log_snr_max", log_snr_max)
    denoiser = AdoptedDenoiser(network, convention, shape, labels, call, end)
    denoiser.eval()
    facts = DataFacts(name, denoiser.shape, levels, denoiser.num_classes)
    clip = None if clip is None else positive_number("clip", clip)
    threshold = None if threshold is None else _threshold(threshold)
    if None not in (clip, threshold):
        raise UserError("clip, threshold: both say what becomes of x_hat; give one of them")
    model = AdoptedModel(denoiser, None, facts, name, 0, clip, threshold)
    if cond is not None and images is None:
        raise UserError("cond: says the labels of images=, the held-out images; give those, too")
    if best:
        end = check.best_end(denoiser, check.data_of(images, model.dequantizer, denoiser.shape), cond)
        model = AdoptedModel(denoiser.within(end).eval(), None, facts, name, 0, clip, threshold)
        print(f"{name}: log_snr_max {end:.3g} is best on {len(images)} images")
    if images is not None:
        print(model.check(images, cond=cond))
    return model


def _threshold(given: Any) -> tuple[float, float]:
    pair = given if isinstance(given, tuple | list) and len(given) == 2 else (None, None)
    quantile, most = (float(value) if isinstance(value, Real) else math.nan for value in pair)
    if not (0.0 < quantile <= 1.0 and 1.0 <= most < math.inf):  # also refuses nan
        raise UserError(f"threshold: found {given}; needs a quantile up to 1 and a largest value from 1 on, (0.995, 1)")
    return quantile, most
