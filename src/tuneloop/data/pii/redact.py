"""Find and remove personal data and secrets.

`find` looks at one text, `redact` replaces what it found, `scrub` does both to any JSON value. What has check digits is
checked; all else must be in an unmistakable form or next to a word that names it: order numbers, versions, amounts and
hashes stay. Names of persons are looked for on request only (`personal.names`).
"""

from __future__ import annotations

import importlib.util
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.patterns import compile_pattern
from tuneloop.core.units import counted, verb
from tuneloop.data.config import PersonalConfig
from tuneloop.data.pii import contacts, credentials, identifiers
from tuneloop.data.pii.identifiers import CARD_GROUPS, IBAN_LENGTHS, REACH, Span, is_card, is_iban, is_right
from tuneloop.data.pii.pseudonyms import pseudonym

DEFAULT_SECRET = "TUNELOOP_SECRET"  # noqa: S105 - no password
SHORTEST_KEY = 16  # characters of the shortest key of a service
SHORTEST_ID = 9  # characters of the shortest number of a person that is recognised without a word next to it
SHORTEST = 6  # characters; a shorter string in a record is left alone unless its key says what it is


@dataclass(frozen=True)
class Kind:
    """A kind of personal data. Those of this package have no pattern: their detectors share work in `_spans`; one that
    `add_kind` adds is found by its pattern. Texts without a digit or one of `@`, `:` and `=` are not searched.
    """

    name: str  # as in `<EMAIL>`, upper case
    title: str  # what it is
    pattern: str = ""  # regular expression of its form
    check: str | Callable[[str], bool] = ""  # python-stdnum's module (`nl.bsn`) or a function, without separators
    words: tuple[str, ...] = ()  # in lower case: one must stand within 60 characters before; (): no word is needed

    def find(self, text: str, lower: str) -> Iterator[Span]:
        for match in compile_pattern(self.pattern).finditer(text) if self.pattern else ():
            before = lower[max(0, match.start() - REACH) : match.start()]
            if (not self.words or any(word in before for word in self.words)) and is_right(self.check, match.group()):
                yield (self.name, *match.span())


_KINDS = {  # in the order in which they win where one stretch of text is several of them in the same length
    "CREDIT_CARD": "payment cards: known range and length, Luhn",
    "IBAN": "international bank account numbers: country's length, check digits",
    "EMAIL": "e-mail addresses, also written as name [at] example [dot] com",
    "US_SSN": "US social security numbers and ITINs that can have been issued",
    "API_KEY": "keys, tokens and private keys: known forms, or next to the word",
    "CRYPTO_ADDRESS": "addresses of crypto currencies with right check sums",
    "NATIONAL_ID": "other countries' numbers for persons: check digits and form, or next to the word",
    "PASSPORT": "passport numbers next to the word",
    "DRIVER_LICENSE": "driving licence numbers next to the word",
    "BANK_ACCOUNT": "account, routing and sort code numbers next to the word",
    "DATE_OF_BIRTH": "dates next to words such as born or date of birth",
    "PASSWORD": "passwords, PINs and one-time codes next to the word",
    "URL_CREDENTIALS": "user:password in a URL, tokens in its query",
    "IP_ADDRESS": "IPv4 and IPv6 addresses",
    "MAC_ADDRESS": "hardware addresses",
    "PHONE": "telephone numbers of any country",
    "STREET_ADDRESS": "house number and street, post-office boxes, with town and postcode",
    "PERSON": "names of persons, with personal.names only",
}
KINDS = {name: Kind(name, title) for name, title in _KINDS.items()}


def add_kind(kind: Kind) -> None:
    """Make a kind of personal data one of `KINDS`: it is searched for, replaced and counted like the others."""
    KINDS[kind.name] = kind
    _checked_kinds.cache_clear()


@dataclass(frozen=True, slots=True)
class PersonalSpan:
    """A stretch of a text that is personal data: its kind (one of `KINDS`), start and end in characters."""

    kind: str
    start: int
    end: int


def find(text: str, config: PersonalConfig, field: str = "") -> list[PersonalSpan]:
    """Personal data and secrets in a text, in order, none overlapping another.

    `field`: name of the text's column: "phone", "date_of_birth" say as much as words before the value. Raises
    UserError: an unknown kind or region, or `names` without what it needs.
    """
    kinds = _kinds_of(config)
    if phrase := _telling_words(field) if field else "":
        lead = f"{phrase}: "
        spans = _spans(lead + text, config)
        return _without_overlaps([(k, s - len(lead), e - len(lead)) for k, s, e in spans if s >= len(lead)], kinds)
    if not config.names and (is_quiet(text) or (len(text) < SHORTEST_ID and text.isalnum())):
        return []
    return _without_overlaps(_spans(text, config), kinds)


