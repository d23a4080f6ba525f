"""`tuneloop serve`: an engine, the models on it as they were trained, and the server before them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import build_config, lock_folder, read_yaml, sha256_file, write_json
from tuneloop.core.ids import utc_now
from tuneloop.data.formats import Rejection
from tuneloop.data.task import TaskSpec, prompt_reader
from tuneloop.inference.engines import Served, ServingEngine
from tuneloop.models.adapters import BASE
from tuneloop.records.rows import Message
from tuneloop.serve.admission import Admission
from tuneloop.serve.config import ServeConfig
from tuneloop.serve.gateway import Gateway, Prompt, ReadPrompt, ServedModel
from tuneloop.serve.keys import Keyring
from tuneloop.serve.limits import Ledger
from tuneloop.serve.store import opened
from tuneloop.serve.writer import StoreWriter
from tuneloop.workflows.registry import local_name, registered_name, silent
from tuneloop.workflows.serve_experiments import Candidate, Experiments
from tuneloop.workflows.serve_router import name_of, served_by, split_targets, use_router
from tuneloop.workflows.targets import open_with_task
from tuneloop.workflows.task import read_task_of

if TYPE_CHECKING:
    from tuneloop.models.template import Template

Say = Callable[[str], None]
STATE = "state.json"


# --- settings --------------------------------------------------------------------------------------


def serve_config(targets: Sequence[str], settings: Sequence[str]) -> ServeConfig:
    """The settings of a server.

    Args:
        targets: a `serve.yaml`, or what is to be served.
        settings: `key=value`.

    Raises:
        UserError: nothing to serve, an unknown key or a bad value.
    """
    targets, found = split_targets(targets)
    files = [name for name in targets if name.endswith((".yaml", ".yml"))]
    if len(files) > 1 or (files and len(targets) > 1):
        raise UserError("Give one serve.yaml, or what is to be served", where=", ".join(targets))
    values = read_yaml(files[0], "serve.yaml") if files else {}
    config = build_config(ServeConfig, {**values, **found}, settings, where=files[0] if files else "")
    named = dict(config.adapters)
    base = config.base
    for target in [] if files else targets:
        if _is_base(target):
            if base and base != target:
                raise UserError(f"Two base models: {base} and {target}", next_step="start a server for each of them")
            base = target
        else:
            named[name_of(target, list(named))] = target
    if not named and not base and not config.tasks and not config.router:
        raise UserError(
            "Nothing to serve",
            next_step="tuneloop serve RUN, ARTIFACT, NAME@champion, MODEL, tasks.json, a router or serve.yaml",
        )
    return config.model_copy(update={"adapters": named, "base": base})


def _is_base(name: str) -> bool:
    """Whether a name is that of a model on the hub or in the package, not of something here."""
    return registered_name(name) is None and not Path(name).expanduser().exists()


# --- what is served --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
    """An adapter or model of the settings.

    Args:
        name: as clients ask for it.
        source: as the settings name it.
        base: the model that it stands on, or is.
        loaded: what the engine is to load for it; None: the base itself.
        task: what it was trained to answer; None: nobody says it.
        chooses: whether its answers are labels.
    """

    name: str
    source: str
    base: str
    loaded: Served | None
    task: TaskSpec | None
    chooses: bool

    @property
    def template(self) -> str:
        """The chat template that was trained; empty: that of the base."""
        return self.task.chat_template if self.task else ""


def _open(name: str, source: str, task_of: str = "") -> _Opened:
    target = open_with_task(source, task=task_of)
    local, task = target.local, target.task
    if local is None:
        raise UserError("Only models on this machine can be adapters", where=source, next_step="name a run or artifact")
    loaded = Served(str(local.trained), task.chat_template if task else "") if local.trained is not None else None
    return _Opened(name, source, local.base, loaded, task, target.scores_labels)


def _open_gguf(name: str, source: str, base: str) -> _Opened:
    """A GGUF file: the base model, or an adapter on it."""
    from tuneloop.inference.engines.llamacpp import gguf_file

    place = local_name(source)
    if Path(place).is_dir() and not list(Path(place).glob("*.gguf")):
        raise UserError(
            "llama.cpp serves GGUF files, and this is none", where=source,
            next_step=f"tuneloop export {source} --format gguf-lora, or take engine=tuneloop",
        )  # fmt: skip
    file = gguf_file(place)
    task = read_task_of(file.parent)
    loaded = None if place == base else Served(str(file), task.chat_template if task else "")
    return _Opened(name, source, base, loaded, task, bool(task and task.answer == "choice" and task.labels))


@dataclass(frozen=True)
class Deployment:
    """What a server is made of before it is started: the engine, and what becomes of it."""

    engine: ServingEngine
    opened: Sequence[_Opened]
    base: str
    candidates: Mapping[str, _Opened] = field(default_factory=dict)  # of experiments, by their names
    unproved: set[str] = field(default_factory=set)  # candidates that did not answer as in their evaluation

    def adapter_of(self, opened: _Opened) -> str:
        """The hash by which a started engine knows an adapter; `base` of the base itself."""
        hashes = {facts.source: hash_ for hash_, facts in self.engine.adapters.items()}
        return hashes[opened.loaded.source] if opened.loaded is not None else BASE

    def models(self) -> dict[str, ServedModel]:
        """The models by name, once the engine is started: those that were tuned first, then the base."""
        template = _template_of(self.base)
        found = {each.name: _served(each, self.adapter_of(each), template) for each in self.opened}
        if all(model.adapter != BASE for model in found.values()):
            name = Path(self.base).name if Path(self.base).exists() else self.base
            found.setdefault(name, ServedModel(name, source=self.base, decode=template.decode if template else None))
        return found

    def candidate_models(self) -> dict[str, ServedModel]:
        """The models of experiments by the names of these, once the engine is started."""
        template = _template_of(self.base)
        return {name: _served(each, self.adapter_of(each), template) for name, each in self.candidates.items() if name not in self.unproved}  # fmt: skip


def _template_of(base: str) -> Template | None:
    """A base model's tokenizer and template, where they are here."""
    from tuneloop.inference.engines.llamacpp import gguf_file, template_of
    from tuneloop.inference.targets.gguf import as_gguf
    from tuneloop.models.names import resolve
    from tuneloop.models.template import load_template

    try:
        return template_of(gguf_file(base)) if as_gguf(base) is not None else load_template(resolve(base))
    except (UserError, OSError, ValueError):
        return None


