"""Options come from records: names, types, defaults and help are those of the fields."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer.main
import typer.testing

from tuneloop.advice.config import AdviseOptions
from tuneloop.cli.console import Result, split_arguments
from tuneloop.cli.main import COMMANDS, GROUPS, app, main
from tuneloop.cli.parameters import Output, expanded, given, output
from tuneloop.core.flag import flag
from tuneloop.evaluation.config import EvalOptions
from tuneloop.planning.config import PlanOptions

NAMES = [name for stage in COMMANDS.values() for name in stage]
group: Any = typer.main.get_command(app)


def help_of(*arguments: str) -> str:
    return typer.testing.CliRunner().invoke(app, [*arguments, "--help"], prog_name="tuneloop").output


def asked(record: type[Any], *arguments: str) -> Any:
    found = []

    def command(*, options: Any) -> None:
        found.append((options, output()))

    command.__annotations__ = {"options": record, "return": None}
    item = typer.Typer()
    item.command()(expanded(command))
    result = typer.testing.CliRunner().invoke(item, list(arguments))
    assert result.exit_code == 0, result.output
    return found[0]


def test_what_is_given_becomes_the_record_and_the_rest_has_its_defaults() -> None:
    options, common = asked(AdviseOptions, "--rows", "3k", "--budget", "$50", "--facts-stay", "--json")
    assert given(options) == {"rows": 3000, "budget_usd": 50.0, "facts_change": False}
    assert options.months == 12 and options.tier == "on-demand"
    assert common == Output(as_json=True)


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
    command: Any = group.get_command(None, name)
    assert " ".join(text.split()).partition("] ")[2]
    assert line in (" ".join(text.split()) if not hasattr(command, "commands") else command.help)
    assert not re.search(r"[a-z]\.\.\.", text), "a sentence is cut"
    assert "<str>" not in text and "<int>" not in text and "<float>" not in text, "name what the value is"


def test_the_list_of_commands_cuts_no_sentence_and_names_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "..." not in text.replace("[ARGS]...", "")
    assert re.findall(r"^  ([a-z]+)  +[A-Z]", text, re.MULTILINE) == NAMES


def test_the_list_of_commands_fits_one_screen(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 60 and lines.index("Start here:") < 12


@pytest.mark.parametrize("name", GROUPS)
def test_a_command_of_a_group_runs_without_its_name(name: str) -> None:
    assert help_of(name) == help_of(GROUPS[name], name).replace(
        f"tuneloop {GROUPS[name]} {name}", f"tuneloop {name}", 1
    )
    assert help_of(name).startswith(f"Usage: tuneloop {name} ")


def test_a_group_means_its_usual_command_where_none_is_named() -> None:
    assert help_of("models").startswith("Usage: tuneloop models [OPTIONS] [NAME]")
    assert "  reproduce  Train a run again" in help_of("models")
    assert help_of("models", "list").startswith("Usage: tuneloop models list [OPTIONS] [NAME]")


def test_a_result_is_printed_as_one_object_or_as_text_and_gives_the_status() -> None:
    def command(
        lines: str = flag("ab", "TEXT", "Lines."), size: int = flag(1, "N", "Size.", least=1, most=9)
    ) -> Result:
        return Result({"size": size, "text": lines}, lines, status=3)

    command.__annotations__ |= {"lines": str, "size": int, "return": Result}
    item = typer.Typer()
    item.command()(expanded(command))

    def run(*arguments: str) -> tuple[int, str]:
        result = typer.testing.CliRunner().invoke(item, list(arguments))
        return result.exit_code, result.output

    assert run() == (3, "a\nb\n")
    assert run("--json", "--size", "3", "--lines", "") == (3, '{"size": 3, "text": ""}\n')
    status, text = run("--size", "10")
    assert status == 2 and "10 is not in the range x>=1 and x<=9" in " ".join(text.split())


@pytest.mark.parametrize("address", ["https://h/rows.jsonl#sha256=5f7c", "https://h/rows?key=1", "s3://b/day=1/x.csv"])
def test_an_address_is_no_setting(address: str) -> None:
    assert split_arguments([address, "data.split.test=0.2"]) == ([address], ["data.split.test=0.2"])
