"""Rows of spreadsheets: one sheet of an .xlsx, .xlsm, .xlsb, .xls or .ods file, with its first row as the header."""

from __future__ import annotations

import datetime
import importlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.foreign import LIMITS, BeyondLimits, opened_zip
from tuneloop.data.sources import parse
from tuneloop.records.rows import Reject

KINDS = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
ROWS = 2000  # of a chunk


def excel_chunks(file: parse.SourceFile, max_expansion: float) -> Iterator[parse.Chunk]:
    """The rows below the header of a sheet, as records by the header's names; line: the row's number in the sheet.

    Raises:
        UserError: the file is no spreadsheet or protected by a password, unpacks to too much, or has several sheets
            with content of which the source names none.
    """
    try:
        calamine = importlib.import_module("python_calamine")
    except ImportError:
        message = "Reading spreadsheets needs python-calamine, which is not installed"
        step = "pip install python-calamine, or save the sheet as CSV"
        raise UserError(message, where=file.name, next_step=step) from None
    size = os.stat(file.path).st_size
    _refuse_expansion(file, size, max_expansion)
    try:
        with calamine.CalamineWorkbook.from_path(file.path) as book:
            shown = [about.name for about in book.sheets_metadata if str(about.visible).endswith("Visible")]
            rows = _sheet(book, file, shown or book.sheet_names).to_python(skip_empty_area=False)
    except calamine.PasswordError:
        step = "save a copy without a password"
        raise UserError("The spreadsheet is protected by a password", where=file.name, next_step=step) from None
    except calamine.CalamineError as error:
        message = f"Not a readable spreadsheet: {str(error).splitlines()[0][:200]}"
        raise UserError(message, where=file.name, next_step="save it again, or as CSV") from None
    head = next((number for number, row in enumerate(rows) if any(map(_is_filled, row))), None)
    if head is None:
        raise UserError("The sheet is empty", where=file.name, next_step="name a sheet: FILE#SHEET")
    width = 1 + max(column for column, cell in enumerate(rows[head]) if _is_filled(cell))
    columns = parse.column_names(str(_value(cell)) for cell in rows[head][:width])
    for start in range(head + 1, len(rows), ROWS):
        items = [_item(row, number, columns, file) for number, row in enumerate(rows[start : start + ROWS], start + 1)]
        done = size * (start + len(items)) // len(rows)
        yield parse.Chunk(file.name, "items", start + 1, items=tuple(items), position=done)


def _refuse_expansion(file: parse.SourceFile, size: int, max_expansion: float) -> None:
    if not zipfile.is_zipfile(file.path):
        return  # .xls is packed in no way
    try:
        with opened_zip(file.path) as parts:
            unpacked = sum(part.file_size for part in parts.infolist())
    except BeyondLimits as error:
        message = f"The spreadsheet is refused: {error}"
        raise UserError(message, where=file.name, next_step="save the sheet as CSV") from None
    if unpacked > LIMITS["sheet"].bytes or unpacked > max(max_expansion * size, 64 << 20):
        message = f"The spreadsheet unpacks to {unpacked >> 20:,} MiB, {unpacked / size:,.0f} times its size"
        raise UserError(message, where=file.name, next_step="save the sheet as CSV")


def _sheet(book: Any, file: parse.SourceFile, names: Sequence[str]) -> Any:
    if file.sheet:
        if file.sheet not in book.sheet_names:
            step = did_you_mean(file.sheet, book.sheet_names, f"the sheets are {', '.join(book.sheet_names)}")
            raise UserError(f"No sheet {file.sheet!r}", where=file.name, next_step=step)
        return book.get_sheet_by_name(file.sheet)
    sheets = [sheet for sheet in map(book.get_sheet_by_name, names) if sheet.height]
    if len(sheets) > 1:
        path = Path(file.path).name
        step = "name one of them: " + ", ".join(f"'{path}#{sheet.name}'" for sheet in sheets[:8])
        raise UserError(f"The file has {len(sheets)} sheets with content", where=file.name, next_step=step)
    return sheets[0] if sheets else book.get_sheet_by_index(0)


def _item(row: Sequence[Any], number: int, columns: Sequence[str], file: parse.SourceFile) -> parse.Item:
    if not any(map(_is_filled, row)):
        return Reject(file.name, number, "blank_line", "")
    cells = [_value(cell) for cell in row]
    if any(map(_is_filled, cells[len(columns) :])):
        return Reject(file.name, number, "broken_csv", f"cells to the right of the {len(columns)} columns", str(cells))
    return parse.SourceRecord(file.name, number, dict(zip(columns, cells, strict=False)))


def _is_filled(cell: Any) -> bool:
    return cell is not None and cell != "" and not (isinstance(cell, str) and cell.isspace())


def _value(cell: Any) -> Any:
    """A cell as JSON can hold it: whole numbers without a point, times in ISO 8601."""
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        return cell.date().isoformat()
    if isinstance(cell, datetime.datetime | datetime.date | datetime.time):
        return cell.isoformat()
    if isinstance(cell, datetime.timedelta):
        return str(cell)
    return int(cell) if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53 else cell
