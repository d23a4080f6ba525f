from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from places import DATA_SETS
from tuneloop.core.errors import UserError
from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats import (
    CLASSIFY,
    CLASSIFY_MANY,
    FormatGuess,
    Parsed,
    Rejection,
    check_columns,
    detect,
    error_answer,
    guess_from_info,
    parse_record,
    template_columns,
    with_whole_texts,
)
from tuneloop.data.reasons import REASONS, REPAIRS

DATA = DATA_SETS
ASK = {"role": "user", "content": "a"}
SAY = {"role": "assistant", "content": "b"}
HUMAN = {"from": "human", "value": "a"}
GPT = {"from": "gpt", "value": "b"}


def parse(record: dict[str, Any], like: list[dict[str, Any]] | None = None, **config: Any) -> Parsed | Rejection:
    """A record parsed in the format of some records, by default of itself."""
    made = PrepareConfig(**config)
    return parse_record(record, detect(like or [record], made), made)


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
        ({"id": "1", "dialogue": "a", "summary": "b", "topic": "c"}, "prompt_completion"),
        ({"article": "a", "highlights": "b"}, "prompt_completion"),
        ({"text": "a", "summary": "b", "title": "c"}, "prompt_completion"),
        ({"text": "a", "queue": "b", "summary": "c"}, "text_label"),
        ({"query": "a", "response": "b"}, "prompt_completion"),
        ({"text": "a", "label": "b", "created": 3}, "text_label"),
        ({"Text": "a", "Category": "b"}, "text_label"),
        ({"Question": "a", "Answer": "b", "Category": "c"}, "prompt_completion"),
        ({"Messages": [ASK, SAY], "Rating": 3}, "thumbs"),
        ({"ticket_text": "a", "issue_category": "b"}, "text_label"),
        ({"text": "a", "labels": ["b"]}, "text_label"),
        ({"text": "a", "url": "b", "meta": {}}, "text"),
        ({"dialog": [{"speaker": "customer", "text": "a"}, {"speaker": "agent", "text": "b"}]}, "messages"),
        ({"messages": json.dumps([ASK, SAY])}, "messages"),
        ({"instruction": "a", "context": "b", "response": "c"}, "alpaca"),
        ({"prompt": [ASK], "completion": [SAY]}, "prompt_completion"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"instruction": "a", "input": "", "chosen": "b", "rejected": "c"}, "preference"),
        ({"chosen": [ASK, SAY], "rejected": [ASK, SAY]}, "preference"),
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": GPT}, "preference"),
        ({"question": "a", "response_j": "b", "response_k": "c"}, "preference"),
        ({"prompt": "a", "completions": ["b", "c"]}, "preference"),
        ({"messages": [ASK, SAY], "label": True}, "thumbs"),
        ({"conversations": [HUMAN, GPT], "kto_tag": False}, "thumbs"),
        ({"prompt": "a", "completion": "b", "label": False}, "thumbs"),
        ({"prompt": "a", "completion": "b", "label": "billing"}, "prompt_completion"),
        ({"messages": [ASK, SAY], "feedback": "thumbs_up"}, "thumbs"),
        ({"messages": [ASK, SAY], "feedback": "it was slow but fine"}, "messages"),
        ({"instruction": "a", "output": "b", "rating": 4}, "thumbs"),
        ({"request": {"messages": [ASK]}, "response": {"choices": [{"message": SAY}]}}, "logs"),
        ({"custom_id": "1", "body": {"messages": [ASK]}, "response": {"body": {"choices": []}}}, "logs"),
        ({"messages": [ASK], "response": "b"}, "logs"),
        ({"messages": [ASK, SAY], "response": "b"}, "messages"),
        ({"input": [ASK], "output": SAY}, "logs"),
        ({"input": "a", "output": "b"}, "prompt_completion"),
    ],
)
def test_the_format_follows_from_the_columns(record: dict[str, Any], name: str) -> None:
    guess = detect([record], PrepareConfig())
    assert guess.name == name
    assert detect([record], PrepareConfig(format=guess.name)).columns == guess.columns  # type: ignore[arg-type]
    assert set(guess.columns.values()) <= set(record) and guess.reason


def test_two_unknown_columns_are_text_and_label_when_one_repeats_its_values() -> None:
    rows = [{"id": n, "body_de": f"text {n}", "art": "ab"[n % 2]} for n in range(8)]
    guess = detect(rows, PrepareConfig())
    assert guess.columns == {"text": "body_de", "label": "art"}
    assert "'art' is taken for the label: it has 2 different values" in guess.reason
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
    guess = detect(rows, PrepareConfig())
    assert guess.name == "text_label" and guess.reason.startswith("6 of 10 records looked at have 'text' and 'label'")
    odd = parse_record(rows[-1], guess, PrepareConfig())
    assert odd == Rejection("missing_field", "no column 'text' (text_label: text, label expected)")


def test_a_near_miss_is_named() -> None:
    with pytest.raises(UserError, match="Can't tell") as caught:
        detect([{"instrution": "say a", "outputs": "b"}], PrepareConfig())
    assert "is 'instrution' meant to be 'instruction'?" in caught.value.next_step
    with pytest.raises(UserError, match="don't look like alpaca, which has instruction and output") as caught:
        detect([{"text": "a", "label": "b"}], PrepareConfig(format="alpaca"))
    assert "they look like text_label" in caught.value.next_step


