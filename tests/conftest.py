"""Shared by all tests: `laws.py` can be imported from any folder; one thread, which is fastest for small tensors."""

import gc
import importlib.metadata
import os
import re
import sys
from functools import cache, partial, wraps
from pathlib import Path
from types import FunctionType

# Before the first large import. Without bytecode, as many containers have it, each of the processes that tests start
# would spend ten seconds on compiling torch.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    sys.dont_write_bytecode = False
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands do

import beartype
import jaxtyping
import numpy as np
import pytest
import torch

gc.disable()  # until all is imported
importlib.metadata.entry_points = cache(importlib.metadata.entry_points)  # Lightning asks at the start of each run
# pytest puts the folder of a test on the path, not the folders above it.
sys.path.insert(0, str(Path(__file__).parent))
# Threads that wait for each other on a busy machine make the suite several times slower.
torch.set_num_threads(1)
# Their assertions hold under `python -O` too, as those of the tests do.
pytest.register_assert_rewrite("conditional_runs", "hostile_files", "laws")


_ARRAY = re.compile(r"\b(Float|Int|UInt|Bool|Shaped|Num|Real|Inexact|Integer)\d*\[")
_ALWAYS = object()
_made = set()
# As jaxtyping's: what reads a file catches a TypeError where the file holds something else.
_CHECKED = beartype.beartype(conf=beartype.BeartypeConf(violation_type=TypeError))


@cache
def _is_array(kind):  # torch makes `isinstance` slow
    return issubclass(kind, torch.Tensor | np.ndarray)


def _kind(value):
    """What a check of shapes and types sees of a value."""
    kind = type(value)
    if _is_array(kind):
        return kind, value.dtype, value.shape
    if kind in (list, tuple):
        return kind, *map(_kind, value)
    if kind is dict:
        return kind, *((type(key), _kind(item)) for key, item in value.items())
    return kind


def _checked_once(fn, typechecker, original, by_number):
    """`fn`, checked by jaxtyping at its first call with arguments of these shapes and types (and whole numbers).

    Later ones of the same are not checked again, unless a result is of another shape or type than the first: from then
    on each is.
    """
    checked, seen = None, {}

    @wraps(fn)
    def called(*args, **kwargs):
        nonlocal checked
        if jaxtyping.config.jaxtyping_disable:  # within torch.compile
            return fn(*args, **kwargs)
        given = _kind(args), _kind(kwargs) if kwargs else None
        if by_number:
            given += tuple(value for value in (*args, *kwargs.values()) if isinstance(value, int))
        try:
            expected = seen.get(given, _ALWAYS)
        except TypeError:  # the sides of a traced program are symbols, which have no hash
            return fn(*args, **kwargs)
        if expected is not _ALWAYS:
            found = fn(*args, **kwargs)
            if _kind(found) != expected:
                seen[given] = _ALWAYS
            return found
        checked = checked or original(fn, typechecker=typechecker)
        found = checked(*args, **kwargs)
        seen.setdefault(given, _kind(found))
        return found

    return called


def _jaxtyped(fn=None, *, typechecker, original=jaxtyping.jaxtyped):
    """`jaxtyping.jaxtyped`, in a small part of the time of the tests.

    Of a function without arrays it comes to the type checker alone, which is fast. A function within another would be
    compiled anew at each call of that: it is checked the first time that it is made.
    """
    if fn is None:
        return partial(_jaxtyped, typechecker=typechecker)
    if not isinstance(fn, FunctionType):
        return original(fn, typechecker=typechecker)
    if "<locals>" in fn.__qualname__:
        if fn.__code__ in _made:
            return fn
        _made.add(fn.__code__)
    kinds = " ".join(map(str, fn.__annotations__.values()))
    # `forward` is what torch.compile traces: jaxtyping steps aside for it, beartype does not.
    if _ARRAY.search(kinds) or fn.__name__ == "forward":
        return _checked_once(fn, typechecker, original, by_number="{" in kinds)  # a side that an argument states
    return _CHECKED(fn)


jaxtyping.jaxtyped = _jaxtyped


