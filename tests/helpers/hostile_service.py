"""A service that means harm, for whatever reads lists, jobs and files of someone else."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

from local_http import Quiet, listening

ESCAPES = "\x1b]0;owned\x07\x1b[2Jx"
LONG = "x" * 10_000_000
# What each field of an answer may hold instead of what it should.
WRONG: dict[str, Any] = {
    "text": "abc", "list": [1], "null": None, "true": True, "huge": 10**30, "float": 1e308, "object": {"a": {"b": []}},
    "escapes": ESCAPES, "climbs": "../../../etc/cron.d/x", "long": LONG, "negative": -1, "empty": "",
}  # fmt: skip


PLAIN: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "html": (200, b"<html><h1>Login</h1></html>", {"Content-Type": "text/html"}),
    "bad redirect": (302, b"", {"Location": "http://[:::/x"}),
    "truncated": (200, b'{"data": [', {"Content-Length": "1000"}),
    "deep": (200, b'{"data": ' + b"[" * 200_000, {}),
    "huge number": (200, b'{"data": [], "meta": {"page": 1' + b"0" * 5000 + b"}}", {}),
    "escapes": (400, json.dumps({"error": {"message": ESCAPES}}).encode(), {}),
}
LARGE: dict[str, Callable[[], tuple[int, bytes, dict[str, str]]]] = {
    "gzip": cache(lambda: (200, gzip.compress(b" " * (256 << 20), 1), {"Content-Encoding": "gzip"})),
    "large": cache(lambda: (200, b'{"data": ["' + b"x" * (70 << 20) + b'"]}', {})),
}


@dataclass
class Hostile:
    """What the service does, by `kind`, and what it was asked; `object_`: each answer that is JSON, else a list."""

    kind: str = "endless"
    elsewhere: str = ""  # address to which it redirects
    object_: dict[str, Any] | None = None
    requests: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)  # that came to it
    address: str = ""

    def answer(self) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of the next answer."""
        number = len(self.requests)
        rows: list[dict[str, Any]] = [{"id": f"row-{number}", "name": f"row-{number}", "object": "x"}]
        same = [{"id": "row", "name": "row"}]
        lists: dict[str, dict[str, Any]] = {
            "endless": {"data": rows, "has_more": True, "meta": {"cursor": f"c{number}"}, "nextPageToken": f"c{number}",
                        "supervisedFineTuningJobs": rows},
            "circle": {"data": same, "has_more": True, "meta": {"cursor": "c"}, "nextPageToken": "c"},
            "no news": {"data": same, "has_more": True, "meta": {"cursor": f"c{number}"},
                        "nextPageToken": f"c{number}", "supervisedFineTuningJobs": same},
            "many pages": {"data": rows, "meta": {"page": number, "totalPages": 10**9}},
            "meta.page": {"data": rows, "meta": {"page": "abc"}}, "meta": {"data": rows, "meta": [1]},
            "meta.totalPages": {"data": rows, "meta": {"page": 1, "totalPages": {"a": 1}}},
        }  # fmt: skip
        if self.kind in lists:
            return 200, json.dumps(lists[self.kind]).encode(), {}
        if self.kind == "object":
            return 200, json.dumps(self.object_).encode(), {}
        return {**PLAIN, "redirect": (302, b"", {"Location": f"{self.elsewhere}/v1/x"})}.get(self.kind) or LARGE[
            self.kind
        ]()


@contextmanager
def hostile(kind: str = "endless", **more: Any) -> Iterator[Hostile]:
    """The service while the block runs."""
    service = Hostile(kind, **more)

    class Handler(Quiet):
        protocol_version: ClassVar[str] = "HTTP/1.1"
        wbufsize: ClassVar[int] = -1  # head and body in one packet: else each answer waits 40 ms for an acknowledgement

        def any(self) -> None:
            self.body()
            status, content, headers = service.answer()
            service.requests.append(self.path)
            service.keys.append(self.headers.get("Authorization", ""))
            self.close_connection = kind == "truncated"
            with suppress(OSError):
                self.answer(status, content, headers)

        do_GET = do_POST = any

    with listening(Handler) as service.address:
        yield service
