"""The model registry: opened as MLflow's variables say, with the gate's verdict where a run is available."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from tuneloop.core.errors import UserError
from tuneloop.core.files import cache_folder, content_hash, inside, lock_folder, sync_folder, write_bytes
from tuneloop.core.ui import say
from tuneloop.core.urls import masked
from tuneloop.evaluation.gate import gate_for_release
from tuneloop.records.artifact import ARTIFACT, EVALS, FLOATS, GateRecord
from tuneloop.records.evaluation import EVALUATION, GateResult
from tuneloop.records.record import read_record
from tuneloop.records.run import RunManifest
from tuneloop.registry import versions as models
from tuneloop.registry.integrity import read_artifact
from tuneloop.registry.record import Lineage, RegisteredModel, RegisteredVersion
from tuneloop.track import KINDS, QUICK_AND_QUIET

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

NAMED = re.compile(r"(?:models:/)?([A-Za-z0-9][\w.-]*)@([A-Za-z][\w-]*|\d+)|models:/([A-Za-z0-9][\w.-]*)/(\d+)")
# Else MLflow prints addresses on stdout and bars on stderr.
_SILENT = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}


def registry_uri() -> str:
    """`MLFLOW_REGISTRY_URI`, else `MLFLOW_TRACKING_URI`, else `mlflow.db` in the current folder."""
    uri = os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    return uri or f"sqlite:///{Path('mlflow.db').resolve()}"


def registry_file() -> Path | None:
    """SQLite's file of the registry, without the options of its URI; None: a server, or another database."""
    uri = registry_uri()
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def open_registry(*, create: bool = False) -> models.Registry:
    """The registry that the environment names; `create`: make a database where there is none, else an error.

    Raises:
        UserError: there is none, MLflow is not installed, or it can't be opened.
    """
    uri = registry_uri()
    file = registry_file()
    if file is not None and not create and not file.is_file():
        step = "tuneloop models register ARTIFACT --name NAME makes one; MLFLOW_REGISTRY_URI names another"
        raise UserError("There is no registry here", where=str(file), next_step=step)
    for name, value in (QUICK_AND_QUIET | _SILENT).items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it prints tracebacks of what it raises as well
    logging.getLogger("alembic").setLevel(logging.CRITICAL)
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise UserError("The registry needs MLflow", where=masked(uri), next_step=KINDS["mlflow"].install) from None
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    with models.registry_errors(uri):
        tracking = os.environ.get("MLFLOW_TRACKING_URI") or uri

        def client() -> MlflowClient:
            return MlflowClient(tracking_uri=tracking, registry_uri=uri)

        if file is not None:
            _bring_up_to_date(file, client)
        return models.Registry(client(), uri)


def _bring_up_to_date(file: Path, client: Callable[[], MlflowClient]) -> None:
    """Make the tables of a file that has none, or upgrade those of an earlier MLflow, one process at a time.

    An upgrade is done in a copy, which then takes the file's place: MLflow does so itself in some cases and refuses in
    others, without a transaction: a kill would leave half of it.
    """
    from mlflow.store.db import utils

    def revision() -> str:
        with contextlib.closing(sqlite3.connect(file)) as base, contextlib.suppress(sqlite3.OperationalError):
            return str((base.execute("SELECT version_num FROM alembic_version").fetchone() or [""])[0])
        return ""  # no tables yet

    latest = utils._get_latest_schema_revision()
    if file.is_file() and revision() == latest:
        return
    folder = cache_folder() / "registry" / content_hash(str(file.resolve()))[:16]
    with lock_folder(folder, waiting=lambda holder: say(f"waiting   {holder} makes or upgrades {file}")):
        if not file.is_file() or not revision():
            client().search_registered_models(max_results=1)  # MLflow makes the tables on the way
        if (before := revision()) != latest:
            _upgrade(file, before)


