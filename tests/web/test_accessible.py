"""Every page for everyone: axe in both themes and three widths, by keyboard, zoomed, without shifts or waiting scripts."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluations import labels_evaluation, written
from traffic import at, request, traffic
from tuned_runs import tickets

from tuneloop.core.access import TOKEN
from tuneloop.core.files import plain
from tuneloop.data.config import PrepareConfig
from tuneloop.data.prepare import TokenCount, prepare_dataset
from tuneloop.improve.experiment import command as ab
from tuneloop.improve.experiment.state import add_event
from tuneloop.improve.monitor.command import EVENT
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import opened
from web.conftest import keys, write_run
from web.pages.test_quality import report

pytestmark = [pytest.mark.world, pytest.mark.browser, pytest.mark.slow, pytest.mark.nightly]
SECRET = "a-secret-of-these-tests"
WIDTHS = (390, 768, 1280)
# What a theme can change; the rest of a page is looked at in the first one.
SEEN = ["color-contrast", "scrollable-region-focusable", "meta-viewport", "css-orientation-lock"]
AXE = """async only => (await axe.run(document, {resultTypes: ['violations'], ...(only ? {runOnly: only} : {})})).violations.map(
  v => `${v.id}: ${v.help}: ${v.nodes.slice(0, 3).map(n => n.target.join(' ')).join(' | ')}`)"""
FOCUSED = """() => { const e = document.activeElement, s = getComputedStyle(e);
  const shown = s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0;
  return e === document.body ? null : [[...document.querySelectorAll('*')].indexOf(e), shown, e.outerHTML.slice(0, 90)]; }"""
# A link for the pointer alone leads where a form of the page leads too.
FOCUSABLE = """() => [...document.querySelectorAll('a[href]:not([tabindex="-1"]), button, input:not([type=hidden]), select,'
  + 'textarea, summary, [tabindex="0"]')].filter(e => e.checkVisibility()).map(e => [[...document.querySelectorAll('*')].indexOf(e),
  e.outerHTML.slice(0, 90)])"""
SHIFTS = """() => new Promise(done => { let sum = 0; new PerformanceObserver(list => { for (const one of list.getEntries())
  if (!one.hadRecentInput) sum += one.value; }).observe({type: 'layout-shift', buffered: true}); setTimeout(() => done(sum), 1500); })"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, cli_environment: dict[str, str]) -> Iterator[str]:
    """The pages over runs that are done, running and damaged, a data set, and a store with alarms and an experiment."""
    folder = tmp_path_factory.mktemp("pages")
    for name, right in (("a", 0.4), ("b", 0.95)):
        written(write_run(folder / "runs" / name), labels_evaluation(60, right), {})
    growing = write_run(folder / "runs" / f"running-{'long' * 20}", done=False, steps=30)
    lines = [{"prompt": "where is it", "reference": "late", "answer": "مرحبا <b>"}]
    (growing / "checkpoints").mkdir()
    (growing / "checkpoints" / "answers.jsonl").write_text(json.dumps({"step": 10, "rows": lines}) + '\n{"st')
    (write_run(folder / "runs" / "damaged") / "run.json").write_text("{")
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tickets()), encoding="utf-8")
    config = PrepareConfig(sources=[str(folder / "in.jsonl")])
    prepare_dataset(config, name="in", seed=0, out=folder / "in", measure=lambda row: TokenCount(40, 4))
    store = folder / "serve"
    with opened(store, create=True):
        pass
    state = ab.start(
        store, "new", {"model": "m", "shadow": False, "maturation_hours": 24.0, "ramp": "50,100"}, at=at(0)
    )
    with opened(store) as connection:
        for records in traffic(state.design, state.share, 200, 5):
            insert(connection, records)
        insert(
            connection, [request(900, 5, completion="x" * 100_000, prompt=[{"role": "user", "content": "ملف 👩‍🚀"}])]
        )
        for week in range(6):
            add_event(connection, EVENT, "m", plain(report(week, week == 5)), at=at(7 * week + 7))
    ab.check(store, at=at(2))
    text = [sys.executable, "-m", "tuneloop", "ui", str(folder), "port=0", "--json"]
    with subprocess.Popen(text, stdout=subprocess.PIPE, env={**cli_environment, TOKEN: SECRET}) as process:
        assert process.stdout is not None
        yield str(json.loads(process.stdout.readline())["address"]).partition("?")[0]
        process.kill()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """One page of the browser of their owner."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    shown = context.new_page()
    shown.goto(f"{address}?token={SECRET}")
    yield shown
    context.close()


def text_of(address: str) -> str:
    """A page as it comes."""
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with browser.open(f"{address}{'&' if '?' in address else '?'}token={SECRET}") as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="module")
def paths(address: str) -> list[str]:
    """An address of each page."""
    runs, (data,) = keys(text_of(f"{address}runs?sort=name")), keys(text_of(f"{address}data"), "data")
    of_runs = [
        *(f"runs/{key}" for key in runs),
        f"runs/{runs[0]}/report",
        f"compare?run={runs[0]}&run={runs[1]}&paired=yes",
    ]
    stored = [
        "traffic",
        "traffic?text=nothing",
        "traffic/r000900",
        "traffic/r000003",
        "quality",
        "experiments",
        "experiments/new",
    ]
    return [
        "",
        "runs",
        *of_runs,
        "data",
        f"data/{data}",
        f"data/{data}/report",
        "playground",
        *stored,
        "models",
        "costs",
        "nothing",
    ]


def test_axe_finds_nothing_on_any_page(page: Any, address: str, paths: list[str]) -> None:
    package = importlib.util.find_spec("axe_playwright_python")
    if package is None or package.origin is None:
        pytest.skip("axe-playwright-python is not installed")
    source = Path(package.origin).with_name("axe.min.js").read_text(encoding="utf-8")
    bad = set()
    for path in paths:
        page.goto(address + path)
        page.evaluate(source)
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 800})
                rules = SEEN if theme == "dark" else None
                bad |= {f"/{path}: {theme} {width}: {line}" for line in page.evaluate(AXE, rules)}
    assert not bad, "\n".join(sorted(bad))


def test_all_of_a_page_is_reached_by_keyboard_and_the_focus_is_seen(page: Any, address: str, paths: list[str]) -> None:
    page.set_viewport_size({"width": 1280, "height": 800})
    for path in paths:
        if path.endswith("report"):  # a file of its own, with tests of its own
            continue
        page.goto(address + path)
        page.wait_for_timeout(200)
        wanted = dict(page.evaluate(FOCUSABLE))
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip", path
        reached, last = {}, None
        for _ in range(len(wanted) + 40):
            if (now := page.evaluate(FOCUSED)) is None or (now[0] in reached and now[0] != last):
                break
            last = now[0]  # a date has a stop for each of its parts
            reached[last] = now[1]
            assert now[1], f"{path}: the focus is not seen: {now[2]}"
            page.keyboard.press("Tab")
        missing = [html for name, html in wanted.items() if name not in reached]
        assert not missing, f"{path}: {missing[:5]}"


def test_the_skip_link_leads_to_the_content_and_a_form_is_opened_by_keys(page: Any, address: str) -> None:
    page.goto(f"{address}experiments")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.focus("summary")
    page.keyboard.press("Enter")
    assert page.locator("input[name=candidate]").is_visible()


def test_zoomed_nothing_is_cut_off_and_no_page_shifts_or_waits_for_a_script(
    page: Any, address: str, paths: list[str]
) -> None:
    for path in paths:
        page.set_viewport_size({"width": 640, "height": 400})  # 1280 x 800 at 200 %
        page.goto(address + path)
        for width in (640, 320):
            page.set_viewport_size({"width": width, "height": 400})
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, (path, width)
        assert page.evaluate("[...document.scripts].filter(s => s.src && !s.defer && !s.async).length") == 0, path
    page.set_viewport_size({"width": 1280, "height": 800})
    for path in ("", "runs", paths[-7], "quality", next(path for path in paths if path.startswith("runs/"))):
        page.goto(address + path)
        assert page.evaluate(SHIFTS) < 0.01, path


def test_home_needs_no_scrolling(page: Any, address: str) -> None:
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollHeight") <= 800
