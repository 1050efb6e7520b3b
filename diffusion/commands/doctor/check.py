"""One check of `doctor`: what was found, what was expected, and whether it passed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ...errors import in_one_line


@dataclass(frozen=True)
class Check:
    """The outcome of a check.

    Args:
        group: samplers, estimators, network or machine.
        name: What was checked.
        what: How it was measured.
        found: The outcome, in words.
        expected: What would pass, in words.
        passed: Whether it did.
        seconds: The time it took.
    """

    group: str
    name: str
    what: str
    found: str
    expected: str
    passed: bool
    seconds: float = 0.0


Body = Callable[[], list[Check]]


def attempt(group: str, name: str, body: Body) -> list[Check]:
    """The checks of `body`, timed; an exception of any kind is a failed check, with the reason."""
    start = time.perf_counter()
    try:
        made = body()
    except Exception as error:
        made = [Check(group, name, "runs", in_one_line(error, 160), "no error", False)]
    seconds = (time.perf_counter() - start) / max(1, len(made))
    return [replace(check, seconds=seconds) for check in made]


def within(group: str, name: str, what: str, found: float, truth: float, allowed: float) -> Check:
    """A check that a number is within `allowed` of the truth (a nan is not)."""
    passed = math.isfinite(found) and abs(found - truth) <= allowed
    return Check(group, name, what, f"{found:.5f}", f"{truth:.5f} ± {allowed:.1g}", passed)


def below(group: str, name: str, what: str, found: float, limit: float) -> Check:
    """A check that an error is at most `limit` (a nan is not)."""
    return Check(group, name, what, f"{found:.1e}", f"at most {limit:.1e}", found <= limit)