def _upgrade(file: Path, before: str) -> None:
    from mlflow.store.db import utils

    half, copy = file.with_name(f"{file.name}.tmp"), file.with_name(f"{file.stem}.{before}.backup")
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as writing:
        writing.execute("BEGIN IMMEDIATE")  # no one else writes meanwhile
        half.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(file)) as base, contextlib.closing(sqlite3.connect(half)) as target:
            base.backup(target)
        write_bytes(copy, half.read_bytes())
        engine = utils.create_sqlalchemy_engine(f"sqlite:///{half}")
        try:
            utils._upgrade_db(engine)
        finally:
            engine.dispose()
        os.replace(half, file)
        sync_folder(file.parent)
    say(f"registry  MLflow's tables are brought up to date; as they were: {copy}")


def register_artifact(folder: Path, name: str, *, run: Path | None = None, reason: str = "") -> RegisteredVersion:
    """See `registry.versions.register`; `run` is by default that in `runs/`, whatever its folder's name is now."""
    manifest = read_artifact(folder)
    if run is None:
        run = find_run(manifest.run.id, manifest.run.key)
    elif not is_run(run, manifest.run.key):
        message = f"This is not the run of the artifact, {manifest.run.id}"
        raise UserError(message, where=str(run), next_step="leave --run out")
    return models.register(lambda: open_registry(create=True), folder, name, run=run, reason=reason)


def promote_version(name: str, version: str = "", *, force: str = "", reason: str = "") -> RegisteredModel:
    """See `registry.versions.promote`; the gate's last word on the run counts, else that on the artifact.

    Args:
        force: why a gate that is not green, or has not judged, is overruled; empty: it is not.

    Raises:
        UserError: a reason of blanks, or whatever `registry.versions.promote` refuses.
    """
    if force and not force.strip():
        raise UserError("The reason is empty", where="--force", next_step="say why, for the history: --force 'REASON'")

    def ask_gate(target: RegisteredVersion) -> GateRecord:
        gate = gate_of(target, force=bool(force))
        verdict = gate.status if gate.status != "none" else "none has judged it"
        say(f"gate      {verdict}{', overruled' if gate.forced else ''}")
        return gate

    return models.promote(open_registry(), name, version, ask_gate=ask_gate, overrule=force.strip(), reason=reason)


def gate_of(version: RegisteredVersion, *, force: bool) -> GateRecord:
    """What the gate says of a version: the last word where its run is here, else what was known at its export.

    Weights in fewer bits than the run's are other weights: of them only a verdict on their own metrics counts.

    Raises:
        UserError: it is not green, or no gate has judged, and `force` is not given.
    """
    lineage = version.lineage
    run = run_folder_of(version)
    folder = run / EVALS / lineage.artifact if run is not None else None
    if folder is not None and (folder / GateResult.file).is_file():
        gate = _verdict(folder, force)
    elif is_quantised(lineage) and not (run is None and lineage.judged):
        gate = GateRecord()
    elif run is not None:
        gate = _verdict(run, force)
    else:
        gate = GateRecord.model_validate({"status": lineage.gate})
        if lineage.gate not in ("pass", "none"):
            if not force:
                message = f"The gate said {lineage.gate} when this version was exported"
                where = f"version {version.version}, suite {lineage.suite}"
                step = "promote another version, or overrule it with --force REASON"
                raise UserError(message, where=where, next_step=step)
            gate = gate.model_copy(update={"forced": True})
    if gate.status != "none":
        return gate
    if force:
        return gate.model_copy(update={"forced": True})
    target, quantised = str(run) if run is not None else f"runs/{lineage.run}", ""
    if is_quantised(lineage):
        source_url, quantised = urlparse(version.source), f" in {lineage.quantisation}"
        target = unquote(source_url.path) if source_url.scheme in ("", "file") else f"artifacts/{lineage.artifact}"
    message, where = f"No gate has judged this version{quantised}", f"version {version.version}, {lineage.artifact}"
    gate_it = f"tuneloop gate {target} --against BASE --suite suite.yaml (gate --init writes a first one)"
    raise UserError(message, where=where, next_step=f"{gate_it}; or promote it without a gate: --force REASON")


def _verdict(judged: Path, force: bool) -> GateRecord:
    """What the gate last said of a run or an artifact's evaluation; `force` takes any answer."""
    try:
        return GateRecord.model_validate(gate_for_release(judged, force=force))
    except UserError as error:
        step = error.next_step.replace("--force", "--force REASON")
        raise UserError(error.what, where=error.where, next_step=step) from None


