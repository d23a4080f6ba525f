"""Checkpoints: how often, which are kept, and what a full disk does to them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from train_helpers import CONFIG, changed, run

from tuneloop.core.errors import UserError
from tuneloop.training import checkpoint
from tuneloop.training.checkpoint import State, list_checkpoints, load_best, load_checkpoint, save_best, save_checkpoint

EVERY_STEP = CONFIG.model_copy(update={"checkpoint_seconds": 0.0})


def test_a_full_disk_keeps_the_last_good_checkpoint_and_says_so(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.replacing

    def full(path: Path) -> Any:
        if "step-0000004" in str(path):
            raise UserError(f"Can't write or read: {os.strerror(errno.ENOSPC)}", where=str(path))
        return real(path)

    monkeypatch.setattr(checkpoint, "replacing", full)
    with pytest.raises(UserError, match="No space left on device; the checkpoint of step 3 is kept") as error:
        run(tiny_llama, tmp_path, EVERY_STEP)
    assert "continues from there" in error.value.next_step
    monkeypatch.undo()
    again, _ = run(tiny_llama, tmp_path, EVERY_STEP)
    assert again.resumed_at == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_fills_while_tensors_are_written_is_a_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import contextlib

    save_checkpoint(tmp_path, State("k", step=1), keep=2)

    @contextlib.contextmanager
    def into_full(path: Path) -> Any:
        from tuneloop.core.files import user_errors_of_the_disk

        with user_errors_of_the_disk(path), open("/dev/full", "wb", buffering=0) as file:
            yield file

    monkeypatch.setattr(checkpoint, "replacing", into_full)
    with pytest.raises(UserError, match="the checkpoint of step 1 is kept"):
        save_checkpoint(tmp_path, State("k", step=2, parameters={"p": torch.zeros(100000)}), keep=2)


def test_the_last_checkpoints_and_the_best_weights_they_name_are_kept(tmp_path: Path) -> None:
    bests = {2: 2, 3: 2, 4: 4, 5: 4, 6: 6}
    for step, best in bests.items():
        if step == best:
            save_best(tmp_path, step, {"p": torch.tensor([float(step)])})
        save_checkpoint(tmp_path, State("k", step=step, best_step=best), keep=2)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == [
        "best-0000004.pt", "best-0000006.pt", "step-0000005.pt", "step-0000006.pt",
    ]  # fmt: skip
    (tmp_path / "step-0000006.pt").write_bytes(b"torn")
    state = load_checkpoint(tmp_path, "k")
    assert state is not None and state.step == 5
    best = load_best(tmp_path, state.best_step)
    assert best is not None and float(best["p"]) == 4.0
    assert load_best(tmp_path, 6) is None, "weights from behind the checkpoint are of a run that did not happen"
    (tmp_path / "best-0000004.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match="best weights can't be read"):
        load_best(tmp_path, 4)


def test_checkpoints_come_by_steps_as_well_as_by_time(tiny_llama: Path, tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def log(record: dict[str, Any]) -> None:
        if "loss" in record:
            seen.append([p.name for p in list_checkpoints(tmp_path / "checkpoints")])

    run(tiny_llama, tmp_path, changed(checkpoint_seconds=1e6, checkpoint_steps=5, keep_checkpoints=1), log=log)
    assert seen[4] == ["step-0000000.pt"] and seen[5] == ["step-0000005.pt"] and seen[10] == ["step-0000010.pt"]
