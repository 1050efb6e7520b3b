"""`train.py`: train a model, measure it on the test set and show where everything is."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from ...storage import full_disk

_W_AND_B_SECONDS = 5.0  # for it to close after a signal
_AT_END = "  at the end: the likelihood of test data is measured (not with evaluation.enabled=false)"


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

    from ...processes import is_child
    from ...training.fit import fit
    from .ending import end

    if run is not None:
        print(continuing(run, config), file=sys.stderr)
    at_end = [_AT_END] if config.evaluation.enabled else []  # it may take longer than a few steps do

    def report(text: str) -> None:
        if text:  # there is none on toys, which are measured in seconds; the first is on the data
            _print_lines("\n".join([text, *at_end]))
            at_end.clear()

    start = time.perf_counter()
    with full_disk.reported(full_disk.CONTINUE):
        done = fit(config, run, report=report)
    if not done.is_main:  # Lightning kills the parent of a child that ends with another code than 0
        return 0 if is_child() else done.exit_code
    if done.exit_code:
        print(f"stopped early; the same command resumes {done.run}", file=sys.stderr)
        if done.mirror is not None:
            done.mirror.finish(done.exit_code, _W_AND_B_SECONDS)
        return done.exit_code
    return end(done, config, start)


def _print_lines(text: str) -> None:
    """Print what there is, at once, also into a log file."""
    from ..terminal import console, say

    say(console(), text)
