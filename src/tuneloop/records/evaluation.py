"""What an evaluation comes to: `eval.json`, the lines of `samples.jsonl`, `baselines/baselines.json`, `gate.json`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tuneloop.core.units import counted
from tuneloop.records.metric import Estimate as Estimate
from tuneloop.records.metric import Metric
from tuneloop.records.record import Number, Part, Record
from tuneloop.records.rows import Message
from tuneloop.records.side_effects import Consistency, Forgetting, Memorisation

EVALUATION = "eval.json"
SAMPLES = "samples.jsonl"  # next to it


Metrics = dict[str, Estimate]


def split_place(location: str) -> tuple[Path, str]:
    """The folder of an evaluation and a system's name, out of `FOLDER`, `FOLDER/eval.json` or `FOLDER:NAME`.

    A path that exists is a folder. Else the name begins behind the first colon with an existing path before it, or
    behind the first one of all: folders and names may hold colons. The name is empty where none is given.
    """
    parts = location.split(":")
    splits = [(":".join(parts[:i]), ":".join(parts[i:])) for i in range(1, len(parts))]
    existing = [(folder, name) for folder, name in splits if Path(folder).exists()]
    folder, name = (location, "") if Path(location).exists() or not splits else (existing or splits)[0]
    path = Path(folder)
    return path.parent if path.name == EVALUATION else path, name


@dataclass(frozen=True)
class Subject:
    """What was evaluated on what."""

    model: str
    dataset: str
    split: str = "test"
    name: str = "tuned"  # of the system in `comparisons`
    key: str = ""  # hash of everything that the result depends on, to tell whether it is still good
    trained: str = ""  # how far it was trained, where that is worth a word in the verdict


# --- comparisons and the verdict ---------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """How far b is above a on one metric over the same rows.

    Args:
        delta: b - a; `low` and `high` are its 95 % interval, for this comparison alone.
        p: two-sided p-value of `test`, likewise. It is below 0.05 just where the interval does not reach 0.
        verdict: `better` (b), `worse` or `not enough evidence`, by `p_holm`.
        p_holm, low_holm, high_holm: p-value and interval corrected (Holm) for the `tests` comparisons that are read
            together, as shown (see `evaluate.adjusted`); they agree as `p` and the 95 % interval do.
        effect: size of the difference without its unit: `effect_kind` tells which.
        detectable: the smallest difference that these rows would have shown (80 % power).
        more_rows: with no verdict, how many further rows would show a difference as large as this one; else None.
        rows_needed: rows in all that show a difference as large as this one with 80 % power; None: no number follows.
        only_a, only_b: rows that one side alone has right (right-or-wrong metrics of rows that form no clusters).
        apart: rows, or clusters, on which the two differ, where that is known.
        low_margin, high_margin: corrected bounds that hold on few rows, too (`core/stats/bounded.py`); a margin is
            judged by them.
        compared: rows with a score of both.
    """

    a: str
    b: str
    metric: str
    delta: Number
    low: Number
    high: Number
    p: Number
    verdict: str
    test: str = ""
    p_holm: Number = math.nan
    low_holm: Number = math.nan
    high_holm: Number = math.nan
    tests: int = 1
    effect: Number = math.nan
    effect_kind: str = ""
    detectable: Number = math.nan
    more_rows: int | None = None
    rows_needed: int | None = None
    only_a: int | None = None
    only_b: int | None = None
    apart: int | None = None
    low_margin: Number = math.nan
    high_margin: Number = math.nan
    compared: int | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval that agrees with the verdict: the corrected one; the plain one in files that don't have it."""
        corrected = math.isfinite(self.low_holm + self.high_holm)
        return (self.low_holm, self.high_holm) if corrected else (self.low, self.high)


Outcome = Literal["better", "promising", "not enough evidence", "mixed", "worse", "not compared"]
BaselineKind = Literal["prompt", "classical", "constant"]


