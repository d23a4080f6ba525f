"""API keys `tl-ID-SECRET`: made once, shown once, kept as digests in `keys.json`.

Once a key was made, keys are needed until `open_keys`, and a revoked one stays so, whatever becomes of `keys.json`: a
file in the folder `.keys` next to it, written first, says so, and a running server remembers it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder, make_private, replacing, user_errors_of_the_disk
from tuneloop.core.flag import Flag, flag
from tuneloop.core.ids import utc_now
from tuneloop.records.record import Part, Record, read_record, write_record
from tuneloop.records.server import ServerState

Priority = Literal["high", "normal", "low"]
Right = Literal["feedback", "users", "ui", "steer", "traces"]


class Limits(Part):
    """What a key may use; each field is an option of `tuneloop keys add`.

    With the right `users`, each user that the key names counts alone in experiments and training data; without it all
    that comes with the key counts as one user.
    """

    rpm: int | None = flag(None, "N", "Requests a minute.", least=1)
    tpm: int | None = flag(None, "N", "Tokens a minute, read and written.", least=1)
    budget_usd: Annotated[float | None, Flag(metavar="USD")] = Field(
        None, ge=0, allow_inf_nan=False, description="Dollars in all; needs prices in serve.yaml."
    )
    adapters: list[str] = flag([], "NAMES", "Models that it may ask, separated by commas; default: all.")
    priority: Priority = flag("normal", "NAME", "high, normal or low: before whom its requests are answered.")
    deadline_ms: float | None = flag(
        None, "MS", "Milliseconds to the first token; default: the server's objective.", above=0
    )
    late: Literal["refuse", "flex"] = flag(
        "refuse", "refuse|flex", "What becomes of a request that would be late: 429, or the tier flex."
    )
    train: Literal["yes", "no"] = flag("yes", "yes|no", "Whether its requests may become training data.")
    keep_days: float | None = flag(
        None, "DAYS", "Days after which texts leave the store; default: log.keep_days.", above=0
    )
    rights: list[Right] = flag(
        [],
        "NAMES",
        "users: whose users are believed; feedback: on any request, with weight; ui: reads the pages at /ui; "
        "steer: acts on them too; traces: sends spans.",
    )


class ApiKey(Part):
    """A key as it is kept.

    Args:
        id: in the key itself; not secret.
        name: who it is for.
        sha256: digest of the secret.
        created, revoked: ISO times; None: it is in use.
    """

    id: str
    name: str
    sha256: str
    created: str
    revoked: str | None = None
    limits: Limits = Limits()


class KeyFile(Record):
    """All keys of a server.

    Args:
        keys: revoked ones too.
        open: no key is needed although there was one, by `tuneloop keys open`; the next key that is made ends that.
    """

    title: ClassVar[str] = "a file of keys"
    file: ClassVar[str] = "keys.json"
    again: ClassVar[str] = "restore the file, or delete it and make new keys"

    keys: list[ApiKey] = []
    open: bool = False


FILE = KeyFile.file
LOCK = ".keys"  # folder of the lock and of what is remembered
MARKER = "needed"  # file that is there once a key was made, with the ids of those that were revoked
FORM = re.compile(r"tl-([0-9a-f]{8})-([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@ -]{0,63}")


def read_keys(folder: Path | str) -> list[ApiKey]:
    """The keys of a server, revoked ones too; UserError: the file is damaged or can't be read."""
    return read_key_file(Path(folder)).keys


def add_key(folder: Path | str, name: str, limits: Limits = Limits()) -> tuple[str, ApiKey]:
    """Make a key; from then on keys are needed. Returns the key, which is kept nowhere, and what is kept of it.

    Raises:
        UserError: the name is in use, or no name.
    """
    if not _NAME.fullmatch(name):
        step = "use letters, digits, space and . _ @ -, up to 64"
        raise UserError(f"Not a name for a key: {name!r:.80}", next_step=step)
    with _changing(folder):
        keys = read_keys(folder)
        if any(key.name == name and key.revoked is None for key in keys):
            step = f"choose another name, or revoke it first: tuneloop keys revoke {name!r}"
            raise UserError(f"There is a key of the name {name!r}", where=str(Path(folder) / FILE), next_step=step)
        secret, id_ = secrets.token_urlsafe(32), secrets.token_hex(4)
        key = ApiKey(id=id_, name=name, sha256=digest_of(secret), created=utc_now(), limits=limits)
        note_keys(Path(folder))
        _write(folder, [*keys, key])
    return f"tl-{id_}-{secret}", key


