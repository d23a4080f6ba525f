"""Who is let in, who is answered when, and who is refused: without a key, because it would take too long, or because
its key has used what it may.

The engine answers so many requests at a time (slots); further ones wait, and the earliest due time goes first.

What a request may use at most (tokens and requests a minute, dollars in all) is taken from its key first, and settled
by what it did use, also when its reader left: requests that run at the same time can't spend the same dollar.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import hmac
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import mul
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.ui import bound_say
from tuneloop.core.units import counted, verb
from tuneloop.inference import Request
from tuneloop.serving.config import Prices
from tuneloop.serving.http.api_request import ApiError, unavailable
from tuneloop.serving.keys import FILE, FORM, ApiKey, digest_of, note_keys, read_key_file, revoked_ids

LEARN_EVERY = 0.005  # seconds between two requests of a model that its times are learned from
PATIENCE = {"high": 0.25, "normal": 1.0, "low": 8.0, "flex": 60.0}  # class -> deadlines after which it is due
FORGETTING = 0.99  # weight of an observation falls by this with each later one: the last hundred count
ENOUGH = 10  # observations before a prediction is trusted: with four weights, fewer refuse without need


@dataclass
class FittedLine:
    """A linear function, fitted by recursive least squares with forgetting (Ljung, System Identification, 11.2)."""

    size: int  # of the features
    weights: list[float] = field(default_factory=list)
    seen: int = 0
    _p: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.weights = self.weights or [0.0] * self.size
        self._p = [[1e4 if i == j else 0.0 for j in range(self.size)] for i in range(self.size)]

    def predict(self, features: Sequence[float]) -> float:
        """The value at these features."""
        return float(sum(map(mul, self.weights, features)))

    def learn(self, features: Sequence[float], value: float) -> None:
        """Take an observation in."""
        px = [sum(map(mul, row, features)) for row in self._p]
        scale = FORGETTING + sum(map(mul, features, px))
        step = (value - self.predict(features)) / scale
        self.weights = [w + p * step for w, p in zip(self.weights, px, strict=True)]
        for row, p in zip(self._p, px, strict=True):
            new = ((old - p / scale * other) / FORGETTING for old, other in zip(row, px, strict=True))
            row[:] = [min(max(value, -1e6), 1e6) for value in new]
        self.seen += 1


@dataclass
class TimeCalibration:
    """How predictions compare with what came of them."""

    target: float = 0.99
    n: int = 0  # predictions that were compared
    error: float = 0.0  # running mean of |predicted - actual| / actual
    coverage: float = 0.0  # running share that took no longer than the upper bound
    spread: float = 0.0  # running mean of |predicted - actual|, in ms
    # Spreads above a prediction that bound `target` of all, moved after each (Robbins and Monro 1951).
    margin: float = 3.0

    def bound(self, predicted: float) -> float:
        """What a prediction in ms will hardly pass."""
        return predicted + self.margin * self.spread

    def learn(self, predicted: float, actual: float) -> None:
        """Compare a prediction with what came of it, both in ms."""
        if predicted <= 0 or actual <= 0:
            return
        self.n += 1
        share = max(1 / self.n, 0.02)
        inside = actual <= self.bound(predicted)
        self.error += share * (abs(predicted - actual) / actual - self.error)
        self.coverage += max(1 / self.n, 0.01) * (float(inside) - self.coverage)
        self.spread += share * (abs(predicted - actual) - self.spread)
        self.margin = min(max(self.margin + 0.5 * (self.target - float(inside)), 1.0), 10.0)


@dataclass
class ServiceTime:
    """What is known of a model's times: two lines, and the mean length of its last answers."""

    # First token, in ms: by tokens of the prompt, requests being answered, tokens of other prompts still to be read.
    first: FittedLine = field(default_factory=lambda: FittedLine(4))
    rest: FittedLine = field(
        default_factory=lambda: FittedLine(2)
    )  # each further token, in ms: by requests being answered
    length: float = 0.0
    calibration: TimeCalibration = field(default_factory=TimeCalibration)
    learned: float = -math.inf  # of the clock, when it last was

    @property
    def known(self) -> bool:
        """Whether there is enough to predict by."""
        return self.first.seen >= ENOUGH

    def first_ms(self, prompt_tokens: int, active: int, ahead: int = 0) -> float:
        """Milliseconds from the start of a request to its first token, behind tokens of other prompts; 0: not known."""
        if not self.known:
            return 0.0
        return max(self.first.predict((1.0, prompt_tokens / 100, active, ahead / 100)), 0.1)

    def total_ms(self, prompt_tokens: int, active: int, longest: int) -> float:
        """Milliseconds that a request takes in all; 0 while nothing is known."""
        if not self.known:
            return 0.0
        token_ms = max(self.rest.predict((1.0, active)), 0.0) if self.rest.seen else 0.0
        return self.first_ms(prompt_tokens, active) + token_ms * min(self.length or longest, longest)

    def learn(self, prompt: int, active: int, tokens: int, first_ms: float, total_ms: float, ahead: int = 0) -> None:
        """Take a request in that was answered to its end.

        Args:
            prompt, tokens: tokens read and written.
            active, ahead: when it began: requests being answered, itself included; tokens of other prompts to be read.
            first_ms, total_ms: from the start of its work.
        """
        if self.known:
            self.calibration.learn(self.first_ms(prompt, active, ahead), first_ms)
        self.first.learn((1.0, prompt / 100, active, ahead / 100), first_ms)
        if tokens > 1:
            self.rest.learn((1.0, active), (total_ms - first_ms) / (tokens - 1))
        self.length += (tokens - self.length) * max(0.05, 1 / self.first.seen)


