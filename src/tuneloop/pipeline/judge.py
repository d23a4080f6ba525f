"""A judge at work: a local model or an endpoint over evaluations, and against what people have said."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_jsonl
from tuneloop.core.ui import say
from tuneloop.core.units import counted
from tuneloop.data.config import PrepareConfig
from tuneloop.evaluation.evaluate import ScoredAnswers, sample_rows
from tuneloop.inference.client import Endpoint, EndpointTarget, failures, usage
from tuneloop.inference.local.target import open_local
from tuneloop.inference.request import Request
from tuneloop.records.rows import Message, Row

if TYPE_CHECKING:
    from tuneloop.evaluation.judge import Choose, Judgement, Winner
    from tuneloop.inference.local.target import LocalTarget

TOKENS = 512  # that a judge may write: a reason and a verdict
ROWS = 200  # judged of an evaluation, by default


@dataclass(frozen=True)
class Judge:
    """Who judges, with what prompt, how many rows.

    Args:
        model: a local model's name or folder; with `endpoint`, for the record.
        endpoint: asked instead.
        prompt: file in the form of the packaged `judge.yaml`.
        votes: folder of a review, whose votes the judge is compared with.
        rows: at most this many, a seeded sample.
    """

    model: str
    endpoint: Endpoint | None = None
    prompt: str = ""
    votes: str = ""
    rows: int = ROWS
    seed: int = 0

    def choose(self) -> Choose:
        """The judge as a function."""
        if self.endpoint is not None:
            return lambda turns, options: self._ask_endpoint(turns, options)
        target = open_local(self.model)
        target.load()
        return lambda turns, options: verdicts(target, turns, options)

    def _ask_endpoint(self, turns: Sequence[Sequence[Message]], options: Sequence[str]) -> list[str | None]:
        from tuneloop.evaluation.judge import read_verdict
        from tuneloop.pipeline.evaluations import endpoint_line

        assert self.endpoint is not None
        target = EndpointTarget(self.endpoint.url, self.endpoint)
        asked = [Request(each, max_new_tokens=TOKENS) for each in turns]
        replies = list(target.complete(asked, task="judging"))
        say(endpoint_line(usage(self.endpoint, replies)))
        for reason, n in failures(replies)[:3]:
            say(f"warn: {counted(n, 'request')} to the judge failed: {reason}")
        return [None if reply.error else read_verdict(reply.text, options) for reply in replies]


LEAD = "Verdict:"  # what a local judge's answer begins with


def verdicts(
    target: LocalTarget, conversations: Sequence[Sequence[Message]], options: Sequence[str]
) -> list[str | None]:
    """The option that a local model gives as its verdict on each conversation, by choice scoring; of long ones the middle is left out."""
    template = target.template
    room = target.context - max(target.label_tree(options, LEAD).lengths) - len(template.encode(LEAD))
    prompts = [template.prompt_ids(list(turns)) for turns in conversations]
    cut = [ids if len(ids) <= room else ids[:8] + ids[8 - room :] for ids in prompts]
    answers = target.score([Request(ids=ids) for ids in cut], options, lead=LEAD, task="judging")
    return [answer.text for answer in answers]


def judge_evaluations(judge: Judge, evaluations: Mapping[str, ScoredAnswers]) -> Judgement:
    """Judge each other evaluation against the first; the last one's verdicts are returned, all are in `facts["pairs"]`.

    With one evaluation its answers are rated by the rubric.
    """
    from tuneloop.evaluation.judge import AnswerPair, AnswerToRate, judge_answers, judge_pairs, load_judge_prompt

    choose = judge.choose()
    first, *others = evaluations
    kept = {row.id for row in sample_rows(evaluations[first].rows, judge.rows, seed=judge.seed)}
    by_row = {
        name: {row.id: answer.text for row, answer in zip(e.rows, e.answers, strict=True)}
        for name, e in evaluations.items()
    }
    rows = [row for row in evaluations[first].rows if row.id in kept]
    if not others:
        items = [AnswerToRate(row.id, conversation_of(row), by_row[first][row.id], row.answer) for row in rows]
        return judge_answers(items, choose, load_judge_prompt("rubric", judge.prompt), seed=judge.seed)
    prompt = load_judge_prompt("pairwise", judge.prompt)
    votes = _votes(judge.votes) if judge.votes else {}
    found: list[Judgement] = []
    for other in others:
        pairs = []
        for row in rows:
            a, b = by_row[first][row.id], by_row[other][row.id]
            pairs.append(
                AnswerPair(row.id, conversation_of(row), a, b, row.answer, _voted(votes.get(row.id, {}), a, b))
            )
        found.append(judge_pairs(pairs, choose, prompt, names=(first, other), seed=judge.seed))
    facts = {"model": judge.model, "prompt": judge.prompt or "judge.yaml (packaged)", "pairs": [j.facts for j in found]}
    words = [word for judgement in found for word in judgement.words]
    every = [row.model_copy(update={"a": j.facts["a"], "b": j.facts["b"]}) for j in found for row in j.rows]
    return replace(found[-1], facts={**facts, "words": words}, rows=every, words=words)


def check_judge(judge: Judge, file: str) -> list[Judgement]:
    """Hold a judge against what people have said: preferences (chosen, rejected) and thumbs of a file.

    Raises:
        UserError: the file holds neither.
    """
    from tuneloop.data.load_eval_file import read_whole
    from tuneloop.evaluation.judge import AnswerPair, AnswerToRate, judge_answers, judge_pairs, load_judge_prompt

    rows = read_whole(file, PrepareConfig()).rows
    preferences = _balanced([row for row in rows if row.meta.get("rejected")], judge.rows, judge.seed)
    thumbs = _balanced([row for row in rows if isinstance(row.meta.get("thumb"), bool)], judge.rows, judge.seed)
    if not preferences and not thumbs:
        raise UserError(
            "Nobody has judged these rows",
            where=file,
            next_step="give preferences (chosen, rejected) or thumbs (rating)",
        )
    choose = judge.choose()
    found: list[Judgement] = []
    if preferences:
        pairs = []
        for i, row in enumerate(preferences):
            good, bad = row.answer, str(row.meta["rejected"][-1]["content"])
            human: Winner = "a" if i % 2 else "b"  # so that always naming one side agrees by chance only
            a, b = (good, bad) if human == "a" else (bad, good)
            pairs.append(AnswerPair(row.id, conversation_of(row), a, b, "", human))
        prompt = load_judge_prompt("pairwise", judge.prompt)
        found.append(judge_pairs(pairs, choose, prompt, names=("a", "b"), seed=judge.seed))
    if thumbs:
        items = [AnswerToRate(row.id, conversation_of(row), _said(row), "", row.meta["thumb"]) for row in thumbs]
        found.append(judge_answers(items, choose, load_judge_prompt("rubric", judge.prompt), seed=judge.seed))
    return found


def write_verdicts(folder: Path, judgement: Judgement) -> None:
    """`judge.jsonl`: each verdict, for people to look at."""
    write_jsonl(folder / "judge.jsonl", judgement.rows)


def conversation_of(row: Row) -> str:
    """The turns before an answer as a text; one user turn stands by itself."""
    turns = [turn for turn in row.prompt if turn.get("content") or turn.get("tool_calls")]
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n\n".join(f"{turn['role']}: {turn.get('content') or turn.get('tool_calls')}" for turn in turns)


def _said(row: Row) -> str:
    last: Mapping[str, Any] = row.messages[-1]
    return str(last.get("content") or last.get("tool_calls") or "")


def _balanced(rows: Sequence[Row], most: int, seed: int) -> list[Row]:
    """A sample; of thumbs as many up as down, for kappa on nine likes of ten says little."""
    rng = random.Random(seed)
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.meta.get("thumb"), []).append(row)
    if len(groups) > 1:
        each = min(most // len(groups), *(len(group) for group in groups.values()))
        return [row for group in groups.values() for row in rng.sample(group, each)]
    return rng.sample(list(rows), min(most, len(rows)))


def _votes(folder: str) -> dict[str, dict[frozenset[str], Counter[str]]]:
    """Row -> the two answers -> votes for each of them ("" for ties), from a review in pairs."""
    from tuneloop.evaluation.review.items import load_review
    from tuneloop.evaluation.review.results import votes_by_item

    review = load_review(folder)
    if review.mode != "pairwise":
        raise UserError(
            "This review rates single answers", where=folder, next_step="give a review of pairs with --votes"
        )
    given, _ = votes_by_item(review)
    found: dict[str, dict[frozenset[str], Counter[str]]] = {}
    for item in review.items:
        texts = dict(zip(item.systems, item.answers, strict=True))
        votes = Counter(texts.get(vote.winner or "", "") for vote in given.get(item.id, ()))
        found.setdefault(item.row, {})[frozenset(item.answers)] = votes
    return found


def _voted(votes: Mapping[frozenset[str], Counter[str]], a: str, b: str) -> Winner | None:
    """What most people said of two answers."""
    given = votes.get(frozenset((a, b)))
    if not given:
        return None
    return "a" if given[a] > max(given[b], given[""]) else "b" if given[b] > max(given[a], given[""]) else "tie"
