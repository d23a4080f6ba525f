"""Made-up personal data of many kinds and countries, and what only looks like it, for the benchmarks of `tuneloop prepare`.

Check digits are computed here from the public rules, apart from the code that is measured. Nothing belongs to anybody: telephone numbers
are libphonenumber's examples, names are invented, keys are random.
"""

from __future__ import annotations

import base64
import random
import string
from collections.abc import Callable

Maker = Callable[[random.Random], str]

DIGITS, LOWER, UPPER = string.digits, string.ascii_lowercase, string.ascii_uppercase
ALNUM, HEX = string.ascii_letters + DIGITS, "0123456789abcdef"


def some(rng: random.Random, alphabet: str, n: int) -> str:
    """`n` characters; longer ones hold a digit and a letter, as keys do."""
    made = "".join(rng.choices(alphabet, k=n))
    return made[:-2] + "a7" if n > 8 and "7" in alphabet and "a" in alphabet else made


def luhn_digit(digits: str) -> str:
    """The check digit that makes a number pass Luhn's test."""
    total = sum(sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(reversed(digits)))
    return str(-total % 10)


# --- numbers with check digits -------------------------------------------------------------------

CARDS = {"4": 16, "51": 16, "55": 16, "2221": 16, "2720": 16, "34": 15, "37": 15, "6011": 16, "65": 16, "3528": 16, "62": 16, "4000": 16}  # fmt: skip


def card(rng: random.Random) -> str:
    """Visa, Mastercard, American Express, Discover, JCB, UnionPay, grouped or not."""
    prefix, length = rng.choice(list(CARDS.items()))
    digits = prefix + some(rng, DIGITS, length - len(prefix) - 1)
    return grouped_card(rng, digits + luhn_digit(digits))


def grouped_card(rng: random.Random, digits: str) -> str:
    """The number as people write it."""
    sign = rng.choice(["", " ", "-"])
    sizes = (4, 6, 5) if len(digits) == 15 else (4, 4, 4, 4)
    return sign.join(digits[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes)))


# Country -> what follows the check digits: 0 a digit, A a letter (SWIFT, IBAN Registry).
BBAN = {
    "DE": "0" * 18, "GB": "AAAA" + "0" * 14, "FR": "0" * 23, "NL": "AAAA" + "0" * 10, "ES": "0" * 20, "IT": "A" + "0" * 22, "PL": "0" * 24,
    "CH": "0" * 17, "AT": "0" * 16, "BE": "0" * 12, "SE": "0" * 20, "NO": "0" * 11, "DK": "0" * 14, "FI": "0" * 14, "PT": "0" * 21,
    "IE": "AAAA" + "0" * 14, "CZ": "0" * 20, "TR": "0" * 22, "SA": "0" * 20, "AE": "0" * 19, "MT": "AAAA" + "0" * 23, "RO": "AAAA" + "0" * 16,
    "HU": "0" * 24, "GR": "0" * 23, "LU": "0" * 16, "EE": "0" * 16, "LT": "0" * 16, "SK": "0" * 20, "HR": "0" * 17, "IL": "0" * 19,
}  # fmt: skip


def iban(rng: random.Random, *, right: bool = True) -> str:
    """An account number of thirty countries, in groups of four, in one, or in small letters."""
    country = rng.choice(list(BBAN))
    body = "".join(rng.choice(UPPER if c == "A" else DIGITS) for c in BBAN[country])
    check = 98 - int("".join(str(int(c, 36)) for c in body + country + "00")) % 97
    check = check if right else 2 + (check + rng.randint(1, 90)) % 96
    value = f"{country}{check:02d}{body}"
    style = rng.random()
    if style < 0.5:
        return " ".join(value[i : i + 4] for i in range(0, len(value), 4))
    return value.lower() if style > 0.95 and right else value


def ssn(rng: random.Random) -> str:
    """A number that can have been issued."""
    area = rng.choice([n for n in range(1, 900) if n != 666])
    return f"{area:03d}-{rng.randint(1, 99):02d}-{rng.randint(1, 9999):04d}"


def _search(rng: random.Random, make: Maker, right: Callable[[str], bool]) -> str:
    while not right(value := make(rng)):
        pass
    return value


def _weighted(digits: str, weights: str) -> int:
    return sum(int(d) * int(w, 36) for d, w in zip(digits, weights, strict=False))


