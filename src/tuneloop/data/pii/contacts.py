"""Ways to reach a person or a machine in a text: e-mail, telephone, street and network addresses."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from tuneloop.data.pii.identifiers import Span

_DOMAIN = re.compile(
    r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}(?:xn--[A-Za-z0-9-]{2,59}|[^\W\d_]{2,24})(?![\w-])"
    r"|\[[0-9A-Fa-f.:IPv]{7,45}\]"
)
_QUOTED_LOCAL = re.compile(r'"[^"\s@]{1,30}(?: [^"\s@]{1,30}){0,2}"$')
_LOCAL_PART = frozenset("._%+'-")
_LOOSE = re.compile(
    # john [at] example [dot] com; "at" without brackets needs "dot" in words
    r"(?<![\w.])[\w.+-]{1,64}\s?(?:[\[({<]\s?(?:at|@)\s?[\])}>]\s?[\w-]{1,63}(?:\s?(?:[\[({<]\s?(?:dot|\.)\s?[\])}>]"
    r"|\sdot\s|\.)\s?[\w-]{2,63}){1,4}|\sat\s[\w-]{1,63}(?:\sdot\s[\w-]{2,63}){1,4}"
    r"|_at_[\w-]{1,63}_dot_[\w-]{2,63})(?!\w)"
    # john @ example . com
    r"|(?<![\w.])[\w.+-]{2,64}(?:\s@\s?|@\s)(?:[\w-]{1,63}\s?\.\s?){1,3}(?:com|org|net|edu|gov|io|info|biz"
    r"|[a-z]{2})(?![\w-])",
    re.IGNORECASE,
)


def emails(text: str) -> Iterator[Span]:
    """E-mail addresses: `local@domain.tld` in any script, quoted local parts, `%40` for `@`."""
    for sign in ("@", "%40"):
        at = text.find(sign)
        while at >= 0:
            start, domain = _local_start(text, at), _DOMAIN.match(text, at + len(sign))
            if start < at and domain and (sign != "@" or not _is_login(text, start, at, domain.end())):
                yield ("EMAIL", start, domain.end())
            at = text.find(sign, at + len(sign))


def loose_emails(text: str) -> Iterator[Span]:
    """E-mail addresses written to escape robots: "john [at] example [dot] com"."""
    for match in _LOOSE.finditer(text):
        yield ("EMAIL", *match.span())


def _local_start(text: str, at: int) -> int:
    start = at
    # Scripts without spaces between words would join a sentence to the address.
    while (
        start > 0
        and at - start < 64
        and ((text[start - 1].isalnum() and text[start - 1] < "\u2e80") or text[start - 1] in _LOCAL_PART)
    ):
        start -= 1
    if start == at and text[at - 1 : at] == '"':
        quoted = _QUOTED_LOCAL.search(text, max(0, at - 64), at)
        return quoted.start() if quoted else at
    while start < at and text[start] in "._%'-":
        start += 1
    return start


def _is_login(text: str, start: int, at: int, end: int) -> bool:
    """`//user:password@host`, `//user@host` and `git@host:path` are no e-mail addresses."""
    if text[start:at] == "git" and text[end : end + 1] in (":", "/"):
        return True
    scheme = text.rfind("://", max(0, start - 80), start)
    return scheme >= 0 and re.search(r"[\s/?#]", text[scheme + 3 : start]) is None


_CHAIN = re.compile(r"(?<![0-9A-Za-z])(?:\(?\+ ?\(?|\()?\d++(?:[ .\-/()]{1,3}+\d++)*+")
_GROUP = re.compile(r"\d+")


@dataclass(frozen=True)
class Chain:
    """Groups of digits with short separators between them: which may hold a card's or a telephone's number."""

    start: int  # where it begins, with a "+" or bracket before its first digit
    groups: tuple[tuple[int, int], ...]  # start and end of each group of digits
    sizes: tuple[int, ...]  # digits in each group
    attached: bool  # it follows a letter or digit and a hyphen or the like ("ORD-123"), or a letter follows it

    def digits(self, text: str, first: int, last: int) -> str:
        """The digits of groups `first` to `last` (exclusive)."""
        return "".join(text[a:b] for a, b in self.groups[first:last])


def chains(text: str) -> Iterator[Chain]:
    """All chains of at least seven digits."""
    for match in _CHAIN.finditer(text):
        start, end = match.span()
        opened = text.rfind("(", start + 1, end)
        if opened > 0 and text.find(")", opened, end) < 0 and text[start:opened].strip("+( "):
            # "199123 (55p)": what is in brackets is another number
            end = start + len(text[start:opened].rstrip(" .-/("))
        if end - start < 7:
            continue
        groups = tuple(m.span() for m in _GROUP.finditer(text, start, end))
        sizes = tuple(b - a for a, b in groups)
        if sum(sizes) >= 7:
            before, after = text[max(0, start - 2) : start], text[end : end + 1]
            joined = len(before) == 2 and before[1] in "-/#_.=@" and before[0].isalnum()
            attached = joined or before[-1:] in ("#", "_", "$", "€", "£")
            yield Chain(start, groups, sizes, attached or (after.isalnum() and after not in "xX") or after == "_")


_PHONE_WORD = re.compile(
    r"phone|\btxt|\bmobs?\b|\bph:|\bcust(?:omer)?\.? ?(?:care|services?)\b|\bmessages? (?:to|on|from)\b|\btele?\b"
    r"|\btel[.:]|\bmobil|\bcell|\bfax|\bcall|\btext(?:ed|ing)?\b|\bsms\b|whats ?app|viber|telegram|\bsignal\b|\bdial"
    r"|\brang?\b|\bring\b|\breach|contact|\bhandy|\brufn|anruf|\bruf|\berreich|téléphone|telefon|teléfono|télephone"
    r"|celular|móvil|portable\b|appel|llam|cellulare|chiam|\bgsm\b|bellen|ring(?:en|a|e)\b|телефон|тел\.|звон|電話|电话|手机"
    r"|携帯|전화|هاتف|(?:my|his|her|our|their|your) (?:new |old |home |work |direct |other |private |personal "
    r"|best )?(?:number|no\.?)\b(?! of)|answering|\bgive (?:me|us|him|her) a |me (?:at|on)\b|numéro|número|\bnummer\b"
    r"|hotline|helpline|voicemail|landline|\bm:|\bt:|\bp:"
)
_OTHER_WORD = re.compile(
    r"order|invoice|ticket|refe?r?e?n?c?e?\b|tracking|parcel|shipment|\bcase\b|transaction|booking|reservation"
    r"|confirmation|account|\bacct|\bids?\b|isbn|issn|\bsku\b|serial|\bpart\b|model|policy|claim|card|iban|\bpo\b"
    r"|version|build|amount|total|price|balance|batch|\blot\b|barcode|\bean\b|\bupc\b|doi|patent|member|customer n"
    r"|bestell|rechnung|commande|facture|pedido|factura|ordine|fattura|zip|postal|imei|\bvin\b|timestamp|\bepoch|score"
    r"|\bpin\b|code\b"
)
_ANOTHER_NAME = re.compile(
    r"(?:"
    + _OTHER_WORD.pattern.replace("|claim|", r"|claim (?:no|number|id|ref)\b|")  # "to claim 0871..." names no claim
    + r")(?:[\s:#.()\"'-]|\b(?:numbers?|no|nr|num|id|ids|code|ref|reference|is|was|are|of|the|for|my|your|our|to|and"
    + r"|reads|says|key|file|nummer|numéro)\b)*\Z"
)
_PHONE_AFTER = re.compile(
    r"[\s,)]*(?:is |was |'s )(?:my|our|his|her) (?:new |old |work |home |best )?number\b"
    r"|[\s,)]*(?:is |was |'s )?(?:my|our|his|her|the)?\s?(?:new |old |work |home |best )?(?:phone|mobile|cell"
    r"|tele?phone|contact|number to|телефон|telefon)|[\s,-]*(?:office|fax)\b"
)
_EXTENSION = re.compile(r",? ?(?:ext(?:ension|n)?\.?|x|#|durchwahl|poste)[ .:]{0,2}\d{1,6}(?!\w)", re.IGNORECASE)
_DATE_LIKE = re.compile(
    r"(?:19|20)\d\d[-/. ](?:0?[1-9]|1[0-2])[-/. ](?:0?[1-9]|[12]\d|3[01])(?!\d)"
    r"|(?:0?[1-9]|[12]\d|3[01])[-/. ](?:0?[1-9]|[12]\d|3[01])[-/. ](?:19|20)\d\d(?!\d)"
    r"|(?:19|20)\d\d ?- ?(?:19|20)\d\d(?!\d)|(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)"
)
_NANP = re.compile(r"(?:1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d([ .-]))[2-9]\d\d[ .-]\d{4}")

# Tried for numbers without a country code, by how many people there write English, Spanish, French, German ...
_REGIONS = [
    "US", "GB", "DE", "FR", "ES", "IT", "NL", "BE", "CH", "AT", "IE", "AU", "NZ", "IN", "CA", "SE", "NO", "DK", "FI",
    "PL", "PT", "BR", "MX", "AR", "CL", "CO", "PE", "JP", "KR", "CN", "HK", "TW", "SG", "MY", "ID", "TH", "PH", "VN",
    "ZA", "NG", "KE", "GH", "EG", "MA", "TR", "IL", "AE", "SA", "PK", "BD", "LK", "GR", "CZ", "SK", "HU", "RO", "BG",
    "HR", "RS", "SI", "UA", "RU", "EE", "LV", "LT", "LU",
]  # fmt: skip
_FREELY_GROUPED = ("GB", "DE", "FR", "AU", "NL", "IT")

# A number glued to its neighbours: a word before it, a price, a time or a word behind it, as in "08712400602450p".
_GLUED = re.compile(
    r"(?:(?<=call)|(?<=text)|(?<=txt)|(?<=tel)|(?<=ph)|(?<=mob)|(?<=mobile)|(?<=no)|(?<=on))(0[1-35789]\d{9})(?!\d)"
    r"|(?<![\w.,£$€#/-])(0[1-35789]\d{9})(?=\d{1,4}(?:\.\d\d)?(?:p|ppm|am|pm|yrs?)(?![a-z])|[a-z]{2})"
)
_SHORT_CODE_STEMS = ("text", "txt", "sms", "send", "reply", "short", "envo", "envía", "envia", "manda", "msg", "messag")
_CODE = r"(\d{5,6})(?![\w-]|[.,:/]\d|\s?%|\s(?:people|px|ft|km|[a-z]{3,}(?<!thi)(?<!say)s\b))"
_SHORT_CODE = re.compile(
    rf"\b(?:te?xt|sms|msg|message)\b(?:[^\d\n]|(?<=[a-z ])\d(?!\d)){{0,40}}?\b(?:to|an|au"
    rf"|al)\s(?:(?:the |our )?(?:no|nr|number|short ?code)[.:]{{0,2}}\s)?{_CODE}"
    rf"|\b(?:te?xts?|sms|msgs?|messages?) from {_CODE}(?=\s*(?:[.,;:!?)]|\Z|says?\b|said|that|about|asking|telling))"
    rf"|\b(?:send|reply|replied|sende|senden|envoye[zr]|envía|envia|enviar|manda)\s(?:with |the word |un sms con "
    rf"|sms mit )?[\"'“‘]?[a-zà-ÿ]{{2,10}}\d?[\"'”’]?\s(?:(?:par|por|via|by) sms\s)?(?:to|an|au|al)\s{_CODE}"
    rf"|\bshort ?codes?\s?(?:is|:|no\.?|number)?\s?{_CODE}"
)
_SENT = 3  # group of `_SHORT_CODE` behind "send" and the like, which may send anything
_SHOUTED = re.compile(r"[A-Z]{2,10}\d?[\"'”’]?\s(?:(?:par|por|via|by) sms\s)?(?:to|TO|an|au|al)\s\d{5,6}\Z")
_CODE_NAMED = re.compile(r"sms|\btxt|\bte?xt|stop|short ?code")


def short_codes(text: str, lower: str) -> Iterator[Span]:
    """Numbers of five or six digits that messages are sent to ("text WIN to 87121"); no postcodes or amounts."""
    if not any(stem in lower for stem in _SHORT_CODE_STEMS):
        return
    for match in _SHORT_CODE.finditer(lower):
        group = match.lastindex or 1
        is_message = _SHOUTED.search(text, match.start(), match.end(group)) or _CODE_NAMED.search(match.group())
        if group != _SENT or is_message:  # not "send flowers to 90210"
            yield ("PHONE", *match.span(group))


def glued_numbers(lower: str) -> Iterator[Span]:
    """Valid British numbers of eleven digits whose neighbours are written without a space."""
    for match in _GLUED.finditer(lower):
        start, end = match.span(match.lastindex or 1)
        if not _names_another(lower, start) and _library(lower[start:end], "GB")[1]:
            yield ("PHONE", start, end)


def phones(text: str, lower: str, chains_of_digits: list[Chain], region: str) -> Iterator[Span]:
    """Telephone numbers, with the country code or in the forms of one country (`region`: ISO 3166, two letters). One
    without a country code and without a word such as "call" next to it counts if it is grouped as a valid number; bare
    digits never do.
    """
    for chain in chains_of_digits:
        total = sum(chain.sizes)
        if total <= 17 and (span := _phone(text, lower, chain, region)):
            yield span
        elif len(chain.sizes) > 1 and (total > 17 or len(chain.sizes) > 3):
            yield from _phone_windows(text, lower, chain, region)


def _phone_windows(text: str, lower: str, chain: Chain, region: str) -> Iterator[Span]:
    """Numbers within a longer chain: two in a row, or one before an amount. Only North American and "+" forms."""
    first = 0
    plus = "+" in text[chain.start : chain.groups[0][0]]
    while first < len(chain.sizes) - 1:
        for last in range(min(len(chain.sizes), first + 6), first + 1, -1):
            start, end = chain.groups[first][0], chain.groups[last - 1][1]
            opened = text[start - 1 : start] == "("
            value = text[start - opened : end]
            if _NANP.fullmatch(value) or (first == 0 and plus and _library(chain.digits(text, 0, last), "+")[0]):
                if not text[max(0, start - 1) : start].isalnum():
                    yield ("PHONE", chain.start if first == 0 else start - opened, end)
                first = last - 1
                break
        first += 1


def _phone(text: str, lower: str, chain: Chain, region: str) -> Span | None:
    start, end = chain.start, chain.groups[-1][1]
    if text[start] == "(" and ")" not in text[start:end]:
        start += 1
    digits = chain.digits(text, 0, len(chain.groups))
    extension = _EXTENSION.match(text, end)
    stop = extension.end() if extension else end
    is_phone = _is_called_phone(lower, start, stop)
    separated = len(chain.groups) > 1
    if "+" in text[start : chain.groups[0][0]]:
        possible, valid, _ = _library(digits, "+")
        return ("PHONE", start, stop) if valid or (possible and (separated or len(digits) > 9)) else None
    if digits[:2] == "00" and len(digits) > 10 and (is_phone or separated) and _library(digits[2:], "+")[1]:
        return ("PHONE", start, stop)
    value = text[start:end]
    if _DATE_LIKE.match(value) or len(digits) > 13:
        return None
    nanp = _NANP.fullmatch(value)
    if nanp and nanp.group(1) != " ":
        return ("PHONE", start, stop) if is_phone is not False or value[0] == "(" else None
    if chain.attached and not (is_phone and _PHONE_WORD.search(lower, max(0, start - 12), start)):
        return None
    if is_phone:
        # A local number of seven digits, or whatever is a number somewhere.
        decimal = re.search(r"\d,\Z", text[max(0, start - 2) : start])  # a longitude behind its latitude
        local = None if decimal else re.fullmatch(r"[2-9]\d\d[-. ]\d{4}", value)
        fits = local or nanp or (not decimal and any(_library(digits, r)[1] for r in (region, *_REGIONS)))
        return ("PHONE", start, stop) if fits and _grouped_like_a_phone(chain.sizes) else None
    if _names_another(lower, start):
        return None
    if (is_phone is None or digits[0] == "0") and (separated or value[0] == "(") and len(digits) >= 9:
        trunk = digits[0] == "0" or "(" in value
        if (nanp and _library(digits, "US")[1]) or _national(digits, chain.sizes, region, trunk=trunk):
            return ("PHONE", start, stop)
    if not separated and _is_bare_national(digits, region):
        return ("PHONE", start, stop)
    return None


def _names_another(lower: str, start: int) -> bool:
    """Whether the words right before a number say that it is an order's, an account's or the like."""
    return _ANOTHER_NAME.search(lower, max(0, start - 40), start) is not None


# Mobile and special numbers; the library lacks those kept for fiction.
_BRITISH = re.compile(r"0(?:7[1-57-9]|8[0347]|9[018])")


def _is_bare_national(digits: str, region: str) -> bool:
    """Whether digits without a gap are a national number: in a form that little else has, or a mobile one of the
    region.

    British numbers have eleven digits with the 0, mobile ones in France 06 or 07 and ten, in Australia 04 and ten, in
    Germany 01 and eleven or twelve. Ten digits without a 0, as in North America, may be anything.
    """
    if digits[0] == "0":
        if len(digits) == 11 and (_BRITISH.match(digits) or _library(digits, "GB")[1]):
            return True
        country = {"06": "FR", "07": "FR", "04": "AU", "01": "DE"}.get(digits[:2])
        mobile = len(digits) >= 10 and country is not None and _is_mobile(digits, country)
        return mobile or (len(digits) >= 9 and _library(digits, region)[1])
    return len(digits) >= 9 and _is_mobile(digits, region)


@lru_cache(maxsize=1 << 12)
def _is_mobile(digits: str, region: str) -> bool:
    import phonenumbers

    try:
        number = phonenumbers.parse(digits, region)
    except phonenumbers.NumberParseException:
        return False
    mobile: bool = phonenumbers.number_type(number) == phonenumbers.PhoneNumberType.MOBILE
    return mobile and phonenumbers.is_valid_number_for_region(number, region)


def _grouped_like_a_phone(sizes: tuple[int, ...]) -> bool:
    """Not as in a table of small numbers ("1 2 3 4 5 6 7 8"); but digit by digit, as in "0 8 7 1 2 4 6 0 3 2 4"."""
    if len(sizes) > 9 and max(sizes) == 1:
        return True
    return sum(size == 1 for size in sizes) <= 1 and (len(sizes) <= 2 or max(sizes) <= 6)


def _is_called_phone(lower: str, start: int, end: int) -> bool | None:
    """True next to a word such as "call", False after one such as "order number", None where neither stands."""
    before = lower[max(0, start - 48) : start]
    phone = max((m.end() for m in _PHONE_WORD.finditer(before)), default=-1)
    other = max((m.end() for m in _OTHER_WORD.finditer(before)), default=-1)
    if phone > other or _PHONE_AFTER.match(lower, end):
        return True
    return False if other >= 0 and len(before) - other <= 24 else None


def _national(digits: str, sizes: tuple[int, ...], region: str, *, trunk: bool) -> bool:
    """Whether digits are a valid number in its country's groups: of `region`, or with a leading 0 or bracket of any."""
    if _library(digits, region)[1] and _divides(sizes, _library(digits, region)[2]):
        return True
    if not trunk or len(digits) < 10:
        return False
    if any(_library(digits, other)[2] == sizes for other in _REGIONS):
        return True
    if len(sizes) <= 5 and 3 <= sizes[0] <= 6 and min(sizes) > 1 and _is_bare_national(digits, region):
        return True  # divided in any way behind the area code, as in "0871 - 2460 - 324"
    # After the area code people divide as they like. Not 4-4-4: codes of all sorts are written so.
    freely = (_library(digits, other)[2] for other in _FREELY_GROUPED)
    return set(sizes) != {4} and any(g and g[0] == sizes[0] and _divides(sizes, g) for g in freely)


