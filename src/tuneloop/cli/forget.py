"""`tuneloop data forget`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tuneloop.cli.console import Result, print_live, show
from tuneloop.cli.diff import short
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.errors import UserError
from tuneloop.core.files import Config
from tuneloop.core.flag import flag, switch
from tuneloop.core.terminal import plain_table, screen
from tuneloop.core.units import counted, verb

if TYPE_CHECKING:
    from rich.console import Console

    from tuneloop.data.erase.forget import Descendant, Forgotten, SubjectRows

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
    match: str = flag(
        "", "TEXT|COLUMN=VALUE", "Remove rows with this text, in any case, or with this value of a column."
    ),
    regex: bool = switch("Take the text or value as a regular expression."),
    dry_run: bool = switch("Only show what matches."),
    yes: bool = switch("Remove without asking.", "-y"),
    *,
    more: ForgetOptions,
    output: Output,
) -> Result:
    """Remove a person's rows from a data set, and list all that was made from it.

    With a server's folder it removes a user's requests, the feedback on them, and the user's lines in all files of the
    folder, as batches; then --match is user=NAME, conversation=NAME, id=REQUEST, key=NAME or a text. Exit status 1: nothing
    matches.
    """
    match = _wanted(match, more.user)
    if _is_store(dataset):
        return _from_store(dataset, match, more, dry_run=dry_run, yes=yes, output=output)

    from tuneloop.data.clean.pii import hidden
    from tuneloop.data.erase.forget import descendants, find_rows, forget, personal_settings
    from tuneloop.data.erase.subject_match import Matcher, pseudonyms
    from tuneloop.pipeline.prepare import measure_of
    from tuneloop.report.data_html import write_data_report
    from tuneloop.serving.store.forget import versions_of

    matcher = Matcher(match, regex)
    matcher = Matcher(match, regex, pseudonyms(matcher, personal_settings(dataset)))
    with screen(output.quiet, "looking for rows"):
        found = find_rows(dataset, matcher)
    facts = {"matched": found.rows, "rows": found.hits, "also_in": found.others, "sources": found.origins}
    there = bool(found.hits or found.resumed)
    if not there or dry_run:
        with screen(output.quiet, "looking for runs made from the data"):
            made = descendants(found, matcher, more.root)
            made += versions_of(found, made)
        record = {**facts, "removed": 0, "descendants": made}
        return Result(record, lambda console: _print_found(found, console, made), int(not there))
    if not output.as_json:
        show(Result(None, partial(_print_found, found)), as_json=False)
    if not yes and not _confirmed(found, output.as_json):
        return Result(None, ["Nothing was removed."], 1)
    with screen(output.quiet, "removing rows"):
        measure = measure_of(dataset, more.model)
        done = forget(dataset, matcher, runs_root=more.root, measure=measure)
        done = replace(done, descendants=[*done.descendants, *versions_of(found, done.descendants)])
        if found.report:
            write_data_report(found.folder, hidden)
    record = {
        **facts, "removed": done.rows, "was": done.old_id, "id": done.new_id, "files": done.files,
        "descendants": done.descendants,
    }  # fmt: skip
    return Result(record, lambda console: _print_done(done, console, counted_again=measure is not None))


def _wanted(match: str, user: str) -> str:
    """What --match says, or what it would say for --user."""
    if bool(match) == bool(user):
        raise UserError(
            "Give --user or --match, and not both", where="forget",
            next_step="for example: --user 4711, or --match name@example.org",
        )  # fmt: skip
    return match or f"user={user}"


def _is_store(place: str) -> bool:
    """Whether a server's folder is named, or its store."""
    from tuneloop.records.server import ServerState
    from tuneloop.serving.store.database import is_database_url

    if is_database_url(place):
        return True
    if (
        Path(place).suffix != ".db"
        and not (Path(place) / "store.db").is_file()
        and not (Path(place) / ServerState.file).is_file()
    ):
        return False
    from tuneloop.serving.store.store import is_store

    return is_store(place)


def _confirmed(found: SubjectRows, as_json: bool) -> bool:
    if as_json or not sys.stdin.isatty():
        raise UserError(
            "Nothing was removed: it was not confirmed",
            where=f"{counted(found.rows, 'row')} of {found.folder}",
            next_step="add --yes to remove them, or --dry-run to look only",
        )
    return typer.confirm(f"Remove {counted(found.rows, 'row')} for good?", default=False, err=True)


