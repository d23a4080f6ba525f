"""What is personal only because of the words next to it: dates of birth, numbers of passports, driving licences, bank accounts, national ids."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuneloop.data.pii.identifiers import Span, is_ssn

# All patterns are for lower-case text and begin with a choice of plain letters: `re` then skips ahead to one of them, many times faster
# than with a look-behind or case folding. That nothing is joined to a word is checked afterwards.

# Between the word and the value: "passport number is", "Kontonummer:", `"account_number": "`.
_GAP = (
    r"(?:[\s\"'`:=#,()\[\]*>|/\\_–-]|(?:numbers?|numero|nummer|numéro|número|no\.?|nr\.?|num\.?|ids?|is|was|are|the|my|of|est|ist|es|era|jest|lautet|code|card|holder)"
    r"(?![^\W_])|n[º°]|[èé](?=\s)){0,14}"
)
_PASSPORT = re.compile(
    r"(?:passport|reisepass(?:nummer|nr)?|passeport|pasaporte|passaport[oe]|paspoort(?:nummer)?|passnummer|pass-?nr|паспорт\w*|护照\w?\w?|護照|パスポート|旅券)"
    + _GAP
    + r"(?P<value>[a-z]{1,3}[ -]?\d{5,9}[a-z]?\b|\d\d \d\d \d{6}\b|\d{3} \d{3} \d{3}\b|[a-z0-9]{6,12}\b)"
)
_LICENCE = re.compile(
    r"(?:driv(?:er|ing)['’]?s?['’]?[ _]?(?:licen[cs]e|permit)|dl(?![a-z0-9])|cnh(?![a-z0-9])|führerschein(?:nummer|nr)?|permis de conduire|licencia de (?:conducir|conducción|manejo)|carn[eé]t? de conducir|permiso de conducir|patente di guida"
    r"|rijbewijs(?:nummer)?|carta de condução)"
    + _GAP
    + r"(?P<value>[a-z]{1,3}\d{2,4}(?:[ -]\d{1,6}){1,4}\b|\d{2,4}(?:[ -]\d{2,4}){2}\b|[a-z]{1,2}[ -]\d{6,10}\b|[a-z0-9]{5,20}\b)"
)
_ACCOUNT = re.compile(
    r"(?:account(?:[\s_.]*(?:number|no\b|num\b|nr\b|#)|(?=\s{0,2}[:=#]| \d{7}))|acct?(?![a-z0-9])(?:[\s_.]*(?:number|no\b|num\b|#))?|a/c|bank[ _]account|checking[ _]account|savings?[ _]account|chequing[ _]account|current[ _]account"
    r"|routing(?:[ _](?:number|no|transit|code))?|aba(?![a-z0-9])|sort[ _-]?code|bsb(?![a-z0-9])|konto(?:nummer|-?nr)?(?![a-z0-9])|kto(?![a-z0-9])|blz(?![a-z0-9])|bankleitzahl|num[eé]ro de compte|compte (?:bancaire|n°)|rib(?![a-z0-9])"
    r"|n[uú]mero de cuenta|cuenta(?: bancaria| corriente| de ahorros)?|clabe|rekening(?:nummer)?|numero di conto|conto corrente|conta(?: corrente| bancária)(?! [a-z])|número da conta|numer konta|konto bankowe|银行账号|银行卡号|账号|口座番号|계좌번호)"
    + _GAP
    + r"(?P<value>\d(?:[ -]?\d){4,22})(?![\w-]|[.,]\d)"
)
_ID_VALUE = r"(?P<value>[a-z]{0,4}\d[\d .-]{4,20}\d[a-z]?\b|[a-z0-9]{6,20}\b)"
_IDENTITY = re.compile(
    r"(?:national|personal|citizen(?:ship)?|government|resident|state|tax(?:payer)?|fiscal|social insurance|identity|identification|unique)[\s_-]?(?:id(?:entity|entification)?|insurance|tax|registration|card|document)?"
    r"[\s_-]?(?:card|document)?[\s_-]?(?:number|no\b\.?|nr\b|#|id\b|code|card)" + _GAP + _ID_VALUE
)
_IDENTITY_ABROAD = re.compile(
    r"(?:personalausweis(?:nummer|nr)?|ausweisnummer|steueridentifikationsnummer|steuernummer|steuer-id|numéro (?:de sécurité sociale|fiscal)|n[uú]mero de (?:identidad|identificación)|codice fiscale|身份证号?码?|주민등록번호"
    r"|sozialversicherungsnummer|número de identificação|id card)" + _GAP + _ID_VALUE
)
_SSN = re.compile(r"(?<![\w-])(?<!\w[./#])\d{3}([ -])\d\d\1\d{4}(?![\w-]|[./]\d)")
_NAMED_SSN = re.compile(
    r"(?:ssn|itin|ss ?#|social(?:[ _]security)?)(?![a-z0-9])"
    + _GAP
    + r"(?P<value>\d{3}[ .\-–/]?\d\d[ .\-–/]?\d{4})(?!\d)"
)

_MONTH = (
    r"(?:jan(?:uary|uar|vier|\.)?|feb(?:ruary|ruar|\.)?|f[ée]v(?:rier|ereiro|\.)?|mar(?:ch|s|zo|ço|\.)?|m[äa]rz|maart|apr(?:il|ile|\.)?|avr(?:il|\.)?|abr(?:il|\.)?|ma[iyj]o?|mei|maggio|june?|juni|juin|junio|junho|giugno|july?|juli|juillet|julio|julho|luglio"
    r"|aug(?:ust|ustus|\.)?|août|ago(?:sto|\.)?|sep(?:t|tember|tembre|tiembre|\.)?|set(?:tembre|embro|\.)?|o[ck]t(?:ober|obre|\.)?|out(?:ubro|\.)?|ott(?:obre|\.)?|nov(?:ember|embre|iembre|embro|\.)?|de[cz](?:ember|embre|embro|\.)?|d[ée]c(?:embre|\.)?|dic(?:iembre|embre|\.)?|gen(?:naio|\.)?|ene(?:ro|\.)?)"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th|er|\.|º)?"
_YEAR = r"(?:1[89]\d\d|20[0-2]\d)"
_DATE = (
    rf"(?:{_YEAR}[-/. ]\d{{1,2}}[-/. ]\d{{1,2}}(?!\d)|\d{{1,2}}(?:[-/.]|\s)\d{{1,2}}(?:[-/.]|\s)(?:{_YEAR}|\d\d)(?!\d)|{_YEAR}[01]\d[0-3]\d(?!\d)|[0-3]\d[01]\d{_YEAR}(?!\d)"
    rf"|{_YEAR}\s?[年년]\s?\d{{1,2}}\s?[月월]\s?\d{{1,2}}\s?[日일]?"
    rf"|(?:the )?{_DAY}[\s-](?:of |de |di )?{_MONTH}(?:,? (?:of |de |del |do )?|[\s,-]){_YEAR}(?!\d)|{_MONTH}[\s-](?:the )?{_DAY}(?:,? (?:of )?|-){_YEAR}(?!\d)|(?:the )?{_DAY}[\s-](?:of |de )?{_MONTH}['’ -]\d\d(?!\d))"
)
_SHORT_DATE = rf"(?:(?:the )?{_DAY}[\s-](?:of |de )?{_MONTH}(?![\w])|{_MONTH}[\s-](?:the )?{_DAY}(?!\w))"
_BIRTH = re.compile(
    r"(?:date[ _]?of[ _]?birth|day of birth|birth[ _-]?(?:date|day)?s?|d\.?\s?o\.?\s?b\b\.?|born|geburts(?:datum|tag)|geboren|geb\.|né(?:\(?e\)?)?(?![a-z0-9])|fecha de nacimiento|naissance|naci(?:do|da|ó|miento)?(?![a-z0-9])|cumpleaños"
    r"|data di nascita|nat[oa](?= (?:il|a ))|nascimento|nasci(?:do|da)?(?![a-z0-9])|geboortedatum|data urodzenia|urodzon[ya]|födelse\w*|född|fødselsdato|født|syntymäaika|doğum tarihi|дата рождения|родил\w+|出生日期|出生|生年月日|生日|생년월일|تاريخ الميلاد)"
    r"(?:[\s\"'`:=#,*>\\_–-]|\([^()\d]{1,20}\)|(?:is|was|on|in|am|le|the|il|el|em|den|op|at|registered|listed|as|my|your|his|her|their|it's|its|ist|est|es|del|dia|día|of|here)(?![^\W_])|é(?=\s)|è(?=\s)){0,10}"
    rf"(?P<value>{_DATE})"
)
_BIRTHDAY = re.compile(
    r"(?:birthday|birth date|geburtstag|cumpleaños|anniversaire)(?:[\s:=]|(?:is|was|on|am|el|le|es|est|the|ist)(?!\w)){1,8}"
    rf"(?P<value>{_SHORT_DATE})"
)
_BIRTHDAY_AFTER = re.compile(rf"(?P<value>{_DATE}) (?:is|was) (?:my|his|her) (?:date of birth|birth ?day|dob)")


def birth_dates(lower: str) -> Iterator[Span]:
    """Dates after words such as "date of birth", "born on", "DOB", in the ways that countries write them; `lower` is the text in lower case."""
    for pattern in (_BIRTH, _BIRTHDAY):
        yield from _values("DATE_OF_BIRTH", pattern, lower)
    if " my " in lower or " his " in lower or " her " in lower:
        yield from _values("DATE_OF_BIRTH", _BIRTHDAY_AFTER, lower)


def document_numbers(lower: str) -> Iterator[Span]:
    """Numbers of passports, driving licences, bank accounts and national ids next to the words for them; four digits at least."""
    for kind, pattern in (
        ("PASSPORT", _PASSPORT),
        ("DRIVER_LICENSE", _LICENCE),
        ("BANK_ACCOUNT", _ACCOUNT),
        ("NATIONAL_ID", _IDENTITY),
        ("NATIONAL_ID", _IDENTITY_ABROAD),
    ):
        for _, start, end in _values(kind, pattern, lower):
            value = lower[start:end]
            if sum(c.isdigit() for c in value) >= 4 and not _is_date(value, kind):
                yield (kind, start, end)


def _values(kind: str, pattern: re.Pattern[str], lower: str) -> Iterator[Span]:
    """Values after a word that is not the end of another one."""
    for match in pattern.finditer(lower):
        start = match.start()
        if not (start and lower[start - 1].isascii() and lower[start - 1].isalnum()):
            yield (kind, *match.span("value"))


def _is_date(value: str, kind: str) -> bool:
    """Whether a value is a date; a sort code such as 20-10-05 is not one."""
    if kind == "BANK_ACCOUNT" and not re.search(_YEAR, value):
        return False
    return re.fullmatch(_DATE, value) is not None


def social_security_numbers(lower: str) -> Iterator[Span]:
    """US social security numbers in groups of 3, 2 and 4 digits; in other forms next to the words."""
    for match in _SSN.finditer(lower):
        if is_ssn(match.group().replace(match.group(1), "")):
            yield ("US_SSN", *match.span())
    for kind, start, end in _values("US_SSN", _NAMED_SSN, lower):
        if is_ssn(re.sub(r"\D", "", lower[start:end])):
            yield (kind, start, end)