def test_a_second_column_of_text_makes_text_no_guess() -> None:
    record = {"text": "A long story.", "remark": "What I thought of it."}
    with pytest.raises(UserError, match="Can't tell"):
        detect([record], PrepareConfig())
    assert detect([record], PrepareConfig(format="text")).columns == {"text": "text"}
    assert detect([record], PrepareConfig(format="text", text="remark")).columns == {"text": "remark"}


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
    assert parse_record({"instruction": "a"}, guess, config) == Rejection(
        "missing_field", "no column 'output' (alpaca: instruction, output expected)"
    )


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
        ({"conversations": []}, "wrong_type"),
        (
            conversation(
                ("human", "a"), ("function_call", '{"name": "", "arguments": {}}'), ("observation", "x"), ("gpt", "b")
            ),
            "missing_field",
        ),
        # an empty answer says more than the call without a name before it
        (
            conversation(
                ("human", "a"), ("function_call", '{"name": "", "arguments": {}}'), ("observation", "x"), ("gpt", " ")
            ),
            "empty_output",
        ),
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


# --- the order of turns


def chat(*turns: str) -> dict[str, Any]:
    """Messages in short: `u` a question, `a` an answer, `c1` a call, `t1` its answer, `s` a system turn."""
    full = {"u": "user", "a": "assistant", "c": "assistant", "t": "tool", "s": "system"}
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        message: dict[str, Any] = {"role": full[turn[0]], "content": f"{turn} {number}"}
        if turn[0] == "c":
            call = {"id": turn[1:], "type": "function", "function": {"name": "f", "arguments": "{}"}}
            message |= {"content": None, "tool_calls": [call]}
        elif turn[0] == "t":
            message["tool_call_id"] = turn[1:]
        messages.append(message)
    return {"messages": messages}


@pytest.mark.parametrize(
    ("turns_", "expected"),
    [
        ("u a", "ok"),
        ("a u a", "ok"),
        ("a a u a", "ok"),
        ("s a u a", "ok"),
        ("u a s u a", "ok"),
        ("s s u a", "ok"),
        ("u c1", "ok"),
        ("u c1 t1 a", "ok"),
        ("u c1 t1 c2 t2 a", "ok"),
        ("u a c1 t1 a", "ok"),
        ("u c1 c2 t1 t2 a", "ok"),
        ("u c1 c2 t2 t1 a", "ok"),
        ("a", "empty_input"),
        ("s a", "empty_input"),
        ("u", "no_answer"),
        ("u a u", "no_answer"),
        ("u a s", "no_answer"),
        ("u c1 t1", "no_answer"),
        ("a u", "no_answer"),
        ("c1 u a", "bad_turn_order"),
        ("a c1 t1 u a", "bad_turn_order"),
        ("t1 u a", "bad_turn_order"),
        ("u t1 a", "bad_turn_order"),
        ("u a t1 a", "bad_turn_order"),
        ("u c1 t1 t1 a", "bad_turn_order"),
        ("u c1 t2 a", "bad_turn_order"),
        ("u c1 a", "unanswered_call"),
        ("u c1 u a", "unanswered_call"),
        ("u c1 c2", "unanswered_call"),
        ("u c1 c2 t2 a", "unanswered_call"),
        ("u c1 c2 t1 c3", "unanswered_call"),
    ],
)
def test_only_orders_that_a_conversation_can_have_are_kept(turns_: str, expected: str) -> None:
    parsed = parse(chat(*turns_.split()))
    assert (parsed.reason if isinstance(parsed, Rejection) else "ok") == expected


def test_calls_in_turns_of_their_own_are_made_at_once() -> None:
    call = ("function_call", json.dumps({"name": "f", "arguments": {}}))
    parsed = parse(conversation(("human", "a"), call, call))
    assert isinstance(parsed, Parsed) and len(parsed.messages[-1]["tool_calls"]) == 2 and not parsed.repairs
    assert reason(parse(conversation(("human", "a"), call, ("gpt", "b")))) == "unanswered_call"


def test_answers_find_their_calls_by_id_by_name_or_by_order() -> None:
    def ids(*tool_turns: dict[str, Any]) -> list[Any]:
        calls = [{"id": i, "function": {"name": n, "arguments": "{}"}} for i, n in (("x", "f"), ("y", "g"))]
        turns = [{"role": "tool", "content": "1", **turn} for turn in tool_turns]
        parsed = parse({"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": calls}, *turns, SAY]})
        assert isinstance(parsed, Parsed)
        return [m["tool_call_id"] for m in parsed.messages if m["role"] == "tool"]

    assert ids({"tool_call_id": "y"}, {"tool_call_id": "x"}) == ["y", "x"]
    assert ids({"name": "g"}, {"name": "f"}) == ["y", "x"]
    assert ids({}, {}) == ["x", "y"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ({"a": 1}, '{"a": 1}'),
        ("", "{}"),
        (None, "{}"),
        ('{"a": 1', "bad_arguments"),
        ("a=1", "bad_arguments"),
        ("[1]", "bad_arguments"),
        ('"{}"', "bad_arguments"),
        ("null", "bad_arguments"),
        ([1], "bad_arguments"),
        (5, "bad_arguments"),
    ],
)
def test_arguments_are_a_json_object(arguments: Any, expected: str) -> None:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments}}
    parsed = parse({"messages": [ASK, {"role": "assistant", "tool_calls": [call]}]})
    if isinstance(parsed, Rejection):
        assert parsed.reason == expected
    else:
        assert parsed.messages[-1]["tool_calls"][0]["function"]["arguments"] == expected