def _divides(sizes: tuple[int, ...], standard: tuple[int, ...]) -> bool:
    """Whether a grouping is the standard one, or divides its groups further."""
    fits = sum(sizes) == sum(standard) and min(sizes[1:], default=2) > 1
    return fits and set(itertools.accumulate(standard)) <= set(itertools.accumulate(sizes))


@lru_cache(maxsize=1 << 14)
def _library(digits: str, region: str) -> tuple[bool, bool, tuple[int, ...]]:
    """What libphonenumber says of digits (`region` "+": with the country code): possible, valid, groups of the national
    form.
    """
    import phonenumbers

    try:
        number = phonenumbers.parse(f"+{digits}" if region == "+" else digits, None if region == "+" else region)
    except phonenumbers.NumberParseException:
        return False, False, ()
    valid = phonenumbers.is_valid_number(number)
    possible = valid or phonenumbers.is_possible_number(number)
    groups: tuple[int, ...] = ()
    if valid and region != "+":
        national = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
        groups = tuple(len(group) for group in _GROUP.findall(national))
    return possible, valid, groups


def e164(value: str, region: str) -> str:
    """A telephone number as `+` and digits, so that all ways to write it are one."""
    import phonenumbers

    try:
        return phonenumbers.format_number(phonenumbers.parse(value, region), phonenumbers.PhoneNumberFormat.E164)
    except phonenumbers.NumberParseException:
        return re.sub(r"\D", "", value)


