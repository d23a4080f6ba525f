"""Evaluations as other tools write them, recognised by what is in the file; and what is refused, in one sentence."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tuneloop.core.errors import UserError
from tuneloop.evaluation.foreign.read import is_foreign, read_foreign
from tuneloop.evaluation.foreign.record import ForeignEvaluation


def sample(number: int, epoch: int, value: Any, **more: Any) -> dict[str, Any]:
    """A sample of an Inspect log of version 2."""
    return {
        "id": number, "epoch": epoch, "input": [{"role": "user", "content": f"What is {number}?"}], "target": "1",
        "scores": {"match": {"value": value, "answer": "1"}}, "metadata": {"topic": "even"},
        "output": {"completion": "1"},
    } | more  # fmt: skip


def inspect_log(samples: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    return {"version": 2, "status": "success", "eval": {"task": "t", "model": "m/a"}, "samples": list(samples)} | more


def written(path: Path, value: Any) -> str:
    lines = isinstance(value, list) and path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(v) + "\n" for v in value) if lines else json.dumps(value), encoding="utf-8")
    return str(path)


def the_one(path: str) -> ForeignEvaluation:
    (evaluation,) = read_foreign(path)
    return evaluation


def refused(path: str) -> str:
    with pytest.raises(UserError) as error:
        read_foreign(path)
    return str(error.value)


SAMPLES = [sample(1, 1, "C"), sample(1, 2, "I"), sample(2, 1, "P"), sample(2, 2, 1)]


def test_an_inspect_log_as_json_has_its_epochs_together(tmp_path: Path) -> None:
    log = the_one(written(tmp_path / "log.json", inspect_log(SAMPLES)))
    assert (log.tool, log.system, log.epochs, log.notes) == ("Inspect", "m/a", 2, [])
    assert log.items["1"].scores == {"match": [1.0, 0.0]} and log.items["2"].mean("match") == 0.75
    item = log.items["1"]
    assert (item.text, item.reference, item.answer, item.meta) == ("What is 1?", "1", "1", {"topic": "even"})


@pytest.mark.parametrize("zstandard", [False, True])
def test_an_inspect_log_as_zip_is_read_a_sample_at_a_time(tmp_path: Path, zstandard: bool) -> None:
    kind: Any = zipfile
    if zstandard:
        kind = pytest.importorskip("backports.zstd.zipfile")
    header = {k: v for k, v in inspect_log([]).items() if k != "samples"}
    with kind.ZipFile(tmp_path / "log.eval", "w", 93 if zstandard else zipfile.ZIP_DEFLATED) as log:
        for item in SAMPLES:
            log.writestr(f"samples/{item['id']}_epoch_{item['epoch']}.json", json.dumps(item))
        log.writestr("header.json", json.dumps(header))
    assert the_one(str(tmp_path / "log.eval")).items["1"].scores == {"match": [1.0, 0.0]}


def test_long_samples_are_folders_and_long_texts_are_kept_apart(tmp_path: Path) -> None:
    parts = sample(
        1, 1, "C", input=[{"role": "user", "content": "attachment://abc"}], attachments={"abc": 'a "long" text'}
    )
    with zipfile.ZipFile(tmp_path / "log.eval", "w") as log:
        log.writestr("header.json", json.dumps({"status": "success", "eval": {"task": "t", "model": "m"}}))
        log.writestr("samples/1_epoch_1.json", json.dumps(parts))
        log.writestr(
            "samples/2_epoch_1/sample.json", json.dumps(sample(2, 1, "I", metadata={}, input="attachment://0"))
        )
        log.writestr("samples/2_epoch_1/metadata.json", json.dumps({"topic": "odd"}))
        log.writestr("samples/2_epoch_1/events/0.json", "[]")
    items = the_one(str(tmp_path / "log.eval")).items
    assert items["1"].text == 'a "long" text' and (items["2"].text, items["2"].key) == ("", "")
    assert items["2"].meta == {"topic": "odd"} and items["2"].mean("match") == 0.0


def test_a_log_that_was_cut_off_says_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "log.eval", "w") as log:
        log.writestr("_journal/start.json", json.dumps({"version": 2, "eval": {"task": "t", "model": "m"}}))
        log.writestr("samples/1_epoch_1.json", json.dumps(sample(1, 1, "C")))
    assert "status is 'started'" in the_one(str(tmp_path / "log.eval")).notes[0]
    whole = (tmp_path / "log.eval").read_bytes()
    (tmp_path / "log.eval").write_bytes(whole.replace(b"task", b"tusk", 1))
    assert "damaged or cut off" in refused(str(tmp_path / "log.eval"))


def test_versions_and_shapes_of_inspect_scores_are_mixed(tmp_path: Path) -> None:
    old = sample(1, 1, "C") | {"scores": None, "score": {"value": "I"}}
    several = sample(2, 1, {"a": 1, "b": "I"})
    failed = sample(3, 1, "C", error={"message": "timeout"}, scores={})
    log = the_one(written(tmp_path / "log.json", inspect_log([old, several, failed], status="error")))
    assert log.metrics == ["score", "match/a", "match/b"]
    assert "status is 'error'" in log.notes[0] and "1 sample ended in an error" in log.notes[1]


def test_promptfoo_gives_an_evaluation_for_each_provider(tmp_path: Path) -> None:
    def line(provider: str, text: str, ok: bool, **more: Any) -> dict[str, Any]:
        grading = {"gradingResult": {"pass": ok, "score": float(ok)}, "namedScores": {"polite": 0.5}}
        return {"provider": {"id": provider}, "promptIdx": 0, "vars": {"question": text, "topic": "a"},
                "success": ok, "score": float(ok), "response": {"output": "x"}} | grading | more  # fmt: skip

    lines = [line("a", "q1", True), line("a", "q2", False), line("b", "q1", True), line("b", "q1", False)]
    lines.append(line("b", "q2", False, failureReason=2, error="rate limit", gradingResult=None))
    path = written(tmp_path / "results.json", {"evalId": "e", "results": {"version": 3, "results": lines}})
    a, b = read_foreign(path)
    assert (a.system, b.system, a.metrics) == ("a", "b", ["pass", "score", "polite"])
    assert a.items.keys() == b.items.keys() and len(a.items) == 2
    (averaged,) = (item for item in b.items.values() if item.text == "q1")
    assert averaged.mean("pass") == 0.5 and any("ended in an error" in note for note in b.notes)
    assert read_foreign(f"{path}:b")[0].system == "b"
    assert "no one system 'c'" in refused(f"{path}:c") and "choose one of a, b" in refused(f"{path}:c")


def lm_eval_sample(number: int, value: float, **more: Any) -> dict[str, Any]:
    return {"doc_id": number, "doc": {"question": f"q{number}"}, "target": "1", "resps": [["1"]],
            "filtered_resps": ["1"], "doc_hash": "h", "acc": value} | more  # fmt: skip


def test_samples_of_lm_eval_are_a_file_or_the_folder_of_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "model"
    folder.mkdir(parents=True)
    item = folder / "samples_first_2026-11-30T10-20-30.123456.jsonl"
    strict = lm_eval_sample(0, 0.0, filter="strict", metrics=["acc"])
    assert the_one(written(item, [lm_eval_sample(0, 1.0), strict])).items["0"].scores == {
        "acc": [1.0],
        "acc,strict": [0.0],
    }
    written(folder / "samples_first_2026-11-29T10-20-30.123456.jsonl", [lm_eval_sample(0, 0.0)])
    written(folder / "samples_second_task_2026-11-30T10-20-30.123456.jsonl", [lm_eval_sample(0, 0.0)])
    whole = the_one(str(tmp_path / "out"))
    assert set(whole.items) == {"first/0", "second_task/0"} and whole.items["first/0"].mean("acc") == 1.0
    assert whole.items["first/0"].meta["task"] == "first" and "1 older" in whole.notes[0]
    (tmp_path / "out" / "other").mkdir()
    written(tmp_path / "out" / "other" / "samples_first_2026-11-30T10-20-30.1.jsonl", [lm_eval_sample(0, 0.0)])
    assert "samples of several models" in refused(str(tmp_path / "out"))


def test_output_items_and_the_event_log_of_openai(tmp_path: Path) -> None:
    items = [
        {"object": "eval.run.output_item", "id": f"o{i}", "datasource_item_id": i, "datasource_item": {"input": f"q{i}"},
         "results": [{"name": "exact", "passed": i == 0, "score": float(i == 0)}],
         "sample": {"model": "gpt", "output": [{"role": "assistant", "content": "x"}]}}
        for i in range(2)
    ]  # fmt: skip
    page = the_one(written(tmp_path / "page.json", {"object": "list", "data": items, "has_more": True}))
    assert page.system == "gpt" and page.items["0"].scores == {"exact": [1.0]} and "has_more" in page.notes[0]
    assert the_one(written(tmp_path / "items.jsonl", items)).items.keys() == {"0", "1"}
    events = [
        {"spec": {"completion_fns": ["gpt-4"]}},
        {
            "run_id": "r",
            "event_id": 0,
            "sample_id": "s.1",
            "type": "sampling",
            "data": {"prompt": "q", "sampled": ["a"]},
        },
        {"run_id": "r", "event_id": 1, "sample_id": "s.1", "type": "match", "data": {"correct": True, "expected": "a"}},
        {"final_report": {"accuracy": 1.0}},
    ]
    log = the_one(written(tmp_path / "events.jsonl", events))
    assert log.system == "gpt-4" and log.items["s.1"].scores == {"match": [1.0]} and log.items["s.1"].text == "q"


def test_tables_of_mlflow(tmp_path: Path) -> None:
    old = {"columns": ["inputs", "outputs", "ground_truth", "toxicity/v1/score", "exact_match/v1/score"],
           "data": [["q1", "a", "a", 0.1, 1], ["q2", "b", "c", 0.2, 0]]}  # fmt: skip
    table = the_one(written(tmp_path / "eval_results_table.json", old))
    assert table.metrics == ["toxicity", "exact_match"] and len(table.items) == 2
    feedback = [{"assessment_name": "correct", "feedback": {"value": "yes"}},
                {"assessment_name": "broken", "feedback": {"value": None, "error": {"error_code": "x"}}},
                {"assessment_name": "expected", "expectation": {"value": "a"}}]  # fmt: skip
    new = [{"trace_id": "t1", "request": {"question": "q1"}, "response": "a", "assessments": feedback}]
    traces = the_one(written(tmp_path / "traces.json", new))
    assert traces.metrics == ["correct"] and next(iter(traces.items.values())).scores["correct"] == [1.0]


def test_deepeval_and_ragas(tmp_path: Path) -> None:
    metrics = [{"name": "Faithfulness", "score": 0.5, "success": True}, {"name": "Bias", "score": None, "error": "x"}]
    cases = [{"name": "test_case_0", "input": "q", "actualOutput": "a", "metricsData": metrics}]
    run = the_one(written(tmp_path / ".latest_test_run.json", {"testRunData": {"testCases": cases}}))
    assert run.metrics == ["Faithfulness"] and next(iter(run.items.values())).text == "q"
    (tmp_path / "ragas.csv").write_text(
        "user_input,response,reference,faithfulness,mode\nq,a,r,0.5,fast\nw,a,r,,slow\n"
    )
    table = the_one(str(tmp_path / "ragas.csv"))
    assert (table.tool, table.metrics) == ("ragas", ["faithfulness"])
    assert next(iter(table.items.values())).meta == {"mode": "fast"}


def test_a_plain_table_has_ids_scores_and_repeats(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\ufeffid;score;topic\na;1;x\na;0;x\nb;pass;y\nc;;y\n", encoding="utf-8")
    table = the_one(str(tmp_path / "t.csv"))
    assert table.items["a"].scores == {"score": [1.0, 0.0]} and table.items["b"].mean("score") == 1.0
    assert table.notes == ["1 id occurs more than once and is averaged: a."]
    assert table.items["a"].meta == {"topic": "x"}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "id,colour\n1,x\n", "no column has scores"),
        ("a.csv", "name,score\n1,2\n", "no column has ids or inputs"),
        ("a.csv", "", "no column has ids or inputs"),
        ("a.jsonl", '{"id": 1, "score": 1}\n{"id": 2, "sc\n', "a.jsonl:2"),
        ("a.jsonl", '{"id": 1, "prediction": "x"}\n', "--references FILE"),
        ("a.jsonl", '{"id": 1, "input": "x", "score": 1}\n{"id": 1, "input": "y", "score": 1}\n', "Two different prompts"),
        ("a.json", json.dumps(inspect_log([])), "No samples in this Inspect file"),
        ("a.json", json.dumps(inspect_log([{"epoch": 1}])), "A sample of this Inspect log has no id"),
        ("a.json", json.dumps({"results": {"results": [{"vars": {}, "gradingResult": 3}]}}), "damaged"),
    ],
)  # fmt: skip
def test_what_can_not_be_read_is_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert says in refused(str(tmp_path / name))


def test_other_bytes_than_utf_8_are_refused_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("id,score\n1,1\nü,0\n".encode("latin-1"))
    assert "line 3 has other bytes" in refused(str(tmp_path / "a.csv"))


def test_folders_of_ours_are_not_foreign(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text("{}")
    assert not is_foreign(str(tmp_path)) and not is_foreign(f"{tmp_path}:few-shot") and not is_foreign("champion@x")
    assert "No such file" in refused(str(tmp_path / "no.csv"))
