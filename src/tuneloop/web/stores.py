"""The store that a page shows, of those that there are; and what was done to it on a page, in its log of decisions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request

from tuneloop.core.errors import UserError
from tuneloop.core.ids import uuid7
from tuneloop.improve.experiment import add_event
from tuneloop.records.record import read_record
from tuneloop.records.server import Decision, ServerState
from tuneloop.serving.store import (
    Database,
    is_database_url,
    keep_password,
    opened,
    read_decisions,
    store_folder,
    store_name,
)
from tuneloop.web.sources import NotFound, Sources

ACTION = "page.action"  # an event of the log: who did what on a page


@dataclass(frozen=True)
class ShownStore:
    """A store as pages name it.

    Args:
        place: for `opened`; `key`: stands for it in addresses; `name`: for people, without a password.
        others: key and name of all that there are, where there are several.
        folder: of its server; `state`: of that, as it was last written.
    """

    place: str
    key: str
    name: str
    others: list[tuple[str, str]]
    folder: Path
    state: ServerState

    @property
    def word(self) -> str:
        """As the word of a command, whose password, if any, goes by the environment."""
        return keep_password(self.place) if is_database_url(self.place) else self.place


def store_key(path: str) -> str:
    """What stands for a store's place in addresses; of a server's folder its key in the index."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def shown_store(request: Request, sources: Sources) -> ShownStore:
    """The store that a request's `store` names, else the first one. Raises UserError: there is none, or no such one."""
    places = {store_key(store): store for store in sources.stores}
    if not places:
        step = "`tuneloop serve` makes one; or name one: tuneloop ui --store STORE"
        raise NotFound("There is no server's store in these folders", next_step=step)
    key = request.query_params.get("store") or next(iter(places))
    if key not in places:
        raise NotFound("This store is not there any more", where=key[:40], next_step="go to another page and back")
    names = {name: place_name(sources, path) for name, path in places.items()}
    folder, state = store_folder(places[key]), ServerState()
    with suppress(UserError):  # a damaged one says nothing
        state = read_record(ServerState, folder, below=folder) if (folder / ServerState.file).is_file() else state
    return ShownStore(places[key], key, names[key], list(names.items()) if len(names) > 1 else [], folder, state)


def place_name(sources: Sources, path: str) -> str:
    """A store's place as pages show it: below the folders, or whole, without a password."""
    name = store_name(path)
    for folder in sources.index.folders:
        with suppress(ValueError):
            return str(Path(name).resolve().relative_to(folder.resolve()))
    return name


def note_action(path: str, sources: Sources, subject: str, command: str) -> None:
    """Write into the store's log who did what on a page."""
    sentence = f"{sources.who or 'someone'}: {command}"
    with opened(path) as store:
        add_event(store, ACTION, subject, {"who": sources.who, "command": command, "sentence": sentence}, key=uuid7())


def actions_on(store: Database, subject: str) -> list[Decision]:
    """What was done about a subject on a page, the latest first."""
    return [*read_decisions(store, where=f"kind = '{ACTION}' AND subject = ?", values=[subject])][::-1]


def required(form: Mapping[str, Any], name: str, message: str) -> str:
    """A field of a form that must not be empty."""
    value = str(form.get(name, "")).strip()
    if not value:
        raise UserError(f"{message} is missing", where=name, next_step="go back and write it")
    return value
