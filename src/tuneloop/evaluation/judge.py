"""A model as judge: pairs in both orders, ratings by a rubric, and how far the judge itself can be trusted.

A judge prefers places, lengths and its own style (Zheng et al. 2023, arXiv 2306.05685): these biases and its agreement
with people are measured, and a verdict that depends on the order of the answers is a tie.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, read_yaml
from tuneloop.core.lazy import np
from tuneloop.core.stats import intervals as u
from tuneloop.core.stats.intervals import auroc, mean_statistics
from tuneloop.core.stats.tests import p_words
from tuneloop.core.ui import say
from tuneloop.core.units import counted, verb
from tuneloop.data import PrepareConfig, read_whole
from tuneloop.evaluation.evaluate import ScoredAnswers, sample_rows
from tuneloop.evaluation.review.items import load_review
from tuneloop.evaluation.review.results import votes_by_item
from tuneloop.inference import Endpoint, Request, endpoint_line, open_target
from tuneloop.inference.local import open_local
from tuneloop.records.completion import failures
from tuneloop.records.evaluation import Estimate
from tuneloop.records.review import JudgedRow
from tuneloop.records.rows import Message, Row

if TYPE_CHECKING:
    from tuneloop.inference.local import LocalTarget

Winner = Literal["a", "b", "tie"]
PAIR_OPTIONS = ("A", "B", "tie")
SCORES = ("1", "2", "3", "4", "5")
GOOD = 4  # the score from which an answer counts as good, against a thumb
TOKENS = 512  # that a judge may write: a reason and a verdict
ROWS = 200  # judged of an evaluation, by default
LONGEST = 12_000  # characters of an answer that a judge is shown
_VERDICT = re.compile(r"verdict\W{0,6}(A\b|B\b|tie\b|[1-5]\b)", re.IGNORECASE)
_PLACE = re.compile(r"\{(\w+)\}")
# What an answer says to its judge: a verdict, or an order to forget the task.
_TO_A_JUDGE = re.compile(
    r"verdict\W{0,6}(?:A\b|B\b|tie\b|[1-5]\b)"
    r"|\b(?:ignore|disregard|forget|override)\b[^.\n]{0,40}\b(?:instructions?|prompts?|rubric|above|previous)\b"
    r"|\b(?:answer|response) [AB] is (?:clearly |much |far )?(?:better|worse|the best)\b"
    r"|\b(?:judge|grader|evaluator)s?\b[^.\n]{0,40}\b(?:must|should|please|choose|prefer|pick|rate)\b",
    re.IGNORECASE,
)

# Conversations and the options to choose from -> the option chosen for each, None where the judge named none.
Choose = Callable[[Sequence[Sequence[Message]], Sequence[str]], list[str | None]]


@dataclass(frozen=True)
class JudgePrompt:
    """Templates of the system and the user turn."""

    system: str
    user: str

    def turns(self, **values: str) -> list[Message]:
        """The conversation that a judge is to continue; lines that look like its headings are marked as quoted."""
        headings = {line.strip().casefold() for line in self.user.splitlines() if line.strip().startswith("[")}

        def quoted(text: str) -> str:
            lines = text[:LONGEST].split("\n")
            return "\n".join(f"> {line}" if line.strip().casefold() in headings else line for line in lines)

        text = _PLACE.sub(lambda m: quoted(values[m[1]]) if m[1] in values else m[0], self.user)
        return [{"role": "system", "content": self.system}, {"role": "user", "content": text}]


def speaks_to_the_judge(text: str) -> bool:
    """Whether an answer tries to say how it is to be judged; then no model's verdict on it counts."""
    return bool(_TO_A_JUDGE.search(text[:LONGEST]))


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to a request; `human` is what people prefer, where that is known."""

    id: str
    conversation: str
    a: str
    b: str
    reference: str = ""
    human: Winner | None = None


@dataclass(frozen=True)
class AnswerToRate:
    """One answer to a request; `human`: whether people liked it, where that is known."""

    id: str
    conversation: str
    answer: str
    reference: str = ""
    human: bool | None = None


@dataclass(frozen=True)
class Judgement:
    """What a judge said: the part `judge` of `eval.json`, a record for each pair or answer, and sentences."""

    facts: dict[str, Any]
    rows: list[JudgedRow] = field(repr=False)
    words: list[str] = field(default_factory=list)


def load_judge_prompt(kind: Literal["pairwise", "rubric"], file: str = "") -> JudgePrompt:
    """The packaged prompt, or one of a file in the same form. Raises UserError: the file lacks a template, or the
    template leaves out what is to be judged."""
    path = Path(file) if file else Path(__file__).with_name("judge.yaml")
    part = read_yaml(path, "judge's prompt").get(kind)
    if not isinstance(part, Mapping) or not all(isinstance(part.get(key), str) for key in ("system", "user")):
        message = f"A judge's prompt needs {kind} with system and user"
        raise UserError(message, where=str(path), next_step="copy the packaged judge.yaml")
    needed = ("{first}", "{second}") if kind == "pairwise" else ("{answer}",)
    if missing := [placeholder for placeholder in needed if placeholder not in part["user"]]:
        message, where = f"The judge's prompt leaves out {missing[0]}", f"{path}: {kind}.user"
        raise UserError(message, where=where, next_step="put it where it belongs")
    return JudgePrompt(part["system"], part["user"])


def read_verdict(text: str, options: Sequence[str]) -> str | None:
    """The option that a judge's answer ends with; None where it names none."""
    by_fold = {option.casefold(): option for option in options}
    verdicts = [by_fold[m.casefold()] for m in _VERDICT.findall(text) if m.casefold() in by_fold]
    if verdicts:
        return verdicts[-1]
    return by_fold.get(text.strip().strip(".*[]\"'()").casefold())


