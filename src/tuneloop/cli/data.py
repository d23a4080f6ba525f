"""`tuneloop data`: check, diff, export and forget, on prepared data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.cli import forget
from tuneloop.cli.console import Result, short
from tuneloop.cli.parameters import SETTINGS, argument, screen
from tuneloop.core.errors import UserError
from tuneloop.core.flag import flag, switch
from tuneloop.core.stats.tests import p_words
from tuneloop.core.terminal import plain_table
from tuneloop.core.ui import say
from tuneloop.core.units import counted
from tuneloop.core.written import clean

if TYPE_CHECKING:
    from rich.console import Console

    from tuneloop.data import DatasetDiff
    from tuneloop.records.dataset import Check, DatasetManifest
    from tuneloop.records.rows import Row

MOST = 8  # labels, settings or sources that are listed
LEVELS = ("error", "warn", "ok")


def check(
    dataset: str = argument(
        "DATASET", "A prepared data set: its folder; with --template also a file of rows or a recipe."
    ),
    settings: list[str] | None = SETTINGS,
    against: str = flag("", "FILE", "Compare it with records from production: file, glob or folder."),
    template: str = flag(
        "", "MODEL", "Prove this model's chat template on the rows instead, and show what is trained."
    ),
) -> Result:
    """Check a prepared data set for problems that spoil training or evaluation.

    Exit status 1: a check is at `error`.
    """
    from tuneloop.data import load_dataset
    from tuneloop.data.checks import check_dataset

    if template:
        return _prove(template, dataset, settings or [])
    if settings:
        step = "leave them out: they say how --template reads a file"
        raise UserError(f"{settings[0]} changes nothing of a prepared data set", where=dataset, next_step=step)
    if Path(dataset).is_file() and Path(dataset).name != "dataset.json":
        step = f"tuneloop prepare {dataset}, then check the folder that it names"
        raise UserError("A file is not a data set yet: it has no splits to check", where=dataset, next_step=step)
    loaded = load_dataset(dataset)
    with screen("checking"):
        production = _read_production(against, loaded.manifest) if against else None
    checks = check_dataset(loaded, against=production)
    checks = sorted(checks, key=lambda check: LEVELS.index(check.level))  # stable: the order of checks stays
    worst = checks[0].level if checks else "ok"
    record = {"dataset": loaded.id, "path": loaded.path, "level": worst, "checks": checks}
    return Result(record, partial(_print_checks, loaded.id, checks), int(worst == "error"))


def _prove(model: str, source: str, settings: Sequence[str]) -> Result:
    """The proof of a model's chat template on a data set's rows, or a file's."""
    from tuneloop.data import load_dataset, read_whole
    from tuneloop.models.chat import load_template, prove_template
    from tuneloop.models.files import resolve
    from tuneloop.recipe import recipe_of

    with screen("proving the template"):
        data = recipe_of(source, list(settings)).data
        rows: list[Row] = []
        for name in map(str, data.sources):  # before the model, which may take minutes to come
            is_prepared = Path(name).is_dir() or Path(name).name == "dataset.json"
            rows += load_dataset(name).train if is_prepared else read_whole(name, data).rows
        if not rows:
            raise UserError("There is no row to render", where=source, next_step="name a file of examples")
        folder = resolve(model)
        proof = prove_template(folder, load_template(folder), rows, name=model)

    def text(console: Console) -> None:
        from rich.text import Text

        table = plain_table("", "", show_header=False)
        for finding in proof.findings:
            style = {"error": "bold red", "warn": "yellow"}.get(finding.level, "green")
            row = f" (row {finding.row})" if finding.row else ""
            message = clean(f"  {finding.message}{row}")
            table.add_row(Text(finding.level, style=style), Text.assemble((finding.name, "bold"), message))
            if finding.remedy:
                table.add_row("", Text(clean(finding.remedy), style="cyan"))
        console.print(table)
        if proof.example:
            console.print("A row as it is trained, the learned part in [[ ]]:", style="dim")
            console.print(Text("".join(f"[[{clean(t)}]]" if weight else clean(t) for t, weight in proof.example)))
        if proof.level == "ok":
            console.print(
                Text(f"ok  the template of {proof.model} holds on {counted(proof.rows, 'row')}", style="green")
            )

    record = {
        "model": proof.model,
        "level": proof.level,
        "rows": proof.rows,
        "findings": proof.findings,
        "example": [{"text": text, "weight": weight} for text, weight in proof.example],
    }
    return Result(record, text, int(proof.level == "error"))