def _served(each: _Opened, adapter: str, template: Template | None) -> ServedModel:
    from tuneloop.inference.engines import with_template
    from tuneloop.inference.scoring import label_ids

    task = each.task
    labels = tuple(task.labels or ()) if task is not None and each.chooses else ()
    tokens: dict[str, int] = {}
    if labels and template is not None:
        ids = label_ids(with_template(template, each.template), labels, [{"role": "user", "content": "x"}])
        tokens = {label: len(own) for label, own in zip(labels, ids, strict=True)}
    return ServedModel(
        each.name, adapter, release=_release(each.source) if registered_name(each.source) else "",
        labels=labels, label_tokens=tokens,
        max_new_tokens=task.max_new_tokens if task else None, read=prompt_of(task) if task else None,
        source=each.source, decode=template.decode if template else None,
    )  # fmt: skip


def _release(source: str) -> str:
    from tuneloop.workflows.registry import open_registry, version_of

    model, _ = registered_name(source) or (source, "")
    return f"{model}/{version_of(open_registry(), source).version}"


def deployment_of(
    config: ServeConfig, candidates: Mapping[str, Candidate] | None = None, say: Say = silent
) -> Deployment:
    """The engine with all that it is to load; nothing is loaded yet.

    Args:
        candidates: of experiments, by their names. One that can't be served with the rest is left out.
        say: told of such.

    Raises:
        UserError: something is missing, or the adapters stand on different base models.
    """
    from tuneloop.inference.engines.local import LocalEngine
    from tuneloop.inference.targets.gguf import as_gguf

    if config.engine not in ("auto", "tuneloop", "llama.cpp"):
        raise UserError(
            f"No such engine {config.engine!r:.80}", where="engine", next_step="choose auto, tuneloop or llama.cpp"
        )
    base, served = served_by(config)
    named = base or served[0].source
    if config.engine == "llama.cpp" or (config.engine == "auto" and as_gguf(local_name(named)) is not None):
        return _llamacpp(config, local_name(named), candidates or {}, say)
    opened_ = [_open(each.name, each.source, each.task) for each in served]
    base = base or opened_[0].base
    strangers = [each for each in opened_ if each.base != base]
    if strangers:
        raise UserError(
            f"{strangers[0].name} stands on {strangers[0].base}, and the others on {base}",
            where="adapters", next_step="start a server for each base model",
        )  # fmt: skip
    whole = next((each for each in opened_ if each.loaded is None), None)
    extra = _candidates(candidates or {}, lambda candidate: _open(candidate.model, candidate.source), base, say)
    opened_, extra = _with_one_source(opened_, extra)
    adapters = _loaded(opened_, extra.values())
    engine = LocalEngine(Served(base, whole.template if whole else ""), adapters, slots=config.slots)
    return Deployment(engine, opened_, base, extra)


