"""Answers to rows from a server: several requests at once, patient, bounded, and each paid for once.

Every answer is kept in a folder under a hash of its request as soon as it is there, so that a rerun requests only what
is missing. Requests that fail for good don't end the others: their replies say why.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_json
from tuneloop.core.foreign import file_bytes, parse_json
from tuneloop.core.http import timeouts
from tuneloop.core.ui import progress
from tuneloop.inference.endpoint import RequestLimits
from tuneloop.records.completion import Completion, failures

ALWAYS = 1_000  # further tries of what may pass, before the limit of the settings


@dataclass(frozen=True)
class FailedTry:
    """Why a try brought nothing."""

    reason: str
    wait: float | None = None  # seconds that the server names
    tries: int = ALWAYS  # further ones that make sense
    busy: bool = False  # it may answer later: that is no failure
    unreachable: bool = False  # nothing listens
    fatal: bool = False  # no other request will fare better
    lost: bool = False  # the server may have answered, and billed it


Body = Mapping[str, Any]  # a request as JSON
Send = Callable[[str, Body], Awaitable[Completion | FailedTry]]  # one try of a request: its key, its body


class Requester:
    """Makes the requests of one job, all from one event loop.

    Args:
        server: what answers, without a login; for completions that failed, and for what is kept.
        where: the server and its model, for an error; `step`: what to do about it.
    """

    def __init__(self, limits: RequestLimits, server: str, where: str, step: str) -> None:
        self.limits, self.server, self.where, self.step = limits, server, where, step
        self.throttle = timeouts.Throttle(limits.concurrency, limits.pause, limits.longest_pause, limits.patience)
        self.under_way = self.retries = self.failed = self.failed_in_a_row = 0
        self.succeeded = False
        self.over = ""  # why no further request is made
        self.fatal = ""

    async def answers(self, keys: Sequence[str], bodies: Sequence[Body], send: Send, task: str) -> list[Completion]:
        """Answers to requests, in order; those with the same key are made once.

        Args:
            keys: a hash of all that the answer depends on, for each request.
            task: a name for the progress.

        Raises:
            UserError: the server refuses all requests, or answers none of the first.
        """
        first = dict(zip(keys, bodies, strict=True))
        replies: dict[str, Completion] = {}
        left = iter(first.items())

        async def work() -> None:
            for key, body in left:
                replies[key] = await self._reply(key, body, send)
                progress(task, len(replies), len(first), retries=float(self.retries))

        progress(task, 0, len(first))
        workers = [asyncio.create_task(work()) for _ in range(min(self.limits.concurrency, len(first)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        progress(task, len(first), len(first))
        answers = [replies[key] for key in keys]
        if self.fatal or (answers and self.failed == len(first)):
            count = f"none of {len(answers):,} requests" if len(answers) > 1 else "no request"
            message = self.fatal or f"The endpoint answered {count}: {failures(answers)[0][0]}"
            raise UserError(message, where=self.where, next_step=self.step)
        seen: set[str] = set()
        once = []
        for key, reply in zip(keys, answers, strict=True):
            once.append(reply if key not in seen else replace(reply, cached=True, retries=0, lost=0))
            seen.add(key)
        return once

    async def _reply(self, key: str, body: Body, send: Send) -> Completion:
        """One request with its retries; never raises for what the server does."""
        file = None if self.limits.cache is None else self.limits.cache / key[:2] / f"{key}.json"
        if (cached := _cached(file)) is not None:
            return cached
        started, tries, failed, lost = time.monotonic(), 0, 0, 0
        while True:
            while not self.over and ((left := self.throttle.left) or self.under_way >= int(self.throttle.at_once)):
                await asyncio.sleep(min(left, 0.2) or 0.01)
            if self.over:
                return replace(self._failure(f"not requested: {self.over}", started, tries), lost=lost)
            began = time.monotonic()
            self.under_way += 1
            try:
                outcome = await send(key, body)
            finally:
                self.under_way -= 1
            if isinstance(outcome, Completion):
                self.succeeded, self.failed_in_a_row = True, 0
                self.throttle.answered()
                outcome = replace(outcome, total_ms=_since(started), retries=tries, lost=lost)
                is_billed = bool(outcome.prompt_tokens or outcome.completion_tokens)
                if file is not None and (is_billed or not outcome.error):
                    record = {"version": 2, "address": self.server, "request": body}
                    await asyncio.to_thread(write_json, file, record | {"completion": outcome.to_json()})
                return outcome
            if outcome.fatal:
                self.fatal = self.fatal or outcome.reason
                self.over = self.over or outcome.reason
            tries, self.retries, lost = tries + 1, self.retries + 1, lost + outcome.lost
            if outcome.busy:
                if wait := self.throttle.refused(began, outcome.wait):
                    reason = f"{outcome.reason}, and asks to wait {wait:,.0f} s"
                    return replace(self._failed(reason, started, tries), lost=lost)
                continue
            limit = min(self.limits.retries, outcome.tries)
            if outcome.unreachable and not self.succeeded:
                limit = min(limit, 2)  # nothing is there: don't wait as for an overload
            failed += 1
            if failed > limit:
                return replace(self._failed(outcome.reason, started, tries), lost=lost)
            await self._wait(outcome, failed - 1)

    def _failure(self, reason: str, started: float, tries: int) -> Completion:
        self.failed += 1
        return Completion(finish="error", error=reason, total_ms=_since(started), retries=tries, engine=self.server)

    async def _wait(self, outcome: FailedTry, tries: int) -> None:
        longest = self.limits.longest_pause
        pause = (
            timeouts.backoff(tries, self.limits.pause, longest) if outcome.wait is None else min(outcome.wait, longest)
        )
        until = time.monotonic() + pause
        while not self.over and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.2))

    def _failed(self, reason: str, started: float, tries: int) -> Completion:
        """A failure for good; after many in a row no further request is made."""
        self.failed_in_a_row += 1
        self.retries -= 1
        most = max(8, self.limits.concurrency) * (3 if self.succeeded else 1)
        if self.failed_in_a_row >= most and not self.over:
            self.over = f"{self.failed_in_a_row} requests before it failed ({reason})"
        return self._failure(reason, started, tries - 1)


def _cached(file: Path | None) -> Completion | None:
    if file is None or not file.is_file():
        return None
    try:
        record = parse_json(file_bytes(file, "json"))
        return replace(Completion.from_json(record["completion"]), cached=True, retries=0, lost=0)
    except (ValueError, KeyError, TypeError, OSError):
        return None  # damaged from outside: it is requested again


def _since(started: float) -> float:
    return round(1000 * (time.monotonic() - started), 3)
