"""The evaluation's files: `samples.jsonl` with every answer, and `eval.json`, written last."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import plain, write_jsonl
from tuneloop.core.units import counted
from tuneloop.evaluation.compare import adjusted
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import Evaluation, evaluate
from tuneloop.evaluation.metrics import declare, metric_of
from tuneloop.evaluation.primary import PARTS
from tuneloop.evaluation.scoring import AnswerStats
from tuneloop.evaluation.slices import breakdown, breakdown_in_words
from tuneloop.evaluation.verdict import decide, verdict_in_words
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import (
    EVALUATION,
    SAMPLES,
    Against,
    Comparison,
    EvaluationManifest,
    KnownOfAnswer,
    Sample,
    ScoringSettings,
    Subject,
    VerdictPart,
)
from tuneloop.records.record import read_lines, read_record, write_record
from tuneloop.records.rows import Message, Row, last_user_turn, references_of


@dataclass(frozen=True)
class ComparedWith:
    """What an evaluation was compared with.

    Args:
        baselines: other systems, on the same rows.
        comparisons: of baselines (a) with the evaluation (b).
        production: how the test rows differ from what users sent.
    """

    baselines: Mapping[str, Evaluation] = field(default_factory=dict)
    comparisons: Sequence[Comparison] = ()
    production: Against | None = None


ALONE = ComparedWith()


def write_evaluation(
    out: Path,
    evaluation: Evaluation,
    subject: Subject,
    compared: ComparedWith = ALONE,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write `samples.jsonl`, then `eval.json`, whose path is returned: with the latter in place the folder is complete.

    `more`: further parts of `eval.json` (costs, leaderboard, forgetting, judge ...).

    Raises:
        UserError: a baseline has other rows, or the disk refuses.
    """
    baselines, name = compared.baselines, subject.name
    comparisons = adjusted(compared.comparisons, evaluation)
    everyone = {**baselines, name: evaluation}
    verdict = decide(everyone, comparisons, name)
    parts = breakdown(evaluation, baselines)
    words = verdict_in_words(verdict, everyone, split=subject.split, trained=subject.trained)
    words += breakdown_in_words(parts)
    if compared.production is not None:
        words.append(compared.production.in_words())
    write_jsonl(out / SAMPLES, _samples(evaluation, baselines))
    manifest = {
        "key": subject.key,
        "model": subject.model,
        "dataset": subject.dataset,
        "split": subject.split,
        "name": name,
        "n": evaluation.n,
        "task": evaluation.task,
        "metrics": evaluation.metrics,
        "baselines": {other: baseline.metrics for other, baseline in baselines.items()},
        "comparisons": comparisons,
        "verdict": VerdictPart(sentence=words[0], **vars(verdict)),
        "words": words,
        "invalid": evaluation.invalid,
        "invalid_baselines": {other: baseline.invalid for other, baseline in baselines.items()},
        "notes": _all_notes(evaluation, baselines),
        "signatures": evaluation.signatures,
        "costs": {},
        **parts,
        "production": compared.production,
        **({"own_metrics": {name: metric_of(name) for name in own}} if (own := evaluation.own_metrics) else {}),
        **plain(more or {}),
        "settings": _settings(evaluation),
    }
    write_record(out / EVALUATION, EvaluationManifest.model_validate(manifest))
    return out / EVALUATION


def _settings(evaluation: Evaluation) -> ScoringSettings:
    intervals = "95 %: Wilson for shares of right answers, else bias-corrected percentile bootstrap over rows"
    if evaluation.clusters is not None:
        drawn = max(evaluation.clusters) + 1
        intervals = f"95 %: bias-corrected percentile bootstrap over {counted(drawn, 'cluster')} of rows"
    return ScoringSettings(
        intervals=intervals,
        seed=evaluation.seed,
        bootstrap=evaluation.config.bootstrap,
        fields=dict(evaluation.config.fields),
        labels=evaluation.labels,
        cluster=evaluation.config.cluster,
        primary=evaluation.config.primary,
        field_labels={name: list(labels) for name, labels in evaluation.measured.field_labels.items()},
        label_rows={name: dict(rows) for name, rows in evaluation.measured.label_rows.items()},
    )


