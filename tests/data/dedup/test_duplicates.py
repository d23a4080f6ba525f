"""Which rows are copies: the same as pair by pair, in any number of processes, and crowds in their turn."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from places import DATA_SETS
from tuneloop.data.config import DuplicatesConfig
from tuneloop.data.dataset import key64
from tuneloop.data.dedup import duplicates, minhash
from tuneloop.data.dedup.duplicates import (
    Alike,
    Duplicates,
    find_alike,
    find_conflicts,
    find_duplicates,
    find_links,
    preference,
    semantic_duplicates,
)
from tuneloop.data.dedup.minhash import (
    LONG,
    PromptFrame,
    RowTexts,
    banding,
    folded_words,
    prompt_similarity,
    shape_of,
    shared_frame,
    similarities,
    sketch,
    texts_of,
)
from tuneloop.records.rows import Message, Row


class Texts(list[RowTexts]):
    """Texts that can be read in other processes."""

    def read(self, indices: Sequence[int]) -> list[RowTexts]:
        return [self[i] for i in indices]


def questions(count: int, spread: int, seed: int = 0) -> Texts:
    """Questions of which many are nearly equal."""
    draw = random.Random(seed)
    text = ["".join(draw.choices("abcdefghijklmnop", k=6)) for _ in range(spread)]
    return Texts(RowTexts(" ".join(text[(n % 97) :][:9]) + f" {draw.choice(text)}", "", "") for n in range(count))


def alike(texts: Texts, threshold: float = 0.8, **more: Any) -> Alike:
    columns = sketch(texts, DuplicatesConfig(threshold=threshold))
    return find_alike(columns, texts.read, threshold, rows=np.arange(len(texts)), **more)


def test_the_number_of_processes_and_the_size_of_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = questions(800, 300)
    first = alike(texts)
    assert len(first.one) > 100
    monkeypatch.setattr(duplicates, "BATCH", 64)
    monkeypatch.setattr(duplicates, "_CANDIDATES_AT_ONCE", 50)
    second = alike(texts, workers=2)
    for name in ("one", "other", "prompt", "whole", "together", "crowded"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


def test_nearly_all_similar_pairs_are_found_and_no_other(threshold: float = 0.8) -> None:
    texts = questions(300, 300)
    found = alike(texts, threshold)
    shapes = [shape_of(cut) for cut in texts]
    pairs_found = set(zip(found.one.tolist(), found.other.tolist(), strict=True))
    similar = {
        (i, j)
        for i, j in combinations(range(len(texts)), 2)
        if prompt_similarity(shapes[i], shapes[j]) >= threshold and not found.crowded[j]
    }
    assert pairs_found <= similar and len(pairs_found) >= 0.98 * len(similar) > 50


def test_rows_with_too_many_candidates_are_left_to_their_turn() -> None:
    stem = "please tell me where the parcel with this number is now"
    texts = Texts(RowTexts(f"{stem} {n:04d}", "", "") for n in range(200))
    found = alike(texts)
    assert not found.crowded[:2].any() and found.crowded[40:].all()
    assert not found.crowded[found.other].any()


@given(st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**31, 2**32 - 1]), min_size=1))
def test_no_key_that_comes_again_is_overlooked(numbers: list[int]) -> None:
    keys = np.array(numbers, dtype=np.uint32)
    again = np.array([numbers.count(number) > 1 for number in numbers])
    assert duplicates._maybe_shared(keys)[again].all()


def test_hardly_any_single_key_is_looked_at_again() -> None:
    keys = np.random.default_rng(0).permutation(2**32 // 5003 * np.arange(5000)).astype(np.uint32)
    assert duplicates._maybe_shared(keys).mean() < 0.2


def test_rows_without_answers_are_looked_for_once_and_the_same_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Texts([cut._replace(apart="ab"[n % 2]) for n, cut in enumerate(questions(400, 300))])
    assert duplicates._sketch_names(sketch(texts, DuplicatesConfig())) == ("prompt",)
    answered = Texts([*texts, texts[0]._replace(answer="Thank you for asking.")])
    assert duplicates._sketch_names(sketch(answered, DuplicatesConfig())) == ("whole", "prompt")
    once = alike(texts)
    monkeypatch.setattr(duplicates, "_sketch_names", lambda columns: ("whole", "prompt"))
    both = alike(texts)
    assert len(once.one) > 20
    for name in ("one", "other", "prompt", "whole", "together", "crowded"):
        assert np.array_equal(getattr(once, name), getattr(both, name)), name


DATA = DATA_SETS

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "tu", "re") for b in ("na", "pos", "tek", "vi", "sum", "rad", "li")]


def sentence(draw: random.Random, length: int) -> list[str]:
    """Words that have next to nothing in common."""
    return ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 8))) for _ in range(length)]


def row(text: str, answer: str = "ok", label: str | None = None, system: str = "") -> Row:
    turns: list[Message] = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return Row("0", turns, label)


def ask(*texts: str) -> list[RowTexts]:
    return [RowTexts(text, "", "") for text in texts]


def search(texts: Sequence[RowTexts], order: Any = None, chunk: int = 1000, **settings: Any) -> Duplicates:
    config = DuplicatesConfig(**settings)
    return find_duplicates(
        sketches(texts, config, chunk),
        reader(texts),
        config,
        rows=np.arange(len(texts)),
        order=preference("first", count=len(texts)) if order is None else order,
    )


def sketches(texts: Sequence[RowTexts], config: DuplicatesConfig, chunk: int = 1000) -> dict[str, Any]:
    parts = [sketch(texts[i : i + chunk], config) for i in range(0, len(texts), chunk)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def reader(texts: Sequence[RowTexts]) -> Callable[[Sequence[int]], list[RowTexts]]:
    return lambda indices: [texts[i] for i in indices]


def as_dict(found: Duplicates) -> dict[int, int]:
    return dict(zip(found.dropped.tolist(), found.of.tolist(), strict=True))


def similarity(a: str, b: str) -> float:
    return prompt_similarity(*map(shape_of, ask(a, b)))


# --- what is compared ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Can't I top-up?", "CAN’T I TOP UP!!"),
        ("one\u200b two", "one two"),
        ("“quoted” – so…", "quoted so"),
        ("ﬁve ①", "five 1"),
        ("a\x02 b", "a b"),
    ],
)
def test_case_punctuation_and_invisible_characters_do_not_count(text: str, other: str) -> None:
    assert similarity(text, other) == 1.0


def test_symbols_and_texts_of_punctuation_alone_count() -> None:
    assert similarity("1+2", "1=2") < 1.0
    assert similarity("???", "!!!") == 0.0
    assert folded_words("") == [] and similarity("", "") == 1.0


@given(st.text())
def test_folding_is_the_same_for_ascii_texts_on_both_ways(text: str) -> None:
    ascii_text = text.encode("ascii", "ignore").decode()
    assert folded_words(ascii_text) == folded_words(ascii_text + "é")[:-1] or folded_words(ascii_text + " é")[:-1] in (
        folded_words(ascii_text),
        [],
    )


@pytest.mark.parametrize(
    "other",
    [
        "How do I acitvate the new card that came by post today?",
        "how do I activate the new card that came by post today",
        "Hi, how do I activate the new card that came by post today?",
        "How do I activate the new cards that came by post today?",
    ],
)
def test_one_small_edit_in_a_line_stays_above_the_default_threshold(other: str) -> None:
    assert similarity("How do I activate the new card that came by post today?", other) >= 0.8


def test_another_word_that_matters_falls_below_it() -> None:
    assert similarity("I need GBP, how do I convert it?", "I need AUD, how do I convert it?") < 0.8
    assert similarity("How do I activate my card?", "How do I cancel my card?") < 0.8


def test_rows_are_cut_into_question_answer_and_what_sets_them_apart() -> None:
    cut = texts_of(row("Hello", "Queue 1", label="Greeting", system="Be kind."))
    assert (cut.prompt.strip("\x02 "), cut.answer.strip("\x02 ")) == ("Hello", "Queue 1")
    assert "greeting" in cut.apart and "be kind." in cut.apart
    assert texts_of(row("Hello", "Greeting", label=" greeting")).answer == ""  # the label says it all
    story = Row("0", [{"role": "assistant", "content": "Once upon a time"}])
    assert texts_of(story).prompt == "Once upon a time" and texts_of(story).answer == ""


def test_turns_keep_their_places_for_exact_keys() -> None:
    def chat(*turns: tuple[str, str]) -> RowTexts:
        return texts_of(Row("0", [{"role": r, "content": t} for r, t in turns]))  # type: ignore[typeddict-item]

    item = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    other = chat(("user", "a"), ("user", "c"), ("assistant", "b"), ("assistant", "d"))
    assert item != other and len(search([item, other]).dropped[search([item, other]).exact]) == 0


def test_calls_and_tools_count() -> None:
    def called(arguments: str, tools: list[dict[str, Any]]) -> RowTexts:
        call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": arguments}}
        turns: list[Message] = [
            {"role": "user", "content": "Where is it?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        return texts_of(Row("0", turns, tools=tools))

    base = called('{"city": "Rome"}', [])
    assert base.answer != called('{"city": "Oslo"}', []).answer
    assert base.apart != called('{"city": "Rome"}', [{"name": "find"}]).apart


def test_a_shared_instruction_is_found_and_left_out() -> None:
    start, end = (
        "Which of our many queues does this ticket belong to? Ticket: ",
        "\n\nAnswer with one word only, please.",
    )
    prompts = [f"{start}{word} is {other}{end}" for word in WORDS for other in WORDS[:3]]
    frame = shared_frame(prompts)
    assert frame.before.startswith("Which of our") and frame.after.endswith("please.")
    item, other = (texts_of(row(f"{start}{text}{end}"), frame) for text in ("my card is lost", "no refund yet"))
    assert similarities(shape_of(item), shape_of(other))[1] < 0.3
    assert frame.inside("Something else") == "Something else" and frame.inside(start + end) == start + end
    assert shared_frame([f"{word} please" for word in WORDS]) == PromptFrame()
    assert shared_frame(prompts[:5]) == PromptFrame()


@pytest.mark.parametrize(
    ("answer", "other", "same"),
    [
        ("Your order has been shipped today.", "Your order has been shipped today!", True),
        ("The result is 42.", "The result is 43.", False),
        ("Yes", "No", False),
        ("", "Yes", False),
    ],
)
def test_rows_with_different_answers_are_not_the_same(answer: str, other: str, same: bool) -> None:
    question = "Is the parcel that I ordered last week on its way to me by now, as you told me on the phone?"
    pair = [shape_of(RowTexts(question, said, "")) for said in (answer, other)]
    assert (similarities(*pair)[1] >= 0.8) == same


def test_one_long_answer_to_many_questions_does_not_make_them_the_same() -> None:
    answer = " ".join(WORDS * 2)
    item, other = (RowTexts(text, answer, "") for text in ("Where is my card?", "I want a loan"))
    assert similarities(shape_of(item), shape_of(other))[1] == 0.0


# --- candidates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_miss_at_most_one_pair_in_a_hundred_at_the_threshold(threshold: float) -> None:
    bands, rows = banding(threshold)
    assert bands <= 16 and (1 - threshold**rows) ** bands <= 0.0101


@pytest.mark.parametrize("length", [12, 45, 120])  # letters, just below the limit, word pairs
def test_pairs_just_above_the_threshold_are_found(length: int) -> None:
    draw = random.Random(length)
    texts: list[RowTexts] = []
    while len(texts) < 600:
        text = sentence(draw, length)
        changed = list(text)
        for _ in range(draw.randint(2, length // 2 if length <= LONG else length // 10)):
            changed[draw.randrange(length)] += draw.choice("aeiou")
        if draw.random() < 0.2:
            changed = changed + changed[: length // 9]  # across the limit
        if 0.8 <= similarity(" ".join(text), " ".join(changed)) <= 0.87:
            texts += ask(" ".join(text), " ".join(changed))
    found = as_dict(search(texts, on="user"))
    missed = sum(found.get(i + 1) != i for i in range(0, len(texts), 2))
    assert missed <= 6  # 1 % of 300 at the threshold, and chance


def test_pairs_across_the_limit_of_length_are_found() -> None:
    draw = random.Random(1)
    for extra in range(1, 6):
        text = sentence(draw, LONG + 4)
        texts = ask(" ".join(text[: LONG - 1]), " ".join(text[: LONG - 1 + extra]))
        assert as_dict(search(texts)) == {1: 0}
        assert as_dict(search(texts[::-1], chunk=1)) == {1: 0}


# --- which rows go -------------------------------------------------------------------------------

PIECES = st.lists(st.sampled_from(WORDS[:12]), min_size=3, max_size=9).map(" ".join)


@given(
    prompts=st.lists(PIECES, min_size=1, max_size=40),
    labels=st.lists(st.sampled_from("ab"), min_size=40, max_size=40),
    threshold=st.sampled_from([0.5, 0.8]),
    on=st.sampled_from(["row", "user", "both"]),
)
def test_dropped_rows_are_like_a_kept_one_and_kept_ones_unlike_each_other(
    prompts: list[str], labels: list[str], threshold: float, on: str
) -> None:
    texts = [RowTexts(text, "", label) for text, label in zip(prompts, labels, strict=False)]
    found = search(texts, threshold=threshold, on=on)
    of = as_dict(found)
    kept = [i for i in range(len(texts)) if i not in of]
    shapes = [shape_of(cut) for cut in texts]
    for i, j, value, exact in zip(found.dropped, found.of, found.similarity, found.exact, strict=True):
        assert texts[i].apart == texts[j].apart
        assert exact == (texts[i].prompt == texts[j].prompt)
        assert value == pytest.approx(prompt_similarity(shapes[i], shapes[j])) and value >= np.float32(threshold)
        assert j not in of or (exact and of[j] not in of)
    alike = [
        (i, j)
        for i, j in combinations(kept, 2)
        if texts[i].apart == texts[j].apart and prompt_similarity(shapes[i], shapes[j]) >= threshold
    ]
    assert len(alike) <= 0.02 * len(texts) * len(texts) / 2


@settings(max_examples=20)
@given(prompts=st.lists(PIECES, min_size=2, max_size=30), chunk=st.integers(1, 7))
def test_how_rows_are_cut_into_chunks_does_not_matter(prompts: list[str], chunk: int) -> None:
    whole, parts = search(ask(*prompts)), search(ask(*prompts), chunk=chunk)
    assert as_dict(whole) == as_dict(parts) and np.array_equal(whole.similarity, parts.similarity)


def test_a_chain_of_similar_rows_does_not_drop_its_end() -> None:
    text = sentence(random.Random(0), 24)
    chain = ask(*(" ".join(text[step : step + 20]) for step in range(0, 5)))
    found = as_dict(search(chain, threshold=0.85))
    shapes = [shape_of(cut) for cut in chain]
    assert prompt_similarity(shapes[0], shapes[1]) >= 0.85 > prompt_similarity(shapes[0], shapes[4])
    assert 0 not in found and len(found) < 4


@pytest.mark.parametrize(("on", "dropped"), [("row", {1, 5}), ("user", {1, 3}), ("both", {1, 3, 5})])
def test_what_is_compared_is_the_row_the_question_or_either(on: str, dropped: set[int]) -> None:
    draw = random.Random(1)
    copied, asked_twice, long, answer = (sentence(draw, n) for n in (14, 14, 16, 100))
    reworded = ["zzzq", long[1], "yyyv", *long[3:]]
    texts = [
        RowTexts(" ".join(question), " ".join(said), "")
        for question, said in [
            (copied, answer[:20]), (copied, answer[:20]),
            (asked_twice, answer[20:40]), (asked_twice, answer[40:60]),
            (long, answer), (reworded, answer),
        ]
    ]  # fmt: skip
    assert set(as_dict(search(texts, on=on))) == dropped


def test_the_preferred_row_stays() -> None:
    texts = ask("Where is my parcel, please?", "where is my parcel please", "Where is my parcel, pleas?")
    order = preference("longest", count=3, characters=np.array([1, 3, 2]))
    assert as_dict(search(texts, order)) == {0: 1, 2: 1}
    newest = preference("newest", count=3, time=np.array([np.nan, 5.0, 7.0]))
    best = preference("best", count=3, rating=np.array([2.0, np.nan, 2.0]))
    pinned = preference("first", count=3, pinned=np.array([False, False, True]))
    assert (newest.tolist(), best.tolist(), pinned.tolist()) == ([2, 1, 0], [0, 2, 1], [2, 0, 1])
    assert preference("longest", count=3).tolist() == [0, 1, 2]


def test_exact_copies_of_a_near_duplicate_are_still_exact() -> None:
    texts = ask("Where is my parcel, please?", "Where is my parcell, please?", "where is my  PARCELL, please?")
    found = search(texts)
    assert as_dict(found) == {1: 0, 2: 1} and found.exact.tolist() == [False, True]


def test_what_is_switched_off_is_not_dropped() -> None:
    texts = ask("Where is my parcel?", "where is my parcel?", "Where is my parcels?")
    assert as_dict(search(texts, near=False)) == {1: 0}
    assert as_dict(search(texts, exact=False)) == {2: 0}
    assert as_dict(search(texts, exact=False, near=False)) == {}


def test_similar_rows_of_other_labels_stay_and_are_linked() -> None:
    rows = [row("Why was my card payment declined?", label, label) for label in ("declined", "fees")]
    rows.append(row("Why was my card payment declined", "declined", "declined"))
    rows.append(row("Do you ship to Iceland?", "shipping", "shipping"))
    texts = [texts_of(r) for r in rows]
    assert as_dict(search(texts)) == {2: 0}
    config = DuplicatesConfig()
    question = np.array([key64(t.prompt) for t in texts], dtype=np.uint64)
    question[1] += np.uint64(1)  # as if one differed a little
    links, values = find_links(sketches(texts, config), reader(texts), 0.8, rows=np.array([0, 1, 3]), question=question)
    assert links.tolist() == [[0, 1]] and values.tolist() == [1.0]


@given(prompts=st.lists(PIECES, min_size=2, max_size=30, unique=True))
def test_links_reach_every_similar_question(prompts: list[str]) -> None:
    texts = ask(*prompts)
    question = np.array([key64(t.prompt) for t in texts], dtype=np.uint64)
    rows = np.arange(len(texts))
    pairs, _ = find_links(
        sketches(texts, DuplicatesConfig(threshold=0.9)), reader(texts), 0.9, rows=rows, question=question
    )
    group = rows.copy()
    for a, b in pairs:
        group[group == group[b]] = group[a]
    shapes = [shape_of(cut) for cut in texts]
    apart = [
        (a, b)
        for a, b in combinations(rows, 2)
        if prompt_similarity(shapes[a], shapes[b]) >= 0.93 and group[a] != group[b]
    ]
    assert len(apart) <= 1


def test_one_question_with_different_answers_is_a_conflict() -> None:
    question = np.array([7, 8, 7, 9, 8, 7], dtype=np.uint64)
    order = preference("longest", count=6, characters=np.array([1, 2, 3, 1, 1, 1]))
    groups = find_conflicts(question, np.array([0, 1, 2, 3, 4]), order)
    assert [group.tolist() for group in groups] == [[2, 0], [1, 4]]
    assert find_conflicts(question, np.array([0, 1, 3]), order) == []
    assert find_conflicts(question, np.array([], dtype=np.int64), order) == []


def test_a_crowd_of_nearly_equal_rows_takes_no_more_than_its_share_of_comparisons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = 0

    def counted(a: Any, b: Any) -> tuple[float, float]:
        nonlocal compared
        compared += 1
        return similarities(a, b)

    monkeypatch.setattr(minhash, "similarities", counted)
    stem = "please tell me where the parcel with this number is now"
    search(ask(*(f"{stem} {n:05d}" for n in range(3000))), threshold=0.97)
    assert compared <= 16 * 3000


def test_empty_and_odd_texts_are_no_problem() -> None:
    texts = ask("", "", "?", "\ud800", "a", "ab", "日本", "日本語の文章です", "日本語の文章です。")
    found = as_dict(search(texts))
    assert found[1] == 0 and found[8] == 7 and 4 not in found and 5 not in found
    nothing = sketch([], DuplicatesConfig())
    none = np.arange(0)
    assert len(find_duplicates(nothing, reader([]), DuplicatesConfig(), rows=none, order=none).dropped) == 0


# --- by meaning ----------------------------------------------------------------------------------


@settings(max_examples=20)
@given(count=st.integers(1, 60), seed=st.integers(0, 99))
def test_semantic_duplicates_are_like_a_kept_row_of_their_kind(count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(count, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    apart = draw.integers(0, 2, count)
    order = draw.permutation(count + 5)
    rows = np.sort(draw.permutation(count + 5)[:count])
    path = {row: number for number, row in enumerate(rows.tolist())}
    original = duplicates._ROWS_AT_ONCE
    try:
        duplicates._ROWS_AT_ONCE = 7  # several blocks
        found = semantic_duplicates(vectors, 0.9, rows=rows, order=order, apart=apart)
    finally:
        duplicates._ROWS_AT_ONCE = original
    of = as_dict(found)
    rank = np.argsort(order)
    for i, j in of.items():
        assert j not in of and rank[j] < rank[i] and apart[path[i]] == apart[path[j]]
        assert vectors[path[i]] @ vectors[path[j]] >= 0.9 - 1e-6
    for i, j in combinations([row for row in rows.tolist() if row not in of], 2):
        assert apart[path[i]] != apart[path[j]] or vectors[path[i]] @ vectors[path[j]] < 0.9 + 1e-6


# --- real logs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["messy_tickets", "messy_chats"])
def test_injected_duplicates_are_found_and_little_else(name: str) -> None:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not there")
    rows = {}
    for line in (folder / "messy.jsonl").read_bytes().splitlines():
        try:
            record = json.loads(line.decode("utf-8-sig"))
            if name == "messy_tickets":
                made = row(record["text"], record["label"], record["label"])
            else:
                turns = [{**turn, "content": turn.get("content") or ""} for turn in record["messages"]]
                made = Row("0", turns, record["feedback"])
            texts_of(made)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if all(isinstance(m["content"], str) for m in made.messages) and isinstance(made.label, str):
            rows[record["id"]] = made
    ids = list(rows)
    of = {ids[i]: ids[j] for i, j in as_dict(search([texts_of(made) for made in rows.values()])).items()}
    gold = json.loads((folder / "gold.json").read_text())
    injected = {d["id"]: d for d in gold["defects"] if d["type"].endswith("_duplicate")}
    for kind, least in (("exact_duplicate", 1.0), ("near_duplicate", 0.95)):
        pairs = [
            (d["id"], d["of"]) for d in injected.values() if d["type"] == kind and d["id"] in rows and d["of"] in rows
        ]
        assert sum(a in of or b in of for a, b in pairs) >= least * len(pairs)
    base = {i: injected[i]["of"] if i in injected else i for i in ids}
    natural = {frozenset(pair[:2]) for pair in gold["natural_near_pairs"]}
    others = [i for i, j in of.items() if base[i] != base[j] and frozenset((base[i], base[j])) not in natural]
    assert len(others) <= 0.005 * len(ids)
