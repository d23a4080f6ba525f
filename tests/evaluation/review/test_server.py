"""The review's page: its server, and the page itself in a real browser."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from patience import HANG
from tuneloop.core.access import of_owner
from tuneloop.evaluation.review.items import ReviewFolder, make_review, read_systems, read_votes
from tuneloop.evaluation.review.results import results_of
from tuneloop.evaluation.review.server import make_app, sides

SECRET = "which-opens-this-review"


@pytest.fixture
def review(two: Path) -> ReviewFolder:
    return make_review(read_systems([f"{two}:few_shot", str(two)]), two / "review", mode="pairwise", share=1.0)


@pytest.fixture
def client(review: ReviewFolder) -> Any:
    pytest.importorskip("fastapi")
    testing = pytest.importorskip("starlette.testclient")
    client = testing.TestClient(make_app(review, of_owner(SECRET)), base_url="http://localhost")
    client.get("/", params={"token": SECRET})
    return client


def ballot(review: ReviewFolder, n: int = 0, **more: Any) -> dict[str, Any]:
    return {"item": review.items[n].id, "reviewer": "anna", "choice": "a", **more}


def test_sides_are_shuffled_by_item_and_reviewer_and_stay(review: ReviewFolder) -> None:
    anna = [sides(item, "anna", 0) for item in review.items]
    assert 8 <= anna.count((0, 1)) <= 22 and anna == [sides(item, "anna", 0) for item in review.items]
    assert anna != [sides(item, "ben", 0) for item in review.items]


def test_the_winner_is_whoever_stood_on_that_side(client: Any, review: ReviewFolder) -> None:
    for n, item in enumerate(review.items[:10]):
        shown = client.get(f"/api/items/{item.id}", params={"reviewer": "anna"}).json()
        assert client.post("/api/votes", json=ballot(review, n)).json()["done"] == n + 1
        winner = read_votes(review.votes_path)[0][-1].winner
        assert item.answers[item.systems.index(str(winner))] == shown["answers"][0]


def test_a_tag_says_which_of_two_answers_it_is_about(client: Any, review: ReviewFolder) -> None:
    for item in review.items[:6]:  # sides differ from item to item
        shown = client.get(f"/api/items/{item.id}", params={"reviewer": "anna"}).json()
        tags = ["b: wrong fact", "reference is wrong"]
        client.post("/api/votes", json=ballot(review) | {"item": item.id, "choice": "a", "tags": tags})
        vote = read_votes(review.votes_path)[0][-1]
        loser = next(name for name in item.systems if name != vote.winner)
        assert item.answers[item.systems.index(loser)] == shown["answers"][1]
        assert vote.tags == (f"{loser}: wrong fact", "reference is wrong")
        again = client.get(f"/api/items/{item.id}", params={"reviewer": "anna"}).json()
        assert again["vote"]["tags"] == tags
    (pair,) = results_of(review)["pairs"]
    assert pair["tags"]["reference is wrong"] == 6
    assert pair["tags"]["few_shot: wrong fact"] + pair["tags"]["tuned: wrong fact"] == 6


def test_no_name_of_a_system_reaches_the_browser(client: Any, review: ReviewFolder) -> None:
    client.post("/api/votes", json=ballot(review))
    told = client.get("/").text + client.get("/api/session?reviewer=anna").text
    told += "".join(client.get(f"/api/items/{i.id}?reviewer=anna").text for i in review.items)
    assert "few_shot" not in told and "tuned" not in told


def test_two_reviewers_on_one_item_at_the_same_moment_both_count(client: Any, review: ReviewFolder) -> None:
    with ThreadPoolExecutor(8) as pool:
        votes = [ballot(review, reviewer=f"person {i}", choice="tie") for i in range(24)]
        assert all(r.status_code == 200 for r in pool.map(lambda v: client.post("/api/votes", json=v), votes))
    assert results_of(review)["votes"] == 24 and results_of(review)["reviewed"] == 1


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"item": "nowhere"}, 404),
        ({"choice": "c"}, 422),
        ({"choice": "rating", "stars": 3}, 422),
        ({"stars": 6}, 422),
        ({"reviewer": "  "}, 422),
        ({"corrected": "x" * 100_001}, 422),
        ({"corrected": "x" * 1_000_001}, 413),
        ({"winner": "tuned"}, 422),
    ],
)
def test_bad_votes_are_refused_and_leave_no_trace(
    client: Any, review: ReviewFolder, change: dict[str, Any], status: int
) -> None:
    assert client.post("/api/votes", json=ballot(review) | change).status_code == status
    assert not review.votes_path.exists()


def test_without_the_secret_nothing_is_shown_and_no_vote_is_taken(client: Any, review: ReviewFolder) -> None:
    client.cookies.clear()
    for method, path in (
        ("GET", "/"), ("GET", "/?token="), ("GET", "/?token=other"), ("GET", "/api/session?reviewer=anna"),
        ("GET", f"/api/items/{review.items[0].id}?reviewer=anna"), ("POST", "/api/votes"), ("POST", f"/?token={SECRET}"),
        ("GET", "/nothing"),
    ):  # fmt: skip
        answer = client.request(method, path, json=ballot(review) if method == "POST" else None)
        assert answer.status_code == 401 and "set-cookie" not in answer.headers, (method, path)
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert not review.votes_path.exists()
    assert client.get("/", params={"token": SECRET}).status_code == 200
    assert "httponly" in client.get("/", params={"token": SECRET}, follow_redirects=False).headers["set-cookie"].lower()
    assert client.post("/api/votes", json=ballot(review)).status_code == 200


def test_other_pages_in_the_browser_cannot_vote(client: Any, review: ReviewFolder) -> None:
    body = json.dumps(ballot(review))
    assert client.post("/api/votes", content=body, headers={"content-type": "text/plain"}).status_code == 415
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert "default-src 'none'" in client.get("/").headers["content-security-policy"]


def test_the_page_loads_nothing_from_elsewhere(client: Any) -> None:
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|@import|url\(|https?://""", client.get("/").text)


