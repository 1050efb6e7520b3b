"""Models on the Hugging Face hub by `hf:OWNER/NAME[@REVISION]`, through the library huggingface_hub; no torch."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import UserError, in_one_line, library

PREFIX = "hf:"
_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
# What models are made of; the weights as pickles are fetched only where there are no others.
_WANTED, _PICKLES = ["*.json", "*.safetensors", "README.md"], ["*.bin"]
_PATIENCE = 20.0  # seconds
_LEFT_OUT = ["*.fp16.*", "*.non_ema.*", "*.ema.*", "safety_checker/*", "text_encoder*/*"]


def name_of(text: str) -> str | None:
    """NAME of `hf:OWNER/NAME`; None for any other text."""
    match = _NAME.fullmatch(text)
    return None if match is None else match[1].partition("/")[2]


@cache
def fetched(text: str) -> Path:
    """The folder of a model on the Hub, fetched where it is not in the local cache.

    Without the Hub what is in the cache is taken, and a line says so.

    Args:
        text: `hf:OWNER/NAME`, or `hf:OWNER/NAME@REVISION`.

    Raises:
        UserError: For another text, a library that is not installed, and a model neither there nor in the cache.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise UserError(f"{text}: is no model of the Hub; accepted: hf:OWNER/NAME, or hf:OWNER/NAME@REVISION")
    hub = library("huggingface_hub", "hub", f"{text}: models of the Hub come through the library")
    where: dict[str, Any] = {"repo_id": match[1], "revision": match[2], "ignore_patterns": _LEFT_OUT}
    reason = None
    try:
        where["revision"] = hub.model_info(match[1], revision=match[2], timeout=_PATIENCE).sha
    except Exception as error:  # of the library, or of the network
        reason, where["local_files_only"] = in_one_line(error, 160), True
    try:
        folder = Path(hub.snapshot_download(**where, allow_patterns=_WANTED))
        if not any(folder.rglob("*.safetensors")):
            folder = Path(hub.snapshot_download(**where, allow_patterns=[*_WANTED, *_PICKLES]))
    except Exception as error:
        found = reason or in_one_line(error, 160)
        nor = ", and is not in the local cache" if reason else ""
        raise UserError(f"{text}: is not to be had from the Hub ({found}){nor}") from error
    if reason is not None:
        print(f"{text}: the Hub is not reached; from the local cache, {folder.name[:12]}", file=sys.stderr, flush=True)
    return folder
