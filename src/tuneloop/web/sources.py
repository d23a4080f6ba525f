"""What the pages are over: folders, what is in them, stores; and who looks at them with which rights."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from tuneloop.core.confined import leads_into
from tuneloop.core.errors import UserError
from tuneloop.serving.store import is_store, store_name
from tuneloop.web.index import Found, Index, Kind


@dataclass(frozen=True)
class Page:
    """One page: a module of `web/pages` and a template of the same name.

    Args:
        path: its address, with `{parts}`; `title`: in the navigation; empty: it is not in it.
        under: the page of the navigation that it belongs to; `module`: of another name than the page.
    """

    name: str
    path: str
    title: str = ""
    under: str = ""
    module: str = ""


PAGES: tuple[Page, ...] = (
    Page("home", "/", "Home"),
    Page("runs", "/runs", "Runs"), Page("run", "/runs/{key}", under="runs"),
    Page("report", "/runs/{key}/report", under="runs"), Page("compare", "/compare", under="runs"),
    Page("data", "/data", "Data"), Page("dataset", "/data/{key}", under="data"),
    Page("datareport", "/data/{key}/report", under="data", module="report"),
    Page("playground", "/playground", "Playground"),
    Page("traffic", "/traffic", "Traffic"), Page("request", "/traffic/{id}", under="traffic"),
    Page("quality", "/quality", "Quality"),
    Page("experiments", "/experiments", "Experiments"), Page("experiment", "/experiments/{name}", under="experiments"),
    Page("models", "/models", "Models"), Page("costs", "/costs", "Costs"),
)  # fmt: skip
BY_NAME = {page.name: page for page in PAGES}


@dataclass(frozen=True)
class Need:
    """Something that needs a person. `tone`: `bad`, `warn` or nothing."""

    title: str
    detail: str = ""
    url: str = ""
    tone: str = "warn"


class NotFound(UserError):
    """What a page is about is not there, or was not read yet."""


@cache
def module_of(page: Page) -> Any:
    """The module of a page; imported when it is first opened."""
    return import_module(f"tuneloop.web.pages.{page.module or page.name}")


@dataclass(frozen=True)
class Sources:
    """What every page gets.

    Args:
        index: what is in the folders.
        given_stores: named by `--store`: a file, a server's folder or a `postgresql://` URL.
        read_only: nothing can be started, changed or asked of a model.
        local: only this machine reaches the pages: its own names are the only hosts.
        base: the address before all paths: empty, or `/ui` in a server.
        who: is written into histories with what was done.
        token: has to come with each form, so that it is known to be from a page of ours.
        files: file of each page that is written, by its address; None: pages are served.
        texts: whether rows, prompts and answers are shown.
    """

    index: Index
    given_stores: tuple[str, ...] = ()
    read_only: bool = False
    local: bool = True
    base: str = ""
    who: str = ""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    files: Mapping[str, str] | None = None
    texts: bool = True

    def url(self, name: str, /, **values: object) -> str:
        """The address of a page: what its path names is in the path, the rest behind the question mark. Empty values
        are left out. Among pages that are written: its file, or nothing where it is not one of them."""
        path = BY_NAME[name].path
        for part in [part for part in values if f"{{{part}}}" in path]:
            path = path.replace(f"{{{part}}}", quote(str(values.pop(part)), safe=""))
        query = urlencode({key: value for key, value in values.items() if value not in ("", None)}, doseq=True)
        address = path + (f"?{query}" if query else "")
        return self.base + address if self.files is None else self.files.get(address, "")

    def asset(self, name: str) -> str:
        """The address of a file of `web/static`."""
        return f"{self.base}/static/{name}" if self.files is None else f"static/{name}"

    def all(self, kind: Kind) -> list[Found]:
        """What there is of a kind, the latest first."""
        return sorted(self.index.all(kind), key=lambda found: -found.changed)

    def find(self, kind: Kind, key: str) -> Found:
        """One of a kind by its key. Raises UserError: it is not there, or no more."""
        if (found := self.index.find(kind, key)) is None:
            raise NotFound(f"There is no such {kind} any more", where=key[:80], next_step="go back to the list")
        return found

    @property
    def stores(self) -> list[str]:
        """Places of all servers' stores, those that were named first; for `serving.store.store.opened`."""
        below = [str(found.path) for found in self.all("server") if is_store(found.path)]
        names: dict[str, str] = {}
        for store in [*self.given_stores, *below]:  # one store may be named and be in a folder
            names.setdefault(os.path.realpath(store_name(store)), store)
        return list(names.values())

    def inside(self, path: Path) -> Path:
        """A path, where it is in one of the folders. Raises UserError: it is outside."""
        if not leads_into(path, self.index.folders):
            raise UserError("This file is outside the folders of the page", where=path.name)
        return path.resolve()
