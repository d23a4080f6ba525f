"""What kind of answers a data set has, by its references: programs with tests, JSON, numbers, or texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.core.foreign import parse_json
from tuneloop.records.rows import Row, last_user_turn

LONGEST = 1 << 20  # characters of an answer that are parsed as JSON
NEARLY = 0.9  # share of the answers from which the others are exceptions


@dataclass(frozen=True)
class Problem:
    """One task with unit tests."""

    prompt: str  # code that the answer may continue; empty where the task is put in words
    entry_point: str  # name of the requested function; empty if the tests call it themselves
    tests: str  # code that raises when the answer is wrong


def problem_of(row: Row) -> Problem | None:
    """The unit tests that a row brings in its `meta`, or None. Read are the columns of HumanEval (`test`, which defines
    `check(candidate)`, and `entry_point`) and of MBPP (`test_list` of assertions, with `test_setup_code`). The code to
    continue is `meta["prompt"]` or the last user turn."""
    meta = row.meta
    test, entry_point, listed = meta.get("test"), meta.get("entry_point"), meta.get("test_list")
    prompt = meta.get("prompt") if isinstance(meta.get("prompt"), str) else last_user_turn(row)
    if isinstance(test, str) and isinstance(entry_point, str) and entry_point.isidentifier() and "def check" in test:
        code = prompt if re.search(rf"^\s*(?:async\s+)?def\s+{entry_point}\b", str(prompt), re.MULTILINE) else ""
        return Problem(str(code), entry_point, f"{test}\n\ncheck({entry_point})\n")
    if isinstance(listed, list) and listed and all(isinstance(item, str) for item in listed):
        setup = meta.get("test_setup_code")
        return Problem("", "", "\n".join([setup if isinstance(setup, str) else "", *listed]) + "\n")
    return None


def parse(text: str) -> Any:
    """The JSON value that a text is, as a whole; ValueError for anything else (a Markdown fence, NaN, prose)."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    if len(text) > LONGEST:
        raise ValueError("too long")
    try:
        return parse_json(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parses(text: str) -> bool:
    """Whether a text is valid JSON."""
    try:
        parse(text)
    except ValueError:
        return False
    return True


def are_structured(references: Sequence[Sequence[str]]) -> bool:
    """Whether nearly all reference answers are JSON objects or arrays; a few may say in words that there is nothing."""
    objects = [text.lstrip()[:1] in ("{", "[") and parses(text) for row in references for text in row]
    return bool(objects) and sum(objects) >= NEARLY * len(objects)


def is_number(text: str) -> bool:
    """Whether an answer is a number and nothing else."""
    try:
        return float(text.strip().replace(",", "")) == float(text.strip().replace(",", ""))
    except ValueError:
        return False


def is_latin(texts: Sequence[str]) -> bool:
    """Whether most letters of the texts are a-z, which is all that ROUGE reads."""
    letters = ascii_letters = 0
    for text in texts:
        letters += sum(map(str.isalpha, text))
        ascii_letters += sum(c.isalpha() for c in text if c.isascii())
    return 2 * ascii_letters >= letters
