"""Denoisers: E[x | x_t] on the path of a schedule, from a network or in closed form."""

from . import exact
from .denoiser import Clipped, Denoiser, NetworkDenoiser, Retimed

__all__ = ["Clipped", "Denoiser", "NetworkDenoiser", "Retimed", "exact"]