def test_a_conversation_that_ends_with_the_usual_greeting_is_reversed() -> None:
    hello = {"role": "assistant", "content": "Welcome! What can I do?"}
    usual = [{"messages": [hello, {"role": "user", "content": f"q {n}"}, SAY]} for n in range(10)]
    config = PrepareConfig()
    guess = detect(usual, config)
    assert all(isinstance(parse_record(record, guess, config), Parsed) for record in usual)
    assert reason(parse_record({"messages": [SAY, ASK, hello]}, guess, config)) == "bad_turn_order"
    assert isinstance(parse_record({"messages": [ASK, hello]}, guess, config), Parsed)


def test_turns_of_weight_zero_stay_but_are_not_enough() -> None:
    def weighted(*weights: Any) -> dict[str, Any]:
        return {"messages": [turn for w in weights for turn in (ASK, SAY | {"weight": w})]}

    parsed = parse(weighted(0, 1, None))
    assert isinstance(parsed, Parsed)
    assert [m.get("weight") for m in parsed.messages if m["role"] == "assistant"] == [0, 1, None]
    assert reason(parse(weighted(0, 0.0))) == "no_supervised_token"
    assert [m.get("weight") for m in parse(weighted(1, 0.5)).messages if m["role"] == "assistant"] == [1, 0.5]  # type: ignore[union-attr]
    assert all(reason(parse(weighted(1, w))) == "wrong_type" for w in (1.5, -0.1, float("nan"), "1"))


def test_an_unusual_role_name_is_read_and_noted_and_the_usual_ones_are_not() -> None:
    usual = [{"messages": [{"role": "Human", "content": "a"}, {"role": "bot", "content": "b"}]}] * 99
    odd = {"messages": [{"role": "Customer", "content": "a"}, {"role": "bot", "content": "b"}]}
    parsed, plain = parse(odd, [*usual, odd]), parse(usual[0], [*usual, odd])
    assert turns(parsed) == turns(plain) == [("user", "a"), ("assistant", "b")]
    assert isinstance(parsed, Parsed) and [r["kind"] for r in parsed.repairs] == ["unknown_role"]
    assert isinstance(plain, Parsed) and not plain.repairs
    assert reason(parse({"messages": [ASK, {"role": "", "content": "b"}]}, [chat("u", "a")])) == "unknown_role"


# --- answers that are errors

TRACEBACK = 'Traceback (most recent call last):\n  File "app.py", line 3, in <module>\n    f()\nValueError: no'


@pytest.mark.parametrize(
    "text",
    [
        "Internal Server Error",
        "500 Internal Server Error",
        "Error: 502 Bad Gateway",
        "HTTP/1.1 503 Service Unavailable",
        "404 Not Found",
        "upstream request timeout",
        "upstream connect error or disconnect/reset before headers. reset reason: connection failure",
        "Request timed out.",
        "Error code: 429 - {'error': {'message': 'Rate limit reached'}}",
        "Rate limit exceeded. Please try again in 20s.",
        "ECONNREFUSED 127.0.0.1:8080",
        "An unexpected error occurred. Please try again later.",
        "The server is overloaded",
        "TypeError: Cannot read properties of undefined (reading 'x')",
        "openai.error.RateLimitError: Rate limit reached for gpt-4",
        "java.lang.NullPointerException: x is null\n\tat com.shop.Cart.add(Cart.java:42)\n\tat com.shop.Main.main(Main.java:7)",
        "TypeError: x is not a function\n    at run (/app/index.js:10:5)\n    at main (/app/index.js:2:1)",
        "[ERROR] worker died",
        TRACEBACK,
        "Traceback (most recent call last): ...",
        '{"error": {"message": "Rate limit reached", "type": "requests"}}',
        '{"error": "timeout", "status": 504}',
        '{"message": "Internal server error"}',
        '{"error": {"message": "cut o',
        "{'error': 'model not loaded'}",
        "<html>\n<head><title>502 Bad Gateway</title></head><body>nginx</body></html>",
        "null",
        "undefined",
        "[object Object]",
    ],
)
def test_what_a_failed_call_prints_is_no_answer(text: str) -> None:
    assert error_answer(text)
    assert reason(parse({"prompt": "Where is my card?", "completion": f" {text}\n"})) == "error_output"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "An internal server error means that the server failed; try again in a minute.",
        "Internal Server Error is what the page shows when our server is down. Please clear your cache.",
        "The 404 error means the page was moved.",
        "Error messages like this one appear when the card is blocked.",
        "Timeouts happen when the line is slow.",
        "Time out of mind",
        "Errors: none. Your order is complete.",
        "Sorry, I can't do that. Something went wrong with your order, and I have asked a colleague to look.",
        "You see this traceback:\n\n" + TRACEBACK,
        TRACEBACK + "\n\nThis means that the value was wrong.",
        '{"error": null, "result": 5}',
        '{"error": "a typo", "correction": "the"}',
        '{"name": "Ann", "code": 7}',
        "<html><head><title>My shop</title></head></html>",
        "Null hypotheses are rejected at 5 %.",
        "None",
        "Not found",
        "500",
        "Server",
        "Network",
        "Connection: the cable comes first.",
        "Note: Error handling is up to you.",
        "Unknown",
    ],
)
def test_answers_about_errors_are_answers(text: str) -> None:
    assert error_answer(text) is None


