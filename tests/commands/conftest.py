"""A tiny trained run and a neighbour of it, made once; each test takes a copy, so that none sees another's figures."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import conditional_runs
import pytest
import torch
from quick_runs import quick_runs
from tiny_configs import digits_config

from diffusion.commands.app import command
from diffusion.commands.dispatch import main
from diffusion.storage import runs, tensor_files

_OF_CHARTS = ("test_demo", "test_ood", "test_page")


@pytest.fixture(autouse=True)
def _undrawn(request):
    """But for tests that look at them charts are plain; what draws each is in tests/data/test_pictures.py, or drawn."""
    drawn = "drawn" in request.fixturenames or request.path.stem in _OF_CHARTS
    with nullcontext() if drawn else quick_runs:
        yield


@pytest.fixture
def drawn():
    """Asked for by tests that look at charts."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    from diffusion.training.fit import fit

    config = digits_config(tmp_path_factory.mktemp("trained"))
    fit(config)
    folder = Path(config.runs)
    state, metadata = tensor_files.read_model(folder / "digits-0001" / runs.MODEL)
    text = metadata.pop("config")
    moved = {
        name: value + 0.05 * torch.sin(37.0 * torch.arange(value.numel())).view_as(value)
        for name, value in state.items()
    }
    tensor_files.save_model(folder / "digits-0002" / runs.MODEL, moved, text, metadata)
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A working folder with the runs digits-0001 and digits-0002."""
    shutil.copytree(trained, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    for key in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    return tmp_path


@pytest.fixture
def diffusion_command(place, capsys):
    """Run `python -m diffusion ...` in process: exit code, stdout, stderr."""

    def run(*argv):
        code = command(main, list(argv))
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    for key in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def table_run(tmp_path_factory):
    """A folder with the run t-0001, conditioned on a vector and a class."""
    folder = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert conditional_runs.trained(*conditional_runs.table()) == 0
    return folder


@pytest.fixture
def shared_run(table_run, monkeypatch):
    monkeypatch.chdir(table_run)
    return table_run
