"""A person's day in a real Chromium, over a server with a small trained model that customers have asked by HTTP."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import SEVERAL
from tuned_runs import text

from patience import HANG

pytest.importorskip("mlflow", reason="needs MLflow")
pytestmark = [pytest.mark.world, pytest.mark.browser, pytest.mark.slow, pytest.mark.nightly]

LABELS = ("late", "lost", "thanks")
RECIPE = {
    "version": 1, "name": "tickets", "data": {"sources": ["tickets.jsonl"], "format": "text_label", "text": "text", "label": "label",
    "split": {"val": 0.1, "test": 0.2}}, "train": {"epochs": 1, "rows_per_step": 8}, "track": {"report_to": "none"},
    "baselines": {"zero_shot": False, "few_shot": 0, "classical": False},
}  # fmt: skip
SUITE = "version: 1\nname: tickets\nmetrics: [{metric: accuracy, margin: 0.9}]\n"


@dataclass
class Shop:
    """A folder with a trained model in the registry, its server, and the pages over it."""

    folder: Path
    environment: dict[str, str]
    server: str = ""
    pages: str = ""

    def tuneloop(self, *commands: list[str]) -> None:
        """Give commands one after the other in one process."""
        sentence = [[*command, "-q"] for command in commands]
        subprocess.run([sys.executable, "-c", SEVERAL, json.dumps(sentence)], cwd=self.folder, env=self.environment, timeout=HANG,
                       check=True, stdout=subprocess.DEVNULL)  # fmt: skip

    def process(self, *sentence: str) -> tuple[subprocess.Popen[bytes], str]:
        """Start a process; returns it and the address that it says."""
        process = subprocess.Popen([sys.executable, "-m", "tuneloop", *sentence, "--json"], cwd=self.folder, env=self.environment,
                                   stdout=subprocess.PIPE)  # fmt: skip
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())["address"]

    def post(self, path: str, body: dict[str, Any], user: str) -> dict[str, Any]:
        """What a customer sends; returns the answer, with the release that gave it."""
        headers = {"content-type": "application/json", "x-tuneloop-user": user}
        with urllib.request.urlopen(
            urllib.request.Request(self.server + path, json.dumps(body).encode(), headers)
        ) as reply:
            return {"release": reply.headers.get("x-tuneloop-release", ""), **json.load(reply)}

    def customers(self, first: int, number: int, subject: str, bad: str = "") -> set[str]:
        """Customers who each ask once and give a thumb, mostly down where a release answers that is `bad`."""

        def come(i: int) -> str:
            said = self.post("/v1/classify", {"model": "tickets", "input": f"{subject} {text(i)}"}, f"customer-{i}")
            liked = random.Random(i).random() < (0.1 if said["release"] == bad else 0.9)
            vote = {"request": said["data"][0]["id"], "kind": "thumbs", "value": liked}
            self.post("/v1/feedback", vote, f"customer-{i}")
            return str(said["release"])

        with ThreadPoolExecutor(8) as pool:
            return set(pool.map(come, range(first, first + number)))


def wait_for(there: Callable[[], bool]) -> None:
    """Wait until something is there."""
    until = time.monotonic() + HANG
    while not there():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, cli_environment: dict[str, str]) -> Iterator[Shop]:
    """A model is trained, registered and served; then customers come with what it was never trained on."""
    folder = tmp_path_factory.mktemp("shop")
    registry = f"sqlite:///{folder / 'mlflow.db'}"
    made = Shop(folder, {**cli_environment, "MLFLOW_REGISTRY_URI": registry, "MLFLOW_TRACKING_URI": registry})
    rows = [{"text": f"{LABELS[i % 3]} parcel {text(i)}", "label": LABELS[i % 3]} for i in range(90)]
    (folder / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.copytree(tiny_llama, folder / "llama")  # what a page starts is within its folders
    (folder / "tickets.yaml").write_text(json.dumps({**RECIPE, "model": "llama"}), encoding="utf-8")
    (folder / "suite.yaml").write_text(SUITE, encoding="utf-8")
    made.tuneloop(
        ["run", "tickets.yaml", "output_dir=runs/first"],
        ["export", "runs/first", "--format", "adapter", "-o", "artifacts/first"],
        ["models", "register", "artifacts/first", "--name", "tickets", "--run", "runs/first"],
        ["models", "promote", "tickets", "1", "--force", "the first one"],
    )
    processes = []
    try:
        settings = (
            "folder=serve",
            "port=0",
            "keys.open_rights=[users,feedback]",
            "prices.input=0.05",
            "prices.output=0.2",
        )
        for name, sentence in {
            "pages": ("ui", ".", "port=0"),
            "server": ("serve", "tickets@champion", *settings),
        }.items():
            process, address = made.process(*sentence)
            processes.append(process)
            setattr(made, name, address.rstrip("/"))
        made.customers(0, 60, "wallet crypto token")
        made.tuneloop(["monitor", "serve", "--reference", "runs/first/dataset", "--window", "1d"])
        yield made
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def page(browser: Any, shop: Shop) -> Iterator[Any]:
    """A page of the browser that fails where a script of it does."""
    context = browser.new_context(base_url=shop.pages, viewport={"width": 1280, "height": 800})
    shown, errors = context.new_page(), []
    shown.goto(shop.pages)
    shown.on("pageerror", lambda error: errors.append(str(error)))
    shown.set_default_timeout(30_000)
    yield shown
    context.close()
    assert not errors


def says(page: Any, sentence: str) -> None:
    """Wait for what a page says of the last action."""
    page.wait_for_selector(f".said:has-text('{sentence}')", timeout=60_000)


def test_an_alarm_is_seen_its_requests_are_read_and_five_answers_are_corrected(page: Any, shop: Shop) -> None:
    page.goto("/")
    assert page.evaluate("document.documentElement.scrollHeight") <= 800, "one glance, without scrolling"
    page.click("text=/tickets: alarm of/")
    page.click("summary:has-text('that differ most')")
    rows = [link.get_attribute("href") for link in page.query_selector_all("details[open] li a")]
    assert len(rows) >= 5
    for address in rows[:5]:
        page.goto(address)
        assert "wallet crypto token" in page.inner_text(".turns")
        page.click("summary:has-text('The right label')")
        page.select_option("select[name=value]", "lost")
        page.click("details[open] button")
        says(page, "The label is stored")
    page.goto("/traffic?feedback=label")
    assert page.locator("tbody tr").count() == 5


def test_it_is_trained_again_compared_and_judged_by_a_suite(page: Any, shop: Shop) -> None:
    page.goto("/runs")
    page.click("tbody th a")
    page.click("summary:has-text('Clone with changes')")
    page.fill("input[name=name]", "second")
    page.fill("textarea[name=changes]", "train.learning_rate=0.003")
    page.click("button:has-text('Show the command')")
    page.wait_for_selector(
        "details[open] .command:has-text('run runs/second/config.yaml  # with train.learning_rate=0.003')"
    )
    page.check("input[name=sure]")
    page.click("button:has-text('Show the command again')")
    says(page, "Started:")
    wait_for(lambda: (shop.folder / "runs" / "second" / "report.html").exists())
    wait_for(lambda: page.goto("/runs") and page.locator("tbody th a:has-text('second')").count() > 0)
    page.goto("/runs?sort=name")
    for box in page.query_selector_all("tbody input[type=checkbox]"):
        box.check()
    page.click("text=Compare the chosen ones")
    page.wait_for_selector("text=/corrected for each other/", timeout=60_000)
    assert "0.003" in page.inner_text("#differ")
    may = "summary:has-text('May second take the place of first?')"
    wait_for(lambda: page.reload() and page.locator(may).count() > 0)  # it comes once the run has ended
    page.click(may)
    page.click("button:has-text('Apply the suite')")
    says(page, "The suite is applied")
    page.wait_for_selector("#gate:has-text('The gate is passed')", timeout=90_000)


def test_a_bad_candidate_is_tried_taken_back_by_the_numbers_and_the_registry_rolled_back(
    page: Any, browser: Any, shop: Shop
) -> None:
    if not (shop.folder / "runs" / "second" / "eval.json").exists():
        pytest.skip("there is no second run: the test before trains it")
    shop.tuneloop(
        ["export", "runs/second", "--format", "adapter", "-o", "artifacts/second"],
        ["models", "register", "artifacts/second", "--name", "tickets", "--run", "runs/second"],
    )
    page.goto("/experiments")
    page.click("summary:has-text('A candidate against')")
    form = {"name": "second", "candidate": "models:/tickets/2", "effect": "0.05", "base": "0.9", "ramp": "50,100", "hold_days": "0",
            "maturation_hours": "0.0005"}  # fmt: skip
    for name, value in form.items():
        page.fill(f"input[name={name}]", value)
    page.uncheck("input[name=shadow]")
    page.click("button:has-text('Start it')")
    says(page, "second has begun")
    wait_for(lambda: '"second"' in (shop.folder / "serve" / "state.json").read_text(encoding="utf-8"))
    assert shop.customers(1000, 160, "late parcel", bad="tickets/2") == {"tickets/1", "tickets/2"}
    time.sleep(2)  # until what was said counts
    colleague = browser.new_context(base_url=shop.pages).new_page()
    colleague.goto(shop.pages)
    colleague.goto("/experiments/second")
    page.click("summary:has-text('Decide now')")
    page.click("button:has-text('Decide now')")
    colleague.wait_for_selector("b:has-text('rolled back')", timeout=60_000)  # live
    colleague.close()
    page.click("text=Make every decision again from the log")
    page.wait_for_selector("text=/made again: the same/", timeout=60_000)
    page.goto("/models")
    page.click("summary:has-text('Promote a version')", timeout=60_000)
    page.fill("input[name=force]", "to see how one goes back")
    page.click("button:has-text('Promote it')")
    says(page, "tickets@champion is version 2")
    page.click("summary:has-text('Roll back to version 1')", timeout=60_000)
    page.click("button:has-text('Roll back')")
    says(page, "tickets@champion is version 1")
    page.goto("/")
    page.wait_for_selector(".need:has-text('second')")