_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"(?<![\w.])(?<!\d[-,]){_OCTET}(?:\.{_OCTET}){{3}}(?!\w|[.-]\d|\.\w)")
_IPV6 = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:|::)[0-9A-Fa-f:]{1,38}(?:\d{1,3}(?:\.\d{1,3}){3})?(?:%\w{1,16})?(?![\w:])"
)
_MAC = re.compile(
    r"(?<![\w:-])(?:[0-9A-Fa-f]{2}(?:(:)|-)(?:[0-9A-Fa-f]{2}(?(1):|-)){4}[0-9A-Fa-f]{2}"
    r"|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4})(?![\w:-])"
)
_VERSION_BEFORE = re.compile(
    r"(?:\bv|\bver|versions?|releases?|\brel|\bbuild|firmware|driver|patch|software|\bapp|updat(?:e|ed|es|ing)"
    r"|upgrad(?:e|ed|es|ing)|install(?:ed|ing)?|chrome|firefox|safari|edge|android|\bios|windows|section|§|chapter|rfc"
    r"|article|clause|\boid|python|java|node|kernel|sdk|api|library|package)(?:\s(?:no|number|to|from|is|was|has|now"
    r"|version|v))*[\s.:#=/_-]*v?\Z"
)
_IP_BEFORE = re.compile(
    r"\b(?:ip|ipv4|addr|address|host|server|gateway|router|dns|subnet|ping|ssh|from|login|logged|device|client|at)\b"
)
# Literal first, so that each is decided at the speed of a substring search.
_DOTS, _COLONS = re.compile(r"\.\d{1,3}\.\d{1,3}\."), re.compile(r":[0-9A-Fa-f]{0,4}:")
_PAIRS = re.compile(r"-[0-9A-Fa-f]{2}-[0-9A-Fa-f]{2}-|\.[0-9A-Fa-f]{4}\.")


