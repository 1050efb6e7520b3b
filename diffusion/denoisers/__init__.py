"""Denoisers: E[x | x_t] on the path of a schedule, from a network or in closed form."""

from . import exact
from .denoiser import Clipped, Denoiser, NetworkDenoiser, Retimed
from .levels import LevelDenoiser

__all__ = ["Clipped", "Denoiser", "LevelDenoiser", "NetworkDenoiser", "Retimed", "exact"]
