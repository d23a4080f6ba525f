"""What a server serves: models and adapters as they were trained, their engine, and the proof that it applies them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_jsonl, sha256_file
from tuneloop.core.ui import quiet, say
from tuneloop.core.units import counted
from tuneloop.core.urls import masked, split_login
from tuneloop.data.formats import Rejection
from tuneloop.data.task import TaskPrompt, TaskSpec, prompt_reader
from tuneloop.inference.canary import CanaryRow, Parting, is_expected, parting_of, prove, prove_base
from tuneloop.inference.local.labels import label_ids
from tuneloop.inference.openai.serving import EndpointEngine, EndpointSettings
from tuneloop.inference.openai.target import key_from
from tuneloop.inference.protocol import EngineKind, EngineSettings, Served, ServingEngine, complete, with_template
from tuneloop.inference.request import Request
from tuneloop.inference.targets import ENGINES, engine_for, kind_of_name
from tuneloop.inference.timeouts import MODELS_WITHIN
from tuneloop.inference.wire import Broken, HttpRefused, Wire, fetched, need_aiohttp
from tuneloop.models.adapters import BASE
from tuneloop.models.names import resolve
from tuneloop.models.peft_layout import SETTINGS, WEIGHTS, hash_of_adapter
from tuneloop.models.template import Template
from tuneloop.pipeline.context import RunContext, dataset_of, load_run_recipe
from tuneloop.pipeline.targets import open_with_task, task_inside
from tuneloop.records.artifact import ARTIFACT, PARTED
from tuneloop.records.completion import ENGINE
from tuneloop.records.evaluation import EVALUATION, EvaluationManifest
from tuneloop.records.record import read_record
from tuneloop.records.rows import Message
from tuneloop.registry.registered import (
    evaluation_of_artifact,
    find_run,
    local_name,
    open_registry,
    registered_name,
    version_of,
)
from tuneloop.registry.verify import read_artifact
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import Prompt, ReadPrompt, ServedModel
from tuneloop.serving.pool import EnginePool
from tuneloop.serving.router import Named, served_by


@dataclass(frozen=True)
class Candidate:
    """What an experiment wants served."""

    model: str  # name of the model in whose place it answers
    source: str  # run, artifact or registered version


@dataclass(frozen=True)
class Opened:
    """An adapter or model of the settings."""

    name: str  # as clients ask for it
    source: str  # as the settings name it
    base: str  # the model that it stands on, or is
    loaded: Served | None  # what the engine is to load for it; None: the base itself
    task: TaskSpec | None  # what it was trained to answer; None: not known
    chooses: bool  # whether its answers are labels

    @property
    def template(self) -> str:
        """The chat template that was trained; empty: that of the base."""
        return self.task.chat_template if self.task else ""


def open_model(kind: EngineKind, name: str, source: str, task_of: str = "", base: str = "") -> Opened:
    """An adapter or model for an engine, with its own task or that of `task_of`, on a base (empty: not known yet)."""
    place = local_name(source)
    if kind_of_name(place) != "local":
        raise UserError("Only models on this machine can be adapters", where=source, next_step="name a run or artifact")
    target = kind.target(place, "", "")
    task = (open_with_task(task_of).task if task_of else None) or task_inside(target)
    under, weights = target.served_on(base)
    loaded = None if weights is None else Served(weights, task.chat_template if task else "")
    return Opened(name, source, under, loaded, task, bool(task and task.answer == "choice" and task.labels))


@dataclass(frozen=True)
class ServerDeployment:
    """What a server is made of before it is started: the engine, and what becomes of it."""

    engine: ServingEngine
    opened: Sequence[Opened]
    base: str
    candidates: Mapping[str, Opened] = field(default_factory=dict)  # of experiments, by their names
    tokenizer: str = ""  # model whose tokenizer it is; empty: the base's
    unproved: set[str] = field(default_factory=set)  # candidates that did not answer as in their evaluation

    def adapter_of(self, opened: Opened) -> str:
        """The hash by which a started engine knows an adapter; `base` of the base itself."""
        hashes = {facts.source: hash_ for hash_, facts in self.engine.adapters.items()}
        return hashes[opened.loaded.source] if opened.loaded is not None else BASE

    def models(self) -> dict[str, ServedModel]:
        """The models by name, once the engine is started: those that were tuned, then the base, if it is served."""
        template = _template_of(self.tokenizer or self.base)
        models = {each.name: _served(each, self.adapter_of(each), template) for each in self.opened}
        if all(model.adapter != BASE for model in models.values()) and not getattr(self.engine, "merged", False):
            name = Path(self.base).name if Path(self.base).exists() else self.base
            decode, created = template.decode if template else None, _written(self.base, template)
            models.setdefault(name, ServedModel(name, source=self.base, decode=decode, created=created))
        return models

    def candidate_models(self) -> dict[str, ServedModel]:
        """The models of experiments by the names of these, once the engine is started."""
        template = _template_of(self.tokenizer or self.base)
        proved = {name: each for name, each in self.candidates.items() if name not in self.unproved}
        return {name: _served(each, self.adapter_of(each), template) for name, each in proved.items()}


def _template_of(base: str) -> Template | None:
    """A base model's tokenizer and template, where they are here."""
    try:
        return engine_for(base).template(base)
    except (UserError, OSError, ValueError):
        return None


