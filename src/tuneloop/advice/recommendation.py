"""Whether to tune at all, and how: rules with sources, applied to what is known; an answer that may be no.

Facts come from the question, measured results and the planner. What is not known makes no rule apply, and is listed as
missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from tuneloop.advice import economics
from tuneloop.advice.config import CaseOptions
from tuneloop.advice.economics import MODES, AlternativeRow, trainings
from tuneloop.advice.measured import BaselineResults, SystemResult, leaderboard
from tuneloop.advice.rules import decide, load_rules
from tuneloop.core.errors import UserError
from tuneloop.core.files import build_config
from tuneloop.core.units import counted, exactly, hours_words, usd_words
from tuneloop.evaluation.metrics import lower_is_better, metric_of
from tuneloop.models.methods import USUAL, method_named, methods, title_of
from tuneloop.models.nn import target_modules
from tuneloop.planning import A_WEEK, CostOptions, Lengths, usual_settings
from tuneloop.planning import MachineOption as Machine
from tuneloop.planning.catalogue import PriceTable, find_gpu, find_model, load_prices, priced
from tuneloop.records import advice as records
from tuneloop.records.plan import PlannedCost

# of the input as it is printed: shown elsewhere
LEFT_OUT = {"combined", "measured", "lengths", "notes", "source", "stated_model", "settings"}


class AdviceInput(CaseOptions, CostOptions):
    """What advice rests on: the options of `tuneloop advise`, what was measured, and what the data say.

    `longest_row` and `lengths` are of the data; `peak` is the busiest hour's share of the mean, `batch_share` the part
    of the traffic that can wait; `stated_model` is the model as the user calls it, `settings` what a recipe says about
    the job, `notes` what was assumed while the data were read, `source` the data's place.
    """

    longest_row: int | None = Field(None, ge=8, le=2**20)
    peak: float = Field(3.0, ge=1, le=1000)
    batch_share: float = Field(0.5, ge=0, le=1)
    measured: BaselineResults | None = None
    lengths: Lengths | None = None
    notes: tuple[str, ...] = ()
    source: str = ""
    stated_model: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    combined: dict[str, Any] = Field(default_factory=dict)  # facts about measured merges, routers and students

    @property
    def training_tokens(self) -> float | None:
        """Tokens of one run over all epochs."""
        if self.lengths:
            return self.lengths.tokens * self.epochs
        return self.rows * self.tokens_per_row * self.epochs if self.rows and self.tokens_per_row else None


def make_question(values: Mapping[str, Any]) -> AdviceInput:
    """A question from what is known. Raises UserError: a value that can't be; the flag is named."""
    try:
        return build_config(AdviceInput, values)
    except UserError as error:
        key = error.what.partition("'")[2].partition("'")[0]
        flag = "--" + key.removesuffix("_usd").replace("_", "-")
        step = f"correct {flag}, or leave it out where it is not known"
        step += ", or where there is no traffic yet" if key == "queries_per_day" else ""
        raise UserError(error.what, where=flag, next_step=step) from None


@dataclass(frozen=True)
class Advice:
    """The answer with everything that it rests on."""

    answer: str  # `tune`, `prompt` (measure and improve the prompt first) or `dont`
    method: str  # the name of one: how, or how if the prompt falls short; empty when the answer is no
    costed: str  # the method whose cost is shown: that one, or the one that would be used if the answer were not no
    headline: str  # the answer in a sentence
    reasons: list[records.AdviceReason]  # the rules that applied, the deciding one first
    steps: list[str]  # what to do, in order
    missing: list[str]  # what would tell more, as flags
    assumptions: list[str]
    trainings: dict[str, Machine]
    options: list[AlternativeRow]
    swings: list[records.AssumptionSwing]  # of the net saving of the method over the horizon
    bills: dict[str, records.MonthlyBill]
    tokens: list[records.TokenPrice]
    question: AdviceInput

    def record(self) -> records.AdviceRecord:
        """As `advise.json` holds it and `--json` prints it."""
        row, measured = row_of(self.method, self.options), self.question.measured
        parts: dict[str, Any] = {
            "answer": self.answer, "method": self.method, "headline": self.headline, "reasons": self.reasons,
            "steps": self.steps, "missing": self.missing, "break_even": row.against if row else None,
            "alternatives": [_alternative(row) for row in self.options], "sensitivity": self.swings,
            "monthly_bills": self.bills, "token_prices": self.tokens,
            "trainings": {name: _training(training) for name, training in self.trainings.items()},
            "leaderboard": leaderboard(measured) if measured else [], "assumptions": self.assumptions,
            "question": self.question.model_dump(mode="json", exclude=LEFT_OUT, exclude_none=True),
        }  # fmt: skip
        return records.AdviceRecord(version=1, **parts)

    @property
    def costed_name(self) -> str:
        return title_of(self.costed)


