"""The command line of `doctor`, read before torch is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..options import Parser


def parse_doctor_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of `doctor`."""
    parser = Parser(
        "doctor",
        "Check this machine in under a minute: every sampler and every likelihood estimator against exact "
        "models, a network forward and backward in the precision that would be chosen, and what is installed. Exit "
        "code 0 if all pass, 1 if not.",
    )
    add = parser.add_argument
    parser.add_device()
    add("--json", action="store_true", help="print the checks as JSON")
    add("--all", action="store_true", help="also list every check that passes (default: one line per name)")
    return parser.parse_args(list(argv))
