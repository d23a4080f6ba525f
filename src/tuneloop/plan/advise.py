"""Whether to tune at all, and how: rules with sources, applied to what is known; an answer that may be no.

Facts come from the question, from measured results and from the planner's figures. What is not known makes no rule
apply, and is listed as missing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tuneloop.files import Config, build_config, read_json
from tuneloop.plan.advise_economy import (
    TokenLine,
    Training,
    bills,
    options_of,
    serving,
    token_lines,
    trainings,
)
from tuneloop.plan.economics import MODES, Bill, OptionRow, Swing, compare_options, sensitivity
from tuneloop.plan.prices import PriceTable, load_prices
from tuneloop.plan.shape import find_model
from tuneloop.types import UserError

RULES = Path(__file__).with_name("rules.yaml")
NAMES = {"prefix": "prefix tuning", "lora": "LoRA", "qlora": "QLoRA", "full": "full fine-tuning"}
CLASSICAL = "logistic regression"  # in the names of the cheap contenders
# Metrics that decide, in this order; FIELD.accuracy counts as accuracy.
PREFERRED = ("accuracy", "exact_match", "token_f1", "rougeL", "chrf", "bleu")
OUT_OF_100 = ("chrf", "bleu")


# --- what is asked -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """A contender's value of the deciding metric with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """Results on one test split.

    Args:
        metric: the one that decides.
        n: test rows.
        results: all contenders.
        verdict: the tuned model against the best prompt: `better`, `worse`, `not enough evidence`, or empty.
        method: how the tuned model was trained.
        prompt_tokens: contender -> tokens read for a query.
        usd_per_1000: contender -> dollars that 1,000 queries took where they were measured.
        classical_verdict: the tuned model against the best cheap alternative.
        training_usd: what the tuned model's training cost.
    """

    metric: str
    n: int
    results: tuple[Result, ...]
    verdict: str = ""
    method: str = "lora"
    prompt_tokens: Mapping[str, float] = field(default_factory=dict)
    usd_per_1000: Mapping[str, float] = field(default_factory=dict)
    classical_verdict: str = ""
    training_usd: float | None = None

    @property
    def prompt(self) -> Result | None:
        """The best way of prompting the untouched model."""
        return self._best([r for r in self.results if CLASSICAL not in r.name and r.name != "tuned"])

    @property
    def classical(self) -> Result | None:
        """The best cheap alternative."""
        return self._best([r for r in self.results if CLASSICAL in r.name])

    @property
    def tuned(self) -> Result | None:
        """The tuned model."""
        return next((r for r in self.results if r.name == "tuned"), None)

    @staticmethod
    def _best(results: Sequence[Result]) -> Result | None:
        return max(results, key=lambda r: r.value, default=None)


class Question(Config):
    """What `tuneloop advise` is asked; whatever is not given stays unknown."""

    model: str = Field("llama-3.1-8b", min_length=1)
    task: Literal["classification", "generation", "chat"] | None = None
    rows: int | None = Field(None, ge=0, le=10**9)
    labels: int | None = Field(None, ge=1, le=10**6)
    tokens_per_row: float | None = Field(None, gt=0, le=10**6)
    longest_row: int | None = Field(None, ge=8, le=2**20)
    epochs: float = Field(3.0, gt=0, le=1000)
    queries_per_day: float | None = Field(None, gt=0, le=1e12)
    baseline_prompt_tokens: float | None = Field(None, gt=0, le=10**7)
    prompt_tokens: float | None = Field(None, gt=0, le=10**7)
    answer_tokens: float | None = Field(None, ge=0, le=10**6)
    usd_per_million_input: float | None = Field(None, ge=0, le=10**4)
    usd_per_million_output: float | None = Field(None, ge=0, le=10**4)
    target: float | None = Field(None, ge=0, le=100)
    latency_ms: float | None = Field(None, gt=0, le=10**7)
    budget_usd: float | None = Field(None, ge=0, le=10**9)
    gpu: str | None = None
    gpus: int | None = Field(None, ge=1, le=4096)
    tier: Literal["on-demand", "spot", "reserved"] = "on-demand"
    usd_per_gpu_hour: float | None = Field(None, ge=0, le=10**4)
    prices: str | None = None
    months: float = Field(12.0, gt=0, le=120)
    retrain_months: float = Field(0.0, ge=0, le=120)
    runs: float = Field(3.0, ge=1, le=1000)
    engineer_hours: float = Field(16.0, ge=0, le=10**5)
    usd_per_engineer_hour: float = Field(0.0, ge=0, le=10**4)
    rows_to_label: int = Field(0, ge=0, le=10**8)
    usd_per_labeller_hour: float = Field(0.0, ge=0, le=10**4)
    serving: Literal["token", "batch", "real-time", "hybrid"] = "token"
    peak: float = Field(3.0, ge=1, le=1000)
    batch_share: float = Field(0.5, ge=0, le=1)
    facts_change: bool | None = None
    new_domain: bool | None = None
    measured: Measured | None = None

    @property
    def training_tokens(self) -> float | None:
        """Tokens of one run over all epochs."""
        return self.rows * self.tokens_per_row * self.epochs if self.rows and self.tokens_per_row else None


def make_question(values: Mapping[str, Any]) -> Question:
    """A question from what is known.

    Raises:
        UserError: a value that can't be; the flag is named.
    """
    try:
        return build_config(Question, values)
    except UserError as error:
        key = error.what.partition("'")[2].partition("'")[0]
        flag = "--" + key.removesuffix("_usd").replace("_", "-")
        raise UserError(error.what, where=flag, next_step=f"give {flag} a value that can be") from None


def from_dataset(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a `dataset.json` says about the question."""
    train = manifest["splits"]["train"]
    tokens, rows = train.get("tokens") or {}, train.get("rows", 0)
    found: dict[str, Any] = {"rows": rows, "task": manifest.get("task")}
    if manifest.get("labels"):
        found["labels"] = len(manifest["labels"])
    if rows and tokens.get("total"):
        found["tokens_per_row"] = tokens["total"] / rows
        found["answer_tokens"] = tokens.get("supervised", 0) / rows
        found["prompt_tokens"] = max(1.0, (tokens["total"] - tokens.get("supervised", 0)) / rows)
        found["longest_row"] = max(8, int(tokens.get("max") or 1024))
    return found


