"""Pieces of text are whole characters, end before a stop string, and together are the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.inference.local.answers import generate
from tuneloop.inference.local.engine import Engine
from tuneloop.inference.request import Request
from tuneloop.inference.stream import TextStream

TURNS: Any = [{"role": "user", "content": "Where is my parcel?"}]
# Characters of one to four bytes, white space, and what stop strings are made of.
TEXT = st.text(st.sampled_from("ab#\n \u00fc\u9053\U0001f999"), max_size=30)
STOPS = st.lists(st.text(st.sampled_from("ab#\n \u00fc"), min_size=1, max_size=4), max_size=3)


def decode(ids: Sequence[int]) -> str:
    """Tokens that are single bytes: most characters need several of them."""
    return bytes(ids).decode("utf-8", "replace")


def pieces_of(decode: Callable[[Sequence[int]], str], ids: Iterable[int], stop: Sequence[str] = ()) -> list[str]:
    """The pieces of text that tokens become, up to a stop string."""
    stream = TextStream(decode, stop)
    pieces = []
    for token in ids:
        if stream.stopped:
            break
        pieces.append(stream.push(token))
    return [piece for piece in [*pieces, stream.end()] if piece]


def expected(text: str, stops: Sequence[str]) -> str:
    """The text before the stop string that ends first while it is written; of those that end together the longest."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))].strip()
    return text.strip()


@given(TEXT, STOPS)
def test_pieces_together_are_the_text_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    pieces = pieces_of(decode, text.encode(), stops)
    assert "".join(pieces) == expected(text, stops)
    assert all(pieces), "no piece is empty"


@given(TEXT, STOPS)
def test_what_has_been_shown_is_never_taken_back(text: str, stops: list[str]) -> None:
    stream, shown = TextStream(decode, stops), ""
    for byte in text.encode():
        shown += stream.push(byte)
        assert shown.strip() == stream.text and "\ufffd" not in shown
    shown += stream.end()
    assert shown == stream.text == expected(text, stops)


@given(st.binary(max_size=20))
def test_bytes_that_are_no_text_end_as_a_decoder_ends_them(raw: bytes) -> None:
    assert "".join(pieces_of(decode, raw)) == decode(list(raw)).strip()


def test_a_piece_comes_as_soon_as_it_is_certain() -> None:
    stream = TextStream(decode, ["END"])
    assert [stream.push(byte) for byte in b"a E b EN"] == ["a", "", "", " E", " b", "", "", ""]
    assert stream.text == "a E b"
    assert stream.push(ord("D")) == "" and stream.stopped and stream.text == "a E b"


@pytest.mark.parametrize("limit", [1, 24])
def test_pieces_of_a_model_together_are_the_answer_that_generate_gives(tiny_model: Any, limit: int) -> None:
    prompt = tiny_model.template.prompt_ids(TURNS)
    whole = generate(tiny_model, [prompt], max_new_tokens=limit)[0]
    updates = list(Engine(tiny_model).stream(Request(ids=prompt, max_new_tokens=limit)))
    assert "".join(update.text for update in updates) == whole.text and updates[-1].completion == whole
    assert limit == 1 or len(updates) > 2


def test_characters_of_several_tokens_come_whole_and_outer_space_not_at_all(tiny_model: Any) -> None:
    template = tiny_model.template
    text = "\n Gr\u00fc\u00dfe \U0001f999\U0001f3fd und \u9053 \n"
    ids = template.encode(text)
    assert any("\ufffd" in template.decode([token]) for token in ids), "the text has characters of several tokens"
    pieces = pieces_of(template.decode, ids)
    assert "".join(pieces) == text.strip() and not any("\ufffd" in piece for piece in pieces)
