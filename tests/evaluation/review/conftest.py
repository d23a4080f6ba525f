"""A small evaluation with two systems, as `tuneloop evaluate` writes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeEvaluation = Callable[..., Path]


@pytest.fixture
def make_evaluation(tmp_path: Path) -> MakeEvaluation:
    """Write an evaluation folder: `make_evaluation("a", answers, few_shot=[...])`."""

    def make(name: str, answers: list[str], **baselines: list[str]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        samples: list[dict[str, Any]] = [
            {
                "id": f"r{i}",
                "prompt": f"Question {i}?",
                "reference": f"the answer is {i}",
                "prediction": answer,
                "label": None,
                "valid": True,
                "finished": True,
                "scores": {},
                "baselines": {other: texts[i] for other, texts in baselines.items()},
            }
            for i, answer in enumerate(answers)
        ]
        (folder / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
        manifest = {
            "version": 1,
            "name": "tuned",
            "n": len(samples),
            "metrics": {},
            "baselines": {other: {} for other in baselines},
        }
        (folder / "eval.json").write_text(json.dumps(manifest))
        return folder

    return make


@pytest.fixture
def two(make_evaluation: MakeEvaluation) -> Path:
    """40 rows: `few_shot` and `tuned` differ in 30 of them, in `<b>markup</b>` and in 12 only slightly."""
    tuned = [f"the answer is {i}" if i % 4 else f"the same {i}" for i in range(40)]
    few = [("<b>wrong</b>" if i % 2 else f"the answer was {i}") if i % 4 else f"the same {i}" for i in range(40)]
    return make_evaluation("run", tuned, few_shot=few)
