"""Models: versions of the registry, where each comes from, what the gate said; promoted and rolled back from here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from markupsafe import Markup
from starlette.requests import Request

from tuneloop.core.errors import UserError
from tuneloop.evaluation.metrics import metric_text
from tuneloop.improve.report import LineageNode, lineage_chart
from tuneloop.registry import RegisteredModel, RegisteredVersion, registry_file
from tuneloop.serving.store import opened
from tuneloop.web.commands import REGISTRY_FILE, command_line, reading, run_words, stamp_of
from tuneloop.web.sources import BY_NAME, Sources
from tuneloop.web.stores import required, store_key

DRAWN = 8  # versions in the picture, the newest ones and those with an alias
COLUMNS = ("data set", "run", "artifact", "version", "in use as", "answers")
LATEST = 20_000  # requests of a store whose releases are counted
MOST_STORES = 5
WORDS = ["models", "list"]
STEPS = ("promote", "rollback")


def places(sources: Sources) -> list[Path]:
    """Folders with a registry, in which `tuneloop models` reads it; the first folder where there is none."""
    found = [registry.path.parent for registry in sources.all("registry")]
    return found or [sources.index.folders[0].resolve()]


def show(request: Request, sources: Sources) -> dict[str, Any]:
    """What the page shows. The registry is read by a command: MLflow takes seconds, and much memory."""
    there = {store_key(str(directory)): directory for directory in places(sources)}
    key = request.query_params.get("registry") or next(iter(there))
    if key not in there:
        raise UserError("This registry is not there any more", where=key[:40], next_step="go to another page and back")
    folder = there[key]
    files = folder / REGISTRY_FILE, registry_file() or folder / REGISTRY_FILE  # a server's changes are not seen
    last = reading(WORDS, folder, stamp_of(*files), wait=60.0 if sources.files is not None else 0.05)
    models = [RegisteredModel.model_validate(value) for value in last.record.get("models", [])]
    served = _served(sources) if models else {}
    return {
        "registries": {name: str(other) for name, other in there.items()} if len(there) > 1 else {}, "registry": key,
        "uri": last.record.get("registry", ""), "fault": last.fault, "read": bool(last.record),
        "busy": "The registry is being read." if last.busy else "",
        "models": [_shown(model, served, sources) for model in models],
    }  # fmt: skip


def _shown(model: RegisteredModel, served: Mapping[str, int], sources: Sources) -> dict[str, Any]:
    return {
        "model": model, "name": model.name, "picture": picture(model, served, sources),
        "rows": [(version, _metric(version)) for version in model.versions],
        "champion": model.aliases.get("champion", ""), "previous": model.aliases.get("previous", ""),
        "seen": model.history[-1].id if model.history else "", "history": model.history[::-1],
        "promote": command_line(["models", "promote", model.name, "VERSION"]),
        "rollback": command_line(["models", "rollback", model.name]),
    }  # fmt: skip


def _metric(version: RegisteredVersion) -> tuple[str, str, str]:
    """Name, value and interval of the metric that decides."""
    lineage = version.lineage
    name = lineage.primary if lineage.primary in lineage.metrics else next(iter(lineage.metrics), "")
    value = lineage.metrics.get(name) or {}
    if value.get("value") is None:
        return "", "", ""
    low, high = value.get("low"), value.get("high")
    bounds = "" if low is None or high is None else f"{metric_text(low, name)} to {metric_text(high, name)}"
    return name, metric_text(value["value"], name), bounds


def _served(sources: Sources) -> dict[str, int]:
    """Release -> how many of the latest requests of each store it answered; a store that can't be read says nothing."""
    query = "SELECT release FROM requests WHERE shadow IS NULL ORDER BY time DESC LIMIT ?"
    counts: Counter[str] = Counter()
    for location in sources.stores[:MOST_STORES]:
        with suppress(UserError), opened(location) as store:
            counts.update(release for (release,) in store.execute(query, [LATEST]).fetchall() if release)
    return counts


