"""The SVG pictures of the README are what the script draws from the recorded run, small and complete in themselves."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from places import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "make_drawings.py"), run_name="drawn")


def test_the_pictures_are_up_to_date_and_small(script: dict[str, Any]) -> None:
    drawings = script["drawings"]()
    assert len(drawings) == 4
    for name, picture in drawings.items():
        assert (DOCS / "images" / name).read_text(encoding="utf-8") == picture, f"{name}: python docs/make_drawings.py"
        assert len(picture.encode()) < 100_000, name
        ElementTree.fromstring(picture)
        assert not re.findall(r"(?:href|src|url\()\W*https?:", picture), name


def test_every_recorded_line_is_in_the_picture_and_the_verdict_comes_last(script: dict[str, Any]) -> None:
    recorded = [json.loads(line) for line in script["RECORDING"].read_text(encoding="utf-8").splitlines()]
    stages = [line["text"].split()[1] for line in recorded if script["is_stage"](line["text"])]
    assert stages == ["prepare", "baselines", "plan", "train", "evaluate"]
    assert recorded[len(stages)]["seconds"] > 60, "a real run takes minutes"
    assert sum("worth it" in line["text"].lower() for line in recorded[len(stages) + 1 :]) == 1
    root = ElementTree.fromstring(script["drawings"]()["demo-dark.svg"])
    shown = " ".join("".join(part.itertext()) for part in root.iter("{http://www.w3.org/2000/svg}text"))
    for line in recorded:
        assert " ".join(line["text"].split()) in " ".join(shown.split()), line


def test_a_recording_has_the_command_its_lines_and_their_times(script: dict[str, Any], tmp_path: Path) -> None:
    program = (
        "import sys, time; print('reading: 1/2', file=sys.stderr); print('✓ prepare   1 row', file=sys.stderr, flush=True);"
        "time.sleep(0.3); print('Better.'); raise SystemExit(1)"
    )
    path = tmp_path / "recordings" / "a.jsonl"
    assert script["record"]([sys.executable, "-c", program], path) == 1
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines[1:]] == ["✓ prepare   1 row", "Better."]
    assert lines[0]["text"].startswith("$ ") and lines[2]["seconds"] >= lines[1]["seconds"] + 0.2


def test_a_log_keeps_stages_and_the_verdict_at_the_times_that_it_says(script: dict[str, Any], tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text(
        "$ tuneloop run a\n✓ prepare   9 rows   3 s\nzero-shot: 1/2  4/s  1 s left\nfew-shot (8 examples): 3/6  1/s\n"
        "✓ train     5 steps   1.5 min\n\nWorth it. order: 98 %\n\n"
    )
    texts = {text: seconds for seconds, text in script["read_log"](log) if text}
    assert texts == {
        "$ tuneloop run a": 0, "✓ prepare   9 rows   3 s": 3, "✓ train     5 steps   1.5 min": 93, "Worth it. order: 98 %": 93
    }  # fmt: skip
