"""Against the real vLLM, by its URL: evaluate, predict, gate, judge, distill, an experiment and a pool."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import real_vllm
from real_vllm import RealVllm
from tuned_runs import text

from patience import HANG
from serving import ANSWERS, FIELDS, running
from tuneloop.cli.main import main
from tuneloop.core.files import read_jsonl
from tuneloop.improve.experiment import command as ab
from tuneloop.inference.openai.serving import EndpointEngine, EndpointSettings
from tuneloop.inference.protocol import Served, ServingEngine, complete
from tuneloop.inference.request import Request
from tuneloop.inference.targets import open_target
from tuneloop.models.adapters.peft_layout import hash_of_adapter
from tuneloop.models.files.names import resolve
from tuneloop.serving.pool import EnginePool

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not real_vllm.PYTHON, reason="vLLM is not installed: make test-vllm"),
]
MakeTuned = Callable[..., Path]
TOPICS = ["card arrival", "card lost", "top up", "top up fee", "other"]
TICKETS = [
    {"text": f"{opening} my {TOPICS[i % 5]}? It is for {text(i)}.", "label": TOPICS[i % 5]}
    for i, opening in enumerate(["What about", "Can you help me with", "I have a question on", "Where is"] * 12)
]
TOGETHER = ("--no-cache", "--concurrency", "32", "--timeout", "600")
PROBABILITY = 0.01  # what may differ: what the search leaves unread, and rounding


@pytest.fixture(scope="module")
def base() -> Path:
    return Path(resolve("smollm2-135m"))


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVllm]:
    server = RealVllm(base, tmp_path_factory.mktemp("vllm") / "log.txt", "--dtype", "float32").start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_DTYPE", "float32")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def classifier(make_tuned: MakeTuned, base: Path) -> Path:
    return make_tuned(TICKETS, data={"split": {"val": 0.0, "test": 0.5}}, name="topics", base=base)


def reported(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    assert main([*arguments, "--json", "--quiet"]) == status
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def check_labels(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], run: Path) -> None:
    """Labels of two evaluations are the same, and the second one's probabilities those of scoring all labels.

    Our engine's own are lower bounds, which are far off where a model is unsure.
    """
    assert len(ours) >= 20
    requests = [Request(row["messages"]) for row in ours]
    exact = open_target(str(run)).score(requests, sorted(TOPICS), exact=True)
    for our, other, true in zip(ours, theirs, exact, strict=True):
        assert other["completion"]["finish"] == "choice" and our["prediction"] == other["prediction"] == true.text
        assert other["confidence"] == pytest.approx(true.label_probability, abs=PROBABILITY)


def test_an_evaluation_by_url_is_that_of_the_run_and_passes_its_gate(
    server: RealVllm, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("--dataset", str(classifier / "dataset"))
    ours = reported(capsys, "evaluate", str(classifier), *rows, "--out", "ours")
    by_url = ("evaluate", server.address, "-m", str(classifier), *rows, *TOGETHER, "--out", "theirs")
    theirs = reported(capsys, *by_url)
    assert theirs["costs"]["tuned"]["failed"] == 0 and theirs["notes"] == ours["notes"]
    samples = [list(read_jsonl(Path(name) / "samples.jsonl")) for name in ("ours", "theirs")]
    check_labels(*samples, run=classifier)
    Path("suite.yaml").write_text("version: 1\nmetrics: [{metric: accuracy, margin: 0.1}]\n")
    gate = reported(capsys, "gate", "theirs", "--against", "ours", "--suite", "suite.yaml", "--no-model")
    assert gate["status"] == "pass"


def test_rows_are_predicted_by_url_as_here(
    server: RealVllm, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("in.jsonl").write_text("".join(json.dumps({"text": ticket["text"]}) + "\n" for ticket in TICKETS[:8]))
    ours = reported(capsys, "predict", str(classifier), "in.jsonl", "--top", "5")["predictions"]
    by_url = ("predict", server.address, "in.jsonl", "-m", str(classifier), *TOGETHER)
    for our, other in zip(ours, reported(capsys, *by_url)["predictions"], strict=True):
        assert our["prediction"] == other["prediction"]
        assert our["probability"] == pytest.approx(other["probability"], abs=PROBABILITY)


def test_a_teacher_by_url_teaches_what_it_would_here(
    server: RealVllm, tiny_llama: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (str(tiny_llama), "--dataset", str(classifier / "dataset"), "--no-control", "--rows", "4")
    taught = []
    for out, teacher in (("here", (str(classifier),)), ("by-url", (server.address, "-m", str(classifier), *TOGETHER))):
        reported(capsys, "distill", *teacher, *common, "--out", out, "train.epochs=0.1")
        answers = next(Path(out, "distill").glob("answers-*.jsonl"))
        taught.append({line["id"]: line["text"] for line in read_jsonl(answers)})
    assert taught[0] == taught[1] and set(taught[0].values()) <= set(TOPICS)


def test_a_judge_by_url_judges_every_pair_in_both_orders(server: RealVllm, capsys: pytest.CaptureFixture[str]) -> None:
    for name, word in (("a", "Yes"), ("b", "No")):
        answers = [{"id": f"r{i}", "prediction": f"{word}, about {i}."} for i in range(20)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    rows = [{"id": f"r{i}", "prompt": f"Is it {i}?", "completion": f"Yes, about {i}."} for i in range(20)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = server.metric("vllm:request_success_total")
    judge = ("--judge", f"{server.address}/v1", "--judge-model", "base", "--judge-rows", "4", *TOGETHER)
    made = reported(capsys, "compare", "a.jsonl", "b.jsonl", "--references", "rows.jsonl", *judge)
    assert server.metric("vllm:request_success_total") - before == 8
    verdicts = list(read_jsonl(Path(made["path"]) / "judge.jsonl"))
    assert len(verdicts) == 4 and made["judge"]["model"] == "base"


def test_an_experiment_s_arms_are_answered_by_their_own_adapters(
    server: RealVllm, make_tuned: MakeTuned, base: Path, tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    old = make_tuned(ANSWERS, data=FIELDS, name="answers", base=base)
    new = make_tuned(ANSWERS, data=FIELDS, name="new-answers", base=base, rslora=True)
    assert hash_of_adapter(old / "adapter") != hash_of_adapter(new / "adapter")
    settings = {
        "model": "answers", "shadow": False, "ramp": "50,100", "candidate": str(new), "champion": str(old),
    }  # fmt: skip
    turn = {"role": "user", "content": json.dumps({"subject": "a", "body": "b"})}

    def answers(address: str) -> dict[str, list[float]]:
        """Log probabilities of each arm's answer: two random adapters may well write the same words."""
        of: dict[str, list[float]] = {}
        for user in range(12):
            asked = {"messages": [turn], "max_tokens": 4, "user": f"u{user}", "logprobs": True}
            body = json.dumps(asked).encode()
            with urllib.request.urlopen(f"{address}/v1/chat/completions", body, timeout=HANG) as reply:
                tokens = json.loads(reply.read())["choices"][0]["logprobs"]["content"]
            values = of.setdefault(reply.headers["x-tuneloop-release"], [token["logprob"] for token in tokens])
            same = pytest.approx(values, abs=1e-3)
            assert [token["logprob"] for token in tokens] == same, "an arm answers one way"
        return of

    folder = tmp_path / "served"
    front = running(str(old), server.address, "base=base", "canaries=0", folder=folder, environment=cli_environment)
    with front as (address, _):
        (alone,) = answers(address).values()
        ab.start(folder, "try", settings)
        end = time.monotonic() + HANG
        while len(arms := answers(address)) != 2:
            assert time.monotonic() < end
            time.sleep(0.5)
        champion, candidate = sorted(arms.values(), key=lambda values: abs(values[0] - alone[0]))
        assert champion == pytest.approx(alone, abs=1e-3) and candidate[0] != pytest.approx(alone[0], abs=0.01)


