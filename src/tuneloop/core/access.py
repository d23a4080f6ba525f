"""Who may open the pages and who may act: a secret is exchanged for a cookie, which each request then carries.

A cookie holds who it is for, since when, and a signature of both; nothing is kept of sessions here. With a secret of
the environment they outlive the process, else they end with it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from tuneloop.core.errors import UserError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

# Environment variables with a secret that stays.
TOKEN = "TUNELOOP_UI_TOKEN"  # noqa: S105
REVIEW_TOKEN = "TUNELOOP_REVIEW_TOKEN"  # noqa: S105 - one of its own: reviewers have it, and must not steer
SHORTEST = 20  # characters of such a secret
SESSION = 7 * 86_400  # seconds for which a cookie holds
OWNER = "owner"


@dataclass(frozen=True)
class Visitor:
    """Who looks at the pages: the name that histories get, and whether it may start, change and ask anything."""

    name: str
    acts: bool


@dataclass(frozen=True)
class Access:
    """The door of the pages.

    Args:
        known: to whom a secret that was typed belongs, by an id; empty: to none.
        visitor: who has an id now; None: no one any more.
        asks: `secret` or `key`: what the page without which nothing is shown asks for.
        stranger: who comes without a cookie; None: no one is let in.
        base: path of the pages, without a slash at its end.
        key: that signs cookies; another one ends all sessions.
    """

    known: Callable[[str], str]
    visitor: Callable[[str], Visitor | None]
    asks: str
    stranger: Visitor | None = None
    base: str = ""
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def admitted(self, request: Request) -> tuple[Visitor, str] | None:
        """Who sends a request, and the token that forms of its pages carry; None: it may see nothing."""
        cookie = request.cookies.get(cookie_name(request), "")
        id_, _, rest = cookie.partition(".")
        since, _, signature = rest.partition(".")
        if hmac.compare_digest(signature.encode(), self._sign(f"{id_}.{since}").encode()):
            age = time.time() - int(since)
            if 0 <= age + 60 < SESSION and (visitor := self.visitor(id_)) is not None:
                return visitor, self._sign(f"form.{signature}")
        return (self.stranger, self._sign("form")) if self.stranger is not None else None

    def opened(self, request: Request, secret: str, address: str) -> Response | None:
        """The way on, with a cookie, for who has a secret; None: it opens nothing."""
        from starlette.responses import RedirectResponse

        id_ = self.known(secret)
        if not id_ or self.visitor(id_) is None:
            return None
        value = f"{id_}.{int(time.time())}"
        answer = RedirectResponse(address, 303)
        answer.set_cookie(
            cookie_name(request),
            f"{value}.{self._sign(value)}",
            path=f"{self.base}/",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    def by_address(self, request: Request) -> Response | None:
        """The way to the same page with a cookie, for an address with the secret; None: there is none in it."""
        given = request.query_params.getlist("token")
        if request.method != "GET" or not given:
            return None
        rest = urlencode([pair for pair in request.query_params.multi_items() if pair[0] != "token"])
        path = "/" + quote(request.url.path.lstrip("/"))  # of this server, whatever slashes it begins with
        return self.opened(request, given[-1], f"{path}?{rest}" if rest else path)

    def _sign(self, text: str) -> str:
        return hmac.new(self.key, text.encode(), hashlib.sha256).hexdigest()


def cookie_name(request: Request) -> str:
    """Cookies do not tell ports apart, so that the name does."""
    return f"tuneloop-ui-{request.url.port or request.url.scheme}"


def owners_secret(variable: str = TOKEN) -> str:
    """The secret of the owner's pages: a new one, or that of the environment, which no process started here inherits.

    Raises:
        UserError: that one is too short.
    """
    given = os.environ.pop(variable, "").strip()
    if given and len(given) < SHORTEST:
        step = "python -c 'import secrets; print(secrets.token_urlsafe())' prints one"
        raise UserError(f"{variable} has less than {SHORTEST} characters", next_step=step)
    return given or secrets.token_urlsafe(32)


def of_owner(secret: str, who: str = "", *, read_only: bool = False) -> Access:
    """The pages of one account: who has the secret is their owner."""

    def known(text: str) -> str:
        return OWNER if hmac.compare_digest(text.encode(), secret.encode()) else ""

    key = hashlib.sha256(b"tuneloop ui\0" + secret.encode()).digest()
    return Access(known, {OWNER: Visitor(who, not read_only)}.get, "secret", key=key)
