"""The proof at the start: each adapter is applied, and answers as it was evaluated.

An engine can load an adapter and not use it, use another one, or scale it wrongly; the answers are then fluent and
wrong. A few rows of the evaluation tell.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuneloop.core.errors import UserError
from tuneloop.core.units import counted, verb
from tuneloop.inference.answer import ServingEngine, complete, named_adapter
from tuneloop.inference.request import MOST_LOGPROBS, Request
from tuneloop.models.adapters import BASE
from tuneloop.records.artifact import NEAR_TIE
from tuneloop.records.completion import Completion

SAME = 1e-3  # log probabilities that differ by less come from the same weights; an adapter that does anything moves them by more
LEAST = 0.7  # share of the answers that must be those of the evaluation; roundings of 4-bit weights flip near ties


@dataclass(frozen=True)
class Canary:
    """A row whose answer is known.

    Args:
        request: as it was evaluated, with the adapter's hash (or `base`).
        expected: the answer of the evaluation; where the request's limit cuts it, its beginning counts.
        expected_ids: its tokens, where the evaluation kept them.
    """

    request: Request
    expected: str
    expected_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Proof:
    """What the rows have shown of an adapter.

    Args:
        same: of `n` answers, those of the evaluation.
        ties: others that part from it where both tokens are equally likely.
    """

    adapter: str
    n: int
    same: int
    ties: int = 0

    @property
    def in_words(self) -> str:
        """For a line of a log."""
        parts = f", {counted(self.ties, 'other one')} but for a near tie of two tokens" if self.ties else ""
        return f"{self.same} of {counted(self.n, 'test row')} {verb(self.same, 'is', 'are')} answered as in the evaluation{parts}"


async def prove(engine: ServingEngine, canaries: Sequence[Canary], *, least: float = LEAST) -> list[Proof]:
    """Ask the rows and compare.

    Args:
        least: share of an adapter's answers that must be those of the evaluation, or part from them at a near tie.

    Raises:
        UserError: an adapter changes nothing, or answers other than it did in the evaluation.
    """
    by_adapter: dict[str, list[Canary]] = defaultdict(list)
    for canary in canaries:
        by_adapter[named_adapter(canary.request)].append(canary)
    proofs = []
    for adapter, rows in by_adapter.items():
        asked = [_measured(row.request, adapter) for row in rows]
        answers = await asyncio.gather(*(complete(engine, request) for request in asked))
        _refuse_errors(engine, adapter, answers)
        if adapter != BASE:
            plain = await asyncio.gather(*(complete(engine, _measured(row.request, BASE)) for row in rows))
            _refuse_unchanged(engine, adapter, answers, plain)
        others = [(row, answer) for row, answer in zip(rows, answers, strict=True) if not is_expected(answer, row)]
        gaps = [await gap_at_parting(engine, row, answer) for row, answer in others]
        same, ties = len(rows) - len(others), sum(gap is not None and gap < NEAR_TIE for gap in gaps)
        if same + ties < least * len(rows):
            row, answer = others[0]
            raise UserError(
                f"{same} of {counted(len(rows), 'answer')} {verb(same, 'is', 'are')} those of the evaluation; the first other one is "
                f"{answer.text[:60]!r} instead of {row.expected[:60]!r}",
                where=_where(engine, adapter),
                next_step="check that base, adapter and template belong together, and evaluate what is served",
            )
        proofs.append(Proof(adapter, len(rows), same, ties))
    return proofs


def is_expected(answer: Completion, row: Canary) -> bool:
    """Whether it is the answer of the evaluation, or its beginning where the limit has cut it."""
    expected = row.expected.strip()
    return answer.text == expected or (answer.finish == "length" and expected.startswith(answer.text))


async def gap_at_parting(engine: ServingEngine, row: Canary, answer: Completion) -> float | None:
    """How much likelier than the evaluated token the served model finds the one that it wrote where the answers part.

    Roundings differ between engines and, in bf16, between batches of different sizes. They decide where two tokens are equally
    likely, and from there on the answers differ. A gap near 0 is such a tie; a large one says that the model is another.

    Args:
        row: whose evaluated answer is another one.
        answer: what was served.

    Returns:
        The gap in nats; None where one answer is the beginning of the other, or the tokens are not known.
    """
    pairs = zip(row.expected_ids, answer.token_ids, strict=False)
    at = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
    if at is None:
        return None
    asked = row.request
    prompt = asked.ids or await engine.render(asked.messages, asked.tools, adapter=named_adapter(asked))
    ids = [*prompt, *answer.token_ids[:at]]
    step = Request(ids=ids, adapter=asked.adapter, max_new_tokens=1, logprobs=MOST_LOGPROBS)
    found = await complete(engine, step)
    if not found.logprobs:
        return None
    token = found.logprobs[0]
    known = {token.id: token.logprob, **dict(token.top)}
    most, least = max(known.values()), min(known.values())
    return most - known.get(row.expected_ids[at], least)


def _measured(request: Request, adapter: str) -> Request:
    """A request that also tells numbers by which weights can be told apart."""
    return replace(request, adapter=adapter, logprobs=None if request.choices else 0)


def _refuse_errors(engine: ServingEngine, adapter: str, answers: Sequence[Completion]) -> None:
    for answer in answers:
        if answer.error:
            raise UserError(
                f"A row of the evaluation can't be answered: {answer.error}", where=_where(engine, adapter),
                next_step="see the engine's log",
            )  # fmt: skip


def _refuse_unchanged(
    engine: ServingEngine, adapter: str, answers: Sequence[Completion], plain: Sequence[Completion]
) -> None:
    """Refuse an adapter under which no number differs from the base's."""
    for answer, other in zip(answers, plain, strict=True):
        if answer.text != other.text:
            return
        ours, theirs = _numbers(answer), _numbers(other)
        if not ours or any(abs(a - b) > SAME for a, b in zip(ours, theirs, strict=False)):
            return  # an engine that tells no numbers: its texts must do
    raise UserError(
        f"The adapter changes nothing: {counted(len(answers), 'row')} {verb(len(answers), 'gets', 'get')} the base model's answers and probabilities",
        where=_where(engine, adapter),
        next_step="check that it was trained on this base, and that the engine applies it",
    )


def _numbers(answer: Completion) -> list[float]:
    if answer.label_scores:
        return list(answer.label_scores.values())
    return [token.logprob for token in answer.logprobs or ()]


def _where(engine: ServingEngine, adapter: str) -> str:
    facts = engine.adapters.get(adapter)
    return f"{engine.name}, {facts.source if facts else engine.base}"
