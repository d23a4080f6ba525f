"""What each key has used, and what it may still use: requests and tokens a minute, dollars in all.

What a request may use at most is reserved first and settled by what it did use, also when its reader left: requests
that run at the same time can't spend the same dollar.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tuneloop.core.units import counted
from tuneloop.serving.http.api_request import ApiError
from tuneloop.serving.keys import ApiKey

MOST_SENDERS = 10_000  # senders whose feedback is counted at a time


class Refusal(ApiError):
    """A request that a limit does not allow; `retry_after`: seconds after which it may be; None: never by waiting."""

    def __init__(
        self, code: str, message: str, retry_after: float | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        after = {} if retry_after is None else {"Retry-After": str(int(retry_after) + 1)}
        super().__init__(429, message, code=code, headers={**(headers or {}), **after})
        self.retry_after = retry_after


@dataclass
class _Bucket:
    """An amount that refills evenly: `rate` in a minute, and never more than that."""

    rate: float
    left: float
    at: float

    def refill(self, now: float) -> None:
        """Add what has come since the last time."""
        self.left = min(self.rate, self.left + max(now - self.at, 0.0) * self.rate / 60)
        self.at = max(now, self.at)

    def take(self, amount: float, now: float) -> float:
        """Take an amount; returns 0 where it was there, else the seconds until it is."""
        self.refill(now)
        amount = min(amount, self.rate)  # a request that is larger than the rate waits for a full bucket
        if self.left + 1e-9 >= amount:
            self.left -= amount
            return 0.0
        return (amount - self.left) * 60 / self.rate


@dataclass
class Reservation:
    """What a request may use, taken from its key's limits until it is settled."""

    key: str
    tokens: int
    usd: float
    settled: bool = False


@dataclass
class _KeyAccount:
    requests: _Bucket | None = None
    tokens: _Bucket | None = None
    spent: float = 0.0
    reserved: float = 0.0


@dataclass
class Ledger:
    """The accounts of all keys."""

    spent: Mapping[str, float] = field(default_factory=dict)  # dollars that each key, by its id, has spent before
    clock: Callable[[], float] = time.monotonic  # seconds
    _accounts: dict[str, _KeyAccount] = field(default_factory=dict)

    def reserve(self, key: ApiKey | None, tokens: int, usd: float, *, again: bool = False) -> Reservation:
        """Take what a request may use at most: tokens read and written, their price, and a request, but for a second
        try, `again`. Refusal: a limit does not allow it; nothing is taken then."""
        if key is None:
            return Reservation("", tokens, usd)
        account, now, limits = self._account(key), self.clock(), key.limits
        if limits.budget_usd is not None and account.spent + account.reserved + usd > limits.budget_usd + 1e-12:
            spent = f"{account.spent:.4f} of its {limits.budget_usd:.4f} USD, {account.reserved:.4f} are reserved"
            what = f"The key {key.name!r} has spent {spent}, and this request may cost {usd:.6f}"
            raise Refusal("insufficient_quota", what)
        if account.requests is not None and not again and (wait := account.requests.take(1, now)):
            allowed = counted(limits.rpm or 0, "request")
            what = f"The key {key.name!r} allows {allowed} a minute"
            raise Refusal("rate_limit_exceeded", what, wait, self.headers(key))
        if account.tokens is not None and (wait := account.tokens.take(tokens, now)):
            if account.requests is not None and not again:
                account.requests.left += 1
            what = f"The key {key.name!r} allows {limits.tpm} tokens a minute"
            raise Refusal("rate_limit_exceeded", what, wait, self.headers(key))
        account.reserved += usd
        return Reservation(key.id, tokens, usd)

    def settle(self, reservation: Reservation, tokens: int, usd: float) -> None:
        """Give back what was reserved and take what was used. The second call for a reservation does nothing."""
        if reservation.settled:
            return
        reservation.settled = True
        if (account := self._accounts.get(reservation.key)) is None:
            return
        account.reserved = max(account.reserved - reservation.usd, 0.0)
        account.spent += usd
        if account.tokens is not None:
            back = min(reservation.tokens, account.tokens.rate) - tokens
            account.tokens.left = min(account.tokens.left + back, account.tokens.rate)

    def headers(self, key: ApiKey | None) -> dict[str, str]:
        """What a key may still use this minute, as OpenAI's headers say it; none for what has no limit."""
        if key is None or (key.limits.rpm is None and key.limits.tpm is None):
            return {}
        account, now = self._account(key), self.clock()
        headers = {}
        for name, bucket in (("requests", account.requests), ("tokens", account.tokens)):
            if bucket is not None:
                bucket.refill(now)
                headers[f"x-ratelimit-limit-{name}"] = f"{bucket.rate:.0f}"
                headers[f"x-ratelimit-remaining-{name}"] = str(max(int(bucket.left + 1e-9), 0))
                headers[f"x-ratelimit-reset-{name}"] = _duration((bucket.rate - bucket.left) * 60 / bucket.rate)
        return headers

    def _account(self, key: ApiKey) -> _KeyAccount:
        if (account := self._accounts.get(key.id)) is None:
            account = self._accounts[key.id] = _KeyAccount(spent=self.spent.get(key.id, 0.0))
        now = self.clock()
        account.requests = _with_rate(account.requests, key.limits.rpm, now)
        account.tokens = _with_rate(account.tokens, key.limits.tpm, now)
        return account


def _duration(seconds: float) -> str:
    """Seconds as OpenAI writes them: `6m0s`, `1.2s`, `17ms`; until an amount is full again."""
    if seconds < 1:
        return f"{math.ceil(1000 * seconds)}ms"
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"


def _with_rate(bucket: _Bucket | None, rate: int | None, now: float) -> _Bucket | None:
    if rate is None:
        return None
    if bucket is None or not math.isclose(bucket.rate, rate):
        return _Bucket(rate, rate, now)
    return bucket


@dataclass
class FeedbackLimit:
    """How much feedback is taken in a minute, so that no one fills the store alone."""

    each: int  # pieces a minute from one sender
    pages: int  # from all readers of pages together, or from all users whom one key names
    clock: Callable[[], float] = time.monotonic  # seconds
    _open: _Bucket | None = None
    _senders: dict[str, _Bucket] = field(default_factory=dict)

    def take(self, who: str, *, page: bool, user: str = "") -> None:
        """Count a piece of feedback, or raise a Refusal where there was too much of it in this minute.

        Args:
            who: the key, or the address where there is none.
            page: it comes from a reader of a page.
            user: whom a key names that is believed; empty: none.
        """
        now = self.clock()
        if page:
            self._open = self._open or _Bucket(self.pages, self.pages, now)
            if wait := self._open.take(1, now):
                raise Refusal("rate_limit_exceeded", f"Pages may send {self.pages:,} pieces of feedback a minute", wait)
        for sender, rate in ((who, self.pages), (f"{who}\x1f{user}", self.each)) if user else ((who, self.each),):
            bucket = self._senders.pop(sender, None) or _Bucket(rate, rate, now)
            self._senders[sender] = bucket  # the last ones stand last
            if len(self._senders) > MOST_SENDERS:
                del self._senders[next(iter(self._senders))]
            if wait := bucket.take(1, now):
                raise Refusal("rate_limit_exceeded", f"One sender may send {rate:,} pieces of feedback a minute", wait)