def _print_found(found: SubjectRows, console: Console, made: Sequence[Descendant] = ()) -> None:
    from rich.text import Text

    from tuneloop.data.erase.forget import personal_settings
    from tuneloop.report.facts import clean

    if found.resumed:
        console.print("An earlier removal was interrupted; it will be completed.")
    if not found.hits:
        console.print(f"No row matches in {found.folder}.", soft_wrap=True)
        if personal_settings(found.folder).mode == "placeholder":
            hint = (
                "Its texts hold placeholders for personal data: look for a column, as in user_id=..., or for line=..."
            )
            console.print(hint, style="dim")
    else:
        table = plain_table("file:line", "source:line", "what matches", header_style="bold")
        table.columns[1].no_wrap = True
        for hit in found.hits[:MOST]:
            table.add_row(f"{hit.file}:{hit.line}", Text(short(f"{hit.source}:{hit.source_line}", 24, end=True)), Text(clean(hit.excerpt)))  # fmt: skip
        console.print(table)
        if len(found.hits) > MOST:
            console.print(f"and {len(found.hits) - MOST:,} more: --dry-run --json lists all", style="dim")
    for name in found.others:
        console.print(f"{name} in that folder holds the text too, and is left alone", style="yellow")
    _print_made(made, console)


def _print_made(made: Sequence[Descendant], console: Console) -> None:
    from rich.text import Text

    if not made:
        return
    console.print()
    table = plain_table("made from it", "", header_style="bold")
    for one in made:
        table.add_row(one.kind, Text(f"{one.path}: {one.why}"))
        table.add_row("", Text(one.advice, style="cyan"))
    console.print(table)


def _print_done(done: Forgotten, console: Console, *, counted_again: bool) -> None:
    console.print()
    files = ", ".join(done.files)
    console.print(f"{done.rows:,} {'row' if done.rows == 1 else 'rows'} removed: {done.old_id} is now {done.new_id}")
    console.print(f"rewritten or deleted: {files}")
    for source, lines in done.subject.origins.items():
        shown = ", ".join(map(str, lines[:MOST])) + (" …" if len(lines) > MOST else "")
        words = "still holds them" if Path(source).is_file() else "is not there, but they were in it"
        console.print(f"{source} {words}, at line {shown}:", soft_wrap=True)
        console.print("  delete them there, or the next `tuneloop prepare` brings them back", style="cyan")
    _print_made(done.descendants, console)
    if not counted_again:
        console.print(
            "Token counts are those from before: name the model with --model and they are counted again.", style="dim"
        )


def _from_store(place: str, match: str, more: ForgetOptions, *, dry_run: bool, yes: bool, output: Output) -> Result:
    """Erase from a server's store, or show by a receipt that it was done."""
    from tuneloop.serving.store.forget import forget_requests, made_of_requests, pending, proof_of, rebuild
    from tuneloop.serving.store.store import store_folder, store_name

    if more.receipt:
        stone = proof_of(place, match, more.receipt)
        line = "No erasure has this receipt and this --match."
        if stone is not None:
            requests, feedback = stone.data["requests"], stone.data["feedback"]
            were = verb(requests + feedback, "was", "were")
            line = f"{stone.time}: {counted(requests, 'request')} and {feedback:,} feedback {were} erased"
        proof = {"proved": stone is not None, "erased": stone.to_json() if stone else None}
        return Result(proof, [line], int(stone is None))
    found, done = forget_requests(place, match, dry_run=True)
    if (found.anything or pending(place)) and not dry_run:
        if not yes and (output.as_json or not sys.stdin.isatty()):
            raise UserError(
                "This erases for good", where=store_name(place), next_step="say --yes, or --dry-run to look first"
            )
        if yes or typer.confirm(
            f"Erase {counted(len(found.requests), 'request')}, {len(found.feedback):,} feedback and {counted(found.lines, 'line')} of files?",
            err=True,
        ):
            with screen(output.quiet, "erasing"):
                found, done = forget_requests(place, match, dry_run=False)
    facts = {"requests": len(found.requests), "feedback": len(found.feedback), "lines": found.lines}
    folder = store_folder(place)
    made = made_of_requests([more.root, folder], found.requests, match)
    own = [one for one in made if Path(one.path).resolve().is_relative_to(folder.resolve())]
    made = [one for one in made if one not in own or one.kind in ("data set", "run", "artifact")]
    again = rebuild(made if more.rebuild else own, match, more.root) if done is not None else {}
    record: dict[str, Any] = {
        **facts, "erased": done is not None, "receipt": done.receipt if done else None, "descendants": made,
        "rebuilt": again,
    }  # fmt: skip

    def text(console: Console) -> None:
        what = f"{counted(facts['requests'], 'request')}, {facts['feedback']:,} feedback"
        print_live(f"{what} and {counted(facts['lines'], 'line')} of the server's files{' erased' if done else ''}")
        if done:
            print_live(
                f"receipt {done.receipt}: keep it; with it --receipt shows what was erased. It stands nowhere else."
            )
        _print_made(made, console)
        for old, new in again.items():
            print_live(f"{old} is now {new}: the rows were removed from it")

    return Result(record, text, int(not found.anything))
