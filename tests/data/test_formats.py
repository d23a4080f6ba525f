from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats import (
    CLASSIFY,
    Parsed,
    Rejection,
    check_columns,
    detect,
    parse_record,
    template_columns,
)
from tuneloop.data.reasons import REASONS, REPAIRS
from tuneloop.types import UserError


def parse(record: dict[str, Any], **config: Any) -> Parsed | Rejection:
    made = PrepareConfig(**config)
    return parse_record(record, detect([record], made), made)


def turns(parsed: Parsed | Rejection) -> list[tuple[str, str]]:
    assert isinstance(parsed, Parsed), parsed
    return [(m["role"], m["content"]) for m in parsed.messages]


def reason(parsed: Parsed | Rejection) -> str:
    assert isinstance(parsed, Rejection), parsed
    return parsed.reason


# --- detection


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"instruction": "a", "input": "", "output": "b"}, "alpaca"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "sharegpt"),
        ({"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages"),
        ({"id": 1, "messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"question": "a", "answer": "b", "category": "c"}, "prompt_completion"),
        ({"query": "a", "response": "b"}, "prompt_completion"),
        ({"text": "a", "label": "b", "created": 3}, "text_label"),
        ({"Text": "a", "Category": "b"}, "text_label"),
    ],
)
def test_the_format_follows_from_the_columns(record: dict[str, Any], name: str) -> None:
    guess = detect([record], PrepareConfig())
    assert guess.name == name
    assert set(guess.columns.values()) <= set(record) and guess.reason


def test_two_unknown_columns_are_text_and_label_when_one_repeats_its_values() -> None:
    rows = [{"id": n, "body_de": f"text {n}", "art": "ab"[n % 2]} for n in range(8)]
    assert detect(rows, PrepareConfig()).columns == {"text": "body_de", "label": "art"}
    rows = [{"a": f"x {n}", "b": f"y {n}"} for n in range(8)]
    with pytest.raises(UserError, match="Can't tell the format") as caught:
        detect(rows, PrepareConfig())
    assert "'a', 'b'" in caught.value.where


def test_named_columns_win_over_what_the_records_look_like() -> None:
    record = {"instruction": "a", "output": "b", "kind": "c"}
    guess = detect([record], PrepareConfig(text="instruction", label="kind"))
    assert (guess.name, guess.columns) == ("text_label", {"text": "instruction", "label": "kind"})


def test_a_minority_of_odd_records_does_not_change_the_format() -> None:
    rows: list[dict[str, Any]] = [{"text": "a", "label": "b"}] * 6 + [
        {"messages": [{"role": "user", "content": "a"}]}
    ] * 4
    assert detect(rows, PrepareConfig()).name == "text_label"


@pytest.mark.parametrize(
    "config",
    [
        {"format": "alpaca"},
        {"format": "fields"},
        {"input": "{text}"},
        {"format": "alpaca", "input": "{text}", "output": "{label}"},
        {"format": "messages", "text": "text"},
    ],
)
def test_settings_that_do_not_fit_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        detect([{"text": "a", "label": "b"}], PrepareConfig(**config))
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"input": "{txet}", "output": "{label}"}, "data.input"),
        ({"text": "txet"}, "data.text"),
        ({"split": {"stratify": "txet"}}, "data.split.stratify"),
    ],
)
def test_a_column_that_no_record_has_is_named_with_the_nearest(config: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as caught:
        check_columns([{"text": "a", "label": "b"}], PrepareConfig(**config))
    assert caught.value.where == key and caught.value.next_step == "did you mean 'text'?"


# --- alpaca, pairs, text + label


def test_alpaca_joins_instruction_and_input_and_keeps_history() -> None:
    record = {"instruction": "Do", "input": "this", "output": "done", "system": "S", "history": [["q", "a"]]}
    assert turns(parse(record)) == [
        ("system", "S"),
        ("user", "q"),
        ("assistant", "a"),
        ("user", "Do\nthis"),
        ("assistant", "done"),
    ]
    assert turns(parse({"instruction": "Do", "input": None, "output": 3})) == [("user", "Do"), ("assistant", "3")]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"output": None}, "empty_output"),
        ({"output": "  "}, "empty_output"),
        ({"output": ["x"]}, "wrong_type"),
        ({"output": float("nan")}, "empty_output"),
        ({"instruction": " ", "input": ""}, "empty_input"),
        ({"instruction": {}}, "wrong_type"),
        ({"history": "x"}, "wrong_type"),
        ({"history": [["q"]]}, "wrong_type"),
    ],
)
def test_alpaca_records_with_a_hole_are_rejected(change: dict[str, Any], expected: str) -> None:
    assert reason(parse({"instruction": "Do", "input": "", "output": "done"} | change)) == expected


