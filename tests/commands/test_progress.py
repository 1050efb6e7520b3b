"""What a command says of its progress where there is no terminal: lines, and no more of them than help."""

import re
import time

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


def test_one_of_several_processes_tells(capsys, monkeypatch):
    monkeypatch.setattr(ProgressBar, "FIRST", 0.1)
    monkeypatch.setattr(app, "is_helper", lambda: True)
    ProgressBar().named("PF-ODE", 0, 9)
    assert lines(capsys, 0.3) == []