def _served(each: Opened, adapter: str, template: Template | None) -> ServedModel:
    task = each.task
    labels = tuple(task.labels or ()) if task is not None and each.chooses else ()
    tokens: dict[str, int] = {}
    if labels and template is not None:
        ids = label_ids(with_template(template, each.template), labels, [{"role": "user", "content": "x"}])
        tokens = {label: len(each_ids) for label, each_ids in zip(labels, ids, strict=True)}
    release, decode = "", template.decode if template else None
    if registered := registered_name(each.source):
        release = f"{registered[0]}/{version_of(open_registry(), each.source).version}"
    created = _written(each.loaded.source if each.loaded is not None else each.base, template)
    longest, read = (task.max_new_tokens, prompt_of(task)) if task else (None, None)
    return ServedModel(each.name, adapter, release, labels, tokens, longest, read, each.source, decode, created)


def _written(source: str, template: Template | None) -> int:
    """When weights were written, in seconds since 1970; now, where they are elsewhere, as their template then is."""
    place = Path(source).expanduser()
    if not place.exists() and template is not None:
        with contextlib.suppress(UserError, OSError, ValueError):
            place = resolve(source)
    files = [place] if place.is_file() else [*place.glob("*.safetensors"), *place.glob("*.gguf")]
    return int(max((file.stat().st_mtime for file in files), default=time.time()))


def deployment_of(config: ServeConfig, candidates: Mapping[str, Candidate] | None = None) -> ServerDeployment:
    """The engine with all that it is to load; nothing is loaded yet. A candidate that can't be served is left out.

    Raises:
        UserError: something is missing, or the adapters stand on different base models.
    """
    if config.urls:
        _refuse_deterministic(config, "a server elsewhere")
        return _endpoints(config, candidates or {})
    names = [kind.name for kind in reversed(ENGINES)]
    if config.engine not in ("auto", *names):
        what = f"No such engine {masked(str(config.engine))!r:.80}"
        step = f"choose auto, {', '.join(names)} or the URL of a server"
        raise UserError(what, where="engine", next_step=step)
    base, served = served_by(config)
    base_or_first = local_name(base or served[0].source)
    kind = engine_for(base_or_first, str(config.engine))
    if kind.name != ENGINE:
        _refuse_deterministic(config, kind.name)
    open_one = partial(open_model, kind, base=base_or_first)
    models = [open_one(each.name, each.source, each.task) for each in served]
    base = base_or_first if base else models[0].base
    if other := next((each for each in models if each.base != base), None):
        what = f"{other.name} stands on {other.base}, and the others on {base}"
        raise UserError(what, where="adapters", next_step="start a server for each base model")
    extra = _candidates(candidates or {}, lambda candidate: open_one(candidate.model, candidate.source), base)
    whole = next((each for each in models if each.loaded is None), None)
    sources: dict[str, Served] = {}
    models = [_with_one_source(each, sources) for each in models]
    extra = {name: _with_one_source(each, sources) for name, each in extra.items()}
    log = Path(config.folder) / "llamacpp.log"
    settings = EngineSettings(
        config.slots, config.batch.rows, config.context, merge=config.merge, deterministic=config.deterministic, log=log
    )
    engine = kind.serving(Served(base, whole.template if whole else ""), _loaded(models, extra.values()), settings)
    return ServerDeployment(engine, models, base, extra)


