"""The pages in a real Chromium: live, with a server that ends, by keyboard, in both themes and three widths."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from by_day import by_day

from tuneloop.core.access import TOKEN
from web.conftest import accuracy, keys, write_run

pytestmark = [pytest.mark.world, pytest.mark.browser, pytest.mark.slow]
SECRET = "a-secret-of-these-tests"
CONTRAST = """() => [...document.querySelectorAll('img:not([alt]), svg[role=img]:not([aria-label]),'
  + 'input:not([type=hidden]):not([aria-label]), select, textarea')].filter(each => !each.matches('svg, img')
  ? !each.labels.length : true).map(each => each.outerHTML.slice(0, 80))"""


@pytest.fixture
def served(tmp_path: Path, cli_environment: dict[str, str]) -> Iterator[Callable[[int], Any]]:
    """Start `tuneloop ui` over `tmp_path`, with the same secret each time; returns its process and address."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(port: int = 0) -> tuple[subprocess.Popen[bytes], str]:
        text = [sys.executable, "-m", "tuneloop", "ui", str(tmp_path), f"port={port}", "--json"]
        process = subprocess.Popen(text, stdout=subprocess.PIPE, env={**cli_environment, TOKEN: SECRET})
        processes.append(process)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())["address"].partition("?")[0]

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_running_run_is_followed_and_a_server_that_ends_is_noticed_and_found_again(
    browser: Any, served: Callable[..., Any], tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", done=False, steps=5)
    process, address = served()
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{address}runs?token={SECRET}")
    page.click("tbody th a")
    page.wait_for_selector("text=Running")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 77, "loss": 0.25, "seconds": 90.0}\n')
    page.wait_for_selector("dd:has-text('77')", timeout=5000)
    process.kill()
    page.wait_for_selector("#lost:not([hidden])", timeout=30_000)
    served(int(address.rsplit(":", 1)[1].strip("/")))
    page.wait_for_selector("#lost", state="hidden", timeout=60_000)
    assert not errors


@pytest.mark.parametrize("theme", by_day(["light", "dark"], 1))
def test_no_page_is_wider_than_the_screen_and_every_field_has_a_name(
    browser: Any, served: Callable[..., Any], tmp_path: Path, theme: str
) -> None:
    for i in range(3):
        write_run(tmp_path / f"a-run-with-a-long-name-{'x' * 60}-{i}", metrics=accuracy(0.5 + i / 10))
    _, address = served()
    for width in (390, 768, 1280):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
        page = context.new_page()
        page.goto(f"{address}runs?token={SECRET}")
        chosen = keys(page.content())
        for path in ("", "runs", f"runs/{chosen[0]}", f"compare?run={chosen[0]}&run={chosen[1]}", "data", "playground"):
            page.goto(address + path)
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, (path, width)
            assert page.evaluate(CONTRAST) == [], path
            assert page.evaluate("document.querySelectorAll('h1').length") == 1, path
        context.close()


def test_runs_are_compared_by_keyboard_and_without_scripts(
    browser: Any, served: Callable[..., Any], tmp_path: Path
) -> None:
    for i in range(2):
        write_run(tmp_path / f"run{i}", metrics=accuracy(0.5 + i / 10))
    _, address = served()
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(f"{address}runs?token={SECRET}")
    for box in page.query_selector_all("input[type=checkbox]"):
        box.focus()
        page.keyboard.press("Space")
    page.focus("text=Compare the chosen ones")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('2 runs compared')")


def test_exported_pages_open_from_the_disk_with_their_style(browser: Any, tmp_path: Path, cli: Any) -> None:
    write_run(tmp_path / "run", metrics=accuracy(0.8))
    cli("ui", ".", "--export", "out", "-q")
    page = browser.new_page()
    page.goto(f"file://{os.path.realpath(tmp_path / 'out' / 'runs.html')}")
    assert page.evaluate("getComputedStyle(document.body).maxWidth") == "1280px"
    page.click("tbody th a")
    page.wait_for_selector("#training")


def test_the_printed_address_opens_the_pages_and_after_a_restart_with_another_secret_the_form_does(
    browser: Any, served: Callable[..., Any], tmp_path: Path
) -> None:
    write_run(tmp_path / "run", metrics=accuracy(0.8))
    _, address = served()
    page = browser.new_context().new_page()
    assert page.goto(address + "runs").status == 401
    assert "run</a>" not in page.content()
    page.fill("input[name=secret]", "wrong")
    page.click("button")
    assert page.is_visible("[role=alert]")
    page.fill("input[name=secret]", SECRET)
    page.click("button")
    assert page.url == address and page.goto(address + "runs").status == 200
    other = browser.new_context().new_page()
    assert other.goto(f"{address}runs?token={SECRET}").status == 200 and other.url == address + "runs"
    assert SECRET not in str(other.evaluate("document.cookie + location.href + document.documentElement.outerHTML"))
