"""Where and how to compute: what is asked for and there, or one line that says what is."""

import os
import subprocess
import sys

import pytest
import torch

from diffusion.config import load_config, preflight
from diffusion.devices import choose_compile, choose_device, choose_precision, has_bf16_tiles
from diffusion.errors import UserError
from diffusion.processes import by_uv, typed, waiting_threads_sleep

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("count", [0, 2])
def test_auto_is_a_gpu_where_there_is_one(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert choose_device("auto").type == ("cuda" if count else "cpu")
    assert choose_device("cpu") == CPU


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UserError, match=r"'cuda:1' does not exist: 1 GPU\(s\) found; accepted: auto, cpu"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="'cuda' does not exist: 0"):
        choose_device("cuda")


def test_the_gpu_of_a_mac_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == torch.device("mps")
    assert choose_precision("auto", torch.device("mps")) == "32-true"
    assert not choose_compile("auto", torch.device("mps"))
    monkeypatch.setattr("sys.platform", "darwin")
    preflight.check_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr("sys.platform", "linux")
    for refuses in (choose_device, preflight.check_device):
        with pytest.raises(UserError, match="device: 'mps' does not exist: no GPU of a Mac found; accepted: auto, cpu"):
            refuses("mps")
    with pytest.raises(UserError, match=r"trainer\.devices: found 2 processes; mps is one device"):
        preflight.process_count(load_config("digits", ["device=mps", "trainer.devices=2"]))


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "meta", "mps:1"])
def test_what_is_no_device_of_ours_is_refused(name):
    with pytest.raises(UserError, match="device: found"):
        choose_device(name)


@pytest.mark.parametrize("supported", [True, False])
def test_bf16_is_chosen_where_the_gpu_has_it_and_never_for_a_processor(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert choose_precision("auto", CUDA) == ("bf16-mixed" if supported else "32-true")
    assert choose_precision("auto", CPU) == "32-true"
    assert choose_precision("bf16", CPU) == "bf16-mixed"
    assert choose_precision("32", CUDA) == "32-true"


def test_compilation_is_for_gpus_unless_asked_for():
    assert choose_compile("auto", CUDA)
    assert not choose_compile("auto", CPU)
    assert choose_compile(True, CPU)
    assert not choose_compile(False, CUDA)


def test_a_cpu_with_tiles_of_bf16_is_known_by_what_torch_says_of_it(monkeypatch):
    for says, expected in (({"amx_bf16": True}, True), ({"amx_bf16": False}, False), ({}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda says=says: says, raising=False)
        assert has_bf16_tiles(CPU) is expected
        assert not has_bf16_tiles(CUDA)
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # not in older versions
    assert not has_bf16_tiles(CPU)


def test_another_command_is_written_as_this_one_was_started(tmp_path, monkeypatch):
    for name in ("train.py", "sample.py", "my tests.py"):
        (tmp_path / name).touch()
    monkeypatch.setattr("sys.executable", "/usr/bin/python3.11")
    plain, started_by_uv = {}, {"UV_RUN_RECURSION_DEPTH": "1"}
    assert (by_uv(plain), by_uv(started_by_uv)) == ("", "uv run "), "in front of `wandb sync`"
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    assert typed("sample", plain) == "python3.11 sample.py"
    assert typed("sample", started_by_uv) == "uv run sample.py"
    assert typed("evaluate", started_by_uv) == "uv run python -m diffusion evaluate", "which has no file of its own"
    monkeypatch.setattr("sys.argv", [str(tmp_path / "train.py")])
    assert typed("sample", plain) == f"python3.11 {tmp_path / 'sample.py'}"
    for module in ("/lib/diffusion/__main__.py", "my tests.py", ""):
        monkeypatch.setattr("sys.argv", [module])
        assert typed("sample", plain) == "python3.11 -m diffusion sample"


def test_threads_that_wait_sleep_unless_the_user_says_otherwise(monkeypatch):
    for given, loaded, expected in ((None, False, "PASSIVE"), ("active", False, "active"), (None, True, None)):
        with monkeypatch.context() as patch:
            patch.delenv("OMP_WAIT_POLICY", raising=False)
            if given:
                patch.setenv("OMP_WAIT_POLICY", given)
            if not loaded:
                patch.delitem(sys.modules, "torch")
            waiting_threads_sleep()
            assert os.environ.get("OMP_WAIT_POLICY") == expected
            os.environ.pop("OMP_WAIT_POLICY", None)


def test_a_command_sets_the_policy_and_the_library_does_not():
    program = "import os, sys; sys.argv[1:] = ['--version']\n{}\nprint(os.environ.get('OMP_WAIT_POLICY'))"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for line, expected in (
        ("import diffusion, diffusion.errors", "None"),
        ("from diffusion.commands.app import command; command(lambda _: 'torch' in sys.modules and 1 / 0)", "PASSIVE"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program.format(line)], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == [expected]