def _refuse_deterministic(config: ServeConfig, engine: str) -> None:
    if config.deterministic:
        what = f"Only our own engine gives deterministic answers, and {engine} computes here"
        raise UserError(what, where="deterministic", next_step="leave it out, or serve a run or a model's folder")


def _with_one_source(model: Opened, sources: dict[str, Served]) -> Opened:
    """A model with the first source of equal weights, by digest, as of a copied run: an engine loads them once."""
    if model.loaded is None:
        return model
    place = Path(model.loaded.source)
    if (place / WEIGHTS).is_file() and (place / SETTINGS).is_file():
        digest = hash_of_adapter(place)
    else:
        digest = sha256_file(place) if place.is_file() else str(place)
    return replace(model, loaded=sources.setdefault(digest, model.loaded))


def _loaded(*groups: Iterable[Opened]) -> list[Served]:
    """What an engine is to load, each once."""
    return list({each.loaded.source: each.loaded for group in groups for each in group if each.loaded}.values())


def _candidates(
    candidates: Mapping[str, Candidate], open_one: Callable[[Candidate], Opened], base: str | None
) -> dict[str, Opened]:
    """Candidates that can be served on a base (None: on any); an experiment must not keep a server from its work."""
    models = {}
    for name, candidate in candidates.items():
        try:
            model = open_one(candidate)
        except UserError as error:
            say(f"experiment {name}: the candidate can't be served: {error.what}")
            continue
        if base is not None and model.base != base:
            say(f"experiment {name}: the candidate stands on {model.base}, and the server on {base}")
        else:
            models[name] = model
    return models


def _endpoints(config: ServeConfig, candidates: Mapping[str, Candidate]) -> ServerDeployment:
    """Servers elsewhere as the engine, balanced where there are several; UserError: no server lists its models."""
    base, names = served_by(config)
    models = [_open_elsewhere(each) for each in names]
    local = next((each.base for each in models if each.base), "")
    key = key_from(config.api_key_env)
    base = base or _only_model(config.urls, key)
    extra = _candidates(candidates, lambda each: _open_elsewhere(Named(each.model, each.source)), None)
    adapters = _loaded(models, extra.values())
    settings = [
        EndpointSettings(url, key, config.tokenizer or local, slots=config.slots, priorities=config.priorities)
        for url in config.urls
    ]
    engines = [EndpointEngine(Served(base), adapters, each) for each in settings]

    async def proof(engine: ServingEngine) -> None:
        with quiet():
            await prove_models(config, ServerDeployment(engine, models, base))

    engine: ServingEngine = EnginePool(engines, proof) if len(engines) > 1 else engines[0]
    return ServerDeployment(engine, models, base, extra, tokenizer=config.tokenizer or local or base)


def _open_elsewhere(model: Named) -> Opened:
    """A run or artifact here, whose task is known; else a model by the server's name of it."""
    if registered_name(model.source) is None and not Path(model.source).expanduser().exists():
        return Opened(model.name, model.source, "", Served(model.source), None, False)
    opened = open_model(ENGINES[-1], model.name, model.source, model.task)
    if opened.loaded is None:
        what = "A server can be given adapters, and this run trained all weights"
        step = "start the server with these weights and name it by the server's name of the model"
        raise UserError(what, where=model.source, next_step=step)
    return opened


def _only_model(urls: Sequence[str], key: str) -> str:
    """The model of the first server that answers."""
    need_aiohttp(masked(urls[0]), "llamacpp")
    fault = ""
    for url in urls:
        try:
            place, login = split_login(url.rstrip("/").removesuffix("/v1"))
            answer = fetched(Wire(place, key, proxies=True, login=login), "/v1/models", MODELS_WITHIN)
            models = json.loads(answer)["data"]
            models = [each for each in models if not each.get("parent")] or models  # vLLM's adapters have one
            names = [str(each["id"]) for each in models]
        except (HttpRefused, Broken, ValueError, KeyError, TypeError) as error:
            fault = (
                error.in_words if isinstance(error, HttpRefused) else masked(f"{type(error).__name__}: {error}")[:200]
            )
            continue
        if len(names) == 1:
            return names[0]
        step = f"say which with base=NAME: {', '.join(names)[:300]}"
        raise UserError(f"The server has {counted(len(names), 'model')}", where=masked(url), next_step=step)
    what = f"The server does not tell its models ({fault})"
    raise UserError(what, where=masked(", ".join(urls)), next_step="check the URL and that it runs")


