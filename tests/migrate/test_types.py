"""Every object and every value that the official client's types know arrives; one that they don't know is kept and counted."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union

import pydantic
import pytest
from openai.types import Batch, FileObject, FilePurpose, Model
from openai.types.chat import ChatCompletion, ChatCompletionStoreMessage
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from openai_service import KEY, MODEL, Service

from tuneloop.cli.main import main
from tuneloop.core.files import read_json, read_jsonl
from tuneloop.migrate.command import copy_service, look
from tuneloop.migrate.record import Migration

OUT = Path("openai")
PLAIN: dict[Any, Any] = {str: "text", int: 7, float: 0.5, bool: True, object: {"any": 1}, Any: {"any": 1}}


def shapes(kind: Any) -> list[Any]:
    """Values of a type, in which each of its enumerations' values and each member of its unions comes at least once."""
    origin, within = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return shapes(within[0])
    if origin is Literal:
        return list(within)
    if origin in (Union, types.UnionType):
        return [value for item in within for value in shapes(item)]
    if origin is list:
        return [shapes(within[0]), []]
    if origin is dict:
        return [{"name": value} for value in shapes(within[1])]
    if kind is type(None):
        return [None]
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        fields = {field.alias or name: shapes(field.annotation) for name, field in kind.model_fields.items()}
        count = max(map(len, fields.values()))
        return [{name: values[i % len(values)] for name, values in fields.items()} for i in range(count)]
    return [PLAIN[kind]]


def objects(kind: type[pydantic.BaseModel], **fixed: Any) -> list[dict[str, Any]]:
    """Objects of a type with ids of their own, each valid by the official client's types."""
    made = []
    for number, value in enumerate(shapes(kind)):
        own = {name: of(number) if callable(of) else of for name, of in fixed.items()}
        made.append(json.loads(kind.model_validate({**value, **own}, strict=True).model_dump_json(by_alias=True)))
    return made


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not isinstance(value, dict | list):
        yield path, value
    for name, item in inner:
        yield from leaves(item, path if isinstance(value, list) else f"{path}.{name}")


@pytest.fixture
def typed(service: Service) -> Service:
    """The service with every object that the types know, and nothing else."""
    jobs = objects(
        FineTuningJob, id=lambda n: f"ftjob-t{n}", model="gpt-4o-mini-2024-07-18", training_file="file-train",
        fine_tuned_model=lambda n: f"{MODEL}{n}", validation_file=None, result_files=[],
    )  # fmt: skip
    service.jobs, service.batches = jobs, objects(Batch, id=lambda n: f"batch_t{n}", input_file_id="file-train",
        output_file_id=None, error_file_id=None)  # fmt: skip
    service.models = objects(Model, id=lambda n: f"model-{n}")
    events = objects(FineTuningJobEvent, id=lambda n: f"ftevent-{n}", created_at=lambda n: 1_772_300_000 - n)
    checkpoints = objects(FineTuningJobCheckpoint, id=lambda n: f"ftckpt-{n}")
    for job in jobs:
        service.lists[f"/fine_tuning/jobs/{job['id']}/events"] = events
        service.lists[f"/fine_tuning/jobs/{job['id']}/checkpoints"] = checkpoints
    given = {*typing.get_args(FilePurpose), *typing.get_args(FileObject.model_fields["purpose"].annotation)}
    for number, purpose in enumerate(sorted(given)):
        service.add_file(f"file-p{number}", b'{"a": 1}\n', purpose)
    for number, facts in enumerate(objects(FileObject, id=lambda n: f"file-o{n}", bytes=9)):
        service.files[f"file-o{number}"] = (facts, b'{"a": 1}\n')
    service.completions = objects(ChatCompletion, id=lambda n: f"chatcmpl-t{n}", model=MODEL)
    for completion in service.completions[:-1]:  # the last one may be without an answer
        completion["choices"] = completion["choices"] or service.completions[0]["choices"]
    turns = objects(ChatCompletionStoreMessage, id=lambda n: f"m-{n}")
    service.turns = {entry["id"]: turns for entry in service.completions}
    return service


def copied(service: Service) -> Migration:
    return copy_service(service.url, KEY, look(service.url, KEY, OUT), OUT)


