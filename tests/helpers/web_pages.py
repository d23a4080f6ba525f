"""The pages of `tuneloop ui` over a folder, as a browser gets them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.testclient import TestClient

from tuneloop.core.access import Access, of_owner
from tuneloop.web.app import make_app
from tuneloop.web.serve import make_sources
from tuneloop.web.sources import Sources

SECRET = "a secret of these tests"


class Browser(TestClient):
    """A browser whose user has opened the pages; `token`: what the forms of its session carry."""

    token: str


def browser_of(sources: Sources, access: Access | None = None, secret: str = SECRET, **settings: Any) -> Browser:
    """A browser that has opened pages by their secret, as their owner unless `access` says otherwise."""
    access = access or of_owner(SECRET, sources.who, read_only=sources.read_only)
    client = Browser(make_app(sources, access), **settings)
    client.get(f"{sources.base}/", params={"token": secret})
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    port = {"server": ("localhost", 80), "headers": [(b"cookie", cookie.encode())]}
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "scheme": "http", **port}
    admitted = access.admitted(Request(scope))
    assert admitted is not None
    client.token = admitted[1]
    return client


@dataclass
class Pages:
    """A browser without scripts."""

    client: TestClient
    token: str

    def get(self, path: str, status: int = 200) -> str:
        """A page as text."""
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text[-1500:]
        return answer.text

    def send(self, path: str, form: dict[str, Any], status: int = 200) -> str:
        """The page to which a form leads."""
        answer = self.client.post(path, data={"token": self.token, **form})
        assert answer.status_code == status, answer.text[-1500:]
        return answer.text


def pages_of(folder: Path, *, read_only: bool = False, who: str = "ann", stores: tuple[str, ...] = ()) -> Pages:
    """The pages over a folder."""
    sources = replace(make_sources([str(folder)], list(stores), read_only=read_only), who=who)
    client = browser_of(sources)
    return Pages(client, client.token)
