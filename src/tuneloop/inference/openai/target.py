"""Answers from an OpenAI-compatible endpoint: several requests at once, patient, bounded, and each paid for once.

Every answer is kept in a folder under a hash of its request as soon as it is there, so that a rerun requests only what
is missing. Requests that fail for good don't end the others: their replies say why.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, write_json
from tuneloop.core.ui import progress
from tuneloop.core.urls import masked, split_login
from tuneloop.inference import timeouts
from tuneloop.inference.openai.api import body_of, read_reply
from tuneloop.inference.protocol import Kind, Target
from tuneloop.inference.request import Request, Requests
from tuneloop.inference.wire import Broken, HttpRefused, Wire, finished, need_aiohttp
from tuneloop.records.completion import Completion

# Parameters that some models refuse by name, and what is sent instead.
REPLACED: dict[str, str | None] = {"max_tokens": "max_completion_tokens", "temperature": None, "seed": None}
DEFAULT_KEY = "OPENAI_API_KEY"
ALWAYS = 1_000  # further tries of what may pass, before the endpoint's own limit


@dataclass(frozen=True)
class Endpoint:
    """Which server and model answer, and how they are used."""

    url: str  # of the server, of its `/v1`, or of `/v1/chat/completions`; nothing shows or keeps a login in it
    model: str  # as the server names it
    api_key: str = field(default="", repr=False)  # sent as a bearer token; kept nowhere
    cache: Path | None = None  # folder of the answers; None: none are kept
    concurrency: int = 8  # requests at the same time
    timeout: float = timeouts.ANSWER_WITHIN  # seconds for one request as a whole
    # Further tries after a failure that may pass (5xx, broken or unreadable answers). That an endpoint is busy (429, or
    # 503 with `Retry-After`) is no failure.
    retries: int = 5
    pause: float = timeouts.PAUSE  # seconds before the first of them, doubled each time; `Retry-After` takes precedence
    longest_pause: float = timeouts.LONGEST_PAUSE  # seconds between two tries, where the endpoint names no time
    patience: float = timeouts.PATIENCE  # seconds for which a busy endpoint is waited for without a single answer
    most_bytes: int = 8 << 20  # of one answer
    usd_per_million_input: float = 0.0
    usd_per_million_output: float = 0.0
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

    `usd` is the price of all answers, `usd_spent` that of those which were not known before.
    """

    def sums(of: Sequence[Completion]) -> tuple[int, int]:
        return sum(reply.prompt_tokens for reply in of), sum(reply.completion_tokens for reply in of)

    prompt_tokens, tokens = sums(replies)
    return {
        "seconds": round(sum(reply.total_ms or 0.0 for reply in replies) / 1000, 3),
        "usd": endpoint.usd(prompt_tokens, tokens),
        "usd_spent": endpoint.usd(*sums([reply for reply in replies if not reply.cached and not reply.error])),
        "prompt_tokens": prompt_tokens,
        "tokens": tokens,
        "requests": len(replies),
        "cached": sum(reply.cached for reply in replies),
        "retries": sum(reply.retries for reply in replies),
        "failed": sum(bool(reply.error) for reply in replies),
    }


