"""Our own engine: requests that are decoded together, and join and leave between steps.

`DecodingBatch` holds rows that share a forward pass: `join` reads prompts, `step` writes one token in each row, `leave`
drops one. `Engine` puts requests into batches as there is room, for one thread or many: `submit` and `cancel` at any
time, `step` for all, `stream` for callers that wait. Rows may have different LoRA adapters; rows behind
different prefixes go into separate batches. An answer depends on its own request alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tuneloop.core.device import fits
from tuneloop.core.errors import UserError
from tuneloop.inference.grammar import Constraint, Grammars
from tuneloop.inference.local.batches import Padded, pad
from tuneloop.inference.local.sampling import Sampler, logprobs
from tuneloop.inference.priority import QUANTUM, SHARE, Pace
from tuneloop.inference.request import WRITES_FREELY, Request, Update, refused, too_long, with_adapter
from tuneloop.inference.stream import TextStream
from tuneloop.models import Model
from tuneloop.models.adapters import BASE, applied, check_adapter
from tuneloop.models.nn import is_batch_invariant
from tuneloop.records.completion import ENGINE, Completion, Finish, TokenLogprob

if TYPE_CHECKING:
    from torch import Tensor

    from tuneloop.models.chat import Template


@dataclass(slots=True)
class ActiveRow:
    """A request that is being answered."""

    request: Request  # with the prompt's ids
    stream: TextStream | None = None  # its text, where it is needed before the end (by a reader, or for stop strings)
    started: float = 0.0  # of the clock, when its prompt began to be read
    first: float | None = None
    new: list[int] = field(default_factory=list)  # tokens written
    logprobs: list[TokenLogprob] = field(default_factory=list)
    piece: str = ""  # text that has become certain since the last piece was taken
    completion: Completion | None = None  # the answer, once it is over
    constraint: Constraint | None = None  # what the answer may be; None: anything
    characters: int = 0  # that were taken
    again: int = 0  # of these, how many are still to be written once more after a new beginning

    def take(self) -> str:
        """The text that was not taken yet."""
        repeated = min(self.again, len(self.piece))
        piece, self.piece = self.piece[repeated:], ""
        self.again -= repeated
        self.characters += len(piece)
        return piece

    def begin_again(self, template: Template, grammars: Grammars) -> None:
        """Forget what was written; the same comes again, since draws are seeded, and nothing is taken twice."""
        self.new, self.logprobs, self.piece, self.again = [], [], "", self.characters
        if self.stream is not None:
            self.stream = TextStream(template.decode, self.request.stop)
        if self.request.schema is not None:
            constraint = grammars.constraint(self.request.schema)
            self.constraint = None if isinstance(constraint, str) else constraint


@dataclass(frozen=True)
class Beginning:
    """What all prompts of a batch begin with, read once: its ids, and the cache of one row that holds them."""

    ids: Sequence[int] = ()
    cache: Any = None


Watch = Callable[[Sequence[ActiveRow | None], "Tensor"], None]


def padded_tokens(rows: Sequence[ActiveRow]) -> int:
    """Places that the cache of some rows may come to need."""
    return len(rows) * max((len(row.request.ids) + row.request.max_new_tokens for row in rows), default=0)


class DecodingBatch:
    """Rows that share forward passes.

    Args:
        model: what answers.
        beginning: what all prompts begin with; computed under the rows' adapters.
        watch: gets the rows and the states (B, C) that their next tokens are drawn from, before each token; a row that
            is over is None.
    """

    def __init__(self, model: Model, beginning: Beginning = Beginning(), watch: Watch | None = None) -> None:
        self.model, self.beginning, self.watch = model, beginning, watch
        self.rows: list[ActiveRow | None] = []  # None: over, its place in the tensors is given up when a quarter is
        self._state: _BatchState | None = None

    @property
    def active(self) -> list[ActiveRow]:
        """Rows that are not over."""
        return [row for row in self.rows if row is not None]

    def padded_tokens(self, new: Sequence[ActiveRow] = ()) -> int:
        """Places that the cache may come to need with further rows."""
        return padded_tokens([*self.active, *new])

    def join(self, rows: Sequence[ActiveRow], beginning: Beginning | None = None) -> None:
        """Read the prompts of further rows and write the first token of each.

        Args:
            beginning: what of these prompts is read already; None: what all in the batch begin with.
        """
        import torch

        read = self.beginning if beginning is None else beginning
        began = len(read.ids)
        for row in rows:
            row.started = row.started or time.perf_counter()
            if row.stream is None and row.request.stop:
                row.stream = TextStream(self.model.template.decode, row.request.stop)
        with torch.inference_mode():
            rests = [row.request.ids[began:] for row in rows]
            padded = pad(rests, began, self.model.template.pad_id, self.model.device)
            state = _BatchState.read(self.model, rows, padded, read.cache)
            self._read(rows, state, [state.sampler.next(state.hidden, self.model.head)])
            if self._state is None or not self.active:
                self._state, self.rows = state, list(rows)
            else:
                self._compact(1.0)
                self._state.join(state)
                self.rows += rows
            self.rows = [None if row is None or row.completion is not None else row for row in self.rows]

    def step(self, tokens: int = 1) -> list[ActiveRow]:
        """Write one more token in each row; returns the rows that took part.

        Args:
            tokens: written at most before it is checked which rows are over: the host waits for a GPU once for all of
                them. What a row has written behind its end is dropped. One at a time for log probabilities.
        """
        import torch

        if not self.active or self._state is None:
            return []
        rows = self.active
        if self.watch is not None or any(row.request.logprobs is not None for row in rows):
            tokens = 1
        longest = max(row.request.max_new_tokens - len(row.new) for row in rows)
        with torch.inference_mode():
            self._compact(0.75)
            columns: list[Tensor] = []
            for step in range(max(min(tokens, longest), 1)):
                if step:
                    self._state.token = columns[-1]
                self._state.forward(self.model, self.rows)
                columns.append(self._state.sampler.next(self._state.hidden, self.model.head))
            self._read(self.rows, self._state, columns)
        self.rows = [None if row is None or row.completion is not None else row for row in self.rows]
        return rows

    def leave(self, row: ActiveRow, finish: Finish = "cancelled") -> Completion:
        """End a row now; what it has written is its answer."""
        if row.completion is None:
            row.completion = _completion(self.model, row, finish)
        self.rows = [None if other is row else other for other in self.rows]
        return row.completion

    def _compact(self, share: float) -> None:
        """Give up the places of rows that are over: copying the cache pays when a quarter of the rows is over."""
        left = [i for i, row in enumerate(self.rows) if row is not None]
        if self._state is not None and len(left) < len(self.rows) and len(left) <= share * len(self.rows):
            self._state.keep(left)
            self.rows = [self.rows[i] for i in left]

    def _read(self, rows: Sequence[ActiveRow | None], state: _BatchState, tokens: Sequence[Tensor]) -> None:
        """Take over tokens that have been written one behind the other in each row, up to the row's end."""
        import torch

        if self.watch is not None:
            self.watch(rows, state.hidden)
        state.token = tokens[-1]
        columns = torch.stack(list(tokens)).tolist() if len(tokens) > 1 else [state.token.tolist()]
        values, now = columns[-1], time.perf_counter()
        measured = [i for i, row in enumerate(rows) if row is not None and row.request.logprobs is not None]
        if measured:
            top = [rows[i].request.logprobs or 0 for i in measured]  # type: ignore[union-attr]
            token_logprobs = logprobs(state.hidden[measured], self.model.head, [values[i] for i in measured], top)
            for i, logprob in zip(measured, token_logprobs, strict=True):
                rows[i].logprobs.append(logprob)  # type: ignore[union-attr]
        ends = self.model.template.end_ids
        for column in columns:
            for row, token in zip(rows, column, strict=True):
                if row is not None and row.completion is None:
                    _take(self.model, row, token, token in ends, now)


