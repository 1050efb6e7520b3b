"""One process trains a run; the kernel lets the lock go when that process ends, however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion.errors import UserError
from diffusion.storage import run_lock

_HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from diffusion.storage import run_lock
with run_lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of the folder."""
    root = str(Path(__file__).parents[2])
    with subprocess.Popen([sys.executable, "-c", _HOLDER, tmp_path, root], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_run_in_training_is_seen_and_refused_and_free_after_a_kill(tmp_path, other):
    assert str(other.pid) in (run_lock.holder(tmp_path) or "")
    with pytest.raises(UserError, match=f"is being trained by process {other.pid}"), run_lock.held(tmp_path):
        pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / run_lock.LOCK).exists()
    assert run_lock.holder(tmp_path) is None
    with run_lock.held(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / run_lock.LOCK).read_text()
    assert os.listdir(tmp_path) == []


def test_a_folder_without_a_lock_is_free(tmp_path):
    assert run_lock.holder(tmp_path) is None
    assert os.listdir(tmp_path) == []
