"""`tuneloop data forget`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tuneloop.cli.console import Result, print_live, short, show
from tuneloop.cli.parameters import argument, output, screen
from tuneloop.core.confined import leads_into
from tuneloop.core.errors import UserError
from tuneloop.core.files import Config
from tuneloop.core.flag import flag, switch
from tuneloop.core.terminal import plain_table
from tuneloop.core.units import counted, verb

if TYPE_CHECKING:
    from rich.console import Console

    from tuneloop.data.pii import Descendant, Forgotten, SubjectRows

MOST = 20  # rows that are shown


class ForgetOptions(Config):
    """Whose rows, where to look, and what an erasure is shown by."""

    user: str = flag("", "ID", "Remove what is of this user: the same as --match user=ID.", "-u")
    receipt: str = flag("", "RECEIPT", "Of an erasure from a server: show that it was done.")
    root: str = flag(".", "FOLDER", "Where to look for data sets and runs that were made from it.")
    rebuild: bool = switch("With a server: remove the rows from the data sets that were made from it, too.")
    model: str = flag("", "MODEL", "Model whose tokens are counted again; default: the packaged one.", "-m")


def command(
    dataset: str = argument("DATASET|SERVER", "A prepared data set, or a server of `tuneloop serve`: its folder."),
    match: str = flag("", "TEXT|COLUMN=VALUE", "Remove rows with this text, in any case, or this value of a column."),
    regex: bool = switch("Take the text or value as a regular expression."),
    dry_run: bool = switch("Only show what matches."),
    yes: bool = switch("Remove without asking.", "-y"),
    *,
    more: ForgetOptions,
) -> Result:
    """Remove a person's rows from a data set, and list all that was made from it.

    With a server's folder it removes a user's requests, the feedback on them, and the user's lines in all files of the
    folder, as batches; then --match is user=NAME, conversation=NAME, id=REQUEST, key=NAME or a text. Exit status 1:
    nothing matches.
    """
    if bool(match) == bool(more.user):
        step = "for example: --user 4711, or --match name@example.org"
        raise UserError("Give --user or --match, and not both", where="forget", next_step=step)
    match = match or f"user={more.user}"
    if _is_store(dataset):
        return _from_store(dataset, match, more, dry_run=dry_run, yes=yes)

    from tuneloop.data.pii import Matcher, descendants, find_rows, forget, hidden, personal_settings, pseudonyms_of
    from tuneloop.pipeline import measure_of
    from tuneloop.report.data import write_data_report
    from tuneloop.serving.store import versions_of

    matcher = Matcher(match, regex)
    matcher = Matcher(match, regex, pseudonyms_of(matcher, personal_settings(dataset)))
    with screen("looking for rows"):
        rows = find_rows(dataset, matcher)
    facts = {"matched": rows.rows, "rows": rows.hits, "also_in": rows.others, "sources": rows.origins}
    there = bool(rows.hits or rows.resumed)
    if not there or dry_run:
        with screen("looking for runs made from the data"):
            made = descendants(rows, matcher, more.root)
            made += versions_of(rows, made)
        record = {**facts, "removed": 0, "descendants": made}
        return Result(record, lambda console: _print_rows(rows, console, made), int(not there))
    if not output().as_json:
        show(Result(None, partial(_print_rows, rows)), as_json=False)
    if not yes and not _confirmed(rows):
        return Result(None, ["Nothing was removed."], 1)
    with screen("removing rows"):
        measure = measure_of(dataset, more.model)
        erasure = forget(dataset, matcher, runs_root=more.root, measure=measure)
        made = [*erasure.descendants, *versions_of(rows, erasure.descendants)]
        if rows.report:
            write_data_report(rows.folder, hidden)
    changes = {"removed": erasure.rows, "was": erasure.old_id, "id": erasure.new_id, "files": erasure.files}
    record = {**facts, **changes, "descendants": made}
    return Result(record, lambda console: _print_erasure(erasure, made, console, counted_again=measure is not None))


def _is_store(path: str) -> bool:
    """Whether a server's folder is named, or its store."""
    from tuneloop.records.server import ServerState
    from tuneloop.serving.store import is_database_url

    if is_database_url(path):
        return True
    files = (Path(path) / "store.db", Path(path) / ServerState.file)
    if Path(path).suffix != ".db" and not any(file.is_file() for file in files):
        return False
    from tuneloop.serving.store import is_store

    return is_store(path)


def _confirmed(rows: SubjectRows) -> bool:
    number = counted(rows.rows, "row")
    if output().as_json or not sys.stdin.isatty():
        where, step = f"{number} of {rows.folder}", "add --yes to remove them, or --dry-run to look only"
        raise UserError("Nothing was removed: it was not confirmed", where=where, next_step=step)
    return typer.confirm(f"Remove {number} for good?", default=False, err=True)