def _birth(rng: random.Random) -> tuple[int, int, int]:
    return rng.randint(1940, 1999), rng.randint(1, 12), rng.randint(1, 28)


def nir(rng: random.Random) -> str:
    """France: 97 less the number modulo 97."""
    body = f"{rng.choice('12')}{rng.randint(40, 99):02d}{rng.randint(1, 12):02d}{rng.randint(1, 95):02d}{some(rng, DIGITS, 6)}"
    value = f"{body}{97 - int(body) % 97:02d}"
    spaced = f"{value[0]} {value[1:3]} {value[3:5]} {value[5:7]} {value[7:10]} {value[10:13]} {value[13:]}"
    return rng.choice([value, spaced])


def dni(rng: random.Random) -> str:
    """Spain: a letter by the remainder of 23."""
    number = some(rng, DIGITS, 8)
    return number + rng.choice(["", "-"]) + "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23]


def nie(rng: random.Random) -> str:
    """Spain, foreigners."""
    first, number = rng.randint(0, 2), some(rng, DIGITS, 7)
    return "XYZ"[first] + number + "TRWAGMYFPDXBNJZSQVHLCKE"[int(f"{first}{number}") % 23]


def cpf(rng: random.Random) -> str:
    """Brazil: two digits modulo 11."""
    d = some(rng, DIGITS, 9)
    for n in (10, 11):
        d += str(sum(int(c) * w for c, w in zip(d, range(n, 1, -1), strict=True)) * 10 % 11 % 10)
    return f"{d[:3]}.{d[3:6]}.{d[6:9]}-{d[9:]}"


def personnummer(rng: random.Random) -> str:
    """Sweden: Luhn."""
    y, m, day = _birth(rng)
    body = f"{y % 100:02d}{m:02d}{day:02d}{some(rng, DIGITS, 3)}"
    return f"{rng.choice(['', str(y // 100)])}{body[:6]}-{body[6:]}{luhn_digit(body)}"


def ahv(rng: random.Random) -> str:
    """Switzerland: EAN-13."""
    body = "756" + some(rng, DIGITS, 9)
    check = -sum(int(d) * (1 + 2 * (i % 2)) for i, d in enumerate(body)) % 10
    return f"756.{body[3:7]}.{body[7:11]}.{body[11]}{check}"


def hetu(rng: random.Random) -> str:
    """Finland: modulo 31."""
    y, m, day = _birth(rng)
    date, number = f"{day:02d}{m:02d}{y % 100:02d}", f"{rng.randint(2, 899):03d}"
    return f"{date}-{number}{'0123456789ABCDEFHJKLMNPRSTUVWXY'[int(date + number) % 31]}"


def nino(rng: random.Random) -> str:
    """United Kingdom: form alone."""
    value = rng.choice("ABCEGHJKLMNPRSTWXYZ") + rng.choice("ABCEGHJKLMPRSTWXYZ")
    value = "JH" if value in ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ") else value
    return f"{value} {rng.randint(10, 99)} {rng.randint(10, 99)} {rng.randint(10, 99)} {rng.choice('ABCD')}"


def nric(rng: random.Random) -> str:
    """Singapore: eleven letters."""
    number = some(rng, DIGITS, 7)
    return f"S{number}{'JZIHGFEDCBA'[_weighted(number, '2765432') % 11]}"


def belgian(rng: random.Random) -> str:
    """Belgium: modulo 97."""
    y, m, day = _birth(rng)
    body = f"{y % 100:02d}{m:02d}{day:02d}{rng.randint(1, 997):03d}"
    return f"{body[:2]}.{body[2:4]}.{body[4:6]}-{body[6:]}.{97 - int(body) % 97:02d}"


def bsn(rng: random.Random) -> str:
    """Netherlands: modulo 11, the last weight is minus one."""
    return _search(rng, lambda r: some(r, DIGITS, 9), lambda d: (_weighted(d[:8], "98765432") - int(d[8])) % 11 == 0)


def pesel(rng: random.Random) -> str:
    """Poland: weights 1, 3, 7, 9."""
    y, m, day = _birth(rng)
    body = f"{y % 100:02d}{m:02d}{day:02d}{some(rng, DIGITS, 4)}"
    return body + str(-_weighted(body, "1379137913") % 10)