def revoke_key(folder: Path | str, name: str) -> ApiKey:
    """Take a key out of use at once, by its name or id; keys stay needed. UserError: there is none in use."""
    with _changing(folder):
        file = read_key_file(Path(folder))
        used = [key for key in file.keys if key.revoked is None]
        key = next((key for key in used if name in (key.name, key.id)), None)
        if key is None:
            step = f"keys in use: {', '.join(key.name for key in used)}" if used else "there are no keys in use"
            raise UserError(f"No key in use is named {name!r:.80}", where=str(Path(folder) / FILE), next_step=step)
        revoked = key.model_copy(update={"revoked": utc_now()})
        note_keys(Path(folder), revoked.id)
        _write(folder, [revoked if old_key is key else old_key for old_key in file.keys], open_=file.open)
    return revoked


def open_keys(folder: Path | str) -> None:
    """Let requests without a key in, until the next key is made; those in use stay so. UserError: damaged keys."""
    with _changing(folder):
        _write(folder, read_keys(folder), open_=True)


def refuse_budget_without_prices(budgets: Sequence[str], priced: bool, where: str) -> None:
    """Refuse budgets, of keys by name, of a server without prices, to which nothing would ever be charged.

    Args:
        where: the prices belong, for the UserError.
    """
    if budgets and not priced:
        message = f"The budget of {', '.join(budgets)} would never be used up: the server has no prices of tokens"
        step = "start it with its prices, USD for a million tokens: prices.input=0.1 prices.output=0.4"
        raise UserError(message, where=where, next_step=step)


def refuse_unpriced_budget(folder: Path | str, name: str) -> None:
    """The same of a key whose server, the one of a folder or the last one there, has no prices of tokens."""
    file = Path(folder) / ServerState.file
    prices = read_record(ServerState, file).config.get("prices", {}) if file.is_file() else {}
    refuse_budget_without_prices([name], bool(prices.get("input") or prices.get("output")), str(folder))


def _changing(folder: Path | str) -> AbstractContextManager[None]:
    make_private(Path(folder), (FILE,))
    return lock_folder(Path(folder) / LOCK, waiting=lambda holder: None)


def read_key_file(folder: Path) -> KeyFile:
    path = folder / FILE
    with user_errors_of_the_disk(path):
        return read_record(KeyFile, path) if path.is_file() else KeyFile()


def _write(folder: Path | str, keys: Sequence[ApiKey], *, open_: bool = False) -> None:
    path = Path(folder) / FILE
    write_record(path, KeyFile(keys=list(keys), **({"open": True} if open_ else {})))
    path.chmod(0o600)


def note_keys(folder: Path, *revoked: str) -> None:
    """Note that there was a key, and those that were revoked."""
    before = revoked_ids(folder)
    if before is None or not before.issuperset(revoked):
        with replacing(folder / LOCK / MARKER) as file:
            file.write("\n".join(sorted((before or set()) | set(revoked))).encode())


def revoked_ids(folder: Path) -> set[str] | None:
    """Ids of the keys that were revoked; None: there never was a key."""
    try:
        return set((folder / LOCK / MARKER).read_text(encoding="utf-8", errors="replace").split())
    except FileNotFoundError:
        return None
    except OSError:  # it is there and can't be read
        return set()


def digest_of(secret: str) -> str:
    """A plain SHA-256: the secret has 256 random bits, so that it can't be reversed by trying."""
    return hashlib.sha256(secret.encode()).hexdigest()
