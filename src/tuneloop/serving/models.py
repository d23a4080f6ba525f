"""What a server serves: models and adapters as they were trained, their engine, and the proof that it applies them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, read_jsonl, sha256_file
from tuneloop.core.foreign import parse_json
from tuneloop.core.machine import GIB, memory_left
from tuneloop.core.ui import quiet, say
from tuneloop.core.urls import masked
from tuneloop.data import TaskPrompt, TaskSpec, prompt_reader
from tuneloop.data.formats import Rejection
from tuneloop.inference import (
    ENGINES,
    EngineKind,
    EngineSettings,
    Request,
    Served,
    ServingEngine,
    complete,
    engine_for,
    key_from,
    kind_of_name,
    label_ids,
    target_of,
)
from tuneloop.inference.openai import EndpointEngine, EndpointSettings, only_model
from tuneloop.inference.prompt import engine_of, with_prompts
from tuneloop.models.adapters import BASE, SETTINGS, WEIGHTS, hash_of_adapter
from tuneloop.models.chat import Template, with_template
from tuneloop.models.files import resolve
from tuneloop.pipeline import RunContext
from tuneloop.pipeline.answers import open_with_task, task_inside
from tuneloop.records.artifact import ARTIFACT, PARTED
from tuneloop.records.completion import ENGINE
from tuneloop.records.evaluation import EVALUATION, EvaluationManifest
from tuneloop.records.prompt import prompt_folder, read_prompt
from tuneloop.records.record import read_record
from tuneloop.records.rows import Message
from tuneloop.records.server import ServerState
from tuneloop.registry import (
    evaluation_of_artifact,
    find_run,
    local_name,
    open_registry,
    read_artifact,
    registered_name,
    version_of,
)
from tuneloop.serving.canary import CanaryRow, Parting, is_expected, parting_of, prove, prove_base
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import Prompt, ReadPrompt, ServedModel
from tuneloop.serving.pool import EnginePool, SeveralBases
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
    is_classifier: bool = False  # see `Target.is_classifier`

    @property
    def template(self) -> str:
        """The chat template that was trained; empty: that of the base."""
        return self.task.chat_template if self.task else ""


def hosted(source: str) -> tuple[str, str] | None:
    """The URL of a server and its name of a model, of the source `URL#MODEL`; None: another source."""
    url, mark, model = source.partition("#")
    return (url, model) if mark and model and kind_of_name(url) == "endpoint" else None


def open_model(
    kind: EngineKind, name: str, source: str, task_of: str = "", base: str = "", *, elsewhere_too: bool = False
) -> Opened:
    """An adapter or model for an engine, with its own task or that of `task_of`, on a base (empty: not known yet)."""
    if elsewhere := hosted(source):
        return Opened(name, source, source, Served(elsewhere[1]), None, False)
    local = local_name(source)
    if kind_of_name(local) != "local":
        step = "name a run or artifact, or a server's model as URL#MODEL"
        raise UserError("Only models on this machine can be adapters", where=masked(source), next_step=step)
    target = target_of(kind, local)
    task = (open_with_task(task_of).task if task_of else None) or task_inside(target)
    under, weights = target.served_on(base)
    if target.endpoint is not None and not elsewhere_too:
        step = f"serve it alone, or with engine={masked(target.endpoint.url)}"
        raise UserError("This prompt is for a server's model", where=source, next_step=step)
    loaded = None if weights is None else Served(weights, task.chat_template if task else "")
    chooses = bool(task and task.answer == "choice" and task.labels)
    return Opened(name, source, under, loaded, task, chooses, target.is_classifier)


@dataclass(frozen=True)
class ServerDeployment:
    """What a server is made of: the engine, and what becomes of it."""

    engine: ServingEngine
    opened: Sequence[Opened]
    base: str
    candidates: Mapping[str, Opened] = field(default_factory=dict)  # of experiments, by their names
    tokenizer: str = ""  # model whose tokenizer it is; empty: the base's
    left_out: dict[str, str] = field(default_factory=dict)  # candidates that answer no one, and why

    def adapter_of(self, opened: Opened) -> str:
        """The hash by which a started engine knows an adapter; `base` of the base itself."""
        hashes = {facts.source: hash_ for hash_, facts in self.engine.adapters.items()}
        return hashes[opened.loaded.source] if opened.loaded is not None else BASE

    def models(self) -> dict[str, ServedModel]:
        """The models by name, once the engine is started: those that were tuned, then the base, if it is served."""
        template = _template_of(self.tokenizer or self.base)
        models = {opened.name: _served(opened, self.adapter_of(opened), template) for opened in self.opened}
        if all(model.adapter != BASE for model in models.values()) and not getattr(self.engine, "merged", False):
            name = Path(self.base).name if Path(self.base).exists() else self.base
            decode, created = template.decode if template else None, _written(self.base, template)
            models.setdefault(name, ServedModel(name, source=self.base, decode=decode, created=created))
        return models

    def candidate_models(self) -> dict[str, ServedModel]:
        """The models of experiments by the names of these, once the engine is started."""
        proved = {name: candidate for name, candidate in self.candidates.items() if name not in self.left_out}
        bases = {
            opened_model.base: "" if opened_model.base == self.base else opened_model.base
            for opened_model in proved.values()
        }
        templates = {base: _template_of(further or self.tokenizer or self.base) for base, further in bases.items()}
        return {
            name: _served(opened, self.adapter_of(opened), templates[opened.base]) for name, opened in proved.items()
        }


def _template_of(base: str) -> Template | None:
    """A base model's tokenizer and template, where they are here."""
    if hosted(base):
        return None
    try:
        return engine_for(base).template(base)
    except (UserError, OSError, ValueError):
        return None


