"""API keys as a server keeps them: their digests and limits."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tuneloop.records.record import Part, Record

Priority = Literal["high", "normal", "low"]
Right = Literal["feedback", "users"]


class Limits(Part):
    """What a key may use; None: no limit.

    Args:
        rpm: requests a minute.
        tpm: tokens a minute, read and written.
        budget_usd: dollars in all.
        adapters: models that it may ask, by name; empty: all.
        priority: before whom its requests are answered.
        deadline_ms: milliseconds within which the first token is promised; default: the server's objective.
        late: what becomes of a request that can't have it by then: `refuse`, or `flex`, it is answered in that tier.
        train: `no`: its requests never become training data.
        keep_days: days after which texts, users and conversations of its requests leave the store; None: as of all others.
        rights: `users`: the users that it names are believed, each counts for itself in experiments and training data;
            `feedback`: it may send feedback on any request or conversation, with weight and source. Without the first one
            all that comes with the key counts as one user.
    """

    rpm: int | None = Field(None, ge=1)
    tpm: int | None = Field(None, ge=1)
    budget_usd: float | None = Field(None, ge=0, allow_inf_nan=False)
    adapters: list[str] = []
    priority: Priority = "normal"
    deadline_ms: float | None = Field(None, gt=0)
    late: Literal["refuse", "flex"] = "refuse"
    train: Literal["yes", "no"] = "yes"
    keep_days: float | None = Field(None, gt=0)
    rights: list[Right] = []


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
        open: no key is needed, as `tuneloop keys open` says, although there was one; the next key that is made ends that.
    """

    title: ClassVar[str] = "a file of keys"
    file: ClassVar[str] = "keys.json"
    again: ClassVar[str] = "restore the file, or delete it and make new keys"

    keys: list[ApiKey] = []
    open: bool = False