def nhs(rng: random.Random) -> str:
    """England: weights 10 to 2, modulo 11."""

    def right(d: str) -> bool:
        check = 11 - sum(int(c) * w for c, w in zip(d, range(10, 1, -1), strict=False)) % 11
        return check != 10 and check % 11 == int(d[9])

    d = _search(rng, lambda r: some(r, DIGITS, 10), right)
    return f"{d[:3]} {d[3:6]} {d[6:]}"


def sin(rng: random.Random) -> str:
    """Canada: Luhn."""
    body = rng.choice("1234567") + some(rng, DIGITS, 7)
    d = body + luhn_digit(body)
    return f"{d[:3]} {d[3:6]} {d[6:]}"


def tfn(rng: random.Random) -> str:
    """Australia: weights 1, 4, 3, 7, 5, 8, 6, 9, 10, modulo 11."""
    d = _search(rng, lambda r: some(r, DIGITS, 9), lambda d: _weighted(d, "14375869a") % 11 == 0)
    return f"{d[:3]} {d[3:6]} {d[6:]}"


def rut(rng: random.Random) -> str:
    """Chile: weights 2 to 7, modulo 11."""
    d = some(rng, "123456789", 8)
    total = sum(int(c) * (2 + i % 6) for i, c in enumerate(reversed(d)))
    return f"{d[:2]}.{d[2:5]}.{d[5:]}-{'0K987654321'[total % 11]}"


def south_africa(rng: random.Random) -> str:
    """South Africa: Luhn."""
    y, m, day = _birth(rng)
    body = f"{y % 100:02d}{m:02d}{day:02d}{some(rng, DIGITS, 4)}08"
    return body + luhn_digit(body)


# --- keys ----------------------------------------------------------------------------------------

KEYS: list[Maker] = [
    lambda r: "sk-" + some(r, ALNUM, 40),
    lambda r: "sk-proj-" + some(r, ALNUM + "_-", 60),
    lambda r: "sk-ant-api03-" + some(r, ALNUM + "_-", 80) + "AA",
    lambda r: "sk-or-v1-" + some(r, HEX, 64),
    lambda r: "AKIA" + some(r, UPPER + DIGITS, 15) + "7",
    lambda r: "ghp_" + some(r, ALNUM, 36),
    lambda r: "github_pat_" + some(r, ALNUM, 22) + "_" + some(r, ALNUM, 59),
    lambda r: "glpat-" + some(r, ALNUM + "_-", 20),
    lambda r: f"xoxb-{some(r, DIGITS, 12)}-{some(r, DIGITS, 12)}-{some(r, ALNUM, 24)}",
    lambda r: "AIza" + some(r, ALNUM + "_-", 35),
    lambda r: r.choice(["sk_live_", "rk_live_", "sk_test_"]) + some(r, ALNUM, 24),
    lambda r: "hf_" + some(r, ALNUM, 34),
    lambda r: f"SG.{some(r, ALNUM, 22)}.{some(r, ALNUM, 43)}",
    lambda r: "npm_" + some(r, ALNUM, 36),
    lambda r: "pypi-AgEIcHlwaS5vcmc" + some(r, ALNUM, 70),
    lambda r: "dckr_pat_" + some(r, ALNUM, 27),
    lambda r: "shpat_" + some(r, HEX, 32),
    lambda r: "dop_v1_" + some(r, HEX, 64),
    lambda r: "gsk_" + some(r, ALNUM, 52),
    lambda r: "r8_" + some(r, ALNUM, 37),
    lambda r: "xai-" + some(r, ALNUM, 80),
    lambda r: "SK" + some(r, HEX, 32),
    lambda r: f"{some(r, '123456789', 10)}:AA{some(r, ALNUM, 33)}",
    lambda r: "eyJhbGciOiJIUzI1NiJ9." + "eyJ" + some(r, ALNUM, 40) + "." + some(r, ALNUM, 43),
    lambda r: "AccountKey=" + base64.b64encode(r.randbytes(64)).decode(),
    lambda r: "key-" + some(r, HEX, 32),
    lambda r: "dapi" + some(r, HEX, 32),
    lambda r: "glsa_" + some(r, ALNUM, 32) + "_" + some(r, HEX, 8),
    lambda r: "hvs." + some(r, ALNUM, 90),
    lambda r: "lin_api_" + some(r, ALNUM, 40),
    lambda r: "-----BEGIN RSA PRIVATE KEY-----\n" + base64.b64encode(r.randbytes(96)).decode() + "\n-----END RSA PRIVATE KEY-----",
    lambda r: "ya29." + some(r, ALNUM + "_-", 60),
    lambda r: "sq0atp-" + some(r, ALNUM + "_-", 22),
    lambda r: "pk.eyJ1Ijoi" + some(r, ALNUM, 30) + "." + some(r, ALNUM, 22),
    lambda r: "whsec_" + some(r, ALNUM, 32),
    lambda r: "nvapi-" + some(r, ALNUM + "_-", 64),
]  # fmt: skip

