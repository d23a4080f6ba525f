"""Plugin of pytest for `make check`: runs the quickest tests that fit into so many seconds, by recorded durations.

`tests/durations.json` holds the seconds of processor time of tests, parameters together. Short unit tests are not in it.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

DURATIONS = Path(__file__).parents[1] / "durations.json"
LONG = 0.3  # seconds from which a unit test is recorded
UNRECORDED = {"unit": 0.02, "torch": 0.3, "process": 1.0}  # seconds of a test without a record, by layer
HOUSE = ("tests/test_architecture.py", "tests/test_layout.py")  # always run
SECONDS, RECORD = "TUNELOOP_CHECK_SECONDS", "TUNELOOP_CHECK_RECORD"  # variables that `tests/check_room.py` sets

spent: dict[str, float] = defaultdict(float)  # by test function
sizes: Counter[str] = Counter()  # how many tests a function has
layers: dict[str, str] = {}  # of test functions
left_out: dict[str, list[str]] = defaultdict(list)  # test functions by reason


def function_of(item: pytest.Item) -> str:
    """A test without its parameters."""
    return item.nodeid.split("[")[0]


def processor_seconds() -> float:
    """Processor time of this process and of those that it started and waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def recorded() -> dict[str, float]:
    """The recorded durations, by test function."""
    return dict(json.loads(DURATIONS.read_text(encoding="utf-8"))) if DURATIONS.is_file() else {}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is slow or needs the world, then the longest tests until the others fit."""
    records, reasons = recorded(), dict[pytest.Item, str]()
    sizes.update(map(function_of, items))
    for item in items:
        if mark := next(filter(item.get_closest_marker, ("ray", "browser", "world", "nightly", "slow")), None):
            reasons[item] = mark
        else:
            layers[function_of(item)] = next(filter(item.get_closest_marker, UNRECORDED))
    durations = {
        name: records.get(name, UNRECORDED[layer] * sizes[name])
        for name, layer in layers.items()
        if not name.startswith(HOUSE)
    }
    left = float(os.environ[SECONDS])
    longer = set()
    # The room's folder: the files of others come after it. Processes of xdist, with all tests, must agree on an order.
    first = "" if hasattr(config, "workerinput") else config.args[0]
    for name in sorted(durations, key=lambda name: (not name.startswith(first), durations[name])):
        left -= durations[name]
        if left < 0:
            longer.add(name)
    reasons |= {item: "too long" for item in items if item not in reasons and function_of(item) in longer}
    for item, reason in reasons.items():
        left_out[reason].append(function_of(item))
    config.hook.pytest_deselected(items=[*reasons])
    items[:] = [item for item in items if item not in reasons]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is left where durations without a record were longer than expected."""
    if sum(spent.values()) > 1.3 * float(os.environ[SECONDS]) and not item.nodeid.startswith(HOUSE):
        left_out["time is up"].append(function_of(item))
        pytest.skip("the seconds for tests are spent")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure a test with its fixtures; those of a session count for the first that uses them."""
    before = processor_seconds()
    outcome = yield
    if function_of(item) not in left_out["time is up"]:
        spent[function_of(item)] += processor_seconds() - before
    return outcome


def pytest_sessionfinish() -> None:
    """Record the durations, where that is wanted."""
    if os.environ.get(RECORD):
        records = recorded() | {name: round(seconds, 2) for name, seconds in spent.items()}
        worth = {name: s for name, s in records.items() if s >= LONG or layers.get(name, "torch") != "unit"}
        DURATIONS.write_text(json.dumps(worth, indent=0, sort_keys=True) + "\n", encoding="utf-8")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out, and why."""
    for reason, names in filter(lambda item: item[1], left_out.items()):
        files = Counter(name.split("::")[0] for name in names)
        text = ", ".join(f"{file} {count}" for file, count in sorted(files.items()))
        terminalreporter.write_line(f"left out, {reason}: {len(names)} ({text})")
