"""`tuneloop bill` finds what was planned in a folder, and joins it with invoices."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from tuneloop.records.hosting import HostedDeployment, RemoteJob
from tuneloop.records.record import write_record
from tuneloop.records.run import Predicted, RunManifest

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def write_plans(folder: Path) -> None:
    run = folder / "runs" / "tickets-1a2b3c4d"
    run.mkdir(parents=True)
    predicted = Predicted(minutes=60, low=50, high=70, peak_gib=20, usd=4.0)
    write_record(run / "run.json", RunManifest(id="tickets-1a2b3c4d", model="llama-3.1-8b", predicted=predicted))
    copy = folder / "mlartifacts" / "x" / "artifacts"  # MLflow's, which is no second run
    copy.mkdir(parents=True)
    (copy / "run.json").write_bytes((run / "run.json").read_bytes())
    job = folder / "remote" / "notes-skypilot"
    job.mkdir(parents=True)
    write_record(job / "remote.json", RemoteJob(name="notes", on="skypilot", gpu="l4", gpus=1, minutes=60, usd=10.0))
    host = folder / "deploy" / "tickets-runpod"
    host.mkdir(parents=True)
    deployed = HostedDeployment(
        host="runpod", name="tickets", artifact="tickets-merged-01", format="merged", base="b", context=4096, need_gib=20,
        replicas=(1, 1), usd_per_hour=2.0, usd_per_month=(1460.0, 1460.0),
    )  # fmt: skip
    write_record(host / "deploy.json", deployed)


def test_predicted_and_paid_stand_side_by_side_and_the_rest_is_listed(tmp_path: Path, cli: Cli) -> None:
    write_plans(tmp_path)
    (tmp_path / "paid.csv").write_text("Resource,Hours,Total\nnotes,5,12\ntickets endpoint,10,25\nsomething else,1,7\n")
    done = cli("bill", "paid.csv", "--json", "-o", "bill.json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    by_name = {line["name"]: line for line in found["lines"]}
    assert by_name["tickets"]["predicted"] == 20.0 and by_name["tickets"]["paid"] == 25.0
    assert by_name["notes"]["predicted"] == 10.0 and by_name["notes"]["paid"] == 12.0
    assert by_name["tickets-1a2b3c4d"]["predicted"] == 4.0
    assert [one["usd"] for one in found["unmatched"]] == [7.0]
    assert json.loads((tmp_path / "bill.json").read_text()) == found
    shown = cli("bill", "paid.csv").stdout
    assert "1.25" in shown and "something else" in shown and "$37.00 paid for what was to cost $30.00" in shown


def test_nothing_paid_or_planned_is_said(tmp_path: Path, cli: Cli) -> None:
    for arguments, said in (
        (["bill"], "Nothing was paid"),
        (["bill", "none.csv"], "Can't read the invoices"),
        (["bill", "paid.csv"], "Nothing that was planned is here"),
        (["bill", "paid.csv", "--rate", "x"], "Not a rate"),
    ):
        (tmp_path / "paid.csv").write_text("name,cost\na,1\n")
        done = cli(*arguments)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
