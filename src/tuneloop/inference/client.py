"""Answers from an OpenAI-compatible endpoint: several requests at once, patient, bounded, and each paid for once.

Every answer is kept in a folder under a hash of what was asked as soon as it is there, so that a rerun asks only what
is missing. Requests that fail for good don't end the others: their replies say why.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, write_json
from tuneloop.core.ui import progress
from tuneloop.core.urls import masked, split_login
from tuneloop.inference.request import Request
from tuneloop.models.adapters import ATTACHED, BASE
from tuneloop.records.completion import Completion, Finish

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
REFUSED = frozenset({401, 403, 404, 405})  # wrong for one request, wrong for all
NO_QUOTA = "insufficient_quota"  # in an answer with 429 that no time helps
# Parameters that some models refuse by name, and what is sent instead.
REPLACED: dict[str, str | None] = {"max_tokens": "max_completion_tokens", "temperature": None, "seed": None}


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask.

    Args:
        url: of the server, of its `/v1`, or of `/v1/chat/completions`. A login in it goes into `login`: nothing shows or
            keeps it.
        model: as the server names it.
        api_key: sent as a bearer token; kept nowhere.
        cache: folder of the answers; None: none are kept.
        concurrency: requests at the same time.
        timeout: seconds for one request as a whole.
        retries: further tries after a failure that may pass (5xx, broken or unreadable answers). That an endpoint is busy
            (429, or 503 with `Retry-After`) is no failure.
        pause: seconds before the first of them; doubled each time, with chance. `Retry-After` goes before it.
        longest_pause: seconds between two tries, where the endpoint names no time.
        patience: seconds for which a busy endpoint is waited for without a single answer; one that wants more is not.
        most_bytes: of one answer.
        usd_per_million_input, usd_per_million_output: prices of tokens.
    """

    url: str
    model: str
    api_key: str = field(default="", repr=False)
    cache: Path | None = None
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 5
    pause: float = 1.0
    longest_pause: float = 60.0
    patience: float = 600.0
    most_bytes: int = 8 << 20
    usd_per_million_input: float = 0.0
    usd_per_million_output: float = 0.0
    login: tuple[str, str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        url, login = split_login(self.url)
        if login is not None:
            object.__setattr__(self, "url", url)
            object.__setattr__(self, "login", login)

    @property
    def address(self) -> str:
        """The URL that is asked.

        Raises:
            UserError: it is no such URL.
        """
        parts = urlsplit(self.url.strip())
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(
                f"Not an endpoint's URL: {masked(self.url)!r}",
                where="--endpoint",
                next_step="as in http://localhost:8000/v1",
            )
        path = parts.path.rstrip("/")
        if not path.endswith("/chat/completions"):
            path = f"{path or '/v1'}/chat/completions"
        return parts._replace(path=path, fragment="").geturl()

    def usd(self, prompt_tokens: float, tokens: float) -> float:
        """Dollars for tokens read and written."""
        return (prompt_tokens * self.usd_per_million_input + tokens * self.usd_per_million_output) / 1e6


def body_of(request: Request, model: str) -> dict[str, Any]:
    """A request in the form of chat completions; an adapter is named in the place of the model, as servers of several do it."""
    keep = ("role", "content", "tool_calls", "tool_call_id", "name")
    turns = [{key: turn[key] for key in keep if key in turn} for turn in request.messages]  # type: ignore[literal-required]
    sampling = request.sampling
    named = model if request.adapter in (ATTACHED, BASE) else request.adapter
    body: dict[str, Any] = {"model": named, "messages": turns, "max_tokens": request.max_new_tokens}
    body |= {"temperature": sampling.temperature}
    if request.tools:
        body["tools"] = list(request.tools)
    if sampling.temperature:
        body["seed"] = sampling.seed
    body |= {
        name: value
        for name, value in (("top_p", sampling.top_p), ("stop", list(request.stop)))
        if value not in (1.0, [])
    }
    # These are not OpenAI's, but vLLM's and llama.cpp's.
    more = {
        "top_k": (sampling.top_k, 0),
        "min_p": (sampling.min_p, 0.0),
        "repetition_penalty": (sampling.repetition_penalty, 1.0),
    }
    return body | {name: value for name, (value, usual) in more.items() if value != usual}


def usage(endpoint: Endpoint, replies: Sequence[Completion]) -> dict[str, Any]:
    """What replies took: requests, tokens, dollars.

    `usd` is the price of all answers, `usd_spent` that of those which were not known before.
    """
    fresh = [reply for reply in replies if not reply.cached and not reply.error]

    def sums(of: Sequence[Completion]) -> tuple[int, int]:
        return sum(reply.prompt_tokens for reply in of), sum(reply.completion_tokens for reply in of)

    read, written = sums(replies)
    return {
        "seconds": round(sum(reply.total_ms or 0.0 for reply in replies) / 1000, 3),
        "usd": endpoint.usd(read, written),
        "usd_spent": endpoint.usd(*sums(fresh)),
        "prompt_tokens": read,
        "tokens": written,
        "requests": len(replies),
        "cached": sum(reply.cached for reply in replies),
        "retries": sum(reply.retries for reply in replies),
        "failed": sum(bool(reply.error) for reply in replies),
    }


def failures(replies: Sequence[Completion]) -> list[tuple[str, int]]:
    """Reasons of requests that failed, the commonest first."""
    return Counter(reply.error for reply in replies if reply.error).most_common()


def complete(endpoint: Endpoint, requests: Sequence[Request], *, task: str = "asking") -> list[Completion]:
    """Answers to requests, in order; equal requests are asked once.

    Raises:
        UserError: the endpoint refuses all requests (a wrong URL, key or model), or answers none of the first.
    """
    asking = _Asking(endpoint)
    bodies = [body_of(request, endpoint.model) for request in requests]
    keys = [content_hash([asking.address, body]) for body in bodies]
    first: dict[str, int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    replies: dict[str, Completion] = {}
    progress(task, 0, len(first))
    with asking.opened():
        pool = ThreadPoolExecutor(max(1, min(endpoint.concurrency, len(first) or 1)))
        try:
            waiting = [(key, pool.submit(asking.reply, key, bodies[i])) for key, i in first.items()]
            for done, (key, future) in enumerate(waiting, 1):
                replies[key] = future.result()
                progress(task, done, len(first), retries=float(sum(r.retries for r in replies.values())))
        finally:
            asking.over = asking.over or "stopped"
            pool.shutdown(wait=True, cancel_futures=True)
    progress(task, len(first), len(first))
    found = [replies[key] for key in keys]
    if asking.fatal or (found and all(reply.error for reply in found)):
        raise UserError(
            asking.fatal
            or f"The endpoint answered {f'none of {len(found):,} requests' if len(found) > 1 else 'no request'}: {failures(found)[0][0]}",
            where=f"{masked(asking.address)} (model {endpoint.model})",
            next_step="check --endpoint, --model and the key; answers that came are kept, the same command asks for the rest",
        )
    counted: set[str] = set()
    once = []
    for key, reply in zip(keys, found, strict=True):
        once.append(reply if key not in counted else replace(reply, cached=True, retries=0))
        counted.add(key)
    return once


class _Asking:
    """The state that the threads of one call share."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.address = endpoint.address
        self.lock = threading.Lock()
        self.resume_at = 0.0  # nobody asks before: the endpoint has said so to one of us
        self.at_once, self.asking = float(endpoint.concurrency), 0  # requests that may be, and are, under way
        self.shrunk = 0.0
        self.busy_since = float("inf")  # no answer has come since then
        self.refusals = 0
        self.succeeded = False
        self.failed_in_a_row = 0
        self.over = ""  # why no further request is made
        self.fatal = ""
        self.replaced: set[str] = set()
        self.client: Any = None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """A client for the time of the call; httpx is loaded here."""
        try:
            import httpx
        except ModuleNotFoundError:
            raise UserError(
                "Asking an endpoint needs httpx", where="--endpoint", next_step="pip install 'tuneloop[evaluate]'"
            ) from None
        headers = {"Authorization": f"Bearer {self.endpoint.api_key}"} if self.endpoint.api_key else {}
        limits = httpx.Limits(max_connections=self.endpoint.concurrency)
        timeout = httpx.Timeout(self.endpoint.timeout, connect=min(15.0, self.endpoint.timeout))
        try:
            self.client = httpx.Client(headers=headers, auth=self.endpoint.login, limits=limits, timeout=timeout)
        except (ValueError, UnicodeError):
            raise UserError(
                "The API key holds characters that no header may hold",
                where="--api-key-env",
                next_step="set the variable to the key alone",
            ) from None
        with self.client:
            yield

    def reply(self, key: str, body: dict[str, Any]) -> Completion:
        """One request with its retries; never raises for what the endpoint does."""
        known = self._cached(key)
        if known is not None:
            return known
        started, tries, failures, allowed = time.monotonic(), 0, 0, self.endpoint.retries
        while True:
            if self.over:
                return self._failure(f"not asked: {self.over}", started, tries)
            self._hold()
            asked = time.monotonic()
            try:
                outcome = self._try(body)
            finally:
                with self.lock:
                    self.asking -= 1
            if isinstance(outcome, Completion):
                outcome = replace(outcome, total_ms=_since(started), retries=tries, engine=masked(self.address))
                self._keep(key, body, outcome)
                return outcome
            if outcome.fatal:
                with self.lock:
                    self.fatal = self.fatal or outcome.reason
                    self.over = self.over or outcome.reason
            tries += 1
            if outcome.busy:
                if wait := self._shrink(asked, outcome.wait):
                    reason = f"{outcome.reason}, and asks to wait {wait:,.0f} s"
                    self._failed(reason)
                    return self._failure(reason, started, tries - 1)
                continue
            limit = min(allowed, outcome.tries)
            if outcome.unreachable and not self.succeeded:
                limit = min(limit, 2)  # there is nobody: don't wait as for an overload
            failures += 1
            if failures > limit:
                self._failed(outcome.reason)
                return self._failure(outcome.reason, started, tries - 1)
            self._wait(outcome, failures - 1)

    def _failure(self, reason: str, started: float, tries: int) -> Completion:
        return Completion(
            finish="error", error=reason, total_ms=_since(started), retries=tries, engine=masked(self.address)
        )

    def _hold(self) -> None:
        """Wait until a request may be made, and count it."""
        while True:
            with self.lock:
                left = self.resume_at - time.monotonic()
                if self.over or (left <= 0 and self.asking < int(self.at_once)):
                    self.asking += 1
                    return
            time.sleep(min(left, 0.2) if left > 0 else 0.01)

    def _shrink(self, asked: float, wait: float | None) -> float:
        """Hold all requests for the time that a busy endpoint names, and make half as many at the same time from then on.

        Args:
            asked: when the request was made: those that were refused together count once.

        Returns:
            0; or the time that it wants, where that is longer than it is waited for.
        """
        with self.lock:
            now = time.monotonic()
            wait = wait or self._pause(self.refusals)
            self.busy_since = min(self.busy_since, now)
            if now + wait - self.busy_since > self.endpoint.patience:
                return wait
            self.resume_at = max(self.resume_at, now + wait)
            if asked >= self.shrunk:
                self.at_once, self.shrunk = max(self.at_once / 2, 1.0), now
                self.refusals += 1
            return 0.0

    def _pause(self, before: int) -> float:
        longest: float = min(self.endpoint.pause * 2.0 ** min(before, 16), self.endpoint.longest_pause)
        return longest * random.uniform(0.5, 1.0)

    def _wait(self, outcome: _Refusal, tries: int) -> None:
        pause = self._pause(tries) if outcome.wait is None else min(outcome.wait, self.endpoint.longest_pause)
        until = time.monotonic() + pause
        while not self.over and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))

    def _failed(self, reason: str) -> None:
        """Count failures: an endpoint that goes on failing is not asked for ever."""
        with self.lock:
            self.failed_in_a_row += 1
            most = max(8, self.endpoint.concurrency) * (3 if self.succeeded else 1)
            if self.failed_in_a_row >= most and not self.over:
                self.over = f"{self.failed_in_a_row} requests before it failed ({reason})"

    def _try(self, body: dict[str, Any]) -> Completion | _Refusal:
        import httpx

        deadline = time.monotonic() + self.endpoint.timeout
        try:
            with self.client.stream("POST", self.address, json=self._accepted(body)) as response:
                pieces, size = [], 0
                for piece in response.iter_bytes():
                    size += len(piece)
                    if size > self.endpoint.most_bytes:
                        return _Refusal(f"an answer above {self.endpoint.most_bytes >> 20} MiB", tries=0)
                    if time.monotonic() > deadline:
                        return _Refusal(f"no whole answer in {self.endpoint.timeout:g} s", tries=2)
                    pieces.append(piece)
        except httpx.TimeoutException:
            return _Refusal(f"no answer in {self.endpoint.timeout:g} s", tries=2)
        except httpx.ConnectError:
            return _Refusal("nothing answers at this address", unreachable=True)
        except (httpx.HTTPError, OSError) as error:
            return _Refusal(f"the connection broke off ({type(error).__name__})")
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            return _Refusal(f"the request can't be sent ({type(error).__name__})", tries=0, fatal=True)
        text = b"".join(pieces).decode("utf-8", "replace")
        if response.status_code != 200:
            return self._refusal(response.status_code, response.headers.get("retry-after"), text, body)
        reply = read_reply(text)
        if reply is None:
            return _Refusal("an answer that is not a chat completion", tries=2)
        with self.lock:
            self.succeeded, self.failed_in_a_row = True, 0
            self.refusals, self.busy_since = 0, float("inf")
            self.at_once = min(self.endpoint.concurrency, self.at_once + 1 / self.at_once)
        return reply

    def _accepted(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body without the parameters that this model has refused."""
        names = {name: REPLACED[name] if name in self.replaced else name for name in body if name in REPLACED}
        return {new: value for name, value in body.items() if (new := names.get(name, name)) is not None}

    def _refusal(self, status: int, retry_after: str | None, text: str, body: Mapping[str, Any]) -> _Refusal:
        said = _message(text)
        reason = f"HTTP {status}" + (f": {said}" if said else "")
        if status in (400, 422):
            named = {name for name in REPLACED if name in body and name not in self.replaced and f"{name}" in said}
            if named:  # ask again in the words that this model takes
                with self.lock:
                    self.replaced |= named
                return _Refusal(reason, wait=0.0)
        if status == 429 and NO_QUOTA in text:
            return _Refusal(reason, tries=0)
        if status in RETRIED:
            wait = seconds_to_wait(retry_after) or None  # 0 is no reason to hammer
            return _Refusal(reason, wait=wait, busy=status == 429 or (status == 503 and wait is not None))
        return _Refusal(reason, tries=0, fatal=status in REFUSED)

    def _cached(self, key: str) -> Completion | None:
        file = self._file(key)
        if file is None or not file.is_file():
            return None
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            return replace(Completion.from_json(kept["completion"]), cached=True, retries=0)
        except (ValueError, KeyError, TypeError, OSError):
            return None  # damaged from outside: ask again

    def _keep(self, key: str, body: Mapping[str, Any], reply: Completion) -> None:
        file = self._file(key)
        if file is None:
            return
        write_json(
            file, {"version": 2, "address": masked(self.address), "request": body, "completion": reply.to_json()}
        )

    def _file(self, key: str) -> Path | None:
        return None if self.endpoint.cache is None else self.endpoint.cache / key[:2] / f"{key}.json"


@dataclass(frozen=True)
class _Refusal:
    """Why a try brought nothing.

    Args:
        wait: seconds that the endpoint asks for.
        tries: further tries that make sense.
        busy: it may be asked later: that is no failure.
        unreachable: nobody listens.
        fatal: no other request will fare better.
    """

    reason: str
    wait: float | None = None
    tries: int = 1_000
    busy: bool = False
    unreachable: bool = False
    fatal: bool = False


def read_reply(text: str) -> Completion | None:
    """The body of a chat completion as a reply; None where it is something else. Calls of tools become JSON."""
    try:
        value = json.loads(text)
        choice = value["choices"][0]
        message = choice["message"]
        content, calls = message.get("content"), message.get("tool_calls")
        if isinstance(content, list):  # parts
            content = "".join(part["text"] for part in content if part.get("type") == "text")
        if content is None:
            content = message.get("refusal")
        if calls:
            wanted = [{"name": c["function"]["name"], "arguments": _parsed(c["function"]["arguments"])} for c in calls]
            content = "\n".join([*filter(None, [content]), *(json.dumps(c, ensure_ascii=False) for c in wanted)])
        if not isinstance(content, str):
            return None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    counts = value.get("usage")
    counts = counts if isinstance(counts, dict) else {}

    def count(name: str) -> int:
        found = counts.get(name)
        return found if isinstance(found, int) and found > 0 else 0

    clean = content.encode("utf-8", "replace").decode()  # lone surrogates can't be written to a file
    cut: Finish = "length" if choice.get("finish_reason") == "length" else "stop"
    read, written = count("prompt_tokens"), count("completion_tokens")
    said = value.get("model")
    served = said if isinstance(said, str) else ""
    return Completion(clean.strip(), finish=cut, prompt_tokens=read, completion_tokens=written, served=served)


def _since(started: float) -> float:
    return round(1000 * (time.monotonic() - started), 3)


def _parsed(arguments: Any) -> Any:
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def seconds_to_wait(header: str | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> float | None:
    """`Retry-After`, in seconds or as a date (RFC 9110, 10.2.3); None where it says nothing that can be read."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(header) - now()).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if seconds == seconds and seconds != float("inf") else None


def _message(text: str) -> str:
    try:
        value = json.loads(text)
        error = value.get("error", value.get("detail", value.get("message", "")))
        text = error.get("message", "") if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        pass
    line = " ".join(str(text)[:2000].split())
    return "".join(c for c in line if c.isprintable())[:160]


def key_from(variable: str) -> str:
    """The API key in an environment variable; none where `OPENAI_API_KEY`, the default, isn't set.

    Raises:
        UserError: another variable was named, and it is empty.
    """
    found = os.environ.get(variable, "").strip()
    if not found and variable != DEFAULT_KEY:
        raise UserError(
            f"The variable {variable} is not set", where="--api-key-env", next_step=f"export {variable}=..."
        )
    return found


DEFAULT_KEY = "OPENAI_API_KEY"
