"""Evaluations: the stage of a run, and any target on any rows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, inside, lock_folder, sha256_file
from tuneloop.core.ray.actors import ordered_by_actors, usual_actors
from tuneloop.core.ray.cluster import address_of, on_ray
from tuneloop.core.ui import progress, say
from tuneloop.core.units import counted, verb
from tuneloop.core.urls import masked
from tuneloop.data import GENERAL_FILE, IDS, PrepareConfig, load_dataset, read_whole
from tuneloop.data.pii import PersonalConfig, Redactor
from tuneloop.data.sources import read_records
from tuneloop.evaluation import (
    EvalOptions,
    ScoredAnswers,
    answers_from,
    check_ids,
    consistency_part,
    load_evaluation,
    sample_order,
    sample_rows,
    side_effects,
    write_scored,
)
from tuneloop.evaluation.metrics import label_matcher, problem_of
from tuneloop.inference import Endpoint, PredictionsTarget, Request, Target, endpoint_line, kind_of_name, open_target
from tuneloop.inference.local import LocalTarget
from tuneloop.inference.prompt import AS_IT_IS
from tuneloop.models import Model, load_model, minilm_embedder, template_of_adapter, trained_folder
from tuneloop.models.files import MINILM_TITLE
from tuneloop.models.methods import base_only, method_of_folder
from tuneloop.pipeline.answers.asking import Asking, ask, few_shot_examples, nearest_few_shot, uses_choice
from tuneloop.pipeline.answers.prompt import choose_examples, load_prompt, nearest_examples, prompt_turns
from tuneloop.pipeline.answers.scoring import (
    AFTERWARDS,
    SystemAnswers,
    cost_of,
    headline,
    how_far_trained,
    score,
    scoring_settings,
)
from tuneloop.pipeline.baselines import constant_of, measured_alternatives, on_fewer_rows
from tuneloop.pipeline.context import RunContext
from tuneloop.pipeline.distributed import leading, shared_out
from tuneloop.pipeline.encoder import refuse_settings
from tuneloop.recipe import CONFIG, Recipe, load_recipe, name_of, recipe_of
from tuneloop.records.completion import Completion, failures
from tuneloop.records.dataset import Counts, DatasetManifest, SplitFile, Splits
from tuneloop.records.evaluation import BaselinesManifest, EvaluationManifest, Subject
from tuneloop.records.prompt import OPTIMISED
from tuneloop.records.record import done_record, read_record
from tuneloop.records.rows import Dataset, Message, Reject, Row
from tuneloop.records.run import RunManifest
from tuneloop.registry import local_name
from tuneloop.report import write_page

if TYPE_CHECKING:
    from tuneloop.pipeline.time_limit import TimeLimit


def evaluate_stage(
    job: RunContext, dataset: Dataset, baselines: dict[str, ScoredAnswers], limit: TimeLimit | None = None
) -> None:
    """The tuned model on the same rows, and the paired comparison; all on fewer rows should the `limit` run out."""
    recipe = job.recipe
    rows = sample_rows(dataset.test, recipe.evaluate.limit, seed=recipe.seed, stratum=dataset.stratum)
    if not rows:
        return
    check_ids(rows)
    key = tuned_key(job, dataset, baselines)
    if done_record(EvaluationManifest, job.folder, key):
        say("evaluate  already done")
        return
    model = tuned_model(job)
    if limit and limit.seconds:
        answers = limit.ask_tuned(dataset)
        if len(answers.completions) < len(rows):
            recipe = job.recipe
            rows = sample_rows(dataset.test, recipe.evaluate.limit, seed=recipe.seed, stratum=dataset.stratum)
            baselines = on_fewer_rows(job, dataset, baselines, rows) if baselines else {}
            key = tuned_key(job, dataset, baselines)
    else:
        answers = ask(model, dataset, rows, recipe.evaluate, task="tuned")[""]
    evaluation, run = score(job, dataset, rows, answers), read_record(RunManifest, job.folder)
    costs = {"tuned": cost_of(job, answers, run)}
    if baselines and (job.folder / "baselines" / BaselinesManifest.file).is_file():
        manifest = read_record(BaselinesManifest, job.folder / "baselines")
        costs = {name: cost.to_json() for name, cost in manifest.costs.items()} | costs
    more = after_tuning(job, dataset)

    def again(reworded: Sequence[Row]) -> list[Completion]:
        how = Asking(perplexity=False)
        return ask(model, dataset, reworded, recipe.evaluate, how, task="tuned, several ways")[""].completions

    config, seed = recipe.evaluate, recipe.seed
    more |= consistency_part(dataset, rows, again, job.folder, config, name="tuned", seconds=answers.seconds, seed=seed)
    subject = Subject(recipe.model, dataset.id, "test", "tuned", key, how_far_trained(run))
    write_scored(job.folder, evaluation, subject, costs, baselines=baselines, more=more)
    speed = f"; {costs['tuned']['rows_per_second']:,.0f} rows a second" if job.is_encoder else ""
    say(f"evaluate  tuned: {headline(evaluation)}{speed}")


def tuned_model(job: RunContext) -> Target:
    """The run's result, loaded: its base with the adapter, or an encoder with its head."""
    if job.is_encoder:
        target = open_target(str(job.folder))
        target.load()
        return target
    job.attach_trained()
    return job.target


