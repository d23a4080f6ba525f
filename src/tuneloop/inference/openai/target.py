"""Answers to rows from any OpenAI-compatible endpoint, by chat completions: the endpoint renders the turns.

This is what an endpoint gets of which nothing is known; `EngineTarget` asks a server whose model's tokenizer is here.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from urllib.parse import urlsplit

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, write_bytes
from tuneloop.core.http import timeouts
from tuneloop.core.http.wire import Broken, HttpRefused, Wire, finished, need_aiohttp
from tuneloop.core.units import counted
from tuneloop.core.urls import masked, split_login
from tuneloop.inference.openai.api import body_of, read_reply
from tuneloop.inference.protocol import Kind, Target
from tuneloop.inference.request import Request, Requests
from tuneloop.inference.requesting import Body, FailedTry, Requester, RequestLimits
from tuneloop.records.completion import Completion

# Parameters that some models refuse by name, and what is sent instead.
REPLACED: dict[str, str | None] = {
    "max_tokens": "max_completion_tokens", "temperature": None, "seed": None, "logprobs": None, "top_logprobs": None,
}  # fmt: skip
DEFAULT_KEY = "OPENAI_API_KEY"
STEP = "check --endpoint, --model and the key; answers that came are kept, the same command requests the rest"


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
            what, step = f"Not an endpoint's URL: {masked(self.url)!r}", "as in http://localhost:8000/v1"
            raise UserError(what, where="--endpoint", next_step=step)
        path = parts.path.rstrip("/")
        if not path.endswith("/chat/completions"):
            path = f"{path or '/v1'}/chat/completions"
        return parts._replace(path=path, fragment="").geturl()

    def usd(self, prompt_tokens: float, tokens: float) -> float:
        """Dollars for tokens read and written."""
        return (prompt_tokens * self.usd_per_million_input + tokens * self.usd_per_million_output) / 1e6


def usage(endpoint: Endpoint, replies: Sequence[Completion]) -> dict[str, Any]:
    """What replies took: requests, tokens, dollars.

    `usd` is the price of all replies that say what they used, `usd_spent` that of those which were not known before.
    `lost` counts tries whose reply did not arrive: up to so many more may have been billed.
    """

    def sums(of: Sequence[Completion]) -> tuple[int, int]:
        return sum(reply.prompt_tokens for reply in of), sum(reply.completion_tokens for reply in of)

    prompt_tokens, tokens = sums(replies)
    return {
        "seconds": round(sum(reply.total_ms or 0.0 for reply in replies) / 1000, 3),
        "usd": endpoint.usd(prompt_tokens, tokens),
        "usd_spent": endpoint.usd(*sums([reply for reply in replies if not reply.cached])),
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


def complete(endpoint: Endpoint, requests: Requests, *, task: str = "asking") -> list[Completion]:
    """Answers to requests, in order; equal requests are made once.

    Raises:
        UserError: the endpoint refuses all requests (a wrong URL, key or model), or answers none of the first.
    """
    return finished(_completed(endpoint, requests, task))


async def _completed(endpoint: Endpoint, requests: Requests, task: str) -> list[Completion]:
    client = _Client(endpoint)
    bodies = [body_of(request, endpoint.model) for request in requests]
    keys = [content_hash([client.address, body]) for body in bodies]
    server = masked(client.address)
    requester = Requester(endpoint, server, f"{server} (model {endpoint.model})", STEP)
    try:
        return await requester.answers(keys, bodies, client.send, task)
    finally:
        await client.wire.close()


class _Client:
    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.address = endpoint, endpoint.address
        self.replaced: set[str] = set()
        need_aiohttp("--endpoint", "evaluate")
        if not (endpoint.api_key.isascii() and (endpoint.api_key or " ").isprintable()):
            what, step = "The API key holds characters that no header may hold", "set the variable to the key alone"
            raise UserError(what, where="--api-key-env", next_step=step)
        connect = min(timeouts.CONNECT_FAR_WITHIN, endpoint.timeout)
        self.wire = Wire(self.address, endpoint.api_key, True, endpoint.login, connect)

    async def send(self, key: str, body: Body) -> Completion | FailedTry:
        """One try, without the parameters that this model has refused."""
        # Not in the key: what is kept answers a request without them too.
        body = {
            **body,
            **({"logprobs": True, "top_logprobs": self.endpoint.logprobs} if self.endpoint.logprobs else {}),
        }
        names = {name: REPLACED[name] if name in self.replaced else name for name in body if name in REPLACED}
        accepted = {new: value for name, value in body.items() if (new := names.get(name, name)) is not None}
        try:
            content = json.dumps(accepted, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
            data = await self.wire.post("", content, self.endpoint.timeout, self.endpoint.most_bytes)
        except HttpRefused as error:
            return self._refusal(error, accepted)
        except Broken as error:
            return self._broken(error)
        except ValueError as error:
            return self._broken(Broken(type(error).__name__, "unsendable"))
        reply = read_reply(data.decode("utf-8", "replace"))
        if reply is None:
            return FailedTry("an answer that is not a chat completion", tries=2, lost=True)
        if self.endpoint.logprobs and self.endpoint.cache is not None:
            whole = self.endpoint.cache / key[:2] / f"{key}.reply.json"
            await asyncio.to_thread(write_bytes, whole, data)
        return replace(reply, engine=masked(self.address))

    def _broken(self, error: Broken) -> FailedTry:
        if error.kind == "large":
            return FailedTry(f"an answer above {self.endpoint.most_bytes >> 20} MiB", tries=0, lost=True)
        if error.kind == "late":
            return FailedTry(
                f"no {'whole ' if error.began else ''}answer in {self.endpoint.timeout:g} s", tries=2, lost=True
            )
        if error.kind == "unreachable":
            return FailedTry("nothing answers at this address", unreachable=True)
        if error.kind == "unsendable":
            return FailedTry(f"the request can't be sent ({error})", tries=0, fatal=True)
        return FailedTry(f"the connection broke off ({error})", lost=True)

    def _refusal(self, error: HttpRefused, sent: Mapping[str, Any]) -> FailedTry:
        status, reason = error.status, error.in_words
        if status in (400, 422):
            names = {name for name in REPLACED if name in sent and name in error.message}
            if names:  # it is made again in the words that this model takes
                self.replaced |= names
                return FailedTry(reason, wait=0.0)
        if status in timeouts.RETRIED and not error.no_quota:
            wait = error.retry_after or None  # 0 is no reason to hammer
            return FailedTry(reason, wait=wait, busy=timeouts.is_busy(status, wait))
        return FailedTry(reason, tries=0, fatal=status in timeouts.REFUSED)


@dataclass(frozen=True)
class EndpointTarget(Target):
    """A server and one of its models; chat completions give no log likelihood of a given answer."""

    name: str
    endpoint: Endpoint

    kind: ClassVar[Kind] = "endpoint"
    no_scores = (
        "An endpoint writes its answers; labels are scored where it is known what model it serves",
        "give --base MODEL, or --base RUN for its template too; or leave it at auto",
    )

    @property
    def identity(self) -> str:
        """Hash of the address and the model's name; what computes behind them may change."""
        return content_hash([self.endpoint.address, self.endpoint.model])

    def complete(self, requests: Requests, *, task: str = "asking") -> Iterator[Completion]:
        """Written answers; several requests at once, and equal ones once.

        Raises:
            UserError: the endpoint refuses all requests, or answers none of the first.
        """
        whys = [_why_not(request) for request in requests]
        possible = [request for request, why in zip(requests, whys, strict=True) if not why]
        answers = iter(complete(self.endpoint, possible, task=task) if possible else ())
        for why in whys:
            yield Completion(finish="error", error=why, engine=masked(self.endpoint.address)) if why else next(answers)


def _why_not(request: Request) -> str:
    if request.continues is not None:
        return "no_prompt: the model was trained on plain text, which no chat endpoint continues"
    if not request.messages:
        return "no_prompt: an endpoint takes turns, and the request has none"
    if request.logprobs is not None:
        return "no_logprobs: log probabilities of an endpoint's tokens are not read"
    return ""


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
