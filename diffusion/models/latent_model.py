"""A trained autoencoder as a model: sampled by decoding codes of its prior, measured by importance weighting."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Integer
from PIL import Image
from torch import Tensor

from ..baselines.eae import EAE
from ..baselines.gaussianity import Gaussianity, gaussianity
from ..baselines.importance_weighted import SAMPLES_AT_ONCE
from ..baselines.latent_images import HUB_DRAWS, HUBS, LatentImageModel
from ..config import Config, EvaluationConfig
from ..data import pictures
from ..denoisers.evaluations import EvaluationCount, count_rows, evaluation_mode
from ..denoisers.given import level_data
from ..errors import UserError, choose
from ..likelihood import Estimate, measure
from ..numerics.placement import device_of
from ..numerics.random import STREAM_EVALUATE, fixed_subset, normal
from .build import Data, DataFacts
from .trained_model import TrainedModel

RECONSTRUCTIONS = 24
# The nearest-neighbour entropy takes time in the square of their number.
_MOST_CODES = 10_000
NOT_ITS_LAW = f"not the model's law: each code is the hub of {HUB_DRAWS} draws of the prior"


class LatentModel(TrainedModel):
    """A trained VAE, and what other autoencoders share with it.

    Args:
        autoencoder: The encoder, the decoder and the observation model.
        config, facts, source, step: As `TrainedModel`.
    """

    sampling_options: ClassVar[tuple[str, ...]] = ("prior", "output")
    rows_per_image: ClassVar[int] = SAMPLES_AT_ONCE

    def __init__(
        self, autoencoder: LatentImageModel, config: Config, facts: DataFacts, source: str = "", step: int = 0
    ):
        super().__init__(autoencoder, config, facts, source, step)
        self.autoencoder = autoencoder

    @property
    def device(self) -> torch.device:
        """Where its data are."""
        return device_of(self.autoencoder)

    def sample(self, n: int, seed: int = 0, **options: Any) -> Float[Tensor, " n *shape"]:
        """Draw n images in [-1, 1]; image i depends on (seed, i) alone.

        Args:
            n: The number of images.
            seed: The seed.
            options: `output=` (`mean` of p(x | z), or a `draw` from it), `batch_size=`, `start=`, `progress=`, and
                `prior=` (`normal`, of an EAE also `mixture`; `hubs`, which is not the model's law).

        Raises:
            UserError: For an option that this family does not take.
        """
        accepted = (*self.sampling_options, "batch_size", "start", "progress")
        for name in options:
            if name not in accepted:
                family, taken = self.config.family, ", ".join(accepted)
                raise UserError(f"{name}: family '{family}' does not take it; it takes {taken}")
        return self.autoencoder.sample(n, seed, **options)

    def log_likelihood(self, images_uint8: Integer[Tensor, " b *shape"], **options: Any) -> Estimate:
        """A lower bound on the log-probability of images of levels.

        Args:
            images_uint8: Level indices, shape (B, C, H, W).
            options: `method=` (`iwae`, `ais` or `elbo`) and that estimator's own options
                (`LatentImageModel.log_likelihood`).

        Raises:
            UserError: For an unknown method or option, or images that do not fit the model.
        """
        images = level_data("images", images_uint8, self.autoencoder.levels)
        options = measure.checked(self, options, len(images) if images.ndim else 0)
        return self.autoencoder.log_likelihood(images.to(self.device), **options)

    @torch.no_grad()
    def reconstruct(self, images_uint8: Integer[Tensor, " b *shape"]) -> Float[Tensor, " b *shape"]:
        """E[x | z] in [-1, 1], z the mean code of each image."""
        with evaluation_mode(self.autoencoder):
            mean, _ = self.autoencoder.proposal(images_uint8.to(self.device))
            return self.autoencoder.observation.mean(self.autoencoder.decode(mean)).float()

    def sampling_settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The given options; by default the mean of p(x | z)."""
        prior = {"prior": given["prior"]} if "prior" in given else {}  # first: the one to display
        if prior:
            choose("prior", given["prior"], self.autoencoder.priors)
        return {**prior, "output": "mean", **given}

    def effective_settings(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings, with a remark where they are not a draw from the model."""
        return {**settings, **({"law": NOT_ITS_LAW} if settings.get("prior") == HUBS else {})}

    def counted(self) -> AbstractContextManager[EvaluationCount]:
        """Count decoder evaluations, one per code."""
        return count_rows(self.autoencoder.decoder)

    def estimators(self, options: EvaluationConfig) -> dict[str, tuple[str, dict[str, Any]]]:
        """The importance-weighted bound, and the evidence lower bound."""
        return {"IWAE": ("iwae", {"samples": options.iwae_samples}), "ELBO": ("elbo", {"samples": options.elbo_draws})}

    def _codes(self, data: Data) -> dict[str, Tensor]:
        """The codes of training and of test images."""
        assert data.images is not None
        splits = {"training images": data.images.train, "test images": data.images.test}
        return {
            name: self._codes_of(images[fixed_subset(len(images), _MOST_CODES)].to(self.device)).cpu()
            for name, images in splits.items()
            if len(images)
        }

    @torch.no_grad()
    def _codes_of(self, images: Integer[Tensor, " b *shape"]) -> Float[Tensor, " b d"]:
        """A draw from q(z | x) of each image: over all images they are to have the law of the prior."""
        with evaluation_mode(self.autoencoder):
            parts = [self.autoencoder.proposal(part) for part in images.split(SAMPLES_AT_ONCE)]
        mean, std = (torch.cat(part) for part in zip(*parts, strict=True))
        rows = torch.arange(len(mean))
        return mean + std * normal(0, rows, 0, tuple(mean.shape[1:]), STREAM_EVALUATE, mean.dtype, mean.device)

    def code_reports(self, data: Data) -> tuple[dict[str, Gaussianity], list[str]]:
        """Reports on the codes of training images and of test images.

        Too few codes, or codes constant in a dimension, have no report.
        """
        reports, left_out = {}, []
        for name, codes in self._codes(data).items():
            try:
                reports[name] = gaussianity(codes, self.config.autoencoder.neighbours)
            except UserError as error:
                left_out.append(f"codes of {name}: no report ({error})")
        return reports, left_out

    def pictures(self, data: Data, seed: int) -> dict[str, tuple[str, Image.Image]]:
        """Test images, and each one's reconstruction below it."""
        if data.images is None or not len(data.images.test):
            return {}
        test = data.images.test
        images = test[fixed_subset(len(test), RECONSTRUCTIONS)]
        pairs = [self.autoencoder.observation.dequantizer.center(images), self.reconstruct(images).cpu()]
        columns = -(-len(images) // -(-len(images) // 12))  # at most 12, and rows as even as can be
        missing = -len(images) % columns
        rows = torch.stack([torch.cat((x, torch.ones(missing, *x.shape[1:]))) for x in pairs])
        cells = rearrange(rows, "k (r c) ch h w -> (r k c) ch h w", c=columns)
        return {"reconstructions": ("reconstructions.png", pictures.grid(cells, columns=columns))}


class EAEModel(LatentModel):
    """A trained entropic autoencoder: codes of N(0, I) or of the mixture fitted to them; density as declared.

    Args:
        autoencoder: The entropic autoencoder.
        config, facts, source, step: As `TrainedModel`.
    """

    def __init__(self, autoencoder: EAE, config: Config, facts: DataFacts, source: str = "", step: int = 0):
        super().__init__(autoencoder, config, facts, source, step)
        self.entropic = autoencoder

    def sampling_settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The given options; by default the run's own prior and the mean of p(x | z)."""
        return super().sampling_settings({"prior": self.config.sampling.prior, **given})

    def sampling_settings_in_training(self) -> dict[str, Any]:
        """From N(0, I): the mixture is fitted to the codes after training."""
        return self.sampling_settings({"prior": "normal"})

    def pictures(self, data: Data, seed: int) -> dict[str, tuple[str, Image.Image]]:
        """Also samples from the mixture that is fitted to the codes."""
        found = super().pictures(data, seed)
        drawn = self.sample(self.config.sampling.n, seed=seed, prior="mixture")
        found["samples of the mixture"] = ("mixture.png", pictures.grid(drawn))
        if codes := self._codes(data):
            found["picture of codes"] = ("codes.png", pictures.codes_picture(codes))
        return found

    def _codes_of(self, images: Integer[Tensor, " b *shape"]) -> Float[Tensor, " b d"]:
        """Of training images these are standardised by construction."""
        return self.entropic.codes(images)
