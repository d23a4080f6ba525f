"""Rows of a data set: searched, filtered, in pages, corrected into a patch that prepare applies."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneloop.core.errors import UserError
from tuneloop.report.data.rows import RowQuery, find_rows, row_by_id
from tuneloop.web import index
from web.conftest import Site, keys

MakeTuned = Callable[..., Path]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "AGAIN", 0.0)


def ids(folder: Path, **query: str) -> list[str]:
    """Ids of all rows that fit, over all pages."""
    found: list[str] = []
    page = find_rows(folder, RowQuery(**query), most=7)
    found += [row["id"] for _, row in page.rows]
    while page.then:
        page = find_rows(folder, RowQuery(**{**query, "start": page.then}), most=7)
        found += [row["id"] for _, row in page.rows]
    return found


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    lines = [
        line
        for split in ("train", "val", "test")
        for line in (folder / f"{split}.jsonl").read_text("utf-8").splitlines()
    ]
    return {row["id"]: row for row in map(json.loads, lines)}


def test_a_search_finds_what_a_look_at_every_row_does(make_tuned: MakeTuned) -> None:
    folder = make_tuned() / "dataset"
    rows = rows_of(folder)
    text = next(iter(rows.values()))["messages"][-2]["content"].split()[1]
    assert ids(folder) == list(rows)
    for word in (text, text.upper(), "CAFÉ", "café", f"{text} <email>", 'no"where'):
        every = [
            id_ for id_, row in rows.items()
            if all(w in json.dumps(row["messages"], ensure_ascii=False).casefold() for w in word.casefold().split())
        ]  # fmt: skip
        assert ids(folder, text=word) == every, word
    assert ids(folder, label="late") == [id_ for id_, row in rows.items() if row["label"] == "late"]
    assert ids(folder, label="late", split="test") == [
        json.loads(line)["id"]
        for line in (folder / "test.jsonl").read_text("utf-8").splitlines()
        if json.loads(line)["label"] == "late"
    ]


def test_rows_by_repair_and_kind_of_personal_data(make_tuned: MakeTuned) -> None:
    folder = make_tuned() / "dataset"
    lines = [json.loads(line) for line in (folder / "repairs.jsonl").read_text("utf-8").splitlines()]
    repaired = {line["id"] for line in lines if line["kind"] == "encoding"}
    assert repaired and set(ids(folder, repair="encoding")) == repaired & rows_of(folder).keys()
    redacted = {line["id"] for line in lines if "EMAIL" in (line.get("found") or {})}
    assert redacted and set(ids(folder, personal="EMAIL")) == redacted & rows_of(folder).keys()
    assert ids(folder, personal="EMAIL", text="nothing-like-it") == [] and ids(folder, check="answers") == []


def test_damaged_lines_are_counted_and_missing_files_hold_nothing(make_tuned: MakeTuned, tmp_path: Path) -> None:
    folder = make_tuned() / "dataset"
    with (folder / "test.jsonl").open("ab") as file:
        file.write(b'{"id": "x", "messages": [\n\xff\xfe\n[]\n')
    assert find_rows(folder, RowQuery(split="test"), most=1000).damaged == 3
    assert find_rows(tmp_path, RowQuery()).rows == [] and row_by_id(folder, "test", "none") is None
    with pytest.raises(UserError, match="no such split"):
        find_rows(folder, RowQuery(split="../train"))


def test_a_correction_on_the_page_is_what_the_next_prepare_makes_of_the_row(
    make_tuned: MakeTuned, site: Site, tmp_path: Path
) -> None:
    from tuneloop.data.config import PrepareConfig
    from tuneloop.data.prepare import TokenCount, prepare_dataset

    folder = make_tuned() / "dataset"
    source = (tmp_path / "run.jsonl").read_bytes()
    row = next(row for row in rows_of(folder).values() if row["label"] == "late")
    split = next(s for s in ("train", "test") if row["id"] in (folder / f"{s}.jsonl").read_text("utf-8"))
    client = site()
    (key,) = keys(client.get("/data").text, "data")
    page = client.get(f"/data/{key}?text={row['id']}").text
    assert row["id"] in page and "Correct the answer" in page
    form = {"token": client.token, "id": row["id"], "split": split, "becomes": "lost"}
    assert client.post(f"/data/{key}", data={**form, "becomes": "late"}).status_code == 400
    assert client.post(f"/data/{key}", data={**form, "id": "other"}).status_code == 400
    assert client.post(f"/data/{key}", data=form).status_code == 303
    assert "1 correction" in client.get(f"/data/{key}").text
    patch = tmp_path / "run" / "dataset-patch.jsonl"
    line = json.loads(patch.read_text("utf-8"))
    assert (line["was"], line["becomes"], line["who"], line["line"]) == ("late", "lost", "ana", row["meta"]["line"])

    config = PrepareConfig(sources=["run.jsonl"], split={"val": 0.0, "test": 0.1}, patch=str(patch))  # type: ignore[arg-type]
    again = prepare_dataset(config, name="run", seed=0, out=tmp_path / "again", measure=lambda _: TokenCount(40, 4))
    fixed = next(r for r in [*again.train, *again.test] if r.meta["line"] == row["meta"]["line"])
    assert (fixed.label, fixed.answer) == ("lost", "lost") and again.manifest.repaired["patched"] == 1
    assert (tmp_path / "run.jsonl").read_bytes() == source


def test_two_versions_are_compared_on_the_page(make_tuned: MakeTuned, site: Site) -> None:
    make_tuned(name="one")
    make_tuned([{"text": f"parcel number {i} is not here", "label": "lost"} for i in range(30)], name="two")
    client = site()
    chosen = keys(client.get("/data").text, "data")
    assert len(chosen) == 2
    page = client.get(f"/data?of={chosen[0]}&of={chosen[1]}").text
    assert re.search(r"<b>(added|removed)</b>: train \d+", page)
    assert client.get(f"/data?of={chosen[0]}").status_code == 404