def test_a_missing_output_is_a_missing_field() -> None:
    config = PrepareConfig()
    guess = detect([{"instruction": "a", "output": "b"}], config)
    assert parse_record({"instruction": "a"}, guess, config) == Rejection("missing_field", "no column 'output'")


def test_prompt_and_completion_may_be_texts_or_turns() -> None:
    assert turns(parse({"prompt": "p", "completion": "c"})) == [("user", "p"), ("assistant", "c")]
    record = {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}],
        "completion": [{"role": "assistant", "content": "c"}],
    }
    assert turns(parse(record)) == [("system", "s"), ("user", "p"), ("assistant", "c")]


def test_text_and_label_get_an_instruction_and_the_label_is_trimmed_on_record() -> None:
    parsed = parse({"text": "hello", "label": " greet "})
    assert turns(parsed) == [("system", CLASSIFY), ("user", "hello"), ("assistant", "greet")]
    assert (
        isinstance(parsed, Parsed)
        and parsed.label == "greet"
        and parsed.repairs == [{"kind": "trimmed", "field": "label"}]
    )
    assert turns(parse({"text": "x", "label": 3}, instruction="I"))[0] == ("system", "I")
    assert turns(parse({"text": "x", "label": False}, instruction="")) == [("user", "x"), ("assistant", "false")]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"text": "", "label": "a"}, "empty_input"),
        ({"text": "a", "label": ""}, "empty_output"),
        ({"text": "a", "label": None}, "empty_output"),
        ({"text": [1], "label": "a"}, "wrong_type"),
        ({"label": "a"}, "missing_field"),
        ({"text": "a"}, "missing_field"),
    ],
)
def test_text_label_records_with_a_hole_are_rejected(record: dict[str, Any], expected: str) -> None:
    assert reason(parse(record, text="text", label="label")) == expected


def test_an_unknown_label_is_rejected_with_the_nearest() -> None:
    parsed = parse({"text": "a", "label": "Card arival"}, labels=["card_arrival", "refund"])
    assert parsed == Rejection("unknown_label", "'Card arival': did you mean 'card_arrival'?")


# --- conversations


def conversation(*pairs: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": a, "value": b} for a, b in pairs], **more}


def test_sharegpt_calls_become_tool_calls_tied_to_their_answers() -> None:
    call = json.dumps({"name": "find", "arguments": {"q": "ü"}})
    tools = json.dumps([{"name": "find", "parameters": {}}])
    parsed = parse(
        conversation(("human", "a"), ("function_call", call), ("observation", "{}"), ("gpt", "b"), tools=tools)
    )
    assert isinstance(parsed, Parsed)
    assert parsed.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call_0", "type": "function", "function": {"name": "find", "arguments": '{"q": "ü"}'}}],
    }
    assert parsed.messages[2] == {"role": "tool", "content": "{}", "tool_call_id": "call_0", "name": "find"}
    assert parsed.tools == [{"type": "function", "function": {"name": "find", "parameters": {}}}]


def test_calls_in_a_row_are_one_turn_and_answers_go_to_them_in_order() -> None:
    calls = [("function_call", json.dumps({"name": n, "arguments": {}})) for n in ("f", "g")]
    parsed = parse(conversation(("human", "a"), *calls, ("observation", "1"), ("observation", "2"), ("gpt", "b")))
    assert isinstance(parsed, Parsed)
    assert [c["id"] for c in parsed.messages[1]["tool_calls"]] == ["call_0", "call_1"]
    assert [(m["name"], m["tool_call_id"]) for m in parsed.messages[2:4]] == [("f", "call_0"), ("g", "call_1")]


