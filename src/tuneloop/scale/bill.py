"""Invoices of any provider, and which of what was planned each of their lines pays for."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.units import counted, usd_words
from tuneloop.records.bill import Bill, BillLine, UnmatchedInvoice

# Names that columns have, compared in small letters without signs; earlier ones count before later ones.
COLUMNS: dict[str, tuple[str, ...]] = {
    "usd": (
        "effectivecost", "billedcost", "unblendedcost", "lineitemunblendedcost", "netcost", "totalcost", "costest", "cost", "amountdue",
        "netamount", "amount", "charges", "charge", "totalprice", "total", "subtotal", "price", "paid", "spend", "usd", "value", "betrag", "kosten",
    ),
    "hours": ("durationhours", "usagehours", "gpuhours", "hours", "hrs", "stunden"),
    "currency": ("billingcurrency", "currencycode", "currency", "waehrung", "währung"),
    "date": (
        "chargeperiodstart", "usagestartdate", "lineitemusagestartdate", "billingperiod", "startdate", "date", "day", "time", "month",
        "launched", "created", "invoicedate", "datum",
    ),
    "host": ("providername", "provider", "vendor", "servicename", "cloud", "host", "supplier"),
}  # fmt: skip
PER_HOUR = re.compile(r"(/|per|usd|cost|price|rate)\s*(hr|hour|gpu.?hour)\b|hourly", re.I)
SUMS = re.compile(r"^\W*(grand\s+)?(sub)?total\b|^\W*(sum|summe|gesamt|balance|amount due|vat|tax|mwst)\b", re.I)
ENCODINGS = ("utf-8-sig", "utf-16", "cp1252")
SYMBOLS = {"$": "USD", "US$": "USD", "€": "EUR", "£": "GBP", "¥": "JPY"}
HASHED = re.compile(r"(.+)-([0-9a-f]{8,})")  # a run's or an artifact's id
FORMAT = re.compile(
    r"-(merged|adapter|gguf(-lora)?)(-[a-z0-9-]+)?$"
)  # in an artifact's id, between its job and its hash
LEAST_DIGITS = 4  # of a hash, that tell
HEADER_ROWS = 40  # lines of a file in which its header is looked for


@dataclass(frozen=True)
class Invoice:
    """A paid line.

    Args:
        place: FILE:LINE.
        text: everything that the line says, to look for names in.
        usd: dollars; a credit is negative.
        hours: of use; None: it does not say.
        month: as 2026-11; empty: it does not say.
        host: the provider, as far as the line says it.
    """

    place: str
    text: str
    usd: float
    hours: float | None = None
    month: str = ""
    host: str = ""


@dataclass(frozen=True)
class Expected:
    """What was planned.

    Args:
        name: that an invoice may hold; `others`: further names of the same, as its id; `loose`: names that it shares with its
            kin, as that of its job, which count where no own name is in the invoice.
        usd: in all; None where it depends on the time.
        usd_per_hour: of a deployment's replica; `usd_per_month`: of the least replicas.
    """

    name: str
    kind: str
    host: str = ""
    usd: float | None = None
    usd_per_hour: float | None = None
    usd_per_month: float | None = None
    others: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()


@dataclass
class _Joined:
    what: Expected
    invoices: list[Invoice] = field(default_factory=list)


def read_invoices(path: Path, rates: Mapping[str, float]) -> list[Invoice]:
    """The paid lines of a file: a CSV with any usual names of columns, JSON, or what `sky cost-report` prints.

    Lines that sum up others, and those of nothing, are left out.

    Args:
        rates: dollars for one of another currency, as `{"EUR": 1.08}`.

    Raises:
        UserError: no such file, no column of amounts, a value that is no amount, a currency without a rate.
    """
    text = _decoded(path)
    if text.lstrip()[:1] in ("[", "{"):
        rows = list(_json_rows(path, text))
    elif re.search(r"^NAME\s{2,}.*COST", text, re.M):
        rows = list(_table_rows(text))
    else:
        rows = list(_csv_rows(path, text))
    return [invoice for line, row in rows if (invoice := _invoice(f"{path.name}:{line}", row, rates)) is not None]


def join(expected: Sequence[Expected], invoices: Sequence[Invoice]) -> Bill:
    """Each paid line with what it names: best by a name of its own, else by a shortened one, else by its job's name.

    Of several names of a kind the longest counts; of several that have it, those at the provider that the line names.

    Args:
        expected: everything that was planned here.
        invoices: paid lines.
    """
    found = [_Joined(one) for one in expected]
    unmatched = []
    for invoice in invoices:
        named = {number: kind for number, one in enumerate(found) if (kind := _named(one.what, invoice)) != NOT_NAMED}
        best = [number for number, kind in named.items() if kind == max(named.values())]
        if len(best) > 1:
            best = _at_its_provider([(number, found[number].what.host) for number in best], invoice) or best
        if len(best) == 1:
            found[best[0]].invoices.append(invoice)
            continue
        why = "names nothing that was planned here"
        if best:
            why = f"names several: {', '.join(sorted({_title(found[n].what) for n in best}))}"
        unmatched.append(
            UnmatchedInvoice(place=invoice.place, text=invoice.text[:200], usd=round(invoice.usd, 4), why=why)
        )
    lines = [_line(one) for one in found]
    both = [line for line in lines if line.ratio is not None]
    return Bill(
        lines=sorted(lines, key=lambda line: (line.paid is None, -(line.paid or 0.0), line.name)),
        unmatched=unmatched,
        predicted=round(sum(line.predicted or 0.0 for line in both), 4),
        paid=round(sum(line.paid or 0.0 for line in both), 4),
        unmatched_usd=round(sum(one.usd for one in unmatched), 4),
    )


def _title(what: Expected) -> str:
    return f"{what.name} ({what.host or what.kind})"


def _line(one: _Joined) -> BillLine:
    """A run's or deployment's line; what a deployment was to cost follows from how long it was paid for."""
    what, invoices = one.what, one.invoices
    hours = [invoice.hours for invoice in invoices if invoice.hours is not None]
    months = len({invoice.month for invoice in invoices if invoice.month}) or 1
    predicted, basis = what.usd, "the plan" if what.usd is not None else ""
    if predicted is None and what.usd_per_hour is not None and hours and len(hours) == len(invoices):
        predicted, basis = what.usd_per_hour * sum(hours), f"{sum(hours):,.1f} h at ${what.usd_per_hour:,.2f}"
    elif predicted is None and what.usd_per_month is not None:
        predicted = what.usd_per_month * months
        basis = f"{counted(months, 'month')} of the least replicas"
    paid = round(sum(invoice.usd for invoice in invoices), 4) if invoices else None
    return BillLine(
        name=what.name, host=what.host, kind=what.kind, predicted=None if predicted is None else round(predicted, 4), paid=paid,
        basis=basis, invoices=[invoice.place for invoice in invoices],
    )  # fmt: skip


NOT_NAMED = (0, 0)


def _named(what: Expected, invoice: Invoice) -> tuple[int, int]:
    """How well an invoice names something, to be compared: the kind of name (3: its own, 2: shortened, 1: its job's), its letters."""
    text = f"-{_plain(invoice.text)}-"
    own = [_plain(name) for name in (what.name, *what.others)]
    shortened = [part for name in own for part in _shortened(name, text)]
    kinds = ((3, own), (2, shortened), (1, [_plain(name) for name in what.loose]))
    return max(
        ((kind, len(name)) for kind, names in kinds for name in names if name and f"-{name}-" in text),
        default=NOT_NAMED,
    )


def _shortened(name: str, text: str) -> list[str]:
    """What a text may hold of a name that ends in a hash: some of its digits behind the rest, or the hash alone."""
    found = HASHED.fullmatch(name)
    if not found:
        return []
    job, digest = found[1], found[2]
    begun = re.search(rf"-({re.escape(job)}-({digest[:LEAST_DIGITS]}[0-9a-f]*))-", text)
    return [digest, begun[1]] if begun and digest.startswith(begun[2]) else [digest]


def job_of(name: str) -> str:
    """The job's name in a run's or an artifact's id, as `tickets` of `tickets-1a2b3c4d`; empty: it has no such end."""
    found = HASHED.fullmatch(_plain(name))
    return FORMAT.sub("", found[1]) if found else ""


def _at_its_provider(candidates: Sequence[tuple[int, str]], invoice: Invoice) -> list[int]:
    """Those that are at the provider that a line names; else, where it names one, those that are at none in particular."""
    text = _plain(f"{invoice.host} {invoice.text}")
    there = [number for number, host in candidates if host and _plain(host) in text]
    return there or ([number for number, host in candidates if not host] if invoice.host else [])


def _plain(text: str) -> str:
    """Small letters and digits, all else as one dash: as services are named."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# --- files -----------------------------------------------------------------------------------------


def _decoded(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"Can't read the invoices: {error.strerror or error}", where=str(path), next_step="check the path"
        ) from None
    for encoding in ENCODINGS:
        if encoding == "utf-16" and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
            continue
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise UserError("Not a text file", where=str(path), next_step="export the invoices as CSV")


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Objects of a list, at the top or under any key; nested values by their last name."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"No valid JSON: {error}", where=str(path), next_step="export the invoices again") from None
    rows = value if isinstance(value, list) else next((v for v in value.values() if isinstance(v, list)), [value])
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield number, {str(k): "" if v is None else str(v) for k, v in row.items()}


def _table_rows(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The table of `sky cost-report`: columns begin where their titles do."""
    names: list[tuple[str, int]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"NAME\s{2,}.*COST", line):
            names = [(m[0], m.start()) for m in re.finditer(r"\S+(?: \S+)*", line)]
        elif names and line.strip() and not line.startswith(("-", "=")):
            ends = [start for _, start in names[1:]] + [None]
            yield number, {name: line[start:end].strip() for (name, start), end in zip(names, ends, strict=True)}
        elif not line.strip():
            names = []


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows behind the header, which may stand below a few lines of address."""
    body = "\n".join(text.splitlines())
    read = [list(csv.reader(io.StringIO(body), delimiter=mark)) for mark in (",", ";", "\t", "|")]
    # The separator whose header has a column of amounts, and most columns.
    found = [
        (len(line), number, lines)
        for lines in read
        for number, line in enumerate(lines[:HEADER_ROWS])
        if len(line) > 1 and _column(line, "usd") is not None
    ]
    if not found:
        raise UserError(
            f"No column of amounts ({next(iter(text.split(chr(10))), '').strip()[:120]})", where=str(path),
            next_step="name one of its columns cost, amount, total or price",
        )  # fmt: skip
    _, header, lines = max(found, key=lambda one: (one[0], -one[1]))
    names = [name.strip() or f"column {number}" for number, name in enumerate(lines[header], 1)]
    for number, line in enumerate(lines[header + 1 :], header + 2):
        if any(cell.strip() for cell in line):
            yield number, dict(zip(names, [*line, *[""] * len(names)], strict=False))


def _column(names: Sequence[str], kind: str) -> str | None:
    """The column of a kind, by its usual names."""
    plain: dict[str, str] = {}
    for name in names:
        if kind == "usd" and PER_HOUR.search(name):
            continue  # a price and no amount
        short = re.sub(r"[^a-zäöü]", "", name.lower())
        for letters in (short, re.sub(r"(in)?(usd|eur|gbp|dollars?|est|estimated|us)$", "", short)):
            plain.setdefault(letters, name)
    return next((plain[known] for known in COLUMNS[kind] if known in plain), None)


def _invoice(place: str, row: Mapping[str, str], rates: Mapping[str, float]) -> Invoice | None:
    names = list(row)
    column = _column(names, "usd")
    if column is None:
        raise UserError("No amount", where=place, next_step="name one of its columns cost, amount, total or price")
    texts = [value.strip() for name, value in row.items() if name != column and value.strip()]
    said = row[column].strip()
    if (
        not said
        or said in ("-", "--", "n/a", "N/A")
        or (texts and SUMS.search(texts[0]))
        or (not texts and SUMS.search(said))
    ):
        return None
    value, sign = _amount(said, place)
    stated = _column(names, "currency")
    currency = (row[stated].strip().upper() if stated else "") or sign or _currency_of(column) or "USD"
    if currency != "USD" and currency not in rates:
        raise UserError(
            f"An amount in {currency}",
            where=place,
            next_step=f"say what one is worth in dollars: --rate {currency}=1.08",
        )
    hours, date, host = (_column(names, kind) for kind in ("hours", "date", "host"))
    return Invoice(
        place, " | ".join(texts), value * rates.get(currency, 1.0), _hours(row, hours), _month(row[date]) if date else "",
        row[host].strip() if host else "",
    )  # fmt: skip


def _currency_of(column: str) -> str:
    found = re.search(r"\b(USD|EUR|GBP|CHF|JPY)\b", column.upper())
    return found[1] if found else next((code for sign, code in SYMBOLS.items() if sign in column), "")


def _amount(text: str, place: str) -> tuple[float, str]:
    """`$1,234.50`, `1.234,50 €`, `(12.00)`, `-3` and their currency.

    Raises:
        UserError: it is no amount.
    """
    sign = next((code for mark, code in SYMBOLS.items() if mark in text), "")
    sign = sign or (found[1] if (found := re.search(r"\b([A-Z]{3})\b", text)) else "")
    digits = re.sub(r"[^\d.,()\-]", "", text)
    negative = digits.startswith("(") or "-" in digits
    digits = digits.strip("()-").replace("-", "")
    if "," in digits and "." in digits:
        digits = (
            digits.replace(",", "")
            if digits.rfind(".") > digits.rfind(",")
            else digits.replace(".", "").replace(",", ".")
        )
    elif "," in digits:  # 1,234 has groups, 1,5 and 0,123 a decimal comma
        groups = re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+", digits)
        digits = digits.replace(",", "" if groups else ".")
    elif digits.count(".") > 1:
        digits = digits.replace(".", "")
    try:
        value = float(digits)
    except ValueError:
        raise UserError(
            f"Not an amount: {text!r:.60}", where=place, next_step="correct it, or leave that line out"
        ) from None
    return (-value if negative else value), sign


def _hours(row: Mapping[str, str], column: str | None) -> float | None:
    """Hours that a line says, also in SkyPilot's words: 1h 20m 5s, or 2 hrs."""
    if column is not None:
        try:
            return _amount(row[column], "")[0]
        except UserError:
            return None
    said = next((value for name, value in row.items() if name.strip().lower() == "duration"), "")
    parts = re.findall(r"([\d.]+)\s*(d|h|m|s)", said.lower())
    unit = {"d": 24.0, "h": 1.0, "m": 1 / 60, "s": 1 / 3600}
    return sum(float(number) * unit[letter] for number, letter in parts) if parts else None


def _month(text: str) -> str:
    """The month of a date, as 2026-11."""
    if found := re.search(r"(20\d\d)[-/.](\d{1,2})", text):
        return f"{found[1]}-{int(found[2]):02d}"
    if found := re.search(r"(\d{1,2})[-/.](\d{1,2})[-/.](20\d\d)", text):
        first, second = int(found[1]), int(found[2])
        return f"{found[3]}-{(first if '/' in found[0] and first <= 12 else second):02d}"
    return ""


def to_table(bill: Bill) -> list[tuple[str, str, str, str, str]]:
    """Rows of the table: name, host, predicted, paid, ratio."""

    def usd(value: float | None) -> str:
        return "-" if value is None else dollars(value)

    return [
        (line.name, line.host, usd(line.predicted), usd(line.paid), "-" if line.ratio is None else f"{line.ratio:,.2f}")
        for line in bill.lines
    ]


def dollars(value: float) -> str:
    """Dollars to the cent; what is less than one, in words of its own."""
    return f"${value:,.2f}" if value == 0 or abs(value) >= 0.005 else usd_words(value)


def rates_of(texts: Sequence[str]) -> dict[str, float]:
    """`EUR=1.08` as {"EUR": 1.08}.

    Raises:
        UserError: it is not of that form.
    """
    found: dict[str, Any] = {}
    for text in texts:
        one = re.fullmatch(r"([A-Za-z]{3})=(\d+(?:\.\d+)?)", text.strip())
        if one is None or float(one[2]) <= 0:
            raise UserError(
                f"Not a rate: {text!r}", where="--rate", next_step="write the dollars for one: --rate EUR=1.08"
            )
        found[one[1].upper()] = float(one[2])
    return found