def _take(model: Model, row: ActiveRow, token: int, ends: bool, now: float) -> None:
    row.new.append(token)
    row.first = now if row.first is None else row.first
    if row.stream is not None and not ends:
        row.piece += row.stream.push(token)
    stopped = row.stream is not None and row.stream.stopped
    if ends or stopped or len(row.new) >= row.request.max_new_tokens:
        row.completion = _completion(model, row, "stop" if ends or stopped else "length")


def _completion(model: Model, row: ActiveRow, finish: Finish) -> Completion:
    template = model.template
    if row.stream is not None:
        row.piece += row.stream.end()
        text = row.stream.text
    else:
        text = template.decode(row.new[:-1] if row.new and row.new[-1] in template.end_ids else row.new).strip()
    return Completion(
        text,
        tuple(row.new),
        finish,
        len(row.request.ids),
        len(row.new),
        ttft_ms=None if row.first is None else round(1000 * (row.first - row.started), 3),
        total_ms=round(1000 * (time.perf_counter() - row.started), 3) if row.started else None,
        logprobs=None if row.request.logprobs is None else tuple(row.logprobs),
        engine=ENGINE,
        adapter=row.request.adapter,
    )


def _adapters(rows: Sequence[ActiveRow | None]) -> list[str]:
    """Of each row; a place whose row is over has that of another one."""
    some = next(row.request.adapter for row in rows if row is not None)
    return [some if row is None else row.request.adapter for row in rows]


