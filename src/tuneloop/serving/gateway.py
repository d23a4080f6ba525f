"""What happens to a request between the wire and the engine: limits, admission, the answer, the account, the log."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from tuneloop.core.bounded_work import TooBusy, charged_to
from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc_now, uuid7
from tuneloop.core.text import storable
from tuneloop.inference import Request, ServingEngine
from tuneloop.models.adapters import BASE
from tuneloop.records.completion import Completion
from tuneloop.records.request import ANYONE, LEFT, NOT_LOADED, REFUSED, StoredRequest
from tuneloop.records.rows import Message
from tuneloop.serving.admission import Admission, Keyring, Ledger, QueuePlace, Reservation, Work, prompt_size
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.http.api_request import ApiError, ApiRequest, unavailable
from tuneloop.serving.http.metrics import Metrics
from tuneloop.serving.keys import ApiKey, Right
from tuneloop.serving.store.database import Database, DatabaseError, is_database_url
from tuneloop.serving.store.store import AnsweredRequest, experiment_unit, opened
from tuneloop.serving.store.writer import StoreWriter

if TYPE_CHECKING:
    from tuneloop.inference import Update
    from tuneloop.serving.embeddings import Embedder

T = TypeVar("T")
ELSEWHERE = 0.3  # seconds after which another server has stored what it has just answered
_LOOKING = ThreadPoolExecutor(2, "looks")  # into the store: no other work comes before it


@dataclass(frozen=True)
class Prompt:
    """What a model reads: turns, or a text to continue."""

    messages: Sequence[Message] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    continues: str | None = None
    outside: bool = False  # the model was not trained on prompts of this kind


@dataclass(frozen=True)
class ArmDraw:
    """What an experiment says of a request."""

    arm: str
    propensity: float
    served: str = ""  # name of the gateway's candidate that answers; empty: the model itself


# Model, `store.experiment_unit` (empty: no one who comes again), id of the request -> its arm; None: no experiment.
Draw = Callable[[str, str, str], ArmDraw | None]


@dataclass(frozen=True)
class Routed:
    """What a router says of a text."""

    model: str  # who answers
    why: str  # `best`, `none of these` (the base answers), or `conversation` (as its earlier requests)
    scores: Mapping[str, float] = field(default_factory=dict)  # expected quality of each model
    similarity: float | None = None  # to the rows that the router was fitted to; None: not looked at

    def logged(self) -> dict[str, Any]:
        """As it is stored with the request."""
        values = {"model": self.model, "why": self.why, "scores": dict(self.scores)}
        return values if self.similarity is None else values | {"similarity": self.similarity}


Route = Callable[[str], Routed]  # the text of a turn -> who answers it
ROUTER = "router"  # the model name by which a router is called
MOST_CONVERSATIONS = 100_000  # whose model is remembered
MOST_RECENT = 10_000  # requests that feedback may name before the store has them
RECENT = 30.0  # seconds after its end in which a request is sure to come into the store

# Turns as a client sends them -> the prompt that the model was trained on. Raises ValueError where it can't be made.
ReadPrompt = Callable[[Sequence[Message], Sequence[Mapping[str, Any]]], Prompt]


@dataclass(frozen=True)
class ServedModel:
    """A model as clients see it."""

    name: str  # as they ask for it
    adapter: str = BASE  # its hash in the engine, or `base`
    release: str = ""  # version in the registry; empty: none
    labels: tuple[str, ...] = ()  # a classifier answers one of them and nothing else
    # of each label, the end of the turn included; empty: not known
    label_tokens: Mapping[str, int] = field(default_factory=dict)
    max_new_tokens: int | None = None  # longest answer, where a request does not say it; None: the server's
    read: ReadPrompt | None = None  # how turns become its prompt; None: as they are
    source: str = ""  # what it was made from
    decode: Callable[[Sequence[int]], str] | None = None  # text of token ids, for log probabilities; None: not known
    # when its weights were written, in seconds since 1970
    created: int = field(default_factory=lambda: int(time.time()), compare=False)


@dataclass(frozen=True)
class Caller:
    """Who sends a request."""

    key: ApiKey | None = None  # None: without one, from this machine
    user: str = ""  # pseudonym of the end user
    conversation: str = ""  # that the request belongs to
    rank: str = ""  # class of urgency that a header names; empty: the key's
    # what is believed of what it says; default: those of the program itself, which names users that it knows
    rights: Sequence[Right] = ("users",)

    @property
    def name(self) -> str:
        """Of the key; empty: none."""
        return self.key.name if self.key is not None else ""

    @property
    def voice(self) -> str | None:
        """As whom its requests count; see `StoredRequest.voice`."""
        if "users" in self.rights and (self.user or self.conversation):
            return None
        return f"key:{self.name}" if self.key is not None else ANYONE


@dataclass(frozen=True)
class Piece:
    """A part of an answer."""

    index: int  # of the choice
    text: str  # what came
    completion: Completion | None  # of the choice, with its last piece
    id: str  # of the request
    model: ServedModel  # that answers
    tier: str = "default"  # in which it does
    outside: bool = False  # see `Prompt.outside`
    reasoning: str = ""  # what came of it


@dataclass
class SharedClock:
    """Engine seconds: of each second every request at work has its share."""

    at: float = 0.0
    value: float = 0.0
    active: int = 0

    def change(self, by: int) -> float:
        """Count a request in or out; returns the clock's value, whose difference is what a request has used."""
        now = time.perf_counter()
        if self.active:
            self.value += (now - self.at) / self.active
        self.at, self.active = now, self.active + by
        return self.value


