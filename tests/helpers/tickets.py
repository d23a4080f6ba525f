"""Tickets and essays in a data set, and what the checks say of it."""

from __future__ import annotations

import json
import random
from typing import Any

from manifests import manifest_of

from tuneloop.core.files import plain
from tuneloop.data.checks.checks import check_dataset
from tuneloop.records.dataset import Check
from tuneloop.records.rows import Dataset, Row

WORDS = {
    "card": ["card", "chip", "pin", "expired", "swallowed", "activate"],
    "money": ["transfer", "pending", "sent", "received", "balance", "salary"],
    "app": ["password", "login", "phone", "screen", "crashes", "install"],
}


def row(number: int, asked: str, answer: str, label: str | None = None) -> Row:
    turns: list[Any] = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return Row(f"{number:016x}", turns, label, meta={"source": "data.jsonl", "line": number + 1})


def tickets(n: int, seed: int = 0, start: int = 0) -> list[Row]:
    rng = random.Random(seed)
    rows = []
    for i in range(start, start + n):
        label = rng.choice(list(WORDS))
        rows.append(
            row(
                i,
                f"please help, my {' '.join(rng.sample(WORDS[label], 3))} since {rng.randrange(10**6)} days",
                label,
                label,
            )
        )
    return rows


def essays(n: int, answer: str = "The {} of {} can be seen from the old bridge in the evening.") -> list[Row]:
    rng = random.Random(0)
    text = [word for some in WORDS.values() for word in some]
    return [
        row(
            i,
            f"Write a line about {rng.randrange(10**6)} {rng.choice(text)}s in a town.",
            answer.format(rng.choice(text), rng.choice(text)),
        )
        for i in range(n)
    ]


def dataset(rows: list[Row], task: str = "classification", **manifest: Any) -> Dataset:
    cut = int(0.8 * len(rows)), int(0.9 * len(rows))
    about = {"task": task, "counts": {"read": len(rows)}, **manifest}
    return Dataset("d", manifest_of(**about), rows[: cut[0]], rows[cut[0] : cut[1]], rows[cut[1] :])


def by_name(data: Dataset, **options: Any) -> dict[str, Check]:
    found = check_dataset(data, **options)
    assert len({check["name"] for check in found}) == len(found)
    json.dumps(plain(found))
    for check in found:
        assert set(check.to_json()) == {"name", "level", "message", "rows", "remedy", "examples"}
        assert check["level"] == "ok" or check["remedy"], check
        assert len(check["examples"]) <= 10 and isinstance(check["rows"], int)
    return {check["name"]: check for check in found}


def levels(data: Dataset, **options: Any) -> dict[str, str]:
    return {name: check["level"] for name, check in by_name(data, **options).items()}
