"""A run on a service's machines: upload, start, follow, and measure what came of it as any other model."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from tuneloop.core.errors import UserError
from tuneloop.core.files import cache_folder, content_hash, lock_folder, write_jsonl
from tuneloop.core.http import timeouts
from tuneloop.core.http.allowance import LONGEST_NAME
from tuneloop.core.http.service import Item, Service, place_of, refusal
from tuneloop.core.http.wire import Broken, HttpRefused, finished
from tuneloop.core.ui import progress, say
from tuneloop.core.units import counted, usd_words
from tuneloop.core.urls import masked
from tuneloop.data import load_dataset
from tuneloop.deploy.services import Order, TrainingService, fireworks, openai, together
from tuneloop.evaluation import EvalOptions
from tuneloop.inference import Endpoint
from tuneloop.models.files import PACKAGED
from tuneloop.pipeline import evaluate_target
from tuneloop.planning.catalogue import load_prices
from tuneloop.recipe import Recipe
from tuneloop.records.record import Record, read_record, write_record

SERVICES: dict[str, TrainingService] = {
    "openai": openai.SERVICE, "together": together.SERVICE, "fireworks": fireworks.SERVICE,
}  # fmt: skip
# What wrong types in an answer end in, whichever field has them; errors of the disk are none of these.
_SHAPES = (AttributeError, TypeError, KeyError, IndexError, ValueError, OverflowError)
_FILE = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}/)?[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")  # of weights
CHARACTERS = 3.5  # of a token, rather too few: a price is not to be underestimated
MORE = 2.0  # times the price that was shown, above which a service's own price is taken to have changed
STILL = 24 * 3600.0  # seconds for which a job that shows nothing new is followed


class HostedRun(Record, noun="a run on a service", file="hosted.json", again="run `tuneloop run --on` again"):
    """`hosted.json`: a run on a service's machines, as far as it is.

    Args:
        key: hash of what it depends on. `url`, `base`, `dataset`: where, which model, on what.
        train, val, job: ids at the service. `model`: its name of the result.
        tokens: that training was billed for. `price`: of 1M of them when it began. `usd`: by the service's own account,
            else by both; before that an estimate (None: unknown).
        weights: file or folder with the trained weights, where the service gives them out.
    """

    key: str
    on: str
    url: str
    base: str
    dataset: str
    train: str = ""
    val: str = ""
    job: str = ""
    state: str = ""
    model: str = ""
    tokens: int = 0
    price: float | None = None
    usd: float | None = None
    weights: str = ""
    created: str = ""


@dataclass(frozen=True)
class HostedPlan:
    """What would be sent where, and what it may cost."""

    service: TrainingService
    url: str  # with a login, where it has one
    folder: Path
    dataset: Path
    order: Order
    record: HostedRun
    words: str
    most: float  # dollars by the service's own account, above which no job may start or continue; 0: any sum
    minutes: float  # since it began; 0: any time


def plan_hosted(recipe: Recipe, source: str, target: str, max_usd: float) -> HostedPlan:
    """What a run on a service takes; nothing is sent.

    Args:
        source: folder of a prepared data set. `target`: of `--on`. `max_usd`: the most that it may cost; 0: any sum.

    Raises:
        UserError: no prepared data set, no base of the service, or it may cost more.
    """
    if not (Path(source) / "dataset.json").is_file():
        files = source if Path(source).is_file() else "FILES"
        step = f"tuneloop prepare {files} --out datasets/NAME, and name that folder"
        raise UserError("A service trains on a prepared data set, and this is none", where=source, next_step=step)
    if recipe.model == PACKAGED:
        step = "model=NAME, as the service names it"
        raise UserError("Which of the service's models?", where="model", next_step=step)
    service, data, url = SERVICES.get(target, openai.SERVICE), load_dataset(source), target
    if target in SERVICES:
        url = (os.environ.get(f"{target.upper()}_BASE_URL") or service.url).rstrip("/").removesuffix(service.root)
    epochs = max(1, round(recipe.train.epochs))
    key = content_hash([masked(url), recipe.model, data.manifest.hash, epochs, recipe.seed])[:12]
    size = sum(len(turn["content"]) for row in data.train for turn in row.messages)
    tokens = epochs * size / CHARACTERS
    price, cost = load_prices().trained(recipe.model), "no price is known: see its price page"
    usd = tokens * price.input / 1e6 if price else None
    if price and usd is not None:
        cost = f"about {usd_words(usd)} (${price.input:g} for 1M, {price.date})"
    elif service.priced:
        cost = "it names the price itself"
    if max_usd and (usd > max_usd if usd is not None else not service.priced):
        step = "raise it, or train for fewer epochs; nothing was sent"
        raise UserError(f"It may cost more than --max-usd: {cost}", where=f"--max-usd {max_usd:g}", next_step=step)
    rows = f"{counted(len(data.train), 'row')} ({size / 1e6:,.2f} MB of texts), {counted(epochs, 'epoch')}"
    summary = f"{service.title} trains {recipe.model} on {rows}, about {tokens:,.0f} tokens: {cost}"
    folder = Path(recipe.output_dir or f"runs/{recipe.name}-{key}")
    at = {"key": key, "on": service.title, "url": masked(url), "base": recipe.model, "dataset": data.manifest.id}
    order = Order(key, recipe.model, "", "", epochs, recipe.seed)
    most = max_usd or MORE * (usd or 0.0)
    record = HostedRun(**at, price=price.input if price else None, usd=usd)
    return HostedPlan(service, url, folder, Path(source), order, record, summary, most, recipe.max_minutes or 0.0)


def run_hosted(plan: HostedPlan, *, cancel: bool = False, pause: float = 10.0) -> HostedRun:
    """Train on the service, and evaluate the result on the test rows: `hosted.json`, `metrics.jsonl`, `eval.json`.

    The same call continues: files that were uploaded and a job that was started are not sent again. What interrupts it
    leaves the job to the service.

    Args:
        cancel: end the job instead. `pause`: seconds between two looks.

    Raises:
        UserError: no key, another run in this folder, the service refuses, fails or cancels the job, or the model does
            not answer there.
    """
    of, url = plan.service, plan.url
    key, account = (os.environ.get(name, "").strip() for name in (of.key, of.account))
    if not key or (of.account and not account):
        raise UserError(f"The variable {of.account if key else of.key} is not set", where="--on", next_step="export it")
    service = Service(url + of.root.format(account=quote(account, safe="")), key, min(pause, timeouts.PAUSE))
    with lock_folder(plan.folder):
        try:
            run, model = finished(_trained(plan, service, cancel, pause))
        except _SHAPES as error:
            message = f"{of.title} gives an answer of another shape than its API: {type(error).__name__} {error!s:.100}"
            step = "see what is at this address; the same command continues"
            raise UserError(message, where=masked(url), next_step=step) from error
        except (HttpRefused, Broken) as error:
            raise refusal(error, masked(url), "fine-tuning", of.key, of.account or "--on") from None
    if not cancel:
        _measure(plan, url + of.answers, run, model, key)
    return run


def _measure(plan: HostedPlan, url: str, run: HostedRun, model: str, key: str) -> None:
    """Evaluate the model by its name for requests (empty: it is not deployed), or say what makes it answer."""
    try:
        if not model:
            raise UserError("it answers from a deployment only", where=run.model)
        endpoint = Endpoint(url, model, key, cache=plan.folder / "answers")
        options = EvalOptions(dataset=str(plan.dataset), out=str(plan.folder), name="tuned")
        evaluate_target(url, options, endpoint=lambda _: endpoint)
    except UserError as error:
        names = {"model": run.model, "url": masked(url), "dataset": plan.dataset, "folder": plan.folder}
        if not plan.service.deploy:
            raise
        message = f"{run.on} has trained the model, which is not measured yet: {error.what}"
        raise UserError(message, where=error.where, next_step=plan.service.deploy.format(**names)) from None


async def _trained(plan: HostedPlan, service: Service, cancel: bool, pause: float) -> tuple[HostedRun, str]:
    """The run, and the name by which requests ask for its model."""
    path, of = plan.folder / HostedRun.file, plan.service
    run = read_record(HostedRun, path) if path.is_file() else plan.record
    if run.key != plan.record.key:
        step = "choose another folder with output_dir=FOLDER"
        raise UserError("The folder belongs to another run", where=str(plan.folder), next_step=step)

    def keep(**values: str | float) -> HostedRun:
        changed = run.model_copy(update={"created": run.created or datetime.now(UTC).isoformat(), **values})
        write_record(path, changed)
        return changed

    async with aclosing(service):
        for split in () if cancel else ("train", "val"):
            if not getattr(run, split) and (plan.dataset / f"{split}.jsonl").stat().st_size:
                run = keep(**{split: await of.send(service, run.key, _rows_as_sent(plan, split))})
        if not run.job:
            job, usd = await _started(plan, service, run, cancel)
            run = keep(job=job, **({"usd": usd} if usd else {}))
        job_place = of.jobs + place_of(run.job)
        if cancel:
            await service.post(f"{job_place}{of.cancel}", {})
        shown, moved = "", time.monotonic()
        while True:
            now = await of.look(service, job_place)
            if now.steps:
                write_jsonl(plan.folder / "metrics.jsonl", now.steps)
            if now.state != run.state:
                say(f"service   {run.job}: {now.state}")
            if len(now.model) > LONGEST_NAME or not now.model.isprintable():
                raise Broken("the name of its model is none")
            billed = now.usd or now.tokens * (run.price or 0.0) / 1e6
            run = keep(state=now.state, model=now.model, tokens=now.tokens, **({"usd": billed} if billed else {}))
            if now.state in ("succeeded", "failed", "cancelled") or cancel:
                break
            if over := _over(plan, run):
                await service.post(f"{job_place}{of.cancel}", {})
                keep(state="cancelled")
                raise UserError(f"The job was ended: {over}", where=f"{run.on} {run.job}", next_step="raise the limit")
            if (last := f"{now.state} {len(now.steps)}") != shown:
                shown, moved = last, time.monotonic()
            if time.monotonic() - moved > STILL:
                message = f"The job has shown nothing new for {STILL / 3600:g} hours: {now.state}"
                step = "the same command follows it again, with --cancel it ends it"
                raise UserError(message, where=f"{run.on} {run.job}", next_step=step)
            progress("training", len(now.steps), max(len(now.steps), 1))
            await asyncio.sleep(pause)
        if cancel:
            return run, run.model
        if now.state != "succeeded":
            message = f"The service ended the job: {now.state}{f' ({now.error})' if now.error else ''}"
            raise UserError(
                message, where=f"{run.on} {run.job}", next_step="another output_dir=FOLDER starts a new job"
            )
        if of.weights and not run.weights:
            run = keep(weights=await fetch(of.weights(service, run.job, run.model), service, plan.folder))
        return run, await of.served(service, run.model) if of.served else run.model


async def _started(plan: HostedPlan, service: Service, run: HostedRun, cancel: bool) -> tuple[str, float]:
    """The id of the run's job, and its price by the service (0: unknown); of several processes one starts it."""
    of, folder = plan.service, cache_folder() / "hosted" / run.key
    with lock_folder(folder, waiting=lambda holder: say(f"wait      {holder} starts the same job")):
        if job := await _job_of(of, service, run.key):  # of another process, or whose id was lost with a reply
            return job, 0.0
        if cancel:
            raise UserError("There is no job to end", where=str(plan.folder), next_step="leave --cancel out")
        order = replace(plan.order, train=run.train, val=run.val)
        usd = await of.estimate(service, order) if of.estimate else 0.0
        if plan.most and of.estimate and (usd > plan.most or (run.price is None and not usd)):
            message = f"{of.title} puts its price at {usd_words(usd) if usd else 'nothing yet'}: no job was started"
            step = "raise it, or train for fewer epochs" if usd else "run the same command later, it continues"
            raise UserError(message, where=f"at most {usd_words(plan.most)} (--max-usd)", next_step=step)
        return _id(await service.post(of.jobs, of.body(order))), usd


