"""What is below the folders: runs, data sets, artifacts, servers, registries. It is read again as its files change.

A folder is read again only when its own time has changed: of ten thousand runs a look costs one `stat` each.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from tuneloop.records.dataset import MANIFEST
from tuneloop.records.evaluation import EVALUATION
from tuneloop.records.run import RUN

Kind = Literal["run", "dataset", "artifact", "server", "registry", "sweep", "review", "evaluation"]
# The files by which a folder is known; the first kind that fits.
FILES: dict[str, Kind] = {
    "sweep.json": "sweep", "store.db": "server", "state.json": "server", "artifact.json": "artifact",
    MANIFEST: "dataset", RUN: "run", "config.yaml": "run", "metrics.jsonl": "run", "review.json": "review",
    EVALUATION: "evaluation",
}  # fmt: skip
REGISTRY = "mlflow.db"
INNER = {"checkpoints", "adapter", "model", "baselines", "mlruns", "mlartifacts", "node_modules", "__pycache__", "src"}
MOST_DEPTH = 8
AGAIN = 1.0  # seconds for which a look at the folders holds
UNSETTLED = 2.0  # seconds in which a folder may change without its time changing

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
    """What is in folders; `folders`: where it is looked for."""

    folders: tuple[Path, ...]
    _known: dict[str, _Folder] = field(default_factory=dict, repr=False)
    _found: dict[tuple[Kind, str], Found] = field(default_factory=dict, repr=False)
    _facts: dict[tuple[str, str], tuple[object, object]] = field(default_factory=dict, repr=False)
    _at: float = -AGAIN
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

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

    def _refresh(self) -> None:
        with self._lock:
            if time.monotonic() - self._at < AGAIN:
                return
            known: dict[str, _Folder] = {}
            left = [(str(folder.resolve()), 0) for folder in self.folders]
            while left:
                place, depth = left.pop()
                if place in known or (folder := self._read(place)) is None:
                    continue
                known[place] = folder
                if depth < MOST_DEPTH:
                    left += [(below, depth + 1) for below in folder.below]
            self._known = known
            self._found = {(one.kind, one.key): one for folder in known.values() for one in folder.found}
            keys = {key for _, key in self._found}
            self._facts = {key: value for key, value in self._facts.items() if key[1] in keys}
            self._at = time.monotonic()

    def _read(self, place: str) -> _Folder | None:
        """A folder, from memory where it has not changed; None: it was deleted, or may not be read."""
        with contextlib.suppress(OSError):
            status, now = os.stat(place), time.time()
            before = self._known.get(place)
            if before and before.time == status.st_mtime_ns and before.seen - status.st_mtime > UNSETTLED:
                return before
            with os.scandir(place) as entries:
                names = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
            kind = next((kind for file, kind in FILES.items() if file in names), None)
            found = [] if kind is None else [_found(kind, place, status.st_mtime, names)]
            if REGISTRY in names:
                found.append(_found("registry", os.path.join(place, REGISTRY), status.st_mtime, names))
            skipped = INNER | ({"dataset"} if kind == "dataset" else set())
            below = [
                os.path.join(place, name)
                for name, is_folder in names.items()
                if is_folder and name[0] != "." and name not in skipped and kind != "artifact"
            ]
            return _Folder(status.st_mtime_ns, now, below, found)
        return None


def _found(kind: Kind, place: str, changed: float, names: Sequence[str] | dict[str, bool]) -> Found:
    key = hashlib.sha256(os.fsencode(place)).hexdigest()[:12]
    return Found(kind, Path(place), key, changed, frozenset(names))
