"""The configuration of a model: data, schedule, network, denoiser, objective, autoencoder.

Options that only some kinds take (of schedule, of network, ...) have the names of the arguments that they become.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ..errors import UserError
from .options import Among, Count, Place, Section, option
from .strict_yaml import show

# Tables of what there is: the names that an option takes, and the place of what each of them is (`options.imported`).
IMAGE_SETS = {
    "digits": "data.named_sets:DIGITS",
    "mnist": "data.named_sets:MNIST",
    "fashion-mnist": "data.named_sets:FASHION_MNIST",
    "kmnist": "data.named_sets:KMNIST",
    "cifar10": "data.named_sets:CIFAR10",
}
TOY_SETS = {
    "gaussians": "data.toy:gaussians",
    "moons": "data.toy:moons",
    "rings": "data.toy:rings",
    "spiral": "data.toy:spiral",
    "checkerboard": "data.toy:Checkerboard",
    "ar1": "data.toy:ar1",
    "ar1-volume": "data.toy:ar1_volume",
}
SCHEDULES = {
    "vp": "schedules.continuous:VP",
    "cosine": "schedules.continuous:Cosine",
    "subvp": "schedules.continuous:SubVP",
    "ve": "schedules.continuous:VE",
    "edm": "schedules.continuous:EDM",
    "rectified": "schedules.continuous:Rectified",
    "ddpm": "schedules.discrete:DDPM",
    "learned": "schedules.learned:Learned",
}
NETWORKS = {"unet": "networks.unet:UNet", "dit": "networks.dit:DiT", "mlp": "networks.mlp:MLP"}
OBSERVATIONS = {
    "logistic-mixture": "baselines.decoders:DiscretizedLogisticMixture",
    "gaussian": "baselines.decoders:DiscretizedGaussian",
    "bernoulli": "baselines.decoders:Bernoulli",
    "categorical": "baselines.decoders:Categorical",
}
PREDICTIONS = ("eps", "x", "v", "score", "velocity", "edm")  # of the shape of x_t
WEIGHTINGS = ("simple", "elbo", "likelihood", "min-snr", "edm")
FUNCTIONS = ("downsample:N", "grey", "mask")  # of the image, on which a model can be conditioned
SPLITS = ("train", "validation", "test")
DENOISING = ("diffusion", "adopted")  # the families of diffusion models


_MOST_PIXELS = 2**26  # of an image, 8192 x 8192; larger files are refused, too


def _size(value: int | str) -> int | str:
    """One side of a square, from 1 on, or `HxW`."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]+", value):
        value = int(value)
    if value >= 1 if isinstance(value, int) else re.fullmatch(r"[1-9][0-9]{0,5}x[1-9][0-9]{0,5}", value):
        sides = [value] * 2 if isinstance(value, int) else [int(side) for side in value.split("x")]
        if math.prod(sides) > _MOST_PIXELS:
            raise UserError(f"data.size: found {show(value)}; must be {_MOST_PIXELS:,} pixels at most, e.g. 8192")
        return value
    raise UserError(f"data.size: found {show(value)}; must be an integer at least 1, or height x width, e.g. 32x48")


Size = Annotated[int | str, AfterValidator(_size)]