def test_an_error_that_was_asked_for_is_an_answer() -> None:
    assert error_answer("404 Not Found", "Which HTTP status says that a page is missing?") is None
    assert error_answer("ValueError: no", "What does this code print?") is None
    assert error_answer("upstream request timeout", "What does this code print?")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="aeE rox:.{}[]\"'\n<>0245/", max_size=60))
def test_the_search_for_errors_ends_on_any_text(text: str) -> None:
    assert error_answer(text) in (
        None, "no value", "an error object", "an error page", "a stack trace", "an HTTP error", "an exception",
    )  # fmt: skip


# --- labels


def test_lists_of_labels_become_one_answer_in_alphabetical_order() -> None:
    rows = [{"text": f"t {n}", "labels": ["b", " a ", "b"]} for n in range(4)]
    parsed = parse(rows[0], rows)
    assert turns(parsed) == [("system", CLASSIFY_MANY), ("user", "t 0"), ("assistant", "a, b")]
    assert isinstance(parsed, Parsed) and (parsed.label, parsed.extra) == ("a, b", {"labels": ["a", "b"]})
    none = parse({"text": "t", "labels": []}, rows)  # that no label applies is an answer too
    assert isinstance(none, Parsed) and none.label == "none" and none.extra["labels"] == ["none"]
    assert reason(parse({"text": "t", "labels": [""]}, rows)) == "empty_output"
    assert reason(parse({"text": "t", "labels": "a"}, rows)) == "wrong_type"
    assert reason(parse({"text": "t", "labels": ["a", 1]}, rows)) == "wrong_type"
    assert reason(parse(rows[0], rows, labels=["a"])) == "unknown_label"


def test_class_ids_are_named_by_the_column_beside_them() -> None:
    rows = [{"text": f"t {n}", "label": n % 2, "label_text": ["no", "yes"][n % 2]} for n in range(8)]
    parsed = parse(rows[1], rows)
    assert isinstance(parsed, Parsed) and parsed.label == "yes" and "label" not in parsed.used
    assert reason(parse(rows[1] | {"label_text": None}, rows)) == "empty_output"


@pytest.mark.parametrize("value", [69, True, 1.5, ["greet"], {"name": "greet"}])
def test_a_value_of_another_type_than_nearly_all_others_is_wrong(value: Any) -> None:
    rows = [{"text": f"t {n}", "label": "greet"} for n in range(30)]
    assert reason(parse(rows[0] | {"label": value}, rows)) == "wrong_type"
    assert reason(parse(rows[0] | {"text": value}, rows)) == "wrong_type"


def test_numbers_are_labels_where_the_sample_shows_them() -> None:
    rows = [{"text": f"t {n}", "label": n % 3} for n in range(30)]
    assert isinstance(parsed := parse(rows[1], rows), Parsed) and parsed.label == "1"


@pytest.mark.parametrize("label", ["N/A", "null", "-", "nan"])
def test_a_placeholder_is_no_label_unless_it_is_as_common_as_the_others(label: str) -> None:
    rows = [{"text": f"t {n}", "label": "ab"[n % 2]} for n in range(30)]
    odd = {"text": "t", "label": label}
    assert reason(parse(odd, [*rows, odd])) == "empty_output"
    assert isinstance(parse(odd, [*rows, *[odd] * 10]), Parsed)
    assert isinstance(parse(odd, [*rows, odd], labels=["a", "b", label]), Parsed)


# --- text


def test_plain_text_is_one_turn_of_the_assistant() -> None:
    parsed = parse({"text": "Once upon a time.", "url": "x"}, instruction="I")
    assert turns(parsed) == [("assistant", "Once upon a time.")]
    assert reason(parse({"text": " "}, [{"text": "a"}])) == "empty_output"


# --- preferences

MESSAGES = [ASK, SAY, {"role": "user", "content": "c"}]
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a", "chosen": "good", "rejected": "bad"},
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "a", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"messages": [ASK], "chosen": GOOD, "rejected": BAD},
        {"conversations": [HUMAN], "chosen": GPT | {"value": "good"}, "rejected": GPT | {"value": "bad"}},
        {"instruction": "a", "input": "", "chosen": "good", "rejected": "bad"},
        {"question": "a", "response_j": "good", "response_k": "bad"},
        {"prompt": "a", "completions": ["good", "bad"]},
        {"prompt": "a", "completions": [{"response": "bad", "score": 2}, {"response": "good", "score": 4.5}]},
        {"prompt": "a", "completions": ["worse", "bad", "good"], "scores": [2, 1, 3]},
        {"instruction": "a", "input": "", "output": ["good", "bad"]},
        {"chosen": "\n\nHuman: a\n\nAssistant: good", "rejected": "\n\nHuman: a\n\nAssistant: bad"},
    ],
)
def test_preferences_end_with_the_better_answer_and_keep_the_other(record: dict[str, Any]) -> None:
    parsed = parse(record)
    assert turns(parsed) == [("user", "a"), ("assistant", "good")]
    assert isinstance(parsed, Parsed) and parsed.extra == {"rejected": [BAD]}
    assert parsed.used >= record.keys()


