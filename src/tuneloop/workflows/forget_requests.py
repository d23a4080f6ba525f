"""`tuneloop forget` on a server's folder: a user's requests leave the store, and the files next to it."""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder, read_json
from tuneloop.data.forget import Descendant
from tuneloop.records.artifact import ARTIFACT
from tuneloop.records.collected import CollectedManifest
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.decision import Decision
from tuneloop.records.review import Review
from tuneloop.serve.erase import Erased, Matched, erase, find, proved
from tuneloop.serve.store import opened
from tuneloop.serve.writer import SPILL, StoreWriter

DEEPEST = 8  # folders below the root
_NAMED = re.compile(rb'"(?:request|request_id|row)"\s*:\s*"([^"\\]+)"')  # a row says which request it comes from


def forget_requests(folder: Path, match: str, *, dry_run: bool) -> tuple[Matched, Erased | None]:
    """Erase what a match names.

    Where no server is at work, what waits in files next to the store is stored first, so that it is found. A server that is
    at work empties them within half a minute.

    Args:
        folder: of the server.
        match: see `serve.erase.find`.
        dry_run: only look.

    Raises:
        UserError: no store, a bad match, or records wait in the spill file of a server at work.
    """
    try:
        with lock_folder(folder):
            writer = StoreWriter(folder, say=lambda line: None)
            writer.start()
            writer.stop()
    except UserError as error:
        if "Another tuneloop process" not in error.what:
            raise
    if (folder / SPILL).exists() and not dry_run:
        raise UserError(
            "Records wait to get into the store, and could not be found there", where=str(folder / SPILL),
            next_step="make room on the disk, and try again when the file is gone",
        )  # fmt: skip
    with opened(folder) as store:
        found = find(store, match)
        return found, None if dry_run or not (found.requests or found.feedback) else erase(store, match, found)


def proof_of(folder: Path, match: str, receipt: str) -> Decision | None:
    """The tombstone of an erasure, by its receipt; None: there is none of this person."""
    with opened(folder) as store:
        return proved(store, match, receipt)


def made_of_requests(root: Path | str, requests: Collection[str], match: str) -> list[Descendant]:
    """What was made of requests: collected rows, data sets, review queues and other files with rows that name one of them, runs
    that were trained on such a data set, and artifacts of these runs.

    Args:
        root: folder to search.
        requests: their ids.
        match: by which they were found.
    """
    wanted = {one.encode() for one in requests}
    counts: dict[Path, dict[str, int]] = defaultdict(dict)
    runs, artifacts = [], []
    for folder, names in _folders(Path(root)) if wanted else ():
        for name in names:
            if name.endswith(".jsonl") and (rows := _rows_of(folder / name, wanted)):
                counts[folder][name] = rows
        runs += [folder] if "run.json" in names else []
        artifacts += [folder] if ARTIFACT in names else []
    found: list[Descendant] = []
    taught: set[str] = set()
    for folder, files in counts.items():
        rows = sum(files.values())
        if (folder / MANIFEST).is_file():
            name = str(_value(folder / MANIFEST, "id"))
            taught |= {name} if files.get("train.jsonl") or files.get("val.jsonl") else set()
            where = match.replace("id=", "request=", 1) if match.startswith("id=") else match
            advice = f"tuneloop forget {folder} --match '{where}'"
            found.append(Descendant("data set", str(folder), name, rows, f"holds {rows:,} of them", advice))
            continue
        review, collected = (folder / Review.file).is_file(), (folder / CollectedManifest.file).is_file()
        kind = "review queue" if review else "collected rows" if collected else "file"
        advice = "delete it; `tuneloop collect` writes it again without them" if collected else "delete it"
        places = {str(folder): rows} if review or collected else {str(folder / name): n for name, n in files.items()}
        found += [Descendant(kind, place, "", n, f"holds {n:,} of them", advice) for place, n in places.items()]
    trained = {
        str(_value(folder / "run.json", "id")): folder
        for folder in runs
        if _value(folder / "run.json", "dataset") in taught
    }
    for name, folder in trained.items():
        advice = "train again when the data set has forgotten them, or delete it: weights can remember rows"
        found.append(Descendant("run", str(folder), name, None, "trained on them", advice))
    for folder in artifacts:
        run = _value(folder / ARTIFACT, "run")
        if isinstance(run, dict) and run.get("id") in trained:
            why = f"made of the run {run['id']}, like the versions that were registered from it"
            found.append(
                Descendant("artifact", str(folder), folder.name, None, why, "replace it by one of the new run")
            )
    return found


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    for place, folders, names in os.walk(root):
        path = Path(place)
        deep = len(path.relative_to(root).parts) >= DEEPEST
        folders[:] = (
            []
            if deep
            else sorted(n for n in folders if not n.startswith(".") and n not in ("checkpoints", "node_modules"))
        )
        yield path, names


def _rows_of(path: Path, wanted: Collection[bytes]) -> int:
    """Lines of a file that name one of the requests."""
    with contextlib.suppress(OSError), path.open("rb") as lines:
        return sum(any(name in wanted for name in _NAMED.findall(line)) for line in lines)
    return 0


def _value(path: Path, key: str) -> Any:
    with contextlib.suppress(UserError, OSError, ValueError):
        found = read_json(path)
        return found.get(key) if isinstance(found, dict) else None
    return None
