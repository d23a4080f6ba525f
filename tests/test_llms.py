"""llms.txt lists the pages; llms-full.txt has those that are needed, whole."""

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


def test_the_whole_has_the_text_of_the_pages_that_are_needed(generator: ModuleType) -> None:
    whole = generator.full()
    assert (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8").strip() in whole
    assert "<!-- docs/reference/" not in whole


def test_the_list_has_every_page_once_with_words_on_it(generator: ModuleType) -> None:
    lines = [line for line in generator.index().splitlines() if line.startswith("- [")]
    pages = [match[1] for line in lines if (match := re.search(r"\]\(([^)]*)\): \S", line))]
    assert len(pages) == len(lines) == len(set(pages))
    docs = ROOT / "docs"
    every = {page.relative_to(docs).with_suffix(".html").as_posix() for page in docs.rglob("*.md")} - {"README.html"}
    assert {*pages} == every


def test_instructions_for_contributors_are_short_and_name_what_there_is() -> None:
    text = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"^make (\w[\w-]*)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), target
    for file in re.findall(r"\.venv/bin/\w+ (?:-q -x )?((?:tests|docs|benchmarks)/[\w./]+)", text):
        assert (ROOT / file).exists(), file
