"""API keys: made once, shown once, kept as digests in `keys.json`.

A key is `tl-ID-SECRET`. The secret has 256 random bits, so a plain SHA-256 of it can't be reversed by trying. A server
looks at the file's time fifty times a second, so that a key which is revoked is refused at once.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder, make_private
from tuneloop.core.ids import utc_now
from tuneloop.records.api_key import ApiKey, KeyFile, Limits
from tuneloop.records.record import read_record, write_record

FILE = KeyFile.file
_FORM = re.compile(r"tl-([0-9a-f]{8})-([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@ -]{0,63}")


def read_keys(folder: Path | str) -> list[ApiKey]:
    """The keys of a server, revoked ones too.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / FILE
    return read_record(KeyFile, path).keys if path.is_file() else []


def add_key(folder: Path | str, name: str, limits: Limits = Limits()) -> tuple[str, ApiKey]:
    """Make a key.

    Returns:
        The key itself, which is kept nowhere, and what is kept of it.

    Raises:
        UserError: the name is in use, or no name.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"Not a name for a key: {name!r:.80}", next_step="use letters, digits, space and . _ @ -, up to 64"
        )
    with _changing(folder):
        keys = read_keys(folder)
        if any(key.name == name and key.revoked is None for key in keys):
            raise UserError(
                f"There is a key of the name {name!r}", where=str(Path(folder) / FILE),
                next_step=f"choose another name, or revoke it first: tuneloop keys revoke {name!r}",
            )  # fmt: skip
        secret, id_ = secrets.token_urlsafe(32), secrets.token_hex(4)
        made = ApiKey(id=id_, name=name, sha256=_digest(secret), created=utc_now(), limits=limits)
        _write(folder, [*keys, made])
    return f"tl-{id_}-{secret}", made


def revoke_key(folder: Path | str, name: str) -> ApiKey:
    """Take a key out of use at once, by its name or id.

    Raises:
        UserError: there is none in use.
    """
    with _changing(folder):
        keys = read_keys(folder)
        found = next((key for key in keys if name in (key.name, key.id) and key.revoked is None), None)
        if found is None:
            used = ", ".join(key.name for key in keys if key.revoked is None)
            raise UserError(
                f"No key in use is named {name!r:.80}", where=str(Path(folder) / FILE),
                next_step=f"keys in use: {used}" if used else "there are no keys in use",
            )  # fmt: skip
        gone = found.model_copy(update={"revoked": utc_now()})
        _write(folder, [gone if key is found else key for key in keys])
    return gone


def _changing(folder: Path | str) -> AbstractContextManager[None]:
    """Hold the keys for a change; a second process waits."""
    make_private(Path(folder), (FILE,))
    return lock_folder(Path(folder) / ".keys", waiting=lambda holder: None)


def _write(folder: Path | str, keys: Sequence[ApiKey]) -> None:
    path = Path(folder) / FILE
    write_record(path, KeyFile(keys=list(keys)))
    path.chmod(0o600)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass
class Keyring:
    """The keys of a server, as they stand in the file now.

    Args:
        folder: of the server.
        every: seconds for which what stands in the file is believed; 0: it is looked at each time.
    """

    folder: Path
    every: float = 0.0
    _looked: float = -1e9
    _stamp: tuple[int, int] = (-1, -1)
    _keys: dict[str, ApiKey] = field(default_factory=dict)
    _file: str = ""

    def __post_init__(self) -> None:
        self._file = str(self.folder / FILE)

    def check(self, given: str) -> ApiKey | None:
        """The key that was given, or None where it is not one in use."""
        self._refresh()
        found = _FORM.fullmatch(given)
        key = self._keys.get(found[1]) if found else None
        # The digest is compared in any case, in constant time: what is wrong can't be guessed from how long it takes.
        same = hmac.compare_digest(_digest(found[2] if found else given), key.sha256 if key else "0" * 64)
        return key if same and key is not None and key.revoked is None else None

    def named(self, name: str) -> ApiKey | None:
        """The key in use of that name."""
        self._refresh()
        return next((key for key in self._keys.values() if key.name == name and key.revoked is None), None)

    @property
    def used(self) -> bool:
        """Whether there is a key in use."""
        self._refresh()
        return any(key.revoked is None for key in self._keys.values())

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked < self.every:
            return
        self._looked = now
        try:
            stat = os.stat(self._file)
            stamp = (stat.st_mtime_ns, stat.st_ino)
        except OSError:
            stamp = (0, 0)
        if stamp != self._stamp:
            # A file that is damaged lets nobody in: read_keys raises, and the keys of before are gone.
            self._looked = -1e9
            self._keys = {}
            self._keys = {key.id: key for key in read_keys(self.folder)}
            self._stamp, self._looked = stamp, now
