"""What happens to a request between the wire and the engine: limits, admission, the answer, the account, the log."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc_now, uuid7
from tuneloop.core.text import storable
from tuneloop.inference.answer import ServingEngine, can_give_way
from tuneloop.inference.request import Request
from tuneloop.models.adapters import BASE
from tuneloop.records.completion import Completion
from tuneloop.records.request import ANYONE, LEFT, NOT_LOADED, REFUSED, StoredRequest
from tuneloop.records.rows import Message
from tuneloop.serving.admission import Admission, Pass, Work
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.http.api_request import ApiRequest
from tuneloop.serving.http.errors import ApiError, too_much
from tuneloop.serving.http.metrics import Metrics
from tuneloop.serving.keys import Keyring
from tuneloop.serving.limits import Ledger, Refusal
from tuneloop.serving.pool import guessed_tokens
from tuneloop.serving.store.store import Answered, who_meets
from tuneloop.serving.store.writer import StoreWriter

if TYPE_CHECKING:
    from tuneloop.inference.local.engine import Update
    from tuneloop.serving.api_key import ApiKey, Right


@dataclass(frozen=True)
class Prompt:
    """What a model reads: turns, or a text to go on with."""

    messages: Sequence[Message] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    continues: str | None = None


@dataclass(frozen=True)
class Drawn:
    """What an experiment says of a request.

    Args:
        arm, propensity: as they are logged.
        served: name among the gateway's candidates of who answers; empty: the model that was asked.
    """

    arm: str
    propensity: float
    served: str = ""


# Model, `store.who_meets` (empty: nobody who comes again), id of the request -> its arm; None: no experiment.
Draw = Callable[[str, str, str], Drawn | None]


@dataclass(frozen=True)
class Routed:
    """What a router says of a text.

    Args:
        model: who answers.
        why: `best`, `none of these` (the base answers), or `conversation` (as its earlier requests).
        scores: expected quality of each model.
        nearness: to the rows that the router was fitted to; None: not looked at.
    """

    model: str
    why: str
    scores: Mapping[str, float] = field(default_factory=dict)
    nearness: float | None = None

    def logged(self) -> dict[str, Any]:
        """As it stands with the request."""
        found = {"model": self.model, "why": self.why, "scores": dict(self.scores)}
        return found if self.nearness is None else found | {"nearness": self.nearness}


Route = Callable[[str], Routed]  # the text of a turn -> who answers it
ROUTER = "router"  # the model name by which a router is asked
MOST_TALKS = 100_000  # conversations whose model is remembered
MOST_RECENT = 10_000  # requests that feedback may name before the store has them
RECENT = 30.0  # seconds after its end in which a request is sure to come into the store

# Turns as a client sends them -> the prompt that the model was trained on. Raises ValueError where it can't be made.
ReadPrompt = Callable[[Sequence[Message], Sequence[Mapping[str, Any]]], Prompt]


@dataclass(frozen=True)
class ServedModel:
    """A model as clients see it.

    Args:
        name: as they ask for it.
        adapter: its hash in the engine, or `base`.
        release: version in the registry; empty: none.
        labels: a classifier answers one of them and nothing else.
        label_tokens: of each label, the end of the turn included; empty: not known.
        max_new_tokens: longest answer, where a request does not say it; None: the server's.
        read: how turns become its prompt; None: as they are.
        source: what it was made from.
        decode: text of token ids, for log probabilities; None: nobody knows.
        created: when its weights were written, in seconds since 1970.
    """

    name: str
    adapter: str = BASE
    release: str = ""
    labels: tuple[str, ...] = ()
    label_tokens: Mapping[str, int] = field(default_factory=dict)
    max_new_tokens: int | None = None
    read: ReadPrompt | None = None
    source: str = ""
    decode: Callable[[Sequence[int]], str] | None = None
    created: int = field(default_factory=lambda: int(time.time()), compare=False)


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Args:
        key: None: without one, from this machine.
        user: pseudonym of the end user.
        conversation: that the request belongs to.
        rank: class of urgency that a header names; empty: the key's.
        rights: what is believed of what it says; default: those of the program itself, which names users that it knows.
    """

    key: ApiKey | None = None
    user: str = ""
    conversation: str = ""
    rank: str = ""
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
    """A part of an answer.

    Args:
        index: of the choice.
        text: what came.
        completion: of the choice, with its last piece.
        id: of the request.
        model: that answers.
        tier: in which it does.
    """

    index: int
    text: str
    completion: Completion | None
    id: str
    model: ServedModel
    tier: str = "default"


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

    id: str
    asked: ApiRequest
    caller: Caller
    model: ServedModel
    champion: ServedModel
    engine: ServingEngine
    time: str
    began: float
    drawn: Drawn | None = None
    route: Mapping[str, Any] | None = None
    fallback: str | None = None
    shadow: str | None = None
    prompt_tokens: int = 0
    ttft_ms: float | None = None
    done: dict[int, Completion] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    pieces: int = 0
    error: str | None = None
    seconds: float = 0.0
    status: str = "cancelled"
    patient: bool = False
    again: bool = False  # it is asked in another way than at first
    place: Pass | None = None
    noted: StoredRequest | None = None  # filled in when it ends

    @property
    def refused(self) -> bool:
        """Whether it never ran, since a limit or its own fault kept it out."""
        return self.status.startswith("4") and not self.pieces

    @property
    def tokens(self) -> int:
        """Tokens written; of choices that were cut, one for each piece that came."""
        known = sum(each.completion_tokens for each in self.done.values())
        return known if len(self.done) == self.asked.n else max(known, self.pieces)


