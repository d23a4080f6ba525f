"""`tuneloop data forget` on a server's folder: a user's requests leave the store, and the files next to it.

An erasure is first a file in that folder. The process that holds the folder does it: the command, or the server. So it
continues after a kill: the next command does what is left of it, or the next server when it starts.
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

from tuneloop.core.confined import leads_into
from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder, read_json, write_json
from tuneloop.core.ids import uuid7
from tuneloop.core.ui import quiet, say
from tuneloop.data.pii import (
    Descendant,
    Matcher,
    PersonalConfig,
    SubjectRows,
    find_rows,
    forget,
    hidden,
    personal_settings,
    pseudonyms_of,
)
from tuneloop.pipeline import measure_of
from tuneloop.records.artifact import ARTIFACT
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.review import Review
from tuneloop.records.server import CollectedManifest, Decision, ServerState
from tuneloop.registry import open_registry, read_models
from tuneloop.report.data import write_data_report
from tuneloop.serving.store.database import Database, DatabaseError, open_sqlite
from tuneloop.serving.store.erase import COLUMNS, Erased, Matched, delete, erase, find, proved, whose_lines
from tuneloop.serving.store.erase_files import PENDING, Whose, copies_of_the_store, erase_lines
from tuneloop.serving.store.migrations import VERSION, bring_up_to_date
from tuneloop.serving.store.store import known_user, opened, store_file, store_folder, store_name, store_url
from tuneloop.serving.store.writer import SPILL, StoreWriter

DEEPEST = 8  # folders below the root
PATIENCE = 120.0  # seconds to wait for a server that erases
# A row says which request it comes from; in a table it is a cell.
_NAMED = re.compile(
    rb'"(?:request|request_id|row)"\s*:\s*"([^"\\]+)"|\b([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\b'
)


def forget_requests(location: Path | str, match: str, *, dry_run: bool) -> tuple[Matched, Erased | None]:
    """Erase what a match names, from the store and from all files of its server's folder.

    Args:
        location: the server's folder, or its store.
        match: see `serve.erase.find`.
        dry_run: only look.

    Raises:
        UserError: no store, a bad match, or records can't get into the store, so that they are not found there.
    """
    with opened(location) as store:
        match = known_user(store, match)
    folder, name = store_folder(location), store_name(location)
    inside = folder.is_dir() and store_name(folder) == name  # not one of another store, where this has a URL
    if dry_run:
        with _if_free(folder if inside else None) as alone:
            if alone:
                _store_what_waits(folder, str(location))
        with opened(location) as store:
            return _matched(store, match, folder if inside else None, location), None
    receipt = secrets.token_urlsafe(16)
    matched, _ = forget_requests(location, match, dry_run=True)
    if not inside:
        with opened(location) as store:
            return matched, erase(store, match, matched, receipt) if matched.anything else None
    if matched.anything:
        write_json(folder / PENDING.replace("*", uuid7()), {"version": 1, "match": match, "receipt": receipt})
    until, waiting = time.monotonic() + PATIENCE, False
    while any(folder.glob(PENDING)):
        with _if_free(folder) as alone:
            if alone:
                _store_what_waits(folder, str(location))
                finish_forgetting(folder, str(location))
        if not alone:
            if time.monotonic() > until:
                step = "it does so as soon as it can, also when it starts again; --dry-run shows what is left"
                raise UserError("The server has not erased it yet", where=str(folder), next_step=step)
            if not waiting:
                say(f"waiting for the server that works in {folder}: it erases them")
            waiting = True
            time.sleep(0.1)
    stone = proof_of(location, match, receipt)
    return matched, Erased(stone.data["requests"], stone.data["feedback"], receipt) if stone is not None else None


def finish_forgetting(
    folder: Path, location: str, *, alone: bool = True, appending: AbstractContextManager[Any] | None = None
) -> list[str]:
    """Do the erasures that have begun in a server's folder, which this process holds.

    Args:
        location: of the store, which has all records that waited for it.
        alone: no server works there.
        appending: held while files that the server appends to are rewritten.

    Returns:
        Ids of the requests that were erased.

    Raises:
        UserError: the store can't be used, or a file can't be written; what is left is done the next time.
    """
    ids: list[str] = []
    for pending in sorted(folder.glob(PENDING)):
        value = read_json(pending)
        match, also = value["match"], _pseudonyms(folder, value["match"])
        with opened(location) as store:
            matched = _matched(store, match, folder, location)
            whose = whose_lines(store, match, matched, also)

            def lines(whose: Whose = whose) -> None:
                with appending or contextlib.nullcontext():
                    erase_lines(folder, whose, act=True, alone=alone)

            erase(store, match, matched, value["receipt"], lines)
        _in_copies(folder, location, match, also, act=True)
        ids += matched.requests
        pending.unlink()
    return ids


def _in_copies(folder: Path, location: Path | str, match: str, also: Sequence[str], *, act: bool) -> int:
    """Records of theirs in copies of the store that a person has made in its folder."""
    count = 0
    for path in copies_of_the_store(folder, None if store_url(location) else store_file(location)):
        with contextlib.suppress(DatabaseError), contextlib.closing(open_sqlite(path, patience=5.0)) as store:
            if act and 0 < store.version() < VERSION and store.has_table("places"):  # as a backup of an earlier form
                bring_up_to_date(store, str(path), back_up=False)
            matched = find(store, match, also)  # not in another program's database
            count += len(matched.requests) + len(matched.feedback)
            if act and matched.anything:
                delete(store, matched)
    return count


def _matched(store: Database, match: str, folder: Path | None, location: Path | str) -> Matched:
    """What is theirs in the store, and in the files of a server's folder."""
    if folder is None:
        return find(store, match, ())
    also = _pseudonyms(folder, match)
    matched = find(store, match, also)
    lines = erase_lines(folder, whose_lines(store, match, matched, also), act=False)
    lines += _in_copies(folder, location, match, also, act=False)
    return replace(matched, lines=lines, begun=any(folder.glob(PENDING)))


