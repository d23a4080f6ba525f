"""The model card: what a model is, what it was made of, how good it is and how sure that is, and how to load it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneloop.core.units import counted
from tuneloop.models.methods import find_method
from tuneloop.records.artifact import FLOATS, ArtifactManifest, GateRecord, Quantisation
from tuneloop.records.dataset import DatasetManifest
from tuneloop.records.encoder import ENCODER_FOLDER
from tuneloop.release.compressed import is_compressed
from tuneloop.release.formats import FORMS, OF_ENCODERS, PROMPT_FORM
from tuneloop.release.licences import Licence, hub_name


def card_metadata(manifest: ArtifactManifest, licence: Licence | None) -> str:
    """The YAML between the card's `---`, with the metrics as `model-index` where they are those of these weights."""
    from huggingface_hub import EvalResult, ModelCardData

    base, form = hub_name(manifest.base.model), FORMS[manifest.format]
    relation = "quantized" if form.is_model and manifest.quantisation else form.relation
    evaluation = None if manifest.is_rounded else manifest.evaluation
    kind = "text-classification" if (manifest.task or {}).get("kind") == "classification" else "text-generation"
    results = []
    for name, estimate in evaluation.metrics.items() if evaluation else ():
        if evaluation and not math.isnan(estimate.value):
            of = {"dataset_type": evaluation.dataset, "dataset_name": evaluation.dataset}
            of |= {"dataset_split": evaluation.split, "metric_type": name}
            results.append(EvalResult(task_type=kind, metric_value=estimate.value, **of))
    data = ModelCardData(
        library_name=form.library,
        pipeline_tag="text-classification" if manifest.format in OF_ENCODERS else "text-generation",
        base_model=base or None,
        license=licence.id if licence else None,
        datasets=[manifest.dataset] if manifest.dataset else None,
        model_name=manifest.id,
        eval_results=results or None,
        tags=["tuneloop"],
        **({"base_model_relation": relation} if base else {}),
    )
    if not results:
        del data.model_name  # it belongs to the metrics
    return str(data.to_yaml())


_COMPRESSED = """```sh
vllm serve FOLDER
pip install 'compressed-tensors>=0.15'    # for Transformers, which unpacks the weights
```

"""


def model_card(manifest: ArtifactManifest, licence: Licence | None, dataset: DatasetManifest | None, table: str) -> str:
    """The text of `README.md`; `manifest` needs no files, and `table` holds the evaluation's metrics in Markdown."""
    base = hub_name(manifest.base.model) or Path(manifest.base.model).name
    method = find_method(manifest.method)
    title = (method.long_title or method.title) if method else manifest.method
    kind = "A model" if FORMS[manifest.format].is_model else "An adapter"
    kind = {ENCODER_FOLDER: "A head", PROMPT_FORM: "A prompt"}.get(manifest.format, kind)
    tuned = "found for" if manifest.format == PROMPT_FORM else "tuned from"
    description = f"{kind} {tuned} {base} by tuneloop {manifest.tuneloop} ({title}), run `{manifest.run.id}`."
    if licence is None:
        terms = f"{base}. Its licence is not known here: look at its own page before you pass this model on."
    else:
        name = f"[{licence.name}]({licence.url})" if licence.url else licence.name
        terms = f"{base}, under the {name}, which this model inherits. {licence.terms}".strip()
    if manifest.merge:
        description += " The adapter is merged into the base model's weights: it loads as any other model."
    if manifest.quantisation:
        description += f" {_weights(manifest.quantisation)}"
    parts = [
        f"---\n{card_metadata(manifest, licence)}\n---",
        f"# {manifest.id}",
        description,
        "## Base model and licence",
        terms,
        "## Data",
        _data(manifest, dataset),
        "## Evaluation",
        *_evaluation(manifest, table),
        *(["## How to ask it", *asking(manifest.task)] if manifest.task else []),
        "## Loading it",
        _loading(manifest, base),
        "Where it comes from, with the hash of every file, is in `artifact.json`.",
    ]
    return "\n\n".join(parts) + "\n"


def _weights(quantisation: Quantisation) -> str:
    """What the tensors of a GGUF file are; the name of a mixture promises more than small models keep."""
    types, name = quantisation.tensor_types, quantisation.name
    total = counted(sum(types.values()), "tensor")
    if is_compressed(name):
        inputs = " vLLM rounds what goes into them to eight bits too." if name == "fp8" else ""
        return (
            f"{types[name.upper()]} of {total} are in `{name}`, in compressed-tensors' layout for vLLM.{inputs} "
            "**No vLLM has read this file**: it was checked by the library of the layout, and by Transformers."
        )
    kinds = ", ".join(f"{count} {kind}" for kind, count in types.items())
    text = f"The weights are in GGUF as `{name}`; of {total} there are {kinds}."
    main = name.split("_")[0].upper()
    if main not in FLOATS and not any(kind.startswith(main) for kind in types):
        text += f" None is {main}: rows whose width is no multiple of 256 fall back to other types."
    return text