@dataclass
class Work:
    """A request that wants to be answered."""

    model: str  # whose times are looked up
    prompt_tokens: int
    longest: int  # tokens of the longest answer
    key: str = ""  # whose it is; empty: no key's
    rank: str = "normal"  # a word of `PATIENCE`
    deadline_ms: float = 500.0  # to the first token
    refusable: bool = True  # whether it is refused where its deadline can't be met
    promise: str = "its deadline"  # the setting that names the deadline


@dataclass
class QueuePlace:
    """A request that has been let in; give it back with `Admission.leave`."""

    work: Work
    arrived: float  # time of the clock
    started: float = 0.0
    active: int = 1  # requests that were being answered when it started, itself included
    ahead: int = 0  # tokens of other prompts that were still to be read then
    reading: bool = True  # whether its own prompt is
    predicted_ms: float = 0.0  # to the first token, from its arrival; 0: nothing was known
    total_ms: float = 0.0
    left: bool = False


@dataclass
class Tally:
    """What admission has done, for `/metrics` and `tuneloop top`."""

    accepted: int = 0
    refused: int = 0
    downgraded: int = 0
    on_time: int = 0
    late: int = 0


@dataclass
class Admission:
    """The queue before an engine. All methods are called from one event loop."""

    slots: int  # requests that are answered at a time
    most_waiting: int = 512  # requests that may wait
    refuse: bool = True  # whether requests are refused that can't meet their deadline; else they wait
    clock: Callable[[], float] = time.monotonic  # seconds
    tally: Tally = field(default_factory=Tally)
    models: dict[str, ServiceTime] = field(default_factory=lambda: defaultdict(ServiceTime))
    active: dict[int, QueuePlace] = field(default_factory=dict)
    closed: bool = False
    in_background: int = 0
    gap_ms: float = 0.0  # between two that leave while all slots are taken, on average
    _full_since: float = 0.0
    _queue: list[tuple[float, int, QueuePlace, asyncio.Future[None]]] = field(default_factory=list)
    _count: int = 0
    _waiting: Counter[str] = field(default_factory=Counter)
    _idle: list[asyncio.Future[None]] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(self._waiting.values())

    def times(self, model: str) -> ServiceTime:
        """What is known of a model's times."""
        return self.models[model]

    async def enter(self, work: Work) -> QueuePlace:
        """Wait until the engine has room; ApiError: the server is stopping, too many wait, or it would be late."""
        self._refuse_where_closed()
        turn = QueuePlace(work, self.clock())
        self._refuse_late(turn)
        if len(self.active) < self.slots and not self.waiting:
            self._start(turn)
            return turn
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._queue, (self._due(turn), self._count, turn, future))
        self._waiting[work.key] += 1
        self._next()  # those that seemed to wait may be clients that have left
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it was let in at the same moment
                self.leave(turn, 0)
            else:
                future.cancel()
                self._gone(work.key)
            raise
        if not turn.started:
            self._refuse_where_closed()
        return turn

    def _refuse_where_closed(self) -> None:
        if self.closed:
            raise unavailable("The server is stopping", "stopping")

    @property
    def _unread(self) -> int:
        """Tokens of prompts at work whose first token has not come."""
        return sum(
            active_request.work.prompt_tokens for active_request in self.active.values() if active_request.reading
        )

    def leave(self, turn: QueuePlace, tokens: int, first_ms: float | None = None, *, whole: bool = False) -> None:
        """Give a place back. A second call does nothing.

        Args:
            tokens: written.
            first_ms: from the start to the first token; None: there was none.
            whole: it was answered to its end, so that it teaches how long requests take.
        """
        if turn.left:
            return
        turn.left = True
        if turn.started and len(self.active) >= self.slots:
            gap = (self.clock() - self._full_since) * 1000
            self.gap_ms = gap if not self.gap_ms else 0.9 * self.gap_ms + 0.1 * gap
            self._full_since = self.clock()
        self.active.pop(id(turn), None)
        if first_ms is not None:
            work, now = turn.work, self.clock()
            on_time = (turn.started - turn.arrived) * 1000 + first_ms <= work.deadline_ms
            self.tally.on_time += on_time
            self.tally.late += not on_time
            times = self.times(work.model)
            if whole and now - times.learned >= LEARN_EVERY:
                times.learned, total = now, (now - turn.started) * 1000
                times.learn(work.prompt_tokens, turn.active, tokens, first_ms, total, turn.ahead)
        self._next()

    @contextlib.contextmanager
    def background(self) -> Iterator[None]:
        """Count work that takes no slot, as it yields to other work; ApiError: the server stops, or it is too much."""
        self._refuse_where_closed()
        if (n := self.in_background) >= self.most_waiting:
            self.tally.refused += 1
            message = f"{counted(n, 'request')} of low urgency {verb(n, 'is', 'are')} waiting already"
            raise ApiError(429, message, code="queue_full", headers={"Retry-After": "10"})
        self.in_background += 1
        try:
            yield
        finally:
            self.in_background -= 1

    def close(self) -> None:
        """Let no one in any more; those who wait are refused."""
        self.closed = True
        _release(future for *_, future in self._queue)
        self._queue.clear()
        self._waiting.clear()
        self._next()

    async def wait_until_idle(self) -> None:
        """Wait until there is room that no request needs: then work of batches may continue."""
        while not self.closed and (self.waiting or len(self.active) >= self.slots):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(future)
            await future

    def _start(self, turn: QueuePlace) -> None:
        self.tally.accepted += 1
        turn.started = self.clock()
        turn.ahead = self._unread
        self.active[id(turn)] = turn
        turn.active = len(self.active)
        if turn.active == self.slots and not self.waiting:
            self._full_since = turn.started
        work = turn.work
        turn.total_ms = self.times(work.model).total_ms(work.prompt_tokens, turn.active, work.longest)

    def _gone(self, key: str) -> None:
        self._waiting[key] -= 1
        if self._waiting[key] <= 0:
            del self._waiting[key]

    def _next(self) -> None:
        while self._queue and len(self.active) < self.slots:
            _, _, turn, future = heapq.heappop(self._queue)
            if future.done():  # its client has left
                continue
            self._gone(turn.work.key)
            self._start(turn)
            future.set_result(None)
        if not self._queue and (self.closed or len(self.active) < self.slots):
            idle, self._idle = self._idle, []
            _release(idle)

    def _due(self, turn: QueuePlace) -> float:
        """Arrival + deadline * patience of the class - the time that it takes + that of the key's waiting requests.

        So a more urgent class goes first, within it what has least slack; no key holds up the others, and no request
        that has waited long enough is overtaken.
        """
        work = turn.work
        takes = self.times(work.model).total_ms(work.prompt_tokens, self.slots, work.longest)
        others = self._waiting[work.key] * takes / self.slots
        return turn.arrived + (work.deadline_ms * PATIENCE[work.rank] - takes + others) / 1000

    def wait_ms(self, turn: QueuePlace) -> float:
        """Predicted milliseconds until a request that comes now is let in."""
        if len(self.active) < self.slots and not self.waiting:
            return 0.0
        now, due = self.clock(), self._due(turn)
        free = sorted(
            max(active_request.total_ms - (now - active_request.started) * 1000, 0.0)
            for active_request in self.active.values()
        )
        free += [0.0] * (self.slots - len(free))
        ahead = sorted(item[:3] for item in self._queue if item[0] <= due and not item[3].done())
        heapq.heapify(free)
        for _, _, other in ahead:
            takes = self.times(other.work.model).total_ms(other.work.prompt_tokens, self.slots, other.work.longest)
            heapq.heappush(free, heapq.heappop(free) + takes)
        # Requests that take longer than predicted seem to end at once; those ahead can't leave faster than others did.
        return max(free[0], (len(ahead) + 1) * self.gap_ms)

    def _queue_words(self) -> str:
        return f"{counted(self.waiting, 'request')} {verb(self.waiting, 'is', 'are')} waiting"

    def _refuse_late(self, turn: QueuePlace) -> None:
        """Refuse what is late because others are before it; not what is late alone too, which waiting does not help."""
        work, times = turn.work, self.times(turn.work.model)
        if self.waiting >= self.most_waiting:
            self.tally.refused += 1
            raise ApiError(429, f"{self._queue_words()} already", code="queue_full", headers={"Retry-After": "1"})
        if not times.known:
            return
        wait, ahead = self.wait_ms(turn), self._unread
        active = min(len(self.active) + 1, self.slots)
        first = times.first_ms(work.prompt_tokens, active, ahead)
        turn.predicted_ms = wait + first
        promised = work.deadline_ms * max(PATIENCE[work.rank], 1.0)
        if (alone := times.first_ms(work.prompt_tokens, 1)) > promised:
            promised = times.calibration.bound(alone)
        bound = wait + times.calibration.bound(first)
        if self.refuse and work.refusable and (wait > 0 or ahead) and bound > promised:
            self.tally.refused += 1
            after, late = str(max(math.ceil((bound - promised) / 1000), 1)), f"{turn.predicted_ms:.0f}"
            message = f"The first token would come after {late} ms; {work.promise} allows {promised:.0f} ms; "
            message += f"{self._queue_words()}. Try again later, or have the limit raised; "
            message += "objective.admission=queue lets requests wait"
            raise ApiError(
                429, message, code="deadline", headers={"Retry-After": after, "x-tuneloop-predicted-ms": late}
            )