def judge_pairs(
    pairs: Sequence[AnswerPair],
    choose: Choose,
    prompt: JudgePrompt,
    *,
    names: tuple[str, str] = ("a", "b"),
    seed: int = 0,
) -> Judgement:
    """Judge each pair in both orders. A pair is won only when both orders name the same answer; equal answers tie
    without it; a pair with an answer of the judge that names no verdict doesn't count, nor one in which an answer
    speaks to the judge. `names`: of the systems a and b; `seed`: of the resamples."""
    different = [pair for pair in pairs if pair.a.strip() != pair.b.strip()]
    spoken = {pair.id for pair in different if speaks_to_the_judge(pair.a) or speaks_to_the_judge(pair.b)}
    judged = [pair for pair in different if pair.id not in spoken]
    turns = []
    for pair in judged:
        shared = {"conversation": pair.conversation, "reference": pair.reference or "(none)"}
        turns += [prompt.turns(first=a, second=b, **shared) for a, b in ((pair.a, pair.b), (pair.b, pair.a))]
    replies = choose(turns, PAIR_OPTIONS) if turns else []
    sides = {pair.id: (replies[2 * i], replies[2 * i + 1]) for i, pair in enumerate(judged)}
    winners = {pair.id: None if pair.id in spoken else _winner(sides.get(pair.id, ("tie", "tie"))) for pair in pairs}
    scored = [w for w in winners.values() if w is not None]
    won = {side: scored.count(side) for side in ("a", "b", "tie")}
    facts: dict[str, Any] = {"kind": "pairwise", "a": names[0], "b": names[1], "n": len(scored), "wins": won}
    if scored:
        preferred = _mean([{"a": 0.0, "b": 1.0, "tie": 0.5}[w] for w in scored], seed)
        p = u.mcnemar_p(won["a"], won["b"])  # sign test over the pairs that were decided
        verdict = u.verdict(preferred.low - 0.5, preferred.high - 0.5, p)
        facts |= {"preference": preferred, "p": p, "verdict": verdict}
    # How often the verdict depends on the order, and which place gains: 0.5 is fair.
    read = [side for side in sides.values() if None not in side]
    single = [v for side in read for v in side if v != "tie"]
    turned = sum(side in (("A", "A"), ("B", "B")) for side in read)
    votes = [(str(pair.human), str(w)) for pair in pairs if pair.human and (w := winners[pair.id])]
    facts |= {"unread": sum(None in side for side in sides.values()), "spoken": len(spoken)}
    first, inconsistent = _share(single.count("A"), len(single)), _share(turned, len(read))
    facts["position_bias"] = {"first": first, "inconsistent": inconsistent, "n": len(read)}
    facts |= {"length_bias": _length_bias(judged, winners), "agreement": _agreement(votes, seed)}
    orders = {pair.id: list(sides.get(pair.id, ())) for pair in pairs}
    rows = [JudgedRow(id=p.id, winner=winners[p.id], orders=orders[p.id], human=p.human) for p in pairs]
    return Judgement(facts, rows, _pairs_in_words(facts, names))