@dataclass(frozen=True)
class Claim:
    """What the rows show of one system against another by one metric. All texts about it quote these numbers.

    Args:
        outcome: `better` or `worse`: the interval excludes 0 and the p-value is below 0.05; else `not enough evidence`.
        gain, low, high: with its 95 % interval; positive: the system is better, whatever is better of the metric.
        p: two-sided p-value. Interval and p-value are corrected (Holm) for `tests` comparisons.
        least, most: of the gain; bounds that hold on few rows, too, and that a margin is judged by.
        compared: rows with a score of both.
    """

    metric: str
    outcome: str
    gain: Number
    low: Number
    high: Number
    p: Number
    tests: int = 1
    least: Number = math.nan
    most: Number = math.nan
    compared: int | None = None


@dataclass(frozen=True)
class Standing:
    """How one system stands against another.

    Args:
        name, against: the two; `kind`: of `against`.
        outcome: by significant differences. `better`: by the metric that decides, and `worse` by no headline metric;
            `promising`: the same with a p-value of 0.005 or more; `mixed`: better by some headline metrics, worse by
            others; `worse`: by some, and better by none; else `not enough evidence`.
        gain, low, high: by the metric that decides, with its 95 % interval, corrected as `p_holm` is for `tests`
            comparisons; positive: `name` is better, whatever is better of the metric.
        p, p_holm, tests, detectable, only_name, only_against, apart: see `Comparison`.
        rows_needed: rows in all that settle it: with 80 % power they show a difference as large with p below 0.005.
        claims: what each headline metric shows, the one that decides first.
    """

    name: str
    against: str
    kind: BaselineKind
    outcome: Outcome
    gain: Number
    low: Number
    high: Number
    p: Number
    p_holm: Number
    tests: int = 1
    detectable: Number = math.nan
    rows_needed: int | None = None
    only_name: int | None = None
    only_against: int | None = None
    apart: int | None = None
    claims: list[Claim] = field(default_factory=list)

    @property
    def gained(self) -> dict[str, float]:
        """Headline metrics by which it is shown to be better, with the gain in each."""
        return {claim.metric: claim.gain for claim in self.claims if claim.outcome == "better"}

    @property
    def lost(self) -> dict[str, float]:
        """Headline metrics by which it is shown to be worse, with the gain in each."""
        return {claim.metric: claim.gain for claim in self.claims if claim.outcome == "worse"}


SERIOUS = 0.1  # share of the rows whose labels a system never gives, from which on that is a serious fault


class VerdictPart(Part):
    """The `verdict` of `eval.json`: a `Verdict`, and its first sentence."""

    sentence: str
    name: str
    outcome: Outcome
    against: str | None = None
    metric: str
    why: str = ""
    never: list[str] = []
    only: str | None = None
    standings: list[Standing] = []


EntryKind = Literal["constant", "prompt", "classical", "tuned"]


@dataclass(frozen=True)
class LeaderboardEntry:
    """One system on the leaderboard.

    Args:
        kind: `constant` answers every row with the most frequent label.
        gain, gain_low, gain_high, p, verdict: of the deciding metric over the few-shot prompt (over the best prompt
            where there was none); positive: this system is better; None for that prompt itself.
        training_seconds, training_usd: spent before the first answer.
        prompt_tokens, tokens: of one request, read (examples included) and written.
        usd_per_1000: dollars of 1,000 requests; None where no price is known.
    """

    name: str
    kind: EntryKind
    metric: str
    value: Number
    low: Number
    high: Number
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    p: float | None
    verdict: str
    training_seconds: int | float
    training_usd: int | float
    prompt_tokens: int | float
    tokens: int | float
    usd_per_1000: float | None


class AnswerCost(Part):
    """What a system's answers took. An endpoint also counts requests, failures and retries.

    Args:
        seconds, usd: of all answers; None where no price is known. `usd_spent`: of those that were not known before.
        rows_per_second: answered here, with what else the machine did meanwhile; 0: no time was measured.
        prompt_tokens, tokens: read and written.
        computed_tokens: tokens that were really computed; what prompts share is computed once.
        training_seconds, training_usd: spent before the first answer.
        lost: tries whose reply did not arrive; up to so many further ones may have been billed.
    """

    seconds: float = 0.0
    rows_per_second: float | None = None
    usd: float | None = None
    usd_spent: float | None = None
    prompt_tokens: int | float = 0
    tokens: int | float = 0
    computed_tokens: int | float | None = None
    training_seconds: float | None = None
    training_usd: float | None = None
    requests: int | float | None = None
    cached: int | float | None = None
    retries: int | float | None = None
    failed: int | float | None = None
    lost: int | float | None = None