def picture(model: RegisteredModel, served: Mapping[str, int], sources: Sources) -> Markup:
    """The lineage of a model's versions, from the data set to the answers."""
    columns: dict[str, dict[str, LineageNode]] = {name: {} for name in COLUMNS}
    edges: dict[tuple[str, str], None] = {}
    runs = {found.path.resolve(): found.key for found in sources.all("run")}
    for at, version in enumerate(model.versions):
        if at >= DRAWN and not version.aliases:
            continue
        last = ""
        for column, (id_, node) in zip(COLUMNS, _origin(version, runs, sources), strict=False):
            if id_:
                name = f"{column} {id_}"
                columns[column][name] = node
                if last:
                    edges[last, name] = None
                last = name
        for alias in version.aliases:
            tone = "good" if alias == "champion" else ""
            columns["in use as"][f"alias {alias}"] = LineageNode(alias, f"{model.name}@{alias}", tone=tone)
            edges[last, f"alias {alias}"] = None
        release = f"{model.name}/{version.version}"
        if count := served.get(release, 0):
            node = LineageNode(
                f"version {version.version}", f"{count:,} of the latest", sources.url("traffic", release=release)
            )
            columns["answers"][release] = node
            edges[f"alias {version.aliases[0]}" if version.aliases else last, release] = None
    return lineage_chart([(name, columns[name]) for name in COLUMNS], list(edges), f"Lineage of {model.name}")


def _origin(
    version: RegisteredVersion, runs: Mapping[Path, str], sources: Sources
) -> Iterator[tuple[str, LineageNode]]:
    """Id and box of what a version came from, and of the version."""
    lineage = version.lineage
    rows = f"{lineage.rows:,} rows of {lineage.split}" if lineage.rows else ""
    yield lineage.dataset, LineageNode(lineage.dataset, rows)
    key = runs.get(Path(lineage.run_folder).resolve(), "") if lineage.run_folder else ""
    address = sources.url("run", key=key) if key and "run" in BY_NAME else ""
    yield lineage.run, LineageNode(lineage.run, f"{lineage.method} {_metric(version)[1]}", address)
    yield lineage.artifact, LineageNode(lineage.artifact, f"{lineage.format} {lineage.quantisation}")
    tone = {"pass": "good", "fail": "bad"}.get(lineage.gate, "")
    gate = f"gate {lineage.gate}, {version.created[:10]}"
    yield version.version, LineageNode(f"version {version.version}", gate, tone=tone)


def act(request: Request, sources: Sources, form: dict[str, str]) -> str:
    """Promote a version, or go back to the one before, as `tuneloop models` does, with the same checks."""
    there = {store_key(str(directory)): directory for directory in places(sources)}
    folder = there.get(form.get("registry", ""))
    step, name = form.get("step", ""), required(form, "name", "The model")
    if folder is None or step not in STEPS:
        raise UserError("There is no such registry or step", next_step="load the page again")
    _, now = run_words([*WORDS, name], folder)
    history = RegisteredModel.model_validate(now["models"][0]).history
    last = history[-1] if history else None
    if (last.id if last else "") != form.get("seen", ""):
        message = f"{name} has no history any more"
        if last:
            message = f"{last.who} has changed {name} meanwhile: {last.action} version {last.model_version}"
        raise UserError(
            message, where=name, next_step="go back, load the page again, and see whether you still want it"
        )
    arguments = " ".join(filter(None, (form.get("why", "").strip(), sources.who and f"({sources.who}, on the page)")))
    sentence = ["models", step, name, *([required(form, "version", "The version")] if step == "promote" else [])]
    sentence += [
        *(["--why", arguments] if arguments else []),
        *(["--force", form["force"]] if form.get("force", "").strip() else []),
    ]
    _, record = run_words(sentence, folder)
    champion = dict(record.get("aliases") or {}).get("champion", "")
    return sources.url("models", registry=form["registry"], said=f"{name}@champion is version {champion}")