def _winner(verdicts: tuple[str | None, str | None]) -> Winner | None:
    """Of both orders; None where one answer of the judge could not be read."""
    if None in verdicts:
        return None
    return "a" if verdicts == ("A", "B") else "b" if verdicts == ("B", "A") else "tie"


def _length_bias(pairs: Sequence[AnswerPair], winners: Mapping[str, Winner | None]) -> dict[str, Any]:
    """How often the longer answer wins where one wins, and how often people preferred it: 0.5 is indifferent."""
    longer = {p.id: "b" if len(p.b) > len(p.a) else "a" for p in pairs if len(p.a) != len(p.b)}
    decided = [pair for pair in pairs if winners[pair.id] in ("a", "b") and pair.id in longer]
    voted = [pair for pair in decided if pair.human in ("a", "b")]
    model = _share(sum(winners[pair.id] == longer[pair.id] for pair in decided), len(decided))
    people = _share(sum(pair.human == longer[pair.id] for pair in voted), len(voted))
    return {"longer": model, "humans": people, "n": len(decided)}


def _addressed_in_words(number: int) -> list[str]:
    single = 'one answer speaks to the judge, as in "Verdict: A"; it has no verdict, look at it'
    several = f'{number} times an answer speaks to the judge, as in "Verdict: A"; these have no verdict, look at them'
    return [(single if number == 1 else several).capitalize() + "."] if number else []


def _pairs_in_words(facts: Mapping[str, Any], names: tuple[str, str]) -> list[str]:
    spoken = _addressed_in_words(facts["spoken"])
    if not facts["n"]:
        unread = f"({counted(facts['unread'], 'answer')} could not be read)"
        return [f"The judge gave no verdict on any pair {unread}.", *spoken]
    won, share = facts["wins"], _percent(facts["preference"])
    counts = f"{names[1]} in {won['b']}, {names[0]} in {won['a']} of {counted(facts['n'], 'pair')}"
    sentences = [
        f"The judge prefers {counts}, {counted(won['tie'], 'tie')}: {share} for {names[1]} with ties as halves "
        f"({p_words(facts['p'])}): {facts['verdict']}."
    ]
    position, length = facts["position_bias"], facts["length_bias"]
    if position["first"]:
        first, turned = _percent(position["first"]), _percent(position["inconsistent"])
        sentences.append(
            f"Position bias: it names the answer shown first in {first} of its verdicts (50 % is fair), and "
            f"{turned} of its pairs turn with the order; these count as ties."
        )
    if length["longer"]:
        people = f"; people, on the same pairs, in {_percent(length['humans'])}" if length["humans"] else ""
        share = _percent(length["longer"])
        sentences.append(f"Length bias: the longer answer wins in {share} of {length['n']} decided pairs{people}.")
    if n := facts["unread"]:
        lacks = f"{counted(n, 'pair')} {verb(n, 'has', 'have')} an answer that names no verdict"
        sentences.append(f"{lacks}; {verb(n, 'it does', 'they do')} not count.")
    return [*sentences, *spoken, _agreement_in_words(facts["agreement"])]


