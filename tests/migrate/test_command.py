"""The path away from a hosted fine-tune by its own words: each command names the next, up to the gate."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from openai_service import KEY, MODEL, Service, job

from tuneloop.cli.main import main
from tuneloop.core.files import read_json, read_jsonl
from tuneloop.migrate.command import data_name
from tuneloop.migrate.record import HostedJob

Capture = pytest.CaptureFixture[str]


def said(capsys: Capture, *arguments: str, status: int = 0) -> str:
    assert main(list(arguments)) == status, capsys.readouterr()
    out = capsys.readouterr()
    return out.err + out.out


def reported(capsys: Capture, *arguments: str, status: int = 0) -> dict[str, Any]:
    assert main([*arguments, "--json", "--quiet"]) == status
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def next_steps(text: str) -> list[list[str]]:
    return [shlex.split(line)[2:] for line in text.splitlines() if line.startswith("next ")]


def test_the_list_says_when_each_model_stops_and_copies_nothing(service: Service, capsys: Capture) -> None:
    text = said(capsys, "migrate", "openai", "--base-url", service.url, "--list")
    for sentence in (
        MODEL,
        "3 passes",
        "1 checkpoint",
        "stops 2027-01-14" if "stops " in text else "stopped 2027-01-14",
    ):
        assert sentence in text
    assert "no new ones from 2027-01-06" in text and "developers.openai.com" in text
    assert "1 job, 3 files, 0 batches, 7 stored completions" in text and "costs nothing" in text
    assert not Path("openai").exists() and not any("content" in call for call in service.calls)


def test_without_a_yes_nothing_is_copied_or_sent(service: Service, capsys: Capture) -> None:
    record = reported(capsys, "migrate", "openai", "--base-url", service.url)
    assert record["path"] is None and record["jobs"][0]["stops"] == "2027-01-14" and not Path("openai").exists()
    said(capsys, "migrate", "openai", "--base-url", service.url, "--yes")
    said(
        capsys,
        "prepare",
        "openai/files/file-train-train.jsonl",
        "split.test=openai/files/file-val-val.jsonl",
        "-o",
        "d",
    )
    service.calls = []
    text = said(capsys, "migrate", "freeze", MODEL, "-d", "d", "--base-url", service.url)
    assert "60 requests" in text and "at most $" in text and "Nothing was sent" in text and not service.calls


def test_the_key_is_needed_and_stands_nowhere(
    service: Service, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = said(capsys, "migrate", "openai", "--base-url", service.url, "--yes")
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in text and KEY.encode() not in kept
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "OPENAI_API_KEY is not set" in said(capsys, "migrate", "openai", status=2)


def test_what_is_missing_is_said_and_the_status_is_1(service: Service, capsys: Capture) -> None:
    del service.files["file-val"]
    text = said(capsys, "migrate", "openai", "--base-url", service.url, "--yes", status=1)
    assert "missing   file file-val (fine-tune): HTTP 404" in text


@pytest.mark.nightly
@pytest.mark.slow
def test_each_command_names_the_next_until_the_gate(service: Service, capsys: Capture, tiny_llama: Path) -> None:
    text = said(capsys, "migrate", "openai", "--base-url", service.url, "--yes")
    prepare, freeze, advise, replacement, _ = next_steps(text)
    said(capsys, *prepare)
    assert len(list(read_jsonl("datasets/tickets/test.jsonl"))) == 60, "the validation file is the test"
    text = said(capsys, *freeze, "--yes")
    run, gate = next_steps(text)
    frozen = Path("evaluations/tickets")
    record = read_json(frozen / "eval.json")
    assert (
        record["metrics"]["accuracy"]["value"] == 1.0 and record["model"] == MODEL and (frozen / "suite.yaml").is_file()
    )
    replies = list((frozen / "answers").rglob("*.reply.json"))
    assert len(replies) == 60 and read_json(replies[0])["choices"][0]["logprobs"]["content"][0]["logprob"] == -0.1

    advice = reported(capsys, *advise)
    assert advice["question"]["queries_per_day"] == pytest.approx(7 / 3, rel=0.01)
    assert replacement[2:4] == ["--model", "gpt-6-luna"]

    small = ["train.epochs=1", "train.rank=2", "baselines.few_shot=0", "evaluate.bootstrap=200", "track.report_to=none"]
    said(capsys, *run, f"model={tiny_llama}", *small)
    text = said(capsys, *gate, status=1)
    assert "not worse by more than 0.02: refuted" in text and "gate: fail" in text
    assert {check["status"] for check in read_json("runs/tickets/gate.json")["checks"]} >= {"fail"}
    reverse = ("gate", "evaluations/tickets", "--against", "runs/tickets", "--margin", "2")
    assert "not worse by more than 0.02: shown" in said(capsys, *reverse)

    # The service is gone: the standard is still there, to the last answer.
    service.faults = {"POST": [(404, {}, "model_not_found")] * 99}
    again = ("evaluate", service.url, "--model", MODEL, "-d", "datasets/tickets", "evaluate.max_new_tokens=256")
    kept = reported(capsys, *again, "--cache", str(frozen / "answers"), "--out", "again")
    assert kept["metrics"]["accuracy"]["value"] == 1.0 and kept["costs"][MODEL]["cached"] == 60


OTHER = MODEL.replace("tickets:AbC123", "tickets:XyZ789")
STOPPED = MODEL.replace("tickets:AbC123", "old:Old111")


@pytest.mark.parametrize("shape", ["no validation file", "no training file", "two models"])
def test_what_is_printed_can_be_run_for_each_shape_of_job(service: Service, capsys: Capture, shape: str) -> None:
    service.jobs = [job(validation_file=None)]
    status = 0
    if shape == "no training file":
        del service.files["file-train"]
        service.completions = []
        for i, (text, label) in enumerate(service.truth.items()):
            service.add_completion(f"chatcmpl-m{i}", text, label)
        status = 1
    if shape == "two models":
        service.jobs += [job("ftjob-2", OTHER), job("ftjob-3", STOPPED, base="gpt-3.5")]
        service.models.append({"id": STOPPED, "shutdown_date": "2026-01-01"})
    text = said(capsys, "migrate", "openai", "--base-url", service.url, "--yes", status=status)
    assert f"path      {MODEL}: stops 2027-01-14" in text and STOPPED not in text.partition("path ")[2]
    commands = [step for step in next_steps(text) if step[0] == "prepare" or step[:2] == ["migrate", "freeze"]]
    assert len(commands) == (4 if shape == "two models" else 2)
    for command in commands:
        said(capsys, *command, *(["--yes"] if command[0] == "migrate" else []))
    standards = {Path(command[command.index("--out") + 1]) for command in commands if command[0] == "migrate"}
    assert len(standards) == len(commands) / 2 and all((standard / "suite.yaml").is_file() for standard in standards)


def test_each_model_has_a_data_set_of_its_own() -> None:
    models = ["ft:b:o:tickets:A1", "ft:b:o:tickets:B2", "ft:b:o:Tickets/:C", "ft:b:o:tickets-:c", "ft:b:o::D", "mine"]
    jobs = [HostedJob(id=f"ftjob-{n}", status="succeeded", base="b", model=model) for n, model in enumerate(models)]
    names = [data_name(item, jobs) for item in jobs]
    assert names[:2] == ["tickets-a1", "tickets-b2"] and len(set(names)) == len(names)
    assert data_name(jobs[0], jobs[:1]) == "tickets"


def test_a_model_of_which_no_rows_were_copied_has_no_command_that_can_not_run(
    service: Service, capsys: Capture
) -> None:
    service.completions, service.jobs = [], [job(training_file="file-gone", validation_file=None)]
    text = said(capsys, "migrate", "openai", "--base-url", service.url, "--yes", status=1)
    assert f"path      {MODEL}" in text and not next_steps(text) and "prepare your own" in text