def _pseudonyms(folder: Path, match: str) -> tuple[str, ...]:
    """What replaces a text in a store with pseudonyms."""
    if match.partition("=")[0] in COLUMNS:
        return ()
    content = _value(folder / ServerState.file, "config")
    log = content.get("log") if isinstance(content, dict) else None
    if not isinstance(log, dict) or log.get("content") != "pseudonyms":
        return ()
    return pseudonyms_of(Matcher(match), PersonalConfig(mode="pseudonym"))


@contextlib.contextmanager
def _if_free(folder: Path | None) -> Iterator[bool]:
    """Hold a server's folder where no other process does; gives whether it is held."""
    with contextlib.ExitStack() as stack:
        alone = folder is not None
        try:
            if folder is not None:
                stack.enter_context(lock_folder(folder))
        except UserError as error:
            if "Another tuneloop process" not in error.what:
                raise
            alone = False
        yield alone


def _store_what_waits(folder: Path, location: str) -> None:
    """Bring what a server has left into the store, so that it is found there, or raise a UserError."""
    with quiet():
        writer = StoreWriter(folder, store=location)
        writer.start()
        stored = writer.settle(30)
        writer.stop()
    if not stored:
        refuse_spilled(folder)


def refuse_spilled(folder: Path) -> None:
    """Refuse to erase while records wait to get into the store, where they would not be found: always a UserError."""
    step = "make room on the disk, or end what holds the store, and try again without that file"
    message = "Records wait to get into the store, and could not be found there"
    raise UserError(message, where=str(folder / SPILL), next_step=step)


def proof_of(location: Path | str, match: str, receipt: str) -> Decision | None:
    """The tombstone of an erasure, by its receipt; None: there is none of this person."""
    with opened(location) as store:
        return proved(store, match, receipt)


def made_of_requests(roots: Sequence[Path | str], requests: Collection[str], match: str) -> list[Descendant]:
    """What was made of requests, by ids that `match` names: collected rows, data sets, review draws and other files
    with such rows, runs that were trained on them, artifacts of these, and versions that were registered from them."""
    ids = {request.encode() for request in requests}
    counts: dict[Path, dict[str, int]] = defaultdict(dict)
    runs, artifacts = [], []
    for folder, names in _folders(roots) if ids else ():
        for name in names:
            if name.endswith((".jsonl", ".json", ".csv", ".tsv")) and (rows := _rows_of(folder / name, ids)):
                counts[folder][name] = rows
        runs += [folder] if "run.json" in names else []
        artifacts += [folder] if ARTIFACT in names else []
    descendants: list[Descendant] = []

    def add(kind: str, location: Path, name: str, rows: int | None, cause: str, advice: str) -> None:
        descendants.append(Descendant(kind, str(location), name, rows, cause, advice))

    taught: set[str] = set()
    for folder, files in counts.items():
        rows = sum(files.values())
        if (folder / MANIFEST).is_file():
            name = str(_value(folder / MANIFEST, "id"))
            taught |= {name} if files.get("train.jsonl") or files.get("val.jsonl") else set()
            advice = f"tuneloop data forget {quote(str(folder))} --match {quote(_in_a_data_set(match))}"
            add("data set", folder, name, rows, f"holds {rows:,} of them", advice)
            continue
        review, collected = (folder / Review.file).is_file(), (folder / CollectedManifest.file).is_file()
        kind = "review draw" if review else "collected rows" if collected else "file"
        more = "; `tuneloop collect` writes it again without them" if collected else ""
        rm = f"rm {'-r ' * (review or collected)}"
        places = {folder: rows} if review or collected else {folder / name: n for name, n in files.items()}
        for directory, n in places.items():
            add(kind, directory, "", n, f"holds {n:,} of them", f"{rm}{quote(str(directory))}{more}")
    learned = [folder for folder in runs if _value(folder / "run.json", "dataset") in taught]
    trained = {str(_value(folder / "run.json", "id")): folder for folder in learned}
    advice = "train again when the data set has forgotten them: weights can remember rows; then rm -r "
    for name, folder in trained.items():
        add("run", folder, name, None, "trained on them", advice + quote(str(folder)))
    for folder in artifacts:
        run = _value(folder / ARTIFACT, "run")
        if isinstance(run, dict) and run.get("id") in trained:
            reason, advice = f"made of the run {run['id']}", "replace it by one of the new run"
            add("artifact", folder, folder.name, None, reason, advice)
    return descendants + registered(taught, trained)