@dataclass
class _Account:
    """What is known of a request on its way, for the log."""

    request: ApiRequest
    caller: Caller
    model: ServedModel  # that answers
    champion: ServedModel  # that was named, or chosen by a router
    engine: ServingEngine
    id: str = field(default_factory=uuid7)
    arrived: str = field(default_factory=utc_now)
    began: float = field(default_factory=time.perf_counter)
    draw: ArmDraw | None = None
    route: dict[str, Any] | None = None
    fallback: str | None = None
    shadow: str | None = None
    prompt_tokens: int = 0
    ttft_ms: float | None = None
    completions: dict[int, Completion] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    thought: str = ""  # the reasoning of the first choice
    pieces: int = 0
    error: str | None = None
    seconds: float = 0.0
    status: str = "cancelled"
    patient: bool = False
    again: bool = False  # a second try in another way
    outside: bool = False  # see `Prompt.outside`
    place: QueuePlace | None = None

    @property
    def tokens(self) -> int:
        """Tokens written; of choices that were cut, one for each piece that came."""
        count = sum(completion.completion_tokens for completion in self.completions.values())
        return count if len(self.completions) == self.request.n else max(count, self.pieces)


_STATUS = {
    "too_long": 400, "no_adapter": 404, "no_prompt": 400, "no_schema": 400, "no_choices": 400, "rejected": 400,
    "busy": 429, "insufficient_quota": 429, "template_error": 400, "engine": 503,
}  # fmt: skip
_PLACE = re.compile(r"(?<![\w.])(?:/[\w.@+-]+){2,}/?|\b\w+://\S+")  # a path or an address: no affair of a client
_CODES = {"too_long": "context_length_exceeded", "no_adapter": "model_not_found"}


def engine_error(completion: Completion) -> ApiError:
    """What an engine could not answer, as an error of the API."""
    if completion.finish == "cancelled":
        return ApiError(503, "The engine was stopped before the answer ended", code="engine")
    word, _, rest = completion.error.partition(": ")
    wait = completion.retry_after
    headers = {} if wait is None else {"Retry-After": str(math.ceil(min(wait, 86_400.0)))}
    message = _PLACE.sub("...", rest or completion.error or "the engine gave no answer")
    return ApiError(_STATUS.get(word, 500), message, code=_CODES.get(word, word), headers=headers)