def _served(opened_model: Opened, adapter: str, template: Template | None) -> ServedModel:
    task = opened_model.task
    template = None if hosted(opened_model.source) else template
    labels = tuple(task.labels or ()) if task is not None and opened_model.chooses else ()
    tokens: dict[str, int] = dict.fromkeys(labels, 1) if opened_model.is_classifier else {}
    if labels and template is not None:
        ids = label_ids(with_template(template, opened_model.template), labels, [{"role": "user", "content": "x"}])
        tokens = {label: len(each_ids) for label, each_ids in zip(labels, ids, strict=True)}
    release, decode = "", template.decode if template else None
    if registered := registered_name(opened_model.source):
        release = f"{registered[0]}/{version_of(open_registry(), opened_model.source).version}"
    created = _written(opened_model.loaded.source if opened_model.loaded is not None else opened_model.base, template)
    longest, read = (task.max_new_tokens, prompt_of(task)) if task else (None, None)
    return ServedModel(
        opened_model.name, adapter, release, labels, tokens, longest, read, opened_model.source, decode, created
    )


def _written(source: str, template: Template | None) -> int:
    """When weights were written, in seconds since 1970; now, where they are elsewhere, as their template then is."""
    local = Path(source).expanduser()
    if not local.exists() and template is not None:
        with contextlib.suppress(UserError, OSError, ValueError):
            local = resolve(source)
    weights = (local.glob(pattern) for pattern in ("*.safetensors", "*.gguf", "encoder/*.safetensors"))
    files = [local] if local.is_file() else [*itertools.chain(*weights)]
    return int(max((file.stat().st_mtime for file in files), default=time.time()))


