from __future__ import annotations

import json
import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from places import DATA_SETS
from tuneloop.data.config import DuplicatesConfig
from tuneloop.data.dataset import normalised
from tuneloop.data.dedup.contamination import Leak, find_contamination, index_of
from tuneloop.data.dedup.minhash import RowTexts, prompt_similarity, shape_of, sketch

DATA = DATA_SETS
CONFIG = DuplicatesConfig()
WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "tu", "re") for b in ("na", "pos", "tek", "vi", "sum", "rad", "li")]


def passage(seed: int, count: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + draw.choice(WORDS) for _ in range(count))


def ask(*texts: str) -> list[RowTexts]:
    return [RowTexts(text, "", "") for text in texts]


def leaks(train: list[RowTexts], test: list[RowTexts]) -> list[Leak | None]:
    return find_contamination(train, index_of(test, CONFIG))


def test_each_leak_names_the_test_row_and_how_it_was_found() -> None:
    test = ask("Do you ship to Iceland?", "Where can I change the PIN of my card?", passage(1, 40))
    train = [
        *ask("where can i  change the PIN of my card?", "Where can I change the PIN of my card, please?"),
        *ask("Where can I open an account?"),
        RowTexts("Here is a text. " + passage(2, 60), "It says: " + passage(1, 40), ""),
    ]
    exact, near, other, overlap = leaks(train, test)
    assert exact == Leak("exact", 1, 1.0)
    assert near is not None and (near.how, near.test_row) == ("near", 1) and 0.8 <= near.similarity < 1.0
    assert other is None
    assert overlap == Leak("overlap", 2, 1.0)


def test_the_answer_and_label_of_the_test_row_do_not_matter() -> None:
    test = [RowTexts("Where can I change my PIN?", "In the app.", "help")]
    assert leaks([RowTexts("Where can I change my PIN?", "At a cash machine.", "card")], test) == [
        Leak("exact", 0, 1.0)
    ]
    assert leaks([RowTexts("Which is the best bank?", "In the app.", "help")], test) == [None]


def test_half_of_a_long_question_gives_it_away_and_less_does_not() -> None:
    text = passage(1, 100).split()
    test = ask(" ".join(text))
    own = passage(2, 400)
    assert leaks(ask(own + " " + " ".join(text[:70])), test) == [Leak("overlap", 0, pytest.approx(58 / 88))]
    assert leaks(ask(own + " " + " ".join(text[:40])), test) == [None]


def test_an_instruction_that_many_test_rows_share_gives_none_away() -> None:
    instruction = passage(3, 40)
    test = ask(*(f"{instruction} {passage(100 + n, 30)}" for n in range(20)))
    assert leaks(ask(f"{instruction} {passage(999, 200)}"), test) == [None]
    assert leaks(ask(f"{passage(998, 200)} {passage(105, 30)}"), test) == [Leak("overlap", 5, 0.6)]


def test_one_canned_answer_to_many_questions_is_no_leak() -> None:
    canned = passage(4, 60)
    assert leaks([RowTexts("Why was I charged twice?", canned, "")], [RowTexts("My card is lost", canned, "")]) == [
        None
    ]


def test_the_most_similar_test_row_is_named() -> None:
    test = ask("Where could I change my card PIN?", "Where can I change my card PIN??", "Where can I change my PIN?")
    (found,) = leaks(ask("where can I change my card PIN"), test)
    assert found is not None and found.test_row == 1 and found.similarity == 1.0


def test_an_empty_test_set_and_empty_rows_leak_nothing() -> None:
    assert leaks(ask("a question", ""), []) == [None, None]
    assert leaks([], ask("a question")) == []
    assert leaks(ask("", "?"), ask("a question")) == [None, None]


def test_an_index_can_be_sent_to_another_process_and_sketches_reused() -> None:
    test, train = ask("Where can I change my PIN?", passage(1, 40)), ask("Where can I change my PINs?", passage(1, 39))
    index = pickle.loads(pickle.dumps(index_of(test, CONFIG)))
    assert find_contamination(train, index, sketch(train, CONFIG)) == leaks(train, test)
    without = sketch(train, CONFIG.model_copy(update={"near": False}))
    assert find_contamination(train, index, without) == leaks(train, test)


PIECES = st.lists(st.sampled_from(WORDS[:12]), min_size=3, max_size=9).map(" ".join)


@given(train=st.lists(PIECES, min_size=1, max_size=20), test=st.lists(PIECES, min_size=1, max_size=20))
def test_no_similar_question_gets_through(train: list[str], test: list[str]) -> None:
    missed = 0
    for text, leak in zip(train, leaks(ask(*train), ask(*test)), strict=True):
        shapes = [shape_of(cut) for cut in ask(text, *test)]
        values = [prompt_similarity(shapes[0], other) for other in shapes[1:]]
        if leak is None:
            missed += max(values) >= 0.83
            assert max(values) < 1.0
        else:
            assert values[leak.test_row] == leak.similarity >= 0.8
            assert (leak.how == "exact") == (normalised(text) == normalised(test[leak.test_row]))
    assert missed <= 1


def test_injected_leaks_are_all_found_and_few_clean_rows_are_called_leaks() -> None:
    if not (DATA / "messy_tickets").is_dir() or not (DATA / "banking77").is_dir():
        pytest.skip("messy_tickets or banking77 is not there")

    def texts(name: str) -> dict[str, RowTexts]:
        found = {}
        for number, line in enumerate((DATA / name).read_bytes().splitlines()):
            try:
                record = json.loads(line.decode("utf-8-sig"))
                found[record.get("id", str(number))] = RowTexts(record["text"], "", record["label"])
            except (ValueError, KeyError):
                continue
        return {name: cut for name, cut in found.items() if isinstance(cut.prompt, str) and isinstance(cut.apart, str)}

    index = index_of(list(texts("banking77/test.jsonl").values()), CONFIG)
    gold = json.loads((DATA / "messy_tickets" / "gold.json").read_text())
    injected = {d["id"]: d["of_test"] for d in gold["defects"] if d["type"] == "test_leak"}
    messy = texts("messy_tickets/messy.jsonl")
    found = dict(zip(messy, find_contamination(list(messy.values()), index), strict=True))
    for name, test_row in injected.items():
        leak = found[name]
        assert leak is not None and leak.test_row == test_row
    clean = find_contamination(list(texts("messy_tickets/clean.jsonl").values()), index)
    assert sum(leak is not None for leak in clean) <= 0.03 * len(clean)
