"""What prepare says at its end: all counts, the remedies, within the terminal, safe with hostile text."""

from __future__ import annotations

import io
from typing import Any

import pytest
from manifests import TOKENS, manifest_json
from rich.cells import cell_len
from rich.console import Console

from tuneloop.records.dataset import DatasetManifest
from tuneloop.report.data.terminal import data_summary

MANIFEST: dict[str, Any] = {
    **manifest_json(),
    "task": "classification",
    "format": {"name": "text_label", "reason": "columns text, label"},
    "counts": {"read": 3303, "kept": 2937, "rejected": 366, "train": 2349, "val": 294, "test": 294},
    "rejected": {"exact_duplicate": 277, "broken_json": 21, **{f"reason_{i}": i for i in range(1, 9)}},
    "repaired": {"white_space": 412, "encoding": 61, "pii": 97},
    "splits": manifest_json(splits={"train": {"tokens": {**TOKENS, "total": 118138, "max": 182}}})["splits"],
    "checks": [
        {"name": "enough_rows", "level": "ok", "message": "2349 training rows", "rows": 2349},
        {
            "name": "labels",
            "level": "warn",
            "message": "3 labels have few rows",
            "rows": 9,
            "remedy": "add rows of them",
        },
        {"name": "leak", "level": "error", "message": "8 rows leak", "rows": 8, "remedy": "set split.group"},
    ],
}


def shown(manifest: dict[str, Any], width: int = 80, **options: Any) -> str:
    file = io.StringIO()
    Console(file=file, width=width, **options).print(data_summary(DatasetManifest.model_validate(manifest)))
    return file.getvalue()


def test_every_count_and_every_remedy_is_there_the_worst_check_first() -> None:
    text = " ".join(shown(MANIFEST).split())
    for part in (
        "read 3,303 text_label (columns text, label)",
        "kept 2,937 classification",
        "rejected 366 277 exact_duplicate, 21 broken_json, 8 reason_8",
        "3 others",
        "repaired 570 412 white_space, 97 pii, 61 encoding",
        "train 2,349 118,138 tokens, longest row 182",
        "error 8 rows leak set split.group warn 3 labels have few rows add rows of them",
    ):
        assert part in text, part
    assert "training rows" not in text  # what is fine needs no line


def test_personal_data_is_told_by_kind_where_the_manifest_does() -> None:
    text = " ".join(shown({**MANIFEST, "personal": {"EMAIL": 41, "PHONE": 3}}).split())
    assert "redacted 44 41 EMAIL, 3 PHONE" in text and "pii" not in text


def test_general_rows_stand_beside_the_splits() -> None:
    mix = {"by": "tokens", "share": 0.1, "task": {"rows": 9, "tokens": 9}, "general": {"rows": 177, "tokens": 24_128}}
    assert "general 177 mixed into train, 24,128 tokens" in " ".join(shown({**MANIFEST, "mix": mix}).split())


@pytest.mark.parametrize("width", [50, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    long = {"name": "x", "level": "warn", "message": "wieeinsehrlangesWort" * 20, "remedy": "漢字" * 90}
    lines = shown({**MANIFEST, "checks": [long], "format": {"name": "f" * 300}}, width).splitlines()
    assert max(cell_len(line) for line in lines) <= width


def test_text_of_data_is_neither_markup_nor_a_control_sequence() -> None:
    check = {
        "name": "x",
        "level": "warn",
        "message": "[red]label[/red] \x1b[2J\x07",
        "remedy": "[/] [link=http://e.example]",
    }
    manifest = {**MANIFEST, "checks": [check], "rejected": {"[bold]\x1b[0m": 3}}
    text = shown(manifest, 120, force_terminal=True, color_system=None)
    assert "[red]label[/red]" in text and "[/] [link=" in text
    assert "\x1b[2J" not in text and "\x07" not in text
