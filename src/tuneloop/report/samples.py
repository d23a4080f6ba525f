"""Samples: rows chosen to tell something first, for the terminal and the page, and all of them for the page's search.

The first rows of a page are HTML and need no script; the others are JSON, which `samples.js` shows as text, never as
markup."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tuneloop.core.errors import UserError
from tuneloop.core.patterns import Pattern, compile_pattern
from tuneloop.core.units import counted
from tuneloop.core.written import clean, count, number, section
from tuneloop.evaluation.metrics import differing_fields, metric_of, metric_text, title_of
from tuneloop.records.evaluation import EvaluationManifest, Sample
from tuneloop.report.facts import RunFiles, finite, is_right, shown_metrics

Parts = list[tuple[str, str]]  # ("", "del" or "ins", text)
WORD = re.compile(r"\w+|\s+|[^\w\s]")
LONGEST_MARKED = 4000  # characters; the search for differences takes quadratic time
EXCERPT = 160  # characters around a change that `repairs.jsonl` keeps
ALIGNED = 12  # equal characters by which two excerpts end at the same place
FEWEST_SHARED = 0.3  # of the words; texts with less in common would be marked all over


def side_by_side(first: str, second: str) -> tuple[Parts, Parts]:
    """Two texts with the words marked that only one of them has; case and white space do not count."""
    a, b = WORD.findall(first), WORD.findall(second)
    folded_a, folded_b = (
        [" " if word.isspace() else word.casefold() for word in tokens_of_text] for tokens_of_text in (a, b)
    )
    left: Parts = []
    right: Parts = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, folded_a, folded_b, autojunk=False).get_opcodes():
        left.append(("" if tag == "equal" else "del", clean("".join(a[i:j]))))
        right.append(("" if tag == "equal" else "ins", clean("".join(b[k:m]))))
    return [p for p in left if p[1]], [p for p in right if p[1]]


def from_difference(first: str, other: str, most: int) -> tuple[str, str]:
    """Two texts without the beginning that both share, where it would fill the room (`most` characters) of the rest."""
    same = next((i for i, (a, b) in enumerate(zip(first, other, strict=False)) if a != b), min(len(first), len(other)))
    start = same - most // 4
    if max(len(first), len(other)) <= most or start <= 0:
        return first, other
    return "… " + first[start:], "… " + other[start:]


def same_end(first: str, other: str, most: int) -> tuple[str, str]:
    """Two excerpts of at most `most` characters that end at the same place of their texts, so that these are compared.

    A text of `EXCERPT` characters and an ellipsis was cut by who wrote it.
    """
    if not any(len(text) > most or (text.endswith("…") and len(text) > EXCERPT) for text in (first, other)):
        return first, other
    a, b = (text[:most].removesuffix("…") for text in (first, other))
    for shift in range(min(max(len(a), len(b)), most)):
        for longer, shorter in ((b, a), (a, b)):
            stem = longer[: len(longer) - shift]
            if len(stem) >= ALIGNED and shorter.endswith(stem[-ALIGNED:]):
                return (shorter + "…", stem + "…") if longer is b else (stem + "…", shorter + "…")
    return a + "…", b + "…"


def marked_against(reference: str, answer: str) -> Parts:
    """The answer with the words marked that the reference lacks; plain where they have too little in common."""
    if not reference or not answer or max(len(reference), len(answer)) > LONGEST_MARKED:
        return [("", answer)]
    _, parts = side_by_side(reference, answer)
    shared = sum(len(text) for kind, text in parts if not kind and text.strip())
    if shared < FEWEST_SHARED * max(len(reference), len(answer)):
        return [("", answer)]
    return [("" if not text.strip() else kind, text) for kind, text in parts]


LONGEST_TEXT = 4000  # characters of one text that the page shows; the whole text is in samples.jsonl
SHORTER = (LONGEST_TEXT, 2000, 1000, 500, 200)  # where all of them would be too many
ROOM = 6_000_000  # characters of all texts in the page
MOST_ROWS = 5000  # rows in the page; of more those that tell the most
PAGE = 10  # rows that are seen at once
MOST_OTHERS = 3  # answers of others shown with the evaluation's own
LOOK_AHEAD = 200  # rows among which the next label is looked for


@dataclass(frozen=True)
class JudgedSample:
    """A row of `samples.jsonl` with what it tells."""

    sample: Sample
    place: int  # in the file, from 0
    kind: str  # see `KINDS`; `why` says it in words
    why: str
    right: bool | None  # whether the system's own answer is right; None where that says little
    others: dict[str, bool | None]  # the same for each other system that is shown
    value: float | None  # confidence or score, by which rows can be sorted; None where unknown
    label: str | None = None  # the row's label, or the value of the field that decides; None for free texts

    @property
    def answers(self) -> list[tuple[str, str, bool | None]]:
        """(system, answer, whether it is right) of the others."""
        return [(name, self.sample.baselines[name], right) for name, right in self.others.items()]

    @property
    def answer(self) -> str:
        """The own answer."""
        return self.sample.prediction

    @property
    def reference(self) -> str:
        """What was to be answered."""
        return self.sample.reference or self.sample.label or ""


@dataclass(frozen=True)
class OrderedSamples:
    """All rows of an evaluation, those that tell the most first."""

    own: str  # name of the evaluation's own system; `names`: those whose answers are shown with its
    names: list[str]
    rows: list[JudgedSample]

    @property
    def judged(self) -> bool:
        """Whether answers are right or wrong."""
        return any(t.right is not None for t in self.rows)

    def in_words(self) -> str:
        """How the first rows were chosen, and how many answers are wrong in all."""
        n, wrong = len(self.rows), sum(t.right is False for t in self.rows)
        text = f"Rows that tell the most come first: where {self.own} and another system disagree, wrong answers, and "
        text += f"near misses, each label in turn. They are not a random sample of the {count(n, 'row')}"
        return text + (f": {wrong:,} of all {counted(n, 'answer')} of {self.own} are wrong." if self.judged else ".")


# How rows are taken by turns: lost against another system, won, near misses, and wrong as all others are.
KINDS = ("lost", "won", "unsure", "wrong", "rest")
TURNS = ("lost", "won", "wrong", "lost", "unsure", "won")


def choose(facts: RunFiles) -> OrderedSamples:
    """All rows of an evaluation, those that tell the most first: the one choice for the terminal and the page."""
    evaluation = facts.evaluation
    system, names = evaluation.name, shown_systems(evaluation, facts.samples)
    judge = _judge(evaluation, facts.samples)
    judged = [judged_sample(sample, i, system, names, judge) for i, sample in enumerate(facts.samples)]
    return OrderedSamples(system, names, order_of_interest(judged))


def samples_part(facts: RunFiles) -> dict[str, Any]:
    """Everything about samples that the template shows: first rows, confusions, and the rows for the script."""
    if not facts.samples:
        return {}
    choice, metrics = choose(facts), shown_metrics(facts.evaluation)
    rows = choice.rows[:MOST_ROWS]
    longest = longest_text(rows)
    requested = number(section(facts.config.get("evaluate")).get("samples"))
    size = 0 if requested == 0 else max(int(requested or 0), PAGE)
    wrong = [t for t in choice.rows if t.right is False]
    pairs = Counter((t.reference, t.answer.strip() or "(empty)") for t in wrong if t.sample.label is not None)
    return {
        "own": choice.own, "note": choice.in_words(),
        "shown": [_shown(t, choice.own, metrics, longest) for t in rows[:size]],
        "size": size, "total": len(choice.rows), "kept": len(rows), "wrong": len(wrong),
        "judged": choice.judged, "marks": any(t.sample.label is None for t in rows),
        "confusions": [(a, cut(b, 200), n) for (a, b), n in pairs.most_common(10)],
        "rows": rows_json(rows, choice.own, choice.names, metrics, longest, size) if len(rows) > size > 0 else "",
        **_choices(rows, choice.own, choice.names, facts.evaluation),
    }  # fmt: skip


def shown_systems(evaluation: EvaluationManifest, samples: Sequence[Sample]) -> list[str]:
    """The systems whose answers are shown with its own: all of a few, else the best prompt and other, and zero-shot."""
    answered = samples[0].baselines if samples else {}
    metric = evaluation.primary or next(iter(shown_metrics(evaluation)), "")

    def value(name: str) -> float:
        score = finite(evaluation.baselines.get(name, {}).get(metric))
        return score.value if score else float("-inf")

    names = [name for name in answered if name != "majority class"]  # it says the same in every row
    if len(names) <= MOST_OTHERS:
        return names
    best = sorted(names, key=value, reverse=True)
    prompts, others = [n for n in best if "shot" in n], [n for n in best if "shot" not in n]
    priority = dict.fromkeys([*prompts[:1], *others[:1], *(n for n in best if n == "zero-shot"), *best])
    return [name for name in names if name in list(priority)[:MOST_OTHERS]]


@dataclass
class _RowJudge:
    """By what rows without a label are judged: a metric, or the value of the field that decides."""

    metric: str
    right_or_wrong: bool  # whether a score says right or wrong, as of a field's value or of a program's tests
    apart: Mapping[
        str, Mapping[str, tuple[float, float]]
    ]  # system -> row id -> (own score, its score), as in `eval.json`
    whole: frozenset[str]  # systems of which `eval.json` names all such rows
    field: Pattern | None

    def value(self, text: str) -> str | None:
        """What a text says in the field that decides; None where there is no such field, or not in this text."""
        match = None
        try:
            match = self.field.search(text) if self.field else None
        except UserError:  # it takes too long, and would for each row; the page is written all the same
            self.field = None
        return match[1].strip() if match and match.groups() and match[1] else None


def _judge(evaluation: EvaluationManifest, samples: Sequence[Sample]) -> _RowJudge:
    metric = evaluation.row_metric or evaluation.primary
    scores = {number(sample.scores.get(metric)) for sample in samples}
    differing = evaluation.disagreements
    apart = {name: {row.id: (row.score, row.other) for row in part.rows} for name, part in differing.items()}
    whole = frozenset(name for name, part in differing.items() if len(part.rows) == part.better + part.worse)
    plain = metric_of(metric).right_or_wrong and scores <= {0.0, 1.0}
    pattern = evaluation.settings.fields.get(metric.rpartition(".")[0]) if evaluation.settings else None
    field = None
    with contextlib.suppress(ValueError):
        field = compile_pattern(pattern, re.MULTILINE) if pattern else None
    return _RowJudge(metric, plain, apart, whole, field)


def judged_sample(sample: Sample, position: int, system: str, names: Sequence[str], judge: _RowJudge) -> JudgedSample:
    """What a row tells: who is right, or, where that says little, who is nearer to the reference."""
    answered = [name for name in names if name in sample.baselines]
    right, confidence = is_right(sample), number(sample.confidence)
    others = {name: is_right(sample, sample.baselines[name]) for name in answered}
    about, differing, label = "", "", sample.label
    if right is None:
        if metric_of(judge.metric).needs == "JSON":
            differing = differing_fields(sample.reference, sample.prediction)
        score = number(sample.scores.get(judge.metric))
        if score is None or not judge.right_or_wrong:
            return _by_score(sample, position, judge, dict.fromkeys(answered), differing)
        right, others = score == 1, {name: _right_by_score(sample, name, score, judge) for name in answered}
        field = judge.metric.rpartition(".")[0].replace("_", " ")
        about, confidence, label = f"{field}: " if field else "", None, judge.value(sample.reference)
    rivals = [name for name, good in others.items() if (good is False if right else good)]  # with the other outcome
    sure = "" if confidence is None else f" (confidence {confidence:.2f})"
    reason = f"{system} is {'right' if right else 'wrong'}{sure}"
    if rivals:
        names = rivals[0] if len(rivals) == 1 else f"{', '.join(rivals[:-1])} and {rivals[-1]}"
        kind, reason = ("won", f"{reason}, {names} wrong") if right else ("lost", f"{reason}, {names} right")
    elif right:
        kind = "unsure" if confidence is not None and confidence < 0.6 else "rest"
    else:
        kind = "wrong"
        reason += ", as the others shown are" if others and all(good is False for good in others.values()) else ""
    reason = f"{about}{reason}: {differing}" if differing else about + reason
    return JudgedSample(sample, position, kind, reason, right, others, confidence, label)


def _right_by_score(sample: Sample, name: str, own_score: float, judge: _RowJudge) -> bool | None:
    pair = judge.apart.get(name, {}).get(sample.id)
    if pair:
        return pair[1] == 1
    if name in judge.whole:
        return own_score == 1
    value = judge.value(sample.reference)
    return None if value is None else judge.value(sample.baselines[name]) == value


def _by_score(
    sample: Sample, position: int, judge: _RowJudge, others: dict[str, bool | None], differing: str
) -> JudgedSample:
    """A row without right and wrong: nearer to the reference than others, or farther, by the metric that decides.

    `differing`: in which fields the own answer differs from the reference.
    """
    scores, metric = sample.scores, judge.metric
    value = number(scores[metric] if metric in scores else next(iter(scores.values()), None))
    for name, rows in judge.apart.items():
        pair = rows.get(sample.id)
        if pair and name in others:
            mine, theirs = pair
            reason = f"{title_of(metric)} {metric_text(mine, metric)} against {metric_text(theirs, metric)} of {name}"
            reason += f": {differing}" if differing else ""
            return JudgedSample(sample, position, "won" if mine > theirs else "lost", reason, None, others, value)
    return JudgedSample(sample, position, "rest", differing, None, others, value)


def order_of_interest(judged: Sequence[JudgedSample]) -> list[JudgedSample]:
    """All rows: kinds by turns, within a kind labels by turns, near misses the least sure first; the rest in order."""
    groups = {kind: [t for t in judged if t.kind == kind] for kind in KINDS}
    groups["unsure"].sort(key=lambda t: (t.value is None, t.value))
    if not any(groups[kind] for kind in KINDS if kind != "rest"):
        groups["rest"] = sorted(groups["rest"], key=lambda t: (t.value is None, t.value or 0.0))
    seen: Counter[str] = Counter()
    order: list[JudgedSample] = []
    while any(groups[kind] for kind in TURNS):
        for kind in TURNS:
            group = groups[kind]
            if group:
                at = min(range(min(len(group), LOOK_AHEAD)), key=lambda i: (seen[str(group[i].label)], i))
                order.append(group.pop(at))
                seen[str(order[-1].label)] += 1
    return order + groups["rest"]


def _shown(t: JudgedSample, system: str, metrics: Sequence[str], longest: int) -> dict[str, Any]:
    answers = []
    for name, text, right in _answers(t, system):
        text_shown = cut(text, longest)
        # A label is right or wrong as a whole.
        parts = [("", text_shown)] if t.sample.label is not None else marked_against(t.reference, text_shown)
        answers.append({"name": name, "parts": parts, "right": right, "tuned": name == system})
    return {
        "why": t.why, "prompt": cut(t.sample.prompt, longest), "reference": cut(t.reference, longest),
        "answers": answers, "scores": _scores(t.sample, system, metrics),
    }  # fmt: skip


def _answers(t: JudgedSample, system: str) -> Iterator[tuple[str, str, bool | None]]:
    yield from t.answers
    if "prediction" in t.sample.model_fields_set:
        yield system, t.answer, t.right


def _scores(sample: Sample, system: str, metrics: Sequence[str]) -> str:
    if sample.label is not None and sample.predicted_label is not None:
        return ""
    names = dict.fromkeys([*(name for name in metrics if name in sample.scores), *sample.scores])
    texts = [f"{title_of(k)} {metric_text(v, k)}" for k in names if (v := number(sample.scores[k])) is not None]
    return f"{system}: {' · '.join(texts[:4])}" if texts and is_right(sample) is None else ""


def cut(text: str, longest: int = LONGEST_TEXT) -> str:
    """Text, cut with a note when it is too long for the page."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… ({count(len(text) - longest, 'more character')} in samples.jsonl)"


