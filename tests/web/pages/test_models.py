"""Models: versions with their lineage; promoted and rolled back with the checks of the command line."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from web_pages import Pages, pages_of

from patience import HANG
from tuneloop.cli.main import main

pytest.importorskip("mlflow", reason="needs MLflow")
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(
    make_artifact: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_registry: Path
) -> Path:
    """A registry with one version."""
    shutil.copy(empty_registry, tmp_path / "mlflow.db")
    monkeypatch.setenv("TUNELOOP_CACHE", str(tmp_path / "cache"))
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    artifact = make_artifact("adapter")
    assert main(["models", "register", str(artifact), "--name", "tickets", "-q"]) == 0
    return tmp_path


def shown(pages: Pages) -> str:
    """The page once the registry was read."""
    until = time.monotonic() + HANG
    while time.monotonic() < until:
        html = pages.get("/models")
        if 'http-equiv="refresh"' not in html:
            break
        time.sleep(0.05)
    return html


def seen(html: str) -> dict[str, str]:
    """The hidden fields of its forms."""
    return {name: html.partition(f'name="{name}" value="')[2].partition('"')[0] for name in ("registry", "seen")}


@pytest.mark.nightly
def test_a_version_is_promoted_with_the_same_checks_and_the_history_has_who(folder: Path) -> None:
    pages = pages_of(folder)
    html = shown(pages)
    assert 'class="chart lineage' in html and "version 1" in html and "gate none" in html
    form = {**seen(html), "step": "promote", "name": "tickets", "version": "1", "why": "the first"}
    assert "No gate has judged this version" in pages.send("/models", form, 400)
    assert "tickets@champion is version 1" in pages.send(
        "/models", {**form, "force": "there is nothing to compare with"}
    )
    html = shown(pages)
    assert "(ann, on the page)" in html and "overruled" in html and "champion" in html
    again = pages.send("/models", {**form, "force": "again"}, 400)
    assert "has changed tickets meanwhile" in again, "the second of two people is warned"
    form = {**seen(html), "step": "rollback", "name": "tickets"}
    assert "no previous version" in pages.send("/models", form, 400)


def test_without_a_registry_the_page_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    assert "There is no registry here" in shown(pages_of(tmp_path))