def _print_rows(rows: SubjectRows, console: Console, made: Sequence[Descendant] = ()) -> None:
    from rich.text import Text

    from tuneloop.core.written import clean
    from tuneloop.data.pii import personal_settings

    if rows.resumed:
        console.print("An earlier removal was interrupted; it will be completed.")
    if not rows.hits:
        console.print(f"No row matches in {rows.folder}.", soft_wrap=True)
        if personal_settings(rows.folder).mode == "placeholder":
            hint = "Its texts hold placeholders for personal data: look for a column (user_id=...), or for line=..."
            console.print(hint, style="dim")
    else:
        table = plain_table("file:line", "source:line", "what matches", header_style="bold")
        table.columns[1].no_wrap = True
        for hit in rows.hits[:MOST]:
            source = short(f"{hit.source}:{hit.source_line}", 24, end=True)
            table.add_row(f"{hit.file}:{hit.line}", Text(source), Text(clean(hit.excerpt)))
        console.print(table)
        if len(rows.hits) > MOST:
            console.print(f"and {len(rows.hits) - MOST:,} more: --dry-run --json lists all", style="dim")
    for name in rows.others:
        console.print(f"{name} in that folder holds the text too, and is left alone", style="yellow")
    _print_made(made, console)


def _print_made(made: Sequence[Descendant], console: Console) -> None:
    from rich.text import Text

    if not made:
        return
    console.print()
    table = plain_table("made from it", "", header_style="bold")
    for descendant in made:
        table.add_row(descendant.kind, Text(f"{descendant.path}: {descendant.why}"))
        table.add_row("", Text(descendant.advice, style="cyan"))
    console.print(table)


def _print_erasure(erasure: Forgotten, made: Sequence[Descendant], console: Console, *, counted_again: bool) -> None:
    console.print(f"\n{counted(erasure.rows, 'row')} removed: {erasure.old_id} is now {erasure.new_id}")
    console.print(f"rewritten or deleted: {', '.join(erasure.files)}")
    for source, lines in erasure.subject.origins.items():
        numbers = ", ".join(map(str, lines[:MOST])) + (" …" if len(lines) > MOST else "")
        status = "still holds them" if Path(source).is_file() else "is not there, but they were in it"
        console.print(f"{source} {status}, at line {numbers}:", soft_wrap=True)
        console.print("  delete them there, or the next `tuneloop prepare` brings them back", style="cyan")
    _print_made(made, console)
    if not counted_again:
        note = "Token counts are those from before: name the model with --model and they are counted again."
        console.print(note, style="dim")


def _from_store(store: str, match: str, more: ForgetOptions, *, dry_run: bool, yes: bool) -> Result:
    """Erase from a server's store, or show by a receipt that it was done."""
    from tuneloop.serving.store import forget_requests, made_of_requests, proof_of, rebuild, store_folder, store_name

    if more.receipt:
        stone = proof_of(store, match, more.receipt)
        line = "No erasure has this receipt and this --match."
        if stone is not None:
            requests, feedback = stone.data["requests"], stone.data["feedback"]
            were = verb(requests + feedback, "was", "were")
            line = f"{stone.time}: {counted(requests, 'request')} and {feedback:,} feedback {were} erased"
        proof = {"proved": stone is not None, "erased": stone.to_json() if stone else None}
        return Result(proof, [line], int(stone is None))
    subject, erasure = forget_requests(store, match, dry_run=True)
    if (subject.anything or subject.begun) and not dry_run:
        if not yes and (output().as_json or not sys.stdin.isatty()):
            step = "say --yes, or --dry-run to look first"
            raise UserError("This erases for good", where=store_name(store), next_step=step)
        rows = f"{counted(len(subject.requests), 'request')}, {len(subject.feedback):,} feedback"
        question = f"Erase {rows} and {counted(subject.lines, 'line')} of files?"
        if yes or typer.confirm(question, err=True):
            with screen("erasing"):
                subject, erasure = forget_requests(store, match, dry_run=False)
    facts = {"requests": len(subject.requests), "feedback": len(subject.feedback), "lines": subject.lines}
    folder = store_folder(store)
    made = made_of_requests([more.root, folder], subject.requests, match)
    inside = [descendant for descendant in made if leads_into(descendant.path, [folder])]
    made = [
        descendant
        for descendant in made
        if descendant not in inside or descendant.kind in ("data set", "run", "artifact")
    ]
    again = rebuild(made if more.rebuild else inside, match, more.root) if erasure is not None else {}
    receipt = erasure.receipt if erasure else None
    record = {**facts, "erased": erasure is not None, "receipt": receipt, "descendants": made, "rebuilt": again}

    def text(console: Console) -> None:
        summary = f"{counted(facts['requests'], 'request')}, {facts['feedback']:,} feedback"
        print_live(
            f"{summary} and {counted(facts['lines'], 'line')} of the server's files{' erased' if erasure else ''}"
        )
        if erasure:
            print_live(f"receipt {receipt}: keep it; with it --receipt shows what was erased. It is nowhere else.")
        _print_made(made, console)
        for old, new in again.items():
            print_live(f"{old} is now {new}: the rows were removed from it")

    return Result(record, text, int(not subject.anything))
