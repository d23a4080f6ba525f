"""`tuneloop collect requests`: what a server answered, as a log that `tuneloop prepare` reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import replacing
from tuneloop.data.clean.pii import Redactor
from tuneloop.data.config import PersonalConfig
from tuneloop.serving.store.store import exported, opened, read_requests


@dataclass(frozen=True)
class Written:
    """What became of the requests of a store.

    Args:
        written: lines of the file.
        failed: had an error in place of an answer.
        without_text: whose texts were not kept (`log.content`).
        without_consent: whose key says `train: no`.
    """

    out: str
    written: int = 0
    failed: int = 0
    without_text: int = 0
    without_consent: int = 0


def write_requests(
    place: Path | str, out: Path, *, since: str = "", model: str = "", personal: PersonalConfig | None = None
) -> Written:
    """Write answered requests as JSON Lines with `request` and `response`, in the order in which they came.

    Args:
        place: the server's folder, or its store.
        since: ISO time; empty: all.
        model: only those to this model.
        personal: what happens to personal data in texts; replaced by default, also where the server kept them.

    Raises:
        UserError: no store, or a file that can't be written.
    """
    if out.is_dir():
        raise UserError("A folder has this name", where=f"--out {out}", next_step="choose another name")
    written = failed = without = refused = 0
    redactor = Redactor(personal or PersonalConfig())
    condition = {"where": "model = ?", "values": [model]} if model else {}
    with opened(place) as store, replacing(out) as file:
        for request in read_requests(store, since=since, **condition):  # type: ignore[arg-type]
            line = exported(request)
            if line is not None:
                written += 1
                line |= {name: redactor(line[name]) for name in ("request", "response")}
                file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            elif request.train == "no":
                refused += 1
            elif request.error is not None:
                failed += 1
            else:
                without += 1
    return Written(str(out), written, failed, without, refused)
