import os
import subprocess
import sys
import threading
import time

import pytest

from tuneloop.core.lock import try_lock, wait_for_lock


@pytest.fixture
def two(tmp_path):
    """Two descriptors of a file, as two processes have them."""
    descriptors = [os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT) for _ in range(2)]
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def test_a_locked_file_is_refused_until_it_is_closed(tmp_path, two):
    holder = os.open(tmp_path / "file", os.O_RDWR)
    assert try_lock(holder)
    assert not try_lock(two[0])
    os.close(holder)
    assert try_lock(two[0])


def test_waiting_ends_when_the_holder_lets_go(tmp_path, two):
    holder = os.open(tmp_path / "file", os.O_RDWR)
    assert try_lock(holder)
    threading.Timer(0.2, os.close, [holder]).start()
    started = time.monotonic()
    wait_for_lock(two[0])
    assert time.monotonic() - started > 0.1


def test_a_killed_process_lets_go(tmp_path, two):
    code = "import os, sys, time; from tuneloop.core.lock import try_lock; print(try_lock(os.open(sys.argv[1], 2)), flush=True); time.sleep(99)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "file")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"True\n"
    assert not try_lock(two[0])
    process.kill()
    process.wait()
    assert try_lock(two[0])
