"""Which format records have, by settings, sample or `dataset_info.json`; and what all formats keep to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from format_records import ANY, ASK, CELL, GPT, HUMAN, KEYS, SAMPLES, SAY, parse, reason, turns
from hypothesis import given
from hypothesis import strategies as st

from places import DATA_SETS
from tuneloop.core.errors import UserError
from tuneloop.data.config import PrepareConfig
from tuneloop.data.dataset import REASONS, REPAIRS
from tuneloop.data.formats.guess import (
    FormatGuess,
    Parsed,
    Rejection,
    check_columns,
    detect,
    guess_from_info,
    parse_record,
)

DATA = DATA_SETS
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
            sentence = {found.reason} if isinstance(found, Rejection) else {repair["kind"] for repair in found.repairs}
            assert sentence and sentence <= expected, (defect, found)
    for line in parsed.keys() - {defect["line"] for defect in defects} - nameless:
        assert isinstance(parsed[line], Parsed), (line, parsed[line])


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


def test_columns_of_unknown_names_are_proposed_by_their_values() -> None:
    kinds = ["alarm", "music", "lists"]
    rows = [{"answerid": n, "kind": kinds[n % 3], "made": f"wake me {n}", "said": f"Wake me, {n}!"} for n in range(30)]
    with pytest.raises(UserError, match="Can't tell") as caught:
        detect(rows, PrepareConfig())
    assert "this may fit: data.text=said data.label=kind;" in caught.value.next_step
    assert "answerid" not in caught.value.next_step  # a column of numbers is no misspelt 'answer'
    pairs = [{"mr": f"name[{n}], area[city]", "ref": f"There is {n} in the city."} for n in range(30)]
    with pytest.raises(UserError, match="Can't tell") as caught:
        detect(pairs, PrepareConfig())
    assert "this may fit: data.input='{mr}' data.output='{ref}';" in caught.value.next_step


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


CARD = {"customer": "Kunze", "total": 3.5, "lines": [{"name": "lamp", "n": 2}]}
MAIL = "Dear all, we would like to order two more lamps."


@pytest.mark.parametrize(
    ("columns", "output", "said"),
    [
        ({"card": CARD}, "{card}", "an object with the keys customer, total, lines (name, n)."),
        ({"card": json.dumps(CARD)}, "{card}", "an object with the keys customer, total, lines (name, n)."),
        ({"id": 3, "meta": {"a": 1}, "entities": ["Kunze", "lamp"]}, "{entities}", "a list: entities."),
        ({"label": [{"start": 0, "end": 4}]}, "{label}", "a list of objects with the keys start, end."),
        ({"embedding": [0.5] * 64, "people": [{"name": "Kunze", "role": "buyer"}]}, "{people}", "keys name, role."),
        ({"who": {"name": "K"}, "what": ["lamp"]}, '{{"who":{who},"what":{what}}}', "the keys who (name), what."),
    ],
)
def test_a_text_with_objects_or_lists_is_proposed_as_extraction(
    columns: dict[str, Any], output: str, said: str
) -> None:
    records = [{"mail": f"{MAIL} It is order {i}.", **columns} for i in range(12)]
    with pytest.raises(UserError, match="like the answer") as caught:
        detect(records, PrepareConfig())
    given = dict(setting.removeprefix("data.").split("=", 1) for setting in caught.value.settings)
    assert (given["input"], given["output"]) == ("{mail}", output)
    found = [parse(record, like=records, **given) for record in records]
    read = json.loads(turns(found[0])[-1][1])
    wanted = [
        json.loads(v) if isinstance(v, str) else v for k, v in columns.items() if k not in ("id", "meta", "embedding")
    ]
    assert read == wanted[0] or list(read.values()) == wanted
    assert turns(found[0])[0][0] == "system" and said in turns(found[0])[0][1]


def test_a_text_about_an_object_is_proposed_the_other_way_round() -> None:
    records = [
        {"input": {"name": f"Inn {i}", "area": "city"}, "told": f"The Inn {i} is in the city."} for i in range(9)
    ]
    with pytest.raises(UserError) as caught:
        detect(records, PrepareConfig())
    assert caught.value.settings == ("data.input={input}", "data.output={told}")


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "Read the order.", "input": MAIL, "output": CARD},
        {"prompt": MAIL, "completion": CARD},
        {"question": MAIL, "answer": [CARD]},
        {"messages": [{"role": "user", "content": MAIL}, {"role": "assistant", "content": CARD}]},
        {"conversations": [{"from": "human", "value": MAIL}, {"from": "gpt", "value": CARD}]},
    ],
)
def test_objects_where_answers_usually_are_become_json(record: dict[str, Any]) -> None:
    assert turns(parse(record))[-1][1] in (
        '{"customer":"Kunze","total":3.5,"lines":[{"name":"lamp","n":2}]}',
        '[{"customer":"Kunze","total":3.5,"lines":[{"name":"lamp","n":2}]}]',
    )


def test_what_looks_like_an_answer_and_is_not_used_is_named() -> None:
    rows = [{"text": f"{MAIL} {i}", "label": "ab"[i % 2], "slots": {"n": i}, "meta": {"x": 1}} for i in range(12)]
    assert detect(rows, PrepareConfig()).reason.endswith("; not used: 'slots'")
    rows = [{"id": i, "text": f"{MAIL} {i}", "stars": i / 7} for i in range(12)]
    assert detect(rows, PrepareConfig()).reason.endswith("; not used: 'stars'")
    assert "not used" not in detect([{"text": MAIL, "id": 1, "meta": {"x": 1}}], PrepareConfig()).reason


def test_a_stray_text_among_objects_is_rejected() -> None:
    records = [{"mail": MAIL, "card": CARD} for _ in range(20)]
    templates = {"input": "{mail}", "output": "{card}"}
    assert reason(parse({"mail": MAIL, "card": "see attachment"}, like=records, **templates)) == "wrong_type"
    assert reason(parse({"mail": MAIL, "card": '{"customer": "Ku'}, like=records, **templates)) == "wrong_type"
    assert reason(parse({"mail": MAIL, "card": None}, like=records, **templates)) == "empty_output"
    assert (
        turns(parse({"mail": MAIL, "card": {"error": "none"}}, like=records, **templates))[-1][1] == '{"error":"none"}'
    )


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


@given(st.dictionaries(st.sampled_from(["formatting", "columns", "tags", "ranking"]), ANY, max_size=4))
def test_any_entry_of_dataset_info_is_a_guess_or_a_user_error(entry: dict[str, Any]) -> None:
    try:
        guess = guess_from_info(entry)
        assert isinstance(guess, FormatGuess)
        for record in ({}, {"instruction": "a", "conversations": [HUMAN]}):
            assert isinstance(parse_record(record, guess, PrepareConfig()), Rejection)
    except UserError as error:
        assert error.next_step