def after_tuning(
    job: RunContext, dataset: Dataset, base: Callable[[], AbstractContextManager[Model]] | None = None
) -> dict[str, Any]:
    """What tuning took away and what was learned word for word, the parts of `eval.json` that `side_effects` names.

    Forgetting is measured where general rows are named (`evaluate.general`) or were held out of a mix. `base` gives the
    model before for a while; default: the run's base.
    """
    config = job.recipe.evaluate
    mixed = Path(dataset.path) / GENERAL_FILE
    general_source = config.general or (str(mixed) if mixed.is_file() and mixed.stat().st_size else None)
    general = read_whole(general_source, PrepareConfig()).rows if general_source else []
    learned = [row for row in dataset.train if row.shows_the_task] if config.memorisation else []
    if not (general or learned):
        return {}  # without a model
    base = base or (lambda: base_model(job))
    parts = side_effects(job.model, base, general, learned, config.general_rows, job.recipe.seed)
    for part in parts.values():
        say(f"evaluate  {part['words']}")
    return parts


@contextmanager
def base_model(job: RunContext) -> Iterator[Model]:
    """The model before training: with the adapter switched off, or loaded again where all weights were trained."""
    method = method_of_folder(trained_folder(job.folder))
    if method is None or method.disabled is None:
        yield load_model(job.recipe.model)
        return
    with base_only(job.model.net):
        yield job.model


def tuned_key(job: RunContext, dataset: Dataset, baselines: Mapping[str, ScoredAnswers]) -> str:
    """Hash of all that the tuned model's evaluation depends on."""
    recipe = job.recipe
    adapter, settings = read_record(RunManifest, job.folder).adapter_hash, scoring_settings(recipe)
    afterwards = recipe.evaluate.model_dump(mode="json", include=AFTERWARDS)
    parts = [adapter, dataset.manifest.hash, recipe.baselines, settings, sorted(baselines), recipe.seed, 3, afterwards]
    return content_hash(parts)


def answers_of(run: Path) -> Callable[[Sequence[Row]], list[Completion]] | None:
    """A function that gives the answers of a run's tuned model, loaded at its first call; None where there is no run.

    Rows of its test split are used as they are there; a new prompt gets the instruction that all of them share.
    """
    if not (run / "run.json").is_file():
        return None
    job = RunContext.of_run(run)

    def answers(rows: Sequence[Row]) -> list[Completion]:
        dataset = job.dataset()
        by_id = {row.id: row for row in dataset.test}
        shared = {row.messages[0]["content"] for row in dataset.test if row.messages[0]["role"] == "system"}
        instruction = shared.pop() if len(shared) == 1 else ""

        def instructed(row: Row) -> Row:
            if not instruction or row.messages[0]["role"] == "system":
                return row
            return replace(row, messages=[{"role": "system", "content": instruction}, *row.messages])

        questions = [by_id.get(row.id) or instructed(row) for row in rows]
        return ask(tuned_model(job), dataset, questions, job.recipe.evaluate, task="asking")[""].completions

    return answers


SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class EvaluationResult:
    """Where an evaluation is, and how many answers are missing: failed requests, rows without prediction."""

    folder: Path
    failed: int = 0


def evaluate_target(
    target: str,
    options: EvalOptions = EvalOptions(),
    settings: Sequence[str] = (),
    *,
    endpoint: Callable[[str], Endpoint] | None = None,
) -> EvaluationResult:
    """Get answers, score them, and write `eval.json`, `samples.jsonl` and the page.

    Args:
        target: a run, an adapter, a model's folder, name or GGUF file, a registered version (`NAME@ALIAS`), a server's
            URL; empty with `options.predictions`.
        settings: `key=value`, of the recipe; those of `evaluate.` may leave that out.
        endpoint: makes an endpoint from a URL.

    Raises:
        UserError: whatever the user can put right.
    """
    question = _question(target, options, settings, endpoint)
    recipe = _recipe(question)
    _refuse_impossible(recipe, question)
    job = RunContext(recipe, Path(question.name))
    with leading(job):
        return _evaluate(job, question)