def deployment_of(config: ServeConfig, candidates: Mapping[str, Candidate] | None = None) -> ServerDeployment:
    """The engine with all that it is to load; nothing is loaded yet. A candidate that can't be served is left out.

    Raises:
        UserError: something is missing, or the adapters stand on different base models.
    """
    config = config.model_copy(update=_server_of_prompts(config))
    if config.urls:
        _refuse_deterministic(config, "a server elsewhere")
        return _endpoints(config, candidates or {})
    names = [kind.name for kind in reversed(ENGINES)]
    if config.engine not in ("auto", *names):
        message = f"No such engine {masked(str(config.engine))!r:.80}"
        step = f"choose auto, {', '.join(names)} or the URL of a server"
        raise UserError(message, where="engine", next_step=step)
    kind, base, models = _opened(config)
    if kind.name != ENGINE:
        _refuse_deterministic(config, kind.name)
    here = [opened_model for opened_model in models if not hosted(opened_model.source)]
    if other := next((opened_model for opened_model in here if opened_model.base != base), None):
        message = f"{other.name} stands on {other.base}, and the others on {base}"
        raise UserError(message, where="adapters", next_step="start a server for each base model")
    extra, left_out = _candidates(candidates or {}, partial(open_candidate, config, kind=kind, base=base))
    whole = next((opened_model for opened_model in here if opened_model.loaded is None), None)
    sources: dict[str, Served] = {}
    models = [_with_one_source(opened_model, sources) for opened_model in models]
    extra = {
        name: _with_one_source(opened, sources) if opened.base == base else opened for name, opened in extra.items()
    }
    everything = [*models, *extra.values()]
    shared = [opened_model for opened_model in everything if opened_model.base == base]
    log = Path(config.folder) / "llamacpp.log"
    settings = EngineSettings(
        config.slots, config.batch.rows, config.context, merge=config.merge, deterministic=config.deterministic, log=log
    )
    engine = engine_of(kind, Served(base, whole.template if whole else ""), _loaded(shared), settings)
    further = [opened_model for opened_model in everything if opened_model.base != base]
    engine = _with_further_bases(engine, config, further, settings)
    return ServerDeployment(engine, models, base, extra, left_out=left_out)


def _server_of_prompts(config: ServeConfig) -> dict[str, str]:
    """Settings of the server that prompts are for, where all models are prompts for one server's model."""
    if config.urls:
        return {}
    sources = [local_name(named.source) for named in served_by(config)[1] if not hosted(named.source)]
    prompts = [read_prompt(folder) for folder in map(prompt_folder, sources) if folder is not None]
    servers = {(prompt.model, prompt.served_as) for prompt in prompts}
    if len(prompts) < len(sources) or len(servers) != 1 or not all(prompt.served_as for prompt in prompts):
        return {}
    ((url, model),) = servers
    return {"engine": url, "base": model}


def _opened(config: ServeConfig) -> tuple[EngineKind, str, list[Opened]]:
    """The engine of a server's models, the base, and the models; nothing is loaded yet."""
    base, served = served_by(config)
    here = [named.source for named in served if not hosted(named.source)]
    if not (base or here):
        step = "name a run too, or base=MODEL; a server's model alone is served by engine=URL"
        raise UserError("All models are hosted elsewhere", where="adapters", next_step=step)
    base_or_first = local_name(base or here[0])
    kind = engine_for(base_or_first, str(config.engine))
    models = [open_model(kind, named.name, named.source, named.task, base_or_first) for named in served]
    first = next((model.base for model in models if not hosted(model.source)), "")
    return kind, base_or_first if base else first, models


def check_candidate(folder: Path, candidate: Candidate) -> None:
    """Refuse a candidate that the server of a folder can't serve, as far as files say it; nothing is loaded.

    What can't be found from here decides nothing: the server may work in another folder, or with another registry.

    Raises:
        UserError: see `open_candidate`.
    """
    if not (folder / ServerState.file).is_file():
        return
    config = ServeConfig.model_validate(read_record(ServerState, folder).config)
    if config.urls or not any(served_by(config)):
        return
    with quiet():
        try:
            local = Path(local_name(candidate.source)).expanduser()
            kind, base, _ = _opened(config)
        except UserError:
            return
        if local.exists():
            open_candidate(config, candidate, kind=kind, base=base)


def open_candidate(config: ServeConfig, candidate: Candidate, *, kind: EngineKind, base: str) -> Opened:
    """An experiment's candidate next to a server's models; nothing is loaded yet.

    What stands on another base, as a second whole GGUF file, gets an engine of its own for the experiment.

    Args:
        kind: the engine of the server's models.
        base: theirs.

    Raises:
        UserError: it can't be served next to them, with the way out.
    """
    if hosted(candidate.source):
        return open_model(kind, candidate.model, candidate.source)
    local = local_name(candidate.source)
    try:
        kind = engine_for(local, str(config.engine))
    except UserError:
        if kind is not ENGINES[0]:  # else it may be a LoRA file, which llama.cpp opens on the server's base
            raise
    opened = open_model(kind, candidate.model, candidate.source, base=base)
    if opened.base == base:
        return opened
    weights, left = Path(opened.base).expanduser(), memory_left()
    # llama.cpp maps a file into memory; of other weights their engine says what they need.
    files = [weights] if weights.suffix == ".gguf" else list(weights.glob("*.gguf"))
    if (size := sum(file.stat().st_size for file in files) / GIB) > left:
        message = f"A second base needs memory of its own: its file has {size:.1f} GiB, and {left:.1f} GiB are left"
        raise UserError(message, where=opened.base, next_step="quantise it to fewer bits, or take a larger machine")
    return replace(opened, loaded=opened.loaded or Served(opened.base))


