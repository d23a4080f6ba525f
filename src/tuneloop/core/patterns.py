"""Regular expressions that people write in recipes, suites, schemas and options: no search takes long.

Those of recipes and suites are Python's and have groups; a search that takes too long is stopped. Those of JSON
Schemas may come from strangers: they are searched in linear time by Rust's `regex`, which jsonschema-rs and llguidance
use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tuneloop.core.errors import UserError

SEARCH_SECONDS = 2.0  # for one text; a plain pattern takes milliseconds for a megabyte
LONGEST = 20_000  # atoms of a pattern with its counted repeats written out, as both libraries do when they compile
_COUNT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]?", re.DOTALL)


def written_out(pattern: str) -> int:
    """Atoms of a pattern once its counted repeats are written out, at least: `(ab){3}` has six."""
    sizes, last, at = [0], 0, 0
    while at < len(pattern):
        sign, step = pattern[at], 1
        count = _COUNT.match(pattern, at) if sign == "{" else None
        if sign == "(":
            sizes.append(0)
            last = 0
        elif sign == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif count and (digits := count[2] or count[1]):
            most = int(digits[:9])
            sizes[-1] += last * (max(most, 1) - 1)
            last *= max(most, 1)
            step = len(count[0])
        else:
            if sign == "\\":
                step = 2
            elif sign == "[" and (group := _CLASS.match(pattern, at)):
                step = len(group[0])
            sizes[-1] += 1
            last = 1
        at += step
    return sum(sizes)


@dataclass(frozen=True)
class Pattern:
    """A pattern in Python's syntax whose searches end."""

    source: str  # as it was written
    compiled: Any  # of the library `regex`, which reads Python's syntax and can be stopped
    seconds: float = SEARCH_SECONDS  # that a search may take

    @property
    def groups(self) -> int:
        return int(self.compiled.groups)

    def search(self, text: str) -> re.Match[str] | None:
        """The first match in a text; UserError: the search takes too long."""
        return self._within_time(self.compiled.search, text)  # type: ignore[no-any-return]

    def fullmatch(self, text: str) -> re.Match[str] | None:
        """The match of a whole text; see `search`."""
        return self._within_time(self.compiled.fullmatch, text)  # type: ignore[no-any-return]

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        """All matches in a text, in order; see `search`."""
        return iter(self._within_time(lambda text, timeout: list(self.compiled.finditer(text, timeout=timeout)), text))

    def _within_time(self, search: Callable[..., Any], text: str) -> Any:
        try:
            return search(text, timeout=self.seconds)
        except TimeoutError:
            length = f"a text of {len(text):,} characters"
            message = f"The regular expression takes more than {self.seconds:g} seconds on {length}"
            step = "write it without repeats inside repeats, as in (a+)+, or alternatives that overlap"
            raise UserError(message, where=self.source, next_step=step) from None


@lru_cache(maxsize=256)
def compile_pattern(source: str, flags: int = 0, seconds: float = SEARCH_SECONDS) -> Pattern:
    """A pattern of a recipe, a suite or an option, in the syntax and with the flags of Python's `re`.

    ValueError: it is no regular expression, or a too large one; says why.
    """
    import regex

    if written_out(source) > LONGEST:
        raise ValueError(f"with its repeats written out it has more than {LONGEST:,} parts")
    try:
        re.compile(source, flags)
        return Pattern(source, regex.compile(source, flags), seconds)
    except (re.error, regex.error) as error:
        raise ValueError(str(error)) from None
    except (RecursionError, OverflowError, MemoryError):
        raise ValueError("it is nested too deeply or too large") from None


def foreign_pattern(source: str, where: str) -> Pattern:
    """A pattern of a file that others wrote; UserError: it is no regular expression, or too large."""
    try:
        return compile_pattern(source)
    except ValueError as error:
        raise UserError(f"{_short(source)} is not a regular expression: {error}", where=where) from None


@lru_cache(maxsize=256)
def linear_problem(source: str) -> str:
    """Why a JSON Schema's pattern is not one whose search takes time linear in a text's length; empty: it is one.

    Args:
        source: in the syntax of Rust's `regex`, which is that of ECMA 262 without lookaround and references to groups.
    """
    from pydantic_core import SchemaError, SchemaValidator, core_schema

    try:
        SchemaValidator(core_schema.str_schema(pattern=source, regex_engine="rust-regex", strict=True))
    except SchemaError as error:
        reason = str(error).splitlines()[-1].removeprefix("error: ").strip().removeprefix("SchemaError: ")
        return f"the pattern {_short(source)} is not possible: {reason}"
    return ""


def _short(source: str) -> str:
    return repr(source if len(source) <= 80 else f"{source[:80]}...")
