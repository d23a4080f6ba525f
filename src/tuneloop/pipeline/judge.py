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
from tuneloop.data.load_eval_file import read_whole
from tuneloop.evaluation.evaluate import ScoredAnswers, sample_rows
from tuneloop.inference.local.target import open_local
from tuneloop.inference.openai.target import Endpoint, EndpointTarget, usage
from tuneloop.inference.request import Request
from tuneloop.inference.requesting import failures
from tuneloop.pipeline.answers import endpoint_line
from tuneloop.records.rows import Message, Row

if TYPE_CHECKING:
    from tuneloop.evaluation.judge import Choose, Judgement, Winner
    from tuneloop.inference.local.target import LocalTarget

TOKENS = 512  # that a judge may write: a reason and a verdict
ROWS = 200  # judged of an evaluation, by default


@dataclass(frozen=True)
class Judge:
    """Who judges, with what prompt, how many rows."""

    model: str  # a local model's name or folder; with `endpoint`, for the record
    endpoint: Endpoint | None = None  # judges instead
    prompt: str = ""  # file in the form of the packaged `judge.yaml`
    votes: str = ""  # folder of a review, whose votes the judge is compared with
    rows: int = ROWS  # at most this many, a seeded sample
    seed: int = 0

    def choose(self) -> Choose:
        """The judge as a function."""
        if self.endpoint is not None:
            return self._ask_endpoint
        target = open_local(self.model)
        target.load()
        return lambda turns, options: verdicts(target, turns, options)

    def _ask_endpoint(self, turns: Sequence[Sequence[Message]], options: Sequence[str]) -> list[str | None]:
        from tuneloop.evaluation.judge import read_verdict

        assert self.endpoint is not None
        target = EndpointTarget(self.endpoint.url, self.endpoint)
        requests = [Request(each, max_new_tokens=TOKENS) for each in turns]
        replies = list(target.complete(requests, task="judging"))
        say(endpoint_line(usage(self.endpoint, replies)))
        for reason, n in failures(replies)[:3]:
            say(f"warn: {counted(n, 'request')} to the judge failed: {reason}")
        return [None if reply.error else read_verdict(reply.text, options) for reply in replies]


LEAD = "Verdict:"  # what a local judge's answer begins with


def verdicts(target: LocalTarget, turns: Sequence[Sequence[Message]], options: Sequence[str]) -> list[str | None]:
    """The option that a local model chooses for each conversation; of long ones the middle is left out."""
    template = target.template
    room = target.context - max(target.label_tree(options, LEAD).lengths) - len(template.encode(LEAD))
    prompts = [template.prompt_ids(list(conversation)) for conversation in turns]
    cut = [ids if len(ids) <= room else ids[:8] + ids[8 - room :] for ids in prompts]
    answers = target.score([Request(ids=ids) for ids in cut], options, lead=LEAD, task="judging")
    return [answer.text for answer in answers]


def judge_evaluations(judge: Judge, evaluations: Mapping[str, ScoredAnswers]) -> Judgement:
    """Judge all evaluations against the first, a single one by the rubric. All verdicts are in `facts["pairs"]`."""
    from tuneloop.evaluation.judge import AnswerPair, AnswerToRate, judge_answers, judge_pairs, load_judge_prompt

    choose, seed = judge.choose(), judge.seed
    first, *others = evaluations
    ids = {row.id for row in sample_rows(evaluations[first].rows, judge.rows, seed=seed)}
    texts = {n: {r.id: a.text for r, a in zip(e.rows, e.answers, strict=True)} for n, e in evaluations.items()}
    rows = [row for row in evaluations[first].rows if row.id in ids]
    if not others:
        items = [AnswerToRate(row.id, conversation_of(row), texts[first][row.id], row.answer) for row in rows]
        return judge_answers(items, choose, load_judge_prompt("rubric", judge.prompt), seed=seed)
    prompt = load_judge_prompt("pairwise", judge.prompt)
    votes = _votes(judge.votes) if judge.votes else {}
    judgements: list[Judgement] = []
    for other in others:
        pairs = []
        for row in rows:
            a, b = texts[first][row.id], texts[other][row.id]
            human = _majority(votes.get(row.id, {}).get(frozenset((a, b)), Counter()), a, b)
            pairs.append(AnswerPair(row.id, conversation_of(row), a, b, row.answer, human))
        judgements.append(judge_pairs(pairs, choose, prompt, names=(first, other), seed=seed))
    words = [word for judgement in judgements for word in judgement.words]
    pairs_facts = [judgement.facts for judgement in judgements]
    prompt_name = judge.prompt or "judge.yaml (packaged)"
    facts = {"model": judge.model, "prompt": prompt_name, "pairs": pairs_facts, "words": words}
    verdicts = [row.model_copy(update={"a": j.facts["a"], "b": j.facts["b"]}) for j in judgements for row in j.rows]
    return replace(judgements[-1], facts=facts, rows=verdicts, words=words)


