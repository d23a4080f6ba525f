"""A run elsewhere gets prepared and redacted rows, a recipe that reads them, and a price."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tuneloop.recipe import load_recipe

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    texts = [f"The {'late' if n % 2 else 'early'} parcel {n}; write to ann{n}@example.com" for n in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": "ab"[n % 2]}) + "\n" for n, text in enumerate(texts)))
    return path


def test_only_redacted_rows_leave_and_the_recipe_reads_them(
    rows: Path, tiny_llama: Path, cli: Cli, tmp_path: Path
) -> None:
    done = cli("run", str(rows), f"model={tiny_llama}", "train.rank=4", "--on", "slurm", "--json")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / json.loads(done.stdout)["folder"]
    everything = "".join(
        path.read_text() for path in folder.rglob("*") if path.is_file() and path.suffix in (".jsonl", ".yaml", ".md")
    )
    assert "ann1@example.com" not in everything and "parcel 1" in everything
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.data.sources == ["dataset"] and recipe.train.rank == 4
    assert "Nothing was started" in done.stderr
    again = cli("plan", "recipe.yaml", cwd=folder)
    assert again.returncode == 0, again.stderr  # what lies there is complete
    assert "rejected" not in again.stdout + again.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--on", "slurn"], "did you mean slurm?"),
        (["--on", "rey"], "did you mean ray?"),
        (["--on", "ray", "--spot", "--gpu", "l4"], "--gpu, --spot have no meaning on a Ray cluster"),
        (["--on", "modal", "--nodes", "2"], "Modal runs a job on one machine"),
        (["--on", "slurm", "--nodes", "999"], "1 to 64 machines"),
        (["--on", "slurm", "--spot"], "--spot has no meaning on Slurm"),
        (["--on", "modal", "--bucket", "s3://acme"], "keeps the run elsewhere"),
        (["--on", "kubernetes", "--bucket", "acme"], "Not a bucket: 'acme'"),
        (["--on", "ray", "--dry-run"], "--dry-run has no meaning on a Ray cluster"),
        (["--on", "skypilot", "--spot"], "--bucket"),
        (["--on", "modal", "--gpu", "rtx4090"], "Modal has no RTX 4090"),
        (["--on", "slurm", "--yes"], "No command 'sbatch'"),
        (["--on", "modal", "--max-usd", "0.000001"], "more than $0.000001"),
    ],
)
def test_what_can_t_be_trained_elsewhere_is_said(
    rows: Path, tiny_llama: Path, cli: Cli, arguments: list[str], said: str
) -> None:
    done = cli("run", str(rows), f"model={tiny_llama}", *arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_price_that_rose_since_the_plan_is_said_and_stops_at_the_limit(
    rows: Path, tiny_llama: Path, cli: Cli, tmp_path: Path
) -> None:
    arguments = ("run", str(rows), f"model={tiny_llama}", "--on", "modal", "--project", "far")
    assert cli(*arguments).returncode == 0
    record = tmp_path / "far" / "remote.json"
    before = json.loads(record.read_text())
    assert before["on"] == "modal" and before["usd"] > 0
    record.write_text(json.dumps({**before, "usd": before["usd"] / 2}))
    again = cli(*arguments, "--max-usd", str(0.75 * before["usd"]), "--yes")
    assert (
        again.returncode == 2 and "when it was planned on 20" in again.stderr and "nothing was started" in again.stderr
    )


def test_a_bucket_keeps_the_run_where_it_is_not_mounted(rows: Path, tiny_llama: Path, cli: Cli, tmp_path: Path) -> None:
    for name in ("kubernetes", "slurm", "skypilot"):
        arguments = ("--on", name, "--bucket", "s3://acme/", "--project", name, "--dry-run")
        assert cli("run", str(rows), f"model={tiny_llama}", *arguments).returncode == 0
        store = load_recipe(tmp_path / name / "recipe.yaml").store
        text = "".join(path.read_text() for path in (tmp_path / name).iterdir() if path.is_file())
        assert store == ("" if name == "skypilot" else "s3://acme/rows") and "tuneloop[all,s3]==" in text
    assert "source: s3://acme/" in (tmp_path / "skypilot" / "sky.yaml").read_text()


def test_a_place_s_price_is_one_of_its_own_providers(rows: Path, tiny_llama: Path, cli: Cli) -> None:
    said = {
        name: cli("run", str(rows), f"model={tiny_llama}", "--on", name, "--project", name).stdout
        for name in ("modal", "skypilot", "kubernetes")
    }
    assert "(Modal, 20" in said["modal"] and "Modal, 20" not in said["skypilot"], said
    assert "machines of your own" in said["kubernetes"] and "rented, $" in said["kubernetes"]
    assert "0 minutes" not in "".join(said.values()) and "$0.00 " not in "".join(said.values())


def test_cards_of_several_machines_need_no_name(rows: Path, tiny_llama: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli(
        "run", str(rows), f"model={tiny_llama}", "--on", "slurm", "--gpus", "8", "--nodes", "2", "--dry-run", "--json"
    )
    assert done.returncode == 0, done.stderr
    job = (tmp_path / json.loads(done.stdout)["folder"] / "job.sbatch").read_text()
    assert "--nodes=2" in job and "gpu" in job
