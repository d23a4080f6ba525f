"""Clients that know nothing of tuneloop, as they are installed from the package index; each is skipped where it is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import live

from patience import HANG

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live(tmp_path_factory.mktemp("serve")) as (found, _):
        yield found


def test_langchain_invokes_and_streams(address: str) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    chat = langchain_openai.ChatOpenAI(base_url=f"{address}/v1", api_key="none", model="stub", max_retries=0)
    reply = chat.invoke("Hi you")
    assert reply.content == "Hello there." and reply.usage_metadata["output_tokens"] == 3
    assert "".join(piece.content for piece in chat.stream("Hi you")) == "Hello there."


def test_litellm_completes_and_streams(address: str) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network when it is imported
    litellm = pytest.importorskip("litellm")
    asked = {
        "model": "openai/stub", "api_base": f"{address}/v1", "api_key": "none",
        "messages": [{"role": "user", "content": "Hi you"}],
    }  # fmt: skip
    assert litellm.completion(**asked).choices[0].message.content == "Hello there."
    pieces = [piece.choices[0].delta.content or "" for piece in litellm.completion(**asked, stream=True)]
    assert "".join(pieces) == "Hello there."


def test_llm_on_the_command_line(address: str, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: mine\n  model_name: stub\n  api_base: {address}/v1\n  api_key_name: none\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "mine", "--key", "x", "Hi you"], capture_output=True, text=True,
        timeout=HANG, env={**os.environ, "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""}, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "Hello there.", done.stderr


CLIENTS = Path(sys.prefix) / "clients"  # `make clients` installs them

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
    old = CLIENTS / "openai-1"
    if not (old / "openai").is_dir():
        pytest.skip("openai 1 is not installed: make clients")
    done = subprocess.run(
        [sys.executable, "-c", PYTHON, address], capture_output=True, text=True, timeout=HANG, check=False,
        env={**os.environ, "PYTHONPATH": str(old)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("version").startswith("1.")
    assert found == {
        "whole": "Hello there.", "text": "Hello there.", "refused": "NotFoundError model_not_found",
        "models": ["stub"], "response": "Hello there.",
    }  # fmt: skip
