"""A conversation a line at a time: piped, with commands, next to the model before tuning."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.pipeline.answers.chat import Chat, open_chat

MakeTuned = Callable[..., Path]
LABELS = ("late", "lost", "thanks")


@pytest.fixture
def chatted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """What a chat prints, and says on stderr, when lines are piped into it."""

    def chat(lines: str, *arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        assert main(["chat", *arguments]) == 0
        told = capsys.readouterr()
        return told.out, told.err

    return chat


def test_a_classifier_shows_the_likeliest_labels_and_the_prompt_that_it_read(
    make_tuned: MakeTuned, chatted: Any
) -> None:
    run = make_tuned(data={"instruction": "Sort it."})
    out, err = chatted(
        "where is cafÃ©\n/prompt\n\n/system Other.\n/prompt x\n//slash\n/none\n/quit\nnever asked\n", str(run)
    )
    lines = out.splitlines()
    assert lines[0].split()[0] in LABELS and "%" in lines[0] and "(then " in lines[0]
    prompt = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nSort it.<|eot_id|>" \
        "<|start_header_id|>user<|end_header_id|>\n\nwhere is café<|eot_id|><|start_header_id|>assistant<|end_header_id|>"  # fmt: skip
    assert prompt in out and "\n\nOther.<|eot_id|>" in out
    assert out.count("(then ") == 2 and "no command /none" in err and "never" not in out


def test_the_base_is_the_model_with_its_adapter_off(make_tuned: MakeTuned, tiny_llama: Path, chatted: Any) -> None:
    run = make_tuned()
    found = json.loads(chatted("where is it\n", str(run), "--against", "base", "--json", "-q")[0])
    other = json.loads(chatted("where is it\n", str(run), "--against", str(tiny_llama), "--json", "-q")[0])
    answers = found["turns"][0]["answers"]
    assert list(answers) == ["tuned", "base"] and answers["tuned"] != answers["base"]
    assert other["turns"][0]["answers"][tiny_llama.name]["probability"] == pytest.approx(
        answers["base"]["probability"], rel=1e-3
    )


def test_a_base_model_without_a_template_is_named_as_one(smollm2: Path, tmp_path: Path, chatted: Any) -> None:
    sizes = {"vocab_size": 49152, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").symlink_to(smollm2 / "tokenizer.json")
    settings = json.loads((smollm2 / "tokenizer_config.json").read_text())
    for template, named in (("", True), (settings["chat_template"], False)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
        err = chatted("", str(tmp_path))[1]
        assert ("a base model, without a chat template" in err) is named


def test_few_shot_shows_examples_of_the_run_first(make_tuned: MakeTuned) -> None:
    run = make_tuned(data={"instruction": "Sort it."})
    chat = open_chat(str(run), "few-shot")
    prompt = chat.prompt(chat.speakers[1], {"text": "where is it"})
    roles = [turn["role"] for turn in prompt.messages]  # type: ignore[union-attr]
    assert (
        roles[0] == "system"
        and len(roles) == 1 + 2 * 3 + 1
        and {t["content"] for t in prompt.messages[2:-1:2]} == set(LABELS)
    )  # type: ignore[union-attr]
    with pytest.raises(UserError, match="this is not a run"):
        open_chat(str(run / "adapter"), "few-shot")
    with pytest.raises(UserError, match="tuned from"):
        open_chat(str(chat.speakers[0].target.target.base), "base")


def test_several_columns_are_asked_as_json(make_tuned: MakeTuned, chatted: Any) -> None:
    records = [{"subject": f"case {i}", "body": f"it {i * 7} is late", "queue": ["a", "b"][i % 2]} for i in range(40)]
    run = make_tuned(records, {"input": "{subject}: {body}", "output": "{queue}"})
    out, err = chatted('plain\n{"subject": "S", "body": "B"}\n/prompt\n', str(run), "--max-new-tokens", "2")
    assert 'write them as JSON: {"subject": "...", "body": "..."}' in err and "S: B<|eot_id|>" in out


def test_a_conversation_is_remembered_where_conversations_were_trained(make_tuned: MakeTuned) -> None:
    def turns(i: int) -> list[dict[str, str]]:
        said = [f"hello {i * 7}", f"hi {i}", f"and {i * 3} then", f"bye {i}"]
        return [{"role": "user" if n % 2 == 0 else "assistant", "content": text} for n, text in enumerate(said)]

    run = make_tuned([{"messages": turns(i)} for i in range(40)])
    chat = open_chat(str(run), max_new_tokens=3)
    (speaker,) = chat.speakers
    pieces: list[str] = []
    first = chat.answer(speaker, chat.question("one"), pieces.append)
    assert "".join(pieces) == first.text and first.tokens == 3
    asked = chat.prompt(speaker, chat.question("two"))
    assert [t["content"] for t in asked.messages] == ["one", first.text, "two"]  # type: ignore[union-attr]
    chat.reset()
    asked = chat.prompt(speaker, chat.question("two"))
    assert [t["content"] for t in asked.messages] == ["two"]  # type: ignore[union-attr]


def test_an_interrupt_stops_an_answer_and_keeps_what_was_said(make_tuned: MakeTuned) -> None:
    run = make_tuned([{"question": f"what {i * 7}", "answer": f"it is {i}"} for i in range(40)])
    chat: Chat = open_chat(str(run), max_new_tokens=50)
    said: list[str] = []

    def show(piece: str) -> None:
        said.append(piece)
        if len(said) == 2:
            raise KeyboardInterrupt

    found = chat.answer(chat.speakers[0], {"question": "what"}, show)
    assert found.text == "".join(said) and found.finish == "stop" and found.tokens < 50


def test_a_question_that_is_too_long_is_told_and_the_next_one_asked(
    make_tuned: MakeTuned, chatted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_tuned()
    monkeypatch.setattr("tuneloop.models.load.Model.context", 100)
    out, err = chatted("long " * 200 + "\nwhere\n", str(run))
    assert "too_long" in err and out.count("(then ") == 1
