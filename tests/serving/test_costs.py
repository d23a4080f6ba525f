"""Costs are those of the store: every second and token of the engine stands in one group."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.files import write_json
from tuneloop.core.ids import since_time, uuid7
from tuneloop.records.request import StoredRequest
from tuneloop.serving.costs import costs_of
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.erase import erase, find
from tuneloop.serving.store.store import opened


def fill(folder: Path, base: str = "llama-3.1-8b", devices: Sequence[str] = ()) -> None:
    requests = [
        StoredRequest(
            id=uuid7(), time=f"2026-01-01T{hour:02}:00:00.000Z", key="anna" if hour % 2 else "", model=f"m{hour % 3}",
            prompt=[], prompt_tokens=1000, completion_tokens=500, seconds=60.0, usd=0.01, tier="default",
            error="x" if hour == 5 else None,
        )
        for hour in range(11)
    ]  # fmt: skip
    with opened(folder, create=True) as store:
        insert(store, requests)
    prices = {"prices": {"usd_per_hour": 2.0}}
    write_json(folder / "state.json", {"version": 1, "base": base, "devices": [*devices], "config": prices})


def test_the_groups_add_up_to_the_whole(tmp_path: Path) -> None:
    fill(tmp_path)
    found = costs_of(tmp_path)
    assert (found.total.requests, found.total.failed, found.total.tokens) == (11, 1, 16500)
    assert found.hours == pytest.approx(10) and found.utilisation == pytest.approx(11 / 600)
    assert found.total.machine_usd == pytest.approx(20.0)
    assert found.total.to_json()["usd_per_million_tokens"] == pytest.approx(20 / 16500 * 1e6)
    for rows in found.groups.values():
        assert sum(row.requests for row in rows) == 11
        assert sum(row.machine_usd or 0 for row in rows) == pytest.approx(20.0)
    assert {row.name for row in found.groups["key"]} == {"anna", "(none)"}
    half = costs_of(tmp_path, "2026-01-01T05:30:00.000Z", 4.0)
    assert half.total.requests == 5 and half.total.machine_usd == pytest.approx(16.0)


def test_a_price_is_of_the_tokens_that_had_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def request(number: int, model: str, usd: float | None) -> StoredRequest:
        time = f"2026-01-01T{number:02}:00:00.000Z"
        return StoredRequest(
            id=uuid7(),
            time=time,
            model=model,
            prompt=[],
            prompt_tokens=800,
            completion_tokens=200,
            usd=usd,
            seconds=60.0,
        )

    with opened(tmp_path, create=True) as store:
        insert(store, [request(1, "hosted", 0.002), *(request(n, "own", usd) for n, usd in ((2, None), (3, 0.0)))])
    for since in ("", "2026-01-01T00:30:00.000Z"):
        total = costs_of(tmp_path, since).total
        assert (total.tokens, total.priced_tokens, total.requests, total.priced_requests) == (3000, 1000, 3, 1)
        assert total.to_json()["usd_per_million_tokens"] == pytest.approx(2.0)
        assert total.to_json()["usd_per_request"] == pytest.approx(0.002)
    own = next(row for row in costs_of(tmp_path).groups["model"] if row.name == "own")
    assert own.to_json()["usd_per_million_tokens"] is None
    assert costs_of(tmp_path, usd_per_hour=3.0).total.to_json()["usd_per_request"] == pytest.approx(2.0)
    assert main(["costs", "-f", str(tmp_path)]) == 0
    assert "1 of 3 requests that had a price" in capsys.readouterr().out


def test_hosted_prices_stand_beside_with_the_volume_from_which_this_machine_pays(tmp_path: Path) -> None:
    fill(tmp_path)
    cheapest = costs_of(tmp_path).hosted[0]
    assert cheapest.model == "llama-3.1-8b" and cheapest.tokens_a_month is not None
    a_token = cheapest.usd / 16500
    assert cheapest.tokens_a_month * a_token == pytest.approx(2.0 * 730.5)
    assert cheapest.reachable is False, "25 tokens a second are 66 million a month"
    fill(tmp_path / "other", base="mine")
    assert costs_of(tmp_path / "other").hosted == []


def test_the_command_prints_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path)
    assert main(["costs", "-f", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "11 requests" in out and "anna" in out and "cheaper from" in out
    assert main(["costs", "-f", str(tmp_path), "--json", "--since", "2027-01-01"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"]["requests"] == 0 and found["utilisation"] == 0
    assert main(["costs", "-f", str(tmp_path / "none")]) == 2


@pytest.mark.usefixtures("each_database")
def test_what_was_refused_is_summed_apart_from_what_failed(tmp_path: Path) -> None:
    rows = "INSERT INTO requests (id, time, model, prompt, error, finish) VALUES (?, '2026-01-01T00', 'm', '[]', ?, ?)"
    with opened(tmp_path, create=True) as store:
        for values in (["a", "x", None], ["b", "too many", "refused"], ["c", None, "stop"]):
            store.execute(rows, values)
        sums = "SELECT requests, failed, refused FROM costs"
        assert store.execute(sums).fetchall() == [(3, 1, 1)]
        store.execute("DELETE FROM requests WHERE id = 'b'")
        assert store.execute(sums).fetchall() == [(2, 1, 0)]


def test_times_are_read() -> None:
    assert since_time("24h", 86400.0) == "1970-01-01T00:00:00.000Z"
    assert since_time("2026-01-31") == "2026-01-31" and since_time("") == ""
    with pytest.raises(UserError, match="Not a time"):
        since_time("yesterday")


def test_the_planners_forecast_stands_beside(tmp_path: Path) -> None:
    fill(tmp_path)
    found = costs_of(tmp_path)
    plan = found.forecast
    assert plan is not None and plan.measured == pytest.approx(16500 / 660)
    assert plan.usd_per_million_full == pytest.approx(plan.usd_per_hour / plan.tokens_per_second / 3600 * 1e6)
    assert plan.usd_per_million == pytest.approx(plan.usd_per_million_full / found.utilisation)
    other = costs_of(tmp_path, gpu="h100-sxm").forecast
    assert other is not None and "H100" in other.machine and other.tokens_per_second > plan.tokens_per_second
    with pytest.raises(UserError):
        costs_of(tmp_path, gpu="h1000")
    fill(tmp_path / "odd", base="my-model")
    assert costs_of(tmp_path / "odd").forecast is None


def test_the_forecast_is_of_the_card_that_served_at_its_price(tmp_path: Path) -> None:
    fill(tmp_path, devices=["NVIDIA H100 80GB HBM3"])
    plan = costs_of(tmp_path).forecast
    assert plan is not None and "H100" in plan.machine and not plan.served_by and plan.usd_per_hour == 2.0
    other = costs_of(tmp_path, gpu="l4").forecast
    assert other is not None and "L4" in other.machine and other.served_by == "NVIDIA H100 80GB HBM3"


def test_a_forecast_of_another_machine_says_what_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, devices=["cpu: Any Processor, 2 cores"])
    assert main(["costs", "-f", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "another machine than served (cpu: Any Processor, 2 cores)" in said
    fill(tmp_path / "before")  # a server of an earlier version kept no devices
    plan = costs_of(tmp_path / "before").forecast
    assert plan is not None and plan.served_by == ""


@pytest.mark.usefixtures("each_database")
def test_sums_by_day_are_those_of_the_requests_whoever_writes_and_erases(tmp_path: Path) -> None:
    columns = "substr(time, 1, 10), model, COALESCE(key, ''), COALESCE(tier, '')"
    sums = (
        "COUNT(*), COUNT(CASE WHEN finish IS NULL THEN error END), SUM(prompt_tokens), SUM(completion_tokens), SUM(seconds), "
        "SUM(usd), COUNT(CASE WHEN finish = 'refused' THEN 1 END), COUNT(CASE WHEN usd > 0 THEN 1 END), "
        "SUM(CASE WHEN usd > 0 THEN COALESCE(prompt_tokens, 0) + COALESCE(completion_tokens, 0) END)"
    )
    fill(tmp_path)
    again = [
        StoredRequest(id=f"r{i}", time=f"2026-01-0{i % 4 + 1}T23:59:59.999Z", model="m1", prompt=[], seconds=i / 8, usd=0.5 * (i % 3),
                      prompt_tokens=i, user="anna" if i % 3 else None, error="x" if i % 5 == 0 else None,
                      finish=("refused" if i % 2 else None) if i % 5 == 0 else "stop")
        for i in range(40)
    ]  # fmt: skip
    with opened(tmp_path) as store:
        for _ in range(2):  # the same records again change nothing
            insert(store, again)

        def differ() -> list[object]:
            of_requests = store.execute(f"SELECT {columns}, {sums} FROM requests GROUP BY 1, 2, 3, 4").fetchall()
            kept = {row[:4]: row[4:] for row in store.execute("SELECT * FROM costs").fetchall()}
            assert kept.keys() == {row[:4] for row in of_requests}
            return [row for row in of_requests if kept[row[:4]] != pytest.approx([item or 0 for item in row[4:]])]

        assert not differ()
        erase(store, "user=anna", find(store, "user=anna"))
        assert not differ() and store.execute("SELECT SUM(requests) FROM costs").fetchone() == (11 + 14,)
        store.execute("DELETE FROM requests WHERE time > '2026-01-02'")
        assert not differ() and store.execute("SELECT MAX(day) FROM costs").fetchone() == ("2026-01-01",)
    for since in ("", "2026-01-01", "2026-01-01T05:30:00.000Z"):
        with opened(tmp_path) as store:
            asked = "SELECT COUNT(*), SUM(prompt_tokens) FROM requests WHERE time >= ?"
            wanted = store.execute(asked, [since]).fetchone()
        found = costs_of(tmp_path, since).total
        assert (found.requests, found.prompt_tokens) == tuple(wanted)