def longest_text(rows: Sequence[JudgedSample]) -> int:
    """Characters at which texts are cut, so that all of them together have at most about `ROOM`."""
    texts = [text for t in rows for text in (t.sample.prompt, t.reference, t.answer, *(a for _, a, _ in t.answers))]
    lengths = [len(text) for text in texts]
    return next((most for most in SHORTER if sum(min(n, most) for n in lengths) <= ROOM), SHORTER[-1])


def _choices(
    rows: Sequence[JudgedSample], system: str, names: Sequence[str], evaluation: EvaluationManifest
) -> dict[str, Any]:
    labels = Counter(t.label for t in rows if t.label is not None)
    compared = []
    for i, name in enumerate(names):
        outcomes = Counter((t.right, t.others.get(name)) for t in rows)
        answers = [(t.sample.baselines.get(name), t.sample.prediction) for t in rows]
        differs = sum(theirs is not None and theirs.strip() != mine.strip() for theirs, mine in answers)
        options = [
            ("won", f"{system} right, {name} wrong", outcomes[True, False]),
            ("lost", f"{system} wrong, {name} right", outcomes[False, True]),
            ("differs", "another answer", differs),
        ]
        compared.append((name, [(f"{i}:{key}", f"{text} ({n:,})") for key, text, n in options if n]))
    return {
        "labels": sorted(labels.items()) if 1 < len(labels) <= 500 else [],
        "compared": [(name, options) for name, options in compared if options],
        "ranked": "confidence" if any(t.right is not None and t.value is not None for t in rows)
        else title_of(evaluation.row_metric or evaluation.primary) if any(t.value is not None for t in rows) else "",
    }  # fmt: skip