def _why(error: UserError) -> str:
    """An error in one sentence."""
    return "; ".join(filter(None, (error.what, error.next_step)))


def _with_further_bases(
    engine: ServingEngine, config: ServeConfig, further: Sequence[Opened], settings: EngineSettings
) -> ServingEngine:
    """An engine with further ones for models on other bases, and on servers elsewhere."""
    others: dict[str, ServingEngine] = {}
    bases = dict.fromkeys(server.base for server in further)
    for number, base in enumerate(bases, 2):
        if elsewhere := hosted(base):
            key = EndpointSettings(elsewhere[0], key_from(config.api_key_env), slots=config.slots)
            others[content_hash(masked(base))] = EndpointEngine(Served(elsewhere[1]), [], key)
            continue
        kind, models = engine_for(base, str(config.engine)), [server for server in further if server.base == base]
        whole = next((model for model in models if model.loaded and model.loaded.source == base), None)
        adapters = [model.loaded for model in models if model.loaded and model.loaded.source != base]
        log = settings.log and settings.log.with_stem(f"llamacpp-{number}")
        own = replace(settings, merge=False, log=log)
        served = Served(base, whole.template if whole else "")
        others[target_of(kind, base).identity] = engine_of(kind, served, adapters, own)
    return SeveralBases(engine, others) if others else engine


def _refuse_deterministic(config: ServeConfig, engine: str) -> None:
    if config.deterministic:
        message = f"Only our own engine gives deterministic answers, and {engine} computes here"
        raise UserError(message, where="deterministic", next_step="leave it out, or serve a run or a model's folder")


def _with_one_source(model: Opened, sources: dict[str, Served]) -> Opened:
    """A model with the first source of equal weights, by digest, as of a copied run: an engine loads them once."""
    if model.loaded is None:
        return model
    path = Path(model.loaded.source)
    if (path / WEIGHTS).is_file() and (path / SETTINGS).is_file():
        digest = hash_of_adapter(path)
    else:
        digest = sha256_file(path) if path.is_file() else str(path)
    return replace(model, loaded=sources.setdefault(digest, model.loaded))


def _loaded(*groups: Iterable[Opened]) -> list[Served]:
    """What an engine is to load, each once."""
    return list(
        {
            loaded_part.loaded.source: loaded_part.loaded
            for group in groups
            for loaded_part in group
            if loaded_part.loaded
        }.values()
    )


async def started(config: ServeConfig, candidates: Mapping[str, Candidate]) -> ServerDeployment:
    """A deployment whose engine is started, without the candidates where it can't be started with them.

    Raises:
        UserError: see `deployment_of`; or the engine can't be started without any candidate.
    """
    deployment = deployment_of(config, candidates)
    try:
        await deployment.engine.start()
        return deployment
    except BaseException as error:
        await deployment.engine.stop()
        if not (isinstance(error, UserError) and deployment.candidates):
            raise
        say(f"experiments: the engine does not start with their candidates: {error.what}")
        failures = dict.fromkeys(deployment.candidates, _why(error))
    without = await started(config, {})
    without.left_out.update(failures)
    return without


def _candidates(
    candidates: Mapping[str, Candidate], open_one: Callable[[Candidate], Opened]
) -> tuple[dict[str, Opened], dict[str, str]]:
    """Candidates that can be served, and why others can't: an experiment must not keep a server from its work."""
    models, left_out = {}, {}
    for name, candidate in candidates.items():
        try:
            models[name] = open_one(candidate)
        except UserError as error:
            left_out[name] = _why(error)
            say(f"experiment {name}: the candidate can't be served: {error.what}")
    return models, left_out