@dataclass
class _BatchState:
    """The tensors of a batch: a place for each row (B), also for those that are over."""

    cache: Any  # keys and values of the tokens read so far
    real: Tensor  # which of them are no padding (B, S)
    positions: Tensor  # of the next token (B)
    hidden: Tensor  # of the last one (B, C)
    sampler: Sampler
    token: Tensor  # the last one written (B)
    prefix: int  # places at the beginning of the cache that no token of a row takes: those of a trained prefix

    @staticmethod
    def read(model: Model, rows: Sequence[ActiveRow], padded: Padded, beginning: Any) -> _BatchState:
        """Read the prompts of rows."""
        import torch

        first = torch.zeros(len(rows), dtype=torch.long, device=model.device)
        cache = model.new_cache() if beginning is None else beginning.select(first)
        with applied([row.request.adapter for row in rows]):
            hidden = padded.last(model.hidden(padded.ids, padded.positions, padded.mask, cache, padded.real_ids))
        requests, constraints = [row.request for row in rows], [row.constraint for row in rows]
        sampler = Sampler([r.sampling for r in requests], model.device, [r.ids for r in requests], constraints)
        prefix = cache.length - padded.real.shape[1]
        return _BatchState(cache, padded.real, padded.lengths, hidden, sampler, first, prefix)

    def forward(self, model: Model, rows: Sequence[ActiveRow | None]) -> None:
        """Read the last token of each row."""
        import torch

        if is_batch_invariant():  # behind its last token, wherever the others end
            self.cache = self.cache.placed((self.prefix + self.positions)[:, None])
            self.real = torch.arange(self.cache.capacity - self.prefix) <= self.positions[:, None]
        else:
            self.real = torch.cat((self.real, torch.ones_like(self.real[:, :1])), 1)
        token, positions, real = self.token[:, None], self.positions[:, None], self.real[:, None, None]
        with applied(_adapters(rows)):
            self.hidden = model.hidden(token, positions, real, self.cache)[:, -1]
        self.positions = self.positions + 1

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with some rows only."""
        import torch

        index = torch.tensor(rows, device=self.real.device)
        self.cache, self.real, self.positions = self.cache.select(index), self.real[index], self.positions[index]
        self.hidden, self.token = self.hidden[index], self.token[index]
        self.sampler.keep(index)

    def join(self, other: _BatchState) -> None:
        """Continue with the rows of another batch as well."""
        import torch
        import torch.nn.functional as F

        for state in (self, other):
            empty = int(state.real.any(0).long().argmax())
            if empty:  # places on the left that only rows had which are over
                state.cache = state.cache.without_first(empty, state.prefix)
                state.real = state.real[:, empty:]
        self.cache = self.cache.joined(other.cache, self.prefix)
        width = max(self.real.shape[1], other.real.shape[1])
        reals = [F.pad(state.real, (width - state.real.shape[1], 0), value=False) for state in (self, other)]
        self.real = torch.cat(reals)
        self.positions = torch.cat((self.positions, other.positions))
        self.hidden, self.token = torch.cat((self.hidden, other.hidden)), torch.cat((self.token, other.token))
        self.sampler.join(other.sampler)


# --- many requests, one engine ---------------------------------------------------------------------


class Ticket:
    """A request that an engine has taken."""

    def __init__(self, row: ActiveRow) -> None:
        self.row = row
        self.updates: deque[Update] = deque()

    @property
    def completion(self) -> Completion | None:
        return self.row.completion


class Engine:
    """Answers requests on one model, as many together as there is room for.

    All methods may be called from any thread; one thread at a time computes.

    Args:
        model: with the adapters that requests name.
        rows, tokens: bounds of a batch; tokens count the places of prompts and longest answers, padding included.
    """

    def __init__(self, model: Model, *, rows: int = 64, tokens: int = 24576) -> None:
        self.model, self.most_rows, self.most_tokens = model, rows, tokens
        self._lock = threading.Lock()
        self._waiting: deque[Ticket] = deque()
        self._running: dict[Any, tuple[DecodingBatch, list[Ticket]]] = {}
        self.grammars = Grammars(model.template, model.head.shape[0])
        self._background = BackgroundWork(self)

    def submit(self, request: Request, *, stream: bool = False) -> Ticket:
        """Take a request; it is answered by further steps.

        Args:
            stream: whether its text is wanted piece by piece.

        Returns:
            A ticket; of a request that can't be answered (no prompt, one that is too long, an adapter that is not
            loaded) with a completion that says why.
        """
        request = with_adapter(request)
        row = ActiveRow(request, TextStream(self.model.template.decode, request.stop) if stream else None)
        ticket = Ticket(row)
        error = self._refusal(request)
        if request.schema is not None and not error:
            constraint = self.grammars.constraint(request.schema)
            row.constraint, error = (None, constraint) if isinstance(constraint, str) else (constraint, "")
        if error:
            row.completion = refused(request, error)
            ticket.updates.append(Update(completion=row.completion))
            return ticket
        room = self.model.context - len(request.ids)
        if request.max_new_tokens > room:
            row.request = replace(request, max_new_tokens=room)
        with self._lock:
            (self._background.waiting if request.gives_way else self._waiting).append(ticket)
        return ticket

    def _refusal(self, request: Request) -> str:
        if not request.ids:
            return "no_prompt: the prompt has no tokens"
        if request.choices:
            return WRITES_FREELY
        if len(request.ids) >= self.model.context:
            return too_long(request.ids, self.model.context)
        try:
            check_adapter(self.model, request.adapter)
        except UserError as error:
            return f"no_adapter: {error.what}"
        return ""

    def cancel(self, ticket: Ticket) -> Completion:
        """End an answer now and return what there is of it."""
        with self._lock:
            if ticket.row.completion is None:
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
                    ticket.row.completion = _completion(self.model, ticket.row, "cancelled")
                if ticket.row.request.gives_way:
                    self._background.drop(ticket)
                for batch, tickets in self._running.values():
                    if ticket in tickets:
                        batch.leave(ticket.row)
                        tickets.remove(ticket)
                ticket.updates.append(Update(ticket.row.take(), ticket.row.completion))
            completion = ticket.row.completion
        assert completion is not None
        return completion

    @property
    def pending(self) -> int:
        """Requests that are waiting or being answered."""
        with self._lock:
            return self._urgent + self._background.pending

    @property
    def urgent(self) -> int:
        """Requests that are waiting or being answered, but those that yield."""
        with self._lock:
            return self._urgent

    @property
    def _urgent(self) -> int:
        return len(self._waiting) + sum(len(tickets) for _, tickets in self._running.values())

    def step(self) -> list[Ticket]:
        """Take waiting requests in, write a token in each row; returns the tickets that have an update.

        Requests that yield have a step where there are no others, and a small share of the time next to them.
        """
        with self._lock:
            touched: list[Ticket] = []
            began = time.perf_counter()
            if self._urgent:
                touched += self._step()
            if self._background.may_step(time.perf_counter() - began):
                touched += self._background.step()
            for ticket in touched:
                ticket.updates.append(Update(ticket.row.take(), ticket.completion))
            return touched

    def _step(self) -> list[Ticket]:
        """A token in each row that yields to no one."""
        touched = self._admit()
        for key, (batch, tickets) in list(self._running.items()):
            if not fits(batch.step):
                del self._running[key]
                touched += self.begin_again(tickets, self._waiting)
                continue
            touched += tickets
            self._running[key] = batch, [ticket for ticket in tickets if ticket.completion is None]
            if not self._running[key][1]:
                del self._running[key]  # its cache goes with it
        return touched

    def begin_again(self, tickets: Sequence[Ticket], waiting: deque[Ticket]) -> list[Ticket]:
        """Requests for which memory ran out wait again, for batches of half the size; returns those that are over.

        A request that does not fit although nothing else is computed gets an error.
        """
        rows = [ticket.row for ticket in tickets]
        self.most_tokens = max(padded_tokens(rows) // 2, 1)
        alone = len(tickets) == 1 and not self._running and not self._background.computing
        if alone:
            error = "out_of_memory: the request does not fit into memory, even alone"
            rows[0].completion = replace(_completion(self.model, rows[0], "error"), error=error)
            return list(tickets)
        for row in rows:
            row.begin_again(self.model.template, self.grammars)
        waiting.extendleft(reversed(tickets))
        return []

    def _admit(self) -> list[Ticket]:
        """Let waiting requests join, in their order, as far as there is room; returns those that can't be answered."""
        new: dict[Any, list[Ticket]] = {}
        while self._waiting:
            ticket = self._waiting[0]
            key = self.lane(ticket.row.request.adapter)
            batch, tickets = self._running.setdefault(key, (self.new_batch(), []))
            rows = [t.row for t in (*new.get(key, ()), ticket)]
            count = len(tickets) + len(rows)
            if count > 1 and (count > self.most_rows or batch.padded_tokens(rows) > self.most_tokens):
                break
            new.setdefault(key, []).append(self._waiting.popleft())
        over: list[Ticket] = []
        for key, joining in new.items():
            batch, tickets = self._running[key]
            if fits(partial(batch.join, [ticket.row for ticket in joining])):
                self._running[key] = batch, tickets + joining
            else:
                del self._running[key], batch
                over += self.begin_again(tickets + joining, self._waiting)
        return over

    def new_batch(self) -> DecodingBatch:
        """An empty batch."""
        return DecodingBatch(self.model)

    def lane(self, adapter: str) -> Any:
        """Requests with the same key can share a batch: those behind the same trained prefix, or none."""
        if not self.model.is_own:
            return None
        from tuneloop.models.adapters import applied_prefix

        with applied(adapter):
            return id(applied_prefix(self.model.net.decoder))  # type: ignore[arg-type]

    def stream(self, request: Request) -> Iterator[Update]:
        """An answer as it is written, the last piece with the completion. Closing the iterator cancels the answer."""
        ticket = self.submit(request, stream=True)
        try:
            while True:
                while ticket.updates:
                    update = ticket.updates.popleft()
                    if update.text or update.completion is not None:
                        yield update
                    if update.completion is not None:
                        return
                self.step()
        finally:
            if ticket.completion is None:
                self.cancel(ticket)


