"""Whatever the moment of a crash, a file is the old one or the new one."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from diffusion.storage import atomic

_ENDLESS_WRITER = """
import sys
from diffusion.storage import atomic
for number in range(10**9):
    with atomic.writer(sys.argv[1]) as file:
        for _ in range(64):
            file.write(bytes([number % 256]) * 65536)
    if number == 0:
        print("started", flush=True)
"""


def test_new_content_replaces_old_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    atomic.write_text(path, "αβγ")
    atomic.write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["file.txt"]


def test_the_mode_is_that_of_an_ordinary_file(tmp_path):
    ordinary, ours = tmp_path / "ordinary", tmp_path / "ours"
    ordinary.write_bytes(b"")
    atomic.write_bytes(ours, b"")
    assert ours.stat().st_mode == ordinary.stat().st_mode


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_exception_while_writing_keeps_the_old_content(tmp_path, error):
    path = tmp_path / "file"
    atomic.write_bytes(path, b"old")

    def fail():
        with atomic.writer(path) as file:
            file.write(b"half of the n")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("message", ["No space left on device", "Input/output error"])
def test_what_the_system_refuses_names_the_file_that_was_meant(tmp_path, message):
    number = {"No space left on device": errno.ENOSPC, "Input/output error": errno.EIO}[message]

    def fail():
        with atomic.writer(tmp_path / "file"):
            raise OSError(number, message)  # as a failed write does, without a name

    with pytest.raises(OSError, match=message) as caught:
        fail()
    assert caught.value.filename == str(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_known_beforehand(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for write in (atomic.check_writable, lambda path: atomic.write_bytes(path, b"x")):
        with pytest.raises((NotADirectoryError, FileExistsError)):
            write(tmp_path / "file" / "x")
    atomic.check_writable(tmp_path / "deep" / "er" / "x")
    assert os.listdir(tmp_path) == ["file"]


def test_the_target_does_not_exist_before_the_end(tmp_path):
    path = tmp_path / "file"
    with atomic.writer(path) as file:
        file.write(b"x")
        file.flush()
        assert not path.exists()
    assert path.exists()


def test_a_link_keeps_the_content_when_the_source_is_replaced(tmp_path):
    source, link = tmp_path / "last", tmp_path / "step-1"
    atomic.write_bytes(source, b"one")
    atomic.link_or_copy(source, link)
    atomic.link_or_copy(source, link)  # again, over itself
    atomic.write_bytes(source, b"two")
    assert link.read_bytes() == b"one"
    assert sorted(os.listdir(tmp_path)) == ["last", "step-1"]


def test_linking_copies_where_links_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("not supported")))
    atomic.write_bytes(tmp_path / "last", b"one")
    atomic.link_or_copy(tmp_path / "last", tmp_path / "step-1")
    assert (tmp_path / "step-1").read_bytes() == b"one"


def test_sweep_removes_only_temporary_files(tmp_path):
    kept = [".file.tmp", "notes.tmp", ".hidden", "model.safetensors"]
    for name in [*kept, ".last.ckpt.0a1b2c3d.tmp"]:
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in atomic.sweep(tmp_path)] == [".last.ckpt.0a1b2c3d.tmp"]
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    assert atomic.sweep(tmp_path / "absent") == []


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_no_torn_file_after_kill_9_while_writing(tmp_path, kills):
    path = tmp_path / "file"
    left_behind = 0
    for attempt in range(kills):
        with subprocess.Popen([sys.executable, "-c", _ENDLESS_WRITER, path], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.011 * (attempt % 7))
            process.send_signal(signal.SIGKILL)
        content = path.read_bytes()
        assert len(content) == 64 * 65536
        assert set(content) == {content[0]}
        left_behind += len(atomic.sweep(tmp_path))
        assert os.listdir(tmp_path) == ["file"]
    if kills >= 30:
        assert left_behind > 0, "no kill hit a write in progress: the test shows nothing"


def test_the_root_is_no_file():
    for may_be_folder in (False, True):
        with pytest.raises(IsADirectoryError):
            atomic.check_writable("/", may_be_folder)
