"""Objectives: a weighting over log-SNR, a distribution of training times, and the loss that combines them."""

from .loss import Losses, Objective
from .time_sampling import draw_u, time_distribution
from .uncertainty import Uncertainty
from .weightings import weighting

__all__ = ["Losses", "Objective", "Uncertainty", "draw_u", "time_distribution", "weighting"]