_STATUS = {
    "too_long": 400,
    "no_adapter": 404,
    "no_prompt": 400,
    "no_schema": 400,
    "no_choices": 400,
    "rejected": 400,
    "busy": 429,
    "insufficient_quota": 429,
    "template_error": 400,
    "engine": 503,
}
_PLACE = re.compile(
    r"(?<![\w.])(?:/[\w.@+-]+){2,}/?|\b\w+://\S+"
)  # a path or an address, which are not a client's affair
_CODES = {"too_long": "context_length_exceeded", "no_adapter": "model_not_found"}


def engine_error(completion: Completion) -> ApiError:
    """What an engine could not answer, as an error of the API."""
    if completion.finish == "cancelled":
        return ApiError(503, "The engine was stopped before the answer ended", code="engine")
    word, _, rest = completion.error.partition(": ")
    status = _STATUS.get(word, 500)
    wait = completion.retry_after
    headers = {} if wait is None else {"Retry-After": str(math.ceil(min(wait, 86_400.0)))}
    message = _PLACE.sub("...", rest or completion.error or "the engine gave no answer")
    return ApiError(status, message, code=_CODES.get(word, word), headers=headers)


@dataclass(frozen=True)
class Copy:
    """A request that was answered, and the candidate that is to answer it unseen.

    Args:
        of: id of the request.
        served: name among the gateway's candidates.
        arm: as it is logged.
    """

    of: str
    served: str
    asked: ApiRequest
    caller: Caller
    arm: str = "candidate"


@dataclass
class Copies:
    """Copies that wait for a candidate's unseen answer, one at a time, while no request waits.

    Args:
        most: that may wait; the oldest one gives way and is counted as dropped.
    """

    most: int = 256
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
            await gateway.admission.quiet()
            if gateway.admission.closed or not self.waiting:
                return
            copy = self.waiting.popleft()
            if copy.served in gateway.candidates:  # the experiment may have ended
                with contextlib.suppress(Exception):  # the log has it
                    async for _ in gateway.answer(copy.asked, copy.caller, background=True, copy=copy):
                        pass

    async def stop(self) -> None:
        """End it; what waits is not answered."""
        self.waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