def row_of(method: str, rows: Sequence[AlternativeRow]) -> AlternativeRow | None:
    """The line of a method in the table of alternatives."""
    return next((row for row in rows if row.option.name == title_of(method)), None)


def _training(training: Machine) -> records.AdvisedTraining:
    values: dict[str, Any] = {
        "gpu": training.job.gpu.key, "gpus": training.job.gpus, "fits": training.fits,
        "peak_gib": training.memory.peak, "capacity_gib": training.memory.capacity, "hours": training.hours,
        "usd_a_run": training.bare_usd, "cost": PlannedCost(**training.cost.to_json()) if training.cost else None,
    }  # fmt: skip
    return records.AdvisedTraining(**values)


def _alternative(row: AlternativeRow) -> records.AdvisedAlternative:
    option, against = row.option, row.against
    values: dict[str, Any] = {
        "name": option.name, "upfront_usd": option.upfront_usd, "usd_per_1000_queries": row.usd_per_1000_queries,
        "usd_per_month": row.usd_per_month, "total_usd": row.total_usd, "prompt_tokens": option.prompt_tokens,
        "quality": option.quality, "note": option.note,
    }  # fmt: skip
    if against:
        values |= {"break_even_queries": against.queries, "break_even_days": against.days}
        values |= {"saves_usd_per_month": against.usd_per_month_saved, "why_never": against.why}
    return records.AdvisedAlternative(**values)


def advise(question: AdviceInput) -> Advice:
    """Answer the question. Raises UserError: nothing is known, an unknown model or GPU, a price file with gaps."""
    if question.rows is None and question.measured is None and not question.queries_per_day:
        step = "name a file of examples or a prepared data set, or give --rows, --queries-per-day ..."
        raise UserError("Nothing to go by", where="advise", next_step=step)
    if question.gpu:
        find_gpu(question.gpu)
    prices = priced(load_prices(question.prices), question.gpu, question.usd_per_gpu_hour, question.tier)
    question, assumed = _completed(question)
    trained = trainings(question, prices)
    method, budget = _method(question, trained)
    rented = economics.bills(question, prices, question.prompt_tokens) if question.prompt_tokens else {}
    rows: list[AlternativeRow] = []  # the alternatives in a table; none without a volume and both prompts
    if question.queries_per_day and question.prompt_tokens:
        bill = rented.get(question.serving) if question.serving in MODES else None
        options = economics.options_of(question, prices, trained, question.prompt_tokens, bill)
        rows = economics.compare_options(options, question.queries_per_day, question.months) if options else []
    facts = facts_of(question, trained, rows, method, prices, rented)
    facts |= {**budget, **_over_budget(question, prices, trained, method)}
    if not facts["any_fits"] or (facts["run_days"] or 0) > A_WEEK / 24:
        facts["elsewhere"] = _elsewhere(question, prices, trained)
    reasons = decide(facts)
    answer = reasons["answer"][0]
    gives, tuning = answer.gives, answer.gives != "dont"
    training, row = trained.get(method), row_of(method, rows)
    swings = []
    if row and training and training.cost and question.queries_per_day:
        upfront = (training.cost.low, training.cost.p90)
        swings = economics.sensitivity(rows[0].option, row.option, question.queries_per_day, question.months, upfront)
    head = f"Fine-tune {method_named(method).how}: {answer.says}"
    if gives == "dont":
        head = f"Don't fine-tune: {answer.says}"
    elif gives == "prompt":
        head = f"Prompt first. {answer.says} If the prompt falls short: {title_of(method)}."
    how, applied = method if tuning else "", [answer, *(reasons["method"] if tuning else ()), *reasons["note"]]
    steps, missing = _steps(question, gives, method, facts), _missing(question, prices)
    assumed += _assumptions(question, training, rows)
    tokens = economics.token_lines(question, prices, question.prompt_tokens) if question.prompt_tokens else []
    return Advice(
        gives, how, method, head, applied, steps, missing, assumed, trained, rows, swings, rented, tokens, question
    )


