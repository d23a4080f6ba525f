"""A run's curves as they grow: `metrics.jsonl`, read on from where it ended before."""

from __future__ import annotations

import math
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.foreign import opened, parse_line
from tuneloop.core.written import clean_all
from tuneloop.records.record import as_line
from tuneloop.records.run import FindingLine, TrainingStep, Validation
from tuneloop.report import LINES


@dataclass
class Curves:
    """What the file has said so far. `offset`: bytes that were read; `damaged`: lines that were no records."""

    offset: int = 0
    damaged: int = 0
    steps: dict[int, TrainingStep] = field(default_factory=dict)  # of a step that was repeated, the later one
    validations: dict[int, Validation] = field(default_factory=dict)
    findings: list[FindingLine] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def between(self, first: float = 0.0, last: float = math.inf) -> tuple[list[TrainingStep], list[Validation]]:
        """Training steps and validations of some steps, in their order."""
        steps = [self.steps[step] for step in sorted(self.steps) if first <= step <= last]
        return steps, [self.validations[step] for step in sorted(self.validations) if first <= step <= last]


def read_on(kept: Curves, path: Path) -> Curves:
    """Add what is new. A file that was cut back, as by a resumed run, is read from its beginning."""
    with kept.lock, suppress(OSError), opened(path, below=path.parent) as file:
        if os.fstat(file.fileno()).st_size < kept.offset:
            kept.offset, kept.damaged = 0, 0
            kept.steps, kept.validations, kept.findings = {}, {}, []
        file.seek(kept.offset)
        block = file.read()
        block = block[: block.rfind(b"\n") + 1]  # the last line may still be in writing
        kept.offset += len(block)
        for line in filter(bytes.strip, block.split(b"\n")):
            kept.damaged += not _take(kept, line)
    return kept


def _take(kept: Curves, line: bytes) -> bool:
    """Add a line; False: it can't be read."""
    try:
        value = parse_line(line)
        kind = next((kind for key, kind in LINES.items() if key in value), None)
        record = kind and as_line(kind, clean_all(value), "", "")
    except (ValueError, TypeError, RecursionError, UserError):
        return False
    if isinstance(record, TrainingStep):
        kept.steps[record.step] = record
    elif isinstance(record, Validation):
        kept.validations[record.step] = record
    elif isinstance(record, FindingLine):
        kept.findings.append(record)
    return True