def judge_answers(items: Sequence[AnswerToRate], choose: Choose, prompt: JudgePrompt, *, seed: int = 0) -> Judgement:
    """Rate answers from 1 to 5 by the rubric; 4 and more count as good when compared with people's thumbs. One that
    speaks to the judge gets no rating."""
    judged = [i for i in items if not speaks_to_the_judge(i.answer)]
    parts = [{"conversation": i.conversation, "reference": i.reference or "(none)", "answer": i.answer} for i in judged]
    turns = [prompt.turns(**part) for part in parts]
    replies = dict(zip([id(i) for i in judged], choose(turns, SCORES) if turns else [], strict=True))
    scores = [None if (reply := replies.get(id(i))) is None else int(reply) for i in items]
    read = [(item, score) for item, score in zip(items, scores, strict=True) if score is not None]
    thumbs = {True: "up", False: "down"}
    votes = [(thumbs[item.human], thumbs[score >= GOOD]) for item, score in read if item.human is not None]
    liked = [float(score) for item, score in read if item.human]
    disliked = [float(score) for item, score in read if item.human is False]
    lengths, rank = [len(item.answer) for item, _ in read], None
    if len(set(lengths)) > 1 and len({score for _, score in read}) > 1:
        from scipy.stats import spearmanr

        rank = float(spearmanr(lengths, [float(score) for _, score in read]).statistic)
    facts: dict[str, Any] = {
        "kind": "rubric", "n": len(read), "unread": len(judged) - len(read), "spoken": len(items) - len(judged),
        "score": _mean([float(s) for _, s in read], seed) if read else None,
        "scores": {s: sum(str(score) == s for _, score in read) for s in SCORES},
        "length_bias": {"spearman": rank, "n": len(read)}, "agreement": _agreement(votes, seed),
        "auc": auroc(liked, disliked) if liked and disliked else None,
    }  # fmt: skip
    rows = [JudgedRow(id=i.id, score=s, human=i.human) for i, s in zip(items, scores, strict=True)]
    return Judgement(facts, rows, _ratings_in_words(facts))


def _ratings_in_words(facts: Mapping[str, Any]) -> list[str]:
    spoken = _addressed_in_words(facts["spoken"])
    if not facts["n"]:
        return [f"The judge rated nothing ({counted(facts['unread'], 'answer')} could not be read).", *spoken]
    mean, rank = facts["score"], facts["length_bias"]["spearman"]
    bounds = f"(95 % interval {mean.low:.2f} to {mean.high:.2f})"
    sentences = [f"Mean rating of {counted(facts['n'], 'answer')}: {mean.value:.2f} of 5 {bounds}."]
    if rank is not None:
        sentences.append(f"Length bias: Spearman's correlation of rating and length is {rank:+.2f}.")
    if facts["auc"] is not None:
        share = f"{100 * facts['auc']:.0f} % of cases (50 %: chance)"
        sentences.append(f"An answer that people liked is rated above one that they didn't in {share}.")
    if n := facts["unread"]:
        lacks = f"{counted(n, 'answer')} of the judge {verb(n, 'names', 'name')} no rating"
        sentences.append(f"{lacks}; {verb(n, 'it does', 'they do')} not count.")
    return [*sentences, *spoken, _agreement_in_words(facts["agreement"])]


def _agreement(votes: Sequence[tuple[str, str]], seed: int) -> dict[str, Any]:
    n = len(votes)
    if not n:
        return {"n": 0, "kappa": None, "same": None}
    names = sorted({vote for pair in votes for vote in pair})
    codes = np.array([[names.index(human), names.index(judge)] for human, judge in votes])
    table = np.zeros((n, len(names) ** 2))
    table[np.arange(n), codes[:, 0] * len(names) + codes[:, 1]] = 1.0
    draws = np.concatenate([_kappas(weights @ table, len(names)) for weights in u.resample_weights(n, 2000, seed)])
    value = float(_kappas(table.sum(0, keepdims=True), len(names))[0])
    defined = draws[~np.isnan(draws)]
    bounds = u.bootstrap_interval(value, defined) if len(defined) and not math.isnan(value) else (math.nan, math.nan)
    same = int((codes[:, 0] == codes[:, 1]).sum())
    return {"n": n, "kappa": Estimate(value, *bounds), "same": _share(same, n)}


