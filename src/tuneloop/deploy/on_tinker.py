"""A run whose steps a Tinker service computes: our rows, batches, schedule and stopping; its gradients and Adam."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.files import content_hash, lock_folder, read_json
from tuneloop.core.ui import busy, progress, say
from tuneloop.core.units import counted
from tuneloop.core.urls import masked
from tuneloop.data.dataset import load_dataset
from tuneloop.deploy.hosted import begun, fetch, price_of, refuse_unprepared
from tuneloop.evaluation.config import EvalOptions
from tuneloop.inference.openai.service import Service, why
from tuneloop.inference.openai.target import Endpoint
from tuneloop.inference.wire import Broken, HttpRefused, finished
from tuneloop.models.names import PACKAGED, SHORT_NAMES, known_name, resolve
from tuneloop.models.template import Rendered
from tuneloop.pipeline.context import RunContext
from tuneloop.pipeline.evaluate import evaluate_target
from tuneloop.recipe import Recipe
from tuneloop.records.plan import MeasuredMachine
from tuneloop.records.record import Number, Record, write_record
from tuneloop.training import budget
from tuneloop.training.batches import Step, plan_steps
from tuneloop.training.config import TrainConfig
from tuneloop.training.monitors import make_monitors, policy, trend
from tuneloop.training.rows import SplitRows, check_rows, supervised_tokens, tokens_of

if TYPE_CHECKING:
    from tuneloop.training.checkpoint import State

CHAT = "/oai/api/v1"  # where the service answers as OpenAI's API does
WEEK = 7 * 24 * 3600  # seconds for which the service keeps the checkpoints of a run that is not finished
# Settings of training that the service does not take, so that their defaults alone are allowed.
LACKS = ("method", "loss", "init", "ranks", "alpha", "rslora", "dora", "dropout", "kl", "l2_start",
         "range_test", "optimizer", "max_minutes")  # fmt: skip
KEPT = ("step", "best_step", "best_val_loss", "first_val_loss", "worse", "tokens", "seconds", "stopped")


class TinkerRun(Record, what="a run on Tinker", file="tinker.json", again="run `tuneloop run --on tinker` again"):
    """`tinker.json`: a run whose steps a Tinker service computes, as far as it is.

    Args:
        key: hash of what it depends on. `base`, `dataset`: which model, by the service's name, on what.
        checkpoint, best: paths of weights and Adam's state at the service after `step`, and of the best validation.
        step, best_step, best_val_loss, first_val_loss, worse, tokens, seconds, stopped: as of a run on this machine.
        model: the service's name of the result. `adapter`: its folder here. `usd`: by the price known when it began.
    """

    key: str
    base: str
    dataset: str
    step: int = 0
    checkpoint: str = ""
    best: str = ""
    best_step: int = 0
    best_val_loss: Number = math.nan
    first_val_loss: Number = math.nan
    worse: int = 0
    tokens: int = 0
    seconds: float = 0.0
    stopped: str = ""
    model: str = ""
    adapter: str = ""
    usd: float | None = None


@dataclass(frozen=True)
class TinkerPlan:
    """What would be sent, and what it may cost."""

    folder: Path
    dataset: Path
    recipe: Recipe
    rows: SplitRows
    ids: list[str]  # of the training rows
    steps: list[Step]
    due: list[int]  # steps behind which validations stand
    record: TinkerRun
    words: str

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.ids) for row in (*self.rows.train, *self.rows.val) if isinstance(row, Rendered))


def plan_tinker(recipe: Recipe, source: str, place: str, max_usd: float) -> TinkerPlan:
    """What a run on Tinker takes; nothing is sent.

    Args:
        source: folder of a prepared data set. `max_usd`: the most that it may cost; 0: any sum.
        place: `tinker`, or `tinker:NAME` where the service's name of the base is another than the hub's.

    Raises:
        UserError: no prepared data set, no base, a setting that the service lacks, or it may cost more.
    """
    refuse_unprepared(source)
    base, config = _base_there(recipe.model, place), recipe.train
    _refuse_what_it_lacks(config)
    local = resolve(recipe.model, weights=False)
    data, job = load_dataset(source), RunContext(recipe.model_copy(update={"model": str(local)}), Path())
    rows = SplitRows(job.rendered(data.train), job.rendered(data.val))
    vocabulary = int(read_json(local / "config.json")["vocab_size"])
    for split, name in ((rows.train, "training"), (rows.val, "validation")):
        if split or name == "training":
            check_rows(split, name, vocabulary)
    steps = plan_steps(rows.train, config, recipe.seed, job.mixed(data.train))
    run = budget.plan_run(steps, rows, config, recipe.seed, MeasuredMachine())
    rows = SplitRows(rows.train, budget.sample(rows.val, run.val_rows, recipe.seed))
    tokens = sum(tokens_of(rows.train[i]) for step in steps for i in step.indices)
    usd, cost = price_of(base, tokens, max_usd)
    sent = [(row.ids, row.mask) for row in (*rows.train, *rows.val) if isinstance(row, Rendered)]
    key = content_hash([base, data.manifest.hash, sent, config, recipe.seed, 1])[:12]
    words = (
        f"Tinker trains {base} in {counted(len(steps), 'step')} on the token ids of {counted(len(rows.train), 'row')}, "
        f"{tokens:,} tokens in all, reads {counted(run.forward_tokens, 'token')} in validations, and answers "
        f"{counted(len(data.test), 'test row')}: {cost}. One rate for both LoRA matrices, alpha is the service's"
    )
    return TinkerPlan(
        folder=Path(recipe.output_dir or f"runs/{recipe.name}-{key}"),
        dataset=Path(source),
        recipe=recipe,
        rows=rows,
        ids=job.ids(data.train),
        steps=steps,
        due=[round(len(steps) * (i + 1) / run.evaluations) for i in range(run.evaluations)],
        record=TinkerRun(key=key, base=base, dataset=data.manifest.id, usd=usd),
        words=words,
    )


def _base_there(model: str, place: str) -> str:
    """The service's name of the base: the hub's, unless `--on tinker:NAME` gives another."""
    given = place.partition(":")[2]
    name = given or SHORT_NAMES.get(model.lower(), known_name(model))
    if model == PACKAGED and not given:
        step = "model=NAME of one that the service has, as in qwen3-8b"
        raise UserError("Which of the service's models?", where="model", next_step=step)
    if Path(name).expanduser().exists():
        what = "The service has its own names of models, and this is a folder here"
        raise UserError(what, where=f"model={model}", next_step="--on tinker:NAME, as in tinker:Qwen/Qwen3-8B")
    return name


def _refuse_what_it_lacks(config: TrainConfig) -> None:
    fields = type(config).model_fields
    wrong = [name for name in LACKS if getattr(config, name) != fields[name].get_default(call_default_factory=True)]
    if config.lora_plus not in (1.0, fields["lora_plus"].default):
        wrong.append("lora_plus")
    if config.targets not in ("all-linear", "attention"):
        wrong.append("targets")
    if wrong:
        names = ", ".join(f"train.{name}={getattr(config, name)}" for name in wrong)
        what = "Tinker trains LoRA on tokens and weights, and does not take this setting"
        raise UserError(what, where=names, next_step="leave it out, or train on a machine of yours")


def run_tinker(plan: TinkerPlan) -> TinkerRun:
    """Train on the service and evaluate there: `tinker.json`, `metrics.jsonl`, `adapter`, `eval.json`.

    The same call continues with the step behind the last checkpoint that the service has.

    Raises:
        UserError: no key, no package, another run in this folder, the service refuses, or the loss is no number.
    """
    key = os.environ.get("TINKER_API_KEY", "").strip()
    if not key:
        raise UserError("The variable TINKER_API_KEY is not set", where="--on tinker", next_step="export it")
    if find_spec("tinker") is None:
        raise UserError("Tinker's client is missing", where="--on tinker", next_step="pip install 'tuneloop[tinker]'")
    os.environ.setdefault("TINKER_TELEMETRY", "0")  # it would report errors with their requests
    logging.getLogger("tinker").setLevel(logging.ERROR)  # each look at a step that is not done yet is a warning
    tinker = import_module("tinker")
    url = os.environ.get("TINKER_BASE_URL") or import_module("tinker.lib.base_url").DEFAULT_BASE_URL
    access = {"base_url": url.rstrip("/"), "api_key": key}
    with lock_folder(plan.folder):
        run = begun(plan.folder, plan.record)
        if not (run.model and run.adapter):
            finished(_reach(access["base_url"]))
            with _user_errors(tinker, key):
                rest, service = tinker.RestClient(**access), tinker.ServiceClient(**access)
                _refuse_unknown_base(plan, rest)
                run = _train_there(plan, run, tinker, service, rest, Service(access["base_url"], ""))
                service.close("success")  # not waited for: after lost connections the client's end can take long
    endpoint = Endpoint(access["base_url"] + CHAT, run.model, key, cache=plan.folder / "answers")
    evaluate_target(endpoint, EvalOptions(dataset=str(plan.dataset), out=str(plan.folder), name="tuned"))
    return run


async def _reach(address: str) -> None:
    """Raises UserError: nothing answers there, about which the client itself would be silent for many minutes."""
    service = Service(address, "")
    try:
        await service.get("/api/v1/healthz")
    except HttpRefused:
        pass
    except Broken as error:
        step = "check the network and TINKER_BASE_URL, and run the same command again"
        raise UserError(f"Tinker does not answer: {why(error)}", where=masked(address), next_step=step) from None
    finally:
        await service.close()


@contextmanager
def _user_errors(tinker: Any, key: str) -> Iterator[None]:
    """Errors of the client, which has tried again for minutes where that may help, as a user's."""
    try:
        yield
    except Broken as error:
        step = "run the same command again: it continues"
        raise UserError(f"The weights did not arrive: {why(error)}", where="--on tinker", next_step=step) from None
    except (tinker.TinkerError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, tinker.TinkerError) else error
        steps = {
            401: "export TINKER_API_KEY=..., a key of the service",
            402: "add credit to the account and run the same command again: it continues",
            403: "take a key of a project that may train",
            404: "where the service has dropped the checkpoint, another output_dir=FOLDER starts again",
        }
        step = steps.get(getattr(cause, "status_code", 0), "run the same command again: it continues")
        what = f"Tinker's client failed: {type(cause).__name__}: {cause}".replace(key, "...")[:400]
        raise UserError(what, where="--on tinker", next_step=step) from None