class DataConfig(Section):
    """The training data."""

    section = "data"

    name: Annotated[str, Among((*IMAGE_SETS, "folder", "array", *TOY_SETS))] = option(
        "digits",
        "the data set: images, images of your own (folder), floats of any shape (array), or draws of a known density",
    )
    path: Place | None = option(
        None, "a folder or a .zip, .tar, .npz or .npy file of images, instead of the data set's own; of array: its file"
    )
    root: Place = option("data", "folder of data sets")
    download: bool = option(True, "download a data set that is not in root")
    size: Size | None = option(
        None, "size that images are brought to: one number for both sides, or height x width: 32x48; null: unchanged"
    )
    fit: Literal["crop", "stretch", "center"] = option(
        "crop", "how: resize and cut the rest off (crop), resize alone (stretch), or cut out the middle alone (center)"
    )
    levels: Literal["256", "all"] = option(
        "256", "grey levels that images are kept in: 256, or all 2^bits that 16-bit files have (folder, zip, npz)"
    )
    bits: int | None = option(None, "number of bits that 16-bit files use, e.g. 12; null: all 16", ge=8, le=16)
    channels: Literal["seen", "all"] = option(
        "seen",
        "of files: grey, or colour on white (seen), or all they have: opacity, the bands of a TIFF (folder, zip)",
    )
    unreadable: Literal["refuse", "skip"] = option(
        "refuse", "what to do with files that cannot be read as images (folder, zip, tar)"
    )
    cache: Place | None = option(
        None, "folder in which decoded images are cached and mapped from, for large data sets (folder, zip, tar)"
    )
    place: Literal["memory", "device"] = option("memory", "where training images are held; device: a copy on each GPU")
    flip: bool | None = option(None, "mirror training images at random; null: if the data set allows it")
    normalize: Literal["none", "standard", "whiten"] | None = option(
        {"array": "standard"}, "scale by each channel's mean and deviation, or whiten all entries; densities stay yours"
    )

    def check(self) -> None:
        if self.name in ("folder", "array") and not self.path:
            what = "images" if self.name == "folder" else "array"
            raise UserError(f"data.path: found {show(self.path)}; must be the {what} where data.name is '{self.name}'")
        if self.fit != "crop" and self.size is None:
            raise UserError(f"data.fit: found {show(self.fit)}; it goes with a data.size, which is not given")
        of_files, of_images = ("bits", "levels", "channels", "unreadable", "cache"), ("size", "fit", "flip")
        unused = {"digits": ("path", *of_files), "array": (*of_files, *of_images)}
        of_toys = ("path", *of_files, *of_images, "place")
        for name in unused.get(self.name, of_toys if self.name in TOY_SETS else ()):
            found = getattr(self, name)
            if found not in (type(self).model_fields[name].default, False):
                raise UserError(f"data.{name}: found {show(found)}; '{self.name}' does not take it")


class ScheduleConfig(Section):
    """The path from data to noise, x_t = alpha_t x + sigma_t eps."""

    section = "schedule"
    families = ("diffusion",)

    name: Annotated[str, Among(SCHEDULES)] = option(
        "cosine", "the noise schedule; learned: minimises the variance of the loss (VDM)"
    )
    beta_min: float | None = option({"vp": 0.1, "subvp": 0.1}, "rate of noise at t = 0", gt=0)
    beta_max: float | None = option({"vp": 20.0, "subvp": 20.0}, "rate of noise at t = 1", gt=0)
    log_snr_min: float | None = option(
        {"cosine": -10.0, "rectified": -14.0, "learned": -10.0}, "log(alpha^2 / sigma^2) at the noisy end"
    )
    log_snr_max: float | None = option(
        {"vp": 14.0, "subvp": 14.0, "cosine": 14.0, "rectified": 14.0, "learned": 14.0},
        "log(alpha^2 / sigma^2) at the clean end",
    )
    sigma_min: float | None = option(
        {"ve": 0.01, "edm": 0.002}, "standard deviation of the noise at the clean end", gt=0
    )
    sigma_max: float | None = option(
        {"ve": 50.0, "edm": 80.0}, "standard deviation of the noise at the noisy end", gt=0
    )
    rho: float | None = option({"edm": 7.0}, "time is uniform in sigma^(1 / rho)", gt=0)
    steps: int | None = option({"ddpm": 1000}, "number T of noise levels", ge=2)
    betas: Literal["linear", "cosine"] | None = option({"ddpm": "linear"}, "how the betas grow")
    beta_start: float | None = option({"ddpm": 0.0001}, "first beta of linear", gt=0, lt=1)
    beta_end: float | None = option({"ddpm": 0.02}, "last beta of linear", gt=0, lt=1)
    segments: int | None = option({"learned": 32}, "pieces of the learned density of noise levels", ge=1)

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


