"""Files of tickets, and prepare run on them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tuneloop.data.config import PrepareConfig
from tuneloop.data.prepare import TokenCount, prepare_dataset
from tuneloop.records.rows import Dataset, Row

WORDS = ["card", "refund", "transfer", "limit", "app", "pin", "cash", "top", "fee", "rate"]


def measure(row: Row) -> TokenCount:
    answer = row.messages[-1]["content"]
    if "UNRENDERABLE" in answer:
        raise ValueError("the template\nrefuses this row")
    return TokenCount(sum(len(m["content"]) // 4 + 4 for m in row.messages), 0 if answer == "MASKED" else 1)


def tickets(n: int, labels: int = 4) -> list[dict[str, Any]]:
    """Tickets of which no two are nearly the same."""
    rng = random.Random(0)

    def word() -> str:
        return "".join(rng.choices("bdfgklmnprst", k=3)) + rng.choice("aeiou")

    return [
        {
            "text": f"{rng.choice(WORDS)} {' '.join(word() for _ in range(6))} {i}",
            "label": f"label_{i % labels}",
            "id": f"t{i}",
        }
        for i in range(n)
    ]


def write(path: Path, records: list[Any]) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return str(path)


def run(tmp_path: Path, records: list[Any], out: str = "out", seed: int = 0, **config: Any) -> Dataset:
    source = write(tmp_path / "data.jsonl", records)
    return prepare_dataset(
        PrepareConfig(sources=[source], **config), name="job", seed=seed, out=tmp_path / out, measure=measure
    )
