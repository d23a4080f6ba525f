"""The documentation for language models: llms.txt lists the pages, llms-full.txt has all of them in one file. `make docs` puts
them into the site (docs/site.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
HEAD = """# tuneloop

> From a file of examples to a fine-tuned, measured, served language model: decide, plan, prepare, train, evaluate,
> release, serve, improve. A Python package and a command line; every result has an interval and a verdict.

Every command takes `--json`: one object on stdout, whose schema `tuneloop schema --answer COMMAND` prints. Exit status:
0 done, 1 the answer is no, 2 bad input, 3 inconclusive. Agents: see Coding agents; all pages in one file:
[llms-full.txt](llms-full.txt).
"""
# Pages that no one needs who works with tuneloop: generated tables, and notes on how it came about.
LEFT_OUT = ("reference", "comparison", "style", "releasing")


def pages() -> list[Path]:
    """The pages by the order of the index, then any that it does not name."""
    every = [*dict.fromkeys((*_listed(), *sorted(DOCS.rglob("*.md"))))]
    return [page for page in every if page != DOCS / "README.md"]


def _listed() -> list[Path]:
    """The pages that the index links, in its order."""
    links = re.findall(r"\]\(([\w./-]+\.md)\)", (DOCS / "README.md").read_text(encoding="utf-8"))
    paths = ((DOCS / link).resolve() for link in links)
    return [path for path in paths if path.is_file() and path.is_relative_to(DOCS.resolve())]


def index() -> str:
    """The text of llms.txt: each page with its title and what it is for, with links to the site's pages."""
    parts: dict[bool, list[str]] = {True: [], False: []}
    for page in pages():
        text = page.read_text(encoding="utf-8")
        line = f"- [{_title(text)}]({page.relative_to(DOCS).with_suffix('.html').as_posix()})"
        parts[_is_needed(page)].append(f"{line}: {_first(text)}")
    return "\n".join([HEAD, "## Docs\n", *parts[True], "\n## Optional\n", *parts[False]]) + "\n"


def full() -> str:
    """The text of llms-full.txt: the pages that are needed."""
    return HEAD.rpartition("Agents:")[0].rstrip() + "\n\n" + "\n".join(_whole()) + "\n"


def _whole() -> Iterator[str]:
    for page in filter(_is_needed, pages()):
        yield f"<!-- {page.relative_to(ROOT).as_posix()} -->\n\n{page.read_text(encoding='utf-8').strip()}\n"


def _is_needed(page: Path) -> bool:
    return not {page.stem, *(part.name for part in page.parents)} & {*LEFT_OUT}


def _title(text: str) -> str:
    return next((line[2:].strip() for line in text.splitlines() if line.startswith("# ")), "")


def _first(text: str) -> str:
    """The first sentence of the first paragraph that is text."""
    body = re.sub(r"^```.*?^```$", "", text.partition("\n# ")[2] or text, flags=re.DOTALL | re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n", body):
        if re.match(r"[A-Z*`\[]", paragraph):
            words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
            return re.split(r"(?<=[.:])\s", words)[0].rstrip(":.")
    return ""
