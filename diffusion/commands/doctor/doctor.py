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

import torch
from rich import box
from rich.markup import escape
from rich.table import Table

from ...devices import choose_device, device_name
from ..report import console
from .check import Check
from .estimators import check_estimators
from .machine import check_machine, check_network
from .samplers import check_samplers

FAILED = 1


def run(options: argparse.Namespace) -> int:
    """Check what the command line asks for; 0 if all pass, 1 if not."""
    device, start = choose_device(options.device), time.perf_counter()
    checks = [*check_machine(device), *check_network(device), *check_samplers(device), *check_estimators(device)]
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
    return FAILED if failed else 0


def table(checks: Sequence[Check], every: bool) -> Table:
    """What was checked; unless all are asked for, of a sampler whose checks all pass only the last is shown."""
    made = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, caption_justify="left")
    if not every:
        made.caption = "(+n): so many more checks of that name pass; --all lists them"
    for column in ("", "", "checked", "found", "expected", "", "s"):
        made.add_column(column, justify="right" if column == "s" else "left", overflow="fold")
    for group, of_group in groupby(checks, key=lambda check: check.group):
        for name, of_name in groupby(of_group, key=lambda check: check.name):
            rows = list(of_name)
            brief = not every and len(rows) > 2 and all(check.passed for check in rows)
            for i, check in enumerate(rows[-1:] if brief else rows):
                what = f"{check.what} (+{len(rows) - 1})" if brief else check.what
                result = "[green]pass[/green]" if check.passed else "[bold red]FAIL[/bold red]"
                texts = map(
                    escape, (group if i == 0 else "", name if i == 0 else "", what, check.found, check.expected)
                )
                spent = sum(row.seconds for row in rows) if brief else check.seconds
                made.add_row(*texts, result, f"{spent:.1f}")
    return made
