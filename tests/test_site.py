"""The site of the documentation is built without a warning, reads nothing from elsewhere, and its search knows every page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from places import ROOT

pytest.importorskip("material", reason="needs tuneloop[docs]")
# Attributes by which a browser loads something when it shows a page; `href` of `link` alone.
LOADED = ("src", "srcset", "data", "poster")


class Page(HTMLParser):
    """What a page loads, what it links to, and its anchors."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.loaded += [values[name] for name in LOADED if name in values]
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "link" and values.get("rel") != "canonical":
            self.loaded.append(values.get("href", ""))
        if tag == "a":
            self.links.append(values.get("href", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in site.rglob("*.html")}


@pytest.mark.nightly
@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    assert len(pages) > 60
    for file, page in pages.items():
        assert page.loaded, file
        for address in page.loaded:
            assert not re.match(r"(?:[a-z]+:)?//", address), f"{file.name} loads {address}"
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\s]+", style.read_text(encoding="utf-8"))


@pytest.mark.nightly
@pytest.mark.slow
def test_every_link_within_the_site_leads_to_a_page_and_an_anchor(site: Path, pages: dict[Path, Page]) -> None:
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or file.name == "404.html":
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{file.name}: {link}"
            if parts.fragment and target.suffix == ".html":
                anchors = pages[site / target.relative_to(site.resolve())].anchors
                assert unquote(parts.fragment) in anchors, f"{file.name}: {link}"


@pytest.mark.nightly
@pytest.mark.slow
def test_every_block_of_code_is_shown_as_one(site: Path) -> None:
    for file in site.rglob("*.html"):
        assert "```" not in file.read_text(encoding="utf-8"), file.name


@pytest.mark.nightly
@pytest.mark.slow
def test_the_search_knows_every_page_of_the_documentation(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    places = {entry["location"].partition("#")[0].removesuffix(".html") for entry in index["docs"]}
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        name = re.sub(r"(^|/)(README|index)$", r"\1index", name)
        assert name in places or name.removesuffix("index").rstrip("/") in places, name
    titles = {entry["title"] for entry in index["docs"]}
    assert {"tuneloop train", "prepare", "Changelog"} <= titles, (
        "a command, a function of the Python API, a page from elsewhere"
    )


@pytest.mark.nightly
@pytest.mark.slow
def test_the_list_for_language_models_leads_to_the_sites_pages(site: Path) -> None:
    text = (site / "llms.txt").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 40 and all((site / link).is_file() for link in links)
    assert (site / "llms-full.txt").is_file()
