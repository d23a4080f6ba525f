"""Records that people write, shape by shape: conversations, labels, pairs, templates, ratings, preferences."""

from __future__ import annotations

import json
from typing import Any

import pytest
from format_records import (
    ANTHROPIC,
    ANY,
    ASK,
    BAD,
    CHUNKS,
    GOOD,
    GPT,
    HUMAN,
    OLLAMA,
    REQUEST,
    RESPONSE,
    RESPONSES_API,
    SAMPLES,
    SAY,
    conversation,
    parse,
    reason,
    turns,
)
from hypothesis import assume, given
from hypothesis import strategies as st

from tuneloop.core.errors import UserError
from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.guess import (
    CLASSIFY,
    CLASSIFY_MANY,
    Parsed,
    Rejection,
    detect,
    error_answer,
    parse_record,
    template_columns,
    with_whole_texts,
)
from tuneloop.models.chat.reasoning import TAGS

PIECES = st.lists(st.sampled_from([*CHUNKS, *OLLAMA, *ANTHROPIC, *RESPONSES_API, 5, "x"]), max_size=6)
STREAM = (
    PIECES | PIECES.map(json.dumps) | PIECES.map(lambda pieces: "\n".join(f"data: {json.dumps(p)}" for p in pieces))
)


WRAPPED = STREAM | STREAM.map(lambda pieces: {"body": pieces}) | STREAM.map(lambda pieces: {"message": pieces})


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
        (conversation(("human", "a"), ("gpt", [{"type": "image_url"}])), "wrong_type"),
        (conversation(("human", "a"), ("gpt", {"content_type": "text", "parts": ["b"]})), "wrong_type"),
        (conversation(("human", {"x": 1}), ("gpt", "b")), "wrong_type"),
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


INTENTS = [["pin", "new"], ["card"], ["card", "lost"], []]


def test_a_list_of_labels_is_the_label_and_a_fold_s_number_never() -> None:
    records = [
        {"utterance_txt": f"where is card {i}?", "intent_list": INTENTS[i % 4], "fold_no": i % 5} for i in range(60)
    ]
    guess = detect(records, PrepareConfig())
    assert guess.columns == {"text": "utterance_txt", "label": "intent_list"} and guess.many_labels
    in_a_table = [{**record, "intent_list": json.dumps(record["intent_list"])} for record in records]
    assert detect(in_a_table, PrepareConfig()).columns == guess.columns


def test_lists_of_labels_with_unusual_names_are_proposed_and_numbers_next_to_them_are_not_taken() -> None:
    records = [{"frage": f"wo ist meine Karte {i}?", "absichten": INTENTS[i % 4], "gruppe": i % 5} for i in range(60)]
    with pytest.raises(UserError) as caught:
        detect(records, PrepareConfig())
    assert caught.value.settings == ("data.text=frage", "data.label=absichten")


@pytest.mark.parametrize("name", ["fold_no", "fold", "cv_split", "row_index", "idx"])
def test_a_column_about_the_row_is_no_label(name: str) -> None:
    records = [{"sentence": f"where is card {i}?", name: i % 5} for i in range(60)]
    with pytest.raises(UserError):
        detect(records, PrepareConfig(format="text_label"))


def test_plain_text_is_one_turn_of_the_assistant() -> None:
    parsed = parse({"text": "Once upon a time.", "url": "x"}, instruction="I")
    assert turns(parsed) == [("assistant", "Once upon a time.")]
    assert reason(parse({"text": " "}, [{"text": "a"}])) == "empty_output"


def test_prompt_and_completion_may_be_texts_or_turns() -> None:
    assert turns(parse({"prompt": "p", "completion": "c"})) == [("user", "p"), ("assistant", "c")]
    record = {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}],
        "completion": [{"role": "assistant", "content": "c"}],
    }
    assert turns(parse(record)) == [("system", "s"), ("user", "p"), ("assistant", "c")]


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
        ({"queue": [float("nan")]}, "wrong_type"),
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
    assume(not any(tag in text + value for tags in TAGS for tag in tags))  # reasoning: the next test
    literal = text.replace("{", "{{").replace("}", "}}")
    record = {"q": "x", "v": value}
    parsed = parse(record, input="{q}", output=literal + "{v}")
    if error_answer(text + value) and not text:
        assert reason(parsed) == "error_output"
    elif value.strip():
        assert turns(parsed)[-1] == ("assistant", text + value)
    else:
        assert reason(parsed) == "empty_output"


def test_reasoning_in_a_value_is_read_as_reasoning() -> None:
    def answered(value: str) -> Parsed | Rejection:
        return parse({"q": "x", "v": value}, input="{q}", output="{v}")

    assert turns(answered("<think>a</think>b"))[-1] == ("assistant", "b")
    assert reason(answered("<think>")) == "cut_reasoning" and reason(answered("<think></think>")) == "empty_output"


def test_objects_and_lists_become_compact_json_in_the_order_of_their_keys() -> None:
    record = {"mail": "m", "card": {"z": "Äpfel", "a": [1, 2.5, None, True], "in": {"k": '"q"'}}, "tags": ["x", "y"]}
    templates = {"input": "{mail}", "output": "{card}"}
    text = '{"z":"Äpfel","a":[1,2.5,null,true],"in":{"k":"\\"q\\""}}'
    assert turns(parse(record, **templates))[-1] == ("assistant", text)
    assert turns(parse(record, input="{card}", output='{{"t": {tags}, "z": "{card.z}"}}')) == [
        ("user", text),
        ("assistant", '{"t": ["x","y"], "z": "Äpfel"}'),
    ]
    assert turns(parse(record, input="{mail}", output="{card.a}"))[-1][1] == "[1,2.5,null,true]"
    labels = parse(record, input="{mail}", output="{tags}", task="classification")
    assert turns(labels)[-1][1] == "x, y"


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


MESSAGES = [ASK, SAY, {"role": "user", "content": "c"}]


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
