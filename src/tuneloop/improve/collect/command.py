"""`tuneloop collect`: a server's store becomes files that `prepare` reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import build_config, write_jsonl
from tuneloop.data.clean.pii import Redactor
from tuneloop.data.config import PersonalConfig
from tuneloop.improve.collect.collect import CollectOptions, collect
from tuneloop.improve.collect.training_rows import write_training_rows
from tuneloop.records.collected import CollectedManifest
from tuneloop.records.record import write_record
from tuneloop.serving.store.store import opened, read_feedback, read_requests, store_name

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
        place: the store's file, or the server's folder.
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
    where, values = ("model = ?", [options.model]) if options.model else ("", [])
    with opened(place) as store:
        where = f"shadow IS NULL AND {where}" if where else "shadow IS NULL"  # nobody saw those
        where += " AND COALESCE(train, '') != 'no'"
        requests = list(read_requests(store, since=options.since, until=options.until, where=where, values=values))
        feedback = list(read_feedback(store, origin=False))
    found = collect(requests, feedback, options)
    if not found.with_feedback:
        raise UserError(
            f"No request of {len(requests):,} has feedback", where=store_name(place),
            next_step="tuneloop collect show says what there is; tuneloop collect import FILE adds some",
        )  # fmt: skip
    redactor = Redactor(personal or PersonalConfig())
    rows = {name: [redactor(row) for row in getattr(found, name)] for name in FILES}
    more, task = _write(folder, rows, run)
    manifest = CollectedManifest(
        store=store_name(place),
        since=options.since,
        until=options.until,
        requests=len(requests),
        with_feedback=found.with_feedback,
        counts={name: len(of) for name, of in rows.items()} | more,
        origins=dict(Counter(str(row["origin"]) for row in [*rows["sft"], *rows["heldout"]])),
        own=sum("own" in row for row in rows["sft"]),
        dropped={reason: number for reason, number in found.dropped.items() if number},
        heldout_share=options.heldout_share,
        per_user=options.per_user,
        own_share=options.own_share,
        task=task,
    )
    write_record(folder / CollectedManifest.file, manifest)
    return manifest


def _write(
    folder: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]], run: Path | str
) -> tuple[dict[str, int], str]:
    """Write the files; with a run give the rows of those for its successor, and its kind of task."""
    (folder / CollectedManifest.file).unlink(missing_ok=True)
    for name, of in rows.items():
        if of:
            write_jsonl(folder / f"{name}.jsonl", of)
        else:
            (folder / f"{name}.jsonl").unlink(missing_ok=True)
    if not run:
        return {}, ""
    return write_training_rows(run, rows["sft"], rows["heldout"], folder)
