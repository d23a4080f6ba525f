"""A GGUF file is answered by llama.cpp: the same answers as our engine's, in pieces, with labels scored; what it can't do is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import served
from served import Files

from tuneloop.core.errors import UserError
from tuneloop.inference import llamacpp
from tuneloop.inference.llamacpp.target import GgufTarget, as_gguf
from tuneloop.inference.local.target import LocalTarget
from tuneloop.inference.protocol import Target
from tuneloop.inference.request import Request, Sampling
from tuneloop.inference.targets import open_target
from tuneloop.models.load import load_model
from tuneloop.records.completion import Completion

pytestmark = pytest.mark.skipif(not llamacpp.installed(), reason="llama-cpp-py-sync is not installed")
TURNS: list[Any] = [[{"role": "user", "content": text}] for text in ("Rain?", "Where is my parcel?")]
LABELS = ["refund", "refund request", "delivery"]


@pytest.fixture(scope="module")
def files(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return served.write_files(tiny_llama, tmp_path_factory.mktemp("served"), count=0)


def test_it_answers_and_scores_as_our_engine(files: Files) -> None:
    target = open_target(str(files.gguf))
    assert isinstance(target, GgufTarget) and target.kind == "model"
    own = LocalTarget.of(load_model(str(files.base), dtype="float32"))
    requests = [Request(turns, max_new_tokens=6) for turns in TURNS]
    ours, theirs = list(own.complete(requests)), list(target.complete(requests))
    assert [their.token_ids for their in theirs] == [our.token_ids for our in ours]
    assert {their.engine for their in theirs} == {"llama.cpp"} and all(their.ttft_ms for their in theirs)
    updates = list(target.stream(requests[0]))
    assert "".join(update.text for update in updates).strip() == theirs[0].text and len(updates) > 1
    scored = zip(target.score(requests, LABELS), own.score(requests, LABELS, exact=True), strict=True)
    for found, wanted in scored:
        assert found.text == wanted.text and found.finish == "choice"
        assert found.label_scores == pytest.approx(wanted.label_scores, abs=5e-3)
    target.close()


def test_a_longer_answer_in_pieces_is_the_answer_at_once(files: Files) -> None:
    target = GgufTarget("x", files.gguf)
    ids = target.template.prompt_ids(TURNS[1])
    whole = target.llama.generate(ids, 23, target.template.end_ids)["ids"]
    assert list(next(target.complete([Request(ids=ids, max_new_tokens=23)])).token_ids) == whole
    stopped = next(target.complete([Request(ids=ids, max_new_tokens=23, stop=("e",))]))
    assert stopped.finish == "stop" and "e" not in stopped.text
    target.close()


def test_it_draws_penalises_and_foresees_as_our_engine(files: Files) -> None:
    target, own = GgufTarget("x", files.gguf), LocalTarget.of(load_model(str(files.base), dtype="float32"))

    def asked(which: Target, **how: Any) -> Completion:
        return next(which.complete([Request(TURNS[1], max_new_tokens=12, sampling=Sampling(**how), logprobs=3)]))

    greedy, ours = asked(target), asked(own)
    assert greedy.token_ids == ours.token_ids and len(greedy.logprobs or ()) == len(greedy.token_ids)
    for found, wanted in zip(greedy.logprobs or (), ours.logprobs or (), strict=True):
        assert (found.id, found.top[0][0], len(found.top)) == (wanted.id, wanted.top[0][0], 3)
        assert [found.logprob, *dict(found.top).values()] == pytest.approx([wanted.logprob, *dict(wanted.top).values()], abs=5e-3)  # fmt: skip
    penalised = asked(target, repetition_penalty=1.5)
    assert penalised.token_ids == asked(own, repetition_penalty=1.5).token_ids != greedy.token_ids
    assert asked(target, temperature=1.5, top_k=1).token_ids == greedy.token_ids, "of one token the likeliest is drawn"
    drawn = [asked(target, temperature=2.0, seed=seed) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len({item.token_ids for item in drawn}) == 3
    narrow = [asked(target, temperature=5.0, top_k=3, seed=seed) for seed in range(8)]
    assert all(logprob.id in dict(logprob.top) for answer in narrow for logprob in answer.logprobs or ())
    rows = [target.template.render([*turns, {"role": "assistant", "content": "Yes, it is."}]) for turns in TURNS]
    for found_fit, wanted_fit in zip(target.fits(rows), own.fits(rows), strict=True):
        assert (found_fit.tokens, found_fit.verbatim) == (wanted_fit.tokens, wanted_fit.verbatim)
        assert found_fit.loss == pytest.approx(wanted_fit.loss, rel=1e-3)
    target.close()


SCHEMA = {
    "type": "object",
    "properties": {"queue": {"enum": ["refund", "delivery"]}, "urgent": {"type": "boolean"}},
    "required": ["queue", "urgent"],
    "additionalProperties": False,
}


def test_an_answer_under_a_schema_is_that_of_our_engine(files: Files) -> None:
    pytest.importorskip("llguidance")
    target, own = GgufTarget("x", files.gguf), LocalTarget.of(load_model(str(files.base), dtype="float32"))

    def asked(which: Target, **how: Any) -> list[Completion]:
        drawn = Sampling(**how)
        requests = [Request(turns, max_new_tokens=60, schema=SCHEMA, sampling=drawn, logprobs=2) for turns in TURNS]
        return list(which.complete(requests))

    greedy = asked(target)
    for found, wanted in zip(greedy, asked(own), strict=True):
        assert (found.token_ids, found.text, found.finish) == (wanted.token_ids, wanted.text, "stop")
        assert set(json.loads(found.text)) == {"queue", "urgent"} and len(found.logprobs or ()) == len(found.token_ids)
    penalised = [item.token_ids for item in asked(target, repetition_penalty=1.3)]
    assert penalised == [item.token_ids for item in asked(own, repetition_penalty=1.3)]
    drawn = [asked(target, temperature=3.0, seed=seed)[0] for seed in (1, 1, 2, 3, 4)]
    assert all(json.loads(item.text)["queue"] in ("refund", "delivery") for item in drawn)
    assert drawn[0].token_ids == drawn[1].token_ids and len({item.text for item in drawn}) > 1
    cut = next(target.complete([Request(TURNS[0], max_new_tokens=3, schema=SCHEMA)]))
    assert (cut.finish, cut.token_ids) == ("length", greedy[0].token_ids[:3])
    free = next(target.complete([Request(TURNS[0], max_new_tokens=6)]))
    assert free.token_ids != greedy[0].token_ids[:6], "the next request is free again"
    target.close()


def test_what_it_cannot_do_says_why(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = GgufTarget("x", files.gguf)
    bad = [
        Request(TURNS[0], choices=("a", "b")), Request(TURNS[0], schema={"type": "nonsense"}),
        Request(ids=[5] * 200_000), Request(),
    ]  # fmt: skip
    text = [item.error.split(":")[0] for item in target.complete(bad)]
    assert text == ["constrained", "no_schema", "too_long", "no_prompt"]
    target.close()
    manifest = {
        "version": 1,
        "id": "x",
        "format": "gguf",
        "run": {"id": "r"},
        "base": {"model": "smollm2-135m"},
        "files": {},
    }
    (tmp_path / "artifact.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="no GGUF file"):
        as_gguf(str(tmp_path))
    shutil.copyfile(files.gguf, tmp_path / "x.gguf")
    assert (
        as_gguf(str(tmp_path)) == tmp_path / "x.gguf" and GgufTarget("x", tmp_path / "x.gguf").untuned == "smollm2-135m"
    )
    (tmp_path / "artifact.json").write_text(json.dumps({**manifest, "format": "gguf-lora"}))
    with pytest.raises(UserError, match="on its base's GGUF file only"):
        as_gguf(str(tmp_path))
    monkeypatch.setattr("tuneloop.inference.llamacpp.target.installed", lambda: False)
    assert as_gguf(str(files.gguf)) is None, "our own engine reads it"
