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
from tuneloop.release.card_metadata import card_metadata
from tuneloop.release.compressed import is_compressed
from tuneloop.release.formats import FORMS
from tuneloop.release.licences import Licence, hub_name

_COMPRESSED = """```sh
vllm serve FOLDER
pip install 'compressed-tensors>=0.15'    # for Transformers, which unpacks the weights
```

"""


def model_card(manifest: ArtifactManifest, licence: Licence | None, dataset: DatasetManifest | None, table: str) -> str:
    """The text of `README.md`.

    Args:
        manifest: `artifact.json`, all but the files.
        licence: of the base model, where it is known.
        dataset: `dataset.json`, where it is at hand.
        table: the evaluation's figures in Markdown.
    """
    base = hub_name(manifest.base.model) or Path(manifest.base.model).name
    what = (
        f"{'A model' if FORMS[manifest.format].is_model else 'An adapter'} tuned from {base} by tuneloop {manifest.tuneloop} ({_method(manifest)}), "
        f"run `{manifest.run.id}`."
    )
    if manifest.merge:
        what += " The adapter is merged into the base model's weights: it loads as any other model."
    if manifest.quantisation:
        what += f" {_weights(manifest.quantisation)}"
    parts = [
        f"---\n{card_metadata(manifest, licence)}\n---",
        f"# {manifest.id}",
        what,
        "## Base model and licence",
        _licence(base, licence),
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
    if is_compressed(name):
        inputs = " vLLM rounds what goes into them to eight bits too." if name == "fp8" else ""
        return (
            f"{types[name.upper()]} of {counted(sum(types.values()), 'tensor')} are in `{name}`, in compressed-tensors' layout for vLLM.{inputs} "
            "**No vLLM has read this file**: it was checked by the library that defines the layout, and by Transformers."
        )
    kinds = ", ".join(f"{count} {kind}" for kind, count in types.items())
    text = f"The weights are in GGUF as `{name}`; of {counted(sum(types.values()), 'tensor')} there are {kinds}."
    main = name.split("_")[0].upper()
    if main not in FLOATS and not any(kind.startswith(main) for kind in types):
        text += f" None is {main}: rows whose width is no multiple of 256 fall back to other types."
    return text


def _method(manifest: ArtifactManifest) -> str:
    """How it was trained, in words; the bare name of a method that is not known here."""
    method = find_method(manifest.method)
    return (method.long_title or method.title) if method else manifest.method


def asking(task: Mapping[str, Any]) -> list[str]:
    """What the model was trained to be asked: the instruction, how a row becomes the question, and what comes back."""
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
        parts.append(
            f"- Answer: one of {counted(len(task['labels']), 'label')}: {', '.join(f'`{name}`' for name in task['labels'])}."
        )
    return parts


def _fenced(text: str) -> str:
    """A text as it stands, in a block of code."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def _licence(base: str, licence: Licence | None) -> str:
    if licence is None:
        return f"{base}. Its licence is not known here: look at its own page before you pass this model on."
    name = f"[{licence.name}]({licence.url})" if licence.url else licence.name
    return f"{base}, under the {name}, which this model inherits. {licence.asks}".strip()


def _data(manifest: ArtifactManifest, dataset: DatasetManifest | None) -> str:
    text = f"Data set `{manifest.dataset}`"
    if dataset is None:
        return f"{text}."
    counts = dataset.counts
    rows = f"{counts.train:,} train, {counts.val:,} val, {counts.test:,} test"
    return f"{text} ({dataset.task.replace('_', ' ')}): {rows} rows, SHA-256 `{dataset.hash}`. Its own licence and consent are its owner's to state."


def _evaluation(manifest: ArtifactManifest, table: str) -> list[str]:
    evaluation, gate = manifest.evaluation, manifest.gate
    if evaluation is None:
        return ["Not evaluated.", _gate(gate)]
    of = f"data set `{evaluation.dataset}`" if evaluation.dataset != manifest.dataset else "the data set"
    parts = [
        f"On {counted(evaluation.n, 'row')} of the {evaluation.split} split of {of}; in brackets 95 % intervals.",
        table.strip(),
    ]
    parts.append("\n".join(f"- {sentence}" for sentence in evaluation.words))
    if manifest.measured:
        on = " on the base's GGUF file in f16" if manifest.format == "gguf-lora" else ""
        parts.insert(
            0,
            f"**These figures are this file's**, answered by llama.cpp{on}, next to those of the run before it was exported.",
        )
        parts.append(_measured(manifest))
    if manifest.quantisation and manifest.is_rounded:
        name, kl = manifest.quantisation.name, manifest.quantisation.kl
        if kl is not None:
            parts.insert(
                0,
                f"The next token's distribution differs from the run's by {kl:.2g} nats on average (KL divergence), as Transformers computes it.",
            )
        parts.insert(
            0,
            f"**This file was not measured.** The figures are the run's, before its weights were brought to `{name}`.",
        )
    merge = manifest.merge
    if merge:
        parts.append(
            "These figures were measured with the adapter next to the base. Storing the merged weights in the base's dtype "
            f"rounded them by {merge.rounding:.2%} of the update's length."
        )
    return [*(part for part in parts if part), _gate(gate)]


def _measured(manifest: ArtifactManifest) -> str:
    """How near a GGUF file is to the run, and what answering takes."""
    same, cost, weights = manifest.same_answers, manifest.cost, manifest.quantisation
    lines = []
    if same is not None:
        lines.append(f"- The same answer as the run on {same.share:.1%} of {counted(same.n, 'row')}.{same.others}")
    if manifest.structured is not None:
        held = manifest.structured
        lines.append(
            f"- Held to its JSON Schema by llama.cpp's server, the same answer as was evaluated on {held.share:.1%} of {counted(held.n, 'row')}."
        )
    if weights is not None and weights.kl is not None:
        lines.append(
            f"- The next token's distribution differs from the run's by {weights.kl:.2g} nats on average (KL divergence)."
        )
    if cost is not None:
        lines.append(
            f"- {cost.file_bytes / 1e6:,.0f} MB on disk"
            + (f", {cost.peak_bytes / 1e6:,.0f} MB of memory at most" if cost.peak_bytes else "")
            + f"; it reads {cost.prompt_tokens_per_second:,.0f} tokens a second and writes "
            f"{cost.answer_tokens_per_second:,.0f}, one prompt at a time, with "
            f"{counted(cost.threads, 'thread')} of the machine that exported it."
        )
    return "\n".join(lines)


def measured_table(manifest: ArtifactManifest) -> str:
    """A GGUF file's figures next to the run's, as a Markdown table; empty where it was not measured."""
    evaluation, weights = manifest.evaluation, manifest.quantisation
    if evaluation is None or weights is None:
        return ""
    pairs = {pair.metric: pair for pair in evaluation.comparisons}
    rows = [f"| metric | run | `{weights.name}` | difference | verdict |", "|---|---|---|---|---|"]
    for metric, figure in evaluation.metrics.items():
        if (pair := pairs.get(metric)) is None:
            continue
        bounds = "" if math.isnan(figure.low) else f" [{figure.low:.4g}, {figure.high:.4g}]"
        rows.append(
            f"| {metric} | {figure.value - pair.delta:.4g} | {figure.value:.4g}{bounds} | {pair.delta:+.4g} "
            f"[{pair.bounds[0]:+.4g}, {pair.bounds[1]:+.4g}] | {pair.verdict} |"
        )
    return "\n".join(rows)


def _gate(gate: GateRecord) -> str:
    if gate.status == "none":
        return "No regression gate was asked."
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