def redact(text: str, findings: list[PersonalSpan], config: PersonalConfig, key: bytes | None) -> str:
    """The text with every finding of `find` replaced by its kind (`<EMAIL>`), or in the mode pseudonym by an invented
    value, the same one for the same original; `key`: of the pseudonyms (`pseudonym_key`).
    """
    pieces, at = [], 0
    for finding in findings:
        value = text[finding.start : finding.end]
        new = f"<{finding.kind}>"
        if config.mode == "pseudonym":
            assert key is not None, "pseudonyms need a key: see pseudonym_key"
            new = pseudonym(finding.kind, value, config.region, key)
        pieces += [text[at : finding.start], new]
        at = finding.end
    return "".join([*pieces, text[at:]])


def hidden(text: str) -> str:
    """A text with placeholders for all structured personal data, whatever is done to the data: to be shown."""
    config = PersonalConfig()
    return redact(text, find(text, config), config, None)


def scrub(value: Any, config: PersonalConfig, key: bytes | None) -> tuple[Any, list[str]]:
    r"""Any JSON value without personal data, and the kinds that were in it, sorted; the modes off and report replace
    nothing.

    Strings at any depth are searched, keys of objects too, and text that is itself JSON, broken or not, with its
    escapes (`\u0040`) undone. The key above a value tells what it is: an integer is replaced only where its key says
    so, as in `{"phone": 4155550132}`. UserErrors: as `find`.
    """
    kinds: set[str] = set()
    if config.mode == "off":
        return value, []
    _kinds_of(config)  # mistakes in it are reported where nothing is found, too
    if not config.names and _all_quiet(value, ""):
        return value, []
    clean = _scrubbed(value, config, key, "", kinds)
    return (value if config.mode == "report" else clean), sorted(kinds)


class Redactor:
    """Replaces personal data in records as `prepare` does by the same settings, and counts; UserErrors: as
    `pseudonym_key`.

    Rows that are evaluated are all kept: the mode reject puts placeholders.
    """

    def __init__(self, config: PersonalConfig) -> None:
        self.config = config.model_copy(update={"mode": "placeholder"}) if config.mode == "reject" else config
        self.key = pseudonym_key(config)
        self.records = 0  # that held some
        self.kinds: set[str] = set()

    def __call__(self, value: Any) -> Any:
        clean, kinds = scrub(value, self.config, self.key)
        self.records += bool(kinds)
        self.kinds.update(kinds)
        return clean

    def words(self, file: str, records: int) -> str:
        """What was found in a file of so many records, in a line; empty for nothing."""
        if not self.records:
            return ""
        holds = f"{self.records:,} of {counted(records, 'record')} of {file} {verb(self.records, 'holds', 'hold')}"
        outcome = "replaced, as prepare does (data.personal.mode=off leaves them)"
        if self.config.mode == "report":
            outcome = "left as they are, as data.personal.mode=report says"
        return f"{holds} personal data ({', '.join(sorted(self.kinds))}): {outcome}"


def pseudonym_key(config: PersonalConfig) -> bytes | None:
    """The key of pseudonyms, from the environment variable that `config.secret` names; None where the mode needs none.
    A variable that is not set, or empty, is a UserError.
    """
    if config.mode != "pseudonym":
        return None
    name = config.secret or DEFAULT_SECRET
    secret = os.environ.get(name, "")
    if not secret:
        message = f"Pseudonyms need a key, and the environment variable {name} is not set"
        step = f"set {name} to a long random text and keep it: the same key gives the same pseudonyms"
        raise UserError(message, where="data.personal.mode: pseudonym", next_step=step)
    return secret.encode("utf-8", "surrogateescape")


_SIGN = re.compile(r"[0-9@:=]")
_WIDE_SIGN = re.compile(r"[\d@:=＠：＝﹫]")


def is_quiet(text: str) -> bool:
    """Whether nothing in a text can be personal data: no digit or sign, none of the few words that need neither."""
    if (_SIGN if text.isascii() else _WIDE_SIGN).search(text) is not None:
        return False
    return not ("sk-" in text or "assw" in text or "ASSW" in text or " dot " in text or "at]" in text or "at)" in text)


