"""Models that other projects wrote, known by their files: what their networks are, and by what conventions.

A format is one module of this folder with two functions, and a line in `FORMATS`:

    recognises(path)    whether a file or a folder is of this format; looks, and raises nothing
    read(path)          the model as plain values and tensors (`known.Known`); a `UserError` names the file and the key;
                        a format whose files do not say their configuration takes `configuration` too

Nothing in a file is run: weights come through `read_weights`, fields through `fields.Fields`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...storage.runs import KNOWN
from ..adopt import AdoptedModel
from . import diffusers, edm, openai, score_sde
from .known import Known

__all__ = ["FORMATS", "KNOWN", "Format", "load_known", "recognise"]


@dataclass(frozen=True)
class Format:
    """How a format is recognised and read."""

    recognises: Callable[[Path], bool]
    read: Callable[..., Known]
    configurations: bool = False  # whether it takes one


FORMATS: dict[str, Format] = {
    "diffusers": Format(diffusers.recognises, diffusers.read),
    "edm": Format(edm.recognises, edm.read),
    "score_sde": Format(score_sde.recognises, score_sde.read, configurations=True),
    "openai": Format(openai.recognises, openai.read, configurations=True),
}


def recognise(path: Path) -> Format | None:
    """The format of a file or a folder; None for one that is of no known format."""
    return next((known for known in FORMATS.values() if known.recognises(path)), None)


def load_known(path: Path, name: str, configuration: Any = None) -> AdoptedModel:
    """The model in a file or a folder of another project.

    Args:
        path: The file or the folder.
        name: What its data are called, where the format does not say.
        configuration: What a file that does not say it is of; None: known by its name.

    Raises:
        UserError: For one of no known format, and whatever its format refuses.
    """
    known = recognise(path)
    if known is None:
        raise UserError(f"{path}: is no model of ours, and of no known format; accepted: {', '.join(FORMATS)}")
    if configuration is not None and not known.configurations:
        raise UserError(f"{path}: configuration: its files say their own; leave it out")
    found = known.read(path) if configuration is None else known.read(path, configuration)
    return replace(found, conventions={"name": name, **found.conventions}).model(path)