def from_evaluation(manifest: Mapping[str, Any], where: str, metric: str = "") -> Measured:
    """What an `eval.json` says.

    Raises:
        UserError: it has no such metric, or none that decides.
    """
    metrics = manifest.get("metrics")
    if not isinstance(metrics, dict) or not isinstance(manifest.get("n"), int):
        raise UserError(
            "Not an evaluation: no metrics, no count of rows", where=where, next_step="tuneloop evaluate writes it"
        )
    contenders = {str(manifest.get("name") or "tuned"): metrics, **(manifest.get("baselines") or {})}
    measured = with_prices(measured_of(contenders, manifest.get("costs") or {}, manifest["n"], where, metric), manifest)
    verdicts = [_verdict(manifest, measured, best) for best in (measured.prompt, measured.classical)]
    return replace(measured, verdict=verdicts[0], classical_verdict=verdicts[1])


def measured_of(
    contenders: Mapping[str, Mapping[str, Any]], costs: Mapping[str, Any], n: int, where: str, metric: str = ""
) -> Measured:
    """Contenders' metrics (name -> metric -> value, low, high) and costs as one record.

    Raises:
        UserError: nobody was measured by the metric, or no metric decides.
    """
    metrics = list(dict.fromkeys(name for values in contenders.values() for name in values))
    metric = metric or _deciding(metrics, where)
    results = []
    for name, values in contenders.items():
        value = values.get(metric)
        if isinstance(value, dict) and isinstance(value.get("value"), int | float):
            middle = float(value["value"])
            low, high = (middle if value.get(end) is None else float(value[end]) for end in ("low", "high"))
            results.append(Result(name, middle, low, high))
    if not results:
        raise UserError(
            f"Nobody was measured by {metric!r}", where=where, next_step=f"choose one of {', '.join(metrics)}"
        )

    def per_query(key: str) -> dict[str, float]:
        found = {name: cost.get(key) for name, cost in costs.items() if isinstance(cost, dict) and n}
        return {name: value / n for name, value in found.items() if isinstance(value, int | float)}

    read = {name: tokens for name, tokens in per_query("prompt_tokens").items() if tokens}
    spent = {name: usd * 1000 for name, usd in per_query("usd").items()}
    return Measured(metric, n, tuple(results), prompt_tokens=read, usd_per_1000=spent)