def _kinds_of(config: PersonalConfig) -> frozenset[str]:
    return _checked_kinds(tuple(config.kinds) if config.kinds is not None else None, config.names, config.region)


@lru_cache(maxsize=64)
def _checked_kinds(kinds: tuple[str, ...] | None, names: bool, region: str) -> frozenset[str]:
    for kind in kinds or ():
        if kind not in KINDS:
            step = did_you_mean(kind.upper(), KINDS, f"known: {', '.join(KINDS)}")
            raise UserError(f"Unknown kind of personal data: {kind}", where="data.personal.kinds", next_step=step)
    import phonenumbers

    if region not in phonenumbers.SUPPORTED_REGIONS:
        step = "name a country by two capital letters (ISO 3166), as in US, GB or DE"
        raise UserError(f"Unknown region: {region}", where="data.personal.region", next_step=step)
    searched = frozenset(KINDS if kinds is None else kinds)
    return searched if names else searched - {"PERSON"}


_FIELD = re.compile(
    r"phone|mobile|\btel|fax|\bcell|whats ?app|contact|birth|\bdob\b|born|passport|licen|account|\bacct|routing"
    r"|sort code|\bssn\b|social|national|\btax|card|\bcc\b|\bpan\b|\bpin\b|cvv|cvc|pass|pwd|secret|token|\bkey|auth"
    r"|credential|\bnhs\b|\bnino\b|\bbsn\b|\bcpf\b|\bnif\b|\bdni\b|aadh?aa?r|identity|\botp\b|\bip\b|cookie|session"
)


@lru_cache(maxsize=4096)
def names_personal_data(field: str) -> bool:
    """Whether a column's name says that its values are personal, as "phone" does."""
    return bool(_telling_words(field))


