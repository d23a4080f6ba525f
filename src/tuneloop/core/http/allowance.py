"""What a service of someone else may take of this machine: pages, rows without news, bytes, seconds; one table.

A list is read a page at a time until the service says that it ends. One that never does, by mistake or on purpose, is
left here with a sentence that says which limit it met.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from tuneloop.core.foreign import LIMITS

MOST_OF_A_PAGE: Final = LIMITS["page"].bytes
MOST_PAGES: Final = LIMITS["list"].nodes
MOST_WITHOUT_NEWS: Final = 20  # pages in a row on which nothing is new
MOST_OF_A_LIST: Final = LIMITS["list"].bytes
MOST_SECONDS: Final = LIMITS["list"].seconds
MOST_OF_A_FILE: Final = LIMITS["download"].bytes
SLOWEST: Final = 1024  # bytes a second of a file, on average, once it has taken as long as an answer may
UPLOAD_WITHIN: Final = 3600.0  # seconds for a file that is sent, its answer included
LONGEST_NAME: Final = 1000  # characters of an id or a name that a service gives


@dataclass
class Allowance:
    """What a list has taken so far."""

    pages: int = 0
    bytes: int = 0
    repeated: int = 0  # pages in a row without news
    begun: float = field(default_factory=time.monotonic)
    _seen: set[int] = field(default_factory=set)  # hashes of ids
    _cursors: set[int] = field(default_factory=set)

    def fault(self, ids: Iterable[object], cursor: object = "", size: int = 0, pages: int = 0) -> str:
        """Take a page; returns what is wrong with the list, empty: nothing.

        Args:
            ids: of its rows. `size`: its bytes.
            cursor: of the next page, empty: none. `pages`: that the service says there are; 0: it says nothing.
        """
        hashes = {hash(str(id_)) for id_ in ids}
        self.repeated = 0 if hashes - self._seen else self.repeated + 1
        self._seen |= hashes
        self.pages, self.bytes = self.pages + 1, self.bytes + size
        circle = bool(cursor) and hash(str(cursor)) in self._cursors
        self._cursors.add(hash(str(cursor)))
        seconds = time.monotonic() - self.begun
        faults = {
            "it turns in a circle: the same cursor came twice": circle,
            f"nothing new on {MOST_WITHOUT_NEWS} pages in a row": bool(cursor) and self.repeated >= MOST_WITHOUT_NEWS,
            f"more than {MOST_PAGES:,} pages": max(self.pages, pages) > MOST_PAGES,
            f"more than {MOST_OF_A_LIST >> 30} GiB": self.bytes > MOST_OF_A_LIST,
            f"more than {MOST_SECONDS / 3600:g} hours": seconds > MOST_SECONDS,
        }
        return next((fault for fault, met in faults.items() if met), "")
