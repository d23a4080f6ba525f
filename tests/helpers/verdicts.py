"""Evaluations of given answers to labels, and the verdict about them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tuneloop.evaluation.alternatives.classifiers import TFIDF
from tuneloop.evaluation.alternatives.constants import MAJORITY
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import ScoredAnswers, evaluate
from tuneloop.evaluation.paired import adjusted, compare
from tuneloop.evaluation.results import ComparedWith, write_evaluation
from tuneloop.evaluation.verdict import Verdict, decide, verdict_in_words
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Subject
from tuneloop.records.rows import Row

CARD = {"queue": r"^Queue: (.+)$"}


def rows_of(labels: list[str]) -> list[Row]:
    return [
        Row(f"r{i}", [{"role": "user", "content": f"text {i}"}, {"role": "assistant", "content": label}], label)
        for i, label in enumerate(labels)
    ]


def scored(labels: list[str], answers: list[str], **settings: object) -> ScoredAnswers:
    config = EvaluateConfig.model_validate({"bootstrap": 1000, "embedding": False, **settings})
    allowed = sorted(set(labels))
    given = [Completion(text) for text in answers]
    return evaluate(rows_of(labels), given, task="classification", labels=allowed, config=config, seed=0)


def verdict_of(tuned: ScoredAnswers, **others: ScoredAnswers) -> tuple[Verdict, list[str]]:
    names = {"zero": "zero-shot", "few": "few-shot", "tfidf": TFIDF, "majority": MAJORITY}
    everyone = {**{names.get(key, key): value for key, value in others.items()}, "tuned": tuned}
    pairs = [c for n, other in everyone.items() if n != "tuned" for c in compare(n, other, "tuned", tuned)]
    found = decide(everyone, adjusted(pairs, tuned), "tuned")
    return found, verdict_in_words(found, everyone)


def flipped(labels: list[str], share: float, seed: int) -> list[str]:
    """Answers of which a share is wrong."""
    rng, names = random.Random(seed), sorted(set(labels))
    return [label if rng.random() >= share else names[(names.index(label) + 1) % len(names)] for label in labels]


HAM = ["ham"] * 240 + ["spam"] * 40


def write(folder: Path, tuned: ScoredAnswers, baselines: dict[str, ScoredAnswers]) -> dict[str, object]:
    pairs = [c for name, b in baselines.items() for c in compare(name, b, "tuned", tuned)]
    path = write_evaluation(folder, tuned, Subject("m", "d", "test"), ComparedWith(baselines, pairs))
    found: dict[str, object] = json.loads(path.read_text())
    return found
