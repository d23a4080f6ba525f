"""Pseudonyms of users whose names come from elsewhere: the same name is the same pseudonym within a store."""

from __future__ import annotations

import hashlib
import hmac
import os

from tuneloop.data.clean.pii import DEFAULT_SECRET
from tuneloop.serving.store.database import Database

MARK = "u-"


def users_key(store: Database) -> bytes:
    """The key of a store's pseudonyms: that of TUNELOOP_SECRET, else a random name that this store alone has."""
    name = store.execute("SELECT store FROM places").fetchone()[0]
    return os.environ.get(DEFAULT_SECRET, "").encode("utf-8", "surrogateescape") or str(name).encode()


def pseudonym_of_user(name: str, key: bytes) -> str:
    """A user's pseudonym (HMAC-SHA256, RFC 2104, 80 bits of it), from which the key alone leads back."""
    return MARK + hmac.new(key, name.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:20]


def known_user(store: Database, match: str) -> str:
    """A match `user=NAME` with the pseudonym, where the store knows the user by that alone; any other as it is."""
    column, _, name = match.partition("=")
    query = 'SELECT 1 FROM requests WHERE "user" = ? LIMIT 1'
    if column != "user" or store.execute(query, [name]).fetchone() is not None:
        return match
    pseudonym = pseudonym_of_user(name, users_key(store))
    return match if store.execute(query, [pseudonym]).fetchone() is None else f"user={pseudonym}"