def _endpoints(config: ServeConfig, candidates: Mapping[str, Candidate]) -> ServerDeployment:
    """Servers elsewhere as the engine, balanced where there are several; UserError: no server lists its models."""
    base, names = served_by(config)
    models = [_open_elsewhere(name) for name in names]
    local = next((model.base for model in models if model.base), "")
    key = key_from(config.api_key_env)
    base = base or only_model(config.urls, key)
    extra, left_out = _candidates(candidates, lambda given: _open_elsewhere(Named(given.model, given.source)))
    adapters = _loaded(models, extra.values())
    settings = [
        EndpointSettings(url, key, config.tokenizer or local, slots=config.slots, priorities=config.priorities)
        for url in config.urls
    ]
    weights = [served for served in adapters if not prompt_folder(served.source)]
    engines = [with_prompts(EndpointEngine(Served(base), weights, setting), adapters) for setting in settings]

    async def proof(engine: ServingEngine) -> None:
        with quiet():
            await prove_models(config, ServerDeployment(engine, models, base))

    engine: ServingEngine = EnginePool(engines, proof) if len(engines) > 1 else engines[0]
    tokenizer = config.tokenizer or local or base
    return ServerDeployment(engine, models, base, extra, tokenizer, left_out)


def _open_elsewhere(model: Named) -> Opened:
    """A run or artifact here, whose task is known; else a model by the server's name of it."""
    if registered_name(model.source) is None and not Path(model.source).expanduser().exists():
        return Opened(model.name, model.source, "", Served(model.source), None, False)
    opened = open_model(ENGINES[-1], model.name, model.source, model.task, elsewhere_too=True)
    if opened.loaded is None:
        message = "A server can be given adapters, and this run trained all weights"
        step = "start the server with these weights and name it by the server's name of the model"
        raise UserError(message, where=model.source, next_step=step)
    return opened