def _with_one_source(
    opened_: Sequence[_Opened], candidates: Mapping[str, _Opened]
) -> tuple[list[_Opened], dict[str, _Opened]]:
    """The same with one source for equal weights: a merged model of several tasks, a copy of a run.

    Engines know weights by their hash and load them once.
    """
    from tuneloop.combine.adapters import WEIGHTS

    first: dict[str, Served] = {}

    def one(each: _Opened) -> _Opened:
        if each.loaded is None:
            return each
        place = Path(each.loaded.source)
        file = place / WEIGHTS if place.is_dir() else place
        digest = sha256_file(file) if file.is_file() else str(place)
        return replace(each, loaded=first.setdefault(digest, each.loaded))

    return [one(each) for each in opened_], {name: one(each) for name, each in candidates.items()}


def _loaded(*groups: Iterable[_Opened]) -> list[Served]:
    """What an engine is to load, each once."""
    found = [each.loaded for group in groups for each in group if each.loaded is not None]
    return list({served.source: served for served in found}.values())


def _candidates(
    candidates: Mapping[str, Candidate], open_one: Callable[[Candidate], _Opened], base: str, say: Say
) -> dict[str, _Opened]:
    """Candidates that can be served on a base; an experiment must not keep a server from its work."""
    found = {}
    for name, candidate in candidates.items():
        try:
            opened_ = open_one(candidate)
        except UserError as error:
            say(f"experiment {name}: the candidate can't be served: {error.what}")
            continue
        if opened_.base != base:
            say(f"experiment {name}: the candidate stands on {opened_.base}, and the server on {base}")
        else:
            found[name] = opened_
    return found


def _llamacpp(config: ServeConfig, base: str, candidates: Mapping[str, Candidate], say: Say) -> Deployment:
    """llama.cpp with a GGUF file as the base and LoRA files on it."""
    from tuneloop.inference.engines.llamacpp import LlamaCppEngine, LlamaCppSettings

    opened_ = [_open_gguf(each.name, each.source, base) for each in served_by(config)[1]]
    whole = next((each for each in opened_ if each.loaded is None), None)
    template = whole.template if whole else ""
    extra = _candidates(candidates, lambda each: _open_gguf(each.model, each.source, base), base, say)
    opened_, extra = _with_one_source(opened_, extra)
    adapters = _loaded(opened_, extra.values())
    settings = LlamaCppSettings(slots=config.slots, context=config.context, log=Path(config.folder) / "llamacpp.log")
    return Deployment(LlamaCppEngine(Served(base, template), adapters, settings), opened_, base, extra)