@dataclass
class _Course:
    """A run at work."""

    plan: TinkerPlan
    tinker: Any  # the package
    client: Any  # of the model that is trained
    run: TinkerRun
    state: State
    saved_at: float
    saving_seconds: float = 0.0

    def save(self) -> None:
        """Keep weights and Adam's state at the service, then here where they are."""
        began, state = time.monotonic(), self.state
        name = f"{self.run.key}-{state.step:07d}"
        path = self.client.save_state(name, ttl_seconds=WEEK, overwrite=True).result().path
        best = path if state.best_step == state.step else self.run.best
        values = {name: getattr(state, name) for name in KEPT}
        self.keep(checkpoint=path, best=best, **values)
        self.saved_at = time.monotonic()
        self.saving_seconds = self.saved_at - began

    def keep(self, **values: Any) -> None:
        self.run = self.run.model_copy(update=values)
        write_record(self.plan.folder / TinkerRun.file, self.run)


def _train_there(plan: TinkerPlan, run: TinkerRun, tinker: Any, service: Any, rest: Any, files: Service) -> TinkerRun:
    from tuneloop.training.checkpoint import State

    config, done = plan.recipe.train, {name: getattr(run, name) for name in KEPT} if run.checkpoint else {}
    if not run.best_step:
        done.pop("best_val_loss", None)
    total = len(plan.steps)
    state = State(run.key, **done, planned_steps=total, total_steps=total, due=plan.due)
    with busy("waiting for the service's model"):
        if run.checkpoint:
            say(f"train     continues from the checkpoint at step {run.step}: {run.checkpoint}")
            client = service.create_training_client_from_state_with_optimizer(run.checkpoint).result()
        else:
            mlp = config.targets != "attention"
            options = {"seed": plan.recipe.seed, "train_mlp": mlp, "train_unembed": False}
            client = service.create_lora_training_client(run.base, config.rank, **options).result()
    course = _Course(plan, tinker, client, run, state, time.monotonic())
    _steps(course)
    with busy("saving the result"):
        if course.run.best and course.run.best != course.run.checkpoint:
            course.client = service.create_training_client_from_state(course.run.best).result()
        name = f"{run.key}-{time.time():.0f}"  # of this attempt: names are given once
        course.keep(model=course.client.save_weights_for_sampler(name).result().path)
        external = course.client.save_weights_external(name, ttl_seconds=WEEK).result().path
        urls = rest.get_external_weights_urls(external).result().urls
        course.keep(adapter=finished(_fetch(files, urls, plan.folder)))
    return course.run


