"""Each control that the security pages name has its test, and the words of `-k` choose one."""

from __future__ import annotations

import re

import pytest

from places import ROOT

PAGES = ("SECURITY.md", "docs/threat-model.md", "benchmarks/records/security-asvs.md")
NAMED = sorted(
    {
        named
        for page in PAGES
        for named in re.findall(r"`(tests/[\w/]+\.py)(?: -k (\w+|\"[^\"]+\"))?`", (ROOT / page).read_text("utf-8"))
    }
)


@pytest.mark.parametrize(("file", "text"), NAMED)
def test_a_test_that_a_security_page_names_is_there(file: str, text: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")
    names = re.findall(r"^(?:async )?def (test_\w+)", source, re.MULTILINE)
    for word in text.strip('"').split(" or "):
        assert any(word in name for name in names) or word in source, (file, word)


def test_pages_agents_imports_and_traces_are_named() -> None:
    section = (
        (ROOT / "benchmarks/records/security-asvs.md").read_text(encoding="utf-8").partition("## Pages, agents")[2]
    )
    controls = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| control")]
    assert len(controls) > 15 and all("`tests/" in line for line in controls)
    for kind in ("pages", "agents", "imports", "traces"):
        assert any(line.startswith(f"| {kind}") for line in controls)
