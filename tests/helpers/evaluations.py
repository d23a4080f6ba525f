"""Small evaluations of labels and of cards with fields."""

import random

from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import evaluate
from tuneloop.evaluation.paired import compare
from tuneloop.evaluation.results import ComparedWith, write_evaluation
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Subject
from tuneloop.records.rows import Row

LABELS = [f"label_{i}" for i in range(5)]
FAST = EvaluateConfig(bootstrap=200)
CARD = EvaluateConfig(bootstrap=200, fields={"queue": r"^Queue: (.+)$", "issue": r"^Issue: (.+)$"})


def row(i, answer, label=None, **meta):
    turns = [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": answer}]
    return Row(f"r{i}", turns, label, meta=meta)


def classification(n, right, seed=0):
    """n rows and answers of which a share is right; the seed decides which."""
    rng = random.Random(seed)
    rows = [row(i, LABELS[i % 5], LABELS[i % 5]) for i in range(n)]
    answers = [Completion(r.label if rng.random() < right else LABELS[(i + 1) % 5]) for i, r in enumerate(rows)]
    return rows, answers


def labels_evaluation(n, right, seed=0):
    rows, answers = classification(n, right, seed)
    return evaluate(rows, answers, task="classification", labels=LABELS, config=FAST, seed=0)


def cards(n, wrong_every=0):
    issues = ["login", "printer", "network", "screen", "mail", "phone", "vpn", "disk"]
    rows = [
        row(i, f"Queue: {'hardware' if i % 2 else 'access'}\nIssue: {issues[i % 8]} fails case {i}\nDo: restart {i}")
        for i in range(n)
    ]
    answers = [
        Completion(r.answer.replace("Queue: ", "Queue: not ") if wrong_every and i % wrong_every == 0 else r.answer)
        for i, r in enumerate(rows)
    ]
    return rows, answers


def cards_evaluation(n=12, wrong_every=3):
    return evaluate(*cards(n, wrong_every), task="generation", labels=None, config=CARD, seed=0)


def written(folder, tuned, baselines):
    comparisons = [c for name, b in baselines.items() for c in compare(name, b, "tuned", tuned)]
    return write_evaluation(
        folder,
        tuned,
        Subject("smollm2-135m", "demo-0123", "test", key="abc"),
        ComparedWith(baselines, comparisons),
        more={"costs": {"tuned": {"seconds": 1.5}}},
    )
