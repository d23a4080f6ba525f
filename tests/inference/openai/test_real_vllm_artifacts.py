"""Artifacts in the real vLLM: merged, in FP8 and in four bits they answer test rows as here; and Replicate's project runs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import real_vllm
import served
from adapters import write_adapter
from real_vllm import RealVllm
from vllm_contract import post

import tuneloop
from places import ROOT
from tuneloop.deploy.deployment import ServingJob, Size
from tuneloop.deploy.hosts import find_host
from tuneloop.inference.local.serving import LocalEngine
from tuneloop.inference.openai.serving import EndpointEngine, EndpointSettings
from tuneloop.inference.protocol import Served, ServingEngine, complete
from tuneloop.inference.request import Request
from tuneloop.inference.targets import open_target
from tuneloop.models.files.names import resolve
from tuneloop.records.completion import Completion

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not real_vllm.PYTHON, reason="vLLM is not installed: make test-vllm"),
]
INSTRUCTION = "Classify the customer's ticket. Answer with its queue."
ROWS = 12  # of the test split
# Of a label's probability, of which the search by short requests leaves some thousandths unread. W4A16's weights are unpacked here as vLLM reads them; FP8 rounds what goes into a matrix, too.
TOLERANCES = {"": 1e-2, "w4a16": 2e-2, "fp8": 5e-2}


@dataclass(frozen=True)
class Tuned:
    """A run that was trained for a minute, and rows that it has not seen."""

    run: Path
    requests: list[Request]
    answers: list[str]
    labels: tuple[str, ...]


def train(folder: Path) -> Path:
    """A classifier of tickets by their queue, after 24 steps."""
    tickets = ROOT / "examples" / "tickets" / "tickets.jsonl"
    options: dict[str, Any] = {"format": "text_label", "text": "text", "label": "queue", "limit_per_label": 12}
    dataset = tuneloop.prepare(tickets, name="tickets", out=folder / "dataset", instruction=INSTRUCTION, **options)
    run = tuneloop.train(dataset, out=folder / "run", epochs=1, rows_per_step=4, learning_rate=1e-3)
    return Path(run)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    run = train(tmp_path_factory.mktemp("tuned"))
    rows = [json.loads(line) for line in (run.parent / "dataset" / "test.jsonl").read_text().splitlines()]
    rows = [row for row in rows if len(row["messages"][-2]["content"]) < 1200][:ROWS]  # what is soon read
    labels = tuple(sorted({row["label"] for row in map(json.loads, (run.parent / "dataset" / "train.jsonl").open())}))
    return Tuned(run, [Request(row["messages"][:-1]) for row in rows], [row["label"] for row in rows], labels)


def accuracy(tuned: Tuned, replies: list[Completion]) -> float:
    assert not any(reply.error for reply in replies), [reply.error for reply in replies]
    return sum(reply.text == label for reply, label in zip(replies, tuned.answers, strict=True)) / len(replies)


@pytest.mark.parametrize("quant", list(TOLERANCES))
def test_an_exported_model_classifies_test_rows_as_it_does_here(tuned: Tuned, quant: str, tmp_path: Path) -> None:
    options: Any = {"quant": quant} if quant else {}
    folder = tuneloop.export(tuned.run, form="merged", out=tmp_path / "artifact", force=True, **options).folder
    ours = list(open_target(str(folder)).score(tuned.requests, tuned.labels, exact=True))
    # Four bits are multiplied in bf16 alone on a processor.
    server = RealVllm(folder, tmp_path / "log.txt", "--dtype", "bfloat16" if quant else "float32", lora=False).start()

    async def work(engine: ServingEngine) -> list[Completion]:
        return [
            await complete(engine, Request(request.messages, choices=tuned.labels, max_new_tokens=16))
            for request in tuned.requests
        ]

    try:
        settings = EndpointSettings(f"{server.address}/v1", tokenizer=str(folder), slots=2)
        theirs = served.run(EndpointEngine(Served("base"), [], settings), work)
    finally:
        server.kill()
    print(f"accuracy of {quant or 'merged'}: {accuracy(tuned, theirs):.3f} in vLLM, {accuracy(tuned, ours):.3f} here")
    for here, there in zip(ours, theirs, strict=True):
        assert here.label_scores and there.label_probability is not None and here.label_probability is not None
        if here.text == there.text:
            assert there.label_probability == pytest.approx(here.label_probability, abs=TOLERANCES[quant])
        else:
            assert here.label_scores[here.text] - here.label_scores[there.text] < 2 * TOLERANCES[quant], "but for ties"
    assert accuracy(tuned, theirs) == pytest.approx(accuracy(tuned, ours), abs=1 / ROWS + 1e-9)


SYSTEM = "You answer questions about the weather on other planets, in a few words."
WINDY = "Is it windy on Jupiter?"


def into_cache(cache: Path, name: str, folder: Path) -> None:
    """Put a folder where the hub's library finds it by a name, without a network."""
    path = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, path / "snapshots" / "0123")
    (path / "refs").mkdir()
    (path / "refs" / "main").write_text("0123")


