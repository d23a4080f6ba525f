"""Reasoning is taken out of an answer: the same whole and piece by piece, whatever the pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel

from tuneloop.models.chat.reasoning import CHANNELS, FINAL, ReasoningStream, is_headless, split_reasoning
from tuneloop.models.chat.template import load_template

PARTS = st.sampled_from(["<think>", "</think>", "<thi", "</", "[THINK]", "[/THINK]", "\n", " ", "a", "Why? ", "<", "7",
                         *CHANNELS, FINAL, "<|channel|>", "final<|mess"])  # fmt: skip


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\nIt was sent.\n</think>\n\nOn its way.", False, ("It was sent.", "On its way.")),
        ("It was sent.\n</think>\n\nOn its way.", True, ("It was sent.", "On its way.")),
        ("<think>\n\n</think>\n\nYes", False, ("", "Yes")),
        ("[THINK]x[/THINK]y", False, ("x", "y")),
        ("<think>It never ends", False, ("It never ends", None)),
        ("It never ends", True, ("It never ends", None)),
        ("a <think>b</think> c", False, (None, "a <think>b</think> c")),
        ("</think>", False, (None, "</think>")),
        ("<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>y", False, ("x", "y")),
        ("<|channel|>final<|message|>y", False, ("", "y")),
        ("<|channel|>analysis<|message|>x<|end|><|start|>assistant to=functions.f", False, ("x", "to=functions.f")),
    ],
)
def test_a_block_of_reasoning_comes_first(text: str, opened: bool, expected: tuple[str | None, str | None]) -> None:
    assert split_reasoning(text, opened=opened) == expected


def test_the_end_of_a_block_whose_beginning_the_prompt_had_is_known_as_one() -> None:
    assert is_headless("It was sent.\n</think>\nYes")
    assert not is_headless("<think>It was sent.</think>Yes") and not is_headless("a </think> b </think> c")


@given(parts=st.lists(PARTS, max_size=12), sizes=st.lists(st.integers(1, 9), min_size=1), opened=st.booleans())
def test_pieces_together_are_the_whole(parts: list[str], sizes: list[int], opened: bool) -> None:
    text, stream = "".join(parts), ReasoningStream(opened)
    pieces, path, number = [], 0, 0
    while path < len(text):
        size = sizes[number % len(sizes)]
        pieces.append(stream.push(text[path : path + size]))
        path, number = path + size, number + 1
    pieces.append(stream.push("", last=True))
    reasoning, answer = ("".join(piece) for piece in zip(*pieces, strict=True))
    whole = split_reasoning(text, opened=opened)
    assert (reasoning, answer.strip()) == (whole[0] or "", (whole[1] or "").strip())


def test_answers_of_gpt_oss_keep_the_control_tokens_that_name_their_channels(tmp_path: Path) -> None:
    controls = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"]
    sentence = ["analysis", "final", "assistant", "Hm", "Yes", "[UNK]"]
    vocabulary = {word: i for i, word in enumerate([*controls, *sentence])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(controls)
    tokenizer.decoder = Fuse()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {"eos_token": "<|return|>", "chat_template": "<|start|>assistant<|channel|>final<|message|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    template = load_template(tmp_path)
    assert {template.tokenizer.id_to_token(i) for i in template.end_ids} == {"<|return|>", "<|call|>"}
    answer = [
        "<|channel|>",
        "analysis",
        "<|message|>",
        "Hm",
        "<|end|>",
        "<|start|>",
        "assistant",
        "<|channel|>",
        "final",
    ]
    text = template.decode([vocabulary[word] for word in [*answer, "<|message|>", "Yes"]])
    assert split_reasoning(text) == ("Hm", "Yes")


def test_nothing_that_may_be_a_tag_is_given_out_early() -> None:
    stream = ReasoningStream()
    assert stream.push("<thi") == ("", "") and stream.push("nk>a </thin") == ("a", "")
    assert stream.push("g</think> b") == (" </thing", "b")