def test_answers_of_several_turns_share_only_their_beginning() -> None:
    chosen = [*MESSAGES, GOOD]
    rejected = [ASK, BAD, {"role": "user", "content": "c"}, SAY]
    parsed = parse({"chosen": chosen, "rejected": rejected})
    assert isinstance(parsed, Parsed)
    assert parsed.messages == chosen and parsed.extra == {"rejected": rejected[1:], "shared_turns": 1}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rejected": "good"}, "no_preference"),
        ({"rejected": ""}, "empty_output"),
        ({"chosen": None}, "empty_output"),
        ({"prompt": ""}, "empty_input"),
        ({"chosen": {"x": 1}}, "missing_field"),
        ({"chosen": "upstream request timeout"}, "error_output"),
        ({"chosen": [ASK, GOOD], "rejected": [{"role": "user", "content": "other"}, BAD]}, "no_preference"),
    ],
)
def test_pairs_without_a_preference_are_rejected(change: dict[str, Any], expected: str) -> None:
    plain = {"prompt": "a", "chosen": "good", "rejected": "bad"}
    assert reason(parse(plain | change, [plain])) == expected


# --- thumbs


@pytest.mark.parametrize(
    ("others", "value", "expected"),
    [
        ([True, False], False, {"thumb": False}),
        ([1, 0], 1, {"thumb": True}),
        (["True", "False"], "False", {"thumb": False}),
        (["up", "down"], "down", {"thumb": False}),
        (["thumbs_up"], "Thumbs Up", {"thumb": True}),
        (["👍", "👎"], "👎", {"thumb": False}),
        ([{"score": 1}, {"score": 0}], {"score": 0}, {"thumb": False}),
        ([1, 5, 4], 4, {"thumb": True, "rating": 4}),
        ([1, 5, 4], 3, {"rating": 3}),
        (["1", "5", "4"], "2", {"thumb": False, "rating": 2}),
        ([-1, 0, 1], 0, {"rating": 0}),
        ([10, 7, 2], 7, {"thumb": True, "rating": 7}),
        (["up", "down"], None, {}),
    ],
)
def test_thumbs_and_ratings_are_read(others: list[Any], value: Any, expected: dict[str, Any]) -> None:
    record = {"messages": [ASK, SAY]}
    parsed = parse(record | {"feedback": value}, [record | {"feedback": other} for other in others])
    assert isinstance(parsed, Parsed) and parsed.extra == expected
    assert "feedback" not in parsed.used and parsed.messages == [ASK, SAY]


def test_a_thumb_that_can_not_be_read_or_is_missing_on_request() -> None:
    rows = [{"prompt": "a", "completion": "b", "label": n % 2 == 0} for n in range(20)]
    assert reason(parse(rows[0] | {"label": "maybe"}, rows)) == "wrong_type"
    assert reason(parse(rows[0] | {"label": None}, rows, format="thumbs")) == "missing_field"
    with pytest.raises(UserError, match="don't look like thumbs"):
        detect([{"prompt": "a", "completion": "b"}], PrepareConfig(format="thumbs"))


def test_a_few_ratings_are_kept_without_changing_the_format() -> None:
    rows: list[dict[str, Any]] = [{"messages": [ASK, SAY]}] * 9 + [{"messages": [ASK, SAY], "rating": "up"}]
    assert detect(rows, PrepareConfig()).name == "messages"
    parsed = parse(rows[-1], rows)
    assert isinstance(parsed, Parsed) and parsed.extra == {"thumb": True}


def test_of_columns_with_one_name_the_one_used_is_told() -> None:
    sample = [{"text": f"t {i}", "label": f"l{i % 3}", "label_2": "x"} for i in range(9)]
    assert detect(sample, PrepareConfig()).reason.endswith(
        "; taken is 'label', not 'label_2' (columns of one name are numbered)"
    )


# --- logs

REQUEST = {"model": "m", "messages": [{"role": "system", "content": "s"}, ASK]}
RESPONSE = {"choices": [{"index": 0, "message": SAY, "finish_reason": "stop"}]}


def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


CHUNKS = [chunk({"role": "assistant", "content": ""}), chunk({"content": "b"}), chunk({}, "stop"), {"choices": []}]
SSE = "".join(f"data: {json.dumps(c)}\n\n" for c in CHUNKS) + "data: [DONE]\n\n"
OLLAMA = [{"message": {"role": "assistant", "content": word}, "done": word == ""} for word in ("b", "")]
ANTHROPIC = [
    {"type": "message_start", "message": {"role": "assistant", "content": []}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "b"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
    {"type": "message_stop"},
]
RESPONSES_API = [
    {"type": "response.created", "response": {"status": "in_progress", "output": []}},
    {"type": "response.output_text.delta", "delta": "b"},
    {"type": "response.completed", "response": {"status": "completed", "output": [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]}]}},
]  # fmt: skip


def events(pieces: list[dict[str, Any]]) -> str:
    return "".join(f"event: {piece['type']}\ndata: {json.dumps(piece)}\n\n" for piece in pieces)


