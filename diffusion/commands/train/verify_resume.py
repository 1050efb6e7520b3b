"""`train.py --verify-resume`: proof, on the user's own configuration and machine, that a killed run goes on bit by bit.

Three fresh processes train a few steps of the configuration in a temporary folder: one straight through; one that is
killed (SIGKILL) a step after the checkpoint in the middle; one that continues it. Every logged loss, the weights, their
average and the optimiser's state at the end are then compared bit by bit. Nothing is kept.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...config import Config, dump_config, parse_config
from ...errors import UserError
from ...storage import runs
from ...storage.checkpoint_files import leaves, read_checkpoint
from ...training.fit import fit
from ...training.logs.metrics import read_metrics
from ...training.stopping import KillAfter

STEPS = 8
CHECKPOINT = Path(runs.CHECKPOINTS) / "last.ckpt"
PARTS = {
    "weights": "state_dict",
    "averaged weights": "weight_average",
    "optimiser": "optimizer_states",
    "learning rate": "lr_schedulers",
}
_SPEED = "train/images_per_second"
_SHOWN = 5


def verify_resume(config: Config, steps: int = STEPS) -> int:
    """Train straight and with a kill in the middle, compare, and print what was found.

    Args:
        config: The configuration; its length and its intervals are cut down to `steps`.
        steps: The updates of the straight run.

    Returns:
        0 where all bits are equal, else 1.

    Raises:
        UserError: A run could not be made (the last line that it printed is in the message).
    """
    middle = steps // 2
    with tempfile.TemporaryDirectory(prefix="verify-resume-", ignore_cleanup_errors=True) as folder:
        short = _short(config, steps, middle)
        straight, cut = Path(folder) / "straight", Path(folder) / "cut"
        _train(short, straight)
        _train(short, cut, kill_after=middle + 1)
        saved = read_checkpoint(cut / CHECKPOINT)["global_step"]
        _train(short, cut)
        differences, counts = compare(straight, cut)
    what = ", ".join(f"{count} {name}" for name, count in counts.items())
    if not differences:
        print(
            f"passed: {steps} steps straight, and {middle + 1} steps, SIGKILL, then {saved} to {steps} in a new "
            f"process: {what}; all bits are equal"
        )
        return 0
    for line in differences[:_SHOWN]:
        print(line)
    print(f"failed: {len(differences)} of {sum(counts.values())} differ ({what})")
    return 1


def compare(a: Path, b: Path) -> tuple[list[str], dict[str, int]]:
    """What differs between two runs, a line each, and how much of what was compared.

    Args:
        a: A run folder.
        b: Another one.
    """
    differences: list[str] = []
    curves = [_curve(run) for run in (a, b)]
    for key in curves[0].keys() | curves[1].keys():
        one, two = (curve.get(key) for curve in curves)
        if one != two:
            differences.append(f"{key[1]} at step {key[0]}: {one} and {two}")
    counts = {"logged figures": len(curves[0])}
    states = [read_checkpoint(run / CHECKPOINT) for run in (a, b)]
    for name, key in PARTS.items():
        one, two = (dict(leaves(state.get(key))) for state in states)
        for leaf in one.keys() | two.keys():
            if not _equal(one.get(leaf), two.get(leaf)):
                differences.append(f"{name}: {leaf} differs{_distance(one.get(leaf), two.get(leaf))}")
        if one:
            counts[name] = len(one)
    return sorted(differences), counts


def _short(config: Config, steps: int, middle: int) -> Config:
    trainer = config.trainer.replace(
        steps=steps, log_every=1, checkpoint_every=middle, sample_every=0,
        validate_every=middle + 2 if config.trainer.validate_every else 0,
    )  # fmt: skip
    return config.replace(
        trainer=trainer,
        evaluation=config.evaluation.replace(enabled=False),
        logging=config.logging.replace(wandb="off"),
    )


def _train(config: Config, run: Path, kill_after: int | None = None) -> None:
    """Train in a fresh process; with `kill_after` it is killed when so many steps are done."""
    (run / runs.CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    (run / runs.SAMPLES).mkdir(exist_ok=True)
    written = run / "verify.yaml"
    written.write_text(dump_config(config), encoding="utf-8")
    command = [sys.executable, "-m", "diffusion.commands.train.verify_resume", str(written), str(run)]
    command += [] if kill_after is None else [str(kill_after)]
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    expected = 0 if kill_after is None else -signal.SIGKILL
    if done.returncode != expected:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
        raise UserError(f"--verify-resume: training ended with code {done.returncode}, not {expected}: {last}")


def _curve(run: Path) -> dict[tuple[int, str], float | str]:
    """Every logged figure that is a function of the configuration, by step and name (NaN as text, equal to itself)."""
    return {
        (row["step"], key): value if value == value else "nan"
        for row in read_metrics(run / "metrics.jsonl")
        for key, value in row.items()
        if key not in ("step", _SPEED)
    }


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    return type(one) is type(two) and one == two


def _distance(one: Any, two: Any) -> str:
    if isinstance(one, Tensor) and isinstance(two, Tensor) and one.shape == two.shape:
        return f", by {float((one.double() - two.double()).abs().max()):.2g} at most"
    return f": {one} and {two}" if not isinstance(one, Tensor) and not isinstance(two, Tensor) else ""


def _main(path: str, run: str, *kill_after: str) -> int:
    try:
        config = parse_config(Path(path).read_text(encoding="utf-8"), source=path)
        return fit(config, Path(run), [KillAfter(int(step)) for step in kill_after]).exit_code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
