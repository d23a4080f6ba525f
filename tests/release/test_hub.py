"""What is pushed arrives at the hub as it was exported, in one commit; nothing is sent unasked."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_stand_in import Hub
from local_http import listening

from tuneloop.core.files import read_json

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub() -> Iterator[dict[str, str]]:
    """The environment of a process that pushes to this machine."""
    Hub.asked.clear(), Hub.arrived.clear(), Hub.stored.clear()
    with listening(Hub) as address:
        yield {"HF_ENDPOINT": address, "HF_TOKEN": "good", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture
def artifact(make_artifact: Callable[[str], Path]) -> Path:
    return make_artifact("adapter")


def test_a_dry_run_sends_nothing_and_shows_what_would_be_sent(
    artifact: Path, hub: dict[str, str], cli_process: Cli
) -> None:
    done = cli_process("models", "push", str(artifact), "hub:org/name", env=hub)
    assert done.returncode == 0 and "add --send" in done.stdout and "adapter_model.safetensors" in done.stdout
    assert not Hub.asked


def test_what_is_sent_arrives_whole_in_a_private_repository(
    artifact: Path, hub: dict[str, str], cli_process: Cli
) -> None:
    (artifact / ".cache").mkdir()
    (artifact / ".cache" / "mine.txt").write_text("stays here")
    done = cli_process("models", "push", str(artifact), "hub:org/name", "--send", "--json", env=hub)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["url"].endswith("/commit/" + "c" * 40)
    files = read_json(artifact / "artifact.json")["files"]
    assert set(Hub.arrived) == {*files, "artifact.json"} and Hub.private is True
    for name, entry in files.items():
        assert hashlib.sha256(Hub.arrived[name]).hexdigest() == entry["sha256"], name
    assert Hub.asked.count("/api/models/org/name/commit/main") == 1


@pytest.mark.parametrize("case", ["token", "down", "place", "changed", "no artifact"])
def test_what_can_t_be_pushed_is_told_in_three_lines(
    case: str, artifact: Path, hub: dict[str, str], cli_process: Cli
) -> None:
    arguments, said = [str(artifact), "hub:org/name", "--send"], "The hub can't be reached"
    if case == "token":
        hub["HF_TOKEN"], said = "bad", "The hub refuses"
    elif case == "down":
        hub["HF_ENDPOINT"] = "http://127.0.0.1:9"
    elif case == "place":
        arguments[1], said = "org/name", "Not a place on the hub"
    elif case == "changed":
        (artifact / "adapter_config.json").write_text("{}")
        said = "not as it was exported"
    else:
        arguments[0], said = "run", "There is no artifact here"
    done = cli_process("models", "push", *arguments, env=hub)
    message = done.stderr[done.stderr.index("Error:") :]
    assert done.returncode == 2 and said in message and len(message.strip().splitlines()) <= 3
    assert not Hub.arrived