# --- everything else -----------------------------------------------------------------------------

FIRST = "anna bao carlos dmitri elif fatima giulia hiroshi ines jakub kwame lars maeve noor olga priya quentin rosa sven tomas".split()  # noqa: SIM905
LAST = "abbott becker costa dubois eriksen ferrari garcia haddad ivanov jansen kowalski lindqvist moreau nakamura okafor petrov".split()  # noqa: SIM905
HOSTS = "example.com example.org mail.example.net acme-sample.io firma-beispiel.de postbox-demo.co.uk correo.example.es uni.example.ac.jp".split()  # noqa: SIM905
REGIONS = "US GB DE FR ES IT NL BE CH AT IE AU NZ IN CA SE NO DK FI PL PT BR MX JP KR SG ZA TR CZ RO GR HU".split()  # noqa: SIM905


def email(rng: random.Random) -> str:
    """Addresses in the ways that people write them."""
    first, last, host = rng.choice(FIRST), rng.choice(LAST), rng.choice(HOSTS)
    local = rng.choice([f"{first}.{last}", f"{first[0]}{last}", f"{first}_{last}{rng.randint(1, 99)}", f"{first}+shop", f"{last}-{first}", f"{first}{rng.randint(1950, 2005)}", f"o'{last}"])  # fmt: skip
    return rng.choice([f"{local}@{host}"] * 7 + [f"{local}@{host}".upper(), f"{first} [at] {host.replace('.', ' [dot] ')}", f"mailto:{local}@{host}"])  # fmt: skip


def phone(rng: random.Random) -> str:
    """Valid numbers of thirty countries with the country code, and a few national forms."""
    import phonenumbers

    region = rng.choice(REGIONS)
    kinds = [phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE]
    number = phonenumbers.example_number_for_type(region, rng.choice(kinds))
    number.national_number = int(str(number.national_number)[:-2] + some(rng, DIGITS, 2))
    if not phonenumbers.is_valid_number(number):
        return phone(rng)
    form = rng.choice([phonenumbers.PhoneNumberFormat.INTERNATIONAL] * 3 + [phonenumbers.PhoneNumberFormat.E164])
    made = phonenumbers.format_number(number, form)
    style = rng.random()
    return made.replace(" ", "-") if style < 0.15 else made.replace(" ", ".") if style < 0.2 else made.replace("+", "00", 1) if style < 0.28 and " " in made else made  # fmt: skip


def us_phone(rng: random.Random) -> str:
    """North American forms with numbers kept for fiction."""
    area, last = rng.choice(["212", "415", "617", "720", "312"]), f"{rng.randint(100, 199):04d}"
    return rng.choice([f"({area}) 555-{last}", f"{area}-555-{last}", f"{area}.555.{last}", f"+1 {area}-555-{last}", f"1-{area}-555-{last}", f"+1 ({area}) 555-{last}"])  # fmt: skip


def ip(rng: random.Random) -> str:
    """Version 4 and 6, whole and shortened."""
    v4 = ".".join(str(rng.randint(1, 254)) for _ in range(4))
    group = lambda: f"{rng.randint(0x1000, 0xFFFF):x}"  # noqa: E731
    return rng.choice([v4, v4, f"2001:db8:{group()}::{group()}", ":".join(["2001", "db8", *(group() for _ in range(6))]), f"fe80::{group()}:{group()}:{group()}:{group()}", f"::ffff:{v4}"])  # fmt: skip


def mac(rng: random.Random) -> str:
    """Colons, hyphens, Cisco's dots."""
    digits = some(rng, HEX, 12)
    pairs = [digits[i : i + 2] for i in range(0, 12, 2)]
    return rng.choice([":".join(pairs), "-".join(pairs).upper(), f"{digits[:4]}.{digits[4:8]}.{digits[8:]}"])


