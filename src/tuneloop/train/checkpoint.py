"""Checkpoints: everything that the next step depends on, written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneloop.files import write_bytes
from tuneloop.types import UserError


@dataclass
class State:
    """Where a run is.

    Args:
        key: hash of what the run depends on; a checkpoint of another key is not resumed.
        step: optimizer steps done.
        total_steps: steps planned when the run began.
        adapter: tensors by PEFT name, after `step` steps; empty before the first checkpoint.
        best: the tensors with the lowest validation loss so far.
        worse: evaluations in a row that brought no better loss.
        seconds: training time so far, of all processes that worked on the run.
    """

    key: str
    step: int = 0
    total_steps: int = 0
    adapter: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    rng: Any = None
    best: dict[str, Any] = field(default_factory=dict)
    best_step: int = 0
    best_val_loss: float = float("inf")
    first_val_loss: float = float("nan")
    worse: int = 0
    tokens: int = 0
    seconds: float = 0.0
    peak_memory_gib: float = 0.0
    stopped: str = ""


def save_checkpoint(folder: Path, state: State, keep: int) -> Path:
    """Write `step-N.pt` atomically, then drop all but the `keep` latest.

    Raises:
        UserError: the disk is full or read-only; earlier checkpoints stay.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(vars(state), buffer)
    path = folder / f"step-{state.step:07d}.pt"
    write_bytes(path, buffer.getvalue())
    for old in list_checkpoints(folder)[:-keep]:
        with contextlib.suppress(OSError):
            old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in order of their steps."""
    found = [p for p in folder.glob("step-*.pt") if re.fullmatch(r"step-\d+\.pt", p.name)]
    return sorted(found, key=lambda p: int(p.stem.split("-")[1]))


def load_checkpoint(folder: Path, key: str) -> State | None:
    """The latest readable checkpoint; None when there is none.

    Raises:
        UserError: the checkpoints are another run's, or all of them are damaged.
    """
    import torch

    damaged: list[Path] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
            state = State(**values)
        except Exception:  # whatever a torn or foreign file makes the reader raise: it can't be used
            damaged.append(path)
            continue
        if state.key != key:
            raise UserError(
                "The checkpoints here belong to a run with other settings, data or base model",
                where=str(folder),
                next_step="choose another folder with output_dir=FOLDER, or delete this one",
            )
        return state
    if damaged:
        raise UserError(
            f"No checkpoint can be read ({len(damaged)} damaged)",
            where=str(damaged[0]),
            next_step=f"delete {folder} to start again from the first step",
        )
    return None


def drop_checkpoints(folder: Path) -> None:
    """Remove the folder once the run's result is written."""
    shutil.rmtree(folder, ignore_errors=True)
