"""`tuneloop forget` on a server's folder: a user's requests leave the store, and the files next to it."""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder, read_json
from tuneloop.data.forget import Descendant, Found, find_rows, forget, personal_settings
from tuneloop.data.pii import hidden
from tuneloop.data.subject_match import Matcher, pseudonyms
from tuneloop.records.artifact import ARTIFACT
from tuneloop.records.collected import CollectedManifest
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.decision import Decision
from tuneloop.records.review import Review
from tuneloop.release.registry import read_models
from tuneloop.report.data_html import write_data_report
from tuneloop.serve.erase import Erased, Matched, erase, find, proved
from tuneloop.serve.store import opened, store_folder, store_name
from tuneloop.serve.writer import SPILL, StoreWriter
from tuneloop.workflows.prepare import measure_of
from tuneloop.workflows.registry import open_registry

DEEPEST = 8  # folders below the root
_NAMED = re.compile(rb'"(?:request|request_id|row)"\s*:\s*"([^"\\]+)"')  # a row says which request it comes from


def forget_requests(place: Path | str, match: str, *, dry_run: bool) -> tuple[Matched, Erased | None]:
    """Erase what a match names.

    Where no server is at work, what waits in files of its folder is stored first, so that it is found. A server that is
    at work empties them within half a minute.

    Args:
        place: the server's folder, or its store.
        match: see `serve.erase.find`.
        dry_run: only look.

    Raises:
        UserError: no store, a bad match, or records wait in the spill file of a server at work.
    """
    folder = store_folder(place)
    own = folder.is_dir() and store_name(folder) == store_name(place)  # not one of another store, where this has a URL
    try:
        with lock_folder(folder) if own else contextlib.nullcontext():
            if own:
                writer = StoreWriter(folder, say=lambda line: None, store=str(place))
                writer.start()
                writer.stop()
    except UserError as error:
        if "Another tuneloop process" not in error.what:
            raise
    if own and (folder / SPILL).exists() and not dry_run:
        raise UserError(
            "Records wait to get into the store, and could not be found there", where=str(folder / SPILL),
            next_step="make room on the disk, and try again when the file is gone",
        )  # fmt: skip
    with opened(place) as store:
        found = find(store, match)
        return found, None if dry_run or not (found.requests or found.feedback) else erase(store, match, found)


def proof_of(place: Path | str, match: str, receipt: str) -> Decision | None:
    """The tombstone of an erasure, by its receipt; None: there is none of this person."""
    with opened(place) as store:
        return proved(store, match, receipt)


def made_of_requests(root: Path | str, requests: Collection[str], match: str) -> list[Descendant]:
    """What was made of requests: collected rows, data sets, review queues and other files with rows that name one of them, runs
    that were trained on such a data set, artifacts of these runs, and versions that were registered from them.

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
            advice = f"register an artifact of the new run (tuneloop register ARTIFACT --name {model.name}) and promote it; then delete this version"
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


def versions_of(found: Found, made: Sequence[Descendant]) -> list[Descendant]:
    """`registered` versions that have learned from rows of a data set.

    Args:
        found: the data set, as it was before the rows were removed.
        made: what was made from it.
    """
    taught = any(hit.file in ("train.jsonl", "val.jsonl") for hit in found.hits) or found.resumed
    runs = {one.id for one in made if one.kind == "run" and one.rows is None}
    return registered({found.manifest.id} if taught else (), runs)


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
