"""Clients that know nothing of tuneloop, as they are installed from the package index; each is skipped where it is missing.

They send every kind of conversation to a real server of a model that was tuned through a template of two columns. What
they get must be what the same conversation gets in plain HTTP.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import live

from patience import HANG
from places import ROOT
from serving import ANSWERS, FIELDS, MakeTuned, running
from tuneloop.deploy.deployment import ServingJob, Size
from tuneloop.deploy.hosts import find_host, hosts
from tuneloop.deploy.project_text import request_text

pytestmark = [pytest.mark.slow, pytest.mark.nightly]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live(tmp_path_factory.mktemp("serve")) as (found, _):
        yield found


# `make clients` installs them, each in an environment of its own.
CLIENTS = Path(os.environ.get("TUNELOOP_CLIENTS") or Path(sys.prefix) / "clients")

NODE = """
import OpenAI, { toFile } from 'openai';
const api = new OpenAI({ baseURL: process.argv[2] + '/v1', apiKey: 'none', maxRetries: 0 });
const asked = { model: 'stub', messages: [{ role: 'user', content: 'Hi you' }] };
const whole = await api.chat.completions.create(asked);
let text = '';
for await (const event of await api.chat.completions.create({ ...asked, stream: true })) {
  text += event.choices[0]?.delta?.content ?? '';
}
let refused = '';
try { await api.chat.completions.create({ ...asked, model: 'nobody' }); }
catch (error) { refused = error.constructor.name + ' ' + error.code; }
const models = (await api.models.list()).data.map((model) => model.id);
const response = await api.responses.create({ model: 'stub', input: 'Hi you' });
const line = JSON.stringify({ custom_id: 'a', method: 'POST', url: '/v1/chat/completions', body: asked }) + '\\n';
const file = await api.files.create({ file: await toFile(Buffer.from(line), 'in.jsonl'), purpose: 'batch' });
let batch = await api.batches.create({ input_file_id: file.id, endpoint: '/v1/chat/completions', completion_window: '24h' });
while (!['completed', 'failed', 'expired'].includes(batch.status)) {
  await new Promise((done) => setTimeout(done, 50));
  batch = await api.batches.retrieve(batch.id);
}
const output = await (await api.files.content(batch.output_file_id)).text();
console.log(JSON.stringify({
  whole: whole.choices[0].message.content, usage: whole.usage.completion_tokens, text, refused, models,
  response: response.output_text, batch: JSON.parse(output).custom_id,
}));
"""

PYTHON = """
import json, sys, openai
api = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
asked = {"model": "stub", "messages": [{"role": "user", "content": "Hi you"}]}
whole = api.chat.completions.create(**asked)
pieces = [e.choices[0].delta.content or "" for e in api.chat.completions.create(**asked, stream=True) if e.choices]
try:
    api.chat.completions.create(**{**asked, "model": "nobody"})
except openai.NotFoundError as error:
    refused = f"NotFoundError {error.code}"
print(json.dumps({
    "version": openai.__version__, "whole": whole.choices[0].message.content, "text": "".join(pieces),
    "refused": refused, "models": [m.id for m in api.models.list()],
    "response": api.responses.create(model="stub", input="Hi you").output_text,
}))
"""


def python_of(name: str) -> str:
    """The Python of a client's environment; the main one has the newest client of OpenAI."""
    python = Path(sys.executable) if name == "openai" else CLIENTS / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{name} is not installed: make clients")
    return str(python)