@pytest.mark.parametrize(
    "record",
    [
        {"request": REQUEST, "response": RESPONSE},
        {"request": {"body": REQUEST}, "response": {"status_code": 200, "body": RESPONSE}, "error": None},
        {"custom_id": "x", "body": REQUEST, "response": {"status_code": 200, "body": RESPONSE}},
        {"request": json.dumps(REQUEST), "response": json.dumps(RESPONSE)},
        {"messages": REQUEST["messages"], "response": "b"},
        {"messages": REQUEST["messages"], "choices": RESPONSE["choices"]},
        {"input": REQUEST, "output": SAY},
        {"input": {"instructions": "s", "input": "a", "model": "m"}, "output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        ]},
        {"request": REQUEST, "response": {"message": SAY, "done": True, "done_reason": "stop"}},
        {"request": {"system": "s", "messages": [ASK], "model": "m"},
         "response": {"role": "assistant", "content": [{"type": "text", "text": "b"}], "stop_reason": "end_turn"}},
        {"request": REQUEST, "response": CHUNKS},
        {"request": REQUEST, "response": SSE},
        {"request": REQUEST, "response": {"chunks": CHUNKS}},
        {"request": REQUEST, "response": {"status_code": 200, "body": SSE}},
        {"request": REQUEST, "response": json.dumps(CHUNKS)},
        {"request": REQUEST, "response": SSE.split("\n")},
        {"request": REQUEST, "response": [chunk({"content": "b"}, "stop"), {"choices": [{"index": 1, "delta": {"content": "c"}}]}]},
        {"request": REQUEST, "response": OLLAMA},
        {"request": REQUEST, "response": "\n".join(map(json.dumps, OLLAMA))},
        {"request": REQUEST, "response": ANTHROPIC},
        {"request": REQUEST, "response": events(ANTHROPIC)},
        {"request": REQUEST, "response": events(RESPONSES_API)},
    ],
)  # fmt: skip
def test_requests_and_responses_become_conversations(record: dict[str, Any]) -> None:
    assert detect([record], PrepareConfig()).name == "logs"
    parsed = parse(record)
    assert turns(parsed) == [("system", "s"), ("user", "a"), ("assistant", "b")]
    assert isinstance(parsed, Parsed) and parsed.extra in ({}, {"model": "m"})


def test_streamed_calls_are_put_together() -> None:
    def part(index: int, **function: str) -> dict[str, Any]:
        return {"index": index, "function": function} | ({"id": f"k{index}"} if "name" in function else {})

    chunks = [
        chunk({"tool_calls": [part(0, name="f", arguments="")]}),
        chunk({"tool_calls": [part(0, arguments='{"x"')]}),
        chunk({"tool_calls": [part(1, name="g", arguments="{}"), part(0, arguments=": 1}")]}),
        chunk({}, "tool_calls"),
    ]
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    parsed = parse({"request": REQUEST | {"tools": [tool]}, "response": chunks})
    assert isinstance(parsed, Parsed) and parsed.tools == [tool]
    calls = parsed.messages[-1]["tool_calls"]
    assert [(c["id"], c["function"]) for c in calls] == [
        ("k0", {"name": "f", "arguments": '{"x": 1}'}),
        ("k1", {"name": "g", "arguments": "{}"}),
    ]


def test_calls_streamed_by_others_are_put_together() -> None:
    whole = {
        "done": False,
        "message": {"tool_calls": [{"function": {"name": name, "arguments": {"x": 1}}} for name in "fg"]},
    }
    ollama = parse({"request": REQUEST, "response": [whole, OLLAMA[1]]})
    block = {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "k", "name": "f"}}
    parts = [
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": part}}
        for part in ('{"x"', ": 1}")
    ]
    end = {"type": "message_delta", "delta": {"stop_reason": "tool_use"}}
    anthropic = parse({"request": REQUEST, "response": [*ANTHROPIC[:3], block, *parts, end]})

    def calls(parsed: Parsed | Rejection) -> list[tuple[str, str]]:
        assert isinstance(parsed, Parsed), parsed
        return [(c["function"]["name"], c["function"]["arguments"]) for c in parsed.messages[-1]["tool_calls"]]

    assert calls(ollama) == [("f", '{"x": 1}'), ("g", '{"x": 1}')]
    assert calls(anthropic) == [("f", '{"x": 1}')] and turns(anthropic)[-1] == ("assistant", "b")


def test_only_line_ends_part_the_events_of_a_stream() -> None:
    said = "a\u2028b\x85c\x0bd"
    stream = f"data: {json.dumps(chunk({'content': said}, 'stop'), ensure_ascii=False)}\r\n\r\ndata: [DONE]\r"
    assert turns(parse({"request": REQUEST, "response": stream}))[-1] == ("assistant", said)


