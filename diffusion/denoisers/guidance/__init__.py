"""Guidance: denoisers that wrap denoisers."""

from .autoguidance import Autoguidance
from .classifier import ClassifierGuided, PathClassifier
from .classifier_free import ClassifierFree
from .guided import ALWAYS, Guided, Interval

__all__ = ["ALWAYS", "Autoguidance", "ClassifierFree", "ClassifierGuided", "Guided", "Interval", "PathClassifier"]
