"""A data set goes to the hub as its splits and a card; nothing is sent unasked, and nothing of this machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_stand_in import Hub
from local_http import listening
from prepared import tickets, write_dataset

from tuneloop.core.errors import UserError
from tuneloop.release.push_data import push_dataset

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub() -> Iterator[dict[str, str]]:
    """The environment of a process that pushes to this machine."""
    Hub.asked.clear(), Hub.arrived.clear(), Hub.stored.clear()
    with listening(Hub) as address:
        yield {"HF_ENDPOINT": address, "HF_TOKEN": "good", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A data set of two splits with a reject."""
    rejects = [{"source": "in.jsonl", "line": 3, "reason": "empty_input", "detail": "", "record": {"text": "private"}}]
    return write_dataset(tmp_path / "set", {"train": tickets(6), "test": tickets(3, 10)}, rejects)


def test_nothing_is_sent_before_send_and_the_card_says_what_would_be(dataset: Path) -> None:
    planned, card = push_dataset(dataset, "hub:org/tickets")
    assert planned.url == "" and set(planned.files) == {"data/train.jsonl", "data/test.jsonl", "README.md"}
    head = card.split("---")[1]
    assert "path: data/train.jsonl" in head
    assert "| train | 6 |" in card and "| test | 3 |" in card and "text-classification" in head
    assert str(dataset) not in card and "private" not in card and "in.jsonl" in card


def test_the_splits_and_the_card_arrive_in_one_commit(dataset: Path, hub: dict[str, str], cli_process: Cli) -> None:
    done = cli_process("data", "push", str(dataset), "hub:org/tickets", "--send", "--json", env=hub)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["sent"] and answer["url"].endswith("/commit/" + "c" * 40) and Hub.private is True
    assert set(Hub.arrived) == {"data/train.jsonl", "data/test.jsonl", "README.md"}
    assert Hub.arrived["data/train.jsonl"] == (dataset / "train.jsonl").read_bytes()
    assert Hub.asked.count("/api/datasets/org/tickets/commit/main") == 1


def test_a_split_that_was_changed_and_a_place_that_is_none_are_refused(dataset: Path) -> None:
    with pytest.raises(UserError, match="Not a place on the hub"):
        push_dataset(dataset, "org/tickets")
    with (dataset / "train.jsonl").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(UserError, match="changed after it was prepared"):
        push_dataset(dataset, "hub:org/tickets")
