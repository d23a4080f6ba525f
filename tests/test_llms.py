"""llms.txt and llms-full.txt are what the pages say."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

from places import ROOT


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_llms", ROOT / "docs" / "make_llms.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_list_and_the_whole_are_up_to_date(generator: ModuleType) -> None:
    hint = "run `python docs/make_llms.py`"
    assert generator.index() == (ROOT / "llms.txt").read_text(encoding="utf-8"), hint
    assert generator.full() == (ROOT / "llms-full.txt").read_text(encoding="utf-8"), hint


def test_the_list_has_every_page_once_with_words_on_it(generator: ModuleType) -> None:
    lines = [line for line in generator.index().splitlines() if line.startswith("- [")]
    pages = [match[1] for line in lines if (match := re.search(r"\]\(([^)]*)\): \S", line))]
    assert len(pages) == len(lines) == len(set(pages))
    every = {page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md")} - {"docs/README.md"}
    assert {*pages} == every


def test_instructions_for_contributors_are_short_and_name_what_there_is() -> None:
    text = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    for place in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / place).exists(), place
    for target in re.findall(r"^make (\w[\w-]*)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), target
    for file in re.findall(r"\.venv/bin/\w+ (?:-q -x )?((?:tests|docs|benchmarks)/[\w./]+)", text):
        assert (ROOT / file).exists(), file