@dataclass(frozen=True)
class Copy:
    """A request that was answered, and the candidate that is to answer it unseen."""

    of: str  # id of the request
    served: str  # name among the gateway's candidates
    request: ApiRequest
    caller: Caller
    arm: str = "candidate"  # as it is logged


@dataclass
class Copies:
    """Copies that wait for a candidate's unseen answer, one at a time, while no request waits."""

    most: int = 256  # that may wait; the oldest one yields and is counted as dropped
    dropped: int = 0
    waiting: deque[Copy] = field(default_factory=deque)
    _task: asyncio.Task[None] | None = None

    def add(self, gateway: Gateway, copy: Copy) -> None:
        """Put a copy in; never waits."""
        if len(self.waiting) >= self.most:
            self.waiting.popleft()
            self.dropped += 1
        self.waiting.append(copy)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work(gateway))

    async def _work(self, gateway: Gateway) -> None:
        while self.waiting and not gateway.admission.closed:
            await gateway.admission.wait_until_idle()
            if gateway.admission.closed or not self.waiting:
                return
            copy = self.waiting.popleft()
            if copy.served in gateway.candidates:  # the experiment may have ended
                with contextlib.suppress(Exception):  # the log has it
                    async for _ in gateway.answer(copy.request, copy.caller, background=True, copy=copy):
                        pass

    async def stop(self) -> None:
        """End it; what waits is not answered."""
        self.waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


