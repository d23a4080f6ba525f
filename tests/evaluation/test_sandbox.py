"""Programs that try to break out, loop, fork, fill disks and memory, or claim a success that they don't have."""

import os
import platform
import sys
import time
from pathlib import Path

import pytest

from patience import slowness
from tuneloop.core.errors import UserError
from tuneloop.evaluation.sandbox import SandboxLimits, run_program

QUICK = SandboxLimits(seconds=2)
LAYERS = ["namespaces", "landlock", "seccomp", "audit"]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox is for Linux and macOS")


def protections():
    return " ".join(run_program("pass").protections)


def without(*layers):
    """Only the locks named are left on."""
    return [layer for layer in LAYERS if layer not in layers]


def needs(lock):
    if lock not in protections():
        pytest.skip(f"this machine doesn't offer: {lock}")


@pytest.mark.parametrize(
    ("program", "status", "reason"),
    [
        ("assert 1 + 1 == 2", "passed", ""),
        ("assert 1 + 1 == 3, 'no'", "failed", "AssertionError: no"),
        ("def f(:", "failed", "SyntaxError"),
        ("raise SystemExit(0)", "failed", "exits before"),
        ("import os\nos._exit(0)", "failed", "exits (status 0) before"),
        ("import os\nos.closerange(0, 100)\nimport time\ntime.sleep(9)", "failed", "closed its files"),
        ("while True: pass", "timeout", "more than 2 seconds"),
        ("import time\ntime.sleep(100)", "timeout", "more than 2 seconds"),
        ("x = 'a' * (4 << 30)", "memory", "more memory"),
        ("while True: print('y' * 100000)", "output", "printed more than"),
        ("import ctypes\nctypes.string_at(0)", "killed", "SIGSEGV"),
        ("(" * 5000 + ")" * 5000, "failed", "Error"),
        ("class E(Exception):\n def __str__(self): raise E\nraise E", "failed", "can't be shown"),
    ],
)
def test_every_end_is_told(program, status, reason):
    outcome = run_program(program, QUICK)
    assert (outcome.status, reason in outcome.reason) == (status, True), outcome
    assert outcome.seconds < 4 and len(outcome.output) <= 4000


def test_a_report_without_the_key_says_nothing():
    forged = """
import os
for fd in range(3, 64):
    try: os.write(fd, b'{"status": "passed", "reason": "", "key": "guess"}\\n')
    except OSError: pass
assert False
"""
    assert run_program(forged, QUICK).status == "failed"


def test_writing_is_for_the_scratch_folder_which_is_gone_afterwards(tmp_path):
    program = "import os\nopen('note', 'w').write('x')\nassert open('note').read() == 'x'\nprint(os.getcwd())"
    outcome = run_program(program, QUICK)
    assert outcome.passed, outcome
    assert not Path(outcome.output.strip()).exists()


OUTSIDE = [
    "open({path!r}, 'a')",
    "import os\nos.open({path!r}, os.O_WRONLY | os.O_APPEND)",
    "import os\nos.remove({path!r})",
    "import os\nos.rename({path!r}, {path!r} + '2')",
    "import os\nos.truncate({path!r}, 0)",
    "import os\nos.symlink('/', os.path.dirname({path!r}) + '/link')",
    "import os\nos.mkdir(os.path.dirname({path!r}) + '/folder')",
    "import shutil, os\nshutil.rmtree(os.path.dirname({path!r}))",
    "import os\nos.symlink({path!r}, 'link')\nopen('link', 'a')",
]


