"""API keys: made once, shown once, kept as digests in `keys.json`.

A key is `tl-ID-SECRET`. The secret has 256 random bits, so a plain SHA-256 of it can't be reversed by trying. A server
looks at the file's time fifty times a second, so that a key which is revoked is refused at once.

Once a key was made, keys are needed until `open_keys`, and one that was revoked stays so, whatever becomes of `keys.json`: a
file in the folder `.keys` next to it says so, and a running server remembers it. That file is written first, so that a
kill in between opens nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder, make_private, replacing, user_errors_of_the_disk
from tuneloop.core.ids import utc_now
from tuneloop.core.ui import bound_say
from tuneloop.records.record import read_record, write_record
from tuneloop.records.server import ServerState
from tuneloop.serving.api_key import ApiKey, KeyFile, Limits

FILE = KeyFile.file
LOCK = ".keys"  # folder of the lock and of what is remembered
MARKER = "needed"  # file that is there once a key was made, with the ids of those that were revoked
_FORM = re.compile(r"tl-([0-9a-f]{8})-([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@ -]{0,63}")


def read_keys(folder: Path | str) -> list[ApiKey]:
    """The keys of a server, revoked ones too.

    Raises:
        UserError: the file is damaged or can't be read.
    """
    return _read(Path(folder)).keys


def add_key(folder: Path | str, name: str, limits: Limits = Limits()) -> tuple[str, ApiKey]:
    """Make a key. From then on keys are needed.

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
        _mark(Path(folder))
        _write(folder, [*keys, made])
    return f"tl-{id_}-{secret}", made


def revoke_key(folder: Path | str, name: str) -> ApiKey:
    """Take a key out of use at once, by its name or id. Keys stay needed, also where it was the last one.

    Raises:
        UserError: there is none in use.
    """
    with _changing(folder):
        file = _read(Path(folder))
        keys = file.keys
        found = next((key for key in keys if name in (key.name, key.id) and key.revoked is None), None)
        if found is None:
            used = ", ".join(key.name for key in keys if key.revoked is None)
            raise UserError(
                f"No key in use is named {name!r:.80}", where=str(Path(folder) / FILE),
                next_step=f"keys in use: {used}" if used else "there are no keys in use",
            )  # fmt: skip
        gone = found.model_copy(update={"revoked": utc_now()})
        _mark(Path(folder), gone.id)
        _write(folder, [gone if key is found else key for key in keys], open_=file.open)
    return gone


def open_keys(folder: Path | str) -> None:
    """Let requests without a key in, until the next key is made. Keys in use stay in use.

    Raises:
        UserError: the file is damaged.
    """
    with _changing(folder):
        _write(folder, read_keys(folder), open_=True)


def refuse_budget_without_prices(budgets: Sequence[str], priced: bool, where: str) -> None:
    """Refuse budgets that nothing would ever be taken from.

    Args:
        budgets: names of the keys that have one.
        priced: whether the server has prices of tokens.
        where: the prices belong, for the message.

    Raises:
        UserError: there are budgets and no prices.
    """
    if budgets and not priced:
        raise UserError(
            f"The budget of {', '.join(budgets)} would never be used up: the server has no prices of tokens", where=where,
            next_step="start it with its prices, USD for a million tokens: prices.input=0.1 prices.output=0.4",
        )  # fmt: skip


def last_prices(folder: Path | str) -> bool:
    """Whether the server of a folder, or the one that was there last, has prices of tokens."""
    file = Path(folder) / ServerState.file
    prices = read_record(ServerState, file).config.get("prices", {}) if file.is_file() else {}
    return any(prices.get(each) for each in ("input", "output"))


def _changing(folder: Path | str) -> AbstractContextManager[None]:
    """Hold the keys for a change; a second process waits."""
    make_private(Path(folder), (FILE,))
    return lock_folder(Path(folder) / LOCK, waiting=lambda holder: None)


def _read(folder: Path) -> KeyFile:
    path = folder / FILE
    with user_errors_of_the_disk(path):
        return read_record(KeyFile, path) if path.is_file() else KeyFile()


def _write(folder: Path | str, keys: Sequence[ApiKey], *, open_: bool = False) -> None:
    path = Path(folder) / FILE
    write_record(path, KeyFile(keys=list(keys), **({"open": True} if open_ else {})))
    path.chmod(0o600)


def _mark(folder: Path, *revoked: str) -> None:
    """Note that there was a key, and those that were revoked."""
    before = _revoked(folder)
    if before is None or not before.issuperset(revoked):
        with replacing(folder / LOCK / MARKER) as file:
            file.write("\n".join(sorted((before or set()) | set(revoked))).encode())


def _revoked(folder: Path) -> set[str] | None:
    """Ids of the keys that were revoked; None: there never was a key."""
    try:
        return set((folder / LOCK / MARKER).read_text(encoding="utf-8", errors="replace").split())
    except FileNotFoundError:
        return None
    except OSError:  # it is there and can't be read
        return set()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass
class Keyring:
    """The keys of a server, as they stand in the file now.

    Args:
        folder: of the server.
        every: seconds for which what stands in the file is believed; 0: it is looked at each time.
        needed_before: there was a key, as something else than the folder's files says.
    """

    folder: Path
    every: float = 0.0
    needed_before: bool = False
    say: Callable[[str], None] = field(default_factory=bound_say)
    _looked: float = -1e9
    _stamp: tuple[int, ...] = ()
    _keys: dict[str, ApiKey] = field(default_factory=dict)
    _file: str = ""
    _needed: bool = False
    _gone: set[str] = field(default_factory=set)  # ids that were revoked

    def __post_init__(self) -> None:
        self._file = str(self.folder / FILE)
        self._needed = self.needed_before

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

    @property
    def needed(self) -> bool:
        """Whether there ever was a key, and nobody has opened the server since."""
        self._refresh()
        return self._needed

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked < self.every:
            return
        self._looked = now
        try:
            stat = os.stat(self._file)
            stamp: tuple[int, ...] = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size)
        except OSError:
            stamp = (0,)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        before, self._keys = self._keys, {}
        try:
            file = _read(self.folder)
        except UserError as error:  # nobody is let in, neither with a key nor without one
            self._needed = True
            self.say(f"keys      {FILE} can't be read, so nobody is let in: {error.what}")
            return
        with contextlib.suppress(UserError):  # a folder that can't be written; the server remembers it
            if file.keys:  # the file may have come from elsewhere
                _mark(self.folder, *(key.id for key in file.keys if key.revoked is not None))
        revoked = _revoked(self.folder)
        self._gone |= revoked or set()
        self._keys = {key.id: key for key in file.keys if key.id not in self._gone}
        self._needed = not file.open and (self._needed or revoked is not None or bool(file.keys))
        if before and not file.keys:
            self.say(f"keys      {FILE} has no keys any more; they are needed until `tuneloop keys open --yes`")