def prompt_of(task: TaskSpec) -> ReadPrompt:
    """The function from a client's turns to the prompt that a model was trained on.

    A single turn of the user is a record of the training data: its text is repaired, put into the template and set
    under the instruction, as `predict` does. Where training took several columns, it is a JSON object with them. Any
    other conversation keeps its turns, under the trained instruction; of a model that was tuned through a template the
    last turn is put into it where it fits. What was not trained on conversations says that it is outside its training.
    """
    chats = {"format": "messages", "columns": {"turns": "messages", "tools": "tools"}, "input": None, "output": None}
    plain = task if task.input is None else task.model_copy(update=chats)
    conversation = prompt_reader(plain, [{"messages": [{"role": "user", "content": "x"}]}])
    single_record = None
    if not task.is_conversation:
        column = "text" if len(task.inputs) == 1 else ""
        single_record = prompt_reader(
            task, [{"text": "x"} if column else dict.fromkeys(task.inputs, "x")], column=column
        )

    def read(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Prompt:
        *before, last = messages
        alone = not before and last["role"] == "user"
        record: dict[str, Any] | None = None
        if single_record is not None and last["role"] == "user" and (alone or task.input is not None):
            record = _record_of(task, str(last["content"]))
        if alone and record is None and len(task.inputs) > 1:
            columns = ", ".join(f'"{name}": "..."' for name in task.inputs)
            raise ValueError(f"This model was trained on several columns: write them as JSON, {{{columns}}}")
        if single_record is not None and record is not None and alone and not tools:
            row = _accepted(single_record(record))
            return Prompt(row.messages, row.tools, row.continues)
        value: dict[str, Any] = {"messages": [dict(turn) for turn in messages]}
        whole = _accepted(conversation(value | ({"tools": [dict(tool) for tool in tools]} if tools else {})))
        if single_record is None or record is None:
            return Prompt(whole.messages, whole.tools, whole.continues, outside=not task.is_conversation)
        row = _accepted(single_record(record))
        earlier = whole.messages[:-1] if any(turn["role"] == "system" for turn in before) else before
        return Prompt(_one_system([*row.messages[:-1], *earlier, row.messages[-1]]), whole.tools, outside=True)

    return read


def _record_of(task: TaskSpec, text: str) -> dict[str, Any] | None:
    """A turn as a record; None: the model was trained on several columns, and it is no JSON object with them."""
    if len(task.inputs) == 1:
        return {"text": text}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _accepted(row: TaskPrompt | Rejection) -> TaskPrompt:
    if isinstance(row, Rejection):
        raise ValueError(f"{row.reason}: {row.detail}")
    return row


def _one_system(turns: Sequence[Message]) -> list[Message]:
    """Turns with all system turns as one, at the beginning: templates take no second one."""
    texts = [str(turn["content"]) for turn in turns if turn["role"] == "system"]
    others = [turn for turn in turns if turn["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(texts)}, *others] if texts else others


def canaries_of(source: str, adapter: str, task: TaskSpec | None, rows: int = 5, tokens: int = 16) -> list[CanaryRow]:
    """Rows of the evaluation of a run, an artifact or a registered version, those with the shortest prompts.

    A quantised artifact is held to its own evaluation, and to none where it was not measured. There are none where the
    evaluation or the data set is missing.

    Args:
        adapter: hash by which the engine knows it.
        rows: at most; five take some seconds.
        tokens: of each answer at most; an adapter that is not applied shows in the first words.
    """
    try:
        run, evaluated = _places(Path(local_name(source)))
        if read_record(EvaluationManifest, evaluated / EVALUATION).split != "test":
            return []
        rows_by_id = {row.id: row for row in dataset_of(RunContext(load_run_recipe(run, []), run), True, "").test}
        samples = read_jsonl(evaluated / "samples.jsonl")
    except (UserError, OSError):
        return []
    labels = tuple(task.labels or ()) if task is not None and task.answer == "choice" else ()
    samples = [each for each in samples if each.get("id") in rows_by_id and each.get("prediction")]
    pairs = [(rows_by_id[str(each["id"])], each) for each in samples]
    pairs.sort(key=lambda pair: sum(len(str(turn.get("content") or "")) for turn in pair[0].prompt))
    canaries = []
    for row, sample in pairs[:rows]:
        request = Request(row.prompt, row.tools or (), max_new_tokens=tokens, adapter=adapter, choices=labels)
        ids = tuple((sample.get("completion") or {}).get("token_ids") or ())
        canaries.append(CanaryRow(request, str(sample["prediction"]), ids))
    return canaries


def _places(folder: Path) -> tuple[Path, Path]:
    """The run of a run's folder, its adapter's or an artifact, and the folder of the evaluation that counts."""
    if (folder / ARTIFACT).is_file():
        manifest = read_artifact(folder)
        if manifest.format == "gguf":
            evaluated = evaluation_of_artifact(folder)
            return evaluated.parent.parent, evaluated
        if (run := find_run(manifest.run.id, manifest.run.key)) is not None:
            return run, run
        raise UserError("The artifact's run is not here", where=str(folder))
    run = folder if (folder / "run.json").is_file() else folder.parent
    return run, run


@dataclass(frozen=True)
class Sameness:
    """How many answers of a served model are those of its evaluation."""

    name: str  # of the model
    n: int  # test rows that were sent; 0: there is no evaluation of the test split
    same: int  # answers that are equal
    failed: int = 0  # rows that got no answer
    parted: int = 0  # answers that differ and were looked at, `PARTED` at most
    # of them, those that part where the served model finds both tokens equally likely; see `Parting.is_tie`
    ties: int = 0
    largest_gap: float = 0.0  # between these two tokens, of all that were looked at
    examples: tuple[tuple[str, str], ...] = ()  # the first answers that differ: as evaluated, as served

    @property
    def are_ties(self) -> bool:
        """Whether rounding explains the answers that differ."""
        return 0 < self.parted == self.ties and not self.failed


async def same_answers(deployment: ServerDeployment) -> list[Sameness]:
    """Send all test rows of each model's evaluation to a started engine, and compare the whole answers."""
    results = []
    for each in deployment.opened:
        longest = (each.task.max_new_tokens if each.task else None) or 256
        adapter = deployment.adapter_of(each)
        rows = await asyncio.to_thread(canaries_of, each.source, adapter, each.task, sys.maxsize, longest)
        examples: list[tuple[str, str]] = []
        partings: list[Parting] = []
        same = failed = 0
        for i in range(0, len(rows), deployment.engine.slots):
            part = rows[i : i + deployment.engine.slots]
            answers = await asyncio.gather(*(complete(deployment.engine, row.request) for row in part))
            for answer, row in zip(answers, part, strict=True):
                failed += bool(answer.error)
                if is_expected(answer, row):
                    same += 1
                    continue
                if len(examples) < 3:
                    examples.append((row.expected, answer.error or answer.text))
                if len(partings) < PARTED and (one := await parting_of(deployment.engine, row, answer)) is not None:
                    partings.append(one)
            if i // 100 != (i + len(part)) // 100:
                say(f"compared  {each.name}: {i + len(part):,} of {len(rows):,}")
        ties = sum(one.is_tie for one in partings)
        largest = round(max((one.gap for one in partings), default=0.0), 3)
        results.append(Sameness(each.name, len(rows), same, failed, len(partings), ties, largest, tuple(examples)))
    return results


async def prove_models(config: ServeConfig, deployment: ServerDeployment) -> None:
    """Send rows of each model's evaluation before any other request, to every engine of a pool.

    Raises:
        UserError: an adapter is not applied, or answers other than it did in the evaluation.
    """
    engine = deployment.engine
    if isinstance(engine, EnginePool):
        await engine.prove()
        return

    async def proof_of(each: Opened, name: str) -> None:
        adapter = deployment.adapter_of(each)
        rows = await asyncio.to_thread(canaries_of, each.source, adapter, each.task, config.canaries)
        for proof in await prove(engine, rows):
            say(f"proof     {name}: {proof.in_words}")
        if isinstance(engine, EndpointEngine) and engine.adapters and rows:
            await prove_base(engine, rows)

    if not config.canaries:
        return
    for each in deployment.opened:
        await proof_of(each, each.name)
    for name, each in deployment.candidates.items():
        try:
            await proof_of(each, f"candidate of {name}")
        except UserError as error:
            deployment.unproved.add(name)
            say(f"experiment {name}: the candidate answers no one: {error.what}")
