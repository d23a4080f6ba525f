"""`tuneloop data diff`, `forget` and `check` in a folder of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from long_labels import Status, Tuneloop, some_checks

from tuneloop.cli.main import main


@pytest.fixture
def tuneloop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tuneloop:
    """Run one of the three commands in `tmp_path`, 80 columns wide: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("tuneloop.data.checks.checks", "tuneloop.data.pii.erase"):
        monkeypatch.setattr(f"{name}.check_dataset", some_checks)

    def run(*arguments: str) -> Status:
        capsys.readouterr()
        status = main([*arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run