def _release(futures: Iterable[asyncio.Future[None]]) -> None:
    """Let those who wait continue; those who have left are done."""
    for future in futures:
        if not future.done():
            future.set_result(None)


def prompt_size(request: Request) -> int:
    """Tokens of a prompt; of turns, which can't be counted here, four characters each, and five for the turn."""
    return len(request.ids) or sum(len(str(turn.get("content") or "")) // 4 + 5 for turn in request.messages)


# --- keys ----------------------------------------------------------------------------------------


@dataclass
class Keyring:
    """The keys of a server, as the file has them now."""

    folder: Path  # of the server
    every: float = 0.0  # seconds for which what was read of the file holds; 0: it is looked at each time
    needed_before: bool = False  # there was a key, as something else than the folder's files says
    say: Callable[[str], None] = field(default_factory=bound_say)
    _looked: float = -1e9
    _stamp: tuple[int, ...] = ()
    _keys: dict[str, ApiKey] = field(default_factory=dict)
    _gone: set[str] = field(default_factory=set)  # ids that were revoked

    def __post_init__(self) -> None:
        self._file = str(self.folder / FILE)
        self._needed = self.needed_before

    def check(self, text: str) -> ApiKey | None:
        """The key that a text is; None where it is not one in use."""
        self._refresh()
        match = FORM.fullmatch(text)
        key = self._keys.get(match[1]) if match else None
        # The digest is compared in any case, in constant time: what is wrong can't be guessed from how long it takes.
        same = hmac.compare_digest(digest_of(match[2] if match else text), key.sha256 if key else "0" * 64)
        return key if same and key is not None and key.revoked is None else None

    def named(self, name: str) -> ApiKey | None:
        """The key in use of that name."""
        self._refresh()
        return next((key for key in self._keys.values() if key.name == name and key.revoked is None), None)

    def by_id(self, id_: str) -> ApiKey | None:
        """The key in use of that id."""
        self._refresh()
        key = self._keys.get(id_)
        return key if key is not None and key.revoked is None else None

    @property
    def used(self) -> bool:
        """Whether there is a key in use."""
        self._refresh()
        return any(key.revoked is None for key in self._keys.values())

    @property
    def needed(self) -> bool:
        """Whether there ever was a key, and the server was not opened since."""
        self._refresh()
        return self._needed

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked < self.every:
            return
        self._looked = now
        try:
            stat = os.stat(self._file)
            stamp: tuple[int, ...] = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size)
        except OSError:
            stamp = (0,)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        before, self._keys = self._keys, {}
        try:
            file = read_key_file(self.folder)
        except UserError as error:  # no one is let in, neither with a key nor without one
            self._needed = True
            self.say(f"keys      {FILE} can't be read, so no one is let in: {error.what}")
            return
        with contextlib.suppress(UserError):  # a folder that can't be written; the server remembers it
            if file.keys:  # the file may have come from elsewhere
                note_keys(self.folder, *(key.id for key in file.keys if key.revoked is not None))
        revoked = revoked_ids(self.folder)
        self._gone |= revoked or set()
        self._keys = {key.id: key for key in file.keys if key.id not in self._gone}
        self._needed = not file.open and (self._needed or revoked is not None or bool(file.keys))
        if before and not file.keys:
            self.say(f"keys      {FILE} has no keys any more; they are needed until `tuneloop keys open --yes`")


