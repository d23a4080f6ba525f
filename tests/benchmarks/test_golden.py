"""The golden values of the main branch: what is cheap of them is computed anew, and a difference is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.golden import (
    GOLDEN,
    GROUPS,
    constant,
    data_values,
    differences,
    of_groups,
    plan_values,
    route_values,
    training_values,
    write_sources,
)

from tuneloop.core.files import read_json
from tuneloop.training.device_checks import small_llama


def test_plans_are_those_of_the_golden_file() -> None:
    golden, found = read_json(GOLDEN), dict(plan_values())
    assert len(found) == 12 and differences({name: golden[name] for name in found}, found, 1e-6) == []


@pytest.mark.slow
def test_data_sets_and_losses_are_those_of_the_golden_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2: Path
) -> None:
    monkeypatch.setenv("TUNELOOP_DTYPE", "float32")
    model = str(small_llama(tmp_path / "model"))
    write_sources(tmp_path)
    found = dict(data_values(tmp_path, model)) | dict(training_values(tmp_path, model, ("lora", "dpo")))
    golden = read_json(GOLDEN)
    # Processors add in different orders: losses agree to a few digits, those of preferences, whose steps are large, to fewer.
    preferences = {name: found.pop(name) for name in list(found) if name.startswith("train.dpo")}
    assert differences({name: golden[name] for name in found}, found, 5e-3) == []
    assert differences({name: golden[name] for name in preferences}, preferences, 5e-2) == []


def test_a_difference_is_named_with_its_place() -> None:
    golden = {"a": [1.0, {"b": 2.0}], "c": "x", "d": True}
    assert differences(golden, golden, 0.0) == []
    assert differences(golden, {"a": [1.0, {"b": 2.1}], "c": "x", "d": 2}, 0.1) == ["d: True before, 2 now"]
    assert differences(golden, {"a": [1.0, {"b": 2.1}], "c": "x"}, 0.0) == ["a[1] b: 2.0 before, 2.1 now", "d: True before, None now"]  # fmt: skip
    assert differences([1.0], [1.0, 2.0], 0.5) == [": [1.0] before, [1.0, 2.0] now"]


def test_values_belong_to_a_group_and_every_group_has_some() -> None:
    golden = read_json(GOLDEN)
    assert sum(len(of_groups(golden, [group])) for group in GROUPS) == len(golden)
    assert [group for group in GROUPS if not of_groups(golden, [group])] == []


def test_a_router_is_that_of_the_golden_file(tmp_path: Path) -> None:
    values = dict(route_values(tmp_path, ""))
    values.pop("route.weights")  # bytes are those of one machine
    golden = read_json(GOLDEN)
    for results in (item[name]["results"] for item in (values, golden) for name in ("route.fit", "route.eval")):
        results.pop("frontier")  # one price more or less is a point of it, by the last digits of a machine
    assert differences({name: golden[name] for name in values}, values, 5e-3) == []


def test_what_differs_from_run_to_run_is_replaced() -> None:
    item, other = "0199c0de-1111-7222-8333-444455556666", "0199c0de-1111-7222-8333-444455556667"
    text = f"{item} {other} {item} /tmp/a_b/runs<wbr>/x 2026-03-01T10:00:00.123Z 127.0.0.1:8080 /tmp/a\\_b/y 0.5"
    expected = "ID0 ID1 ID0 FOLDER/runs/x TIME HOST FOLDER/y 0.5"
    assert constant(text, Path("/tmp/a_b")) == expected
