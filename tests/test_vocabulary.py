"""Code, messages and docs use the field's words."""

from __future__ import annotations

import pytest

from vocabulary import ROOT, files, misused


def test_no_word_of_the_list_is_used() -> None:
    places = [(file, *path) for file in files() for path in misused(file.read_text(encoding="utf-8"))]
    lines = [f"{file.relative_to(ROOT)}:{line}: {word!r}: write {instead}" for file, line, word, instead in places]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("the run goes on", ["goes on"]),
        ("a stand-in for\nNobody", ["Nobody"]),
        ("it was told apart, then told", ["told"]),
        ("one figure, no talk", []),
    ],
)
def test_words_are_found_with_their_line_and_parts_of_words_are_not(text: str, sentence: list[str]) -> None:
    assert [word for _, word, _ in misused(text)] == sentence