# What `-m quick` runs: laws and units, without the longest of them. Samplers are measured on two schedules there;
# the default run takes them all.
_QUICK = (
    "config", "data", "denoisers", "likelihood", "metrics", "networks", "numerics", "objectives", "samplers",
    "schedules", "storage",
)  # fmt: skip
_LONG = (
    "test_annealed", "test_coverage", "test_error_budget", "test_every_combination", "test_long_paths", "test_path_end",
    "test_compiled_in_place_gives_the_same_with_one_graph_and_the_same_keys", "test_two_laws",
    "test_the_kernel_gives_the_same_words",
)  # fmt: skip
_TWO_SCHEDULES = ("test_order", "test_stochastic", "test_equivalences", "test_adaptive_ode")
_SCHEDULE = re.compile(r"\b(VP|SubVP|VE|Cosine|EDM|Rectified|DDPM|Learned)\(")


def _is_quick(item):
    if item.path.parent.name not in _QUICK or item.get_closest_marker("slow"):
        return False
    schedules = set(_SCHEDULE.findall(item.name)) if item.path.stem in _TWO_SCHEDULES else set()
    is_chosen = not schedules or bool(schedules & {"VP", "EDM"})
    return is_chosen and not {item.path.stem, item.originalname} & set(_LONG)


def pytest_collection_modifyitems(items):
    # Files of a minute go first: of two processes none waits for the other's last file.
    items.sort(key=lambda item: item.path.parent.name not in ("commands", "training"))
    for item in items:
        if _is_quick(item):
            item.add_marker("quick")


def pytest_collection_finish():
    """The million objects that are imported stay: the garbage collector need not go through them again."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    """At the end they go, as extension modules (triton's) print those that stay."""
    gc.unfreeze()


@pytest.fixture(scope="module")
def quick():
    """The runs of a file have plain charts, and few points in a validation."""
    from quick_runs import quick_runs

    with quick_runs:
        yield


@pytest.fixture
def quick_tuning(monkeypatch):
    """A short search for a grid, from a coarse reference: for tests that do not look at what it finds."""
    from diffusion.sampling import auto_grid

    few = {"_EVALUATIONS": 12, "_REFERENCE_STEPS": 20, "_ROWS": 8, "_LEAST_ROWS": 4, "_LEAST_UNSEEN": 4}
    for name, value in few.items():
        monkeypatch.setattr(auto_grid, name, value)


@pytest.fixture
def quick_fit(monkeypatch):
    """The declared density of an EAE is fitted in few steps: for tests that do not look at how well."""
    from diffusion.baselines.eae import EAE

    original = EAE.fit_after_training
    monkeypatch.setattr(
        EAE, "fit_after_training", lambda self, images, seed=0, **more: original(self, images, seed, 3, **more)
    )


@pytest.fixture
def small_baselines(monkeypatch):
    """The models that stand for scale have few components, and one small tree a pixel."""
    from diffusion.baselines import classical
    from diffusion.baselines.level_models import AutoregressiveForest, CategoricalMixture

    monkeypatch.setattr(AutoregressiveForest, "fit", partial(AutoregressiveForest.fit, trees=1, leaves=(50,)))
    few = {"components": (2,), "pseudocounts": (10.0,)}
    monkeypatch.setattr(CategoricalMixture, "fit", partial(CategoricalMixture.fit, **few))
    monkeypatch.setattr(classical, "gaussian_mixture", partial(classical.gaussian_mixture, components=(1,)))


@pytest.fixture
def device(monkeypatch):
    """A device that only pretends to be one, and counts (`pretended_device.Device`)."""
    from pretended_device import Device

    autocast = torch.autocast  # has no type for it
    monkeypatch.setattr(torch, "autocast", lambda kind, *given, **more: autocast("cpu", *given, **more))
    with Device() as found:
        yield found


@pytest.fixture(autouse=True, scope="session")
def _on_any_machine(tmp_path_factory):
    """What tests keep is theirs, also that of the programs they start; torch's own downloads stay where they are, as
    does matplotlib's list of fonts, which takes seconds to make.

    Nothing reports its progress, however slow the machine is: what is on stderr is compared.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with pytest.MonkeyPatch.context() as patch:
        for name, own in (("TORCH_HOME", "torch"), ("MPLCONFIGDIR", "matplotlib")):
            patch.setenv(name, os.environ.get(name) or str(home / own))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("diffusion.commands.app.ProgressBar.FIRST", 1e6)
        yield
