"""Records with a prompt and a completion."""

from __future__ import annotations

from format_records import parse, turns


def test_prompt_and_completion_may_be_texts_or_turns() -> None:
    assert turns(parse({"prompt": "p", "completion": "c"})) == [("user", "p"), ("assistant", "c")]
    record = {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}],
        "completion": [{"role": "assistant", "content": "c"}],
    }
    assert turns(parse(record)) == [("system", "s"), ("user", "p"), ("assistant", "c")]
