"""The pages of `tuneloop ui` over a folder, as a browser gets them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from tuneloop.web.app import make_app
from tuneloop.web.serve import make_sources


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
    return Pages(TestClient(make_app(sources)), sources.token)
