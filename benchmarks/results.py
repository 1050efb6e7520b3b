"""The tables of docs/results.md from nothing: trains every family's recipe with several seeds, measures all, compares.

    uv run python benchmarks/results.py [digits|mnist|cifar] [--minutes M] [--seeds N] [--only ROW ...] [--runs DIR]
        [--out DIR] [--page FILE] [key=value ...]

Each step is a command of the product and is printed before it runs. What is complete is not done again, and what was
cut off goes on where it was, so that the same command may be given until it says that all is done. With `--minutes` the
step at work is stopped by SIGTERM when the time is up, and the exit code is 75: for machines with a time limit.
Settings (`trainer.steps=2000`, `data.root=/images`, `device=cpu`) are given to every training.

Seed 0 of every row comes first, then seed 1, ...; after each the tables (results_page.py) are written to DIR/seeds.md,
of what there is: likelihoods with their spread over seeds, paired differences, error budgets, the quality of samples.
With `--page docs/results.md` they also replace the blocks of the data set in that file, when all seeds are done; it is
looked at before anything runs, and a marker that is missing or there twice is one line and exit code 2.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import results_page
from results_page import Figure

from diffusion.commands import records
from diffusion.commands.app import command
from diffusion.commands.evaluate.arguments import estimator_options, parse_evaluate_arguments
from diffusion.commands.evaluate.measuring import question
from diffusion.commands.options import Parser, path, positive
from diffusion.commands.quality import quality
from diffusion.commands.quality.arguments import parse_quality_arguments
from diffusion.commands.quality.table import Row as QualityRow
from diffusion.commands.records import Evaluation
from diffusion.commands.subjects import images_of, load_images_of, load_subject
from diffusion.errors import UserError, choose
from diffusion.sampling.settings import given_settings
from diffusion.storage import atomic

TRAIN = (sys.executable, str(Path(__file__).resolve().parent.parent / "train.py"))
DIFFUSION = (sys.executable, "-m", "diffusion")
STOPPED = 75
ABOUT = (
    "Means over seeds; an interval is over images (Student's, wider where they are skew), of each image's mean over "
    "seeds. All but the exact figures are bounds: a model may be better than its figure. Differences are paired on the "
    "same images, ratios are of the first over the second. Error budgets are of seed 0."
)


@dataclass(frozen=True)
class Row:
    """A recipe: a configuration with settings, the options of `evaluate`, one figure each, and commands for its samples
    (of seed 0), which keep their figures in the run."""

    config: str
    methods: tuple[str, ...]
    settings: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A difference of two rows on the same images: by the first method of each, or by `methods`."""

    first: str
    second: str
    methods: tuple[str, str] | None = None


@dataclass(frozen=True)
class Plan:
    """What stands in the tables.

    Args:
        rows: The recipes by name.
        shipped: Models that come with the package, and the options of their figures.
        pairs: The differences.
        common: Options of every `evaluate`.
    """

    rows: dict[str, Row]
    shipped: dict[str, tuple[str, ...]]
    pairs: tuple[Pair, ...] = ()
    common: str = ""

    @property
    def blocks(self) -> list[str]:
        """The names of the blocks that it fills (`results_page.blocks`)."""
        unused = {"differences": not self.pairs, "quality": not any(row.samples for row in self.rows.values())}
        return [name for name in results_page.BLOCKS if not unused.get(name, False)]


