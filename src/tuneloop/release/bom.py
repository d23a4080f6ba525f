"""`artifact.cdx.json`: what a model was made of, as a CycloneDX bill of materials that other tools read.

The library writes all but the model card of the specification, which it does not know.
Source: CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json/ (`modelCard`).
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tuneloop.core.foreign import parse_json
from tuneloop.core.units import counted
from tuneloop.records.artifact import ArtifactFile, ArtifactManifest
from tuneloop.records.dataset import DatasetManifest
from tuneloop.release.licences import Licence

if TYPE_CHECKING:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component

    from tuneloop.release.artifact import Origin

BOM = "artifact.cdx.json"


def bill_of_materials(
    origin: Origin, manifest: ArtifactManifest, files: Mapping[str, ArtifactFile], licence: Licence | None
) -> str | None:
    """The text of `artifact.cdx.json`, the same for the same materials; None where its package is not installed.

    Args:
        manifest: `artifact.json`, all but the files.
        files: all but this one.
        licence: of the base model, where it is known.
    """
    try:
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError:
        return None

    id_, base, run, gate = manifest.id, manifest.base, origin.manifest, manifest.gate
    training: dict[str, Any] = {
        "run": run.id,
        "run.key": run.key,
        "gate": gate.status,
        "gate.forced": gate.forced or None,
    }
    training |= {"training.hours": round(run.seconds / 3600, 4), "training.tokens": run.tokens}
    training |= {"training.steps": run.steps, "training.usd": round(run.usd, 4)}
    model = Component(
        name=id_,
        bom_ref=id_,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=id_.rpartition("-")[2],
        description=f"Tuned from {base.model} by {manifest.method}, format {manifest.format}",
        licenses=_licences(licence),
        components=[_hashed_file(name, f"file:{name}", entry.sha256) for name, entry in files.items()],
        properties=_properties(training | {f"train.{key}": value for key, value in origin.config.items()}),
    )
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"tuneloop:{id_}"))
    bom.metadata.component = model
    bom.metadata.timestamp = datetime.fromisoformat(manifest.created)
    terms, fingerprint = _licences(licence), _properties({"fingerprint": base.fingerprint})
    kind, ref = ComponentType.MACHINE_LEARNING_MODEL, f"base:{base.model}"
    parts = [Component(name=base.model, bom_ref=ref, type=kind, licenses=terms, properties=fingerprint)]
    if origin.dataset is not None:
        parts.append(_data(origin.dataset))
    for part in parts:
        bom.components.add(part)
    bom.register_dependency(model, parts)
    tree = parse_json(JsonV1Dot6(bom).output_as_string())
    tree["metadata"]["component"]["modelCard"] = _model_card(manifest, origin.dataset)
    return json.dumps(tree, ensure_ascii=False, indent=2) + "\n"


def _hashed_file(name: str, ref: str, digest: str) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
    return Component(name=name, bom_ref=ref, type=ComponentType.FILE, hashes=hashes)


def _data(dataset: DatasetManifest) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    splits = {name: getattr(dataset.splits, name) for name in ("train", "val", "test")}
    facts = {"task": dataset.task, "content.sha256": dataset.hash, "licence": "not stated"}
    facts |= {f"rows.{name}": split.rows for name, split in splits.items()}
    digests = {f"{name}.jsonl": split.sha256 for name, split in splits.items()}
    # Sources are named without the folders of who prepared them.
    digests |= {f"source:{source.path.rpartition('/')[2]}": source.sha256 for source in dataset.sources}
    hashes = [(name, f"data:{i}:{name}", digest) for i, (name, digest) in enumerate(digests.items()) if digest]
    data = Component(name=dataset.name, version=dataset.id, bom_ref=f"dataset:{dataset.id}", type=ComponentType.DATA)
    data.components, data.properties = [_hashed_file(*hashed) for hashed in hashes], _properties(facts)
    return data


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


def _model_card(manifest: ArtifactManifest, dataset: DatasetManifest | None) -> dict[str, Any]:
    evaluation, task = manifest.evaluation, manifest.task or {}
    parameters: dict[str, Any] = {
        "approach": {"type": "supervised"},
        "task": task.get("kind") or (dataset.task if dataset else "text-generation"),
        "architectureFamily": "transformer",
    }
    if dataset:
        parameters["datasets"] = [{"ref": f"dataset:{dataset.id}"}]
    card: dict[str, Any] = {"modelParameters": parameters}
    if evaluation and not manifest.is_rounded:
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
