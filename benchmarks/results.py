"""The table of docs/results.md from nothing: trains every family's shipped configuration, measures all, compares.

    uv run python benchmarks/results.py [digits|mnist|cifar] [--minutes M] [--runs DIR] [--out DIR] [key=value ...]

Each step is a command of the product and is printed before it runs. What is complete is not done again, and what was
cut off goes on where it was, so that the same command may be given until it says that all is done. With `--minutes` the
step at work is stopped by SIGTERM when the time is up, and the exit code is 75: for machines with a time limit.
Settings (`trainer.steps=2000`, `data.root=/images`, `device=cpu`) are given to every training.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TRAIN = (sys.executable, str(Path(__file__).resolve().parent.parent / "train.py"))
DIFFUSION = (sys.executable, "-m", "diffusion")
STOPPED = 75


@dataclass(frozen=True)
class Plan:
    """What stands in a table.

    Args:
        measured_by: For each configuration the options of `evaluate`, one figure each.
        shipped: Models that come with the package, and the options of theirs.
        common: Options of every `evaluate`.
    """

    measured_by: dict[str, tuple[str, ...]]
    shipped: dict[str, tuple[str, ...]]
    common: str = ""


FLOW, BOUND, WEIGHTED = "--method ode --tolerance 3e-4", "--method elbo --draws 64", "--method iwae --draws 1000"
PLANS = {
    "digits": Plan(
        {
            "digits": (FLOW, BOUND),
            "vdm-digits": (BOUND,),
            "vae-digits": (WEIGHTED,),
            "eae-digits": (WEIGHTED,),
        },
        {"pretrained:digits": (FLOW, BOUND)},
    ),
    "mnist": Plan(
        {"mnist": (FLOW, BOUND), "vdm-mnist": (BOUND,), "vae-mnist": (WEIGHTED,), "eae-mnist": (WEIGHTED,)},
        {},
        "--images 1000",
    ),
    "cifar": Plan({"cifar": (FLOW, BOUND), "vae-cifar": (WEIGHTED,), "eae-cifar": (WEIGHTED,)}, {}, "--images 1000"),
}


class Clock:
    """Runs commands until the time is up."""

    def __init__(self, minutes: float | None) -> None:
        self.end = None if minutes is None else time.monotonic() + 60.0 * minutes

    def run(self, command: Sequence[str]) -> None:
        """Run one; ends this script with its exit code where that is not 0, and with 75 when the time is up."""
        print(f"$ {' '.join(command)}", flush=True)
        left = None if self.end is None else self.end - time.monotonic()
        if left is not None and left <= 0:
            self._stop()
        with subprocess.Popen(command) as process:
            try:
                code = process.wait(left)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                if process.wait() in (STOPPED, -signal.SIGTERM):
                    self._stop()
                code = process.returncode
        if code:
            sys.exit(code)

    def _stop(self) -> None:
        print("the time is up; the same command goes on", flush=True)
        sys.exit(STOPPED)


def finished(training: Sequence[str]) -> str | None:
    """The run folder that a command of train.py has completed, or None."""
    found = subprocess.run((*training, "--status"), capture_output=True, text=True, check=False)
    return found.stdout.rpartition(": ")[0] if found.returncode == 0 else None


def main(argv: Sequence[str]) -> int:
    """Train, evaluate, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", choices=list(PLANS), default="digits")
    parser.add_argument("--minutes", type=float, help="stop after so long")
    parser.add_argument("--runs", default="runs", help="the folder of the runs (default: runs)")
    parser.add_argument("--out", help="the folder of the comparison (default: comparison-<data>)")
    options, settings = parser.parse_known_args(argv)
    if wrong := [text for text in settings if "=" not in text]:
        parser.error(f"found {wrong[0]}; settings are key=value")
    plan, clock = PLANS[options.data], Clock(options.minutes)
    measured = dict(plan.shipped)
    for config, methods in plan.measured_by.items():
        training = (*TRAIN, "--config", config, f"runs={options.runs}", *settings)
        if finished(training) is None:
            clock.run(training)
        run = finished(training)
        assert run is not None, "train.py answered 0 for a run that is not complete"
        measured[run] = methods
    for model, methods in measured.items():
        for method in methods:
            clock.run((*DIFFUSION, "evaluate", model, *method.split(), *plan.common.split()))
    clock.run((*DIFFUSION, "compare", *measured, "--out", options.out or f"comparison-{options.data}"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