@lru_cache(maxsize=4096)
def _telling_words(field: str) -> str:
    """The words of a column's name where they say that its values are personal, else an empty string."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])|[_.\s-]+", " ", field[-80:]).lower()
    return text if _FIELD.search(text) else ""


_FOUR_DIGITS = re.compile(r"\d(?:\D*\d){3}")  # as many as any document's number has
_LONG_NUMBER = re.compile(r"\d(?:[^\d\n]{0,3}\d){6}")
# Ids of letters and few digits: UK NINO, Indian PAN, US MBI.
_LETTERED_ID = re.compile(r"\d(?:\d ?\d\d ?\d\d|\d{3}[A-Za-z]|[A-Za-z]{2}\d-)")
# Stems, lower case: a substring search is many times faster than an alternation, and what it lets through is looked at
# again.
_SECRET_STEMS = tuple(
    "pass pwd pw kennwort mdp clave contrase senha wachtwoord hasł haslo lösen parola 密 パスワード "  # noqa: SIM905
    "пароль secret token key pin cvv cvc csc otp code credential authoriz bearer cookie session client "
    "connection".split()
)
_DOCUMENT_STEMS = tuple(
    "pass паспорт 护照 護照 パスポート 旅券 licen driv dl cnh führer permis carné carne patente rijbewijs "  # noqa: SIM905
    "condu acc a/c routing aba sort bsb konto kto blz bankleit compte rib cuenta clabe rekening conto conta 账 "
    "口座 계좌 银行 national personal citizen govern resident state tax fiscal insurance identi unique ausweis "
    "steuer sécurité sozial 身份证 주민 id".split()
)
_BIRTH_STEMS = tuple(
    "birth born dob d.o d. gebor geburt geb. naissance né naci nacim cumplea nasc nato nata "  # noqa: SIM905
    "geboorte urodz född föde fød syntym doğum рожд родил 出生 生年 生日 생년 ميلاد anniv".split()
)


def _any_in(lower: str, stems: tuple[str, ...]) -> bool:
    return any([stem in lower for stem in stems])  # a generator takes longer


def _spans(text: str, config: PersonalConfig) -> list[Span]:
    view, starts = _view(text)
    lower = view.lower()
    if len(lower) != len(view):
        lower = view.translate(_ASCII_LOWER)
    spans: list[Span] = list(_spans_by_sign(view, lower))
    if re.search(r"\d", view):
        spans += _spans_of_numbers(view, lower, config.region)
    for kind in filter(lambda kind: kind.pattern, KINDS.values()):
        spans += kind.find(view, lower)
    if starts is not None:
        spans = [(name, starts[start], starts[end]) for name, start, end in spans]
    if config.names:
        spans += person_names(text)
    return spans


_ASCII_LOWER = {code: code + 32 for code in range(65, 91)}
_ASCII_UPPER = {code: code - 32 for code in range(97, 123)}


def _spans_by_sign(view: str, lower: str) -> Iterator[Span]:
    if "@" in view or "%40" in view:
        yield from contacts.emails(view)
    if _any_in(lower, (" @", "@ ", "at]", "at)", "_at_", "at}")) or (" at " in lower and " dot " in lower):
        yield from contacts.loose_emails(view)
    if "://" in view or "=" in view:
        yield from credentials.url_credentials(view)
    if max(map(len, view.split()), default=0) >= SHORTEST_KEY or "-----BEGIN" in view:
        yield from credentials.keys(view)
        yield from credentials.aws_secrets(view)
        yield from identifiers.wallets(view)
    if _any_in(lower, _SECRET_STEMS):
        yield from credentials.named_secrets(view, lower)


def _spans_of_numbers(view: str, lower: str, region: str) -> Iterator[Span]:
    yield from contacts.street_addresses(view, lower)
    yield from contacts.network_addresses(view, lower)
    if _any_in(lower, _BIRTH_STEMS):
        yield from identifiers.birth_dates(lower)
    if _FOUR_DIGITS.search(view) and _any_in(lower, _DOCUMENT_STEMS):
        yield from identifiers.document_numbers(lower)
    yield from contacts.short_codes(view, lower)
    if not _LONG_NUMBER.search(view):
        if _LETTERED_ID.search(view):
            yield from identifiers.national_ids(view.translate(_ASCII_UPPER), lower)
        return
    chains = list(contacts.chains(view))
    others = [match.span() for pattern in _OTHERS for match in pattern.finditer(view)]
    spans: list[Span] = list(_cards(view, lower, chains))
    spans += identifiers.social_security_numbers(lower)
    spans += identifiers.national_ids(view.translate(_ASCII_UPPER), lower)
    spans += contacts.phones(view, lower, chains, region)
    spans += contacts.glued_numbers(lower)
    ibans = list(_ibans(view))
    others += [(start, end) for kind, start, end in ibans if not kind]
    yield from (span for span in ibans if span[0])
    yield from (span for span in spans if not any(a < span[2] and span[1] < b for a, b in others))


_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d\d(?=[ -]?[A-Za-z0-9])")


def _ibans(view: str) -> Iterator[Span]:
    """IBANs, and as kind "" what has the form of one but wrong check digits: no part of it is a telephone number."""
    for match in _IBAN_START.finditer(view):
        length, end, count = IBAN_LENGTHS.get(match.group()[:2].upper(), 0), match.end(), 4
        while count < length and end < len(view):
            if view[end] in " -" and view[end + 1 : end + 2].isalnum():
                end += 1
            elif not view[end].isalnum() or not view[end].isascii():
                break
            else:
                end, count = end + 1, count + 1
        if count == length and length and not view[end : end + 1].isalnum():
            compact = re.sub(r"[ -]", "", view[match.start() : end])
            if is_iban(compact):
                yield ("IBAN", match.start(), end)
            elif sum(c.isdigit() for c in compact) >= 10:
                yield ("", match.start(), end)


_CARD_WORD = re.compile(
    r"card|visa|master|amex|american express|diners|maestro|discover|credit|debit|karte|carte|tarjeta|carta|cart[aã]o"
    r"|\bcc\b|\bpan\b|payment|卡|カード"
)


def _cards(view: str, lower: str, chains: list[contacts.Chain]) -> Iterator[Span]:
    for chain in chains:
        if sum(chain.sizes) < 12:
            continue
        near_word = bool(_CARD_WORD.search(lower, max(0, chain.start - 50), chain.start))
        first = 0
        while first < len(chain.sizes):
            # The longest first: a group after the number is the security code or the year.
            for last in range(min(len(chain.sizes), first + 6), first, -1):
                sizes = chain.sizes[first:last]
                if first and chain.sizes[first - 1] == 4 and sizes[0] == 4:
                    continue  # a part of a longer number, such as a parcel's
                if len(sizes) < len(chain.sizes) and sum(sizes) < 15:
                    continue  # only a whole card has something next to it
                fours = all(n == 4 for n in sizes[:-1]) and sizes[-1] <= 4 and len(sizes) > 2
                if not 12 <= sum(sizes) <= 19 or not (len(sizes) == 1 or sizes in CARD_GROUPS or fours):
                    continue
                start, end = chain.groups[first][0], chain.groups[last - 1][1]
                glued = view[end : end + 1].isalnum() or view[end : end + 1] == "_"
                rare = near_word or sizes == (4, 6, 4)
                if not glued and is_card(chain.digits(view, first, last), has_word=rare):
                    yield ("CREDIT_CARD", start, end)
                    first = last - 1
                    break
            first += 1


_UUID = re.compile(r"(?<![0-9A-Za-z])[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}(?![0-9A-Za-z])")
_ISBN = re.compile(
    r"isbn(?:-1[03])?[:\s#]{0,3}(?:is )?(?:97[89][ -]?)?\d[\d -]{7,14}[\dXx]"
    r"|(?<!\d)97[89]-\d{1,5}-\d{1,7}-\d{1,6}-\d(?!\d)",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"(?<!\d)(?:19|20)\d\d[-/.](?:0?[1-9]|1[0-2])[-/.](?:0?[1-9]|[12]\d|3[01])[ T](?:[01]?\d"
    r"|2[0-3])(?::?[0-5]\d){0,2}(?!\d)"
)
_OTHERS = (_UUID, _ISBN, _TIME)  # what their digits resemble doesn't count


def _without_overlaps(spans: list[Span], kinds: frozenset[str]) -> list[PersonalSpan]:
    """Findings that don't overlap: the longer wins, then the more specific, and it takes all of what it overlaps."""
    winners: list[tuple[int, int, int, str]] = []  # start, end, rank, kind; in the order of the text
    spans = [span for span in spans if span[0] in kinds and span[1] < span[2]]
    if len(spans) > 1:
        order = list(KINDS).index
        spans.sort(key=lambda span: (span[1] - span[2], order(span[0])))
    for rank, (kind, start, end) in enumerate(spans):
        low = bisect_right(winners, start, key=lambda other: other[1])
        high = bisect_left(winners, end, key=lambda other: other[0])
        if overlapping := winners[low:high]:
            # No character of the shorter value may stay: the longest one grows over it.
            start, end = min(start, overlapping[0][0]), max(end, overlapping[-1][1])
            kind = min(overlapping, key=lambda other: other[2])[3]
        winners[low:high] = [(start, end, rank, kind)]
    return [PersonalSpan(kind, start, end) for start, end, _, kind in winners]


