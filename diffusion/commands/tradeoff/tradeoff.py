"""`python -m diffusion tradeoff`: what do more evaluations, or another sampler, buy?

    RUN/tradeoff/tradeoff.md, .csv, .json, .png    the figures of the last command
    RUN/tradeoff/exposure.png                      the size of the states along each sampler over that of training's
    RUN/tradeoff/cells/<sampler>-<digest>.json     each cell, with the protocol that the digest is of

A model in closed form (`exact:NAME`) needs no training and is kept in evaluations/NAME.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ... import samplers
from ...data import pictures
from ...devices import choose_device, device_name
from ...errors import UserError
from ...storage import atomic
from .. import mirror
from ..app import ProgressBar
from ..preflight import EXACT, check_takes_figures
from ..table import Table
from ..terminal import console, note_replaced, print_next, print_places, say
from .arguments import BY
from .cells import Bench, Cell, Measured, plan
from .picture import exposure_picture, picture
from .report import COLUMNS, Row, cost_table, in_rows, verdict
from .subjects import Subject, load

# What is compared by default: the simplest, the best of each sort, and one that is known to go wrong.
DEFAULT = ("ddim", "heun", "dpm-solver++2m", "unipc", "adams", "abm", "ode", "ancestral", "sde")
ALL = "all"
OF_EACH = "as suits each sampler"


def run(options: argparse.Namespace) -> int:
    """Carry out the command line; returns the exit code."""
    cells = plan(_samplers(options.samplers), options.budgets)  # an unknown name before a model is loaded
    if not any(cells):
        raise UserError(
            f"--budgets: found {options.budgets}; none suits a sampler of two steps or more (fitted: 2 to 10)"
        )
    device, bar = choose_device(options.device), ProgressBar()
    subject = load(options, device, bar)
    check_takes_figures(subject.folder)
    bench = Bench(subject, options, device)
    rows = _measure(bench, cells, max(options.budgets), bar)
    bar.close()
    protocol = {
        "n": options.n, "seed": options.seed, "grid": options.grid or OF_EACH,
        "log_snr_end": options.log_snr_end, "device": device_name(device),
        "tight_tolerance": subject.tolerance, "reference": subject.reference, **subject.identity,
    }  # fmt: skip
    title = f"Quality against cost: {subject.name}"
    caption = (
        f"{options.n} samples, seed {options.seed}, grid {options.grid or OF_EACH}, {device_name(device)}. Distance "
        "(rms over samples, and their median) from a solve of the probability flow at a tolerance of "
        f"{subject.tolerance:g} from the same noise; order: of the median, from the row above. FID and KID "
        f"against {subject.reference}; FID falls with n even for a perfect model. Exposure: E|x|² of the samples over "
        "that of the data, 1 for an exact model and solver; exposure.png shows it along the way. ms: milliseconds a "
        "sample."
    )
    line = verdict(rows, options.by)
    out, plain = console(), [row.values() for row in rows]
    out.print(cost_table(plain, title, f"{caption} The files have the steps, too."))
    say(out, line)
    folder = subject.folder
    text = json.dumps({"protocol": protocol, "verdict": line, "rows": plain}, indent=1)
    note_replaced(folder / "tradeoff.json", text, "a trade-off", _about)
    charts = {"tradeoff": picture(rows, title), "exposure": exposure_picture(rows, f"Exposure bias: {subject.name}")}
    drawn = {name: chart for name, chart in charts.items() if chart is not None}
    for name, chart in drawn.items():
        pictures.save(folder / f"{name}.png", chart)
    table = Table(COLUMNS, plain).filled().markdown()
    atomic.write_text(folder / "tradeoff.md", f"# {title}\n\n{line}.\n\n{table}\n\n{caption}\n")
    atomic.write_text(folder / "tradeoff.csv", Table.of(plain).csv())
    atomic.write_text(folder / "tradeoff.json", text)
    names = ", ".join(("tradeoff.md", "tradeoff.csv", "tradeoff.json", *(f"{name}.png" for name in drawn)))
    print_places(out, {"stored in": folder, "files": names})
    if bench.fresh or not (folder / "wandb").exists():
        logged = _mirror(subject, rows, protocol, line, drawn, options.wandb)
        if logged is not None:
            print_places(out, {"W&B run": logged})
    words = () if options.run.startswith(EXACT) else ("--run", options.run)
    print_next(out, "sample", *words, runs=options.runs)
    return 0


def _about(kept: Mapping[str, Any]) -> tuple[list[str], Any]:
    """The cells of a trade-off, and the protocol that they were measured by."""
    rows = kept["rows"]
    cells = [f"{r['sampler']} at " + (f"{r['steps']} steps" if r["steps"] else f"{r['tolerance']:g}") for r in rows]
    return cells, kept["protocol"]


def _samplers(requested: Sequence[str] | None) -> list[str]:
    known = samplers.names()
    if requested is None:
        return [name for name in DEFAULT if name in known]
    return known if ALL in requested else list(dict.fromkeys(requested))


def _measure(bench: Bench, cells: Sequence[Sequence[Cell]], most: int, bar: ProgressBar) -> list[Row]:
    rows, done, count = [], 0, sum(map(len, cells))
    for of_sampler in cells:
        found: list[Measured] = []
        for cell in of_sampler:
            bar.named("cells", done, count)
            done += 1
            # tolerances come loosest first: once one costs more than the budgets, tighter ones do too
            if cell.steps is None and found and found[-1].nfe > most:
                continue
            found.append(bench.measured(cell))
        rows += in_rows(found)
    return rows


def _mirror(
    subject: Subject, rows: Sequence[Row], protocol: dict[str, Any], line: str, images: dict[str, Any], choice: str
) -> Any:
    named = {"tradeoff": Table.of(row.values() for row in rows)}
    values: dict[str, Any] = {"tradeoff/verdict": line}
    for row in rows:
        for key in BY:
            if (value := row.values()[key]) is not None:
                values[f"tradeoff/{row.found.cell.sampler}/{row.found.nfe:.0f}/{key}"] = value
    return mirror.log(
        subject.folder, choice, subject.project, subject.group, protocol, values, named, images, "tradeoff"
    )
