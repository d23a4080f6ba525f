"""Clients that know nothing of tuneloop, as they are installed from the package index; each is skipped where it is missing."""

from __future__ import annotations

import os
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
