import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.core.errors import UserError
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import evaluate
from tuneloop.evaluation.metrics import structured as js
from tuneloop.evaluation.metrics.kinds import are_structured, parses
from tuneloop.evaluation.results import load_evaluation, write_evaluation
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Subject
from tuneloop.records.rows import Row

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SCHEMA = {
    "type": "object",
    "required": ["queue", "urgent"],
    "properties": {"queue": {"enum": ["billing", "delivery"]}, "urgent": {"type": "boolean"}},
}


def card(i, queue=None, urgent=None):
    return {
        "queue": queue or ("billing" if i % 2 else "delivery"),
        "urgent": bool(i % 3),
        "order": {"id": i, "tags": ["a", "b"]},
    }


def row(i, **meta):
    turns = [{"role": "user", "content": f"ticket {i}"}, {"role": "assistant", "content": json.dumps(card(i))}]
    return Row(f"r{i}", turns, meta=meta)


def scored(answers, **settings):
    rows = [row(i) for i in range(len(answers))]
    config = EvaluateConfig(bootstrap=100, embedding=False, **settings)
    return evaluate(rows, [Completion(a) for a in answers], task="generation", labels=None, config=config, seed=0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{'a': 1}",
        "NaN",
        '{"a": Infinity}',
        "```json\n{}\n```",
        'Sure: {"a": 1}',
        "[" * 100_000,
        "{} {}",
        "\x00",
    ],
)
def test_what_is_no_json_as_a_whole_is_not_valid(text):
    assert not parses(text)


@given(VALUES)
def test_any_value_equals_itself_in_any_spelling(value):
    compact, wide = json.dumps(value), json.dumps(value, indent=2, sort_keys=True)
    result = js.structured_statistics([[compact]], [wide], None).point_values()
    assert result["field_f1"] == result["field_precision"] == result["field_recall"] == result["valid_json"] == 1.0


def test_fields_are_counted_over_all_rows():
    references = [['{"a": 1, "b": {"c": "x", "d": [1, 2]}}'], ['{"a": 2}']]
    answers = ['{"a": 1.0, "b": {"c": " x ", "d": [2, 3]}, "e": null}', "broken"]
    result = js.structured_statistics(references, answers, None)
    # the reference's fields: a, b.c, b.d[]=1, b.d[]=2; a. The answer's: a, b.c, 2, 3, e; none. Hits: a, b.c, 2
    assert result.point_values() == pytest.approx(
        {"field_f1": 6 / 10, "field_precision": 3 / 5, "field_recall": 3 / 5, "valid_json": 0.5}
    )
    assert result.row_scores["field_f1"] == pytest.approx([6 / 9, 0.0])


def test_true_is_not_one_and_the_best_reference_counts():
    assert js.structured_statistics([['{"a": true}']], ['{"a": 1}'], None).point_values()["field_f1"] == 0.0
    assert js.structured_statistics([['{"a": 1}', '{"a": 2}']], ['{"a": 2}'], None).point_values()["field_f1"] == 1.0


def test_references_that_are_json_are_scored_as_such_with_each_field(tmp_path):
    answers = [json.dumps(card(i)) for i in range(12)]
    answers[0] = json.dumps(card(0, queue="billing"))
    answers[1] = f"```json\n{answers[1]}\n```"
    answers[2] = "no idea"
    result = scored(answers)
    assert result.metrics["valid_json"].value == pytest.approx(10 / 12)
    assert result.metrics["queue.accuracy"].value == pytest.approx(9 / 12)
    assert result.metrics["urgent.accuracy"].value == pytest.approx(10 / 12)
    assert result.primary == "filled_f1" and result.invalid == 2
    assert any("1 answer would be valid JSON without the Markdown fence" in note for note in result.notes)
    assert not {"order.accuracy", "schema_valid"} & set(result.metrics)


def test_a_schema_is_checked_and_kept_when_its_file_is_gone(tmp_path):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    answers = [json.dumps(card(i)) for i in range(6)]
    answers[0], answers[1] = '{"queue": "billing", "urgent": "yes"}', "{"
    result = scored(answers, json_schema=str(file))
    assert result.metrics["schema_valid"].value == pytest.approx(4 / 6)
    assert result.valid == [False, False, True, True, True, True]
    out = tmp_path / "eval"
    write_evaluation(out, result, Subject("m", "d", "test"))
    file.unlink()
    assert load_evaluation(out).metrics == result.metrics


@pytest.mark.parametrize(
    ("schema", "said"),
    [({"type": "nothing"}, "Not a JSON schema"), ([], "is an object"), ({"$ref": "#/nowhere"}, "/nowhere")],
)
def test_a_bad_schema_is_the_users_error(tmp_path, schema, said):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    with pytest.raises(UserError, match=said):
        scored(["{}"] * 3, json_schema=str(file))


def test_free_text_is_not_taken_for_json():
    assert not are_structured([["[sic] it is"], ["{}"]])
    assert not are_structured([["12"]])


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"items": {"pattern": "(?=a)b"}}, "look-ahead"),
        ({"enum": list(range(300_000))}, "more than 1,000 entries"),
        ({"pattern": "((a{99}){99}){99}"}, "written out"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "etriev"),
        ({"$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {}}, "$ref": "#/$defs/d0"}, "takes more"),
    ],
)  # fmt: skip
def test_a_schema_that_takes_for_ever_is_refused(tmp_path, schema, said):
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    with pytest.raises(UserError, match=said):
        scored(['["a"]'] * 3, json_schema=str(file))


def test_a_schema_may_use_all_keywords_and_its_patterns_are_linear(tmp_path):
    schema = {
        "not": {"const": {}},
        "uniqueItems": True,
        "if": {"type": "array"},
        "then": {"items": {"pattern": "^(a|aa)+$"}},
    }
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    result = scored(['["aa"]', json.dumps(["a" * 60 + "!"]), "{}", '["a", "a"]'], json_schema=str(file))
    assert result.metrics["schema_valid"].value == pytest.approx(1 / 4)
