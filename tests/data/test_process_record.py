"""Short cuts of the first pass lead where the long way does; long rows are cut or split."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tuneloop.core.files import plain, read_jsonl
from tuneloop.data.clean import repair
from tuneloop.data.config import PersonalConfig, PrepareConfig, RepairConfig
from tuneloop.data.dataset import key64, meta_key
from tuneloop.data.pii import redact as pii
from tuneloop.data.prepare import TokenCount, prepare_dataset
from tuneloop.data.process_record import is_quiet, parts, shortened
from tuneloop.records.rows import Dataset, Message, Row

PIECES = (
    "password", "PASSWORD is", "jane at example dot com", "(at)", "[at]", "&amp;", "<s>", "[INST]", " ", "\t", "hello", "4111",
    "Why?", "isn?t", "é", "a.b", "key=", "10:30", "\u200b", "don't; stop!", "dot", "at", "sk-", "__", "~", "}", "%40", "", "abc12",
)  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=6).map(" ".join) | st.text(max_size=20))
@example("jane dot doe at example dot com")
@example("my passw is swordfish")
def test_what_needs_no_look_has_nothing_to_be_found(text: str) -> None:
    if is_quiet(text):
        assert repair.repair_text(text, RepairConfig()) == (text, ())
        assert pii.find(text, PersonalConfig()) == []


def test_everyday_texts_need_no_look() -> None:
    assert is_quiet("Where is my card? It hasn't arrived yet!") and is_quiet("card_arrival") and is_quiet("")
    assert not is_quiet("call 4155550132") and not is_quiet(" where") and not is_quiet("Ãœber")


def test_further_columns_of_any_kind_have_a_key() -> None:
    def key(**meta: object) -> int:
        return meta_key(Row("0", [], meta={"source": "a", "line": 1, **meta}))

    assert key() == 0 and key(a=1, b="x") == key(b="x", a=1) != key(a=1, b="y")
    assert key(n=2**70) == key64(json.dumps({"n": 2**70})) and key(n=1.5) != key(n=1)


TEXTS = st.text(st.sampled_from("ab .\n。!é "), max_size=120)


def tokens(messages: list[Message]) -> int:
    return sum(len(m["content"]) + 3 for m in messages)


@st.composite
def chats(draw: st.DrawFn) -> list[Message]:
    roles = ["system"] * draw(st.integers(0, 1))
    for _ in range(draw(st.integers(1, 6))):
        roles += ["user", "assistant", *draw(st.sampled_from([[], ["tool", "assistant"]]))]
    return [{"role": role, "content": draw(TEXTS)} for role in roles]  # type: ignore[typeddict-item]


@given(chats(), st.integers(8, 300))
def test_the_parts_of_a_chat_fit_begin_with_a_question_and_are_the_chat(chat: list[Message], limit: int) -> None:
    found = parts(chat, lambda messages: tokens(messages) <= limit)
    head = [m for m in chat if m["role"] == "system"]
    body = [m for m in chat if m["role"] != "system"]
    starts = [i for i, m in enumerate(body) if m["role"] == "user"]
    exchanges = [body[a:b] for a, b in zip(starts, [*starts[1:], len(body)], strict=True)]
    if any(tokens([*head, *exchange]) > limit for exchange in exchanges):
        assert found == []
        return
    assert [m for part in found for m in part[len(head) :]] == body
    for part, following in zip(found, [*found[1:], None], strict=True):
        assert part[: len(head)] == head and part[len(head)]["role"] == "user" and part[-1]["role"] == "assistant"
        assert tokens(part) <= limit
        if following is not None:  # as long as can be
            first = next(e for e in exchanges if e[0] is following[len(head)])
            assert tokens([*part, *first]) > limit


@given(TEXTS.filter(str.strip), st.integers(4, 60))
def test_the_parts_of_a_text_fit_and_joined_are_the_text(text: str, limit: int) -> None:
    found = parts([{"role": "assistant", "content": text}], lambda messages: tokens(messages) <= limit)
    assert "".join(part[0]["content"] for part in found) == text
    assert all(tokens(part) <= limit for part in found)


def test_a_text_is_cut_behind_paragraphs_else_sentences_else_words() -> None:
    def cut(text: str, limit: int) -> list[str]:
        whole: list[Message] = [{"role": "assistant", "content": text}]
        return [p[0]["content"] for p in parts(whole, lambda m: len(m[0]["content"]) <= limit)]

    assert cut("One two. Three.\n\nFour five six. Seven", 30) == ["One two. Three.\n\n", "Four five six. Seven"]
    assert cut("One two three. Four five six", 20) == ["One two three. ", "Four five six"]
    assert cut("One two three four five six", 15) == ["One two three ", "four five six"]
    assert cut("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]


@given(chats(), st.integers(8, 300))
def test_a_shortened_chat_keeps_its_answer_and_fits_where_anything_can(chat: list[Message], limit: int) -> None:
    short, _ = shortened(chat, lambda messages: tokens(messages) <= limit)
    assert short[-1] == chat[-1] and [m for m in short if m["role"] == "system"] == [
        m for m in chat if m["role"] == "system"
    ]
    assert tokens(short) <= tokens(chat)


# --- in prepare


def measure(row: Row) -> TokenCount:
    return TokenCount(tokens(row.messages), 1)


def run(folder: Path, records: list[Any], **config: Any) -> Dataset:
    source = folder / "data.jsonl"
    source.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    settings = PrepareConfig(sources=[str(source)], allow_rejects=1.0, **config)
    return prepare_dataset(settings, name="job", seed=0, out=folder / "out", measure=measure)


def chat_of(number: int, exchanges: int) -> dict[str, Any]:
    text = [f"w{number * 997 + i * 31:x}q{i * i * number:x}" for i in range(exchanges * 6)]
    turns = []
    for i in range(exchanges):
        turns += [{"role": "user", "content": " ".join(text[6 * i : 6 * i + 3])}]
        turns += [{"role": "assistant", "content": " ".join(text[6 * i + 3 : 6 * i + 6])}]
    return {"messages": turns}


@settings(max_examples=8)
@given(st.lists(st.integers(1, 9), min_size=30, max_size=40), st.integers(120, 220))
def test_split_rows_lose_nothing_stay_together_and_add_up(tmp_path: Path, sizes: list[int], limit: int) -> None:
    records = [chat_of(number + 1, size) for number, size in enumerate(sizes)]
    dataset = run(tmp_path, records, max_length=limit, too_long="split", duplicates={"near": False, "exact": False})
    counts = dataset.manifest["counts"]
    rejects = list(read_jsonl(tmp_path / "out" / "rejects.jsonl"))
    assert counts["read"] + counts["added"] == counts["kept"] + counts["rejected"]
    assert counts["kept"] == counts["train"] + counts["val"] + counts["test"] and counts["rejected"] == len(rejects)
    lines: dict[int, list[tuple[str, Row]]] = {}
    for name, rows in (("train", dataset.train), ("val", dataset.val), ("test", dataset.test)):
        for row in rows:
            lines.setdefault(row.meta["line"], []).append((name, row))
    repairs = Counter(r["line"] for r in read_jsonl(tmp_path / "out" / "repairs.jsonl") if r["kind"] == "split")
    assert sorted([*lines, *{r["line"] for r in rejects}]) == list(range(1, len(records) + 1))
    for line, found in lines.items():
        assert len({name for name, _ in found}) == 1
        whole = records[line - 1]["messages"]
        found.sort(key=lambda pair: pair[1].meta.get("part", 1))
        assert [m for _, row in found for m in row.messages] == whole
        if len(found) > 1:
            assert [row.meta["part"] for _, row in found] == list(range(1, len(found) + 1))
            assert {row.meta["of"] for _, row in found} == {len(found)} == {repairs[line]}
            assert len({row.id for _, row in found}) == len(found) and len({r.meta["whole"] for _, r in found}) == 1


def test_what_has_one_label_or_rating_is_not_split_and_the_check_says_what_was_lost(tmp_path: Path) -> None:
    records = [{"text": f"word {i} " * 3, "label": f"label {i % 2}"} for i in range(40)]
    records.append({"text": "long " * 100, "label": "label 1"})
    dataset = run(tmp_path, records, max_length=200, too_long="split", duplicates={"near": False})
    assert dataset.manifest["rejected"] == {"too_long": 1} and dataset.manifest["counts"]["added"] == 0
    (reject,) = read_jsonl(tmp_path / "out" / "rejects.jsonl")
    long = plain(dataset.manifest.too_long)
    assert long == {"policy": "split", "rejected": 1, "rejected_tokens": int(reject["detail"].split()[0])}
    (check,) = [c for c in dataset.manifest["checks"] if c["name"] == "too_long"]
    assert f"1 left out with {long['rejected_tokens']:,} tokens" in check["message"]


def test_plain_texts_are_split_and_the_check_counts_them(tmp_path: Path) -> None:
    records = [{"text": " ".join(f"w{i}x{j * j * (i + 3):x}." for j in range(20))} for i in range(30)]
    records.append({"text": "\n\n".join(" ".join(f"long{j}{k * 7919:x}" for k in range(15)) for j in range(12))})
    dataset = run(tmp_path, records, max_length=400, too_long="split")
    pieces = sorted(
        (row for rows in (dataset.train, dataset.val, dataset.test) for row in rows if "part" in row.meta),
        key=lambda row: row.meta["part"],
    )
    assert "".join(row.answer for row in pieces) == records[-1]["text"]
    assert all(row.answer.endswith("\n\n") for row in pieces[:-1])
    (check,) = [c for c in dataset.manifest["checks"] if c["name"] == "too_long"]
    assert "1 split, which loses nothing" in check["message"]
