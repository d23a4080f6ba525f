"""Numbers that people are known by, and the check digits that tell them from any other number.

Each check is written from the public rule that its docstring names. A number without check digits, or whose form says little,
counts only beside a word that names it ("BSN", "tax file number").
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Span = tuple[str, int, int]  # kind, start, end

# Lengths of IBANs by country: SWIFT, IBAN Registry (ISO 13616).
IBAN_LENGTHS = {
    code: int(length)
    for length, codes in {
        "15": "NO",
        "16": "BE",
        "18": "DK FI FO GL NL SD FK",
        "19": "MK SI",
        "20": "AT BA EE KZ LT LU XK MN",
        "21": "CH HR LI LV",
        "22": "BG BH CR DE GB GE IE ME RS VA",
        "23": "AE GI IL IQ OM SO TL",
        "24": "AD CZ ES MD PK RO SA SE SK TN VG",
        "25": "LY PT ST",
        "26": "IS TR",
        "27": "BI DJ FR GR IT MC MR SM",
        "28": "AL AZ BY CY DO GT HN HU LB NI PL SV",
        "29": "BR EG PS QA UA",
        "30": "JO KW MU YE",
        "31": "MT SC",
        "32": "LC",
        "33": "RU",
    }.items()
    for code in codes.split()
}

# Issuer ranges and lengths of payment cards: ISO/IEC 7812 and the networks' public tables.
_CARD = re.compile(
    r"4(?:\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|220[0-4]\d{12}"  # Mir
    r"|3[47]\d{13}"  # American Express
    r"|(?:6011|64[4-9]\d|65\d\d|60\d\d|81\d\d|508\d)\d{12}"  # Discover, RuPay
    r"|35(?:2[89]|[3-8]\d)\d{12}"  # JCB
    r"|62\d{14,17}"  # UnionPay
)
_NAMED_CARD = re.compile(
    r"(?:5[06-9]|6\d)\d{10}|\d{13,19}"
)  # Maestro alone has 12 digits, as have many numbers of other things
CARD_GROUPS = {(4, 6, 5), (4, 6, 4), (8, 8), (6, 13), (5, 5, 5, 1), (4, 5, 6)}


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (Luhn; ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def is_card(digits: str, *, named: bool = False) -> bool:
    """Whether digits are a payment card's: a known range, its length, Luhn.

    Args:
        digits: the number without separators.
        named: it stands grouped as on a rare card, or beside a word such as "card": any range counts (Diners, Maestro, 13 digits).
    """
    if not 12 <= len(digits) <= 19 or len(set(digits)) < 2:
        return False
    if not (_CARD.fullmatch(digits) or (named and _NAMED_CARD.fullmatch(digits))):
        return False
    return luhn(digits)


def is_iban(compact: str) -> bool:
    """Whether letters and digits without separators are an IBAN: its country's length, check digits (ISO 13616, ISO 7064 MOD 97-10)."""
    compact = compact.upper()
    if len(compact) != IBAN_LENGTHS.get(compact[:2]) or not compact.isalnum() or not "02" <= compact[2:4] <= "98":
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def is_ssn(digits: str) -> bool:
    """Whether nine digits can be a US social security number or ITIN (SSA's rules on numbers never issued; IRS publication 1915)."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    if group == "00" or serial == "0000" or area in ("000", "666"):
        return False
    return area < "900" or "50" <= group <= "65" or "70" <= group <= "88" or (group >= "90" and group != "93")


def _weighted(digits: str, weights: tuple[int, ...]) -> int:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=False))


def _date(year: int, month: int, day: int) -> bool:
    """Whether it is a date; a two-digit year is one of either century."""
    try:
        datetime.date(year + 2000 if year < 100 else year, month, day)
    except ValueError:
        return False
    return True


def _yymmdd(digits: str) -> bool:
    return _date(int(digits[:2]), int(digits[2:4]), int(digits[4:6]))


def _ddmmyy(digits: str) -> bool:
    return _date(int(digits[4:6]), int(digits[2:4]), int(digits[:2]))


def _mod11_10(digits: str) -> bool:
    """ISO 7064 MOD 11,10, a hybrid system."""
    product = 10
    for digit in digits[:-1]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(digits[-1])


def _dihedral(a: int, b: int) -> int:
    """Product in the dihedral group of order ten: 0 to 4 are turns, 5 to 9 reflections."""
    turn = (a + b if a < 5 else a - b) % 5
    return turn + 5 if (a < 5) != (b < 5) else turn


_PERMUTATION = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def verhoeff(digits: str) -> bool:
    """Whether the last digit is Verhoeff's check digit of the others (J. Verhoeff, Error Detecting Decimal Codes, 1969)."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit)
        for _ in range(place % 8):
            value = _PERMUTATION[value]
        check = _dihedral(check, value)
    return check == 0


