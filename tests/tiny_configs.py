"""Configurations of runs that take a second, as overrides of the shipped ones."""

from pathlib import Path

from diffusion.config import Config, load_config

_ALL = (
    "device=cpu",
    "logging.wandb=off",
    "trainer.batch_size=8",
    "trainer.log_every=1",
    "trainer.validate_every=0",
    "trainer.sample_every=0",
    "trainer.steps=6",
    "optimizer.lr=1e-3",
    "optimizer.warmup=2",
    "sampling.n=4",
    "evaluation.baselines=false",
    "sampling.steps=3",
)
TOY = (*_ALL, "network.width=8", "network.depth=1")
DIGITS = (
    *_ALL,
    "network.base_channels=4",
    "network.multipliers=[1]",
    "network.blocks=1",
    "network.attention=[]",
    "network.fourier_features=[]",
    "sampling.sampler=ddim",
)


AUTOENCODER = (
    *(setting for setting in _ALL if not setting.startswith("sampling.steps")),
    "autoencoder.latent_dim=3",
    "autoencoder.base_channels=4",
    "autoencoder.multipliers=[1]",
)


def autoencoder_arguments(family: str, folder: Path, *overrides: str) -> list[str]:
    """The arguments of train.py for a `vae` or `eae` of 4 channels on the digits."""
    return ["--config", f"{family}-digits", f"runs={folder / 'runs'}", *AUTOENCODER, *overrides]


def autoencoder_config(family: str, folder: Path, *overrides: str) -> Config:
    """As `autoencoder_arguments`, as a configuration."""
    return load_config(f"{family}-digits", autoencoder_arguments(family, folder, *overrides)[2:])


def toy_arguments(folder: Path, *overrides: str) -> list[str]:
    """The arguments of train.py for an MLP of width 8 on the toy."""
    return ["--config", "toy", f"runs={folder / 'runs'}", *TOY, *overrides]


def digits_arguments(folder: Path, *overrides: str) -> list[str]:
    """The arguments of train.py for a U-Net of 4 channels on the digits."""
    return ["--config", "digits", f"runs={folder / 'runs'}", *DIGITS, *overrides]


def toy_config(folder: Path, *overrides: str) -> Config:
    """As `toy_arguments`, as a configuration."""
    return load_config("toy", toy_arguments(folder, *overrides)[2:])


def digits_config(folder: Path, *overrides: str) -> Config:
    """As `digits_arguments`, as a configuration."""
    return load_config("digits", digits_arguments(folder, *overrides)[2:])
