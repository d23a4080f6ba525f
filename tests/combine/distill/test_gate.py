"""Conditions that a teacher's answers must hold, and files of them that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneloop.combine.distill.answers import AnswerGate, load_gate
from tuneloop.core.errors import UserError

QUEUE = r"Queue: (\w+)"


@pytest.mark.parametrize(
    ("answer", "own", "reason"),
    [
        ("Queue: billing. Sorry to hear that.", "Queue: billing. Fine.", ""),
        ("Queue: billing.", "", "lacks 'sorry'"),
        ("Queue: billing. Sorry, as an AI I can't.", "", "contains 'as an AI'"),
        ("Sorry.", "", "does not match"),
        ("Queue: delivery. Sorry.", "Queue: billing.", "another value"),
        ("Queue: delivery. Sorry.", "", ""),
        ("Queue: billing. Sorry. " + "word " * 20, "Queue: billing.", "longer than 12 words"),
    ],
)
def test_the_first_condition_that_fails_is_named(answer: str, own: str, reason: str) -> None:
    gate = AnswerGate(contains=["sorry"], lacks=["as an AI"], matches=["^Queue"], same=[QUEUE], most_words=12)
    found = gate.breach(answer, own)
    assert found == "" if not reason else reason in found


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("contain: [x]", "contain"),
        ("matches: ['(']", "not a regular expression"),
        ("same: [abc]", "has no group"),
        ("version: 1", "demands nothing"),
    ],
)
def test_a_wrong_file_is_said_in_a_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "gate.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_gate(str(file))
    assert load_gate("") is None


def test_a_condition_that_backtracks_is_named() -> None:
    for gate in (AnswerGate(matches=["^(a|aa)+$"]), AnswerGate(same=["^(a|aa)+$"])):
        assert gate.breach("aaa", "aaa") == ""
        with pytest.raises(UserError, match="takes more than") as error:
            gate.breach("a" * 60 + "!")
        assert error.value.where == "^(a|aa)+$"
    with pytest.raises(ValueError, match="parts"):
        AnswerGate(matches=["((a{1000}){1000}){1000}"])
