"""The table of docs/results.md from nothing: trains every family's recipe with several seeds, measures all, compares.

    uv run python benchmarks/results.py [digits|mnist|cifar] [--minutes M] [--seeds N] [--only ROW ...] [--runs DIR]
        [--out DIR] [key=value ...]

Each step is a command of the product and is printed before it runs. What is complete is not done again, and what was
cut off goes on where it was, so that the same command may be given until it says that all is done. With `--minutes` the
step at work is stopped by SIGTERM when the time is up, and the exit code is 75: for machines with a time limit.
Settings (`trainer.steps=2000`, `data.root=/images`, `device=cpu`) are given to every training.

Seed 0 of every row comes first, then seed 1, ...; after each the table is written to DIR/seeds.md, of what there is:
means over seeds with their spread, and differences paired on the same images.
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

import torch

from diffusion.commands import records
from diffusion.commands.compare.groups import kind_text
from diffusion.commands.evaluate.arguments import estimator_options, parse_evaluate_arguments
from diffusion.commands.evaluate.measuring import question
from diffusion.commands.records import Evaluation
from diffusion.commands.subjects import images_of, load_images_of, load_subject
from diffusion.commands.table import Table
from diffusion.likelihood import Interval
from diffusion.likelihood.estimate import mean_interval
from diffusion.storage import atomic

TRAIN = (sys.executable, str(Path(__file__).resolve().parent.parent / "train.py"))
DIFFUSION = (sys.executable, "-m", "diffusion")
STOPPED = 75


@dataclass(frozen=True)
class Row:
    """A recipe: a configuration with settings, the options of `evaluate`, one figure each, and commands for its samples
    (of seed 0), which keep their figures in the run."""

    config: str
    methods: tuple[str, ...]
    settings: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What stands in a table.

    Args:
        rows: The recipes by name.
        shipped: Models that come with the package, and the options of their figures.
        common: Options of every `evaluate`.
    """

    rows: dict[str, Row]
    shipped: dict[str, tuple[str, ...]]
    common: str = ""


