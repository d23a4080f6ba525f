"""Every command: one JSON object with a schema, an exit status of the table, and no question without a terminal."""

from __future__ import annotations

import ast
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer.main
from answers import check_answer

from places import ROOT
from tuneloop.cli.answers import ANSWERS, ERROR, EXIT_STATUSES, SAME
from tuneloop.cli.main import app, main
from tuneloop.cli.schema import schema_of_answer

SOURCE = ROOT / "src" / "tuneloop"
# Functions that ask a person something; what calls them has looked for a terminal.
QUESTIONS = {
    "cli.advise._ask",
    "cli.chat._Loop._read",
    "cli.forget._confirmed",
    "cli.forget._from_store",
    "cli.init._agreed",
    "deploy.launch.confirmed",
}


def commands(group: Any = None, *before: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The words of every command that does something, and the command."""
    group = group or typer.main.get_command(app)
    for name in group.list_commands(None) if before == () else group.commands:
        command = group.get_command(None, name)
        usual = getattr(command, "usual", None) if getattr(command, "commands", None) else command
        if usual is not None:
            yield (*before, name), usual
        if getattr(command, "commands", None):
            yield from commands(command, *before, name)


COMMANDS = dict(commands())
NAMES = [" ".join(command) for command in COMMANDS]


def test_every_command_has_an_answer_in_the_table_and_no_other_has() -> None:
    assert {*NAMES} == {*ANSWERS, *SAME}


@pytest.mark.parametrize("text", COMMANDS, ids=" ".join)
def test_every_command_takes_json(text: tuple[str, ...]) -> None:
    options = {option for parameter in COMMANDS[text].params for option in parameter.opts}
    assert {"--json", "--quiet", "--debug"} <= options


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_of_an_answer_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--answer", name, "--json"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["anyOf"][-1] == ERROR and len(schema["anyOf"]) > 1
    parts = {f"#/$defs/{part}" for part in schema.get("$defs", ())}
    assert set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(schema))) <= parts


def test_a_wrong_answer_does_not_fit_its_schema() -> None:
    good = {"recipe": "a.yaml", "format": "text_label", "reason": "columns"}
    check_answer(["init", "--json"], 0, json.dumps(good))
    for bad in ({"recipe": "a.yaml"}, {**good, "reason": 3}):
        with pytest.raises(AssertionError):
            check_answer(["init", "--json"], 0, json.dumps(bad))
    with pytest.raises(AssertionError):
        check_answer(["init"], 7, "")
    with pytest.raises(ValueError):
        check_answer(["init", "--json"], 0, json.dumps(good) * 2)


def test_an_unknown_command_is_refused_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--answer", "data chek"]) == 2
    assert "did you mean data check?" in capsys.readouterr().err


class NoTerminal(io.TextIOWrapper):
    """An input that is no terminal, and fails the test that reads from it."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())

    def readline(self, *size: Any) -> str:
        raise AssertionError("a command reads an answer where no one sits")

    read = readline


@pytest.mark.parametrize("text", COMMANDS, ids=" ".join)
def test_bad_input_is_one_error_object_and_no_question(
    text: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command without its arguments where it needs some, else with an option that there is not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", NoTerminal())
    required = [parameter for parameter in COMMANDS[text].params if parameter.required]
    status = main([*text, *([] if required else ["--no-such-option"]), "--json"])
    printed = capsys.readouterr()
    assert status == 2
    jsonschema.validate(json.loads(printed.out), schema_of_answer(" ".join(text)))
    assert set(json.loads(printed.out)) == {"error"} and printed.err.startswith("Error: ")


@pytest.mark.parametrize(
    "text",
    [
        ["advise"],
        ["plan"],
        ["init", "columns.csv"],
        ["data", "check", "missing"],
        ["data", "forget", "missing", "--user", "4"],
        ["keys", "open"],
        ["deploy", "missing", "--to", "ollama"],
        ["models"],
        ["ab"],
        ["costs"],
        ["improve", "missing.yaml"],
        ["collect", "show"],
    ],
    ids=" ".join,
)
def test_commands_that_know_too_little_ask_no_one(
    text: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n3,4\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setattr(sys, "stdin", NoTerminal())
    status = main([*text, "--json"])
    check_answer([*text, "--json"], status, capsys.readouterr().out)


def test_questions_are_asked_in_few_places() -> None:
    places = set()
    for path in SOURCE.rglob("*.py"):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        places |= {f"{module}.{name}" for name in _asking(ast.parse(path.read_text(encoding="utf-8")))}
    assert places == QUESTIONS


def _asking(tree: ast.AST, name: str = "") -> Iterator[str]:
    """Functions that read a person's answer."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and re.fullmatch(r"input|typer\.(confirm|prompt)", ast.unparse(node.func)):
            yield name
        inner = isinstance(node, ast.FunctionDef | ast.ClassDef)
        yield from _asking(node, f"{name}.{node.name}".lstrip(".") if inner else name)  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", COMMANDS, ids=" ".join)
def test_help_names_only_exit_statuses_of_the_table(text: tuple[str, ...]) -> None:
    help = COMMANDS[text].help or ""
    for part in re.findall(r"Exit\s+status\s+(.*)", help, re.DOTALL):
        assert {int(number) for number in re.findall(r"\b(\d+):", part)} <= EXIT_STATUSES.keys()


def test_the_reference_has_the_table_of_exit_statuses() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))
    for status, meaning in EXIT_STATUSES.items():
        assert f"| {status} | {meaning} |" in text