def prompt_of(task: TaskSpec) -> ReadPrompt:
    """The function from a client's turns to the prompt that a model was trained on.

    A single turn of the user is a record of the training data: its text is repaired, put into the template and set
    under the instruction, as `predict` does; a system turn that is the trained one changes nothing. Where training took
    several columns, it is a JSON object with them. Any other conversation keeps its turns, under the trained
    instruction; of a model that was tuned through a template the last turn is put into it where it fits. What was not
    trained on conversations says that it is outside its training, and so does a conversation that training would have
    rejected, whose turns stay as they are.
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
        turns, trained = messages, (task.system or task.instruction or "").strip()
        if messages and messages[0]["role"] == "system" and str(messages[0]["content"]).strip() == trained:
            turns = messages[1:]  # the prompt has it anyway
        *before, last = turns or messages
        alone = not before and last["role"] == "user"
        record: dict[str, Any] | None = None
        if single_record is not None and last["role"] == "user" and (alone or task.input is not None):
            record = _record_of(task, str(last["content"]))
        row = single_record(record) if single_record is not None and record is not None else None
        if isinstance(row, Rejection):
            raise ValueError(f"{row.reason}: {row.detail}. {_accepted_forms(task)}")
        if row is not None and alone and not tools:
            return Prompt(row.messages, row.tools, row.continues)
        value: dict[str, Any] = {"messages": [dict(turn) for turn in turns]}
        whole = conversation(value | ({"tools": [dict(tool) for tool in tools]} if tools else {}))
        rejected = isinstance(whole, Rejection)
        if isinstance(whole, Rejection):
            whole = _as_sent(task, turns, tools, whole)
        if row is None and task.is_conversation and not rejected:
            return Prompt(whole.messages, whole.tools, whole.continues)
        everything = whole.messages
        if row is not None:  # turns of one speaker in a row were merged: the record stays alone
            merged = bool(before) and before[-1]["role"] == "user"
            everything = [*(before if merged else whole.messages[:-1]), row.messages[-1]]
        return Prompt(_under(task.system or task.instruction or "", everything), whole.tools, outside=True)

    return read


def _as_sent(
    task: TaskSpec, turns: Sequence[Message], tools: Sequence[Mapping[str, Any]], refusal: Rejection
) -> TaskPrompt:
    """A conversation that training would have rejected, without its empty turns; ValueError: it asks nothing."""
    if not any(turn["role"] == "user" and str(turn["content"]).strip() for turn in turns):
        raise ValueError(f"{refusal.reason}: {refusal.detail}. {_accepted_forms(task)}")
    said = [turn for turn in turns if str(turn["content"]).strip() or turn.get("tool_calls") or turn["role"] == "tool"]
    return TaskPrompt(said, [dict(tool) for tool in tools])


def _accepted_forms(task: TaskSpec) -> str:
    """What a client can send to a model, with an example."""
    example = "Where is my parcel?"
    if len(task.inputs) > 1:
        record: dict[str, Any] = {}
        for *outer, name in (path.split(".") for path in task.inputs):
            inner = record
            for part in outer:
                inner = inner.setdefault(part, {})
            inner[name] = "..."
        example = json.dumps(record, ensure_ascii=False)
    turn = json.dumps([{"role": "user", "content": example}], ensure_ascii=False)
    return (
        f"Send a turn of the user as the model was trained, messages={turn}, or a conversation with a text of the user"
    )


def _record_of(task: TaskSpec, text: str) -> dict[str, Any] | None:
    """A turn as a record; None: the model was trained on several columns, and it is no JSON object with any of them."""
    if len(task.inputs) == 1:
        return {"text": text}
    try:
        value = parse_json(text)
    except (ValueError, RecursionError):
        return None
    columns = {name.partition(".")[0] for name in task.inputs}
    return value if isinstance(value, dict) and columns & value.keys() else None


def _under(trained: str, turns: Sequence[Message]) -> list[Message]:
    """Turns under the trained instruction and all system turns as one: templates take no second one."""
    texts = [trained, *(str(turn["content"]) for turn in turns if turn["role"] == "system")]
    system = "\n\n".join(text for text in dict.fromkeys(texts) if text)
    others = [turn for turn in turns if turn["role"] != "system"]
    return [{"role": "system", "content": system}, *others] if system else others


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
        rows_by_id = {row.id: row for row in RunContext.of_run(run).dataset().test}
        samples = read_jsonl(evaluated / "samples.jsonl")
    except (UserError, OSError):
        return []
    labels = tuple(task.labels or ()) if task is not None and task.answer == "choice" else ()
    tokens = min(tokens, task.max_new_tokens) if task is not None else tokens  # the evaluation stopped there, too
    samples = [sample for sample in samples if sample.get("id") in rows_by_id and sample.get("prediction")]
    pairs = [(rows_by_id[str(sample["id"])], sample) for sample in samples]
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
    for opened in deployment.opened:
        longest = (opened.task.max_new_tokens if opened.task else None) or 256
        adapter = deployment.adapter_of(opened)
        rows = await asyncio.to_thread(canaries_of, opened.source, adapter, opened.task, sys.maxsize, longest)
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
                if len(partings) < PARTED and (parting := await parting_of(deployment.engine, row, answer)) is not None:
                    partings.append(parting)
            if i // 100 != (i + len(part)) // 100:
                say(f"compared  {opened.name}: {i + len(part):,} of {len(rows):,}")
        ties = sum(entry.is_tie for entry in partings)
        largest = round(max((entry.gap for entry in partings), default=0.0), 3)
        results.append(Sameness(opened.name, len(rows), same, failed, len(partings), ties, largest, tuple(examples)))
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

    async def proof_of(opened_model: Opened, name: str) -> None:
        adapter = deployment.adapter_of(opened_model)
        rows = await asyncio.to_thread(canaries_of, opened_model.source, adapter, opened_model.task, config.canaries)
        for proof in await prove(engine, rows):
            say(f"proof     {name}: {proof.in_words}")
        if isinstance(engine, EndpointEngine) and engine.adapters and rows:
            await prove_base(engine, rows)

    if not config.canaries:
        return
    for opened in deployment.opened:
        await proof_of(opened, opened.name)
    for name, opened in deployment.candidates.items():
        try:
            await proof_of(opened, f"candidate of {name}")
        except UserError as error:
            deployment.left_out[name] = _why(error)
            say(f"experiment {name}: the candidate answers no one: {error.what}")
