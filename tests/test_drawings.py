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


def test_every_recorded_line_up_to_the_evaluation_and_of_the_closing_is_in_the_picture(script: dict[str, Any]) -> None:
    recorded = [json.loads(line)["text"] for line in script["RECORDING"].read_text(encoding="utf-8").splitlines()]
    end = next(place for place, line in enumerate(recorded) if line.startswith("evaluate "))
    closing = recorded[len(recorded) - recorded[::-1].index("") :]
    assert end > 10 and 5 <= len(closing) <= 12
    lines = [*recorded[: end + 1], *closing]
    root = ElementTree.fromstring(script["drawings"]()["demo-dark.svg"])
    shown = " ".join("".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text"))
    for line in lines:
        assert " ".join(line.split()) in " ".join(shown.split()), line


def test_a_recording_has_the_command_its_lines_and_their_times(script: dict[str, Any], tmp_path: Path) -> None:
    program = (
        "import sys, time; print('reading: 1/2', file=sys.stderr); print('prepare   1 row', file=sys.stderr, flush=True);"
        "time.sleep(0.3); print('Better.'); raise SystemExit(1)"
    )
    place = tmp_path / "recordings" / "a.jsonl"
    assert script["record"]([sys.executable, "-c", program], place) == 1
    lines = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines[1:]] == ["prepare   1 row", "Better."]
    assert lines[0]["text"].startswith("$ ") and lines[2]["seconds"] >= lines[1]["seconds"] + 0.2
