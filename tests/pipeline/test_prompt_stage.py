"""`tuneloop prompt`: a prompt as the result of a run, which every command takes, and which sends the same everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import running
from tuneloop.cli.main import main
from tuneloop.core.files import read_json, read_jsonl, read_yaml
from tuneloop.inference import open_target
from tuneloop.models.chat import Template

NOUNS = ["order", "parcel", "lamp", "kettle", "voucher"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    folder = tmp_path_factory.mktemp("prompt")
    with (folder / "cases.jsonl").open("w") as file:
        for i in range(150):
            text = f"Case {i * 37 % 101}: the {NOUNS[i % 5]} sent on day {i * 13 % 29}, number {i * i}?"
            file.write(json.dumps({"text": text, "label": ["late", "refund", "praise"][i % 3]}) + "\n")
    out = folder / "run"
    split = ["data.split.val=0.3", "data.split.test=0.2"]
    command = ["prompt", str(folder / "cases.jsonl"), "--model", str(tiny_llama), "--calls", "260", "-o", str(out)]
    assert main([*command, *split, "--quiet", "--json"]) == 0
    return out


def test_the_folder_is_a_run_with_its_prompt_its_search_and_its_evaluation(run: Path) -> None:
    manifest, search, evaluation = (
        read_yaml(run / "prompt.yaml"),
        read_json(run / "search.json"),
        read_json(run / "eval.json"),
    )
    assert search["calls"] <= 260 and len(read_jsonl(run / "search" / "answers.jsonl")) <= search["calls"]
    assert search["tried"] and search["kept"] in {search["plain"], search["tried"][0]["name"]}
    assert read_json(run / "run.json")["adapter_hash"] == read_json(run / "tuneloop.json")["hash"]
    assert {"few-shot", "zero-shot", "majority class", "tf-idf + logistic regression"} <= set(evaluation["baselines"])
    assert evaluation["verdict"]["name"] == "optimised prompt" and (run / "report.html").is_file()
    assert manifest["chosen"] in ("fixed", "nearest") and read_jsonl(run / "examples.jsonl")


def test_the_same_command_again_asks_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneloop.pipeline.prompt_search.ask", None)
    recipe = read_yaml(run / "config.yaml")
    command = ["prompt", recipe["data"]["sources"][0], "--model", recipe["model"], "--calls", "260", "-o", str(run)]
    assert main([*command, "data.split.val=0.3", "data.split.test=0.2", "--quiet", "--json"]) == 0


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """The tokens of every prompt that is made in this process."""
    seen: list[list[int]] = []
    original: Callable[..., list[int]] = Template.prompt_ids

    def recorded(self: Template, *arguments: Any, **more: Any) -> list[int]:
        ids = original(self, *arguments, **more)
        seen.append(list(ids))
        return ids

    monkeypatch.setattr(Template, "prompt_ids", recorded)
    yield seen


def test_evaluate_predict_chat_and_batch_send_the_same_tokens(
    run: Path,
    tmp_path: Path,
    sent: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    sample = next(sample for sample in read_jsonl(run / "samples.jsonl"))
    target = open_target(str(run))
    assert target.reader is not None
    (turns,) = target.prompts([sample.get("messages") or [{"role": "user", "content": sample["prompt"]}]])
    expected = target.reader.template.prompt_ids(turns)
    Path("rows.jsonl").write_text(json.dumps({"text": sample["prompt"]}) + "\n")
    commands = {
        "evaluate": ["evaluate", str(run), "--out", "again"],
        "predict": ["predict", str(run), "rows.jsonl", "--out", "predicted.jsonl"],
        "batch": ["batch", "rows.jsonl", "-m", str(run), "-o", "batch.jsonl"],
    }
    for name, command in commands.items():
        sent.clear()
        assert main([*command, "--quiet"]) == 0, name
        assert expected in sent, name
    answer = sample["prediction"]
    assert read_jsonl("predicted.jsonl")[0]["prediction"] == answer
    body = read_jsonl("batch.jsonl")[0]["response"]["body"]
    assert body["choices"][0]["message"]["content"] == answer and body["usage"]["prompt_tokens"] == len(expected)
    again = next(row for row in read_jsonl("again/samples.jsonl") if row["id"] == sample["id"])
    assert again["prediction"] == answer


def test_a_server_proves_it_and_answers_by_it(run: Path, tmp_path: Path, cli_environment: dict[str, str]) -> None:
    samples = read_jsonl(run / "samples.jsonl")[:4]
    with running(str(run), folder=tmp_path / "serve", environment=cli_environment) as (address, _):
        model = httpx.get(f"{address}/v1/models").json()["data"][0]
        assert model["adapter"] == read_json(run / "run.json")["adapter_hash"]
        replies = [
            httpx.post(f"{address}/v1/chat/completions",
                       json={"model": model["id"], "messages": [{"role": "user", "content": sample["prompt"]}]}).json()
            for sample in samples
        ]  # fmt: skip
    assert [r["choices"][0]["message"]["content"] for r in replies] == [sample["prediction"] for sample in samples]


def test_it_is_exported_and_the_export_answers_as_the_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), "--quiet"]) == 0
    (artifact,) = Path("artifacts").iterdir()
    first, second = open_target(str(run)), open_target(str(artifact))
    assert first.identity == second.identity
    assert main(["export", str(run), "--format", "gguf", "--quiet"]) == 2


def test_few_shot_and_templates_are_refused_next_to_a_prompt(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--few-shot", "3"]) == 2
    assert "examples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--model", "minilm"], "encoder"),
        (["--endpoint", "http://127.0.0.1:9/v1"], "--model"),
        (["--calls", "0"], "calls"),
        (["--rules", "missing.txt"], "missing.txt"),
        (["--max-usd", "1", "--endpoint", "http://127.0.0.1:9/v1", "--model", "x"], "max-usd"),
    ],
)
def test_a_wrong_command_is_a_short_error(
    run: Path, tmp_path: Path, more: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prompt", str(run / "dataset"), "-o", str(tmp_path / "out"), *more, "--quiet"]) == 2
    message = capsys.readouterr().err
    assert word in message and "Traceback" not in message