# --- where it is good and where it isn't -------------------------------------------------------


class LabelScores(Part):
    """Rows, precision, recall, F1, times predicted and invalid answers of one label."""

    label: str
    n: int
    precision: float
    recall: float
    f1: float
    predicted: int
    invalid: int


class Confusion(Part):
    """The labels that occur, and the cells that aren't 0 as [label, predicted, rows]; predicted null: invalid."""

    labels: list[str]
    cells: list[tuple[str, str | None, int]]


class ConfusionPair(Part):
    """A label taken for another one: `n` times of the label's `of` rows."""

    label: str
    predicted: str
    n: int
    of: int


class CalibrationBin(Part):
    """Rows whose confidence lies from `low` to `high`: how many, their mean confidence, the share of right answers."""

    low: float
    high: float
    n: int
    confidence: Number
    accuracy: Number


class Calibration(Part):
    """Expected calibration error, and the reliability diagram."""

    ece: Estimate
    bins: list[CalibrationBin]


@dataclass(frozen=True)
class Slice:
    """What single rows are judged by (`Evaluation.row_metric`) on some rows, against all other rows.

    Args:
        field, value: what the rows have in common; `n`: rows.
        score: their mean; `low` and `high` are its 95 % interval.
        rest: the mean of all other rows; `delta`: score - rest, with its interval `delta_low`, `delta_high`.
        p: two-sided p-value; `p_holm` is adjusted for all slices looked at.
        verdict: `worse` or `better` than the rest, or `not enough evidence`, by `p_holm`.
    """

    field: str
    value: str
    n: int
    score: Number
    low: Number
    high: Number
    rest: Number
    delta: Number
    delta_low: Number
    delta_high: Number
    p: Number
    p_holm: Number
    verdict: str


@dataclass(frozen=True)
class SliceComparison:
    """How far one system is above another on some rows, by what single rows are judged by.

    Args:
        field, value: what the rows have in common; `n`: rows.
        delta: with its 95 % interval; p: two-sided; `p_holm` is adjusted for all slices looked at.
        verdict: `better`, `worse` or `not enough evidence`, by `p_holm`.
    """

    field: str
    value: str
    n: int
    delta: Number
    low: Number
    high: Number
    p: Number
    p_holm: Number
    verdict: str


class RowDifference(Part):
    """A row on which two systems differ: what each scores."""

    id: str
    score: float
    other: float


class Disagreement(Part):
    """Rows where two systems differ by a metric: on how many one is better, worse; the largest differences first."""

    metric: str
    better: int
    worse: int
    rows: list[RowDifference]


class ErrorGroup(Part):
    """Wrong rows with prompts that are alike: what they say, how many, their ids, one of them."""

    terms: list[str]
    n: int
    ids: list[str]
    example: str


class ScoringSettings(Part):
    """How an evaluation was computed, so that it can be computed again from `samples.jsonl`.

    Args:
        intervals: what the intervals are, in words; `seed`, `bootstrap`: of the resamples, and how many.
        fields, labels, cluster, field_labels, label_rows: see `evaluate.evaluate.Evaluation`.
        primary: the metric that decides, where the user has chosen it; `deciding`: as the data set's record has it.
    """

    intervals: str = ""
    seed: int
    bootstrap: int
    fields: dict[str, str] = {}
    labels: list[str] | None = None
    cluster: str | None = None
    primary: str | None = None
    deciding: str = ""
    field_labels: dict[str, list[str]] | None = None
    label_rows: dict[str, dict[str, int]] | None = None