def _all_notes(evaluation: Evaluation, baselines: Mapping[str, Evaluation]) -> list[str]:
    notes = list(evaluation.notes)
    for other, baseline in baselines.items():
        notes += [f"{other}: {note}" for note in baseline.notes if note not in notes]
    return notes


def _samples(evaluation: Evaluation, baselines: Mapping[str, Evaluation]) -> Iterator[Sample]:
    ids = {row.id for row in evaluation.rows}
    texts: dict[str, dict[str, str]] = {}
    facts: dict[str, dict[str, KnownOfAnswer]] = {}
    for name, baseline in baselines.items():
        texts[name] = {row.id: answer.text for row, answer in zip(baseline.rows, baseline.answers, strict=True)}
        if texts[name].keys() != ids:
            raise UserError(
                f"The baseline {name} was evaluated on other rows",
                next_step="evaluate it again with the same split and evaluate.limit",
            )
        facts[name] = dict(zip(texts[name], _answer_facts(baseline), strict=True))
    for i, (row, answer, own_facts) in enumerate(
        zip(evaluation.rows, evaluation.answers, _answer_facts(evaluation), strict=True)
    ):
        sample: dict[str, Any] = {"id": row.id, "prompt": last_user_turn(row), "reference": row.answer}
        if row.prompt != [{"role": "user", "content": sample["prompt"]}]:
            sample["messages"] = row.prompt
        if (references := references_of(row)) != [row.answer]:
            sample["references"] = references
        sample |= {"prediction": answer.text, "label": row.label}
        if evaluation.task == "classification":
            sample["predicted_label"] = evaluation.predictions[i]
        sample |= {
            "valid": evaluation.valid[i],
            "finished": answer.finished,
            "scores": {metric: scores[i] for metric, scores in evaluation.row_scores.items()},
            **own_facts.model_dump(exclude_unset=True),
            # The text stands above; the scores of all labels would be most of the file.
            "completion": {k: v for k, v in answer.to_json().items() if k not in ("text", "label_scores")},
            "baselines": {name: text[row.id] for name, text in texts.items()},
        }
        if facts:
            sample["baselines_beside"] = {name: each[row.id] for name, each in facts.items()}
        sample["meta"] = {name: value for name, value in row.meta.items() if name != "references"}
        yield Sample.model_construct(**sample)


def _answer_facts(evaluation: Evaluation) -> list[KnownOfAnswer]:
    """What is known of each row's answer that readers look up; `_measured` and `_completion` read it."""
    measured, answers = evaluation.measured, evaluation.answers
    sure = any(answer.label_probability is not None for answer in answers)
    facts_of_rows: list[KnownOfAnswer] = []
    for i, answer in enumerate(answers):
        facts: dict[str, Any] = {"confidence": answer.confidence} if sure else {}
        if answer.loss is not None:
            facts["loss"] = (answer.loss, answer.loss_tokens)
        if measured.languages:
            facts["language"] = measured.languages[i]
        if measured.further:
            facts["further"] = list(measured.further[i])
        if measured.row_scores:
            facts["measured"] = {metric: scores[i] for metric, scores in measured.row_scores.items()}
        facts_of_rows.append(KnownOfAnswer.model_construct(**facts))
    return facts_of_rows


def _measured(each: Sequence[KnownOfAnswer]) -> AnswerStats:
    given = each[0].model_fields_set if each else set()
    return AnswerStats(
        further=[known.further for known in each] if "further" in given else [],
        languages=[known.language or "" for known in each] if "language" in given else [],
        row_scores={
            metric: [known.measured[metric] for known in each] for metric in (each[0].measured if each else {})
        },
        complete=True,
    )


def _completion(text: str, facts: KnownOfAnswer, finished: bool = True) -> Completion:
    """An answer as a sample holds it; baselines have no `completion`."""
    stored = (facts.completion if isinstance(facts, Sample) else None) or {"finish": "stop" if finished else "length"}
    loss, tokens = facts.loss or (None, None)
    return replace(
        Completion.from_json({"text": text, **stored}),
        label_probability=facts.confidence,
        loss=None if tokens is None else math.nan if loss is None else loss,
        loss_tokens=tokens,
    )


