"""`python -m diffusion check MODEL`: the noise levels in a table, and a line for each thing that is wrong."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from operator import attrgetter
from typing import Any

import torch

from ...denoisers import LevelDenoiser
from ...devices import choose_device
from ...errors import UserError
from ...models.check import Check, Level
from ..app import ProgressBar
from ..evaluate.given import DATA, NONE, given_to
from ..sample.condition import parts_of
from ..subjects import images_of, load_data_of, load_subject
from ..table import Column, Table
from ..terminal import console, print_next, say, split_words
from . import levels

FAILED = 1
COLUMNS = (
    *(Column(name, attrgetter(key), form) for name, key, form in (
        ("log-SNR", "log_snr", ".2f"), ("eps error", "error", ".4g"), ("linear filter", "linear", ".4g"),
        ("mean of x_hat", "mean", ".3f"), ("deviation of x_hat", "std", ".3f"),
    )),
)  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Check what the command line names; 0 if nothing is wrong, 1 if something is."""
    subject = load_subject(options.model, options.runs, choose_device(options.device), points=True)
    data = load_data_of(subject, options.data)
    total = len(getattr(data, options.split))
    if total < 2 or options.levels < 2:
        raise UserError(f"--images, --levels: a check needs two or more of each; the {options.split} split has {total}")
    images, identity = images_of(data, options.split, min(options.images, total))
    has_labels = getattr(data, f"{options.split}_labels") is not None
    own = [DATA] if has_labels or getattr(getattr(subject.model, "denoiser", None), "parts", ()) else [NONE]
    requested = options.condition or (own if parts_of(subject.model) else [NONE])
    given = given_to(subject.model, data, images, identity, requested)
    cond = None if given is None else given.of(torch.arange(len(images)))
    bar = ProgressBar()
    found = subject.model.check(
        images, levels=options.levels, seed=options.seed, cond=cond,
        progress=lambda done, count: bar.named("conventions", done, count),
    )  # fmt: skip
    bar.close()
    denoiser = getattr(subject.model, "denoiser", None)
    head = levels.lines(denoiser) if isinstance(denoiser, LevelDenoiser) else []
    if options.json:
        print(json.dumps({"model": subject.name, "data": identity, **_plain(found), "head": head}, indent=1))
    else:
        out = console()
        out.print(_table(subject.name, found))
        for line in found.lines():
            say(out, f"- {line}", "green" if found.passed else "bold red")
        for line in head:
            say(out, f"- {line}")
        if found.passed:
            words = (options.model, *split_words(options.split))
            print_next(out, "evaluate", *words, data=options.data, runs=options.runs)
    return 0 if found.passed else FAILED


def _table(name: str, found: Check) -> Table:
    caption = f"{found.images} images, of mean {found.mean:.3f} and deviation {found.std:.3f}"
    rows: tuple[Level, ...] = found.levels
    return Table(COLUMNS, rows, title=f"{name} by noise level", caption=caption)


def _plain(found: Check) -> Mapping[str, Any]:
    return {**asdict(found), "better": dict(found.better), "passed": found.passed, "lines": found.lines()}
