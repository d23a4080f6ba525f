"""The head of a page: the verdict is the title, and what it rests on stands under it; settings and the gate."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.report.comparison import changed_settings, differing_settings
from tuneloop.report.facts import RunFiles, read_run, shown_metrics, systems_of
from tuneloop.report.head import few_rows, head_part, key_numbers, model_name, rival
from tuneloop.report.html import render_report, write_page

MakeRun = Callable[..., Path]


def edit(path: Path, **more: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def head(run: Path) -> dict[str, Any]:
    facts = read_run(run)
    metrics = shown_metrics(facts.evaluation)
    return head_part(facts, metrics, systems_of(facts.evaluation, metrics))


VERDICT = {"name": "tuned", "outcome": "better", "metric": "accuracy", "against": "few-shot"}


def test_the_title_of_the_page_and_of_its_window_is_the_verdict(make_run: MakeRun) -> None:
    run = make_run()
    edit(run / "eval.json", verdict=VERDICT | {"sentence": "Better than few-shot."}, words=["Better than few-shot.", "And so on."])  # fmt: skip
    page = render_report(run)
    assert re.findall(r"<h1[^>]*>(.*?)</h1>", page) == ["Better than few-shot."]
    edit(run / "eval.json", verdict=VERDICT | {"sentence": "Better than few-shot: accuracy 0.9, p < 0.001."})
    assert (
        '<h1>Better than few-shot: <span class="rest">accuracy 0.9, p\u00a0&lt;\u00a00.001.</span></h1>'
        in render_report(run)
    )
    assert "<title>Better than few-shot. · tuneloop</title>" in page
    assert page.count("Better than few-shot.") == 2 and "And so on." in page
    numbers = {f.name: f for f in head(run)["numbers"]}
    assert numbers["gain"].value == "+0.62" and numbers["gain"].detail.startswith("over few-shot,")


def test_a_run_without_a_verdict_is_named_and_says_what_is_missing(make_run: MakeRun) -> None:
    run = make_run()
    (run / "eval.json").unlink()
    found = head(run)
    assert found["title"] == "banking on smollm2-135m" or "smollm2-135m" in found["title"]
    assert found["state"] == "Trained; not evaluated yet."


def test_what_was_seen_of_the_data_and_the_baselines_stand_under_the_title(make_run: MakeRun) -> None:
    run = make_run()
    edit(run / "run.json", rows=10_000, rows_seen=160, seen="1.6 % of the rows")
    found = head(run)
    numbers = {f.name: (f.value, f.detail) for f in found["numbers"]}
    assert numbers["training rows seen"] == ("1.6 %", "160 of 10,000")
    assert ("few-shot", "0.25") in found["baselines"] and found["metric"] == "accuracy"


def test_a_small_test_set_says_how_little_it_can_show(make_run: MakeRun) -> None:
    run = make_run()
    assert head(run)["few"] == "", "500 rows are not few"
    found = json.loads((run / "eval.json").read_text())
    for pair in found["comparisons"]:
        pair["detectable"] = 0.31
    edit(run / "eval.json", n=16, comparisons=found["comparisons"])
    few = head(run)["few"].replace("\u00a0", " ")
    assert few.startswith("A small test set: 16 rows.") and "[0.84, 0.90]" in few and "below 0.31" in few
    assert few_rows(EvaluationManifest(n=16, metrics={}), [], None) == ""


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/root/.cache/tuneloop/models/smollm2-135m", "smollm2-135m"),
        ("/root/.cache/huggingface/hub/models--meta-llama--Llama-3.2-1B/snapshots/0123abc", "meta-llama/Llama-3.2-1B"),
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("runs/a", "runs/a"),
        (None, ""),
    ],
)
def test_a_model_is_not_called_by_its_place_in_a_cache(given: object, shown: str) -> None:
    assert model_name(given) == shown


# --- settings ----------------------------------------------------------------------------------


def test_only_settings_that_are_not_the_defaults_are_named() -> None:
    from tuneloop.recipe import make_recipe

    config = make_recipe({"name": "tickets"}, ["train.epochs=1", "data.sources=[a.jsonl]"]).model_dump(mode="json")
    changed = {c.key: (c.value, c.default) for c in changed_settings(config)}
    assert changed == {"name": ("tickets", "job"), "data.sources": ("a.jsonl", "–"), "train.epochs": ("1", "3")}


def test_a_learning_rate_is_held_against_the_default_of_its_method() -> None:
    from tuneloop.recipe import make_recipe

    config = make_recipe({}, ["train.method=full"]).model_dump(mode="json")
    assert [c.key for c in changed_settings(config)] == ["train.method"]
    other = make_recipe({}, ["train.method=full", "lr=3e-5"]).model_dump(mode="json")
    assert {c.key: c.default for c in changed_settings(other)}["train.learning_rate"] == "0.0001"


def test_settings_in_which_runs_differ() -> None:
    item = {"version": 1, "train": {"rank": 8, "epochs": 1.0}, "output_dir": "a"}
    other = {"version": 1, "train": {"rank": 16, "epochs": 1.0, "kl": 0.1}, "output_dir": "b"}
    assert differing_settings([item, other, item]) == [
        ("train.rank", ["8", "16", "8"]),
        ("train.kl", ["–", "0.1", "–"]),
    ]


def test_settings_stand_on_the_page_with_all_of_them_folded(make_run: MakeRun) -> None:
    page = render_report(make_run())
    part = page[page.index('id="settings"') :]
    assert "banking77" in part[: part.index("<details>")] and "<summary>All settings</summary>" in part


# --- the gate ----------------------------------------------------------------------------------


def test_the_gates_result_stands_on_the_page_and_an_old_one_says_so(make_run: MakeRun) -> None:
    run = make_run()
    assert 'id="gate"' not in render_report(run)
    checks = [
        {"kind": "metric", "name": "a", "status": "pass", "message": "accuracy: fine"},
        {"kind": "must_pass", "name": "b", "status": "fail", "message": "row <17>: fails"},
    ]
    digest = hashlib.sha256((run / "eval.json").read_bytes()).hexdigest()
    gate = {"version": 1, "status": "fail", "suite": {"name": "bank", "hash": "0" * 64}, "against": {"place": "runs/old"}, "evaluation": digest, "checks": checks}  # fmt: skip
    (run / "gate.json").write_text(json.dumps(gate))
    page = render_report(run)
    part = page[page.index('id="gate"') : page.index('id="comparison"')]
    assert "The gate is failed" in page and "row &lt;17&gt;: fails" in part and "runs/old" in part
    assert part.index("✗ fail") < part.index("✓ pass"), "what failed first"
    assert "evaluated again since" not in page
    edit(run / "eval.json", n=499)
    assert "evaluated again since" in render_report(run)


@pytest.mark.parametrize("gate", [[], {"status": "??"}, {"status": "pass", "checks": 3}, {"status": "pass", "checks": [1, {}]}])  # fmt: skip
def test_a_damaged_gate_does_not_break_the_page(make_run: MakeRun, gate: object) -> None:
    run = make_run()
    (run / "gate.json").write_text(json.dumps(gate))
    assert "<h1" in render_report(run)


# --- several runs ------------------------------------------------------------------------------


def test_a_comparison_of_runs_shows_what_differs_and_their_losses(make_run: MakeRun, tmp_path: Path) -> None:
    item = make_run("classification")
    other = make_run("generation")
    folder = tmp_path / "compared"
    folder.mkdir()
    found = json.loads((item / "eval.json").read_text())
    (folder / "eval.json").write_text(json.dumps(found | {"name": "b", "runs": {"a": str(item), "b": str(other)}}))
    page = write_page(folder).read_text()
    part = page[page.index('id="differ"') :]
    assert "banking77" in part and "tickets" in part and "shape1" in part
    assert re.findall(r'href="#(\w+)"', page)[:3] == ["comparison", "differ", "overlay"]
    (folder / "eval.json").write_text(json.dumps(found | {"runs": {"a": str(item), "b": str(tmp_path / "gone")}}))
    assert 'id="differ"' not in write_page(folder).read_text(), "a run that is gone is left out"


# --- for everybody -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_headings_come_in_order_and_tables_name_their_columns(make_run: MakeRun, kind: str) -> None:
    page = render_report(make_run(kind))
    levels = [int(n) for n in re.findall(r"<h([1-6])", page)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels)), "no level is left out"
    heads = re.findall(r"<th[ >][^>]*", page)
    assert heads and all('scope="' in head for head in heads)
    labelled = re.findall(r"<label>[^<]*<(?:input|select) id=\"([\w-]+)\"", page)
    assert set(labelled) == set(re.findall(r"<(?:input|select) id=\"([\w-]+)\"", page))


def test_where_all_are_compared_with_one_system_the_gain_is_over_that_one() -> None:
    pair = {"metric": "accuracy", "low": -0.4, "high": -0.2, "p": 0.01, "detectable": 0.2, "verdict": "worse"}
    found = EvaluationManifest.model_validate(
        {
            "version": 1, "name": "new:zero-shot", "n": 50, "primary": "accuracy",
            "metrics": {"accuracy": {"value": 0.2, "low": 0.1, "high": 0.3}},
            "baselines": {name: {"accuracy": {"value": value, "low": 0.3, "high": 0.7}} for name, value in (("new", 0.5), ("new:few-shot", 0.4))},
            "comparisons": [{"a": "new", "b": "new:few-shot", "delta": -0.1, **pair}, {"a": "new", "b": "new:zero-shot", "delta": -0.3, **pair}],
        }
    )  # fmt: skip
    lines = systems_of(found, ["accuracy"])
    facts = RunFiles(path=Path("evals/x"), evaluation=found)
    gain = next(figure for figure in key_numbers(facts, ["accuracy"], lines) if figure.name == "gain")
    assert gain.value == "−0.30" and gain.detail.startswith("over new, p")
    assert "A difference from new below 0.20" in few_rows(found, ["accuracy"], rival(found, lines))