def _kappas(sums: Any, k: int) -> Any:
    """Cohen's kappa of tables of counts (R, k * k): (observed - chance) / (1 - chance). Source: Cohen 1960."""
    table = sums.reshape(-1, k, k)
    n = table.sum((1, 2))
    observed = np.trace(table, axis1=1, axis2=2) / n
    chance = (table.sum(2) * table.sum(1)).sum(1) / n**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance < 1, (observed - chance) / (1 - chance), np.nan)


def _agreement_in_words(agreement: Mapping[str, Any]) -> str:
    if not agreement["n"]:
        return "It is not known whether people would agree: there are no human votes on these rows (--votes)."
    kappa = agreement["kappa"]
    agrees = f"With people it agrees on {_percent(agreement['same'])} of {counted(agreement['n'], 'vote')}"
    if math.isnan(kappa.value):
        return f"{agrees}; kappa is not defined, all votes are equal."
    trust = "" if kappa.low > 0 else " That is not more than chance can do: this judge proves nothing here."
    bounds = f"{kappa.low:.2f} to {kappa.high:.2f}; 0 is chance, 1 perfect"
    return f"{agrees}: Cohen's kappa {kappa.value:.2f} ({bounds}).{trust}"


def _share(hits: int, n: int) -> Estimate | None:
    return Estimate(hits / n, *u.wilson_interval(hits, n)) if n else None


def _mean(values: Sequence[float], seed: int) -> Estimate:
    family = mean_statistics({"mean": list(values)})
    draws = u.bootstrap([family], len(values), resamples=2000, seed=seed)["mean"]
    value = sum(values) / len(values)
    return Estimate(value, *u.bootstrap_interval(value, draws))


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.0f} % ({100 * share.low:.0f} to {100 * share.high:.0f})"