@dataclass
class Gateway:
    """A server's state, and how it answers."""

    engine: ServingEngine
    models: dict[str, ServedModel]  # by name; the first one answers where none is named
    config: ServeConfig
    store: StoreWriter
    keyring: Keyring
    spent: Mapping[str, float] = field(default_factory=dict)  # see `Ledger`
    ledger: Ledger = field(init=False)
    admission: Admission = field(init=False)
    metrics: Metrics = field(default_factory=Metrics)
    clock: SharedClock = field(default_factory=SharedClock)
    # models of experiments, by the names of these; they answer in place of the model of the request
    candidates: dict[str, ServedModel] = field(default_factory=dict)
    # why the other experiments' candidates answer no one, by the names of these
    left_out: dict[str, str] = field(default_factory=dict)
    draw: Draw | None = None  # the arm of a request; None: there are no experiments
    shadow: Callable[[str], str] | None = None  # the candidate that is to answer copies of a model's requests
    copies: Copies = field(default_factory=Copies)
    encoder: Embedder | None = None  # makes embeddings; None: there are none here
    route: Route | None = None  # who answers requests to the model `router`; None: there is no router
    # key and conversation -> the model that it was sent to
    conversations: dict[tuple[str, str], str] = field(default_factory=dict)
    # requests under way and those that have just ended, by id, with the time until which they are recent
    recent: dict[str, tuple[AnsweredRequest, float]] = field(default_factory=dict)
    batches_only: bool = False  # only work of batches is done, so that it yields to no other
    # is given each request that has ended, as it is stored, with its status; it must not wait
    ended: Callable[[StoredRequest, str], None] | None = None
    _busy: Counter[int] = field(default_factory=Counter)  # requests under way, by the identity of their engine

    def __post_init__(self) -> None:
        config, objective = self.config, self.config.objective
        slots, refuse = min(config.slots, self.engine.slots), objective.admission != "queue"
        self.admission = Admission(slots, config.limits.waiting, refuse)
        self.ledger = Ledger(self.spent, config.prices)
        self.loopback, self.elsewhere = config.loopback, bool(config.urls)
        self._refuses = objective.refuses

    def swap(
        self, engine: ServingEngine, models: Mapping[str, ServedModel], candidates: Mapping[str, ServedModel]
    ) -> ServingEngine:
        """Let another engine, which is started and proved, answer from the next request on; returns the one until now.

        Requests that have begun stay with theirs: stop it after `drained`.
        """
        before = self.engine
        router = {ROUTER: self.models[ROUTER]} if self.route is not None else {}
        self.engine, self.models, self.candidates = engine, {**router, **models}, dict(candidates)
        return before

    async def drained(self, engine: ServingEngine, seconds: float) -> None:
        """Wait until no request is with an engine, at most so many seconds."""
        until = time.monotonic() + seconds
        while self._busy[id(engine)] and time.monotonic() < until:
            await asyncio.sleep(0.02)

    def caller(self, header: Callable[[str], str]) -> Caller:
        """Who sends a request, by its headers, and is charged; ApiError: a key is needed, or is not in use."""
        scheme, _, token = header("authorization").strip().replace("\t", " ").partition(" ")
        text = (token if scheme.lower() == "bearer" else header("x-api-key")).strip()
        ours = text.startswith("tl-")
        key = self.keyring.check(text) if ours else None
        if key is None and (ours or self.key_required):
            problem = "This key is not in use" if text else "A key is needed: Authorization: Bearer KEY"
            raise ApiError(401, problem, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        rank = header("x-tuneloop-priority")
        if rank and rank not in ("high", "normal", "low"):
            raise ApiError(400, "x-tuneloop-priority must be high, normal or low", param="x-tuneloop-priority")
        if key is not None and rank == "high" and key.limits.priority != "high":
            rank = ""  # no one is more urgent than his key
        names = {name: header(f"x-tuneloop-{name}") for name in ("user", "conversation")}
        for header_name, name in names.items():
            if len(name) > 256 or storable(name) != name:
                message = f"x-tuneloop-{header_name} must be a text of at most 256 characters"
                raise ApiError(400, message, param=f"x-tuneloop-{header_name}")
        caller = Caller(key, names["user"], names["conversation"], rank, self.rights_of(key))
        charged_to.set(caller.name)
        return caller

    def rights_of(self, key: ApiKey | None) -> Sequence[Right]:
        """What is believed of what comes with a key, or without one."""
        return self.config.keys.open_rights if key is None else key.limits.rights

    @property
    def key_required(self) -> bool:
        """Whether a request without a key is refused."""
        required = self.config.keys.required
        return (not self.loopback or self.keyring.needed) if required is None else required

    @property
    def own_models(self) -> list[str]:
        """Names of the models that answer, without that of the router."""
        return [name for name in self.models if name != ROUTER]

    def models_for(self, caller: Caller) -> list[str]:
        """Names of the models that a caller may use."""
        only = caller.key.limits.adapters if caller.key else []
        return [name for name in self.models if not only or name in only]

    def model_of(self, name: str, caller: Caller) -> ServedModel:
        """A model by its name; without one the first. ApiError: it is not here, or the key must not use it."""
        model = self.models.get(name) if name else next(iter(self.models.values()))
        if model is None:
            message = f"The model {name[:80]!r} does not exist here; there are: {', '.join(self.models_for(caller))}"
            raise ApiError(404, message, param="model", code="model_not_found")
        if caller.key is not None and caller.key.limits.adapters and model.name not in caller.key.limits.adapters:
            raise ApiError(403, f"This key must not ask {model.name!r}", param="model", code="model_not_allowed")
        return model

    async def answer(
        self,
        request: ApiRequest,
        caller: Caller,
        *,
        background: bool = False,
        copy: Copy | None = None,
        keep: Callable[[StoredRequest], None] | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of an answer. Close the iterator to end it early: the engine stops, and what was used is counted.

        Args:
            background: work of a batch, which waits for no place: the engine does it in idle time, where it can.
            copy: of another request, which a candidate answers unseen.
            keep: is given the record of a whole answer, to store it when its batch has the answer; None: it is stored
                here, and so is the request's beginning.

        Raises:
            ApiError: it is refused, or fails on the way.
        """
        if self.store.full:
            raise unavailable("The store takes nothing at present", "store")
        request, routed = await self._routed(request, caller)
        account = self._account(request, caller, copy, routed)
        self._busy[id(account.engine)] += 1
        record = _record_of(account)
        if keep is None:  # else a batch has it, so that it is not lost
            self.store.begin(record)
        if not account.shadow:
            self._remember(record, math.inf)
        try:
            while True:
                try:
                    async with aclosing(self._attempt(account, background)) as pieces:
                        async for piece in pieces:
                            yield piece
                    break
                except ApiError as error:
                    if not self._may_try_again(account, error):
                        raise
                    account.again = True
            account.status = "ok"
            self._copy(account, background)
        except ApiError as error:
            account.error, account.status = error.message, str(error.status)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            account.error = account.error or LEFT
            raise
        except Exception as error:
            account.error, account.status = type(error).__name__, "500"
            raise
        finally:
            self._busy[id(account.engine)] -= 1
            self._log(account, record)
            if keep is None:
                self.store.add(record)
            elif record.error is None:
                keep(record)
            elif account.status != "cancelled":  # else the row is repeated
                self.store.add(replace(record, usd=0.0))  # no one pays for an attempt

    async def _routed(self, request: ApiRequest, caller: Caller) -> tuple[ApiRequest, Routed | None]:
        """A request to the router with the model that it chooses; any other one as it is.

        A conversation stays with the model of its first request. Of one without a name the first turn decides, which
        comes with each request.
        """
        if self.route is None or self.model_of(request.model, caller).name != ROUTER:
            return request, None
        conversation = caller.name, caller.conversation
        model = self.conversations.get(conversation, "") if caller.conversation else ""
        if model in self.models:
            routed = Routed(model, "conversation")
        else:
            turns = [str(turn.get("content") or "") for turn in request.messages if turn["role"] == "user"]
            routed = await asyncio.to_thread(self.route, turns[0] if turns else request.text or "")
            if caller.conversation:
                self.conversations[conversation] = routed.model
                if len(self.conversations) > MOST_CONVERSATIONS:
                    del self.conversations[next(iter(self.conversations))]
        return replace(request, model=routed.model), routed

    def _account(self, request: ApiRequest, caller: Caller, copy: Copy | None, routed: Routed | None) -> _Account:
        """A request with who answers it: its model, or a candidate in its place."""
        champion = self.models[request.model] if routed is not None else self.model_of(request.model, caller)
        caller = caller if caller.user or not request.user else replace(caller, user=request.user)
        account = _Account(request, caller, champion, champion, self.engine)
        account.route = routed.logged() if routed is not None else None
        if copy is not None:
            account.shadow, account.draw = copy.of, ArmDraw(copy.arm, 0.0, copy.served)
            account.model = self.candidates[copy.served]
        elif self.draw is not None:
            who = experiment_unit(caller.voice, caller.user, caller.conversation)
            account.draw = self.draw(champion.name, who, account.id)
            if account.draw is not None and account.draw.served:
                if (candidate := self.candidates.get(account.draw.served)) is not None:
                    account.model = candidate
                else:
                    account.fallback = NOT_LOADED
        return account

    def _may_try_again(self, account: _Account, error: ApiError) -> bool:
        """Whether a request is answered in another way: by its own model where a candidate failed before the first
        piece, in the tier flex where it would be late and its key allows that."""
        candidate = account.draw is not None and account.model is not account.champion
        failed = error.status >= 500 or error.code == "model_not_found"
        if candidate and failed and not (account.shadow or account.pieces or self.admission.closed):
            account.model, account.fallback = account.champion, error.message[:200]
            return True
        key = account.caller.key
        late = error.code == "deadline" and key is not None and key.limits.late == "flex"
        if late:
            account.request = replace(account.request, tier="flex")
            self.admission.tally.refused -= 1
            self.admission.tally.downgraded += 1
        return late

    def _copy(self, account: _Account, background: bool) -> None:
        """Have a candidate answer a copy of what was answered, some time when no request waits."""
        if self.shadow is None or account.shadow or background or account.draw is not None:
            return
        served, caller = self.shadow(account.model.name), account.caller
        if served not in self.candidates or (caller.key is not None and caller.key.limits.train == "no"):
            return  # what must not be learned from does no work for an experiment
        caller = Caller(user=caller.user, conversation=caller.conversation)
        self.copies.add(self, Copy(account.id, served, replace(account.request, model=account.model.name), caller))

    async def prompt(self, request: ApiRequest, model: ServedModel) -> Prompt:
        """A request's prompt as the model was trained; ApiError: there is none."""
        if model.read is None or not request.messages:
            return Prompt(request.messages, request.tools, request.text)
        try:
            return await asyncio.to_thread(model.read, request.messages, request.tools)
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from None

    async def request(
        self, request: ApiRequest, prompt: Prompt, model: ServedModel, engine: ServingEngine | None = None
    ) -> Request:
        """A request for the engine (None: the one at work); ApiError: the prompt can't be rendered."""
        engine = engine or self.engine
        ids, turns = request.ids, prompt.messages
        try:
            if not engine.renders(model.adapter):
                if prompt.tools:
                    message = "tools need the model's tokenizer here: tokenizer=MODEL in serve.yaml"
                    raise ApiError(400, message, param="tools")
            else:
                turns = ()
                if prompt.continues is not None:
                    if request.kind == "completions":  # else a document: the engine begins it as in training
                        ids = await engine.tokenize(prompt.continues, adapter=model.adapter)
                elif not ids:
                    ids = await engine.render(prompt.messages, prompt.tools, adapter=model.adapter)
            return Request(
                turns,
                continues=prompt.continues,
                ids=tuple(ids),
                sampling=request.sampling,
                stop=request.stop,
                logprobs=request.logprobs,
                max_new_tokens=request.max_new_tokens or model.max_new_tokens or self.config.limits.max_new_tokens,
                adapter=model.adapter,
                choices=model.labels,
                schema=None if model.labels else request.schema,
                as_written=request.kind == "completions",
            )
        except UserError as error:
            raise ApiError(400, error.what, param=error.where or None) from None
        except TooBusy as busy:
            headers = {"Retry-After": str(math.ceil(busy.retry_after))}
            raise ApiError(429, f"The prompt is not rendered now: {busy}", code="busy", headers=headers) from None
        except OSError:
            raise ApiError(503, "The engine cannot be reached", code="engine") from None

    async def _attempt(self, account: _Account, background: bool) -> AsyncGenerator[Piece, None]:
        """The pieces of an answer by the account's model: reserve, wait for a place, have the engine answer, settle."""
        n, key = account.request.n, account.caller.key
        prompt = await self.prompt(account.request, account.model)
        account.outside = prompt.outside
        request = await self.request(account.request, prompt, account.model, account.engine)
        account.prompt_tokens = prompt_size(request)
        if (background or account.request.tier == "flex") and not self.batches_only and account.engine.gives_way:
            account.patient, background = True, request.schema is None  # an answer under a schema can't be interrupted
            request = replace(request, gives_way=background)
        longest = request.max_new_tokens * n
        usd = self.ledger.usd(account.prompt_tokens, longest, account.model.source)
        reservation = self.reserve(key, account.prompt_tokens + longest, usd, again=account.again)
        turn = None
        try:
            with self.admission.background() if background else contextlib.nullcontext():
                if not background:
                    turn = account.place = await self.admission.enter(self._work(request, account))
                began = self.clock.change(1)
                try:
                    async with aclosing(self._updates(request, account)) as updates:
                        async for update in updates:
                            index, part = update if isinstance(update, tuple) else (0, update)
                            yield self._piece(request, account, index, part)
                finally:
                    account.seconds = self.clock.change(-1) - began
                if len(account.completions) < n:
                    raise ApiError(503, "The engine ended in the middle of the answer", code="engine")
        finally:
            tokens = account.tokens
            if turn is not None:
                whole = len(account.completions) == n == 1 and not request.choices
                first = None if account.ttft_ms is None else account.ttft_ms - 1000 * (turn.started - turn.arrived)
                self.admission.leave(turn, tokens, first, whole=whole)
            used = (account.prompt_tokens, tokens) if account.pieces else (0, 0)
            self.ledger.settle(reservation, sum(used), self.ledger.usd(*used, account.model.source))

    def reserve(self, key: ApiKey | None, tokens: int, usd: float, *, again: bool = False) -> Reservation:
        """What a request may use, taken from its key; see `Ledger.reserve`. ApiError: its budget can't be kept."""
        if key is not None and key.limits.budget_usd is not None and not self.config.priced:
            message = f"The key {key.name!r} has a budget, and this server has no prices: prices.input, prices.output"
            raise ApiError(429, message, code="insufficient_quota")
        return self.ledger.reserve(key, tokens, usd, again=again)

    def _updates(self, request: Request, account: _Account) -> AsyncGenerator[Update | tuple[int, Update], None]:
        """What the engine writes; of several choices with the number of the choice."""
        if (n := account.request.n) == 1:
            return account.engine.stream(request)  # type: ignore[return-value]
        samplings = (replace(request.sampling, seed=request.sampling.seed + i) for i in range(n))
        return _merged([account.engine.stream(replace(request, sampling=sampling)) for sampling in samplings])

    def _work(self, request: Request, account: _Account) -> Work:
        caller, key = account.caller, account.caller.key
        rank: str = caller.rank or (key.limits.priority if key else "normal")
        patient = account.patient or account.request.tier == "flex"
        if patient:
            rank = "flex"
        elif account.request.tier == "priority" and (key is None or key.limits.priority == "high"):
            rank = "high"
        objective, promise = self.config.objective, "objective.ttft_ms of the server"
        deadline, refusable = objective.ttft_ms, self._refuses
        if key is not None and key.limits.deadline_ms:
            deadline, refusable, promise = key.limits.deadline_ms, True, f"--deadline-ms of the key {key.name!r}"
        sizes = account.prompt_tokens, request.max_new_tokens
        refusable = refusable and not patient
        return Work(account.model.name, *sizes, caller.name, rank, deadline, refusable, promise)

    def _piece(self, request: Request, account: _Account, index: int, update: Update) -> Piece:
        """Take in what an engine has written, whose half surrogate pairs are no text; ApiError: it could not answer."""
        parts = storable(update.text), storable(update.reasoning)
        if parts != (update.text, update.reasoning):
            update = replace(update, text=parts[0], reasoning=parts[1])
        completion = update.completion
        if completion is not None:
            texts = completion.text, completion.reasoning, completion.error
            text, thought, fault = map(storable, texts)
            if (text, thought, fault) != texts:
                completion = replace(completion, text=text, reasoning=thought, error=fault)
            if completion.finish in ("error", "cancelled"):
                raise engine_error(completion)
        if account.ttft_ms is None:
            account.ttft_ms = 1000 * (time.perf_counter() - account.began)
            if account.place is not None:
                account.place.reading = False  # its prompt is before no other any more
        account.pieces += 1
        account.texts[index] = account.texts.get(index, "") + update.text
        account.thought += update.reasoning if not index else ""
        if completion is not None:
            account.completions[index] = completion
            if not request.ids and completion.prompt_tokens:
                account.prompt_tokens = completion.prompt_tokens  # as the engine has counted
        of = account.id, account.model, account.request.tier, account.outside
        return Piece(index, update.text, completion, *of, update.reasoning)

    def _log(self, account: _Account, record: StoredRequest) -> None:
        """Fill in the record of a request that has ended, and count it."""
        first = account.completions.get(0)
        text = first.text if first is not None else account.texts.get(0)
        chance = first.label_probability if first is not None else None
        further: dict[str, Any] = {"reasoning_content": account.thought} if account.thought else {}
        if chance is not None and chance == chance:  # quality is estimated from it later
            further["probability"] = round(chance, 6)
        if (noted := account.request.noted) is not None:
            further["response"] = noted
        record.completion = text if text is None or not further else {"role": "assistant", "content": text, **further}
        record.prompt_tokens, record.completion_tokens = account.prompt_tokens, account.tokens
        record.ttft_ms = None if account.ttft_ms is None else round(account.ttft_ms, 3)
        record.total_ms = round(1000 * (time.perf_counter() - account.began), 3)
        refused = account.status.startswith("4") and not account.pieces  # a limit or its own fault kept it out
        record.finish = first.finish if first is not None else REFUSED if refused else None
        used = (account.prompt_tokens, account.tokens) if account.pieces else (0, 0)
        record.usd = self.ledger.usd(*used, account.model.source)
        record.seconds, record.error = round(account.seconds, 6), account.error
        record.tier = "shadow" if account.shadow else account.request.tier
        if account.fallback is not None:  # who answers has changed
            record.fallback = account.fallback
            _note_model(record, account.model)
        if not account.shadow:
            if record.error is None or account.pieces:
                self._remember(record, time.monotonic() + RECENT)
            else:
                self.recent.pop(record.id, None)
        self.metrics.count(record, account.status)
        if self.ended is not None:
            self.ended(record, account.status)

    def _remember(self, record: StoredRequest, until: float) -> None:
        """Let feedback name a request, which the store may not have yet."""
        answered = AnsweredRequest(record.key, record.user, record.conversation, record.voice)
        self.recent[record.id] = answered, until
        if len(self.recent) > MOST_RECENT:
            del self.recent[next(iter(self.recent))]

    async def read_store(self, look: Callable[[Database], T | None]) -> T | None:
        """What the store says, also a moment later where other servers write to it; ApiError: it can't be read."""
        path = self.config.store

        def work() -> T | None:
            with opened(path) as store:
                return look(store)

        try:
            loop = asyncio.get_running_loop()
            value = await loop.run_in_executor(_LOOKING, work)
            if not value and is_database_url(path):
                await asyncio.sleep(ELSEWHERE)
                value = await loop.run_in_executor(_LOOKING, work)
            return value
        except (UserError, DatabaseError):
            raise unavailable("The store can't be read at present", "store") from None


def _record_of(account: _Account) -> StoredRequest:
    """A request as it is stored when it begins."""
    request, caller, draw = account.request, account.caller, account.draw
    prompt, tools = list(request.messages), [dict(tool) for tool in request.tools]
    if not prompt and request.text is not None:
        prompt = [{"role": "user", "content": request.text}]
    name, tier = account.model.name, "shadow" if account.shadow else request.tier
    record = StoredRequest(id=account.id, time=account.arrived, model=name, prompt=prompt, tools=tools, tier=tier)
    _note_model(record, account.model)
    record.key, record.voice = caller.name, caller.voice
    record.user, record.conversation = caller.user or None, caller.conversation or None
    record.shadow, record.route, record.fallback = account.shadow, account.route, account.fallback
    record.total_ms = record.usd = record.seconds = 0.0
    if draw is not None:
        record.arm, record.propensity = draw.arm, None if account.shadow else draw.propensity
    if caller.key is not None and caller.key.limits.train == "no":
        record.train = "no"
    return record


def _note_model(record: StoredRequest, model: ServedModel) -> None:
    """Note in a record which model answers."""
    record.model, record.release = model.name, model.release or None
    record.adapter = None if model.adapter == BASE else model.adapter


async def _merged(streams: Sequence[AsyncIterator[Update]]) -> AsyncGenerator[tuple[int, Update], None]:
    """The updates of several answers as they come, each with the number of its answer."""
    queue: asyncio.Queue[tuple[int, Update | BaseException | None]] = asyncio.Queue()

    async def read(index: int, stream: Any) -> None:
        try:
            async for update in stream:
                queue.put_nowait((index, update))
            queue.put_nowait((index, None))
        except Exception as error:
            queue.put_nowait((index, error))
        finally:
            with contextlib.suppress(RuntimeError):
                await stream.aclose()

    tasks = [asyncio.create_task(read(i, stream)) for i, stream in enumerate(streams)]
    try:
        left = len(streams)
        while left:
            index, item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