async def _fetch(service: Service, urls: Mapping[str, str], folder: Path) -> str:
    """Write the files behind signed URLs; returns the folder below `folder` that has them, empty: none came."""

    async def files() -> dict[str, str]:
        return {f"adapter/{PurePosixPath(name).name}": url for name, url in urls.items()}

    try:
        adapter = await fetch(files(), service, folder)
    finally:
        await service.close()
    if adapter and not (folder / adapter / "adapter_config.json").is_file():
        say(f"warn: {folder / adapter} holds the weights as the service gives them, no adapter in PEFT's layout")
    return adapter


def _refuse_unknown_base(plan: TinkerPlan, rest: Any) -> None:
    """Refuse a base that the service does not train, and rows that it can't hold."""
    models = rest.get_server_capabilities().result().supported_models
    lengths = {model.model_name: model.max_context_length for model in models if model.trainable is not False}
    base = plan.record.base
    if base not in lengths:
        names = sorted(filter(None, lengths))
        step = f"{did_you_mean(base, names)} --on tinker:NAME; it has {', '.join(names)}".lstrip()
        raise UserError(f"The service does not train {base}", where="--on tinker", next_step=step)
    if plan.longest > (lengths[base] or math.inf):
        what = f"A row of {plan.longest:,} tokens is longer than the service's {base} can read: {lengths[base]:,}"
        raise UserError(what, where=str(plan.dataset), next_step="prepare again with data.max_length")


