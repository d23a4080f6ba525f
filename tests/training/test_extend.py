"""A method of your own is one record in a file, and a loss a function and a row in a table: the examples do it in under 40 lines."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Commands
from test_preferences import preferences
from train_helpers import changed, make_rows

from places import ROOT
from tuneloop.core.files import read_json, read_jsonl
from tuneloop.models.load import load_model
from tuneloop.models.methods import shipped as registry
from tuneloop.models.methods.shipped import register
from tuneloop.records.rows import Message, Row
from tuneloop.training.loop import train
from tuneloop.training.loss import LOSSES

FOLDER = ROOT / "examples" / "extend"


def example(name: str) -> Any:
    path = FOLDER / f"{name}.py"
    assert len(path.read_text().splitlines()) < 40
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_loss_of_your_own(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="must be supervised, dpo, kto or distil"):
        changed(loss="orpo")
    monkeypatch.setitem(LOSSES, "orpo", LOSSES["dpo"])  # taken out again at the end
    example("new_loss")
    model = load_model(str(tiny_llama), dtype="float32")
    rows = preferences(model, 12, "dpo")
    result = train(model, rows, rows[:4], changed(loss="orpo", learning_rate=5e-3), tmp_path)
    assert result.best_val_loss < result.first_val_loss - 0.5


def test_a_method_of_your_own(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="must be full, lora, qlora or prefix"):
        changed(method="norms")
    monkeypatch.setattr(registry, "_known", dict(registry._known))  # forgotten at the end
    register(example("new_method").NORMS)
    model = load_model(str(tiny_llama), dtype="float32")
    rows = make_rows(model.template, 12)
    result = train(model, rows, rows[:4], changed(method="norms", learning_rate=5e-2), tmp_path)
    assert result.trainable_parameters == 5 * 64
    assert result.best_val_loss < result.first_val_loss - 0.2
    with pytest.raises(ValueError, match=r"with train\.method=norms use train\.l2_start"):
        changed(method="norms", kl=0.1)
    with pytest.raises(ValueError, match=r"train\.dora is of lora and qlora only"):
        changed(method="norms", dora=True)


@pytest.mark.nightly
@pytest.mark.slow
def test_the_file_of_a_method_is_all_that_a_job_needs(
    cli_process: Callable[..., subprocess.CompletedProcess[str]],
    commands_in_one_process: Commands,
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    """Plan, train, evaluate, export and report, in processes that learn of the method from its file alone."""
    file = tmp_path / "mine" / "norms.py"
    file.parent.mkdir()
    file.write_text((FOLDER / "new_method.py").read_text())
    cases = [
        {"text": f"Case {i}: {['late', 'thanks', 'refund'][i % 3]} please {i * 37 % 101}", "label": "abc"[i % 3]}
        for i in range(60)
    ]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    method, run = f"train.method={file}", tmp_path / "run"

    planned = json.loads(
        cli_process("plan", "-m", "llama-3.2-1b", "--method", str(file), "--gpu", "h100-sxm", "--json").stdout
    )
    assert planned["method"] == "norms" and planned["trainable_parameters"] == (2 * 16 + 1) * 2048

    done = cli_process("run", str(tmp_path / "cases.jsonl"), f"model={tiny_llama}", method, "train.epochs=2", f"output_dir={run}",
               "track.report_to=none", "-q")  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = read_json(run / "run.json")
    assert (manifest["method"], manifest["weights"], manifest["trainable_parameters"]) == ("norms", "model", 5 * 64)
    assert read_json(run / "plan.json")["method"] == "norms"
    assert manifest["best_val_loss"] < manifest["first_val_loss"]
    assert "norms" in (run / "report.html").read_text()

    artifact = tmp_path / "artifact"
    commands = [
        ["evaluate", str(run), "--json", "--trust-code"],
        ["export", str(run), "--out", str(artifact), "--trust-code"],
        ["export", str(run), "--format", "adapter", "--trust-code"],
    ]
    done = commands_in_one_process(commands, {})
    assert done.returncode == 9 and "has no such form" in done.stderr, done.stderr  # the last one is refused
    measured = json.loads(done.stdout.partition("\n")[2].partition("$ export")[0])
    assert measured["metrics"].keys() >= {"accuracy"}
    assert "(norm scales)" in (artifact / "README.md").read_text()

    file.write_text(file.read_text().replace("1e-2", "2e-2"))  # another method is another run
    other = cli_process(
        "train", str(tmp_path / "cases.jsonl"), f"model={tiny_llama}", method, f"output_dir={run}", "-q"
    )
    assert other.returncode == 2, other.stdout + other.stderr


def test_rows_of_a_data_set_can_be_given_as_they_are(tiny_llama: Path, tmp_path: Path) -> None:
    turns: list[Message] = [{"role": "user", "content": "Which drawer?"}, {"role": "assistant", "content": "red"}]
    rows = [Row(str(i), turns) for i in range(8)]
    model = load_model(str(tiny_llama), dtype="float32")
    given = train(model, rows, rows[:2], changed(epochs=1), tmp_path / "rows")
    steps = [r for r in read_jsonl(tmp_path / "rows" / "metrics.jsonl") if "loss" in r]
    assert sorted(i for r in steps for i in r["rows"]) == list(range(8))
    rendered = [model.template.render(turns)] * 8
    model = load_model(str(tiny_llama), dtype="float32")
    assert (
        train(model, rendered, rendered[:2], changed(epochs=1), tmp_path / "rendered").adapter_hash
        == given.adapter_hash
    )
