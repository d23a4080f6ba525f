"""Rows in, answers out: asked as trained, in order, resumable, and what can't be asked is told in its place."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from local_http import Quiet, listening

import tuneloop
from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, read_jsonl, write_json
from tuneloop.core.ui import reporting
from tuneloop.data.dataset import load_dataset
from tuneloop.data.sources.read import read_records
from tuneloop.data.task import TaskPrompt
from tuneloop.inference.request import Request
from tuneloop.pipeline.answers import predictions as predicting
from tuneloop.pipeline.answers.asking import open_with_task
from tuneloop.pipeline.answers.predictions import Asker, Options, journal_of
from tuneloop.records.rows import Reject
from tuneloop.release.export import export_run

MakeTuned = Callable[..., Path]
ROWS = [{"id": i, "text": f"where is parcel {i}"} for i in range(7)]


def write(name: str, records: list[Any]) -> str:
    Path(name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return name


def told(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    assert main([*arguments, "--json", "--quiet"]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


# --- who is asked ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["runs/nope", "./nope", "artifacts/nope"])
def test_a_target_that_is_not_there_is_refused_before_its_rows_are_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write("new.jsonl", [{"request": "where is it", "intent": "a"}])
    for command in (["predict", name, rows], ["chat", name]):
        assert main(command) == 2
        assert "No such file or folder" in (said := capsys.readouterr().err) and name.removeprefix("./") in said


def test_a_name_that_is_no_folder_and_not_on_the_hub_says_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = write("new.jsonl", [{"request": "where is it", "intent": "a"}])
    assert main(["predict", "someone/nope", rows]) == 2
    said = capsys.readouterr().err
    assert "someone/nope" in said and "there is no folder of this name here" in said and "column" not in said


# --- as trained ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "forms"), [("lora", ["adapter", "merged"]), ("prefix", ["adapter"]), ("full", ["merged"])]
)
def test_a_run_and_its_exports_read_the_tokens_that_were_trained(
    method: str, forms: list[str], make_tuned: MakeTuned
) -> None:
    run = make_tuned(method=method)
    records = [json.loads(line) for line in Path("run.jsonl").read_text().splitlines()]
    raw = [{"text": record["text"]} for record in records]
    targets = [str(run), str(run / ("model" if method == "full" else "adapter"))]
    targets += [str(export_run(run, form, Path(form)).folder) for form in forms]
    answers = []
    for name in targets:
        opened = open_with_task(name)
        target, asker = opened.local, Asker(opened, Options(), raw)
        assert target is not None
        for row in load_dataset(run / "dataset").train[:5]:
            made = asker.read(raw[row.meta["line"] - 1])
            assert isinstance(made, TaskPrompt)
            rendered = target.model.template.render(row.messages, row.tools)
            asked = next(i for i, learned in enumerate(rendered.mask) if learned)
            shown = target.rendered(asker.request(made))
            assert isinstance(shown, Request) and shown.ids == rendered.ids[:asked], name
        with reporting(progress=lambda *a, **k: None):
            answers.append([answer.label for answer in asker.answers(raw[:5])])
    assert set(answers[0]) <= {"late", "lost", "thanks"} and all(answer == answers[0] for answer in answers)


def test_a_template_that_was_changed_since_gives_way_to_the_one_that_was_trained(make_tuned: MakeTuned) -> None:
    run = make_tuned(method="full")
    own = read_json(run / "model" / "tuneloop.json")
    template = "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>{{ m['content'] }}<|eot_id|>{% endfor %}"
    write_json(run / "model" / "tuneloop.json", {**own, "task": {**own["task"], "chat_template": template}})
    assert open_with_task(str(run)).local.model.template.source == template


def test_a_run_whose_weights_say_no_task_has_none(make_tuned: MakeTuned) -> None:
    run = make_tuned()
    own = read_json(run / "adapter" / "tuneloop.json")
    own.pop("task")
    write_json(run / "adapter" / "tuneloop.json", own)
    assert open_with_task(str(run)).task is None


# --- the library --------------------------------------------------------------------------------------


def test_the_library_gives_typed_answers_in_order(make_tuned: MakeTuned) -> None:
    run = make_tuned()
    rows: list[Any] = [
        "where is it",
        {"text": ""},
        [{"role": "user", "content": "where is it"}],
        {"text": "where is it"},
    ]
    found = list(tuneloop.predict(run, rows, top=3))
    assert [answer.error for answer in found] == [
        "",
        "empty_input: column 'text' is empty",
        "missing_field: no column 'text'",
        "",
    ]
    first = found[0]
    assert first == found[3] and first.text == first.label and first.finish == "stop"
    assert first.probabilities is not None and first.probability == pytest.approx(
        first.probabilities[first.text], abs=1e-6
    )
    assert sum(first.probabilities.values()) == pytest.approx(1.0) and next(iter(first.probabilities)) == first.text
    bound = next(iter(tuneloop.predict(run, ["where is it"])))
    assert (
        bound.label == first.label and bound.probability is not None and bound.probability <= first.probability + 1e-6
    )
    assert list(tuneloop.predict(run, [])) == []
    with pytest.raises(UserError, match="no record has it"):
        tuneloop.predict(run, [{"id": "1", "words": "where"}])
    with pytest.raises(UserError, match="no run, artifact or model"):
        tuneloop.predict(run.parent / "rum", ["where"])


def test_written_answers_end_and_are_cut(make_tuned: MakeTuned) -> None:
    records = [{"question": f"what {i} of {i * 7}", "answer": f"it is {i}"} for i in range(40)]
    run = make_tuned(records)
    answers = list(tuneloop.predict(run, [{"question": "what 3"}], max_new_tokens=3))
    assert answers[0].finish == "length" and answers[0].tokens == 3 and answers[0].label is None
    with pytest.raises(UserError, match="Only labels have probabilities"):
        tuneloop.predict(run, [{"question": "what 3"}], top=2)


# --- files --------------------------------------------------------------------------------------------


def test_a_table_keeps_its_columns_and_gets_answers(make_tuned: MakeTuned, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_tuned()
    Path("in.csv").write_bytes(
        'n,text,prediction,note\r\n7,"Wo ist, mein ""Paket""? 🦙",old,größer\r\n8,,old,\r\n9,lost it,old,x\r\n'.encode()
    )
    summary = told(capsys, "predict", str(run), "in.csv", "--out", "out.csv", "--top", "2", status=1)
    assert (summary["rows"], summary["answered"], summary["error_kinds"]) == (3, 2, {"empty_input": 1})
    data = Path("out.csv").read_bytes()
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    assert list(rows[0]) == ["n", "text", "prediction", "note", "prediction_", "probability", "probabilities", "error"]
    assert [row["n"] for row in rows] == ["7", "8", "9"] and rows[0]["text"] == 'Wo ist, mein "Paket"? 🦙'
    assert rows[0]["prediction_"] in ("late", "lost", "thanks") and 0 < float(rows[0]["probability"]) <= 1
    assert len(json.loads(rows[0]["probabilities"])) == 2
    assert (rows[1]["prediction_"], rows[1]["error"]) == ("", "empty_input: column 'text' is empty")
    assert not journal_of(Path("out.csv")).exists()


def test_lines_of_text_come_from_the_standard_input(make_tuned: MakeTuned, cli: Any) -> None:
    run = make_tuned()
    done = cli("predict", str(run), "-", input="where is it?\r\n\r\nGrüße, 道 🦙\n")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and [row["text"] for row in rows] == ["where is it?", "Grüße, 道 🦙"]
    assert (
        all(row["prediction"] in ("late", "lost", "thanks") for row in rows) and "2 of 2 rows answered" in done.stderr
    )


def test_broken_lines_and_long_rows_are_told_in_their_places(
    make_tuned: MakeTuned, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_tuned()
    monkeypatch.setattr(predicting.Asker, "limit", 4)
    monkeypatch.setattr("tuneloop.models.load.Model.context", 200)
    Path("in.jsonl").write_text(
        '{"text": "one"}\n{"text": \n{"text": "' + "long " * 300 + '"}\n\n{"text": "two", "x": [1, {"a": null}]}\n'
    )
    assert main(["predict", str(run), "in.jsonl", "-o", "out.jsonl", "-q"]) == 1
    rows = read_jsonl("out.jsonl")
    assert [bool(row["error"]) for row in rows] == [False, True, True, False]
    assert rows[1]["error"].startswith("broken_json") and rows[1]["line"] == 2
    assert (
        rows[2]["error"].startswith("too_long")
        and "the model reads 200" in rows[2]["error"]
        and rows[2]["prediction"] is None
    )
    assert rows[3]["x"] == [1, {"a": None}]


def test_with_json_the_rows_are_in_the_one_object_unless_they_go_to_a_file(
    make_tuned: MakeTuned, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_tuned()
    write("in.jsonl", ROWS)
    summary = told(capsys, "predict", str(run), "in.jsonl")
    assert summary["rows"] == 7 and [row["id"] for row in summary["predictions"]] == list(range(7))
    again = told(capsys, "predict", str(run), "in.jsonl", "--out", "out.jsonl")
    assert "predictions" not in again and read_jsonl("out.jsonl") == summary["predictions"]
    assert again["out"] == "out.jsonl" and again["kind"] == "run"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "empty.jsonl"), "empty"),
        (("run", "blank.txt"), "no rows|empty|No rows"),
        (("run", "broken.jsonl"), "No row of 1 can be read"),
        (("run", "none.jsonl"), "No such file"),
        (("run", "other.jsonl"), "trained on the column 'text'"),
        (("run", "in.jsonl", "--out", "out.parquet"), ".csv or .jsonl"),
        (("run", "in.jsonl", "--out", "folder.csv"), "A folder has this name"),
        (("run", "in.jsonl", "--out", "./in.jsonl"), "of its rows"),
        (("run", "in.jsonl", "--column", "texts"), "did you mean 'text'"),
        (("run", "in.jsonl", "--out", "in.jsonl/out.csv"), "Can't write"),
        (("runs/none", "in.jsonl"), "no run, artifact or model"),
        (("begun", "in.jsonl"), "has not finished training"),
        (("http://127.0.0.1:9", "in.jsonl"), "--model"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    arguments: tuple[str, ...],
    said: str,
    make_tuned: MakeTuned,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import re

    make_tuned()
    monkeypatch.setattr("tuneloop.inference.local.target.load_model", lambda *a, **k: pytest.fail("loaded a model"))
    write("in.jsonl", ROWS)
    write("other.jsonl", [{"id": "1", "body": "x"}])
    Path("empty.jsonl").write_text("")
    Path("blank.txt").write_text(" \n\n")
    Path("broken.jsonl").write_text("{\n")
    for folder in ("folder.csv", "runs", "begun"):
        Path(folder).mkdir()
    Path("begun/config.yaml").write_text("version: 1\n")
    assert main(["predict", *arguments, "-q"]) == 2
    shown = capsys.readouterr().err
    assert re.search(said, shown) and "should not happen" not in shown and len(shown.strip().splitlines()) <= 3


# --- interruptions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_predict_goes_on_and_the_result_is_the_same(
    torn: bool, make_tuned: MakeTuned, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_tuned()
    write("in.jsonl", [*ROWS[:3], {"id": 99, "text": ""}, *ROWS[3:]])
    monkeypatch.setattr(predicting, "SCORED_AT_ONCE", 2)
    assert main(["predict", str(run), "in.jsonl", "-o", "whole.jsonl", "-q"]) == 1
    answer_block = Asker.answer_block
    asked: list[int] = []

    def dying(self: Asker, records: Any, **options: Any) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(records))
        return answer_block(self, records, **options)

    monkeypatch.setattr(Asker, "answer_block", dying)
    assert main(["predict", str(run), "in.jsonl", "-o", "out.jsonl", "-q"]) == 130
    journal = journal_of(Path("out.jsonl"))
    assert not Path("out.jsonl").exists() and len(journal.read_text().splitlines()) == 3
    if torn:
        journal.write_bytes(journal.read_bytes()[:-9])  # killed while it wrote: that block is asked again
    asked.clear()
    capsys.readouterr()
    monkeypatch.setattr(
        Asker,
        "answer_block",
        lambda self, records, **o: (asked.append(len(records)), answer_block(self, records, **o))[1],
    )
    found = told(capsys, "predict", str(run), "in.jsonl", "-o", "out.jsonl", status=1)
    assert found["resumed"] == (2 if torn else 4) and asked == ([2, 2, 2] if torn else [2, 2])
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes() and not journal.exists()


def test_unfinished_answers_of_something_else_are_left_alone(
    make_tuned: MakeTuned, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_tuned()
    write("in.jsonl", ROWS)
    journal = journal_of(Path("out.jsonl"))
    journal.write_text('{"version": 1, "key": "other"}\n[]\n')
    assert main(["predict", str(run), "in.jsonl", "-o", "out.jsonl", "-q"]) == 2
    assert "Unfinished answers are here" in capsys.readouterr().err and journal.read_text().endswith("[]\n")


# --- endpoints ----------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[Any]:
    """Answers with the number of turns."""

    class Handler(Quiet):
        def do_POST(self) -> None:
            body = json.loads(self.body())
            http.asked.append(body["messages"])
            self.answer(200, {"choices": [{"message": {"content": f"{len(body['messages'])} turns"}}]})

    http = SimpleNamespace(asked=[], url="")
    with listening(Handler) as http.url:
        yield http


def test_an_endpoint_is_asked_as_the_artifact_that_it_serves(
    server: Any, make_tuned: MakeTuned, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_tuned(data={"instruction": "Sort."})
    write("in.jsonl", [{"text": "cafÃ©"}])
    ask = ("predict", server.url, "in.jsonl", "--model", "m", "--no-cache")
    assert told(capsys, *ask, "--task", str(run))["predictions"][0]["prediction"] == "2 turns"
    assert server.asked[-1] == [{"role": "system", "content": "Sort."}, {"role": "user", "content": "café"}]
    assert told(capsys, *ask)["predictions"][0]["prediction"] == "1 turns"
    assert server.asked[-1] == [{"role": "user", "content": "cafÃ©"}]


def test_a_data_set_that_says_too_little_costs_no_training_that_is_done(make_tuned: MakeTuned) -> None:
    from dataclasses import replace

    from tuneloop.pipeline.answers.asking import write_task
    from tuneloop.pipeline.context import RunContext

    run = make_tuned()
    before = read_json(run / "adapter" / "tuneloop.json")
    dataset = load_dataset(run / "dataset")
    said: list[str] = []
    manifest = dataset.manifest.model_copy(update={"config": {"of_another_version": 1}})
    with reporting(say=said.append):
        write_task(RunContext.of_run(run), replace(dataset, manifest=manifest))
    assert "can't be kept with it" in said[0] and read_json(run / "adapter" / "tuneloop.json") == before


def test_a_table_of_answers_holds_no_formula_and_is_read_back(
    make_tuned: MakeTuned, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_tuned()
    texts = ["=cmd|' /C calc'!A0", "+1 where is it", "-broken", "@SUM(A1:A9)", "\tthank you", "'=quoted", "-5"]
    write("in.jsonl", [{"=name": text, "text": text, "n": -5} for text in texts])
    told(capsys, "predict", str(run), "in.jsonl", "--out", "out.csv")
    with open("out.csv", newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert all(
        not cell.strip().startswith(("=", "+", "-", "@")) or cell == "-5" for row in [head, *rows] for cell in row
    )
    assert [row[2] for row in rows] == ["-5"] * len(texts)
    back = [record.value for record in read_records(["out.csv"]) if not isinstance(record, Reject)]
    assert [record["text"] for record in back] == texts


def test_rows_without_the_models_column_are_refused_with_both_lists(
    make_tuned: MakeTuned, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_tuned()
    for record in ({"note": "where is it"}, {"note": "where is it", "n": 3}):
        write("in.jsonl", [record])
        assert main(["predict", str(run), "in.jsonl", "-o", "out.csv"]) == 2
        message = capsys.readouterr().err
        assert "'text'" in message and "'note'" in message and "--column" in message
        assert not Path("out.csv").exists()