class EvaluationManifest(Record, noun="an evaluation", file=EVALUATION, again="delete the file and evaluate again"):
    """`eval.json`: one system's metrics, and how they compare with those of others. It is written last.

    Args:
        key: hash of everything that the result depends on.
        name: the system's name; `model`, `dataset`, `split`: what was evaluated on what.
        n: rows.
        metrics: name -> value with 95 % interval; `baselines`: the same of each other system.
        own_metrics: what is declared of the metrics of the user's scorers.
        comparisons: of the baselines (a) with it (b).
        verdict, words: what may be said of it; all sentences.
        invalid, invalid_baselines: answers that aren't valid.
        slice_comparisons: what is compared with the first, by name: the difference on each slice.
        signatures: what exactly was computed, by metric; `costs`: system -> what its answers took.
        primary: the metric that decides; `row_metric`: what single rows are judged by.
        leaderboard, leaderboard_words: all systems with gains and costs.
        forgetting, memorisation: what tuning has done besides its task, see `records.side_effects`.
        consistency: answers to rewordings of the same question.
        judge: a model's preferences, see `evaluate.judge`.
        endpoint: its address.
        failures: rows without an answer, and why; not all where they are many.
        runs: system -> its run's folder, where it is one.
        code: how programs ended, and under which protections.
    """

    key: str = ""
    model: str = ""
    dataset: str = ""
    split: str = "test"
    name: str = "tuned"
    n: int
    task: str = ""
    metrics: Metrics
    own_metrics: dict[str, Metric] = {}
    baselines: dict[str, Metrics] = {}
    comparisons: list[Comparison] = []
    verdict: VerdictPart | None = None
    words: list[str] = []
    invalid: int = 0
    invalid_baselines: dict[str, int] = {}
    notes: list[str] = []
    signatures: dict[str, str] = {}
    costs: dict[str, AnswerCost] = {}
    primary: str = ""
    row_metric: str = ""
    per_class: list[LabelScores] | None = None
    confusion: Confusion | None = None
    confusion_pairs: list[ConfusionPair] | None = None
    calibration: Calibration | None = None
    slices: list[Slice] = []
    slice_comparisons: dict[str, list[SliceComparison]] = {}
    disagreements: dict[str, Disagreement] = {}
    errors: list[ErrorGroup] = []
    code: dict[str, Any] | None = None
    leaderboard: list[LeaderboardEntry] = []
    leaderboard_words: list[str] = []
    endpoint: str | None = None
    failures: list[dict[str, str]] = []
    forgetting: Forgetting | None = None
    memorisation: Memorisation | None = None
    consistency: Consistency | None = None
    runs: dict[str, str] = {}
    judge: dict[str, Any] | None = None
    settings: ScoringSettings | None = None


class KnownOfAnswer(Part):
    """What is known of an answer that can't be computed again from its text.

    Args:
        confidence: the probability of the label; None: not known.
        loss: sum of -log likelihood of the reference, and its tokens; `language`: of the prompt.
        further: more answers to the same prompt.
        measured: metric -> the row's value, of metrics that need more than the text.
    """

    confidence: float | None = None
    loss: tuple[float | None, int] | None = None
    language: str | None = None
    further: list[str] = []
    measured: dict[str, Number] = {}


class AnsweredRow(Part):
    """A row with an answer to it.

    Args:
        id: of the row.
        prompt: its last user turn; `messages`: all turns before the answer, where there are more.
        reference: its answer; `references`: all accepted answers, where there are more.
        prediction: the answer of the system that the evaluation is about.
        label, predicted_label: where rows have one.
        valid: whether the answer is one of those that are allowed; `finished`: whether no limit has cut it.
        scores: metric -> the row's value.
    """

    id: str
    prompt: str = ""
    reference: str = ""
    messages: list[Message] | None = None
    references: list[str] | None = None
    prediction: str = ""
    label: str | None = None
    predicted_label: str | None = None
    valid: bool = True
    finished: bool = True
    scores: dict[str, Number] = {}