def _steps(course: _Course) -> None:
    """The training loop: as `training.loop`'s, without a limit on its time."""
    from tuneloop.training.run import SAVES_APART, MetricsFile

    plan, state, config = course.plan, course.state, course.plan.recipe.train
    monitors, began = make_monitors(config, plan.rows.train, len(plan.steps)), time.monotonic() - state.seconds
    with MetricsFile(plan.folder / "metrics.jsonl", state.step) as metrics:

        def note(record: dict[str, Any], ids: Sequence[str] = ()) -> None:
            record["seconds"] = state.seconds = round(time.monotonic() - began, 2)
            metrics.write(record)
            for finding in monitors.feed(record, ids):
                metrics.write(finding.to_record())
                say(f"monitor   {finding.sentence}")
                state.stopped = state.stopped or (finding.kind if policy(finding.kind, config) != "warn" else "")

        if not state.step:
            note(_validate(course))
        while state.step < state.total_steps and not state.stopped:
            step = plan.steps[state.step]
            record = _step(course, step)
            note(record, [plan.ids[i] for i in step.indices])
            if not math.isfinite(record["loss"]):
                rate = f"train.learning_rate={config.learning_rate / 5:g} output_dir=FOLDER"
                what = f"The loss is no number at step {state.step}: the run is stopped"
                raise UserError(what, where=str(plan.folder / "metrics.jsonl"), next_step=f"start again with {rate}")
            progress("training", state.step, state.total_steps, loss=trend(monitors.losses))
            if is_due := budget.is_due(state):
                note(_validate(course))
            seconds = max(config.checkpoint_seconds, SAVES_APART * course.saving_seconds)
            late = config.checkpoint_seconds and time.monotonic() - course.saved_at > seconds
            if is_due or late or state.stopped or state.step % (config.checkpoint_steps or state.step + 1) == 0:
                metrics.sync()
                course.save()
    state.stopped = state.stopped or "finished"
    course.keep(stopped=state.stopped)
    if state.stopped not in ("finished", "early") and plan.rows.val and state.best_val_loss >= state.first_val_loss:
        what = f"The run was stopped ({state.stopped.replace('_', ' ')}), and validation had not become better"
        rate = f"train.learning_rate={config.learning_rate / 5:g} output_dir=FOLDER"
        raise UserError(what, where=str(plan.folder / "metrics.jsonl"), next_step=f"start again with {rate}")