def check_judge(judge: Judge, file: str) -> list[Judgement]:
    """Hold a judge against what people have said: preferences (chosen, rejected) and thumbs of a file with some."""
    from tuneloop.evaluation.judge import AnswerPair, AnswerToRate, judge_answers, judge_pairs, load_judge_prompt

    rows = read_whole(file, PrepareConfig()).rows
    preferences = _balanced([row for row in rows if row.meta.get("rejected")], judge.rows, judge.seed)
    thumbs = _balanced([row for row in rows if isinstance(row.meta.get("thumb"), bool)], judge.rows, judge.seed)
    if not preferences and not thumbs:
        step = "give preferences (chosen, rejected) or thumbs (rating)"
        raise UserError("No one has judged these rows", where=file, next_step=step)
    choose = judge.choose()
    judgements: list[Judgement] = []
    if preferences:
        pairs = []
        for i, row in enumerate(preferences):
            good, bad = row.answer, str(row.meta["rejected"][-1]["content"])
            human: Winner = "a" if i % 2 else "b"  # so that always naming one side agrees by chance only
            a, b = (good, bad) if human == "a" else (bad, good)
            pairs.append(AnswerPair(row.id, conversation_of(row), a, b, "", human))
        prompt = load_judge_prompt("pairwise", judge.prompt)
        judgements.append(judge_pairs(pairs, choose, prompt, names=("a", "b"), seed=judge.seed))
    if thumbs:
        items = []
        for row in thumbs:
            answer = str(row.messages[-1].get("content") or row.messages[-1].get("tool_calls") or "")
            items.append(AnswerToRate(row.id, conversation_of(row), answer, "", row.meta["thumb"]))
        judgements.append(judge_answers(items, choose, load_judge_prompt("rubric", judge.prompt), seed=judge.seed))
    return judgements


def write_verdicts(folder: Path, judgement: Judgement) -> None:
    """`judge.jsonl`: each verdict, for people to look at."""
    write_jsonl(folder / "judge.jsonl", judgement.rows)


def conversation_of(row: Row) -> str:
    """The turns before an answer as a text; a single one as it is."""
    turns = [turn for turn in row.prompt if turn.get("content") or turn.get("tool_calls")]
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n\n".join(f"{turn['role']}: {turn.get('content') or turn.get('tool_calls')}" for turn in turns)


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
        what = "This review rates single answers"
        raise UserError(what, where=folder, next_step="give a review of pairs with --votes")
    by_item, _ = votes_by_item(review)
    by_row: dict[str, dict[frozenset[str], Counter[str]]] = {}
    for item in review.items:
        texts = dict(zip(item.systems, item.answers, strict=True))
        votes = Counter(texts.get(vote.winner or "", "") for vote in by_item.get(item.id, ()))
        by_row.setdefault(item.row, {})[frozenset(item.answers)] = votes
    return by_row


def _majority(votes: Counter[str], a: str, b: str) -> Winner | None:
    """What most people said of two answers; None: no one was shown them."""
    if not votes:
        return None
    if votes[a] > max(votes[b], votes[""]):
        return "a"
    return "b" if votes[b] > max(votes[a], votes[""]) else "tie"