@pytest.mark.parametrize("said", ["data: take the last column", "{ is a brace", '{"a": 1}\n{"b": 2}', "[1]\n[2]"])
def test_an_answer_that_only_begins_like_a_stream_is_an_answer(said: str) -> None:
    plain = {"request": REQUEST, "response": RESPONSE}
    assert turns(parse({"request": REQUEST, "response": said}, [plain]))[-1] == ("assistant", said)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"response": {"status_code": 500, "body": RESPONSE}}, "error_output"),
        ({"status": 429}, "error_output"),
        ({"error": {"message": "timeout"}}, "error_output"),
        ({"response": {"error": {"message": "no"}}}, "error_output"),
        ({"response": '{"error": {"message": "no"}}'}, "error_output"),
        ({"response": "Internal Server Error"}, "error_output"),
        ({"response": {"choices": [{"message": SAY, "finish_reason": "length"}]}}, "truncated_output"),
        ({"response": CHUNKS[:2]}, "truncated_output"),
        ({"response": "data: {oops\n\n"}, "broken_json"),
        ({"response": [*CHUNKS[:2], 5, CHUNKS[2]]}, "wrong_type"),
        ({"response": [chunk({"tool_calls": [5]}, "stop")]}, "wrong_type"),
        ({"response": [*CHUNKS[:2], {"error": {"message": "overloaded"}}]}, "error_output"),
        ({"response": OLLAMA[:1]}, "truncated_output"),
        ({"response": json.dumps(OLLAMA[0]) + "\n" + json.dumps(OLLAMA[0])[:20]}, "broken_json"),
        ({"response": ANTHROPIC[:3]}, "truncated_output"),
        ({"response": [*ANTHROPIC[:3], {"type": "error", "error": {"type": "overloaded_error"}}]}, "error_output"),
        ({"response": RESPONSES_API[:2]}, "truncated_output"),
        ({"response": [{"type": "response.failed", "response": {"status": "failed", "output": []}}]}, "error_output"),
        ({"response": None}, "empty_output"),
        ({"response": {"choices": []}}, "empty_output"),
        ({"response": {"choices": [{"message": {"role": "assistant", "content": None}}]}}, "empty_output"),
        ({"response": {"id": "x"}}, "missing_field"),
        ({"response": 5}, "wrong_type"),
        ({"request": None}, "missing_field"),
        ({"request": {"model": "m"}}, "missing_field"),
        ({"request": {"messages": []}}, "empty_input"),
    ],
)
def test_logs_without_a_whole_answer_are_rejected(change: dict[str, Any], expected: str) -> None:
    plain = {"request": REQUEST, "response": RESPONSE}
    assert reason(parse(plain | change, [plain])) == expected


# --- dataset_info.json


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
    if error_answer(text + value) and not text:
        assert reason(parsed) == "error_output"
    elif value.strip():
        assert turns(parsed)[-1] == ("assistant", text + value)
    else:
        assert reason(parsed) == "empty_output"


# --- anything

SAMPLES: dict[str, list[dict[str, Any]]] = {
    "alpaca": [{"instruction": "a", "output": "b"}],
    "sharegpt": [conversation(("human", "a"))],
    "messages": [{"messages": [ASK]}],
    "prompt_completion": [{"prompt": "a", "completion": "b"}],
    "text_label": [{"text": "a", "label": "b"}],
    "many_labels": [{"text": "a", "label": ["b"]}],
    "text": [{"text": "a"}],
    "preference": [{"messages": [ASK], "chosen": GOOD, "rejected": BAD}],
    "preferred_text": [{"prompt": "a", "chosen": "b", "rejected": "c"}],
    "ranking": [{"prompt": "a", "completions": ["b", "c"], "scores": [1, 2]}],
    "thumbs": [{"messages": [ASK, SAY], "label": True}],
    "rated": [{"prompt": "a", "completion": "b", "label": 1}],
    "logs": [{"request": {"messages": [ASK]}, "response": RESPONSE}],
    "fields": [],
}
WORDS = ["user", "human", "gpt", "assistant", "tool", "[]", "{}", "data: {}", "up", "\n\nHuman: a\n\nAssistant: b"]
PARTS = [
    "role", "content", "from", "value", "tool_calls", "tool_call_id", "function", "arguments", "name", "id", "text", "weight",
    "type", "messages", "body", "choices", "message", "delta", "output", "error", "status", "finish_reason", "index", "tools",
]  # fmt: skip
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 600) | st.floats() | st.text(max_size=6) | st.sampled_from(WORDS),
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.sampled_from(PARTS), c, max_size=4),
    max_leaves=12,
)
# Turns that are nearly right reach the checks of their order.
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "Bot"]), "content": st.sampled_from(["a", "b", " ", None])},
    optional={
        "tool_calls": st.lists(st.sampled_from([{"id": "x", "function": {"name": "f", "arguments": a}} for a in ("{}", "{", {})]), max_size=2),
        "tool_call_id": st.sampled_from(["x", "y"]),
        "weight": st.sampled_from([0, 1, 2]),
    },
)  # fmt: skip
CELL = ANY | st.lists(TURN, max_size=6)
KEYS = sorted(
    {key for rows in SAMPLES.values() for row in rows for key in row} | {"tools", "system", "history", "input"}
)


PIECES = st.lists(st.sampled_from([*CHUNKS, *OLLAMA, *ANTHROPIC, *RESPONSES_API, 5, "x"]), max_size=6)
STREAM = (
    PIECES | PIECES.map(json.dumps) | PIECES.map(lambda pieces: "\n".join(f"data: {json.dumps(p)}" for p in pieces))
)
WRAPPED = STREAM | STREAM.map(lambda pieces: {"body": pieces}) | STREAM.map(lambda pieces: {"message": pieces})