@pytest.mark.parametrize("layer", ["namespaces", "landlock", "audit"])
@pytest.mark.parametrize("program", OUTSIDE)
def test_nothing_outside_is_changed_by_any_layer_alone(program, layer, tmp_path):
    text = {"namespaces": "own mount namespace", "landlock": "Landlock", "audit": "audit hook"}
    needs(text[layer])
    kept = tmp_path / "kept"
    kept.write_text("precious")
    outcome = run_program(program.format(path=str(kept)), QUICK, skip=without(layer))
    assert outcome.status == "failed", outcome
    assert kept.read_text() == "precious" and sorted(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize("layer", ["seccomp", "audit"])
@pytest.mark.parametrize(
    "program",
    [
        "import os\nos.fork()",
        "import os\nwhile True: os.fork()",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', '1'], check=True)",
        "import os\nassert os.system('true') == 0",
        "import os\nos.execv('/bin/sh', ['sh'])",
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
        "import os, signal\nos.kill(-1, signal.SIGKILL)",
        "import multiprocessing as m\np = m.Process(target=print); p.start(); p.join(); assert p.exitcode == 0",
    ],
)
def test_no_process_is_made_or_killed_by_either_layer_alone(program, layer):
    needs({"seccomp": "seccomp", "audit": "audit hook"}[layer])
    assert run_program(program, QUICK, skip=without(layer)).status == "failed"


@pytest.mark.parametrize("layer", ["namespaces", "seccomp", "audit"])
def test_no_connection_leaves_by_any_layer_alone(layer):
    import socket

    needs({"namespaces": "own network namespace", "seccomp": "seccomp", "audit": "audit hook"}[layer])
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1)"
        assert run_program(program, QUICK, skip=without(layer)).status == "failed"


def test_c_code_does_not_get_around_the_kernels_locks(tmp_path):
    needs("seccomp")
    program = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
assert libc.fork() == -1 or os._exit(0)
assert libc.socket(2, 1, 0) == -1
assert libc.kill({os.getpid()}, 9) == -1
assert libc.open({str(tmp_path / "evil").encode()!r}, 0o101, 0o600) == -1
assert libc.ptrace(16, {os.getpid()}, 0, 0) == -1
assert libc.unshare(0x10000000) == -1
assert libc.mount(b"tmpfs", b"/", b"tmpfs", 0, None) == -1
"""
    outcome = run_program(program, QUICK)
    assert outcome.passed, outcome
    assert list(tmp_path.iterdir()) == []


def test_threads_are_allowed_and_a_bomb_of_them_is_bounded():
    assert run_program("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()", QUICK).passed
    bomb = "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()"
    assert run_program(bomb, QUICK).status in ("failed", "memory", "timeout")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's locks")
def test_private_files_are_not_readable_under_landlock(tmp_path):
    needs("Landlock")
    secret = tmp_path / "secret"
    secret.write_text("token")
    assert run_program(f"open({str(secret)!r}).read()", QUICK).status == "failed"


def test_the_environment_is_not_handed_on(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    assert run_program("import os\nassert 'HF_TOKEN' not in os.environ", QUICK).passed


SPY = """
import ctypes, os
libc, seen = ctypes.CDLL(None, use_errno=True), []
others = {os.getppid(), 1, PARENT} - {os.getpid(), 0}
try:
    others |= {int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()}
except OSError:
    pass
for pid in others:
    for name in ("environ", "mem", "maps", "cwd/x", "fd/0"):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                seen.append((pid, name, name == "mem" or file.read(1)))
        except OSError:
            pass
    if libc.ptrace(16, pid, None, None) == 0:
        seen.append((pid, "ptrace"))
assert not seen, seen
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's /proc")
def test_other_processes_are_not_looked_into():
    needs("Landlock")
    outcome = run_program(SPY.replace("PARENT", str(os.getpid())), QUICK)
    assert outcome.passed, outcome


@pytest.mark.parametrize("skip", [[], ["namespaces"]])
def test_a_full_scratch_folder_ends_the_program(skip):
    small = SandboxLimits(seconds=5, disk=4 << 20)
    program = "for i in range(10000):\n    open(str(i), 'w').write('x' * 100_000)\nimport time\ntime.sleep(5)"
    outcome = run_program(program, small, skip=skip)
    assert outcome.status in ("failed", "disk"), outcome


def test_nothing_of_a_stopped_program_goes_on():
    started = time.monotonic()
    for _ in range(3):
        run_program("import time\ntime.sleep(60)", SandboxLimits(seconds=0.2))
    assert time.monotonic() - started < 5 * slowness()
    if Path("/proc").is_dir():
        running = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if os.access(p, os.R_OK)]
        assert not [line for line in running if b"sandbox_child" in line and str(os.getpid()).encode() in line]


def test_what_protected_is_said_and_what_was_left_off_is_not():
    assert "rlimits" in protections()
    assert "audit hook" not in " ".join(run_program("pass", skip=["audit"]).protections)
    if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64"):
        assert "seccomp" not in " ".join(run_program("pass", skip=["seccomp"]).protections)


def test_windows_is_told(monkeypatch):
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(UserError, match="Linux and macOS"):
        run_program("pass")
