"""Numbers on a command line as people write them."""

from __future__ import annotations

import json

import pytest
import typer

from tuneloop.cli.main import main
from tuneloop.cli.parameters import amount, count


@pytest.mark.parametrize(
    ("text", "value"),
    [("3000", 3000), ("3,000", 3000), ("3_000", 3000), ("3e3", 3000), ("3k", 3000), ("3K", 3000), ("1.5M", 1_500_000), ("2B", 2 * 10**9),
     ("1_000_000", 10**6), ("1,000,000", 10**6), (" 7 ", 7), ("-3", -3), ("+3", 3), (12, 12), ("123456789012345678901", 123456789012345678901)],
)  # fmt: skip
def test_a_count_is_read(text: str | int, value: int) -> None:
    assert count(text) == value and isinstance(count(text), int)


@pytest.mark.parametrize(
    "text",
    ["", "k", ".", "e5", "many", "1,5", "1,0000", "0x10", "10**9", "nan", "inf", "1e400", "9" * 5000, "٣", "1 000"],
)
def test_what_is_no_number_is_refused(text: str) -> None:
    for read in (amount, count):
        with pytest.raises(typer.BadParameter, match="is not a number"):
            read(text)


def test_a_count_has_no_fraction_and_an_amount_may() -> None:
    assert amount("$1,234.50") == 1234.5 and amount(".5") == 0.5 and amount("2.") == 2
    with pytest.raises(typer.BadParameter, match="not a whole number"):
        count("1.5")
    assert count("1.5k") == 1500


@pytest.mark.parametrize("written", ["1e6", "1_000_000", "1M", "1000k"])
def test_every_count_option_takes_every_way_of_writing(
    written: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["plan", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--tokens", written, "--json"]) == 0
    as_written = json.loads(capsys.readouterr().out)
    assert main(["plan", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--tokens", "1000000", "--json"]) == 0
    assert as_written["time"] == json.loads(capsys.readouterr().out)["time"]
    assert main(["advise", "--rows", written, "--queries-per-day", written, "--budget", "$100k", "--json"]) == 0
    question = json.loads(capsys.readouterr().out)["question"]
    assert (question["rows"], question["queries_per_day"], question["budget_usd"]) == (10**6, 10**6, 10**5)


def test_the_option_is_named_where_its_number_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", "llama-3.1-8b", "--tokens", "lots"]) == 2
    said = capsys.readouterr().err
    assert "--tokens" in said and "lots" in said and "3e3" in said
