"""The signs of a bad row, and which answers are cut off by how the others of a data set end."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from places import DATA_SETS
from tuneloop.data.checks.overview import FLAGS, Endings, as_bits, bit, contradicts, flags
from tuneloop.records.rows import Message

DATA = DATA_SETS


def chat(asked: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def found(answer: str, asked: str = "What are the opening hours of the library?") -> set[str]:
    return set(flags(chat(asked, answer), None)) - {"open_end"}


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("boilerplate", "As an AI language model, I can't go there, but it is open from nine to five."),
        ("cut_off", "Run this:\n```python\nprint('open')"),
        ("cut_off", '{"open": "9:00", "close": "17'),
        ("cut_off", "It is open from nine to five (but on Sundays it is"),
        ("empty_answer", "N/A"),
        ("empty_answer", "..."),
        ("error_output", "Internal Server Error"),
        ("error_output", "null"),
        ("error_output", '{"error": {"code": 503, "message": "overloaded"}}'),
        ("garbled", "It is open from nine to f\ufffdve."),
        ("html_leftovers", "<p>It is open from nine to five.</p>"),
        ("html_leftovers", "It is open from nine&nbsp;to five."),
        ("refusal", "I'm sorry, but I can't assist with that request."),
        ("repetition", "It is open and " * 20 + "so on."),
        ("secret", "Use the key sk-proj-abcdefghijklmnop1234567890 for it."),
    ],
)
def test_an_answer_shows_what_is_wrong_with_it(flag: str, answer: str) -> None:
    assert found(answer) == {flag}


@pytest.mark.parametrize(
    "answer",
    [
        "It is open from nine to five, Monday to Friday.",
        "Nine to five :(",
        "42",
        "👍",
        "I am sorry that you had to wait; it opens at nine.",
        "A request that timed out can be sent again: open the app, choose the order and press retry.",
        "Use an aid such as an airline's app.",
        '{"open": "9:00", "close": "17:00"}',
        "No, no, no.",
    ],
)
def test_a_good_answer_has_no_flag(answer: str) -> None:
    assert found(answer) == set()


@pytest.mark.parametrize(
    ("flag", "asked"),
    [
        ("gibberish", "aaaaaaaaaaaa"),
        ("gibberish", "sdfghjkl qwrtzpsdf"),
        ("gibberish", "/)(/&%$!" * 3),
        ("gibberish", "?!$%&/()=?`#+*x12"),
        ("empty_prompt", "?"),
        ("empty_prompt", "x"),
        ("empty_prompt", "null"),
    ],
)
def test_a_prompt_shows_what_is_wrong_with_it(flag: str, asked: str) -> None:
    assert found("It is open from nine to five.", asked) == {flag}
    assert flags(chat(asked, "opening_hours"), "opening_hours") == (flag,)


@pytest.mark.parametrize(
    "asked", ["12 * 13 = ?", "Привет, как дела?", "HTTP 404 on /api/v1/users", "東京", "What?", "rhythm"]
)
def test_a_short_or_foreign_prompt_is_no_gibberish(asked: str) -> None:
    assert found("It is so.", asked) == set()


def test_a_copied_answer_is_told_from_a_rewritten_and_an_extracted_one() -> None:
    asked = "I would like to know when the library in the old town opens on Sundays"
    assert found(asked.upper() + "!", asked) == {"copied_answer"}
    assert found("When does the library in the old town open on Sundays, please?", asked) == set()
    assert found("the library in the old town", asked) == set()


def test_a_letter_may_go_on_with_a_conversation() -> None:
    turns = [*chat("Do you want tea?", "Sure, with milk?"), *chat("y", "Here it is.")]
    assert flags(turns, None) == ()


def test_a_label_is_not_read_as_an_answer() -> None:
    assert flags(chat("My card was eaten.", "card_swallowed"), "card_swallowed") == ()
    assert flags(chat("My card was eaten.", "N/A"), "N/A") == ("empty_answer",)
    assert flags(chat("My card was eaten.", "None"), "None") == ()


def test_flags_are_bits_of_their_own() -> None:
    assert as_bits(FLAGS) == 2 ** len(FLAGS) - 1 and as_bits(()) == 0
    assert as_bits(["refusal", "secret"]) == bit("refusal") | bit("secret") and len(FLAGS) <= 32


@given(st.text(), st.text(), st.one_of(st.none(), st.text(max_size=5)))
def test_any_text_gets_known_flags_without_repetition(asked: str, answer: str, label: str | None) -> None:
    some = flags(chat(asked, answer), label)
    assert set(some) <= set(FLAGS) and list(some) == sorted(set(some))


# --- answers that are cut off


def answers() -> list[str]:
    drinks = ["tea", "coffee", "cocoa", "water", "juice"]
    sizes = ["small", "medium", "large", "enormous"]
    whole = [f"Your {size} {drink} will be ready at the counter in {n} minutes" for drink in drinks for size in sizes for n in range(3, 8)]  # fmt: skip
    return [text + ("." if path % 3 else "") for path, text in enumerate(whole)]


@pytest.mark.parametrize(
    "answer", ["Your large coffee will be rea", "Your large coffee will be ready at the", "Your small tea will,"]
)
def test_an_answer_that_stops_in_mid_sentence_is_cut(answer: str) -> None:
    assert Endings.of([*answers(), answer]).is_cut(answer)


@pytest.mark.parametrize(
    "answer", ["Your large tea will be ready at the counter in 5 minutes", "Have a nice afternoon", "Tea"]
)
def test_an_answer_without_an_end_mark_is_not_cut_where_others_lack_it_too(answer: str) -> None:
    assert not Endings.of([*answers(), answer]).is_cut(answer)


def test_an_answer_without_an_end_mark_is_cut_where_nearly_all_others_have_one() -> None:
    closed = [text.rstrip(".") + "." for text in answers()]
    assert Endings.of(closed).is_cut("Have a very nice and sunny afternoon")


def test_failed_calls_in_real_chats_are_found_and_clean_chats_are_left_alone() -> None:
    folder = DATA / "messy_chats"
    if not folder.is_dir():
        pytest.skip("messy_chats is not here")
    wrong = {
        d["line"] for d in json.loads((folder / "gold.json").read_text())["defects"] if d["type"] == "error_output"
    }
    hits = set()
    for number, line in enumerate((folder / "messy.jsonl").read_text("utf-8-sig", "replace").split("\n"), 1):
        if number in wrong:
            messages = [{**m, "content": m["content"] or ""} for m in json.loads(line)["messages"]]
            hits |= {number} if "error_output" in flags(messages, None) else set()
    assert hits == wrong
    clean = []
    for line in (folder / "clean.jsonl").read_text("utf-8").splitlines():
        messages = [{**m, "content": m["content"] or ""} for m in json.loads(line)["messages"]]
        clean.append(set(flags(messages, None)) - {"open_end", "refusal"})
    assert sum(map(bool, clean)) <= 0.002 * len(clean)


@pytest.mark.parametrize(
    ("reasoning", "answer", "expected"),
    [
        ("2 and 2 make 4. The answer is 4.", "4", False),
        ("2 and 2 make 4. The answer is 4.", "It is 5.", True),
        ("So the answer is **12,000**.", "12000", False),
        ("hence \\boxed{7}", "7 apples", False),
        ("hence \\boxed{7}", "8 apples", True),
        ("16 - 7 = 9\n#### 9", "$9", False),
        ("The final answer: Paris", "Paris.", False),
        ("The final answer: Paris", "Rome", True),
        ("The answer is that nobody knows what he did on the bridge.", "No.", False),
        ("The answer is 4, I think, or rather 5: see the second row of the table.", "6", False),
        ("Let me see.", "4", False),
        ("", "4", False),
    ],
)
def test_reasoning_contradicts_where_it_names_another_answer(reasoning: str, answer: str, expected: bool) -> None:
    assert contradicts(reasoning, answer) == expected


LEARNT = Endings.of(
    [
        f"The parcel number {i} is on its way and will be there by {day}."
        for i, day in enumerate(["Monday", "Tuesday", "Friday"] * 30)
    ]
)
FREE = Endings.of(
    [f"ok {word} done" for word in ("red", "blue", "green", "grey")] * 30
)  # hardly any end marks: nothing learnt


def flags_of(*answers: str) -> tuple[str, ...]:
    turns: list[Message] = []
    for answer in answers:
        turns += [{"role": "user", "content": "Tell me."}, {"role": "assistant", "content": answer}]
    return flags(turns, None)


@pytest.mark.parametrize(
    "answer",
    [
        "I don't seem to have any information about",
        "Der Versand dauert zwei Tage und die",
        "Vous pouvez changer la date avec",
        "Puede cambiar la fecha de entrega para",
        "Può cambiare la data della",
        "You can choose tea, coffee,",
    ],
)
def test_words_that_go_on_show_a_cut_in_any_language(answer: str) -> None:
    assert FREE.is_cut(answer)


@pytest.mark.parametrize(
    "answer", ["Okay, it will be ready soon", "ja das ist richtig so", "1. Lion\n2. Giraffe\n3. Zebra"]
)
def test_whole_answers_without_an_end_mark_are_left_alone(answer: str) -> None:
    assert not FREE.is_cut(answer)


def test_among_answers_that_all_end_with_a_mark_a_sentence_without_one_is_cut_but_no_list_or_link() -> None:
    assert LEARNT.is_cut("The parcel is still at the sorting centre near you")
    assert not LEARNT.is_cut("Animals of the plains:\n1. Lion\n2. Giraffe\n3. Old grey elephant of the north plain")
    assert not LEARNT.is_cut("You find all of it at https://example.org/help")


def test_the_last_item_of_a_list_of_sentences_is_cut() -> None:
    steps = "1. Open the app.\n2. Choose the card.\n3. Press the button on the"
    assert FREE.is_cut(steps) and not FREE.is_cut(steps + " left.")


def test_chinese_answers_are_judged_by_each_other() -> None:
    learnt = Endings.of([f"您的第{i}号包裹已经发出,预计两天之内送达。" for i in range(60)])
    assert learnt.is_cut("您的包裹已经发出,预计两天之内送") and not learnt.is_cut("您的包裹已经发出,预计两天之内送达。")


@pytest.mark.parametrize(
    "answer",
    [
        "Steps:\n- open it\n- close it\n-",
        "First:\n1. Open it.\n2. Close it.\n3.",
        'I call {"name": "get_menu", "args": {"query"',
        'She said "we will be there',
        "Use this:\n```python\nprint(1)",
    ],
)
def test_open_lists_calls_quotes_and_fences_are_cut_off(answer: str) -> None:
    assert "cut_off" in flags_of(answer)


def test_a_number_or_quote_at_the_end_is_no_open_list_or_quotation() -> None:
    assert (
        flags_of("The sum is:\n42.") == () == flags_of('A screen of 24" fits you best.') == flags_of('He said "yes".')
    )


def test_an_answer_in_the_middle_of_a_chat_counts_as_well() -> None:
    assert "cut_off" in flags_of("Use this:\n```python\nprint(1)", "That is all.")
    assert "open_end" in flags_of("I am going to the", "That is all.")