@lru_cache(maxsize=1)
def _fold_table() -> tuple[frozenset[str], dict[int, str | None]]:
    """The characters that have an ASCII twin, such as full-width digits, or can't be seen, and what becomes of each."""
    table: dict[int, str | None] = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    table |= {code: str(int(chr(code))) for code in range(0x80, 0x1FBFA) if chr(code).isdecimal()}
    table |= dict.fromkeys([0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " ")
    table |= dict.fromkeys([*range(0x2010, 0x2016), 0x2212, 0xFE63], "-")
    table |= {0xFE6B: "@"}
    table |= dict.fromkeys([0xAD, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2065), 0xFEFF], None)
    return frozenset(map(chr, table)), table


def _view(text: str) -> tuple[str, list[int] | None]:
    """A text as detectors read it, and where each of its characters stood (None: where it stands)."""
    if "\\" in text or "&" in text:
        plain, starts = _unescaped(text)
        if plain != text:
            view, further = _folded(plain)
            return view, starts if further is None else [starts[i] for i in further]
    return _folded(text)


def _folded(text: str) -> tuple[str, list[int] | None]:
    if text.isascii():
        return text, None
    exotic, table = _fold_table()
    if exotic.isdisjoint(text):  # characters beyond 16 bits make a pattern of them many times slower
        return text, None
    view = text.translate(table)
    if len(view) == len(text):
        return view, None
    return view, [*(i for i, c in enumerate(text) if table.get(ord(c), c) is not None), len(text)]


_ESCAPE = re.compile(
    r"\\+(?:u[0-9A-Fa-f]{4}|[nrtbf\"/'])|&#(?:64|x40|46|x2[eE]|45|x2[dD]);|&(?:commat|period|amp|quot);"
)
_ESCAPED = {
    "n": "\n", "r": "\r", "t": "\t", "b": " ", "f": " ", "&commat;": "@", "&period;": ".", "&amp;": "&",
    "&quot;": '"',
}  # fmt: skip