def processes_to_start(target: str, options: EvalOptions, settings: Sequence[str] = ()) -> int | None:
    """Start the command for each of several GPUs, where a local model answers: the first's exit status, or None."""
    if options.on or not target or kind_of_name(target) != "local":
        return None
    question = _question(target, options, settings, None)
    return shared_out(_recipe(question), answers_only=True) if question.target.local is not None else None


def _evaluate(job: RunContext, question: Question) -> EvaluationResult:
    """The evaluation, by the first of several processes."""
    recipe, options = job.recipe, question.options
    dataset, split = _rows_of(job, question)
    dataset, learned = _with_examples(job, question, dataset)
    rows = sample_rows(dataset.test, recipe.evaluate.limit, seed=recipe.seed, stratum=dataset.stratum)
    if not rows:
        step = "choose another with --split, or give --data FILE"
        raise UserError(f"The {split} split is empty", where=dataset.path, next_step=step)
    check_ids(rows)
    work = EvalJob(job, question, dataset, rows, options.name or _default_name(question))
    name, folder = work.name, Path(options.out) if options.out else _default_folder(work, split)
    with lock_folder(folder):
        unseen = _unseen(dataset, rows)
        baselines, costs = _alternatives(work)  # before an adapter is attached
        baselines.pop(name, None)
        answers = answers_of_target(work)
        evaluation, more = score(job, dataset, rows, answers.system), dict(answers.parts)
        notes = [*answers.notes, *unseen, *learned]
        evaluation.notes[:0] = notes
        for note in notes:
            say(f"warn: {note}")
        if question.target.is_tuned:
            more |= after_tuning(job, dataset)
        elif question.target.is_here and options.base:
            more |= after_tuning(job, dataset, base=lambda: nullcontext(load_model(options.base)))
        if question.plain and split == "test":
            baselines, costs = _baselines(job, rows)
        baselines, costs = baselines or constant_of(job, dataset, rows), costs | {name: answers.cost}
        seconds = float(answers.cost.get("seconds", 0.0))
        again = partial(answers_to_rewordings, work)
        config, seed = recipe.evaluate, recipe.seed
        more |= consistency_part(dataset, rows, again, folder, config, name=name, seconds=seconds, seed=seed)
        key = tuned_key(job, dataset, baselines) if question.plain else _key(recipe, dataset, question)
        trained = how_far_trained(work.training) if work.training else ""
        subject = Subject(recipe.model, dataset.id, split, name, key, trained)
        write_scored(folder, evaluation, subject, costs, baselines=baselines, more=more)
        write_page(folder)
    return EvaluationResult(folder, int(answers.cost.get("failed", 0)) or len(more.get("failures", ())))


# --- what and on what --------------------------------------------------------------------------


def _question(
    target: str, options: EvalOptions, settings: Sequence[str], endpoint: Callable[[str], Endpoint] | None
) -> Question:
    """The target by a local name, and the rows by data set or split, which `data` may also name; exactly one target."""
    if kind_of_name(target) == "predictions" and not options.predictions:
        options, target = options.model_copy(update={"predictions": target}), ""
    if bool(target) == bool(options.predictions):
        message = "One target at a time" if target else "Evaluate what?"
        step = "name a run or a model, or give --endpoint URL --model NAME, or --predictions FILE"
        raise UserError(message, where="tuneloop evaluate", next_step=step)
    if options.data in SPLITS and not Path(options.data).exists():
        options = options.model_copy(update={"split": options.data, "data": ""})
    elif options.data and (Path(options.data) / "dataset.json").is_file() and not options.dataset:
        options = options.model_copy(update={"dataset": options.data, "data": ""})
    if options.split not in SPLITS:
        raise UserError(f"No split named {options.split!r}", where="--split", next_step="choose train, val or test")
    if options.predictions:
        return Question(PredictionsTarget(options.predictions, {}), options, settings)
    return Question(open_target(local_name(target), base=options.base, endpoint=endpoint), options, settings)


def _refuse_impossible(recipe: Recipe, question: Question) -> None:
    """Refuse, before anything is read, what this kind of target can't answer."""
    config = recipe.evaluate
    if question.target.is_classifier:
        refuse_settings(recipe)
    refusal, instead = question.target.no_examples
    if refusal and (question.options.few_shot or question.options.prompt):
        raise UserError(refusal, where=question.name, next_step=instead)
    base_known = question.target.is_tuned or (question.target.is_here and question.options.base)
    if (config.general or config.memorisation) and not base_known:
        message = "What was this model made from? Forgetting and memorisation are differences to its base"
        other = "evaluate the model, with --base MODEL: an endpoint or a file of answers can't be compared with it"
        step = "give --base MODEL" if question.target.is_here else other
        raise UserError(message, where=question.name or "--base", next_step=step)
    if config.consistency and not question.target.takes_prompts:
        message = "A file of answers can't answer other wordings"
        step = "evaluate the model or the endpoint that wrote them, or leave consistency at 0"
        raise UserError(message, where="evaluate.consistency", next_step=step)


