"""API keys as a server keeps them: their digests and limits."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tuneloop.core.flag import Flag, flag
from tuneloop.records.record import Part, Record

Priority = Literal["high", "normal", "low"]
Right = Literal["feedback", "users"]


class Limits(Part):
    """What a key may use; each field is an option of `tuneloop keys add`.

    With the right `users`, each user that the key names counts alone in experiments and training data; without it all that
    comes with the key counts as one user.
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
        [], "NAMES", "users: the users that it names are believed; feedback: on any request, with weight."
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
        open: no key is needed, as `tuneloop keys open` says, although there was one; the next key that is made ends that.
    """

    title: ClassVar[str] = "a file of keys"
    file: ClassVar[str] = "keys.json"
    again: ClassVar[str] = "restore the file, or delete it and make new keys"

    keys: list[ApiKey] = []
    open: bool = False
