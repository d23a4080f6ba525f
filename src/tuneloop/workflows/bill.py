"""`tuneloop bill`: what runs and deployments were to cost, joined with what was paid."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.records.bill import Bill
from tuneloop.records.hosting import HostedDeployment, RemoteJob
from tuneloop.records.record import read_record
from tuneloop.records.run import RunManifest
from tuneloop.scale.bill import Expected, Invoice, job_of, join, read_invoices

MOST_DEEP = 5  # folders below the one that is looked through
COPIES = {"mlartifacts", "mlruns"}  # where MLflow keeps copies of a run's files


def make_bill(invoices: Sequence[Path], folders: Sequence[Path], rates: dict[str, float], *, sky: bool = False) -> Bill:
    """Join what is planned in folders with paid lines.

    Args:
        invoices: files.
        folders: in which runs, projects of runs elsewhere and deployments are looked for.
        rates: dollars for one of another currency.
        sky: whether SkyPilot is asked for its cost report.

    Raises:
        UserError: nothing was paid or planned, a file that can't be read, no SkyPilot.
    """
    lines: list[Invoice] = [line for path in invoices for line in read_invoices(path, rates)]
    if sky:
        lines += _sky_report(rates)
    if not lines:
        raise UserError(
            "Nothing was paid", where=", ".join(map(str, invoices)) or "tuneloop bill",
            next_step="name a CSV of invoices, or ask SkyPilot with --sky",
        )  # fmt: skip
    expected = [one for folder in folders for one in _expected(folder)]
    if not expected:
        raise UserError(
            "Nothing that was planned is here", where=", ".join(map(str, folders)),
            next_step="name the folder that holds runs/, remote/ and deploy/: --folder FOLDER",
        )  # fmt: skip
    return join(expected, lines)


def _expected(folder: Path) -> Iterator[Expected]:
    """Runs, jobs and deployments in a folder; what can't be read is passed over."""
    kinds = (RunManifest, RemoteJob, HostedDeployment)
    for kind in kinds:
        for path in sorted(folder.glob("**/" + kind.file)):
            place = path.relative_to(folder)
            if len(place.parts) > MOST_DEEP or any(part.startswith(".") or part in COPIES for part in place.parts):
                continue
            try:
                found = read_record(kind, path)
            except UserError:
                continue  # another program's file of that name
            if isinstance(found, RunManifest):
                usd = found.predicted.usd if found.predicted else None
                name = path.parent.resolve().name
                jobs = tuple(dict.fromkeys(job for id_ in (name, found.id) if (job := job_of(id_))))
                yield Expected(name, "run", "", usd, others=(found.id,) if found.id else (), loose=jobs)
            elif isinstance(found, RemoteJob):
                yield Expected(found.name, "job", found.on, found.usd)
            elif isinstance(found, HostedDeployment):
                month = found.usd_per_month[0] if found.usd_per_month else None
                yield Expected(
                    found.name,
                    "deployment",
                    found.host,
                    None,
                    found.usd_per_hour,
                    month,
                    (found.artifact,),
                    (job_of(found.artifact),),
                )


def _sky_report(rates: dict[str, float]) -> list[Invoice]:
    """What SkyPilot says that its clusters cost."""
    if shutil.which("sky") is None:
        raise UserError(
            "SkyPilot is not installed",
            where="--sky",
            next_step="pip install skypilot, or save `sky cost-report` to a file and name it",
        )
    done = subprocess.run(
        ["sky", "cost-report", "--all"], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no words"]
        raise UserError(f"sky cost-report failed: {last[0]:.200}", where="--sky", next_step="look at `sky check`")
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "sky-cost-report"
        file.write_text(done.stdout)
        return read_invoices(file, rates) if "COST" in done.stdout else []
