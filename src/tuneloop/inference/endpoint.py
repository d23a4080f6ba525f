"""A server of OpenAI's API and one of its models: how it is reached, what it may cost, and what answers have cost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tuneloop.core.errors import UserError
from tuneloop.core.http import timeouts
from tuneloop.core.units import counted
from tuneloop.core.urls import masked, split_login
from tuneloop.records.completion import Completion

DEFAULT_KEY = "OPENAI_API_KEY"


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """How many requests are made at a time, how long and how often, and where their answers are kept."""

    cache: Path | None = None  # folder of the answers; None: none are kept
    concurrency: int = 8  # requests at the same time
    timeout: float = timeouts.ANSWER_WITHIN  # seconds for one request as a whole
    # Further tries after a failure that may pass (5xx, broken or unreadable answers). That a server is busy (429, or
    # 503 with `Retry-After`) is no failure.
    retries: int = 5
    pause: float = timeouts.PAUSE  # seconds before the first of them, doubled each time; `Retry-After` takes precedence
    longest_pause: float = timeouts.LONGEST_PAUSE  # seconds between two tries, where the server names no time
    patience: float = timeouts.PATIENCE  # seconds for which a busy server is waited for without a single answer


@dataclass(frozen=True)
class Endpoint(RequestLimits):
    """Which server and model answer, and how they are used."""

    url: str  # of the server, of its `/v1`, or of `/v1/chat/completions`; nothing shows or keeps a login in it
    model: str  # as the server names it
    api_key: str = field(default="", repr=False)  # sent as a bearer token; kept nowhere
    most_bytes: int = 8 << 20  # of one answer
    usd_per_million_input: float = 0.0
    usd_per_million_output: float = 0.0
    # Of each written token and so many likely ones; where the server gives them, they are kept next to the answer.
    logprobs: int = 0
    login: tuple[str, str] | None = field(default=None, repr=False)  # user and password, from the URL

    def __post_init__(self) -> None:
        url, login = split_login(self.url)
        if login is not None:
            object.__setattr__(self, "url", url)
            object.__setattr__(self, "login", login)

    @property
    def address(self) -> str:
        """The URL that requests go to.

        Raises:
            UserError: it is no such URL.
        """
        parts = urlsplit(self.url.strip())
        if parts.scheme not in ("http", "https") or not parts.netloc:
            message, step = f"Not an endpoint's URL: {masked(self.url)!r}", "as in http://localhost:8000/v1"
            raise UserError(message, where="--endpoint", next_step=step)
        path = parts.path.rstrip("/")
        if not path.endswith("/chat/completions"):
            path = f"{path or '/v1'}/chat/completions"
        return parts._replace(path=path, fragment="").geturl()

    def usd(self, prompt_tokens: float, tokens: float) -> float:
        """Dollars for tokens read and written."""
        return (prompt_tokens * self.usd_per_million_input + tokens * self.usd_per_million_output) / 1e6

    def usage(self, replies: Sequence[Completion]) -> dict[str, Any]:
        """What replies took: requests, tokens, dollars.

        `usd` is the price of all replies that say what they used, `usd_spent` that of those which were new.
        `lost` counts tries whose reply did not arrive: up to so many more may have been billed.
        """

        def sums(of: Sequence[Completion]) -> tuple[int, int]:
            return sum(reply.prompt_tokens for reply in of), sum(reply.completion_tokens for reply in of)

        prompt_tokens, tokens = sums(replies)
        return {
            "seconds": round(sum(reply.total_ms or 0.0 for reply in replies) / 1000, 3),
            "usd": self.usd(prompt_tokens, tokens),
            "usd_spent": self.usd(*sums([reply for reply in replies if not reply.cached])),
            "prompt_tokens": prompt_tokens,
            "tokens": tokens,
            "requests": len(replies),
            "cached": sum(reply.cached for reply in replies),
            "retries": sum(reply.retries for reply in replies),
            "failed": sum(bool(reply.error) for reply in replies),
            "lost": sum(reply.lost for reply in replies),
        }


def endpoint_line(cost: Mapping[str, Any]) -> str:
    """The requests to an endpoint and what they cost, in a line."""
    fresh = cost["requests"] - cost["cached"] - cost["failed"]
    lost = (
        f"; up to {counted(cost['lost'], 'further reply')} that did not arrive may be billed too"
        if cost["lost"]
        else ""
    )
    usd = f"${cost['usd_spent']:.4f} spent now, ${cost['usd']:.4f} in all" if cost["usd"] else "cost unknown"
    return (
        f"endpoint  {counted(cost['requests'], 'request')}: {fresh} sent, {cost['cached']} known from before, "
        f"{cost['failed']} failed, {counted(cost['retries'], 'retry')}; "
        f"{cost['prompt_tokens']:,} tokens read, {cost['tokens']:,} written; {usd}{lost}"
    )


def key_from(variable: str) -> str:
    """The API key in an environment variable; none where `OPENAI_API_KEY`, the default, isn't set.

    Raises:
        UserError: another variable was named, and it is empty.
    """
    key = os.environ.get(variable, "").strip()
    if not key and variable != DEFAULT_KEY:
        step = f"export {variable}=..."
        raise UserError(f"The variable {variable} is not set", where="--api-key-env", next_step=step)
    return key
