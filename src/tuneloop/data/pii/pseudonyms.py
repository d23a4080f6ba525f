"""Pseudonyms for personal data: of plausible form, the same one for the same value, and no person's.

They come from ranges that standards reserve for examples, or have a wrong check digit on purpose, so that no one is
written to or called.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
import unicodedata

from tuneloop.data.pii.contacts import e164
from tuneloop.data.pii.identifiers import is_national_id, luhn

FIRST_NAMES = tuple(
    "Alex Robin Sam Kim Jordan Taylor Morgan Casey Jamie Riley Avery Quinn Rowan Sasha Noa "  # noqa: SIM905
    "Luca Charlie Dana Eli Frankie Jules Kai Lee Max Nico Ray Remy Sky Toni Val Andrea Micah".split()
)
LAST_NAMES = tuple(
    "Field Brook Stone Marsh Hill Lake Wood Ford Lane West North Frost Winter Summer Berg "  # noqa: SIM905
    "Klein Gray Brown White Green Bell Cole Dale Day Fox Glen Hart Moss Park Reed Rivers Vale".split()
)


def pseudonym(kind: str, value: str, region: str, key: bytes) -> str:
    """A value's pseudonym: from its kind, its normal form and the key alone (HMAC-SHA256, RFC 2104), never the value.

    `region`: country of telephone numbers without a country code; `key`: secret; who has it can try values.
    """
    same = normal_form(kind, value, region)
    for attempt in range(64):  # there are few in some reserved ranges: the value may be one of them
        seed = hmac.new(key, f"{kind}\0{same}\0{attempt}".encode("utf-8", "surrogatepass"), hashlib.sha256).digest()
        candidate = _invented(kind, value, same, seed)
        if normal_form(kind, candidate, region) != same and value not in candidate:
            return candidate
    return f"<{kind}>"


def normal_form(kind: str, value: str, region: str) -> str:
    """What two ways to write one value have in common."""
    value = "".join(c for c in unicodedata.normalize("NFKC", value) if c.isprintable())
    if kind == "EMAIL":
        at = re.sub(r"\s?[\[({<]\s?at\s?[\])}>]\s?|\sat\s|_at_|%40", "@", value.casefold())
        return re.sub(r"\s", "", re.sub(r"\s?[\[({<]\s?dot\s?[\])}>]\s?|\sdot\s|_dot_", ".", at))
    if kind == "PHONE":
        return e164(re.sub(r"^00(?=[1-9])", "+", value), region)
    if kind in ("API_KEY", "PASSWORD", "URL_CREDENTIALS", "CRYPTO_ADDRESS"):
        return value
    if kind in ("PERSON", "STREET_ADDRESS"):
        return " ".join(re.findall(r"\w+", value.casefold()))
    return re.sub(r"[\W_]", "", value).upper() if kind != "IP_ADDRESS" else value.lower()


def _invented(kind: str, value: str, same: str, seed: bytes) -> str:
    number, word = int.from_bytes(seed[:8], "big"), seed[:4].hex()
    match kind:
        case "EMAIL":
            return f"person-{word}@example.com"  # RFC 2606
        case "PHONE":
            # ranges kept for fiction: by Ofcom, ARCEP, BNetzA, ACMA; otherwise North America's 555-01xx
            fictions = {
                "+44": f"+44 20 7946 0{number % 1000:03d}", "+49": f"+49 30 23125 {number % 1000:03d}",
                "+33": f"+33 1 99 00 {number % 100:02d} {number // 100 % 100:02d}",
                "+61": f"+61 2 5550 {number % 10000:04d}",
            }  # fmt: skip
            american = f"+1 {number % 8 + 2}{number // 8 % 9}{number // 72 % 10}-555-01{number // 720 % 100:02d}"
            return fictions.get(same[:3], american)
        case "CREDIT_CARD":
            return _card(value, seed)
        case "IBAN":
            # Check digits run from 02 to 98: 00 belongs to no account.
            return value[:2] + "00" + _shaped(value[4:], seed)
        case "US_SSN":
            return f"000-{number % 90 + 10:02d}-{number // 90 % 9000 + 1000}"  # area 000 is never issued
        case "IP_ADDRESS" if ":" in value:
            return f"2001:db8:{seed[:2].hex()}:{seed[2:4].hex()}::{seed[4:6].hex()}".replace(":0", ":1")  # RFC 3849
        case "IP_ADDRESS":
            return f"198.{18 + number % 2}.{seed[1]}.{seed[2] % 254 + 1}"  # RFC 2544
        case "MAC_ADDRESS":
            return "02-00-5e-" + "-".join(f"{byte:02x}" for byte in seed[:3])  # locally administered
        case "DATE_OF_BIRTH":
            return (datetime.date(1940, 1, 1) + datetime.timedelta(days=number % 22000)).isoformat()
        case "STREET_ADDRESS":
            return f"{number % 998 + 1} Example Street"
        case "PERSON":
            return f"{FIRST_NAMES[seed[0] % 32]} {LAST_NAMES[seed[1] % 32]}"
        case "NATIONAL_ID" | "PASSPORT" | "DRIVER_LICENSE" | "BANK_ACCOUNT":
            shaped = _shaped(value, seed)
            return shaped if not is_national_id(shaped) else "0" * len(value)
        case "PASSWORD" if value.isdigit():  # a PIN stays one
            return _shaped(value, seed)
        case "URL_CREDENTIALS":
            return f"user-{word}:redacted" if ":" in value else f"redacted-{word}"
        case _:
            return f"{kind.lower().replace('_', '-')}-{word}"


def _card(value: str, seed: bytes) -> str:
    """A number in the same grouping whose check digit is wrong."""
    digits = "400000" + "".join(str(byte % 10) for byte in hashlib.shake_256(seed).digest(len(value)))
    digits = digits[: sum(c.isdigit() for c in value)]
    if digits and luhn(digits):
        digits = digits[:-1] + str((int(digits[-1]) + 1) % 10)
    left = iter(digits)
    return "".join(next(left) if c.isdigit() else c for c in value)


def _shaped(value: str, seed: bytes) -> str:
    stream = iter(hashlib.shake_256(seed).digest(len(value)))
    return "".join(
        str(next(stream) % 10) if c.isdigit() else "ABCDEFGHJKLMNPRSTUVWXYZ"[next(stream) % 23] if c.isalpha() else c
        for c in value
    )
