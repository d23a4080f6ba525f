"""`tuneloop keys`: a key is printed once and listed without its secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuneloop.cli.main import main
from tuneloop.core.files import write_json
from tuneloop.serving.admission import Keyring


def test_a_key_is_made_listed_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path)
    assert main(["keys", "add", "anna", "-f", folder, "--rpm", "3", "--adapters", "a, b", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["limits"] == {"rpm": 3, "adapters": ["a", "b"]}
    assert main(["keys", "list", "-f", folder]) == 0
    listed = capsys.readouterr().out
    assert "anna" in listed and made["key"].split("-", 2)[2] not in listed
    assert main(["keys", "revoke", "anna", "-f", folder]) == 0
    assert main(["keys", "list", "-f", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1])["keys"][0]["revoked"]


def test_an_empty_list_says_how_a_key_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path)
    assert main(["keys", "list", "-f", folder]) == 0
    assert f"no key in {folder} yet: `tuneloop keys add NAME -f {folder}`" in capsys.readouterr().out
    assert main(["keys", "list", "-f", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"keys": []}


def test_limits_are_listed_as_their_options_name_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path)
    limits = ["--budget-usd", "5", "--adapters", "tickets,letters", "--keep-days", "0.5", "--rights", "users, feedback"]
    write_json(tmp_path / "state.json", {"version": 1, "config": {"prices": {"output": 0.4}}})
    assert main(["keys", "add", "anna", "-f", folder, *limits]) == 0
    assert main(["keys", "list", "-f", folder]) == 0
    assert "budget-usd 5, adapters tickets,letters, keep-days 0.5, rights users,feedback" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show"], "No such action"),
        (["add"], "Whose key?"),
        (["revoke", "nobody"], "No key in use"),
        (["add", "x", "--priority", "urgent"], "--priority"),
        (["add", "x", "--rights", "admin"], "--rights"),
        (["add", "x", "--budget-usd", "5"], "no prices"),
        (["open"], "in without a key"),
    ],
)
def test_mistakes_are_told_with_the_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["keys", *arguments, "-f", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert message in err and "next:" in err


def test_a_server_is_opened_again_by_name_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path)
    assert main(["keys", "add", "anna", "-f", folder]) == 0
    assert main(["keys", "revoke", "anna", "-f", folder]) == 0
    assert main(["keys", "open", "-f", folder]) == 2 and Keyring(tmp_path).needed
    assert main(["keys", "open", "--yes", "-f", folder]) == 0 and not Keyring(tmp_path).needed
    assert "until `tuneloop keys add`" in capsys.readouterr().out
    (tmp_path / "keys.json").write_text("[")
    assert main(["keys", "open", "--yes", "-f", folder]) == 2 and Keyring(tmp_path).needed


def test_a_budget_needs_prices_of_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for prices in ({}, {"input": 0.0, "output": 0}, {"usd_per_hour": 2.0}):
        write_json(tmp_path / "state.json", {"version": 1, "config": {"prices": prices}})
        assert main(["keys", "add", "anna", "-f", str(tmp_path), "--budget-usd", "0.5"]) == 2
        assert "prices.input" in capsys.readouterr().err
    assert main(["keys", "add", "anna", "-f", str(tmp_path), "--budget-usd", "nan"]) == 2
    assert not (tmp_path / "keys.json").exists()
