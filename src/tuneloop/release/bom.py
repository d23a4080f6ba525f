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
from tuneloop.records.run import RunManifest
from tuneloop.release.licences import Licence

if TYPE_CHECKING:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component

BOM = "artifact.cdx.json"


@dataclass(frozen=True)
class Materials:
    """What a bill of materials holds."""

    manifest: ArtifactManifest  # `artifact.json`, all but the files
    files: Mapping[str, ArtifactFile]  # name -> `bytes` and `sha256`, of all files but this one
    licence: Licence | None  # of the base model, where it is known
    run: RunManifest  # `run.json`
    dataset: DatasetManifest | None  # `dataset.json`, where it is available
    config: Mapping[str, Any]  # the settings of training


def bill_of_materials(made: Materials) -> str | None:
    """The text of `artifact.cdx.json`, the same for the same materials; None where its package is not installed."""
    try:
        from cyclonedx.model import HashAlgorithm, HashType
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError:
        return None

    def hashed_file(name: str, ref: str, digest: str) -> Component:
        hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
        return Component(name=name, bom_ref=ref, type=ComponentType.FILE, hashes=hashes)

    id_, base, run, gate = made.manifest.id, made.manifest.base, made.run, made.manifest.gate
    training = {
        "run": run.id,
        "run.key": run.key,
        "gate": gate.status,
        "gate.forced": gate.forced or None,
        "training.hours": round(run.seconds / 3600, 4),
        "training.tokens": run.tokens,
        "training.steps": run.steps,
        "training.usd": round(run.usd, 4),
    }
    model = Component(
        name=id_,
        bom_ref=id_,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=id_.rpartition("-")[2],
        description=f"Tuned from {base.model} by {made.manifest.method}, format {made.manifest.format}",
        licenses=_licences(made.licence),
        components=[hashed_file(name, f"file:{name}", entry.sha256) for name, entry in made.files.items()],
        properties=_properties(training | {f"train.{key}": value for key, value in made.config.items()}),
    )
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"tuneloop:{id_}"))
    bom.metadata.component = model
    bom.metadata.timestamp = datetime.fromisoformat(made.manifest.created)
    parts = [
        Component(
            name=base.model,
            bom_ref=f"base:{base.model}",
            type=ComponentType.MACHINE_LEARNING_MODEL,
            licenses=_licences(made.licence),
            properties=_properties({"fingerprint": base.fingerprint}),
        )
    ]
    if (dataset := made.dataset) is not None:
        splits = {name: getattr(dataset.splits, name) for name in ("train", "val", "test")}
        facts = {"task": dataset.task, "content.sha256": dataset.hash, "licence": "not stated"}
        facts |= {f"rows.{name}": split.rows for name, split in splits.items()}
        digests = {f"{name}.jsonl": split.sha256 for name, split in splits.items()}
        # Sources are named without the folders of who prepared them.
        digests |= {f"source:{source.path.rpartition('/')[2]}": source.sha256 for source in dataset.sources}
        hashes = [(name, f"data:{i}:{name}", digest) for i, (name, digest) in enumerate(digests.items()) if digest]
        parts.append(
            Component(
                name=dataset.name,
                version=dataset.id,
                bom_ref=f"dataset:{dataset.id}",
                type=ComponentType.DATA,
                components=[hashed_file(*each) for each in hashes],
                properties=_properties(facts),
            )
        )
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

    spdx, url = fixup_id(licence.id), XsUri(licence.url) if licence.url else None
    return [DisjunctiveLicense(id=spdx, url=url) if spdx else DisjunctiveLicense(name=licence.name, url=url)]


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
        metrics = []
        for name, estimate in evaluation.metrics.items():
            if math.isnan(estimate.value):
                continue
            metric: dict[str, Any] = {"type": name, "value": str(estimate.value), "slice": where}
            if not math.isnan(estimate.low):
                metric["confidenceInterval"] = {"lowerBound": str(estimate.low), "upperBound": str(estimate.high)}
            metrics.append(metric)
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    return card
