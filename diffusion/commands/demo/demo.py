"""The work of `demo`."""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
from pathlib import Path

from ...storage import runs
from ..sample.sample import DEFAULT_MODEL
from .drawing import Models
from .launch import launched
from .page import Page


def run(options: argparse.Namespace) -> int:
    """Show the page until it is interrupted; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="diffusion-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # what is dropped on the page goes when it closes
        page = Page(Models(options.runs, options.device), names(options), Path(options.images))
        blocks, url = launched(page, options.host, options.port)
        print(f"the page: {url} (Ctrl-C ends it)", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("closed")
        finally:
            blocks.close(verbose=False)
    return 0


def names(options: argparse.Namespace) -> list[str]:
    """The models to choose from: the one named or the newest run first, then the shipped ones, then other runs."""
    trained = runs.names_of_runs(options.runs)
    first = options.model or next(iter(trained), DEFAULT_MODEL)
    return list(dict.fromkeys([first, *runs.shipped_models(), *trained]))