def _completed(question: AdviceInput) -> tuple[AdviceInput, list[str]]:
    """The question with what measured results say about prompts, and what was filled in."""
    name, _, assumed = find_model(question.model)
    assumed = [*assumed, *question.notes]
    more: dict[str, Any] = {"model": name, "stated_model": question.model}
    measured = question.measured
    read = measured.prompt_tokens if measured else {}
    best = measured.prompt.name if measured and measured.prompt else ""
    if question.baseline_prompt_tokens is None and (tokens := read.get(best)):
        more["baseline_prompt_tokens"] = tokens
        assumed.append(f"baseline prompt: {tokens:,.0f} tokens, as {best} read for a test row")
    if question.prompt_tokens is None and (tokens := read.get("tuned") or read.get("zero-shot")):
        more["prompt_tokens"] = tokens
        assumed.append(f"tuned prompt: {tokens:,.0f} tokens, as measured on the test rows")
    if question.rows and not question.tokens_per_row:
        tokens = question.prompt_tokens + (question.answer_tokens or 0) if question.prompt_tokens else 512.0
        more["tokens_per_row"] = tokens
        assumed.append(f"{tokens:,.0f} tokens a training row{'' if question.prompt_tokens else ' (not given)'}")
    return question.model_copy(update=more), assumed


def _method(question: AdviceInput, trained: Mapping[str, Machine]) -> tuple[str, dict[str, Any]]:
    """How to tune, and what the budget says to it: the usual method, or if it costs too much the first that doesn't."""
    facts = {"rows": question.rows, "new_domain": question.new_domain, "model": question.model}
    facts |= {**_fits(trained), **_adapted(question), "gpu": question.gpu or "", "gpus": question.gpus or 1}
    usual = decide(facts, [rule for rule in load_rules() if rule.kind == "method"])["method"][0].gives
    usual_usd = _expected_usd(trained, usual)
    if question.budget_usd is None or usual_usd is None or usual_usd <= question.budget_usd:
        return usual, {}
    for method in (method.name for method in methods() if not method.footprint.all_weights):
        usd = _expected_usd(trained, method)
        if usd is not None and usd <= question.budget_usd:
            extra = {"usual_method": title_of(usual), "usual_usd": usd_words(usual_usd)}
            return method, {"affordable_method": method, "affordable_usd": usd_words(usd), **extra}
    return usual, {}


def _expected_usd(trained: Mapping[str, Machine], method: str) -> float | None:
    """Expected dollars of a method on its cheapest machine; None where it does not fit or has no price."""
    training = trained.get(method)
    return training.cost.usd if training and training.fits and training.cost else None


def _over_budget(
    question: AdviceInput, prices: PriceTable, trained: Mapping[str, Machine], method: str
) -> dict[str, Any]:
    """What is said of a budget that is too small: what the money goes to, and what would cost less."""
    usd, cost = _expected_usd(trained, method), trained[method].cost if method in trained else None
    if question.budget_usd is None or usd is None or cost is None or usd <= question.budget_usd:
        return {}
    parts = sorted(cost.breakdown.items(), key=lambda part: -part[1])
    spent = ", ".join(f"{name} {usd_words(part)}" for name, part in parts[:3] if part >= 0.01 * usd)
    people = cost.breakdown["engineering"] + cost.breakdown["data preparation"]
    return {"spent_on": spent, "instead": _instead(question, prices, people), "method_name": title_of(method)}


