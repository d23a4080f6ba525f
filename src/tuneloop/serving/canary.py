"""The proof at the start: each adapter is applied, and answers as it was evaluated.

An engine can load an adapter and not use it, use another one, or scale it wrongly; the answers are then fluent and
wrong. A few rows of the evaluation tell.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuneloop.core.errors import UserError
from tuneloop.core.units import counted, verb
from tuneloop.inference import MOST_LOGPROBS, Request, ServingEngine, complete
from tuneloop.models.adapters import BASE
from tuneloop.records.artifact import NEAR_TIE
from tuneloop.records.completion import Completion

SAME = (
    1e-3  # log probabilities that differ by less come from the same weights; an adapter with any effect moves them more
)
BASE_ROWS = 3  # by which the base is compared with itself next to adapters
MIXED = 0.5  # nats of a token: more than rounding does in 16 bits, and less than an adapter
LEAST = 0.7  # share of the answers that must be those of the evaluation; roundings of 4-bit weights flip near ties


@dataclass(frozen=True)
class CanaryRow:
    """A row whose answer is known."""

    request: Request  # as it was evaluated, with the adapter's hash (or `base`)
    expected: str  # the answer of the evaluation; where the request's limit cuts it, its beginning counts
    expected_ids: tuple[int, ...] = ()  # its tokens, where the evaluation kept them


@dataclass(frozen=True)
class Proof:
    """What the rows have shown of an adapter."""

    adapter: str
    n: int
    same: int  # of `n` answers, those of the evaluation
    ties: int = 0  # others that part from it where both tokens are equally likely

    @property
    def in_words(self) -> str:
        """For a line of a log."""
        ties = f", {counted(self.ties, 'other one')} but for a near tie of two tokens" if self.ties else ""
        rows = f"{self.same} of {counted(self.n, 'test row')} {verb(self.same, 'is', 'are')}"
        return f"{rows} answered as in the evaluation{ties}"


async def prove(engine: ServingEngine, canaries: Sequence[CanaryRow], *, least: float = LEAST) -> list[Proof]:
    """Ask the rows and compare.

    Args:
        least: share of an adapter's answers that must be those of the evaluation, or part from them at a near tie.

    Raises:
        UserError: an adapter changes nothing, or answers other than it did in the evaluation.
    """
    by_adapter: dict[str, list[CanaryRow]] = defaultdict(list)
    for canary in canaries:
        by_adapter[canary.request.named_adapter].append(canary)
    proofs = []
    for adapter, rows in by_adapter.items():
        facts = engine.adapters.get(adapter)
        where = f"{engine.name}, {facts.source if facts else engine.base}"
        answers = await _answers(engine, rows, adapter)
        if reason := next((answer.error for answer in answers if answer.error), ""):
            raise UserError(f"A row can't be answered: {reason}", where=where, next_step="see the engine's log")
        if adapter != BASE and _unchanged(answers, await _answers(engine, rows, BASE)):
            count = f"{counted(len(rows), 'row')} {verb(len(rows), 'gets', 'get')}"
            message = f"The adapter changes nothing: {count} the base model's answers and probabilities"
            step = "check that it was trained on this base, and that the engine applies it"
            raise UserError(message, where=where, next_step=step)
        others = [(row, answer) for row, answer in zip(rows, answers, strict=True) if not is_expected(answer, row)]
        partings = [await parting_of(engine, row, answer) for row, answer in others]
        same, ties = len(rows) - len(others), sum(parting is not None and parting.is_tie for parting in partings)
        if same + ties < least * len(rows):
            row, answer = others[0]
            count = f"{same} of {counted(len(rows), 'answer')} {verb(same, 'is', 'are')} those of the evaluation"
            message = f"{count}; the first other one is {answer.text[:60]!r} instead of {row.expected[:60]!r}"
            step = "check that base, adapter and template belong together, and evaluate what is served"
            raise UserError(message, where=where, next_step=step)
        proofs.append(Proof(adapter, len(rows), same, ties))
    return proofs


async def prove_base(engine: ServingEngine, rows: Sequence[CanaryRow]) -> None:
    """See that the base answers in a batch with adapters as it does alone.

    vLLM's kernels for processors give rows of the base the weights of the last adapter slot, where the batch has rows
    of adapters.

    Raises:
        UserError: it answers otherwise.
    """
    bare = [replace(row.request, choices=(), schema=None, max_new_tokens=4, logprobs=5) for row in rows[:BASE_ROWS]]
    requests = [replace(request, adapter=BASE) for request in bare]
    alone = await asyncio.gather(*(complete(engine, request) for request in requests))
    others = [replace(request, adapter=name) for name in engine.adapters for request in requests]
    mixed = (await asyncio.gather(*(complete(engine, request) for request in [*others, *requests])))[len(others) :]
    for first, other in zip(alone, mixed, strict=True):
        for a, b in zip(first.logprobs or (), other.logprobs or (), strict=False):
            tops = {b.id: b.logprob, **dict(b.top)}
            if abs(a.logprob - tops.get(a.id, -math.inf)) > MIXED:
                step = (
                    "serve the base from a server without adapters, or start vLLM with more --max-loras than adapters"
                )
                raise UserError("The base answers otherwise next to an adapter", where=engine.name, next_step=step)
            if a.id != b.id:
                break


def is_expected(answer: Completion, row: CanaryRow) -> bool:
    """Whether it is the answer of the evaluation, or its beginning where the limit has cut it."""
    expected = row.expected.strip()
    return answer.text == expected or (answer.finish == "length" and expected.startswith(answer.text))


@dataclass(frozen=True)
class Parting:
    """Where a served answer leaves the evaluated one."""

    gap: float  # nats by which the served model finds its own token likelier
    step: float = 0.0  # nats between two neighbouring log probabilities, where 16 bits have rounded them; else 0

    @property
    def is_tie(self) -> bool:
        """Whether rounding explains it: two steps, since each of the tokens may be rounded by one."""
        return self.gap < max(NEAR_TIE, 2.01 * self.step)


async def parting_of(engine: ServingEngine, row: CanaryRow, answer: Completion) -> Parting | None:
    """How much likelier than the evaluated token the served model finds the one that it wrote where the answers part.

    Roundings differ between engines and, in bf16, between batches of different sizes. They decide where two tokens are
    equally likely, and from there on the answers differ. A gap near 0 is such a tie; a large one: another model.

    Args:
        row: whose evaluated answer is another one.
        answer: what was served.

    Returns:
        None where one answer is the beginning of the other, or the tokens are not known.
    """
    pairs = zip(row.expected_ids, answer.token_ids, strict=False)
    at = next((i for i, (first, other) in enumerate(pairs) if first != other), None)
    if at is None:
        return None
    request = row.request
    prompt = request.ids or await engine.render(request.messages, request.tools, adapter=request.named_adapter)
    ids = [*prompt, *answer.token_ids[:at]]
    step = await complete(engine, Request(ids=ids, adapter=request.adapter, max_new_tokens=1, logprobs=MOST_LOGPROBS))
    if not step.logprobs:
        return None
    token = step.logprobs[0]
    logprobs = {token.id: token.logprob, **dict(token.top)}
    most, least = max(logprobs.values()), min(logprobs.values())
    return Parting(most - logprobs.get(row.expected_ids[at], least), rounding_step(list(logprobs.values())))


def rounding_step(logprobs: Sequence[float]) -> float:
    """The largest power of two, of 1/64 nats and more, of which all differences are multiples; 0: there is none.

    An engine whose last product is in bf16 has such steps: of logits from 16 to 32 they are 1/8 nats wide.
    """
    differences = [value - logprobs[0] for value in logprobs[1:]]
    if not any(differences):
        return 0.0
    steps = (2.0**-power for power in range(7))
    return next((step for step in steps if all(abs(d / step - round(d / step)) < 0.01 for d in differences)), 0.0)


async def _answers(engine: ServingEngine, rows: Sequence[CanaryRow], adapter: str) -> list[Completion]:
    """Answers by an adapter, with numbers by which weights can be distinguished."""
    requests = [replace(row.request, adapter=adapter, logprobs=None if row.request.choices else 0) for row in rows]
    return list(await asyncio.gather(*(complete(engine, request) for request in requests)))


def _unchanged(answers: Sequence[Completion], plain: Sequence[Completion]) -> bool:
    for answer, other in zip(answers, plain, strict=True):
        ours, theirs = _numbers(answer), _numbers(other)
        if answer.text != other.text or not ours:  # of an engine that gives no numbers the texts must do
            return False
        if any(abs(a - b) > SAME for a, b in zip(ours, theirs, strict=False)):
            return False
    return True


def _numbers(answer: Completion) -> list[float]:
    if answer.label_scores:
        return list(answer.label_scores.values())
    return [token.logprob for token in answer.logprobs or ()]
