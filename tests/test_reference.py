"""The pages of the reference are what the code says, and no command is without documentation."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest
import typer.main

from places import ROOT
from tuneloop.cli.main import GROUPS, app
from tuneloop.recipe import ALIASES, describe_keys

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("COLUMNS", "100")  # the generator sets it; this restores it afterwards
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date(generator: ModuleType) -> None:
    written = {page.name: page.read_text(encoding="utf-8") for page in generator.FOLDER.glob("*.md")}
    texts = generator.pages()
    assert set(written) == set(texts), "run `make reference`"
    for name, text in texts.items():
        assert written[name] == text, f"{name}: run `make reference`"


def test_each_command_has_a_page_that_the_index_links(generator: ModuleType) -> None:
    index = (generator.FOLDER / "index.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"[{command}]({command}.md)" in index, command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages if page.parent.name != "reference")
    assert re.search(rf"\btuneloop {command}\b", text)


def test_documented_commands_exist() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        code = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
        for command in re.findall(r"^\W*tuneloop ([a-z]+)\b", "\n".join(code), re.MULTILINE):
            assert command in {*COMMANDS, *GROUPS}, f"{page.name}: tuneloop {command}"


def test_every_key_has_a_meaning_and_every_alias_a_key() -> None:
    keys = {key for key, _, _ in describe_keys()}
    unexplained = [key for key, _, meaning in describe_keys() if not meaning and key != "version"]
    assert not unexplained
    assert set(ALIASES.values()) <= keys
