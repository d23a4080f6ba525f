"""The work of `tuneloop migrate openai`: list, copy, and which commands follow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from datetime import date
from pathlib import Path
from shlex import quote
from typing import TypeVar

from tuneloop.core.files import content_hash, lock_folder
from tuneloop.core.http.service import Service
from tuneloop.core.http.wire import finished
from tuneloop.core.units import counted
from tuneloop.migrate.copy import ROWS, cleaned, copy_all, refuse_other_folder
from tuneloop.migrate.notices import no_new_jobs, price_of, replacement_of
from tuneloop.migrate.record import HostedJob, Migration
from tuneloop.migrate.survey import Survey, size_words, survey_of

T = TypeVar("T")

SHOWN = 12  # models and gaps that are named; all are in the record


def look(url: str, key: str, folder: Path) -> Survey:
    """List what a service has.

    Raises:
        UserError: the service refuses the key or lists no jobs, or the folder for the copy holds something else.
    """
    refuse_other_folder(folder)
    return finished(_with_service(url, key, survey_of))


def copy_service(url: str, key: str, survey: Survey, folder: Path) -> Migration:
    """Copy what was listed to a folder; nothing changes at the service.

    Raises:
        UserError: the service stops answering, or the folder can't be written. The same call continues.
    """
    with lock_folder(folder):
        return finished(_with_service(url, key, lambda service: copy_all(service, survey, folder)))


async def _with_service(url: str, key: str, work: Callable[[Service], Awaitable[T]]) -> T:
    async with aclosing(Service(url, key)) as service:
        return await work(service)


def job_lines(jobs: list[HostedJob], today: date) -> Iterator[str]:
    """The models and when they stop, the first to stop first; then jobs without one."""
    made = sorted((job for job in jobs if job.model), key=lambda job: (job.stops or "9999", job.created))
    for job in made[:SHOWN]:
        passes = job.hyperparameters.get("n_epochs")
        facts = [f"from {job.base}", job.created, f"{job.method}", f"{passes} passes" if passes else ""]
        facts.append(f"{counted(len(job.checkpoints), 'checkpoint')}" if job.checkpoints else "")
        yield f"model     {job.model}  ({', '.join(filter(None, facts))})"
        yield f"          {_stop_words(job, today)}"
    if len(made) > SHOWN:
        yield f"          and {counted(len(made) - SHOWN, 'more model')}"
    others = [job for job in jobs if not job.model]
    if others:
        states = ", ".join(sorted({job.status for job in others}))
        yield f"jobs      {counted(len(others), 'job')} without a model ({states})"
    day, source = no_new_jobs()
    yield f"jobs      OpenAI takes no new ones from {day} ({source})"


def _stop_words(job: HostedJob, today: date) -> str:
    if not job.stops:
        return job.stops_by
    days = (date.fromisoformat(job.stops) - today).days
    left = f"in {counted(days, 'day')}" if days > 0 else "today" if not days else f"{counted(-days, 'day')} ago"
    return f"{'stops' if days >= 0 else 'stopped'} {job.stops}, {left} ({job.stops_by})"


def copy_lines(migration: Migration, folder: Path) -> Iterator[str]:
    """What was copied, what is missing, and the commands that follow."""
    size = sum(file.bytes for file in migration.files.values())
    yield f"copy      {folder / Migration.file}: {counted(len(migration.files), 'file')}, {size_words(size)}"
    for gap in migration.missing[:SHOWN]:
        yield f"missing   {gap.what}: {gap.why}"
    if len(migration.missing) > SHOWN:
        yield f"missing   {len(migration.missing) - SHOWN} more, in {Migration.file}"
    for use in migration.traffic[:SHOWN]:
        read, written = use.prompt_tokens / use.requests, use.completion_tokens / use.requests
        yield (
            f"traffic   {use.model}: {counted(use.requests, 'stored request')}, {use.a_day:,.3g} a day, "
            f"{read:,.0f} tokens read and {written:,.0f} written each"
        )
    yield (
        f"terms     {ROWS} holds what the service's models wrote (origin: model). The provider's terms may forbid to "
        "train another model on it; files/ is what you uploaded. Read them before you mix the two"
    )
    today = date.today()
    for job in live_models(migration.jobs, today):
        yield f"path      {job.model}: {_stop_words(job, today) or 'no end is announced'}"
        commands = next_commands(migration, job, folder)
        yield from (f"next      {command}" for command in commands)
        if not commands:
            yield "          no rows of it were copied: prepare your own, then `tuneloop migrate freeze` the model"


def live_models(jobs: Sequence[HostedJob], today: date) -> list[HostedJob]:
    """The jobs whose models still answer, the first to stop first, then the newest first."""
    live = [job for job in jobs if job.model and (not job.stops or date.fromisoformat(job.stops) > today)]
    live.sort(key=lambda job: (job.finished, job.created), reverse=True)
    return sorted(live, key=lambda job: job.stops or "9999")


def next_commands(migration: Migration, job: HostedJob, folder: Path) -> list[str]:
    """The path of one model: the data set, the standard, the price of staying, the successor. Each can be run as it is;
    none where no rows of it were copied."""
    files = {file.id: str(folder / name) for name, file in migration.files.items() if file.id}
    use = next((traffic for traffic in migration.traffic if traffic.model == job.model), None)
    rows = files.get(job.training_file) or (str(folder / ROWS) if use else "")
    if not rows:
        return []
    test = files.get(job.validation_file or "")
    name = data_name(job, migration.jobs)
    data = f"datasets/{name}"
    split = f" split.test={quote(test)}" if test else ""
    own = migration.service.startswith("https://api.openai.com")
    service = "" if own else f" --base-url {quote(migration.service)}"
    copy_option = "" if str(folder) == "openai" else f" --copy {quote(str(folder))}"
    standard = f"evaluations/{name}"
    commands = [
        f"tuneloop prepare {quote(rows)}{split} --out {data}",
        f"tuneloop migrate freeze {quote(str(job.model))} --dataset {data}{copy_option}{service} --out {standard}",
    ]
    if use:
        price = price_of(str(job.model))
        numbers = f"--queries-per-day {use.a_day:.3g} --baseline-prompt-tokens {use.prompt_tokens / use.requests:.0f}"
        numbers += f" --answer-tokens {use.completion_tokens / use.requests:.0f}"
        if price:
            numbers += f" --baseline-usd-per-million-input {price.input:g}"
            numbers += f" --baseline-usd-per-million-output {price.output:g}"
        commands.append(f"tuneloop advise {data} {numbers}")
    if other := replacement_of(job.base):
        url = migration.service
        commands.append(f"tuneloop evaluate {url} --model {other} --dataset {data} --out evaluations/{other}-{name}")
    return [*commands, f"tuneloop run {data} output_dir=runs/{name}"]


def data_name(job: HostedJob, jobs: Sequence[HostedJob]) -> str:
    """A name for a model's data set, from `ft:BASE:ORGANISATION:NAME:ID`; no other model has it."""

    def named(model: str, number: int) -> str:
        parts = model.split(":")
        return cleaned(parts[number]).casefold() if len(parts) > 4 and parts[number] else "openai-ft"

    model = str(job.model)
    others = [str(other.model) for other in jobs if other.model not in (None, model)]
    same = [other for other in others if named(other, 3) == named(model, 3)]
    if not same:
        return named(model, 3)
    alike = any(named(other, -1) == named(model, -1) for other in same)
    return f"{named(model, 3)}-{content_hash(model)[:12] if alike else named(model, -1)}"
