"""The example data keeps what its description promises."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from places import ROOT

TICKETS = ROOT / "examples" / "tickets"


@pytest.fixture(scope="module")
def tickets() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TICKETS / "tickets.jsonl").read_text(encoding="utf-8").splitlines()]


def test_enough_tickets_in_eight_uneven_queues(tickets: list[dict[str, Any]]) -> None:
    assert len(tickets) >= 600
    counts = Counter(ticket["queue"] for ticket in tickets)
    assert len(counts) == 8
    assert min(counts.values()) >= 30
    assert max(counts.values()) >= 2 * min(counts.values())


def test_the_description_has_the_counts(tickets: list[dict[str, Any]]) -> None:
    text = (TICKETS / "README.md").read_text(encoding="utf-8")
    assert f"{len(tickets)} support tickets" in text
    for queue, count in Counter(ticket["queue"] for ticket in tickets).items():
        assert re.search(rf"\| {queue} \| {count} \|", text), queue


def test_every_ticket_has_text_queue_and_a_summary_of_two_parts(tickets: list[dict[str, Any]]) -> None:
    for number, ticket in enumerate(tickets, 1):
        assert set(ticket) == {"text", "queue", "summary"}, number
        assert ticket["text"].strip(), number
        assert re.fullmatch(r"Issue: \S.*\s+Resolution: \S.*", ticket["summary"], re.DOTALL), number


def test_no_ticket_is_there_twice(tickets: list[dict[str, Any]]) -> None:
    for column in ("text", "summary"):
        seen = Counter(" ".join(re.findall(r"\w+", ticket[column].lower())) for ticket in tickets)
        assert not [text for text, count in seen.items() if count > 1], column


def test_at_most_one_percent_resembles_another_ticket(tickets: list[dict[str, Any]]) -> None:
    sets = [trigrams(ticket["text"]) for ticket in tickets]
    nearest = [0.0] * len(sets)
    for i, item in enumerate(sets):
        for j in range(i):
            shared = len(item & sets[j])
            if shared:
                likeness = shared / (len(item) + len(sets[j]) - shared)
                nearest[i], nearest[j] = max(nearest[i], likeness), max(nearest[j], likeness)
    assert sum(likeness > 0.6 for likeness in nearest) <= 0.01 * len(sets)


def trigrams(text: str) -> set[tuple[str, ...]]:
    sentence = re.findall(r"\w+", text.lower())
    return set(zip(sentence, sentence[1:], sentence[2:], strict=False)) or {tuple(sentence)}


def test_no_personal_data_but_reserved_examples(tickets: list[dict[str, Any]]) -> None:
    text = "\n".join(f"{ticket['text']}\n{ticket['summary']}" for ticket in tickets)
    addresses = re.findall(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", text)
    assert addresses, "the pattern finds addresses at all"
    assert {a.rpartition("@")[2] for a in addresses} <= {"example.com", "example.org", "example.net"}
    assert not re.findall(r"https?://(?!\S*example\.)\S+", text)
    assert not re.findall(r"\b(?:\d{1,3}\.){3}\d{1,3}\b", text), "IP addresses"
    assert not re.findall(r"\b\d{3}-\d{2}-\d{4}\b", text), "US social security numbers"
    assert not [n for n in re.findall(r"\b(?:\d[ -]?){13,19}\b", text) if is_card(n)], "card numbers"
    phones = re.findall(r"(?:\+\d{1,3}[ -]?)?\(?\d{3,5}\)?[ .-]\d{3,4}[ .-]\d{3,4}\b", text)
    assert not [p for p in phones if "555" not in p], "telephone numbers outside of the invented 555 ones"


def is_card(text: str) -> bool:
    """Luhn's check sum."""
    digits = [int(c) for c in reversed(text) if c.isdigit()]
    return sum(d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(digits)) % 10 == 0