def network_addresses(text: str, lower: str) -> Iterator[Span]:
    """IPv4, IPv6 and MAC addresses; no versions, no addresses that name no machine (loopback, unspecified, masks)."""
    if _DOTS.search(text):
        for match in _IPV4.finditer(text):
            if not _is_version(match.group(), lower[max(0, match.start() - 28) : match.start()]):
                yield ("IP_ADDRESS", *match.span())
    colons = _COLONS.search(text)
    if colons or _PAIRS.search(text):
        for match in _MAC.finditer(text):
            yield ("MAC_ADDRESS", *match.span())
    if colons:
        for match in _IPV6.finditer(text):
            if (end := _ipv6_end(match.group())) > 0:
                yield ("IP_ADDRESS", match.start(), match.start() + end)


def _is_version(value: str, before: str) -> bool:
    if value.startswith(("127.", "0.", "255.")):
        return True
    if _VERSION_BEFORE.search(before):  # "the app from 113.208.220.246": no version has such numbers
        return sum(len(octet) == 3 for octet in value.split(".")) < 3
    return len(value) == 7 and not _IP_BEFORE.search(before)  # 1.2.3.4 is more often a version or a heading


def _ipv6_end(candidate: str) -> int:
    value = candidate if candidate.endswith("::") else candidate.rstrip(":")
    bare = value.partition("%")[0]
    groups = [group for group in bare.split(":") if group]
    # a::b is a name in C++ and "::1" the machine itself
    if len(groups) >= 3 or (groups and len(groups[0]) == 4 and any(c.isdigit() for c in bare)):
        with contextlib.suppress(ValueError):
            ipaddress.IPv6Address(bare)
            return len(value)
    return 0


