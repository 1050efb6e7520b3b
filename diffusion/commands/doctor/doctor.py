"""`python -m diffusion doctor`: does this installation, on this machine, compute what it should?

Nothing is trained and nothing is compared with earlier output: the truth is closed forms throughout, so a wrong answer
of a new library version, driver or device shows here before it shows in somebody's figures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from operator import attrgetter

import torch

from ...devices import choose_device, device_name
from ...numerics.placement import for_numbers
from ..table import Column, Table
from ..terminal import console, print_next, print_places, say
from .check import Check
from .estimators import check_estimators
from .machine import check_machine, check_network
from .samplers import check_samplers

FAILED = 1


def run(options: argparse.Namespace) -> int:
    """Carry out the command line; 0 if all pass, 1 if not."""
    device, start = choose_device(options.device), time.perf_counter()
    exact = for_numbers(device)  # of these models nothing is a network
    checks = [*check_machine(device), *check_network(device), *check_samplers(exact), *check_estimators(exact)]
    seconds, passed = time.perf_counter() - start, all(check.passed for check in checks)
    if options.json:
        named = {"device": device_name(device), "torch": torch.__version__, "seconds": seconds, "passed": passed}
        print(json.dumps({**named, "checks": [asdict(check) for check in checks]}, indent=1))
        return 0 if passed else FAILED
    out = console()
    print_places(out, {check.name: check.found for check in checks if _is_fact(check)})
    out.print()
    out.print(table([check for check in checks if not _is_fact(check)], options.all))
    failed = [check for check in checks if not check.passed]
    for check in failed:
        of = f"{check.group}, {check.name}, {check.what}"
        say(out, f"- {of}: found {check.found}; expected {check.expected}", "bold red")
    verdict = f"{len(failed)} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks passed"
    say(out, f"{verdict} on {device_name(device)} in {seconds:.0f} s")
    if passed:
        print_next(out, "train")
    return FAILED if failed else 0


def _is_fact(check: Check) -> bool:
    return check.passed and not check.expected


_GROUP = Column("group", "group")
_SHORT = (
    Column("", "name", left=True), Column("checks", "count"),
    Column("found", lambda row: row["found"] if row["passed"] else "see below", left=True),
    Column("expected", "expected", left=True),
    Column(
        "", lambda row: "pass" if row["passed"] else "FAIL", left=True,
        style=lambda row: "green" if row["passed"] else "bold red",
    ),
)  # fmt: skip
_ALL = (_SHORT[0], *_SHORT[2:], Column("s", "seconds", ".1f"), Column("checked", "what", left=True))


def table(checks: Sequence[Check], every: bool) -> Table:
    """What was checked; without `every`, of a name whose checks all pass, the last one and how many there are."""
    rows = []
    for _, of_name in groupby(checks, key=attrgetter("group", "name")):
        found = list(of_name)
        if not every and all(check.passed for check in found):
            rows.append({**vars(found[-1]), "count": len(found)})
        else:
            rows += [{**vars(check), "count": 1} for check in found]
    caption = "" if every else "the last check of each name; --all lists them all, and what was measured"
    return Table(_ALL if every else _SHORT, rows, caption=caption, section=_GROUP)
