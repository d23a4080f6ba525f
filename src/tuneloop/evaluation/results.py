"""The evaluation's files: `samples.jsonl` with every answer, and `eval.json`, written last."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import plain, write_jsonl
from tuneloop.core.ui import busy
from tuneloop.core.units import counted
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import ScoredAnswers, decided_by, evaluate
from tuneloop.evaluation.leaderboard import leaderboard_in_words, leaderboard_of
from tuneloop.evaluation.metrics.declared import declare, metric_of
from tuneloop.evaluation.paired import adjusted, compare
from tuneloop.evaluation.scoring import AnswerStats
from tuneloop.evaluation.slices import breakdown, breakdown_in_words, paired_slices, paired_slices_in_words
from tuneloop.evaluation.verdict import decide, verdict_in_words
from tuneloop.models.files import known_name
from tuneloop.records import evaluation as records
from tuneloop.records.completion import Completion
from tuneloop.records.record import read_lines, read_record, write_record
from tuneloop.records.rows import Message, Row, last_user_turn, references_of


@dataclass(frozen=True)
class ComparedWith:
    """What an evaluation was compared with."""

    baselines: Mapping[str, ScoredAnswers] = field(default_factory=dict)  # other systems, on the same rows
    comparisons: Sequence[records.Comparison] = ()  # of baselines (a) with the evaluation (b)
    by_slice: bool = False  # whether all others are compared with the first on each slice too


ALONE = ComparedWith()
AGAIN = ("fields", "bootstrap", "cluster", "primary")  # of the settings, by which answers are scored again


def write_evaluation(
    out: Path,
    evaluation: ScoredAnswers,
    subject: records.Subject,
    compared: ComparedWith = ALONE,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write `samples.jsonl`, then `eval.json`, whose path is returned, and which completes the folder. `more`: further
    parts of it (costs, leaderboard ...). Raises UserError: a baseline has other rows, or the disk refuses."""
    baselines, name = compared.baselines, subject.name
    comparisons = adjusted(compared.comparisons, evaluation)
    everyone = {**baselines, name: evaluation}
    verdict = decide(everyone, comparisons, name)
    parts = breakdown(evaluation, baselines)
    summaries = verdict_in_words(verdict, everyone, split=subject.split, trained=subject.trained)
    summaries += breakdown_in_words(parts)
    parts["slice_comparisons"] = {}
    first, *others = everyone
    for other in others if compared.by_slice else ():
        slices = parts["slice_comparisons"][other] = paired_slices(everyone[first], everyone[other])
        summaries += paired_slices_in_words(first, other, evaluation.row_metric, slices)
    write_jsonl(out / records.SAMPLES, _samples(evaluation, baselines))
    notes = list(evaluation.notes)
    for other, baseline in baselines.items():
        notes += [f"{other}: {note}" for note in baseline.notes if note not in notes]
    own_metrics = {metric: metric_of(metric) for metric in evaluation.own_metrics}
    manifest = {
        "key": subject.key, "model": subject.model, "dataset": subject.dataset, "split": subject.split,
        "name": name, "n": evaluation.n, "task": evaluation.task, "metrics": evaluation.metrics,
        "baselines": {other: baseline.metrics for other, baseline in baselines.items()},
        "comparisons": comparisons,
        "verdict": records.VerdictPart(sentence=summaries[0], **vars(verdict)),
        "words": summaries, "invalid": evaluation.invalid,
        "invalid_baselines": {other: baseline.invalid for other, baseline in baselines.items()},
        "notes": notes, "signatures": evaluation.signatures, "costs": {}, **parts,
        **({"own_metrics": own_metrics} if own_metrics else {}),
        **plain(more or {}), "settings": _settings(evaluation),
    }  # fmt: skip
    write_record(out / records.EVALUATION, records.EvaluationManifest.model_validate(manifest))
    return out / records.EVALUATION


