"""Guidance: denoisers around denoisers."""

from .classifier_free import ClassifierFree

__all__ = ["ClassifierFree"]
