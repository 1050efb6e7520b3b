"""What a command says of its progress where there is no terminal: lines, and no more of them than help."""

import re
import time
from types import SimpleNamespace

from diffusion.commands import app
from diffusion.commands.app import ProgressBar


def lines(capsys, seconds=0.0):
    time.sleep(seconds)
    return [re.sub(r"\d+ s", "N s", line) for line in capsys.readouterr().err.splitlines()]


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


def test_one_of_several_processes_tells(capsys, monkeypatch):
    monkeypatch.setattr(ProgressBar, "FIRST", 0.1)
    monkeypatch.setattr(app, "is_helper", lambda: True)
    ProgressBar().named("PF-ODE", 0, 9)
    assert lines(capsys, 0.3) == []
