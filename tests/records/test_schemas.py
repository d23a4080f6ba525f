"""`tuneloop schema --record NAME` prints the JSON Schema of every record."""

from __future__ import annotations

import json

import jsonschema
import pytest

from tuneloop.cli.main import main
from tuneloop.records.rows import Row
from tuneloop.workflows.schemas import RECORDS


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