def _step(course: _Course, step: Step) -> dict[str, Any]:
    """A step's gradient and update, both sent before either is waited for; its record for `metrics.jsonl`."""
    from tuneloop.training.loop import scheduled_rate
    from tuneloop.training.optimizers import BETAS, EPSILON

    state, config, started = course.state, course.plan.recipe.train, time.monotonic()
    rows, rate = [course.plan.rows.train[i] for i in step.indices], scheduled_rate(state, config)
    gradient = course.client.forward_backward(_data(course.tinker, rows), "cross_entropy")
    update = course.client.optim_step(
        course.tinker.AdamParams(
            learning_rate=rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            eps=EPSILON,
            weight_decay=config.weight_decay,
            grad_clip_norm=config.max_grad_norm,
        )
    )
    loss = _loss(gradient.result(), rows)
    update.result()
    tokens = sum(map(tokens_of, rows))
    state.step, state.tokens = state.step + 1, state.tokens + tokens
    speed = round(tokens / (time.monotonic() - started), 1)
    return {
        "step": state.step, "epoch": round(step.epoch, 4), "loss": loss, "learning_rate": rate, "tokens": tokens,
        "tokens_per_second": speed, "rows": step.indices,
    }  # fmt: skip


def _validate(course: _Course) -> dict[str, Any]:
    """The validation loss: note whether it is the best, and stop where it does not fall any more."""
    state, rows = course.state, course.plan.rows.val
    if not rows:
        state.best_step = state.step
        return {"step": state.step}
    loss = _loss(course.client.forward(_data(course.tinker, rows), "cross_entropy").result(), rows)
    best = state.validated(loss, course.plan.recipe.train.patience)
    return {"step": state.step, "val_loss": loss, "best": best}


def _weights(rows: Sequence[Any]) -> list[list[float]]:
    """The weight of each predicted token in the mean over all supervised tokens of the rows."""
    share = 1 / sum(map(supervised_tokens, rows))
    return [[weight * share for weight in row.mask[1:]] for row in rows]


def _data(tinker: Any, rows: Sequence[Any]) -> list[Any]:
    """Rows as the service reads them: each token but the last predicts the next, whose loss has a weight."""
    return [
        tinker.Datum(
            model_input=tinker.ModelInput.from_ints(row.ids[:-1]),
            loss_fn_inputs={
                "target_tokens": tinker.TensorData(data=row.ids[1:], dtype="int64", shape=[len(row.ids) - 1]),
                "weights": tinker.TensorData(data=weights, dtype="float32", shape=[len(weights)]),
            },
        )
        for row, weights in zip(rows, _weights(rows), strict=True)
    ]


def _loss(output: Any, rows: Sequence[Any]) -> float:
    """The mean loss of a supervised token, from the log probabilities that the service gives back."""
    pairs = zip(output.loss_fn_outputs, _weights(rows), strict=True)
    return math.fsum(-p * w for out, ws in pairs for p, w in zip(out["logprobs"].tolist(), ws, strict=True) if w)