def prompt_of(task: TaskSpec) -> ReadPrompt:
    """The function from a client's turns to the prompt that a model was trained on.

    A single turn of the user is a record of the training data: its text is repaired, put into the template and set under
    the instruction, as `predict` does. Where training took several columns, it is a JSON object with them. Turns with a
    system turn, or several, are a conversation: the instruction is added where they have none.
    """
    whole = prompt_reader(task, [{"messages": [{"role": "user", "content": "x"}]}])
    single = None
    if not task.is_conversation and len(task.inputs) == 1:
        single = prompt_reader(task, [{"text": "x"}], column="text")
    columns = prompt_reader(task, [dict.fromkeys(task.inputs, "x")]) if len(task.inputs) > 1 else None

    def read(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Prompt:
        alone = len(messages) == 1 and messages[0]["role"] == "user"
        record: dict[str, Any] = {"messages": [dict(turn) for turn in messages]}
        if tools:
            record["tools"] = [dict(tool) for tool in tools]
        reader = whole
        if alone and columns is not None:
            reader, record = columns, _columns(messages[0]["content"], task.inputs)
        elif alone and single is not None:
            reader, record = single, {"text": messages[0]["content"]}
        made = reader(record)
        if isinstance(made, Rejection):
            raise ValueError(f"{made.reason}: {made.detail}")
        return Prompt(made.messages, made.tools, made.continues)

    return read


def _columns(text: str, names: Sequence[str]) -> dict[str, Any]:
    shown = ", ".join(f'"{name}": "..."' for name in names)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"This model was trained on several columns: write them as JSON, {{{shown}}}")
    return value


# --- the server ------------------------------------------------------------------------------------


def gateway_of(config: ServeConfig, deployment: Deployment, say: Say) -> Gateway:
    """The gateway before a started engine, with its store open.

    Raises:
        UserError: the store can't be opened, or a name is taken twice.
    """
    folder = Path(config.folder)
    store = StoreWriter(folder, config.log.content, _redact() if config.log.content == "redacted" else None, say)
    store.start()
    admission = Admission(
        min(config.slots, deployment.engine.slots), config.limits.waiting, config.objective.admission == "refuse"
    )
    ledger = Ledger(_spent(folder))
    models = deployment.models()
    gateway = Gateway(
        deployment.engine, models, config, Keyring(folder), ledger, store, admission,
        candidates=deployment.candidate_models(),
    )  # fmt: skip
    if config.router:
        use_router(gateway, say)
    return gateway


def _redact() -> Callable[[Any], Any]:
    from tuneloop.data.config import PersonalConfig
    from tuneloop.data.pii import Redactor

    return Redactor(PersonalConfig(mode="placeholder"))


def _spent(folder: Path) -> dict[str, float]:
    """Dollars by key, from the store."""
    with opened(folder) as store:
        rows = store.execute("SELECT key, SUM(usd) FROM requests WHERE key != '' GROUP BY key").fetchall()
    return {key: usd or 0.0 for key, usd in rows}


