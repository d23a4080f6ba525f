"""The page: whole from a whole run, honest about a partial one, safe with hostile text, self-contained."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from patience import HANG
from tuneloop.report.html import render_report, write_page

VOID = {"meta", "br", "wbr", "img", "input", "hr", "link"}


class Balance(HTMLParser):
    """Collects tags, and fails on one that is closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


def parse(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    return parser


@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_a_whole_run_shows_every_part(make_run: Callable[..., Path], kind: str) -> None:
    page = render_report(make_run(kind))
    parse(page)
    ids = re.findall(r'<section id="(\w+)"', page)
    costs = ["costs"] if kind == "classification" else []  # the other one's evaluation measured none
    fields = ["fields"] if kind == "generation" else []  # its answers are structured
    assert ids == ["samples", "comparison", *fields, *costs, "training", "settings", "data", "plan", "record"]
    assert re.findall(r'<a href="#(\w+)"', page) == ids, "the contents name every section"
    text = re.sub(r"<[^>]+>", "", page.replace("<wbr>", ""))
    for figure in (
        "4.2 min",
        "1.3 GiB",
        "p &lt; 0.001",
        "exact duplicate",
        "merged turns",
        "learning_rate: 0.0005",
        "3.11.9",
    ):
        assert figure in text or html.unescape(figure) in text, figure
    assert page.count('class="sample"') >= 5


def test_the_comparison_shows_values_intervals_and_p_of_every_system(make_run: Callable[..., Path]) -> None:
    page = render_report(make_run())
    start = page.index('<table class="cards"', page.index('id="comparison"'))
    table = page[start : page.index("</table>", start)]
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in table.split("<tr")[2:]]
    assert len(rows) == 7
    joined = [" ".join(row[1:] if row[0].startswith((">", "class")) else row) for row in rows]
    assert "0.87 [0.84, 0.90]" in joined[-1] and "0.85 [0.81, 0.89]" in joined[-1]
    assert any("p = 0.034" in row for row in joined) and any("p &lt; 0.001" in row for row in joined)


def test_text_of_users_and_models_is_never_markup(make_run: Callable[..., Path]) -> None:
    run = make_run()
    sample = {
        "id": "<img src=x onerror=alert(1)>",
        "prompt": "</div><script>alert(1)</script>",
        "reference": "<svg/onload=alert(2)>",
        "prediction": "{{ 7 * 7 }} <b>bold</b>",
        "label": "'\"><i>",
        "baselines": {"zero-shot": "<iframe src=http://evil.example>", "few-shot": "&lt;"},
    }
    (run / "samples.jsonl").write_text(json.dumps(sample) + "\n", encoding="utf-8")
    manifest = json.loads((run / "dataset/dataset.json").read_text())
    manifest["splits"]["train"]["labels"] = {"<script>alert(3)</script>": 3, "b": 1}
    manifest["checks"] = [{"name": "x", "level": '"><script>', "message": "<script>alert(4)</script>"}]
    (run / "dataset/dataset.json").write_text(json.dumps(manifest))
    parser = parse(render_report(run))
    tags = {tag for tag, _ in parser.seen}
    assert not tags & {"script", "iframe", "img", "i"}
    assert not any(name.startswith("on") for _, attrs in parser.seen for name in attrs)


def test_the_page_needs_nothing_but_itself(make_run: Callable[..., Path]) -> None:
    page = render_report(make_run())
    parser = parse(page)
    tags = {tag for tag, _ in parser.seen}
    assert "style" in tags and not tags & {"link", "img", "iframe", "object", "video"}
    for _, attrs in parser.seen:
        assert not {"src", "srcset", "action", "poster"} & set(attrs)
        assert str(attrs.get("href", "#")).startswith("#")
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", page)


def test_no_script_runs_but_the_pages_own(make_run: Callable[..., Path]) -> None:
    page = render_report(make_run())
    (policy,) = re.findall(r"script-src '([^']+)'", page)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert [f"sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}" for s in scripts] == [policy]
    assert "unsafe-inline" not in re.findall(r"script-src[^;\"]*", page)[0]
    assert "innerHTML" not in scripts[0], "texts are set as text"


def test_line_breaks_of_structured_answers_are_kept(make_run: Callable[..., Path]) -> None:
    page = render_report(make_run("generation"))
    assert re.search(r"Queue: \w+\nIssue: Überweisung", page)
    assert re.search(r"\.prompt, \.text \{ white-space: pre-wrap", page)


@pytest.mark.parametrize(
    "missing",
    [
        "run.json",
        "config.yaml",
        "dataset/dataset.json",
        "plan.json",
        "environment.json",
        "eval.json",
        "samples.jsonl",
        "metrics.jsonl",
    ],
)
def test_any_file_may_be_missing(make_run: Callable[..., Path], missing: str) -> None:
    run = make_run()
    (run / missing).unlink()
    parse(render_report(run))


