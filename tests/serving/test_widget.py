"""The feedback widget: served by the server, used in a page of another site, its votes in the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import live
from local_http import Quiet, listening

from tuneloop.records.request import StoredRequest
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import opened, read_feedback

ID = "018f3c1e-0000-7000-8000-000000000001"


def answered(folder: Path) -> None:
    """Put the request that pages speak of into the store."""
    with opened(folder) as store:
        insert(store, [StoredRequest(id=ID, time="2026-01-01T00:00:00.000Z", model="m", user="u7", prompt=[])])


@pytest.fixture
def shop() -> Iterator[Any]:
    """A page of another site; its HTML is set by the test."""

    class Handler(Quiet):
        html = ""

        def do_GET(self) -> None:
            self.answer(200, type(self).html.encode(), {"Content-Type": "text/html; charset=utf-8"})

    with listening(Handler) as Handler.address:  # type: ignore[attr-defined]
        yield Handler


def said(folder: Path) -> list[tuple[str, Any, str | None, str | None]]:
    with opened(folder) as store:
        return [(item.kind, item.value, item.user, item.request or item.conversation) for item in read_feedback(store)]


@pytest.mark.browser
@pytest.mark.slow
def test_votes_corrections_and_comments_of_another_sites_readers_are_stored(
    tmp_path: Path, shop: Any, browser: Any
) -> None:
    with live(tmp_path, feedback={"origins": [shop.address]}, keys={"required": True}) as (address, _):
        answered(tmp_path)
        shop.html = f"<body><script src='{address}/feedback.js'></script><p id=a data-tuneloop-request='{ID}' data-tuneloop-user='u7'></p></body>"
        page = browser.new_page(viewport={"width": 390, "height": 700})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(shop.address)
        page.click("[name=down]")
        page.wait_for_selector("text=Thank you")
        assert page.get_attribute("[name=down]", "aria-pressed") == "true"
        page.fill("textarea[name=correction]", "<b>Billing</b>")  # offered after a bad vote
        page.fill("textarea[name=comment]", "It is about money")
        page.click("[name=send]")
        page.wait_for_selector("textarea[name=comment]", state="hidden")
        page.evaluate(f"document.body.insertAdjacentHTML('beforeend', '<i data-tuneloop-request={ID}></i>')")
        page.click("i [name=up]")
        page.wait_for_selector("i >> text=Thank you")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390 and not errors
        page.close()
    assert said(tmp_path) == [
        ("thumbs", False, "u7", ID), ("correction", "<b>Billing</b>", "u7", ID), ("comment", "It is about money", "u7", ID),
        ("thumbs", True, "u7", ID),
    ]  # fmt: skip


@pytest.mark.browser
@pytest.mark.slow
def test_a_vote_that_was_not_taken_is_said_to_be_lost(tmp_path: Path, shop: Any, browser: Any) -> None:
    with live(tmp_path) as (address, _):  # this page is not among those that may
        shop.html = f"<body><script src='{address}/feedback.js'></script><p data-tuneloop-request='{ID}'></p></body>"
        page = browser.new_page()
        page.goto(shop.address)
        page.click("[name=up]")
        page.wait_for_selector("text=This could not be sent")
        assert page.get_attribute("[name=up]", "aria-pressed") == "false"
        page.close()
    assert said(tmp_path) == []


def test_only_named_pages_are_let_in_and_only_with_feedback(tmp_path: Path) -> None:
    shop, stranger = {"origin": "https://shop.example"}, {"origin": "https://other.example"}
    body = {"request": ID, "kind": "thumbs", "value": True}
    with live(tmp_path, feedback={"origins": ["https://shop.example"]}, keys={"required": True}) as (address, _):
        answered(tmp_path)
        path = f"{address}/v1/feedback"
        asked = httpx.options(path, headers=shop)
        assert asked.status_code == 204 and asked.headers["access-control-allow-origin"] == shop["origin"]
        taken = httpx.post(path, json=body, headers=shop)
        assert taken.status_code == 200 and taken.headers["access-control-allow-origin"] == shop["origin"]
        assert httpx.post(path, json=body, headers=stranger).status_code == 403
        assert httpx.options(path, headers=stranger).status_code == 403
        assert httpx.post(path, json=body).status_code == 401  # no page, no key
        assert httpx.post(path, json={**body, "value": "x" * 200_000}, headers=shop).status_code == 413
        chat = {"messages": [{"role": "user", "content": "x"}]}
        assert httpx.post(f"{address}/v1/chat/completions", json=chat, headers=shop).status_code == 403
        script = httpx.get(f"{address}/feedback.js")
        assert script.headers["content-type"].startswith("text/javascript") and "tuneloopFeedback" in script.text
    assert len(said(tmp_path)) == 1
