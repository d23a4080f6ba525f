"""`tuneloop migrate`: leave a hosted fine-tune, with proof."""

from __future__ import annotations

import os
import sys
from datetime import date
from pathlib import Path

from tuneloop.cli.console import Result, print_live
from tuneloop.cli.endpoint import PricedEndpointOptions
from tuneloop.cli.parameters import argument, output, screen
from tuneloop.core.errors import UserError, in_shell
from tuneloop.core.files import Config
from tuneloop.core.flag import flag, switch
from tuneloop.core.units import counted
from tuneloop.core.urls import masked

OPENAI = "https://api.openai.com/v1"
SERVICE = flag("", "URL", "The service; default: OPENAI_BASE_URL, else OpenAI.")


def openai(
    out: str = flag("openai", "FOLDER", "Folder of the copy; a copy that was interrupted continues.", "-o"),
    base_url: str = SERVICE,
    api_key_env: str = flag("OPENAI_API_KEY", "NAME", "Environment variable with the key."),
    only_list: bool = switch("List models, and when they stop; copy nothing.", "--list"),
    yes: bool = switch("Copy without asking."),
) -> Result:
    """List fine-tuning jobs and when their models stop, and copy all there is to a folder.

    Jobs with events and checkpoints, files, batches and stored completions are read from OpenAI or any server of its
    API; nothing is changed there. The commands that follow are printed. Exit status 1: something could not be copied.
    """
    from tuneloop.migrate import Migration, copy_lines, copy_service, job_lines, look, volumes

    folder, service, key = Path(out), _url(base_url), _key(api_key_env)
    with screen("reading the service"):
        survey = look(service, key, folder)
    lines = [*job_lines(survey.jobs, date.today()), f"volume    {volumes(survey)}"]
    print_live("\n".join(lines), err=True)
    if only_list or not _agreed(f"Copy it to {folder}?", yes):
        listed = Migration(service=masked(service), copied="", jobs=survey.jobs, missing=survey.missing)
        gaps = [f"missing   {gap.what}: {gap.why}" for gap in survey.missing]
        same = ["tuneloop", "migrate", "openai", *(["--base-url", base_url] if base_url else []), "-o", out, "--yes"]
        return Result({"path": None, **listed.to_json()}, [*gaps, f"next      {in_shell(same)}"])
    with screen("copying"):
        migration = copy_service(service, key, survey, folder)
    record = {"path": str(folder), **migration.to_json()}
    return Result(record, copy_lines(migration, folder), int(bool(migration.missing)))


class FreezeOptions(Config):
    """What may be sent, and where the answers are kept."""

    out: str = flag("evaluations/openai-ft", "FOLDER", "Folder of the evaluation, with all replies.", "-o")
    copy_of: str = flag("openai", "FOLDER", "Copy of the service, which says what the model was trained on.", "--copy")
    limit: int = flag(0, "N", "Send at most this many rows, a seeded sample.", least=0)
    max_usd: float = flag(0.0, "USD", "Send nothing where it may cost more.", least=0)


def freeze(
    model: str = argument("MODEL", "The hosted model, as in ft:gpt-4o-mini-2024-07-18:acme:tickets:AbC123."),
    dataset: str = flag(..., "FOLDER", "Prepared data set; its test rows are sent.", "-d"),
    base_url: str = SERVICE,
    yes: bool = switch("Send them without asking."),
    *,
    options: FreezeOptions,
    connection: PricedEndpointOptions,
) -> Result:
    """Ask a hosted model the test rows while it lives: the standard that a successor must reach.

    The price is shown first. Replies are kept with the evaluation, with log probabilities where the service gives them,
    and a gate's first suite is made of them. Exit status 1: some requests have failed for good.
    """
    from tuneloop.migrate import SUITE, freeze_answers, plan_freezing
    from tuneloop.records.evaluation import EvaluationManifest
    from tuneloop.records.record import read_record

    endpoint = connection.endpoint(_url(base_url), model)
    plan = plan_freezing(endpoint, dataset, copy=Path(options.copy_of), most_usd=options.max_usd, limit=options.limit)
    print_live("\n".join([f"price     {plan.budget.words}", *plan.notes]), err=True)
    if not _agreed(f"Send {counted(plan.budget.rows, 'test row')} to {model}?", yes):
        return Result({"path": None}, ["Nothing was sent."])
    with screen("freezing"):
        failed = freeze_answers(plan, out := Path(options.out))
    manifest = read_record(EvaluationManifest, out)
    successor = f"runs/{Path(dataset).name}"
    lines = [
        *manifest.words[:1],
        *(f"note: {note}" for note in manifest.notes),
        f"standard  {out / 'eval.json'}, {out / SUITE}",
        f"next      tuneloop run {dataset} output_dir={successor}",
        f"next      tuneloop gate {successor} --against {out} --margin 2",
    ]
    return Result({"path": str(out), **manifest.to_json()}, lines, int(bool(failed)))


def _url(base_url: str) -> str:
    return base_url or os.environ.get("OPENAI_BASE_URL", "") or OPENAI


def _key(variable: str) -> str:
    if key := os.environ.get(variable, "").strip():
        return key
    step = f"export {variable}=..., a key of the project that owns the models; it is stored and shown nowhere"
    raise UserError(f"The variable {variable} is not set", where="--api-key-env", next_step=step)


def _agreed(question: str, yes: bool) -> bool:
    from tuneloop.deploy import confirmed

    if not yes and (output().as_json or not sys.stdin.isatty()):
        print_live("The same command with --yes begins.", err=True)
        return False
    return confirmed(question, yes)


commands = {"openai": openai, "freeze": freeze}
