"""What a command says of its progress where there is no terminal: lines, and no more of them than help."""

import fcntl
import io
import pty
import re
import struct
import sys
import termios
import time
from types import SimpleNamespace

import pytest

from diffusion.commands import app
from diffusion.commands.app import ProgressBar
from diffusion.errors import UserError


def lines(capsys, seconds=0.0):
    time.sleep(seconds)
    found = capsys.readouterr().err.splitlines()
    return [re.sub(r"\d+ s", "N s", re.sub(", 0.. min left", "", line)) for line in found]  # of a busy machine


def test_a_task_is_told_after_a_while_and_then_again(capsys, monkeypatch):
    monkeypatch.setattr(ProgressBar, "FIRST", 0.3)
    monkeypatch.setattr(ProgressBar, "EVERY", 0.6)
    bar = ProgressBar()
    bar.named("PF-ODE", 0, 1234)
    assert lines(capsys) == []
    bar.named("PF-ODE", 100, 1234, "NFE 7")
    assert lines(capsys, 0.6) == ["PF-ODE: N s, 100 of 1,234, NFE 7"]
    assert lines(capsys, 0.6) == ["PF-ODE: N s, 100 of 1,234, NFE 7"], "though nothing has called back"
    bar.named("forest", 0, 0)
    assert lines(capsys, 0.5) == ["forest: N s"]
    bar.close()
    assert lines(capsys, 1.0) == []


def test_the_time_left_is_told_at_the_pace_of_what_is_done(capsys, monkeypatch):
    """From the first callback on, whose share was done by others, and less while the next one is awaited."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(app.time, "monotonic", lambda: clock.now)
    bar = ProgressBar()

    def left(after, *told):
        clock.now += after
        if told:
            bar.named("PF-ODE", *told)
        return bar._left(clock.now)

    assert left(0.0, 200, 800) == "", "no pace yet"
    assert left(50.0) == ""
    assert left(10.0, 300, 800) == ", 5.0 min left", "60 s for each hundred"
    assert left(60.0) == ", 4.0 min left", "of the 500 s"
    assert left(300.0) == "", "longer than it should: not told"
    assert left(0.0, 500, 800) == ", 7.0 min left"
    assert left(0.0, 0, 40) == "", "another count: from the beginning"
    assert left(3.0, 20, 40) == ", 0.1 min left"
    assert left(3.0, 40, 40, "error budget") == ""
    bar.close()


def test_what_is_told_again_takes_no_time(monkeypatch):
    """As samplers tell of every evaluation of a network: 400 samples in batches of 100, at 60 s each."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(app.time, "monotonic", lambda: clock.now)
    bar = ProgressBar()
    for seconds in range(120):
        clock.now = 100.0 + seconds
        bar.named("ddim", 100 * (seconds // 60), 400, f"NFE {seconds}")
    assert bar._left(clock.now) == ", 2.0 min left", "240 - 119 s"
    bar.close()


def test_a_bar_in_a_terminal_goes_at_the_pace_of_what_is_done(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(app.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr("tqdm.std.time", lambda: clock.now)
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = ProgressBar()

    def told(seconds, done, count):
        for _ in range(seconds):
            clock.now += 1.0
            bar.named("ddim", done, count, f"NFE {clock.now}")
        return bar._bar.format_dict

    told(60, 0, 400)
    assert told(60, 100, 400)["rate"] == pytest.approx(100 / 60)
    found = told(1, 100, 500)
    assert (found["n"], found["initial"], found["rate"]) == (100, 100, None), "more to do: of no pace yet"
    told(49, 100, 500)
    assert told(1, 200, 500)["rate"] == pytest.approx(100 / 50)
    bar.close()


def test_a_terminal_that_does_not_know_its_size_has_bars_as_well(monkeypatch):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 0, 0, 0, 0))  # as `docker exec -t` leaves it
    with open(theirs, "w") as terminal, open(ours, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        bar = ProgressBar()
        bar.named("sampling", 1, 4)
        bar.close()
        shown = screen.read(10_000).decode()
    assert "sampling" in shown
    assert "| 1/4 " in shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_one_of_several_processes_tells(capsys, monkeypatch):
    monkeypatch.setattr(ProgressBar, "FIRST", 0.1)
    monkeypatch.setattr(app, "is_helper", lambda: True)
    ProgressBar().named("PF-ODE", 0, 9)
    assert lines(capsys, 0.3) == []


def test_a_command_that_fails_says_no_more_of_its_progress(capsys, monkeypatch):
    monkeypatch.setattr(ProgressBar, "FIRST", 0.1)
    monkeypatch.setattr(ProgressBar, "EVERY", 0.1)

    def fails(argv):
        ProgressBar().named("PF-ODE", 0, 10)
        raise UserError("data: none")

    assert app.command(fails, []) == 2
    assert lines(capsys, 0.5) == ["error: data: none"]
