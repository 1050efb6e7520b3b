"""How commands end where their output, the disk or the memory does: one line, and no traceback."""

import errno
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_disk import small_disk

from diffusion.commands.app import PIPE_CLOSED, command
from diffusion.commands.dispatch import main
from diffusion.commands.export import export


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 8796093022208 bytes"
        ),
        MemoryError(),
    ],
)
def test_too_little_memory_is_a_line_that_says_what_to_do(capsys, error):
    def body(argv):
        raise error

    assert command(body, []) == 2
    found = capsys.readouterr().err
    assert found.startswith("error: out of memory (")
    assert found.count("\n") == 1
    assert "--batch-size" in found


def test_what_torch_and_numpy_say_of_too_little_memory_is_known(capsys):
    for body in (lambda argv: torch.empty(2**52), lambda argv: np.empty(2**52)):
        assert command(body, []) == 2
        assert "out of memory" in capsys.readouterr().err


def test_other_errors_of_a_program_are_not_hidden():
    def body(argv):
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        command(body, [])


def test_a_full_disk_or_a_pipe_of_something_else_leaves_the_output_as_it_is(capfd):
    def full(argv):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def closed(argv):
        ours, theirs = socket.socketpair()
        with ours:
            theirs.close()
            ours.sendall(b"metrics")

    assert command(full, []) == 2
    with pytest.raises(BrokenPipeError):
        command(closed, [])
    print("heard")
    found = capfd.readouterr()
    assert found.err == "error: No space left on device\n"
    assert found.out.split() == ["heard"]


SCRIPT = (
    "import sys; from diffusion.commands.app import command; sys.exit(command(lambda argv: print('x' * 10**6) or 0))"
)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        found = subprocess.run([sys.executable, "-c", SCRIPT], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (found.returncode, found.stderr) == (2, "error: output: No space left on device\n")
    read, write = os.pipe()
    os.close(read)  # a reader that has gone
    found = subprocess.run([sys.executable, "-c", SCRIPT], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (found.returncode, found.stderr) == (PIPE_CLOSED, "")


@pytest.mark.parametrize("layout", ["hub", "torch"])
def test_a_signal_leaves_nothing_half_written(here, monkeypatch, layout):
    def ends(model, folder, *_):
        (folder / "unet").mkdir(parents=True)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setitem(export._LAYOUTS, layout, (ends, ""))
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        command(main, ["export", "pretrained:digits", "out", "--to", layout])
    assert ended.value.code == 128 + signal.SIGTERM
    assert list(here.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == former


def test_a_full_disk_is_told_with_the_folder_that_was_asked_for(here, monkeypatch, capsys):
    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("diffusion.storage.atomic.write_text", full)
    assert command(main, ["export", "pretrained:digits", "out", "--to", "hub"]) == 2
    assert capsys.readouterr().err == f"error: {here / 'out'}: No space left on device\n"
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_a_disk_that_is_full_in_the_middle_of_a_program_or_of_pictures(tmp_path):
    """torch's own writer would abort the process."""
    with small_disk(tmp_path / "disk", 64) as disk:
        script = (
            "from diffusion.commands.app import command, sample; from diffusion.commands.dispatch import main\n"
            f"a = command(main, ['export', 'pretrained:digits', {str(disk / 'x')!r}, '--to', 'torch'])\n"
            "quick = ['--n', '200', '--steps', '1', '--sampler', 'ddim', '--device', 'cpu']\n"
            f"b = command(sample, ['--run', 'pretrained:digits', *quick, '--out', {str(disk / 'y/')!r}])\n"
            "print(a, b)"
        )
        found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
        assert found.stdout.splitlines()[-1] == "2 2", found.stderr
        for name in "xy":
            assert f"error: {disk / name}" in found.stderr
        assert "Traceback" not in found.stderr
        assert [path.name for path in disk.iterdir() if not path.name.endswith(".parts")] == []
