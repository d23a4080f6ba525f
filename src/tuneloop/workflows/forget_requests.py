"""`tuneloop forget` on a server's folder: a user's requests leave the store, and the files next to it."""

from __future__ import annotations

from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder
from tuneloop.records.decision import Decision
from tuneloop.serve.erase import Erased, Matched, erase, find, proved
from tuneloop.serve.store import opened
from tuneloop.serve.writer import SPILL, StoreWriter


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