class NetworkConfig(Section):
    """The network inside the denoiser."""

    section = "network"
    families = ("diffusion",)

    name: Annotated[str, Among(NETWORKS)] = option(
        "unet", "convolutions (unet) or patches (dit) for images, signals and volumes; mlp for vectors"
    )
    base_channels: int | None = option({"unet": 128}, "channels at full resolution, even", ge=2)
    multipliers: tuple[Count, ...] | None = option(
        {"unet": (1, 2, 2, 2)}, "channels of each level as multiples of base_channels"
    )
    blocks: int | None = option({"unet": 2}, "residual blocks per level", ge=1)
    attention: tuple[Count, ...] | None = option({"unet": (16,)}, "heights of the feature maps with attention")
    head_channels: int | None = option({"unet": None}, "width of an attention head; null: one head", ge=1)
    dropout: float | None = option({"unet": 0.1, "mlp": 0.0}, "fraction of activations dropped in training", ge=0, lt=1)
    fourier_features: tuple[Annotated[int, Field(ge=0)], ...] | None = option(
        {"unet": ()},
        "exponents n of the inputs sin, cos(2^n pi x), for likelihood: [6, 7] for 256 levels, [2, 3] for 17",
    )
    patch_size: int | None = option(
        {"unet": 1, "dit": 2},
        "height and width of a patch; unet: of pixels that become channels (2: a 4th of the work)",
        ge=1,
    )
    width: int | None = option({"dit": 384, "mlp": 256}, "width of a token or hidden layer", ge=2)
    depth: int | None = option({"dit": 12, "mlp": 4}, "number of blocks", ge=1)
    heads: int | None = option({"dit": 6}, "number of attention heads", ge=1)
    mlp_ratio: int | None = option({"dit": 4}, "hidden width of a block in multiples of width", ge=1)
    noise_embedding: Literal["sinusoidal", "fourier"] | None = option(
        {"unet": "sinusoidal", "dit": "sinusoidal", "mlp": "sinusoidal"}, "features of the noise level"
    )
    attention_scale: Literal["constant", "entropy_invariant"] | None = option(
        {"unet": "constant", "dit": "constant"},
        "entropy_invariant: follow the number of tokens, for sampling at other sizes than that of training",
    )

    positions: Literal["absolute", "rotary"] | None = option(
        {"dit": "absolute"},
        "of patches: added to the tokens, or as rotations, so that attention sees differences alone",
    )
    qk_norm: bool | None = option({"dit": False}, "normalise queries and keys, so that attention's logits stay bounded")
    norm: Literal["layer", "rms"] | None = option({"dit": "layer"}, "layer norm, or division by the root mean square")
    activation: Literal["gelu", "swiglu"] | None = option(
        {"dit": "gelu"}, "of a block's perceptron; swiglu has as many weights"
    )
    bottleneck: int | None = option(
        {"dit": None}, "width that a patch is mapped to first, for large patches with denoiser.prediction=x", ge=1
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


class DenoiserConfig(Section):
    """What the network predicts, and what it is conditioned on."""

    section = "denoiser"
    families = ("diffusion",)

    prediction: Annotated[str, Among((*PREDICTIONS, "levels"))] = option(
        "v", "what the network predicts; levels: the probabilities of each pixel's grey levels, for likelihood"
    )
    sigma_data: float = option(1.0, "standard deviation of the data, with which edm scales inputs and outputs", gt=0)
    conditional: bool = option(
        False, "condition on class labels, for sampling by label and for guidance", families=DENOISING
    )
    condition: tuple[str, ...] = option(
        (),
        "condition on more: keys of an .npz, columns of labels.csv, folders of the same file names, label (classes), "
        f"functions of the image: {', '.join(FUNCTIONS)}",
    )
    label_dropout: float = option(
        0.1, "fraction of conditions dropped in training, for guidance", families=DENOISING, ge=0, le=1
    )

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts of the condition, the class of the data first."""
        others = tuple(name for name in self.condition if name != "label")
        return ("label", *others) if self.conditional or len(others) < len(self.condition) else others

    def check(self) -> None:
        for name in self.condition:
            function, colon, number = name.partition(":")
            known = f"denoiser.condition: found {show(name)}"
            if function == "downsample" and not (re.fullmatch(r"[1-9][0-9]{0,3}", number) and int(number) > 1):
                raise UserError(f"{known}; must be downsample:N, N the side of a block that is averaged, from 2 on")
            if colon and function != "downsample":
                raise UserError(f"{known}; a part is a name, or one of {', '.join(FUNCTIONS)}")
            if not re.fullmatch(r"\w[\w.:+-]*", name):
                raise UserError(f"{known}; a name is of letters, digits and . _ + -")
            if self.condition.count(name) > 1:
                raise UserError(f"{known} twice; a part is given once")


class ObjectiveConfig(Section):
    """The loss, and the distribution of training times."""

    section = "objective"
    families = ("diffusion",)

    weighting: Annotated[str, Among((*WEIGHTINGS, "learned"))] = option(
        "elbo",
        "weighting of the loss over time; learned: by the error left at each noise level, estimated in training; "
        "objective.time then says how much each counts",
    )
    min_snr_gamma: float | None = option({"min-snr": 5.0}, "SNR at which the weight of min-snr is capped", gt=0)
    time: Literal["uniform", "log-snr", "log-normal", "logit-normal"] = option(
        "uniform",
        "distribution of training times: uniform in t or in log-snr, log-normal in sigma / alpha, logit-normal in t",
    )
    stratified: bool = option(True, "stratify the times of a batch (low discrepancy), over all devices")
    time_mean: float | None = option({"log-normal": -1.2, "logit-normal": 0.0}, "mean of the normal distribution")
    time_std: float | None = option(
        {"log-normal": 1.2, "logit-normal": 1.0}, "standard deviation of the normal distribution", gt=0
    )
    dequantize: bool = option(True, "train on images with uniform noise within each grey level, as likelihoods need")


class AutoencoderConfig(Section):
    """The encoder and the decoder of a vae or an eae, and how they are trained."""

    section = "autoencoder"
    families = ("vae", "eae")

    latent_dim: int = option(64, "length of the code", ge=1)
    base_channels: int = option(32, "channels at full resolution", ge=1)
    multipliers: tuple[Count, ...] = option((1, 2, 4), "channels of each level as multiples of base_channels")
    blocks: int = option(1, "residual blocks per level", ge=1)
    observation: Annotated[str, Among(OBSERVATIONS)] = option(
        "logistic-mixture",
        "vae: distribution of a pixel's grey level given the code; bernoulli is for 2 levels",
        families=("vae",),
    )
    components: int | None = option(
        {"logistic-mixture": 5}, "components of a pixel's mixture of logistics", ge=1, families=("vae",)
    )
    beta: float = option(1.0, "vae: weight of the KL term; 1 is the variational bound", ge=0, families=("vae",))
    free_bits: float = option(
        0.0, "vae: KL per dimension, in nats, below which it is not penalised", ge=0, families=("vae",)
    )
    iwae_samples: int = option(
        1, "vae: draws of the code per image; above 1: the importance-weighted loss", ge=1, families=("vae",)
    )
    entropy_weight: float = option(
        1.0,
        "eae: lambda, the weight of the entropy in nats against the squared error per image",
        gt=0,
        families=("eae",),
    )
    neighbours: int = option(3, "eae: k of the nearest-neighbour entropy estimator", ge=1, families=("eae",))

    def check(self) -> None:
        if self.multipliers == ():
            raise UserError("autoencoder.multipliers: found []; must have one integer a level")
        if self.iwae_samples > 1 and (self.beta != 1.0 or self.free_bits):
            raise UserError(
                f"autoencoder.iwae_samples: found {self.iwae_samples}; above 1 it takes beta 1 and free_bits 0"
            )
