"""An answer piece by piece is the answer."""

from __future__ import annotations

from typing import Any

import pytest

from tuneloop.inference.generate import generate
from tuneloop.inference.stream import stream_ids, stream_text

TURNS: Any = [{"role": "user", "content": "Where is my parcel?"}]


@pytest.mark.parametrize("limit", [1, 24])
def test_pieces_together_are_the_answer_that_generate_gives(tiny_model: Any, limit: int) -> None:
    prompt = tiny_model.template.prompt_ids(TURNS)
    whole = generate(tiny_model, [prompt], max_new_tokens=limit)[0]
    ids = list(stream_ids(tiny_model, prompt, max_new_tokens=limit))
    assert len(ids) == whole.tokens and (ids[-1] in tiny_model.template.end_ids) == whole.finished
    pieces = list(stream_text(tiny_model, iter(ids)))
    assert "".join(pieces) == whole.text and (limit == 1 or len(pieces) > 1)


def test_characters_of_several_tokens_come_whole_and_outer_space_not_at_all(tiny_model: Any) -> None:
    template = tiny_model.template
    text = "\n Grüße 🦙🏽 und 道 \n"
    ids = template.encode(text)
    assert any("\ufffd" in template.decode([token]) for token in ids), "the text has characters of several tokens"
    pieces = list(stream_text(tiny_model, iter([*ids, template.end_ids[0]])))
    assert "".join(pieces) == text.strip() and not any("\ufffd" in piece for piece in pieces)
