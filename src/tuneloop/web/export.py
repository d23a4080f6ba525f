"""`tuneloop ui --export`: pages as files that open from disk, for those who have no server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.requests import Request

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_bytes, write_text
from tuneloop.core.ui import progress, say
from tuneloop.web.app import asset, page_html
from tuneloop.web.sources import BY_NAME, PAGES, Page, Sources

OF_EACH = {"run": "run", "report": "run", "dataset": "dataset", "datareport": "dataset"}  # pages of each of a kind
WITH_TEXTS = {"report", "datareport"}  # they are nothing without rows
NEVER = {"compare", "playground"}
MOST = 1000  # of a kind


def chosen_pages(names: Sequence[str]) -> list[Page]:
    """The pages of some names, all by default. Raises UserError: there is no page of a name."""
    known = [page.name for page in PAGES if page.name not in NEVER and ("{" not in page.path or page.name in OF_EACH)]
    if wrong := next((name for name in names if name not in known), ""):
        raise UserError(f"No such page: {wrong[:40]}", where="--pages", next_step=", ".join(known))
    return [BY_NAME[name] for name in known if not names or name in names]


def export_pages(sources: Sources, out: Path, names: Sequence[str] = (), *, texts: bool = True) -> list[Path]:
    """Write pages with their style into a folder; what is not among them is not linked.

    Args:
        names: of pages; default: all. `texts`: with rows, prompts, answers and settings.

    Raises:
        UserError: there is no page of a name, or the folder can't be written.
    """
    pages = [page for page in chosen_pages(names) if texts or page.name not in WITH_TEXTS]
    pages = [page for page in pages if page.name in OF_EACH or _works(sources, page)]
    addresses = {address: (page, values) for page in pages for address, values in _addresses(sources, page)}
    files = {address: _file(page, values) for address, (page, values) in addresses.items()}
    still = replace(sources, read_only=True, base="", files=files, texts=texts)
    written = []
    for number, (address, (page, values)) in enumerate(addresses.items(), 1):
        progress("writing pages", number, len(addresses))
        try:
            html = page_html(page, _request(address, values), still)
        except UserError as error:  # one that is damaged is no reason to have none of the others
            say(f"left out  {files[address]}: {error.what}")
            continue
        write_text(out / files[address], html)
        written.append(out / files[address])
    write_bytes(out / "static" / "style.css", asset("style.css") or b"")
    return written


def _addresses(sources: Sources, page: Page) -> Iterator[tuple[str, dict[str, str]]]:
    if page.name not in OF_EACH:
        yield page.path, {}
        return
    kind: Any = OF_EACH[page.name]
    for found in sources.all(kind)[:MOST]:
        yield page.path.replace("{key}", found.key), {"key": found.key}


def _works(sources: Sources, page: Page) -> bool:
    """Whether a page has something to show: else nothing links to it."""
    try:
        page_html(page, _request(page.path, {}), sources)
    except UserError as error:
        say(f"left out  {page.name}: {error.what}")
        return False
    return True


def _file(page: Page, values: dict[str, str]) -> str:
    name = "index" if page.name == "home" else "-".join([page.name, *values.values()])
    return f"{name}.html"


def _request(address: str, values: dict[str, str]) -> Request:
    scope = {"type": "http", "method": "GET", "path": address, "query_string": b"", "headers": [(b"host", b"disk")]}
    return Request({**scope, "path_params": values, "server": None, "scheme": "file", "root_path": ""})