FLOW, BOUND, WEIGHTED = "--method ode --tolerance 3e-4", "--method elbo --draws 64", "--method iwae --draws 1000"
# Tighter, and dear: of a few images, beside what importance weighting says of the same ones.
ANNEALED, ANNEALED_LARGE = (
    (f"--method ais --images {images} --draws 4 --option steps=200", f"--method iwae --images {images} --draws 1000")
    for images in (40, 16)
)
# All 10,000 test images: few noise levels an image are enough, and they are spread as the model's own path is.
LARGE = "--method elbo --draws 4 --option reference=none"
IWAE_LARGE = "--method iwae --draws 20"
QUALITY = tuple(f"quality RUN --steps {steps}" for steps in (5, 10, 20, 50))
# Classes as in the training images, and what guidance makes of them.
BY_CLASS = (*(f"{drawn} --label reference" for drawn in QUALITY[:3]), f"{QUALITY[1]} --label reference --guidance 2")
# The best of five recipes on the validation images.
TUNED = ("trainer.steps=500", "autoencoder.latent_dim=16", "autoencoder.iwae_samples=5")
# A U-Net of as many weights as the VAE has, 65,682; the whole one for the tuned VAE's CPU seconds; the small one, too.
SMALL, SMALL_LARGE = "network.base_channels=8", "network.base_channels=24"
PLANS = {
    "digits": Plan(
        {
            "vdm-digits": Row("vdm-digits", (BOUND,)),
            "vae-digits": Row("vae-digits", (WEIGHTED,)),
            "vae-digits-tuned": Row("vae-digits", (WEIGHTED, *ANNEALED), TUNED),
            "digits": Row("digits", (BOUND, FLOW)),
            "eae-digits": Row("eae-digits", (WEIGHTED,)),
            "vdm-equal-parameters": Row("vdm-digits", (BOUND,), (SMALL,)),
            "vdm-equal-time": Row("vdm-digits", (BOUND,), ("trainer.steps=370",)),
            "vdm-equal-both": Row("vdm-digits", (BOUND,), (SMALL, "trainer.steps=1080")),
        },
        {"pretrained:digits": (BOUND, FLOW)},
        (
            Pair("vdm-digits", "vae-digits-tuned"),
            Pair("vdm-equal-parameters", "vae-digits-tuned"),
            Pair("vdm-equal-time", "vae-digits-tuned"),
            Pair("vdm-equal-both", "vae-digits-tuned"),
            Pair("digits", "vae-digits-tuned"),
            Pair("digits", "vae-digits"),
            Pair("vae-digits-tuned", "vae-digits"),
            Pair("vae-digits-tuned", "vae-digits-tuned", ANNEALED),
        ),
    ),
    "mnist": Plan(
        {
            "vdm-mnist": Row("vdm-mnist", (LARGE,)),
            "vae-mnist": Row("vae-mnist", (IWAE_LARGE, *ANNEALED_LARGE)),
            "eae-mnist": Row("eae-mnist", (IWAE_LARGE,)),
            # 513,625 parameters, beside the 553,119 of the VAE; and as many CPU seconds as it takes.
            "vdm-mnist-small": Row("vdm-mnist", (LARGE,), (SMALL_LARGE,)),
            "vdm-mnist-equal-both": Row("vdm-mnist", (LARGE,), (SMALL_LARGE, "trainer.steps=2600")),
            "mnist": Row("mnist", (LARGE,), samples=QUALITY),
            "mnist-class": Row("mnist-class", (LARGE,), samples=(*BY_CLASS, *QUALITY)),
        },
        {"pretrained:mnist": (LARGE,)},
        (
            Pair("vdm-mnist", "vae-mnist"),
            Pair("vdm-mnist-small", "vae-mnist"),
            Pair("vdm-mnist-equal-both", "vae-mnist"),
            Pair("vae-mnist", "vae-mnist", ANNEALED_LARGE),
        ),
    ),
    "cifar": Plan(
        {
            "cifar": Row("cifar", (BOUND, FLOW)),
            "vae-cifar": Row("vae-cifar", (WEIGHTED,)),
            "eae-cifar": Row("eae-cifar", (WEIGHTED,)),
        },
        {},
        (Pair("cifar", "vae-cifar"),),
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


def measured(model: str, method: str, common: str, runs: str) -> tuple[Evaluation, dict[str, object]]:
    """What `evaluate` has kept of a model, and what its training cost."""
    options = parse_evaluate_arguments([model, *method.split(), *common.split()])
    subject = load_subject(model, runs)
    _, identity = images_of(load_images_of(subject), options.split, options.images)
    asked = estimator_options(options, options.method, subject.model.config.family)
    protocol = question(subject, identity, options.method, asked)
    return records.read(subject.home / records.FOLDER / f"{protocol.name}.json"), subject.training


def figures(plan: Plan, models: Mapping[str, Sequence[str]], runs: str) -> dict[tuple[str, str], Figure]:
    """The figures of the trained models, by recipe and method; `models` are the runs of each recipe, one a seed."""
    methods = {**plan.shipped, **{name: row.methods for name, row in plan.rows.items()}}
    made = {}
    for name, of_seeds in models.items():
        for method in methods[name]:
            found = [measured(model, method, plan.common, runs) for model in of_seeds]
            made[name, method] = Figure(name, [e for e, _ in found], [training for _, training in found])
    return made


def paired(plan: Plan, found: Mapping[tuple[str, str], Figure]) -> list[tuple[Figure, Figure]]:
    """The two sides of each difference whose recipes are there."""
    names = {name for name, _ in found}
    made = []
    for pair in plan.pairs:
        if {pair.first, pair.second} <= names:
            sides = (pair.first, pair.second)
            methods = pair.methods or [plan.rows[name].methods[0] for name in sides]
            first, second = (found[side] for side in zip(sides, methods, strict=True))
            made.append((first, second))
    return made


def in_run(text: str, run: str) -> list[str]:
    """The words of a command for samples."""
    return [run if word == "RUN" else word for word in text.split()]


def qualities(rows: Mapping[str, Row], models: Mapping[str, Sequence[str]]) -> list[tuple[str, QualityRow]]:
    """What `quality` has kept of the samples of seed 0, named by how they were drawn; what is for scale comes last."""
    made, scale = [], {}
    for name, row in rows.items():
        for text in row.samples:
            options = parse_quality_arguments(in_run(text, models[name][0])[1:])
            how = {key: value for key, value in given_settings(options, "figure").items() if key != "steps"}
            told = (f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in how.items())
            drawn, *others = quality.kept(options)
            made.append((", ".join([f"`{name}`", *told]), drawn))
            scale |= {other.name: other for other in others}
    return [*made, *scale.items()]


def main(argv: Sequence[str]) -> int:
    """Train, evaluate, compare: seed by seed."""
    parser = Parser("benchmarks/results.py", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("data", nargs="?", choices=list(PLANS), default="digits")
    parser.add_argument("--minutes", type=float, help="stop after so long")
    parser.add_argument("--seeds", type=positive, default=3, help="trainings of each recipe (default: 3)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="only these recipes")
    parser.add_argument("--runs", default="runs", help="the folder of the runs (default: runs)")
    parser.add_argument("--out", help="the folder of the comparison (default: comparison-<data>)")
    parser.add_argument(
        "--page", type=path, metavar="FILE", help="also replace the blocks of the data set in this page"
    )
    options, settings = parser.parse_known_args(argv)
    if wrong := [text for text in settings if "=" not in text]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    plan, clock = PLANS[options.data], Clock(options.minutes)
    rows = {choose("--only", name, plan.rows): plan.rows[name] for name in options.only or plan.rows}
    page = Path(options.page).resolve() if options.page else None
    if page is not None:
        if options.only:
            raise UserError("--only: would leave the other rows out of --page; give one of the two")
        results_page.replaced(page, options.data, dict.fromkeys(plan.blocks, ""))
        atomic.check_writable(page)
    out = Path(options.out or f"comparison-{options.data}")
    models: dict[str, list[str]] = {name: [name] for name in plan.shipped}
    blocks: dict[str, str] = {}
    for seed in range(options.seeds):
        for name, row in rows.items():
            named = (f"name={name}-seed{seed}", f"seed={seed}", f"runs={options.runs}", "evaluation.enabled=false")
            training = (*TRAIN, "--config", row.config, *named, *row.settings, *settings)
            if (run := finished(training)) is None:
                clock.run(training)
                run = finished(training)
            assert run is not None, "train.py answered 0 for a run that is not complete"
            models.setdefault(name, []).append(run)
            for method in row.methods:
                clock.run((*DIFFUSION, "evaluate", run, *method.split(), *plan.common.split()))
            for asked in row.samples if seed == 0 else ():
                clock.run((*DIFFUSION, *in_run(asked, run)))
        for name, shipped in plan.shipped.items():
            for method in shipped:
                clock.run((*DIFFUSION, "evaluate", name, *method.split(), *plan.common.split()))
        clock.run((*DIFFUSION, "compare", *(run for found in models.values() for run in found), "--out", str(out)))
        trained = figures(plan, models, options.runs)
        classical = [
            Figure(str(e.model["run"]), [e]) for e in map(records.read, sorted((out / "classical").glob("*.json")))
        ]
        drawn = qualities(rows, models)
        blocks = results_page.blocks([*classical, *trained.values()], paired(plan, trained), drawn)
        text = "\n\n".join([ABOUT, *(f"## {name.capitalize()}\n\n{block}" for name, block in blocks.items())]) + "\n"
        atomic.write_text(out / "seeds.md", text)
        print(text, flush=True)
    if page is not None:
        atomic.write_bytes(page, results_page.replaced(page, options.data, blocks))
    return 0


if __name__ == "__main__":
    sys.exit(command(main))
