"""Numbers that people are known by, and the check digits that tell them from any other number.

Checks are python-stdnum's; those that it lacks are written from the public rule that is named there. A number without
check digits, or whose form says little, counts only next to a word that names it ("BSN", "tax file number").
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Span = tuple[str, int, int]  # kind, start, end

# Lengths of IBANs and the countries that have them: SWIFT, IBAN Registry (ISO 13616).
_IBAN_COUNTRIES = {
    15: "NO", 16: "BE", 18: "DK FI FO GL NL SD FK", 19: "MK SI", 20: "AT BA EE KZ LT LU XK MN", 21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
}  # fmt: skip
IBAN_LENGTHS = {code: length for length, codes in _IBAN_COUNTRIES.items() for code in codes.split()}

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
# Maestro alone has 12 digits, as have many numbers of other things.
_NAMED_CARD = re.compile(r"(?:5[06-9]|6\d)\d{10}|\d{13,19}")
CARD_GROUPS = {(4, 6, 5), (4, 6, 4), (8, 8), (6, 13), (5, 5, 5, 1), (4, 5, 6)}


@functools.cache
def checked(name: str) -> Callable[[str], bool]:
    """A check of python-stdnum by its module, as in `nl.bsn`; loaded when it is first needed."""
    check: Callable[[str], bool] = importlib.import_module(f"stdnum.{name}").is_valid
    return check


def is_right(check: str | Callable[[str], bool], value: str) -> bool:
    """Whether a value passes a check of python-stdnum (by its module) or a function; "" checks nothing."""
    if isinstance(check, str):
        check = checked(check) if check else bool
    return check(value.translate(_SEPARATORS))


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (Luhn; ISO/IEC 7812-1, annex B)."""
    return checked("luhn")(digits)


def is_card(digits: str, *, has_word: bool = False) -> bool:
    """Whether digits without separators are a payment card's: a known range, its length, Luhn.

    `has_word`: grouped as on a rare card, or next to a word such as "card": then any range counts (Diners, Maestro).
    """
    if not 12 <= len(digits) <= 19 or len(set(digits)) < 2:
        return False
    return bool(_CARD.fullmatch(digits) or (has_word and _NAMED_CARD.fullmatch(digits))) and luhn(digits)