def _nhs(d: str) -> bool:  # NHS Data Dictionary: weights 10 to 2, modulus 11
    check = 11 - _weighted(d, (10, 9, 8, 7, 6, 5, 4, 3, 2)) % 11
    return check != 10 and check % 11 == int(d[9])


def _german_tax(d: str) -> bool:  # Bundeszentralamt für Steuern: one digit of the first ten stands twice or three times
    counts = sorted((d[:10].count(c) for c in set(d[:10])), reverse=True)
    return d[0] != "0" and counts[0] in (2, 3) and (len(counts) < 2 or counts[1] == 1) and _mod11_10(d)


def _nir(s: str) -> bool:  # INSEE: 97 less the number modulo 97; Corsica's 2A and 2B count as 19 and 18
    digits = s.replace("2A", "19").replace("2B", "18")
    return digits.isdigit() and 97 - int(digits[:13]) % 97 == int(digits[13:])


def _dni(s: str) -> bool:  # Real Decreto 1553/2005: modulus 23; X, Y, Z stand for 0, 1, 2
    number = s[:-1].translate({88: "0", 89: "1", 90: "2"})
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == s[-1]


_ODD = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (
            *(1, 0, 5, 7, 9, 13, 15, 17, 19, 21),
            *(1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
        ),
        strict=True,
    )
)


def _codice_fiscale(s: str) -> bool:  # D.M. 23 dicembre 1976: values of odd and even places, modulus 26
    total = sum(_ODD[c] if i % 2 == 0 else (int(c) if c.isdigit() else ord(c) - 65) for i, c in enumerate(s[:15]))
    return chr(65 + total % 26) == s[15]


