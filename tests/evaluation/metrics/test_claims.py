"""No sentence claims what its own numbers don't show, over random evaluations."""

from __future__ import annotations

import random
import re
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from verdicts import rows_of

from tuneloop.core.files import write_json
from tuneloop.core.stats.intervals import NOT_ENOUGH
from tuneloop.evaluation.alternatives.classifiers import TFIDF
from tuneloop.evaluation.alternatives.constants import MAJORITY
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import ScoredAnswers, evaluate
from tuneloop.evaluation.metrics.claims import amount, claim_of, outcome_words, seen_from, sure
from tuneloop.evaluation.metrics.custom import own_metric
from tuneloop.evaluation.metrics.declared import declare, metric_of, title_of
from tuneloop.evaluation.paired import compare
from tuneloop.evaluation.results import ComparedWith, write_evaluation
from tuneloop.evaluation.scoring import AnswerStats
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import EvaluationManifest, Standing, Subject
from tuneloop.records.record import read_record
from tuneloop.report.comparison import comparison_as
from tuneloop.report.facts import shown_metrics, systems_of

OTHERS = ["few-shot", "zero-shot", TFIDF, MAJORITY, "few-shot calibrated"]
SHOWN = re.compile(r"95 % interval ([+-][\d.]+) to ([+-][\d.]+), (no p-value|p [<=] \d\.\d+)")
BETTER = re.compile(r"^Better than|^Promising|\bgains\b|\blooks better\b|\bgained\b")
WORSE = re.compile(r"^Worse than|\bis worse\b|\blost\b")
OPEN = re.compile(r"^No proven gain|not enough evidence that|can't tell it|can't prove it|is not shown to")
ONE_OF_MANY = re.compile(
    r"(?<![\w.,+-])1 (?!of\b|is\b|has\b|was\b)(?:\w+ )?[a-z]+s\b|(?<![\d.,])(?:[02-9]|\d[\d,]*\d) (?:test |validation )?(?:row|answer|label|slice)\b"
)


def answers_of(labels: list[str], kind: str, rng: random.Random) -> list[str]:
    names, share = sorted(set(labels)), rng.random()
    if kind == "constant":
        return [labels[0]] * len(labels)
    if kind == "missing":
        return [label if rng.random() < share else "" for label in labels]
    if kind == "rare":  # right on the frequent label, wrong on all others
        return [max(names, key=labels.count)] * len(labels)
    return [label if rng.random() < share else rng.choice(names) for label in labels]


def evaluations(seed: int, n: int) -> dict[str, ScoredAnswers]:
    """Two to six systems on the same rows: ties, constant and missing answers, rare labels, metrics of either direction."""
    rng = random.Random(seed)
    names = ["ham", "spam", "other", "billing"][: rng.randint(1, 4)]
    weights = rng.choice([(1, 1, 1, 1), (30, 2, 1, 1), (5, 4, 1, 0.2)])
    labels = rng.choices(names, weights[: len(names)], k=n)
    task = rng.choice(["classification", "classification", "generation"])
    names_of = {"classification": ["accuracy", "macro_f1", "invalid_rate"], "generation": ["rougeL", "chrf"]}
    primary = rng.choice([None, None, "seconds_waited", "loss", *names_of[task]])
    config = EvaluateConfig.model_validate({"bootstrap": 200, "embedding": False, "primary": primary})
    declare([own_metric("seconds_waited", better="lower", scale="from 0")])
    systems = ["tuned", *rng.sample(OTHERS, rng.randint(1, 5))]
    found, texts = dict[str, ScoredAnswers](), list[str]()
    for system in systems:
        kind = rng.choice(["random", "random", "constant", "missing", "rare", "same"])
        texts = (
            texts if kind == "same" and texts else answers_of(labels, "constant" if system == MAJORITY else kind, rng)
        )
        level = rng.random() * 3
        answers = [Completion(text, loss=rng.random() * 3 + level, loss_tokens=3) for text in texts]
        measured = AnswerStats(row_scores={"seconds_waited": [rng.random() + level for _ in labels]})
        found[system] = evaluate(rows_of(labels), answers, task=task, labels=names if task == "classification" else None, config=config, seed=0, measured=measured)  # fmt: skip
    return found


def told(folder: Path, everyone: dict[str, ScoredAnswers]) -> EvaluationManifest:
    others = {name: item for name, item in everyone.items() if name != "tuned"}
    pairs = [c for name, other in others.items() for c in compare(name, other, "tuned", everyone["tuned"])]
    write_evaluation(folder, everyone["tuned"], Subject("m", "d"), ComparedWith(others, pairs))
    return read_record(EvaluationManifest, folder)


def numbers(match: tuple[str, str, str]) -> tuple[float, float, float]:
    low, high, p = match
    return float(low), float(high), 1.0 if p == "no p-value" else 0.0 if "<" in p else float(p.split()[-1])


def clauses(sentence: str) -> list[str]:
    """Parts of a sentence with at most one interval each, and what claims it in front."""
    ends = [match.end() for match in SHOWN.finditer(sentence)]
    return [sentence[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)] if ends else []


