"""The content of a comparison, independent of its format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...likelihood import Interval
from ..records import Evaluation
from .comparison import Gap, is_classical
from .curves import CurvePair
from .groups import Group, of_densities


@dataclass(frozen=True)
class Content:
    """The content of a comparison.

    Args:
        title: What was compared, on which images.
        about: The images' identity and how to read the figures.
        groups: The rows, in groups that may be compared.
        gaps: Test against train, wherever both were measured.
        curves: Bits/dim by log-SNR, for the models that have it.
        data_sets: Results on other data sets, one line each.
        left_out: Classical models that were not fitted, and why, one line each.
    """

    title: str
    about: str
    groups: Sequence[Group]
    gaps: Sequence[Gap] = ()
    curves: Sequence[CurvePair] = ()
    data_sets: Sequence[str] = ()
    left_out: Sequence[str] = ()

    @property
    def is_of_densities(self) -> bool:
        """Whether the figures are those of densities, in nats/dim."""
        return self.groups[0].is_of_densities

    def words(self, text: str) -> str:
        """A text about bits/dim of images, as it is for these data."""
        return of_densities(text) if self.is_of_densities else text

    def key(self, name: str) -> str:
        """A key with bits_per_dim in it, as it is for these data."""
        return name.replace("bits_per_dim", "nats_per_dim") if self.is_of_densities else name

    @property
    def rows(self) -> list[Evaluation]:
        """The evaluations, the best group first."""
        return [row for group in self.groups for row in group.rows]

    def gap(self, row: Evaluation) -> Gap | None:
        """Test against train of a row."""
        return next((gap for gap in self.gaps if row in (gap.test, gap.train)), None)

    def lines(self) -> Iterator[tuple[Group, Evaluation, Interval | None]]:
        """Every row with its group and its difference to the best."""
        for group in self.groups:
            for row, difference in zip(group.rows, group.differences, strict=True):
                yield group, row, difference


def name_of(row: Evaluation) -> str:
    """The run and the method, or the classical model."""
    return str(row.model["run"]) if is_classical(row) else f"{row.model['run']} ({row.protocol.method})"
