"""Versions of a model in MLflow's registry, and which of them is in use: aliases `candidate`, `champion`, `previous`.

A change may move several aliases, and MLflow has no transaction over them. So a change is first written down as a whole
(the tag `tuneloop.pending`), then done, then moved to the history. The next command finishes what a killed one left
pending.
"""

from __future__ import annotations

import getpass
import json
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from tuneloop.core.errors import UserError
from tuneloop.core.files import cache_folder, content_hash, lock_folder, plain, read_json_object, sha256_file
from tuneloop.core.foreign import parse_json
from tuneloop.core.ui import say
from tuneloop.core.urls import masked
from tuneloop.records.artifact import ARTIFACT, EVALS, ArtifactManifest, GateRecord
from tuneloop.records.evaluation import GateResult
from tuneloop.records.record import as_record, latest, upgraded
from tuneloop.registry.integrity import read_artifact, read_intact
from tuneloop.registry.record import LINEAGE_STEPS, Action, Lineage, RegisteredModel, RegisteredVersion, RegistryEvent

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

TAG, HISTORY, PENDING = "tuneloop.", "tuneloop.history.", "tuneloop.pending"
CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Registry:
    """An open registry."""

    client: MlflowClient  # of MLflow
    uri: str  # of the registry

    @property
    def is_remote(self) -> bool:
        """Whether it is a server, which can't see this machine's folders."""
        return self.uri.startswith(("http://", "https://", "databricks"))


@contextmanager
def registry_errors(uri: str) -> Iterator[None]:
    """Turn what goes wrong between here and the registry into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # MLflow lets those of SQLAlchemy, of drivers and of its HTTP library through
        text = masked(" ".join(str(error).split()))
        message = f"The registry refuses: {text[:160]}"
        step = "check MLFLOW_REGISTRY_URI (default: mlflow.db in this folder)"
        if "locked" in text:
            message, step = "The registry is locked by another process", "wait until it lets go, then run this again"
        elif "Max retries" in text or "Connection" in text or "could not connect" in text or "timed out" in text:
            message = "The registry can't be reached"
            step = "start its server or set MLFLOW_REGISTRY_URI, then run this again"
        raise UserError(message, where=masked(uri), next_step=step) from error


def read_model(registry: Registry, name: str) -> RegisteredModel:
    """A registered model with its versions and its history; UserError: there is none; it lists the others."""
    with registry_errors(registry.uri):
        model = _find(registry, name)
        if model is None:
            names = [model.name for model in registry.client.search_registered_models(max_results=100)]
            step = f"registered are: {', '.join(names)}"
            if not names:
                step = f"tuneloop models register ARTIFACT --name {name}"
            raise UserError(f"No model {name!r} is registered", where=masked(registry.uri), next_step=step)
        return _read(registry, model)


def read_models(registry: Registry) -> list[RegisteredModel]:
    """All registered models that hold versions of tuneloop's."""
    with registry_errors(registry.uri):
        return [_read(registry, model) for model in _pages(registry.client.search_registered_models)]


def read_settled(registry: Registry, name: str) -> RegisteredModel:
    """See `read_model`; a change of aliases that was interrupted is finished first, where that can be done."""
    model = read_model(registry, name)
    if model.pending is not None:
        with suppress(UserError), _changing(registry, name) as finished:  # else the next command tries again
            return finished
    return model


def version_named(model: RegisteredModel, alias: str) -> RegisteredVersion:
    """The version of an alias or number; UserError: there is none."""
    number = model.aliases.get(alias, alias)
    for version in model.versions:
        if version.version == number:
            return version
    aliases = ", ".join(f"{alias} (version {number})" for alias, number in model.aliases.items())
    step = f"it has {aliases or 'versions ' + ', '.join(version.version for version in model.versions[:5])}"
    raise UserError(f"{model.name} has no version or alias {alias!r}", where=f"{model.name}@{alias}", next_step=step)


def _find(registry: Registry, name: str) -> Any | None:
    from mlflow.exceptions import MlflowException

    try:
        return registry.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _pages(search: Callable[..., Any], **query: Any) -> Iterator[Any]:
    page = search(page_token=None, **query)
    yield from page
    while page.token:
        page = search(page_token=page.token, **query)
        yield from page


