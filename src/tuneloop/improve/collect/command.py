"""`tuneloop collect`: a server's store becomes files that `prepare` reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import build_config, replacing, write_jsonl
from tuneloop.data.clean.pii import Redactor
from tuneloop.data.config import PersonalConfig
from tuneloop.improve.collect.collect import CollectOptions, collect
from tuneloop.improve.collect.training_rows import write_training_rows
from tuneloop.records.collected import CollectedManifest
from tuneloop.records.record import write_record
from tuneloop.serving.store.store import exported, opened, read_feedback, read_requests, store_name

FILES = ("sft", "preference", "kto", "heldout", "must_pass")


def collect_store(
    place: Path | str,
    out: Path | str,
    settings: Mapping[str, Any],
    *,
    personal: PersonalConfig | None = None,
    run: Path | str = "",
) -> CollectedManifest:
    """Write a file for each of `FILES` that has rows, and `collect.json`.

    Args:
        out: folder for the files; those of an earlier collection are replaced.
        settings: by the names of `CollectOptions`.
        personal: what happens to personal data; replaced by default, also where the server kept them.
        run: in use: `train.jsonl` and `test.jsonl` are written, too, see `training_rows`; empty: they are not.

    Raises:
        UserError: there is no store, a setting is bad, no request has feedback, or the folder holds other files.
    """
    options = build_config(CollectOptions, settings)
    folder = Path(out)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CollectedManifest.file).is_file():
        raise UserError("The folder holds other files", where=str(folder), next_step="name a new folder with -o")
    # Copies, whose answers no user saw, and requests whose key refuses it are left out.
    where = f"shadow IS NULL{' AND model = ?' if options.model else ''} AND COALESCE(train, '') != 'no'"
    values = [options.model] if options.model else []
    with opened(place) as store:
        requests = list(read_requests(store, since=options.since, until=options.until, where=where, values=values))
        feedback = list(read_feedback(store, origin=False))
    collected = collect(requests, feedback, options)
    if not collected.with_feedback:
        step = "tuneloop collect show says what there is; tuneloop collect import FILE adds some"
        raise UserError(f"No request of {len(requests):,} has feedback", where=store_name(place), next_step=step)
    redactor = Redactor(personal or PersonalConfig())
    rows = {name: [redactor(row) for row in getattr(collected, name)] for name in FILES}
    (folder / CollectedManifest.file).unlink(missing_ok=True)
    for name, of in rows.items():
        (folder / f"{name}.jsonl").unlink(missing_ok=True)
        if of:
            write_jsonl(folder / f"{name}.jsonl", of)
    more, task = write_training_rows(run, rows["sft"], rows["heldout"], folder) if run else ({}, "")
    manifest = CollectedManifest(
        store=store_name(place),
        requests=len(requests),
        with_feedback=collected.with_feedback,
        counts={name: len(of) for name, of in rows.items()} | more,
        origins=dict(Counter(str(row["origin"]) for row in [*rows["sft"], *rows["heldout"]])),
        own=sum("own" in row for row in rows["sft"]),
        dropped={reason: number for reason, number in collected.dropped.items() if number},
        task=task,
        **options.model_dump(include={"since", "until", "heldout_share", "per_user", "own_share"}),
    )
    write_record(folder / CollectedManifest.file, manifest)
    return manifest


@dataclass(frozen=True)
class Written:
    """What became of the requests of a store."""

    out: str
    written: int = 0  # lines of the file
    failed: int = 0  # had an error in place of an answer
    without_text: int = 0  # whose texts were not kept (`log.content`)
    without_consent: int = 0  # whose key says `train: no`


def write_requests(
    place: Path | str, out: Path, *, since: str = "", model: str = "", personal: PersonalConfig | None = None
) -> Written:
    """Write answered requests as JSON Lines with `request` and `response`, in the order in which they came.

    `personal`: what happens to personal data in texts; replaced by default, also where the server kept them. Raises
    UserError: no store, or a file that can't be written.
    """
    if out.is_dir():
        raise UserError("A folder has this name", where=f"--out {out}", next_step="choose another name")
    counts: Counter[str] = Counter()
    redactor = Redactor(personal or PersonalConfig())
    condition = {"where": "model = ?", "values": [model]} if model else {}
    with opened(place) as store, replacing(out) as file:
        for request in read_requests(store, since=since, **condition):  # type: ignore[arg-type]
            line = exported(request)
            if line is not None:
                counts["written"] += 1
                line |= {name: redactor(line[name]) for name in ("request", "response")}
                file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            elif request.train == "no":
                counts["without_consent"] += 1
            else:
                counts["without_text" if request.error is None else "failed"] += 1
    return Written(str(out), **counts)
