"""The end of `train.py`: measure the model on the test set, draw its pictures and show where everything is."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...baselines.gaussianity import Gaussianity
from ...config import Config
from ...devices import choose_device
from ...errors import UserError
from ...likelihood import Estimate
from ...models.build import parameter_count
from ...models.load import TrainedModel
from ...processes import typed
from ...storage import runs
from ...training.fit import Fit
from ...training.logs.wandb import WandbMirror
from ...training.stopping import exits_on_sigterm
from .. import evaluation, report, terminal
from ..app import USER_ERROR, ProgressBar
from ..subjects import load_subject


def end(done: Fit, config: Config, start: float) -> int:
    """Measure a trained model, draw its pictures and tell where they are; `start` is when the command began.

    The model is there: what fails from here on costs nothing but itself.
    """
    trained = time.perf_counter() - start
    ending = Ending(done.run / runs.MODEL)
    again, named = "The same command repeats it.", shlex.quote(str(done.run))
    results = Results(trained)
    device = choose_device(config.device)
    subject = load_subject(str(done.run), config.runs, device, points=True)
    if config.evaluation.enabled:
        with ending.part("evaluation", again), exits_on_sigterm(done.run), closing(ProgressBar()) as bar:

            def tell(name: str, *progress: Any) -> None:
                bar.named(f"measuring {name}", *progress)

            results.estimates, means = evaluation.evaluate(subject, done.data, config.evaluation, device, tell)
            evaluation.write(done.run, results.estimates, trained, means)
            results.before = evaluation.before_training(done.run, done.data, config.evaluation, device, tell)
    with ending.part("codes", f"{typed('train')} --resume {named} repeats it."):
        results.codes, results.without_codes = subject.model.code_reports(done.data)
        results.codes_file = evaluation.write_codes(done.run, results.codes)
    with ending.part("pictures", f"{typed('sample')} --run {named} draws."):
        results.pictures = report.write_pictures(done.run, subject.model, done.data, config)
    if done.mirror is not None:
        with ending.part("W&B", f"Its figures are in {done.run}."):
            _mirror(done.mirror, results)
    _print_results(done, config, subject.model, results, time.perf_counter() - start)
    return ending.tell()


@dataclass
class Results:
    """What the end of training finds.

    Attributes:
        trained: The seconds of training.
        estimates: The figures of the test images, by name.
        before: Those of the model that it started from.
        codes: What the codes of an autoencoder are like, by name.
        without_codes: Lines that say why there is none.
        codes_file: Where `codes` are.
        pictures: The pictures, by name.
    """

    trained: float
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    before: Mapping[str, Estimate] = field(default_factory=dict)
    codes: Mapping[str, Gaussianity] = field(default_factory=dict)
    without_codes: Sequence[str] = ()
    codes_file: Path | None = None
    pictures: Mapping[str, Path] = field(default_factory=dict)


def _mirror(mirror: WandbMirror, results: Results) -> None:
    """Send what was found to W&B, and close it."""
    for name, estimate in list(results.estimates.items())[:1]:
        mirror.summarise({**evaluation.summary(estimate), "eval/estimator": name})
    for name, estimate in results.estimates.items():
        key = name.lower().replace(" ", "-")
        mirror.summarise(evaluation.summary(estimate, f"eval/{key}/"))
    mirror.summarise(evaluation.summary_of_codes(results.codes))
    for name, path in results.pictures.items():
        mirror.log_image(name.replace(" ", "_"), [str(path)])
    mirror.finish()


def _print_results(done: Fit, config: Config, model: TrainedModel, results: Results, seconds: float) -> None:
    """Print the tables, where everything is, and the next command."""
    console, estimates = terminal.console(), results.estimates
    console.print()
    if estimates:
        console.print(report.likelihood_table({**estimates, **results.before}))
        for name, estimate in estimates.items():
            for warning in evaluation.warnings_of(estimate):
                terminal.say(console, f"{name}: {warning}")
        lines = (*evaluation.information_lines(estimates), *evaluation.left_out(done.data, config.evaluation))
        for line in lines:
            terminal.say(console, line)
    for line in results.without_codes:
        terminal.say(console, line)
    places: dict[str, Path | str] = {"run folder": done.run, **results.pictures}
    if results.codes_file:
        console.print(report.codes_table(results.codes))
        places["codes"] = results.codes_file
    if done.mirror is not None:
        places["W&B run"] = done.run / "wandb"
    places["parameters"] = f"{parameter_count(model.module):,}"
    places["seconds"] = f"{results.trained:.0f} training, {seconds:.0f} in all"
    option, value = next(iter(model.sampling_settings({}).items()))
    terminal.print_places(console, places)
    terminal.print_next(console, "sample", "--run", str(done.run), f"--{option}", str(value))


class Ending:
    """The parts of a command that come after its model is written: one that fails is reported, and the others go on.

    Args:
        model: The model's file.
    """

    def __init__(self, model: Path) -> None:
        self.model = model
        self.failures: list[str] = []

    @contextmanager
    def part(self, name: str, way_out: str) -> Iterator[None]:
        """A block that may fail; `way_out` says what the user can do then."""
        try:
            yield
        except Exception as error:  # whatever it was, hours of training stand before it
            reason = str(error).strip().partition("\n")[0].rstrip(".") or "no reason given"
            if isinstance(error, OSError) and error.filename is not None:
                reason = f"{error.filename}: cannot be written ({error.strerror})"
            elif not isinstance(error, UserError):
                reason = f"{type(error).__name__}: {reason}"
            self.failures.append(f"{name}: {reason}. The run is complete, and its model is {self.model}. {way_out}")

    def tell(self) -> int:
        """Print what failed, a line each; returns the exit code."""
        for failure in self.failures:
            print(f"error: {failure}", file=sys.stderr)
        return USER_ERROR if self.failures else 0
