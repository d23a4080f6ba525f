"""`tuneloop data forget` on a server's folder: a user's requests leave the store, and the files next to it.

An erasure is first a file in that folder. Whoever works there does it: the command itself, or the server that holds the
folder. So it continues after a kill: the next command does what is left of it, or the next server when it starts.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder, read_json, write_json
from tuneloop.core.ids import uuid7
from tuneloop.core.ui import quiet, say
from tuneloop.data.clean.pii import hidden
from tuneloop.data.config import PersonalConfig
from tuneloop.data.erase.forget import Descendant, SubjectRows, find_rows, forget, personal_settings
from tuneloop.data.erase.subject_match import Matcher, pseudonyms
from tuneloop.pipeline.prepare import measure_of
from tuneloop.records.artifact import ARTIFACT
from tuneloop.records.collected import CollectedManifest
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.decision import Decision
from tuneloop.records.review import Review
from tuneloop.records.server import ServerState
from tuneloop.registry.registered import open_registry
from tuneloop.registry.versions import read_models
from tuneloop.report.data_html import write_data_report
from tuneloop.serving.store.database import Database, DatabaseError, open_sqlite
from tuneloop.serving.store.erase import COLUMNS, Erased, Matched, delete, erase, find, proved, whose_lines
from tuneloop.serving.store.erase_files import PENDING, Whose, copies_of_the_store, erase_lines
from tuneloop.serving.store.store import opened, store_file, store_folder, store_name, store_url
from tuneloop.serving.store.writer import SPILL, StoreWriter

DEEPEST = 8  # folders below the root
PATIENCE = 120.0  # seconds to wait for a server that erases
# A row says which request it comes from; in a table it is a cell.
_NAMED = re.compile(
    rb'"(?:request|request_id|row)"\s*:\s*"([^"\\]+)"|\b([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\b'
)


def forget_requests(place: Path | str, match: str, *, dry_run: bool) -> tuple[Matched, Erased | None]:
    """Erase what a match names, from the store and from all files of its server's folder.

    Args:
        place: the server's folder, or its store.
        match: see `serve.erase.find`.
        dry_run: only look.

    Raises:
        UserError: no store, a bad match, or records can't get into the store, so that they are not found there.
    """
    folder = store_folder(place)
    own = folder.is_dir() and store_name(folder) == store_name(place)  # not one of another store, where this has a URL
    if dry_run:
        with _if_nobody_works(folder if own else None) as alone:
            if own and alone:
                _store_what_waits(folder, str(place))
        with opened(place) as store:
            found = _found(store, match, folder if own else None, place)
        return found, None
    receipt = secrets.token_urlsafe(16)
    found, _ = forget_requests(place, match, dry_run=True)
    if not own:
        with opened(place) as store:
            return found, erase(store, match, found, receipt) if found.anything else None
    if found.anything:
        write_json(folder / PENDING.replace("*", uuid7()), {"version": 1, "match": match, "receipt": receipt})
    until, told = time.monotonic() + PATIENCE, False
    while any(folder.glob(PENDING)):
        with _if_nobody_works(folder) as alone:
            if alone:
                _store_what_waits(folder, str(place))
                finish_forgetting(folder, str(place))
        if not alone:
            if time.monotonic() > until:
                raise UserError(
                    "The server has not erased it yet", where=str(folder),
                    next_step="it does so as soon as it can, also when it starts again; --dry-run shows what is left",
                )  # fmt: skip
            if not told:
                say(f"waiting for the server that works in {folder}: it erases them")
            told = True
            time.sleep(0.1)
    with opened(place) as store:
        stone = proved(store, match, receipt)
    return found, Erased(stone.data["requests"], stone.data["feedback"], receipt) if stone is not None else None


def finish_forgetting(
    folder: Path, place: str, *, alone: bool = True, appending: AbstractContextManager[Any] | None = None
) -> list[str]:
    """Do the erasures that have begun in a server's folder, which this process holds.

    Args:
        place: of the store, in which all records are that waited for it.
        alone: no server works there.
        appending: held while files are written again that the server appends to.

    Returns:
        Ids of the requests that were erased.

    Raises:
        UserError: the store can't be used, or a file can't be written; what is left is done the next time.
    """
    gone: list[str] = []
    for pending in sorted(folder.glob(PENDING)):
        value = read_json(pending)
        match, also = value["match"], _pseudonyms(folder, value["match"])
        with opened(place) as store:
            found = _found(store, match, folder, place)
            whose = whose_lines(store, match, found, also)

            def lines(whose: Whose = whose) -> None:
                with appending or contextlib.nullcontext():
                    erase_lines(folder, whose, act=True, alone=alone)

            erase(store, match, found, value["receipt"], lines)
        _in_copies(folder, place, match, also, act=True)
        gone += found.requests
        pending.unlink()
    return gone


def _in_copies(folder: Path, place: Path | str, match: str, also: Sequence[str], *, act: bool) -> int:
    """Records of theirs in copies of the store that somebody has made in its folder."""
    count = 0
    for path in copies_of_the_store(folder, None if store_url(place) else store_file(place)):
        with contextlib.suppress(DatabaseError):  # another program's
            store = open_sqlite(path, patience=5.0)
            try:
                found = find(store, match, also)
                count += len(found.requests) + len(found.feedback)
                if act and found.anything:
                    delete(store, found)
            finally:
                store.close()
    return count


def _found(store: Database, match: str, folder: Path | None, place: Path | str) -> Matched:
    """What is theirs in the store, and in the files of a server's folder."""
    also = _pseudonyms(folder, match) if folder else ()
    found = find(store, match, also)
    if folder is None:
        return found
    lines = erase_lines(folder, whose_lines(store, match, found, also), act=False)
    return replace(found, lines=lines + _in_copies(folder, place, match, also, act=False))