def failures(replies: Sequence[Completion]) -> list[tuple[str, int]]:
    """Reasons of requests that failed, the commonest first."""
    return Counter(reply.error for reply in replies if reply.error).most_common()


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
    first = dict(zip(keys, bodies, strict=True))
    replies: dict[str, Completion] = {}
    left = iter(first.items())

    async def work() -> None:
        for key, body in left:
            replies[key] = await client.reply(key, body)
            progress(task, len(replies), len(first), retries=float(client.retries))

    progress(task, 0, len(first))
    workers = [asyncio.create_task(work()) for _ in range(min(endpoint.concurrency, len(first)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await client.wire.close()
    progress(task, len(first), len(first))
    answers = [replies[key] for key in keys]
    if client.fatal or (answers and all(reply.error for reply in answers)):
        count = f"none of {len(answers):,} requests" if len(answers) > 1 else "no request"
        what = client.fatal or f"The endpoint answered {count}: {failures(answers)[0][0]}"
        step = "check --endpoint, --model and the key; answers that came are kept, the same command requests the rest"
        raise UserError(what, where=f"{masked(client.address)} (model {endpoint.model})", next_step=step)
    seen: set[str] = set()
    once = []
    for key, reply in zip(keys, answers, strict=True):
        once.append(reply if key not in seen else replace(reply, cached=True, retries=0))
        seen.add(key)
    return once


class _Client:
    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint, self.address = endpoint, endpoint.address
        self.throttle = timeouts.Throttle(
            endpoint.concurrency, endpoint.pause, endpoint.longest_pause, endpoint.patience
        )
        self.under_way = self.retries = 0
        self.succeeded = False
        self.failed_in_a_row = 0
        self.over = ""  # why no further request is made
        self.fatal = ""
        self.replaced: set[str] = set()
        need_aiohttp("--endpoint", "evaluate")
        if not (endpoint.api_key.isascii() and (endpoint.api_key or " ").isprintable()):
            what, step = "The API key holds characters that no header may hold", "set the variable to the key alone"
            raise UserError(what, where="--api-key-env", next_step=step)
        connect = min(timeouts.CONNECT_FAR_WITHIN, endpoint.timeout)
        self.wire = Wire(self.address, endpoint.api_key, True, endpoint.login, connect)

    async def reply(self, key: str, body: dict[str, Any]) -> Completion:
        """One request with its retries; never raises for what the endpoint does."""
        file = None if self.endpoint.cache is None else self.endpoint.cache / key[:2] / f"{key}.json"
        if (cached := _cached(file)) is not None:
            return cached
        started, tries, failed = time.monotonic(), 0, 0
        while True:
            while not self.over and ((left := self.throttle.left) or self.under_way >= int(self.throttle.at_once)):
                await asyncio.sleep(min(left, 0.2) or 0.01)
            if self.over:
                return self._failure(f"not requested: {self.over}", started, tries)
            began = time.monotonic()
            self.under_way += 1
            try:
                outcome = await self._try(body)
            finally:
                self.under_way -= 1
            if isinstance(outcome, Completion):
                outcome = replace(outcome, total_ms=_since(started), retries=tries, engine=masked(self.address))
                if file is not None:
                    record = {"version": 2, "address": masked(self.address), "request": body}
                    await asyncio.to_thread(write_json, file, record | {"completion": outcome.to_json()})
                return outcome
            if outcome.fatal:
                self.fatal = self.fatal or outcome.reason
                self.over = self.over or outcome.reason
            tries, self.retries = tries + 1, self.retries + 1
            if outcome.busy:
                if wait := self.throttle.refused(began, outcome.wait):
                    return self._failed(f"{outcome.reason}, and asks to wait {wait:,.0f} s", started, tries)
                continue
            limit = min(self.endpoint.retries, outcome.tries)
            if outcome.unreachable and not self.succeeded:
                limit = min(limit, 2)  # nothing is there: don't wait as for an overload
            failed += 1
            if failed > limit:
                return self._failed(outcome.reason, started, tries)
            await self._wait(outcome, failed - 1)

    def _failure(self, reason: str, started: float, tries: int) -> Completion:
        took, address = _since(started), masked(self.address)
        return Completion(finish="error", error=reason, total_ms=took, retries=tries, engine=address)

    async def _wait(self, outcome: _Refusal, tries: int) -> None:
        longest = self.endpoint.longest_pause
        pause = (
            timeouts.backoff(tries, self.endpoint.pause, longest)
            if outcome.wait is None
            else min(outcome.wait, longest)
        )
        until = time.monotonic() + pause
        while not self.over and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.2))

    def _failed(self, reason: str, started: float, tries: int) -> Completion:
        """A failure for good; after many in a row no further request is made."""
        self.failed_in_a_row += 1
        self.retries -= 1
        most = max(8, self.endpoint.concurrency) * (3 if self.succeeded else 1)
        if self.failed_in_a_row >= most and not self.over:
            self.over = f"{self.failed_in_a_row} requests before it failed ({reason})"
        return self._failure(reason, started, tries - 1)

    async def _try(self, body: dict[str, Any]) -> Completion | _Refusal:
        # Without the parameters that this model has refused.
        names = {name: REPLACED[name] if name in self.replaced else name for name in body if name in REPLACED}
        accepted = {new: value for name, value in body.items() if (new := names.get(name, name)) is not None}
        try:
            content = json.dumps(accepted, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
            data = await self.wire.post("", content, self.endpoint.timeout, self.endpoint.most_bytes)
        except HttpRefused as error:
            return self._refusal(error, body)
        except Broken as error:
            return self._broken(error)
        except ValueError as error:
            return self._broken(Broken(type(error).__name__, "unsendable"))
        reply = read_reply(data.decode("utf-8", "replace"))
        if reply is None:
            return _Refusal("an answer that is not a chat completion", tries=2)
        self.succeeded, self.failed_in_a_row = True, 0
        self.throttle.answered()
        return reply

    def _broken(self, error: Broken) -> _Refusal:
        if error.kind == "large":
            return _Refusal(f"an answer above {self.endpoint.most_bytes >> 20} MiB", tries=0)
        if error.kind == "late":
            return _Refusal(f"no {'whole ' if error.began else ''}answer in {self.endpoint.timeout:g} s", tries=2)
        if error.kind == "unreachable":
            return _Refusal("nothing answers at this address", unreachable=True)
        if error.kind == "unsendable":
            return _Refusal(f"the request can't be sent ({error})", tries=0, fatal=True)
        return _Refusal(f"the connection broke off ({error})")

    def _refusal(self, error: HttpRefused, body: Mapping[str, Any]) -> _Refusal:
        status, reason = error.status, error.in_words
        if status in (400, 422):
            names = {name for name in REPLACED if name in body and name not in self.replaced and name in error.message}
            if names:  # it is made again in the words that this model takes
                self.replaced |= names
                return _Refusal(reason, wait=0.0)
        if status in timeouts.RETRIED and not error.no_quota:
            wait = error.retry_after or None  # 0 is no reason to hammer
            return _Refusal(reason, wait=wait, busy=timeouts.is_busy(status, wait))
        return _Refusal(reason, tries=0, fatal=status in timeouts.REFUSED)


@dataclass(frozen=True)
class _Refusal:
    """Why a try brought nothing."""

    reason: str
    wait: float | None = None  # seconds that the endpoint names
    tries: int = ALWAYS  # further ones that make sense
    busy: bool = False  # it may answer later: that is no failure
    unreachable: bool = False  # nothing listens
    fatal: bool = False  # no other request will fare better


def _cached(file: Path | None) -> Completion | None:
    if file is None or not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return replace(Completion.from_json(record["completion"]), cached=True, retries=0)
    except (ValueError, KeyError, TypeError, OSError):
        return None  # damaged from outside: it is requested again


@dataclass(frozen=True)
class EndpointTarget(Target):
    """A server and one of its models; chat completions give no log likelihood of a given answer."""

    name: str
    endpoint: Endpoint

    kind: ClassVar[Kind] = "endpoint"
    no_scores = ("An endpoint writes its answers, it can't score choices", "leave evaluate.answer at auto")

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


def _since(started: float) -> float:
    return round(1000 * (time.monotonic() - started), 3)


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
