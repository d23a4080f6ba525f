"""Rows for a regression suite, from a page: a suite's own YAML stays as it is, they go to its `must_pass_file`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneloop.core.confined import leads_into
from tuneloop.core.errors import UserError
from tuneloop.core.files import build_config, inside, lock_folder, read_jsonl, write_text
from tuneloop.core.foreign import file_bytes
from tuneloop.evaluation.gate import MustPass, load_suite
from tuneloop.web.sources import Sources

ROWS = "must_pass.jsonl"


def suites_of(sources: Sources) -> dict[str, Path]:
    """Suites of the folders by their names: `*suite*.yaml` in a folder itself, or any in its `suites/`."""
    return {
        str(path.relative_to(folder)): path
        for folder in sources.index.folders
        for pattern in ("*suite*.yaml", "suites/*.yaml")
        for path in sorted(folder.glob(pattern))
        if leads_into(path, sources.index.folders)
    }


def add_to_suite(path: Path, row: Mapping[str, Any]) -> bool:
    """Add a row that must pass; False: one of the same request and condition is there already.

    Raises UserError: the suite can't be read, or the row demands nothing.
    """
    values = {name: value for name, value in row.items() if value}
    build_config(MustPass, values, where="the new row")
    with lock_folder(path.parent):
        suite = load_suite(path)
        file = inside(path.parent, suite.must_pass_file or ROWS)
        if not suite.must_pass_file:
            if file.is_file() and file.stat().st_size:
                message = "There is a file of rows that the suite does not name"
                raise UserError(message, where=str(file), next_step=f"add a line to the suite: must_pass_file: {ROWS}")
            file.touch()
            write_text(path, f"{file_bytes(path, 'yaml').decode().rstrip()}\nmust_pass_file: {ROWS}\n")
        if values in [*read_jsonl(file)]:
            return False
        write_text(file, f"{file_bytes(file, 'json').decode()}{json.dumps(values, ensure_ascii=False)}\n")
    return True