def with_prices(measured: Measured, manifest: Mapping[str, Any]) -> Measured:
    """What 1,000 requests cost by the ladder, where it was reckoned: measuring shares prompts, requests in production don't."""
    rungs = [rung for rung in manifest.get("ladder") or () if isinstance(rung, dict)]
    prices = {str(r.get("name")): r["usd_per_1000"] for r in rungs if isinstance(r.get("usd_per_1000"), int | float)}
    return replace(measured, usd_per_1000={**measured.usd_per_1000, **prices})


def _deciding(metrics: Sequence[str], where: str) -> str:
    for wanted in PREFERRED:
        for name in metrics:
            if name == wanted or name.endswith(f".{wanted}"):
                return name
    raise UserError("No metric in it decides", where=where, next_step=f"name one with --metric: {', '.join(metrics)}")


def _verdict(manifest: Mapping[str, Any], measured: Measured, best: Result | None) -> str:
    """The tuned model against another contender, by the evaluation's own comparison."""
    turned = {"better": "worse", "worse": "better"}
    for c in manifest.get("comparisons") or []:
        if best and c.get("metric") == measured.metric:
            if (c.get("a"), c.get("b")) == (best.name, "tuned"):
                return str(c.get("verdict", ""))
            if (c.get("a"), c.get("b")) == ("tuned", best.name):
                return turned.get(str(c.get("verdict")), str(c.get("verdict", "")))
    return ""


def known_of(source: Path | str, metric: str = "") -> dict[str, Any]:
    """What a prepared data set, a run or an evaluation says about the question.

    Args:
        source: a folder with `dataset.json`, a run's folder, or an evaluation (`eval.json` or its folder).
        metric: the metric that decides; default: see `PREFERRED`.

    Raises:
        UserError: it is none of these.
    """
    path = Path(source)
    if path.suffix == ".json" and path.is_file():
        path = path.parent if path.name in ("eval.json", "dataset.json") else path
    if path.is_file() and path.suffix == ".json":
        return _known_of_evaluation(read_json(path), str(path), metric)
    if not path.is_dir():
        what = "A file is no data set yet" if path.is_file() else "No such data set, run or evaluation"
        raise UserError(
            what, where=str(source), next_step=f"tuneloop prepare {source}, then name the folder that it writes"
        )
    found: dict[str, Any] = {}
    for manifest in (path / "dataset.json", path / "dataset" / "dataset.json"):
        if manifest.is_file():
            found |= from_dataset(read_json(manifest))
            break
    if (path / "eval.json").is_file():
        found |= _known_of_evaluation(read_json(path / "eval.json"), str(path / "eval.json"), metric)
    elif (path / "baselines" / "baselines.json").is_file():
        found["measured"] = read_baselines(path / "baselines", metric)
    if (path / "run.json").is_file() and found.get("measured"):
        run = read_json(path / "run.json")
        found["measured"] = replace(found["measured"], training_usd=run.get("usd"), method=run.get("method", "lora"))
    if not found:
        raise UserError(
            "Neither a data set nor a run nor an evaluation",
            where=str(source),
            next_step="name a folder with dataset.json or eval.json",
        )
    return found


def _known_of_evaluation(manifest: Any, where: str, metric: str) -> dict[str, Any]:
    if not isinstance(manifest, dict):
        raise UserError("Not an evaluation", where=where, next_step="name an eval.json or its folder")
    found: dict[str, Any] = {"measured": from_evaluation(manifest, where, metric)}
    return found | {key: manifest[key] for key in ("model", "task") if isinstance(manifest.get(key), str)}