def _instead(question: AdviceInput, prices: PriceTable, people: float) -> str:
    budget = question.budget_usd or 0.0
    if people > budget:
        return f"People's time alone is {usd_words(people)}: no machine and no smaller model changes that."
    if question.tier == "on-demand" and question.usd_per_gpu_hour is None:
        usd = _expected_usd(trainings(question.model_copy(update={"tier": "spot"}), prices), USUAL.name)
        if usd is not None and usd <= budget:
            return f"Within it: {USUAL.title} on a spot machine, {usd_words(usd)} (--tier spot)."
    for smaller in economics.smaller_models(question.model):
        usd = _expected_usd(trainings(question.model_copy(update={"model": smaller}), prices), USUAL.name)
        if usd is not None and usd <= budget:
            return f"Within it: {USUAL.title} on {smaller}, {usd_words(usd)} (--model {smaller})."
    return "Neither a spot machine nor a smaller model stays within it."


def facts_of(
    question: AdviceInput,
    trained: Mapping[str, Machine],
    rows: Sequence[AlternativeRow],
    method: str,
    prices: PriceTable,
    rented_bills: Mapping[str, records.MonthlyBill],
) -> dict[str, Any]:
    """Everything that rules may look at; None is unknown."""
    measured = question.measured
    prompt, classical, tuned = (measured.prompt, measured.classical, measured.tuned) if measured else (None, None, None)
    other_model = prompt if measured and measured.stand_in else None
    method_row = row_of(method, rows)
    against = method_row.against if method_row else None
    training = trained.get(method)
    cost = training.cost if training else None
    scale = metric_of(measured.metric).out_of if measured else 1.0
    if other_model:
        # as good as needed; without a target: leaves little room
        enough = other_model.value / scale >= 0.9 if question.target is None else other_model.low >= question.target
        prompt = prompt if enough else None  # what another model falls short of says nothing about this one
    best_prompt = max((r.value for r in (prompt, other_model) if r), default=-1.0)
    leads = classical.value > best_prompt if classical else None
    summary = _classifier_words(classical, measured) if classical and measured else ""
    days = against.days if against else None
    payback = None if days is None else "under a day" if days < 1 else counted(days, "day")
    verdict = measured.verdict if measured and tuned else ""
    ties = None  # whether the tuned model is not shown to be better: by their comparison, else by its interval
    if measured and classical and tuned:
        ties = tuned.high >= classical.value if lower_is_better(measured.metric) else tuned.low <= classical.value
        ties = measured.classical_verdict != "better" if measured.classical_verdict else ties
        ties = measured.recommended == classical.name if measured.recommended else ties
    facts = {
        **question.model_dump(exclude=LEFT_OUT), **_fits(trained), "any_fits": any(t.fits for t in trained.values()),
        **_adapted(question),
        "gpu": question.gpu or (training.job.gpu.key if training else ""),
        "gpus": question.gpus or (training.job.gpus if training else 1),
        "run_days": training.hours / 24 if training and training.fits and question.training_tokens else None,
        "rows_per_label": question.rows / question.labels if question.rows and question.labels else None,
        "test_rows": measured.n or None if measured else None,
        "stand_in": measured.stand_in if measured and other_model else None,
        **_system_facts("stand_in", other_model, scale), **_system_facts("prompt", prompt, scale),
        **_system_facts("classical", classical, scale), "classical_leads": leads,
        "classical_right": classical.right if classical and measured and measured.n else None,
        "classical_words": summary, "classical_aside": f" {summary}: beat that first." if summary else "",
        "tuned": tuned.value if tuned else None, "classical_ties": ties,
        "tuned_verdict": ("better" if verdict == "better" else "not better") if verdict else None,
        "pays_back": (against.days is not None and against.days <= question.months * 365 / 12) if against else None,
        "payback": payback, "why_never": f" ({against.why})" if against and against.why else "", "elsewhere": "",
        "upfront_usd": _expected_usd(trained, method), "upfront_high_usd": cost.p90 if cost else None,
        "until_kept_usd": sum(cost.until_kept.values()) if cost and cost.until_kept else None,
        "over_months": exactly(question.months, "month"),
        **({} if question.budget_usd is None else {"budget": usd_words(question.budget_usd)}),
        **({"upfront": usd_words(cost.usd), "upfront_high": usd_words(cost.p90)} if cost else {}),
        **({"until_kept": usd_words(sum(cost.until_kept.values()))} if cost and cost.until_kept else {}),
        "hosted_known": bool(prices.hosted(question.model)), **question.combined,
    }  # fmt: skip
    return facts | _money(question, rows, method_row, rented_bills) | _latencies(question, prices)