def _read(registry: Registry, model: Any) -> RegisteredModel:
    aliases = {alias: str(version) for alias, version in sorted(model.aliases.items())}
    versions = []
    for version in _pages(registry.client.search_model_versions, filter_string=f"name='{model.name}'"):
        number, tags = str(version.version), version.tags
        if TAG + "artifact" not in tags:  # a version of another tool's is not ours to move
            continue
        values = {name.removeprefix(TAG): value for name, value in tags.items() if name.startswith(TAG)}
        values |= {"version": int(values["version"])} if "version" in values else {}
        values = upgraded(values, LINEAGE_STEPS, f"version {number} of {model.name}", masked(registry.uri))
        lineage = {name: values[name] for name in Lineage.model_fields if name in values}
        if "metrics" in lineage:
            lineage["metrics"] = parse_json(lineage["metrics"])
        created = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
        facts = {
            "version": number, "aliases": [alias for alias, target in aliases.items() if target == number],
            "source": version.source, "tracked": version.run_id or "",
            "created": created.isoformat(timespec="seconds"), "lineage": lineage,
        }  # fmt: skip
        versions.append(RegisteredVersion.model_validate(facts))
    versions.sort(key=lambda version: -int(version.version))
    history = [_event(model.tags[key]) for key in sorted(model.tags) if key.startswith(HISTORY)]
    pending = _event(model.tags[PENDING]) if model.tags.get(PENDING) else None
    return RegisteredModel(name=model.name, aliases=aliases, versions=versions, history=history, pending=pending)


def _event(text: str) -> RegistryEvent:
    return as_record(RegistryEvent, parse_json(text), "the registry")


def register(
    opened: Callable[[], Registry], folder: Path, name: str, *, run: Path | None = None, reason: str = ""
) -> RegisteredVersion:
    """Make an artifact the newest version of a model, and its candidate; one that is registered already stays as it is.

    Args:
        opened: opens the registry, which may make it: called once the artifact is known to be whole.
        folder: of the artifact.
        run: the folder of its run, where that is here: the gate reads it when the version is promoted.
        reason: a reason, for the history.

    Raises:
        UserError: no artifact, a changed one, a name that can't be used, or a registry that refuses.
    """
    if not NAME.fullmatch(name):
        step = "use letters, digits, dots, dashes and underscores"
        raise UserError(f"Bad name {name!r}", where="--name", next_step=step)
    manifest = read_intact(folder)
    lineage, registry = _lineage(manifest, folder, run), opened()
    with _changing(registry, name, create=True) as model:
        numbers = (version.version for version in model.versions if version.lineage.manifest == lineage.manifest)
        number = next(numbers, "") or _create(registry, name, folder, lineage)
        registered = any(event.action == "register" and event.model_version == number for event in model.history)
        if not registered:  # new, or its register was killed before it got its alias
            _change(registry, model, _AliasChange("register", number, {CANDIDATE: number}, reason, manifest.gate))
    model = read_model(registry, name)
    version, champion = version_named(model, number), model.aliases.get(CHAMPION)
    if champion and (fault := _other_form(version_named(model, champion), version)):
        say(f"note      {fault.what}: {fault.next_step}")
    return version


AskGate = Callable[[RegisteredVersion], GateRecord]


def promote(
    registry: Registry, name: str, version: str = "", *, ask_gate: AskGate, overrule: str = "", reason: str = ""
) -> RegisteredModel:
    """Make a version the champion, and the champion the previous one.

    Args:
        version: number or alias; empty: the candidate.
        ask_gate: what the gate says of a version; raises a `UserError` where it says no.
        overrule: why the gate is overruled, for the history.

    Raises:
        UserError: no such version, a gate that is not green, an artifact that was changed or that servers of the
            champion can't swap to, or a registry that refuses.
    """
    with _changing(registry, name) as model:
        target = version_named(model, version or CANDIDATE)
        champion = model.aliases.get(CHAMPION)
        if champion == target.version:
            say(f"promote   version {champion} is the champion already")
            return model
        fault = _other_form(version_named(model, champion), target) if champion else None
        if fault is not None and not overrule:
            raise fault
        gate = ask_gate(target)
        if not registry.is_remote:
            read_intact(local_artifact(registry, target))
        change = _AliasChange("promote", target.version, {PREVIOUS: champion, CHAMPION: target.version}, reason, gate)
        _change(registry, model, change, overrule if gate.forced else "")
    return read_model(registry, name)


