from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from ticket_files import measure, run, tickets, write

from patience import slowness
from places import DATA_SETS
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, read_jsonl, write_jsonl
from tuneloop.core.ui import reporting
from tuneloop.data.checks.checks import check_dataset, run_checks
from tuneloop.data.config import PrepareConfig, SplitConfig
from tuneloop.data.dataset import REASONS, REPAIRS, dataset_hash, load_dataset, prepare_key
from tuneloop.data.formats.guess import ROLES
from tuneloop.data.prepare import prepare_dataset
from tuneloop.data.process_record import ChunkFacts, ChunkWork, RowProcessor, process_chunk
from tuneloop.data.sources.parse import Chunk

DATA = DATA_SETS


def rejects_of(tmp_path: Path, out: str = "out") -> list[tuple[int, str]]:
    return [(r["line"], r["reason"]) for r in read_jsonl(tmp_path / out / "rejects.jsonl")]


LINES = st.one_of(
    st.fixed_dictionaries({"text": st.text(max_size=8), "label": st.sampled_from(["a", "b", "", " b", 3, None])}).map(
        json.dumps
    ),
    st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=12),
    st.dictionaries(
        st.text(max_size=5), st.integers() | st.text(max_size=5) | st.lists(st.none(), max_size=2), max_size=3
    ).map(json.dumps),
)


def process_or_die(work: ChunkWork, processor: RowProcessor) -> ChunkFacts:
    """As `process_chunk`, but the first process that gets a chunk from the middle is killed."""
    marker = Path(os.environ["KILLED_MARKER"])
    if isinstance(work.records, Chunk) and work.records.line > 50 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return process_chunk(work, processor)


REAL: list[tuple[str, dict[str, Any], str, str, dict[str, int]]] = [
    ("banking77/train.jsonl", {}, "text_label", "classification", {"read": 10003}),
    ("alpaca_en_demo/train.json", {}, "alpaca", "generation", {"read": 999}),
    ("sharegpt_toolcall_demo/train.json", {"max_length": 10_000}, "sharegpt", "chat", {"read": 300}),
    ("taskmaster4_chats/train.jsonl", {}, "messages", "chat", {"read": 1710}),
    ("dialogsum/dev.jsonl", {"input": "{dialogue}", "output": "{summary}"}, "fields", "generation", {"read": 500}),
    ("messy_tickets/messy.jsonl", {"max_length": 10_000}, "text_label", "classification", {"read": 3303}),
    ("messy_chats/messy.jsonl", {"allow_rejects": 0.5}, "thumbs", "chat", {"read": 1346}),
]


def test_something_is_told_before_the_first_record_is_read(tmp_path: Path) -> None:
    told: list[str] = []
    config = PrepareConfig(sources=[write(tmp_path / "in.jsonl", tickets(30))])
    with reporting(progress=lambda task, *_, **__: told.append(task)):
        prepare_dataset(config, name="job", seed=0, out=tmp_path / "out", measure=measure)
    assert told[0] == "looking at the sources" and "reading" in told[2:]


def test_a_data_set_is_split_counted_and_described(tmp_path: Path) -> None:
    dataset = run(tmp_path, tickets(200))
    manifest = dataset.manifest
    assert manifest.to_json() == read_json(tmp_path / "out" / "dataset.json")
    counts = manifest["counts"]
    assert (counts["read"], counts["kept"], counts["rejected"]) == (200, 200, 0)
    assert 150 <= counts["train"] <= 170 and 12 <= counts["val"] <= 28 and 12 <= counts["test"] <= 28
    assert dataset.task == "classification" and manifest["labels"] == ["label_0", "label_1", "label_2", "label_3"]
    assert dataset.id == f"job-{manifest['hash'][:12]}" and manifest["version"] == 1 and manifest["seed"] == 0
    assert manifest["format"]["name"] == "text_label"
    assert manifest["sources"][0]["rows"] == 200 and len(manifest["sources"][0]["sha256"]) == 64
    assert all(2 <= n <= 8 for n in manifest["splits"]["test"]["labels"].values())
    assert len(manifest["splits"]["test"]["labels"]) == 4
    tokens = [measure(r).tokens for r in dataset.train]
    stats = manifest["splits"]["train"]["tokens"]
    assert (stats["total"], stats["max"], stats["min"], stats["supervised"]) == (
        sum(tokens),
        max(tokens),
        min(tokens),
        len(dataset.train),
    )
    levels = {c["name"]: c["level"] for c in manifest["checks"]}
    assert (levels["enough_rows"], levels["test_size"], levels["unseen_labels"], levels["template"]) == (
        "ok",
        "warn",
        "ok",
        "ok",
    )
    row = dataset.train[0]
    assert set(row.meta) == {"source", "line", "id"} and row.label == row.answer and len(row.id) == 16


