"""The pages at `/ui` of a server: there only with `ui: true`, and only for keys."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tuneloop.serving.admission import Keyring
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.keys import Limits, add_key
from web.conftest import write_run

pytest.importorskip("starlette.testclient")
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tuneloop.web.mount import ui_routes


def client_of(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    """A server's routes, started in a folder."""
    monkeypatch.chdir(folder)
    config = ServeConfig.model_validate({"folder": "serve", **settings})
    gateway: Any = SimpleNamespace(keyring=Keyring(folder / "serve"), key_required=config.keys.required)
    routes = Starlette(routes=ui_routes(config, gateway))
    return TestClient(routes, base_url="http://localhost", follow_redirects=False)


def test_there_are_no_pages_unless_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(tmp_path, monkeypatch)
    assert {client.get(path).status_code for path in ("/ui", "/ui/", "/ui/runs", "/ui/static/style.css")} == {404}


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("required", [None, False, True])
def test_no_one_is_let_in_without_a_key_wherever_it_listens_and_whether_others_need_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, required: bool | None
) -> None:
    write_run(tmp_path / "run", done=False)
    client = client_of(tmp_path, monkeypatch, ui=True, host=host, keys={"required": required})
    assert client.get("/ui").headers["location"] == "/ui/"
    for address in ("/ui/", "/ui/runs", "/ui/live", "/ui/nothing"):
        answer = client.get(address)
        assert answer.status_code == 401 and "A key is needed" in answer.text and ">run<" not in answer.text
    assert client.post("/ui/runs", data={"token": ""}).status_code == 401
    assert client.get("/ui/static/style.css").status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_key_typed_once_opens_them_as_far_as_its_rights_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    write_run(tmp_path / "run", done=False)
    for right, acts in (("ui", False), ("steer", True)):
        client = client_of(tmp_path, monkeypatch, ui=True, host=host, keys={"required": False})
        secret, _ = add_key(tmp_path / "serve", right, Limits.model_validate({"rights": [right]}))
        answer = client.post("/ui/login", data={"secret": secret})
        cookie = answer.headers["set-cookie"].lower()
        assert answer.status_code == 303 and "httponly" in cookie and "path=/ui/" in cookie
        page = client.get("/ui/runs").text
        assert 'href="/ui/static/style.css"' in page and secret not in page and ("read only" in page) != acts
        assert ('name="token"' in client.get("/ui/playground").text) == acts
