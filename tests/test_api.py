"""The code of the page about Python runs, with less time to train, and what it makes are runs for the command line."""

from __future__ import annotations

import importlib.util
import inspect
import json
import pickle
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

import tuneloop
from places import ROOT
from tuneloop.cli.main import main
from tuneloop.core.files import read_json, read_jsonl
from tuneloop.training.config import TrainConfig

PAGE = ROOT / "docs" / "library.md"
FUNCTIONS = ("prepare", "advise", "plan", "train", "evaluate", "compare", "predict", "prompt", "run", "export", "serve")


@pytest.mark.nightly
@pytest.mark.slow
def test_the_code_of_the_page_runs_and_makes_runs(
    small_packaged: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {**small_packaged, "MLFLOW_TRACKING_URI": ""}.items():
        monkeypatch.setenv(name, value)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S))
    for minutes in ("max_minutes=1,", '"max_minutes": 0.5,'):  # a second of training shows as much
        assert minutes in code
        code = code.replace(minutes, minutes.replace("0.5", "0.02").replace("=1", "=0.02"))
    exec(compile(code, str(PAGE), "exec"), {"__name__": "__main__"})
    said = capfd.readouterr()
    assert not re.search(r"\d+%|tokens/s", said.out + said.err), "calls are silent"
    assert "did you mean train.learning_rate?" in said.out
    for run in (tmp_path / "runs" / "tickets", tmp_path / "runs" / "all"):
        assert read_json(run / "run.json")["status"] == "finished"
        for command in (["compare"], ["evaluate"], ["export", "--out", str(tmp_path / f"artifact-{run.name}")]):
            assert main([command[0], str(run), *command[1:]]) == 0
    assert all((tmp_path / f"artifact-{name}" / "artifact.json").is_file() for name in ("tickets", "all"))
    assert {"accuracy", "macro_f1"} <= set(read_json(tmp_path / "evals" / "base" / "eval.json")["metrics"])
    assert len(read_jsonl(tmp_path / "evals" / "fresh" / "samples.jsonl")) == 1
    assert len(read_jsonl(tmp_path / "datasets" / "tickets.rows.jsonl")) == 120


def rows(count: int = 60) -> list[dict[str, str]]:
    return [
        {"text": f"Letter {i} about case {i * 7}: which drawer?", "label": ["red", "blue"][i % 2]} for i in range(count)
    ]


def test_records_in_memory_become_a_data_set_whose_accounts_name_lines(tiny_llama: Path, tmp_path: Path) -> None:
    records = [*rows(), {"text": "", "label": "red"}]
    made = tuneloop.prepare(iter(records), out=tmp_path / "d", model=str(tiny_llama), duplicates={"near": False})
    assert len(made.train) + len(made.val) + len(made.test) == 60
    (reject,) = read_jsonl(tmp_path / "d" / "rejects.jsonl")
    assert (Path(reject["source"]), reject["line"]) == (tmp_path / "d.rows.jsonl", 61)
    assert json.loads((tmp_path / "d.rows.jsonl").read_text().splitlines()[0]) == records[0]


def test_a_run_from_python_is_a_run_and_its_time_is_what_was_said(tiny_llama: Path, tmp_path: Path) -> None:
    dataset = tuneloop.prepare(rows(), out=tmp_path / "d", model=str(tiny_llama), duplicates={"near": False})
    run = tuneloop.train(
        dataset, TrainConfig(max_minutes=0.02, epochs=1000), out=tmp_path / "run", model=str(tiny_llama), rank=2
    )
    assert run.record["status"] == "finished" and run.record["seconds"] < 30 and run.record["steps"] < 6000
    assert run.report.is_file() and (run.path / "adapter" / "adapter_config.json").is_file()
    with pytest.raises(tuneloop.UserError, match="no evaluation"):
        _ = run.evaluation
    artifact = tuneloop.export(run, form="adapter", out=tmp_path / "artifact")
    assert artifact.manifest["format"] == "adapter" and (artifact.folder / "artifact.json").is_file()
    answers = list(tuneloop.predict(run, ["Letter 3: which drawer?"]))
    assert answers[0].label in ("red", "blue")
    found = tuneloop.evaluate(run, consistency=0)
    assert found.metrics["accuracy"].low <= found.metrics["accuracy"].value <= found.metrics["accuracy"].high
    assert run.evaluation.verdict
    alone = tuneloop.evaluate(run.path / "adapter", rows(8), train=rows(24), out=tmp_path / "alone", consistency=0)
    assert "8 rows of " in str(alone.record), "test rows are no examples"


