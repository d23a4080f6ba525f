"""`tuneloop models`: the registry, and what is done with a version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.cli.console import Result, minute
from tuneloop.cli.parameters import argument, screen
from tuneloop.core.flag import flag, switch
from tuneloop.core.units import counted
from tuneloop.core.urls import masked

if TYPE_CHECKING:
    from tuneloop.registry import RegisteredModel, RegisteredVersion, RegistryEvent
    from tuneloop.release import Reproduction

HEAD = ("version", "aliases", "artifact", "metric", "gate", "data set", "registered")
NAME = argument("NAME", "Name of the model in the registry.")
ARTIFACT = argument("ARTIFACT", "Folder of an artifact, or NAME@ALIAS.")
WHY = flag("", "TEXT", "A reason, for the history.")


def command(name: str = argument("[NAME]", "Only this model, and its history.", "")) -> Result:
    """List registered models, their versions and metrics.

    The aliases say which version is in use.
    """
    from tuneloop.registry import open_registry, read_models, read_settled

    with screen("reading the registry"):
        registry = open_registry()
        models = [read_settled(registry, name)] if name else read_models(registry)
    return Result({"registry": masked(registry.uri), "models": models}, _lines(models, history=bool(name)))


def register(
    artifact: str = argument("ARTIFACT", "Folder of an exported artifact."),
    name: str = flag(..., "NAME", "Name of the model in the registry.", "-n"),
    run: str = flag("", "FOLDER", "Folder of its run, whose gate decides at promotion; default: runs/ID."),
    why: str = WHY,
) -> Result:
    """Register an artifact as the newest version of a model.

    It becomes the model's candidate. The registry is MLflow's: MLFLOW_REGISTRY_URI, else MLFLOW_TRACKING_URI, else
    mlflow.db in this folder.
    """
    from tuneloop.registry import register_artifact

    with screen("registering"):
        version = register_artifact(Path(artifact), name, run=Path(run) if run else None, reason=why)
    aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
    line = f"{name} version {version.version}{aliases}: {version.lineage.artifact}"
    return Result({"name": name, **version.model_dump()}, [line])


def promote(
    name: str = NAME,
    version: str = argument("[VERSION]", "Number or alias of the version; default: candidate.", ""),
    force: str = flag("", "REASON", "Overrule a gate that is not green or is missing; the history keeps why."),
    why: str = WHY,
) -> Result:
    """Make a version of a model the one in use, if the gate allows it.

    It becomes the champion, and the champion so far becomes the previous one.
    """
    from tuneloop.registry import promote_version

    with screen("reading the registry"):
        model = promote_version(name, version, force=force, reason=why)
    previous = model.aliases.get("previous")
    line = f"{name}@champion is version {model.aliases['champion']}" + (f", before {previous}" if previous else "")
    return Result({"name": name, "aliases": model.aliases, "event": model.history[-1].to_json()}, [line])


def rollback(name: str = NAME, why: str = WHY) -> Result:
    """Make the previous version the one in use again."""
    from tuneloop.registry import open_registry, rollback

    with screen("reading the registry"):
        model = rollback(open_registry(), name, reason=why)
    event = model.history[-1]
    line = f"{name}@champion is version {event.model_version} again, no longer {event.before['champion']}"
    return Result({"name": name, "aliases": model.aliases, "event": event.to_json()}, [line])


def push(
    artifact: str = ARTIFACT,
    destination: str = argument("DESTINATION", "Where it goes: hub:ORG/NAME."),
    send: bool = switch("Upload; without it only what would be sent is shown."),
    public: bool = switch("Make a new repository public; it is private by default."),
) -> Result:
    """Upload an artifact to the Hugging Face hub. Nothing is sent without --send."""
    from tuneloop.registry import local_name
    from tuneloop.release import push

    with screen("uploading" if send else "hashing"):
        upload = push(Path(local_name(artifact)), destination, send=send, public=public)
    total = f"{counted(len(upload.files), 'file')}, {sum(upload.files.values()) / 1e6:,.1f} MB"
    lines = [f"{size / 1e6:>12,.2f} MB  {name}" for name, size in upload.files.items()]
    lines.append(f"sent {total}: {upload.url}" if send else f"would send {total} to {upload.repo}; add --send to do so")
    return Result({**vars(upload), "sent": send}, lines)


def verify(
    artifact: str = argument("ARTIFACT", "Folder of an exported artifact, or NAME@ALIAS."),
    key: str = flag("", "FILE", "Check the signature too: the signer's public key, a PEM file.", "-k"),
) -> Result:
    """Check that an artifact's files are as they were exported, and who signed them.

    Exit status 1: a file was changed, is missing or was added, or the signature is not valid.
    """
    from tuneloop.registry import local_name, verify

    with screen("hashing"):
        artifact = local_name(artifact)
        check = verify(Path(artifact), Path(key) if key else None)
    lines = [f"{kind:<9} {name}" for kind in ("changed", "missing", "added") for name in getattr(check, kind)]
    if check.signature != "none":
        reason = check.reason or {"unchecked": "give --key PUBLIC_KEY"}.get(check.signature, "")
        lines.append(f"signature {check.signature}" + (f": {reason}" if reason else ""))
    state = "intact" if check.intact else "NOT intact"
    lines.append(f"{artifact}  {state} ({counted(check.files, 'file')}, {check.id})")
    return Result({"path": artifact, "intact": check.intact, **vars(check)}, lines, int(not check.intact))


def reproduce(
    target: str = argument("TARGET", "A run, an artifact, or NAME@ALIAS."),
    out: str = flag("", "FOLDER", "Folder of the second run; default: reproductions/ID.", "-o"),
    check: bool = switch("Only look whether data and environment are as they were; train nothing."),
    tolerance: float = flag(1e-3, "X", "Largest relative difference of losses that count as equal.", least=0),
) -> Result:
    """Train a run again and say whether the same came out.

    Data, settings and steps are those of the first run.

    Exit status 1: the second run departs from the first by more than the tolerance.
    """
    from tuneloop.release import reproduce

    folder = Path(out) if out else None
    with screen("reproducing"):
        second = reproduce(target, folder, check=check, tolerance=tolerance)
    return Result(second.to_json(), [_reproduced(second)], int(second.verdict == "different"))


def _reproduced(second: Reproduction) -> str:
    if second.verdict == "identical":
        return f"identical: the trained weights have the same bits  ({second.second})"
    if second.verdict == "equal":
        first = f"{second.losses} losses, first differing at step {second.first_step}"
        return f"equal within {second.largest:.2g}: {first}  ({second.second})"
    if second.verdict == "different":
        where = f"departs at step {second.first_step}" if second.first_step is not None else "has other steps"
        return f"different: {where}, losses differ by up to {second.largest:.2g}  ({second.second})"
    return f"{second.run} can be trained again from its {second.rows_from}"


def _lines(models: Sequence[RegisteredModel], *, history: bool) -> Iterator[str]:
    for model in models:
        yield model.name
        rows = [HEAD, *(_row(version) for version in model.versions)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if history:
            yield from ("history", *(f"  {_line(event)}" for event in model.history))
        if model.pending:
            yield f"interrupted: {_line(model.pending)}; the next command finishes it"


def _row(version: RegisteredVersion) -> tuple[str, ...]:
    lineage, metric = version.lineage, "not measured"
    name = lineage.primary if lineage.primary in lineage.metrics else next(iter(lineage.metrics), "")
    value = lineage.metrics.get(name, {})
    if value.get("value") is not None:
        bounds = "" if value.get("low") is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
        metric = f"{name} {value['value']:.3f}{bounds}"
    ids = (lineage.artifact, metric, lineage.gate, lineage.dataset)
    return version.version, ", ".join(version.aliases), *ids, minute(version.created)


def _line(event: RegistryEvent) -> str:
    """A change in one line."""
    forced = f", overruled ({event.overruled})" if event.overruled else ", overruled" if event.gate.forced else ""
    gate = "" if event.action == "rollback" else f"; gate {event.gate.status}{forced}"
    was = event.before.get("champion")
    came = f" after {was}" if was and event.action != "register" else ""
    reason = f": {event.why}" if event.why else ""
    return f"{minute(event.when)}  {event.action} {event.model_version}{came} by {event.who}{gate}{reason}"


commands = {
    "list": command, "register": register, "promote": promote, "rollback": rollback, "push": push, "verify": verify,
    "reproduce": reproduce,
}  # fmt: skip
