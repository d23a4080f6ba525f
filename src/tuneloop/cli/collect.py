"""`tuneloop collect`: requests and what people say of answers, into training data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tuneloop.cli.console import Result, minute
from tuneloop.cli.parameters import KEEP_PERSONAL, SERVER, STORE, STORE_ARGUMENT, argument, given, output, screen
from tuneloop.core.files import Config
from tuneloop.core.flag import flag, switch
from tuneloop.core.foreign import parse_json
from tuneloop.core.ids import since_time
from tuneloop.core.ui import say
from tuneloop.core.units import counted
from tuneloop.data.pii import PersonalConfig
from tuneloop.improve.collect import DROPPED, CollectOptions

if TYPE_CHECKING:
    from tuneloop.improve.feedback import Imported
    from tuneloop.records.server import CollectedManifest


def command(
    store: str = STORE_ARGUMENT,
    out: str = flag(..., "FOLDER", "Folder for the files.", "-o"),
    run: str = flag("", "FOLDER", "Run in use: write its rows and the collected ones, too: train.jsonl, test.jsonl."),
    keep_personal: bool = KEEP_PERSONAL,
    *,
    options: CollectOptions,
) -> Result:
    """Turn requests with feedback into training data, and keep some users for the test.

    Writes sft.jsonl, preference.jsonl, kto.jsonl and heldout.jsonl, which `tuneloop prepare` reads, and
    must_pass.jsonl, demands for the suite of a gate.
    """
    from tuneloop.improve.collect import collect_store

    with screen("collecting"):
        manifest = collect_store(store, out, given(options), personal=_personal(keep_personal), run=run)
    return Result({**manifest.to_json(), "path": out}, _collected(manifest, out, run))


def _collected(manifest: CollectedManifest, out: str, run: str) -> Iterator[str]:
    yield f"{'read':<11} {counted(manifest.requests, 'request')}, {manifest.with_feedback:,} with feedback"
    for name, rows in manifest.counts.items():
        note = f", {manifest.own:,} of them the model's own answers" if name == "sft" and manifest.own else ""
        yield f"{name:<11} {counted(rows, 'row')}{note}"
    for reason, number in manifest.dropped.items():
        yield f"{'left out':<11} {number:,}: {DROPPED[reason]}"
    test = f" split.test={out}/heldout.jsonl" if manifest.counts["heldout"] else ""
    if manifest.counts["must_pass"]:
        yield f"{'suite':<11} choose rows of {out}/must_pass.jsonl for the suite's must_pass_file"
    if run:
        from tuneloop.improve.collect import settings_of_retraining

        yield f"{'next':<11} tuneloop run RECIPE.yaml {' '.join(settings_of_retraining(Path(out)))}"
        return
    trained = (name for name in manifest.counts if name not in ("heldout", "must_pass"))
    if first := next((name for name in trained if manifest.counts[name]), ""):
        yield f"{'next':<11} tuneloop prepare {out}/{first}.jsonl{test}"


def _personal(keep: bool) -> PersonalConfig | None:
    return PersonalConfig(mode="off") if keep else None


def requests(
    out: str = flag(..., "FILE", "File of JSON lines.", "-o"),
    folder: str = flag("serve", "FOLDER", SERVER, "-f"),
    since: str = flag("", "TIME", "Only requests since then: 24h, 7d, 2026-01-31."),
    model: str = flag("", "NAME", "Only requests to this model.", "-m"),
    keep_personal: bool = KEEP_PERSONAL,
) -> Result:
    """Write served requests as a log that prepare reads.

    Each line has the request and the response as OpenAI's API has them, with time, user and release. Requests that
    failed, and those whose texts were not kept, are counted.
    """
    from tuneloop.improve.collect import write_requests

    personal = _personal(keep_personal)
    log = write_requests(folder, Path(out), since=since_time(since), model=model, personal=personal)
    if not output().as_json:
        with screen():
            texts = f"{log.without_text:,} whose texts were not kept"
            consent = f"{log.without_consent:,} that must not be trained on"
            say(f"requests  {log.written:,} in {log.out}; left out: {log.failed:,} failed, {texts}, {consent}")
            say(f"next:     tuneloop prepare {log.out}")
    return Result(asdict(log))


class FeedbackOptions(Config):
    """One piece of feedback."""

    PANEL: ClassVar[str] = "Feedback"

    kind: str = flag("thumbs", "KIND", "thumbs, rating, label, correction, comment, choice, or another name.")
    value: str = flag("", "VALUE", "up or down, a number, true or false, or a text.", "-v")
    conversation: str = flag("", "ID", "The conversation, in place of a request.")
    user: str = flag("", "NAME", "Who says so: a pseudonym.")
    key: str = flag("", "TEXT", "The same key again is the same feedback.")
    source: str = flag("", "NAME", "Where it comes from, as in app or support; default: command.")
    weight: float | None = flag(None, "X", "How many voices it counts as, where several are averaged; default: one.")
    time: str = flag("", "TIME", "When it was given, as in 2026-01-31T12:00:00Z; default: now.")


def add(
    request: str = argument("[REQUEST]", "Id of the request; with --conversation none.", ""),
    keep_personal: bool = KEEP_PERSONAL,
    store: str = STORE,
    *,
    feedback: FeedbackOptions,
) -> Result:
    """Store one piece of feedback on a request or a conversation."""
    from tuneloop.improve.feedback import add as store_one

    values = {**feedback.model_dump(), "request": request, "value": _value(feedback.kind, feedback.value)}
    entry, new = store_one(store, values, personal=_personal(keep_personal))
    line = f"{'stored' if new else 'known already'}: {entry.kind} on {entry.request or entry.conversation}"
    return Result({"id": entry.id, "new": new, "feedback": entry}, [line])


def _value(kind: str, text: str) -> Any:
    """A value as it is meant: a text for kinds that are texts; else true, false, a number, or the text itself."""
    if kind not in ("label", "correction", "comment", "choice"):
        with contextlib.suppress(ValueError):
            value = parse_json(text.lower())
            return value if isinstance(value, bool | int | float) else text
    return text


def import_(
    sources: list[str] = argument("FILE...", "Files with columns request, kind and value; jsonl, csv, parquet, ..."),
    kind: str = flag("", "KIND", "Kind of records that name none."),
    keep_personal: bool = KEEP_PERSONAL,
    store: str = STORE,
) -> Result:
    """Store the feedback of files; the same file again adds nothing. Exit status 1: no record holds feedback."""
    from tuneloop.improve.feedback import import_files

    with screen("importing"):
        result = import_files(store, sources, kind=kind, personal=_personal(keep_personal))
    nothing = bool(result.refused) and not result.added and not result.known
    return Result(result, _imported(result, nothing=nothing), int(nothing))


def _imported(result: Imported, *, nothing: bool) -> Iterator[str]:
    yield f"added     {result.added:,}" + (f"; {result.known:,} were known already" if result.known else "")
    by_reason: dict[str, list[Mapping[str, Any]]] = {}
    for refusal in result.refused:
        by_reason.setdefault(str(refusal["reason"]), []).append(refusal)
    for reason, (first, *others) in by_reason.items():
        more = f" and {len(others):,} more" if others else ""
        yield f"refused   {first['source']}:{first['line']}{more}: {reason}"
    if nothing:
        columns = "name the columns request (or conversation), kind and value"
        yield f"next      {columns}; rated chats go to `tuneloop prepare`"


def export(
    out: str = flag(..., "FILE", "Where it is written, as JSON Lines.", "-o"),
    since: str = flag("", "TIME", "Only what was given from then on."),
    until: str = flag("", "TIME", "Only what was given before."),
    keep_personal: bool = KEEP_PERSONAL,
    store: str = STORE,
) -> Result:
    """Write feedback as JSON Lines."""
    from tuneloop.improve.feedback import export as write

    lines = write(store, out, since=since, until=until, personal=_personal(keep_personal))
    return Result({"path": out, "lines": lines}, [f"written   {out}: {counted(lines, 'line')}"])


def show_feedback(
    since: str = flag("", "TIME", "Only what was given from then on."),
    until: str = flag("", "TIME", "Only what was given before."),
    orphans: bool = switch("List feedback on requests that are not known."),
    store: str = STORE,
) -> Result:
    """Show how much feedback there is of each kind, and how good it is."""
    from tuneloop.improve.feedback import show as read

    summary = read(store, since=since, until=until)
    lines = [f"requests  {summary.requests:,}, of which {summary.rated:,} have feedback"]
    for row in summary.kinds:
        mean = "" if row.mean is None else f", {row.mean:.3f} good on average (0 to 1)"
        lines.append(f"{row.kind:<9} {row.events:,} events, {row.current:,} hold{mean}")
    if summary.orphans:
        lines.append(f"orphans   {len(summary.orphans):,} on requests or conversations that are not known (yet)")
    for orphan in summary.orphans if orphans else []:
        lines.append(f"  {minute(orphan.time)}  {orphan.kind} on {orphan.request or orphan.conversation}")
    return Result(summary, lines)


commands = {"requests": requests, "add": add, "import": import_, "export": export, "show": show_feedback}