def read_baselines(folder: Path, metric: str = "") -> Measured:
    """What `baselines.json` and the evaluations beside it say: the untouched model and the cheap alternatives."""
    listed = read_json(folder / "baselines.json")
    manifests = {name: read_json(folder / place / "eval.json") for name, place in listed["contenders"].items()}
    n = max((manifest["n"] for manifest in manifests.values()), default=0)
    metrics = {name: manifest["metrics"] for name, manifest in manifests.items()}
    return with_prices(measured_of(metrics, listed.get("costs") or {}, n, str(folder), metric), listed)


# --- rules -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """A rule of `rules.yaml`; see there."""

    id: str
    kind: str
    when: Mapping[str, Mapping[str, Any]]
    gives: str
    say: str
    source: str


@dataclass(frozen=True)
class Reason:
    """A rule that applied, in words, with the facts that it looked at."""

    rule: str
    kind: str
    says: str
    source: str
    facts: dict[str, Any]


@functools.cache
def load_rules() -> tuple[Rule, ...]:
    """All rules in their order."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    tree = yaml.load(RULES.read_text(encoding="utf-8"), Loader=loader)
    return tuple(
        Rule(r["id"], kind, r["when"], r.get(kind, ""), r["say"], r["source"])
        for kind in ("answer", "method", "note")
        for r in tree[kind]
    )


def applies(rule: Rule, facts: Mapping[str, Any]) -> bool:
    """Whether all conditions of a rule hold; an unknown fact holds for none but `known: false`."""
    return all(
        _holds(facts.get(name), op, facts.get(to) if isinstance(to, str) and to in facts else to)
        for name, conditions in rule.when.items()
        for op, to in conditions.items()
    )


def _holds(value: Any, op: str, to: Any) -> bool:
    if op == "known":
        return (value is not None) is to
    if value is None or to is None:
        return False
    if op == "is":
        return bool(value == to)
    return bool({"below": value < to, "at_least": value >= to, "above": value > to}[op])


def decide(facts: Mapping[str, Any], rules: Sequence[Rule] | None = None) -> dict[str, list[Reason]]:
    """The first answer and the first method that apply, and all notes."""
    found: dict[str, list[Reason]] = {"answer": [], "method": [], "note": []}
    for rule in rules if rules is not None else load_rules():
        if (rule.kind == "note" or not found[rule.kind]) and applies(rule, facts):
            looked = {name: facts.get(name) for name in rule.when}
            found[rule.kind].append(Reason(rule.id, rule.kind, rule.say.format_map(facts), rule.source, looked))
    return found


# --- advice ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Advice:
    """The answer with everything that it rests on.

    Args:
        answer: `tune`, `prompt` (measure and improve the prompt first) or `dont`.
        method: `prefix`, `lora`, `qlora` or `full`: how, or how if the prompt falls short; empty when nothing fits.
        headline: the answer in a sentence.
        reasons: the rules that applied, the deciding one first.
        steps: what to do, in order.
        missing: what would tell more, as flags.
        swings: of the net saving of the method over the horizon.
    """

    answer: str
    method: str
    headline: str
    reasons: list[Reason]
    steps: list[str]
    missing: list[str]
    assumptions: list[str]
    trainings: dict[str, Training]
    options: list[OptionRow]
    swings: list[Swing]
    bills: dict[str, Bill]
    tokens: list[TokenLine]
    question: Question

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        chosen = self.chosen
        return {
            "version": 1, "answer": self.answer, "method": self.method, "headline": self.headline,
            "reasons": [asdict(reason) for reason in self.reasons], "steps": self.steps, "missing": self.missing,
            "break_even": asdict(chosen.against) if chosen and chosen.against else None,
            "alternatives": [_row(row) for row in self.options],
            "sensitivity": [asdict(swing) for swing in self.swings],
            "monthly_bills": {mode: asdict(bill) for mode, bill in self.bills.items()},
            "token_prices": [asdict(line) for line in self.tokens],
            "trainings": {name: _training(training) for name, training in self.trainings.items()},
            "ladder": ladder(self.question.measured) if self.question.measured else [],
            "assumptions": self.assumptions,
            "question": self.question.model_dump(mode="json", exclude={"measured"}, exclude_none=True),
        }  # fmt: skip

    @property
    def chosen(self) -> OptionRow | None:
        """The alternative that the method is."""
        name = NAMES.get(self.method)
        return next((row for row in self.options if row.option.name == name), None)


def ladder(measured: Measured) -> list[dict[str, Any]]:
    """The contenders from the untouched model to the tuned one, with gains over the best prompt and what queries cost."""
    best = measured.prompt
    order = {"zero-shot": 0, "few-shot": 1, CLASSICAL: 2, "tuned": 3}
    place = {r.name: next((n for part, n in order.items() if part in r.name), 3) for r in measured.results}
    return [
        {
            "name": r.name, "metric": measured.metric, "value": r.value, "low": r.low, "high": r.high,
            "gain_over_prompt": r.value - best.value if best and r.name != best.name else None,
            "prompt_tokens": measured.prompt_tokens.get(r.name), "usd_per_1000_queries": measured.usd_per_1000.get(r.name),
            "training_usd": measured.training_usd if r.name == "tuned" else None,
        }
        for r in sorted(measured.results, key=lambda r: place[r.name])
    ]  # fmt: skip


def _row(row: OptionRow) -> dict[str, Any]:
    return {
        "name": row.option.name, "upfront_usd": row.option.upfront_usd, "usd_per_1000_queries": row.usd_per_1000_queries,
        "usd_per_month": row.usd_per_month, "total_usd": row.total_usd, "prompt_tokens": row.option.prompt_tokens,
        "quality": row.option.quality, "note": row.option.note,
        "break_even_queries": row.against.queries if row.against else None,
        "break_even_days": row.against.days if row.against else None,
        "saves_usd_per_month": row.against.usd_per_month_saved if row.against else None,
        "why_never": row.against.why if row.against else "",
    }  # fmt: skip


def _training(training: Training) -> dict[str, Any]:
    return {
        "gpu": training.gpu, "gpus": training.gpus, "fits": training.fits, "peak_gib": training.peak_gib,
        "capacity_gib": training.capacity_gib, "hours": training.hours, "usd_a_run": training.bare_usd,
        "cost": training.cost.to_json() if training.cost else None,
    }  # fmt: skip


def advise(question: Question) -> Advice:
    """Answer the question.

    Raises:
        UserError: nothing is known, an unknown model or GPU, a price file with gaps.
    """
    if question.rows is None and question.measured is None and not question.queries_per_day:
        raise UserError(
            "Nothing to go by",
            where="advise",
            next_step="name a prepared data set, or give --rows, --queries-per-day, --baseline-prompt-tokens ...",
        )
    prices = load_prices(question.prices)
    question, assumed = _completed(question)
    trained = trainings(question, prices)
    method = _method(question, trained)
    tuned_prompt = question.prompt_tokens
    costs: dict[str, Bill] = bills(question, prices, tuned_prompt) if tuned_prompt else {}
    bill = costs.get(question.serving) if question.serving in MODES else None
    options = options_of(question, prices, trained, tuned_prompt, bill) if tuned_prompt else []
    rows = (
        compare_options(options, question.queries_per_day, question.months)
        if options and question.queries_per_day
        else []
    )
    facts = facts_of(question, trained, rows, method, prices)
    found = decide(facts)
    answer, reasons = found["answer"][0], [*found["answer"], *found["method"], *found["note"]]
    gives = next(rule.gives for rule in load_rules() if rule.id == answer.rule)
    if gives == "dont":
        reasons = [reason for reason in reasons if reason.kind != "method"]
    training = trained.get(method)
    chosen = next((row for row in rows if row.option.name == NAMES.get(method)), None)
    swings = []
    if chosen and training and training.cost and question.queries_per_day:
        swings = sensitivity(
            rows[0].option,
            chosen.option,
            question.queries_per_day,
            question.months,
            (training.cost.low, training.cost.p90),
        )
    return Advice(
        answer=gives, method="" if gives == "dont" else method, headline=_headline(gives, method, answer),
        reasons=reasons, steps=_steps(question, gives, method, facts), missing=_missing(question, prices, rows),
        assumptions=[*assumed, *_assumptions(question, training, rows)], trainings=trained, options=rows, swings=swings,
        bills=costs, tokens=token_lines(question, prices, tuned_prompt) if tuned_prompt else [], question=question,
    )  # fmt: skip


def _completed(question: Question) -> tuple[Question, list[str]]:
    """The question with what measured results say about prompts, and what was filled in."""
    name, _, assumed = find_model(question.model)
    more: dict[str, Any] = {"model": name}
    measured = question.measured
    if measured and measured.prompt and question.baseline_prompt_tokens is None:
        tokens = measured.prompt_tokens.get(measured.prompt.name)
        if tokens:
            more["baseline_prompt_tokens"] = tokens
            assumed.append(f"baseline prompt: {tokens:,.0f} tokens, as {measured.prompt.name} read for a test row")
    if measured and question.prompt_tokens is None:
        tokens = measured.prompt_tokens.get("tuned") or measured.prompt_tokens.get("zero-shot")
        if tokens:
            more["prompt_tokens"] = tokens
            assumed.append(f"tuned prompt: {tokens:,.0f} tokens, as measured on the test rows")
    if question.rows and not question.tokens_per_row:
        given = [t for t in (question.prompt_tokens, question.answer_tokens) if t]
        more["tokens_per_row"] = sum(given) if question.prompt_tokens else 512.0
        assumed.append(
            f"{more['tokens_per_row']:,.0f} tokens a training row" + ("" if question.prompt_tokens else " (not given)")
        )
    return question.model_copy(update=more), assumed


def _method(question: Question, trained: Mapping[str, Training]) -> str:
    facts = {"rows": question.rows, "new_domain": question.new_domain, "model": question.model}
    facts |= {f"{name}_fits": training.fits for name, training in trained.items()}
    facts |= {"gpu": question.gpu or "", "gpus": question.gpus or 1}
    found = decide(facts, [rule for rule in load_rules() if rule.kind == "method"])["method"][0]
    return next(rule.gives for rule in load_rules() if rule.id == found.rule)


def facts_of(
    question: Question, trained: Mapping[str, Training], rows: Sequence[OptionRow], method: str, prices: PriceTable
) -> dict[str, Any]:
    """Everything that rules may look at; None is unknown."""
    measured = question.measured
    prompt, classical, tuned = (measured.prompt, measured.classical, measured.tuned) if measured else (None, None, None)
    chosen = next((row for row in rows if row.option.name == NAMES[method]), None)
    against = chosen.against if chosen else None
    training = trained.get(method)
    cost = training.cost if training else None
    fits = {f"{name}_fits": trained[name].fits if name in trained else None for name in NAMES}
    scale = 100.0 if measured and measured.metric.rsplit(".", 1)[-1] in OUT_OF_100 else 1.0
    facts = {
        **question.model_dump(exclude={"measured"}),
        **fits,
        "any_fits": any(t.fits for t in trained.values()) if trained else None,
        "gpu": question.gpu or (training.gpu if training else ""),
        "gpus": question.gpus or (training.gpus if training else 1),
        "rows_per_label": question.rows / question.labels if question.rows and question.labels else None,
        "test_rows": measured.n if measured else None,
        "prompt_name": prompt.name if prompt else None,
        "prompt_best": prompt.value if prompt else None,
        "prompt_low": prompt.low if prompt else None,
        "prompt_share": prompt.value / scale if prompt else None,
        "classical_name": classical.name if classical else None,
        "classical_best": classical.value if classical else None,
        "tuned": tuned.value if tuned else None,
        "classical_ties": _ties(measured, classical, tuned) if measured and classical and tuned else None,
        "tuned_verdict": _in_two(measured.verdict) if measured and tuned and measured.verdict else None,
        "pays_back": (against.days is not None and against.days <= question.months * 365 / 12) if against else None,
        "payback_days": against.days if against else None,
        "why_never": f" ({against.why})" if against and against.why else "",
        "upfront_low_usd": cost.low if cost else None,
        "upfront_high_usd": cost.p90 if cost else None,
        "hosted_known": bool(prices.hosted(question.model)),
    }
    return facts | _latencies(question, prices)


def _ties(measured: Measured, classical: Result, tuned: Result) -> bool:
    """Whether the tuned model is not shown to be better than the classifier: by their comparison, else by its interval."""
    if classical.value >= tuned.value:
        return True
    verdict = measured.classical_verdict
    return verdict != "better" if verdict else tuned.low <= classical.value


def _in_two(verdict: str) -> str:
    return "better" if verdict == "better" else "not better"


def _latencies(question: Question, prices: PriceTable) -> dict[str, float | None]:
    """Milliseconds of one request with today's and with the tuned prompt, where a latency is asked for."""
    answer, found = question.answer_tokens, dict.fromkeys(("prompt_latency_ms", "tuned_latency_ms"))
    result: dict[str, float | None] = dict(found)
    if not question.latency_ms or answer is None:
        return result
    for name, prompt in (
        ("prompt_latency_ms", question.baseline_prompt_tokens),
        ("tuned_latency_ms", question.prompt_tokens),
    ):
        own = serving(question, prices, prompt, answer, "on-demand") if prompt else None
        result[name] = own.latency_ms(prompt, answer) if own and prompt else None
    return result


