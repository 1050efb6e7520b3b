"""A run resumes only on the data it was started on, identified by content, not by name or place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..models.build import DataFacts
from ..models.load import FACTS
from ..storage import runs
from ..storage.checkpoint_files import read_checkpoint


def require_same_data(run: Path, now: DataFacts) -> DataFacts:
    """Refuse to continue a run on other data than its own.

    Args:
        run: The run's folder, with a checkpoint.
        now: The data found now.

    Returns:
        The data found now, with the normaliser of the run: fitted anew it may differ by rounding, or, where two
        directions have the same variance, by more. So with the scale of its conditions.

    Raises:
        UserError: If number, shape, levels, classes or the SHA-256 of a split differ; all differences are listed.
    """
    known = _known(run)
    if known is not None and (differences := known.differences(now)):
        raise UserError(
            f"data: these are not the data that {run} was trained on: {'; '.join(differences)}. Bring those back "
            "(data.path may say where they are now), or start a new run with --resume never"
        )
    return now if known is None else replace(now, normalizer=known.normalizer, parts=known.parts)


def _known(run: Path) -> DataFacts | None:
    """The facts about its data that a run has stored: in its folder, or, for older versions, only in the checkpoint."""
    try:
        return DataFacts.from_json((run / runs.DATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass
    metadata = read_checkpoint(run / runs.CHECKPOINTS / "last.ckpt").get("model", {})
    try:
        return DataFacts.from_json(metadata[FACTS])
    except (KeyError, TypeError, ValueError):
        return None
