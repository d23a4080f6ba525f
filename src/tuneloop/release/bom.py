"""`artifact.cdx.json`: what a model was made of, as a CycloneDX bill of materials that other tools read.

The library writes all but the model card of the specification, which it does not know.
Source: CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json/ (`modelCard`).
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tuneloop.core.units import counted
from tuneloop.records.artifact import ArtifactFile, ArtifactManifest
from tuneloop.records.dataset import DatasetManifest
from tuneloop.records.evaluation import Estimate
from tuneloop.records.run import RunManifest
from tuneloop.release.licences import Licence

if TYPE_CHECKING:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component

BOM = "artifact.cdx.json"


@dataclass(frozen=True)
class Materials:
    """What a bill of materials tells.

    Args:
        manifest: `artifact.json`, all but the files.
        files: name -> `bytes` and `sha256`, of all files but this one.
        licence: of the base model, where it is known.
        run: `run.json`.
        dataset: `dataset.json`, where it is at hand.
        config: the settings of training.
    """

    manifest: ArtifactManifest
    files: Mapping[str, ArtifactFile]
    licence: Licence | None
    run: RunManifest
    dataset: DatasetManifest | None
    config: Mapping[str, Any]


def bill_of_materials(made: Materials) -> str | None:
    """The text of `artifact.cdx.json`; None where the package that writes it is not installed.

    The same materials give the same text.
    """
    try:
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError:
        return None
    id_ = made.manifest.id
    model = Component(
        name=id_,
        bom_ref=id_,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=id_.rpartition("-")[2],
        description=f"Tuned from {made.manifest.base.model} by {made.manifest.method}, format {made.manifest.format}",
        licenses=_licences(made.licence),
        components=[_file(name, entry) for name, entry in made.files.items()],
        properties=_properties(_about_training(made)),
    )
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"tuneloop:{id_}"))
    bom.metadata.component = model
    bom.metadata.timestamp = datetime.fromisoformat(made.manifest.created)
    parts = [_base(made), *([_dataset(made.dataset)] if made.dataset else [])]
    for part in parts:
        bom.components.add(part)
    bom.register_dependency(model, parts)
    tree = json.loads(JsonV1Dot6(bom).output_as_string())
    tree["metadata"]["component"]["modelCard"] = _model_card(made)
    return json.dumps(tree, ensure_ascii=False, indent=2) + "\n"


def _licences(licence: Licence | None) -> list[Any]:
    if licence is None:
        return []
    from cyclonedx.model import XsUri
    from cyclonedx.model.license import DisjunctiveLicense
    from cyclonedx.spdx import fixup_id

    known, url = fixup_id(licence.id), XsUri(licence.url) if licence.url else None
    return [DisjunctiveLicense(id=known, url=url) if known else DisjunctiveLicense(name=licence.name, url=url)]


def _file(name: str, entry: ArtifactFile) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    digest = HashType(alg=HashAlgorithm.SHA_256, content=entry.sha256)
    return Component(name=name, bom_ref=f"file:{name}", type=ComponentType.FILE, hashes=[digest])


def _base(made: Materials) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    base = made.manifest.base
    return Component(
        name=base.model,
        bom_ref=f"base:{base.model}",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        licenses=_licences(made.licence),
        properties=_properties({"fingerprint": base.fingerprint}),
    )


def _dataset(dataset: DatasetManifest) -> Component:
    """The data set with a hash of each split and source; sources are named without the folders of who prepared it."""
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    splits = {name: getattr(dataset.splits, name) for name in ("train", "val", "test")}
    facts = {"task": dataset.task, "content.sha256": dataset.hash, "licence": "not stated"}
    facts |= {f"rows.{name}": split.rows for name, split in splits.items()}
    hashes = {f"{name}.jsonl": split.sha256 for name, split in splits.items()}
    hashes |= {f"source:{source.path.rpartition('/')[2]}": source.sha256 for source in dataset.sources}
    files = [
        Component(
            name=name,
            bom_ref=f"data:{i}:{name}",
            type=ComponentType.FILE,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
        )
        for i, (name, digest) in enumerate(hashes.items())
        if digest
    ]
    return Component(
        name=dataset.name,
        version=dataset.id,
        bom_ref=f"dataset:{dataset.id}",
        type=ComponentType.DATA,
        components=files,
        properties=_properties(facts),
    )


def _about_training(made: Materials) -> dict[str, Any]:
    run = made.run
    gate = made.manifest.gate
    facts = {
        "run": run.id, "run.key": run.key, "gate": gate.status, "gate.forced": gate.forced or None,
        "training.hours": round(run.seconds / 3600, 4), "training.tokens": run.tokens, "training.steps": run.steps,
        "training.usd": round(run.usd, 4),
    }  # fmt: skip
    return facts | {f"train.{key}": value for key, value in made.config.items()}


def _properties(facts: Mapping[str, Any]) -> list[Property]:
    from cyclonedx.model import Property

    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items() if v not in (None, "", {})}
    return [Property(name=f"tuneloop:{key}", value=text) for key, text in texts.items()]


def _model_card(made: Materials) -> dict[str, Any]:
    evaluation, task = made.manifest.evaluation, made.manifest.task or {}
    parameters: dict[str, Any] = {
        "approach": {"type": "supervised"},
        "task": task.get("kind") or (made.dataset.task if made.dataset else "text-generation"),
        "architectureFamily": "transformer",
    }
    if made.dataset:
        parameters["datasets"] = [{"ref": f"dataset:{made.dataset.id}"}]
    card: dict[str, Any] = {"modelParameters": parameters}
    if evaluation and not made.manifest.is_rounded:
        where = f"{evaluation.split} split of {evaluation.dataset}, {counted(evaluation.n, 'row')}"
        metrics = [_metric(name, figure, where) for name, figure in evaluation.metrics.items()]
        card["quantitativeAnalysis"] = {"performanceMetrics": [metric for metric in metrics if metric]}
    return card


def _metric(name: str, figure: Estimate, where: str) -> dict[str, Any] | None:
    if math.isnan(figure.value):
        return None
    bounds = {"confidenceInterval": {"lowerBound": str(figure.low), "upperBound": str(figure.high)}}
    return {"type": name, "value": str(figure.value), "slice": where, **({} if math.isnan(figure.low) else bounds)}
