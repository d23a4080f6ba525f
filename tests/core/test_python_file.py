"""Code runs where the user names it, and never because a folder does: a canary tells."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, read_yaml, write_json, write_yaml
from tuneloop.core.python_file import TRUST, code_of_a_command, run_python_file, trust_code
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.models.methods import shipped as methods
from tuneloop.recipe import load_recipe, make_recipe
from tuneloop.training.config import TrainConfig

METHOD = (Path(__file__).parents[2] / "examples" / "extend" / "new_method.py").read_text()


@pytest.fixture(autouse=True)
def nothing_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_TRUSTED_CODE", "")
    monkeypatch.setattr(methods, "_known", dict(methods._known))  # what is registered is forgotten at the end
    monkeypatch.setattr(methods, "_of_files", {})


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """Code that leaves a canary when it runs: a training method and a scorer."""
    file = tmp_path / "trap" / "evil.py"
    file.parent.mkdir()
    canary = tmp_path / "canary"
    file.write_text(f"open({str(canary)!r}, 'w').close()\n{METHOD}\ndef score(prediction):\n    return 1.0\n")
    return file


def test_a_file_runs_only_where_the_user_has_named_it(trap: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evil\.py is code that a folder names") as refused:
        run_python_file(str(trap), "train.method", "method's file")
    assert TRUST in refused.value.next_step and not (tmp_path / "canary").exists()
    with code_of_a_command(["train", "data", f"train.method={trap}"]):
        run_python_file(str(trap), "train.method", "method's file")
    (tmp_path / "canary").unlink()
    with pytest.raises(UserError, match="not run"):  # the next command knows nothing of it
        run_python_file(str(trap), "train.method", "method's file")
    with code_of_a_command(["compare", "run", TRUST]):
        run_python_file(str(trap), "train.method", "method's file")
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "named",
    [
        "evaluate.scorers.polite=mine.py:polite", "evaluate.scorers={polite: mine.py:polite}", "mine.py", "./mine.py",
        {"evaluate": {"scorers": {"a": "mine.py:polite"}}}, ["--method", "mine.py"],
    ],
)  # fmt: skip
def test_the_file_is_recognised_however_it_is_named(
    named: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    trust_code(named)
    run_python_file("mine.py", "x", "file")
    run_python_file(str(tmp_path / "mine.py"), "x", "file")


def test_an_asterisk_on_the_command_line_is_no_trust(trap: Path) -> None:
    with code_of_a_command(["prepare", "*"]), pytest.raises(UserError, match="not run"):
        run_python_file(str(trap), "x", "file")


def test_a_recipe_that_the_user_names_is_trusted_and_a_runs_is_not(trap: Path, tmp_path: Path) -> None:
    values = {"train": {"method": str(trap)}, "data": {"sources": ["rows.jsonl"]}}
    write_yaml(tmp_path / "config.yaml", values)
    with pytest.raises(UserError, match="not run"):
        load_recipe(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="not run"):
        make_recipe(values)
    assert not (tmp_path / "canary").exists()
    write_yaml(tmp_path / "recipe.yaml", values)
    assert load_recipe(tmp_path / "recipe.yaml").train.method == str(trap)
    assert (tmp_path / "canary").exists()


def test_what_python_code_says_itself_is_trusted(trap: Path, tmp_path: Path) -> None:
    EvaluateConfig(scorers={"x": f"{trap}:score"})
    assert str(trap) in os.environ["TUNELOOP_TRUSTED_CODE"]
    os.environ["TUNELOOP_TRUSTED_CODE"] = ""
    TrainConfig(method=str(trap))
    assert (tmp_path / "canary").exists()


COMMANDS = [
    ["compare", "RUN"], ["export", "RUN"], ["export", "RUN", "--format", "adapter"], ["evaluate", "RUN"],
    ["evaluate", "RUN", "--data", "rows.jsonl"], ["predict", "RUN", "rows.jsonl", "-o", "out.jsonl"], ["chat", "RUN"],
    ["gate", "RUN", "--against", "RUN2"], ["compare", "RUN", "RUN2"], ["merge", "RUN", "RUN2", "-o", "merged"], ["models", "reproduce", "RUN"],
    ["models", "reproduce", "RUN", "--check"], ["train", "RUN"], ["run", "RUN"], ["run", "RUN/config.yaml"], ["plan", "RUN"],
    ["train", "RUN/config.yaml"], ["sweep", "RUN/config.yaml", "train.rank=2,4"], ["advise", "RUN"], ["data", "check", "RUN/dataset"],
    ["data", "diff", "RUN/dataset", "RUN2/dataset"], ["models", "verify", "RUN"], ["review", "RUN", "--no-serve"], ["models", "register", "RUN", "-n", "m"],
    ["distill", "RUN", "rows.jsonl", "-o", "student"], ["route", "fit", "RUN", "RUN2", "-o", "router"],
    ["deploy", "RUN", "--to", "compose"], ["models", "push", "RUN", "hub:a/b"], ["batch", "rows.jsonl", "--model", "RUN"], ["init", "RUN/config.yaml"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_command_runs_the_code_that_a_foreign_run_names(
    arguments: list[str], cli: Any, make_run: Callable[..., Path], trap: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "q", "completion": "a"}\n' * 3)
    for name in ("RUN", "RUN2"):
        run = make_run(name)
        config = read_yaml(run / "config.yaml")
        config |= {"train": {"method": str(trap)}, "evaluate": {"scorers": {"x": f"{trap}:score"}}}
        config["data"] = {"sources": [str(tmp_path / "rows.jsonl")]}
        write_yaml(run / "config.yaml", config)
        write_json(run / "run.json", {**read_json(run / "run.json"), "method": str(trap)})
    done = cli(*arguments, input="")
    assert not (tmp_path / "canary").exists(), done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "should not happen" not in done.stderr, done.stderr
    if TRUST in done.stderr:
        assert done.returncode == 2 and str(trap) in done.stderr


def test_the_report_of_a_foreign_run_is_written_without_its_code(
    cli: Any, make_run: Callable[..., Path], trap: Path, tmp_path: Path
) -> None:
    run = make_run()
    write_yaml(run / "config.yaml", {**read_yaml(run / "config.yaml"), "train": {"method": str(trap)}})
    assert cli("compare", str(run)).returncode == 0
    assert (run / "report.html").is_file() and not (tmp_path / "canary").exists()


def test_trusted_code_of_a_run_is_run(cli: Any, make_run: Callable[..., Path], trap: Path, tmp_path: Path) -> None:
    run = make_run()
    write_yaml(run / "config.yaml", {**read_yaml(run / "config.yaml"), "train": {"method": str(trap)}})
    refused = cli("export", str(run))
    assert refused.returncode == 2 and str(trap) in refused.stderr and TRUST in refused.stderr
    shutil.rmtree(tmp_path / "artifacts", ignore_errors=True)
    cli("export", str(run), TRUST)
    assert (tmp_path / "canary").exists()
    assert json.loads(cli("compare", str(run), "--json").stdout)["report"]