def is_quantised(lineage: Lineage) -> bool:
    """Whether the weights have fewer bits than those of the run."""
    return bool(lineage.quantisation) and lineage.quantisation.upper() not in FLOATS


# --- names -------------------------------------------------------------------------------------


def registered_name(name: str) -> tuple[str, str] | None:
    """Model, and alias or version, of `NAME@ALIAS`, `NAME@2` or `models:/NAME/2`; None: it is another name."""
    match = NAMED.fullmatch(name)
    if match is None or Path(name).exists():
        return None
    return match[1] or match[3], match[2] or match[4]


def version_of(registry: models.Registry, name: str) -> RegisteredVersion:
    """The version that `NAME@ALIAS` means."""
    model, alias = registered_name(name) or (name, models.CHAMPION)
    return models.version_named(models.read_settled(registry, model), alias)


def local_name(name: str) -> str:
    """The folder of a registered version's artifact; other names as they are; UserError: it is missing."""
    if registered_name(name) is None:
        return name
    registry = open_registry()
    version = version_of(registry, name)
    folder = models.local_artifact(registry, version)
    say(f"registry  {name} is version {version.version}: {folder}")
    return str(folder)


def run_folder_of(version: RegisteredVersion) -> Path | None:
    """The folder of a version's run, where it is still there and still holds that run."""
    lineage = version.lineage
    folder = Path(lineage.run_folder)
    if not lineage.run_folder:
        return None
    return folder if is_run(folder, lineage.run_key) else find_run(lineage.run, lineage.run_key, folder.parent)


def find_run(id_: str, key: str, *places: Path) -> Path | None:
    """The folder of a finished run by the key in its `run.json`, in `runs/` or `places`; it may be renamed."""
    parents = [folder for folder in dict.fromkeys([Path("runs"), *places]) if folder.is_dir()]
    folders = [folder for directory in parents for folder in sorted(directory.iterdir())]
    for folder in sorted(folders, key=lambda folder: folder.name != id_):
        with contextlib.suppress(UserError):  # another run, and damaged
            if is_run(folder, key):
                return folder
    return None


def is_run(folder: Path, key: str) -> bool:
    """Whether a folder holds the finished run with this key; UserError: its `run.json` can't be read."""
    return (folder / RunManifest.file).is_file() and read_record(RunManifest, folder).key == key


def evaluation_of_artifact(folder: Path) -> Path:
    """Where an artifact's own evaluation is, in its run's folder; UserError: it was not measured, or no run is here."""
    manifest = read_artifact(folder)
    directory = find_run(manifest.run.id, manifest.run.key, folder.resolve().parent.parent / "runs")
    if directory is not None and (inside(directory / EVALS, manifest.id) / EVALUATION).is_file():
        return directory / EVALS / manifest.id
    message = "The evaluation of this artifact is not here" if manifest.measured else "This artifact was not measured"
    step = f"it was made from run {manifest.run.id}: name the run, or evaluate the artifact and name that folder"
    raise UserError(message, where=str(folder), next_step=step)


def evaluation_place(location: str) -> str:
    """The folder with the evaluation of a registered version or an artifact; any other place as it is.

    Raises:
        UserError: no such version, an artifact without one, or neither its run's folder nor MLflow has it.
    """
    if (Path(location) / ARTIFACT).is_file():
        return str(evaluation_of_artifact(Path(location)))
    if registered_name(location) is None:
        return location
    registry = open_registry()
    version = version_of(registry, location)
    folder = run_folder_of(version)
    evaluation = folder / EVALS / version.lineage.artifact if folder else None
    if evaluation is not None and (evaluation / EVALUATION).is_file():
        return str(evaluation)  # of the artifact's weights, where they were measured
    folder = folder or models.fetch_run_files(registry, version, (EVALUATION, "samples.jsonl"))
    if not (folder / EVALUATION).is_file():
        step = "tuneloop evaluate it, or register the artifact with --run FOLDER"
        raise UserError("The evaluation of this version is not available", where=location, next_step=step)
    return str(folder)
