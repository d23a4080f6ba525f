"""What the model registry holds besides MLflow's fields: where a version comes from, and what was decided about it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from tuneloop.records.artifact import GateRecord
from tuneloop.records.record import JsonSteps, Part, Record

Action = Literal["register", "promote", "rollback"]


LINEAGE_STEPS: JsonSteps = ()  # from the tags of earlier versions to `Lineage`; `tuneloop.version` has the number


class Lineage(Part):
    """Where a registered version comes from. Each field is a tag `tuneloop.FIELD` of the version.

    Args:
        artifact, manifest: the artifact's id, and SHA-256 of its `artifact.json`.
        format, quantisation, method: how the weights are stored, and how they were trained.
        base, base_fingerprint, licence: the base model.
        run, run_key, run_folder: the run, the hash of what it depended on, and its folder where it was found.
        dataset: id, with the first digits of its hash.
        split, rows, metrics: what was evaluated: metric -> `value`, `low`, `high`; `primary`: the metric that decides.
        gate, suite: what the gate said when the artifact was exported.
        judged: `artifact` where the gate judged the artifact's own metrics; empty: those of its run.
    """

    artifact: str
    manifest: str
    format: str
    quantisation: str = ""
    method: str = ""
    base: str = ""
    base_fingerprint: str = ""
    licence: str = ""
    run: str = ""
    run_key: str = ""
    run_folder: str = ""
    dataset: str = ""
    split: str = ""
    rows: int = 0
    primary: str = ""
    metrics: dict[str, Any] = {}
    gate: str = "none"
    suite: str = ""
    judged: str = ""


class RegistryEvent(Record):
    """One change of a registered model, a tag `tuneloop.history.ID` of it.

    Args:
        id: time and random digits: events sort by it.
        action: what was done.
        model_version: that was registered, promoted, or gone back to.
        aliases: alias -> the version that it names from then on; None: it is taken away.
        before: the same as it was.
        who, when, why: user and host; ISO time; the reason given.
        gate: what the gate said, and whether it was overruled.
        overruled: the reason why it was.
    """

    title: ClassVar[str] = "a change of the registry"
    file: ClassVar[str] = "tag tuneloop.history.ID"
    again: ClassVar[str] = "use a newer tuneloop"

    id: str
    action: Action
    model_version: str
    aliases: dict[str, str | None]
    before: dict[str, str | None] = {}
    who: str
    when: str
    why: str = ""
    gate: GateRecord = GateRecord()
    overruled: str = ""


class RegisteredVersion(Part):
    """A version of a registered model.

    Args:
        version: its number.
        aliases: that name it.
        source: where its files are.
        tracked: id of its MLflow run, where it was logged next to the registry.
    """

    version: str
    aliases: list[str] = []
    source: str
    tracked: str = ""
    created: str = ""
    lineage: Lineage


class RegisteredModel(Part):
    """A registered model with its versions, newest first, and all that was decided about it, oldest first.

    Args:
        pending: a change that was interrupted; the next one finishes it.
    """

    name: str
    aliases: dict[str, str] = {}
    versions: list[RegisteredVersion] = []
    history: list[RegistryEvent] = []
    pending: RegistryEvent | None = None