@dataclass
class Gateway:
    """A server's state, and how it answers.

    Args:
        models: by name; the first one answers where none is named.
        candidates: models of experiments, by the names of these; they answer in place of the model that was asked.
        draw: the arm of a request; None: there are no experiments.
        route: who answers requests to the model `router`; None: there is no router.
        talks: key and conversation -> the model that it was sent to.
        recent: requests under way and those that have just ended, by id, with the time until which they are recent.
        shadow: the candidate that is to answer copies of a model's requests; empty: none.
        alone: only work of batches is done, so that it gives way to nobody.
        ended: is given each request that has ended, as it is stored, with its status; it must not wait.
    """

    engine: ServingEngine
    models: dict[str, ServedModel]
    config: ServeConfig
    keyring: Keyring
    ledger: Ledger
    store: StoreWriter
    admission: Admission
    metrics: Metrics = field(default_factory=Metrics)
    clock: SharedClock = field(default_factory=SharedClock)
    candidates: dict[str, ServedModel] = field(default_factory=dict)
    draw: Draw | None = None
    shadow: Callable[[str], str] = field(default=lambda model: "")
    copies: Copies = field(default_factory=Copies)
    route: Route | None = None
    talks: dict[tuple[str, str], str] = field(default_factory=dict)
    recent: dict[str, tuple[Answered, float]] = field(default_factory=dict)
    alone: bool = False
    ended: Callable[[StoredRequest, str], None] | None = None
    _busy: Counter[int] = field(default_factory=Counter)  # requests under way, by the identity of their engine

    # --- swaps

    def swap(
        self, engine: ServingEngine, models: Mapping[str, ServedModel], candidates: Mapping[str, ServedModel]
    ) -> ServingEngine:
        """Let another engine, which is started and proved, answer from the next request on.

        Requests that have begun stay with theirs: stop it after `drained`.

        Returns:
            The engine that answered until now.
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

    # --- who and what

    def caller(self, header: Callable[[str], str]) -> Caller:
        """Who sends a request, by its headers.

        Raises:
            ApiError: a key is needed, or it is not one in use.
        """
        scheme, _, token = header("authorization").strip().replace("\t", " ").partition(" ")
        given = (token if scheme.lower() == "bearer" else header("x-api-key")).strip()
        ours = given.startswith("tl-")
        key = self.keyring.check(given) if ours else None
        if key is None and (ours or self.key_required):
            raise ApiError(
                401,
                "This key is not in use" if given else "A key is needed: Authorization: Bearer KEY",
                code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        rank = header("x-tuneloop-priority")
        if rank and rank not in ("high", "normal", "low"):
            raise ApiError(400, "x-tuneloop-priority must be high, normal or low", param="x-tuneloop-priority")
        if key is not None and rank == "high" and key.limits.priority != "high":
            rank = ""  # nobody makes himself more urgent than his key is
        names = {each: header(f"x-tuneloop-{each}") for each in ("user", "conversation")}
        for each, name in names.items():
            if len(name) > 256 or storable(name) != name:
                message = f"x-tuneloop-{each} must be a text of at most 256 characters"
                raise ApiError(400, message, param=f"x-tuneloop-{each}")
        return Caller(key, names["user"], names["conversation"], rank, self.rights_of(key))

    def rights_of(self, key: ApiKey | None) -> Sequence[Right]:
        """What is believed of what comes with a key, or without one."""
        return self.config.keys.open_rights if key is None else key.limits.rights

    @property
    def key_required(self) -> bool:
        """Whether a request without a key is refused."""
        required = self.config.keys.required
        return (not self.config.loopback or self.keyring.needed) if required is None else required

    def models_for(self, caller: Caller) -> list[str]:
        """Names of the models that somebody may ask."""
        only = caller.key.limits.adapters if caller.key else []
        return [name for name in self.models if not only or name in only]

    def model_of(self, name: str, caller: Caller) -> ServedModel:
        """A model by its name; the first one where there is none.

        Raises:
            ApiError: there is none, or the key must not ask it.
        """
        model = self.models.get(name) if name else next(iter(self.models.values()))
        if model is None:
            known = ", ".join(self.models_for(caller))
            raise ApiError(
                404, f"The model {name[:80]!r} does not exist here; there are: {known}", param="model",
                code="model_not_found",
            )  # fmt: skip
        if caller.key is not None and caller.key.limits.adapters and model.name not in caller.key.limits.adapters:
            raise ApiError(403, f"This key must not ask {model.name!r}", param="model", code="model_not_allowed")
        return model

    # --- an answer

    async def answer(
        self, asked: ApiRequest, caller: Caller, *, background: bool = False, copy: Copy | None = None
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of an answer. Close the iterator to end it early: the engine stops, and what was used is counted.

        Args:
            background: work of a batch, which waits for no place; the engine does it in what others leave idle, where it can.
            copy: of another request, which a candidate answers unseen.

        Raises:
            ApiError: it is refused, or fails on the way.
        """
        if self.store.full:
            raise ApiError(503, "The store takes nothing at present", code="store", headers={"Retry-After": "5"})
        asked, routed = await self._routed(asked, caller)
        account = self._account(asked, caller, copy, routed)
        self._busy[id(account.engine)] += 1
        account.noted = noted = self._begun(account)
        self.store.begin(noted)
        if not account.shadow:
            self._remember(noted, math.inf)
        try:
            while True:
                try:
                    async with aclosing(self._attempt(account, background)) as pieces:
                        async for piece in pieces:
                            yield piece
                    break
                except ApiError as error:
                    account.again = self._falls_back(account, error) or self._goes_on_as_flex(account, error)
                    if not account.again:
                        raise
            account.status = "ok"
            self._copy(account, background)
        except ApiError as error:
            account.error, account.status = error.message, str(error.status)
            raise
        except (asyncio.CancelledError, GeneratorExit):
            account.error = account.error or LEFT
            raise
        except Exception as error:
            account.error, account.status = f"{type(error).__name__}", "500"
            raise
        finally:
            self._busy[id(account.engine)] -= 1
            self._log(account)

    async def _routed(self, asked: ApiRequest, caller: Caller) -> tuple[ApiRequest, Routed | None]:
        """A request with the model that a router chooses for it, where the router is asked.

        A conversation stays with the model of its first request. One without a name is decided by its first turn, which
        comes again with each request.
        """
        if self.route is None or self.model_of(asked.model, caller).name != ROUTER:
            return asked, None
        talk = caller.name, caller.conversation
        known = self.talks.get(talk, "") if caller.conversation else ""
        if known in self.models:
            routed = Routed(known, "conversation")
        else:
            turns = [str(turn.get("content") or "") for turn in asked.messages if turn["role"] == "user"]
            routed = await asyncio.to_thread(self.route, turns[0] if turns else asked.text or "")
            if caller.conversation:
                self.talks[talk] = routed.model
                if len(self.talks) > MOST_TALKS:
                    del self.talks[next(iter(self.talks))]
        return replace(asked, model=routed.model), routed

    def _account(self, asked: ApiRequest, caller: Caller, copy: Copy | None, routed: Routed | None) -> _Account:
        """A request with who answers it: the model that was asked, or a candidate in its place."""
        asked_model = self.models[asked.model] if routed is not None else self.model_of(asked.model, caller)
        account = _Account(
            uuid7(), asked, caller if caller.user or not asked.user else replace(caller, user=asked.user), asked_model, asked_model, self.engine,
            utc_now(), time.perf_counter(), route=routed.logged() if routed is not None else None,
        )  # fmt: skip
        if copy is not None:
            account.shadow, account.drawn = copy.of, Drawn(copy.arm, 0.0, copy.served)
            account.model = self.candidates[copy.served]
        elif self.draw is not None:
            who = who_meets(account.caller.voice, account.caller.user, account.caller.conversation)
            account.drawn = self.draw(asked_model.name, who, account.id)
            if account.drawn is not None and account.drawn.served:
                if (candidate := self.candidates.get(account.drawn.served)) is not None:
                    account.model = candidate
                else:
                    account.fallback = NOT_LOADED
        return account

    def _falls_back(self, account: _Account, error: ApiError) -> bool:
        """Whether the model that was asked answers in a candidate's place, which failed before its first piece."""
        candidate = account.drawn is not None and account.model is not account.champion
        failed = error.status >= 500 or error.code == "model_not_found"
        if not candidate or account.shadow or account.pieces or not failed or self.admission.closed:
            return False
        account.model, account.fallback = account.champion, error.message[:200]
        return True

    def _goes_on_as_flex(self, account: _Account, error: ApiError) -> bool:
        """Whether a request that would be late is answered in the tier flex, as its key says."""
        limits = account.caller.key.limits if account.caller.key else None
        if error.code != "deadline" or limits is None or limits.late != "flex":
            return False
        account.asked = replace(account.asked, tier="flex")
        self.admission.downgrade()
        return True

    def _copy(self, account: _Account, background: bool) -> None:
        """Have a candidate answer a copy of what was answered, some time when nobody waits."""
        if account.shadow or background or account.drawn is not None:
            return
        if (served := self.shadow(account.model.name)) and served in self.candidates:
            caller = Caller(user=account.caller.user, conversation=account.caller.conversation)
            if account.caller.key is not None and account.caller.key.limits.train == "no":
                return  # no work for an experiment from whom is not to be learned
            self.copies.add(self, Copy(account.id, served, replace(account.asked, model=account.model.name), caller))

    async def request(self, asked: ApiRequest, model: ServedModel, engine: ServingEngine | None = None) -> Request:
        """What the engine is asked, with the prompt as tokens, as the model was trained.

        Args:
            engine: that is asked; None: the one at work.

        Raises:
            ApiError: there is no such prompt.
        """
        engine = engine or self.engine
        prompt = Prompt(asked.messages, asked.tools, asked.text)
        if model.read is not None and asked.messages:
            try:
                prompt = await asyncio.to_thread(model.read, asked.messages, asked.tools)
            except ValueError as error:
                raise ApiError(400, str(error), param="messages") from None
        try:
            ids: Sequence[int] = asked.ids
            sends = not getattr(engine, "renders", True)  # the engine takes turns and texts as they are
            if sends and prompt.tools:
                raise ApiError(
                    400, "tools need the model's tokenizer here: tokenizer=MODEL in serve.yaml", param="tools"
                )
            if sends:
                pass
            elif prompt.continues is not None:
                ids = await engine.tokenize(prompt.continues)
                if asked.kind != "completions":
                    ids = ()  # a document: the engine begins it as in training
            elif not ids:
                ids = await engine.render(prompt.messages, prompt.tools, adapter=model.adapter)
            return Request(
                messages=prompt.messages if sends else (), tools=prompt.tools if sends else (), continues=prompt.continues, ids=tuple(ids),
                max_new_tokens=asked.max_new_tokens or model.max_new_tokens or self.config.limits.max_new_tokens,
                sampling=asked.sampling, stop=asked.stop, logprobs=asked.logprobs, adapter=model.adapter,
                choices=model.labels, schema=None if model.labels else asked.schema,
            )  # fmt: skip
        except UserError as error:
            raise ApiError(400, error.what, param=error.where or None) from None
        except OSError:
            raise ApiError(503, "The engine does not answer", code="engine") from None

    async def _attempt(self, account: _Account, background: bool) -> AsyncGenerator[Piece, None]:
        """The pieces of an answer by the account's model: reserve, wait for a place, ask the engine, settle."""
        asked, key = account.asked, account.caller.key
        request = await self.request(asked, account.model, account.engine)
        account.prompt_tokens = len(request.ids) or guessed_tokens(request.messages)
        if (background or asked.tier == "flex") and not self.alone and can_give_way(account.engine):
            account.patient, background = True, request.schema is None  # an answer under a schema can't be interrupted
            request = replace(request, gives_way=background)
        longest = request.max_new_tokens * asked.n
        most = account.prompt_tokens + longest
        if key is not None and key.limits.budget_usd is not None and not self.config.priced:
            what = f"The key {key.name!r} has a budget, and this server has no prices: prices.input, prices.output"
            raise ApiError(429, what, code="insufficient_quota")
        try:
            usd = self.config.usd(account.prompt_tokens, longest)
            held = self.ledger.reserve(key, most, usd, again=account.again)
        except Refusal as refused:
            raise too_much(refused) from None
        place = None
        try:
            with self.admission.aside() if background else contextlib.nullcontext():
                if not background:
                    place = account.place = await self.admission.enter(self._work(request, account))
                began = self.clock.change(1)
                try:
                    async with aclosing(self._updates(request, account)) as updates:
                        async for update in updates:
                            index, new = update if isinstance(update, tuple) else (0, update)
                            yield self._piece(request, account, index, new)
                finally:
                    account.seconds = self.clock.change(-1) - began
                if len(account.done) < asked.n:
                    raise ApiError(503, "The engine ended in the middle of the answer", code="engine")
        finally:
            tokens = account.tokens
            if place is not None:
                whole = len(account.done) == asked.n == 1 and not request.choices
                first = None if account.ttft_ms is None else account.ttft_ms - 1000 * (place.started - place.arrived)
                self.admission.leave(place, tokens, first, whole=whole)
            used = self.config.usd(account.prompt_tokens, tokens) if account.pieces else 0.0
            self.ledger.settle(held, (account.prompt_tokens + tokens) if account.pieces else 0, used)

    def _updates(self, request: Request, account: _Account) -> AsyncGenerator[Update | tuple[int, Update], None]:
        """What the engine writes; of several choices with the number of the choice."""
        if (n := account.asked.n) == 1:
            return account.engine.stream(request)  # type: ignore[return-value]
        seed = request.sampling.seed
        more = [replace(request, sampling=replace(request.sampling, seed=seed + i)) for i in range(n)]
        return _merged([account.engine.stream(each) for each in more])

    def _work(self, request: Request, account: _Account) -> Work:
        caller, limits = account.caller, account.caller.key.limits if account.caller.key else None
        rank = caller.rank or (limits.priority if limits else "normal")
        rank = {"flex": "flex", "priority": "high" if not limits or limits.priority == "high" else rank}.get(
            account.asked.tier, rank
        )
        deadline = (limits.deadline_ms if limits else None) or self.config.objective.ttft_ms
        return Work(
            account.model.name, account.prompt_tokens, request.max_new_tokens, (limits and caller.key and caller.key.name) or "",
            "flex" if account.patient else rank, deadline, refusable=account.asked.tier != "flex" and not account.patient,
        )  # fmt: skip

    def _piece(self, request: Request, account: _Account, index: int, update: Update) -> Piece:
        """Take in what an engine has written. Half of a surrogate pair, as another server may send, is no text.

        Raises:
            ApiError: it could not answer.
        """
        if (text := storable(update.text)) is not update.text:
            update = replace(update, text=text)
        if (done := update.completion) is not None and (done.text, done.error) != (
            storable(done.text),
            storable(done.error),
        ):
            done = replace(done, text=storable(done.text), error=storable(done.error))
            update = replace(update, completion=done)
        if update.completion is not None and update.completion.finish in ("error", "cancelled"):
            raise engine_error(update.completion)
        if account.ttft_ms is None:
            account.ttft_ms = 1000 * (time.perf_counter() - account.began)
            if account.place is not None:
                self.admission.answered(account.place)
        account.pieces += 1
        account.texts[index] = account.texts.get(index, "") + update.text
        if update.completion is not None:
            account.done[index] = update.completion
            if not request.ids and update.completion.prompt_tokens:
                account.prompt_tokens = update.completion.prompt_tokens  # as the engine has counted
        return Piece(index, update.text, update.completion, account.id, account.model, account.asked.tier)

    def _log(self, account: _Account) -> None:
        record = self._ended(account)
        if account.shadow:
            pass
        elif record.error is None or account.pieces:
            self._remember(record, time.monotonic() + RECENT)
        else:
            self.recent.pop(record.id, None)
        self.metrics.count(record, account.status)
        if self.ended is not None:
            self.ended(record, account.status)
        self.store.add(record)

    def _remember(self, record: StoredRequest, until: float) -> None:
        """Let feedback name a request, which the store may not have yet."""
        answered = Answered(record.key, record.user, record.conversation, record.voice)
        self.recent[record.id] = answered, until
        if len(self.recent) > MOST_RECENT:
            del self.recent[next(iter(self.recent))]

    def _begun(self, account: _Account) -> StoredRequest:
        """A request as it is stored when it begins."""
        asked, model, caller, drawn = account.asked, account.model, account.caller, account.drawn
        prompt: list[Message] = list(asked.messages)
        if not prompt and asked.text is not None:
            prompt = [{"role": "user", "content": asked.text}]
        return StoredRequest(
            id=account.id, time=account.time, key=caller.name, voice=caller.voice,
            model=model.name, adapter=None if model.adapter == BASE else model.adapter, release=model.release or None,
            arm=drawn.arm if drawn else None, propensity=drawn.propensity if drawn and not account.shadow else None,
            route=dict(account.route) if account.route is not None else None, fallback=account.fallback,
            train="no" if caller.key and caller.key.limits.train == "no" else None, shadow=account.shadow,
            user=caller.user or None, conversation=caller.conversation or None, prompt=prompt,
            tools=[dict(tool) for tool in asked.tools],
            total_ms=0.0, tier="shadow" if account.shadow else asked.tier, usd=0.0, seconds=0.0,
        )  # fmt: skip

    def _ended(self, account: _Account) -> StoredRequest:
        """The record of a request, filled in when it has ended."""
        model, first, record = account.model, account.done.get(0), account.noted
        assert record is not None
        text = first.text if first is not None else account.texts.get(0)
        record.completion = _with_probability(text, first)
        record.prompt_tokens, record.completion_tokens = account.prompt_tokens, account.tokens
        record.ttft_ms = None if account.ttft_ms is None else round(account.ttft_ms, 3)
        record.total_ms = round(1000 * (time.perf_counter() - account.began), 3)
        record.finish = first.finish if first is not None else REFUSED if account.refused else None
        record.usd = self.config.usd(account.prompt_tokens, account.tokens) if account.pieces else 0.0
        record.seconds, record.error = round(account.seconds, 6), account.error
        record.tier = "shadow" if account.shadow else account.asked.tier
        if account.fallback is not None:  # who answers has changed
            record.model, record.adapter = model.name, None if model.adapter == BASE else model.adapter
            record.release, record.fallback = model.release or None, account.fallback
        return record


def _with_probability(text: str | None, completion: Completion | None) -> dict[str, Any] | str | None:
    """The text as it is stored; that of a chosen label with its probability, from which quality is estimated later."""
    chance = completion.label_probability if completion is not None else None
    if text is None or chance is None or chance != chance:
        return text
    return {"role": "assistant", "content": text, "probability": round(chance, 6)}


async def _merged(streams: Sequence[AsyncIterator[Update]]) -> AsyncGenerator[tuple[int, Update], None]:
    """The updates of several answers as they come, each with the number of its answer."""
    queue: asyncio.Queue[tuple[int, Update | BaseException | None]] = asyncio.Queue()

    async def read(index: int, stream: AsyncIterator[Update]) -> None:
        try:
            async for update in stream:
                queue.put_nowait((index, update))
            queue.put_nowait((index, None))
        except Exception as error:
            queue.put_nowait((index, error))
        finally:
            await _close(stream)

    tasks = [asyncio.create_task(read(i, stream)) for i, stream in enumerate(streams)]
    try:
        left = len(streams)
        while left:
            index, found = await queue.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                left -= 1
            else:
                yield index, found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _close(stream: Any) -> None:
    with contextlib.suppress(RuntimeError):
        await stream.aclose()