def _over(plan: HostedPlan, run: HostedRun) -> str:
    """Which limit a job that is not over has met; empty: none."""
    if plan.most and (run.usd > plan.most if run.usd else run.state == "running"):
        own = f"{run.on} puts its price at {usd_words(run.usd)}" if run.usd else f"{run.on} names no price"
        return f"{own}, and at most {usd_words(plan.most)} are allowed (--max-usd)"
    minutes = (datetime.now(UTC) - datetime.fromisoformat(run.created)).total_seconds() / 60
    return f"max_minutes={plan.minutes:g} are over" if plan.minutes and minutes > plan.minutes else ""


async def _job_of(of: TrainingService, service: Service, key: str) -> str:
    """The id of a job that carries a run's key and has not ended badly; empty: there is none."""
    for job in await (of.listed(service) if of.listed else service.items(of.jobs)):
        if of.states.get(str(job.get(of.state))) not in ("failed", "cancelled") and key in of.mark(job):
            return _id(job)
    return ""


def _id(job: Item) -> str:
    """A job's id: itself, or the end of its name."""
    name = str(job.get("id") or job["name"].rpartition("/")[2])
    if len(name) > LONGEST_NAME or not name.isprintable():
        raise Broken("the id of its job is none")
    return name


async def fetch(weights: Awaitable[Mapping[str, str]], service: Service, folder: Path) -> str:
    """Write files of weights, by their place in a folder; what holds them there, empty: the service refuses them."""
    try:
        files = await weights
        if wrong := [name for name in files if not _FILE.fullmatch(name)]:
            raise Broken(f"a file of its weights is named {wrong[0]!r:.80}")
        for name, url in files.items():
            await service.download(url, folder / name, lambda size: None)
    except HttpRefused as error:
        say(f"weights   the service gives none: {error.in_words}")
        return ""
    return next((Path(name).parts[0] for name in files), "")


def _rows_as_sent(plan: HostedPlan, split: str) -> Path:
    """The rows of a split as services take them: conversations and tools, no further column leaves this machine."""
    rows: Sequence[object] = [
        {"messages": row.messages, **({"tools": row.tools} if row.tools else {})}
        for row in getattr(load_dataset(plan.dataset), split)
    ]
    file = plan.folder / "sent" / f"{split}.jsonl"
    write_jsonl(file, rows)
    return file