def _system_facts(kind: str, system: SystemResult | None, scale: float) -> dict[str, Any]:
    values = (system.name, system.value, system.low, system.value / scale) if system else (None,) * 4
    return dict(zip((f"{kind}_{name}" for name in ("name", "best", "low", "share")), values, strict=True))


def _fits(trained: Mapping[str, Machine]) -> dict[str, bool]:
    return {f"{name}_fits": name in trained and trained[name].fits for name in (m.name for m in methods())}


def _adapted(question: AdviceInput) -> dict[str, Any]:
    """Next to which layers an adapter is, and a mixture's number of experts."""
    shape = find_model(question.model)[1]
    names = target_modules(question.settings.get("targets") or "all-linear")
    return {"adapted": shape.adapted_words(names), "experts": shape.experts or None}


MONEY = (
    "today_usd_per_month", "saves_usd_per_month", "net_saving", "affordable_hour", "real_time_usd", "batch_usd",
    "rented_pays",
)  # fmt: skip


def _money(
    question: AdviceInput,
    rows: Sequence[AlternativeRow],
    row: AlternativeRow | None,
    rented: Mapping[str, records.MonthlyBill],
) -> dict[str, float | bool | None]:
    """What the method saves, what people's time may cost, and what serving on rented machines does to the saving."""
    facts: dict[str, float | bool | None] = dict.fromkeys(MONEY)
    if not row or not row.against:
        return facts
    upfront, today, saved = row.option.upfront_usd, rows[0].usd_per_month, row.against.usd_per_month_saved
    net = question.months * saved - upfront
    facts |= {"today_usd_per_month": today, "saves_usd_per_month": saved, "net_saving": net}
    if question.engineer_hours:
        facts["affordable_hour"] = net / question.engineer_hours
    if rented:
        real_time = rented["real-time"].usd
        facts |= {"real_time_usd": real_time, "batch_usd": rented["batch"].usd}
        facts["rented_pays"] = question.months * (today - real_time) > upfront
    return facts


def _elsewhere(question: AdviceInput, prices: PriceTable, trained: Mapping[str, Machine]) -> str:
    """Where the usual method would run on a rented machine, in words; empty where no machine is named."""
    if not question.gpu or not question.training_tokens:
        return ""
    free = question.model_copy(update={"gpu": None, "gpus": None, "usd_per_gpu_hour": None})
    rented = trainings(free, prices).get(USUAL.name)
    if rented is None or not rented.fits:
        return ""
    took, usd = f"{hours_words(rented.hours)} on {rented.job.gpus} x {rented.job.gpu.key}", usd_words(rented.bare_usd)
    return f" Rented, a run of {USUAL.title} takes {took} and {usd}."


def _classifier_words(classical: SystemResult, measured: BaselineResults) -> str:
    """ "tf-idf + logistic regression is right on 97.5 % of your 40 test rows (macro_f1 0.750)"."""
    reached = f"{measured.metric} {classical.value:.3f}"
    if classical.right is None or not measured.n:
        return f"{classical.name} reaches {reached} at next to no cost"
    brackets = "" if measured.metric == "accuracy" else f" ({reached})"
    share = f"{100 * classical.right:.1f} % of your {counted(measured.n, 'test row')}"
    return f"{classical.name} is right on {share}{brackets} at next to no cost"


