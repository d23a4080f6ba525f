"""A server on this machine that plays a host's API: it answers by rules, refuses what it is told to, and knows what is left there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from local_http import Quiet, listening

Rule = tuple[str, str, Callable[["StandIn", "re.Match[str]", Any], Any]]  # method, pattern of the path, answer


@dataclass
class StandIn:
    """A host.

    Args:
        rules: the first that fits answers; its answer is JSON, or a pair of status and JSON.
        refuses: by METHOD PATTERN the statuses that are answered before the rules are asked, one a request.

        header: names what is called, where all requests go to one path.

    Attributes:
        asked: METHOD PATH of each request.
        there: what was created and not deleted, by its path.
        loses: what is carried out next without its answer arriving, where the rules look there.
    """

    rules: list[Rule]
    refuses: dict[str, list[int]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    there: dict[str, Any] = field(default_factory=dict)
    loses: dict[str, bool] = field(default_factory=dict)
    url: str = ""
    header: str = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and body of a request."""
        said = f"{method} {path}"
        try:
            value = json.loads(body)
        except ValueError:
            value = {}
        self.asked.append(said)
        self.bodies.append(value)
        for pattern, statuses in self.refuses.items():
            if statuses and re.search(pattern, said):
                status = statuses.pop(0)
                text = {402: "not enough credits", 429: "quota exceeded", 401: "the token has expired"}.get(
                    status, "busy"
                )
                return status, {"error": {"message": text, "code": "refused"}, "message": text}
        for kind, pattern, rule in self.rules:
            if kind == method and (found := re.fullmatch(pattern, path.split("?")[0])):
                result = rule(self, found, value)
                return result if isinstance(result, tuple) else (200, result)
        return 404, {"error": {"message": f"nothing at {said}", "code": "not_found"}}


@contextmanager
def standing_in(host: StandIn) -> Iterator[StandIn]:
    """Serve it; its address is in `url`."""

    class Handler(Quiet):
        def any(self) -> None:
            path = self.headers.get(host.header) or self.path
            status, value = host.answer(self.command, path, self.body())
            self.answer(status, b"" if status == 204 else value, {"ETag": '"a1b2"'})

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = any

    with listening(Handler) as host.url:
        yield host