def _read_production(against: str, manifest: DatasetManifest) -> list[Row]:
    from tuneloop.data.checks import as_prepared, read_production

    rows, without = read_production([against], as_prepared(manifest, [against]))
    note = f"; {counted(without, 'record')} without a user's text were passed over" if without else ""
    say(f"check     {counted(len(rows), 'production record')}{note}")
    return rows


def _print_checks(name: str, checks: Sequence[Check], console: Console) -> None:
    from rich.text import Text

    table = plain_table("", "", show_header=False)
    for check in checks:
        style = {"error": "bold red", "warn": "yellow"}.get(check.level, "green")
        message = clean(check.message)
        table.add_row(Text(check.level, style=style), Text.assemble((check.name, "bold"), f"  {message}"))
        if check.level != "ok" and check.remedy:
            table.add_row("", Text(clean(check.remedy), style="cyan"))
            for example in check.examples:
                if "text" in example:
                    location = f"{Path(example['source']).name}:{example['line']}  "
                    table.add_row("", Text(clean(location + example["text"]), style="dim"))
    counts = {level: sum(check.level == level for check in checks) for level in LEVELS}
    console.print(table)
    console.print(f"\n{name}: {', '.join(f'{n} {level}' for level, n in counts.items() if n)}")


def diff(
    a: str = argument("A", "The older data set: its folder."),
    b: str = argument("B", "The newer data set."),
    rows: int = flag(3, "N", "Show this many examples of each kind of change.", "-n", least=0),
) -> Result:
    """Show what changed between two prepared data sets.

    Rows, splits, labels, settings and sources are compared.
    """
    from tuneloop.data import diff_datasets

    with screen("comparing the data sets"):
        changes = diff_datasets(a, b, examples=rows)
    record = {"identical": changes.identical, **{name: getattr(changes, name) for name in changes.__dataclass_fields__}}

    def text(console: Console) -> None:
        for part in (_print_head, _print_rows, _print_labels, _print_settings, _print_examples):
            part(changes, console)

    return Result(record, text)


def _print_head(diff: DatasetDiff, console: Console) -> None:
    table = _table("", "A", "B", "change")
    table.add_row("data set", str(diff.a["id"]), str(diff.b["id"]), "")
    names = list(dict.fromkeys([*diff.a["rows"], *diff.b["rows"]]))
    counts = [(name, diff.a["rows"].get(name, 0), diff.b["rows"].get(name, 0)) for name in names]
    tokens = [sum(side["tokens"].values()) for side in (diff.a, diff.b)]
    for name, old, new in [*counts, ("tokens", *tokens)]:
        table.add_row(name, f"{old:,}", f"{new:,}", f"{new - old:+,}" if new != old else "")
    for name in ("task", "tool_version"):
        if diff.a[name] != diff.b[name]:
            table.add_row(name.replace("_", " "), str(diff.a[name] or "-"), str(diff.b[name] or "-"), "")
    console.print(table)


def _print_rows(diff: DatasetDiff, console: Console) -> None:
    from rich.text import Text

    console.print()
    if diff.identical:
        console.print("The rows and their splits are the same.")
        return
    table = _table("rows", "", "")
    table.add_row("same", f"{diff.same:,}", "")
    for name in ("added", "removed", "changed", "moved"):
        if counts := getattr(diff, name):
            description = "the question stayed; what changed: " if name == "changed" else ""
            parts = ", ".join(f"{n:,} {kind}" for kind, n in counts.items())
            table.add_row(name, f"{sum(counts.values()):,}", Text(description + parts))
    console.print(table)
    for move, description in (
        ("test -> train", "of A's test rows are trained on in B: a model of B can't be measured on A's test"),
        ("train -> test", "of B's test rows were trained on in A: a model of A can't be measured on B's test"),
    ):
        if n := diff.moved.get(move, 0):
            console.print(Text.assemble(("warn  ", "yellow"), f"{n:,} {description}"))


def _print_labels(diff: DatasetDiff, console: Console) -> None:
    from rich.text import Text

    shifted = [s for s in diff.labels if s.a != s.b]
    if not shifted:
        return
    console.print()
    table = _table("label", "A", "B", "share")
    for s in shifted[:MOST]:
        shares = f"{s.share_a:.1%} -> {s.share_b:.1%}"
        table.add_row(Text(short(s.label, 32)), f"{s.a:,}", f"{s.b:,}", shares)
    console.print(table)
    _print_more(len(shifted), console)
    sure = [s for s in shifted if s.p < 0.05]
    if sure:
        names = ", ".join(short(s.label, 32) for s in sure[:MOST]) + (", …" if len(sure) > MOST else "")
        labels = f"{counted(len(diff.labels), 'label')} taken into account"
        console.print(f"shares that differ by more than chance, {labels}: {names}")
    if diff.labels_p is not None and (diff.labels_p < 0.05 or not sure):
        verdict = "the labels' shares differ" if diff.labels_p < 0.05 else "no evidence that the labels' shares differ"
        console.print(f"{verdict} (chi-square test, {p_words(diff.labels_p)})")


