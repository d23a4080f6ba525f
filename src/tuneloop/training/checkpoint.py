"""Checkpoints: everything that the next step depends on, written whole or not at all."""

from __future__ import annotations

import contextlib
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tuneloop.core.errors import UserError
from tuneloop.core.files import replacing
from tuneloop.core.foreign import load_pickled
from tuneloop.core.machine import is_first, processes
from tuneloop.core.sharded import is_sharded
from tuneloop.training.distributed import mesh, wait

START_AGAIN = "start again from the first step"


@dataclass
class State:
    """Where a run is."""

    key: str  # hash of what the run depends on; a checkpoint of another key is not resumed
    step: int = 0  # optimizer steps done
    planned_steps: int = 0  # steps planned when the run began
    total_steps: int = 0  # steps that it will do: as many as fit into `max_minutes` at the speed so far
    turn: tuple[int, float] = (0, 0.0)  # step at which their number last changed, and its place among the planned ones
    due: list[int] = field(default_factory=list)  # places among the planned steps behind which validations come
    val_rows: int = 0  # rows of a validation
    read_rows: int = 0  # of these, how many the first one had time for and all others read; 0: all
    spent: float = 0.0  # seconds of `max_minutes` used before the run began: its speed was measured
    pace: float = 0.0  # seconds a token of the last validation of a run whose time is limited
    validated_at: int = -1  # step of the last validation
    recent: tuple[float, float] = (0.0, 0.0)  # tokens and seconds of the last steps, older ones counting less
    timed: float = 0.0  # seconds of steps when these were taken
    planned_speed: float = 0.0  # tokens a second, forward and backward, that the run was planned with; 0: not known
    parameters: dict[str, Any] = field(default_factory=dict)  # by name, after `step` steps; empty before the first one
    optimizer: dict[str, Any] = field(default_factory=dict)
    rng: Any = None
    best_step: int = 0  # step with the lowest validation loss so far; its parameters are in a file of their own
    best_val_loss: float = float("inf")
    first_val_loss: float = float("nan")
    worse: int = 0  # evaluations in a row that brought no better loss
    tokens: int = 0
    seconds: float = 0.0  # training time so far, of all processes that worked on the run
    checking_seconds: float = 0.0  # of these, validations and references
    validation_seconds: float = 0.0  # of the last validation
    peak_memory_gib: float = 0.0
    halvings: int = 0  # how often micro-batches have been halved because memory ran out
    rate_factor: float = 1.0  # what rollbacks have multiplied the learning rate with
    skipped: list[int] = field(default_factory=list)  # steps whose batch is left out since a rollback
    rollbacks: int = 0  # how often the run went back to a checkpoint
    stopped: str = ""
    recompute: bool = False  # whether layers are computed again in the backward pass
    kept_layers: int = 0  # of these, how many of the last ones are not
    loss_scale: float = 0.0  # what the loss is multiplied with where gradients are in half precision; 0: no scaling
    scaled_steps: int = 0  # steps since it last fell

    def validated(self, loss: float, patience: int) -> bool:
        """Note a validation's loss and return whether it is the best one so far; after `patience` in a row that are
        not, the run is stopped. The base model's is a mark to compare with, not a candidate."""
        if self.step == 0:
            self.first_val_loss = loss
            return False
        if loss < self.best_val_loss:
            self.best_val_loss, self.best_step, self.worse = loss, self.step, 0
            return True
        self.worse += 1
        if self.worse >= patience and self.step < self.total_steps:
            self.stopped = "early"
        return False


def save_checkpoint(folder: Path, state: State, keep: int) -> Path:
    """Write `step-N.pt` atomically, then drop all but the `keep` latest, and best weights that none of these names.
    Raises UserError: the disk is full or read-only; earlier checkpoints stay, and the error says which."""
    path = folder / f"step-{state.step:07d}.pt"
    _write(path, vars(state))
    if not is_first():
        return path
    checkpoints = list_checkpoints(folder)
    for old in checkpoints[:-keep]:
        _drop(old)
    oldest = _step_of(checkpoints[-keep:][0])
    best = _numbered(folder, "best")
    needed = max((_step_of(p) for p in best if _step_of(p) <= oldest), default=0)
    for old in best:
        if _step_of(old) < min(needed, state.best_step):
            _drop(old)
    return path


def save_best(folder: Path, step: int, parameters: dict[str, Any]) -> None:
    """Write the best weights so far, `best-N.pt`, kept as long as a checkpoint needs it; see `save_checkpoint`."""
    _write(folder / f"best-{step:07d}.pt", parameters)


