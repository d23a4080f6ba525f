"""The evaluation's files: `samples.jsonl` with every answer, and `eval.json`, written last."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import plain, read_jsonl, write_jsonl
from tuneloop.evaluate.compare import adjusted
from tuneloop.evaluate.config import EvaluateConfig
from tuneloop.evaluate.evaluate import Evaluation, evaluate
from tuneloop.evaluate.metrics import declare_from, metric_of
from tuneloop.evaluate.production import against_production
from tuneloop.evaluate.scoring import AnswerStats
from tuneloop.evaluate.slices import breakdown, breakdown_in_words
from tuneloop.evaluate.verdict import decide
from tuneloop.evaluate.verdict_text import verdict_in_words
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import EVALUATION, Comparison, EvaluationManifest
from tuneloop.records.record import read_record, write_record
from tuneloop.records.rows import Row, last_user_turn, references_of


def write_evaluation(
    out: Path,
    evaluation: Evaluation,
    *,
    model: str,
    dataset: str,
    split: str,
    name: str,
    baselines: Mapping[str, Evaluation],
    comparisons: Sequence[Comparison],
    costs: Mapping[str, Mapping[str, float]] | None = None,
    key: str,
    slice_fields: Sequence[str] | None = None,
    production: Sequence[Row] | None = None,
    trained: str = "",
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write `samples.jsonl`, then `eval.json`: with the latter in place the folder is complete.

    Args:
        out: the folder.
        evaluation: the contender that this is about.
        model, dataset, split: what was evaluated.
        name: the contender's name in `comparisons` ("tuned").
        baselines: what it was compared with, on the same rows.
        comparisons: of baselines (a) with it (b).
        costs: contender -> seconds, usd, prompt_tokens, tokens.
        key: hash of everything that the result depends on, to tell whether it is still good.
        slice_fields: `evaluate.slices`.
        production: what users sent, to hold the test rows against.
        trained: how far the contender was trained, where that is worth a word in the verdict.
        more: further parts of `eval.json` (ladder, forgetting, judge ...).

    Returns:
        The path of `eval.json`.

    Raises:
        UserError: a baseline has other rows, or the disk refuses.
    """
    comparisons = adjusted(comparisons, evaluation)
    everyone = {**baselines, name: evaluation}
    verdict = decide(everyone, comparisons, name)
    parts = breakdown(evaluation, baselines, fields=slice_fields)
    against = against_production(evaluation, production) if production is not None else None
    words = verdict_in_words(verdict, everyone, split=split, trained=trained) + breakdown_in_words(parts)
    others = {other: _predictions_by_id(evaluation, other, baseline) for other, baseline in baselines.items()}
    besides = {
        other: dict(zip((row.id for row in baseline.rows), _besides(baseline), strict=True))
        for other, baseline in baselines.items()
    }
    each = enumerate(_besides(evaluation))
    write_jsonl(out / "samples.jsonl", (_sample(evaluation, i, beside, others, besides) for i, beside in each))
    manifest = {
        "key": key,
        "model": model,
        "dataset": dataset,
        "split": split,
        "name": name,
        "n": evaluation.n,
        "task": evaluation.task,
        "metrics": evaluation.metrics,
        "baselines": {other: baseline.metrics for other, baseline in baselines.items()},
        "comparisons": comparisons,
        "verdict": {"sentence": words[0], **vars(verdict)},
        "words": [*words, against.in_words()] if against else words,
        "invalid": evaluation.invalid,
        "invalid_baselines": {other: baseline.invalid for other, baseline in baselines.items()},
        "notes": _all_notes(evaluation, baselines),
        "signatures": evaluation.signatures,
        "costs": costs or {},
        **parts,
        "production": against,
        **({"own_metrics": {name: metric_of(name) for name in own}} if (own := evaluation.own_metrics) else {}),
        **plain(more or {}),
        "settings": {
            "intervals": _intervals(evaluation),
            "seed": evaluation.seed,
            "bootstrap": evaluation.bootstrap,
            "fields": evaluation.fields,
            "labels": evaluation.labels,
            "cluster": evaluation.cluster,
            "primary": evaluation.primary if evaluation.primary_named else None,
            "field_labels": evaluation.field_labels,
            "label_rows": evaluation.label_rows,
        },
    }
    path = out / EVALUATION
    write_record(path, EvaluationManifest.model_validate(manifest))
    return path