@contextmanager
def cog_server(project: Path, cache: Path) -> Iterator[str]:
    """Cog's own server with a project's predictor, as its image starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        **os.environ, **real_vllm.VARIABLES, "PORT": str(port), "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
        "HF_HUB_CACHE": str(cache), "COG_MAX_CONCURRENCY": "4",
        "PATH": f"{Path(real_vllm.PYTHON).parent}{os.pathsep}{os.environ['PATH']}",  # it starts `python`
    }  # fmt: skip
    log = (project / "log.txt").open("wb")
    text = [real_vllm.PYTHON, "-m", "cog.server.http", "--host", "127.0.0.1"]
    process = subprocess.Popen(text, cwd=project, env=variables, stdout=log, stderr=log, start_new_session=True)
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + real_vllm.READY_WITHIN
    try:
        while True:
            try:
                with urllib.request.urlopen(f"{address}/health-check", timeout=5) as reply:
                    status = json.load(reply)["status"]
            except OSError:
                status = "STARTING"
            if status == "READY":
                break
            starting = status == "STARTING" and process.poll() is None and time.monotonic() < until
            assert starting, f"{status}: {(project / 'log.txt').read_text()[-3000:]}"
            time.sleep(1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_replicate_s_project_answers_as_the_adapter_does_here(tmp_path: Path) -> None:
    if subprocess.run([real_vllm.PYTHON, "-c", "import cog"], capture_output=True).returncode:
        pytest.skip("cog is not installed: make test-vllm")
    base = Path(resolve("smollm2-135m"))
    adapter = write_adapter(base, tmp_path / "adapter", 2, strength=0.15)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # as an artifact has them
        shutil.copy(base / name, adapter)
    into_cache(tmp_path / "hub", "acme/base", base)
    into_cache(tmp_path / "hub", "acme/tickets", adapter)
    job = ServingJob(
        "tickets", "tickets-0123", "adapter", "acme/base", "acme/tickets", Size(0.3, 23040, 512), rank=4, system=SYSTEM,
        ends=(2,),
    )  # fmt: skip
    project = tmp_path / "project"
    project.mkdir()
    for name, text in find_host("replicate").project(job).items():
        (project / name).write_text(text)

    async def work(engine: LocalEngine) -> list[str]:
        turns: Any = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": WINDY}]
        requests = [Request(turns, adapter=name, max_new_tokens=8) for name in (next(iter(engine.adapters)), "base")]
        return [item.text for item in await asyncio.gather(*(complete(engine, request) for request in requests))]

    ours, of_the_base = served.run(LocalEngine(Served("smollm2-135m"), [Served(str(adapter))]), work)
    with cog_server(project, tmp_path / "hub") as address:
        status, reply = post(address, "/predictions", {"input": {"prompt": WINDY, "max_tokens": 8}})
        assert status == 200 and reply["status"] == "succeeded", reply
        assert "".join(reply["output"]).strip() == ours != of_the_base
