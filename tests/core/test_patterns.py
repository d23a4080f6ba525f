"""No pattern that a person writes takes long, whatever it is searched in; what can't be read is named."""

from __future__ import annotations

import re
import time

import pytest

from patience import slowness
from tuneloop.core.errors import UserError
from tuneloop.core.patterns import LONGEST, compile_pattern, linear_problem, written_out

BACKTRACKING = [
    "(a+)+$",
    "^((a+)+b|a*c)$",
    "(a|aa)+$",
    r"(\w+\s?)*$",
    "^(.*a){25}$",
    "(?:a?){40}a{40}b",
    "(?=(a+)+b)a",
    r"(?:(a+)(?!\1b))+c",
]
TEXTS = ["a" * 44 + "!", "a" * 20_000 + "!", "a b " * 5_000 + "!"]


@pytest.mark.parametrize("pattern", BACKTRACKING)
def test_a_search_ends_with_an_answer_or_with_the_patterns_name(pattern: str) -> None:
    compiled = compile_pattern(pattern, seconds=0.2)
    for text in TEXTS:
        began = time.process_time()
        try:
            compiled.search(text)
        except UserError as error:
            assert error.where == pattern and "repeats inside repeats" in error.next_step
        assert time.process_time() - began < 3


def test_groups_flags_and_letters_are_those_of_python() -> None:
    pattern = compile_pattern(r"^Größe: (\w+)$", re.MULTILINE)
    found = pattern.search("x\nGröße: Übermaß\n")
    assert found is not None and found[1] == "Übermaß" and pattern.groups == 1
    assert [match.span() for match in compile_pattern("b").finditer("abcb")] == [(1, 2), (3, 4)]
    assert compile_pattern("a|ab").fullmatch("ab") and not compile_pattern("a|ab").fullmatch("abc")


def test_what_python_cannot_read_or_is_too_large_is_refused() -> None:
    for pattern, said in (
        ("(", "missing )"),
        ("(?<=a+)b", "look-behind requires fixed-width"),
        ("((a{1000}){1000}){1000}", f"{LONGEST:,}"),
        ("(" * 3000 + "a" + ")" * 3000, "nested too deeply"),
        ("a" * (LONGEST + 1), f"{LONGEST:,}"),
    ):
        began = time.process_time()
        with pytest.raises(ValueError, match=re.escape(said)):
            compile_pattern(pattern)
        assert time.process_time() - began < 1 * slowness()


def test_repeats_are_counted_as_they_are_written_out() -> None:
    counts = {
        "(ab){3}": 6,
        "a{2}{3}": 6,
        "[{}]{3}x": 4,
        r"\{3}": 3,
        "a{,5}": 5,
        "(?:[]a]{2}|b){10}": 60,
        "": 0,
        "a{0}b": 2,
    }
    assert {pattern: written_out(pattern) for pattern in counts} == counts
    assert written_out("a{99999999999999999999}") > LONGEST


def test_a_pattern_that_is_not_linear_is_named_with_what_it_cannot_do() -> None:
    for pattern in ("(a+)+$", "^((a+)+b|a*c)$", "(a|aa)+$", r"(\w+\s?)*$", "^(.*a){25}$"):
        assert linear_problem(pattern) == ""
    for pattern, construct in (
        ("(?=a)b", "look-ahead"),
        (r"(a)\1", "backreferences"),
        ("[a", "unclosed"),
        (r"(\w{100}){100}", "size limit"),
    ):
        problem = linear_problem(pattern)
        assert construct in problem and repr(pattern)[:20] in problem