def test_a_number_beyond_64_bits_keeps_its_digits(tmp_path: Path) -> None:
    records = [row | {"number": 2**70 + i} for i, row in enumerate(tickets(20))]
    dataset = run(tmp_path, [*records, {"text": "no label", "number": 2**70}])
    kept = [line for name in ("train", "val", "test") for line in read_jsonl(Path(dataset.path) / f"{name}.jsonl")]
    assert {row["meta"]["number"] for row in kept} <= {2**70 + i for i in range(20)} and len(kept) > 10
    assert read_jsonl(Path(dataset.path) / "rejects.jsonl")[-1]["record"]["number"] == 2**70


def test_the_same_inputs_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    records = [*tickets(60), "{broken", tickets(1)[0]]
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path, records, out=out, seed=seed)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert {"dataset.json", "rejects.jsonl", "repairs.jsonl", "test.jsonl", "train.jsonl", "val.jsonl"} < set(files)
    assert not any(name.startswith(".") for name in files)
    contents = {out: {name: (tmp_path / out / name).read_bytes() for name in files} for out in "abc"}
    assert contents["a"] == contents["b"]
    assert contents["a"]["test.jsonl"] != contents["c"]["test.jsonl"]


def test_the_order_and_the_place_of_the_records_do_not_change_the_data_set(tmp_path: Path) -> None:
    first = run(tmp_path, tickets(60), out="a")
    (tmp_path / "elsewhere").mkdir()
    second = run(tmp_path / "elsewhere", tickets(60)[::-1])
    assert first.id == second.id
    assert [[r.id for r in s] for s in (first.train, first.test)] == [
        [r.id for r in s] for s in (second.train, second.test)
    ]


def test_every_broken_record_is_rejected_with_its_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = tickets(40)
    records: list[Any] = [
        *good,
        "{broken",
        "",
        {"text": "no label"},
        {"text": "x", "label": ""},
        {"text": good[0]["text"].upper() + "  ", "label": "LABEL_0"},
        {"text": "a", "label": "UNRENDERABLE"},
        {"text": "b", "label": "MASKED"},
        {"text": "long " * 3000, "label": "label_0"},
        [1],
    ]
    dataset = run(tmp_path, records)
    assert rejects_of(tmp_path) == [
        (41, "broken_json"),
        (42, "blank_line"),
        (43, "missing_field"),
        (44, "empty_output"),
        (45, "exact_duplicate"),
        (46, "template_error"),
        (47, "no_supervised_token"),
        (48, "too_long"),
        (49, "wrong_type"),
    ]
    rejects = {r["line"]: r for r in read_jsonl(tmp_path / "out" / "rejects.jsonl")}
    assert rejects[45]["detail"] == f"of {tmp_path / 'data.jsonl'}:1" and rejects[45]["record"] == records[44]
    assert rejects[48]["detail"].startswith("37") and rejects[41]["record"] == "{broken"
    assert dataset.manifest["rejected"]["exact_duplicate"] == 1
    assert dataset.manifest["counts"]["read"] == 49 and dataset.manifest["counts"]["kept"] == 40
    # 7 of the 47 that are neither blank nor copies
    assert next(c for c in dataset.manifest["checks"] if c["name"] == "reject_share")["rows"] == 7


@given(lines=st.lists(LINES, max_size=15))
def test_whatever_comes_in_each_line_is_kept_or_rejected(tmp_path: Path, lines: list[str]) -> None:
    base = [json.dumps(r) for r in tickets(6, labels=2)]
    dataset = run(tmp_path, base + lines, allow_rejects=1.0, text="text", label="label")
    counts = dataset.manifest["counts"]
    rows = dataset.train + dataset.val + dataset.test
    lines_seen = [r.meta["line"] for r in rows] + [line for line, _ in rejects_of(tmp_path)]
    assert sorted(lines_seen) == list(range(1, len(base + lines) + 1))
    assert counts["read"] == counts["kept"] + counts["rejected"] == len(base + lines)
    assert counts["kept"] == counts["train"] + counts["val"] + counts["test"] == len(rows)
    assert sum(dataset.manifest["rejected"].values()) == counts["rejected"]
    assert set(dataset.manifest["rejected"]) <= set(REASONS) and set(dataset.manifest["repaired"]) <= set(REPAIRS)
    assert len({r.id for r in rows}) == len(rows)
    assert load_dataset(tmp_path / "out") == dataset


def test_the_number_of_processes_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneloop.data.prepare.SMALL", 0)
    monkeypatch.setattr("tuneloop.data.prepare.CHUNK", 2000)
    records = [*tickets(120), "{broken", *tickets(3), {"text": "mail jane.doe@example.org", "label": "label_1"}]
    for out, workers in (("one", 1), ("three", 3)):
        run(tmp_path, records, out=out, workers=workers)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "three" / path.name).read_bytes(), path.name


def test_a_killed_worker_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneloop.data.prepare.SMALL", 0)
    monkeypatch.setattr("tuneloop.data.prepare.CHUNK", 2000)
    monkeypatch.setattr("tuneloop.data.prepare.process_chunk", process_or_die)
    monkeypatch.setenv("KILLED_MARKER", str(tmp_path / "killed"))
    dataset = run(tmp_path, tickets(120), workers=2)
    assert (tmp_path / "killed").exists() and dataset.manifest["counts"]["kept"] == 120