# --- in a browser ------------------------------------------------------------------------------


class Page:
    """A served review in a browser; `errors` collects what the browser complains of."""

    def __init__(self, browser_page: Any, url: str) -> None:
        self.page, self.url, self.errors = browser_page, url, list[str]()
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.set_default_timeout(HANG * 1000)

    def enter(self, name: str) -> None:
        self.page.goto(self.url)
        self.page.fill("#name", name)
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector("#item:visible")

    def press(self, *keys: str) -> None:
        """Press keys; each moves on to another item."""
        for key in keys:
            before = self.where
            self.page.keyboard.press(key)
            self.page.wait_for_function("before => document.getElementById('where').textContent !== before", arg=before)

    @property
    def where(self) -> str:
        return str(self.page.text_content("#where"))


def served(command: list[str], cwd: Path, environment: dict[str, str]) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tuneloop", "review", *command, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=environment,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://\S+", line):
            return process, found[0]
    raise AssertionError("the server did not start")


def end(process: subprocess.Popen[str]) -> dict[str, Any]:
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=HANG)
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_running_page_is_guarded_as_the_server_is(two: Path, cli_environment: Any) -> None:
    httpx = pytest.importorskip("httpx")
    process, address = served([f"{two}:few_shot", str(two)], two, cli_environment)
    try:
        site = address.partition("?")[0]
        assert httpx.get(site).status_code == 401
        client = httpx.Client(follow_redirects=True)
        page = client.get(address)
        assert (
            page.url == site
            and page.status_code == 200
            and "frame-ancestors 'none'" in page.headers["content-security-policy"]
        )
        assert "server" not in page.headers and page.headers["x-content-type-options"] == "nosniff"
        assert client.get(site, headers={"host": "evil.example"}).status_code == 400
        vote = {"content": b"{}", "headers": {"content-type": "text/plain", "origin": "http://evil.example"}}
        assert client.post(f"{site}api/votes", **vote).status_code == 415
        assert client.get(site, headers={"x": "a" * 70_000}).status_code == 431
    finally:
        assert end(process)["reviewed"] == 0


@pytest.mark.browser
def test_pairs_are_reviewed_by_keyboard_and_a_closed_page_goes_on(
    two: Path, browser: Any, cli_environment: Any
) -> None:
    process, url = served(["run:few_shot", "run", "--share", "0.2"], two.parent, cli_environment)
    page = Page(browser.new_page(), url)
    page.enter("Anna")
    assert page.where == "Item 1 of 8 · 0 reviewed"
    assert page.page.locator("#answers b").count() == 0, "markup in an answer is shown as text"
    page.press("1", "2", "3", "4", "s")
    page.press("ArrowLeft", "ArrowLeft")
    assert page.page.get_attribute("#do-both_bad", "aria-pressed") == "true"
    page.press("t")
    page.page.close()
    again = Page(browser.new_page(), url)
    again.enter("Anna")
    assert again.where == "Item 5 of 8 · 4 reviewed", "the skipped item is the first without a vote"
    again.page.keyboard.press("e")
    again.page.fill("#corrected", "As it should be.")
    again.page.keyboard.press("Escape")
    again.press("1", "1", "1")
    again.page.keyboard.press("1")
    again.page.wait_for_selector("#end:visible")
    assert "all 8 items" in str(again.page.text_content("#end-text"))
    found = end(process)
    (pair,) = found["pairs"]
    assert (found["reviewed"], found["corrections"]) == (8, 1)
    assert (pair["ties"], pair["both_bad"], pair["wins_a"] + pair["wins_b"]) == (2, 0, 6)
    assert not page.errors + again.errors


