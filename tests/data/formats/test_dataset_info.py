"""An entry of dataset_info.json describes the format of a file."""

from __future__ import annotations

from typing import Any

import pytest
from format_records import ANY, ASK, GPT, HUMAN, SAY, turns
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.core.errors import UserError
from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats import FormatGuess, Parsed, Rejection, guess_from_info, parse_record


@pytest.mark.parametrize(
    ("entry", "record", "name"),
    [
        ({}, {"instruction": "a", "input": "", "output": "b"}, "alpaca"),
        ({"columns": {"prompt": "q", "response": "r"}}, {"q": "a", "r": "b"}, "alpaca"),
        ({"columns": {"prompt": "q", "chosen": "x", "rejected": "y"}, "ranking": True},
         {"q": "a", "x": "b", "y": "c"}, "preference"),
        ({"columns": {"prompt": "q", "response": "r", "kto_tag": "k"}}, {"q": "a", "r": "b", "k": True}, "thumbs"),
        ({"formatting": "sharegpt"}, {"conversations": [HUMAN, GPT]}, "sharegpt"),
        ({"formatting": "sharegpt", "ranking": True, "columns": {"messages": "c", "chosen": "x", "rejected": "y"}},
         {"c": [HUMAN], "x": GPT, "y": GPT | {"value": "c"}}, "preference"),
        ({"formatting": "sharegpt", "columns": {"messages": "m"},
          "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "caller_1", "assistant_tag": "desk"}},
         {"m": [{"who": "caller_1", "said": "a"}, {"who": "desk", "said": "b"}]}, "sharegpt"),
        ({"formatting": "openai"}, {"messages": [ASK, SAY]}, "messages"),
    ],
)  # fmt: skip
def test_an_entry_of_dataset_info_describes_the_format(
    entry: dict[str, Any], record: dict[str, Any], name: str
) -> None:
    guess = guess_from_info(entry)
    parsed = parse_record(record, guess, PrepareConfig())
    assert guess.name == name and turns(parsed) == [("user", "a"), ("assistant", "b")]
    assert isinstance(parsed, Parsed) and not parsed.repairs


def test_text_in_dataset_info_and_what_can_not_be_read() -> None:
    guess = guess_from_info({"columns": {"prompt": "text"}})
    assert (guess.name, guess.columns) == ("text", {"text": "text"})
    for entry in (
        {"formatting": "parquet"},
        {"columns": {"prompt": "q", "images": "i"}},
        {"columns": ["q"]},
        {"columns": {"response": "r"}},
        {"columns": {"prompt": "q", "query": "x"}},
    ):
        with pytest.raises(UserError) as caught:
            guess_from_info(entry)
        assert caught.value.next_step


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["formatting", "columns", "tags", "ranking"]), ANY, max_size=4))
def test_any_entry_of_dataset_info_is_a_guess_or_a_user_error(entry: dict[str, Any]) -> None:
    try:
        guess = guess_from_info(entry)
        assert isinstance(guess, FormatGuess)
        for record in ({}, {"instruction": "a", "conversations": [HUMAN]}):
            assert isinstance(parse_record(record, guess, PrepareConfig()), Rejection)
    except UserError as error:
        assert error.next_step
