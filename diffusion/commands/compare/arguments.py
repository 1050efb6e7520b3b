"""The command line of `compare`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..evaluate.arguments import _common
from ..options import Parser, path


def parse_compare_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line of `compare`."""
    parser = Parser(
        "compare",
        "One table of what `evaluate` measured, with differences paired on the same images; also as "
        "Markdown, CSV, JSON and a self-contained HTML page.",
    )
    add = parser.add_argument
    add(
        "run",
        nargs="+",
        type=path,
        metavar="RUN",
        help="a run folder or its name, or a model file, measured by `evaluate`",
    )
    _common(parser)
    add("--out", type=path, metavar="DIR", default="comparison", help="where the files go (default: comparison)")
    add("--no-baselines", dest="baselines", action="store_false",
        help="omit the classical models (pixel histograms, mixtures, forest, PNG)")  # fmt: skip
    return parser.parse_args(list(argv))
