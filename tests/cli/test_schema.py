"""`tuneloop schema --record NAME` prints the JSON Schema of every record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tickets import WORDS, tickets

from tuneloop.cli.main import main
from tuneloop.cli.schema import RECORDS, schema_of
from tuneloop.core.files import read_jsonl
from tuneloop.data.config import PrepareConfig
from tuneloop.data.prepare import TokenCount, prepare_dataset
from tuneloop.records.rows import Row, last_user_turn


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_has_a_schema(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--record", name, "--json"]) == 0
    schema = json.loads(capsys.readouterr().out, parse_constant=lambda value: pytest.fail(f"{value} is no JSON"))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"] and schema["description"]


def test_a_row_fits_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--record", "row"]) == 0
    row = Row("1", [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], meta={"line": 1})
    jsonschema.validate(row.to_json(), json.loads(capsys.readouterr().out))


def test_an_unknown_record_is_refused_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--record", "evaluaton"]) == 2
    assert "did you mean evaluation?" in capsys.readouterr().err


def test_the_lists_of_a_data_set_are_what_their_schemas_say(tmp_path: Path) -> None:
    """Splits, rejects, repairs, copies, doubtful labels and flagged rows: each list has lines here."""
    records: list[Any] = [{"text": last_user_turn(row), "label": row.label} for row in tickets(200)]
    records[7]["label"] = next(word for word in WORDS if word != records[7]["label"])  # a wrong label
    records[9]["text"] += " cafÃ©"
    other = next(word for word in WORDS if word != records[30]["label"])
    records += [
        records[20],
        {"text": "", "label": "card"},
        {**records[30], "label": other},
    ]  # a copy, a hole, a conflict
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    config = PrepareConfig(sources=[str(source)])
    prepare_dataset(config, name="rows", seed=0, out=tmp_path / "set", measure=lambda row: TokenCount(20, 2))
    lists = {"train": "row", "val": "row", "test": "row", "rejects": "reject", "repairs": "repair", "duplicates": "duplicate",
             "label_errors": "label-error", "flagged": "flagged"}  # fmt: skip
    for file, name in lists.items():
        lines = read_jsonl(tmp_path / "set" / f"{file}.jsonl")
        assert lines, file
        for line in lines:
            jsonschema.validate(line, schema_of(name))
