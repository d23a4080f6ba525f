"""What is below the folders: runs, data sets, artifacts, servers, registries. It is read again as its files change.

A folder is read again only when its own time has changed: of ten thousand runs a look costs one `stat` each. The first
look at so many may take long: a page waits for it as long as `patience` says, and shows what there is so far.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from tuneloop.agents import Job
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.evaluation import EVALUATION
from tuneloop.records.run import RUN

Kind = Literal["run", "dataset", "artifact", "server", "registry", "sweep", "review", "evaluation"]
# The files by which a folder is known; the first kind that fits.
FILES: dict[str, Kind] = {
    "sweep.json": "sweep", "store.db": "server", "state.json": "server", "artifact.json": "artifact",
    MANIFEST: "dataset", RUN: "run", "config.yaml": "run", "metrics.jsonl": "run", "review.json": "review",
    EVALUATION: "evaluation", Job.file: "run",
}  # fmt: skip
REGISTRY = "mlflow.db"
INNER = {"checkpoints", "adapter", "model", "baselines", "mlruns", "mlartifacts", "node_modules", "__pycache__", "src"}
MOST_DEPTH = 8
AGAIN = 1.0  # seconds for which a look at the folders holds
UNSETTLED = 2.0  # seconds in which a folder may change without its time changing
PUBLISHED = 200  # folders of the first look after which pages show what it has found; a server's at once

T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """Something in the folders."""

    kind: Kind
    path: Path  # its folder; of a registry its file
    key: str  # stands for the path in addresses
    changed: float  # when its folder last changed, seconds since the epoch
    names: frozenset[str]  # files and folders in it


@dataclass
class _Folder:
    """A folder as it was when it was read."""

    time: int
    seen: float
    below: list[str]
    found: list[Found]


@dataclass
class Index:
    """What is in folders.

    Args:
        folders: where it is looked for.
        patience: seconds that a page waits for what was not read yet; None: until it is.
        unread: runs that were found and not read yet.
    """

    folders: tuple[Path, ...]
    patience: float | None = None
    unread: int = 0
    _known: dict[str, _Folder] = field(default_factory=dict, repr=False)
    _found: dict[tuple[Kind, str], Found] = field(default_factory=dict, repr=False)
    _facts: dict[tuple[str, str], tuple[object, object]] = field(default_factory=dict, repr=False)
    _at: float = -math.inf
    _look: tuple[float, threading.Thread] | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def reading(self) -> bool:
        """Whether there is more than was read so far."""
        return self._at == -math.inf or self.unread > 0

    def all(self, kind: Kind) -> list[Found]:
        """What there is of a kind."""
        self._refresh()
        return [found for found in self._found.values() if found.kind == kind]

    def find(self, kind: Kind, key: str) -> Found | None:
        """One of a kind by its key."""
        self._refresh()
        return self._found.get((kind, key))

    def facts(self, name: str, found: Found, stamp: object, read: Callable[[Found], T]) -> T:
        """What `read` makes of something, kept under `name` until `stamp` (times and sizes of files) is another one."""
        key = (name, found.key)
        before = self._facts.get(key)
        if before is None or before[0] != stamp:
            before = self._facts[key] = (stamp, read(found))
        return before[1]  # type: ignore[return-value]

    def has(self, name: str, found: Found) -> bool:
        """Whether facts of a name were read of something."""
        return (name, found.key) in self._facts

    def _refresh(self) -> None:
        """Look again where the last look is old, in a thread: no page need wait for the end of the first look."""
        with self._lock:
            now = time.monotonic()
            if now - self._at < AGAIN:
                return
            if self._look is None or not self._look[1].is_alive():
                self._look = now, threading.Thread(target=self._look_around, daemon=True)
                self._look[1].start()
            began, look = self._look
        if self.patience is None or self._at > -math.inf:
            look.join()
        else:
            look.join(max(0.0, began + self.patience - now))

    def _look_around(self) -> None:
        known: dict[str, _Folder] = {}
        found: dict[tuple[Kind, str], Found] = {}
        left = deque((str(folder.resolve()), 0) for folder in self.folders)
        while left:
            directory, depth = left.popleft()  # those above first: a server's folder is not behind ten thousand runs
            if directory in known or (folder := self._read(directory)) is None:
                continue
            known[directory] = folder
            found |= {(entry.kind, entry.key): entry for entry in folder.found}
            if depth < MOST_DEPTH:
                left += [(below, depth + 1) for below in folder.below]
            if self.reading and (
                len(known) % PUBLISHED == 0 or any(folder_found.kind == "server" for folder_found in folder.found)
            ):
                self._found = dict(found)
        self._known, self._found = known, found
        keys = {key for _, key in found}
        for fact in [*self._facts]:
            if fact[1] not in keys:
                self._facts.pop(fact, None)
        self._at = time.monotonic()

    def _read(self, path: str) -> _Folder | None:
        """A folder, from memory where it has not changed; None: it was deleted, or may not be read."""
        with contextlib.suppress(OSError):
            status, now = os.stat(path), time.time()
            before = self._known.get(path)
            if before and before.time == status.st_mtime_ns and before.seen - status.st_mtime > UNSETTLED:
                return before
            with os.scandir(path) as entries:
                names = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
            kind = next((kind for file, kind in FILES.items() if file in names), None)
            found = [] if kind is None else [_found(kind, path, status.st_mtime, names)]
            if REGISTRY in names:
                found.append(_found("registry", os.path.join(path, REGISTRY), status.st_mtime, names))
            skipped = INNER | ({"dataset"} if kind == "dataset" else set())
            below = [
                os.path.join(path, name)
                for name, is_folder in names.items()
                if is_folder and name[0] != "." and name not in skipped and kind != "artifact"
            ]
            return _Folder(status.st_mtime_ns, now, below, found)
        return None


def _found(kind: Kind, path: str, changed: float, names: Sequence[str] | dict[str, bool]) -> Found:
    key = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return Found(kind, Path(path), key, changed, frozenset(names))
