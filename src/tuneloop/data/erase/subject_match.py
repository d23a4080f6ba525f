"""What tells a person's rows from all others."""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.patterns import Pattern, compile_pattern
from tuneloop.data.clean.pii import KINDS, find, pseudonym_key, redact
from tuneloop.data.config import PersonalConfig

_FIELD = re.compile(r"[\w.\-]+(?: [\w.\-]+)*")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
SEARCH_SECONDS = 10.0  # for one text; a plain expression takes milliseconds for the longest
SHORTEST_STAND_IN = 6  # characters: a shorter one, of a PIN, is in many texts by chance
NO_TEXT = ("source", "line", "mix")  # of `meta`: where a row comes from is no text of a person


def folded(text: str) -> str:
    """Text up to compatible Unicode forms (NFKC), invisible characters, white space and case."""
    if not text.isascii():
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    return " ".join(text.casefold().split())


@dataclass(frozen=True)
class Matcher:
    """What tells a person's rows from the others.

    A text is looked for in all texts of a row, as a part of them, whatever its case, white space and Unicode form; in
    raw records also as broken or escaped encodings of it. `field=value` finds rows whose column has that very value
    (and those with that text in them). An empty pattern or an invalid regular expression is a UserError.
    """

    pattern: str  # the text, or `field=value`
    regex: bool = False  # the text, or the value, is a regular expression; case does not count
    pseudonyms: tuple[str, ...] = ()  # those of the value in data sets with pseudonyms; looked for as texts

    def __post_init__(self) -> None:
        if not folded(self.pattern) or not folded(self.value):
            raise UserError("Nothing to look for", where="--match", next_step="give a text, or field=value")
        if self.regex:
            try:
                self._expressions  # noqa: B018
            except ValueError as error:
                what = f"Not a valid regular expression: {error}"
                step = "correct it, or leave out --regex to look for the text as it stands"
                raise UserError(what, where=self.pattern, next_step=step) from None

    @property
    def hash(self) -> str:
        """SHA-256 of the pattern: proves that a request was met without naming the person."""
        return hashlib.sha256(self.pattern.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def field(self) -> str:
        """The column of `field=value`, else empty."""
        name, sign, _ = self.pattern.partition("=")
        return name.strip() if sign and _FIELD.fullmatch(name.strip()) else ""

    @property
    def value(self) -> str:
        """The value of `field=value`, else the whole pattern: what has pseudonyms."""
        return self.pattern.partition("=")[2].strip() if self.field else self.pattern

    @cached_property
    def _needles(self) -> tuple[str, ...]:
        texts = [*self.pseudonyms]
        if not self.regex:
            texts += [self.pattern, *_escaped(self.pattern)]
        return tuple(dict.fromkeys(filter(None, map(folded, texts))))

    @cached_property
    def _expressions(self) -> tuple[Pattern, Pattern]:
        flags = re.IGNORECASE | re.MULTILINE
        return compile_pattern(self.pattern, flags, SEARCH_SECONDS), compile_pattern(self.value, flags, SEARCH_SECONDS)

    def finds(self, record: Any, name: str = "") -> str | None:
        """The place where a record matches, as a short excerpt; None if it does not.

        `record`: a row, a repair, a raw record, or the text of one that could not be read; `name`: its id, which is no
        text.
        """
        if self.field and (value := self._in_fields(record)) is not None:
            return f"{self.field}={value}"
        text = "\n".join(_texts(record, name))
        if self.regex and (match := self._expressions[0].search(unicodedata.normalize("NFC", text))):
            return _excerpt(match.string, *match.span())
        flat = folded(text)
        for needle in self._needles:
            if (at := flat.find(needle)) >= 0:
                plain = " ".join(text.split())
                return _excerpt(plain if len(plain) == len(flat) else flat, at, at + len(needle))
        return None

    def _in_fields(self, record: Any) -> str | None:
        if isinstance(record, str):  # a line that could not be parsed: it holds both words
            both = all(folded(part) in folded(record) for part in (self.field, self.value))
            return self.value if both and not self.regex else None
        for value in _values_at(record, self.field.removeprefix("meta.").split(".")):
            text = value if isinstance(value, str) else json.dumps(value)
            if self.regex and self._expressions[1].search(text):
                return text
            if not self.regex and folded(text) == folded(self.value):
                return text
        return None


def _escaped(text: str) -> Iterator[str]:
    """How a record that was never repaired may hold a text: mojibake, JSON escapes, HTML entities."""
    for encoding in ("latin-1", "cp1252"):
        with contextlib.suppress(UnicodeError):
            yield text.encode("utf-8").decode(encoding)
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield html.escape(text)
    yield text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _values_at(record: Any, path: Sequence[str]) -> Iterator[Any]:
    """Scalars in the column `path` of a record or of its `meta`; of a list, each."""
    if not isinstance(record, Mapping):
        return
    whole = ".".join(path).casefold()
    for place in (record, record.get("meta")):
        for key, value in place.items() if isinstance(place, Mapping) else ():
            if str(key).casefold() == whole:
                values = value if isinstance(value, list) else [value]
                yield from (v for v in values if not isinstance(v, dict | list))
            elif len(path) > 1 and str(key).casefold() == path[0].casefold():
                yield from _values_at(value, path[1:])


def _texts(value: Any, name: str, key: str = "") -> Iterator[str]:
    """All strings and numbers in a record, without where it comes from."""
    if isinstance(value, str):
        if key not in ("role", "type") and value != name:
            yield value
    elif isinstance(value, Mapping):
        for inner, item in value.items():
            if not (key == "meta" and inner in NO_TEXT):
                yield from _texts(item, name, str(inner))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, name, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)


def _excerpt(text: str, start: int, end: int, around: int = 16) -> str:
    left, right = max(0, start - around), min(len(text), end + around)
    return ("…" if left else "") + " ".join(text[left:right].split()) + ("…" if right < len(text) else "")


def pseudonyms(match: Matcher, config: PersonalConfig) -> tuple[str, ...]:
    """The pseudonyms of a pattern's value in a data set that was prepared with them; nothing in other modes. A value
    that is personal data only next to a word that names it (an account number) is tried as every kind that it can be. A
    key of the pseudonyms that is not set is a UserError.
    """
    if config.mode != "pseudonym" or match.regex:
        return ()
    key, value = pseudonym_key(config), match.value.strip()
    texts: list[str] = []
    for name in ("", match.field, *(kind.lower() for kind in KINDS)):
        findings = find(value, config, name)
        if findings and (not texts or findings[0].end - findings[0].start == len(value)):
            texts.append(redact(value, findings, config, key))
    return tuple(dict.fromkeys(text for text in texts if len(text) >= SHORTEST_STAND_IN))