def _intervals(evaluation: Evaluation) -> str:
    if evaluation.clusters is not None:
        return f"95 %: bias-corrected percentile bootstrap over {max(evaluation.clusters) + 1} clusters of rows"
    return "95 %: Wilson for shares of right answers, else bias-corrected percentile bootstrap over rows"


def _all_notes(evaluation: Evaluation, baselines: Mapping[str, Evaluation]) -> list[str]:
    notes = list(evaluation.notes)
    for other, baseline in baselines.items():
        notes += [f"{other}: {note}" for note in baseline.notes if note not in notes]
    return notes


def _predictions_by_id(evaluation: Evaluation, name: str, baseline: Evaluation) -> dict[str, str]:
    texts = {row.id: answer.text for row, answer in zip(baseline.rows, baseline.answers, strict=True)}
    if texts.keys() != {row.id for row in evaluation.rows}:
        raise UserError(
            f"The baseline {name} was evaluated on other rows",
            next_step="evaluate it again with the same split and evaluate.limit",
        )
    return texts


def _sample(
    evaluation: Evaluation,
    i: int,
    beside: Mapping[str, Any],
    others: Mapping[str, Mapping[str, str]],
    baselines: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    row, answer = evaluation.rows[i], evaluation.answers[i]
    references = references_of(row)
    sample: dict[str, Any] = {"id": row.id, "prompt": last_user_turn(row), "reference": row.answer}
    if row.prompt != [{"role": "user", "content": sample["prompt"]}]:
        sample["messages"] = row.prompt
    if references != [row.answer]:
        sample["references"] = references
    sample["prediction"] = answer.text
    if evaluation.task == "classification":
        sample |= {"label": row.label, "predicted_label": evaluation.predictions[i]}
    else:
        sample["label"] = row.label
    sample |= {
        "valid": evaluation.valid[i],
        "finished": answer.finished,
        "scores": {metric: scores[i] for metric, scores in evaluation.row_scores.items()},
        **beside,
        "completion": _without_text(answer),
        "baselines": {name: texts[row.id] for name, texts in others.items()},
    }
    if baselines:
        sample["baselines_beside"] = {name: beside[row.id] for name, beside in baselines.items()}
    sample["meta"] = {name: value for name, value in row.meta.items() if name != "references"}
    return sample


def _without_text(answer: Completion) -> dict[str, Any]:
    """A completion but for its text, which is the sample's `prediction`, and the scores of all labels, which would be most of the file."""
    return {name: value for name, value in answer.to_json().items() if name not in ("text", "label_scores")}


def _besides(evaluation: Evaluation) -> list[dict[str, Any]]:
    """What is known of each row's answer that readers look for by itself."""
    measured, answers = evaluation.measured, evaluation.answers
    sure = any(answer.label_probability is not None for answer in answers)
    found: list[dict[str, Any]] = []
    for i, answer in enumerate(answers):
        beside: dict[str, Any] = {"confidence": answer.confidence} if sure else {}
        if answer.loss is not None:
            beside["loss"] = [answer.loss, answer.loss_tokens]
        if measured.languages:
            beside["language"] = measured.languages[i]
        if measured.further:
            beside["further"] = list(measured.further[i])
        if measured.row_scores:
            beside["measured"] = {metric: scores[i] for metric, scores in measured.row_scores.items()}
        found.append(beside)
    return found


def _measured(besides: Sequence[Mapping[str, Any]]) -> AnswerStats:
    """The inverse of `_besides` over all rows; NaN stands in JSON as null."""

    def column(name: str) -> list[Any]:
        return [beside[name] for beside in besides] if besides and name in besides[0] else []

    scores = column("measured")
    return AnswerStats(
        further=column("further"),
        languages=column("language"),
        row_scores={m: [_number(row[m]) for row in scores] for m in (scores[0] if scores else {})},
        complete=True,
    )


def _completion(text: str, beside: Mapping[str, Any], finished: bool = True) -> Completion:
    """An answer as it stands in a sample; folders of earlier versions have no `completion`, baselines never."""
    known = Completion.from_json(
        {"text": text, **beside.get("completion", {"finish": "stop" if finished else "length"})}
    )
    loss, tokens = beside.get("loss") or (None, None)
    sure = beside.get("confidence")
    return replace(known, label_probability=sure, loss=None if tokens is None else _number(loss), loss_tokens=tokens)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def load_evaluation(path: Path | str, contender: str | None = None) -> Evaluation:
    """Read an evaluation back, ready for `compare`; the inverse of `write_evaluation`.

    The numbers are computed again from the answers in `samples.jsonl` with the saved seed: two folders are compared
    by the same code, whichever version wrote them.

    Args:
        path: the folder or its `eval.json`.
        contender: the name of a baseline in it; default: the contender that it is about.

    Raises:
        UserError: a file is missing or damaged, or holds no such contender.
    """
    path = Path(path)
    folder = path.parent if path.name == "eval.json" else path
    if not (folder / "eval.json").is_file():
        raise UserError(
            "No evaluation there", where=str(folder / "eval.json"), next_step=f"run `tuneloop evaluate {folder}` first"
        )
    manifest = read_record(EvaluationManifest, folder / EVALUATION)
    samples = read_jsonl(folder / "samples.jsonl")
    try:
        declare_from({"own_metrics": plain(manifest.own_metrics)})
        if contender is not None and contender != manifest.name and contender not in manifest.baselines:
            raise UserError(
                f"The evaluation holds no contender {contender!r}",
                where=str(folder / "eval.json"),
                next_step=f"choose one of {', '.join([manifest.name, *manifest.baselines])}",
            )
        return _evaluated_again(manifest, samples, None if contender == manifest.name else contender)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"The evaluation is damaged or of another version ({error!r})",
            where=str(folder),
            next_step="delete its eval.json and evaluate again",
        ) from None


