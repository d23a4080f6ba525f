"""Every test has a layer, which says what it needs: unit tests run without torch, and start nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from layers import LAYERS, layer_of

from places import ROOT

# Rooms of a few seconds each. All: `PYTHONPATH=src:tests/helpers pytest -p without_torch -m unit`.
SAMPLE = ("planning", "records", "registry", "track")


def test_every_test_has_one_layer(request: pytest.FixtureRequest) -> None:
    assert layer_of(request.node) == "unit"
    for item in request.session.items:
        assert layer_of(item) in LAYERS, item.nodeid


@pytest.mark.torch
def test_a_marker_decides(request: pytest.FixtureRequest) -> None:
    assert layer_of(request.node) == "torch"


def test_unit_tests_run_without_torch_and_start_nothing(request: pytest.FixtureRequest) -> None:
    assert layer_of(request.node) == "process"
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests" / "helpers")))
    text = ["-p", "without_torch", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "unit and not slow"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *text, *(f"tests/{room}" for room in SAMPLE)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
