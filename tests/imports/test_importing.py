"""Traces of other tools come into a store: each once, whole, without personal data, and what can't is accounted for."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from imported import NOON, brought, faults, row, stored

from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc
from tuneloop.core.ui import reporting
from tuneloop.data.config import PersonalConfig
from tuneloop.data.pii.redact import Redactor
from tuneloop.imports import importing
from tuneloop.imports.formats import FORMATS
from tuneloop.imports.importing import TraceSource, import_traces, request_id
from tuneloop.imports.parts import TracePart, seconds_of
from tuneloop.serving.store.forget import forget_requests

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_row_becomes_a_request_with_all_that_it_says(tmp_path: Path) -> None:
    summary = brought(tmp_path, "jsonl", [row(1, finish_reason="max_tokens", prompt_version="support/4")])
    ((item,), _) = stored(tmp_path)
    assert (summary.requests, summary.records, summary.left_out, summary.rejects) == (1, 1, {}, "")
    assert item.prompt == [{"role": "user", "content": "question 1"}] and item.completion == "answer 1"
    assert (item.model, item.conversation, item.release, item.finish) == ("gpt", "s1", "support/4", "length")
    assert (item.prompt_tokens, item.completion_tokens, item.usd, item.total_ms) == (7, 3, 0.001, 900.0)
    assert item.time == utc(NOON + 1) and item.tier == "import" and item.id[14] == "7"
    assert summary.without == ["ttft_ms"]


def test_the_same_import_again_adds_nothing_and_requests_are_in_the_order_of_their_times(tmp_path: Path) -> None:
    rows = [row(number, thumbs="up") for number in (5, 1, 9, 3)]
    first, again = (brought(tmp_path, "jsonl", rows) for _ in range(2))
    assert (first.requests, first.feedback, again.requests, again.feedback, again.known) == (4, 4, 0, 0, 8)
    requests, feedback = stored(tmp_path)
    assert [request.prompt[0]["content"] for request in requests] == [f"question {n}" for n in (1, 3, 5, 9)]
    assert {item.request for item in feedback} == {request.id for request in requests}
    assert {(item.kind, item.value, item.source) for item in feedback} == {("thumbs", True, "file")}


def test_personal_data_and_names_of_users_stay_outside(tmp_path: Path) -> None:
    secret = "write to anna.smith@example.com or call +1 202 555 0143"
    brought(tmp_path, "jsonl", [row(1, user="anna.smith@example.com", answer=secret, comment=secret)])
    ((item,), (comment,)) = stored(tmp_path)
    assert item.completion == "write to <EMAIL> or call <PHONE>" == comment.value
    assert item.user is not None and item.user == comment.user and item.user.startswith("u-")
    whole = b"".join(path.read_bytes() for path in (tmp_path / "serve").rglob("*") if path.is_file())
    assert b"anna" not in whole and b"555 0143" not in whole


def test_a_user_is_the_same_pseudonym_in_a_store_another_in_another_and_can_be_forgotten(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        brought(folder, "jsonl", [row(1), row(4), row(2)])
    here, there = (stored(tmp_path / name)[0] for name in "ab")
    assert here[0].user == here[2].user != here[1].user and here[0].user != there[0].user
    brought(tmp_path / "c", "jsonl", [row(1)], keep_users=True)
    assert stored(tmp_path / "c")[0][0].user == "user1"
    matched, _ = forget_requests(tmp_path / "a" / "serve", "user=user1", dry_run=False)
    assert len(matched.requests) == 2 and len(stored(tmp_path / "a")[0]) == 1


def test_what_is_wrong_with_a_row_is_said_by_its_line_and_costs_no_other(tmp_path: Path) -> None:
    rows: list[Any] = [
        row(1), b"{broken", b'["a list"]', row(2, id=""), row(3, time=""), row(4, time="2199-01-01T00:00:00Z"),
        row(1), row(1, answer="another"), row(5, messages=None, prompt=None), row(6, answer=None),
        row(7, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        {"unrelated": 1}, row(8, rating=11), b'{"id": "r9", "time": 1790000009, "prompt": "caf\xe9", "answer": "ok"}',
    ]  # fmt: skip
    summary = brought(tmp_path, "jsonl", rows)
    found = {(line["line"], line["reason"]) for line in faults(summary)}
    assert {(4, "no_id"), (5, "no_time"), (6, "future_time"), (8, "duplicate_id"), (9, "without_prompt")} <= found
    assert {(10, "without_answer"), (11, "without_prompt"), (12, "wrong_type"), (13, "bad_feedback")} <= found
    assert {line for line, _ in found} >= {2, 3} and summary.repeated == 1
    assert summary.incomplete == {"without_prompt": 2, "without_answer": 1}
    requests, feedback = stored(tmp_path)
    assert len(requests) == summary.requests and not feedback
    assert {request.prompt[0]["content"] for request in requests if request.prompt} >= {
        "question 1",
        "question 6",
        "question 8",
    }


def test_a_source_of_another_format_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Nothing of Langfuse in 2 records"):
        brought(tmp_path, "langfuse", [row(1), row(2)])
    assert stored(tmp_path) == ([], [])
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match="The file is empty"):
        import_traces(TraceSource(FORMATS["jsonl"], [str(tmp_path / "empty.jsonl")], dict), tmp_path / "serve")
    assert not list((tmp_path / "serve").glob("import-*"))


class Killed(BaseException):
    """The process ended here."""


def test_a_source_that_is_not_there_makes_no_store(tmp_path: Path) -> None:
    for name, message in (("gone.jsonl", "No such file"), ("fifo", "Not a regular file")):
        if name == "fifo":
            os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match=message):
            import_traces(TraceSource(FORMATS["jsonl"], [str(tmp_path / name)], dict), tmp_path / "serve")
        assert not (tmp_path / "serve").exists()


def test_a_file_in_another_encoding_is_read_and_said(tmp_path: Path) -> None:
    lines = [json.dumps(row(number, answer="grüße aus köln, tschüß"), ensure_ascii=False) for number in range(3)]
    (tmp_path / "old.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    said: list[str] = []
    with reporting(said.append):
        summary = import_traces(TraceSource(FORMATS["jsonl"], [str(tmp_path / "old.jsonl")], dict), tmp_path / "serve")
    assert summary.requests == 3 and stored(tmp_path)[0][0].completion == "grüße aus köln, tschüß"
    assert len(said) == 1 and "old.jsonl is no UTF-8: read as" in said[0]


def test_an_import_that_is_killed_while_it_reads_has_stored_nothing_and_continues_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    plain, whole = FORMATS["jsonl"], [row(number) for number in range(45)]
    monkeypatch.setattr(importing, "CHUNK", 10 * len(json.dumps(whole[10])))

    def parts(record: Any) -> Iterator[TracePart]:
        if len(seen) == 25:
            seen.append("")
            raise Killed
        seen.append(record["id"])
        yield from plain.parts(record)

    monkeypatch.setitem(FORMATS, "jsonl", replace(plain, parts=parts))
    with pytest.raises(Killed):
        brought(tmp_path, "jsonl", whole)
    assert stored(tmp_path) == ([], []) and len(list((tmp_path / "serve").glob("import-*.db"))) == 1
    source = TraceSource(FORMATS["jsonl"], [str(tmp_path / "x.jsonl")], Redactor(PersonalConfig()))
    summary = import_traces(source, tmp_path / "serve")
    assert (summary.records, summary.requests) == (45, 45)
    assert seen[:20].count("r5") == 1 and seen.count("r5") == 1 and seen.count("r22") == 2  # chunks before it stay
    assert not list((tmp_path / "serve").glob("import-*.db*"))


def test_an_import_that_is_killed_while_it_stores_is_completed_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "BATCH", 10)
    real, calls = importing.insert, iter(range(100))

    def insert(*of: Any) -> int:
        if next(calls) == 2:
            raise Killed
        return real(*of)

    monkeypatch.setattr(importing, "insert", insert)
    rows = [row(number, thumbs=True, answer=None if number == 30 else "ok") for number in range(45)]
    with pytest.raises(Killed):
        brought(tmp_path, "jsonl", rows)
    assert len(stored(tmp_path)[0]) == 20
    source = TraceSource(FORMATS["jsonl"], [str(tmp_path / "x.jsonl")], Redactor(PersonalConfig()))
    summary = import_traces(source, tmp_path / "serve")
    assert (summary.requests, summary.known, summary.feedback) == (25, 20, 45)
    assert [line["reason"] for line in faults(summary)] == ["without_answer"]


def test_ids_follow_from_those_of_the_source_and_sort_by_time() -> None:
    item = request_id("t", "a", NOON)
    assert item == request_id("t", "a", NOON) != request_id("t", "b", NOON)
    assert item[14] == "7" and item[19] in "89ab" and item < request_id("t", "a", NOON + 1)
    theirs = "0198d125-43c1-791f-8717-7b32b6dcc4dd"
    assert request_id("t", theirs, NOON) == theirs


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("2026-09-21T14:13:20Z", 1_790_000_000.0), ("2026-09-21 14:13:20", 1_790_000_000.0), (1_790_000_000, NOON),
     (1_790_000_000_000, NOON), ("1790000000000000000", NOON), (0, None), ("soon", None), (True, None), (None, None)],
)  # fmt: skip
def test_times_are_read_in_the_units_that_tools_use(value: Any, seconds: float | None) -> None:
    assert seconds_of(value) == seconds


def test_rows_of_litellm_with_and_without_texts_and_of_failures(tmp_path: Path) -> None:
    base = {
        "call_type": "acompletion", "spend": 0.002, "prompt_tokens": 4, "completion_tokens": 5, "model": "gpt-4o",
        "startTime": "2026-09-21 14:00:00.5", "completionStartTime": "2026-09-21 14:00:00.7",
        "endTime": "2026-09-21 14:00:01.5", "end_user": "u", "session_id": "s", "status": "success",
    }  # fmt: skip
    answer = {"choices": [{"finish_reason": "tool_calls", "message": {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}]}}]}  # fmt: skip
    rows = [
        {**base, "request_id": "a", "messages": json.dumps([{"role": "user", "content": "hi"}]), "response": answer},
        {**base, "request_id": "b", "messages": "{}", "response": "{}"},
        {**base, "request_id": "c", "messages": "{}", "response": "{}", "status": "failure", "error_str": "no quota"},
        {**base, "request_id": "d", "call_type": "aembedding"},
    ]
    summary = brought(tmp_path, "litellm", rows)
    by_text = {item.prompt[0]["content"] if item.prompt else item.error or "": item for item in stored(tmp_path)[0]}
    called = by_text["hi"]
    assert isinstance(called.completion, dict) and called.completion["tool_calls"][0]["function"]["name"] == "find"
    assert (called.ttft_ms, called.total_ms, called.finish, called.usd) == (200.0, 1000.0, "tool_calls", 0.002)
    assert by_text["no quota"].completion is None and by_text[""].prompt_tokens == 4
    assert summary.left_out == {"no_call": 1} and summary.incomplete == {"without_prompt": 2, "without_answer": 1}


def test_rows_of_tensorzero_are_joined_with_the_calls_of_models_and_feedback_of_their_tables(tmp_path: Path) -> None:
    item, episode = "0198d125-43c1-791f-8717-7b32b6dcc4dd", "0198d125-43c0-7a00-8717-000000000001"
    inference = {
        "id": item, "function_name": "answer", "variant_name": "v2", "episode_id": episode, "processing_time_ms": 800,
        "input": json.dumps({"system": {"tone": "kind"}, "messages": [
            {"role": "user", "content": [{"type": "text", "value": "hello"}]}]}),
        "output": json.dumps([{"type": "thought", "text": "hm"}, {"type": "text", "text": "hi"}]),
        "tags": {"user_id": "u"},
    }  # fmt: skip
    models = [
        {
            "id": f"m{n}",
            "inference_id": item,
            "model_name": "gpt",
            "input_tokens": 10,
            "output_tokens": n,
            "ttft_ms": 50,
        }
        for n in (2, 3)
    ]
    feedback = [
        {"id": "f1", "target_id": item, "metric_name": "solved", "value": True, "tags": {}},
        {"id": "f1", "target_id": item, "metric_name": "score", "value": 0.5, "tags": {}},
        {"id": "f2", "target_id": episode, "target_type": "episode", "value": "thanks"},
        {"id": "f3", "inference_id": item, "value": json.dumps([{"type": "text", "text": "hi there"}])},
        {"id": "f4", "target_id": "gone", "metric_name": "solved", "value": True},
    ]
    summary = brought(tmp_path, "tensorzero", [*feedback, *models, inference])
    ((request,), said) = stored(tmp_path)
    assert request.id == item and request.conversation == episode and request.release == "answer/v2"
    assert [turn["role"] for turn in request.prompt] == ["system", "user"]
    assert request.completion == {"role": "assistant", "content": "hi", "reasoning_content": "hm"}
    assert (request.model, request.prompt_tokens, request.completion_tokens) == ("gpt", 20, 5)
    values = {entry.kind: (entry.request, entry.conversation, entry.value) for entry in said}
    assert values["solved"] == (item, None, True) and values["score"] == (item, None, 0.5)
    assert values["comment"] == (None, episode, "thanks") and values["correction"] == (item, None, "hi there")
    assert summary.left_out == {"no_target": 1}


def test_rows_of_helicone_with_their_scores(tmp_path: Path) -> None:
    record = {
        "request_id": "h1", "request_created_at": "2026-09-21T14:00:00+00:00", "request_user_id": "u", "cost": 0.01,
        "response_created_at": "2026-09-21T14:00:02+00:00", "request_model": "claude", "prompt_tokens": 3,
        "completion_tokens": 4, "time_to_first_token": 120, "response_status": 200, "feedback_rating": False,
        "request_properties": {"Helicone-Session-Id": "s7"}, "scores": {"polite-hcone-bool": {"value": 1}},
        "request_body": {"model": "claude", "system": "Be kind.", "messages": [{"role": "user", "content": "hi"}]},
        "response_body": {"role": "assistant", "content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn"},
    }  # fmt: skip
    brought(
        tmp_path, "helicone", [record, {**record, "request_id": "h2", "response_status": 500, "response_body": None}]
    )
    (item, failed), said = stored(tmp_path)
    item, failed = sorted((item, failed), key=lambda entry: entry.error or "")
    assert item.prompt[0] == {"role": "system", "content": "Be kind."} and item.completion == "hello"
    assert (item.conversation, item.total_ms, item.ttft_ms, item.finish) == ("s7", 2000.0, 120.0, "stop")
    assert failed.error == "status 500" and {(e.kind, e.value) for e in said} == {("thumbs", False), ("polite", True)}


def test_a_csv_of_helicone_has_the_response_s_id_and_quotes_that_were_doubled_twice(tmp_path: Path) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": 'say "hi"'}]}).replace('"', '""')
    cells = {
        "response_id": "p1", "response_status": "200", "request_created_at": "2026-09-21T14:00:00.000Z",
        "request_body": body, "model": "gpt-4o", "prompt_tokens": "3", "latency": "850", "cost": "0.01",
    }  # fmt: skip
    rows = (",".join('"' + cell.replace('"', '""') + '"' for cell in row).encode() for row in (cells, cells.values()))
    summary = brought(tmp_path, "helicone", list(rows), "output.csv")
    ((item,), _) = stored(tmp_path)
    assert item.prompt == [{"role": "user", "content": 'say "hi"'}] and (item.total_ms, item.usd) == (850.0, 0.01)
    assert summary.incomplete == {"without_answer": 1}


def test_stored_completions_responses_and_batches_of_openai(tmp_path: Path) -> None:
    completion = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": int(NOON), "model": "gpt-4o",
        "messages": [{"role": "user", "content": "one"}], "metadata": {"user_id": "u", "thumbs": "up"},
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "first"}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }  # fmt: skip
    response = {
        "id": "resp_1", "object": "response", "created_at": int(NOON) + 1, "model": "gpt-4o", "instructions": "Be kind.",
        "input": [{"role": "user", "content": "two"}], "usage": {"input_tokens": 5, "output_tokens": 6},
        "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "second"}]}],
    }  # fmt: skip
    batch = {"id": "b1", "custom_id": "x", "request": {"messages": [{"role": "user", "content": "three"}]},
             "response": {"status_code": 200, "body": {**completion, "id": "chatcmpl-2", "metadata": None}}}  # fmt: skip
    summary = brought(tmp_path, "openai", [{"object": "list", "data": [completion, response]}, batch])
    requests, said = stored(tmp_path)
    assert summary.requests == 3 and sorted(str(request.completion) for request in requests) == [
        "first",
        "first",
        "second",
    ]
    by_question = {request.prompt[-1]["content"]: request for request in requests}
    assert by_question["two"].prompt[0]["content"] == "Be kind." and by_question["two"].prompt_tokens == 5
    assert by_question.keys() == {"one", "two", "three"} and [item.value for item in said] == [True]


def test_the_command_says_what_came_what_did_not_and_what_is_next(cli: Cli, tmp_path: Path) -> None:
    lines = [row(1), {**row(2), "time": None}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = cli("import", "jsonl", "log.jsonl", "--store", "new/store.db")
    assert done.returncode == 0 and (tmp_path / "new" / "store.db").is_file()
    assert "stored    1 request" in done.stdout and "left out  1: no time" in done.stdout
    assert "without   ttft_ms, release" in done.stdout and "tuneloop costs -f new/store.db" in done.stdout
    again = json.loads(cli("import", "jsonl", "log.jsonl", "--store", "new/store.db", "--json").stdout)
    assert (again["requests"], again["known"], again["left_out"]) == (0, 1, {"no_time": 1})
    wrong = cli("import", "langfuze", "log.jsonl")
    assert wrong.returncode == 2 and "did you mean langfuse?" in wrong.stderr
    assert cli("import", "jsonl", "none.jsonl").returncode == 2


@pytest.mark.slow
def test_costs_collect_and_monitor_work_on_imported_requests(cli: Cli, tmp_path: Path) -> None:
    rows = [row(n, user=f"u{n}", thumbs=n % 2 == 0, answer=f"the answer {n}") for n in range(200)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    assert cli("import", "jsonl", "log.jsonl").returncode == 0
    costs = json.loads(cli("costs", "-f", "serve", "--json").stdout)
    assert costs["total"]["requests"] == 200 and costs["total"]["usd"] == pytest.approx(0.2)
    collected = json.loads(cli("collect", "serve", "-o", "out", "--json").stdout)
    assert collected["with_feedback"] == 200 and collected["counts"]["sft"] > 20 and collected["counts"]["heldout"] > 0
    shown = json.loads(cli("collect", "show", "--store", "serve", "--json").stdout)
    assert (shown["requests"], shown["rated"]) == (200, 200) and shown["kinds"][0]["mean"] == 0.5
    assert cli("prepare", "out/sft.jsonl", "-o", "data", "split.test=out/heldout.jsonl").returncode == 0
    until = utc(NOON + 3600)
    report = cli("monitor", "serve", "-r", "data", "--window", "1d", "--until", until, "--json")
    assert report.returncode in (0, 1, 3) and json.loads(report.stdout)["requests"] == 200, report.stderr
