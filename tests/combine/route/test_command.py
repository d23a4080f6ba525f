"""Routers from the command line: fitted to tasks or to outcomes, judged on rows that they have not seen."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from places import DATA_SETS
from tuneloop.cli.main import main
from tuneloop.core.files import read_json, write_jsonl

Said = pytest.CaptureFixture[str]
QUESTIONS = {"cards": ["card", "chip", "pin", "cash"], "parcels": ["parcel", "street", "courier", "box"]}


def told(said: Said, *arguments: str, status: int = 0) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == status, said.readouterr().err
    found: dict[str, Any] = json.loads(said.readouterr().out)
    return found


@pytest.fixture
def runs(make_tuned: Callable[..., Path], tmp_path: Path) -> list[str]:
    rng = random.Random(0)
    found = []
    for task, question in QUESTIONS.items():
        records = [
            {
                "text": f"my {rng.choice(question)} {rng.randrange(10**6)} and the {rng.choice(question)} again",
                "label": "ab"[i % 2],
            }
            for i in range(80)
        ]
        split = {"val": 0.2, "test": 0.2}
        found.append(str(make_tuned(records, {"split": split, "duplicates": {"near": False}}, task)))
    return found


def outcome_file(path: Path, n: int = 300) -> Path:
    rng = random.Random(1)
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["prompt", "small", "large", "small_response"])
        for i in range(n):
            hard = rng.random() < 0.5
            writer.writerow([f"{'prove' if hard else 'add'} {i} and {rng.randrange(999)}", not hard, True, "text"])
    return path


def test_runs_are_told_apart_by_their_rows(runs: list[str], capsys: Said) -> None:
    write_jsonl("other.jsonl", [{"text": f"tell a joke about {w}", "label": "x"} for w in "abcdefghij"])
    found = told(capsys, "route", "fit", *runs, "--features", "words", "--outside", "other.jsonl", "--out", "router")
    assert found["results"]["quality"]["value"] > 0.8 and [r["name"] for r in found["routes"]] == runs
    assert found["results"]["outside"] == 10 and found["results"]["caught"] > 0.8
    assert read_json(Path("router/router.json"))["kind"] == found["kind"]
    again = told(capsys, "route", "eval", "router", "--outside", "other.jsonl")
    assert again["results"] == found["results"]


def test_outcomes_give_a_frontier_and_a_most_cost_holds(
    tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome_file(tmp_path / "o.csv")
    command = ["route", "fit", "--outcomes", "o.csv", "--features", "words", "--cost", "small=1,large=10"]
    free = told(capsys, *command)
    assert [r["name"] for r in free["routes"]] == ["small", "large"], "a column of texts is no model"
    figures = free["results"]
    assert figures["gap_recovered"]["value"] > 0.6 and figures["singles"][-1]["name"] == "oracle"
    costs = [point["cost"] for point in figures["frontier"]]
    assert costs == sorted(costs, reverse=True) and costs[-1] == 1.0
    cheap = told(capsys, *command, "--max-cost", "4")
    assert cheap["results"]["cost"] <= 4 < figures["cost"] and cheap["price"] > 0
    assert told(capsys, "route", "eval", "--outcomes", "o.csv")["results"] == cheap["results"]


@pytest.mark.parametrize("more", [False, True])
def test_a_most_cost_that_test_rows_do_not_keep_is_said(
    more: bool, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome_file(tmp_path / "o.csv")
    if more:  # a price at which the validation rows alone keep the limit
        monkeypatch.setattr("tuneloop.combine.route.command._price", lambda *_: 0.0)
    command = ["route", "fit", "--outcomes", "o.csv", "--features", "words", "--cost", "small=1,large=10"]
    assert main([*command, "--max-cost", "4"]) == 0
    assert ("more than --max-cost 4" in capsys.readouterr().out) == more


def test_hidden_states_of_the_base_are_features_too(runs: list[str], capsys: Said, tiny_llama: Path) -> None:
    found = told(capsys, "route", "fit", *runs, "--features", "hidden", "--base", str(tiny_llama), "--out", "router")
    assert found["base"] == str(tiny_llama) and found["results"]["quality"]["value"] > 0.6


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fit"], "Route between what"),
        (["fit", "cards"], "two models or more"),
        (["fit", "cards", "cards"], "same rows"),
        (["fit", "cards", "parcels", "--cost", "nobody=1"], "No model is called"),
        (["fit", "cards", "parcels", "--cost", "x"], "MODEL=NUMBER"),
        (["fit", "cards", "parcels", "--features", "smell"], "No features are called"),
        (["fit", "cards", "parcels", "--features", "hidden"], "Whose hidden states"),
        (["fit", "--outcomes", "none.csv"], "No such file"),
        (["fit", "--outcomes", "few.csv", "--features", "words"], "Too few rows"),
        (["fit", "--outcomes", "one.csv"], "two models or more"),
        (["eval", "nowhere"], "no fitted router"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments: list[str], text: str, runs: list[str], capsys: Said) -> None:
    outcome_file(Path("few.csv"), 12)
    Path("one.csv").write_text("prompt,a\nx,true\n")
    given = [{"cards": runs[0], "parcels": runs[1]}.get(a, a) for a in arguments]
    more = ["--features", "words"] if "fit" in given and "--features" not in given else []
    assert main(["route", *given, *more]) == 2
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error


@pytest.mark.slow
def test_published_outcomes_of_two_models_are_routed(
    tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = DATA_SETS / "routellm_gsm8k" / "responses.csv"
    if not file.is_file():
        pytest.skip("the outcomes are not here")
    monkeypatch.chdir(tmp_path)
    costs = "mistralai/Mixtral-8x7B-Instruct-v0.1=0.24,gpt-4-1106-preview=24.7"
    found = told(capsys, "route", "fit", "--outcomes", str(file), "--features", "words", "--cost", costs)
    assert len(found["routes"]) == 2 and found["results"]["gap_recovered"]["high"] > 0.5


def test_requests_in_another_language_are_told(tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    topics = ["my parcel is late and I would like to know where it is", "I want my money back for the lamp that broke"]
    lines = ["prompt,small,large"]
    lines += [f'"{topics[i % 2]}, please answer order number {i} today",{i % 2},1' for i in range(200)]
    Path("o.csv").write_text("\n".join(lines) + "\n")
    found = told(capsys, "route", "fit", "--outcomes", "o.csv", "--features", "words", "--cost", "small=1,large=9")
    assert found["language"] == "en"
    german = [
        f"Wo bleibt eigentlich mein Paket mit der Nummer {i}, ich warte schon seit zwei Wochen darauf?"
        for i in range(60)
    ]
    Path("g.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in german))
    assert main(["route", "eval", "router", "--outside", "g.jsonl"]) == 0
    assert "in another language than the rows that the router was fitted to (en)" in capsys.readouterr().out
    assert main(["route", "eval", "router"]) == 0
    assert "another language" not in capsys.readouterr().out


@pytest.mark.parametrize("features", ["words", "minilm", "static", "hidden"])
def test_no_texts_have_no_features(features: Any) -> None:
    from tuneloop.combine.route.features import RouteJob

    assert RouteJob(features).embed([]).shape[0] == 0
