"""The tables of benchmarks/results.py as Markdown, and a page with blocks that they replace.

A block stands between two lines of its own, which no reader of the page sees:

    <!-- digits: likelihoods -->
    ...
    <!-- end -->

Likelihoods are means over seeds: the interval of one is over images, of each image's mean over seeds, and differences
are paired on the same images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from diffusion.commands.compare.comparison import is_classical
from diffusion.commands.compare.content import name_of
from diffusion.commands.compare.groups import kind_text
from diffusion.commands.compare.tables import budget_table
from diffusion.commands.evaluate.arguments import NAMES_OF_DRAWS
from diffusion.commands.quality.table import COLUMNS
from diffusion.commands.quality.table import Row as QualityRow
from diffusion.commands.records import Evaluation
from diffusion.commands.table import Column, Table
from diffusion.errors import UserError, did_you_mean
from diffusion.likelihood import Interval
from diffusion.likelihood.estimate import mean_interval

BLOCKS = ("likelihoods", "differences", "budgets", "quality")
_MARKER = re.compile(rb"^<!-- (?:([\w-]+: [\w-]+)|end) -->[ \t\r]*$", re.MULTILINE)
_HOUR = 3600.0
_QUALITIES = ("n", "FID", "KID", "precision", "recall", "coverage")


@dataclass(frozen=True)
class Figure:
    """A recipe's figure by one method, of every seed that is measured.

    Args:
        name: The recipe, or the classical model.
        evaluations: One a seed, of the same images.
        training: What each seed's training cost, as `Subject.training`.
    """

    name: str
    evaluations: Sequence[Evaluation]
    training: Sequence[Mapping[str, object]] = ()

    @property
    def seeds(self) -> torch.Tensor:
        """The mean bits/dim of each seed, shape (S,)."""
        return torch.tensor([e.estimate.mean().mean for e in self.evaluations], dtype=torch.float64)

    @property
    def images(self) -> torch.Tensor:
        """Bits/dim of each image, the mean over seeds, shape (B,)."""
        return torch.stack([e.estimate.bits_per_dim for e in self.evaluations]).mean(0)

    @property
    def of(self) -> str:
        """What identifies its images."""
        return str(self.evaluations[0].protocol.data["sha256"])

    @property
    def is_trained(self) -> bool:
        """Whether it is no classical model, of which there is one, without seeds."""
        return not is_classical(self.evaluations[0])

    @property
    def first(self) -> Evaluation:
        """That of the first seed, under the recipe's name."""
        first = self.evaluations[0]
        return replace(first, model={**first.model, "run": f"`{self.name}`" if self.is_trained else self.name})

    @property
    def method(self) -> str | None:
        """The estimator with its number of draws; None of a classical model."""
        asked = self.evaluations[0].protocol
        drawn = [f"{asked.options[name]:,} {name}" for name in NAMES_OF_DRAWS if name in asked.options]
        return ", ".join([asked.method, *drawn]) if self.is_trained else None

    @property
    def parameters(self) -> int | None:
        """How many there are; None where they are not counted."""
        return self.first.model["parameters"]

    def cost(self, name: str) -> float | None:
        """A number of `training`, the mean over seeds; None where it is not known of every one."""
        known = [float(v) for v in (training[name] for training in self.training) if isinstance(v, int | float)]
        return sum(known) / len(known) if known and len(known) == len(self.training) else None


def likelihoods(figures: Sequence[Figure]) -> str:
    """The table of likelihoods, the best first, those of fewer images below."""
    times = [figure.cost("training_cpu_seconds") for figure in figures]
    unit, seconds = ("CPU minutes", 60.0) if max(filter(None, times), default=0.0) >= _HOUR else ("CPU seconds", 1.0)
    lines = [
        {
            "model": figure.first.model["run"],
            "figure": figure.method,
            "law": figure.first.estimate.law,
            "kind": kind_text(figure.first.estimate.kind),
            "parameters": _count(figure.parameters),
            "images seen": _count(figure.cost("images_seen")),
            unit: None if time is None else _count(time / seconds),
            "seeds": len(figure.evaluations) if figure.is_trained else None,
            "images": _count(len(figure.images)),
            "bits/dim": f"{float(figure.seeds.mean()):.3f}",
            "spread over seeds": f"{float(figure.seeds.std()):.3f}" if len(figure.seeds) > 1 else None,
            "95 % interval": _between(mean_interval(figure.images)),
        }
        for figure, time in zip(figures, times, strict=True)
    ]
    hardware = {str(training["trained_on"]) for figure in figures for training in figure.training} - {"None"}
    trained = f"Trained on: {' | '.join(sorted(hardware)) or 'not recorded'}."
    return f"{trained}\n\n{Table.of(lines).filled().markdown()}"


