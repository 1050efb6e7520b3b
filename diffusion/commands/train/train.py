"""`train.py`: train a model, measure it on the test set and show where everything is."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...storage import full_disk
from ..app import USER_ERROR, ProgressBar

_W_AND_B_SECONDS = 5.0  # for it to close after a signal


def train(argv: Sequence[str]) -> int:
    """`train.py`: train a model, measure it on the test set and show where everything is."""
    from ...config import parse_train_arguments

    arguments = parse_train_arguments(argv)
    config = arguments.config

    if arguments.status:
        from ...training.resume import status

        return status(config, arguments.resume)

    from ...config import preflight

    preflight.check(config, makes_run=arguments.resume in ("auto", "never") and not arguments.verify_resume)
    if arguments.verify_resume:
        from .verify_resume import verify_resume

        return verify_resume(config)

    from ...training.resume import continuing, run_to_continue

    run = run_to_continue(config, arguments.resume, arguments.resume_changed)
    if run is None:
        preflight.check_start(config)

    from ...devices import choose_device
    from ...models.build import parameter_count
    from ...processes import is_child, typed
    from ...storage import runs
    from ...training.fit import fit
    from ...training.stopping import exits_on_sigterm
    from .. import evaluation, report, terminal
    from ..subjects import load_subject

    if run is not None:
        print(continuing(run, config), file=sys.stderr)
    start = time.perf_counter()
    with full_disk.reported(full_disk.CONTINUE):
        done = fit(config, run, report=_print_lines)
    if not done.is_main:  # Lightning kills the parent of a child that ends with another code than 0
        return 0 if is_child() else done.exit_code
    if done.exit_code:
        print(f"stopped early; the same command resumes {done.run}", file=sys.stderr)
        if done.mirror is not None:
            done.mirror.finish(done.exit_code, _W_AND_B_SECONDS)
        return done.exit_code
    trained = time.perf_counter() - start

    # The model is there: what fails from here on costs nothing but itself.
    ending = Ending(done.run / runs.MODEL)
    again, named = "The same command repeats it.", shlex.quote(str(done.run))
    estimates, before, codes, without_codes, found, codes_file = {}, {}, {}, [], {}, None
    device = choose_device(config.device)
    subject = load_subject(str(done.run), config.runs, device, points=True)
    model = subject.model
    if config.evaluation.enabled:
        with ending.part("evaluation", again), exits_on_sigterm(done.run), closing(ProgressBar()) as bar:

            def tell(name: str, *progress: Any) -> None:
                bar.named(f"measuring {name}", *progress)

            estimates, means = evaluation.evaluate(subject, done.data, config.evaluation, device, tell)
            evaluation.write(done.run, estimates, trained, means)
            before = evaluation.before_training(done.run, done.data, config.evaluation, device, tell)
    with ending.part("codes", f"{typed('train')} --resume {named} repeats it."):
        codes, without_codes = model.code_reports(done.data)
        codes_file = evaluation.write_codes(done.run, codes)
    with ending.part("pictures", f"{typed('sample')} --run {named} draws."):
        found = report.write_pictures(done.run, model, done.data, config)
    if done.mirror is not None:
        with ending.part("W&B", f"Its figures are in {done.run}."):
            for name, estimate in list(estimates.items())[:1]:
                done.mirror.summarise({**evaluation.summary(estimate), "eval/estimator": name})
            for name, estimate in estimates.items():
                key = name.lower().replace(" ", "-")
                done.mirror.summarise(evaluation.summary(estimate, f"eval/{key}/"))
            done.mirror.summarise(evaluation.summary_of_codes(codes))
            for name, path in found.items():
                done.mirror.log_image(name.replace(" ", "_"), [str(path)])
            done.mirror.finish()

    console = terminal.console()
    console.print()
    if estimates:
        console.print(report.likelihood_table({**estimates, **before}))
        for name, estimate in estimates.items():
            for warning in evaluation.warnings_of(estimate):
                terminal.say(console, f"{name}: {warning}")
        for line in evaluation.information_lines(estimates):
            terminal.say(console, line)
        for line in evaluation.left_out(done.data, config.evaluation):
            terminal.say(console, line)
    for line in without_codes:
        terminal.say(console, line)
    places: dict[str, Path | str] = {"run folder": done.run, **found}
    if codes_file:
        console.print(report.codes_table(codes))
        places["codes"] = codes_file
    if done.mirror is not None:
        places["W&B run"] = done.run / "wandb"
    places["parameters"] = f"{parameter_count(model.module):,}"
    places["seconds"] = f"{trained:.0f} training, {time.perf_counter() - start:.0f} in all"
    option, value = next(iter(model.sampling_settings({}).items()))
    terminal.print_places(console, places)
    terminal.print_next(console, "sample", "--run", str(done.run), f"--{option}", str(value))
    return ending.tell()


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


def _print_lines(text: str) -> None:
    """Print what there is, at once, also into a log file."""
    from ..terminal import console, say

    if text:
        say(console(), text)
