"""The table of rows that prepare works on."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from pathlib import Path

import numpy as np

from tuneloop.data.process_record import NAMED, ChunkFacts
from tuneloop.data.table import Table


def test_a_table_lets_go_of_read_only_columns_that_share_memory_with_a_cluster(tmp_path: Path) -> None:
    columns = {"id": np.arange(3, dtype="u8"), "start": np.arange(3), "row_size": np.ones(3, "i4")}
    for column in columns.values():
        column.flags.writeable = False
    held = [weakref.ref(column) for column in columns.values()]
    names: dict[str, list[str | None]] = {name: [None] * 3 for name in NAMED}
    facts = ChunkFacts("source.jsonl", columns, names, b"abc", [], [], 3, Counter(), 0, False)
    with Table(tmp_path) as table:
        table.add(facts)
        table.add(ChunkFacts("other.jsonl", {k: v.copy() for k, v in columns.items()}, dict(names), b"def", [], [], 3, Counter(), 0, False))  # fmt: skip
        del facts, columns, column
        gc.collect()
        assert [reference() for reference in held] == [None] * 3
        table.join()
        assert table.columns["id"].tolist() == [0, 1, 2, 0, 1, 2]
        assert table.columns["start"].tolist() == [0, 1, 2, 3, 4, 5]