def _headline(gives: str, method: str, answer: Reason) -> str:
    if gives == "dont":
        return f"Don't fine-tune: {answer.says}"
    if gives == "prompt":
        return f"Prompt first. {answer.says} Then {NAMES[method]}, if the prompt falls short."
    return f"Fine-tune with {NAMES[method]}: {answer.says}"


def _steps(question: Question, gives: str, method: str, facts: Mapping[str, Any]) -> list[str]:
    """What to do next, cheapest first."""
    measure = "tuneloop advise DATASET --measure: the untouched model and the cheap classifiers on your test rows"
    if gives == "dont":
        return [] if facts["prompt_best"] is not None else [measure]
    steps = [] if facts["prompt_best"] is not None else [measure]
    if question.rows is not None and question.rows < 200:
        steps.append("write and check more examples: a few hundred good ones beat any choice of method")
    steps.append(f"tuneloop plan --model {question.model} --method {method}: machines, memory, time, dollars")
    steps.append(f"tuneloop run RECIPE.yaml train.method={method}, and compare on the same test rows before shipping")
    return steps


def _missing(question: Question, prices: PriceTable, rows: Sequence[OptionRow]) -> list[str]:
    flags = {
        "--rows": question.rows, "--queries-per-day": question.queries_per_day,
        "--baseline-prompt-tokens": question.baseline_prompt_tokens, "--prompt-tokens": question.prompt_tokens,
        "--answer-tokens": question.answer_tokens, "--target": question.target, "--eval": question.measured,
    }  # fmt: skip
    missing = [flag for flag, value in flags.items() if value is None]
    if question.usd_per_million_input is None and not prices.hosted(question.model):
        missing.append("--usd-per-million-input")
    return missing


def _assumptions(question: Question, training: Training | None, rows: Sequence[OptionRow]) -> list[str]:
    said = []
    if training and training.cost and question.training_tokens:
        said.append(
            f"a run reads {question.training_tokens:,.0f} tokens ({question.rows:,} rows, {question.epochs:g} epochs) in "
            f"{training.hours:.2f} hours on {training.gpus} x {training.gpu}"
        )
        said += training.cost.assumptions
    if rows:
        rate = rows[0].option.rate
        said.append(f"tokens: ${rate.input:g} and ${rate.output:g} for 1 million read and written ({rate.source})")
        said.append(
            "the tuned model is billed by the token like its base" if question.serving == "token"
            else f"the tuned model runs on rented machines, {question.serving}; peak hour {question.peak:g} times the mean"
        )  # fmt: skip
        said.append(
            f"the tuned model is retrained every {question.retrain_months:g} months" if question.retrain_months
            else "the tuned model is not retrained (give --retrain-months)"
        )  # fmt: skip
        said.append("quality is no part of any saving: it stands beside the money, where it was measured")
    return said
