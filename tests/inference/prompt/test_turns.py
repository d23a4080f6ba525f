"""A prompt of a folder: what it puts around a question, as a target and behind an engine that serves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tuneloop.core.errors import UserError
from tuneloop.inference import ENGINES, EngineSettings, Request, Served, complete, open_target
from tuneloop.inference.prompt import engine_of
from tuneloop.inference.prompt.target import PromptTarget
from tuneloop.inference.prompt.turns import open_prompt
from tuneloop.models.adapters import BASE

EXAMPLES = [("where is my parcel", "late"), ("send the money back", "refund"), ("lovely lamp", "praise")]


def prompt_in(folder: Path, model: object, examples: list[tuple[str, str]] = EXAMPLES, **settings: Any) -> str:
    folder.mkdir(exist_ok=True)
    values = {"model": str(model), "system": "Sort:\n{labels}", **settings}
    (folder / "prompt.yaml").write_text(json.dumps(values))  # JSON is YAML
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in examples]
    (folder / "examples.jsonl").write_text("".join(json.dumps({"messages": pair}) + "\n" for pair in turns))
    task = {"version": 1, "kind": "classification", "format": "text_label", "columns": {"text": "text"}}
    (folder / "tuneloop.json").write_text(json.dumps({"task": task | {"labels": ["late", "praise", "refund"]}}))
    return str(folder)


def asked(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_the_examples_stand_between_instruction_and_question(tmp_path: Path, tiny_llama: Path) -> None:
    prompt = open_prompt(prompt_in(tmp_path / "p", tiny_llama, user="Mail: {input}"))
    (turns,) = prompt.turns([asked("a broken lamp")])
    assert [turn["role"] for turn in turns] == ["system", *["user", "assistant"] * 3, "user"]
    assert turns[0]["content"] == "Sort:\nlate\npraise\nrefund"
    assert (turns[1]["content"], turns[-1]["content"]) == ("Mail: where is my parcel", "Mail: a broken lamp")


def test_each_question_gets_its_nearest_examples_the_nearest_last(tmp_path: Path, tiny_llama: Path) -> None:
    prompt = open_prompt(prompt_in(tmp_path / "p", tiny_llama, chosen="nearest", shown=1))
    first, second = prompt.turns([asked("my parcel"), asked("a lovely day")])
    assert (first[1]["content"], second[1]["content"]) == ("where is my parcel", "lovely lamp")
    assert prompt.turns([asked("my parcel")]) == [first]


def test_the_same_texts_have_the_same_hash_and_others_another(tmp_path: Path, tiny_llama: Path) -> None:
    first = open_prompt(prompt_in(tmp_path / "a", tiny_llama)).hash
    assert open_prompt(prompt_in(tmp_path / "b", tiny_llama)).hash == first
    assert open_prompt(prompt_in(tmp_path / "c", tiny_llama, EXAMPLES[:2])).hash != first
    assert open_prompt(prompt_in(tmp_path / "d", tiny_llama, system="")).hash != first


@pytest.mark.torch
def test_target_and_engine_send_and_answer_the_same(tmp_path: Path, tiny_llama: Path) -> None:
    folder = prompt_in(tmp_path / "p", tiny_llama)
    target = open_target(folder)
    assert isinstance(target, PromptTarget) and target.reader is not None and not target.is_tuned
    requests = [Request(asked(text), max_new_tokens=6, id=text) for text in ("where is it", "nice")]
    written, scored = list(target.complete(requests)), list(target.score(requests, ["late", "refund"]))
    kind = next(kind for kind in ENGINES if kind.name == "tuneloop")
    engine = engine_of(kind, Served(str(tiny_llama)), [Served(folder)], EngineSettings())

    async def served() -> tuple[list[Any], list[Any], list[int]]:
        await engine.start()
        try:
            (name,) = engine.adapters
            assert name == target.prompt.hash
            named = [Request(r.messages, max_new_tokens=6, adapter=name) for r in requests]
            labels = [Request(r.messages, choices=("late", "refund"), adapter=name) for r in requests]
            texts = [await complete(engine, request) for request in named]
            choices = [await complete(engine, request) for request in labels]
            bare = await complete(engine, Request(requests[0].messages, max_new_tokens=6, adapter=BASE))
            assert bare.prompt_tokens < texts[0].prompt_tokens and bare.adapter == BASE
            refusal = await complete(engine, Request(continues="Once", adapter=name))
            assert refusal.error.startswith("no_prompt")
            return texts, choices, list(await engine.render(requests[0].messages, adapter=name))
        finally:
            await engine.stop()

    texts, choices, ids = asyncio.run(served())
    for mine, theirs in zip([*written, *scored], [*texts, *choices], strict=True):
        facts = [(a.text, a.token_ids, a.prompt_tokens, a.adapter) for a in (mine, theirs)]
        assert facts[0] == facts[1]
    (turns,) = target.prompts([requests[0].messages])
    assert ids == target.reader.template.prompt_ids(turns)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"user": "no place for the text"}, "leaves the row's text out|leaves out the row's text"),
        ({"shown": "many"}, "shown"),
        ({"version": 9}, "newer"),
        ({"choosen": "nearest"}, "no key 'choosen'"),
    ],
)
def test_a_prompt_that_can_not_be_used_is_a_short_error(
    tmp_path: Path, tiny_llama: Path, change: dict[str, Any], word: str
) -> None:
    with pytest.raises(UserError, match=word):
        open_prompt(prompt_in(tmp_path / "p", tiny_llama, **change))


def test_a_damaged_example_is_named_by_its_line(tmp_path: Path, tiny_llama: Path) -> None:
    folder = prompt_in(tmp_path / "p", tiny_llama)
    with (tmp_path / "p" / "examples.jsonl").open("a") as file:
        file.write('{"messages": "none"}\n')
    with pytest.raises(UserError, match="Not an example") as caught:
        open_prompt(folder)
    assert "line 4" in str(caught.value)


def test_a_prompt_stands_around_a_model_not_around_a_run(tmp_path: Path, tiny_llama: Path) -> None:
    inner = prompt_in(tmp_path / "inner", tiny_llama)
    with pytest.raises(UserError, match="not around a run"):
        open_prompt(prompt_in(tmp_path / "outer", inner))
