"""Code, messages and docs use the field's words."""

from __future__ import annotations

import pytest

from vocabulary import CALLED_BY_OTHERS, CODE, ROOT, files, misnamed, misused


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


def test_names_of_values_are_nouns_for_what_they_hold() -> None:
    for file in files(CODE):
        if file.suffix == ".py":
            name = str(file.relative_to(ROOT))
            found = list(misnamed(file.read_text(encoding="utf-8"), CALLED_BY_OTHERS.get(name, ())))
            assert not found, f"{name}: {found}"


def test_variables_parameters_and_loop_variables_are_looked_at_and_fields_are_not() -> None:
    source = (
        "class A:\n    why: str\ndef f(what, *, name):\n    one = [each for each in what]\n    return lambda place: one"
    )
    assert [name for _, name in misnamed(source)] == ["what", "one", "each", "place"]
