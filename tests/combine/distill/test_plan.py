"""What distilling takes is known before anything is spent: each part's memory, hours and dollars follow from the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuneloop.cli.main import main
from tuneloop.data.config import PrepareConfig
from tuneloop.data.prepare import TokenCount, prepare_dataset
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import evaluate
from tuneloop.evaluation.results import ComparedWith, write_evaluation
from tuneloop.records.completion import Completion
from tuneloop.records.dataset import DatasetManifest
from tuneloop.records.evaluation import Subject
from tuneloop.records.rows import Row
from tuneloop.training.probabilities import ProbabilityStore

Said = pytest.CaptureFixture[str]


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    source = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Tell of {word} {i}", "completion": f"{word} is {i}"} for i, word in enumerate("abcdefghijklmnop" * 2)]  # fmt: skip
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = PrepareConfig(sources=[str(source)], split={"val": 0.0, "test": 0.0})  # type: ignore[arg-type]
    return prepare_dataset(config, name="r", seed=0, out=tmp_path / "d", measure=lambda row: TokenCount(400, 100)).path


def planned(capsys: Said, dataset: str, *more: str) -> dict[str, Any]:
    command = ["distill", "llama-3.3-70b", "llama-3.1-8b", "--dataset", dataset, "--out", "none", "--plan"]
    assert main([*command, *more, "--json"]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_70b_teacher_of_an_8b_student(dataset: str, capsys: Said) -> None:
    found = planned(capsys, dataset, "--level", "logits", "train.epochs=2")
    writes, scores, learns = found["parts"]
    assert found["prompt_tokens"] == 300 and found["answer_tokens"] == 100 and found["epochs"] == 2
    assert found["stored_bytes"] == pytest.approx(ProbabilityStore.width(128) * 100 * found["rows"])
    assert 125 < writes["gib"] == scores["gib"] < 140 and learns["gib"] > 15
    assert writes["hours"] > scores["hours"] > 0 and learns["hours"] > 0
    assert found["hours"] == pytest.approx(sum(part["hours"] for part in found["parts"]))
    assert found["usd"] == pytest.approx(sum(part["usd"] for part in found["parts"]))
    assert not Path("none").exists()


def test_more_answers_cost_more_and_own_answers_nothing(dataset: str, capsys: Said) -> None:
    entry, four = (planned(capsys, dataset, "--best-of", n)["parts"][0]["hours"] for n in ("1", "4"))
    assert four == pytest.approx(4 * entry)
    own = planned(capsys, dataset, "--level", "logits", "--answers", "own")["parts"]
    assert [part["what"] for part in own] == ["the teacher's probabilities", "the student learns"]
    once, item = (
        planned(capsys, dataset, "--level", level, "train.epochs=3", "train.teacher_bits=4")["parts"][1]["hours"]
        for level in ("logits", "live")
    )
    assert item == pytest.approx(3 * once)


def test_a_live_teacher_stands_beside_the_student_on_each_card(dataset: str, capsys: Said) -> None:
    stored, live = (
        planned(capsys, dataset, "--level", level, "train.teacher_bits=4")["parts"][-1] for level in ("logits", "live")
    )
    cards = [int(part["machine"].split()[0]) for part in (stored, live)]
    assert 36 + stored["gib"] * cards[0] / cards[1] * 0.9 < live["gib"] <= 80, "70B in four bits has 36 GiB"
    command = [
        "distill",
        "llama-3.3-70b",
        "llama-3.1-8b",
        "--dataset",
        dataset,
        "--out",
        "none",
        "--plan",
        "--level",
        "live",
    ]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "next to a teacher of 13" in said and "train.teacher_bits=4" in said


def test_the_lines_say_it(dataset: str, capsys: Said) -> None:
    assert main(["distill", "llama-3.3-70b", "llama-3.1-8b", "--dataset", dataset, "--out", "none", "--plan"]) == 0
    said = capsys.readouterr().out
    assert "the teacher writes" in said and "the student learns" in said and "$" in said


def evaluation(folder: Path, right: int, ids: int = 40) -> str:
    """Answers to `ids` questions, of which the first `right` are right."""
    rows = [
        Row(
            str(i), [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "abc"[i % 3]}], "abc"[i % 3]
        )
        for i in range(ids)
    ]
    answers = [Completion(row.answer if i < right else "d") for i, row in enumerate(rows)]
    scored = evaluate(rows, answers, task="classification", labels=list("abcd"), config=EvaluateConfig(), seed=0)
    write_evaluation(folder, scored, Subject("m", "d", name="x"), ComparedWith(), {})
    return str(folder)


def test_it_says_beforehand_whether_it_should_pay(dataset: str, capsys: Said, tmp_path: Path) -> None:
    assert "not known" in planned(capsys, dataset)["expected"]
    good, equal, weak = (evaluation(tmp_path / str(right), right) for right in (36, 22, 20))
    further = tmp_path / "further.jsonl"
    further.write_text("".join(json.dumps({"prompt": f"Say of {i} {i * 7919 % 1013} words"}) + "\n" for i in range(60)))
    more = ["--prompts", str(further), "--answers", "own"]
    pays = planned(capsys, dataset, *more, "--measured", f"{good},{weak}")
    assert pays["expected"].startswith("It should pay") and pays["further"] > 32 and pays["parts"][0]["hours"] > 0
    assert planned(capsys, dataset, *more, "--measured", f"{equal},{weak}")["expected"].startswith("It should not pay")
    assert planned(capsys, dataset, "--measured", f"{good},{weak}")["expected"].startswith("It may pay")
    command = ["distill", "llama-3.3-70b", "llama-3.1-8b", "--dataset", dataset, "--out", "none", "--plan"]
    for measured, text in (
        (good, "Two evaluations"),
        (f"{good},{evaluation(tmp_path / 'o', 9, 20)}", "different rows"),
    ):
        assert main([*command, "--measured", measured]) == 2
        assert text in capsys.readouterr().err


def test_rows_that_nobody_has_counted_are_refused(dataset: str, capsys: Said) -> None:
    file = Path(dataset) / DatasetManifest.file
    facts = json.loads(file.read_text())
    facts["splits"]["train"].pop("tokens", None)
    file.write_text(json.dumps(facts))
    assert main(["distill", "llama-3.3-70b", "llama-3.1-8b", "--dataset", dataset, "--out", "none", "--plan"]) == 2
    assert "not counted" in capsys.readouterr().err
