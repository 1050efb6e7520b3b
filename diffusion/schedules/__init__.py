"""Schedules: the pair (alpha, sigma) of a Gaussian path x_t = alpha_t x + sigma_t eps."""

from ..config import SCHEDULES, imported
from .continuous import EDM, VE, VP, Cosine, Rectified, SubVP
from .discrete import DDPM, Table
from .fitted_start import FittedStart
from .foreign import Functions, Scaled, SongVE
from .learned import Learned
from .schedule import Schedule
from .time_grids import time_grid

# By the names that configurations use.
BY_NAME: dict[str, type[Schedule]] = {name: imported(place) for name, place in SCHEDULES.items()}

__all__ = [
    "BY_NAME",
    "DDPM",
    "EDM",
    "VE",
    "VP",
    "Cosine",
    "FittedStart",
    "Functions",
    "Learned",
    "Rectified",
    "Scaled",
    "Schedule",
    "SongVE",
    "SubVP",
    "Table",
    "time_grid",
]