@pytest.mark.browser
def test_answers_are_rated_by_keyboard_and_a_lost_server_loses_no_vote(
    two: Path, browser: Any, cli_environment: Any
) -> None:
    process, url = served(["run", "--share", "0.1"], two.parent, cli_environment)
    page = Page(browser.new_page(), url)
    page.enter("Ben")
    page.page.keyboard.press("Enter")
    assert "Press G or B" in str(page.page.text_content("#notice"))
    page.page.keyboard.press("g")
    page.page.keyboard.press("4")
    page.page.click("text=wrong fact")
    page.press("Enter")
    page.page.route("**/api/votes", lambda route: route.abort())
    page.page.keyboard.press("b")
    page.page.keyboard.press("Enter")
    # It is hidden after nine seconds, and a busy browser may not be looked at so soon; what kind it was stays.
    page.page.wait_for_function("() => document.getElementById('notice').className === 'notice error'", polling=100)
    assert page.page.get_attribute("#do-down", "aria-pressed") == "true"
    page.page.unroute("**/api/votes")
    page.press("Enter")
    found = end(process)
    assert found["reviewers"] == {"Ben": 2}
    (rated,) = found["ratings"].values()
    assert rated["tags"] == {"wrong fact": 1}


@pytest.mark.browser
def test_on_a_phone_everything_is_within_reach_of_a_thumb(two: Path, browser: Any, cli_environment: Any) -> None:
    process, url = served(["run", "--share", "0.1"], two.parent, cli_environment)
    page = Page(browser.new_page(viewport={"width": 390, "height": 844}), url)
    page.enter("Ben")
    assert not page.page.locator("#reference").is_visible()
    page.page.click("#look")
    assert page.page.locator("#reference").is_visible()
    assert page.page.locator("#answers").bounding_box()["y"] < page.page.locator("#choices").bounding_box()["y"]
    assert page.page.evaluate("getComputedStyle(document.getElementById('choices')).position") == "static"
    page.page.click("#do-up")
    page.page.click("#star-3")
    boxes = [page.page.locator(f"#star-{n}").bounding_box() for n in range(1, 6)]
    assert len({box["y"] for box in boxes}) == len({box["height"] for box in boxes}) == 1, "no star breaks its line"
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
    page.page.click("#do-save")
    page.page.wait_for_function("() => document.getElementById('where').textContent.includes('1 reviewed')")
    assert not page.page.locator("#reference").is_visible(), "each item begins with the reference hidden"
    assert end(process)["reviewers"] == {"Ben": 1}
    assert not page.errors


@pytest.mark.browser
def test_on_a_phone_a_text_that_is_cut_says_so_and_opens(two: Path, browser: Any, cli_environment: Any) -> None:
    rows = [json.loads(line) for line in (two / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        turns = [{"role": "system", "content": "File tickets by the rules of the house. " * 12}]
        row["messages"] = [*turns, {"role": "user", "content": row["prompt"]}]
    (two / "samples.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    process, url = served(["run", "--share", "0.1"], two.parent, cli_environment)
    page = Page(browser.new_page(viewport={"width": 390, "height": 844}), url)
    page.enter("Ben")
    text, more = page.page.locator(".turn.system .text"), page.page.locator("button.all")
    assert more.count() == 1 and more.inner_text() == "show all", "the short turns and answers have no button"
    before = text.bounding_box()["height"]
    more.click()
    page.page.click("#do-up")  # draws the page again
    assert more.inner_text() == "show less" and text.bounding_box()["height"] > 2 * before
    page.page.click("#do-save")
    page.page.wait_for_function("() => document.getElementById('where').textContent.includes('1 reviewed')")
    assert more.inner_text() == "show all", "each item begins cut"
    assert end(process)["reviewers"] == {"Ben": 1}
    assert not page.errors
