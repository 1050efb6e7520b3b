"""Commands behind train.py and sample.py: bad input is one line and exit code 2; torch loads after the arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from ..errors import UserError

USER_ERROR, INTERRUPTED = 2, 130


def command(body: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command: returns its exit code, and turns the user's errors into one line on stderr and exit code 2.

    Those are `UserError` and what the system refuses: a full disk, a folder that may not be written to.

    Args:
        body: The command.
        argv: Its arguments; those of the process by default.
    """
    try:
        return body(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        if error.errno is None or error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def sample(argv: Sequence[str]) -> int:
    """`sample.py`: draw from a run or a pretrained model with any sampler."""
    from .sample.arguments import parse_sample_arguments

    options = parse_sample_arguments(argv)

    from . import preflight as preflight_commands

    preflight_commands.check_sample(options)

    from .sample.sample import draw

    return draw(options)


class ProgressBar:
    """One bar a task, in a terminal only, for callbacks of (done, of how many)."""

    def __init__(self) -> None:
        self._bar = None
        self._task = ""

    def named(self, task: str, done: int, count: int) -> None:
        """Show that `done` of `count` of a task are done."""
        from tqdm import tqdm

        if not sys.stderr.isatty():
            return
        if self._bar is None or self._task != task:
            self.close()
            self._bar, self._task = tqdm(total=count, desc=task, unit=""), task
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """End the present bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