def test_a_pool_of_two_goes_on_with_one(server: RealVllm, base: Path, tmp_path: Path) -> None:
    other = RealVllm(base, tmp_path / "log.txt", "--dtype", "float32").start()
    request = Request([{"role": "user", "content": "Where is my parcel?"}], max_new_tokens=6)

    async def prove(engine: ServingEngine) -> None:
        assert (await complete(engine, request)).text

    async def work() -> None:
        settings = [EndpointSettings(item.address, tokenizer="smollm2-135m") for item in (server, other)]
        pool = EnginePool([EndpointEngine(Served("base"), [], setting) for setting in settings], prove, every=0.5)
        await pool.start()
        try:
            first = await asyncio.gather(*(complete(pool, request) for _ in range(6)))
            assert len({item.token_ids for item in first}) == 1 and {item.engine for item in first} == {
                server.address, other.address,
            }  # fmt: skip
            other.kill()
            later = await asyncio.gather(*(complete(pool, request) for _ in range(6)))
            assert {item.token_ids for item in later} == {first[0].token_ids}
        finally:
            await pool.stop()

    try:
        asyncio.run(work())
    finally:
        other.kill()


def test_white_space_of_an_answer_under_a_schema_is_bounded(server: RealVllm) -> None:
    schema = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}, "required": ["kind"]}
    lure = "{" + "\n" * 60  # a model that reads this goes on with line ends

    async def work() -> None:
        engine = EndpointEngine(Served("base"), [], EndpointSettings(server.address, tokenizer="smollm2-135m"))
        await engine.start()
        try:
            ids = await engine.tokenize(lure)
            form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
            body = {"model": "base", "prompt": list(ids), "max_tokens": 120, "temperature": 0, "response_format": form}
            free = (await engine._reply("/v1/completions", body, 120))["choices"][0]
            assert free["finish_reason"] == "length" and "\n" * 40 in free["text"], "vLLM alone sets no bound"
            answer = await complete(engine, Request(ids=ids, schema=schema, max_new_tokens=120))
            assert answer.finish == "stop" and json.loads(answer.text)["kind"] in ("a", "b")
        finally:
            await engine.stop()

    asyncio.run(work())