def _in_a_data_set(match: str) -> str:
    return match.replace("id=", "request=", 1) if match.startswith("id=") else match


def registered(datasets: Collection[str], runs: Collection[str]) -> list[Descendant]:
    """Versions of the model registry that come from runs or data sets, by ids; none where there is no registry."""
    if not datasets and not runs:
        return []
    try:
        models = read_models(open_registry())
    except UserError as error:
        if "no registry here" in error.what:
            return []
        look = "look yourself whether versions come from them"
        return [Descendant("registry", error.where, "", None, f"can't be read: {error.what}", look)]
    descendants = []
    for model in models:
        command = f"tuneloop models register ARTIFACT --name {model.name}"
        advice = f"register an artifact of the new run ({command}) and promote it; then delete this version"
        for version in model.versions:
            run = version.lineage.run
            if run in runs or version.lineage.dataset in datasets:
                aliases = f" and is its {', '.join(version.aliases)}" if version.aliases else ""
                reason, path = f"made of the run {run}{aliases}", f"models:/{model.name}/{version.version}"
                descendants.append(Descendant("registered version", path, version.version, None, reason, advice))
    return descendants


def rebuild(made: Sequence[Descendant], match: str, root: Path | str) -> dict[str, str]:
    """Remove a person's rows from data sets, looking for what was made of them below `root`; returns old -> new ids."""
    where, ids = _in_a_data_set(match), {}
    for path in (member.path for member in made if member.kind == "data set"):
        matcher = Matcher(where, False, pseudonyms_of(Matcher(where, False), personal_settings(path)))
        report = find_rows(path, matcher).report
        change = forget(path, matcher, runs_root=root, measure=measure_of(path, ""))
        if report:
            write_data_report(Path(path), hidden)
        ids[change.old_id] = change.new_id
    return ids


def versions_of(before: SubjectRows, made: Sequence[Descendant]) -> list[Descendant]:
    """`registered` versions that have learned from rows of a data set: as it was before, and what was made from it."""
    taught = any(hit.file in ("train.jsonl", "val.jsonl") for hit in before.hits) or before.resumed
    runs = {member.id for member in made if member.kind == "run" and member.rows is None}
    return registered({before.manifest.id} if taught else (), runs)


def _folders(roots: Sequence[Path | str]) -> Iterator[tuple[Path, list[str]]]:
    """Folders below the roots, each once, with the names of their files."""
    paths = list(dict.fromkeys(map(Path, roots)))
    for root in paths:
        if any(root != other and leads_into(root, [other]) for other in paths):
            continue
        for folder, folders, names in os.walk(root):
            deep = len(Path(folder).relative_to(root).parts) >= DEEPEST
            apart = {n for n in folders if deep or n.startswith(".") or n in ("checkpoints", "node_modules")}
            folders[:] = sorted({*folders} - apart)
            yield Path(folder), names


def _rows_of(path: Path, ids: Collection[bytes]) -> int:
    """Lines of a file that name one of the requests."""
    with contextlib.suppress(OSError), path.open("rb") as lines:
        return sum(any(name in ids for pair in _NAMED.findall(line) for name in pair) for line in lines)
    return 0


def _value(path: Path, key: str) -> Any:
    with contextlib.suppress(UserError, OSError, ValueError):
        if isinstance(values := read_json(path), dict):
            return values.get(key)
    return None
