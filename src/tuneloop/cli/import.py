"""`tuneloop import`: traces of other tools into a store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tuneloop.cli.console import Result
from tuneloop.cli.parameters import KEEP_PERSONAL, SERVER, argument, screen
from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.flag import flag, switch
from tuneloop.core.units import counted
from tuneloop.data.pii import PersonalConfig

if TYPE_CHECKING:
    from tuneloop.imports import ImportSummary


def command(
    format: str = argument("FORMAT", "langfuse, otel, tensorzero, litellm, openai, mlflow, helicone or jsonl."),
    sources: list[str] = argument("SOURCE...", "Exported files, globs or folders; of langfuse and mlflow an address."),
    store: str = flag("serve", "FOLDER", f"{SERVER} It is made where there is none.", "-s"),
    keep_users: bool = switch("Leave the names of users as they are; default: pseudonyms."),
    keep_personal: bool = KEEP_PERSONAL,
) -> Result:
    """Bring traces of other tools, with their feedback, into a store.

    Then `monitor`, `collect`, `costs` and `ui` work on them. Nothing is stored before the source was read to
    its end; the same command continues after a kill, and adds nothing twice. Exit status 1: no request was found.
    """
    from tuneloop.data.pii import Redactor
    from tuneloop.imports import FORMATS, TraceSource, import_traces

    if format not in FORMATS:
        step = did_you_mean(format, FORMATS, f"one of: {', '.join(FORMATS)}")
        raise UserError(f"No such format: {format!r:.40}", where="FORMAT", next_step=step)
    redactor = Redactor(PersonalConfig(mode="off") if keep_personal else PersonalConfig())
    with screen("importing"):
        summary = import_traces(TraceSource(FORMATS[format], sources, redactor, keep_users), store)
    nothing = not (summary.requests or summary.feedback or summary.known)
    return Result(summary, _lines(summary, store), int(nothing))


def _lines(summary: ImportSummary, store: str) -> Iterator[str]:
    from tuneloop.imports import REASONS

    yield f"read      {counted(summary.records, 'record')} of {summary.source}"
    times = f", from {summary.since[:16]} to {summary.until[:16]}" if summary.since else ""
    known = f"; {summary.known:,} were there already" if summary.known else ""
    yield f"stored    {counted(summary.requests, 'request')}, {summary.feedback:,} of feedback{known}{times}"
    if summary.repeated:
        yield f"repeated  {summary.repeated:,}: the same again in this source"
    for title, counts in (("left out", summary.left_out), ("lacking", summary.incomplete)):
        for reason, number in counts.items():
            yield f"{title:<9} {number:,}: {REASONS.get(reason, reason.replace('_', ' '))}"
    if summary.without:
        yield f"without   {', '.join(summary.without)}: no request of this source has it"
    if summary.rejects:
        yield f"rejects   {summary.rejects}"
    if summary.requests or summary.known:
        yield f"next      tuneloop costs -f {store}; tuneloop monitor {store} -r DATASET; tuneloop ui --store {store}"