# --- what a key may use ------------------------------------------------------------------------


class Refusal(ApiError):
    """A request that a limit does not allow; `retry_after`: seconds after which it may be; None: never by waiting."""

    def __init__(
        self, code: str, message: str, retry_after: float | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        after = {} if retry_after is None else {"Retry-After": str(int(retry_after) + 1)}
        super().__init__(429, message, code=code, headers={**(headers or {}), **after})
        self.retry_after = retry_after


@dataclass
class Bucket:
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
    requests: Bucket | None = None
    tokens: Bucket | None = None
    spent: float = 0.0
    reserved: float = 0.0


@dataclass
class Ledger:
    """The accounts of all keys."""

    spent: Mapping[str, float] = field(default_factory=dict)  # dollars that each key, by its id, has spent before
    prices: Prices = field(default_factory=Prices)
    clock: Callable[[], float] = time.monotonic  # seconds
    _accounts: dict[str, _KeyAccount] = field(default_factory=dict)

    def usd(self, prompt_tokens: int, completion_tokens: int, source: str = "") -> float:
        """The price of a request in USD, by its tokens and the source of the model that answers it."""
        prices = self.prices.sources.get(source, self.prices)
        return (prompt_tokens * prices.input + completion_tokens * prices.output) / 1e6

    def reserve(self, key: ApiKey | None, tokens: int, usd: float, *, again: bool = False) -> Reservation:
        """Take what a request may use at most: tokens read and written, their price, and a request, but for a second
        try, `again`. Refusal: a limit does not allow it; nothing is taken then."""
        if key is None:
            return Reservation("", tokens, usd)
        account, now, limits = self._account(key), self.clock(), key.limits
        if limits.budget_usd is not None and account.spent + account.reserved + usd > limits.budget_usd + 1e-12:
            spent = f"{account.spent:.4f} of its {limits.budget_usd:.4f} USD, {account.reserved:.4f} are reserved"
            message = f"The key {key.name!r} has spent {spent}, and this request may cost {usd:.6f}"
            raise Refusal("insufficient_quota", message)
        if account.requests is not None and not again and (wait := account.requests.take(1, now)):
            allowed = counted(limits.rpm or 0, "request")
            message = f"The key {key.name!r} allows {allowed} a minute"
            raise Refusal("rate_limit_exceeded", message, wait, self.headers(key))
        if account.tokens is not None and (wait := account.tokens.take(tokens, now)):
            if account.requests is not None and not again:
                account.requests.left += 1
            message = f"The key {key.name!r} allows {limits.tpm} tokens a minute"
            raise Refusal("rate_limit_exceeded", message, wait, self.headers(key))
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


def _with_rate(bucket: Bucket | None, rate: int | None, now: float) -> Bucket | None:
    if rate is None:
        return None
    if bucket is None or not math.isclose(bucket.rate, rate):
        return Bucket(rate, rate, now)
    return bucket