def _latencies(question: AdviceInput, prices: PriceTable) -> dict[str, float | None]:
    answer = question.answer_tokens
    latencies: dict[str, float | None] = {"prompt_latency_ms": None, "tuned_latency_ms": None}
    if not question.latency_ms or answer is None:
        return latencies
    for name, prompt in zip(latencies, (question.baseline_prompt_tokens, question.prompt_tokens), strict=True):
        machine = economics.serving(question, prices, prompt, answer, "on-demand") if prompt else None
        latencies[name] = machine.latency_ms(prompt, answer) if machine and prompt else None
    return latencies


def _steps(question: AdviceInput, gives: str, method: str, facts: Mapping[str, Any]) -> list[str]:
    data, model = question.source or "DATA", question.stated_model
    command = f"tuneloop advise {data} --measure --model"
    measure = [f"{command} {model}: the base model and the cheap classifiers on your test rows"]
    if facts["stand_in"]:
        measure = [f"get {model} and measure it itself: {command} FOLDER"]
    if facts["prompt_best"] is not None:
        measure = []
    if gives == "dont":
        if facts["elsewhere"]:
            return [f"{_plan_command(question, USUAL.name)}: machines to rent, memory, time, dollars"]
        measurable = facts["rows"] is None or facts["rows"] >= 20
        return measure if measurable and facts["classical_best"] is None else []
    steps = measure
    if question.rows is not None and question.rows < 200:
        steps.append("write and check more examples: a few hundred good ones beat any choice of method")
    run = f"tuneloop run {data} model={model} train.method={method}"
    plan = f"{_plan_command(question, method)}: machines, memory, time, dollars"
    return [*steps, plan, f"{run}, and compare on the same test rows before shipping"]


def _plan_command(question: AdviceInput, method: str) -> str:
    """The `plan` that names the same prices: about the same data, or the same tokens with the same settings."""
    data = f"{question.source} " if question.source else ""
    command = f"tuneloop plan {data}--model {question.stated_model} --method {method}"
    if question.tier != "on-demand":
        command += f" --tier {question.tier}"
    if question.source or not question.training_tokens:
        return command
    usual = usual_settings(method, find_model(question.model)[1], question.longest_row)
    tokens = f"--tokens {round(question.training_tokens / question.epochs)} --epochs {question.epochs:g}"
    return f"{command} {tokens} --seq-len {usual['seq_len']} --grad-ckpt --loss-kernel fused"


def _missing(question: AdviceInput, prices: PriceTable) -> list[str]:
    flags = {
        "--rows": question.rows, "--queries-per-day": question.queries_per_day,
        "--baseline-prompt-tokens": question.baseline_prompt_tokens, "--prompt-tokens": question.prompt_tokens,
        "--answer-tokens": question.answer_tokens, "--target": question.target, "--eval": question.measured,
    }  # fmt: skip
    missing = [flag for flag, value in flags.items() if value is None]
    if question.usd_per_million_input is None and not prices.hosted(question.model):
        missing.append("--usd-per-million-input")
    return missing


def _assumptions(question: AdviceInput, training: Machine | None, rows: Sequence[AlternativeRow]) -> list[str]:
    sentences = []
    if training and training.cost and question.training_tokens:
        gpu = training.job.gpu
        machine = "this machine's processor" if gpu.is_cpu else f"{training.job.gpus} x {gpu.key}"
        data = f"{counted(question.rows or 0, 'row')}, {exactly(question.epochs, 'epoch')}"
        reads = f"a run reads {question.training_tokens:,.0f} tokens ({data})"
        sentences += [f"{reads} in {hours_words(training.hours)} on {machine}", *training.cost.assumptions]
    if rows:
        rate = rows[0].option.rate
        token_usd = f"{usd_words(rate.input)} and {usd_words(rate.output)}"
        served = f"runs on rented machines, {question.serving}; peak hour {question.peak:g} times the mean"
        served = "is billed by the token like its base" if question.serving == "token" else served
        retrained = f"retrained every {exactly(question.retrain_months, 'month')}" if question.retrain_months else ""
        sentences += [
            f"tokens: {token_usd} for 1 million read and written ({rate.source})",
            f"the tuned model {served}",
            f"the tuned model is {retrained or 'not retrained (give --retrain-months)'}",
            "quality is no part of any saving: it is shown next to the money, where it was measured",
        ]
    return sentences