def _unescaped(text: str) -> tuple[str, list[int]]:
    """A text with the escapes of JSON (any number of backslashes) and HTML undone, and where each character began."""
    pieces, starts, at = list[str](), list[int](), 0
    for match in _ESCAPE.finditer(text):
        escape = match.group().lstrip("\\")
        if escape[:1] == "u":
            new = chr(int(escape[1:], 16))
        elif escape[:2] == "&#":
            new = chr(int(escape[3:-1], 16) if escape[2] == "x" else int(escape[2:-1]))
        else:
            new = _ESCAPED.get(escape, escape)
        pieces += [text[at : match.start()], new]
        starts += range(at, match.start() + 1)
        at = match.end()
    return "".join([*pieces, text[at:]]), [*starts, *range(at, len(text) + 1)]


def _all_quiet(value: Any, field: str) -> bool:
    """Whether nothing in a JSON value can be personal data, as in most values. It only reads."""
    if isinstance(value, str):
        return (len(value) < SHORTEST or is_quiet(value)) and not (field and _telling_words(field))
    if isinstance(value, dict):
        return all(isinstance(k, str) and _all_quiet(k, "") and _all_quiet(v, k) for k, v in value.items())
    if isinstance(value, list):
        return all(_all_quiet(part, field) for part in value)
    return not isinstance(value, int) or isinstance(value, bool) or not _telling_words(field)


def _scrubbed(value: Any, config: PersonalConfig, key: bytes | None, field: str, kinds: set[str]) -> Any:
    if isinstance(value, str):
        return _scrubbed_text(value, config, key, field, kinds)
    if isinstance(value, dict):
        names = [_scrubbed_text(k, config, key, "", kinds) if isinstance(k, str) else k for k in value]
        new = dict(zip(names, [_scrubbed(v, config, key, str(k), kinds) for k, v in value.items()], strict=True))
        return value if new == value and len(new) == len(value) else new
    if isinstance(value, list):
        items = [_scrubbed(item, config, key, field, kinds) for item in value]
        return value if items == value else items
    if isinstance(value, int) and not isinstance(value, bool) and _telling_words(field):
        text = str(value)
        return value if (new_text := _scrubbed_text(text, config, key, field, kinds)) == text else new_text
    return value


def _scrubbed_text(text: str, config: PersonalConfig, key: bytes | None, field: str, kinds: set[str]) -> str:
    short = len(text) < SHORTEST and not (field and _telling_words(field))
    if short or not (findings := find(text, config, field)):
        return text
    kinds.update(finding.kind for finding in findings)
    return redact(text, findings, config, key)


# The best one that is installed, else any that is made from one.
MODELS = ("en_core_web_lg", "en_core_web_md", "en_core_web_sm")
NEXT_STEP = (
    "pip install presidio-analyzer spacy && python -m spacy download en_core_web_lg, or leave data.personal.names off"
)
SCORE = 0.6  # confidence of presidio-analyzer; spaCy's names get 0.85


def person_names(text: str) -> list[Span]:
    """Names of persons in an English text (presidio-analyzer over spaCy's named entities). Without presidio-analyzer or
    an English spaCy model, or with one that can't be loaded, a UserError.
    """
    if not any(c.isupper() for c in text):
        return []
    people = _analyzer().analyze(text=text, language="en", entities=["PERSON"], score_threshold=SCORE)
    return [("PERSON", person.start, person.end) for person in people]


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    if importlib.util.find_spec("presidio_analyzer") is None or importlib.util.find_spec("spacy") is None:
        message = "Person names need presidio-analyzer, which is not installed"
        raise UserError(message, where="data.personal.names", next_step=NEXT_STEP)
    # presidio-analyzer would download a missing model: here nothing is fetched without a request.
    import spacy

    others = sorted(name for name in spacy.util.get_installed_models() if name.startswith("en_core_web"))
    model = next((name for name in (*MODELS, *others) if spacy.util.is_package(name)), None)
    if model is None:
        message = "Person names need an English model of spaCy, and none is installed"
        raise UserError(message, where=f"data.personal.names; looked for {', '.join(MODELS)}", next_step=NEXT_STEP)
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NlpEngineProvider
    from presidio_analyzer.predefined_recognizers import SpacyRecognizer

    settings = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": model}]}
    try:
        engine = NlpEngineProvider(nlp_configuration=settings).create_engine()
    except (OSError, ValueError, ImportError) as error:  # a model of another version, or one that lacks files
        message = f"The language model for names can't be loaded: {str(error).splitlines()[0]}"
        raise UserError(message, where=f"data.personal.names; {model}", next_step=NEXT_STEP) from None
    registry = RecognizerRegistry(recognizers=[SpacyRecognizer(supported_language="en")], supported_languages=["en"])
    return AnalyzerEngine(nlp_engine=engine, registry=registry, supported_languages=["en"])
