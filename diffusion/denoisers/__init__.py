"""Denoisers: E[x | x_t] on the path of a schedule, from a network or in closed form."""

from . import exact
from .denoiser import Clipped, Denoiser, DenoiserWrapper, NetworkDenoiser, Retimed
from .levels import LevelDenoiser

__all__ = ["Clipped", "Denoiser", "DenoiserWrapper", "LevelDenoiser", "NetworkDenoiser", "Retimed", "exact"]
