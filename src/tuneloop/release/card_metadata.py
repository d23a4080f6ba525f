"""The head of a model card: YAML that the Hugging Face hub reads, with the measured figures as its `model-index`."""

from __future__ import annotations

import math

from tuneloop.records.artifact import ArtifactManifest
from tuneloop.release.formats import FORMS
from tuneloop.release.licences import Licence, hub_name


def card_metadata(manifest: ArtifactManifest, licence: Licence | None) -> str:
    """The YAML between the card's `---`; without figures where they are not those of these weights.

    Args:
        manifest: `artifact.json`, all but the files.
        licence: of the base model, where it is known.
    """
    from huggingface_hub import EvalResult, ModelCardData

    base, form = hub_name(manifest.base.model), FORMS[manifest.format]
    relation = "quantized" if form.is_model and manifest.quantisation else form.relation
    evaluation = None if manifest.is_rounded else manifest.evaluation
    kind = "text-classification" if (manifest.task or {}).get("kind") == "classification" else "text-generation"
    results = [
        EvalResult(
            task_type=kind,
            dataset_type=evaluation.dataset,
            dataset_name=evaluation.dataset,
            dataset_split=evaluation.split,
            metric_type=name,
            metric_value=figure.value,
        )
        for name, figure in evaluation.metrics.items()
        if not math.isnan(figure.value)
    ] if evaluation else []  # fmt: skip
    data = ModelCardData(
        library_name=form.library,
        pipeline_tag="text-generation",
        base_model=base or None,
        license=licence.id if licence else None,
        datasets=[manifest.dataset] if manifest.dataset else None,
        model_name=manifest.id,
        eval_results=results or None,
        tags=["tuneloop"],
        **({"base_model_relation": relation} if base else {}),
    )
    if not results:
        del data.model_name  # it belongs to the figures
    return str(data.to_yaml())
