"""A first regression suite, written from the rows that it will judge: a commented YAML file to be edited."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tuneloop.core.errors import UserError
from tuneloop.core.stats import Z80, Z95
from tuneloop.core.units import counted
from tuneloop.evaluate.evaluate import Evaluation
from tuneloop.evaluate.label_use import label_use
from tuneloop.evaluate.metrics import headline_of, metric_of
from tuneloop.evaluate.metrics.fields import compile_fields
from tuneloop.evaluate.metrics.multilabel import label_lists
from tuneloop.evaluate.metrics.structured import are_structured
from tuneloop.evaluate.primary import PARTS, WHOLE, primary_metric
from tuneloop.records.rows import Row, last_user_turn, references_of

MOST_ROWS = 8  # that must pass
LONGEST_COMMENT = 70  # characters of a row's prompt
CORRELATION = 0.7  # of two models' scores on the same rows: of near relatives, as a candidate and the model in use are


@dataclass(frozen=True)
class Known:
    """What a suite is made from.

    Args:
        name: of the data set or run.
        rows: of the test split, each with a reference.
        fields: patterns of the fields that are scored by themselves.
        evaluation, forgetting: the run's, if there is one; its rows are `rows`.
        timed: whether the evaluation measured how long answers took.
        origin: how the file was asked for, for its first line.
    """

    name: str
    rows: Sequence[Row]
    task: str
    fields: Mapping[str, str] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    forgetting: float | None = None
    timed: bool = True
    origin: str = ""


def first_suite(known: Known) -> str:
    """The suite as YAML with comments: rows that must pass, margins on the headline metrics, limits on time and forgetting.

    Raises:
        UserError: there are no test rows.
    """
    if not known.rows:
        raise UserError(
            "There are no test rows to make a suite from",
            where=known.name,
            next_step="prepare with data.split.test above 0",
        )
    parts = [_head(known), _must_pass(known), _metrics(known), _time(known), _forgetting(known)]
    return "\n".join(parts) + "\n"


def _head(known: Known) -> str:
    return f"""# What a new model must keep up with before it replaces the one in use. Written by `{known.origin or "tuneloop gate --init"}`:
