"""A folder that draws in the browser: the network as ONNX, samplers as numbers, the page, and onnxruntime-web.

Nothing of onnxruntime-web is kept here: its files come from a folder of the npm package, or npm fetches them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...config import PREDICTIONS
from ...errors import UserError
from ...models import DiffusionModel, TrainedModel
from ...numerics.random import STREAM_INITIAL, STREAM_SOLVER
from ...storage import atomic
from .network import DESCRIPTION, denoiser_of_network, description, write_onnx
from .plans import plan

SAMPLERS = ("abm", "ddim", "ancestral", "unipc", "dpm-solver++2m", "heun")
STEPS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 40, 50)
RUNTIME = "onnxruntime-web"
_RANGE = "^1.20"  # of its versions
# What the page loads of the package, and what says whose it is.
_FILES = (
    "dist/ort.wasm.min.mjs",
    "dist/ort-wasm-simd-threaded.mjs",
    "dist/ort-wasm-simd-threaded.wasm",
    "package.json",
)
_STATIC = Path(__file__).parent / "static"


def check_page(model: TrainedModel) -> None:
    """Refuse a model that the page cannot draw from."""
    denoiser = denoiser_of_network(model)
    if len(denoiser.shape) != 3 or denoiser.shape[0] not in (1, 3) or model.facts.levels is None:
        raise UserError(f"--to web: {model.source} is of data {denoiser.shape}; the page shows grey and colour images")
    if denoiser.parameterization == "levels":
        raise UserError(f"--to web: {model.source} predicts 'levels'; the page takes {', '.join(PREDICTIONS)}")


def check_runtime(folder: str | None) -> None:
    """Refuse a folder that is not the npm package, or a machine without npm where none is named."""
    if folder is None:
        if shutil.which("npm") is None:
            raise UserError(
                f"--runtime: npm is not installed, which would fetch {RUNTIME}; name a folder of the package"
            )
        return
    missing = [name for name in _FILES if not (Path(folder) / name).is_file()]
    if missing:
        raise UserError(
            f"--runtime: {folder} has no {missing[0]}; accepted: the folder of the npm package, node_modules/{RUNTIME}"
        )


def write_page(model: TrainedModel, folder: Path, runtime: str | None) -> None:
    """Write the page and all that it needs.

    Args:
        model: A diffusion model of images.
        folder: The folder.
        runtime: The folder of the npm package onnxruntime-web; None: npm fetches it.

    Raises:
        UserError: For a model that the page cannot draw from, and a package that cannot be fetched.
    """
    check_page(model)
    denoiser = denoiser_of_network(model)
    assert isinstance(model, DiffusionModel)
    with _package(runtime) as package:
        for name in _FILES:
            atomic.write_bytes(folder / RUNTIME / Path(name).name, (package / name).read_bytes())
    write_onnx(model, folder)
    own = model.sampling_settings({})["sampler"]
    made = {
        **description(model, denoiser),
        "streams": {"initial": STREAM_INITIAL, "solver": STREAM_SOLVER},
        "sampler": own if own in SAMPLERS else SAMPLERS[0],
        "plans": {name: {steps: plan(model, denoiser, name, steps) for steps in STEPS} for name in SAMPLERS},
    }
    for source in sorted(_STATIC.iterdir()):
        atomic.write_bytes(folder / source.name, source.read_bytes())
    atomic.write_text(folder / "model.json", json.dumps(made) + "\n")
    (folder / DESCRIPTION).unlink()  # model.json says all of it


@contextmanager
def _package(folder: str | None) -> Iterator[Path]:
    """The folder of the npm package, for as long as the block lasts."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as place:
        called = ["npm", "pack", "--loglevel=error", "--pack-destination", place, f"{RUNTIME}@{_RANGE}"]
        done = subprocess.run(called, capture_output=True, text=True)
        packed = sorted(Path(place).glob("*.tgz"))
        if done.returncode or not packed:
            reason = next(iter(done.stderr.splitlines()), "no file came").removeprefix("npm error ")
            raise UserError(f"--to web: npm did not fetch {RUNTIME} ({reason[:120]}); --runtime names a folder of it")
        with tarfile.open(packed[-1]) as archive:
            archive.extractall(place, filter="data")
        yield Path(place) / "package"