def _evaluated_again(manifest: EvaluationManifest, samples: list[dict[str, Any]], baseline: str | None) -> Evaluation:
    settings = manifest.settings
    if settings is None:
        raise KeyError("settings")
    if len(samples) != manifest.n:
        raise UserError(
            f"samples.jsonl has {len(samples)} rows and eval.json tells of {manifest.n}",
            next_step="delete eval.json and evaluate again",
        )
    saved = (manifest.metrics if baseline is None else manifest.baselines[baseline]).get("perplexity")
    return evaluate(
        [_row(sample) for sample in samples],
        [
            _completion(sample["prediction"], sample, sample["finished"])
            if baseline is None
            else _completion(sample["baselines"][baseline], sample.get("baselines_beside", {}).get(baseline, {}))
            for sample in samples
        ],
        task=manifest.task,
        labels=settings.labels,
        config=EvaluateConfig.model_validate(
            settings.model_dump(include={"fields", "bootstrap", "cluster", "primary"})
        ),
        seed=settings.seed,
        field_labels=settings.field_labels,
        label_rows=settings.label_rows,
        perplexity=None if saved is None else saved.value,
        measured=_measured(
            samples
            if baseline is None
            else [sample.get("baselines_beside", {}).get(baseline, {}) for sample in samples]
        ),
    )


def _row(sample: dict[str, Any]) -> Row:
    prompt = sample.get("messages", [{"role": "user", "content": sample["prompt"]}])
    return Row(
        id=sample["id"],
        messages=[*prompt, {"role": "assistant", "content": sample["reference"]}],
        label=sample["label"],
        meta=sample.get("meta", {}) | ({"references": sample["references"]} if "references" in sample else {}),
    )
