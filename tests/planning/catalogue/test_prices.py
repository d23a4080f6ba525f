"""Prices: dated and sourced, the user's own on top, gaps refused."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.core.errors import UserError
from tuneloop.planning.catalogue import prices
from tuneloop.planning.catalogue.gpus import all_gpus
from tuneloop.planning.catalogue.prices import BUNDLED, Price, group_offers, load_prices, update_prices

GPUS = yaml.safe_load(BUNDLED.read_text())["offers"]
KNOWN = sorted({gpu for group in GPUS for gpu in group["usd_per_gpu_hour"]})


def usd_per_hour(gpu: str, tier: str = "on-demand", gpus: int = 1, *, prices: Path | None = None) -> Price | None:
    return load_prices(prices).gpu(gpu, tier, gpus)


@pytest.fixture(autouse=True)
def no_prices_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_every_bundled_price_has_a_date_a_source_and_a_possible_figure() -> None:
    table = load_prices()
    for price in (price for level in table.levels for price in level):
        assert date(2025, 1, 1) < date.fromisoformat(price.date) <= date.today(), price
        assert price.source.startswith("https://") and price.provider and 0.04 < price.usd_per_hour < 20, price
    for entry in (*table.tokens, table.storage):
        assert date.fromisoformat(entry.date) and entry.source.startswith("https://")


OWN_CARDS = {
    "v100-16gb",
    "v100-32gb",
    "rtx3080-12gb",
    "rtx4070",
    "rtx4070-ti",
    "rtx4080",
    "rtx5070",
    "rtx5080",
    *("a30", "a40", "l40", "rtx4060-ti", "rtx5060-ti", "rtx5070-ti", "rtx-pro-6000", "h100-nvl", "gh200"),
}  # no public offer was found


@pytest.mark.parametrize("gpu", [gpu for gpu in KNOWN if gpu != "rtx3060"])
def test_every_rented_gpu_has_a_price_of_a_machine_that_is_not_taken_away(gpu: str) -> None:
    price = usd_per_hour(gpu)
    assert price is not None and price.gpus == 1 and price.tier in ("on-demand", "community")


def test_every_gpu_of_the_planner_has_a_price_or_is_known_to_have_none() -> None:
    assert set(all_gpus()) - set(KNOWN) == OWN_CARDS


def test_spot_and_community_prices_are_at_most_those_on_demand_of_the_same_provider() -> None:
    offers = [price for level in load_prices().levels for price in level]
    for cheap in (price for price in offers if price.tier == "spot"):
        dear = [p for p in offers if (p.provider, p.gpu, p.tier) == (cheap.provider, cheap.gpu, "on-demand")]
        assert all(cheap.usd_per_hour <= price.usd_per_hour for price in dear), cheap
        market = [p.usd_per_hour for p in offers if p.gpu == cheap.gpu and p.tier == "on-demand"]
        assert not market or cheap.usd_per_hour <= min(market), f"a spot price that nobody takes: {cheap}"
    hosts = {price.provider for price in offers if price.tier == "community"}
    assert hosts and not [p for p in offers if p.provider in hosts and p.tier != "community"], "a marketplace's prices"


@given(gpu=st.sampled_from(KNOWN), gpus=st.integers(1, 16))
def test_spot_never_costs_more_than_on_demand(gpu: str, gpus: int) -> None:
    table = load_prices()
    spot, steady = table.gpu(gpu, "spot", gpus), table.gpu(gpu, "on-demand", gpus)
    if spot and steady and steady.tier == "on-demand":
        assert spot.machines_usd(gpus) <= steady.machines_usd(gpus)


def test_machines_are_rented_whole() -> None:
    price = Price("A", "h100-sxm", 8, "on-demand", 3.0, "2026-01-01", "https://a")
    assert [price.machines_usd(n) for n in (1, 8, 9)] == [24.0, 24.0, 48.0]
    single, eight = usd_per_hour("a100-80gb", "spot", 1), usd_per_hour("a100-80gb", "spot", 8)
    assert single is not None and single.tier == "on-demand", "the only spot offer is of eight, and dearer for one"
    assert eight is not None and (eight.tier, eight.gpus) == ("spot", 8)


def test_a_price_that_does_not_exist_is_none_and_a_wrong_tier_is_refused() -> None:
    assert usd_per_hour("t4", "spot") is None
    with pytest.raises(UserError, match="No price tier 'cheap'"):
        usd_per_hour("t4", "cheap")


def test_an_old_price_says_so() -> None:
    price = Price("A", "t4", 1, "on-demand", 0.5, "2026-01-01", "https://a")
    assert "old" not in price.words(date(2026, 3, 1))
    assert "old" in price.words(date(2026, 12, 1))


def test_own_prices_win_even_when_dearer_and_others_stay(tmp_path: Path) -> None:
    file = own(tmp_path, "offers: [{provider: us, date: 2026-11-24, usd_per_gpu_hour: {h100-sxm: 9.5}}]")
    price = usd_per_hour("h100-sxm", prices=file)
    assert price is not None and (price.provider, price.usd_per_hour) == ("us", 9.5)
    other = usd_per_hour("t4", prices=file)
    assert other == usd_per_hour("t4")


def test_own_prices_are_found_in_the_users_configuration(tmp_path: Path) -> None:
    prices.own_file().parent.mkdir(parents=True)
    prices.own_file().write_text("offers: [{provider: us, date: 2026-11-24, usd_per_gpu_hour: {l4: 0.1}}]")
    price = usd_per_hour("l4")
    assert price is not None and price.usd_per_hour == 0.1
    prices.own_file().write_text("offers: [{provider: us, date: 2026-11-24, usd_per_gpu_hour: {l4: 0.25}}]")
    again = usd_per_hour("l4")
    assert again is not None and again.usd_per_hour == 0.25, "a changed file is read again"


@pytest.mark.parametrize(
    ("text", "says", "step"),
    [
        ("- 1", "a mapping", "offers"),
        ("offers: [", "not valid YAML", "offers"),
        ("offers: []", "no offers", "offers"),
        ("offer: [{}]", "Unknown key 'offer'", "offers"),
        ("currency: EUR\noffers: [{}]", "US dollars", "US dollars"),
        ("offers: [1]", "a mapping", "offers"),
        ("offers: [{date: 2026-01-01, usd_per_gpu_hour: {t4: 1}}]", "no 'provider'", "offers"),
        ("offers: [{provider: a, usd_per_gpu_hour: {t4: 1}}]", "no 'date'", "offers"),
        ("offers: [{provider: a, date: 2026-01-01}]", "no 'usd_per_gpu_hour'", "offers"),
        ("offers: [{provider: a, date: soon, usd_per_gpu_hour: {t4: 1}}]", "Not a date", "2026"),
        ("offers: [{provider: a, date: 2026-01-01, usd_per_gpu_hour: {h100: 1}}]", "Unknown GPU 'h100'", "h100-"),
        ("offers: [{provider: a, date: 2026-01-01, usd_per_gpu_hour: {t4: 0}}]", "Not a price", "2.69"),
        ("offers: [{provider: a, date: 2026-01-01, usd_per_gpu_hour: {t4: -1}}]", "Not a price", "2.69"),
        ("offers: [{provider: a, date: 2026-01-01, usd_per_gpu_hour: {t4: .nan}}]", "Not a price", "2.69"),
        ("offers: [{provider: a, date: 2026-01-01, usd_per_gpu_hour: {t4: free}}]", "Not a price", "2.69"),
        ("offers: [{provider: a, date: 2026-01-01, usd_per_gpu_hour: {t4: null}}]", "Not a price", "2.69"),
        ("offers: [{provider: a, date: 2026-01-01, tier: free, usd_per_gpu_hour: {t4: 1}}]", "No price tier", "spot"),
        ("offers: [{provider: a, date: 2026-01-01, machine: 0, usd_per_gpu_hour: {t4: 1}}]", "machine", "8"),
    ],
)
def test_a_price_file_with_gaps_is_refused_with_the_place_and_a_remedy(
    tmp_path: Path, text: str, says: str, step: str
) -> None:
    with pytest.raises(UserError, match=says) as error:
        usd_per_hour("t4", prices=own(tmp_path, text))
    assert "mine.yaml" in error.value.where and step in error.value.next_step


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5),
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(
                        ["offers", "provider", "date", "usd_per_gpu_hour", "t4", "machine", "tier"]), x, max_size=4)))  # fmt: skip
def test_no_price_file_ends_in_anything_but_prices_or_an_error_of_the_user(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    file = tmp_path_factory.mktemp("p") / "prices.yaml"
    file.write_text(yaml.safe_dump(value))
    try:
        assert load_prices(file).levels
    except UserError as error:
        assert error.next_step


def test_a_missing_price_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such price file"):
        load_prices(tmp_path / "none.yaml")


def item(provider: str, gpu: str, gb: float, usd: float, *, n: int = 1, spot: bool = False, name: str = "x") -> Any:
    return SimpleNamespace(
        provider=provider, gpu_name=gpu, gpu_memory=gb, price=usd, gpu_count=n, spot=spot, instance_name=name
    )


def test_the_catalogue_is_kept_as_the_cheapest_of_each_provider_tier_and_machine() -> None:
    groups = group_offers(
        [
            item("aws", "H100", 80, 56.0, n=8), item("aws", "H100", 80, 48.0, n=8), item("aws", "H100", 80, 20.0, n=8, spot=True),
            item("x", "H100", 80, 2.0, name="gpu_1x_h100_pcie"), item("x", "A100", 40, 1.0), item("x", "K80", 12, 0.1),
            item("x", "A100", 80, 0.0),
        ],
        "2026-11-24",
    )  # fmt: skip
    found = {(g["provider"], g["tier"], g["machine"]): g["usd_per_gpu_hour"] for g in groups}
    assert found == {
        ("aws", "on-demand", 8): {"h100-sxm": 6.0},
        ("aws", "spot", 8): {"h100-sxm": 2.5},
        ("x", "on-demand", 1): {"a100-40gb": 1.0, "h100-pcie": 2.0},
    }


def test_fetched_prices_are_used_and_own_ones_still_win(monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = SimpleNamespace(query=lambda **_: [item("aws", "T4", 16, 0.5), item("aws", "L4", 24, 0.8)])
    monkeypatch.setitem(__import__("sys").modules, "gpuhunt", catalogue)
    told = update_prices(date(2026, 11, 24))
    assert told["offers"] == 2 and told["gpus"] == ["l4", "t4"]
    fetched = usd_per_hour("t4")
    assert fetched is not None and (fetched.provider, fetched.date) == ("aws", "2026-11-24")
    prices.own_file().write_text("offers: [{provider: us, date: 2026-11-24, usd_per_gpu_hour: {t4: 0.9}}]")
    mine = usd_per_hour("t4")
    assert mine is not None and mine.provider == "us"


@pytest.mark.parametrize("fails", [OSError("no route to host"), ValueError(""), None])
def test_fetching_without_network_leaves_the_old_prices_and_says_so(
    monkeypatch: pytest.MonkeyPatch, fails: Exception | None
) -> None:
    def query(**_: Any) -> list[Any]:
        if fails:
            raise fails
        return []

    monkeypatch.setitem(__import__("sys").modules, "gpuhunt", SimpleNamespace(query=query))
    with pytest.raises(UserError, match="can't be reached"):
        update_prices()
    assert not prices.fetched_file().exists() and usd_per_hour("t4") is not None


def test_fetching_without_gpuhunt_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gpuhunt", None)
    with pytest.raises(UserError, match="gpuhunt"):
        update_prices()
