"""What a service has of a customer, listed before it is copied: jobs, models, files, batches, stored completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tuneloop.core.http.service import Item, Service, place_of, refusal, why
from tuneloop.core.http.wire import Broken, HttpRefused
from tuneloop.core.units import counted
from tuneloop.migrate.notices import stop_of
from tuneloop.migrate.record import HostedJob, Missing


@dataclass
class Survey:
    """What is there; lists as the service gives them, by id."""

    jobs: list[HostedJob] = field(default_factory=list)
    raw_jobs: Mapping[str, Item] = field(default_factory=dict)
    checkpoints: Mapping[str, list[Item]] = field(default_factory=dict)  # of jobs
    files: dict[str, Item] = field(default_factory=dict)
    batches: Mapping[str, Item] = field(default_factory=dict)
    completions: str = "0"  # stored ones; `100+`: at least so many, since lists have no totals
    missing: list[Missing] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Of all files, as far as the service names their sizes."""
        return sum(size for item in self.files.values() if isinstance(size := item.get("bytes"), int))


async def survey_of(service: Service) -> Survey:
    """List what is there.

    Raises:
        UserError: the service is no such service, refuses the key, or lists no jobs.
    """
    survey = Survey()
    try:
        jobs = await service.items("/fine_tuning/jobs", limit=100)
    except (HttpRefused, Broken) as error:
        raise refusal(error, service.url, "fine-tuning jobs") from None
    survey.raw_jobs = {job["id"]: job for job in jobs}
    models = await _listed(service, survey, "models", "/models")
    listed = {name: model.get("shutdown_date") for name, model in models.items()}
    survey.checkpoints = {job["id"]: await _checkpoints(service, survey, job) for job in jobs}
    survey.jobs = [_job(job, survey.checkpoints[job["id"]], listed) for job in jobs]
    files = await _listed(service, survey, "files", "/files", limit=1000)
    survey.batches = await _listed(service, survey, "batches", "/batches", limit=100)
    survey.files = files  # of every purpose: one that the service does not give out is named as missing
    for job in survey.jobs:  # files that are in no list, perhaps because they were deleted
        names = {job.training_file: "fine-tune", job.validation_file or "": "fine-tune"}
        _add(survey, names | dict.fromkeys(job.result_files, "fine-tune-results"))
    for batch in survey.batches.values():
        keys = {"input_file_id": "batch", "output_file_id": "batch_output", "error_file_id": "batch_output"}
        _add(survey, {str(batch.get(key) or ""): purpose for key, purpose in keys.items()})
    survey.completions = await _completions(service, survey)
    return survey


def _add(survey: Survey, names: Mapping[str, str]) -> None:
    for name, purpose in names.items():
        if name:
            survey.files.setdefault(name, {"id": name, "purpose": purpose})


async def _listed(service: Service, survey: Survey, noun: str, path: str, **query: str | int) -> dict[str, Item]:
    """A list that may be refused: then the rest is copied, and the report says what is missing."""
    try:
        return {item["id"]: item for item in await service.items(path, **query)}
    except (HttpRefused, Broken) as error:
        survey.missing.append(Missing(what=noun, why=why(error)))
        return {}


async def _checkpoints(service: Service, survey: Survey, job: Item) -> list[Item]:
    if job.get("status") != "succeeded":
        return []
    path = place_of("fine_tuning", "jobs", job["id"], "checkpoints")
    return list((await _listed(service, survey, f"checkpoints of {job['id']}", path)).values())


async def _completions(service: Service, survey: Survey) -> str:
    try:
        page = await service.get("/chat/completions", limit=100)
    except (HttpRefused, Broken) as error:
        if not (isinstance(error, HttpRefused) and error.status in (404, 405)):  # else a service that stores none
            survey.missing.append(Missing(what="stored completions", why=why(error)))
        return "0"
    items = page.get("data")
    count = len(items) if isinstance(items, list) else 0
    return f"{count}+" if page.get("has_more") else str(count)


def _job(job: Item, checkpoints: Sequence[Item], listed: Mapping[str, Any]) -> HostedJob:
    base, model = str(job.get("model") or ""), job.get("fine_tuned_model")
    stop = stop_of(str(model), base, listed) if model else None
    method, error = _object(job.get("method")), _object(job.get("error"))
    kind = str(method.get("type", "supervised"))
    settings = _object(job.get("hyperparameters")) or _object(_object(method.get(kind)).get("hyperparameters"))
    files = job.get("result_files")
    return HostedJob(
        id=job["id"],
        status=str(job.get("status") or "unknown"),
        base=base,
        model=str(model) if model else None,
        created=day_of(job.get("created_at")),
        finished=day_of(job.get("finished_at")),
        training_file=str(job.get("training_file") or ""),
        validation_file=str(job["validation_file"]) if job.get("validation_file") else None,
        result_files=[str(name) for name in files] if isinstance(files, list) else [],
        method=kind,
        hyperparameters=settings,
        trained_tokens=job["trained_tokens"] if isinstance(job.get("trained_tokens"), int) else None,
        checkpoints=[
            str(checkpoint.get("fine_tuned_model_checkpoint") or checkpoint["id"]) for checkpoint in checkpoints
        ],
        stops=stop.day if stop else "",
        stops_by=stop.source if stop else "",
        error=str(error.get("message") or ""),
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def day_of(seconds: Any) -> str:
    """A Unix time as a day; empty where it is none."""
    try:
        return datetime.fromtimestamp(float(seconds), UTC).date().isoformat() if seconds else ""
    except (TypeError, ValueError, OverflowError, OSError):
        return ""


def volumes(survey: Survey) -> str:
    """What would be copied, in a line."""
    counts = [counted(len(survey.jobs), "job"), counted(len(survey.files), "file")]
    stored = survey.completions
    counts.append(counted(len(survey.batches), "batch"))
    counts.append(f"{'at least ' if stored.endswith('+') else ''}{stored.rstrip('+')} stored completions")
    further = "" if stored == "0" else " Each stored completion takes a request of its own, and each hundred one more."
    return f"{', '.join(counts)}; {size_words(survey.bytes)} of files. Reading them costs nothing.{further}"


def size_words(size: int) -> str:
    """Bytes in words."""
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size / 2**10:,.1f} KiB"