@pytest.mark.parametrize("only", ["config.yaml", "metrics.jsonl", "eval.json", "plan.json", "dataset/dataset.json"])
def test_a_run_that_has_just_begun_shows_what_there_is(make_run: Callable[..., Path], only: str) -> None:
    run = make_run()
    for path in run.rglob("*"):
        if path.is_file() and path != run / only:
            path.unlink()
    page = render_report(run)
    parse(page)
    if only != "eval.json":
        assert "Training has not" in page


def test_odd_values_in_files_do_not_break_the_page(make_run: Callable[..., Path]) -> None:
    run = make_run()
    (run / "eval.json").write_text(
        json.dumps(
            {
                "metrics": {"accuracy": 0.5, "f": None},
                "baselines": {"x": None},
                "words": "one",
                "notes": None,
                "comparisons": None,
            }
        )
    )
    (run / "run.json").write_text(
        json.dumps({"seconds": None, "usd": "?", "predicted": None, "steps": None, "status": 3})
    )
    (run / "plan.json").write_text(json.dumps({"memory": None, "time": [], "cost": {"usd": None}, "assumptions": None}))
    (run / "dataset/dataset.json").write_text(
        json.dumps({"counts": None, "splits": {"train": None}, "checks": [None], "sources": None, "labels": None})
    )
    parse(render_report(run))


def test_long_samples_are_cut_with_a_note(make_run: Callable[..., Path]) -> None:
    page = render_report(make_run())
    assert "… (7,200 more characters in samples.jsonl)" in page.replace("<wbr>", "")


def test_writing_is_repeatable(make_run: Callable[..., Path]) -> None:
    run = make_run()
    first = write_page(run).read_bytes()
    assert write_page(run).read_bytes() == first
    first.decode("utf-8")


# --- in a browser ------------------------------------------------------------------------------

PROBE = """<!doctype html><body style="margin:0"><iframe id="f" style="width:390px;height:900px;border:0"></iframe>
<pre id="out"></pre>
<script>
const f = document.getElementById("f");
f.onload = () => {
  const d = f.contentDocument, w = f.contentWindow, wide = [];
  d.querySelectorAll("body *").forEach(e => {
    const r = e.getBoundingClientRect();
    const scrolls = e.closest(".scroll, pre, details:not([open])");
    if (r.right > 391 && !scrolls) wide.push(e.tagName + "." + e.className + " " + r.right);
  });
  const shown = [...d.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().width > 0);
  document.getElementById("out").textContent = JSON.stringify({
    scroll: d.documentElement.scrollWidth, wide: wide.slice(0, 5), ink: w.getComputedStyle(d.body).color,
    paper: w.getComputedStyle(d.documentElement).backgroundColor,
    narrow: shown.every(s => !s.classList.contains("wide")), charts: shown.length,
  });
};
f.srcdoc = PAGE;
</script></body>"""


def look(page: str, folder: Path, *flags: str) -> dict[str, object]:
    """Layout and colours of a page in a frame of a phone's width, as a headless browser computes them."""
    browser = next((b for name in ("chromium", "chromium-browser", "google-chrome") if (b := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium installed")
    probe = folder / "probe.html"
    # A frame made from text inherits nothing but the width; "</" would end the script that holds it.
    probe.write_text(PROBE.replace("PAGE", json.dumps(page).replace("</", "<\\/")), encoding="utf-8")
    profile = folder / f"profile{len(list(folder.iterdir()))}"
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=5000",
        *flags,
        "--dump-dom",
        probe.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
    found = re.search(r'<pre id="out">(\{.*?\})</pre>', done.stdout, re.S)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    result: dict[str, object] = json.loads(html.unescape(found[1]))
    return result


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_nothing_sticks_out_on_a_phone(make_run: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    page = render_report(make_run(kind)).replace("<details", "<details open")
    seen = look(page, tmp_path)
    assert seen["scroll"] == 390 and seen["wide"] == []
    assert seen["narrow"] is True and isinstance(seen["charts"], int) and seen["charts"] >= 4


@pytest.mark.browser
def test_dark_and_light_have_their_own_colours(make_run: Callable[..., Path], tmp_path: Path) -> None:
    page = render_report(make_run())
    dark = look(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    light = look(page, tmp_path, "--blink-settings=preferredColorScheme=1")

    def brightness(color: object) -> float:
        return sum(float(v) for v in re.findall(r"[\d.]+", str(color))[:3]) / 3

    assert brightness(dark["paper"]) < 60 < 180 < brightness(dark["ink"])
    assert brightness(light["ink"]) < 60 < 180 < brightness(light["paper"])