def test_turns_of_one_role_in_a_row_are_merged_on_record() -> None:
    parsed = parse(conversation(("human", "a"), ("human", "b"), ("gpt", "c"), ("gpt", "d")))
    assert turns(parsed) == [("user", "a\nb"), ("assistant", "c\nd")]
    assert isinstance(parsed, Parsed) and [r["kind"] for r in parsed.repairs] == ["merged_turns"] * 2


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (conversation(("human", "a")), "no_answer"),
        (conversation(("human", "a"), ("gpt", "b"), ("human", "c")), "no_answer"),
        (conversation(("human", "a"), ("function_call", "{"), ("gpt", "b")), "broken_json"),
        (conversation(("human", "a"), ("function_call", "[1]"), ("gpt", "b")), "wrong_type"),
        (conversation(("human", "a"), ("function_call", "{}"), ("gpt", "b")), "missing_field"),
        (conversation(("human", "a"), ("narrator", "x"), ("gpt", "b")), "unknown_role"),
        (conversation(("human", ""), ("gpt", "b")), "empty_input"),
        (conversation(("human", "a"), ("gpt", " ")), "empty_output"),
        (conversation(("gpt", "b"), ("gpt", "b")), "empty_input"),
        (conversation(("human", "a"), ("gpt", {"x": 1})), "wrong_type"),
        (conversation(("human", "a"), ("gpt", "b"), tools="[{"), "broken_json"),
        (conversation(("human", "a"), ("gpt", "b"), tools=[1]), "wrong_type"),
        ({"conversations": [{"from": "human"}]}, "missing_field"),
        ({"conversations": ["x", {"from": "gpt", "value": "b"}]}, "wrong_type"),
    ],
)
def test_conversations_that_teach_nothing_are_rejected(record: dict[str, Any], expected: str) -> None:
    config = PrepareConfig(format="sharegpt")
    guess = detect([conversation(("human", "a"), ("gpt", "b"))], config)
    assert reason(parse_record(record, guess, config)) == expected


def test_openai_turns_with_null_contents_parts_and_the_old_function_call() -> None:
    record = {
        "messages": [
            {"role": "developer", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": {"x": 1}}},
            {"role": "function", "name": "f", "content": {"y": 2}},
            {"role": "assistant", "content": "c", "weight": 0},
            {"role": "user", "content": "d"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "k", "type": "function", "function": {"name": "g", "arguments": "{}"}}],
            },
        ]
    }
    parsed = parse(record)
    assert turns(parsed) == [
        ("system", "s"),
        ("user", "ab"),
        ("assistant", ""),
        ("tool", '{"y": 2}'),
        ("assistant", "c"),
        ("user", "d"),
        ("assistant", ""),
    ]
    assert isinstance(parsed, Parsed)
    assert parsed.messages[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert parsed.messages[3]["tool_call_id"] == "call_0" and parsed.messages[4]["weight"] == 0
    assert parsed.messages[6]["tool_calls"][0]["id"] == "k"


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({"role": "assistant", "content": [{"type": "image_url", "image_url": "x"}]}, "wrong_type"),
        ({"role": "assistant"}, "missing_field"),
        ({"content": "x"}, "missing_field"),
        ({"role": 3, "content": "x"}, "unknown_role"),
        ({"role": "assistant", "content": None}, "empty_output"),
        ({"role": "assistant", "content": "x", "tool_calls": "y"}, "wrong_type"),
        ({"role": "user", "content": "x", "tool_calls": [{}]}, "wrong_type"),
    ],
)
def test_openai_turns_with_a_fault_reject_the_record(turn: dict[str, Any], expected: str) -> None:
    assert reason(parse({"messages": [{"role": "user", "content": "a"}, turn]})) == expected


def test_the_instruction_goes_only_where_there_is_no_system_turn() -> None:
    pair = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    own = [{"role": "system", "content": "own"}, *pair]
    blank = [{"role": "system", "content": " "}, *pair]
    assert turns(parse({"messages": pair}, instruction="I"))[0] == ("system", "I")
    assert turns(parse({"messages": own}, instruction="I"))[:2] == [("system", "own"), ("user", "a")]
    parsed = parse({"messages": blank}, instruction="I")
    assert (
        turns(parsed)[0] == ("system", "I")
        and isinstance(parsed, Parsed)
        and parsed.repairs[0]["kind"] == "dropped_turn"
    )


