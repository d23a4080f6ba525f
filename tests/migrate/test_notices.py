"""When a model stops: what the service says comes first, then a dated table."""

from __future__ import annotations

from datetime import date

import pytest
from openai_service import BASE, MODEL

from tuneloop.migrate.notices import base_of, no_new_jobs, price_of, replacement_of, stop_of


def test_the_service_s_own_date_comes_before_the_table() -> None:
    assert stop_of(MODEL, BASE, {MODEL: "2026-12-01", BASE: "2027-02-02"}) == (
        "2026-12-01",
        "the service's list of models",
    )
    day, source = stop_of(MODEL, BASE, {MODEL: None, BASE: "2027-02-02"})
    assert day == "2027-02-02" and BASE in source
    day, source = stop_of(MODEL, BASE, {})
    assert day == "2027-01-14" and "2026-10-14" in source and "openai.com" in source
    assert stop_of("mine", "llama-3.1-8b", {}).day == ""


@pytest.mark.parametrize("base", ["gpt-4o-2024-08-06", "gpt-4o-mini", "gpt-4.1-2025-04-14", "gpt-4.1-mini", "gpt-4o"])
def test_the_models_of_the_notice_stop_on_its_day(base: str) -> None:
    assert stop_of(f"ft:{base}:acme::x", base, {}).day == "2027-01-14"
    assert replacement_of(base) == "gpt-6-luna"


def test_a_fine_tune_of_a_fine_tune_is_known_by_its_base() -> None:
    assert base_of(f"{MODEL}:ckpt-step-90") == BASE
    assert stop_of("ft:x", MODEL, {}).day == "2027-01-14"


def test_prices_are_those_of_fine_tunes() -> None:
    price = price_of(MODEL)
    assert price is not None and (price.input, price.output) == (0.3, 1.2) and "2026" in price.date
    assert price_of(BASE) is None and price_of("ft:unknown:acme::x") is None
    assert no_new_jobs()[0] == date(2027, 1, 6)