def asking(task: Mapping[str, Any]) -> list[str]:
    """The requests that the model was trained on: the instruction, how a row becomes the question, and the answer."""
    parts = [
        "`tuneloop predict FOLDER rows.csv` and `tuneloop chat FOLDER` ask it as it was trained, from `tuneloop.json`. "
        "Other programs have to send the same turns:"
    ]
    rows = f"template `{task['input']}` over the columns of a row" if task["input"] else f"{task['format']}"
    columns = ", ".join(f"`{name}` ({role})" for role, name in task["columns"].items()) if not task["input"] else ""
    parts.append(f"- Input: {rows}{f': {columns}' if columns else ''}.")
    if task["system"]:
        parts.append("- System turn, the same in every training row:\n\n" + _fenced(task["system"]))
    elif task["system"] is None:
        parts.append("- System turn: none that all training rows share.")
    if task["output"]:
        parts.append("- Answer, by the template:\n\n" + _fenced(task["output"]))
    if task["labels"]:
        names = ", ".join(f"`{name}`" for name in task["labels"])
        parts.append(f"- Answer: one of {counted(len(task['labels']), 'label')}: {names}.")
    return parts


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def _data(manifest: ArtifactManifest, dataset: DatasetManifest | None) -> str:
    text = f"Data set `{manifest.dataset}`"
    if dataset is None:
        return f"{text}."
    counts = dataset.counts
    rows = f"{counts.train:,} train, {counts.val:,} val, {counts.test:,} test"
    facts = f"{text} ({dataset.task.replace('_', ' ')}): {rows} rows, SHA-256 `{dataset.hash}`."
    return f"{facts} Its own licence and consent are its owner's to state."


def _evaluation(manifest: ArtifactManifest, table: str) -> list[str]:
    evaluation, gate = manifest.evaluation, manifest.gate
    if evaluation is None:
        return ["Not evaluated.", _gate(gate)]
    of = f"data set `{evaluation.dataset}`" if evaluation.dataset != manifest.dataset else "the data set"
    parts = []
    if manifest.quantisation and manifest.is_rounded:
        name, kl = manifest.quantisation.name, manifest.quantisation.kl
        parts.append(
            f"**This file was not measured.** The metrics are the run's, before its weights were brought to `{name}`."
        )
        if kl is not None:
            parts.append(f"{_divergence(kl)}, as Transformers computes it.")
    if manifest.measured:
        on = " on the base's GGUF file in f16" if manifest.format == "gguf-lora" else ""
        of_file = f"**These metrics are this file's**, answered by llama.cpp{on}"
        parts.append(f"{of_file}, next to those of the run before it was exported.")
    parts.append(
        f"On {counted(evaluation.n, 'row')} of the {evaluation.split} split of {of}; in brackets 95 % intervals."
    )
    parts += [table.strip(), "\n".join(f"- {sentence}" for sentence in evaluation.words)]
    if manifest.measured:
        parts.append(_measured(manifest))
    if manifest.merge:
        parts.append(
            "These metrics were measured with the adapter next to the base. Storing the merged weights in the base's "
            f"dtype rounded them by {manifest.merge.rounding:.2%} of the update's length."
        )
    return [*(part for part in parts if part), _gate(gate)]


def _divergence(kl: float) -> str:
    return f"The next token's distribution differs from the run's by {kl:.2g} nats on average (KL divergence)"


def _measured(manifest: ArtifactManifest) -> str:
    same, cost, weights = manifest.same_answers, manifest.cost, manifest.quantisation
    lines = []
    if same is not None:
        lines.append(f"- The same answer as the run on {same.share:.1%} of {counted(same.n, 'row')}.{same.others}")
    if (by_schema := manifest.structured) is not None:
        share = f"{by_schema.share:.1%} of {counted(by_schema.n, 'row')}"
        lines.append(f"- Held to its JSON Schema by llama.cpp's server, the same answer as was evaluated on {share}.")
    if weights is not None and weights.kl is not None:
        lines.append(f"- {_divergence(weights.kl)}.")
    if cost is not None:
        memory = f", {cost.peak_bytes / 1e6:,.0f} MB of memory at most" if cost.peak_bytes else ""
        lines.append(
            f"- {cost.file_bytes / 1e6:,.0f} MB on disk{memory}; it reads {cost.prompt_tokens_per_second:,.0f} tokens "
            f"a second and writes {cost.answer_tokens_per_second:,.0f}, one prompt at a time, with "
            f"{counted(cost.threads, 'thread')} of the machine that exported it."
        )
    return "\n".join(lines)


def measured_table(manifest: ArtifactManifest) -> str:
    """A GGUF file's metrics next to the run's, as a Markdown table; empty where it was not measured."""
    evaluation, weights = manifest.evaluation, manifest.quantisation
    if evaluation is None or weights is None:
        return ""
    pairs = {pair.metric: pair for pair in evaluation.comparisons}
    rows = [f"| metric | run | `{weights.name}` | difference | verdict |", "|---|---|---|---|---|"]
    for metric, estimate in evaluation.metrics.items():
        if (pair := pairs.get(metric)) is None:
            continue
        bounds = "" if math.isnan(estimate.low) else f" [{estimate.low:.4g}, {estimate.high:.4g}]"
        rows.append(
            f"| {metric} | {estimate.value - pair.delta:.4g} | {estimate.value:.4g}{bounds} | {pair.delta:+.4g} "
            f"[{pair.bounds[0]:+.4g}, {pair.bounds[1]:+.4g}] | {pair.verdict} |"
        )
    return "\n".join(rows)


def _gate(gate: GateRecord) -> str:
    if gate.status == "none":
        return "No regression gate has judged it."
    text = f"Regression gate `{gate.suite.name if gate.suite else None}`: {gate.status}"
    return f"{text}, **overruled with `--force`**." if gate.forced else f"{text}."


def _loading(manifest: ArtifactManifest, base: str) -> str:
    loading = FORMS[manifest.format].loading.replace("BASE", base)
    if manifest.quantisation and is_compressed(manifest.quantisation.name):
        return _COMPRESSED + loading
    if "ARGUMENT" not in loading:
        return loading
    method = find_method(manifest.method)
    argument, needs = method.peft_base if method else ("", "")
    loading = loading.replace("ARGUMENT", argument)
    return loading.replace("AutoTokenizer\n", f"AutoTokenizer, {needs}\n", 1) if needs else loading
