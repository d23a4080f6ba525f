"""Keys are shown once, kept as digests, and refused as soon as they are revoked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tuneloop.core.errors import UserError
from tuneloop.core.ui import reporting
from tuneloop.serving.admission import Keyring
from tuneloop.serving.keys import FILE, Limits, add_key, open_keys, read_keys, revoke_key


def test_a_key_is_known_by_its_digest_alone(tmp_path: Path) -> None:
    key, kept = add_key(tmp_path, "anna", Limits(rpm=3))
    assert key.split("-", 2)[2] not in (tmp_path / FILE).read_text()
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0
    ring = Keyring(tmp_path)
    found = ring.check(key)
    assert found == kept and found.limits.rpm == 3


@pytest.mark.parametrize("wrong", ["", "x", "tl-", "tl-00000000-" + "A" * 43, "Bearer x", "ü" * 50])
def test_anything_else_is_refused(tmp_path: Path, wrong: str) -> None:
    add_key(tmp_path, "anna")
    assert Keyring(tmp_path).check(wrong) is None


def test_the_right_id_with_a_wrong_secret_is_refused(tmp_path: Path) -> None:
    key, kept = add_key(tmp_path, "anna")
    assert Keyring(tmp_path).check(f"tl-{kept.id}-{'A' * 43}") is None
    assert Keyring(tmp_path).check(key[:-1]) is None


def test_a_key_that_is_revoked_is_refused_at_once(tmp_path: Path) -> None:
    key, _ = add_key(tmp_path, "anna")
    other, _ = add_key(tmp_path, "ben")
    ring = Keyring(tmp_path)
    assert ring.check(key) and ring.check(other)
    assert revoke_key(tmp_path, "anna").revoked
    assert ring.check(key) is None and ring.check(other)
    new, _ = add_key(tmp_path, "anna")  # the name is free again
    assert ring.check(new) and ring.check(key) is None
    assert len(read_keys(tmp_path)) == 3


def test_bad_names_are_refused(tmp_path: Path) -> None:
    add_key(tmp_path, "anna")
    with pytest.raises(UserError, match="There is a key"):
        add_key(tmp_path, "anna")
    for name in ("", "\n", "x" * 65, "-a"):
        with pytest.raises(UserError, match="Not a name"):
            add_key(tmp_path, name)
    with pytest.raises(UserError, match="No key in use"):
        revoke_key(tmp_path, "carl")


def test_a_damaged_file_lets_nobody_in(tmp_path: Path) -> None:
    key, _ = add_key(tmp_path, "anna")
    ring = Keyring(tmp_path)
    assert ring.check(key)
    (tmp_path / FILE).write_text("{")
    os.utime(tmp_path / FILE, ns=(1, 1))
    for _ in range(2):
        assert ring.check(key) is None and ring.needed
    with pytest.raises(UserError):
        read_keys(tmp_path)


def gone(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def without_keys(path: Path) -> None:
    path.write_text('{"version": 1, "keys": []}')


def a_list(path: Path) -> None:
    path.write_text("[]")


def an_object(path: Path) -> None:
    path.write_text("{}")


def bytes_of_nothing(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def of_a_later_version(path: Path) -> None:
    path.write_text('{"version": 2, "keys": []}')


def older_copy_without_keys(path: Path) -> None:
    stat = path.stat()
    without_keys(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        gone, emptied, cut, without_keys, a_list, an_object, bytes_of_nothing, a_folder, of_a_later_version,
        older_copy_without_keys,
    ],
)  # fmt: skip
@pytest.mark.parametrize("running", [True, False])
def test_once_there_was_a_key_nothing_that_becomes_of_the_file_opens_the_server(
    tmp_path: Path, change: Callable[[Path], None], running: bool
) -> None:
    key, _ = add_key(tmp_path, "anna")
    ring = Keyring(tmp_path)
    if running:
        assert ring.check(key)
    change(tmp_path / FILE)
    for item in (ring, Keyring(tmp_path)):
        assert item.needed and item.check(key) is None and not item.used and item.named("anna") is None


def test_keys_stay_needed_when_the_last_one_is_revoked_until_the_server_is_opened(tmp_path: Path) -> None:
    assert not Keyring(tmp_path).needed
    ring = Keyring(tmp_path)
    key, _ = add_key(tmp_path, "anna")
    assert ring.needed
    revoke_key(tmp_path, "anna")
    assert ring.needed and Keyring(tmp_path).needed and ring.check(key) is None
    open_keys(tmp_path)
    assert not ring.needed and not Keyring(tmp_path).needed and ring.check(key) is None
    (tmp_path / FILE).unlink()  # what opened it is gone, what closed it is not
    assert ring.needed and Keyring(tmp_path).needed
    open_keys(tmp_path)
    add_key(tmp_path, "ben")
    assert ring.needed and Keyring(tmp_path).needed
    revoke_key(tmp_path, "ben")
    assert ring.needed


def test_a_running_server_remembers_its_keys_when_all_of_the_folder_goes(tmp_path: Path) -> None:
    add_key(tmp_path / "serve", "anna")
    said: list[str] = []
    with reporting(say=said.append):
        ring = Keyring(tmp_path / "serve")
        assert ring.needed
        shutil.rmtree(tmp_path / "serve")
        assert ring.needed and "no keys any more" in said[0] and len(said) == 1
    assert Keyring(tmp_path / "serve", needed_before=True).needed  # as its store knows after a restart


def test_a_file_of_keys_that_came_from_elsewhere_is_remembered_too(tmp_path: Path) -> None:
    add_key(tmp_path / "one", "anna")
    (tmp_path / "two").mkdir()
    shutil.copy(tmp_path / "one" / FILE, tmp_path / "two")
    assert Keyring(tmp_path / "two").needed
    (tmp_path / "two" / FILE).unlink()
    assert Keyring(tmp_path / "two").needed


def test_what_is_remembered_next_to_the_file_opens_nothing_when_it_is_damaged(tmp_path: Path) -> None:
    add_key(tmp_path, "anna")
    (tmp_path / FILE).unlink()
    marker = tmp_path / ".keys" / "needed"
    marker.write_bytes(b"\xff\x00")
    assert Keyring(tmp_path).needed
    marker.unlink()
    marker.mkdir()
    assert Keyring(tmp_path).needed
    shutil.rmtree(tmp_path / ".keys")
    (tmp_path / ".keys").write_text("")
    assert Keyring(tmp_path).needed


@pytest.mark.parametrize("restarted", [False, True])
def test_an_older_copy_of_the_file_brings_no_revoked_key_back(tmp_path: Path, restarted: bool) -> None:
    key, _ = add_key(tmp_path, "anna")
    other, _ = add_key(tmp_path, "ben")
    ring = Keyring(tmp_path)
    assert ring.check(key)
    older = (tmp_path / FILE).read_bytes()
    revoke_key(tmp_path, "anna")
    assert ring.check(key) is None
    (tmp_path / FILE).write_bytes(older)
    ring = Keyring(tmp_path) if restarted else ring
    assert ring.check(key) is None and ring.check(other) and ring.named("anna") is None


def test_processes_that_make_keys_at_once_lose_none(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        keys = list(pool.map(_add, [(str(tmp_path), f"k{i}") for i in range(16)]))
    ring = Keyring(tmp_path)
    assert all(ring.check(key) for key in keys) and len(read_keys(tmp_path)) == 16


def _add(job: tuple[str, str]) -> str:
    return add_key(*job)[0]


def test_a_process_that_is_killed_while_it_writes_keys_damages_none(tmp_path: Path) -> None:
    key, _ = add_key(tmp_path, "first")
    code = (
        "import sys\nfrom tuneloop.serving.keys import add_key, revoke_key\n"
        "for i in range(10**6):\n    add_key(sys.argv[1], f'k{i}'); print(i, flush=True); revoke_key(sys.argv[1], f'k{i}')"
    )
    for lines in (1, 3, 4):
        writing = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert writing.stdout is not None
        for _ in range(lines):
            writing.stdout.readline()
        writing.kill()
        writing.communicate()
        ring = Keyring(tmp_path)
        assert ring.check(key) and ring.needed
        for item in read_keys(tmp_path):
            if item.revoked is None and item.name != "first":
                revoke_key(tmp_path, item.id)
