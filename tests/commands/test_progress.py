"""What a command says of its progress where there is no terminal: lines, and no more of them than help."""

import pytest

from diffusion.commands import app
from diffusion.commands.app import ProgressBar


@pytest.fixture
def clock(monkeypatch):
    """The time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(app.time, "monotonic", lambda: now[0])
    return now


def test_a_task_is_told_when_it_begins_and_every_half_minute(clock, capsys):
    bar = ProgressBar()
    for seconds, done in ((0, 0), (1, 10), (29, 90), (30, 100), (31, 110), (61, 200)):
        clock[0] = 100.0 + seconds
        bar.named("PF-ODE", done, 1234)
    bar.named("forest", 0, 0)
    bar.named("ELBO", 5, 5)
    assert capsys.readouterr().err.splitlines() == [
        "PF-ODE: 0 of 1,234", "PF-ODE: 100 of 1,234, 30 s", "PF-ODE: 200 of 1,234, 61 s", "forest",
    ]  # fmt: skip


def test_a_task_may_be_silent_at_first(clock, capsys):
    bar = ProgressBar(silent=5.0)
    for seconds in (0, 4, 5, 6):
        clock[0] = 100.0 + seconds
        bar.named("sampling (ddim)", 0, 64, f"NFE {seconds}")
    assert capsys.readouterr().err == "sampling (ddim): 0 of 64, NFE 5, 5 s\n"


def test_one_of_several_processes_tells(clock, capsys, monkeypatch):
    monkeypatch.setattr(app, "is_helper", lambda: True)
    ProgressBar().named("PF-ODE", 0, 9)
    assert capsys.readouterr().err == ""