def _other_form(champion: RegisteredVersion, target: RegisteredVersion) -> UserError | None:
    """Why servers can't swap to a LoRA file from a whole GGUF file: they would need the base's file. None: they can."""
    if (champion.lineage.format, target.lineage.format) != ("gguf", "gguf-lora"):
        return None
    message = f"Version {target.version} is a LoRA file, and version {champion.version}, in use, is a whole GGUF file"
    export = f"tuneloop export {target.lineage.run_folder or 'RUN'} --format gguf"
    step = f"register the run as a whole file, too ({export}); or, if all servers have base=FILE.gguf, --force REASON"
    return UserError(f"{message}: servers can't swap to it", where=target.lineage.artifact, next_step=step)


def rollback(registry: Registry, name: str, *, reason: str = "") -> RegisteredModel:
    """Make the previous version the champion again, and the one before it, by the history, the previous one.

    Raises:
        UserError: there is no previous version, or the registry refuses.
    """
    with _changing(registry, name) as model:
        target = model.aliases.get(PREVIOUS)
        if target is None:
            step, where = f"promote another one: tuneloop models promote {name} VERSION", f"{name}@{PREVIOUS}"
            raise UserError(f"{name} has no previous version to go back to", where=where, next_step=step)
        version_named(model, target)
        earlier = champions(model.history)[:-2]
        aliases = {PREVIOUS: earlier[-1] if earlier else None, CHAMPION: target}
        _change(registry, model, _AliasChange("rollback", target, aliases, reason))
    return read_model(registry, name)


def champions(history: Sequence[RegistryEvent]) -> list[str]:
    """The champions to go back to, oldest first, the one in use last: a promotion adds one, a rollback takes one."""
    stack: list[str] = []
    for event in history:
        if event.action == "promote":
            stack.append(event.model_version)
        elif event.action == "rollback" and stack:
            stack.pop()
    return stack


@contextmanager
def _changing(registry: Registry, name: str, *, create: bool = False) -> Iterator[RegisteredModel]:
    """The model, locked against other processes of this machine, with an interrupted change finished."""
    folder = cache_folder() / "registry" / content_hash([registry.uri, name])[:16]
    with (
        lock_folder(folder, waiting=lambda holder: say(f"waiting   {holder} changes {name}")),
        registry_errors(registry.uri),
    ):
        if create and _find(registry, name) is None:
            registry.client.create_registered_model(name)
        model = read_model(registry, name)
        if model.pending is not None:
            event = model.pending
            say(f"finishing {event.action} of version {event.model_version} by {event.who}, which was interrupted")
            _finish(registry, name, event)
            model = read_model(registry, name)
        yield model


@dataclass(frozen=True)
class _AliasChange:
    """What is to be changed; see `RegistryEvent`."""

    action: Action
    version: str
    aliases: Mapping[str, str | None]
    why: str
    gate: GateRecord = field(default_factory=GateRecord)


def _change(registry: Registry, model: RegisteredModel, change: _AliasChange, overruled: str = "") -> None:
    now = datetime.now(UTC)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user in a container
        user = "unknown"
    values = {
        "id": f"{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(3)}", "action": change.action,
        "model_version": change.version, "aliases": dict(change.aliases), "why": change.why, "gate": change.gate,
        "before": {alias: model.aliases.get(alias) for alias in change.aliases}, "overruled": overruled,
        "who": f"{user}@{socket.gethostname()}", "when": now.isoformat(timespec="seconds"),
    }  # fmt: skip
    event = RegistryEvent.model_validate(values)
    registry.client.set_registered_model_tag(model.name, PENDING, _text(event.to_json()))
    _finish(registry, model.name, event)


def _finish(registry: Registry, name: str, event: RegistryEvent) -> None:
    """Do what an event says; doing it twice changes nothing."""
    client = registry.client
    for alias, version in event.aliases.items():
        if version is not None:
            client.set_registered_model_alias(name, alias, version)
        else:
            client.delete_registered_model_alias(name, alias)
    client.set_registered_model_tag(name, HISTORY + event.id, _text(event.to_json()))
    client.delete_registered_model_tag(name, PENDING)


def _text(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False)