def test_the_client_for_node(address: str, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not (CLIENTS / "node/node_modules/openai").is_dir():
        pytest.skip("node with openai is not installed: make clients")
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node/node_modules")
    (tmp_path / "ask.mjs").write_text(NODE)
    done = subprocess.run(
        [node, "ask.mjs", address], capture_output=True, text=True, timeout=HANG, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "whole": "Hello there.", "usage": 3, "text": "Hello there.", "refused": "NotFoundError model_not_found",
        "models": ["stub"], "response": "Hello there.", "batch": "a",
    }  # fmt: skip


def test_an_older_major_of_the_client(address: str) -> None:
    python = python_of("openai-1")
    done = subprocess.run([python, "-c", PYTHON, address], capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("version").startswith("1.")
    assert found == {
        "whole": "Hello there.", "text": "Hello there.", "refused": "NotFoundError model_not_found",
        "models": ["stub"], "response": "Hello there.",
    }  # fmt: skip


# --- a tuned model -------------------------------------------------------------------------------------

TOKENS = 8
RECORD = json.dumps({"subject": "Late", "body": "where is it"})
SYSTEM = {"role": "system", "content": "Answer in Dutch."}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "record": [{"role": "user", "content": RECORD}],
    "plain": [{"role": "user", "content": "Where is my parcel?"}],
    "system": [SYSTEM, {"role": "user", "content": RECORD}],
    "turns": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": RECORD}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Where is "}, {"type": "text", "text": "my parcel?"}]}],
}  # fmt: skip
SCHEMA = {
    "type": "object", "properties": {"kind": {"type": "string", "enum": ["late", "lost"]}}, "required": ["kind"],
    "additionalProperties": False,
}  # fmt: skip
PLACE = {"type": "object", "properties": {"place": {"type": "string", "enum": ["depot", "shop"]}}, "required": ["place"],
         "additionalProperties": False}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Look a place up.", "parameters": PLACE}}
GIVEN = json.dumps({"conversations": CONVERSATIONS, "schema": SCHEMA, "tool": TOOL, "tokens": TOKENS})
SCRIPTS = ROOT / "tests" / "helpers" / "clients"
Server = tuple[str, dict[str, str]]  # address of a server, and the answer to each conversation in plain HTTP


