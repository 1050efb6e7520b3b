"""The configuration of a model: every option with its type, default, range and help, and nothing else.

Options that only some kinds take (of schedule, of network, ...) are listed in the section's `variants`, under the names
of the arguments that they become.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from ..errors import UserError
from .values import Section, option, show

Images = Literal["digits", "mnist", "fashion-mnist", "kmnist", "cifar10", "folder"]
Toys = Literal["gaussians", "moons", "rings", "spiral", "checkerboard"]
Variants = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class DataConfig(Section):
    """The data that the model learns."""

    section: ClassVar[str] = "data"

    name: Literal[Images, Toys] = option("digits", "the data set: images, images of your own (folder), or points")
    path: str | None = option(
        None, "a folder or a .zip, .tar, .npz or .npy file of images, in place of the set's own", True
    )
    root: str = option("data", "folder that data sets are kept in", True)
    download: bool = option(True, "fetch a data set that is not in root")
    size: int | None = option(None, "height and width that images are brought to; null: as they are", at_least=1)
    bits: int | None = option(
        None, "bits that the values of 16-bit files use, e.g. 12; null: all 16", at_least=8, at_most=16
    )
    unreadable: Literal["refuse", "skip"] = option("refuse", "files that cannot be read as images (folder, zip, tar)")
    cache: str | None = option(
        None, "folder that decoded images are kept in and mapped from, for large sets (folder, zip, tar)", True
    )
    place: Literal["memory", "device"] = option("memory", "where training images are held; device: on each GPU, whole")
    flip: bool | None = option(None, "mirror training images at random; null: where the data set allows it")

    def check(self) -> None:
        if self.name == "folder" and not self.path:
            raise UserError(f"data.path: found {show(self.path)}; must be the images where data.name is 'folder'")
        if self.path is not None and self.name in ("digits", *get_args(Toys)):
            raise UserError(f"data.path: found {show(self.path)}; '{self.name}' does not take it")


@dataclass(frozen=True)
class ScheduleConfig(Section):
    """The path from data to noise, x_t = alpha_t x + sigma_t eps."""

    section: ClassVar[str] = "schedule"
    variants: ClassVar[Variants] = {
        "name": {
            "vp": {"beta_min": 0.1, "beta_max": 20.0, "log_snr_max": 14.0},
            "subvp": {"beta_min": 0.1, "beta_max": 20.0, "log_snr_max": 14.0},
            "cosine": {"log_snr_min": -10.0, "log_snr_max": 14.0},
            "rectified": {"log_snr_min": -14.0, "log_snr_max": 14.0},
            "ve": {"sigma_min": 0.01, "sigma_max": 50.0},
            "edm": {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0},
            "ddpm": {"steps": 1000, "betas": "linear", "beta_start": 1e-4, "beta_end": 0.02},
            "learned": {"log_snr_min": -10.0, "log_snr_max": 14.0, "segments": 32},
        }
    }

    name: Literal["vp", "cosine", "subvp", "ve", "edm", "rectified", "ddpm", "learned"] = option(
        "cosine", "the kind of schedule; learned: for the least variance of the loss (VDM)"
    )
    beta_min: float | None = option(None, "rate of noise at t = 0", above=0)
    beta_max: float | None = option(None, "rate of noise at t = 1", above=0)
    log_snr_min: float | None = option(None, "log(alpha^2 / sigma^2) at the noisy end")
    log_snr_max: float | None = option(None, "log(alpha^2 / sigma^2) at the clean end")
    sigma_min: float | None = option(None, "standard deviation of the noise at the clean end", above=0)
    sigma_max: float | None = option(None, "standard deviation of the noise at the noisy end", above=0)
    rho: float | None = option(None, "time is uniform in sigma^(1 / rho)", above=0)
    steps: int | None = option(None, "number T of noise levels", at_least=2)
    betas: Literal["linear", "cosine"] | None = option(None, "how the betas grow")
    beta_start: float | None = option(None, "first beta of linear", above=0, below=1)
    beta_end: float | None = option(None, "last beta of linear", above=0, below=1)
    segments: int | None = option(None, "pieces of the learned density of the noise levels", at_least=1)

    def check(self) -> None:
        pairs = (
            ("beta_min", "beta_max"),
            ("log_snr_min", "log_snr_max"),
            ("sigma_min", "sigma_max"),
            ("beta_start", "beta_end"),
        )
        for low_name, high_name in pairs:
            low, high = getattr(self, low_name), getattr(self, high_name)
            if low is not None and high is not None and (low > high or (low == high and "beta" not in low_name)):
                raise UserError(f"schedule.{low_name}: found {low:g}; must be below schedule.{high_name}, {high:g}")


@dataclass(frozen=True)
class NetworkConfig(Section):
    """The network inside the denoiser."""

    section: ClassVar[str] = "network"
    variants: ClassVar[Variants] = {
        "name": {
            "unet": {
                "base_channels": 128,
                "multipliers": (1, 2, 2, 2),
                "blocks": 2,
                "attention": (16,),
                "head_channels": None,
                "dropout": 0.1,
                "fourier_features": (),
                "noise_embedding": "sinusoidal",
                "attention_scale": "constant",
            },
            "dit": {
                "patch_size": 2,
                "width": 384,
                "depth": 12,
                "heads": 6,
                "mlp_ratio": 4,
                "noise_embedding": "sinusoidal",
                "attention_scale": "constant",
            },
            "mlp": {"width": 256, "depth": 4, "dropout": 0.0, "noise_embedding": "sinusoidal"},
        }
    }

    name: Literal["unet", "dit", "mlp"] = option(
        "unet", "convolutions (unet) or patches (dit) for images; mlp for points"
    )
    base_channels: int | None = option(None, "channels at full resolution, even", at_least=2)
    multipliers: tuple[int, ...] | None = option(
        None, "channels of each level as multiples of base_channels", at_least=1
    )
    blocks: int | None = option(None, "residual blocks a level", at_least=1)
    attention: tuple[int, ...] | None = option(None, "heights of the feature maps that have attention", at_least=1)
    head_channels: int | None = option(None, "width of an attention head; null: one head", at_least=1)
    dropout: float | None = option(None, "share of activations dropped in training", at_least=0, below=1)
    fourier_features: tuple[int, ...] | None = option(
        None,
        "exponents n of the inputs sin, cos(2^n pi x), for likelihood: [6, 7] for 256 levels, [2, 3] for 17",
        at_least=0,
    )
    patch_size: int | None = option(None, "height and width of a patch", at_least=1)
    width: int | None = option(None, "width of a token or hidden layer", at_least=2)
    depth: int | None = option(None, "number of blocks", at_least=1)
    heads: int | None = option(None, "number of attention heads", at_least=1)
    mlp_ratio: int | None = option(None, "hidden width of a block in multiples of width", at_least=1)
    noise_embedding: Literal["sinusoidal", "fourier"] | None = option(None, "features of the noise level")
    attention_scale: Literal["constant", "entropy_invariant"] | None = option(
        None, "entropy_invariant: follow the number of tokens, for sampling at other sizes than that of training"
    )

    def check(self) -> None:
        if self.base_channels is not None and self.base_channels % 2:
            raise UserError(f"network.base_channels: found {self.base_channels}; must be even")
        if self.multipliers == ():
            raise UserError("network.multipliers: found []; must have one integer a level")
        multiple = 4 if self.name == "dit" else 2
        if self.width is not None and self.width % multiple:
            raise UserError(f"network.width: found {self.width}; must be a multiple of {multiple}")
        if self.width is not None and self.heads is not None and self.width % self.heads:
            raise UserError(f"network.heads: found {self.heads}; must divide network.width, {self.width}")


@dataclass(frozen=True)
class DenoiserConfig(Section):
    """What the network predicts, and from what."""

    section: ClassVar[str] = "denoiser"

    prediction: Literal["eps", "x", "v", "score", "velocity", "edm", "levels"] = option(
        "v", "the quantity that the network predicts; levels: how likely each level of a pixel is, for likelihood"
    )
    sigma_data: float = option(1.0, "standard deviation of the data that edm scales its inputs and outputs by", above=0)
    conditional: bool = option(False, "learn each class of the data set, for sampling by label and for guidance")
    label_dropout: float = option(0.1, "share of labels hidden in training, for guidance", at_least=0, at_most=1)


@dataclass(frozen=True)
class ObjectiveConfig(Section):
    """The loss, and the times that it is taken at."""

    section: ClassVar[str] = "objective"
    variants: ClassVar[Variants] = {
        "weighting": {"min-snr": {"min_snr_gamma": 5.0}},
        "time": {
            "log-normal": {"time_mean": -1.2, "time_std": 1.2},
            "logit-normal": {"time_mean": 0.0, "time_std": 1.0},
        },
    }

    weighting: Literal["simple", "elbo", "likelihood", "min-snr", "edm"] = option(
        "elbo", "weight of the loss at each time"
    )
    min_snr_gamma: float | None = option(None, "SNR above which min-snr weights all times alike", above=0)
    time: Literal["uniform", "log-snr", "log-normal", "logit-normal"] = option(
        "uniform",
        "training times: uniform in t or in log-snr; log-normal is of sigma / alpha, logit-normal of t",
    )
    stratified: bool = option(True, "spread the times of a batch evenly (low discrepancy), over all devices")
    time_mean: float | None = option(None, "mean of the normal distribution")
    time_std: float | None = option(None, "standard deviation of the normal distribution", above=0)
    dequantize: bool = option(True, "train on images with uniform noise within each level, as pixel likelihoods need")


@dataclass(frozen=True)
class AutoencoderConfig(Section):
    """The encoder and the decoder of a vae or an eae, and how they are trained."""

    section: ClassVar[str] = "autoencoder"
    variants: ClassVar[Variants] = {"observation": {"logistic-mixture": {"components": 5}}}

    latent_dim: int = option(64, "length of the code", at_least=1)
    base_channels: int = option(32, "channels at full resolution", at_least=1)
    multipliers: tuple[int, ...] = option((1, 2, 4), "channels of each level as multiples of base_channels", at_least=1)
    blocks: int = option(1, "residual blocks a level", at_least=1)
    observation: Literal["logistic-mixture", "gaussian", "bernoulli", "categorical"] = option(
        "logistic-mixture", "vae: distribution of a pixel's level given the code; bernoulli takes 2 levels"
    )
    components: int | None = option(None, "logistics of a pixel's mixture", at_least=1)
    beta: float = option(1.0, "vae: weight of the KL term; 1 is the variational bound", at_least=0)
    free_bits: float = option(0.0, "vae: KL of a dimension, in nats, below which it is not pressed", at_least=0)
    iwae_samples: int = option(1, "vae: draws of the code an image; above 1 the importance-weighted loss", at_least=1)
    entropy_weight: float = option(1.0, "eae: lambda, squared error an image that a nat of the codes is worth", above=0)
    neighbours: int = option(3, "eae: the neighbour k of the entropy's estimator", at_least=1)

    def check(self) -> None:
        if self.multipliers == ():
            raise UserError("autoencoder.multipliers: found []; must have one integer a level")
        if self.iwae_samples > 1 and (self.beta != 1.0 or self.free_bits):
            raise UserError(
                f"autoencoder.iwae_samples: found {self.iwae_samples}; above 1 it takes beta 1 and free_bits 0"
            )