def _lineage(manifest: ArtifactManifest, folder: Path, run: Path | None) -> Lineage:
    evaluation, gate = None if manifest.is_rounded else manifest.evaluation, manifest.gate
    values: dict[str, Any] = {
        "artifact": manifest.id, "manifest": sha256_file(folder / ARTIFACT), "format": manifest.format,
        "quantisation": manifest.quantisation.name if manifest.quantisation else "", "method": manifest.method,
        "base": manifest.base.model, "base_fingerprint": manifest.base.fingerprint,
        "licence": manifest.base.licence or "", "run": manifest.run.id, "run_key": manifest.run.key,
        "run_folder": str(run.resolve()) if run else "", "dataset": manifest.dataset, "gate": gate.status,
        "suite": gate.suite.name if gate.suite else "",
        "judged": "artifact" if run and (run / EVALS / manifest.id / GateResult.file).is_file() else "",
    }  # fmt: skip
    if evaluation:
        values |= {"split": evaluation.split, "rows": evaluation.n, "primary": evaluation.primary}
        values["metrics"] = plain(evaluation.metrics)
    return Lineage.model_validate(values)


def _create(registry: Registry, name: str, folder: Path, lineage: Lineage) -> str:
    """A new version; its files stay where they are, or go to the server's store first."""
    file, tracked = Path(lineage.run_folder) / "tracking.json", None
    if lineage.run_folder and file.is_file():  # its MLflow run, where it was logged to this server or file
        state = read_json_object(file)
        tracked = str(state["run_id"]) if state.get("uri") == registry.uri and state.get("run_id") else None
    source = folder.resolve().as_uri()
    if registry.is_remote:
        say(f"upload    {folder} to the artifact store")
        run_id = tracked
        if run_id is None:
            experiment = registry.client.get_experiment_by_name("tuneloop")
            number = experiment.experiment_id if experiment else registry.client.create_experiment("tuneloop")
            run_id = str(registry.client.create_run(number, run_name=lineage.artifact).info.run_id)
            registry.client.set_terminated(run_id)
        artifact_path = f"artifacts/{lineage.artifact}"
        registry.client.log_artifacts(run_id, str(folder), artifact_path)
        source, tracked = f"{registry.client.get_run(run_id).info.artifact_uri}/{artifact_path}", run_id
    tags = {TAG + key: value if isinstance(value, str) else _text(value) for key, value in lineage if value}
    tags |= {TAG + "version": str(latest(LINEAGE_STEPS))} if LINEAGE_STEPS else {}
    return str(registry.client.create_model_version(name, source, tracked, tags=tags).version)


def local_artifact(registry: Registry, version: RegisteredVersion) -> Path:
    """The folder of a version's artifact: as registered, else fetched; UserError: it is not there, or another is."""
    parts, fault = urlparse(version.source), ""
    folder = Path(unquote(parts.path)) if parts.scheme in ("", "file") else _fetched(registry, version)
    if not folder.is_dir():
        fault = "The files of this version are missing"
    elif read_artifact(folder).id != version.lineage.artifact:
        fault = "Another artifact is where this version's files were"
    if fault:
        step = f"export the run again, or register another artifact (id {version.lineage.artifact})"
        raise UserError(fault, where=version.source, next_step=step)
    return folder


def fetch_run_files(registry: Registry, version: RegisteredVersion, names: Sequence[str]) -> Path:
    """A folder in the cache with those of a version's run's files that MLflow has: `eval.json`, `dataset/...`."""
    from mlflow.exceptions import MlflowException

    folder = cache_folder() / "registry" / f"run-{version.tracked}"
    for name in names if version.tracked else ():
        file = folder / name
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            with suppress(MlflowException, OSError):  # it has no such file; who needs it says so
                copy = Path(registry.client.download_artifacts(version.tracked, name, str(folder)))
                copy.replace(file)  # some versions leave out the folders of its name
    return folder


def _fetched(registry: Registry, version: RegisteredVersion) -> Path:
    folder = cache_folder() / "registry" / f"{version.lineage.artifact}-{version.lineage.manifest[:8]}"
    with lock_folder(folder, waiting=lambda holder: say(f"waiting   {holder} fetches {folder.name}")):
        if not (folder / ARTIFACT).is_file() or sha256_file(folder / ARTIFACT) != version.lineage.manifest:
            from mlflow.artifacts import download_artifacts

            say(f"fetch     {version.source}")
            with registry_errors(registry.uri):
                download_artifacts(artifact_uri=version.source, dst_path=str(folder), tracking_uri=registry.uri)
            inner = folder / Path(urlparse(version.source).path).name
            for path in inner.iterdir() if inner.is_dir() else ():  # some versions put the folder itself there
                path.rename(folder / path.name)
            if inner.is_dir():
                inner.rmdir()
        read_intact(folder)
    return folder
