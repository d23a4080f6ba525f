"""Keys are shown once, kept as digests, and refused as soon as they are revoked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tuneloop.core.errors import UserError
from tuneloop.records.api_key import Limits
from tuneloop.serve.keys import FILE, Keyring, add_key, read_keys, revoke_key


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
        with pytest.raises(UserError):
            ring.check(key)