def url(rng: random.Random) -> tuple[str, str]:
    """A URL and the secret in it."""
    password = some(rng, ALNUM, 12)
    user = rng.choice(FIRST)
    return rng.choice([(f"https://{user}:{password}@shop.example.com/cart", f"{user}:{password}"), (f"postgres://{user}:{password}@db.example.org:5432/main", f"{user}:{password}"), (f"https://api.example.com/v1/me?access_token={password}&page=2", password), (f"https://example.org/reset?token={password}", password)])  # fmt: skip


MONTHS = "January February March April May June July August September October November December".split()  # noqa: SIM905


def birth_date(rng: random.Random) -> str:
    """Dates in the ways of several countries."""
    y, m, d = _birth(rng)
    return rng.choice([f"{y}-{m:02d}-{d:02d}", f"{m:02d}/{d:02d}/{y}", f"{d:02d}.{m:02d}.{y}", f"{d} {MONTHS[m - 1]} {y}", f"{MONTHS[m - 1]} {d}, {y}", f"{d}/{m}/{y}", f"{d}-{MONTHS[m - 1][:3]}-{y}"])  # fmt: skip


BORN = ["date of birth {}", "DOB: {}", "I was born on {}", "born {}", "d.o.b. {}", "my birthday is {}", "Geburtsdatum: {}", "fecha de nacimiento: {}", "né le {}", "birth date {}", "geboren am {}", "date of birth is {}"]  # fmt: skip

# Kind -> how it stands in a sentence ({}), and what makes it. Kinds whose form says nothing stand next to the word for them.
PERSONAL: list[tuple[str, list[str], Maker]] = [
    ("EMAIL_ADDRESS", ["my mail is {}", "{}", "write to {}.", "contact: {}", "({})", "mail <{}>", "{}, thanks"], email),
    ("PHONE_NUMBER", ["call me on {}", "my number is {}", "phone: {}", "ring {} after six", "{}", "Tel. {}", "whatsapp {}"], phone),
    ("PHONE_NUMBER", ["call me on {}", "my number is {}", "phone {}", "{} is my cell", "reach me at {}."], us_phone),
    ("CREDIT_CARD", ["I paid with {}", "card {}", "{}", "card number: {}.", "the card ({}) was declined", "Kreditkarte {}"], card),
    ("IBAN_CODE", ["account {}", "IBAN: {}", "{}", "please refund to {}.", "Konto {}", "my IBAN is {}, thanks"], iban),
    ("US_SSN", ["my SSN is {}", "social security number {}", "{}", "ssn: {}", "SSN {}."], ssn),
    ("IP_ADDRESS", ["from {}", "my IP is {}", "login from {} failed", "IP: {}", "the address {} is blocked"], ip),
    ("MAC_ADDRESS", ["device {}", "MAC address {}", "my router is {}", "mac: {}"], mac),
    ("DATE_OF_BIRTH", BORN, birth_date),
    ("NATIONAL_ID", ["my id is {}", "{}", "number {}"], nir),
    ("NATIONAL_ID", ["mi DNI es {}", "DNI: {}", "{}"], dni),
    ("NATIONAL_ID", ["NIE {}", "mi NIE es {}"], nie),
    ("NATIONAL_ID", ["meu CPF: {}", "{}", "CPF {}"], cpf),
    ("NATIONAL_ID", ["personnummer {}", "mitt personnummer är {}"], personnummer),
    ("NATIONAL_ID", ["AHV {}", "AHV-Nummer: {}", "{}"], ahv),
    ("NATIONAL_ID", ["hetu {}", "henkilötunnus: {}"], hetu),
    ("NATIONAL_ID", ["my national insurance number is {}", "NINO: {}", "{}"], nino),
    ("NATIONAL_ID", ["NRIC {}", "my NRIC is {}"], nric),
    ("NATIONAL_ID", ["rijksregisternummer {}", "{}"], belgian),
    ("NATIONAL_ID", ["mijn BSN is {}", "BSN: {}", "burgerservicenummer {}"], bsn),
    ("NATIONAL_ID", ["PESEL {}", "mój PESEL to {}"], pesel),
    ("NATIONAL_ID", ["NHS number {}", "my NHS no is {}"], nhs),
    ("NATIONAL_ID", ["my SIN is {}", "social insurance number: {}"], sin),
    ("NATIONAL_ID", ["TFN {}", "my tax file number is {}"], tfn),
    ("NATIONAL_ID", ["RUT {}", "mi RUT es {}"], rut),
    ("NATIONAL_ID", ["my ID number is {}", "SA id: {}"], south_africa),
    *(("API_KEY", ["token {}", "{}", "my key is {}", "key: {}", 'api_key="{}"', "export KEY={}", "I used {} yesterday"], key) for key in KEYS),
]  # fmt: skip