def _bsn(d: str) -> bool:  # Rijksdienst voor Identiteitsgegevens: the "elfproef", last weight -1
    return int(d) > 0 and _weighted(d, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


def _belgian(
    d: str,
) -> bool:  # Royal decree of 3 April 1984: modulus 97, a 2 before the number for those born from 2000
    return any(97 - int(lead + d[:9]) % 97 == int(d[9:]) for lead in ("", "2"))


def _pesel(d: str) -> bool:  # Ustawa o ewidencji ludności: weights 1, 3, 7, 9; the month carries the century
    month = int(d[2:4]) % 20
    weights = (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)
    return 1 <= month <= 12 and 1 <= int(d[4:6]) <= 31 and _weighted(d, weights) % 10 == 0


def _nif(d: str) -> bool:  # Portuguese tax authority: weights 9 to 2, modulus 11
    check = 11 - _weighted(d, (9, 8, 7, 6, 5, 4, 3, 2)) % 11
    return (0 if check > 9 else check) == int(d[8])


def _cpf(d: str) -> bool:  # Receita Federal: two check digits, modulus 11
    first = _weighted(d, tuple(range(10, 1, -1))) * 10 % 11 % 10
    second = _weighted(d, tuple(range(11, 1, -1))) * 10 % 11 % 10
    return len(set(d)) > 1 and (first, second) == (int(d[9]), int(d[10]))


def _aadhaar(d: str) -> bool:  # UIDAI: twelve digits, the first from 2 to 9, Verhoeff
    return d[0] > "1" and verhoeff(d)


def _sin(d: str) -> bool:  # Service Canada: Luhn
    return d[0] not in "08" and luhn(d)


def _tfn(d: str) -> bool:  # Australian Taxation Office: weighted sum, modulus 11
    return _weighted(d, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def _medicare(d: str) -> bool:  # Services Australia: weights 1, 3, 7, 9
    return d[0] in "23456" and _weighted(d, (1, 3, 7, 9, 1, 3, 7, 9)) % 10 == int(d[8])


def _personnummer(s: str) -> bool:  # Skatteverket: Luhn over ten digits; the day is 60 higher for a coordination number
    d = re.sub(r"\D", "", s)[-10:]
    day = int(d[4:6])
    return _date(int(d[:2]), int(d[2:4]), day - 60 if day > 60 else day) and luhn(d)


def _fodselsnummer(d: str) -> bool:  # Skatteetaten: two check digits, modulus 11
    first = _weighted(d, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)) % 11 == 0
    return first and _weighted(d, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0


def _hetu(s: str) -> bool:  # Digital and Population Data Services Agency: modulus 31
    return _ddmmyy(s) and "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(s[:6] + s[-4:-1]) % 31] == s[-1]


def _resident_id(s: str) -> bool:  # GB 11643-1999: ISO 7064 MOD 11-2
    total = sum(int(c) * pow(2, 17 - i, 11) for i, c in enumerate(s[:17]))
    return _date(int(s[6:10]), int(s[10:12]), int(s[12:14])) and "10X98765432"[total % 11] == s[17]


def _taiwan(s: str) -> bool:  # Ministry of the Interior: the letter counts as two digits
    letter = "ABCDEFGHJKLMNPQRSTUVXYWZIO".index(s[0]) + 10
    return (letter // 10 + letter % 10 * 9 + _weighted(s[1:], (8, 7, 6, 5, 4, 3, 2, 1, 1))) % 10 == 0


def _hong_kong(s: str) -> bool:  # Immigration Department: modulus 11, a missing first letter counts 36
    values = [36] * (9 - len(s)) + [int(c, 36) for c in s]
    return sum(v * w for v, w in zip(values, (9, 8, 7, 6, 5, 4, 3, 2, 1), strict=True)) % 11 == 0


def _nric(s: str) -> bool:  # Singapore: modulus 11, tables of letters for citizens and for foreigners
    total = _weighted(s[1:8], (2, 7, 6, 5, 4, 3, 2)) + {"S": 0, "F": 0, "T": 4, "G": 4}[s[0]]
    return ("JZIHGFEDCBA" if s[0] in "ST" else "XWUTRQPNMLK")[total % 11] == s[8]


def _rrn(
    d: str,
) -> bool:  # South Korea, Resident Registration Act: weights 2 to 9, 2 to 5; not checked for those born since 2020
    weights = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
    return _yymmdd(d) and ((d[:2] >= "20" and d[6] in "3478") or (11 - _weighted(d, weights) % 11) % 10 == int(d[12]))


def _my_number(d: str) -> bool:  # Japan, ministerial ordinance 85 of 2014: weights 6 to 2, 7 to 2, modulus 11
    rest = _weighted(d, (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11
    return (0 if rest <= 1 else 11 - rest) == int(d[11])


def _south_africa(d: str) -> bool:  # Department of Home Affairs: date of birth, citizenship 0 to 2, Luhn
    return _yymmdd(d) and d[10] in "012" and luhn(d)


def _tckn(d: str) -> bool:  # Turkey, Nüfus ve Vatandaşlık İşleri: two check digits
    values = [int(c) for c in d]
    return (
        values[0] > 0
        and (sum(values[0:9:2]) * 7 - sum(values[1:8:2])) % 10 == values[9]
        and sum(values[:10]) % 10 == values[10]
    )


def _snils(d: str) -> bool:  # Pension Fund of Russia: weights 9 to 1, modulus 101
    return _weighted(d, (9, 8, 7, 6, 5, 4, 3, 2, 1)) % 101 % 100 == int(d[9:])


def _inn(d: str) -> bool:  # Federal Tax Service of Russia: two check digits
    first = _weighted(d, (7, 2, 4, 10, 3, 5, 9, 4, 6, 8)) % 11 % 10
    return first == int(d[10]) and _weighted(d, (3, 7, 2, 4, 10, 3, 5, 9, 4, 6, 8)) % 11 % 10 == int(d[11])


def _curp(s: str) -> bool:  # RENAPO: weights 18 to 2, modulus 10
    alphabet = "0123456789ABCDEFGHIJKLMNÑOPQRSTUVWXYZ"
    total = sum(alphabet.index(c) * (18 - i) for i, c in enumerate(s[:17]))
    return (10 - total % 10) % 10 == int(s[17])


def _rut(s: str) -> bool:  # Chile, Registro Civil: weights 2 to 7, modulus 11
    total = sum(int(d) * (2 + i % 6) for i, d in enumerate(reversed(s[:-1])))
    return "0K987654321"[total % 11] == s[-1]


def _ean13(d: str) -> bool:  # GS1; the Swiss AHV number uses it
    return _weighted(d, (1, 3) * 6 + (1,)) % 10 == 0


def _rodne_cislo(d: str) -> bool:  # Czech law 133/2000: a month 20 or 50 higher; ten digits divide by 11
    month = int(d[2:4]) % 50 % 20
    if not _date(int(d[:2]), month, int(d[4:6])):
        return False
    return len(d) == 9 or int(d) % 11 == 0 or (int(d[:9]) % 11 == 10 and d[9] == "0")


def _cnp(d: str) -> bool:  # Romania: weights 279146358279, modulus 11
    rest = _weighted(d, (2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9)) % 11
    return d[0] != "0" and _yymmdd(d[1:]) and (1 if rest == 10 else rest) == int(d[12])


def _egn(d: str) -> bool:  # Bulgaria: weights 2, 4, 8, 5, 10, 9, 7, 3, 6, modulus 11
    return _weighted(d, (2, 4, 8, 5, 10, 9, 7, 3, 6)) % 11 % 10 == int(d[9])


def _ppsn(s: str) -> bool:  # Ireland, Department of Social Protection: modulus 23
    total = _weighted(s, (8, 7, 6, 5, 4, 3, 2)) + (9 * (ord(s[8]) - 64) if len(s) == 9 and s[8] != "W" else 0)
    return "WABCDEFGHIJKLMNOPQRSTUV"[total % 23] == s[7]


def _baltic(d: str) -> bool:  # Estonia and Lithuania: two rounds of weights, modulus 11
    rest = _weighted(d, (1, 2, 3, 4, 5, 6, 7, 8, 9, 1)) % 11
    if rest == 10:
        rest = _weighted(d, (3, 4, 5, 6, 7, 8, 9, 1, 2, 3)) % 11 % 10
    return _yymmdd(d[1:]) and rest == int(d[10])


def _thai(d: str) -> bool:  # Department of Provincial Administration: weights 13 to 2, modulus 11
    return (11 - _weighted(d, tuple(range(13, 1, -1))) % 11) % 10 == int(d[12])


def _nik(d: str) -> bool:  # Indonesia: ddmmyy from the seventh digit, the day 40 higher for women
    day = int(d[6:8])
    return _date(int(d[10:12]), int(d[8:10]), day - 40 if day > 40 else day)


def _svnr(d: str) -> bool:  # Austria, Dachverband der Sozialversicherungsträger: the fourth digit checks
    return _weighted(d, (3, 7, 9, 0, 5, 8, 4, 2, 1, 6)) % 11 == int(d[3])


def _amka(d: str) -> bool:  # Greece: date of birth, Luhn
    return _ddmmyy(d) and luhn(d)


def _anything(_: str) -> bool:
    return True


@dataclass(frozen=True)
class NationalId:
    """One country's number for a person.

    Args:
        name: country and the number's name.
        pattern: its form, upper case.
        check: takes it without separators, upper case.
        words: the words one of which it must stand beside, in lower case, `_` for a space; empty: form and check are enough.
    """

    name: str
    pattern: str
    check: Callable[[str], bool] = _anything
    words: str = ""


# The more a form says, the further up; the first one that fits is taken.
NATIONAL_IDS = (
    NationalId("UK NINO", r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]"),
    NationalId(
        "IT codice fiscale", r"[A-Z]{6}[\dL-NP-V]{2}[A-EHLMPR-T][\dL-NP-V]{2}[A-Z][\dL-NP-V]{3}[A-Z]", _codice_fiscale
    ),
    NationalId("MX CURP", r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[A-Z\d]\d", _curp),
    NationalId("IN PAN", r"[A-Z]{3}P[A-Z]\d{4}[A-Z]"),
    NationalId(
        "US MBI",
        r"[1-9][AC-HJKMNP-RT-Y][AC-HJKMNP-RT-Y\d]\d-[AC-HJKMNP-RT-Y][AC-HJKMNP-RT-Y\d]\d-[AC-HJKMNP-RT-Y]{2}\d\d",
    ),
    NationalId("ES NIE", r"[XYZ][ -]?\d{7}[ -]?[A-Z]", _dni),
    NationalId("ES DNI", r"\d{2}\.?\d{3}\.?\d{3}[ -]?[A-Z]", _dni),
    NationalId("SG NRIC", r"[STFG]\d{7}[A-Z]", _nric),
    NationalId("HK id", r"[A-Z]{1,2}\d{6} ?\([\dA]\)", _hong_kong),
    NationalId("FI HETU", r"\d{6}[-+A-FU-Y]\d{3}[\dA-FHJ-NPR-Y]", _hetu),
    NationalId("CN resident id", r"[1-9]\d{5}(?:19|20)\d{9}[\dX]", _resident_id),
    NationalId(
        "FR NIR",
        r"[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:2[AB]|\d\d) ?\d{3} ?\d{3}(?: |-| - )?\d\d",
        _nir,
    ),
    NationalId("KR RRN", r"\d{6}-[1-8]\d{6}", _rrn),
    NationalId("BR CPF", r"\d{3}\.\d{3}\.\d{3}-\d\d", _cpf),
    NationalId("BE national number", r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d", _belgian),
    NationalId("CH AHV", r"756\.\d{4}\.\d{4}\.\d\d", _ean13),
    NationalId("CL RUT", r"\d{1,2}\.\d{3}\.\d{3}-[\dK]", _rut),
    NationalId("RU SNILS", r"\d{3}-\d{3}-\d{3}[ -]\d\d", _snils),
    NationalId("CZ/SK birth number", r"\d{6}/\d{4}", _rodne_cislo),
    NationalId("SE personnummer", r"(?:19|20)?\d{6}[-+]\d{4}", _personnummer),
    NationalId("PK CNIC", r"\d{5}-\d{7}-\d"),
    NationalId("TH id", r"\d-\d{4}-\d{5}-\d{2}-\d", _thai),
    NationalId("MY NRIC", r"\d{6}-\d{2}-\d{4}", _yymmdd),
    NationalId("IN Aadhaar", r"\d{4} \d{4} \d{4}", _aadhaar),
    NationalId("ZA id", r"\d{6} \d{4} ?[0-2]\d\d", _south_africa),
    NationalId("UK NHS number", r"\d{3}[ -]?\d{3}[ -]?\d{4}", _nhs, "nhs"),
    NationalId("DE tax id", r"\d\d ?\d{3} ?\d{3} ?\d{3}", _german_tax, "steuer idnr id-nr tin tax"),
    NationalId("NL BSN", r"\d{4}[ .]?\d\d[ .]?\d{3}|\d{3}[ .]?\d{3}[ .]?\d{3}", _bsn, "bsn burgerservice sofi"),
    NationalId("BE national number", r"\d{11}", _belgian, "rijksregister insz niss national"),
    NationalId("PL PESEL", r"\d{11}", _pesel, "pesel"),
    NationalId("PT NIF", r"[1-35-9]\d\d ?\d{3} ?\d{3}", _nif, "nif contribuinte"),
    NationalId("BR CPF", r"\d{11}|\d{9}-\d\d", _cpf, "cpf"),
    NationalId("IN Aadhaar", r"\d{4}-?\d{4}-?\d{4}", _aadhaar, "aadhaar aadhar adhar uid uidai"),
    NationalId("IN PAN", r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z]", _anything, "pan"),
    NationalId("CA SIN", r"\d{3}[ -]?\d{3}[ -]?\d{3}", _sin, "sin social_insurance assurance_sociale"),
    NationalId("AU TFN", r"\d{3} ?\d{3} ?\d{3}", _tfn, "tfn tax_file"),
    NationalId("AU Medicare", r"\d{4}[ -]?\d{5}[ -]?\d", _medicare, "medicare"),
    NationalId("SE personnummer", r"(?:19|20)?\d{10}", _personnummer, "personnummer personal_identity"),
    NationalId("NO fødselsnummer", r"\d{6} ?\d{5}", _fodselsnummer, "fødselsnummer fodselsnummer personnummer fnr"),
    NationalId("DK CPR", r"\d{6}[- ]?\d{4}", _ddmmyy, "cpr"),
    NationalId("JP My Number", r"\d{4}[ -]?\d{4}[ -]?\d{4}", _my_number, "my_number mynumber マイナンバー 個人番号"),
    NationalId("TR TCKN", r"\d{11}", _tckn, "tc t.c. kimlik tckn"),
    NationalId("RU INN", r"\d{12}", _inn, "inn инн"),
    NationalId("EE/LT personal code", r"[1-8]\d{10}", _baltic, "isikukood asmens_kod personal_code"),
    NationalId("BG EGN", r"\d{10}", _egn, "egn егн"),
    NationalId("HR OIB", r"\d{11}", _mod11_10, "oib"),
    NationalId("GR AMKA", r"\d{11}", _amka, "amka αμκα"),
    NationalId("IL id", r"\d{9}", luhn, "teudat zehut תעודת ת.ז"),
    NationalId("ID NIK", r"\d{16}", _nik, "nik ktp"),
    NationalId("AT SVNR", r"\d{4} ?\d{6}", _svnr, "svnr sv-nummer sozialversicherung"),
    NationalId("TH id", r"\d{13}", _thai, "thai บัตรประชาชน"),
    NationalId("AR/PE/ES DNI", r"\d{1,2}\.?\d{3}\.?\d{3}", _anything, "dni documento_de_identidad cédula cedula"),
    NationalId("CL RUT", r"\d{7,8}-?[\dK]", _rut, "rut"),
    NationalId("CZ/SK birth number", r"\d{6}/?\d{3,4}", _rodne_cislo, "rodné rodne rodná"),
    NationalId("TW id", r"[A-Z][1289]\d{8}", _taiwan, "身分證 身份證 taiwan id arc"),
    NationalId("MX RFC", r"[A-ZÑ&]{4}\d{6}[A-Z\d]{3}", _anything, "rfc"),
    NationalId("ZA id", r"\d{13}", _south_africa, "id identity"),
    NationalId("RO CNP", r"[1-9]\d{12}", _cnp, "cnp cod_numeric id identity"),
    NationalId("IE PPSN", r"\d{7}[A-W][A-IW]?", _ppsn, "pps ppsn"),
    NationalId("NG NIN", r"\d{11}", _anything, "nin"),
    NationalId("UK UTR", r"\d{5} ?\d{5}", _anything, "utr unique_taxpayer"),
    NationalId(
        "UK NINO",
        r"[A-Z]{2} ?\d\d ?\d\d ?\d\d ?[A-D]?",
        _anything,
        "national_insurance nino ni_no ni_number",
    ),
)
_FREE = [identifier for identifier in NATIONAL_IDS if not identifier.words]
_NAMED = [identifier for identifier in NATIONAL_IDS if identifier.words]
_FREE_FORMS = re.compile(
    # most positions fail at the look-ahead: a digit, or letters with one soon after them
    r"(?<![A-Z0-9])(?=\d|[A-Z]{1,4}[ -]?\d|[A-Z]{5,6}[\dL-V])(?<![A-Z0-9][-_./])(?<!\d )(?:"
    + "|".join(i.pattern for i in _FREE)
    + r")(?![A-Z0-9]|[-./]\d| \d{3})"
)
_NAMED_PATTERNS = [re.compile(rf"(?<![A-Z0-9])(?:{i.pattern})(?![A-Z0-9]|[-./]\d)") for i in _NAMED]
_NAMED_WORDS = [
    (word.replace("_", " "), identifier.check, pattern)
    for identifier, pattern in zip(_NAMED, _NAMED_PATTERNS, strict=True)
    for word in identifier.words.split()
]
_SEPARATORS = str.maketrans("", "", " .-/()+")
REACH = 60  # characters after a word in which the number that it names may stand
REACH_BACK = 24  # and before it: "123456782 is my BSN"


def national_ids(upper: str, lower: str) -> Iterator[Span]:
    """Numbers of persons in a text.

    Args:
        upper: the text in upper case, character by character.
        lower: the same in lower case; the words that name a number are looked for here.
    """
    for match in _FREE_FORMS.finditer(upper):
        if _fits(match.group(), _FREE):
            yield ("NATIONAL_ID", *match.span())
    for word, check, pattern in _NAMED_WORDS:
        at = lower.find(word)
        while at >= 0:
            if _stands_alone(lower, at, at + len(word)):
                for match in pattern.finditer(upper, max(0, at - REACH_BACK)):
                    if match.start() > at + len(word) + REACH:
                        break
                    if check(match.group().translate(_SEPARATORS)):
                        yield ("NATIONAL_ID", *match.span())
            at = lower.find(word, at + len(word))


def _stands_alone(lower: str, start: int, end: int) -> bool:
    """Whether a short word is one: "tin" in "meeting" names no number. Longer ones may be parts of compounds."""
    if end - start > 5 or lower[start] > "\u2e80":
        return True
    return not lower[start - 1 : start].isalpha() and not lower[end : end + 1].isalpha()


def is_national_id(value: str) -> bool:
    """Whether a value has a form and check digits that alone make it a person's number."""
    return _fits(value.upper(), _FREE)


def _fits(value: str, identifiers: list[NationalId]) -> bool:
    compact = value.translate(_SEPARATORS)
    return any(re.fullmatch(i.pattern, value) and i.check(compact) for i in identifiers)


_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_RIPPLE = "rpshnaf39wBUDNEGHJKLM4PQRST7VWXYZ2bcdeCg65jkm8oFqi1tuvAxyz"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_WALLET = re.compile(
    r"(?<![0-9A-Za-z])(?:0x[0-9a-fA-F]{40}|(?:bc1|BC1|ltc1|tb1|addr1)[0-9A-Za-z]{11,110}"
    r"|[13LMDTA9r2mn][1-9A-HJ-NP-Za-km-z]{24,34}|4[1-9AB][1-9A-HJ-NP-Za-km-z]{93})(?![0-9A-Za-z])"
)


def wallets(text: str) -> Iterator[Span]:
    """Addresses of crypto currencies: Ethereum's form, bech32 (BIP 173, BIP 350) and Base58Check with right check sums, Monero's form."""
    for match in _WALLET.finditer(text):
        token = match.group()
        if token[:2] == "0x" or len(token) == 95 or _bech32(token) or base58check(token) is not None:
            yield ("CRYPTO_ADDRESS", *match.span())


def base58check(token: str) -> bytes | None:
    """The payload of a Base58Check string (Bitcoin's or Ripple's alphabet), None where its check sum is wrong."""
    for alphabet in (_BASE58, _RIPPLE):
        number = 0
        for character in token:
            number = number * 58 + alphabet.find(character)
        raw = number.to_bytes((number.bit_length() + 7) // 8, "big") if number > 0 else b""
        raw = b"\0" * (len(token) - len(token.lstrip(alphabet[0]))) + raw
        if len(raw) >= 21 and hashlib.sha256(hashlib.sha256(raw[:-4]).digest()).digest()[:4] == raw[-4:]:
            return raw[:-4]
    return None


def _bech32(token: str) -> bool:
    """Bech32's check sum: a BCH code over GF(32) (BIP 173; BIP 350 for the constant of version 1 and later)."""
    prefix, _, data = token.lower().rpartition("1")
    if (
        not prefix
        or len(data) < 6
        or any(c not in _BECH32 for c in data)
        or token not in (token.lower(), token.upper())
    ):
        return False
    values = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix] + [_BECH32.index(c) for c in data]
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> bit & 1 else 0
    return check in (1, 0x2BC830A3)