def is_iban(compact: str) -> bool:
    """Whether letters and digits are an IBAN: its country's length, check digits (ISO 13616, ISO 7064 MOD 97-10)."""
    compact = compact.upper()
    if len(compact) != IBAN_LENGTHS.get(compact[:2]) or not compact.isalnum() or not "02" <= compact[2:4] <= "98":
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def is_ssn(digits: str) -> bool:
    """Whether nine digits can be a US social security number or ITIN (SSA's rules; IRS publication 1915)."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    if group == "00" or serial == "0000" or area in ("000", "666"):
        return False
    return area < "900" or "50" <= group <= "65" or "70" <= group <= "88" or (group >= "90" and group != "93")


def _weighted(digits: str, weights: tuple[int, ...]) -> int:
    return sum(int(d) * w for d, w in zip(digits, weights, strict=False))


def _is_date(year: str, month: str, day: str) -> bool:
    """Whether it is a date; a two-digit year is one of either century."""
    try:
        datetime.date(int(year) + 2000 if len(year) == 2 else int(year), int(month), int(day))
    except ValueError:
        return False
    return True


def _belgian(d: str) -> bool:  # a foreigner's number has a month that is 20 or 40 higher
    return checked("be.nn")(d) or checked("be.bis")(d)


def _hong_kong(s: str) -> bool:  # Immigration Department: modulus 11, a missing first letter counts 36
    values = [36] * (9 - len(s)) + [int(c, 36) for c in s]
    return sum(v * w for v, w in zip(values, range(9, 0, -1), strict=True)) % 11 == 0


def _korean(d: str) -> bool:  # numbers given since October 2020 have no check digit, which stdnum requires
    recent = d[:2] >= "20" and d[6] in "3478"
    return _is_date(d[:2], d[2:4], d[4:6]) if recent else checked("kr.rrn")(d)


def _singapore(s: str) -> bool:  # modulus 11, tables of letters for citizens and for foreigners
    total = _weighted(s[1:8], (2, 7, 6, 5, 4, 3, 2)) + 4 * (s[0] in "TG")
    return ("JZIHGFEDCBA" if s[0] in "ST" else "XWUTRQPNMLK")[total % 11] == s[8]


def _swedish(s: str) -> bool:  # Skatteverket: Luhn over ten digits; the day of a coordination number is 60 higher
    d = re.sub(r"\D", "", s)[-10:]
    return _is_date(d[:2], d[2:4], str((int(d[4:6]) - 1) % 60 + 1)) and luhn(d)


def _taiwanese(s: str) -> bool:  # Ministry of the Interior: the letter counts as two digits
    letter = "ABCDEFGHJKLMNPQRSTUVXYWZIO".index(s[0]) + 10
    return (letter // 10 + letter % 10 * 9 + _weighted(s[1:], (8, 7, 6, 5, 4, 3, 2, 1, 1))) % 10 == 0


# Chinese (GB 11643-1999): stdnum.cn.ric fails on some counties. Finnish: stdnum wants the sign of the century, which
# says nothing about the check digit. SNILS: the Pension Fund of Russia's weights. Medicare: those of Services
# Australia.
_CHECKS: dict[str, Callable[[str], bool]] = {
    "chinese": lambda s: _is_date(s[6:10], s[10:12], s[12:14]) and checked("iso7064.mod_11_2")(s),
    "finnish": lambda s: checked("fi.hetu")(f"{s[:6]}-{s[-4:]}"),
    "snils": lambda d: _weighted(d, tuple(range(9, 0, -1))) % 101 % 100 == int(d[9:]),
    "medicare": lambda d: d[0] in "23456" and _weighted(d, (1, 3, 7, 9, 1, 3, 7, 9)) % 10 == int(d[8]),
}


@dataclass(frozen=True)
class NationalId:
    """One country's number for a person."""

    name: str  # country and the number's name
    pattern: str  # its form, upper case
    check: str | Callable[[str], bool] = ""  # python-stdnum's module or a function, as in `is_right`
    words: str = ""  # one of which, in lower case, `_` for a space, must stand next to it; "": form and check suffice