# a beginning, to be edited. Then:
#   tuneloop gate NEW_RUN --against RUN_IN_USE --suite THIS_FILE
# Exit status: 0 pass, 1 fail, 3 not enough evidence. All parts: docs/gate.md.
version: 1
name: {json.dumps(known.name, ensure_ascii=False)}
"""


# --- rows that must pass -------------------------------------------------------------------------


def _must_pass(known: Known) -> str:
    how = (
        "The model in use gets these right, as many different answers as possible."
        if known.evaluation
        else "Nobody has checked that a model gets them right."
    )
    lines = [
        "# Rows that no release may get wrong: ids of the evaluation, or new prompts, which are asked of the candidate's model.",
        f"# {how} Put in the ones that matter most to you: money, safety, the law.",
    ]
    entries = _entries(known)
    lines.append("must_pass:" if entries else "must_pass: []")
    for row, condition in entries:
        prompt = json.dumps(" ".join(last_user_turn(row).split())[:LONGEST_COMMENT], ensure_ascii=False)
        lines.append(
            f"  - id: {json.dumps(row.id)} # {prompt}"
            + (f" -> {' '.join(row.label.split())}" if row.label is not None else "")
        )
        if condition:
            lines.append(f"    contains: {json.dumps(condition, ensure_ascii=False)}")
    if not entries:
        first = " ".join(last_user_turn(known.rows[0]).split())[:LONGEST_COMMENT]
        lines += [
            "# Texts can be right in many ways: say for some rows, or new prompts, what an answer must contain or lack.",
            f"#  - id: {json.dumps(known.rows[0].id)} # {json.dumps(first, ensure_ascii=False)}",
            '#    contains: "..."',
            '#    lacks: ["password", "credit card number"]',
        ]
    lines += [
        "#  - prompt: A prompt of your own, which is in no split.",
        '#    contains: "..."',
        "repeat: 3 # a row that fails is asked again; one that passes only sometimes is `flaky`",
        "flaky: inconclusive # or fail, or pass",
        "",
    ]
    return "\n".join(lines)


def _entries(known: Known) -> list[tuple[Row, str]]:
    """Rows with what their answers must contain (labels: empty, the label itself is the condition), one for each label in turn."""
    patterns = compile_fields(dict(known.fields))
    objects = not patterns and are_structured([references_of(row) for row in known.rows])
    groups: dict[str, list[tuple[Row, str]]] = {}
    for i, row in enumerate(known.rows):
        condition = ""
        if known.task != "classification" and not objects:
            found = next((m for pattern in patterns.values() if (m := pattern.search(row.answer))), None)
            if found is None:
                continue
            condition = found[0].strip()
        if known.evaluation is not None and not _passes(known.evaluation, i, condition):
            continue
        groups.setdefault(condition or (row.answer if objects else str(row.label)), []).append((row, condition))
    order = sorted(groups, key=lambda key: (-len(groups[key]), key))[:MOST_ROWS]
    return [groups[key][0] for key in order]


def _passes(evaluation: Evaluation, i: int, condition: str) -> bool:
    if condition:
        return condition.casefold() in evaluation.answers[i].text.casefold()
    scores = evaluation.row_scores
    return scores.get("accuracy", scores.get("object_accuracy", [1.0] * evaluation.n))[i] == 1.0


# --- metrics -------------------------------------------------------------------------------------


def _metrics(known: Known) -> str:
    n = len(known.rows)
    lines = [
        "# How much worse a metric may be than that of the model in use: the 95 % interval of the difference must lie above -margin.",
        f"# These margins are about the smallest that {counted(n, 'row')} can hold an equally good model to (80 % power); with smaller ones the",
        '# gate would mostly say "not enough evidence". at_least stops a slow decline over many releases, each within its margin.',
        "metrics:",
    ]
    for metric, value, error in _limits(known):
        margin = _margin(metric, error)
        lines += [f"  - metric: {json.dumps(metric)}", f"    margin: {margin:g}"]
        if value is not None and not math.isnan(value[0]):
            bound, word = (value[1], "at_most") if metric_of(metric).lower_is_better else (value[0], "at_least")
            kept = bound + margin if word == "at_most" else max(0.0, bound - margin)
            rounded = (math.ceil if word == "at_most" else math.floor)(kept * _steps(metric)) / _steps(metric)
            side = "ends at {:.3g}, and the margin" if word == "at_most" else "begins at {:.3g}, less the margin"
            lines.append(f"    {word}: {rounded:g} # the run's 95 % interval {side.format(bound)}")
    if known.task == "classification":
        lines += [
            "# No label may get much worse by itself; for labels with at least 30 rows:",
            "#  - metric: accuracy",
            "#    by: label",
            "#    min_rows: 30",
            "#    margin: 0.15",
        ]
    return "\n".join([*lines, ""])


def _limits(known: Known) -> list[tuple[str, tuple[float, float] | None, float]]:
    """(metric, the run's interval, standard error) of the metrics that a verdict rests on; without a run those that will."""
    n = len(known.rows)
    if known.evaluation is not None:
        metrics = known.evaluation.metrics
        wanted = [m for m in known.evaluation.headline if not (m == "invalid_rate" and known.task == "classification")]
        return [(m, (metrics[m].low, metrics[m].high), (metrics[m].high - metrics[m].low) / (2 * Z95)) for m in wanted]
    spread = 0.4 / math.sqrt(n)  # of a share of 80 %
    if known.task == "classification":
        lists = label_lists(known.rows)
        used = label_use(lists if lists is not None else [(str(row.label),) for row in known.rows], [])
        several = {"subset_accuracy"} if lists is not None else set()
        first = primary_metric(known.task, (), {"accuracy", "macro_f1", "micro_f1", *several}, {"": used})
        return [(m, None, spread) for m in dict.fromkeys([first, "accuracy"])]
    fields = [(f"{name}.accuracy", None, spread) for name in known.fields]
    if not fields and are_structured([references_of(row) for row in known.rows]):
        return [(name, None, spread) for name in (WHOLE, PARTS)]
    return [*fields, (headline_of("texts")[-1], None, 20 / math.sqrt(n))]


def _margin(metric: str, error: float) -> float:
    """(1.96 + 0.84) standard errors of the difference of two correlated scores, rounded up, and no less than what matters.

    Source: the usual sample size of non-inferiority, for two equally good sides (Piaggio et al. 2012).
    """
    known = metric_of(metric)
    needed = 0.0 if math.isnan(error) else (Z95 + Z80) * error * math.sqrt(2 * (1 - CORRELATION))
    return max(known.smallest_margin, math.ceil(needed * _steps(metric)) / _steps(metric))


def _steps(metric: str) -> float:
    """Steps in a unit that limits are rounded to."""
    return 1 / metric_of(metric).margin_step


# --- time and forgetting -------------------------------------------------------------------------


def _time(known: Known) -> str:
    lines = ["# Limits on time, as measured during the two evaluations; the ratio makes sense on one machine only."]
    limits = ["latency:", "  ratio: 1.5", "#  seconds_per_row: 0.5"]
    if not known.timed:
        limits = [f"# {line.removeprefix('#')}" for line in limits]
    return "\n".join([*lines, *limits, ""])


def _forgetting(known: Known) -> str:
    lines = ["# General ability that may be lost, where the evaluation measures it (evaluate.general=FILE):"]
    on = known.forgetting is not None
    limits = ["forgetting:", "  at_most: 0.05"]
    return "\n".join([*lines, *(limits if on else [f"# {line}" for line in limits])])
