"""Invoices of any shape are read to the cent, and each paid line belongs to what it names, or is listed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tuneloop.core.errors import UserError
from tuneloop.records.bill import Bill
from tuneloop.scale.bill import Expected, Invoice, job_of, join, rates_of, read_invoices, to_table

SKY = """Clusters
NAME       LAUNCHED     DURATION   RESOURCES          STATUS      COST/hr   COST (est.)
tickets    2 days ago   1h 30m 2s  1x AWS(H100:1)     TERMINATED  $ 4.00    $ 6.00
notes-run  3 days ago   40m        2x GCP(L4:1)       -           $ 1.42    $ 0.95
"""


def read(tmp_path: Path, text: str, name: str = "paid.csv", encoding: str = "utf-8", **rates: float) -> list[Invoice]:
    (tmp_path / name).write_bytes(text.encode(encoding))
    return read_invoices(tmp_path / name, rates)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Description,Amount\ntickets,12.50\n", [12.5]),
        ('Item;Betrag (EUR)\ntickets;"1.234,50"\n', [2469.0]),
        ('name,Cost (USD)\ntickets,"$1,234.50"\nnotes,(2.25)\nother,-3\n', [1234.5, -2.25, -3.0]),
        ("Name\tPrice per hour\tTotal price\ntickets\t4.00\t6.00\n", [6.0]),
        ("resource,cost,currency\ntickets,10,EUR\n", [20.0]),
        ("resource,cost\ntickets,10 EUR\n", [20.0]),
        ('resource,cost\ntickets,"0,95 €"\n', [1.9]),
        ("Invoice of ACME\nAddress, 12 Street\n\nService,Usage (hours),Amount\nGPU tickets,2,8\n\nTotal,,8\n", [8.0]),
        ("name,amount\ntickets,5\nTotal,5\nVAT 20%,1\n,5\n", [5.0, 5.0]),
        ("lineItem/ResourceId,lineItem/UnblendedCost\narn:aws:x/tickets,0.000125\n", [0.000125]),
        ("ProviderName,BilledCost,EffectiveCost,ResourceName\nAWS,9,7,tickets\n", [7.0]),
        ("name|cost\ntickets|3\n", [3.0]),
        ("name,cost\ntickets,\nnotes,n/a\nother,1\n", [1.0]),
    ],
)
def test_amounts_are_read_whatever_the_columns_are_called(tmp_path: Path, text: str, found: list[float]) -> None:
    assert [line.usd for line in read(tmp_path, text, EUR=2.0)] == pytest.approx(found)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_any_usual_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    (line,) = read(tmp_path, "Beschreibung;Betrag\nGerät tickets;1,50\n", encoding=encoding)
    assert line.usd == 1.5 and line.text == "Gerät tickets"


def test_what_skypilot_prints_is_read(tmp_path: Path) -> None:
    first, second = read(tmp_path, SKY, "report.txt")
    assert (first.usd, second.usd) == (6.0, 0.95) and "tickets" in first.text
    assert first.hours == pytest.approx(1.5, abs=0.01) and second.hours == pytest.approx(2 / 3)


def test_json_is_read_too(tmp_path: Path) -> None:
    text = '{"data": [{"name": "tickets", "total_cost": 3.5, "duration": "2h"}, {"name": "x", "total_cost": null}]}'
    (line,) = read(tmp_path, text, "paid.json")
    assert line.usd == 3.5 and line.hours == 2.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,notes\ntickets,fine\n", "No column of amounts"),
        ("name,cost\ntickets,a lot\n", "Not an amount: 'a lot'"),
        ("name,cost\ntickets,5 GBP\n", "An amount in GBP"),
        ("", "No column of amounts"),
        ("[{", "No valid JSON"),
    ],
)
def test_what_can_t_be_read_is_said_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read(tmp_path, text)
    assert "paid.csv" in caught.value.where and caught.value.next_step


def test_a_rate_is_dollars_for_one() -> None:
    assert rates_of(["eur=1.08"]) == {"EUR": 1.08}
    for wrong in ("EUR", "EUR=0", "EURO=1"):
        with pytest.raises(UserError, match="Not a rate"):
            rates_of([wrong])


EXPECTED = [
    Expected(
        "tickets", "deployment", "runpod", usd_per_hour=2.0, usd_per_month=1460.0, others=("tickets-merged-0123",)
    ),
    Expected("tickets-1a2b3c4d", "run", usd=4.0),
    Expected("notes", "job", "skypilot", usd=10.0),
]


def bill(*invoices: Invoice) -> Bill:
    return join(EXPECTED, invoices)


def test_a_paid_line_belongs_to_the_longest_name_that_it_holds() -> None:
    found = bill(
        Invoice("a:2", "endpoint tickets (A100)", 5.0, hours=2.0),
        Invoice("a:3", "run tickets-1a2b3c4d", 6.0),
        Invoice("a:4", "TICKETS_1A2B3C4D, again", 1.0),
        Invoice("a:5", "ticketshop", 9.0),
    )
    lines = {line.name: line for line in found.lines}
    assert lines["tickets"].paid == 5.0 and lines["tickets"].predicted == 4.0 and lines["tickets"].ratio == 1.25
    assert lines["tickets-1a2b3c4d"].paid == 7.0 and lines["tickets-1a2b3c4d"].invoices == ["a:3", "a:4"]
    assert lines["notes"].paid is None and lines["notes"].ratio is None
    assert [(one.place, one.usd) for one in found.unmatched] == [("a:5", 9.0)]
    assert found.paid == 12.0 and found.predicted == 8.0 and found.unmatched_usd == 9.0
    assert to_table(found)[-1] == ("notes", "skypilot", "$10.00", "-", "-")


def test_every_dollar_stands_somewhere() -> None:
    invoices = [Invoice(f"a:{n}", text, 1.0 + n) for n, text in enumerate(["tickets", "x", "notes notes", "", "run"])]
    found = bill(*invoices)
    assert sum(line.paid or 0 for line in found.lines) + found.unmatched_usd == sum(one.usd for one in invoices)


def test_a_deployment_without_hours_is_paid_by_the_month() -> None:
    found = bill(Invoice("a:1", "tickets", 1500.0, month="2026-10"), Invoice("a:2", "tickets", 1400.0, month="2026-11"))
    line = next(line for line in found.lines if line.name == "tickets")
    assert line.predicted == 2920.0 and line.basis == "2 months of the least replicas"


def test_two_of_one_name_are_told_apart_by_the_provider_or_listed() -> None:
    twice = [Expected("tickets", "deployment", "modal", usd=1.0), Expected("tickets", "deployment", "runpod", usd=1.0)]
    found = join(twice, [Invoice("a:1", "tickets", 3.0, host="RunPod Inc"), Invoice("a:2", "tickets", 4.0)])
    assert {line.host: line.paid for line in found.lines} == {"runpod": 3.0, "modal": None}
    assert found.unmatched[0].why == "names several: tickets (modal), tickets (runpod)"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("GPU hours, Tickets", "tickets-1a2b3c4d"),
        ("pod tickets_1a2b", "tickets-1a2b3c4d"),
        ("pod 1a2b3c4d (H100)", "tickets-1a2b3c4d"),
        ("tickets-1a2b3c4d", "tickets-1a2b3c4d"),
        ("tickets-5e6f0000", "deployment"),
        ("tickets 1a2c", "tickets-1a2b3c4d"),  # another one's digits: the job's name is left
        ("ticket", ""),
        ("tickets-1a2b3c4d5", "tickets-1a2b3c4d"),
        ("a1a2b3c4d", ""),
    ],
)
def test_a_line_may_name_the_job_or_a_part_of_the_id(text: str, name: str) -> None:
    expected = [
        Expected("tickets-1a2b3c4d", "run", usd=4.0, loose=(job_of("tickets-1a2b3c4d"),)),
        Expected("deployment", "deployment", "modal", others=("tickets-5e6f0000",)),
    ]
    found = join(expected, [Invoice("a:1", text, 3.0)])
    assert [line.name for line in found.lines if line.paid] == ([name] if name else [])


def test_a_name_of_its_own_counts_before_the_name_of_its_job() -> None:
    run = Expected("tickets-1a2b3c4d", "run", usd=4.0, loose=("tickets",))
    other, service = replace(run, name="tickets-5e6f7a8b"), Expected("tickets", "deployment", "modal")
    assert [line.name for line in join([run, service], [Invoice("a:1", "tickets", 3.0)]).lines if line.paid] == [
        "tickets"
    ]
    both = join([run, other], [Invoice("a:1", "tickets", 3.0), Invoice("a:2", "tickets-5e6f", 2.0)])
    assert both.unmatched[0].why == "names several: tickets-1a2b3c4d (run), tickets-5e6f7a8b (run)"
    assert [line.name for line in both.lines if line.paid] == ["tickets-5e6f7a8b"]
    far = Expected("support", "deployment", "modal", loose=("tickets",))
    said = join(
        [run, far], [Invoice("a:1", "tickets", 3.0, host="RunPod"), Invoice("a:2", "tickets", 2.0, host="Modal")]
    )
    assert {line.name: line.paid for line in said.lines} == {"tickets-1a2b3c4d": 3.0, "support": 2.0}


def test_the_job_is_found_in_ids_of_runs_and_artifacts() -> None:
    ids = ("ticket-card-aaeae754", "ticket-card-merged-0123456789ab", "ticket-card-gguf-q4_k_m-0123456789ab",
           "ticket-card-gguf-lora-0123456789ab", "ticket-card", "demo")  # fmt: skip
    assert [job_of(each) for each in ids] == ["ticket-card"] * 4 + ["", ""]
