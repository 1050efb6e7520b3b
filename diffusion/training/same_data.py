"""A run goes on only on the data that it was begun on, known by their content and not by their name or place."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from ..models.build import DataFacts
from ..models.load import FACTS
from ..storage import runs
from ..storage.checkpoint_files import read_checkpoint


def require_same_data(run: Path, now: DataFacts) -> None:
    """Refuse to continue a run on other data than its own.

    Args:
        run: The run's folder, with a checkpoint.
        now: The data that are found now.

    Raises:
        UserError: Where number, shape, levels, classes or the SHA-256 of a split differ; all that do are listed.
    """
    known = _known(run)
    if known is not None and (differences := known.differences(now)):
        raise UserError(
            f"data: these are not the data that {run} was trained on: {'; '.join(differences)}. Bring those back "
            "(data.path may say where they are now), or start a new run with --resume never"
        )


def _known(run: Path) -> DataFacts | None:
    """What the run keeps of its data: in its folder, or as runs of older versions do, in the checkpoint alone."""
    try:
        return DataFacts.from_json((run / runs.DATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass
    metadata = read_checkpoint(run / runs.CHECKPOINTS / "last.ckpt").get("model", {})
    try:
        return DataFacts.from_json(metadata[FACTS])
    except (KeyError, TypeError, ValueError):
        return None