def test_every_object_and_value_of_the_official_types_is_copied_as_it_is(typed: Service) -> None:
    found = copied(typed)
    assert {job.status for job in found.jobs} == set(typing.get_args(FineTuningJob.model_fields["status"].annotation))
    assert {job.method for job in found.jobs} == {"supervised", "dpo", "reinforcement"}
    for job in typed.jobs:
        folder = OUT / "jobs" / job["id"]
        assert read_json(folder / "job.json") == job
        events = typed.lists[f"/fine_tuning/jobs/{job['id']}/events"]
        assert read_jsonl(folder / "events.jsonl") == events[::-1]
        kept = read_jsonl(folder / "checkpoints.jsonl")
        assert kept == (
            typed.lists[f"/fine_tuning/jobs/{job['id']}/checkpoints"] if job["status"] == "succeeded" else []
        )
    assert read_jsonl(OUT / "batches.jsonl") == typed.batches
    there = {file.id for file in found.files.values()}
    for name, (facts, _) in typed.files.items():
        assert name in there or any(gap.what == f"file {name} ({facts['purpose']})" for gap in found.missing), facts
    raw = read_jsonl(OUT / "completions.raw.jsonl")
    assert [item["completion"] for item in raw] == typed.completions
    assert all(item["messages"] == typed.turns[item["completion"]["id"]] for item in raw)


SAYS_NOTHING = {"id", "object", "index", "usage", "choices", "message", "system_fingerprint"}


def test_each_field_and_value_of_an_answer_is_in_its_row_or_named_as_missing(typed: Service) -> None:
    found = copied(typed)
    rows, reasons = read_jsonl(OUT / "completions.jsonl"), " ".join(gap.why for gap in found.missing)
    choices = [choice for completion in typed.completions for choice in completion["choices"]]
    assert [row["finish_reason"] for row in rows] == [choice["finish_reason"] for choice in choices]
    levels = [*typed.completions, *choices, *(choice["message"] for choice in choices), *typed.turns["chatcmpl-t0"]]
    for level in levels:
        for name in level.keys() - SAYS_NOTHING:
            values = [value for _, value in leaves(level[name]) if value is not None]
            if not values or name.replace("logprobs", "log probabilities") in reasons:
                continue
            kept = json.dumps(rows)
            assert all(json.dumps(value) in kept for value in values), (name, level[name])
    for part in ("image_url", "annotations", "audio", "log probabilities", "moderation", "type custom", "a refusal"):
        assert part in reasons, part
    assert main(["prepare", str(OUT / "completions.jsonl"), "-o", "data", "--quiet"]) == 2
    refused = read_jsonl("data/rejects.jsonl")
    assert len(refused) == len(rows) and all("no text" in reject["detail"] for reject in refused), "each has a picture"


def test_what_the_types_do_not_know_is_kept_and_counted(service: Service) -> None:
    service.jobs[0] |= {
        "status": "hibernating",
        "method": {"type": "distillation", "distillation": {"hyperparameters": {"k": 1}}},
    }
    service.add_file("file-new", b"{}\n", "skills")
    item, two = service.completions[:2]
    item["choices"][0] |= {"finish_reason": "exhausted", "confidence": 0.5}
    item["thoughts"] = {"tokens": 3}
    service.turns[two["id"]] = [
        {"id": "x", "role": "user", "content": [{"type": "hologram", "hologram": "x"}], "mood": "sad"}
    ]
    found = copied(service)
    assert (found.jobs[0].status, found.jobs[0].method) == ("hibernating", "distillation")
    assert found.jobs[0].hyperparameters == {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8}
    assert any(file.kind == "skills" for file in found.files.values())
    assert read_jsonl(OUT / "completions.raw.jsonl")[0]["completion"] == item
    counted = {gap.why: gap.what for gap in found.missing}
    for lost in (
        "finish_reason exhausted",
        "confidence of a choice",
        "thoughts of a completion",
        "type hologram",
        "mood of a message",
    ):
        assert any(lost in name and message == "1 stored completion" for name, message in counted.items()), (
            lost,
            counted,
        )


def test_the_stand_in_gives_what_the_types_allow(service: Service) -> None:
    of = {
        "/fine_tuning/jobs": FineTuningJob, "/fine_tuning/jobs/ftjob-1/events": FineTuningJobEvent, "/models": Model,
        "/fine_tuning/jobs/ftjob-1/checkpoints": FineTuningJobCheckpoint, "/files": FileObject,
        "/chat/completions": ChatCompletion,
    }  # fmt: skip
    for path, kind in of.items():
        status, page = service.reply("GET", f"/v1{path}?limit=100", b"")
        assert status == 200 and page["data"], path
        for item in page["data"]:
            kind.model_validate(item, strict=True)
    ChatCompletion.model_validate(
        service.reply(
            "POST", "/v1/chat/completions", b'{"model": "m", "logprobs": true, "messages": [{"content": "x"}]}'
        )[1]
    )
