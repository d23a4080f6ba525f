"""Samples: chosen to tell, all of them in the page, searched and filtered there, and never markup."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneloop.records.evaluation import Estimate, EvaluationManifest, Sample
from tuneloop.report import samples as s
from tuneloop.report.facts import read_run
from tuneloop.report.html import write_page

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028 & {{ 7 * 7 }}"


def row(i: int, label: str, own: str, few: str, confidence: float = 0.9, **more: Any) -> dict[str, Any]:
    return {
        "id": f"r{i}",
        "prompt": f"prompt number {i}",
        "reference": label,
        "label": label,
        "prediction": own,
        "predicted_label": own,
        "confidence": confidence,
        "scores": {"accuracy": float(own == label)},
        "baselines": {"few-shot": few},
        **more,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Write an evaluation of some rows."""

    def write(rows: list[dict[str, Any]], **more: Any) -> Path:
        names = list(rows[0]["baselines"]) if rows else []
        evaluation = {
            "version": 1, "name": "tuned", "n": len(rows), "task": "classification", "primary": "accuracy",
            "metrics": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}},
            "baselines": {name: {"accuracy": {"value": 0.3 + i / 10}} for i, name in enumerate(names)}, "words": ["It is better."], **more,
        }  # fmt: skip
        path = tmp_path / "evaluation"
        path.mkdir(exist_ok=True)
        (path / "eval.json").write_text(json.dumps(evaluation))
        (path / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        return path

    return write


def many(n: int = 300) -> list[dict[str, Any]]:
    """Mostly right, every tenth wrong where few-shot is right, every 25th right where few-shot is wrong; four labels."""
    labels = ["card lost", "card stolen", "refund", "other"]
    rows = []
    for i in range(n):
        label = labels[i % 4]
        other = labels[(i + 1) % 4]
        own, few = (other, label) if i % 10 == 7 else (label, other) if i % 25 == 3 else (label, label)
        rows.append(row(i, label, own, few, 0.5 + (i % 50) / 100))
    return rows


def test_the_first_rows_hold_every_label_disagreements_in_both_directions_and_near_misses(
    folder: Callable[..., Path],
) -> None:
    part = s.samples_part(read_run(folder(many())))
    assert len(part["shown"]) == s.PAGE
    reason = " | ".join(item["why"] for item in part["shown"])
    assert "tuned is wrong" in reason and "few-shot right" in reason and "few-shot wrong" in reason
    assert {item["reference"] for item in part["shown"]} == {"card lost", "card stolen", "refund", "other"}
    assert any(item["why"].startswith("tuned is right (confidence 0.5") for item in part["shown"]), "a near miss"
    assert part["wrong"] == 30 and part["total"] == 300


def test_no_row_is_lost_or_told_twice(folder: Callable[..., Path]) -> None:
    part = s.samples_part(read_run(folder(many())))
    data = json.loads(part["rows"])
    assert sorted(r[0] for r in data["rows"]) == list(range(300))
    assert data["names"] == ["few-shot", "tuned"]
    for told in data["rows"][:20]:
        sample = many()[told[0]]
        assert data["texts"][told[2]] == sample["prompt"] and data["texts"][told[3]] == sample["reference"]
        assert told[5] == int(sample["prediction"] == sample["label"])
        assert [data["texts"][a] for a in told[7]] == [sample["baselines"]["few-shot"], sample["prediction"]]


def test_of_more_rows_than_a_page_holds_those_that_tell_stay(
    folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s, "MOST_ROWS", 60)
    part = s.samples_part(read_run(folder(many())))
    data = json.loads(part["rows"])
    assert len(data["rows"]) == part["kept"] == 60
    assert sum(r[5] == 0 for r in data["rows"]) == 30, "every wrong answer"


def test_long_texts_are_cut_more_where_there_are_many(
    folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s, "ROOM", 400_000)
    rows = [dict(r, prompt="word " * 2000) for r in many(200)]
    part = s.samples_part(read_run(folder(rows)))
    assert "more characters in samples.jsonl" in part["shown"][0]["prompt"]
    assert len(part["rows"]) < 450_000


def test_texts_cannot_end_the_script_that_holds_them(folder: Callable[..., Path]) -> None:
    rows = [row(i, HOSTILE, HOSTILE if i % 2 else "b", HOSTILE, prompt=f"{HOSTILE} {i}") for i in range(30)]
    page = write_page(folder(rows)).read_text(encoding="utf-8")
    (block,) = re.findall(r'<script type="application/json" id="sample-rows">(.*?)</script>', page, re.S)
    assert "<" not in block and "\u2028" not in block
    assert HOSTILE in json.loads(block)["texts"]
    assert "<script>alert" not in page and "<img" not in page


def test_beside_the_tuned_model_stand_the_best_prompt_the_best_classifier_and_zero_shot() -> None:
    values = {"majority class": 0.9, "zero-shot": 0.1, "few-shot": 0.5, "few-shot calibrated": 0.4,
              "tf-idf + logistic regression": 0.7, "MiniLM + logistic regression": 0.8}  # fmt: skip
    baselines = {name: {"accuracy": Estimate(value)} for name, value in values.items()}
    evaluation = EvaluationManifest(n=1, metrics={}, primary="accuracy", baselines=baselines)
    shown = s.shown_systems(evaluation, [Sample(id="1", baselines=dict.fromkeys(values, "x"))])
    assert shown == ["zero-shot", "few-shot", "MiniLM + logistic regression"]


def test_texts_without_labels_are_ordered_by_who_is_nearer_to_the_reference(folder: Callable[..., Path]) -> None:
    rows = [
        {"id": f"g{i}", "prompt": f"p{i}", "reference": "the whole answer", "label": None, "prediction": f"an answer {i}",
         "scores": {"rougeL": i / 40}, "baselines": {"few-shot": "other"}}
        for i in range(40)
    ]  # fmt: skip
    apart = {"few-shot": {"metric": "rougeL", "better": 1, "worse": 1, "rows": [
        {"id": "g5", "score": 0.1, "other": 0.9}, {"id": "g30", "score": 0.8, "other": 0.2}]}}  # fmt: skip
    part = s.samples_part(read_run(folder(rows, task="generation", primary="rougeL", disagreements=apart)))
    assert [item["prompt"] for item in part["shown"][:2]] == ["p5", "p30"]
    assert part["shown"][0]["why"] == "ROUGE-L 0.10 against 0.90 of few-shot"
    assert part["judged"] is False and part["ranked"] == "ROUGE-L"


def test_answers_that_a_field_decides_are_right_or_wrong_and_its_values_take_turns(folder: Callable[..., Path]) -> None:
    rows = [
        {"id": f"g{i}", "prompt": f"p{i}", "reference": f"Queue: {'ab'[i % 2]}\nIssue: x", "label": None,
         "prediction": "Queue: a\nIssue: y", "scores": {"queue.accuracy": float(i % 2 == 0)},
         "baselines": {"few-shot": "Queue: b\nIssue: z" if i < 38 else "Queue: a"}}
        for i in range(40)
    ]  # fmt: skip
    settings = {"seed": 0, "bootstrap": 200, "fields": {"queue": r"^Queue: (.+)$"}}
    part = s.samples_part(
        read_run(folder(rows, task="generation", primary="queue.accuracy", disagreements={}, settings=settings))
    )
    whys = Counter(item["why"] for item in part["shown"])
    assert whys["queue: tuned is wrong, few-shot right"] and whys["queue: tuned is right, few-shot wrong"]
    assert whys["queue: tuned is wrong, as the others shown are"], "errors are shown too, not only gains"
    assert part["judged"] and part["wrong"] == 20 and part["labels"] == [("a", 20), ("b", 20)]
    assert part["confusions"] == [] and any(kind for kind, _ in part["shown"][0]["answers"][-1]["parts"]), (
        "texts are marked"
    )


# --- in a browser ------------------------------------------------------------------------------


def opened(browser: Any, path: Path, **context: Any) -> tuple[Any, list[str]]:
    page = browser.new_page(**context)
    errors: list[str] = []
    page.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("dialog", lambda d: errors.append(f"dialog {d.message}") or d.dismiss())
    page.goto(path.resolve().as_uri())
    return page, errors


@pytest.mark.browser
def test_rows_are_searched_filtered_and_turned_over(folder: Callable[..., Path], browser: Any) -> None:
    page, errors = opened(browser, write_page(folder(many())))
    shown = page.locator("#sample-list .sample")
    assert shown.count() == s.PAGE and page.text_content("#sample-count") == "1 to 10 of 300 rows"
    first = shown.first.inner_text()
    page.click("#sample-on")
    assert page.text_content("#sample-count") == "11 to 20 of 300 rows" and shown.first.inner_text() != first
    page.select_option("#sample-outcome", "wrong")
    assert page.text_content("#sample-count") == "1 to 10 of 30 rows"
    assert page.locator("#sample-list .answer.tuned .wrong").count() == 10
    page.select_option("#sample-label", "refund")
    wrong = [r for r in many() if r["prediction"] != r["label"]]
    n = Counter(r["label"] for r in wrong)["refund"]
    assert str(page.text_content("#sample-count")).endswith(f"of {n} rows") if n else True
    page.click("button[type=reset]")
    page.wait_for_function("document.getElementById('sample-count').textContent.endsWith('of 300 rows')")
    page.select_option("#sample-changed", "0:won")
    assert page.text_content("#sample-count") == f"1 to 10 of {sum(i % 25 == 3 and i % 10 != 7 for i in range(300))} rows"  # fmt: skip
    page.select_option("#sample-changed", "")
    page.fill("#sample-search", "NUMBER 299")
    assert shown.count() == 1 and "prompt number 299" in shown.first.inner_text()
    page.fill("#sample-search", "nothing like it")
    assert shown.count() == 0 and page.text_content("#sample-count") == "No row is like that."
    page.fill("#sample-search", "")
    page.select_option("#sample-order", "file")
    assert "prompt number 0" in shown.first.inner_text()
    page.select_option("#sample-order", "low")
    assert "confidence 0.50" in shown.first.inner_text()
    assert not errors


@pytest.mark.browser
def test_without_javascript_the_first_rows_are_there_and_no_dead_buttons(
    folder: Callable[..., Path], browser: Any
) -> None:
    page, _ = opened(browser, write_page(folder(many())), java_script_enabled=False)
    assert page.locator("#sample-list .sample:visible").count() == s.PAGE
    assert not page.locator("#sample-form").is_visible() and not page.locator("#sample-pages").is_visible()
    assert "need JavaScript" in page.inner_text("#samples")


@pytest.mark.browser
def test_hostile_texts_stay_texts_on_every_page_of_rows(folder: Callable[..., Path], browser: Any) -> None:
    rows = [row(i, HOSTILE, HOSTILE if i % 2 else "b", HOSTILE, prompt=f"{HOSTILE} {i}") for i in range(30)]
    page, errors = opened(browser, write_page(folder(rows)))
    for _ in range(2):
        assert "<img src=x" in page.locator("#sample-list .prompt").first.inner_text()
        assert page.locator("#sample-list img, #sample-list script").count() == 0
        page.click("#sample-on")
    assert not errors, errors


@pytest.mark.browser
def test_marks_made_in_the_browser_are_those_of_the_first_page(folder: Callable[..., Path], browser: Any) -> None:
    texts = ["Refund the whole order today.", "Something else entirely", "REFUND  the order, please!", "Refund the order today."]  # fmt: skip
    rows = [
        {"id": f"g{i}", "prompt": f"p{i}", "reference": "Refund the order today.", "label": None, "prediction": texts[i % 4],
         "scores": {"rougeL": i / 40}, "baselines": {}}
        for i in range(20)
    ]  # fmt: skip
    path = write_page(folder(rows, task="generation", primary="rougeL"))
    static, _ = opened(browser, path, java_script_enabled=False)
    live, errors = opened(browser, path)
    for page in (static, live):
        page.wait_for_selector("#sample-list .sample")
    count = static.locator("#sample-list .answer.tuned .text").count()
    assert count == s.PAGE
    for i in range(count):
        item, other = (p.locator("#sample-list .answer.tuned .text").nth(i) for p in (static, live))
        assert item.text_content() == other.text_content()
        marks = [[m.strip() for m in text.locator("mark").all_text_contents()] for text in (item, other)]
        assert marks[0] == marks[1]
    assert not errors