def _print_settings(diff: DatasetDiff, console: Console) -> None:
    from rich.text import Text

    for title, key, changes in (("setting", "key", diff.config), ("source (rows)", "path", diff.sources)):
        if not changes:
            continue
        console.print()
        table = _table(title, "A", "B", left=True)
        for change in changes[:MOST]:
            values = [Text(short(_cell(change[s]), 24, end=isinstance(change[s], list))) for s in ("a", "b")]
            table.add_row(Text(short(change[key], 44, end=key == "path")), *values)
        console.print(table)
        _print_more(len(changes), console)


def _print_examples(diff: DatasetDiff, console: Console) -> None:
    from rich.text import Text

    for kind, examples in diff.examples.items():
        if examples:
            console.print(Text(f"\n{kind}, for example", style="bold"))
        for example in examples:
            was = example.get("was", {})
            split = f"{was['split']} -> {example['split']}" if kind == "moved" else example["split"]
            width = 14 if kind == "moved" else 5
            console.print(Text(f"  {split:<{width}}  {short(example['prompt'], 74 - width)}"))
            answers = [short(answer, 30) for answer in (was.get("answer"), example["answer"]) if answer is not None]
            console.print(Text(f"  {'':<{width}}  {' -> '.join(answers)}", style="dim"))


def _print_more(n: int, console: Console) -> None:
    if n > MOST:
        console.print(f"and {n - MOST:,} more: --json lists all", style="dim")


def _table(first: str, *columns: str, left: bool = False) -> Any:
    table = plain_table(header_style="bold")
    table.add_column(first, no_wrap=not left, overflow="fold")
    for column in columns:
        is_text = left or not column or column == "share"
        table.add_column(column, justify="left" if is_text else "right", overflow="fold")
    return table


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) and value is not True else str(value)


def push(
    dataset: str = argument("DATASET", "A prepared data set: its folder."),
    destination: str = argument("DESTINATION", "Where it goes: hub:OWNER/NAME."),
    send: bool = switch("Upload; without it only what would be sent is shown."),
    public: bool = switch("Make a new repository public; it is private by default."),
) -> Result:
    """Upload a data set with a card to the Hugging Face hub. Nothing is sent without --send.

    The splits and the card go there; rejects, repairs and paths of this machine do not.
    """
    from tuneloop.release import push_dataset

    with screen("uploading" if send else "hashing"):
        upload, card = push_dataset(Path(dataset), destination, send=send, public=public)
    total = f"{counted(len(upload.files), 'file')}, {sum(upload.files.values()) / 1e6:,.1f} MB"
    lines = [f"{size / 1e6:>12,.2f} MB  {name}" for name, size in upload.files.items()]
    lines.append(f"sent {total}: {upload.url}" if send else f"would send {total} to {upload.repo}; add --send to do so")
    return Result({**vars(upload), "sent": send, "card": card}, lines)


def export(
    dataset: str = argument("DATASET", "A prepared data set's folder, or a file of rows with their answers."),
    tool: str = flag("inspect", "NAME", "The tool that is to run it: inspect.", "--as"),
    out: str = flag("", "FOLDER", "Folder of the task; default: NAME-TOOL.", "-o"),
    split: str = flag("test", "NAME", "Split of a prepared data set: train, val or test.", "-s"),
    model: str = flag("MODEL", "NAME", "The model that the written command asks.", "-m"),
    endpoint: str = flag("http://127.0.0.1:8100/v1", "URL", "The server that it asks."),
    max_tokens: int = flag(0, "N", "Most tokens of an answer; 0: as evaluate gives an endpoint.", least=0),
) -> Result:
    """Write test rows and our scorers as a task of Inspect.

    Others run it without tuneloop, and the same answers get the same scores.
    """
    from tuneloop.evaluation.foreign import write_task
    from tuneloop.pipeline import task_rows

    with screen("reading"):
        task = task_rows(dataset, split, model, endpoint)
        task = replace(task, max_tokens=max_tokens or task.max_tokens)
        folder = Path(out or f"{task.name}-{tool}")
        command = write_task(task, tool, folder)
    lines = [f"task      {folder}: {counted(len(task.rows), 'row')}, scored by {', '.join(task.metrics)}"]
    record = {"path": str(folder), "tool": tool, "rows": len(task.rows), "metrics": task.metrics, "run": command}
    return Result(record, [*lines, f"next      {command}"])


commands = {"check": check, "diff": diff, "export": export, "push": push, "forget": forget}
