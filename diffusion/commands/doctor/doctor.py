"""`python -m diffusion doctor`: does this installation, on this machine, compute what it should?

Nothing is trained and nothing is compared with earlier output: the truth is closed forms throughout, so a wrong answer
of a new library version, driver or device shows here before it shows in somebody's figures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import groupby
from operator import attrgetter

import torch
from rich.markup import escape

from ...devices import choose_device, device_name
from ...numerics.placement import for_numbers
from ..report import console, print_next
from ..table import Column, Table
from .check import Check
from .estimators import check_estimators
from .machine import check_machine, check_network
from .samplers import check_samplers

FAILED = 1


def run(options: argparse.Namespace) -> int:
    """Check what the command line asks for; 0 if all pass, 1 if not."""
    device, start = choose_device(options.device), time.perf_counter()
    exact = for_numbers(device)  # of these models nothing is a network
    checks = [*check_machine(device), *check_network(device), *check_samplers(exact), *check_estimators(exact)]
    seconds, passed = time.perf_counter() - start, all(check.passed for check in checks)
    if options.json:
        named = {"device": device_name(device), "torch": torch.__version__, "seconds": seconds, "passed": passed}
        print(json.dumps({**named, "checks": [asdict(check) for check in checks]}, indent=1))
        return 0 if passed else FAILED
    out = console()
    out.print(table(checks, options.all))
    failed = [check for check in checks if not check.passed]
    verdict = f"{len(failed)} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks passed"
    out.print(f"{verdict} on {escape(device_name(device))} in {seconds:.0f} s")
    if passed:
        print_next(out, "train")
    return FAILED if failed else 0


COLUMNS = (
    *(Column("", attrgetter(name), left=True) for name in ("group", "name")),
    Column("checked", attrgetter("what"), left=True, wraps=True),
    *(Column(name, attrgetter(name), left=True, wraps=True) for name in ("found", "expected")),
    Column(
        "", lambda check: "pass" if check.passed else "FAIL", left=True,
        style=lambda check: "green" if check.passed else "bold red",
    ),
    Column("s", attrgetter("seconds"), ".1f"),
)  # fmt: skip


def table(checks: Sequence[Check], every: bool) -> Table:
    """What was checked; without `--all` only the last check of a sampler that passes all is shown."""
    rows: list[Check] = []
    for _, of_name in groupby(checks, key=lambda check: (check.group, check.name)):
        found = list(of_name)
        if not every and len(found) > 2 and all(check.passed for check in found):
            what, seconds = f"{found[-1].what} (+{len(found) - 1})", sum(check.seconds for check in found)
            found = [replace(found[-1], what=what, seconds=seconds)]
        rows += [found[0], *(replace(check, group="", name="") for check in found[1:])]
    return Table(
        COLUMNS, rows, caption="" if every else "(+n): so many more checks of that name pass; --all lists them"
    )
