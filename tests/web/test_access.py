"""Who may open the pages and who may act, on each page of the table."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from tuneloop.core import access
from tuneloop.core.access import OWNER, TOKEN, of_owner, owners_secret
from tuneloop.core.errors import UserError
from tuneloop.serving.admission import Keyring
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.keys import Limits, Right, add_key, revoke_key
from tuneloop.web.index import Index
from tuneloop.web.sources import BY_NAME, PAGES, Page, Sources

pytest.importorskip("starlette.testclient")
from starlette.testclient import TestClient
from web_pages import SECRET, Browser, browser_of

from tuneloop.web import app
from tuneloop.web.access import of_keys

EACH = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def path_of(page: Page) -> str:
    return re.sub(r"\{\w+\}", "000000000000", page.path)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    (tmp_path / "secret-name").mkdir()
    return Sources(Index((tmp_path,)), who="ana")


@pytest.fixture
def acted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of those for whom a page has acted; each page shows and does something that needs no run."""
    names: list[str] = []

    class Everything:
        @staticmethod
        def html(request: Any, sources: Sources) -> str:
            return f"shown to {sources.who}, {'reading' if sources.read_only else 'acting'}"

        @staticmethod
        def act(request: Any, sources: Sources, form: dict[str, str]) -> str:
            names.append(sources.who)
            return "/"

        @staticmethod
        async def stream(request: Any, sources: Sources) -> Any:
            names.append(sources.who)
            yield "done", ""

    monkeypatch.setattr(app, "module_of", lambda page: Everything)
    return names


@EACH
def test_without_the_secret_no_page_shows_or_does_anything(page: Page, sources: Sources, acted: list[str]) -> None:
    client = TestClient(app.make_app(sources, of_owner(SECRET)), base_url="http://localhost", follow_redirects=False)
    address, live = path_of(page), path_of(page).rstrip("/")
    for cookie in ("", "owner.1.", f"{OWNER}.{int(time.time())}.{'0' * 64}", "...", "owner.x.ü"):
        headers = {"cookie": f"tuneloop-ui-http={cookie}".encode()} if cookie else {}
        for method, path in (
            ("GET", address), ("HEAD", address), ("POST", address), ("GET", f"{live}/live"), ("GET", f"{live}/stream"),
            ("GET", f"{address}?token=other"), ("GET", f"{address}?token="), ("OPTIONS", address),
        ):  # fmt: skip
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path, cookie)
            assert "shown to" not in answer.text and "secret-name" not in answer.text
            assert "set-cookie" not in answer.headers
    assert not acted


@EACH
def test_the_owner_opens_each_page_by_the_secret_in_the_address_and_acts_with_the_token_of_the_session(
    page: Page, sources: Sources, acted: list[str]
) -> None:
    client = TestClient(
        app.make_app(sources, of_owner(SECRET, "ana")), base_url="http://localhost", follow_redirects=False
    )
    address = path_of(page)
    answer = client.get(address, params={"token": SECRET, "text": "a&b"})
    cookie = answer.headers["set-cookie"].lower()
    assert answer.status_code == 303 and answer.headers["location"] == f"{address}?text=a%26b"
    assert "httponly" in cookie and "samesite=strict" in cookie and SECRET not in answer.headers["set-cookie"]
    assert client.get(address).text == "shown to ana, acting"
    assert client.post(address, data={"token": SECRET}).status_code == 403
    assert not acted
    browser = browser_of(sources, base_url="http://localhost", follow_redirects=False)
    assert browser.post(address, data={"token": "other"}).status_code == 403
    assert browser.post(address, data={"token": browser.token}).status_code == 303
    assert acted == ["ana"]


def with_key(sources: Sources, folder: Path, *rights: Right, **more: Any) -> Browser:
    """A browser that has opened the pages by a key."""
    key, _ = add_key(folder, "-".join(("k", *rights)), Limits(rights=list(rights)))
    door = of_keys(Keyring(folder), **more)
    return browser_of(sources, door, key, base_url="http://localhost", follow_redirects=False)


@EACH
def test_a_key_that_reads_never_acts_and_one_that_steers_does(
    page: Page, sources: Sources, tmp_path: Path, acted: list[str]
) -> None:
    address = path_of(page)
    reader, steerer = (with_key(sources, tmp_path, right) for right in ("ui", "steer"))
    assert reader.get(address).text == "shown to k-ui, reading"
    assert reader.post(address, data={"token": reader.token}).status_code == 403
    stream = f"{address.rstrip('/')}/stream?token="
    assert reader.get(stream + reader.token).status_code == 403
    assert not acted
    assert steerer.post(address, data={"token": reader.token}).status_code == 403, "of another session"
    assert not acted
    assert steerer.get(address).text == "shown to k-steer, acting"
    assert steerer.post(address, data={"token": steerer.token}).status_code == 303
    assert steerer.get(stream + steerer.token).status_code == 200
    assert acted == ["k-steer", "k-steer"]
    assert "only reads" in reader.post(address, data={"token": reader.token}).text


@EACH
def test_pages_that_only_read_act_for_no_one(page: Page, tmp_path: Path, acted: list[str]) -> None:
    sources = Sources(Index((tmp_path,)), read_only=True)
    for client in (browser_of(sources, base_url="http://localhost"), with_key(sources, tmp_path, "steer")):
        assert client.post(path_of(page), data={"token": client.token}).status_code == 403
    assert not acted