_LETTERS = r"[^\W\d_]"
_CAP = r"(?:[A-ZÀ-ÖØ-ÞĀ-ŽА-ЯΑ-Ω][\w'’-]{0,30}\.?)"
_PARTICLE = (
    r"(?:de la|de los|de las|de l['’]|de|du|des|del|della|delle|dei|degli|di|da|do|dos|das|la|le|les|los|las|el|von|van"
    r"|der|den|zum|zur|am|of|the|and|y|e|à|aux|au|san|santa|saint|[dl]['’])"
)
_HOUSE = r"\d{1,5}(?:[-/–]\d{1,4})?(?: ?[A-Za-z](?![\w'’]))?(?: ?(?:bis|ter|quater)\b| 1/2)?"
_ZIP = (
    r"(?:\d{5}(?:-\d{3,4})?|[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}|[ABCEGHJ-NPRSTVXY]\d[A-Z] ?\d[A-Z]\d|\d{4} ?[A-Z]{2}"
    r"|\d{2}-\d{3}|\d{3} ?\d{2,3}|\d{4}|[A-Z]{1,2}-\d{3,6}|〒?\d{3}-\d{4})(?![\w-])"
)
_UNIT = (
    r"(?:,?(?: |\s{0,3}\n\s{0,8})?(?:(?i:apt|apartment|suite|ste|unit|flat|room|rm|floor|fl|bldg|building|block|piso"
    r"|étage|appt|whg|lot|door|dept)\.? ?#? ?\d{1,5}[A-Za-z]?\b|(?i:apt|apartment|suite|ste|unit|flat"
    r"|block)\.? #?[A-Z]\b|#\d{1,5}[A-Za-z]?\b|\d{1,3}[ºª°] ?\w{0,4}|\d{1,3}(?:st|nd|rd|th) (?i:floor)))"
)
_CITY = rf"{_CAP}(?:[ -](?:{_PARTICLE} )?{_CAP}){{0,3}}"
_BREAK = r"(?:\s{0,3}\n\s{0,8},? ?|, ?| )"
_END = r"(?=\s*[\n.,;!?)]|\s*$)"
# Town, state and postcode over several lines, with the country after it; or town and state on the same line.
_TAIL = (
    rf"(?:{_UNIT}){{0,2}}"
    rf"(?:,?{_BREAK}{_ZIP}(?:,? {_CITY})?(?:,?{_BREAK}{_CITY}{_END})?"
    rf"|,?{_BREAK}(?:(?:{_CITY}|[A-Z]{{2,3}}),?{_BREAK}){{1,4}}{_ZIP}(?:,?{_BREAK}{_CITY}{_END}){{0,2}}"
    rf"|,\s?{_CITY}, ?[A-Z]{{2}}(?!\w)|(?:, ?{_CITY}{_END}){{1,3}})?"
)
_EN = (
    r"(?:street|avenue|boulevard|road|lane|drive|court|terrace|parkway|highway|crescent|close|square|gardens?|grove|way"
    r"|place|circle|trail|alley|mews|row|hill|plaza|pike|turnpike|loop|crossing|heights|quay|walk|wharf|ave|blvd|rd|ln"
    r"|dr|ct|pkwy|hwy|cres|sq|ter|pl|cir|trl|str|st)"
)
_EN_LOWER = r"(?:street|avenue|boulevard|road|lane|drive|court|terrace|parkway|crescent|ave|blvd|rd)"
# No street: "2 way street", "5 minutes down the road", "3 different lanes".
_STOP = (
    r"(?!(?:the|a|an|of|on|in|at|to|for|and|or|but|is|was|are|minutes?|mins?|hours?|days?|weeks?|months?|years?|miles?"
    r"|km|kilomet\w+|meters?|metres?|feet|blocks?|more|ways?|one|two|per|percent|people|times?|lane|new|different|my"
    r"|your|its?|this|that|down|off|from|by|with|side|st|nd|rd|th|x|pm|am|dollars?|euros?|pounds?|usd|eur|gbp"
    r"|main roads)\b)"
)
_ORDINAL = r"\d{1,3}(?:st|nd|rd|th)"
_COMPASS = r"(?:[NSEW]{1,2}\.?|North|South|East|West|Old|New|Upper|Lower)"
_ROAD_FR = r"(?i:rue|avenue|av\.|boulevard|bd\.?|blvd|chemin|allée|impasse|ruelle|rua|via|calle|avenida)"
_ROAD_COMPOUND = (
    r"(?:stra(?:ß|ss)e|str\.|gasse|allee|platz|weg|damm|ufer|chaussee|straat|laan|plein|gracht|dijk|singel|steeg|gatan"
    r"|vägen|gata|vej|veien|katu|kuja|utca)"
)
_ROAD_BEFORE = (
    r"(?:[Cc]alle|C/|[Aa]venida|[Aa]vda\.?|Av\.|[Cc]arrer|[Pp]iazza|[Rr]ua|[Tt]ravessa|ul\.|[Uu]lica|ул\.|улица|пр\."
    r"|проспект|Jl\.|Jalan|[Rr]ue)"
)
# Words of other meanings too: only with a name in capitals.
_ROAD_BEFORE_NAME = (
    r"(?:Plaza|Paseo|Camino|Ronda|Carretera|Via|Viale|Corso|Largo|Vicolo|Strada|Praça|Alameda|Estrada|Rodovia|Aleja"
    r"|Al\.|al\.|os\.|Str\.|Bd\.?)"
)
_MONTHS = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_NAME_WORDS = rf"(?: (?:{_PARTICLE} )?{_CAP}){{0,4}}"
_NO_BEFORE = r"(?:[nN][º°o.]{0,2} ?|núm\.? ?|д\. ?|No\.? ?)?"
_AT_NUMBER = re.compile(
    r"(?<![\w$€£.#/-])(?<!\d,)(?:"
    + "|".join(
        (
            # 12 Main Street
            rf"{_HOUSE},? (?:{_COMPASS} )?(?:(?:{_CAP}|{_ORDINAL}) ){{1,4}}(?i:{_EN})\b\.?(?: [NSEW]{{1,2}}\b\.?)?",
            rf"{_HOUSE} (?:{_COMPASS} )?(?:Broadway|Highway \d+|Route \d+|(?:County|State) Road \d+"
            rf"|Avenue (?:of the )?{_CAP})",
            rf"{_HOUSE},? {_ROAD_FR}(?: {_PARTICLE})*(?: ?{_LETTERS}[\w'’-]{{1,30}})(?:[ -]"
            rf"(?:{_PARTICLE} )?{_CAP}){{0,4}}",  # 12 rue de la Paix
            rf"{_HOUSE},? (?i:place|quai|cours|route|square|passage|voie)(?: {_PARTICLE})+ ?{_CAP}(?:[ -]"
            rf"(?:{_PARTICLE} )?{_CAP}){{0,4}}",
            rf"{_HOUSE},? {_CAP}(?<=[a-zäöüß]){_ROAD_COMPOUND}(?!\w)",
            rf"{_HOUSE},? [A-ZÄÖÜ]\w{{1,30}}?{_ROAD_COMPOUND}(?!\w)",  # 12 Lindenstraße
            rf"{_HOUSE},? (?:{_STOP}(?:[a-z][a-z'-]{{1,20}}|{_ORDINAL}) ){{1,2}}{_EN_LOWER}\b\.?",  # 12 main street
            rf"{_HOUSE} (?:{_CAP} ){{1,4}}(?:\d{{1,5}} ?)?(?={_UNIT})",  # 12 Whatever 5 Apt. 3
        )
    )
    + rf"){_TAIL}"
)
_UP_TO_NUMBER = re.compile(
    r"(?<![\w$€£.#/-])(?:"
    + "|".join(
        (
            rf"(?:{_CAP}[ -]){{0,3}}{_LETTERS}{{2,30}}(?i:{_ROAD_COMPOUND}) ?{_HOUSE}",  # Lindenstraße 12
            rf"(?:{_CAP}[ -]){{1,3}}(?:Straße|Strasse|Str\.|Platz|Weg|Allee|utca|út|Sokak|Caddesi|Sok\."
            rf"|Cad\.),? (?:No:? ?)?{_HOUSE}",
            rf"(?:Am|An der|An den|Im|In der|Auf dem|Auf der|Unter den|Zum|Zur) {_CAP} {_HOUSE}, ?\d{{5}}(?!\d)",
            rf"{_ROAD_BEFORE} ?(?:{_PARTICLE} )*{_LETTERS}[\w'’.-]{{0,30}}{_NAME_WORDS},? {_NO_BEFORE}{_HOUSE}",
            rf"{_ROAD_BEFORE_NAME} (?:{_PARTICLE} )*{_CAP}{_NAME_WORDS},? {_NO_BEFORE}{_HOUSE}",  # Via Roma 12
            rf"(?!{_MONTHS})(?:{_CAP} ){{1,4}}\d{{1,4}} ?[a-z]?,\s(?:[A-Z]{{1,2}}-)?(?:\d{{5}}"
            rf"|(?!19|20)\d{{4}}) {_CITY}",  # Whatever 12, 1010 Wien
            r"(?i:P\.? ?O\.? ?Box|Post Office Box|Postfach|Postbus|Apartado(?: de Correos)?|Apdo\.?|Casella Postale"
            r"|Caixa Postal|B\.?P\.|GPO Box|Private Bag) ?(?:#|No\.? ?)?\d{1,6}\b",
        )
    )
    + rf"){_TAIL}"
)
# "9000 Gent. Thank": one word behind a full stop, unless that is the stop of a short form.
_NEXT_SENTENCE = re.compile(r"(\w+)\.\s+[^\W\d_][\w'’-]*$")
_SHORT = re.compile(
    r"(?i:ste?|mt|ft|pt|ave?|bd|blvd|rd|ln|dr|ct|sq|ter|pl|cir|trl|str|hwy|pkwy|cres|apt|no|nr|[nsew]|[ns][ew])"
)
_NUMBER = re.compile(r"(?<![\d$€£.#/-])(?<!\d:)\d{1,6}(?!\d|[.:]\d)")
# What stands before a number where the street's name comes first; lower case.
_ROAD_STEMS = tuple(
    "stra str. gasse allee platz weg damm ufer chauss straat laan plein gracht dijk singel "  # noqa: SIM905
    "steeg gatan vägen gata vej veien katu kuja utca út sokak cadde sok. cad. calle c/ aven avda av. plaza "
    "paseo camino carrer ronda carretera via piazza corso largo vicolo rua travessa praça alameda estrada "
    "rodovia ul. ulica aleja al. os. ул пр jl. jalan rue bd box postf postbus apart apdo casella caixa b.p bp "
    "private".split()
)
_POSTCODE_AFTER = re.compile(r" ?[a-z]?,\s(?:[A-Z]{1,2}-)?\d{4,5} [A-ZÄÖÜÉ]")
_BEFORE, _AFTER = 80, 240  # characters around a house number that its address may take


