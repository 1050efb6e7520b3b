"""Modules by their former names: the very modules, with a warning that names the place."""

import importlib

import pytest

import diffusion
from diffusion.moved import MOVED


@pytest.mark.parametrize("name", sorted(MOVED))
def test_a_former_name_is_the_module_that_moved(name):
    now = importlib.import_module(f"diffusion.{MOVED[name]}")
    own = now.__name__, now.__spec__
    with pytest.warns(DeprecationWarning, match=f"diffusion.{name} is diffusion.{MOVED[name]} now".replace(".", r"\.")):
        former = importlib.import_module(f"diffusion.{name}")
    assert former is now
    assert getattr(diffusion, name) is now
    assert (now.__name__, now.__spec__) == own


def test_an_unknown_name_is_none():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("diffusion.nothing")
    with pytest.raises(AttributeError):
        _ = diffusion.nothing
