"""From a hosted fine-tune to a successor in its place. Each long stage is killed, and the same command continues."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai_service import KEY, MODEL, Service, tickets

from patience import HANG, until
from serving import running
from tuneloop.cli.main import main
from tuneloop.core.files import read_json, read_jsonl
from tuneloop.serving.store.store import opened, read_requests

Capture = pytest.CaptureFixture[str]
FROZEN, RUN = Path("evaluations/tickets"), Path("runs/tickets")
SMALL = ["model=smollm2-135m", "train.epochs=1", "train.rank=4", "baselines.few_shot=0", "evaluate.bootstrap=200"]
RESUMABLE = ["train.checkpoint_steps=2", "train.checkpoint_seconds=0", "track.report_to=none"]
NOW = [
    "--maturation-hours",
    "0.003",
    "--least-days",
    "0",
    "--hold-days",
    "0",
    "--ramp",
    "50,100",
    "--shadow-copies",
    "30",
    "--sample",
    "0",
]


def said(capsys: Capture, *arguments: str, status: int = 0) -> str:
    assert main(list(arguments)) == status, capsys.readouterr()
    return "".join(capsys.readouterr())


def next_steps(text: str) -> list[list[str]]:
    return [shlex.split(line)[2:] for line in text.splitlines() if line.startswith("next ")]


def killed(service: Service, arguments: list[str], environment: dict[str, str], moment: Callable[[], bool]) -> None:
    """Start a command and end it by SIGKILL at a moment, at which the service keeps it waiting."""
    over = threading.Event()
    service.before = lambda path: None if not moment() else bool(over.wait(HANG)) and None
    command = [sys.executable, "-m", "tuneloop", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: moment() or process.poll() is not None)
    finally:
        process.kill()
        status = process.wait()
        over.set()
        service.before = lambda path: None
    assert status == -signal.SIGKILL, f"{arguments} ended before it was killed"


def answers_with_faults(service: Service) -> None:
    """The hosted model is wrong on a third of the tickets, always on the same ones."""

    def answer(body: dict[str, Any]) -> str:
        question = body["messages"][-1]["content"]
        return "billing" if zlib.crc32(question.encode()) % 3 == 0 else service.truth.get(question, "billing")

    service.answer = answer


def generations(service: Service) -> int:
    return service.calls.count("POST /v1/chat/completions")


@pytest.mark.nightly  # minutes: a real training run, two servers and five kills
def test_from_the_list_to_the_switch_with_a_kill_at_each_stage(
    service: Service, capsys: Capture, cli_environment: dict[str, str]
) -> None:
    answers_with_faults(service)
    cli_environment = {**cli_environment, "OPENAI_API_KEY": KEY}
    service.most = 3  # of a page
    command = ["migrate", "openai", "--base-url", service.url]
    assert f"model     {MODEL}" in said(capsys, *command, "--list") and not Path("openai").exists()

    # Copy: killed between the pages of stored completions.
    def copying() -> bool:
        return any("chatcmpl-4/messages" in call for call in service.calls)

    killed(service, [*command, "--yes"], cli_environment, copying)
    assert not Path("openai/migration.json").exists() and Path("openai/files/file-train-train.jsonl").exists()
    contents = Counter(call for call in service.calls if call.endswith("/content"))
    prepare, freeze, *_ = next_steps(said(capsys, *command, "--yes"))
    assert Counter(call for call in service.calls if call.endswith("/content")) == contents, "no file comes twice"
    assert len(read_jsonl("openai/completions.jsonl")) == 7 and {call.split()[0] for call in service.calls} == {"GET"}

    # Freeze: killed after a third of the answers, each of which is billed.
    said(capsys, *prepare)
    killed(service, [*freeze, "--yes"], cli_environment, lambda: generations(service) >= 20)
    run, gate = next_steps(said(capsys, *freeze, "--yes"))
    billed = Counter(body["messages"][-1]["content"] for body in service.bodies)
    assert len(billed) == 60 and generations(service) <= 60 + 16, "but for what was on its way, nothing is paid twice"
    assert len(list((FROZEN / "answers").rglob("*.reply.json"))) == 60
    assert 0.5 < read_json(FROZEN / "eval.json")["metrics"]["accuracy"]["value"] < 0.9

    # Train: killed behind a checkpoint.
    training = [*run, *SMALL, *RESUMABLE]
    killed(service, training, cli_environment, lambda: any((RUN / "checkpoints").glob("step-*[1-9].pt")))
    assert not (RUN / "run.json").exists()
    said(capsys, *training)
    assert read_json(RUN / "run.json")["resumed_at"] > 0
    paid = generations(service)
    assert "not worse by more than 2 points: shown" in said(capsys, *gate).replace("0.02", "2 points")
    assert generations(service) == paid, "the gate compares answers that are there"

    # Serve both behind one address, and let users decide; the server is killed while they do.
    hosted = f"{service.url}#{MODEL}"
    lines = [f'"{MODEL}": "{hosted}"', f"successor: {RUN}"]
    Path("serve.yaml").write_text(
        "adapters:\n" + "".join(f"  {line}\n" for line in lines) + "keys: {open_rights: [users, feedback]}\n"
        f'prices: {{sources: {{"{hosted}": {{input: 0.3, output: 1.2}}}}}}\n'
    )
    rows = [row["messages"] for row in tickets(600, 3)]
    service.truth |= {str(row[1]["content"]): str(row[2]["content"]) for row in rows}
    users = iter(enumerate(rows))

    def ask(address: str) -> str:
        number, (*turns, reference) = next(users)
        body = {"model": MODEL, "messages": turns, "user": f"u{number}", "max_tokens": 8}
        sent = httpx.post(f"{address}/v1/chat/completions", json=body)
        assert sent.status_code == 200, sent.text
        reply = sent.json()
        answer = str(reply["choices"][0]["message"]["content"])
        vote = {"request": reply["id"], "kind": "thumbs", "value": answer == reference["content"], "user": f"u{number}"}
        httpx.post(f"{address}/v1/feedback", json=vote).raise_for_status()
        return answer

    def copies() -> int:
        with opened("serve") as store:
            return sum(1 for _ in read_requests(store, shadow=True))

    folder = Path("serve")
    with running("serve.yaml", folder=folder, environment=cli_environment, status=-signal.SIGKILL) as (address, server):
        names = {model["id"] for model in httpx.get(f"{address}/v1/models").json()["data"]}
        assert {MODEL, "successor"} <= names
        source = ["--candidate", str(RUN), "--champion", hosted, "--guardrails", "latency=off"]
        said(capsys, "ab", "start", "leave", "--model", MODEL, *source, *NOW)
        for _ in range(30):
            ask(address)
        until(lambda: copies() >= 30)
        assert "Shadow mode is passed" in said(capsys, "ab", "check", status=3)
        server.kill()
    with running("serve.yaml", folder=folder, environment=cli_environment) as (address, _):
        status = 3
        while status == 3:
            for _ in range(30):
                ask(address)
            status = main(["ab", "check", "leave"])
        assert status == 0 and "Promoted" in "".join(capsys.readouterr())
        assert main(["ab", "replay", "leave"]) == 0
        with opened("serve") as store:
            seen = [request for request in read_requests(store) if request.arm]
        assert all((r.usd > 0) == (r.arm == "champion") for r in seen if r.usd is not None)
        assert {request.arm for request in seen} == {"champion", "candidate"}

        # Switch: the successor answers by the old name, and the service gets no more requests.
        said(capsys, "export", str(RUN), "--format", "adapter", "--out", "artifacts/successor")
        said(capsys, "models", "register", "artifacts/successor", "--name", "tickets")
        said(capsys, "models", "promote", "tickets")
        said(capsys, "deploy", "tickets@champion", "--name", MODEL, "--to", "serve")
        paid = generations(service)
        service.faults = {"POST": [(404, {}, "model_not_found")] * 99}
        assert ask(address) in ("billing", "delivery", "returns") and generations(service) == paid
    with running("serve.yaml", folder=folder, environment=cli_environment) as (address, _):
        assert ask(address) and generations(service) == paid, "a restart keeps the switch"