def opponent(s: Standing) -> str:
    return "always answering" if s.kind == "constant" else f"{re.escape(s.against)}(?! calibrated)"


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 6, 16, 30, 60, 90]))
def test_every_sentence_is_shown_by_its_own_numbers(seed: int, rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        manifest = told(Path(folder), evaluations(seed, rows))
    verdict, text = manifest.verdict, manifest.words
    assert verdict is not None
    claims = [claim_of(seen_from("tuned", pair)) for pair in manifest.comparisons]
    allowed = {sure(claim, tests=False) for claim in claims}
    for sentence in text:
        assert not ONE_OF_MANY.search(sentence), sentence
        for clause in clauses(sentence):
            match = SHOWN.search(clause)
            assert match and match[0] in allowed, (sentence, allowed)
            low, high, p = numbers(match.groups())  # type: ignore[arg-type]
            if re.search(r"\blost\b", clause) or (
                WORSE.search(clause) and "; " not in clause and "gained" not in clause
            ):
                assert high < 0 and p < 0.05, sentence
            elif BETTER.search(clause):
                assert low > 0 and p < 0.05, sentence
            elif OPEN.search(clause):
                assert low <= 0 <= high or p >= 0.05, sentence
        if would := re.search(r"would have shown a difference of (\d+\.\d+)", sentence):
            gain = next(s for s in verdict.standings if s.against == verdict.against).gain
            scale = 100 if metric_of(manifest.primary).scale == "share" else 1
            assert float(would[1]) >= scale * abs(gain) - 0.05, sentence
        if "Don't use" in sentence:
            assert any(s.outcome == "worse" and s.lost for s in verdict.standings), sentence
    check_numbers(manifest, text)
    check_one_verdict(manifest)


def check_numbers(manifest: EvaluationManifest, sentence: list[str]) -> None:
    """A figure behind a metric's title, and a gain in front of an interval, are those of the table."""
    metric = manifest.primary
    values = {"tuned": manifest.metrics, **manifest.baselines}
    for name, shown in values.items():
        if name in (MAJORITY, "tuned"):
            continue
        for text in re.findall(rf"{re.escape(name)} \((\d[\d.]*(?: %)?)\)", " ".join(sentence)):
            assert text == metric_of(metric).in_words(shown[metric].value), (name, text)
    own = metric_of(metric).in_words(manifest.metrics[metric].value)
    assert f"{title_of(metric)} {own}" in sentence[0], sentence[0]


def check_one_verdict(manifest: EvaluationManifest) -> None:
    """Headline, table and Markdown name the same verdict, and no sentence says another one of the same pair."""
    verdict, text = manifest.verdict, manifest.words
    assert verdict is not None
    metrics = shown_metrics(manifest)
    lines = {line.name: line for line in systems_of(manifest, metrics)}
    table = comparison_as(manifest, "markdown")
    heads = {"better": "Better than", "promising": "Promising", NOT_ENOUGH: "No proven gain", "mixed": "Mixed against", "worse": "Worse than"}  # fmt: skip
    if verdict.standings:
        assert text[0].startswith(heads[verdict.outcome])
    for s in verdict.standings:
        line = lines[s.against]
        assert line.verdict == outcome_words(s, verdict.metric)
        if line.p is not None:
            assert any(
                row.startswith(f"| {s.against} |") and f"| {line.verdict} |" in row for row in table.splitlines()
            )
        decides = s.claims[0]
        assert line.delta is None or (line.delta.value, line.delta.low, line.delta.high) == (decides.gain, decides.low, decides.high) or decides.low != decides.low  # fmt: skip
        said = " ".join(sentence for sentence in text if re.search(rf"(?:than|over|from|of|prompt,|alternative,) {opponent(s)}\b", sentence))  # fmt: skip
        if s.outcome == NOT_ENOUGH:
            assert not re.search(rf"(?:[Bb]etter|worse) than {opponent(s)}(?! \(.*on these rows)", said.replace("no better", "")), said  # fmt: skip
        if s.outcome in ("better", "promising"):
            assert not re.search(f"worse than {opponent(s)}", said) and (not said or amount(decides) in " ".join(text))


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([2, 16, 40, 90]))
def test_several_systems_against_the_first_have_the_same_verdicts_in_words_and_table(seed: int, rows: int) -> None:
    everyone = evaluations(seed, rows)
    first, *others = everyone
    if len(others) < 2:
        return
    last = others[-1]
    pairs = [c for name in others for c in compare(first, everyone[first], name, everyone[name])]
    with tempfile.TemporaryDirectory() as folder:
        rest = ComparedWith({name: e for name, e in everyone.items() if name != last}, pairs)
        write_evaluation(Path(folder), everyone[last], Subject("m", "d", name=last), rest)
        manifest = read_record(EvaluationManifest, Path(folder))
    assert manifest.verdict is not None and len(manifest.verdict.standings) == len(others)
    lines = {line.name: line for line in systems_of(manifest, shown_metrics(manifest))}
    listed = manifest.words[0].partition(": ")[2].rstrip(".").split("; ")
    for s in manifest.verdict.standings:
        verdict = outcome_words(s, manifest.primary)
        assert lines[s.name].verdict == verdict
        (named,) = [part for part in listed if re.match(rf"{re.escape(s.name)} {re.escape(verdict)} \(", part)]
        shown = next((c for c in s.claims if c.outcome == s.outcome), s.claims[0])
        if s.outcome in ("worse", NOT_ENOUGH):
            assert amount(shown) in named, (named, shown)


def test_an_evaluation_of_an_earlier_version_without_claims_is_read(tmp_path: Path) -> None:
    standing = {
        "name": "tuned", "against": "few-shot", "kind": "prompt", "outcome": "worse", "gain": -0.1, "low": -0.2, "high": 0.1,
        "p": 0.5, "p_holm": 0.5, "gained": {}, "lost": {"macro_f1": -0.08},
    }  # fmt: skip
    verdict = {"sentence": "s", "name": "tuned", "outcome": "worse", "metric": "accuracy", "standings": [standing]}
    write_json(tmp_path / "eval.json", {"version": 1, "n": 3, "metrics": {}, "verdict": verdict})
    found = read_record(EvaluationManifest, tmp_path).verdict
    assert found is not None and outcome_words(found.standings[0], "accuracy") == "worse"