def _pseudonyms(folder: Path, match: str) -> tuple[str, ...]:
    """What stands for a text in a store with pseudonyms."""
    if match.partition("=")[0] in COLUMNS:
        return ()
    content = _value(folder / ServerState.file, "config")
    log = content.get("log") if isinstance(content, dict) else None
    if not isinstance(log, dict) or log.get("content") != "pseudonyms":
        return ()
    return pseudonyms(Matcher(match), PersonalConfig(mode="pseudonym"))


@contextlib.contextmanager
def _if_nobody_works(folder: Path | None) -> Iterator[bool]:
    """Hold a server's folder where nobody else does; gives whether it is held."""
    with contextlib.ExitStack() as held:
        alone = folder is not None
        try:
            if folder is not None:
                held.enter_context(lock_folder(folder))
        except UserError as error:
            if "Another tuneloop process" not in error.what:
                raise
            alone = False
        yield alone


def _store_what_waits(folder: Path, place: str) -> None:
    """Bring what a server has left into the store, so that it is found there.

    Raises:
        UserError: it can't be.
    """
    with quiet():
        writer = StoreWriter(folder, store=place)
        writer.start()
        stored = writer.settle(30)
        writer.stop()
    if not stored:
        refuse_spilled(folder)


def refuse_spilled(folder: Path) -> None:
    """Refuse to erase while records wait to get into the store, where they would not be found.

    Raises:
        UserError: always.
    """
    raise UserError(
        "Records wait to get into the store, and could not be found there", where=str(folder / SPILL),
        next_step="make room on the disk, or end what holds the store, and try again when the file is gone",
    )  # fmt: skip


def proof_of(place: Path | str, match: str, receipt: str) -> Decision | None:
    """The tombstone of an erasure, by its receipt; None: there is none of this person."""
    with opened(place) as store:
        return proved(store, match, receipt)


def pending(place: Path | str) -> bool:
    """Whether an erasure has begun in a server's folder that is not done."""
    return any(store_folder(place).glob(PENDING))