def read_evaluation(path: Path | str, system: str = "") -> tuple[EvaluationManifest, list[Sample], str]:
    """`eval.json`, the records of `samples.jsonl`, and the name of a system in them, empty for the one that they are about.

    Args:
        path: the folder or its `eval.json`.
        system: its name; default: the one that the evaluation is about.

    Raises:
        UserError: a file is missing or damaged, or holds no such system.
    """
    file = Path(path) if Path(path).name == EVALUATION else Path(path) / EVALUATION
    if not file.is_file():
        next_step = f"run `tuneloop evaluate {file.parent}` first"
        raise UserError("No evaluation there", where=str(file), next_step=next_step)
    manifest = read_record(EvaluationManifest, file)
    samples = read_lines(Sample, file.with_name(SAMPLES), EvaluationManifest.again)
    if system and system != manifest.name and system not in manifest.baselines:
        raise UserError(
            f"The evaluation holds no answers of {system!r}",
            where=str(file),
            next_step=f"choose one of {', '.join([manifest.name, *manifest.baselines])}",
        )
    return manifest, samples, "" if system == manifest.name else system


def load_evaluation(path: Path | str, system: str | None = None) -> Evaluation:
    """Read an evaluation back, ready for `compare`; the inverse of `write_evaluation`.

    The numbers are computed again from the answers in `samples.jsonl` with the saved seed: two folders are compared
    by the same code, whichever version wrote them. Arguments and errors are those of `read_evaluation`.
    """
    return evaluated_again(path, *read_evaluation(path, system or ""))


def evaluated_again(path: Path | str, manifest: EvaluationManifest, samples: list[Sample], baseline: str) -> Evaluation:
    """The evaluation that files hold (`read_evaluation`), computed again."""
    try:
        declare(manifest.own_metrics.values())
        return _evaluated_again(manifest, samples, baseline)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"The evaluation is damaged or of another version ({error!r})",
            where=str(path),
            next_step="delete its eval.json and evaluate again",
        ) from None


def _evaluated_again(manifest: EvaluationManifest, samples: list[Sample], baseline: str) -> Evaluation:
    settings = manifest.settings
    if settings is None:
        raise KeyError("settings")
    if len(samples) != manifest.n:
        raise UserError(
            f"samples.jsonl has {counted(len(samples), 'row')} and eval.json says {manifest.n}",
            next_step="delete eval.json and evaluate again",
        )
    if not baseline:
        metrics, facts = manifest.metrics, list[KnownOfAnswer](samples)
        answers = [_completion(sample.prediction, sample, sample.finished) for sample in samples]
    else:
        metrics = manifest.baselines[baseline]
        facts = [sample.baselines_beside.get(baseline, KnownOfAnswer()) for sample in samples]
        answers = [_completion(s.baselines[baseline], row_facts) for s, row_facts in zip(samples, facts, strict=True)]
    saved = metrics.get("perplexity")
    again = evaluate(
        [_row(sample) for sample in samples],
        answers,
        task=manifest.task,
        labels=settings.labels,
        config=EvaluateConfig.model_validate(
            settings.model_dump(include={"fields", "bootstrap", "cluster", "primary"})
        ),
        seed=settings.seed,
        measured=replace(
            _measured(facts),
            perplexity=None if saved is None else saved.value,
            field_labels=settings.field_labels or {},
            label_rows=settings.label_rows or {},
        ),
    )
    return replace(again, primary=PARTS) if manifest.primary == PARTS else again


def _row(sample: Sample) -> Row:
    prompt: list[Message] = sample.messages or [{"role": "user", "content": sample.prompt}]
    return Row(
        id=sample.id,
        messages=[*prompt, {"role": "assistant", "content": sample.reference}],
        label=sample.label,
        meta=sample.meta | ({"references": sample.references} if sample.references is not None else {}),
    )