def rows_json(
    judged: Sequence[JudgedSample], system: str, names: Sequence[str], metrics: Sequence[str], longest: int, size: int
) -> Markup:
    """The rows as JSON that a page can hold; each text is there once, and rows name it by its number.

    A row: place, why, prompt, reference, label, right, value, answers, which of them are right, scores, whether words
    are marked.
    """
    texts: dict[str, int] = {}

    def number_of(text: str) -> int:
        return texts.setdefault(text, len(texts))

    def flag(right: bool | None) -> int:
        return -1 if right is None else int(right)

    rows = []
    for t in judged:
        answers = {name: (text, right) for name, text, right in _answers(t, system)}
        cells = [answers.get(name, (None, None)) for name in [*names, system]]
        rows.append(
            [
                t.place, number_of(t.why), number_of(cut(t.sample.prompt, longest)),
                number_of(cut(t.reference, longest)), number_of(str(t.label)), flag(t.right),
                None if t.value is None else round(t.value, 4),
                [-1 if text is None else number_of(cut(text, longest)) for text, _ in cells],
                [flag(right) for _, right in cells], number_of(_scores(t.sample, system, metrics)),
                int(t.sample.label is None),
            ]
        )  # fmt: skip
    data = {"size": size, "names": [*names, system], "texts": list(texts), "rows": rows}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # Inside a script element nothing may look like a tag, or end the element.
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)
