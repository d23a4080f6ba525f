"""The benchmark against gold scores what it says, on a made-up gold of a dozen lines."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from places import ROOT


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = ROOT / "benchmarks" / "data_gold.py"
    spec = importlib.util.spec_from_file_location("data_gold", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["data_gold"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


MESSY: list[Any] = [
    {"id": "a", "text": "where is my card", "label": "card"},
    {"id": "b", "text": "Where is my card", "label": "card"},  # 2: a copy of a
    {"id": "c", "text": "wheer is my card", "label": "card"},  # 3: nearly a
    {"id": "d", "text": "mail me at jane.roe@example.org today", "label": "mail"},  # 4
    {"id": "e", "text": "order 1234567812345678", "label": "order"},  # 5: looks like a card number
    {"id": "f", "text": "cafÃ©", "label": "food"},  # 6
    {"id": "g", "text": "stop <|eot_id|> now", "label": "stop"},  # 7
    "",  # 8
    '{"id": "h", "text": "cut off',  # 9
    {"id": "i", "text": "o\u00f9 est ma carte", "label": "card"},  # 10
    {"id": "j", "text": "flip me", "label": "wrong"},  # 11
    {"id": "k", "text": "a leak", "label": "card"},  # 12
    {"id": "l", "text": "fine", "label": "card"},  # 13: the same as m by nature
    {"id": "m", "text": "Fine", "label": "card"},  # 14
]
DEFECTS: list[dict[str, Any]] = [
    {"line": 2, "id": "b", "type": "exact_duplicate", "of": "a"},
    {"line": 3, "id": "c", "type": "near_duplicate", "of": "a"},
    {
        "line": 4,
        "id": "d",
        "type": "pii",
        "spans": [{"type": "EMAIL", "value": "jane.roe@example.org", "structured": True}],
    },
    {"line": 5, "id": "e", "type": "pii_lookalike", "value": "1234567812345678"},
    {"line": 6, "id": "f", "type": "mojibake", "recoverable": True, "fixed": "café"},
    {"line": 7, "id": "g", "type": "special_tokens", "value": "<|eot_id|>"},
    {"line": 8, "id": None, "type": "blank_line"},
    {"line": 9, "id": "h", "type": "broken_json", "recoverable": False, "original": {}},
    {"line": 10, "id": "i", "type": "foreign_language", "lang": "fr"},
    {"line": 11, "id": "j", "type": "label_flip", "original_label": "card"},
    {"line": 12, "id": "k", "type": "test_leak", "of_test": 0},
]
BASE = [record for record in MESSY if isinstance(record, dict) and record["id"] not in ("b", "c", "k")]
REJECTED = {2: "exact_duplicate", 3: "near_duplicate", 8: "blank_line", 9: "broken_json", 10: "wrong_language", 12: "split_leak", 14: "exact_duplicate"}  # fmt: skip
MENDED = {4: "mail me at <EMAIL> today", 6: "café", 7: "stop < |eot_id|> now"}


def write(path: Path, records: list[Any]) -> None:
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def data_set(folder: Path, rejected: dict[int, str], mended: dict[int, str], ranking: list[int]) -> Path:
    """A prepared data set as its files, with the given fate of every line."""
    folder.mkdir()
    rows, rejects = [], []
    for line, record in enumerate(MESSY, 1):
        if line in rejected:
            rejects.append(
                {"source": "messy.jsonl", "line": line, "reason": rejected[line], "detail": "", "record": None}
            )
        else:
            content = mended.get(line, record["text"])
            meta = {"source": "messy.jsonl", "line": line}
            rows.append({"id": record["id"], "messages": [{"role": "user", "content": content}], "meta": meta})
    write(folder / "train.jsonl", rows)
    write(folder / "test.jsonl", [{"id": "t", "messages": [], "meta": {"source": "test.jsonl", "line": 2}}])
    write(folder / "rejects.jsonl", rejects)
    write(
        folder / "repairs.jsonl",
        [{"source": "messy.jsonl", "line": n, "id": "", "kind": "encoding", "field": "text"} for n in mended],
    )
    write(folder / "label_errors.jsonl", [{"source": "messy.jsonl", "line": n} for n in ranking])
    return folder


@pytest.fixture
def gold(bench: ModuleType, tmp_path: Path) -> Any:
    folder = tmp_path / "gold"
    folder.mkdir()
    write(folder / "messy.jsonl", MESSY)
    write(folder / "clean.jsonl", BASE)
    (folder / "gold.json").write_text(json.dumps({"defects": DEFECTS, "natural_near_pairs": []}))
    return bench.read_gold(folder)


def scores(bench: ModuleType, gold: Any, folder: Path) -> dict[str, Any]:
    return {score.kind: score for score in bench.score_all(gold, bench.read_outcome(folder, "messy.jsonl"))}


def test_a_preparation_without_fault_meets_every_goal(bench: ModuleType, gold: Any, tmp_path: Path) -> None:
    found = scores(bench, gold, data_set(tmp_path / "good", REJECTED, MENDED, [11, 1, 5]))
    assert {kind for kind, score in found.items() if not score.met} == set()
    assert found["exact_duplicate"].precision == 1.0  # line 14 repeats line 13 by nature
    assert found["lines accounted for"].n == len(MESSY)
    assert "NO" not in bench.table("made up", found.values())


@pytest.mark.parametrize(
    ("rejected", "mended", "ranking", "kind"),
    [
        ({2: None}, {}, [11], "exact_duplicate"),
        ({13: "exact_duplicate", 11: "exact_duplicate"}, {}, [], "exact_duplicate"),  # one of three is no copy
        ({3: None}, {}, [11], "near_duplicate"),
        ({}, {4: "mail me at jane.roe@example.org today"}, [11], "pii (structured)"),
        ({}, {4: "mail me at <EMAIL>mple.org today"}, [11], "pii (structured)"),
        ({}, {5: "order <CARD>"}, [11], "pii look-alikes"),
        ({}, {6: "cafe"}, [11], "mojibake"),
        ({}, {1: "where is my card"}, [11], "mojibake"),  # a clean row was changed
        ({}, {7: "stop <|eot_id|> now"}, [11], "special_tokens"),
        ({8: "broken_json"}, {}, [11], "blank_line"),
        ({9: "too_long"}, {}, [11], "broken_json"),
        ({10: None}, {}, [11], "foreign_language"),
        ({13: "wrong_language"}, {}, [11], "foreign_language"),
        ({12: None}, {}, [11], "test_leak"),
        ({}, {}, [1, 5, 11], "label_flip (average precision)"),
    ],
)
def test_each_fault_misses_its_own_goal(
    bench: ModuleType,
    gold: Any,
    tmp_path: Path,
    rejected: dict[int, str | None],
    mended: dict[int, str],
    ranking: list[int],
    kind: str,
) -> None:
    fate = {line: reason for line, reason in {**REJECTED, **rejected}.items() if reason}
    found = scores(bench, gold, data_set(tmp_path / "bad", fate, {**MENDED, **mended}, ranking))
    assert found[kind].met is False
    assert "NO" in bench.table("made up", [found[kind]])


def test_a_line_that_is_lost_or_stands_twice_is_counted(bench: ModuleType, gold: Any, tmp_path: Path) -> None:
    folder = data_set(tmp_path / "lost", REJECTED, MENDED, [11])
    rows = (folder / "train.jsonl").read_text().splitlines()
    (folder / "train.jsonl").write_text("\n".join(rows[1:]) + "\n")
    with (folder / "rejects.jsonl").open("a") as rejects:
        rejects.write(json.dumps({"source": "messy.jsonl", "line": 13, "reason": "too_long"}) + "\n")
    assert scores(bench, gold, folder)["lines accounted for"].missed == (1, 13)


def test_average_precision_by_hand(bench: ModuleType) -> None:
    assert bench.average_precision([1, 2, 3, 4], {1, 3}) == pytest.approx((1 + 2 / 3) / 2)
    assert bench.average_precision([9], {1}) == 0.0


def test_groups_join_what_hangs_together(bench: ModuleType) -> None:
    found = bench.groups([("a", "b"), ("c", "b"), ("d", "d")])
    assert set(found) == {"a", "b", "c"} and len(set(found.values())) == 1