def street_addresses(text: str, lower: str) -> Iterator[Span]:
    """House number and street, or a post-office box, with flat, town and postcode. Precise rather than complete."""
    end_of_last, roads = 0, [stem for stem in _ROAD_STEMS if stem in lower]
    for number in _NUMBER.finditer(text):
        start, end = number.span()
        if start < end_of_last:
            continue
        match = _AT_NUMBER.match(text, start, end + _AFTER)
        if match is None:
            low = max(end_of_last, start - _BEFORE)
            if not (_POSTCODE_AFTER.match(text, end) or any(lower.find(stem, low, start) >= 0 for stem in roads)):
                continue
            # The last one that holds this number: an earlier one would end before it.
            match = next((m for m in _UP_TO_NUMBER.finditer(text, low, end + _AFTER) if m.end() > start), None)
        if match is not None:
            value = match.group().rstrip(" ,\n")
            if value.endswith(".") and len(value.split()[-1]) > 6:  # the sentence's full stop, not that of "Ave."
                value = value[:-1]
            if (stop := _NEXT_SENTENCE.search(value)) and not _SHORT.fullmatch(stop[1]):
                value = value[: stop.end(1)]
            yield ("STREET_ADDRESS", match.start(), match.start() + len(value))
            end_of_last = match.end()