def write_scored(
    folder: Path,
    evaluation: ScoredAnswers,
    subject: records.Subject,
    costs: Mapping[str, Mapping[str, float]],
    *,
    baselines: Mapping[str, ScoredAnswers] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write an evaluation with its comparisons and, where there are baselines, the leaderboard.

    Args:
        subject: what was evaluated; `more` may name another model.
        costs: of each system's answers; `more`: further parts of `eval.json`.
    """
    name = subject.name
    baselines = decided_by(evaluation.primary, baselines or {})
    with busy("comparing answers"):
        pairs = [c for other, baseline in baselines.items() for c in compare(other, baseline, name, evaluation)]
        pairs = adjusted(pairs, evaluation)
        more = {"costs": costs, **(more or {})}
        if baselines:
            entries = leaderboard_of({**baselines, name: evaluation}, costs, tuned=[name], comparisons=pairs)
            more = {"leaderboard": entries, "leaderboard_words": leaderboard_in_words(entries), **more}
        subject = replace(subject, model=known_name(str(more.pop("model", subject.model))))
        write_evaluation(folder, evaluation, subject, ComparedWith(baselines, pairs), more)


def _settings(evaluation: ScoredAnswers) -> records.ScoringSettings:
    intervals = "95 %: Wilson for shares of right answers, else bias-corrected percentile bootstrap over rows"
    if evaluation.clusters is not None:
        clusters = counted(max(evaluation.clusters) + 1, "cluster")
        intervals = f"95 %: bias-corrected percentile bootstrap over {clusters} of rows"
    parts = {name: getattr(evaluation.config, name) for name in AGAIN}
    parts |= {"intervals": intervals, "seed": evaluation.seed, "labels": evaluation.labels}
    measured = evaluation.measured
    parts["field_labels"] = {name: list(labels) for name, labels in measured.field_labels.items()}
    parts["label_rows"] = {name: dict(rows) for name, rows in measured.label_rows.items()}
    parts["deciding"] = measured.deciding
    return records.ScoringSettings(**parts)


def _samples(evaluation: ScoredAnswers, baselines: Mapping[str, ScoredAnswers]) -> Iterator[records.Sample]:
    ids = {row.id for row in evaluation.rows}
    texts: dict[str, dict[str, str]] = {}
    facts: dict[str, dict[str, records.KnownOfAnswer]] = {}
    for name, baseline in baselines.items():
        texts[name] = {row.id: answer.text for row, answer in zip(baseline.rows, baseline.answers, strict=True)}
        if texts[name].keys() != ids:
            next_step = "evaluate it again with the same split and evaluate.limit"
            raise UserError(f"The baseline {name} was evaluated on other rows", next_step=next_step)
        facts[name] = dict(zip(texts[name], _answer_facts(baseline), strict=True))
    entries = zip(evaluation.rows, evaluation.answers, _answer_facts(evaluation), strict=True)
    for i, (row, answer, own_facts) in enumerate(entries):
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
            sample["baselines_beside"] = {name: row_facts[row.id] for name, row_facts in facts.items()}
        sample["meta"] = {name: value for name, value in row.meta.items() if name != "references"}
        yield records.Sample.model_construct(**sample)


def _answer_facts(evaluation: ScoredAnswers) -> list[records.KnownOfAnswer]:
    measured, answers = evaluation.measured, evaluation.answers
    sure = any(answer.label_probability is not None for answer in answers)
    facts_of_rows: list[records.KnownOfAnswer] = []
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
        facts_of_rows.append(records.KnownOfAnswer.model_construct(**facts))
    return facts_of_rows


def _completion(text: str, facts: records.KnownOfAnswer, finished: bool = True) -> Completion:
    """An answer as a sample holds it; baselines have no `completion`."""
    stored = facts.completion if isinstance(facts, records.Sample) else None
    completion = Completion.from_json({"text": text, **(stored or {"finish": "stop" if finished else "length"})})
    loss, tokens = facts.loss or (None, None)
    if tokens is not None and loss is None:
        loss = math.nan
    return replace(completion, label_probability=facts.confidence, loss=loss, loss_tokens=tokens)


def read_evaluation(path: Path | str, system: str = "") -> tuple[records.EvaluationManifest, list[records.Sample], str]:
    """`eval.json`, the records of `samples.jsonl`, and the name of a system in them, empty for the one that they are
    about. `path`: the folder or its `eval.json`; `system`: its name; default: the one that the evaluation is about.
    Raises UserError: a file is missing or damaged, or holds no such system."""
    file = Path(path) if Path(path).name == records.EVALUATION else Path(path) / records.EVALUATION
    if not file.is_file():
        next_step = f"run `tuneloop evaluate {file.parent}` first"
        raise UserError("No evaluation there", where=str(file), next_step=next_step)
    manifest = read_record(records.EvaluationManifest, file)
    samples = read_lines(records.Sample, file.with_name(records.SAMPLES), records.EvaluationManifest.again)
    if system and system != manifest.name and system not in manifest.baselines:
        next_step = f"choose one of {', '.join([manifest.name, *manifest.baselines])}"
        raise UserError(f"The evaluation holds no answers of {system!r}", where=str(file), next_step=next_step)
    return manifest, samples, "" if system == manifest.name else system


def load_evaluation(path: Path | str, system: str | None = None) -> ScoredAnswers:
    """Read an evaluation back, ready for `compare`; the inverse of `write_evaluation`. The numbers are computed again
    from the answers in `samples.jsonl` with the saved seed: two folders are compared by the same code, whichever
    version wrote them. Arguments and errors are those of `read_evaluation`."""
    return evaluated_again(path, *read_evaluation(path, system or ""))


def evaluated_again(
    path: Path | str, manifest: records.EvaluationManifest, samples: list[records.Sample], baseline: str
) -> ScoredAnswers:
    """The evaluation that files hold (`read_evaluation`), computed again."""
    try:
        declare(manifest.own_metrics.values())
        return _evaluated_again(manifest, samples, baseline)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"The evaluation is damaged or of another version ({error!r})"
        raise UserError(message, where=str(path), next_step="delete its eval.json and evaluate again") from None


def _evaluated_again(
    manifest: records.EvaluationManifest, samples: list[records.Sample], baseline: str
) -> ScoredAnswers:
    settings = manifest.settings
    if settings is None:
        raise KeyError("settings")
    if len(samples) != manifest.n:
        message = f"samples.jsonl has {counted(len(samples), 'row')} and eval.json says {manifest.n}"
        raise UserError(message, next_step="delete eval.json and evaluate again")
    if not baseline:
        metrics, facts = manifest.metrics, list[records.KnownOfAnswer](samples)
        answers = [_completion(sample.prediction, sample, sample.finished) for sample in samples]
    else:
        metrics = manifest.baselines[baseline]
        facts = [sample.baselines_beside.get(baseline, records.KnownOfAnswer()) for sample in samples]
        answers = [_completion(s.baselines[baseline], row_facts) for s, row_facts in zip(samples, facts, strict=True)]
    rows = []
    for sample in samples:
        prompt: list[Message] = sample.messages or [{"role": "user", "content": sample.prompt}]
        turns: list[Message] = [*prompt, {"role": "assistant", "content": sample.reference}]
        meta = sample.meta | ({"references": sample.references} if sample.references is not None else {})
        rows.append(Row(id=sample.id, messages=turns, label=sample.label, meta=meta))
    perplexity = metrics.get("perplexity")
    first = facts[0] if facts else records.KnownOfAnswer()
    further = [fact.further for fact in facts] if "further" in first.model_fields_set else []
    languages = [fact.language or "" for fact in facts] if "language" in first.model_fields_set else []
    scores = {metric: [fact.measured[metric] for fact in facts] for metric in first.measured}
    measured = AnswerStats(further, languages, scores, True, perplexity.value if perplexity else None)
    measured = replace(measured, field_labels=settings.field_labels or {}, label_rows=settings.label_rows or {})
    measured = replace(measured, deciding=settings.deciding)
    config = EvaluateConfig.model_validate(settings.model_dump(include=set(AGAIN)))
    options: dict[str, Any] = {"task": manifest.task, "labels": settings.labels, "seed": settings.seed}
    return evaluate(rows, answers, config=config, measured=measured, **options)
