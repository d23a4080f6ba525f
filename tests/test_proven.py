"""The page of what has been proven names tests, benchmarks and records that exist, and says nothing without one."""

from __future__ import annotations

import re

import pytest

from places import ROOT

PAGE = (ROOT / "docs" / "proven.md").read_text(encoding="utf-8")
RECORD = (ROOT / "benchmarks" / "records" / "proven.md").read_text(encoding="utf-8")
HEAD = "| capability | where it ran |"
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
    for page in (PAGE, RECORD)
    for line in page[page.index(HEAD) :].split("\n\n")[0].splitlines()[2:]
]


def test_every_row_says_where_it_ran_in_a_word_of_the_list() -> None:
    text = re.findall(r"^\| \*\*([\w-]+)\*\* \|", PAGE, re.MULTILINE)
    assert len(ROWS) > 40
    for row in ROWS:
        assert len(row) == 5, row
        assert row[1] in text, row
        assert row[1] != "real" or row[0] not in PAGE, "what really ran is in the record"


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:50] for row in ROWS])
def test_what_ran_has_a_date_and_a_test_or_benchmark_that_exists(row: list[str]) -> None:
    _, where, _, last, shown = row
    places = re.findall(r"`((?:tests|benchmarks)/[\w/]+\.py)`", shown)
    for path in places:
        assert (ROOT / path).is_file(), path
    if where != "paper":
        assert re.fullmatch(r"suite|2026-\d\d-\d\d", last), row
        assert places or "](results.md#" in shown, row


def test_gpu_training_is_called_untested_on_this_page_and_no_other() -> None:
    assert "GPU training is implemented but untested on hardware" in " ".join(PAGE.split())
    others = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    claim = re.compile(
        r"not (?:been )?run on a GPU|nothing .{0,30}measured on a GPU|untested on GPUs|real account", re.IGNORECASE
    )
    pages = [page.name for page in others if page.name != "proven.md" and claim.search(page.read_text("utf-8"))]
    assert pages == []
