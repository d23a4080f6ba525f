"""A server of a known model, by its URL: evaluate, predict and distill get what the run answers on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm_stand_in import MODEL, StandIn

from tuneloop.cli.main import main
from tuneloop.core.files import read_json, read_jsonl
from tuneloop.models.adapters.peft_layout import hash_of_adapter

MakeTuned = Callable[..., Path]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_DTYPE", "float32")
    monkeypatch.setenv("TUNELOOP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def server(tiny_llama: Path) -> Iterator[tuple[StandIn, str]]:
    stand_in = StandIn(tiny_llama)
    with stand_in as url:
        yield stand_in, url


def reported(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    assert main([*arguments, "--json", "--quiet"]) == status
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def samples(folder: str) -> list[dict[str, Any]]:
    return list(read_jsonl(Path(folder) / "samples.jsonl"))


def test_labels_through_a_server_are_those_of_the_run_s_evaluation(
    server: tuple[StandIn, str], make_tuned: MakeTuned, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in, url = server
    run = make_tuned()
    options = ("--dataset", str(run / "dataset"), "--split", "train")
    ours = samples(reported(capsys, "evaluate", str(run), *options, "--out", "ours")["path"])
    by_folder = reported(capsys, "evaluate", "--endpoint", url, "--model", str(run), *options, "--out", "folder")
    assert by_folder["endpoint"].startswith(url) and by_folder["name"] == "tuned"
    assert by_folder["costs"]["tuned"]["requests"] == len(ours) and not stand_in.names, "unloaded behind it"
    for our, other in zip(ours, samples(by_folder["path"]), strict=True):
        assert our["prediction"] == other["prediction"] and other["completion"]["finish"] == "choice"
        assert other["completion"]["adapter"] == hash_of_adapter(run / "adapter")
        probabilities = [item["completion"]["label_probability"] for item in (our, other)]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=0.01)
    base = reported(
        capsys, "evaluate", url, "-m", MODEL, "--base", str(run), "evaluate.answer=choice", *options, "--out", "base"
    )
    assert all(row["completion"]["finish"] == "choice" for row in samples(base["path"]))
    assert [row["completion"]["label_probability"] for row in samples(base["path"])] != [
        row["completion"]["label_probability"] for row in ours
    ], "the base answers under this name, though the template is the run's"


def test_an_endpoint_of_which_nothing_is_known_says_what_is_missing(
    server: tuple[StandIn, str], make_tuned: MakeTuned, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url = server
    run = make_tuned()
    command = ("evaluate", "--endpoint", url, "--model", MODEL, "--dataset", str(run / "dataset"))
    assert main([*command, "evaluate.answer=choice", "-q"]) == 2
    assert "give --base MODEL" in capsys.readouterr().err


def test_rows_are_predicted_with_labels_and_probabilities(
    server: tuple[StandIn, str], tiny_llama: Path, make_tuned: MakeTuned, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url = server
    run = make_tuned()
    Path("in.jsonl").write_text('{"text": "cafÃ© was late"}\n{"text": "thank you"}\n{"text": ""}\n')
    ours = reported(capsys, "predict", str(run), "in.jsonl", status=1)["predictions"]
    theirs = reported(capsys, "predict", url, "in.jsonl", "-m", str(run), "--no-cache", status=1)["predictions"]
    for our, other in zip(ours, theirs, strict=True):
        assert {**our, "probability": None} == {**other, "probability": None}
        assert our["probability"] == pytest.approx(other["probability"], abs=0.01)
    named = ("predict", url, "in.jsonl", "-m", MODEL, "--base", str(tiny_llama), "--task", str(run), "--top", "2")
    assert main([*named, "-q"]) == 2
    assert "only as far as its answer needs it" in capsys.readouterr().err
    assert main([*named[:6], "smollm2-135m", *named[7:9], "-q"]) == 2
    assert "can't write these labels" in capsys.readouterr().err, "this is no model of that base"


def test_a_teacher_by_url_scores_the_labels_that_it_teaches(
    server: tuple[StandIn, str], tiny_llama: Path, make_tuned: MakeTuned, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url = server
    run = make_tuned()
    settings = ("train.epochs=0.1", "--no-control", "--rows", "4")
    common = (str(tiny_llama), "--dataset", str(run / "dataset"))
    by_url = reported(capsys, "distill", url, *common, "-m", str(run), "--out", "by-url", *settings)
    here = reported(capsys, "distill", str(run), *common, "--out", "here", *settings)
    assert by_url["kept"] == here["kept"] > 0 and by_url["agreement"] == here["agreement"]
    assert by_url["results"]["teacher"] == here["results"]["teacher"]
    answers = [
        {line["id"]: line["text"] for line in read_jsonl(next(Path(out, "distill").glob("answers-*.jsonl")))}
        for out in ("by-url", "here")
    ]
    assert answers[0] == answers[1] and read_json(Path("by-url/distillation.json"))["dropped"] == {}