# --- a judge at work ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Judge:
    """Who judges, with what prompt, how many rows."""

    model: str  # a local model's name or folder; with `endpoint`, for the record
    endpoint: Endpoint | None = None  # judges instead
    prompt: str = ""  # file in the form of the packaged `judge.yaml`
    votes: str = ""  # folder of a review, whose votes the judge is compared with
    rows: int = ROWS  # at most this many, a seeded sample
    seed: int = 0

    @cached_property
    def choose(self) -> Choose:
        """The judge as a function; a local model is loaded."""
        if self.endpoint is not None:
            return self._ask_endpoint
        target = open_local(self.model)
        target.load()
        return lambda turns, options: verdicts(target, turns, options)

    @property
    def identity(self) -> str:
        """Hash of what its ratings depend on, but for what it rates."""
        return content_hash([self.model, load_judge_prompt("rubric", self.prompt)])

    def _ask_endpoint(self, turns: Sequence[Sequence[Message]], options: Sequence[str]) -> list[str | None]:
        endpoint = self.endpoint
        assert endpoint is not None
        target = open_target(endpoint.url, endpoint=lambda _: endpoint)
        requests = [Request(conversation, max_new_tokens=TOKENS) for conversation in turns]
        replies = list(target.complete(requests, task="judging"))
        say(endpoint_line(endpoint.usage(replies)))
        for reason, n in failures(replies)[:3]:
            say(f"warn: {counted(n, 'request')} to the judge failed: {reason}")
        return [None if reply.error else read_verdict(reply.text, options) for reply in replies]

    def prefer(self, pairs: Sequence[AnswerPair], names: tuple[str, str]) -> Judgement:
        """Which answer of each pair is better; `names`: of the two systems."""
        prompt = load_judge_prompt("pairwise", self.prompt)
        return judge_pairs(pairs, self.choose, prompt, names=names, seed=self.seed)

    def rate(self, answers: Sequence[tuple[Row, str]]) -> Judgement:
        """How good answers to rows are, next to the rows' own ones."""
        items = [AnswerToRate(row.id, conversation_of(row), text, row.answer) for row, text in answers]
        return judge_answers(items, self.choose, load_judge_prompt("rubric", self.prompt), seed=self.seed)

    def compare(self, evaluations: Mapping[str, ScoredAnswers]) -> Judgement:
        """All evaluations against the first, a single one by the rubric. All verdicts are in `facts["pairs"]`."""
        first, *others = evaluations
        ids = {row.id for row in sample_rows(evaluations[first].rows, self.rows, seed=self.seed)}
        texts = {n: {r.id: a.text for r, a in zip(e.rows, e.answers, strict=True)} for n, e in evaluations.items()}
        rows = [row for row in evaluations[first].rows if row.id in ids]
        if not others:
            return self.rate([(row, texts[first][row.id]) for row in rows])
        votes = _votes(self.votes) if self.votes else {}
        judgements: list[Judgement] = []
        for other in others:
            pairs = []
            for row in rows:
                a, b = texts[first][row.id], texts[other][row.id]
                human = _majority(votes.get(row.id, {}).get(frozenset((a, b)), Counter()), a, b)
                pairs.append(AnswerPair(row.id, conversation_of(row), a, b, row.answer, human))
            judgements.append(self.prefer(pairs, (first, other)))
        sentences = [sentence for judgement in judgements for sentence in judgement.words]
        prompt_name = self.prompt or "judge.yaml (packaged)"
        pairs_facts = [judgement.facts for judgement in judgements]
        facts = {"model": self.model, "prompt": prompt_name, "pairs": pairs_facts, "words": sentences}
        verdicts = [r.model_copy(update={"a": j.facts["a"], "b": j.facts["b"]}) for j in judgements for r in j.rows]
        return Judgement(facts, verdicts, sentences)

    def check(self, file: str) -> list[Judgement]:
        """It against what people have said: preferences (chosen, rejected) and thumbs of a file with some."""
        rows = read_whole(file, PrepareConfig()).rows
        preferences = _balanced([row for row in rows if row.meta.get("rejected")], self.rows, self.seed)
        thumbs = _balanced([row for row in rows if isinstance(row.meta.get("thumb"), bool)], self.rows, self.seed)
        if not preferences and not thumbs:
            step = "give preferences (chosen, rejected) or thumbs (rating)"
            raise UserError("No one has judged these rows", where=file, next_step=step)
        judgements: list[Judgement] = []
        if preferences:
            pairs = []
            for i, row in enumerate(preferences):
                good, bad = row.answer, str(row.meta["rejected"][-1]["content"])
                human: Winner = "a" if i % 2 else "b"  # so that always naming one side agrees by chance only
                a, b = (good, bad) if human == "a" else (bad, good)
                pairs.append(AnswerPair(row.id, conversation_of(row), a, b, "", human))
            judgements.append(self.prefer(pairs, ("a", "b")))
        if thumbs:
            items = []
            for row in thumbs:
                answer = str(row.messages[-1].get("content") or row.messages[-1].get("tool_calls") or "")
                items.append(AnswerToRate(row.id, conversation_of(row), answer, "", row.meta["thumb"]))
            rubric = load_judge_prompt("rubric", self.prompt)
            judgements.append(judge_answers(items, self.choose, rubric, seed=self.seed))
        return judgements


LEAD = "Verdict:"  # what a local judge's answer begins with


def verdicts(target: LocalTarget, turns: Sequence[Sequence[Message]], options: Sequence[str]) -> list[str | None]:
    """The option that a local model chooses for each conversation; of long ones the middle is left out."""
    template = target.template
    room = target.context - max(target.label_tree(options, LEAD).lengths) - len(template.encode(LEAD))
    prompts = [template.prompt_ids(list(conversation)) for conversation in turns]
    cut = [ids if len(ids) <= room else ids[:8] + ids[8 - room :] for ids in prompts]
    answers = target.score([Request(ids=ids) for ids in cut], options, lead=LEAD, task="judging")
    return [answer.text for answer in answers]


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
        quota = min(most // len(groups), *(len(group) for group in groups.values()))
        return [row for group in groups.values() for row in rng.sample(group, quota)]
    return rng.sample(list(rows), min(most, len(rows)))


def _votes(folder: str) -> dict[str, dict[frozenset[str], Counter[str]]]:
    """Row -> the two answers -> votes for each of them ("" for ties), from a review in pairs."""
    review = load_review(folder)
    if review.mode != "pairwise":
        message = "This review rates single answers"
        raise UserError(message, where=folder, next_step="give a review of pairs with --votes")
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
