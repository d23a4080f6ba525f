from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tuneloop.serving.keys import Keyring, Limits, add_key, revoke_key
from tuneloop.web.index import Index
from tuneloop.web.sources import Sources
from web.conftest import keys, write_run


@pytest.fixture
def client(tmp_path: Path) -> Any:
    """The pages as a server has them, with its keys in `tmp_path/serve`."""
    testing = pytest.importorskip("starlette.testclient")
    from starlette.applications import Starlette
    from starlette.routing import Mount

    from tuneloop.web.app import make_app
    from tuneloop.web.mount import BASE, KeyedPages

    sources, ring = Sources(Index((tmp_path,)), base=BASE, token="t0ken"), Keyring(tmp_path / "serve")
    app = KeyedPages(make_app(sources), sources, lambda: ring.needed, ring.check, ring.named)
    routes = Starlette(routes=[Mount(BASE, app)])
    return testing.TestClient(routes, base_url="http://localhost", follow_redirects=False)


def test_only_a_key_with_the_right_opens_the_pages_and_only_while_it_is_in_use(client: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "run", done=False)
    (tmp_path / "serve").mkdir()
    assert client.get("/ui/runs").status_code == 200
    plain, _ = add_key(tmp_path / "serve", "plain")
    right, _ = add_key(tmp_path / "serve", "ana", Limits(rights=["ui"]))
    for address in ("/ui/", "/ui/runs", "/ui/live"):
        answer = client.get(address)
        assert answer.status_code == 401 and "A key is needed" in answer.text and ">run<" not in answer.text
    assert client.get("/ui/static/style.css").status_code == 200
    assert client.post("/ui/login", data={"key": plain}).status_code == 401
    assert client.post("/ui/login", data={"key": "tl-x"}).status_code == 401
    assert client.post("/ui/login", data={"key": right}, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/ui/login", data={"key": "x" * 5000}).status_code == 413
    answer = client.post("/ui/login", data={"key": right})
    cookie = answer.headers["set-cookie"].lower()
    assert answer.status_code == 303 and "httponly" in cookie and "samesite=strict" in cookie
    assert right not in answer.headers["set-cookie"]
    page = client.get("/ui/runs").text
    (key,) = keys(page.replace("/ui/runs", "/runs"))
    assert 'href="/ui/static/style.css"' in page and right not in page
    answer = client.post(f"/ui/runs/{key}", data={"action": "stop", "token": "t0ken"})
    assert answer.status_code == 400 and "No process on this machine" in answer.text
    revoke_key(tmp_path / "serve", "ana")
    assert client.get("/ui/runs").status_code == 401