def serve(config: ServeConfig, say: Say, *, ready: Callable[[str, Gateway], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        ready: told the address once requests are taken.

    Raises:
        UserError: something is missing, the port is taken, or another server works in the folder.
    """
    folder = Path(config.folder)
    with lock_folder(folder), _socket(config) as listening:
        asyncio.run(_serve(config, listening, say, ready))


@contextlib.contextmanager
def _socket(config: ServeConfig) -> Any:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host, config.port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise UserError(
            f"Can't listen on {config.host}:{config.port}: {error.strerror or error}",
            where="host, port", next_step="choose another port: port=8101, or port=0 for a free one",
        ) from None  # fmt: skip
    try:
        yield listening
    finally:
        listening.close()


async def _serve(
    config: ServeConfig, listening: socket.socket, say: Say, ready: Callable[[str, Gateway], None] | None
) -> None:
    import uvicorn

    from tuneloop.serve.app import make_app
    from tuneloop.serve.batch_api import Batches

    sys.setswitchinterval(0.0005)  # threads that compute or write give way to the event loop soon
    experiments = Experiments(Path(config.folder), say)
    deployment = deployment_of(config, experiments.candidates(), say)
    async with _started(config, deployment, say) as gateway, experiments.followed_by(gateway):
        batches = Batches(gateway, Path(config.folder) / "batch", say) if config.batch.enabled else None
        settings = uvicorn.Config(
            make_app(gateway, batches.routes() if batches else ()), log_level="warning", access_log=False, lifespan="off", server_header=False,
            date_header=False, timeout_keep_alive=30, timeout_graceful_shutdown=max(int(config.limits.drain_seconds), 1),
        )  # fmt: skip
        server = uvicorn.Server(settings)
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        port = listening.getsockname()[1]
        address = f"http://{'[::1]' if config.host == '::' else config.host}:{port}"
        _write_state(config, gateway, address)
        running = asyncio.create_task(server._serve([listening]))
        while not server.started and not running.done():
            await asyncio.sleep(0.01)
        if batches is not None and (left := batches.resume()):
            say(f"batch     goes on with {left} of an earlier server")
        if ready is not None:
            ready(address, gateway)
        await asyncio.wait((running, asyncio.create_task(stopping.wait())), return_when=asyncio.FIRST_COMPLETED)
        gateway.admission.close()
        if gateway.admission.active:
            say(f"stopping  {len(gateway.admission.active)} requests get {config.limits.drain_seconds:g} s to end")
        if batches is not None:
            await batches.stop()
        await gateway.copies.stop()
        server.should_exit = True
        await running


@contextlib.asynccontextmanager
async def _started(config: ServeConfig, deployment: Deployment, say: Say) -> AsyncIterator[Gateway]:
    """A gateway whose engine is started; both end with the block."""
    try:
        await deployment.engine.start()
        await _prove(config, deployment, say)
        gateway = gateway_of(config, deployment, say)
        try:
            yield gateway
        finally:
            await asyncio.to_thread(gateway.store.stop)
    finally:
        await deployment.engine.stop()


async def _prove(config: ServeConfig, deployment: Deployment, say: Say) -> None:
    """Ask rows of each model's evaluation before anybody else asks.

    Raises:
        UserError: an adapter is not applied, or answers other than it did in the evaluation.
    """
    from tuneloop.inference.engines.canary import prove
    from tuneloop.workflows.canaries import canaries_of

    for each in deployment.opened if config.canaries else ():
        adapter = deployment.adapter_of(each)
        rows = await asyncio.to_thread(canaries_of, each.source, adapter, each.task, config.canaries)
        for proof in await prove(deployment.engine, rows):
            say(f"proof     {each.name}: {proof.same} of {proof.n} test rows are answered as in the evaluation")
    for name, each in deployment.candidates.items() if config.canaries else ():
        rows = await asyncio.to_thread(
            canaries_of, each.source, deployment.adapter_of(each), each.task, config.canaries
        )
        try:
            for proof in await prove(deployment.engine, rows):
                say(
                    f"proof     candidate of {name}: {proof.same} of {proof.n} test rows are answered as in the evaluation"
                )
        except UserError as error:
            deployment.unproved.add(name)
            say(f"experiment {name}: the candidate meets nobody: {error.what}")


def _write_state(config: ServeConfig, gateway: Gateway, address: str) -> None:
    models = [
        {"name": m.name, "adapter": m.adapter, "release": m.release or None, "source": m.source}
        for m in gateway.models.values()
    ]
    state = {
        "version": 1, "pid": os.getpid(), "address": address, "started": utc_now(), "base": gateway.engine.base,
        "engine": gateway.engine.name, "models": models, "config": config,
    }  # fmt: skip
    write_json(Path(config.folder) / STATE, state)


def first_steps(address: str, gateway: Gateway) -> list[str]:
    """What is printed when a server is ready: address, models, a line to try it."""
    name = next(iter(gateway.models))
    key = ' -H "Authorization: Bearer $KEY"' if gateway.key_required else ""
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Hello"}]})
    lines = [
        f"serving   {', '.join(gateway.models)} on {gateway.engine.name}: {address}",
        f"try       curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'",
    ]
    if gateway.key_required and not gateway.keyring.used:
        lines.append(f"key       a key is needed and there is none: tuneloop keys add NAME -f {gateway.config.folder}")
    return lines