# --- templates

CARD = {"input": "{text}", "output": "Queue: {queue}\n{summary}"}


def test_templates_fill_columns_paths_and_lists() -> None:
    record = {"text": "help", "queue": "cards", "summary": "s"}
    assert turns(parse(record, **CARD)) == [("user", "help"), ("assistant", "Queue: cards\ns")]
    record = {"a": {"b": "deep"}, "tags": ["x", 2], "odd name!": "o"}
    parsed = parse(record, input="{a.b} {odd name!}", output='{{"tags": "{tags}"}}')
    assert turns(parsed) == [("user", "deep o"), ("assistant", '{"tags": "x, 2"}')]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"queue": ""}, "empty_output"),
        ({"queue": None}, "empty_output"),
        ({"queue": {"x": 1}}, "wrong_type"),
        ({"queue": [[1]]}, "wrong_type"),
        ({"text": " "}, "empty_input"),
    ],
)
def test_a_hole_in_a_template_rejects_the_record(change: dict[str, Any], expected: str) -> None:
    assert reason(parse({"text": "help", "queue": "cards", "summary": "s"} | change, **CARD)) == expected


def test_a_record_without_a_template_column_is_rejected() -> None:
    assert parse({"text": "help", "queue": "cards"}, **CARD) == Rejection("missing_field", "no column 'summary'")


@pytest.mark.parametrize("template", ["{", "a } b", "{}", "{a", "{{{a}}"])
def test_a_malformed_template_is_a_user_error(template: str) -> None:
    with pytest.raises(UserError, match="in a template"):
        template_columns(template)


@given(text=st.text(max_size=20), value=st.text(min_size=1, max_size=20))
def test_values_enter_templates_unchanged_whatever_they_hold(text: str, value: str) -> None:
    literal = text.replace("{", "{{").replace("}", "}}")
    record = {"q": "x", "v": value}
    parsed = parse(record, input="{q}", output=literal + "{v}")
    if value.strip():
        assert turns(parsed)[-1] == ("assistant", text + value)
    else:
        assert reason(parsed) == "empty_output"


# --- anything

ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["user", "human", "gpt", "assistant", "tool", "[]"]),
    lambda c: (
        st.lists(c, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "tool_calls", "function", "name", "id", "text"]),
            c,
            max_size=4,
        )
    ),
    max_leaves=12,
)
KEYS = [
    "messages",
    "conversations",
    "tools",
    "system",
    "instruction",
    "input",
    "output",
    "history",
    "prompt",
    "completion",
    "text",
    "label",
]


@settings(max_examples=300, deadline=None)
@given(
    record=st.dictionaries(st.sampled_from(KEYS), ANY, max_size=8),
    name=st.sampled_from(["alpaca", "sharegpt", "messages", "prompt_completion", "text_label", "fields"]),
)
def test_every_record_is_a_sound_conversation_or_rejected_with_a_reason(record: dict[str, Any], name: str) -> None:
    plain = {
        "alpaca": {"instruction": "a", "output": "b"},
        "sharegpt": conversation(("human", "a")),
        "messages": {"messages": [{"role": "user", "content": "a"}]},
        "prompt_completion": {"prompt": "a", "completion": "b"},
        "text_label": {"text": "a", "label": "b"},
        "fields": {},
    }[name]
    config = PrepareConfig(format=name, **({"input": "{text}", "output": "{label}"} if name == "fields" else {}))  # type: ignore[arg-type]
    parsed = parse_record(record, detect([plain], config), config)
    if isinstance(parsed, Rejection):
        assert parsed.reason in REASONS
        return
    assert {repair["kind"] for repair in parsed.repairs} <= set(REPAIRS)
    assert all(isinstance(m["content"], str) for m in parsed.messages)
    last = parsed.messages[-1]
    assert last["role"] == "assistant" and (last["content"].strip() or last["tool_calls"])
    assert any(m["role"] == "user" and m["content"].strip() for m in parsed.messages)
    json.dumps([parsed.messages, parsed.tools])
