"""What each answer of a teacher must hold before a student learns it: `distill --gate FILE`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from tuneloop.core.errors import UserError
from tuneloop.core.files import Config, build_config, read_yaml
from tuneloop.core.patterns import compile_pattern


class AnswerGate(Config):
    """Conditions for every answer; what fails one is not learned. With `--best-of` the best of those that pass is."""

    version: int = Field(1, ge=1, le=1)
    contains: list[str] = Field(default_factory=list, description="each must occur, in any case")
    lacks: list[str] = Field(default_factory=list, description="none may occur, in any case")
    matches: list[str] = Field(default_factory=list, description="regular expressions, each to be found in the answer")
    same: list[str] = Field(
        default_factory=list,
        description="regular expressions with a group, which must have found the same in the row's own answer; of requests without one it is "
        "enough that they are found",
    )
    most_words: int | None = Field(None, ge=1, description="longest answer")

    @field_validator("matches", "same")
    @classmethod
    def _compiles(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                compile_pattern(pattern)
            except ValueError as error:
                raise ValueError(f"{pattern} is not a regular expression: {error}") from None
        return patterns

    @field_validator("same")
    @classmethod
    def _has_a_group(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            if compile_pattern(pattern).groups < 1:
                raise ValueError(f"{pattern} has no group: write what is compared in brackets")
        return patterns

    def breach(self, answer: str, own: str = "") -> str:
        """The first condition that an answer fails; empty where it holds all.

        Args:
            own: the row's own answer; empty where it has none.
        """
        low = answer.casefold()
        for text in self.contains:
            if text.casefold() not in low:
                return f"lacks {text!r}"
        for text in self.lacks:
            if text.casefold() in low:
                return f"contains {text!r}"
        for pattern in self.matches:
            if not compile_pattern(pattern).search(answer):
                return f"does not match {pattern}"
        for pattern in self.same:
            search = compile_pattern(pattern).search
            found, wanted = search(answer), search(own) if own else None
            if not found or (wanted and found.group(1) != wanted.group(1)):
                return f"another value of {pattern}"
        if self.most_words is not None and len(answer.split()) > self.most_words:
            return f"longer than {self.most_words} words"
        return ""


def load_gate(file: str) -> AnswerGate | None:
    """The conditions in a file; None where no file is named.

    Raises:
        UserError: the file is missing or wrong, or demands nothing.
    """
    if not file:
        return None
    gate = build_config(AnswerGate, read_yaml(Path(file), "conditions"), where=file)
    if gate == AnswerGate():
        raise UserError(
            "The file demands nothing of an answer", where=file, next_step="add contains, lacks, matches, same or most_words"
        )  # fmt: skip
    return gate
