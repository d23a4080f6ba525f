"""What the doctor says of GPUs, without loading torch."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from tuneloop.core import doctor, machine


def card(root: Path, number: int, model: str) -> None:
    path = root / "proc/driver/nvidia/gpus" / f"0000:0{number}:00.0"
    path.mkdir(parents=True)
    (path / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 16\nVideo BIOS: \t 96.00\n")


def test_cards_are_known_by_their_drivers_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.sys, "platform", "linux")  # type: ignore[attr-defined]
    assert machine.cards(tmp_path) == []
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    assert machine.cards(tmp_path) == ["AMD GPU"]
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / "dev" / name).touch()
    assert machine.cards(tmp_path) == ["NVIDIA GPU"] * 2  # in a container that hides the driver's files
    card(tmp_path, 1, "NVIDIA H100 80GB HBM3")
    card(tmp_path, 2, "NVIDIA H100 80GB HBM3")
    assert machine.cards(tmp_path) == ["NVIDIA H100 80GB HBM3"] * 2


@pytest.mark.parametrize(
    ("cards", "build", "ok", "says"),
    [
        ([], "2.13.0+cpu", True, "none seen"),
        (["NVIDIA L4"], "2.13.0", True, "NVIDIA L4; `tuneloop doctor --self-test`"),
        (["NVIDIA H100"] * 2, "2.13.0+cpu", False, "2 x NVIDIA H100, and torch 2.13.0+cpu can't use it"),
    ],
)
def test_the_doctor_says_whether_torch_can_use_the_cards(
    cards: list[str], build: str, ok: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = importlib.metadata.version

    def version(name: str) -> Any:
        return build if name == "torch" else installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(machine, "cards", lambda: cards)
    (found,) = (finding for finding in doctor.examine() if finding.name == "GPU")
    assert found.ok is ok and not found.needed and found.detail.startswith(says)