@pytest.mark.parametrize("rights", [(), ("users",), ("feedback", "traces")], ids=str)
def test_a_key_without_the_right_opens_nothing(sources: Sources, tmp_path: Path, rights: tuple[Right, ...]) -> None:
    key, _ = add_key(tmp_path, "app", Limits(rights=list(rights)))
    client = TestClient(
        app.make_app(sources, of_keys(Keyring(tmp_path))), base_url="http://localhost", follow_redirects=False
    )
    assert client.get("/", params={"token": key}).status_code == 401
    assert client.post("/login", data={"secret": key}).status_code == 401
    assert client.get("/").status_code == 401


def test_who_has_no_key_reads_where_open_rights_say_so_and_never_acts(
    sources: Sources, tmp_path: Path, acted: list[str]
) -> None:
    for rights, status in ((["users", "feedback"], 401), (["ui"], 200)):
        client = TestClient(app.make_app(sources, of_keys(Keyring(tmp_path), rights)), base_url="http://localhost")
        assert client.get("/runs").status_code == status
        assert client.post("/runs", data={"token": ""}).status_code in (401, 403)
    assert not acted
    with pytest.raises(ValueError, match="steer"):
        ServeConfig.model_validate({"keys": {"open_rights": ["steer"]}})


def test_a_session_ends_with_its_key_and_a_new_key_of_the_name_does_not_bring_it_back(
    sources: Sources, tmp_path: Path
) -> None:
    client = with_key(sources, tmp_path, "ui")
    assert client.get("/runs").status_code == 200
    revoke_key(tmp_path, "k-ui")
    assert client.get("/runs").status_code == 401
    add_key(tmp_path, "k-ui", Limits(rights=["ui", "steer"]))
    assert client.get("/runs").status_code == 401


def test_a_session_ends_after_a_week_and_with_another_secret(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    client = browser_of(sources, base_url="http://localhost")
    other = TestClient(app.make_app(sources, of_owner(SECRET + "2")), cookies=client.cookies)
    same = TestClient(app.make_app(sources, of_owner(SECRET)), cookies=client.cookies, base_url="http://localhost")
    assert (other.get("/runs").status_code, same.get("/runs").status_code) == (401, 200)
    now = time.time()
    monkeypatch.setattr(access.time, "time", lambda: now + access.SESSION)
    assert client.get("/runs").status_code == 401
    monkeypatch.setattr(access.time, "time", lambda: now - 3600)
    assert client.get("/runs").status_code == 401


def test_the_form_takes_the_secret_and_nothing_of_another_site(sources: Sources) -> None:
    client = TestClient(app.make_app(sources, of_owner(SECRET)), base_url="http://localhost", follow_redirects=False)
    evil = {"origin": "http://evil.example"}
    assert client.post("/login", data={"secret": SECRET}, headers=evil).status_code == 403
    assert client.post("/login", data={"secret": SECRET}, headers={"host": "evil.example"}).status_code == 403
    assert client.post("/login", data={"secret": "x" * 5000}).status_code == 413
    wrong = client.post("/login", data={"secret": "<b>"})
    assert wrong.status_code == 401 and "<b>" not in wrong.text and "opens nothing" in wrong.text
    answer = client.post("/login", data={"secret": f" {SECRET}\n"})
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    assert client.get("/").status_code == 200


def test_the_address_with_the_secret_never_leads_to_another_site(sources: Sources) -> None:
    client = TestClient(app.make_app(sources, of_owner(SECRET)), base_url="http://localhost", follow_redirects=False)
    for path in ("//evil.example/", "/\\evil.example", "/%2f/evil.example"):
        answer = client.request("GET", f"http://localhost{path}?token={SECRET.replace(' ', '+')}")
        assert re.match(r"/[^/\\]", answer.headers["location"]), path


def test_the_secret_is_new_each_time_or_that_of_the_environment_which_no_child_inherits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    first, second = owners_secret(), owners_secret()
    assert first != second and len(first) >= 43
    monkeypatch.setenv(TOKEN, "t" * 20)
    assert owners_secret() == "t" * 20 and TOKEN not in access.os.environ
    monkeypatch.setenv(TOKEN, "short")
    with pytest.raises(UserError, match="20 characters"):
        owners_secret()


def test_files_of_the_pages_themselves_are_for_everyone(sources: Sources) -> None:
    client = TestClient(app.make_app(sources, of_owner(SECRET)), base_url="http://localhost")
    assert client.get("/static/style.css").status_code == 200
    assert client.get("/static/../runs").status_code == 401
    assert client.get("/nothing").status_code == 401


def test_an_open_page_is_told_nothing_more_once_its_key_is_revoked(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, shown = with_key(sources, tmp_path, "ui"), []

    def part(*_: Any) -> Any:
        shown.append(1)
        if len(shown) == 2:
            revoke_key(tmp_path, "k-ui")
        return {}

    monkeypatch.setattr(app, "EVERY", 0.0)
    monkeypatch.setattr(app, "render", lambda *_, **__: f"{len(shown)}")
    monkeypatch.setattr(app.module_of(BY_NAME["home"]), "live", part)
    assert client.get("/live").text.count("event: live") == len(shown) == 2
