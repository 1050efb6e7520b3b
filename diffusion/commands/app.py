"""Commands behind train.py and sample.py: bad input is one line and exit code 2; torch loads after the arguments."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import ClassVar

from ..errors import UserError
from ..processes import bar_size, cleans_up_on_sigterm, is_helper, waiting_threads_sleep
from ..storage import full_disk

USER_ERROR, INTERRUPTED, PIPE_CLOSED = 2, 130, 141


def command(body: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; errors of the user become one line on stderr and exit code 2.

    These are `UserError`, system errors such as a full disk or a folder without write permission, and too little
    memory. Output that nobody reads any more (`| head`) ends the command without a word, as a signal would; a pipe or
    a connection other than the output is no such case.

    Args:
        body: The command.
        argv: Its arguments; those of the process by default.
    """
    waiting_threads_sleep()
    try:
        try:
            exit_code = body(sys.argv[1:] if argv is None else argv)
        finally:
            ProgressBar.close_all()
        sys.stdout.flush()
        return exit_code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        is_pipe, is_full = isinstance(error, BrokenPipeError), error.errno in full_disk.NO_ROOM
        of_output = error.filename is None and (is_pipe or is_full) and _output_fails()
        if of_output:
            _silence_output()
            if is_pipe:
                return PIPE_CLOSED
        if error.errno is None or (error.filename is None and not is_full):
            raise
        where = "output" if of_output else error.filename
        print(f"error: {where}: {error.strerror}" if where else f"error: {error.strerror}", file=sys.stderr)
        return USER_ERROR
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["nothing more is known"])[0][:160]
        print(f"error: out of memory ({reason}); smaller batches need less: --batch-size, of a training "
              "trainer.batch_size", file=sys.stderr)  # fmt: skip
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is an allocator's refusal: Python's, NumPy's, or torch's of a GPU or the CPU."""
    known = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in known)


def _output_fails() -> bool:
    """Whether standard output cannot be written: an empty line shows it, as what failed may have left none to flush."""
    try:
        print(flush=True)
    except (OSError, ValueError):
        return True
    return False


def _silence_output() -> None:
    """What is left to be written to standard output goes nowhere, so that Python's end does not fail again."""
    with suppress(OSError, ValueError):  # no file at all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def sample(argv: Sequence[str]) -> int:
    """`sample.py`: draw from a run or a pretrained model with any sampler."""
    from .options import in_flags
    from .sample.arguments import parse_sample_arguments

    options = parse_sample_arguments(argv)
    with in_flags(options), cleans_up_on_sigterm():
        from . import preflight as preflight_commands

        preflight_commands.check_sample(options)

        from .sample.sample import draw

        return draw(options)


class ProgressBar:
    """The progress of a command, from callbacks (done, count): a bar per task in a terminal, lines elsewhere.

    The lines come at fixed times, even if no callback comes for minutes, and say the time left as a bar does: at the
    pace since the task's first callback, or since there was more to do.
    """

    FIRST, EVERY = 3.0, 30.0  # seconds of a task without a line, and between two

    _open: ClassVar[set[ProgressBar]] = set()

    def __init__(self) -> None:
        self._bar = None
        self._task, self._state = "", ""
        self._begun = self._last = (0, 0, 0.0)  # done, of how many, at which time
        self._shown = 0.0  # when a bar was last drawn anew with the same done
        self._over = threading.Event()

    def named(self, task: str, done: int, count: int, note: str = "") -> None:
        """Show that `done` of `count` are done; a count of 0 means that it is not known yet."""
        is_new = task != self._task
        if is_new:
            self.close()
            self._open.add(self)
            self._task = task
        begins = is_new or done < self._begun[0] or count != self._begun[1]
        if begins or (done, count) != self._last[:2]:  # not where it is reported once more
            self._last = (done, count, time.monotonic())
        if begins:
            self._begun = self._last
        if sys.stderr.isatty():
            self._show(task, done, count, note, begins)
            return
        parts = (f"{done:,} of {count:,}" if count else "", note)
        self._state = "".join(f", {part}" for part in parts if part)
        if is_new and not is_helper():
            self._over = threading.Event()
            threading.Thread(target=self._tell, args=(task, self._over), name="progress", daemon=True).start()

    def _tell(self, task: str, over: threading.Event) -> None:
        start, wait = time.monotonic(), self.FIRST
        while not over.wait(wait):
            now = time.monotonic()
            print(f"{task}: {now - start:.0f} s{self._state}{self._left(now)}", file=sys.stderr, flush=True)
            wait = self.EVERY

    def _left(self, now: float) -> str:
        """The time left, if it is known."""
        (first, _, since), (done, count, last) = self._begun, self._last
        if done <= first:
            return ""
        left = (count - done) * (last - since) / (done - first) - (now - last)
        return f", {left / 60:.1f} min left" if left > 0 else ""

    def _show(self, task: str, done: int, count: int, note: str, begins: bool) -> None:
        if self._bar is None:
            from tqdm import tqdm

            columns, rows = bar_size()
            self._bar = tqdm(
                total=count or None, initial=done, desc=task, unit="", miniters=0, ncols=columns, nrows=rows
            )  # fmt: skip
        elif begins:
            self._bar.reset()  # and with it the clock
            self._bar.initial = self._bar.n = self._bar.last_print_n = done
        self._bar.total = count or None
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        if done != self._bar.n:
            self._bar.update(done - self._bar.n)
        elif (now := time.monotonic()) - self._shown >= self._bar.mininterval:
            self._bar.refresh()  # not update, which would take what is done next for the work of this moment on
            self._shown = now

    def close(self) -> None:
        """End the current task."""
        self._open.discard(self)
        self._task = ""
        self._over.set()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    @classmethod
    def close_all(cls) -> None:
        """End what a command that failed had begun, before its error is printed."""
        for bar in tuple(cls._open):
            bar.close()
