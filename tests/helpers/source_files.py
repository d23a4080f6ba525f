"""Files of records: written, and read whole or in chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuneloop.data.sources.parse import SourceRecord
from tuneloop.data.sources.read import read_records
from tuneloop.records.rows import Reject


def read(path: Path, data: bytes | str) -> list[SourceRecord | Reject]:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(read_records([str(path)]))


def shown(items: list[SourceRecord | Reject]) -> list[tuple[int, Any]]:
    return [(i.line, i.reason if isinstance(i, Reject) else i.value) for i in items]
