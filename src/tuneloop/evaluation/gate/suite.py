"""A regression suite: what must hold before a model may replace the one in use; and how a first one is written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tuneloop.core.errors import UserError
from tuneloop.core.files import Config, build_config, read_jsonl, read_yaml, write_text
from tuneloop.core.lazy import np
from tuneloop.core.patterns import compile_pattern
from tuneloop.core.stats.bounded import bounded_interval, cluster_values
from tuneloop.core.stats.intervals import Z80, Z95
from tuneloop.core.units import counted
from tuneloop.data import load_dataset
from tuneloop.evaluation.deciding import OF_JSON, label_use, primary_metric
from tuneloop.evaluation.evaluate import ScoredAnswers
from tuneloop.evaluation.metrics.custom import compile_fields
from tuneloop.evaluation.metrics.declared import headline_of, metric_of
from tuneloop.evaluation.metrics.kinds import are_structured
from tuneloop.evaluation.metrics.labels import label_lists
from tuneloop.evaluation.results import load_evaluation
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.records.record import read_record
from tuneloop.records.rows import Row, last_user_turn, references_of

Status = Literal["pass", "fail", "inconclusive"]


class MustPass(Config):
    """A row that must pass. Without a condition the answer must be right: its label, or its text."""

    id: str = Field("", description="a row of the evaluation")
    prompt: str = Field("", description="a new prompt instead, which the candidate's model answers")
    system: str = Field("", description="system prompt of a new prompt")
    request: str = Field("", description="request that it was made of, by which `tuneloop data forget` finds it")
    equals: str | None = Field(None, description="the answer, but for case and outer spaces")
    contains: list[str] | str = Field(default_factory=list, description="each must occur, in any case")
    lacks: list[str] | str = Field(default_factory=list, description="none may occur, in any case")
    matches: str | None = Field(None, description="regular expression to be found in the answer")

    @model_validator(mode="before")
    @classmethod
    def _of_id(cls, value: Any) -> Any:
        return {"id": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _complete(self) -> MustPass:
        if bool(self.id) == bool(self.prompt):
            raise ValueError("give either id or prompt")
        if self.prompt and not self.has_condition:
            raise ValueError("a new prompt needs equals, contains, lacks or matches")
        if self.matches is not None:
            try:
                compile_pattern(self.matches)
            except ValueError as error:
                raise ValueError(f"matches is not a regular expression: {error}") from None
        return self

    @property
    def has_condition(self) -> bool:
        """Whether it says itself what must hold."""
        return self.equals is not None or self.matches is not None or bool(self.contains or self.lacks)


class MetricLimit(Config):
    """How much worse than the base a metric may be, or where it must stand at least or at most."""

    metric: str = Field(description="name in eval.json")
    margin: float | None = Field(None, ge=0, description="at most this much worse than the base, in the metric's units")
    at_least: float | None = Field(None, description="the candidate's value itself")
    at_most: float | None = Field(None, description="the candidate's value itself")
    slice: dict[str, Any] = Field(
        default_factory=dict, description="only rows with these values, as in {label: refund}"
    )
    by: str = Field("", description="each value of this field on its own")
    min_rows: int = Field(20, ge=2, description="of `by`: values with fewer rows are left out")

    @model_validator(mode="after")
    def _complete(self) -> MetricLimit:
        if self.margin is None and self.at_least is None and self.at_most is None:
            raise ValueError("give margin, at_least or at_most")
        return self


class ForgettingLimit(Config):
    """How much general ability may be lost."""

    at_most: float = Field(0.05, description="forgetting score in eval.json: the share of what the base could do")


class LatencyLimit(Config):
    """How slow answers may be, as measured during the evaluation."""

    seconds_per_row: float | None = Field(None, gt=0, description="mean seconds for an answer")
    ratio: float | None = Field(None, gt=0, description="at most this many times the base's; needs the same machine")


class Suite(Config):
    """A regression suite."""

    version: Literal[1] = 1
    name: str = Field("regression", description="for people")
    must_pass: list[MustPass] = Field(default_factory=list, description="ids, or mappings with conditions")
    must_pass_file: str = Field("", description="JSON Lines with more of them, in the suite's folder")
    repeat: int = Field(3, ge=0, le=20, description="how often a row that failed is repeated, where possible")
    flaky: Status = Field("inconclusive", description="what a row is that passes sometimes")
    metrics: list[MetricLimit] = Field(default_factory=list, description="margins and limits")
    forgetting: ForgettingLimit | None = Field(None, description="limit on forgetting")
    latency: LatencyLimit | None = Field(None, description="limits on time")
    judge_alone: bool = Field(False, description="allow a suite whose only evidence is a judge model")


def load_suite(path: Path | str) -> Suite:
    """Read and check a suite. Raises UserError: it is missing or wrong, demands nothing, or rests on a judge alone."""
    path = Path(path)
    suite = build_config(Suite, read_yaml(path, "suite"), where=str(path))
    if suite.must_pass_file:
        records = ({"id": r} if isinstance(r, str) else r for r in read_jsonl(path.parent / suite.must_pass_file))
        more = [build_config(MustPass, record, where=suite.must_pass_file) for record in records]
        suite = suite.model_copy(update={"must_pass": [*suite.must_pass, *more]})
    if not (suite.must_pass or suite.metrics or suite.forgetting or suite.latency):
        raise UserError("The suite demands nothing", where=str(path), next_step="add must_pass or metrics")
    judged = [limit for limit in suite.metrics if limit.metric.split(".")[0].startswith("judge")]
    if judged and len(judged) == len(suite.metrics) and not suite.must_pass and not suite.judge_alone:
        message = "The suite's only evidence is a judge model, which can be wrong in the same way each time"
        step = "add must_pass rows or another metric, or set judge_alone: true"
        raise UserError(message, where=str(path), next_step=step)
    return suite


MOST_ROWS = 8  # that must pass
LONGEST_COMMENT = 70  # characters of a row's prompt
CORRELATION = 0.7  # of two models' scores on the same rows: of near relatives, as a candidate and the model in use are


@dataclass(frozen=True)
class SuiteSource:
    """What a suite is made from."""

    name: str  # of the data set or run
    rows: Sequence[Row]  # of the test split, each with a reference
    task: str
    fields: Mapping[str, str] = field(default_factory=dict)  # patterns of the fields that are scored on their own
    evaluation: ScoredAnswers | None = None  # the run's, if there is one, of these rows
    forgetting: float | None = None
    timed: bool = True  # whether the evaluation measured how long answers took
    origin: str = ""  # the command that wrote the file, for its first line


def first_suite(source: SuiteSource) -> str:
    """The suite as YAML with comments: rows that must pass, margins on the headline metrics, limits on time and
    forgetting. Raises UserError: there are no test rows."""
    if not source.rows:
        message = "There are no test rows to make a suite from"
        raise UserError(message, where=source.name, next_step="prepare with data.split.test above 0")
    off = "" if source.forgetting is not None else "# "
    latency = ["latency:", "  ratio: 1.5", "#  seconds_per_row: 0.5"]
    latency = latency if source.timed else [f"# {line.removeprefix('#')}" for line in latency]
    lines = [
        f"# What a new model must keep up with before it replaces the one in use. Written by "
        f"`{source.origin or 'tuneloop gate --init'}`:",
        "# a beginning, to be edited. Then:",
        "#   tuneloop gate NEW_RUN --against RUN_IN_USE --suite THIS_FILE",
        "# Exit status: 0 pass, 1 fail, 3 not enough evidence. All parts: docs/gate.md.",
        "version: 1", f"name: {json.dumps(source.name, ensure_ascii=False)}", "",
        _must_pass(source), _metrics(source),
        "# Limits on time, as measured during the two evaluations; the ratio makes sense on one machine only.",
        *latency, "",
        "# General ability that may be lost, where the evaluation measures it (evaluate.general=FILE):",
        f"{off}forgetting:", f"{off}  at_most: 0.05", "",
    ]  # fmt: skip
    return "\n".join(lines)


def write_first_suite(target: str, out: str) -> Path:
    """Write a commented suite from an evaluation (of a run, or its folder), or from a data set's test rows.

    Raises:
        UserError: the target is none of these, it has no test rows, or the file `out` is there.
    """
    path, folder = Path(out), Path(target)
    if path.exists():
        raise UserError("That suite is there already", where=out, next_step="name another file with --suite FILE")
    if folder.name in ("eval.json", "dataset.json") and folder.is_file():
        folder = folder.parent
    write_text(path, first_suite(_suite_source(folder, target)))
    load_suite(path)  # what is written here must be taken by the gate
    return path


def _suite_source(folder: Path, target: str) -> SuiteSource:
    name, origin = folder.resolve().name, f"tuneloop gate --init {target}"
    if (folder / "eval.json").is_file():
        manifest, evaluation = read_record(EvaluationManifest, folder), load_evaluation(folder)
        cost = manifest.costs.get(manifest.name)
        forgetting = manifest.forgetting.score.value if manifest.forgetting else math.nan
        return SuiteSource(
            name=name,
            rows=evaluation.rows,
            task=evaluation.task,
            fields=evaluation.config.fields,
            evaluation=evaluation,
            forgetting=None if math.isnan(forgetting) else forgetting,
            timed=bool(cost and cost.seconds) and manifest.endpoint is None,  # no ratio to another machine
            origin=origin,
        )
    if (folder / "dataset.json").is_file():
        dataset = load_dataset(folder)
        return SuiteSource(name, [row for row in dataset.test if row.has_reference], dataset.task, origin=origin)
    if (folder / "run.json").is_file():
        step = f"tuneloop evaluate {target}"
        raise UserError("This run has not been evaluated yet", where=target, next_step=step)
    message = "A suite is made from a run, an evaluation or a prepared data set"
    raise UserError(message, where=target, next_step="name a folder with eval.json or dataset.json")


def _must_pass(source: SuiteSource) -> str:
    how = "The model in use gets these right, as many different answers as possible."
    how = how if source.evaluation else "No one has checked that a model gets them right."
    lines = [
        "# Rows that no release may get wrong: ids of the evaluation, or new prompts for the candidate's model.",
        f"# {how} Put in the ones that matter most to you: money, safety, the law.",
    ]
    entries = _entries(source)
    lines.append("must_pass:" if entries else "must_pass: []")
    for row, condition in entries:
        prompt = json.dumps(" ".join(last_user_turn(row).split())[:LONGEST_COMMENT], ensure_ascii=False)
        label = f" -> {' '.join(row.label.split())}" if row.label is not None else ""
        lines.append(f"  - id: {json.dumps(row.id)} # {prompt}{label}")
        if condition:
            lines.append(f"    contains: {json.dumps(condition, ensure_ascii=False)}")
    if not entries:
        first = " ".join(last_user_turn(source.rows[0]).split())[:LONGEST_COMMENT]
        lines += [
            "# Texts can be right in many ways: say for some rows or new prompts what an answer must contain or lack.",
            f"#  - id: {json.dumps(source.rows[0].id)} # {json.dumps(first, ensure_ascii=False)}",
            '#    contains: "..."',
            '#    lacks: ["password", "credit card number"]',
        ]
    lines += [
        "#  - prompt: A prompt of your own, which is in no split.",
        '#    contains: "..."',
        "repeat: 3 # a row that fails is repeated; one that passes only sometimes is `flaky`",
        "flaky: inconclusive # or fail, or pass",
        "",
    ]
    return "\n".join(lines)


def _entries(source: SuiteSource) -> list[tuple[Row, str]]:
    patterns = compile_fields(dict(source.fields))
    objects = not patterns and are_structured([references_of(row) for row in source.rows])
    evaluation = source.evaluation
    scores = evaluation.row_scores if evaluation else {}
    right = scores.get("accuracy", scores.get("object_accuracy", [1.0] * len(source.rows)))
    groups: dict[str, list[tuple[Row, str]]] = {}
    for i, row in enumerate(source.rows):
        condition = ""
        if source.task != "classification" and not objects:
            match = next((m for pattern in patterns.values() if (m := pattern.search(row.answer))), None)
            if match is None:
                continue
            condition = match[0].strip()
        if evaluation is not None:
            text = evaluation.answers[i].text
            passes = condition.casefold() in text.casefold() if condition else right[i] == 1.0
            if not passes:
                continue
        groups.setdefault(condition or (row.answer if objects else str(row.label)), []).append((row, condition))
    order = sorted(groups, key=lambda key: (-len(groups[key]), key))[:MOST_ROWS]
    return [groups[key][0] for key in order]


def _metrics(source: SuiteSource) -> str:
    n = len(source.rows)
    lines = [
        "# How much worse a metric may be than that of the model in use: the 95 % interval must lie above -margin.",
        f"# These margins are about the smallest that {counted(n, 'row')} can hold an equally good model to (80 %",
        '# power); smaller ones mostly give "not enough evidence". at_least stops a slow decline over many releases.',
        "metrics:",
    ]
    for metric, value, error in _limits(source):
        # (1.96 + 0.84) standard errors of the difference of two correlated scores, rounded up, and no less than what
        # matters: the usual sample size of non-inferiority, for two equally good sides (Piaggio et al. 2012).
        needed = 0.0 if math.isnan(error) else (Z95 + Z80) * error * math.sqrt(2 * (1 - CORRELATION))
        needed = max(needed, _left_open(metric, source))
        margin = max(metric_of(metric).smallest_margin, math.ceil(needed * _steps(metric)) / _steps(metric))
        lines += [f"  - metric: {json.dumps(metric)}", f"    margin: {margin:g}"]
        if value is not None and not math.isnan(value[0]):
            bound, word = (value[1], "at_most") if metric_of(metric).lower_is_better else (value[0], "at_least")
            limit = bound + margin if word == "at_most" else max(0.0, bound - margin)
            rounded = (math.ceil if word == "at_most" else math.floor)(limit * _steps(metric)) / _steps(metric)
            side = "ends at {:.3g}, and the margin" if word == "at_most" else "begins at {:.3g}, less the margin"
            lines.append(f"    {word}: {rounded:g} # the run's 95 % interval {side.format(bound)}")
    if source.task == "classification":
        lines += [
            "# No single label may get much worse; for labels with at least 30 rows:",
            "#  - metric: accuracy",
            "#    by: label",
            "#    min_rows: 30",
            "#    margin: 0.15",
        ]
    return "\n".join([*lines, ""])


def _left_open(metric: str, source: SuiteSource) -> float:
    """The loss that so many rows leave open even where all of them are equal."""
    if metric_of(metric).scale == "from 0":
        return 0.0
    clusters = source.evaluation.clusters if source.evaluation else None
    rows, reach = np.zeros(len(source.rows)), 1.0
    if clusters is not None:
        rows, reach = cluster_values(rows, clusters)
    return -bounded_interval(rows, reach)[0] * metric_of(metric).out_of


def _limits(source: SuiteSource) -> list[tuple[str, tuple[float, float] | None, float]]:
    n = len(source.rows)
    if source.evaluation is not None:
        left_out = {"invalid_rate"} if source.task == "classification" else set()
        scores = {m: source.evaluation.metrics[m] for m in source.evaluation.headline if m not in left_out}
        return [(m, (score.low, score.high), (score.high - score.low) / (2 * Z95)) for m, score in scores.items()]
    spread = 0.4 / math.sqrt(n)  # of a share of 80 %
    if source.task == "classification":
        lists = label_lists(source.rows)
        used = label_use(lists if lists is not None else [(str(row.label),) for row in source.rows], [])
        several = {"subset_accuracy"} if lists is not None else set()
        first = primary_metric(source.task, (), {"accuracy", "macro_f1", "micro_f1", *several}, {"": used})
        return [(m, None, spread) for m in dict.fromkeys([first, "accuracy"])]
    fields = [(f"{name}.accuracy", None, spread) for name in source.fields]
    if not fields and are_structured([references_of(row) for row in source.rows]):
        return [(name, None, spread) for name in OF_JSON]
    return [*fields, (headline_of("texts")[-1], None, 20 / math.sqrt(n))]


def _steps(metric: str) -> float:
    return 1 / metric_of(metric).margin_step
