"""`tuneloop feedback`: what people say of answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import typer

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import flag, switch
from tuneloop.core.units import counted

STORE = flag("serve", "FOLDER", "The server's folder, or its store: a file or a postgresql:// URL.")
KEEP = switch("Leave personal data in texts as they are.", "--keep-personal")


@dataclass(frozen=True)
class Said:
    """One piece of feedback."""

    PANEL: ClassVar[str] = "Feedback"

    kind: str = flag("thumbs", "KIND", "thumbs, rating, label, correction, comment, choice, or a name of your own.")
    value: str = flag("", "VALUE", "up or down, a number, true or false, or a text.", "-v")
    conversation: str = flag("", "ID", "The conversation, in place of a request.")
    user: str = flag("", "NAME", "Who says so: a pseudonym.")
    key: str = flag("", "TEXT", "The same key again is the same feedback.")
    source: str = flag("", "NAME", "Where it comes from, as in app or support; default: command.")
    weight: float | None = flag(None, "X", "How many voices it counts as, where several are averaged; default: one.")
    time: str = flag("", "TIME", "When it was said, as in 2026-01-31T12:00:00Z; default: now.")


def add(
    request: str = argument("[REQUEST]", "Id of the request; with --conversation none.", ""),
    keep_personal: bool = KEEP,
    store: str = STORE,
    *,
    said: Said,
    output: Output,
) -> None:
    """Store one piece of feedback on a request or a conversation."""
    from tuneloop.improve.feedback.command import add as store_one

    given = {**asdict(said), "request": request, "value": _value(said.kind, said.value)}
    one, new = store_one(store, given, personal=_personal(keep_personal))
    if output.json:
        print_json({"id": one.id, "new": new, "feedback": one})
    else:
        print(f"{'stored' if new else 'known already'}: {one.kind} on {one.request or one.conversation}")


def _value(kind: str, text: str) -> Any:
    """A value as it is meant: a text for kinds that are texts; else true, false, a number, or the text itself."""
    if kind in ("label", "correction", "comment", "choice"):
        return text
    try:
        found = json.loads(text.lower())
    except ValueError:
        return text
    return found if isinstance(found, bool | int | float) else text


def _personal(keep: bool) -> Any:
    from tuneloop.data.config import PersonalConfig

    return PersonalConfig(mode="off") if keep else None


def import_(
    sources: list[str] = argument("FILE...", "Files with columns request, kind and value; jsonl, csv, parquet, ..."),
    kind: str = flag("", "KIND", "Kind of records that name none."),
    keep_personal: bool = KEEP,
    store: str = STORE,
    *,
    output: Output,
) -> None:
    """Store the feedback of files; the same file again adds nothing. Exit status 1: no record could be read as feedback."""
    from tuneloop.improve.feedback.command import import_files

    with screen(output.quiet, "importing"):
        done = import_files(store, sources, kind=kind, personal=_personal(keep_personal))
    if output.json:
        print_json(done)
    else:
        print(f"added     {done.added:,}" + (f"; {done.known:,} were known already" if done.known else ""))
        for reason, (number, first) in _by_reason(done.refused).items():
            more = f" and {number - 1:,} more" if number > 1 else ""
            print(f"refused   {first['source']}:{first['line']}{more}: {reason}")
    if done.refused and not done.added and not done.known:
        if not output.json:
            print(
                "next      name the columns request (or conversation), kind and value; rated chats go to `tuneloop prepare`"
            )
        raise typer.Exit(1)


def _by_reason(refused: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, Mapping[str, Any]]]:
    """How many records were refused for a reason, and the first of them."""
    found: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for one in refused:
        number, first = found.get(str(one["reason"]), (0, one))
        found[str(one["reason"])] = number + 1, first
    return found


def export(
    out: str = flag(..., "FILE", "Where it is written, as JSON Lines.", "-o"),
    since: str = flag("", "TIME", "Only what was said from then on."),
    until: str = flag("", "TIME", "Only what was said before."),
    keep_personal: bool = KEEP,
    store: str = STORE,
    *,
    output: Output,
) -> None:
    """Write feedback as JSON Lines."""
    from tuneloop.improve.feedback.command import export as write

    lines = write(store, out, since=since, until=until, personal=_personal(keep_personal))
    if output.json:
        print_json({"path": out, "lines": lines})
    else:
        print(f"written   {out}: {counted(lines, 'line')}")


def show(
    since: str = flag("", "TIME", "Only what was said from then on."),
    until: str = flag("", "TIME", "Only what was said before."),
    orphans: bool = switch("List feedback on requests that are not known."),
    store: str = STORE,
    *,
    output: Output,
) -> None:
    """Show how much feedback there is of each kind, and how good it is."""
    from tuneloop.improve.feedback.command import show as read

    found = read(store, since=since, until=until)
    if output.json:
        print_json(found)
        return
    print(f"requests  {found.requests:,}, of which {found.rated:,} have feedback")
    for one in found.kinds:
        mean = "" if one.mean is None else f", {one.mean:.3f} good on average (0 to 1)"
        print(f"{one.kind:<9} {one.events:,} events, {one.current:,} hold{mean}")
    if found.orphans:
        print(f"orphans   {len(found.orphans):,} on requests or conversations that are not known (yet)")
    for lost in found.orphans if orphans else []:
        print(f"  {lost.time[:16].replace('T', ' ')}  {lost.kind} on {lost.request or lost.conversation}")


def queue(
    store: str = argument("[STORE]", "The server's folder, or its store: a file or a postgresql:// URL.", "serve"),
    out: str = flag(..., "FOLDER", "Folder of the review.", "-o"),
    rows: int = flag(40, "N", "Answers to look at.", least=1, most=1000),
    since: str = flag("", "TIME", "Only requests from then on, as in 2026-01-01."),
    model: str = flag("", "NAME", "Only requests to this model."),
    seed: int = flag(0, "N", "Seed of the draw.", least=0),
    hidden: bool = switch("Do not show the given answer, so that nobody is led by it."),
    *,
    output: Output,
) -> None:
    """Choose the answers that deserve a person's minutes, for `tuneloop review`.

    40 of 100 at random; the others are disliked, disagree with a candidate, stand out in an alarm, or are uncertain.
    """
    from tuneloop.improve.feedback.review_command import draw_queue, queue_lines

    drawn = draw_queue(store, out, rows=rows, since=since, model=model, seed=seed, hidden=hidden)
    if output.json:
        print_json(drawn)
        return
    print(f"{counted(drawn.rows, 'answer')} in {drawn.folder}")
    print("\n".join(queue_lines(drawn)))
    print(f"next      tuneloop review {drawn.folder}, then tuneloop feedback votes {drawn.folder} --store {store}")


def votes(
    review: str = argument("FOLDER", "Of the review, from `feedback queue`."), store: str = STORE, *, output: Output
) -> None:
    """Store what people said in a review of production as feedback."""
    from tuneloop.improve.feedback.review_command import store_votes

    added, number = store_votes(store, review)
    if output.json:
        print_json({"added": added, "votes": number})
    else:
        print(f"{added} pieces of feedback from {counted(number, 'vote')}")


commands = {"add": add, "import": import_, "export": export, "show": show, "queue": queue, "votes": votes}