FLOW, BOUND, WEIGHTED = "--method ode --tolerance 3e-4", "--method elbo --draws 64", "--method iwae --draws 1000"
# Tighter, and dear: of 40 images, beside what importance weighting says of the same ones.
ANNEALED = ("--method ais --images 40 --draws 4 --option steps=200", "--method iwae --images 40 --draws 1000")
# All 10,000 test images: few noise levels an image are enough, and they are spread as the model's own path is.
LARGE = "--method elbo --draws 4 --option reference=none"
QUALITY = (*(f"quality RUN --steps {steps} --no-scale" for steps in (5, 10, 20)), "quality RUN --steps 50")
# The best of five recipes on the validation images.
TUNED = ("trainer.steps=500", "autoencoder.latent_dim=16", "autoencoder.iwae_samples=5")
# A U-Net of as many weights as the VAE has, 65,682; the whole one for the tuned VAE's CPU seconds; the small one, too.
SMALL = "network.base_channels=8"
PLANS = {
    "digits": Plan(
        {
            "vdm-digits": Row("vdm-digits", (BOUND,)),
            "vae-digits": Row("vae-digits", (WEIGHTED,)),
            "vae-digits-tuned": Row("vae-digits", (WEIGHTED, *ANNEALED), TUNED),
            "digits": Row("digits", (FLOW, BOUND)),
            "eae-digits": Row("eae-digits", (WEIGHTED,)),
            "vdm-equal-parameters": Row("vdm-digits", (BOUND,), (SMALL,)),
            "vdm-equal-time": Row("vdm-digits", (BOUND,), ("trainer.steps=370",)),
            "vdm-equal-both": Row("vdm-digits", (BOUND,), (SMALL, "trainer.steps=1080")),
        },
        {"pretrained:digits": (FLOW, BOUND)},
    ),
    "mnist": Plan(
        {
            "vdm-mnist": Row("vdm-mnist", (LARGE,)),
            "vae-mnist": Row("vae-mnist", ("--method iwae --draws 20",)),
            "eae-mnist": Row("eae-mnist", ("--method iwae --draws 20",)),
            "mnist": Row("mnist", (LARGE,), samples=QUALITY),
            "mnist-class": Row("mnist-class", (LARGE,), samples=QUALITY),
        },
        {},
    ),
    "cifar": Plan(
        {
            "cifar": Row("cifar", (FLOW, BOUND)),
            "vae-cifar": Row("vae-cifar", (WEIGHTED,)),
            "eae-cifar": Row("eae-cifar", (WEIGHTED,)),
        },
        {},
        "--images 1000",
    ),
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


@dataclass(frozen=True)
class Figure:
    """One line of the table: a recipe's figure by one method, of every seed that is measured.

    Args:
        name: The recipe, or the classical model.
        evaluations: One a seed, of the same images.
        training: What each seed's training cost, as `Subject.training`.
    """

    name: str
    evaluations: Sequence[Evaluation]
    training: Sequence[dict[str, object]]

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

    def line(self, best: Figure) -> dict[str, object]:
        """Its line; `best` is what it is compared with, on the same images."""
        first, seeds = self.evaluations[0], self.seeds
        trained = first.model["family"] != "classical"
        parameters = first.model.get("parameters")
        costs = {"images seen": "images_seen", "seconds": "training_seconds", "CPU seconds": "training_cpu_seconds"}
        difference = mean_interval(self.images - best.images)
        return {
            "model": self.name,
            "figure": first.protocol.method if trained else "its probability",
            "law": first.estimate.protocol.get("law"),
            "kind": kind_text(first.estimate.kind),
            "parameters": f"{parameters:,}" if isinstance(parameters, int) else None,
            **{name: _mean([training[key] for training in self.training]) for name, key in costs.items()},
            "seeds": len(seeds) if trained else None,
            "images": len(self.images),
            "bits/dim, mean": f"{float(seeds.mean()):.3f}",
            "spread over seeds": f"{float(seeds.std()):.3f}" if len(seeds) > 1 else None,
            "95 % interval over images": _between(mean_interval(self.images)),
            "difference to the best, paired": "best"
            if self is best
            else f"{difference.mean:+.3f} ({_between(difference, '+')})",
        }


def _mean(values: Sequence[object]) -> str | None:
    known = [float(value) for value in values if isinstance(value, int | float)]
    return f"{sum(known) / len(known):,.0f}" if known and len(known) == len(values) else None


def _between(interval: Interval, sign: str = "") -> str:
    return f"{interval.low:{sign}.3f} to {interval.high:{sign}.3f}"


def measured(model: str, method: str, common: str, runs: str) -> tuple[Evaluation, dict[str, object]]:
    """What `evaluate` has kept of a model, and what its training cost."""
    options = parse_evaluate_arguments([model, *method.split(), *common.split()])
    subject = load_subject(model, runs)
    _, identity = images_of(load_images_of(subject), options.split, options.images)
    asked = estimator_options(options, options.method, subject.model.config.family)
    protocol = question(subject, identity, options.method, asked)
    return records.read(subject.home / records.FOLDER / f"{protocol.name}.json"), subject.training


def table(figures: Sequence[Figure]) -> str:
    """The lines as Markdown, the best first; each against the best trained model of the same images."""
    ordered = sorted(figures, key=lambda figure: (-len(figure.images), float(figure.seeds.mean())))
    best: dict[str, Figure] = {}
    for figure in ordered:
        if figure.evaluations[0].model["family"] != "classical":
            best.setdefault(figure.of, figure)
    hardware = {str(training["trained_on"]) for figure in ordered for training in figure.training} - {"None"}
    lines = [
        "Means over seeds; the interval is over images (Student's, wider where they are skew), of each image's "
        "mean over seeds; differences are paired on the same images. "
        "All but the exact figures are bounds: a model may be better than its figure.",
        f"Trained on: {' | '.join(sorted(hardware)) or 'not recorded'}.",
        Table.of(figure.line(best.get(figure.of, figure)) for figure in ordered).markdown(),
    ]
    return "\n\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    """Train, evaluate, compare: seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", choices=list(PLANS), default="digits")
    parser.add_argument("--minutes", type=float, help="stop after so long")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each recipe (default: 3)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="only these recipes")
    parser.add_argument("--runs", default="runs", help="the folder of the runs (default: runs)")
    parser.add_argument("--out", help="the folder of the comparison (default: comparison-<data>)")
    options, settings = parser.parse_known_args(argv)
    if wrong := [text for text in settings if "=" not in text]:
        parser.error(f"found {wrong[0]}; settings are key=value")
    plan, clock = PLANS[options.data], Clock(options.minutes)
    if unknown := set(options.only or ()) - set(plan.rows):
        parser.error(f"--only: found {', '.join(sorted(unknown))}; accepted: {', '.join(plan.rows)}")
    rows = {name: row for name, row in plan.rows.items() if options.only is None or name in options.only}
    out = Path(options.out or f"comparison-{options.data}")
    models: dict[str, list[str]] = {name: [name] for name in plan.shipped}
    methods = {**plan.shipped, **{name: row.methods for name, row in rows.items()}}
    for seed in range(options.seeds):
        for name, row in rows.items():
            named = (f"name={name}-seed{seed}", f"seed={seed}", f"runs={options.runs}", "evaluation.enabled=false")
            training = (*TRAIN, "--config", row.config, *named, *row.settings, *settings)
            if finished(training) is None:
                clock.run(training)
            run = finished(training)
            assert run is not None, "train.py answered 0 for a run that is not complete"
            models.setdefault(name, []).append(run)
            for method in row.methods:
                clock.run((*DIFFUSION, "evaluate", run, *method.split(), *plan.common.split()))
            for command in row.samples if seed == 0 else ():
                clock.run((*DIFFUSION, *(run if word == "RUN" else word for word in command.split())))
        for name, shipped in plan.shipped.items():
            for method in shipped:
                clock.run((*DIFFUSION, "evaluate", name, *method.split(), *plan.common.split()))
        clock.run((*DIFFUSION, "compare", *(run for found in models.values() for run in found), "--out", str(out)))
        figures = [
            Figure(e.model["run"], [e], []) for e in map(records.read, sorted((out / "classical").glob("*.json")))
        ]
        for name, runs_of in models.items():
            for method in methods[name]:
                found = [measured(run, method, plan.common, options.runs) for run in runs_of]
                figures.append(Figure(name, [e for e, _ in found], [training for _, training in found]))
        text = table(figures)
        atomic.write_text(out / "seeds.md", text)
        print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