def _recipe(question: Question) -> Recipe:
    options = question.options
    keys = [setting.split("=")[0] for setting in question.settings]
    settings = [
        setting if "." in key or key in Recipe.model_fields else f"evaluate.{setting}"
        for setting, key in zip(question.settings, keys, strict=True)
    ]
    if question.target.run is not None:
        recipe = load_recipe(Path(question.name) / CONFIG, settings)
        sources = {"sources": [options.dataset]} if options.dataset else {}
        return recipe.model_copy(update={"data": recipe.data.model_copy(update=sources)})
    if not options.dataset and not options.data:
        step = "give a prepared data set with --dataset FOLDER, or a file with --data FILE"
        step += f" ({question.name} is not a run)" if question.target.is_here else ""
        raise UserError("Which rows?", where="--dataset", next_step=step)
    return recipe_of(options.dataset or options.data, settings, model=question.target.base or question.name)


def _rows_of(job: RunContext, question: Question) -> tuple[Dataset, str]:
    """The data set with the rows to evaluate as its test split, and the name of where they are from."""
    options = question.options
    of_run = question.target.run is not None and not options.dataset
    dataset = job.dataset() if of_run else load_dataset(options.dataset) if options.dataset else None
    if options.data:
        return _with_file(job, question, dataset), Path(options.data).name
    assert dataset is not None
    return replace(dataset, test=getattr(dataset, options.split)), options.split


HELD_OUT, FEWEST_ROWS = 4, 40  # one row in four, of a file with so many rows, is an example where none are given