@settings(max_examples=300, deadline=None)
@given(response=WRAPPED | ANY, request=ANY | st.just(REQUEST))
def test_pieces_put_together_beforehand_make_the_same_row(response: Any, request: Any) -> None:
    record = {"request": request, "response": response}
    guess = detect(SAMPLES["logs"], PrepareConfig())
    before = repr(record)
    whole = with_whole_texts(record, guess)
    assert repr(record) == before and with_whole_texts(whole, guess) == whole
    assert parse_record(whole, guess, PrepareConfig()) == parse_record(record, guess, PrepareConfig())


def test_contents_in_parts_are_put_together_beforehand() -> None:
    def parts(*texts: str) -> list[Any]:
        return [{"type": "text", "text": text} for text in texts]

    question, answer = ({"role": r, "content": parts("so ", r)} for r in ("user", "assistant"))
    for record in (
        {"messages": [question, answer]},
        {"prompt": [question], "completion": [answer]},
        {"request": {"body": {"messages": [question]}}, "response": RESPONSE},
    ):
        guess = detect([record], PrepareConfig())
        assert "type" not in str(with_whole_texts(record, guess)) and "so user" in str(with_whole_texts(record, guess))
    picture = {"messages": [{"role": "user", "content": [*parts("a"), {"type": "image_url", "image_url": {}}]}, answer]}
    assert (
        with_whole_texts(picture, detect([{"messages": [ASK, SAY]}], PrepareConfig()))["messages"][0]
        == picture["messages"][0]
    )


@settings(max_examples=600, deadline=None)
@given(record=st.dictionaries(st.sampled_from(KEYS), CELL, max_size=8) | ANY, name=st.sampled_from(sorted(SAMPLES)))
def test_every_value_is_a_sound_conversation_or_rejected_with_a_reason(record: Any, name: str) -> None:
    config = PrepareConfig(input="{text}", output="{label}") if name == "fields" else PrepareConfig()
    guess = detect(SAMPLES[name], config)
    before = repr(record)
    parsed = parse_record(record, guess, config)
    assert repr(record) == before
    if isinstance(parsed, Rejection):
        assert parsed.reason in REASONS and parsed.detail
        return
    assert {repair["kind"] for repair in parsed.repairs} <= set(REPAIRS)
    assert all(isinstance(m["content"], str) for m in parsed.messages)
    last = parsed.messages[-1]
    assert last["role"] == "assistant" and (last["content"].strip() or last["tool_calls"])
    json.dumps([parsed.messages, parsed.tools, parsed.extra])
    if guess.name == "text":
        return
    assert any(m["role"] == "user" and m["content"].strip() for m in parsed.messages)
    calls = [c["id"] for m in parsed.messages[:-1] for c in m.get("tool_calls", [])]
    assert sorted(calls) == sorted(m["tool_call_id"] for m in parsed.messages if m["role"] == "tool")
    if "rejected" in parsed.extra:
        assert parsed.extra["rejected"] != parsed.messages[-len(parsed.extra["rejected"]) :]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(KEYS), CELL, max_size=5), min_size=1, max_size=4))
def test_any_sample_gives_a_format_that_reads_it_or_a_user_error(sample: list[dict[str, Any]]) -> None:
    config = PrepareConfig()
    try:
        guess = detect(sample, config)
    except UserError as error:
        assert error.next_step
        return
    for record in sample:
        assert isinstance(parse_record(record, guess, config), Parsed | Rejection)


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


# --- real data, where it is at hand

FITTING = {
    "role_order": {"bad_turn_order"},
    "no_final_assistant": {"no_answer"},
    "tool_call_unanswered": {"unanswered_call"},
    "bad_tool_arguments": {"bad_arguments"},
    "error_output": {"error_output"},
    "missing_field": {"missing_field"},
    "wrong_type": {"wrong_type"},
    "empty_output": {"empty_output", "empty_input"},
    "unknown_role": {"unknown_role"},
}


@pytest.mark.parametrize("name", ["messy_chats", "messy_tickets"])
def test_injected_defects_of_structure_are_rejected_and_clean_rows_are_not(name: str) -> None:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not here")
    records: dict[int, Any] = {}
    for line, text in enumerate((folder / "messy.jsonl").read_bytes().split(b"\n"), 1):
        try:
            records[line] = json.loads(text.decode("utf-8-sig"))
        except ValueError:
            continue
    config = PrepareConfig()
    guess = detect(list(records.values()), config)
    parsed = {line: parse_record(record, guess, config) for line, record in records.items()}
    defects = json.loads((folder / "gold.json").read_text("utf-8"))["defects"]
    # The base data has calls of a tool without a name, which nobody injected.
    nameless = {n for n, p in parsed.items() if isinstance(p, Rejection) and "a tool call has no name" in p.detail}
    for defect in defects:
        line = defect["line"]
        if line in parsed and line not in nameless and (expected := FITTING.get(defect["type"])):
            found = parsed[line]
            words = {found.reason} if isinstance(found, Rejection) else {repair["kind"] for repair in found.repairs}
            assert words and words <= expected, (defect, found)
    for line in parsed.keys() - {defect["line"] for defect in defects} - nameless:
        assert isinstance(parsed[line], Parsed), (line, parsed[line])