# --- requests that yield ------------------------------------------------------------------------


class BackgroundWork:
    """Requests that are computed in what others leave; their rows stay in memory meanwhile: nothing is read twice.

    Long prompts are read in pieces, rows with the same kind of prefix are written together.

    Args:
        engine: whose model computes.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.waiting: deque[Ticket] = deque()
        self._tickets: list[Ticket] = []
        self._batch = engine.new_batch()
        self._lane: Any = None
        self._reading: tuple[Ticket, Any, int] | None = None  # with the cache, and how many tokens are in it
        self._reads = Pace(32, 512)
        self._credit = self._took = 0.0

    @property
    def pending(self) -> int:
        """Requests that are not over."""
        return len(self.waiting) + len(self._tickets) + (self._reading is not None)

    @property
    def computing(self) -> bool:
        """Whether any of them holds memory."""
        return bool(self._tickets) or self._reading is not None

    def may_step(self, urgent_seconds: float) -> bool:
        """Whether a step may be computed now.

        Args:
            urgent_seconds: that others have just been computed for; 0: there are none.
        """
        if not self.pending:
            self._credit = 0.0
            return False
        self._credit += SHARE * urgent_seconds
        return not self.engine._urgent or self._credit > max(self._took, QUANTUM)

    def drop(self, ticket: Ticket) -> None:
        """End a request now."""
        if ticket in self.waiting:
            self.waiting.remove(ticket)
        if ticket in self._tickets:
            self._tickets.remove(ticket)
        if self._reading is not None and self._reading[0] is ticket:
            self._reading = None
        if ticket.completion is None:
            self._batch.leave(ticket.row)

    def step(self) -> list[Ticket]:
        """Read a piece of a prompt, or write a token in each row; returns the tickets that have an update."""
        began = time.perf_counter()
        touched = self._read() if self._begin() else self._write()
        self._took = time.perf_counter() - began
        self._credit = 0.0
        return touched

    def _begin(self) -> bool:
        """Whether a prompt is to be read now: one that is begun, or of a further request that there is room for."""
        if self._reading is not None:
            return True
        if not self.waiting:
            return False
        ticket, lane = self.waiting[0], self.engine.lane(self.waiting[0].row.request.adapter)
        if self._tickets and (
            lane != self._lane
            or len(self._tickets) >= self.engine.most_rows // 2
            or self._batch.padded_tokens([ticket.row]) > self.engine.most_tokens // 2
        ):
            return False
        if not self._tickets:
            self._batch, self._lane = self.engine.new_batch(), lane  # the memory of earlier rows is freed
        self.waiting.popleft()
        self._reading = ticket, self.engine.model.new_cache(), 0
        return True

    def _read(self) -> list[Ticket]:
        import torch

        assert self._reading is not None
        ticket, cache, read = self._reading
        request, model, piece = ticket.row.request, self.engine.model, self._reads.tokens
        ticket.row.started = ticket.row.started or time.perf_counter()
        if len(request.ids) - read > piece and model.is_own and self._lane == self.engine.lane(BASE):
            began = time.perf_counter()
            part = pad([request.ids[read : read + piece]], read, model.template.pad_id, model.device)
            with torch.inference_mode(), applied([request.adapter]):
                if not fits(partial(model.hidden, part.ids, part.positions, part.mask, cache, part.real_ids)):
                    return self._again([*self._tickets, ticket])
            self._reads.learn(piece, time.perf_counter() - began)
            self._reading = ticket, cache, read + piece
            return []
        self._reading = None
        beginning = Beginning(request.ids[:read], cache) if read else None
        if not fits(partial(self._batch.join, [ticket.row], beginning)):
            return self._again([*self._tickets, ticket])
        if ticket.completion is None:
            self._tickets.append(ticket)
        return [ticket]

    def _again(self, tickets: list[Ticket]) -> list[Ticket]:
        self._batch, self._tickets, self._reading = self.engine.new_batch(), [], None
        return self.engine.begin_again(tickets, self.waiting)

    def _write(self) -> list[Ticket]:
        if not fits(self._batch.step):
            return self._again(self._tickets)
        touched, self._tickets = self._tickets, [ticket for ticket in self._tickets if ticket.completion is None]
        return touched