def test_a_source_that_changes_after_it_was_read_is_told_and_leaves_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(*arguments: Any, **options: Any) -> Any:
        with (tmp_path / "data.jsonl").open("a") as more:
            more.write('{"text": "one more", "label": "label_1"}\n')
        return run_checks(*arguments, **options)

    monkeypatch.setattr("tuneloop.data.checks.checks.run_checks", changed)
    with pytest.raises(UserError, match="changed while") as refused:
        run(tmp_path, tickets(60))
    assert "data.jsonl" in str(refused.value.where) and not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.skipif(os.name == "nt", reason="needs limits of the system")
def test_a_full_disk_is_told_and_leaves_no_data_set(tmp_path: Path) -> None:
    import resource

    source = write(tmp_path / "data.jsonl", tickets(400))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match="Can't write") as refused:
            prepare_dataset(PrepareConfig(sources=[source]), name="job", seed=0, out=tmp_path / "out", measure=measure)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.value.where == str(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_given_test_file_is_taken_as_it_is_and_its_rows_leave_train(tmp_path: Path) -> None:
    rows = tickets(60)
    test = write(tmp_path / "test.jsonl", [rows[0], rows[0], {"text": rows[1]["text"] + "!", "label": "label_1"}])
    dataset = run(tmp_path, rows, split={"test": test})
    assert [r.meta["line"] for r in sorted(dataset.test, key=lambda r: r.meta["line"])] == [1, 2, 3]
    leaks = [r for r in read_jsonl(tmp_path / "out" / "rejects.jsonl") if r["reason"] == "split_leak"]
    assert [(r["line"], r["source"].endswith("data.jsonl")) for r in leaks] == [(1, True), (2, True)]
    counts = dataset.manifest["counts"]
    assert counts["read"] == 63 and counts["test"] == 3 and counts["train"] + counts["val"] == 58


def test_rows_that_are_the_same_have_ids_of_their_own(tmp_path: Path) -> None:
    rows = tickets(60)
    again = {"text": "Caf\u00c3\u00a9 closed?", "label": "label_1"}  # mojibake: its repair names the row, too
    test = write(tmp_path / "test.jsonl", [rows[0], again, rows[0], {**rows[0], "note": "third"}, again])
    dataset = run(tmp_path, [*rows, rows[1]], split={"test": test}, duplicates={"exact": False, "near": False})
    every = [row.id for split in (dataset.train, dataset.val, dataset.test) for row in split]
    assert len(every) == 59 + 1 + 5 == len(set(every))
    assert all(len(row_id) == 16 and int(row_id, 16) for row_id in every)
    repaired = {r["id"] for r in read_jsonl(tmp_path / "out" / "repairs.jsonl") if r["source"].endswith("test.jsonl")}
    assert repaired == {row.id for row in dataset.test if row.meta["line"] in (2, 5)}

    swapped = write(tmp_path / "test.jsonl", [{**rows[0], "note": "third"}, again, rows[0], rows[0], again])
    other = run(tmp_path, [rows[1], *rows], split={"test": swapped}, duplicates={"exact": False, "near": False})
    assert other.manifest["hash"] == dataset.manifest["hash"], "the order of the sources does not count"


def test_a_frozen_test_set_stays_while_rows_are_added(tmp_path: Path) -> None:
    first = run(tmp_path, tickets(100), out="first")
    second = run(tmp_path, tickets(150), out="second", split={"freeze": str(tmp_path / "first")})
    was = {row.id: split for split in ("train", "val", "test") for row in getattr(first, split)}
    now = {row.id: split for split in ("train", "val", "test") for row in getattr(second, split)}
    assert all(now[row] == split for row, split in was.items())


def test_personal_data_stands_in_no_output(tmp_path: Path) -> None:
    secrets = ["jane.doe@example.org", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00"]
    records = [
        *tickets(30),
        *[
            {"text": f"please write to {secret} about my case number {i}", "label": "label_1"}
            for i, secret in enumerate(secrets)
        ],
        {"text": "who is it", "label": "label_1", "customer": secrets[0]},
        {"text": f"ask {secrets[0]}", "label": ""},
        '{"text": "broken ' + secrets[0],
    ]
    dataset = run(tmp_path, [*records, records[-3]])
    for path in (tmp_path / "out").iterdir():
        text = path.read_text()
        assert not [secret for secret in secrets if secret in text], path.name
    assert dataset.manifest["personal"] == {"CREDIT_CARD": 1, "EMAIL": 5, "IBAN": 1}  # rejects included
    kinds = {r["line"]: r["detail"] for r in read_jsonl(tmp_path / "out" / "repairs.jsonl") if r["kind"] == "pii"}
    rejected = {35: "EMAIL", 36: "EMAIL", 37: "EMAIL"}  # an empty label, broken JSON, a copy
    assert kinds == {31: "EMAIL", 32: "CREDIT_CARD", 33: "IBAN", 34: "EMAIL"} | rejected


def test_a_streamed_answer_keeps_its_spaces_and_hides_no_personal_data(tmp_path: Path) -> None:
    def streamed(i: int, answer: str, finish: str = "stop") -> dict[str, Any]:
        pieces: list[Any] = [{"delta": {"content": answer[at : at + 3]}} for at in range(0, len(answer), 3)]
        chunks = [{"choices": [piece]} for piece in [*pieces, {"delta": {}, "finish_reason": finish}]]
        asked = [{"type": "text", "text": "where is "}, {"type": "text", "text": tickets(40)[i]["text"]}]
        return {"request": {"model": "m", "messages": [{"role": "user", "content": asked}]}, "response": chunks}

    said = "Write to jane.doe@example.org & wait for  us"
    rows = [streamed(i, f"{said} {i}") for i in range(30)]
    dataset = run(tmp_path, [*rows, streamed(31, said, "length")])
    assert dataset.manifest["counts"]["kept"] == 30 and rejects_of(tmp_path) == [(31, "truncated_output")]
    assert {row.answer for row in dataset.train} <= {f"Write to <EMAIL> & wait for  us {i}" for i in range(30)}
    assert all(row.messages[0]["content"].startswith("where is ") for row in dataset.train)
    for path in (tmp_path / "out").iterdir():
        assert not [part for part in ("jan", "e.d", "oe@") if f'"{part}"' in path.read_text()], path.name
    assert dataset.manifest["personal"] == {"EMAIL": 31}


def test_general_data_is_blended_in_marked_and_kept_out_of_the_test(tmp_path: Path) -> None:
    general = write(
        tmp_path / "general.jsonl",
        [{"prompt": f"What is {t['text']}?", "completion": "It depends."} for t in tickets(200)[100:]],
    )
    dataset = run(tmp_path, tickets(60), mix={"sources": [general], "by": "rows"})
    mixed = [row for row in dataset.train if "mix" in row.meta]
    assert len(mixed) == pytest.approx(0.3 * len(dataset.train), abs=1)
    assert not any("mix" in row.meta for row in dataset.test)
    assert next(c for c in dataset.manifest["checks"] if c["name"] == "mix_share")["level"] == "ok"


def test_too_many_rejects_stop_the_job_until_they_are_allowed(tmp_path: Path) -> None:
    records = [*tickets(30), *["{broken"] * 10]
    run(tmp_path, tickets(30))
    with pytest.raises(UserError) as caught:
        run(tmp_path, records)
    message = str(caught.value)
    assert "10 of 40 records (25%) were rejected; 20% are allowed" in message
    assert f"broken_json 10x, as {tmp_path / 'data.jsonl'}:31" in message
    assert f"look at {tmp_path / 'out' / 'rejects.jsonl'}; to continue all the same add allow_rejects=0.5" in message
    assert message.count("\n") == 2
    assert len(rejects_of(tmp_path)) == 10 and not (tmp_path / "out" / "dataset.json").exists()
    assert run(tmp_path, records, allow_rejects=0.5).manifest["counts"]["kept"] == 30


def test_the_offered_allowance_is_enough(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="60%") as caught:
        run(tmp_path, [*tickets(10), *["{"] * 15])
    assert caught.value.next_step.endswith("allow_rejects=0.75")


def test_copies_and_blank_lines_are_no_fault(tmp_path: Path) -> None:
    dataset = run(tmp_path, [*tickets(20), *tickets(20), *[""] * 20, *tickets(1)])
    assert dataset.manifest["rejected"] == {"exact_duplicate": 21, "blank_line": 20}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (["{x}", "["], "No valid rows in 2 records"),
        ([{"text": "a", "label": ""}], "No valid rows in 1 record"),
        ([{"a": 1, "b": 2}], "Can't tell the format"),
        ([], "is empty"),
    ],
)
def test_nothing_usable_is_a_user_error_and_leaves_no_data_set(
    tmp_path: Path, records: list[Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path, records)
    assert 1 <= str(caught.value).count("\n") <= 2
    assert not (tmp_path / "out" / "dataset.json").exists() and not (tmp_path / "out" / "train.jsonl").exists()


def test_a_header_without_rows_and_an_output_that_is_a_file_are_user_errors(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,label\n")
    with pytest.raises(UserError, match="No records"):
        prepare_dataset(
            PrepareConfig(sources=[str(tmp_path / "x.csv")]), name="j", seed=0, out=tmp_path / "o", measure=measure
        )
    with pytest.raises(UserError, match="Can't write"):
        run(tmp_path, tickets(20), out="x.csv")


def test_unknown_labels_are_rejected_with_the_nearest(tmp_path: Path) -> None:
    labels = [f"label_{n}" for n in range(4)]
    dataset = run(tmp_path, [*tickets(40), {"text": "x", "label": "Label_1"}], labels=labels)
    (reject,) = read_jsonl(tmp_path / "out" / "rejects.jsonl")
    assert (reject["reason"], reject["detail"]) == ("unknown_label", "'Label_1': did you mean 'label_1'?")
    assert dataset.manifest["labels"] == labels


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(ValidationError, match="must leave rows for training"):
        SplitConfig(val=0.5, test=0.5)


def test_the_task_follows_from_the_records(tmp_path: Path) -> None:
    pairs = [{"prompt": f"p {n}", "completion": f"c {n}"} for n in range(20)]
    assert run(tmp_path, pairs).task == "generation"
    turns = [{"messages": [{"role": r, "content": f"{r} {n}"} for r in ("user", "assistant") * 2]} for n in range(20)]
    assert run(tmp_path, turns).task == "chat"
    few = [{"prompt": f"p {n}", "completion": "ab"[n % 2]} for n in range(20)]
    dataset = run(tmp_path, few, task="classification")
    assert dataset.task == "classification" and dataset.manifest["labels"] == ["a", "b"]
    assert {r.label for r in dataset.train} == {"a", "b"}


def _as_messages(text: str, answer: str) -> dict[str, object]:
    turns = (("system", "Which queue?"), ("user", text), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _as_sharegpt(text: str, answer: str) -> dict[str, object]:
    return {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]}


def _as_pair(text: str, answer: str) -> dict[str, object]:
    return {"prompt": text, "completion": answer}


def _as_log(text: str, answer: str) -> dict[str, object]:
    request = {"model": "m", "messages": [{"role": "user", "content": text}]}
    reply = {"choices": [{"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}]}
    return {"request": request, "response": reply}


@pytest.mark.parametrize("record", [_as_messages, _as_sharegpt, _as_pair, _as_log])
def test_few_short_answers_that_repeat_are_labels_in_every_shape(
    tmp_path: Path, record: Callable[[str, str], dict[str, object]]
) -> None:
    names = [f"queue {n}" for n in range(8)]
    rows = [record(f"ticket {t['text']} {n}", names[n % 8]) for n, t in enumerate(tickets(120))]
    dataset = run(tmp_path, [*rows, record("ticket without a queue", "null")])
    assert dataset.task == "classification" and dataset.manifest["labels"] == names
    assert {row.label for row in dataset.train} == set(names)
    assert "8 labels" in dataset.manifest.format.reason and dataset.manifest["rejected"]["error_output"] == 1
    assert run(tmp_path, rows, task="generation").task == "generation"


@pytest.mark.parametrize("answers", [["3", "4"], ['{"a": 1}', '{"a": 2}'], [f"word {n}" for n in range(90)], ["yes"],
                                     ["a text that is longer than a name of a class will ever be, by far", "no"]])  # fmt: skip
def test_numbers_objects_and_free_answers_are_no_labels(tmp_path: Path, answers: list[str]) -> None:
    rows = [_as_messages(f"{t['text']} {n}", answers[n % len(answers)]) for n, t in enumerate(tickets(120))]
    assert run(tmp_path, rows).task == "generation"


def test_the_rows_of_a_small_test_file_are_labelled_as_those_of_training(tmp_path: Path) -> None:
    rows = [_as_messages(f"{t['text']} {n}", "ab"[n % 2]) for n, t in enumerate(tickets(80))]
    test = tmp_path / "test.jsonl"
    write_jsonl(test, [_as_messages(f"new {n} one", "ab"[n % 2]) for n in range(4)])
    dataset = run(tmp_path, rows, split={"test": str(test)})
    assert [row.label for row in dataset.test] and all(row.label for row in dataset.test)


def test_a_column_can_be_the_stratum_without_being_the_label(tmp_path: Path) -> None:
    records = [
        {"text": t["text"], "queue": "rare" if n % 10 == 0 else "common", "summary": f"s {n}"}
        for n, t in enumerate(tickets(100))
    ]
    dataset = run(tmp_path, records, input="{text}", output="Queue: {queue}\n{summary}", split={"stratify": "queue"})
    assert dataset.task == "generation" and dataset.train[0].label is None
    for split in (dataset.val, dataset.test):
        found = Counter(r.meta["queue"] for r in split)
        assert 5 <= found["common"] <= 13 and 1 <= found["rare"] <= 3
    assert set(dataset.train[0].meta) == {"source", "line", "queue", "summary"}


def test_a_check_of_its_own_says_what_prepare_said(tmp_path: Path) -> None:
    records = [{**r, "text": f"{r['text']} about {r['label']} matters"} for r in tickets(240)]
    for path in range(0, 240, 20):
        records[path]["label"] = "label_3"
    dataset = run(tmp_path, records)
    said = {check["name"]: (check["level"], check["message"], check["rows"]) for check in dataset.manifest["checks"]}
    again = check_dataset(load_dataset(dataset.path), measure=measure)
    assert said["label_errors"][2] > 0
    assert {c["name"]: (c["level"], c["message"], c["rows"]) for c in again} == said


def test_limits_are_kept_and_rows_beyond_them_accounted_for(tmp_path: Path) -> None:
    assert run(tmp_path, tickets(100), limit=40).manifest["counts"]["read"] == 40
    dataset = run(tmp_path, tickets(100), limit_per_label=5)
    assert Counter(r.label for r in dataset.train) == {f"label_{n}": 5 for n in range(4)}
    counts = dataset.manifest["counts"]
    assert dataset.manifest["rejected"] == {"over_limit": 80 - counts["val"] - counts["test"]}


def test_repairs_are_recorded_with_the_row_they_changed(tmp_path: Path) -> None:
    records = [*tickets(20), {"text": "spaced", "label": " label_0"}]
    dataset = run(tmp_path, records)
    (repair,) = read_jsonl(tmp_path / "out" / "repairs.jsonl")
    assert (repair["line"], repair["kind"], repair["field"]) == (21, "white_space", "label")
    assert (repair["before"], repair["after"]) == (" label_0", "label_0")
    assert repair["id"] in {r.id for r in dataset.train + dataset.val + dataset.test}
    assert dataset.manifest["repaired"] == {"white_space": 1}


def test_repairs_of_records_that_are_rejected_or_dropped_are_told_too(tmp_path: Path) -> None:
    records = [
        *tickets(20),
        {"text": "Wo ist die GebÃ¼hr?", "label": ""},  # repaired, then found to have no label
        {"text": "where is my card number nineteen &amp; a half", "label": "label_0"},
        {"text": "where is my card number nineteen & a half", "label": "label_0"},
        {"text": ["write to ann@example.org"], "label": "label_0"},
    ]
    lines = [json.dumps(record) for record in records] + ['{"text": "write to bob@example.org"']
    dataset = run(tmp_path, lines, allow_rejects=1.0)
    told = {r["line"]: r for r in read_jsonl(tmp_path / "out" / "repairs.jsonl")}
    gone = {r["line"]: r["reason"] for r in read_jsonl(tmp_path / "out" / "rejects.jsonl")}
    assert {line: r["kind"] for line, r in told.items()} == {21: "encoding", 22: "html_entities", 24: "pii", 25: "pii"}
    assert {21, 24, 25} < set(gone) and {22, 23} & set(gone)
    assert told[21]["id"] is None and told[22]["id"] and told[25]["detail"] == "EMAIL"
    assert dataset.manifest["repaired"] == {"encoding": 1, "html_entities": 1, "pii": 2}


def test_a_record_that_is_nearly_json_is_rejected_and_read_on_request_with_the_repair_told(tmp_path: Path) -> None:
    lines = [json.dumps(record) for record in tickets(40)]
    lines[6] = lines[6].replace("}", ', "score": NaN, "note": "a\tb"}')
    run(tmp_path, lines)
    (refused,) = read_jsonl(tmp_path / "out" / "rejects.jsonl")
    assert (refused["line"], refused["reason"]) == (7, "broken_json") and "NaN" in refused["detail"]
    assert "data.repair.json_syntax=true" in refused["detail"]
    run(tmp_path, lines, repair={"json_syntax": True})
    (told,) = read_jsonl(tmp_path / "out" / "repairs.jsonl")
    assert (
        (told["line"], told["kind"]) == (7, "json_syntax") and "NaN" in told["detail"] and "control" in told["detail"]
    )


def test_files_are_read_as_dataset_info_describes_them(tmp_path: Path) -> None:
    (tmp_path / "lf").mkdir()
    info = {"a": {"file_name": "x.jsonl", "columns": {"prompt": "q", "response": "r"}}, "b": {"file_name": "y.jsonl"}}
    (tmp_path / "lf" / "dataset_info.json").write_text(json.dumps(info))
    write(tmp_path / "lf" / "x.jsonl", [{"q": t["text"], "r": f"So {t['id']}."} for t in tickets(30)])
    write(
        tmp_path / "lf" / "y.jsonl", [{"prompt": t["text"][::-1], "completion": f"No {t['id']}."} for t in tickets(30)]
    )
    config = PrepareConfig(sources=[str(tmp_path / "lf")])
    dataset = prepare_dataset(config, name="lf", seed=0, out=tmp_path / "out", measure=measure)
    # the entry of y names no columns and its defaults are not there: its format is detected
    assert dataset.manifest["counts"]["kept"] == 60 and dataset.manifest["rejected"] == {}
    assert {row.answer[:2] for row in dataset.train} == {"So", "No"}
    before = prepare_key(config, name="lf", seed=0)
    (tmp_path / "lf" / "dataset_info.json").write_text(json.dumps({"b": info["b"]}))
    assert prepare_key(config, name="lf", seed=0) != before


def test_checks_name_the_rows_they_found(tmp_path: Path) -> None:
    records = [*tickets(40), {"text": "isn?t it lost � here", "label": "label_0"}]
    run(tmp_path, records)
    found = read_jsonl(tmp_path / "out" / "flagged.jsonl")
    (lost,) = [r for r in found if r["check"] == "garbled_text"]
    assert lost["line"] == 41 and {"source", "id", "split"} <= lost.keys()


def test_rows_of_the_test_that_are_much_alike_say_so(tmp_path: Path) -> None:
    records = [
        {"prompt": r["text"], "completion": f"{r['text'][::-1]} {n}" * (n + 1)} for r in tickets(60) for n in range(2)
    ]
    dataset = run(tmp_path, records)
    marks = Counter(row.meta.get("duplicate_cluster") for row in dataset.test)
    assert {n for mark, n in marks.items() if mark} == {2}
    assert not any("duplicate_cluster" in row.meta for row in dataset.train)
    assert load_dataset(dataset.path).manifest["id"] == dataset.manifest["id"]
    config = PrepareConfig(sources=[str(tmp_path / "data.jsonl")])
    rows = {"train": dataset.train, "val": dataset.val, "test": dataset.test}
    assert dataset_hash(rows, config, 0) == dataset.manifest["hash"]
    alone = run(tmp_path, tickets(60), out="alone")
    assert not any("duplicate_cluster" in row.meta for row in [*alone.test, *alone.val])


def test_checks_warn_of_rare_unbalanced_and_conflicting_labels(tmp_path: Path) -> None:
    records = [
        *tickets(60, labels=1),
        {"text": "odd", "label": "rare"},
        {"text": tickets(1)[0]["text"], "label": "rare"},
    ]
    levels = {c["name"]: (c["level"], c["rows"]) for c in run(tmp_path, records).manifest["checks"]}
    assert levels["label_balance"][0] == "warn" and levels["enough_rows"][0] == "warn"
    assert levels["conflicting_labels"] == ("warn", 2)


@pytest.mark.parametrize(("path", "config", "name", "task", "counts"), REAL, ids=[r[0].split("/")[0] for r in REAL])
def test_real_data_needs_no_format_named(
    tmp_path: Path, path: str, config: dict[str, Any], name: str, task: str, counts: dict[str, int]
) -> None:
    if not (DATA / path).is_file():
        pytest.skip(f"{path} is not here")
    start = time.perf_counter()
    dataset = prepare_dataset(
        PrepareConfig(sources=[str(DATA / path)], **config), name="real", seed=0, out=tmp_path, measure=measure
    )
    assert time.perf_counter() - start < 20 * slowness()
    manifest = dataset.manifest
    assert (manifest["format"]["name"], dataset.task) == (name, task)
    assert counts.items() <= manifest.counts.to_json().items()
    assert manifest["counts"]["read"] == manifest["counts"]["kept"] + manifest["counts"]["rejected"]
    seen = [r.meta["line"] for s in (dataset.train, dataset.val, dataset.test) for r in s]
    seen += [r["line"] for r in read_jsonl(tmp_path / "rejects.jsonl")]
    assert len(set(seen)) == len(seen) == manifest["counts"]["read"]
    if path.startswith("banking77"):
        assert all(len(manifest["splits"][s]["labels"]) == 77 for s in ("train", "val", "test"))
        assert 900 <= manifest["counts"]["test"] <= 1050
    if path.startswith("taskmaster4"):
        assert manifest["rejected"]["no_answer"] == 33


@pytest.mark.parametrize("name", ["messy_tickets", "messy_chats"])
def test_injected_defects_are_found_on_their_lines(tmp_path: Path, name: str) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"{name} is not here")
    source = DATA / name / "messy.jsonl"
    config = PrepareConfig(sources=[str(source)], allow_rejects=0.5)
    prepare_dataset(config, name="real", seed=0, out=tmp_path, measure=measure)
    rejects = read_jsonl(tmp_path / "rejects.jsonl")
    reasons = {r["line"]: r["reason"] for r in rejects}
    nameless = {r["line"] for r in rejects if "a tool call has no name" in r["detail"]}  # noise of the base data
    gold = read_json(DATA / name / "gold.json")
    for defect in gold["defects"]:
        if defect["type"] == "blank_line":
            assert reasons[defect["line"]] == "blank_line"
        known_role = defect["type"] == "unknown_role" and defect["subtype"].casefold() in ROLES
        if defect["type"] in ("lone_surrogate", "unknown_role", "missing_field") and not known_role:
            assert defect["line"] in reasons, defect
    clean = set(range(1, gold["lines"] + 1)) - {d["line"] for d in gold["defects"]} - nameless
    fair = (None, "exact_duplicate", "near_duplicate", "too_long")
    wrong = {line: reasons[line] for line in clean if reasons.get(line) not in fair}
    assert not wrong


def test_long_rows_are_cut_on_request_and_the_cut_is_reported(tmp_path: Path) -> None:
    long = " ".join(f"word{n}" for n in range(400))
    turns = [{"role": r, "content": f"{r} {n} {long}"} for n in range(3) for r in ("user", "assistant")]
    records = [
        *[{"messages": [{"role": "user", "content": t["text"]}, {"role": "assistant", "content": "yes"}]} for t in tickets(20)],
        {"messages": [{"role": "system", "content": "Be brief."}, *turns[:-1], {"role": "assistant", "content": "the end"}]},
    ]  # fmt: skip
    assert run(tmp_path, records, max_length=300).manifest["rejected"] == {"too_long": 1}
    dataset = run(tmp_path, records, max_length=300, too_long="truncate")
    (row,) = [r for s in (dataset.train, dataset.val, dataset.test) for r in s if r.meta["line"] == 21]
    assert [m["role"] for m in row.messages] == ["system", "user", "assistant"] and row.answer == "the end"
    assert row.messages[1]["content"].endswith("word399") and measure(row).tokens <= 300
    (repair,) = [r for r in read_jsonl(tmp_path / "out" / "repairs.jsonl") if r["kind"] == "cut"]
    assert repair["id"] == row.id and repair["detail"].startswith("4 turns and ")


@pytest.mark.parametrize(
    ("keep", "stays", "reason"),
    [
        ("first", 1, "it came first"),
        ("longest", 3, "it is longer"),
        ("newest", 2, "it is newer"),
        ("best", 1, "it is rated higher"),
    ],
)
def test_a_copy_is_reported_with_the_row_that_stays_and_why(tmp_path: Path, keep: str, stays: int, reason: str) -> None:
    text = "please tell me where the parcel with the blue ribbon is that I sent to my aunt in march"
    copies = [
        {"text": text, "label": "label_0", "created": "2025-01-01", "rating": 5},
        {"text": text, "label": "label_0", "created": "2025-03-01", "rating": 1},
        {"text": text + " or so", "label": "label_0", "rating": 1},
    ]
    run(tmp_path, [*copies, *tickets(40)], duplicates={"keep": keep})
    gone = {r["line"]: r["detail"] for r in read_jsonl(tmp_path / "out" / "rejects.jsonl")}
    assert set(gone) == {1, 2, 3} - {stays}
    for pair in read_jsonl(tmp_path / "out" / "duplicates.jsonl"):
        assert (pair["kept_line"], pair["why"]) == (stays, reason)
        assert gone[pair["line"]].endswith("" if keep == "first" else f"; {reason}")


def test_among_equals_the_first_copy_stays_whatever_is_preferred(tmp_path: Path) -> None:
    copy = {"text": "where is my parcel with the blue ribbon", "label": "label_0"}
    run(tmp_path, [copy, copy, *tickets(40)], duplicates={"keep": "longest"})
    (pair,) = read_jsonl(tmp_path / "out" / "duplicates.jsonl")
    assert (pair["line"], pair["kept_line"], pair["why"]) == (2, 1, "it came first")


def test_of_contradictions_that_all_go_none_is_shown_as_kept(tmp_path: Path) -> None:
    rows = [{"text": "where is my parcel with the blue ribbon", "label": f"label_{n}"} for n in range(2)]
    run(tmp_path, [*rows, *tickets(40)], duplicates={"conflicts": "drop"})
    assert rejects_of(tmp_path) == [(1, "conflicting_label"), (2, "conflicting_label")]
    assert read_jsonl(tmp_path / "out" / "duplicates.jsonl") == []
    run(tmp_path, [*rows, *tickets(40)], duplicates={"conflicts": "keep"})
    (pair,) = read_jsonl(tmp_path / "out" / "duplicates.jsonl")
    assert (pair["line"], pair["kept_line"]) == (2, 1)


def test_the_better_rated_copy_stays_though_one_was_liked_and_the_other_not(tmp_path: Path) -> None:
    rated = [
        {"prompt": t["text"], "completion": f"It is {t['label']}.", "rating": 1 + n % 5}
        for n, t in enumerate(tickets(40))
    ]
    rated += [{**rated[0], "rating": 5}, {**rated[4], "rating": 1}]  # 1 is a thumb down, 5 a thumb up
    run(tmp_path, rated, duplicates={"keep": "best"})
    assert rejects_of(tmp_path) == [(1, "exact_duplicate"), (42, "exact_duplicate")]
    assert run(tmp_path, rated).manifest["rejected"] == {}  # two opinions of one answer are no copies


def test_duplicates_are_shown_with_their_calls(tmp_path: Path) -> None:
    def chat(n: int) -> dict[str, Any]:
        call = {"id": "c", "type": "function", "function": {"name": "order", "arguments": '{"drink": "tea"}'}}
        turns = [{"role": "user", "content": f"number {n:04d} wants a pot of green tea with two cups please"}]
        turns.append({"role": "assistant", "content": "", "tool_calls": [call]})
        return {"messages": turns, "kind": "same" if n < 2 else str(n)}

    records = [chat(7), chat(7), *[{**chat(n), "messages": [*chat(n)["messages"]]} for n in range(30, 60)]]
    run(tmp_path, records, duplicates={"near": False})
    (pair,) = read_jsonl(tmp_path / "out" / "duplicates.jsonl")
    assert pair["text"].endswith('assistant: order({"drink": "tea"})')
