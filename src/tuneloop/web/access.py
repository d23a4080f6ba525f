"""The door of a server's pages, by its keys; and the form in which a secret or a key is typed."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response

from tuneloop.core.access import Access, Visitor
from tuneloop.serving import Keyring
from tuneloop.serving.http import ApiError, Call

LONGEST = 1000  # bytes of the form in which a secret is typed


async def login(access: Access, request: Request) -> tuple[Response | None, str, int]:
    """What a form with a secret leads to; else what is wrong with it, and the status of the answer."""
    try:
        body = await Call(request.scope, request.receive, request._send).body(LONGEST)
    except ApiError as error:
        return None, error.message, 413
    secret = parse_qs(body.decode("utf-8", "replace")).get("secret", [""])[0].strip()
    return access.opened(request, secret, f"{access.base}/"), f"This {access.asks} opens nothing here", 401


def of_keys(keyring: Keyring, open_rights: Sequence[str] = (), base: str = "") -> Access:
    """The pages of a server: keys with `steer` act, those with `ui` read, and without a key `open_rights` may read."""

    def visitor(id_: str) -> Visitor | None:
        key = keyring.by_id(id_)
        if key is None or not {"ui", "steer"} & set(key.limits.rights):
            return None
        return Visitor(key.name, "steer" in key.limits.rights)

    def known(text: str) -> str:
        key = keyring.check(text)
        return key.id if key is not None else ""

    return Access(known, visitor, "key", Visitor("", acts=False) if "ui" in open_rights else None, base)