# --- what only looks like it ---------------------------------------------------------------------


def _wrong_card(rng: random.Random) -> str:
    digits = "4" + some(rng, DIGITS, 14)
    return grouped_card(rng, digits + str((int(luhn_digit(digits)) + rng.randint(1, 9)) % 10))


LOOKALIKES: list[tuple[str, list[str], Maker]] = [
    ("order_number", ["my order is {}", "ref {}", "order number {}"], lambda r: rng_form(r, ["ORD-########", "PO-2024-#####", "#########", "SO########", "A#-######-B", "INV-####-####", "W-########-DE"])),
    ("invalid_card", ["tracking {}", "the reference is {}", "code {}"], _wrong_card),
    ("invalid_iban", ["the transaction code is {}", "reference {}", "code: {}"], lambda r: iban(r, right=False)),
    ("version", ["version {}", "I run v{}", "build {}", "after updating to {}"], lambda r: rng_form(r, ["#.#.#", "1#.#.##", "10.0.#####.####", "2.#.1#.4", "115.0.5790.###", "v#.##.#-rc#"])),
    ("amount", ["I paid {}", "it says {}", "{} is missing"], lambda r: rng_form(r, ["$#,###.##", "€ ###,##", "1.###,## EUR", "£##.##", "₹ 1,##,###", "#### USD"])),
    ("date", ["since {}", "on {} it failed", "valid until {}"], lambda r: rng_form(r, ["2023-0#-1#", "1#/0#/2024", "0#.1#.2022", "2024-0#-1#T1#:2#:3#Z", "1# March 202#"])),
    ("handle", ["cc {}", "as {} said", "thanks {}"], lambda r: "@" + r.choice(["bankteam", "support", "acme_help", "here", "channel", "dev-ops"])),
    ("tracking", ["parcel {}", "tracking number {}", "shipment {}"], lambda r: rng_form(r, ["1Z999AA10#########", "JD0146000########", "RR#########DE", "CP#########US"])),
    ("isbn", ["the book {}", "ISBN {}"], lambda r: "978-3-16-148410-" + r.choice(DIGITS)),
    ("uuid", ["request {}", "trace id {}", "error {}"], lambda r: "-".join(some(r, HEX, n) for n in (8, 4, 4, 4, 12))),
    ("hash", ["commit {}", "sha {}", "digest {}"], lambda r: some(r, HEX, r.choice([7, 40, 64]))),
    ("coordinates", ["at {}", "GPS {}"], lambda r: rng_form(r, ["52.5###, 13.4###", "40.7128, -74.00##", "-33.8###,151.2###"])),
    ("number", ["it shows {}", "about {} of them", "score {}"], lambda r: rng_form(r, ["3.14159265####", "1#-#", "##%", "1,2##,3##", "2^##", "#e-#", "16:9", "####x####"])),
    ("time", ["at {}", "since {}"], lambda r: rng_form(r, ["1#:2#:3#", "0#:1#", "1#:0# - 1#:3#", "17##########"])),
    ("model", ["my phone is a {}", "the {} is broken", "part {}"], lambda r: rng_form(r, ["SM-G99#B/DS", "RTX 40#0", "WD-40", "A#-##", "XPS 15 95##", "iPhone 1#", "SN-######", "CVE-2023-####", "RFC 82##"])),
    ("file", ["see {}", "in {}"], lambda r: rng_form(r, ["IMG_2024####_######.jpg", "/var/log/app-2023.log", "report_v#.pdf", "C:\\Users\\Public\\data#.csv"])),
    ("code", ["I use {}", "it says {}"], lambda r: r.choice(["sk-learn", "scikit-learn==1.4.2", "std::vector<int>::iterator", "a::b", "key=value", "font-size: 12px", "#ff00aa", "git@github.com:acme/app.git", "http://localhost:8080/", "127.0.0.1", "npm install --save-dev", "password reset", "token_count", "SELECT * FROM users"])),
]  # fmt: skip


def rng_form(rng: random.Random, forms: list[str]) -> str:
    """One of some forms, each `#` a digit that is not 0."""
    return "".join(rng.choice("123456789") if c == "#" else c for c in rng.choice(forms))
