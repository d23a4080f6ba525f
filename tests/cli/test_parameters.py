"""Options come from records: names, types, defaults and help are those of the fields."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer.main
import typer.testing

from tuneloop.advise.config import AdviseOptions
from tuneloop.cli.main import COMMANDS, app, main
from tuneloop.cli.parameters import Output, expanded, given
from tuneloop.evaluate.options import EvalOptions
from tuneloop.plan.config import PlanOptions

NAMES = [name for stage in COMMANDS.values() for name in stage]


def help_of(*arguments: str) -> str:
    return typer.testing.CliRunner().invoke(app, [*arguments, "--help"], prog_name="tuneloop").output


def asked(record: type[Any], *arguments: str) -> Any:
    found = []

    def command(*, options: Any, output: Output) -> None:
        found.append((options, output))

    command.__annotations__ = {"options": record, "output": Output, "return": None}
    one = typer.Typer()
    one.command()(expanded(command))
    result = typer.testing.CliRunner().invoke(one, list(arguments))
    assert result.exit_code == 0, result.output
    return found[0]


def test_what_is_given_becomes_the_record_and_the_rest_has_its_defaults() -> None:
    options, output = asked(AdviseOptions, "--rows", "3k", "--budget", "$50", "--facts-stay", "--json")
    assert given(options) == {"rows": 3000, "budget_usd": 50.0, "facts_change": False}
    assert options.months == 12 and options.tier == "on-demand"
    assert output == Output(json=True)


def test_a_default_that_is_given_is_given() -> None:
    options, _ = asked(PlanOptions, "--engineer-hours", "16", "--no-packing")
    assert given(options) == {"engineer_hours": 16.0, "packing": False}


@pytest.mark.parametrize(("command", "record"), [("plan", PlanOptions), ("advise", AdviseOptions)])
def test_every_field_of_the_record_is_an_option_with_its_description(command: str, record: Any) -> None:
    text = " ".join(help_of(command).split())
    for info in record.model_fields.values():
        assert info.description and " ".join(info.description.split()) in text.replace("- ", "-"), info


def test_the_options_of_evaluate_are_fields_of_its_record() -> None:
    options, _ = asked(EvalOptions, "--few-shot", "3", "--references", "rows.jsonl")
    assert options == EvalOptions(few_shot=3, data="rows.jsonl")


@pytest.mark.parametrize("name", NAMES)
def test_help_begins_with_the_line_of_the_list_and_is_written_in_sentences(name: str) -> None:
    text = help_of(name)
    line = next(lines[name] for lines in COMMANDS.values() if name in lines)
    assert " ".join(text.split()).partition("] ")[2] and line in " ".join(text.split())
    assert not re.search(r"[a-z]\.\.\.", text), "a sentence is cut"
    assert "<str>" not in text and "<int>" not in text and "<float>" not in text, "name what the value is"


def test_the_list_of_commands_cuts_no_sentence_and_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "..." not in text.replace("[ARGS]...", "")
    assert re.findall(r"^  ([a-z]+)  +[A-Z]", text, re.MULTILINE) == NAMES