def differences(pairs: Sequence[tuple[Figure, Figure]]) -> str:
    """The table of differences, first - second, on the same images; the ratios are first / second."""
    lines = []
    for first, second in pairs:
        assert first.of == second.of, f"{first.name} and {second.name} are measured on unlike images"
        found = mean_interval(first.images - second.images)
        counts = dict.fromkeys(len(figure.evaluations) for figure in (first, second))
        sizes = [(figure.parameters, figure.cost("training_cpu_seconds")) for figure in (first, second)]
        parameters, seconds = (_ratio(*values) for values in zip(*sizes, strict=True))
        lines.append(
            {
                "difference": f"{name_of(first.first)} - {name_of(second.first)}",
                "seeds": " and ".join(map(str, counts)),
                "images": _count(len(first.images)),
                "bits/dim": f"{found.mean:+.3f}",
                "95 % interval": _between(found, "+"),
                "ratio of parameters": parameters,
                "ratio of CPU seconds": seconds,
            }
        )
    return Table.of(lines).filled().markdown()


def budgets(figures: Sequence[Figure]) -> str:
    """The error budgets of the figures of most images, of the first seed each, in bits/dim."""
    trained = [figure for figure in figures if figure.is_trained]
    most = max(len(figure.images) for figure in trained)
    return budget_table([figure.first for figure in trained if len(figure.images) == most]).filled().markdown()


def quality(rows: Sequence[tuple[str, QualityRow]]) -> str:
    """The table of the quality of samples: what each row is called, and its figures."""
    evaluations = Column("evaluations", lambda row: row["nfe"] or None, ".0f")
    columns = (Column("samples", "name", left=True), evaluations, *(c for c in COLUMNS if c.name in _QUALITIES))
    return Table(columns, [{**row.values(), "name": name} for name, row in rows]).markdown()


def blocks(
    figures: Sequence[Figure], pairs: Sequence[tuple[Figure, Figure]], samples: Sequence[tuple[str, QualityRow]]
) -> dict[str, str]:
    """The tables by their names, `BLOCKS`; those of pairs and samples where there are any."""
    ordered = sorted(figures, key=lambda figure: (-len(figure.images), float(figure.seeds.mean())))
    made = {"likelihoods": likelihoods(ordered), "budgets": budgets(ordered)}
    made |= {"differences": differences(pairs)} if pairs else {}
    made |= {"quality": quality(samples)} if samples else {}
    return {name: made[name] for name in BLOCKS if name in made}


def replaced(path: Path, data: str, found: Mapping[str, str]) -> bytes:
    """A page with new blocks of a data set; all else is as it was, byte for byte.

    Args:
        path: The page.
        data: The data set.
        found: The blocks by name.

    Raises:
        UserError: For a marker that is not there, or there twice, in one line.
    """
    text = path.read_bytes()
    places = _places(path, text)
    for name in (f"{data}: {block}" for block in found if f"{data}: {block}" not in places):
        raise UserError(f"{path}: found no line <!-- {name} -->, where that block begins.{did_you_mean(name, places)}")
    for name, (begin, end) in sorted(places.items(), key=lambda place: place[1], reverse=True):
        of, _, block = name.partition(": ")
        if of == data and block in found:
            text = text[:begin] + f"\n\n{found[block]}\n\n".encode() + text[end:]
    return text


def _places(path: Path, text: bytes) -> dict[str, tuple[int, int]]:
    """Where the blocks of a page are: the ends of their first lines, and the beginnings of their last."""
    places: dict[str, tuple[int, int]] = {}
    name, begin = "", 0  # of the block at work
    for marker in _MARKER.finditer(text):
        found = (marker[1] or b"").decode()
        where = f"{path}, line {1 + text[: marker.start()].count(10)}: {marker[0].decode().strip()}"
        if found in places:
            raise UserError(f"{where} is there twice; accepted: one block of a name")
        if found and name:
            raise UserError(f"{where} is within '{name}', which has no line <!-- end -->")
        if not found and not name:
            raise UserError(f"{where} ends no block")
        if name:
            places[name] = (begin, marker.start())
        name, begin = found, marker.end()
    if name:
        raise UserError(f"{path}: '{name}' has no line <!-- end -->")
    return places


def _count(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}"


def _ratio(first: float | None, second: float | None) -> str | None:
    """Two digits: 0.78, 12, 140."""
    return f"{float(f'{first / second:.2g}'):g}" if first and second else None


def _between(interval: Interval, sign: str = "") -> str:
    return f"{interval.low:{sign}.3f} to {interval.high:{sign}.3f}"
