"""`tuneloop data check`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.cli.console import Result
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.errors import UserError
from tuneloop.core.flag import flag
from tuneloop.core.terminal import plain_table, screen
from tuneloop.core.ui import say
from tuneloop.core.units import counted

if TYPE_CHECKING:
    from rich.console import Console

    from tuneloop.records.dataset import Check, DatasetManifest
    from tuneloop.records.rows import Row

LEVELS = ("error", "warn", "ok")


def command(
    dataset: str = argument("DATASET", "A prepared data set: its folder."),
    against: str = flag("", "FILE", "Compare it with records from production: file, glob or folder."),
    *,
    output: Output,
) -> Result:
    """Check a prepared data set for problems that spoil training or evaluation.

    Exit status 1: a check is at `error`.
    """
    from tuneloop.data.checks import check_dataset
    from tuneloop.data.dataset import load_dataset

    _refuse_raw_file(dataset)
    loaded = load_dataset(dataset)
    with screen(output.quiet, "checking"):
        production = _read(against, loaded.manifest) if against else None
    checks = check_dataset(loaded, against=production)
    checks = sorted(checks, key=lambda check: LEVELS.index(check.level))  # stable: the order of checks stays
    worst = checks[0].level if checks else "ok"
    record = {"dataset": loaded.id, "path": loaded.path, "level": worst, "checks": checks}
    return Result(record, partial(_print, loaded.id, checks), int(worst == "error"))


def _refuse_raw_file(path: str) -> None:
    if Path(path).is_file() and Path(path).name != "dataset.json":
        step = f"tuneloop prepare {path}, then check the folder that it names"
        raise UserError("A file is not a data set yet: it has no splits to check", where=path, next_step=step)


def _read(against: str, manifest: DatasetManifest) -> list[Row]:
    from tuneloop.data.checks.production import as_prepared, read_production

    rows, without = read_production([against], as_prepared(manifest, [against]))
    note = f"; {counted(without, 'record')} without a user's text were passed over" if without else ""
    say(f"check     {counted(len(rows), 'production record')}{note}")
    return rows


def _print(name: str, checks: Sequence[Check], console: Console) -> None:
    from rich.text import Text

    from tuneloop.report.facts import clean

    table = plain_table("", "", show_header=False)
    for check in checks:
        style = {"error": "bold red", "warn": "yellow"}.get(check.level, "green")
        words = clean(check.message)
        table.add_row(Text(check.level, style=style), Text.assemble((check.name, "bold"), f"  {words}"))
        if check.level != "ok" and check.remedy:
            table.add_row("", Text(clean(check.remedy), style="cyan"))
            for example in check.examples:
                if "text" in example:
                    place = f"{Path(example['source']).name}:{example['line']}  "
                    table.add_row("", Text(clean(place + example["text"]), style="dim"))
    counts = {level: sum(check.level == level for check in checks) for level in LEVELS}
    console.print(table)
    console.print(f"\n{name}: {', '.join(f'{n} {level}' for level, n in counts.items() if n)}")