def _with_examples(job: RunContext, question: Question, dataset: Dataset) -> tuple[Dataset, list[str]]:
    """What few-shot shows and classifiers learn, where an adapter comes without its data set: the rows of `--train`,
    none of which is a test row, else a seeded quarter of the file's, which is then no test row. And a note."""
    options, rows = question.options, dataset.test
    if options.train:
        train = _with_file(job, replace(question, options=options.model_copy(update={"data": options.train})), None)
        asked = {content_hash(row.prompt) for row in rows}
        examples = [row for row in train.test if content_hash(row.prompt) not in asked]
        labels = sorted({*(dataset.manifest.labels or ()), *(train.manifest.labels or ())})
        named = {"labels": labels if dataset.task == "classification" else None}
        manifest = dataset.manifest.model_copy(update=named)
        both, dataset = len(train.test) - len(examples), replace(dataset, manifest=manifest, train=examples)
        text = f"{verb(both, 'is a test row', 'are test rows')} too and {verb(both, 'was', 'were')} left out."
        return dataset, [f"{counted(both, 'row')} of {options.train} {text}"] if both else []
    if not question.is_adapter or dataset.train or not options.data:
        return dataset, []
    if len(rows) < FEWEST_ROWS:
        few = f"{counted(len(rows), 'row')} of {options.data} are too few to spare examples to learn from"
        return dataset, [f"{few}: few-shot and classifiers need --train FILE."]
    held = set(sample_order(rows, job.recipe.seed, dataset.stratum)[: len(rows) // HELD_OUT])
    examples, tests = [rows[i] for i in sorted(held)], [row for i, row in enumerate(rows) if i not in held]
    note = (
        f"{counted(len(examples), 'row')} of {options.data} are few-shot's examples and what classifiers learn from; "
        f"the other {len(tests):,} are the test. With --train FILE all are."
    )
    return replace(dataset, train=examples, test=tests), [note]


def _with_file(job: RunContext, question: Question, dataset: Dataset | None) -> Dataset:
    """The rows of a file, next to what a data set says of the task."""
    file = question.options.data
    config = PrepareConfig.model_validate(dataset.manifest.config) if dataset else job.recipe.data
    config = config.model_copy(update={"personal": personal_settings(job.recipe, question, dataset)})
    whole = read_whole(file, config, prompts=question.target.takes_prompts, redact=True)
    rows, task = whole.rows, dataset.task if dataset else whole.task
    if whole.personal:
        say(f"data      {whole.personal}")
    if whole.skipped:
        reasons = ", ".join(f"{n} {reason}" for reason, n in whole.skipped.items())
        say(f"warn: {counted(sum(whole.skipped.values()), 'record')} of {file} can't be evaluated ({reasons})")
    if task == "classification":
        rows = [row if row.label is not None else replace(row, label=row.answer) for row in rows]
    labels = dataset.manifest.labels if dataset else sorted({row.label for row in rows if row.label is not None})
    digest = sha256_file(file) if Path(file).is_file() else content_hash([row.to_json() for row in rows])
    redaction = [config.personal] if whole.personal else []
    empty, read = SplitFile(rows=0, sha256=""), len(whole.order)
    manifest = DatasetManifest(
        id=f"{name_of(file)}-{digest[:12]}",
        hash=content_hash([digest, dataset.manifest.hash if dataset else None, *redaction]),
        name=name_of(file),
        task=task,
        labels=labels if task == "classification" else None,
        config=dataset.manifest.config if dataset else {},
        counts=Counts(read=read, kept=len(rows), rejected=read - len(rows)),
        rejected=whole.skipped,
        splits=Splits(train=empty, val=empty, test=empty),
    )
    return Dataset(file, manifest, dataset.train if dataset else [], [], rows, whole.order, whole.renamed)


def _unseen(dataset: Dataset, rows: Sequence[Row]) -> list[str]:
    """A note on labels that the training split has never shown."""
    if dataset.task != "classification" or not dataset.train:
        return []
    labels = {row.label for row in dataset.train}
    strange = [str(row.label) for row in rows if row.label not in labels]
    if not strange:
        return []
    names, of_rows = sorted(set(strange)), f"{len(strange)} of {counted(len(rows), 'row')}"
    some = f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
    return [f"{of_rows} {verb(len(strange), 'has', 'have')} a label that no training row has: {some}."]


def _default_name(question: Question) -> str:
    options = question.options
    if (endpoint := question.target.endpoint) is not None:
        name = "tuned" if Path(endpoint.model).is_dir() else endpoint.model
    elif options.predictions:
        name = Path(options.predictions).stem
    elif question.target.is_tuned or options.base:
        name = "tuned"
    elif question.target.run is not None:
        name = OPTIMISED
    else:
        return "few-shot" if options.few_shot else "zero-shot"
    return f"{name} few-shot" if options.few_shot else name


def _default_folder(work: EvalJob, split: str) -> Path:
    question, run = work.question, Path(work.question.name)
    if question.plain:
        return run if split == "test" else run / f"eval-{split}"
    folder_name = f"{name_of(work.name)}-{re.sub(r'[^A-Za-z0-9._-]+', '-', work.dataset.id)}-{name_of(split)}"
    if question.target.run is not None:
        return run / "evals" / folder_name
    if not question.target.is_here:
        return Path("evals") / folder_name
    return Path("evals") / f"{name_of(question.name)}-{folder_name}"


def _key(recipe: Recipe, dataset: Dataset, question: Question) -> str:
    options = question.options
    choices: dict[str, Any] = {n: getattr(options, n) for n in ("predictions", "split", "few_shot", "examples")}
    choices["target"] = question.name
    if question.target.run is not None:  # whose folder may be renamed
        run = read_record(RunManifest, question.name)
        choices["target"] = [run.id, run.key, run.adapter_hash]
    files = [sha256_file(file) for file in (options.prompt, options.predictions) if file and Path(file).is_file()]
    server = question.target.endpoint and question.target.identity
    # Without places, which the hash of the data replaces.
    settings = recipe.model_dump(mode="json", exclude={"output_dir": True, "data": {"sources"}})
    return content_hash([settings, dataset.manifest.hash, choices, files, server])


def _baselines(job: RunContext, rows: Sequence[Row]) -> tuple[dict[str, ScoredAnswers], dict[str, Any]]:
    """The run's baselines, as far as they were measured on the same rows, with their costs."""
    file = job.folder / "baselines" / BaselinesManifest.file
    if not file.is_file():
        return {}, {}
    manifest, ids = read_record(BaselinesManifest, file), {row.id for row in rows}
    evaluations = {n: load_evaluation(inside(file.parent, system)) for n, system in manifest.systems.items()}
    same = {n: e for n, e in evaluations.items() if {row.id for row in e.rows} == ids}
    return same, {n: cost.to_json() for n, cost in manifest.costs.items() if n in same}


def _alternatives(work: EvalJob) -> tuple[dict[str, ScoredAnswers], dict[str, Any]]:
    """The base of what was trained elsewhere, zero-shot and few-shot, and the cheap alternatives on the same rows."""
    question, recipe, base = work.question, work.job.recipe, work.question.options.base
    if question.options.few_shot or question.options.prompt or question.options.on:
        return {}, {}  # asked in a way of its own
    if question.is_adapter:
        return measured_alternatives(work.job, work.dataset, work.rows)
    if question.target.run is None and base and question.target.local is not None:
        job = RunContext(recipe.model_copy(update={"model": base}), work.job.folder)
        return measured_alternatives(job, work.dataset, work.rows)
    return {}, {}


def evaluate_files(places: Sequence[str], against: EvalOptions) -> dict[str, str]:
    """Score the places that are files of predictions, against rows: file -> separate folder with its `eval.json`."""
    folders: dict[str, str] = {}
    for file in places:
        path = Path(file)
        if not path.is_file() or path.name == "eval.json":
            continue
        if not against.dataset and not against.data:
            step = "give --references FILE, or --dataset FOLDER"
            raise UserError("This is a file of predictions: against which references?", where=file, next_step=step)
        name = path.stem if sum(Path(other).stem == path.stem for other in places) == 1 else name_of(file)
        options = against.model_copy(update={"predictions": file, "name": name})
        folders[file] = str(evaluate_target("", options).folder)
    return folders


# --- answers of a target ------------------------------------------------------------------------------

MOST_FAILURES = 100  # named in eval.json
PIECES = 8  # parts of the rows for each actor of Ray: what a lost one had is repeated


@dataclass(frozen=True)
class Question:
    """Who is evaluated on what."""

    target: Target
    options: EvalOptions
    settings: Sequence[str] = ()  # `key=value`, of the recipe; those of `evaluate.` may leave that out

    @property
    def name(self) -> str:
        """The target as the user gave it; empty where it is no model on this machine."""
        return self.target.name if self.target.is_here else ""

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter, which comes without its data set."""
        return self.target.is_tuned and self.target.run is None

    @property
    def plain(self) -> bool:
        """Whether it is a run on its own split and prompts: its result belongs into the run's folder."""
        o = self.options
        return self.target.run is not None and not (o.dataset or o.data or o.few_shot or o.prompt or o.name)


@dataclass(frozen=True)
class EvalJob:
    """An evaluation at work."""

    job: RunContext
    question: Question
    dataset: Dataset
    rows: Sequence[Row]  # to answer
    name: str = ""  # of the system in the result

    @property
    def training(self) -> RunManifest | None:
        """The training that the target comes from, where it is a run."""
        return read_record(RunManifest, self.job.folder) if self.question.target.run is not None else None

    @property
    def redactor(self) -> Redactor:
        """Replaces personal data in files as it was replaced in the data set."""
        return Redactor(personal_settings(self.job.recipe, self.question, self.dataset))


@dataclass(frozen=True)
class TargetAnswers:
    """Answers to all rows, and what is kept with them in `eval.json`."""

    system: SystemAnswers
    cost: dict[str, Any]
    notes: list[str]
    parts: dict[str, Any] = field(default_factory=dict)  # further parts of `eval.json`


def personal_settings(recipe: Recipe, question: Question, dataset: Dataset | None) -> PersonalConfig:
    """What happens to personal data in files: what the settings say, else what was done to the data set."""
    if dataset is None or any(setting.startswith("data.personal") for setting in question.settings):
        return recipe.data.personal
    return PersonalConfig.model_validate(dataset.manifest.config.get("personal", {}))


def answers_of_target(work: EvalJob) -> TargetAnswers:
    """A target's answers to the rows; refused where it can't answer these."""
    job, question, target = work.job, work.question, work.question.target
    if not target.takes_prompts:
        return _of_file(work)
    if not all(row.prompt for row in work.rows):
        message = "These rows are references without prompts: no model can answer them"
        step = "give rows with prompts, or answers with --predictions FILE"
        raise UserError(message, where=work.dataset.path, next_step=step)
    if question.options.on and target.local is not None:
        return _by_actors(work)
    if target.local is not None and target.is_tuned:
        job.attach_trained()
    prompts, notes = _prompts(work)
    system = _asked(work, Asking(prompts=prompts), work.name)
    if target.endpoint is not None:
        return _from_endpoint(work, target.endpoint, system.completions, notes)
    return TargetAnswers(system, cost_of(job, system, work.training), notes)


def _asked(work: EvalJob, how: Asking, task: str) -> SystemAnswers:
    """A target's answers to the rows; one that is in another engine is closed behind them."""
    target = work.question.target
    with closing(target):
        if target.is_classifier:
            target.load()  # what is timed is its answers
        return ask(_answering(work), work.dataset, work.rows, work.job.recipe.evaluate, how, task=task)[""]


def _answering(work: EvalJob) -> Target:
    """What answers: the job's own model, behind an adapter of another trainer with the template that is next to it."""
    target, job = work.question.target, work.job
    if target.local is None:
        return target
    if work.question.is_adapter and target.folder is not None:
        template = template_of_adapter(target.folder, job.model.template)
        return LocalTarget.of(replace(job.model, template=template))
    return job.target


def answers_to_rewordings(work: EvalJob, rows: Sequence[Row]) -> list[Completion]:
    """A target's answers to rows in other words."""
    work = replace(work, rows=rows)
    answers = _asked(work, Asking(prompts=_prompts(work)[0], perplexity=False), f"{work.name}, several ways")
    if (endpoint := work.question.target.endpoint) is not None:
        say(endpoint_line(endpoint.usage(answers.completions)))
    return answers.completions


# --- by actors of a Ray cluster ------------------------------------------------------------------


def _by_actors(work: EvalJob) -> TargetAnswers:
    """Answers of actors that each have the model; they are the same, since each depends on its row alone."""
    began, parts, notes = time.monotonic(), list[SystemAnswers](), list[str]()
    job, options, rows = work.job, work.question.options, list(work.rows)
    with on_ray(address_of(options.on)) as ray:
        actors = usual_actors(ray, options.actors)
        say(f"ray       {actors} {'actor answers' if actors == 1 else 'actors answer'}")
        size = max(-(-len(rows) // (PIECES * actors)), 1)
        pieces = [list(range(first, min(first + size, len(rows)))) for first in range(0, len(rows), size)]
        setting = (work.question, job.recipe, Path(job.folder).resolve(), work.dataset, rows)
        for part, part_notes in ordered_by_actors(ray, _actor, setting, pieces, actors):
            parts.append(part)
            notes = part_notes  # the same of each actor
            progress(work.name, sum(len(batch.completions) for batch in parts), len(rows))
    completions = [completion for part in parts for completion in part.completions]
    computed = sum(part.computed for part in parts)
    system = SystemAnswers(completions, time.monotonic() - began, computed=computed)
    return TargetAnswers(system, cost_of(job, system, work.training), notes)


Setting = tuple[Question, Recipe, Path, Dataset, list[Row]]


def _actor(setting: Setting) -> Callable[[list[int]], tuple[SystemAnswers, list[str]]]:
    """What answers rows, by their places, in an actor; it loads the model once."""
    question, recipe, folder, dataset, rows = setting
    job = RunContext(recipe, folder)
    if question.target.is_tuned:
        job.attach_trained()
    work = EvalJob(job, question, dataset, rows)
    model, (prompts, notes) = _answering(work), _prompts(work)

    def answer(places: list[int]) -> tuple[SystemAnswers, list[str]]:
        how = Asking(prompts=None if prompts is None else [prompts[index] for index in places])
        return ask(model, dataset, [rows[index] for index in places], recipe.evaluate, how)[""], notes

    return answer


# --- from a file of predictions ------------------------------------------------------------------


def _of_file(work: EvalJob) -> TargetAnswers:
    """Answers from a file, rows without one and ids without a row, and what a reader has to know of them."""
    options, rows, dataset = work.question.options, work.rows, work.dataset
    file, redactor = options.predictions, work.redactor
    if options.data and Path(options.data).resolve() == Path(file).resolve():
        message = "The references can't be their own predictions"
        raise UserError(message, where=options.data, next_step="name two files")
    records = _read_predictions(file)
    if not any(problem_of(row) for row in rows):  # an answer is compared with a reference that was redacted too
        renamed = dataset.renamed
        ids = [{n: renamed[str(record[n])] for n in IDS if str(record.get(n)) in renamed} for record in records]
        records = [{**redactor(record), **new} for record, new in zip(records, ids, strict=True)]
    matches = answers_from(records, rows, file, all_rows=dataset.test, order=dataset.order)
    further = tuple(match[1:] for match in matches.answers)
    unused = sum(bool(more) and problem_of(row) is None for more, row in zip(further, rows, strict=True))
    missing, unknown, notes = matches.missing(rows), matches.unknown, []
    if unused:
        notes.append(f"{counted(unused, 'row')} {verb(unused, 'has', 'have')} several predictions: the first counts.")
    if missing:
        count, wrong = verb(len(missing), "has", "have"), verb(len(missing), "counts", "count")
        of_rows = f"{len(missing)} of {counted(len(rows), 'row')}"
        notes.append(f"{of_rows} {count} no prediction and {wrong} as wrong: {_some(missing)}.")
    if unknown:
        notes.append(f"{len(unknown)} predictions are for no row of these and were not used: {_some(unknown)}.")
    failed = [{"id": i, "error": "no prediction"} for i in missing]
    failed += [{"id": i, "error": "no such row"} for i in unknown]
    first = {row.id: match[0] for row, match in zip(rows, matches.answers, strict=True) if match}
    answers = list(PredictionsTarget(file, first).complete([Request(id=row.id) for row in rows]))
    if redacted := redactor.words(file, len(rows)):
        say(f"data      {redacted}")
    system = SystemAnswers(answers, 0.0, further=further if any(further) else ())
    return TargetAnswers(system, {}, notes, {"model": work.name} | _failures_part(failed))


def _read_predictions(file: str) -> list[Any]:
    """The records of a file of predictions; blank lines are passed over."""
    records = []
    for item in read_records([file]):
        if not isinstance(item, Reject):
            records.append(item.value)
        elif item.reason != "blank_line":
            message = f"A prediction can't be read ({item.reason}: {item.detail})"
            step = 'write one {"id": ..., "prediction": "..."} a line'
            raise UserError(message, where=f"{file}, line {item.line}", next_step=step)
    return records


def _failures_part(failed: list[dict[str, str]]) -> dict[str, Any]:
    return {"failures": failed[:MOST_FAILURES]} if failed else {}


def _some(ids: Sequence[str]) -> str:
    return ", ".join(entry[:60] for entry in ids[:3]) + (" ..." if len(ids) > 3 else "")


# --- from an endpoint ----------------------------------------------------------------------------


def _from_endpoint(work: EvalJob, endpoint: Endpoint, replies: Sequence[Completion], notes: list[str]) -> TargetAnswers:
    """A server's answers with their costs, and notes on those that failed."""
    if work.question.target.no_scores[0] and uses_choice(work.dataset, work.job.recipe.evaluate):
        label_of = label_matcher(work.dataset.manifest.labels or [])
        others = sum(label_of(reply.text) is None for reply in replies if not reply.error)
        if others:
            notes.append(
                f"{others} of {counted(len(replies), 'answer')} {verb(others, 'names', 'name')} no label: the endpoint "
                "writes them. With --base MODEL (or --base RUN, for its template) labels are scored, as of a run."
            )
    cost = endpoint.usage(replies)
    say(endpoint_line(cost))
    failed = [{"id": r.id, "error": reply.error} for r, reply in zip(work.rows, replies, strict=True) if reply.error]
    if failed:
        reasons = "; ".join(f"{reason} ({n})" for reason, n in failures(replies)[:3])
        notes.append(
            f"{len(failed)} of {counted(len(replies), 'request')} failed and count as wrong answers: {reasons}. "
            "The same command asks for these again; all others are kept."
        )
    if not any(reply.prompt_tokens for reply in replies):
        notes.append("The endpoint doesn't count tokens: costs are unknown.")
    parts = {"model": endpoint.model, "endpoint": masked(endpoint.address)} | _failures_part(failed)
    return TargetAnswers(SystemAnswers(list(replies), cost["seconds"]), cost, notes, parts)


# --- prompts with a template or examples -----------------------------------------------------------


def _prompts(work: EvalJob) -> tuple[list[list[Message]] | None, list[str]]:
    """Each row's turns, with a template and examples where the options name them; None: its own. And notes."""
    options, rows = work.question.options, work.rows
    if not options.few_shot and not options.prompt:
        return None, []
    template = load_prompt(options.prompt) if options.prompt else AS_IT_IS
    examples, notes = _examples(work) if options.few_shot else ([[] for _ in rows], [])
    labels = work.dataset.manifest.labels
    return [prompt_turns(row, template, example, labels) for row, example in zip(rows, examples, strict=True)], notes


def _examples(work: EvalJob) -> tuple[list[Sequence[Row]], list[str]]:
    """The examples of each row; a local model's fit its context. And notes."""
    job, dataset, rows, options = work.job, work.dataset, work.rows, work.question.options
    k, recipe, local = options.few_shot, job.recipe, work.question.target.local is not None
    if not dataset.train:
        message = "Few-shot examples come from a training split, and there is none"
        step = "give the prepared data set too, with --dataset FOLDER"
        raise UserError(message, where="--few-shot", next_step=step)
    pool = [row for row in dataset.train if row.shows_the_task]
    if options.examples == "nearest":
        if local:
            nearest, how = nearest_few_shot(job.model, dataset, rows, k, recipe.evaluate)
        else:
            embed = minilm_embedder()
            nearest, how = nearest_examples(pool, rows, k, embed=embed), MINILM_TITLE if embed else "TF-IDF"
        notes = [f"Examples: the {k} nearest training rows of each row, by {how}."]
        if short := sum(len(neighbours) < min(k, len(pool)) for neighbours in nearest):
            fewer = f"{counted(short, 'row')} {verb(short, 'has', 'have')} fewer than {counted(k, 'example')}"
            notes.insert(0, f"{fewer}: the context holds no more.")
        return list(nearest), notes
    if not local:
        return [choose_examples(pool, k, seed=recipe.seed)] * len(rows), []
    settings = recipe.baselines.model_copy(update={"few_shot": k})
    examples, warning = few_shot_examples(job.model, dataset, rows, settings, recipe.evaluate, recipe.seed)
    return [examples] * len(rows), [warning] if warning else []