def load_best(folder: Path, step: int) -> dict[str, Any] | None:
    """The weights of `save_best`; None when there are none."""
    path = folder / f"best-{step:07d}.pt"
    if not path.is_file():
        return None
    try:
        parameters: dict[str, Any] = _read(path)
    except Exception:
        message, again = "The best weights can't be read: the file is damaged", f"delete {folder} to {START_AGAIN}"
        raise UserError(message, where=str(path), next_step=again) from None
    return parameters


def _write(path: Path, value: Any) -> None:
    """Write a file atomically; a full disk's error names what is still there. Sharded tensors go before it into a
    folder of its name, by torch.distributed.checkpoint: any number of processes can read them."""
    shards: dict[str, Any] = {}
    value = _without_shards(value, shards)
    try:
        if shards:
            _write_shards(_shards(path), shards)
        if is_first():
            with replacing(path) as file:
                torch.save(value, file)
        wait()
    except (UserError, RuntimeError) as error:
        checkpoints = list_checkpoints(path.parent)
        if not checkpoints or (isinstance(error, RuntimeError) and "write" not in str(error)):
            raise
        message = error.what if isinstance(error, UserError) else "Can't write: the disk is full"
        message = f"{message}; the checkpoint of step {_step_of(checkpoints[-1])} is kept"
        step = "free some space on that disk, then run the same command again: it continues from there"
        raise UserError(message, where=str(path), next_step=step) from None


def _write_shards(folder: Path, shards: dict[str, Any]) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    if is_first():
        shutil.rmtree(folder, ignore_errors=True)
    wait()
    try:
        save(shards, storage_writer=FileSystemWriter(folder))
    except CheckpointException as error:  # no Exception, so no one would expect it
        raise RuntimeError(f"a process could not write its shards: {error}") from error


def _read(path: Path) -> Any:
    """The inverse of `_write`: sharded over the processes that there are now, or whole for one."""
    value = load_pickled(path)
    shards: dict[str, Any] = {}
    value = _with_shards(value, shards)  # empty ones, which are filled in place
    if shards:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        load(shards, storage_reader=FileSystemReader(_shards(path)))
    return value


def _shards(path: Path) -> Path:
    return path.with_suffix(".shards")


SHARD = "sharded tensor"  # (SHARD, key, shape, dtype) replaces in a file a tensor that is in the folder of shards


def _without_shards(value: Any, shards: dict[str, Any]) -> Any:
    if is_sharded(value):
        key = str(len(shards))
        shards[key] = value
        return (SHARD, key, tuple(value.shape), value.dtype)
    if isinstance(value, dict):
        return {key: _without_shards(item, shards) for key, item in value.items()}
    return value


def _with_shards(value: Any, shards: dict[str, Any]) -> Any:
    """The inverse of `_without_shards`, with tensors for what is read later."""
    if isinstance(value, tuple) and value[:1] == (SHARD,):
        _, key, shape, kind = value
        if processes() > 1:
            from torch.distributed.tensor import Shard, zeros

            shards[key] = zeros(shape, dtype=kind, device_mesh=mesh(), placements=[Shard(0)])
        else:
            shards[key] = torch.empty(shape, dtype=kind)
        return shards[key]
    if isinstance(value, dict):
        return {key: _with_shards(item, shards) for key, item in value.items()}
    return value


def _drop(path: Path) -> None:
    if is_first():
        with contextlib.suppress(OSError):
            path.unlink()
        shutil.rmtree(_shards(path), ignore_errors=True)


def _numbered(folder: Path, kind: str) -> list[Path]:
    files = [p for p in folder.glob(f"{kind}-*.pt") if re.fullmatch(rf"{kind}-\d+\.pt", p.name)]
    return sorted(files, key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.stem.split("-")[1])


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in order of their steps."""
    return _numbered(folder, "step")


def load_checkpoint(folder: Path, key: str) -> State | None:
    """The latest readable checkpoint; None: there is none. Raises UserError: another run's, or all are damaged."""
    damaged: list[Path] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            state = State(**_read(path))
        except Exception:  # whatever a torn or foreign file makes the reader raise: it can't be used
            damaged.append(path)
            continue
        if state.key != key:
            message = "The checkpoints here belong to a run with other settings, data or base model"
            step = "choose another folder with output_dir=FOLDER, or delete this one"
            raise UserError(message, where=str(folder), next_step=step)
        for late in _numbered(folder, "best"):
            if _step_of(late) > state.step:  # written on the way to a checkpoint that never came
                _drop(late)
        return state
    if damaged:
        again = f"delete {folder} to {START_AGAIN}"
        raise UserError(f"No checkpoint can be read ({len(damaged)} damaged)", where=str(damaged[0]), next_step=again)
    return None


def drop_checkpoints(folder: Path) -> None:
    """Remove the folder once the run's result is written."""
    if is_first():
        shutil.rmtree(folder, ignore_errors=True)
