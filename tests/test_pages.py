"""The pages hold together: links and anchors lead somewhere, and the index lists every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from places import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECORDS = sorted((ROOT / "benchmarks" / "records").glob("*.md"))  # evidence that pages link to, no part of the site


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *RECORDS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        if path.startswith(("http:", "https:", "mailto:")):
            continue
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{path}#{anchor}"


def test_the_readme_is_one_screen_and_its_test_command_is_that_of_ci() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 75
    assert re.search(r"^make test ", text, re.MULTILINE)
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    text = index.read_text(encoding="utf-8")
    assert text.index("](tutorial.md)") == text.index("]("), "the tutorial comes first"
    for page in PAGES[2:]:
        if page != index and (page.parent.name != "reference" or page.name == "index.md"):
            assert f"]({page.relative_to(index.parent).as_posix()})" in text, page.name
    assert "](docs/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page", [*PAGES, *RECORDS, ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_lines_are_at_most_120_characters(page: Path) -> None:
    """Tables, blocks that show what a command prints, and generated pages may be wider."""
    if page.parent.name == "reference" or page.name == "claims.md":
        return
    wide, block = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        block ^= line.lstrip().startswith("```")
        if len(line) > 120 and not block and not line.lstrip().startswith("|"):
            wide.append(number)
    assert not wide


def test_every_picture_is_shown_small_and_can_be_made_again() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    script = (ROOT / "docs" / "make_pictures.py").read_text(encoding="utf-8")
    pictures = sorted((ROOT / "docs" / "images").iterdir())
    assert len(pictures) >= 5
    for picture in pictures:
        assert picture.stat().st_size < 150_000, picture.name
        assert f"images/{picture.name}" in text, picture.name
        if picture.suffix != ".svg":  # these are tests/test_drawings.py's
            name = re.sub(r"^ui-(.*)-(light|dark)$", r"\1", picture.stem)  # of `tuneloop ui`: each in both themes
            assert f'"{name}": (' in script or f'"{name}": Picture(' in script, picture.name


HOW_TO = re.findall(
    r"[\w-]+\.md",
    (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("- How-to:")[2].partition("- Concepts:")[0],
)


MOST_WORDS = 1200  # of prose: commands and what they print take the room that they need


@pytest.mark.parametrize("name", HOW_TO)
def test_a_how_to_page_is_short_and_begins_with_the_command_and_its_output(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) <= MOST_WORDS
    assert re.match(r"# .+\n\n(?:<!-- (?:needs|shown by): .+ -->\n)?```(?:sh|text)\n", text), (
        "command first, then what it does"
    )
    beginning = re.split(r"^(?:## |\|)", text, maxsplit=1, flags=re.MULTILINE)[0]
    assert "\n```text\n" in beginning, "what it prints comes before its options"


def test_every_cell_of_the_comparison_names_a_page_of_the_list() -> None:
    text = (ROOT / "benchmarks" / "records" / "comparison.md").read_text(encoding="utf-8")
    cells, _, pages = text.partition("## The pages")
    listed = re.findall(r"^\| `\[(\w+)\]` \| .+ \| .+ \|$", pages, re.MULTILINE)
    assert len(listed) >= 10
    assert set(re.findall(r"`\[(\w+)\]`", cells)) == set(listed)


def test_contributing_names_places_that_exist() -> None:
    source = ROOT / "src" / "tuneloop"
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("| a")]
    assert len(table) > 10
    for row in table:
        for path in re.findall(r"`(\w+/[\w/.]*)`", row):
            assert (source / path).exists() or (ROOT / path).exists(), path
        for names, file in re.findall(r"((?:`\w+`[^`()|]*)+)\(`([\w/.]+)`\)", row):
            for name in re.findall(r"`(\w+)`", names):
                assert name in (source / file).read_text(encoding="utf-8"), f"{name} in {file}"