_CODICE_FISCALE = r"[A-Z]{6}[\dL-NP-V]{2}[A-EHLMPR-T][\dL-NP-V]{2}[A-Z][\dL-NP-V]{3}[A-Z]"
_MBI = "[AC-HJKMNP-RT-Y]"
# The more a form says, the further up; the first one that fits is taken.
NATIONAL_IDS = (
    NationalId("UK NINO", r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]"),
    NationalId("IT codice fiscale", _CODICE_FISCALE, "it.codicefiscale"),
    NationalId("MX CURP", r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[A-Z\d]\d", "mx.curp"),
    NationalId("IN PAN", r"[A-Z]{3}P[A-Z]\d{4}[A-Z]"),
    NationalId("US MBI", rf"[1-9]{_MBI}{_MBI[:-1]}\d]\d-{_MBI}{_MBI[:-1]}\d]\d-{_MBI}{{2}}\d\d"),
    NationalId("ES NIE", r"[XYZ][ -]?\d{7}[ -]?[A-Z]", "es.nie"),
    NationalId("ES DNI", r"\d{2}\.?\d{3}\.?\d{3}[ -]?[A-Z]", "es.dni"),
    NationalId("SG NRIC", r"[STFG]\d{7}[A-Z]", _singapore),
    NationalId("HK id", r"[A-Z]{1,2}\d{6} ?\([\dA]\)", _hong_kong),
    NationalId("FI HETU", r"\d{6}[-+A-FU-Y]\d{3}[\dA-FHJ-NPR-Y]", _CHECKS["finnish"]),
    NationalId("CN resident id", r"[1-9]\d{5}(?:19|20)\d{9}[\dX]", _CHECKS["chinese"]),
    NationalId(
        "FR NIR", r"[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:2[AB]|\d\d) ?\d{3} ?\d{3}(?: |-| - )?\d\d", "fr.nir"
    ),
    NationalId("KR RRN", r"\d{6}-[1-8]\d{6}", _korean),
    NationalId("BR CPF", r"\d{3}\.\d{3}\.\d{3}-\d\d", "br.cpf"),
    NationalId("BE national number", r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d", _belgian),
    NationalId("CH AHV", r"756\.\d{4}\.\d{4}\.\d\d", "ch.ssn"),
    NationalId("CL RUT", r"\d{1,2}\.\d{3}\.\d{3}-[\dK]", "cl.rut"),
    NationalId("RU SNILS", r"\d{3}-\d{3}-\d{3}[ -]\d\d", _CHECKS["snils"]),
    NationalId("CZ/SK birth number", r"\d{6}/\d{4}", "cz.rc"),
    NationalId("SE personnummer", r"(?:19|20)?\d{6}[-+]\d{4}", _swedish),
    NationalId("PK CNIC", r"\d{5}-\d{7}-\d"),
    NationalId("TH id", r"\d-\d{4}-\d{5}-\d{2}-\d", "th.pin"),
    NationalId("MY NRIC", r"\d{6}-\d{2}-\d{4}", "my.nric"),
    NationalId("IN Aadhaar", r"\d{4} \d{4} \d{4}", "in_.aadhaar"),
    NationalId("ZA id", r"\d{6} \d{4} ?[0-2]\d\d", "za.idnr"),
    NationalId("UK NHS number", r"\d{3}[ -]?\d{3}[ -]?\d{4}", "gb.nhs", "nhs"),
    NationalId("DE tax id", r"\d\d ?\d{3} ?\d{3} ?\d{3}", "de.idnr", "steuer idnr id-nr tin tax"),
    NationalId("NL BSN", r"\d{4}[ .]?\d\d[ .]?\d{3}|\d{3}[ .]?\d{3}[ .]?\d{3}", "nl.bsn", "bsn burgerservice sofi"),
    NationalId("BE national number", r"\d{11}", _belgian, "rijksregister insz niss national"),
    NationalId("PL PESEL", r"\d{11}", "pl.pesel", "pesel"),
    NationalId("PT NIF", r"[1-35-9]\d\d ?\d{3} ?\d{3}", "pt.nif", "nif contribuinte"),
    NationalId("BR CPF", r"\d{11}|\d{9}-\d\d", "br.cpf", "cpf"),
    NationalId("IN Aadhaar", r"\d{4}-?\d{4}-?\d{4}", "in_.aadhaar", "aadhaar aadhar adhar uid uidai"),
    NationalId("IN PAN", r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z]", "", "pan"),
    NationalId("CA SIN", r"\d{3}[ -]?\d{3}[ -]?\d{3}", "ca.sin", "sin social_insurance assurance_sociale"),
    NationalId("AU TFN", r"\d{3} ?\d{3} ?\d{3}", "au.tfn", "tfn tax_file"),
    NationalId("AU Medicare", r"\d{4}[ -]?\d{5}[ -]?\d", _CHECKS["medicare"], "medicare"),
    NationalId("SE personnummer", r"(?:19|20)?\d{10}", _swedish, "personnummer personal_identity"),
    NationalId("NO fødselsnummer", r"\d{6} ?\d{5}", "no.fodselsnummer", "fødselsnummer fodselsnummer personnummer fnr"),
    NationalId("DK CPR", r"\d{6}[- ]?\d{4}", "dk.cpr", "cpr"),
    NationalId("JP My Number", r"\d{4}[ -]?\d{4}[ -]?\d{4}", "jp.in_", "my_number mynumber マイナンバー 個人番号"),
    NationalId("TR TCKN", r"\d{11}", "tr.tckimlik", "tc t.c. kimlik tckn"),
    NationalId("RU INN", r"\d{12}", "ru.inn", "inn инн"),
    NationalId("EE/LT personal code", r"[1-8]\d{10}", "ee.ik", "isikukood asmens_kod personal_code"),
    NationalId("BG EGN", r"\d{10}", "bg.egn", "egn егн"),
    NationalId("HR OIB", r"\d{11}", "hr.oib", "oib"),
    NationalId("GR AMKA", r"\d{11}", "gr.amka", "amka αμκα"),
    NationalId("IL id", r"\d{9}", "il.idnr", "teudat zehut תעודת ת.ז"),
    NationalId("ID NIK", r"\d{16}", "id.nik", "nik ktp"),
    NationalId("AT SVNR", r"\d{4} ?\d{6}", "at.vnr", "svnr sv-nummer sozialversicherung"),
    NationalId("TH id", r"\d{13}", "th.pin", "thai บัตรประชาชน"),
    NationalId("AR/PE/ES DNI", r"\d{1,2}\.?\d{3}\.?\d{3}", "", "dni documento_de_identidad cédula cedula"),
    NationalId("CL RUT", r"\d{7,8}-?[\dK]", "cl.rut", "rut"),
    NationalId("CZ/SK birth number", r"\d{6}/?\d{3,4}", "cz.rc", "rodné rodne rodná"),
    NationalId("TW id", r"[A-Z][1289]\d{8}", _taiwanese, "身分證 身份證 taiwan id arc"),
    NationalId("MX RFC", r"[A-ZÑ&]{4}\d{6}[A-Z\d]{3}", "", "rfc"),
    NationalId("ZA id", r"\d{13}", "za.idnr", "id identity"),
    NationalId("RO CNP", r"[1-9]\d{12}", "ro.cnp", "cnp cod_numeric id identity"),
    NationalId("IE PPSN", r"\d{7}[A-W][A-IW]?", "ie.pps", "pps ppsn"),
    NationalId("NG NIN", r"\d{11}", "", "nin"),
    NationalId("UK UTR", r"\d{5} ?\d{5}", "", "utr unique_taxpayer"),
    NationalId("UK NINO", r"[A-Z]{2} ?\d\d ?\d\d ?\d\d ?[A-D]?", "", "national_insurance nino ni_no ni_number"),
)  # fmt: skip
_FREE = [identifier for identifier in NATIONAL_IDS if not identifier.words]
_FREE_FORMS = re.compile(
    # most positions fail at the look-ahead: a digit, or letters with one soon after them
    r"(?<![A-Z0-9])(?=\d|[A-Z]{1,4}[ -]?\d|[A-Z]{5,6}[\dL-V])(?<![A-Z0-9][-_./])(?<!\d )(?:"
    + "|".join(i.pattern for i in _FREE)
    + r")(?![A-Z0-9]|[-./]\d| \d{3})"
)
_NAMED_WORDS = [
    (word.replace("_", " "), identifier, re.compile(rf"(?<![A-Z0-9])(?:{identifier.pattern})(?![A-Z0-9]|[-./]\d)"))
    for identifier in NATIONAL_IDS
    for word in identifier.words.split()
]
_SEPARATORS = str.maketrans("", "", " .-/()+")
REACH = 60  # characters after a word in which the number that it names may stand
REACH_BACK = 24  # and before it: "123456782 is my BSN"


def national_ids(upper: str, lower: str) -> Iterator[Span]:
    """Numbers of persons in a text, which is given in upper case, character by character, and in lower case."""
    for match in _FREE_FORMS.finditer(upper):
        if is_national_id(match.group()):
            yield ("NATIONAL_ID", *match.span())
    for word, identifier, pattern in _NAMED_WORDS:
        at = lower.find(word)
        while at >= 0:
            end = at + len(word)
            # "tin" in "meeting" names no number; longer words may be parts of compounds
            neighbours = lower[at - 1 : at] + lower[end : end + 1]
            if len(word) > 5 or word[0] > "\u2e80" or not any(map(str.isalpha, neighbours)):
                for match in pattern.finditer(upper, max(0, at - REACH_BACK)):
                    if match.start() > end + REACH:
                        break
                    if is_right(identifier.check, match.group()):
                        yield ("NATIONAL_ID", *match.span())
            at = lower.find(word, end)


def is_national_id(value: str) -> bool:
    """Whether a value has a form and check digits that alone make it a person's number."""
    value = value.upper()
    return any(re.fullmatch(i.pattern, value) and is_right(i.check, value) for i in _FREE)


_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_RIPPLE = "rpshnaf39wBUDNEGHJKLM4PQRST7VWXYZ2bcdeCg65jkm8oFqi1tuvAxyz"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_WALLET = re.compile(
    r"(?<![0-9A-Za-z])(?:0x[0-9a-fA-F]{40}|(?:bc1|BC1|ltc1|tb1|addr1)[0-9A-Za-z]{11,110}"
    r"|[13LMDTA9r2mn][1-9A-HJ-NP-Za-km-z]{24,34}|4[1-9AB][1-9A-HJ-NP-Za-km-z]{93})(?![0-9A-Za-z])"
)


def wallets(text: str) -> Iterator[Span]:
    """Addresses of crypto currencies: Ethereum, bech32 (BIP 173, BIP 350), Base58Check, Monero; with right sums."""
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
    if not prefix or len(data) < 6 or not set(data) <= set(_BECH32) or token not in (token.lower(), token.upper()):
        return False
    values = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix] + [_BECH32.index(c) for c in data]
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> bit & 1 else 0
    return check in (1, 0x2BC830A3)


# All patterns are for lower-case text and begin with a choice of plain letters: `re` then skips ahead to one of them,
# many times faster than with a look-behind or case folding. That nothing is joined to a word is checked afterwards.

# Between the word and the value: "passport number is", "Kontonummer:", `"account_number": "`.
_GAP = (
    r"(?:[\s\"'`:=#,()\[\]*>|/\\_–-]|(?:numbers?|numero|nummer|numéro|número|no\.?|nr\.?|num\.?|ids?|is|was|are|the|my"
    r"|of|est|ist|es|era|jest|lautet|code|card|holder)(?![^\W_])|n[º°]|[èé](?=\s)){0,14}"
)
_PASSPORT = re.compile(
    r"(?:passport|reisepass(?:nummer|nr)?|passeport|pasaporte|passaport[oe]|paspoort(?:nummer)?|passnummer|pass-?nr"
    r"|паспорт\w*|护照\w?\w?|護照|パスポート|旅券)"
    + _GAP
    + r"(?P<value>[a-z]{1,3}[ -]?\d{5,9}[a-z]?\b|\d\d \d\d \d{6}\b|\d{3} \d{3} \d{3}\b|[a-z0-9]{6,12}\b)"
)
_LICENCE = re.compile(
    r"(?:driv(?:er|ing)['’]?s?['’]?[ _]?(?:licen[cs]e|permit)|dl(?![a-z0-9])|cnh(?![a-z0-9])|führerschein(?:nummer|nr)?"
    r"|permis de conduire|licencia de (?:conducir|conducción|manejo)|carn[eé]t? de conducir|permiso de conducir"
    r"|patente di guida|rijbewijs(?:nummer)?|carta de condução)"
    + _GAP
    + r"(?P<value>[a-z]{1,3}\d{2,4}(?:[ -]\d{1,6}){1,4}\b|\d{2,4}(?:[ -]\d{2,4}){2}\b|[a-z]{1,2}[ -]\d{6,10}\b"
    + r"|[a-z0-9]{5,20}\b)"
)
_ACCOUNT = re.compile(
    r"(?:account(?:[\s_.]*(?:number|no\b|num\b|nr\b|#)|(?=\s{0,2}[:=#]| \d{7}))"
    r"|acct?(?![a-z0-9])(?:[\s_.]*(?:number|no\b|num\b|#))?|a/c|bank[ _]account|checking[ _]account|savings?[ _]account"
    r"|chequing[ _]account|current[ _]account|routing(?:[ _](?:number|no|transit|code))?|aba(?![a-z0-9])|sort[ _-]?code"
    r"|bsb(?![a-z0-9])|konto(?:nummer|-?nr)?(?![a-z0-9])|kto(?![a-z0-9])|blz(?![a-z0-9])|bankleitzahl"
    r"|num[eé]ro de compte|compte (?:bancaire|n°)|rib(?![a-z0-9])|n[uú]mero de cuenta"
    r"|cuenta(?: bancaria| corriente| de ahorros)?|clabe|rekening(?:nummer)?|numero di conto|conto corrente"
    r"|conta(?: corrente| bancária)(?! [a-z])|número da conta|numer konta|konto bankowe"
    r"|银行账号|银行卡号|账号|口座番号|계좌번호)" + _GAP + r"(?P<value>\d(?:[ -]?\d){4,22})(?![\w-]|[.,]\d)"
)
_ID_VALUE = r"(?P<value>[a-z]{0,4}\d[\d .-]{4,20}\d[a-z]?\b|[a-z0-9]{6,20}\b)"
_IDENTITY = re.compile(
    r"(?:national|personal|citizen(?:ship)?|government|resident|state|tax(?:payer)?|fiscal|social insurance|identity"
    r"|identification|unique)[\s_-]?(?:id(?:entity|entification)?|insurance|tax|registration|card|document)?"
    r"[\s_-]?(?:card|document)?[\s_-]?(?:number|no\b\.?|nr\b|#|id\b|code|card)" + _GAP + _ID_VALUE
)
_IDENTITY_ABROAD = re.compile(
    r"(?:personalausweis(?:nummer|nr)?|ausweisnummer|steueridentifikationsnummer|steuernummer|steuer-id"
    r"|numéro (?:de sécurité sociale|fiscal)|n[uú]mero de (?:identidad|identificación)|codice fiscale"
    r"|身份证号?码?|주민등록번호"
    r"|sozialversicherungsnummer|número de identificação|id card)" + _GAP + _ID_VALUE
)
_SSN = re.compile(r"(?<![\w-])(?<!\w[./#])\d{3}([ -])\d\d\1\d{4}(?![\w-]|[./]\d)")
_SSN_WORD = r"(?:ssn|itin|ss ?#|social(?:[ _]security)?)(?![a-z0-9])"
_NAMED_SSN = re.compile(_SSN_WORD + _GAP + r"(?P<value>\d{3}[ .\-–/]?\d\d[ .\-–/]?\d{4})(?!\d)")

_MONTH = (
    r"(?:jan(?:uary|uar|vier|\.)?|feb(?:ruary|ruar|\.)?|f[ée]v(?:rier|ereiro|\.)?|mar(?:ch|s|zo|ço|\.)?|m[äa]rz|maart"
    r"|apr(?:il|ile|\.)?|avr(?:il|\.)?|abr(?:il|\.)?|ma[iyj]o?|mei|maggio|june?|juni|juin|junio|junho|giugno|july?|juli"
    r"|juillet|julio|julho|luglio|aug(?:ust|ustus|\.)?|août|ago(?:sto|\.)?|sep(?:t|tember|tembre|tiembre|\.)?"
    r"|set(?:tembre|embro|\.)?|o[ck]t(?:ober|obre|\.)?|out(?:ubro|\.)?|ott(?:obre|\.)?"
    r"|nov(?:ember|embre|iembre|embro|\.)?|de[cz](?:ember|embre|embro|\.)?|d[ée]c(?:embre|\.)?|dic(?:iembre|embre|\.)?"
    r"|gen(?:naio|\.)?|ene(?:ro|\.)?)"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th|er|\.|º)?"
_YEAR = r"(?:1[89]\d\d|20[0-2]\d)"
_DATE = (
    rf"(?:{_YEAR}[-/. ]\d{{1,2}}[-/. ]\d{{1,2}}(?!\d)|\d{{1,2}}(?:[-/.]|\s)\d{{1,2}}(?:[-/.]|\s)(?:{_YEAR}|\d\d)(?!\d)"
    rf"|{_YEAR}[01]\d[0-3]\d(?!\d)|[0-3]\d[01]\d{_YEAR}(?!\d)|{_YEAR}\s?[年년]\s?\d{{1,2}}\s?[月월]\s?\d{{1,2}}\s?[日일]?"
    rf"|(?:the )?{_DAY}[\s-](?:of |de |di )?{_MONTH}(?:,? (?:of |de |del |do )?|[\s,-]){_YEAR}(?!\d)"
    rf"|{_MONTH}[\s-](?:the )?{_DAY}(?:,? (?:of )?|-){_YEAR}(?!\d)|(?:the )?{_DAY}[\s-](?:of "
    rf"|de )?{_MONTH}['’ -]\d\d(?!\d))"
)
_SHORT_DATE = rf"(?:(?:the )?{_DAY}[\s-](?:of |de )?{_MONTH}(?![\w])|{_MONTH}[\s-](?:the )?{_DAY}(?!\w))"
_BIRTH = re.compile(
    r"(?:date[ _]?of[ _]?birth|day of birth|birth[ _-]?(?:date|day)?s?|d\.?\s?o\.?\s?b\b\.?|born|geburts(?:datum|tag)"
    r"|geboren|geb\.|né(?:\(?e\)?)?(?![a-z0-9])|fecha de nacimiento|naissance|naci(?:do|da|ó|miento)?(?![a-z0-9])"
    r"|cumpleaños|data di nascita|nat[oa](?= (?:il|a ))|nascimento|nasci(?:do|da)?(?![a-z0-9])|geboortedatum"
    r"|data urodzenia|urodzon[ya]|födelse\w*|född|fødselsdato|født|syntymäaika|doğum tarihi|дата рождения"
    r"|родил\w+|出生日期"
    r"|出生|生年月日|生日|생년월일|تاريخ الميلاد)(?:[\s\"'`:=#,*>\\_–-]|\([^()\d]{1,20}\)"
    r"|(?:is|was|on|in|am|le|the|il|el|em|den|op|at|registered|listed|as|my|your|his|her|their|it's|its|ist|est|es|del"
    r"|dia|día|of|here)(?![^\W_])|é(?=\s)|è(?=\s)){0,10}"
    rf"(?P<value>{_DATE})"
)
_BIRTHDAY = re.compile(
    r"(?:birthday|birth date|geburtstag|cumpleaños|anniversaire)(?:[\s:=]"
    r"|(?:is|was|on|am|el|le|es|est|the|ist)(?!\w)){1,8}"
    rf"(?P<value>{_SHORT_DATE})"
)
_BIRTHDAY_AFTER = re.compile(rf"(?P<value>{_DATE}) (?:is|was) (?:my|his|her) (?:date of birth|birth ?day|dob)")


_DOCUMENTS = (
    ("PASSPORT", _PASSPORT), ("DRIVER_LICENSE", _LICENCE), ("BANK_ACCOUNT", _ACCOUNT), ("NATIONAL_ID", _IDENTITY),
    ("NATIONAL_ID", _IDENTITY_ABROAD),
)  # fmt: skip


def birth_dates(lower: str) -> Iterator[Span]:
    """Dates after words such as "born on" or "DOB", in the forms of many countries; `lower`: the text in lower case."""
    for pattern in (_BIRTH, _BIRTHDAY):
        yield from _values("DATE_OF_BIRTH", pattern, lower)
    if " my " in lower or " his " in lower or " her " in lower:
        yield from _values("DATE_OF_BIRTH", _BIRTHDAY_AFTER, lower)


def document_numbers(lower: str) -> Iterator[Span]:
    """Numbers of passports, driving licences, bank accounts and ids next to the words for them; from four digits on."""
    for kind, pattern in _DOCUMENTS:
        for _, start, end in _values(kind, pattern, lower):
            value = lower[start:end]
            # a date is no number, but a sort code may look like one: 20-10-05
            dated = (kind != "BANK_ACCOUNT" or re.search(_YEAR, value)) and re.fullmatch(_DATE, value)
            if sum(c.isdigit() for c in value) >= 4 and not dated:
                yield (kind, start, end)


def _values(kind: str, pattern: re.Pattern[str], lower: str) -> Iterator[Span]:
    """Values after a word that is not the end of another one."""
    for match in pattern.finditer(lower):
        start = match.start()
        if not (start and lower[start - 1].isascii() and lower[start - 1].isalnum()):
            yield (kind, *match.span("value"))


def social_security_numbers(lower: str) -> Iterator[Span]:
    """US social security numbers in groups of 3, 2 and 4 digits; in other forms next to the words."""
    for match in _SSN.finditer(lower):
        if is_ssn(match.group().replace(match.group(1), "")):
            yield ("US_SSN", *match.span())
    for kind, start, end in _values("US_SSN", _NAMED_SSN, lower):
        if is_ssn(re.sub(r"\D", "", lower[start:end])):
            yield (kind, start, end)