class Sample(KnownOfAnswer, AnsweredRow):
    """A line of `samples.jsonl`: a row with all answers to it, and what is known of them.

    Args:
        completion: what else is known of the answer, see `Completion`; its text stands above.
        baselines: system -> its answer; `baselines_beside`: what is known of these.
        meta: of the row.
    """

    completion: dict[str, Any] | None = None
    baselines: dict[str, str] = {}
    baselines_beside: dict[str, KnownOfAnswer] = {}
    meta: dict[str, Any] = {}


class BaselinesManifest(
    Record, noun="a list of baselines", file="baselines.json", again="delete the file and run the same command again"
):
    """`baselines/baselines.json`: the systems that a tuned model is compared with.

    Args:
        key: hash of everything that they depend on; `n`: rows.
        systems: name -> its folder in `baselines/`; `costs`, `leaderboard`, `words`: as in `eval.json`.
        seconds: all of them took; `notes`: what a reader has to know of a system's prompts.
    """

    key: str = ""
    n: int = 0
    systems: dict[str, str]
    costs: dict[str, AnswerCost] = {}
    leaderboard: list[LeaderboardEntry] = []
    words: list[str] = []
    seconds: float = 0.0
    notes: dict[str, str] = {}


class TriedPrompt(Part):
    """A prompt that few-shot might be given.

    Args:
        prompt: its file; None: the rows' own instruction. `examples`: behind it.
        value: what it reached; `tokens`: what a row's prompt then takes, on average.
    """

    prompt: str | None = None
    examples: int
    value: float
    tokens: int = 0

    @property
    def words(self) -> str:
        """`demo/prompt.yaml with 4 examples`"""
        return f"{self.prompt or 'the instruction'} with {counted(self.examples, 'example')}"


class PromptChoice(
    Record, noun="a choice of a prompt", file="prompts.json", again="delete the file and run the same command again"
):
    """`baselines/prompts.json`: the prompts that were tried for few-shot, the best first.

    Args:
        key: hash of everything that the choice depends on; `rows`: validation rows that each answered.
        metric: by which they are compared; `seconds`: the search took.
    """

    key: str = ""
    rows: int
    metric: str
    tried: list[TriedPrompt]
    seconds: float = 0.0

    @property
    def chosen(self) -> str:
        """`the best of 4 on 8 validation rows`"""
        if len(self.tried) == 1:
            return f"the only one that there was time for, on {counted(self.rows, 'validation row')}"
        return f"the best of {len(self.tried)} on {counted(self.rows, 'validation row')}"

    @property
    def words(self) -> str:
        """What was tried, with what it reached, in a line."""
        if not self.tried:
            return "none of few-shot's examples fits the context"
        results = [f"{attempt.words} {attempt.value:.3f}" for attempt in self.tried]
        return f"{self.chosen}, by {self.metric}: {'; '.join(results)}"


# --- the gate ----------------------------------------------------------------------------------

GateStatus = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class GateCheck:
    """One demand and what came of it.

    Args:
        kind: `must_pass`, `metric`, `forgetting` or `latency`; `name`: what was demanded.
        status: `pass`, `fail` or `inconclusive`; `message`: a sentence for people.
        value, low, high: the value that decides, with its 95 % interval where there is one.
        limit: what it is compared with; `rows`: rows that it rests on.
    """

    kind: str
    name: str
    status: GateStatus
    message: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    rows: int | None = None


class SuiteName(Part):
    """A suite's name, and the hash of what it demands."""

    name: str
    hash: str


class GateSide(Part):
    """The candidate, or what it is compared with: where its evaluation is, the system's name, its model."""

    place: str = ""
    name: str = ""
    model: str | None = None


class FlakyRow(Part):
    """A row that passed only sometimes: `passed` of `asked` tries."""

    row: str
    passed: int
    asked: int


class GateResult(Record, noun="a gate's result", file="gate.json", again="run `tuneloop gate` again"):
    """`gate.json`: whether a candidate may be released.

    Args:
        evaluation: SHA-256 of the `eval.json` that was judged.
    """

    status: GateStatus
    suite: SuiteName | None = None
    candidate: GateSide = GateSide()
    against: GateSide = GateSide()
    evaluation: str = ""
    created: str = ""
    checks: list[GateCheck] = []
    flaky: list[FlakyRow] = []
