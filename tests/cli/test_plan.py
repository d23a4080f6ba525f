"""`tuneloop plan` without a recipe: every machine at once, and clear errors."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from manifests import manifest_json

from tuneloop.cli.main import main

CONTRACT = {"model", "method", "gpu", "gpus", "fits", "memory", "time", "cost", "assumptions", "alternatives"}


def run(arguments: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in environment.items():
            patch.setenv(name, value)
        status = main(["plan", *arguments])
    return status, out.getvalue(), err.getvalue()


def plan(arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    status, out, _ = run([*arguments, "--json"], environment)
    found: dict[str, Any] = json.loads(out)
    assert status == (0 if found["fits"] else 1)
    return found


def test_every_gpu_and_count_is_planned_and_sorted_by_cost(cli_environment: dict[str, str]) -> None:
    found = plan(["--model", "llama-3.1-8b", "--method", "lora"], cli_environment)
    assert set(found) >= CONTRACT
    assert {"peak_gib", "capacity_gib", "phase", "terms"} <= set(found["memory"])
    assert {"hours", "low", "high", "tokens_per_second"} <= set(found["time"])
    assert {"usd", "low", "high", "breakdown"} <= set(found["cost"])
    assert sum(found["memory"]["terms"].values()) == pytest.approx(found["memory"]["peak_gib"], abs=0.01)
    table = found["table"]
    assert {(row["gpu"], row["gpus"]) for row in table} >= {("t4", 1), ("h100-sxm", 8), ("mi300x", 4)}
    fitting = [row for row in table if row["fits"]]
    assert table[: len(fitting)] == fitting
    priced = [row["usd"] for row in fitting if row["usd"] is not None]
    assert priced == sorted(priced)
    assert all(row["low"] < row["hours"] < row["high"] for row in fitting), "what does not fit takes no time"


def test_nothing_of_it_loads_torch_or_numpy(cli_environment: dict[str, str]) -> None:
    code = """import sys
from tuneloop.cli.main import main
main(["plan", "--model", "llama-3.1-8b", "--method", "lora"])
print("LOADED", *sorted({m.split(".")[0] for m in sys.modules}), file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=cli_environment, check=True)
    assert not set(done.stderr.rpartition("LOADED")[2].split()) & {"torch", "transformers", "numpy", "huggingface_hub"}


def test_what_does_not_fit_comes_with_changes_that_make_it_fit(cli_environment: dict[str, str]) -> None:
    asked = ["--model", "llama-3.1-8b", "--method", "lora", "--gpu", "rtx4090", "--gpus", "1"]
    found = plan(asked, cli_environment)
    assert found["fits"] is False
    assert found["alternatives"]
    changed = found["alternatives"][0]["change"].split()
    assert plan([*asked, *changed], cli_environment)["fits"] is True


def test_the_padding_of_a_data_set_costs_time_and_packing_saves_it(
    tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    tokens = {"total": 3_000_000, "mean": 300.0, "p50": 200, "p90": 700, "max": 2000}
    (tmp_path / "dataset.json").write_text(json.dumps(manifest_json(splits={"train": {"tokens": tokens}})))
    asked = ["--model", "llama-3.2-1b", "--gpu", "a100-80gb", "--gpus", "1", "--dataset", str(tmp_path)]
    asked += ["--micro-batch", "8"]
    padded, packed = plan(asked, cli_environment), plan([*asked, "--packing", "--seq-len", "2000"], cli_environment)
    assert padded["settings"]["seq_len"] == 2000  # the longest row decides the memory
    assert not [line for line in packed["assumptions"] if "--seq-len" in line]  # it was given
    assert padded["time"]["breakdown"]["train"] > 2 * packed["time"]["breakdown"]["train"]


def test_general_rows_mixed_into_a_data_set_take_their_time(tmp_path: Path, cli_environment: dict[str, str]) -> None:
    tokens = {"total": 3_000_000, "mean": 300.0, "p50": 200, "p90": 700, "max": 2000}
    manifest = {
        "splits": {"train": {"tokens": tokens}},
        "mix": {
            "by": "tokens",
            "share": 0.33,
            "task": {"rows": 10_000, "tokens": 3_000_000},
            "general": {"rows": 5_000, "tokens": 1_500_000},
        },
    }
    asked = ["--model", "llama-3.2-1b", "--gpu", "a100-80gb", "--gpus", "1", "--dataset", str(tmp_path)]
    found = []
    for mixed in (manifest, {"splits": manifest["splits"]}):
        (tmp_path / "dataset.json").write_text(json.dumps(manifest_json(**mixed)))
        found.append(plan(asked, cli_environment)["time"]["breakdown"]["train"])
    assert found[0] == pytest.approx(1.5 * found[1], rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], ["model"]),
        (["--model", "llama-3.1-9b"], ["llama-3.1-8b"]),
        (["--model", "llama-3.1-8b", "--gpu", "h1000"], ["h100"]),
        (["--model", "llama-3.1-8b", "--method", "qlorra"], ["qlora"]),
        (["--model", "llama-3.1-8b", "--method", "full", "--quant", "nf4"], ["qlora"]),
        (["--model", "llama-3.1-405b", "--gpu", "cpu"], ["GPU"]),
        (["--model", "llama-3.1-8b", "--micro-batch", "0"], ["micro-batch"]),
        (["--model", "llama-3.1-8b", "--tokens", "-3"], ["tokens"]),
        (["--model", "llama-3.1-8b", "--epochs", "nan"], ["epochs"]),
        (["--model", "llama-3.1-8b", "--rank", "99999999"], ["rank"]),
        (["--model", "llama-3.1-8b", "--dataset", "nowhere"], ["No such data set, file", "nowhere"]),
        (["--model", "nowhere/config.json"], ["config.json"]),
        (["--model", "llama-3.1-8b", "--gpu", "t4", "--dtype", "bf16"], ["fp16"]),
        (["--model", "llama-3.1-8b", "--tier", "free"], ["spot"]),
        (["--model", "llama-3.1-8b", "--prices", "nowhere.yaml"], ["nowhere.yaml"]),
    ],
    ids=" ".join,
)
def test_bad_input_is_a_clear_error(arguments: list[str], text: list[str], cli_environment: dict[str, str]) -> None:
    status, _, err = run(arguments, cli_environment)
    assert status == 2
    assert "Traceback" not in err
    assert err.startswith("Error: ")
    for word in text:
        assert word in err
