"""`tuneloop advise` and `tuneloop plan prices` as a newcomer runs them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import typer

from tuneloop.cli import advise as command
from tuneloop.cli.main import main


@pytest.fixture(autouse=True)
def no_prices_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


TRAFFIC = ["--rows", "3000", "--queries-per-day", "1000000", "--baseline-prompt-tokens", "600", "--prompt-tokens", "100",
           "--answer-tokens", "10", "--usd-per-engineer-hour", "80"]  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["advise", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_json_is_one_object_with_everything_that_the_answer_rests_on(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, *TRAFFIC, "--json")
    found = json.loads(out)
    assert status == 0 and found["answer"] == "prompt" and found["method"] == "lora"
    assert found["break_even"]["days"] > 0 and len(found["assumptions"]) > 5
    assert all(reason["source"] for reason in found["reasons"])


def test_no_is_an_answer_with_exit_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--rows", "5")
    assert status == 1 and out.startswith("Don't fine-tune: 5 examples are too few")


def test_the_page_is_whole_and_needs_no_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "advice.html"
    status, out, _ = run(capsys, *TRAFFIC, "--html", str(page))
    text = page.read_text()
    assert status == 0 and str(page) in out.replace("\n", "")
    assert text.count("<svg") == 4, "costs and tornado, each wide and narrow"
    assert "src=" not in text and "<link" not in text and "<script" not in text
    for name in ("Prompt first", "today&#39;s prompt", "LoRA", "batch", "hybrid", "queries a day"):
        assert name in text, name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Nothing to go by"),
        (["--rows", "-3"], "--rows"),
        (["--rows", "many"], "--rows"),
        (["--model", "llama-9", "--rows", "5"], "llama-9"),
        (["--gpu", "h101", "--rows", "5"], "h100-sxm"),
        (["--tier", "cheap", "--rows", "5"], "--tier"),
        (["/nope"], "No such data set"),
        (["--rows", "5", "x=3"], "settings belong to --measure"),
        (["a", "b", "--rows", "5"], "b is one place too many"),
        (["--measure"], "Measure on what?"),
        (["--rows", "5", "--prices", "/none.yaml"], "No such price file"),
        (["--rows", "5", "--eval", "/none"], "No such data set"),
    ],
)
def test_bad_input_is_told_without_a_traceback(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    status, _, err = run(capsys, *arguments)
    assert status == 2 and says in err and "Traceback" not in err


def test_a_damaged_evaluation_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text('{"metrics": 3}')
    status, _, err = run(capsys, str(tmp_path))
    assert status == 2 and "Not an evaluation: it has no version" in err
    (tmp_path / "eval.json").write_text('{"version": 1, "metrics": 3}')
    status, _, err = run(capsys, str(tmp_path))
    assert status == 2 and "The file is damaged: n is missing" in err
    (tmp_path / "eval.json").write_text("{")
    assert run(capsys, str(tmp_path))[0] == 2


def test_bare_on_a_terminal_it_asks_and_what_is_left_open_stays_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["1,200", "", "lots", "5000", "", "", "", "0.8", "200", "0.9", "", "$50", "", "maybe", "no"])
    monkeypatch.setattr(typer, "prompt", lambda *_, **__: next(answers))
    assert command._ask() == {
        "rows": 1200,
        "queries_per_day": 5000.0,
        "few_shot": 0.8,
        "test_rows": 200,
        "target": 0.9,
        "budget_usd": 50.0,
        "facts_change": False,
    }
    assert next(answers, None) is None


def test_every_question_is_a_fact() -> None:
    from tuneloop.advice.recommendation import AdviceInput

    by_hand = {"few_shot", "test_rows"}  # these become a measured result
    assert {key for key, _, _ in command.QUESTIONS} <= set(AdviceInput.model_fields) | by_hand


def test_results_of_ones_own_are_shares_and_are_not_given_beside_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "advise",
                "--rows",
                "800",
                "--few-shot",
                "0.9",
                "--classifier",
                "0.7",
                "--test-rows",
                "400",
                "--target",
                "0.85",
            ]
        )
        == 1
    )
    assert "few-shot reaches 0.900" in capsys.readouterr().out
    assert main(["advise", "--rows", "800", "--few-shot", "90"]) == 2
    assert "write 80 % as 0.8" in capsys.readouterr().err
    (tmp_path / "eval.json").write_text(
        json.dumps({"version": 1, "n": 50, "metrics": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}})
    )
    assert main(["advise", str(tmp_path), "--few-shot", "0.9"]) == 2
    assert "twice" in capsys.readouterr().err


def test_prices_are_shown_and_a_wrong_word_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "prices"]) == 0
    assert "h100-sxm" in capsys.readouterr().out
    assert main(["plan", "prices", "--json"]) == 0
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)["prices"]
    assert shown["h100-sxm"]["on-demand"]["usd_per_hour"] > 0
    assert main(["plan", "prices", "upd"]) == 2
    assert "plan prices update" in capsys.readouterr().err


@pytest.mark.slow
def test_measuring_reports_the_base_model_and_the_cheap_classifiers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    texts = {"refund": "I want my money back for order {n}", "shipping": "Where is parcel number {n} now",
             "login": "My password {n} is refused when I sign in"}  # fmt: skip
    rows = [{"text": t.format(n=n), "label": name} for n in range(40) for name, t in texts.items()]
    file = tmp_path / "mails.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out, err = run(capsys, str(file), "--measure", "--out", str(tmp_path / "out"), "--json",
                           "evaluate.limit=12", "baselines.few_shot=3")  # fmt: skip
    found = json.loads(out)
    names = [entry["name"] for entry in found["leaderboard"]]
    assert status in (0, 1), err
    assert "zero-shot" in names and "few-shot" in names and "tf-idf + logistic regression" in names
    assert found["question"]["model"] == "smollm2-135m" and found["question"]["rows"] > 20
    assert found["question"]["baseline_prompt_tokens"] > found["question"]["prompt_tokens"]


def test_a_table_for_a_narrow_place_breaks_names_and_loses_nothing() -> None:
    from rich.console import Console

    from tuneloop.cli import advise as command

    names = ["tf-idf + logistic regression", "zero-shot calibrated", "tuned"]
    heads = ["system", "quality (macro-F1)", "gain over the best prompt", "tokens read", "1,000 queries", "training"]
    for width, room in ((80, 80), (40, 90)):
        table = command._table("Measured", *heads)
        for i, name in enumerate(names):
            table.add_row(name, f"0.{i}5 [0.10, 0.{i}9]", "+0.64", "597", "$0.00001", "$0.02")
        file = io.StringIO()
        command._print_table(Console(file=file, width=width), table)
        text = file.getvalue()
        assert "…" not in text and max(map(len, text.splitlines())) <= room
        for word in " ".join([*names, *heads]).split():
            assert word in text
        for i in range(3):
            assert f"0.{i}5 [0.10, 0.{i}9]" in text