@pytest.mark.process  # the cache of models is looked into by a process
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: tuneloop.prepare([], out=d), "No records"),
        (lambda d: tuneloop.prepare(["a", {"x": 1}], out=d), "Record 1 is not a mapping"),
        (lambda d: tuneloop.prepare({"text": "a"}, out=d), "Not data: dict"),
        (lambda d: tuneloop.prepare([{"text": {1, 2}}], out=d), "what JSON can't"),
        (lambda d: tuneloop.prepare(d / "nothing.csv", out=d), "No such"),
        (lambda d: tuneloop.prepare(rows(), out=d, max_lenght=5), "Unknown key 'data.max_lenght'"),
        (lambda d: tuneloop.train(rows(), out=d), "Records are prepared before"),
        (lambda d: tuneloop.train(d / "nothing", out=d), "No such|No readable"),
        (lambda d: tuneloop.train(d, epochs=float("inf"), out=d), "train.epochs"),
        (lambda d: tuneloop.run({"modell": "x"}, out=d), "Unknown key 'modell'"),
    ],
)  # fmt: skip
def test_what_can_be_put_right_is_a_user_error(call: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(tuneloop.UserError, match=message):
        call(tmp_path / "d")


def test_completion_offers_what_is_public_and_nothing_else() -> None:
    assert {*FUNCTIONS, "Run", "UserError"} <= {*dir(tuneloop)}
    assert not {"Any", "importlib", "TYPE_CHECKING"} & {*dir(tuneloop)}


def test_every_function_is_a_plain_one_that_processes_can_be_given() -> None:
    for name in FUNCTIONS:
        function = getattr(tuneloop, name)
        assert inspect.isfunction(function) and pickle.loads(pickle.dumps(function)) is function
        assert typing.get_type_hints(function)["return"]


def test_the_keyword_arguments_are_the_fields_of_the_records_that_check_them() -> None:
    spec = importlib.util.spec_from_file_location("make_settings", ROOT / "docs" / "make_settings.py")
    assert spec and spec.loader
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.settings_module() == generator.MODULE.read_text(encoding="utf-8"), "run `make reference`"


def test_advice_rests_on_data_and_stated_facts_and_is_kept(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = tuneloop.prepare(rows(), out="d", model=str(tiny_llama), duplicates={"near": False})
    advice = tuneloop.advise(dataset.path, queries_per_day=100, classifier=0.97, test_rows=200)
    assert advice.answer in ("tune", "prompt", "dont") and advice.headline
    (kept,) = Path("evals").glob("advise-*/advise.json")
    assert read_json(kept)["headline"] == advice.headline
    assert tuneloop.advise(facts_change=True, rows=100).reasons
    with pytest.raises(tuneloop.UserError, match="queries_per_dya") as caught:
        tuneloop.advise(queries_per_dya=3)  # type: ignore[call-arg]
    assert caught.value.where == "advise"


def test_a_plan_by_formula_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    plan = tuneloop.plan(model="llama-3.2-1b", method="lora", gpu="l40s", rank=8)
    assert main(["plan", "--model", "llama-3.2-1b", "--method", "lora", "--gpu", "l40s", "--rank", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["peak_gib"] == plan.memory.peak_gib
    assert plan.fits and plan.method == "lora"
    with pytest.raises(tuneloop.UserError, match="Neither a model nor data"):
        tuneloop.plan()


def test_a_server_answers_until_its_process_is_stopped(tiny_llama: Path, tmp_path: Path) -> None:
    code = f"""
import os, signal, threading, urllib.request
import tuneloop

def ready(address):
    def ask():
        print(urllib.request.urlopen(address + "/readyz").status, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=ask).start()

tuneloop.serve({str(tiny_llama)!r}, ready=ready, port=0, folder={str(tmp_path / "serve")!r}, context=64)
print("stopped")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.stdout.split() == ["200", "stopped"], done.stderr


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_shows_typed_arguments_and_what_they_mean(name: str) -> None:
    function = getattr(tuneloop, name)
    signature = inspect.signature(function)
    documented = inspect.getdoc(function) or ""
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
        if parameter.name not in ("rows",) or name == "predict":
            assert f"{parameter.name}:" in documented, parameter.name
    assert "Raises:" in documented


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, tuneloop; dir(tuneloop); tuneloop.UserError; print(*sorted(m for m in sys.modules if m in ('torch', 'numpy', 'pydantic')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