def post(address: str, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
    return httpx.post(f"{address}{path}", json={"model": "tickets", "max_tokens": TOKENS, **body}, timeout=HANG)


@pytest.fixture(scope="module")
def begun() -> Iterator[tuple[contextlib.ExitStack, list[Server]]]:
    """The server that the first test has started, until the last one has ended."""
    with contextlib.ExitStack() as servers:
        yield servers, []


@pytest.fixture
def tuned(
    begun: tuple[contextlib.ExitStack, list[Server]], make_tuned: MakeTuned, tmp_path: Path,
    cli_environment: dict[str, str],
) -> Server:  # fmt: skip
    servers, first = begun
    if not first:
        run = make_tuned(ANSWERS, data=FIELDS, name="tickets")
        server = running(str(run), "objective.admission=queue", folder=tmp_path / "s", environment=cli_environment)
        at, _ = servers.enter_context(server)
        replies = {name: post(at, messages=messages) for name, messages in CONVERSATIONS.items()}
        outside = {
            name for name, reply in replies.items() if reply.headers.get("x-tuneloop-prompt") == "outside-training"
        }
        assert outside == {"plain", "system", "turns", "parts"}
        answers = {name: reply.json()["choices"][0]["message"]["content"] for name, reply in replies.items()}
        assert len(set(answers.values())) == 4 and answers["parts"] == answers["plain"]
        first.append((at, answers))
    return first[0]


def answered(server: Server, found: dict[str, Any]) -> None:
    """Check what a client got for each kind of conversation."""
    _, answers = server
    assert {name: found[name] for name in answers} == answers
    assert found["streamed"] == answers["plain"] and found["after the call"] is True
    assert found["call"][0] == "look_up" and found["call"][1]["place"] in ("depot", "shop")
    assert found["form"]["kind"] in ("late", "lost")


def called_by_responses(found: dict[str, Any]) -> None:
    """Check that `/v1/responses` called the tool, and continued behind its result."""
    name, arguments = found["responses with tools"]
    assert name == "look_up" and arguments["place"] in ("depot", "shop") and found["responses after the call"] is True


def results(command: list[str], address: str, environment: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    done = subprocess.run(
        [*command, address, "tickets", GIVEN], capture_output=True, text=True, timeout=HANG, check=False,
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", **(environment or {})}, **more,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(("name", "version"), [("openai", "3."), ("openai-2", "2."), ("openai-1", "1.")])
def test_three_majors_of_the_client_send_any_conversation(name: str, version: str, tuned: Server) -> None:
    found = results([python_of(name), str(SCRIPTS / "openai_shapes.py")], tuned[0])
    answered(tuned, found)
    assert found["version"].startswith(version) and found["named call"] == ["look_up"]
    assert (found["developer"], found["named"]) == (tuned[1]["system"], tuned[1]["plain"])
    assert found["responses"] == tuned[1]["plain"]
    called_by_responses(found)
    assert found["embeddings"] == [384, 384]


@pytest.mark.parametrize("name", ["langchain", "llamaindex", "litellm"])
def test_frameworks_send_any_conversation(name: str, tuned: Server) -> None:
    found = results([python_of(name), str(SCRIPTS / f"{name}_shapes.py")], tuned[0])
    answered(tuned, found)
    assert name != "langchain" or found["by function"]["kind"] in ("late", "lost")
    assert name != "llamaindex" or found["with tools"] is found["completion"] is True


def node_in(folder: Path) -> str:
    node = shutil.which("node")
    if node is None or not (CLIENTS / "node/node_modules/ai").is_dir():
        pytest.skip("node with the AI SDK is not installed: make clients")
    (folder / "node_modules").symlink_to(CLIENTS / "node/node_modules")
    return node


def test_the_ai_sdk_sends_any_conversation(tuned: Server, tmp_path: Path) -> None:
    node = node_in(tmp_path)
    shutil.copy(SCRIPTS / "ai_sdk_shapes.mjs", tmp_path)
    found = results([node, "ai_sdk_shapes.mjs"], tuned[0], cwd=tmp_path)
    answered(tuned, found)
    assert found["responses"] == tuned[1]["plain"] and found["responses streamed call"] == "look_up"
    called_by_responses(found)


def test_llm_on_the_command_line(tuned: Server, tmp_path: Path) -> None:
    python, (address, answers) = python_of("llm"), tuned
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- {{model_id: mine, model_name: tickets, api_base: '{address}/v1', supports_schema: true}}\n"
    )

    def llm(*text: str, tokens: int = TOKENS) -> str:
        done = subprocess.run(
            [python, "-m", "llm", *text, "-m", "mine", "--key", "x", "-o", "max_tokens", str(tokens)],
            capture_output=True, text=True, timeout=HANG, check=False,
            env={**os.environ, "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.rstrip("\n")

    assert llm("Where is my parcel?") == llm("Where is my parcel?", "--no-stream") == answers["plain"].rstrip("\n")
    assert llm(RECORD, "-s", str(SYSTEM["content"])) == answers["system"].rstrip("\n")
    assert llm("And now?", "-c") != llm("And now?")
    assert json.loads(llm("Where is it?", "--schema", json.dumps(SCHEMA), tokens=200))["kind"] in ("late", "lost")


# As Open WebUI's source sends them (backend/open_webui: routers/openai.py, routers/tasks.py, utils/payload.py).
CALLED = {
    "index": 0,
    "id": "call_1",
    "type": "function",
    "function": {"name": "look_up", "arguments": '{"place": "depot"}'},
}
OPEN_WEBUI: dict[str, dict[str, Any]] = {
    "a chat": {"stream": True, "model": "tickets", "messages": CONVERSATIONS["plain"]},
    "with usage": {"stream": True, "messages": CONVERSATIONS["turns"], "stream_options": {"include_usage": True}},
    "the settings of its page": {
        "stream": True, "messages": [SYSTEM, *CONVERSATIONS["plain"]], "temperature": 0.0, "top_p": 0.9, "min_p": 0.0,
        "max_tokens": 8, "frequency_penalty": 0, "presence_penalty": 0, "seed": 1, "stop": ["zzz"], "logit_bias": {},
        "reasoning_effort": "medium",
    },
    "a title": {"stream": False, "messages": CONVERSATIONS["plain"], "max_completion_tokens": 1000, "max_tokens": None},
    "tags": {"stream": False, "messages": CONVERSATIONS["plain"]},
    "native tools": {"stream": True, "messages": CONVERSATIONS["plain"], "tools": [TOOL]},
    "their results": {
        "stream": True, "tools": [TOOL],
        "messages": [
            *CONVERSATIONS["plain"], {"role": "assistant", "content": "", "tool_calls": [CALLED]},
            {"role": "tool", "tool_call_id": "call_1", "content": "in Utrecht"},
        ],
    },
    "an answer that was stopped": {
        "stream": True,
        "messages": [*CONVERSATIONS["plain"], {"role": "assistant", "content": ""}, *CONVERSATIONS["plain"]],
    },
}  # fmt: skip


def test_open_webui_s_requests_are_answered(tuned: Server) -> None:
    address, _ = tuned
    models = httpx.get(f"{address}/v1/models", headers={"Authorization": "Bearer x"}).json()
    assert (
        models["object"] == "list" and models["data"][0]["id"] == "tickets" and models["data"][0]["object"] == "model"
    )
    for name, body in OPEN_WEBUI.items():
        reply = post(address, **body)
        assert reply.status_code == 200, (name, reply.text)
        if not body["stream"]:
            assert reply.json()["choices"][0]["message"]["content"], name
            continue
        lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
        choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
        assert lines[-1] == "[DONE]" and any(choice["delta"].get("content") for choice in choices), name
        assert choices[-1]["finish_reason"] in ("stop", "length"), name


def test_every_written_first_request_is_one_of_training_where_it_says_so(tuned: Server) -> None:
    """What `deploy` writes for each host has the trained system turn, so that it is not outside of the training."""
    address, answers = tuned
    job = ServingJob("tickets", "tickets-merged-0123", "merged", "base", "acme/tickets", Size(1.0, 4096, 4096),
                     file="model.gguf", rank=4, system=str(FIELDS["instruction"]))  # fmt: skip
    texts = {name: request_text(find_host(name), job) for name in hosts()}
    assert sum(text is not None for text in texts.values()) >= 10
    for name, text in texts.items():
        if text is None:  # this host has another way
            continue
        body = {**json.loads(text), "model": "tickets"}
        reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=HANG)
        assert reply.status_code == 200, (name, reply.text)
        body["messages"][-1]["content"] = RECORD
        same = httpx.post(f"{address}/v1/chat/completions", json={**body, "max_tokens": TOKENS}, timeout=HANG)
        assert same.json()["choices"][0]["message"]["content"] == answers["record"], name
        assert "x-tuneloop-prompt" not in same.headers


# --- the page ------------------------------------------------------------------------------------------

ENVIRONMENTS = {
    "OpenAI, Python": "openai", "OpenAI, JavaScript": "node", "LangChain": "langchain", "LlamaIndex": "llamaindex",
    "LiteLLM": "litellm", "llm on the command line": "llm", "Vercel's AI SDK": "node",
}  # fmt: skip


def examples() -> dict[str, list[str]]:
    """The code of each section of the page."""
    sections = re.split(r"^## ", (ROOT / "docs" / "clients.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        part.partition("\n")[0]: re.findall(r"^```\w+\n(.*?)^```", part, re.MULTILINE | re.DOTALL) for part in sections
    }


def test_every_example_of_the_page_is_run() -> None:
    assert {name for name, blocks in examples().items() if blocks} == {*ENVIRONMENTS, "Open WebUI"}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_page_s_example_gets_the_answer(name: str, tuned: Server, tmp_path: Path) -> None:
    path, kind = tmp_path / "example", ENVIRONMENTS[name]
    path.mkdir()
    blocks = [block.replace("http://127.0.0.1:8100", tuned[0]) for block in examples()[name]]
    if kind == "node":
        (path / "ask.mjs").write_text(blocks[0])
        command = [node_in(path), "ask.mjs"]
    elif kind == "llm":
        (path / "extra-openai-models.yaml").write_text(blocks[0])
        command = [python_of("llm"), "-m", *shlex.split(blocks[1])]
    else:
        command = [python_of(kind), "-c", blocks[0]]
    more = {"LLM_USER_PATH": str(path), "LLM_LOAD_PLUGINS": "", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=HANG, check=False, cwd=path, env={**os.environ, **more}
    )
    assert done.returncode == 0, done.stderr
    turns = {"model": "tickets", "messages": CONVERSATIONS["plain"]}
    reply = httpx.post(f"{tuned[0]}/v1/chat/completions", json=turns, timeout=HANG).json()
    assert done.stdout.strip() == reply["choices"][0]["message"]["content"].strip()