def made_of_requests(roots: Sequence[Path | str], requests: Collection[str], match: str) -> list[Descendant]:
    """What was made of requests: collected rows, data sets, review draws and other files with rows that name one of them, runs
    that were trained on such a data set, artifacts of these runs, and versions that were registered from them.

    Args:
        roots: folders to search.
        requests: their ids.
        match: by which they were found.
    """
    wanted = {one.encode() for one in requests}
    counts: dict[Path, dict[str, int]] = defaultdict(dict)
    runs, artifacts = [], []
    for folder, names in _folders(roots) if wanted else ():
        for name in names:
            if name.endswith((".jsonl", ".json", ".csv", ".tsv")) and (rows := _rows_of(folder / name, wanted)):
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
            advice = f"tuneloop data forget {quote(str(folder))} --match {quote(where)}"
            found.append(Descendant("data set", str(folder), name, rows, f"holds {rows:,} of them", advice))
            continue
        review, collected = (folder / Review.file).is_file(), (folder / CollectedManifest.file).is_file()
        kind = "review draw" if review else "collected rows" if collected else "file"
        more = "; `tuneloop collect` writes it again without them" if collected else ""
        places = {str(folder): rows} if review or collected else {str(folder / name): n for name, n in files.items()}
        found += [
            Descendant(
                kind, place, "", n, f"holds {n:,} of them", f"rm {'-r ' * (review or collected)}{quote(place)}{more}"
            )
            for place, n in places.items()
        ]
    trained = {
        str(_value(folder / "run.json", "id")): folder
        for folder in runs
        if _value(folder / "run.json", "dataset") in taught
    }
    for name, folder in trained.items():
        advice = f"train again when the data set has forgotten them: weights can remember rows; then rm -r {quote(str(folder))}"
        found.append(Descendant("run", str(folder), name, None, "trained on them", advice))
    for folder in artifacts:
        run = _value(folder / ARTIFACT, "run")
        if isinstance(run, dict) and run.get("id") in trained:
            advice = "replace it by one of the new run"
            found.append(Descendant("artifact", str(folder), folder.name, None, f"made of the run {run['id']}", advice))
    return found + registered(taught, trained)


def registered(datasets: Collection[str], runs: Collection[str]) -> list[Descendant]:
    """Versions of the model registry that come from a run or a data set; none where there is no registry.

    Args:
        datasets, runs: their ids.
    """
    if not datasets and not runs:
        return []
    try:
        models = read_models(open_registry())
    except UserError as error:
        if "no registry here" in error.what:
            return []
        look = "look yourself whether versions come from them"
        return [Descendant("registry", error.where, "", None, f"can't be read: {error.what}", look)]
    found = []
    for model in models:
        for version in model.versions:
            lineage = version.lineage
            if lineage.run not in runs and lineage.dataset not in datasets:
                continue
            named = f" and is its {', '.join(version.aliases)}" if version.aliases else ""
            advice = f"register an artifact of the new run (tuneloop models register ARTIFACT --name {model.name}) and promote it; then delete this version"
            why = f"made of the run {lineage.run}{named}"
            place = f"models:/{model.name}/{version.version}"
            found.append(Descendant("registered version", place, version.version, None, why, advice))
    return found


def rebuild(made: Sequence[Descendant], match: str, root: Path | str) -> dict[str, str]:
    """Remove the rows of the person from the data sets among what was made; returns their ids before and after.

    Args:
        made: from `made_of_requests`.
        match: by which the requests were found.
        root: folder to look for what was made of the data sets.
    """
    where = match.replace("id=", "request=", 1) if match.startswith("id=") else match
    done = {}
    for one in made:
        if one.kind == "data set":
            matcher = Matcher(where, False)
            matcher = Matcher(where, False, pseudonyms(matcher, personal_settings(one.path)))
            report = find_rows(one.path, matcher).report
            gone = forget(one.path, matcher, runs_root=root, measure=measure_of(one.path, ""))
            if report:
                write_data_report(Path(one.path), hidden)
            done[gone.old_id] = gone.new_id
    return done


def versions_of(found: SubjectRows, made: Sequence[Descendant]) -> list[Descendant]:
    """`registered` versions that have learned from rows of a data set.

    Args:
        found: the data set, as it was before the rows were removed.
        made: what was made from it.
    """
    taught = any(hit.file in ("train.jsonl", "val.jsonl") for hit in found.hits) or found.resumed
    runs = {one.id for one in made if one.kind == "run" and one.rows is None}
    return registered({found.manifest.id} if taught else (), runs)


def _folders(roots: Sequence[Path | str]) -> Iterator[tuple[Path, list[str]]]:
    whole = list(dict.fromkeys(map(Path, roots)))
    for root in whole:
        inside = any(root != one and root.resolve().is_relative_to(one.resolve()) for one in whole)
        yield from _folders_of(root) if not inside else ()


def _folders_of(root: Path) -> Iterator[tuple[Path, list[str]]]:
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
        return sum(any(name in wanted for pair in _NAMED.findall(line) for name in pair) for line in lines)
    return 0


def _value(path: Path, key: str) -> Any:
    with contextlib.suppress(UserError, OSError, ValueError):
        found = read_json(path)
        return found.get(key) if isinstance(found, dict) else None
    return None
