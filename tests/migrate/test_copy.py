"""A copy of what a service has: complete, hashed, resumed, and honest about what is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from by_day import by_day
from openai_service import KEY, MODEL, Service, job

from patience import HANG
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_jsonl, sha256_file
from tuneloop.migrate.command import copy_service, look
from tuneloop.migrate.record import Migration
from tuneloop.records.record import read_record

OUT = Path("openai")


def copied(service: Service) -> Migration:
    return copy_service(service.url, KEY, look(service.url, KEY, OUT), OUT)


def test_everything_is_there_with_its_hash_and_nothing_was_changed(service: Service) -> None:
    service.jobs.append(job("ftjob-2", None))
    service.batches = [{"id": "batch-1", "object": "batch", "output_file_id": "file-out", "input_file_id": None}]
    service.add_file("file-out", b'{"custom_id": "1"}\n', "batch_output", "out.jsonl")
    found = copied(service)
    assert {call.split()[0] for call in service.calls} == {"GET"}
    assert found == read_record(Migration, OUT) and not found.missing
    assert all(sha256_file(OUT / name) == file.sha256 for name, file in found.files.items())
    assert (OUT / "files/file-train-train.jsonl").read_bytes() == service.files["file-train"][1]
    assert (OUT / "metrics/file-result-step_metrics.csv").read_text().startswith("step,train_loss")
    events = read_jsonl(OUT / "jobs/ftjob-1/events.jsonl")
    assert [event["data"]["step"] for event in events] == list(range(1, 31))
    first, failed = found.jobs
    assert (first.model, first.stops, first.checkpoints) == (MODEL, "2027-01-14", [f"{MODEL}:ckpt-step-90"])
    assert (failed.model, failed.stops, failed.error) == (None, "", "the file has 3 examples")


def test_stored_completions_are_rows_that_say_a_model_wrote_them(service: Service) -> None:
    service.most = 3
    found = copied(service)
    rows = read_jsonl(OUT / "completions.jsonl")
    assert [row["id"] for row in rows] == [f"chatcmpl-{i}" for i in range(7)]
    turns = [{"role": "user", "content": "where is parcel 0"}, {"role": "assistant", "content": "delivery"}]
    assert rows[0]["messages"] == turns and {row["origin"] for row in rows} == {"model"}
    (use,) = found.traffic
    assert (use.model, use.requests, use.prompt_tokens) == (MODEL, 7, 280)
    assert use.a_day == pytest.approx(7 / 3)


def test_files_of_every_purpose_are_copied_or_named(service: Service) -> None:
    for purpose in ("evals", "batch", "assistants", "user_data"):
        service.add_file(f"file-{purpose}", b'{"a": 1}\n', purpose)
    found = copied(service)
    kinds = {file.kind for file in found.files.values()}
    assert {"evals", "batch"} <= kinds and not {"assistants", "user_data"} & kinds
    assert [gap.what for gap in found.missing] == [
        "file file-assistants (assistants)",
        "file file-user_data (user_data)",
    ]


def test_nothing_of_a_stored_completion_is_thinned_out(service: Service) -> None:
    service.completions, service.turns = [], {}
    for name in ("two", "refused", "parts", "cut", "called"):
        service.add_completion(name, "where is it?", "there")
    two, refused, parts, cut, called = service.completions
    two["choices"].append({"index": 1, "message": {"role": "assistant", "content": "here"}, "finish_reason": "stop"})
    two["choices"][0]["logprobs"] = {"content": []}
    refused["choices"][0]["message"] |= {"content": None, "refusal": "I can't help with that."}
    texts = [{"type": "text", "text": "where "}, {"type": "text", "text": "is it?"}]
    service.turns["parts"] = [{"id": "p-0", "role": "user", "content": None, "content_parts": texts}]
    parts |= {"temperature": 0.2, "seed": 7, "response_format": {"type": "json_object"}, "tool_choice": "required"}
    cut["choices"][0]["finish_reason"] = "length"
    image = {"type": "image_url", "image_url": {"url": "https://x.example/1.png"}}
    service.turns["called"] = [{"id": "c-0", "role": "user", "content": None, "content_parts": [image]}]
    called["choices"][0]["message"] |= {"audio": {"id": "a"}}
    found = copied(service)
    rows = {row["id"]: row for row in read_jsonl(OUT / "completions.jsonl")}
    assert [rows["two"]["messages"][-1]["content"], rows["two-1"]["messages"][-1]["content"]] == ["there", "here"]
    assert rows["refused"]["refusal"] and rows["refused"]["messages"][-1]["content"] == "I can't help with that."
    assert rows["parts"]["messages"][0]["content"] == "where is it?" and rows["cut"]["finish_reason"] == "length"
    assert {name: rows["parts"][name] for name in ("temperature", "seed", "tool_choice")} == {
        "temperature": 0.2, "seed": 7, "tool_choice": "required",
    }  # fmt: skip
    raw = read_jsonl(OUT / "completions.raw.jsonl")
    assert [item["completion"] for item in raw] == service.completions
    assert raw[2]["messages"] == service.turns["parts"]
    assert found.traffic[0].requests == 5, "a request with two answers is one"
    reasons = " ".join(gap.why for gap in found.missing)
    for lost in ("log probabilities", "a refusal", "finish_reason length", "image_url", "audio of a message"):
        assert lost in reasons, lost


def test_a_copy_that_ended_early_fetches_only_what_is_missing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.most = 3
    service.faults = {"chatcmpl-4/messages": ["cut"] * 20}
    with pytest.raises(UserError, match="further files"):
        copied(service)
    assert not (OUT / "migration.json").exists() and not (OUT / "completions.jsonl").exists()
    partial = OUT / ".completions.raw.jsonl.partial"
    partial.write_bytes(partial.read_bytes() + b'{"completion": {"id": "chatcmpl-3", "mess')  # as a kill leaves it
    service.faults, service.calls = {}, []
    found = copied(service)
    assert not [call for call in service.calls if "/content" in call]
    fetched = {call.split("/")[-2] for call in service.calls if "messages" in call}
    assert fetched == {"chatcmpl-3", "chatcmpl-4", "chatcmpl-5", "chatcmpl-6"}
    assert [row["id"] for row in read_jsonl(OUT / "completions.jsonl")] == [f"chatcmpl-{i}" for i in range(7)]
    assert found.traffic[0].requests == 7 and not found.missing
    service.calls = []
    again = copied(service)
    assert again.files == found.files and not [c for c in service.calls if "/content" in c or "/messages" in c]


def test_what_is_gone_forbidden_or_damaged_is_named_and_the_rest_is_there(service: Service) -> None:
    del service.files["file-val"]
    service.add_file("file-train", b'{"a": "x"}\n{"a": "\xff\xfe"}\n', filename="train.jsonl")
    service.files["file-result"][0]["filename"] = "../../evil name.csv"
    service.faults = {"GET /v1/batches": [(403, {}, "Missing scopes: api.batches.read")]}
    found = copied(service)
    missing = {gap.what: gap.why for gap in found.missing}
    assert "Missing scopes" in missing["batches"] and "404" in missing["file file-val (fine-tune)"]
    assert "line 2 is not UTF-8" in missing["file file-train (fine-tune)"]
    assert (OUT / "files/file-train-train.jsonl").read_bytes().endswith(b'\xff\xfe"}\n')
    assert (OUT / "files/file-result-..-..-evil-name.csv").is_file()
    assert not list(OUT.parent.glob("*evil*"))


def test_no_two_files_of_a_service_become_one(service: Service) -> None:
    service.files, service.jobs = {}, [job("ftjob/1", training_file="a"), job("ftjob-1", training_file="a")]
    hostile = {"a": "b-c.jsonl", "a-b": "c.jsonl", "a/b": "c.jsonl", "file-x": "y z.jsonl", "file-x-y": "z.jsonl"}
    for number, (name, title) in enumerate(hostile.items()):
        service.add_file(name, json.dumps({"n": number}).encode(), filename=title)
    found = copied(service)
    paths = {file.id: name for name, file in found.files.items() if file.id}
    assert paths.keys() == hostile.keys() and len(set(paths.values())) == len(hostile)
    for number, name in enumerate(hostile):
        assert json.loads((OUT / paths[name]).read_text()) == {"n": number}
    assert len(list((OUT / "jobs").iterdir())) == 2
    assert paths["file-x"] == "files/file-x-y-z.jsonl", "usual ids keep their names"
    service.calls = []
    asked_again = {"GET /v1/files/file-val/content", "GET /v1/files/file-result/content"}  # which it does not have
    assert copied(service).files == found.files
    assert {call for call in service.calls if call.endswith("/content")} <= asked_again


def test_a_job_with_odd_values_is_listed_all_the_same(service: Service) -> None:
    odd = {"hyperparameters": "auto", "result_files": None, "created_at": "soon", "method": "x", "error": "y"}
    service.jobs = [job("ftjob-odd", **odd, trained_tokens="many")]
    service.models = [
        {"id": MODEL, "shutdown_date": 1},
        {"id": service.jobs[0]["model"], "shutdown_date": "2027/01/14"},
    ]
    (item,) = copied(service).jobs
    assert (item.created, item.hyperparameters, item.result_files, item.trained_tokens) == ("", {}, [], None)
    assert item.stops == "2027-01-14" and "notice" in item.stops_by, "a date that is none does not count"


def test_a_file_whose_size_differs_is_named(service: Service) -> None:
    service.files["file-train"][0]["bytes"] += 1
    assert "the service lists" in copied(service).missing[0].why


@pytest.mark.slow
@pytest.mark.parametrize("folder", by_day(["content", "chatcmpl-4/messages"], ["chatcmpl-4/messages"]))
def test_a_killed_copy_continues_to_the_same_files(service: Service, folder: str, tmp_path: Path) -> None:
    service.most, reached, over = 3, threading.Event(), threading.Event()

    def hold(path: str) -> None:
        if folder in path and not reached.is_set():
            reached.set()
            over.wait(HANG)

    service.before = hold
    command = [sys.executable, "-m", "tuneloop", "migrate", "openai", "--base-url", service.url, "--yes"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert reached.wait(HANG)
    process.kill()
    process.wait()
    over.set()
    assert not (OUT / "migration.json").exists()
    killed = copied(service)
    assert not list(OUT.rglob(".*.tmp"))
    shutil.rmtree(OUT)
    assert copied(service).files == killed.files and not killed.missing


@pytest.mark.parametrize(
    ("faults", "text"),
    [
        ({"fine_tuning/jobs": [(403, {}, "Missing scopes: api.fine_tuning.jobs.read")]}, "right to read"),
        ({"fine_tuning/jobs": [(404, {}, "no such page")]}, "--base-url"),
    ],
)
def test_a_service_that_lists_no_jobs_is_refused(service: Service, faults: dict[str, Any], text: str) -> None:
    service.faults = faults
    with pytest.raises(UserError) as refused:
        look(service.url, KEY, OUT)
    assert text in str(refused.value) and not OUT.exists()


def test_a_wrong_key_and_a_folder_of_other_things_are_refused(service: Service) -> None:
    with pytest.raises(UserError, match="401") as refused:
        look(service.url, "sk-wrong", OUT)
    assert "sk-wrong" not in str(refused.value) and "OPENAI_API_KEY" in str(refused.value)
    OUT.mkdir()
    (OUT / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="something else"):
        look(service.url, KEY, OUT)


def test_a_server_without_stored_completions_has_no_traffic(service: Service) -> None:
    service.faults = {"GET /v1/chat/completions": [(404, {}, "not found")]}
    found = copied(service)
    assert not found.traffic and not found.missing and not (OUT / "completions.jsonl").exists()
    assert json.loads((OUT / "migration.json").read_text())["version"] == 1
