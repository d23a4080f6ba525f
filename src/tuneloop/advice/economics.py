"""When tuning pays: prices of tokens and queries, costs of training and serving, break-even, alternatives, bills.

A saving is a difference to a baseline: without its prompt and the volume these functions refuse to name one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tuneloop.core.errors import UserError
from tuneloop.core.units import counted, hours_words, usd_words
from tuneloop.models.methods import USUAL, methods, title_of
from tuneloop.models.nn import ModelShape
from tuneloop.planning import Lengths, PlanRequest, machines, usual_settings
from tuneloop.planning import MachineOption as Machine
from tuneloop.planning.catalogue import COUNTS, Gpu, Price, PriceTable, all_gpus, find_gpu, find_model
from tuneloop.records.advice import AssumptionSwing, MonthlyBill, Payback, TokenPrice

if TYPE_CHECKING:
    from tuneloop.advice.recommendation import AdviceInput


DAYS_A_MONTH = 365 / 12
HOURS_A_MONTH = 24 * DAYS_A_MONTH
MILLION = 1_000_000


@dataclass(frozen=True)
class TokenRate:
    """Dollars for 1 million tokens read and written, and where that comes from."""

    input: float
    output: float
    source: str = ""

    def usd_per_query(self, prompt_tokens: float, answer_tokens: float) -> float:
        return (prompt_tokens * self.input + answer_tokens * self.output) / MILLION


@dataclass(frozen=True)
class ServingMachine:
    """A machine that serves a model."""

    usd_per_hour: float  # of the whole machine
    tokens_per_second: float  # read and written together, at full load with this mix of prompt and answer
    source: str = ""  # what it is, for assumptions

    def usd_per_million(self, utilisation: float) -> float:
        """Dollars for 1 million tokens, read and written, when the machine is busy for this share of its paid time."""
        return usd_per_million_tokens(self.usd_per_hour, self.tokens_per_second, utilisation)


def usd_per_million_tokens(usd_per_hour: float, tokens_per_second: float, utilisation: float) -> float:
    """Dollars for 1 million tokens on a machine paid by the hour. Raises UserError: a number that can't be."""
    if not (tokens_per_second > 0 and 0 < utilisation <= 1 and usd_per_hour >= 0):
        message = "Tokens a second are above 0, utilisation lies above 0 and at most at 1, dollars are not negative"
        where = f"{tokens_per_second:g} tokens/s, utilisation {utilisation:g}, ${usd_per_hour:g} an hour"
        raise UserError(message, where=where, next_step="check the three numbers")
    return usd_per_hour * MILLION / (3600 * tokens_per_second * utilisation)


@dataclass(frozen=True)
class ModelFootprint:
    """What serving speed depends on: parameters, bytes of a weight, and the keys and values of one token in bytes.

    `active`: of a mixture of experts the parameters that a token passes through; 0: all.
    """

    parameters: float
    bytes_a_weight: float
    kv_bytes_a_token: float
    active: float = 0.0


@dataclass(frozen=True)
class ServingGpu:
    """A GPU's (or several GPUs') usable memory in bytes, bandwidth in bytes/s and arithmetic in FLOP/s."""

    memory: float
    bandwidth: float
    flops: float


# Shares of the peak that serving engines reach: published vLLM runs of Llama 3.1 8B on an A100 read weights at 77 % of
# the bandwidth for one request (johnmusgrave.com, 2026); prompts are computed at about half of the arithmetic peak.
BANDWIDTH_SHARE, ARITHMETIC_SHARE, MEMORY_SHARE = 0.7, 0.5, 0.9
MOST_TOGETHER = 256  # vLLM's default limit of sequences in a batch


def serving_tokens_per_second(
    model: ModelFootprint, gpu: ServingGpu, prompt_tokens: float, answer_tokens: float, together: int = MOST_TOGETHER
) -> float:
    """Tokens read and written a second at full load; 0 where the model does not fit.

    By the roofline: prompts are bound by arithmetic, answers by memory. With B requests together, a written token costs
    (weights + B keys and values) / bandwidth for all B, a read token 2 FLOPs a parameter (Pope et al., "Efficiently
    scaling transformer inference", 2022). B is what the memory holds, at most `together`. An estimate: scheduling and
    sampling are not in it. For one request it gives 64 written tokens/s where 75 were measured (see `BANDWIDTH_SHARE`),
    for 4 to 48 together on another card 86 to 100 % of a published sweep (the test has it).
    """
    weights = model.parameters * model.bytes_a_weight
    room = gpu.memory * MEMORY_SHARE - weights
    cache = model.kv_bytes_a_token * (prompt_tokens + answer_tokens)
    batch = min(together, math.floor(room / cache)) if cache else together
    if batch < 1:
        return 0.0
    computed = model.active or model.parameters
    read = 2 * computed * prompt_tokens / (gpu.flops * ARITHMETIC_SHARE)
    seen = model.kv_bytes_a_token * (prompt_tokens + answer_tokens / 2)
    step = (weights + batch * seen) / (gpu.bandwidth * BANDWIDTH_SHARE)
    step = max(step, 2 * computed * batch / (gpu.flops * ARITHMETIC_SHARE))
    seconds = read + answer_tokens * step / batch
    return (prompt_tokens + answer_tokens) / seconds if seconds else 0.0


@dataclass(frozen=True)
class Alternative:
    """A way to answer the queries."""

    name: str  # what is done
    prompt_tokens: float  # of one query, examples and instructions included
    answer_tokens: float
    rate: TokenRate  # what tokens cost
    upfront_usd: float = 0.0  # paid once: training and people's time
    monthly_usd: float = 0.0  # paid whatever the volume: hosting, retraining
    quality: float | None = None  # the metric, where it was measured; never part of a saving
    note: str = ""  # what its numbers rest on

    @property
    def usd_per_query(self) -> float:
        """Dollars of one query, without what is paid whatever the volume."""
        return self.rate.usd_per_query(self.prompt_tokens, self.answer_tokens)

    def usd_per_month(self, queries_per_day: float) -> float:
        return self.usd_per_query * queries_per_day * DAYS_A_MONTH + self.monthly_usd


def break_even(baseline: Alternative, option: Alternative, queries_per_day: float | None) -> Payback:
    """When `option` has paid for itself. Raises UserError: no volume or baseline prompt: a saving would be a guess."""
    if not queries_per_day or not baseline.prompt_tokens:
        message = "A saving needs a baseline prompt and a volume"
        step = "give both: how many tokens a query takes today, and how many queries there are a day"
        raise UserError(message, where="--baseline-prompt-tokens, --queries-per-day", next_step=step)
    for alternative in (baseline, option):
        values = (
            ("queries a day", queries_per_day), ("prompt tokens", alternative.prompt_tokens),
            ("answer tokens", alternative.answer_tokens), ("price", alternative.rate.input),
            ("price", alternative.rate.output),
            ("upfront dollars", alternative.upfront_usd), ("monthly dollars", alternative.monthly_usd),
        )  # fmt: skip
        for name, value in values:
            if not math.isfinite(value) or value < 0:
                raise UserError(f"Not a possible value of {name}: {value!r}", where=name, next_step="give 0 or more")
    saved = baseline.usd_per_query - option.usd_per_query
    monthly = baseline.usd_per_month(queries_per_day) - option.usd_per_month(queries_per_day)
    upfront = option.upfront_usd - baseline.upfront_usd
    days, reason = 0.0, ""
    if upfront > 0 or monthly < 0:
        if monthly <= 0:
            reason = "a query costs no less" if saved <= 0 else "what is paid monthly eats what queries save"
            return Payback(usd_per_query_saved=saved, usd_per_month_saved=monthly, queries=None, days=None, why=reason)
        days = upfront / (monthly / DAYS_A_MONTH)
    queries = days * queries_per_day
    return Payback(usd_per_query_saved=saved, usd_per_month_saved=monthly, queries=queries, days=days, why=reason)


@dataclass(frozen=True)
class AlternativeRow:
    """An option's line in the table of alternatives."""

    option: Alternative
    usd_per_1000_queries: float  # their share of the month, that of a machine rented by the hour included
    usd_per_month: float
    total_usd: float
    against: Payback | None


def compare_options(options: Sequence[Alternative], queries_per_day: float, months: float) -> list[AlternativeRow]:
    """The options in their order, each compared with the first; `total_usd` over `months`; some queries a day."""
    baseline, rows = options[0], []
    for option in options:
        month = option.usd_per_month(queries_per_day)
        against = None if option is baseline else break_even(baseline, option, queries_per_day)
        thousand, total = month / (queries_per_day * DAYS_A_MONTH) * 1000, option.upfront_usd + months * month
        rows.append(AlternativeRow(option, thousand, month, total, against))
    return rows


def tornado(
    outcome: Callable[[Mapping[str, float]], float],
    values: Mapping[str, float],
    ranges: Mapping[str, tuple[float, float]],
) -> list[AssumptionSwing]:
    """One-at-a-time sensitivity: each assumption at its ends, the widest swing first; none that moves nothing."""
    swings = []
    for name, (low, high) in ranges.items():
        ends = outcome({**values, name: low}), outcome({**values, name: high})
        swings.append(AssumptionSwing(name=name, low=low, high=high, at_low=ends[0], at_high=ends[1]))
    return sorted((swing for swing in swings if swing.width), key=lambda swing: -swing.width)


def net_saving(values: Mapping[str, float], baseline: Alternative, option: Alternative, months: float) -> float:
    """Dollars left after `months` compared with the baseline; `values`: of the assumptions that `sensitivity` names."""

    def rate(of: Alternative) -> TokenRate:
        factor = values["price of tokens"]
        return replace(of.rate, input=of.rate.input * factor, output=of.rate.output * factor)

    answer, prompt = values["answer tokens"], values["baseline prompt tokens"]
    before = replace(baseline, prompt_tokens=prompt, answer_tokens=answer, rate=rate(baseline))
    after = replace(option, prompt_tokens=values["tuned prompt tokens"], answer_tokens=answer, rate=rate(option))
    after = replace(after, upfront_usd=values["upfront dollars"], monthly_usd=values["monthly dollars"])
    volume = values["queries a day"]
    saved = before.usd_per_month(volume) - after.usd_per_month(volume)
    return months * saved - (after.upfront_usd - before.upfront_usd)


def sensitivity(
    baseline: Alternative, option: Alternative, queries_per_day: float, months: float, upfront: tuple[float, float]
) -> list[AssumptionSwing]:
    """Which assumption moves the net saving most: volume, prompts and prices by half and double, the rest as known;
    `upfront`: P10 and P90 of the upfront dollars."""
    values = {
        "queries a day": queries_per_day, "baseline prompt tokens": baseline.prompt_tokens,
        "tuned prompt tokens": option.prompt_tokens, "answer tokens": option.answer_tokens, "price of tokens": 1.0,
        "upfront dollars": option.upfront_usd, "monthly dollars": option.monthly_usd,
    }  # fmt: skip
    ranges = {name: (value / 2, value * 2) for name, value in values.items() if value}
    if option.upfront_usd:
        ranges["upfront dollars"] = upfront
    return tornado(lambda at: net_saving(at, baseline, option, months), values, ranges)


Mode = Literal["batch", "real-time", "hybrid"]
MODES: tuple[Mode, ...] = ("batch", "real-time", "hybrid")


@dataclass(frozen=True)
class QueryTraffic:
    """Queries and how they come."""

    queries_per_day: float
    prompt_tokens: float
    answer_tokens: float
    peak: float = 3.0  # busiest hour over the mean
    batch_share: float = 0.5  # share that may wait for hours (hybrid)
    headroom: float = 0.5  # share of full load that a real-time machine may reach and still answer in time

    @property
    def tokens_per_month(self) -> float:
        return self.queries_per_day * DAYS_A_MONTH * (self.prompt_tokens + self.answer_tokens)


BATCH_UTILISATION = 0.9


def monthly_bill(mode: Mode, traffic: QueryTraffic, real_time: ServingMachine, batch: ServingMachine) -> MonthlyBill:
    """What a month costs on rented machines; those of batches may be spot. Real-time machines run all month, as many as
    the busiest hour needs with headroom; batch machines run while there is work, at 90 % load. In hybrid serving the
    share that may wait fills what real-time machines leave idle, the rest runs on batch machines."""
    tokens = traffic.tokens_per_month
    waiting = {"batch": 1.0, "real-time": 0.0, "hybrid": traffic.batch_share}[mode] * tokens
    now = tokens - waiting
    replicas = 0
    if now:
        needed = now / (HOURS_A_MONTH * 3600) * traffic.peak
        replicas = max(1, math.ceil(needed / (real_time.tokens_per_second * traffic.headroom)))
    capacity = replicas * real_time.tokens_per_second * HOURS_A_MONTH * 3600
    idle = max(0.0, capacity * BATCH_UTILISATION - now)
    left = max(0.0, waiting - idle)
    hours = left / (batch.tokens_per_second * BATCH_UTILISATION * 3600)
    usd = replicas * HOURS_A_MONTH * real_time.usd_per_hour + hours * batch.usd_per_hour
    busy = (now + waiting - left) / capacity if capacity else BATCH_UTILISATION
    price = usd / tokens * MILLION if tokens else 0.0
    return MonthlyBill(
        mode=mode, usd=usd, replicas=replicas, batch_hours=hours, utilisation=busy, usd_per_million=price
    )


GIB, BF16 = 1024**3, 2
SERVE_GPU = "l40s"  # where no GPU is named: the cheapest common card that holds 8B parameters with room for requests
UTILISATION = 0.3  # of a real-time machine, over a day with a quiet night; stated with every result that uses it
DISTIL = {  # a model and its student
    "llama-3.1-405b": "llama-3.3-70b", "llama-3.3-70b": "llama-3.1-8b", "llama-3.1-70b": "llama-3.1-8b",
    "llama-3.1-8b": "llama-3.2-3b", "llama-3-8b": "llama-3.2-3b", "llama-3.2-3b": "llama-3.2-1b",
}  # fmt: skip
RENTED = "served on rented machines"
LARGER = {"llama-3.1-8b": "llama-3.3-70b", "llama-3-8b": "llama-3.3-70b", "llama-3.3-70b": "llama-3.1-405b"}


def smaller_models(model: str) -> list[str]:
    """Smaller models of the family, the largest first."""
    names, name = [], model.removesuffix("-instruct")
    while name in DISTIL:
        name = DISTIL[name]
        names.append(name)
    return names


def trainings(question: AdviceInput, prices: PriceTable) -> dict[str, Machine]:
    """For each method that can run at all the cheapest machine that fits, or lacks least; fewest parameters first."""
    name, shape, _ = find_model(question.model)
    cpu = bool(question.gpu) and find_gpu(str(question.gpu)).is_cpu
    machine = {"gpu": question.gpu, "gpus": question.gpus or (1 if question.gpu else None)}
    lengths = question.lengths or Lengths(round((question.training_tokens or 0) / question.epochs))
    plans = {}
    for method in methods():
        usual = usual_settings(method.name, shape, question.longest_row, cpu=cpu)
        settings = {**usual, **question.settings, **machine, "method": method.name}
        settings = {key: value for key, value in settings.items() if value is not None}
        request = PlanRequest(name, shape, settings, lengths, question.epochs, prices, question.tier, question.efforts)
        with contextlib.suppress(UserError):  # 4-bit weights on a processor, ten times its memory: no way at all
            plans[method.name] = machines(request)[0][0]
    return dict(sorted(plans.items(), key=lambda item: item[1].job.trainable))


@dataclass(frozen=True)
class Serving:
    """A model served by oneself: the machine at full load, and one request alone."""

    gpus: int
    price: Price
    engine: ServingMachine
    shape: ModelShape
    card: Gpu

    def latency_ms(self, prompt_tokens: float, answer_tokens: float) -> float:
        """Milliseconds of one request alone: the roofline of `serving_tokens_per_second` with a batch of one."""
        model, gpu = _served(self.shape), _card(self.card, self.gpus)
        speed = serving_tokens_per_second(model, gpu, prompt_tokens, answer_tokens, together=1)
        return (prompt_tokens + answer_tokens) / speed * 1000 if speed else float("inf")


def serving(
    question: AdviceInput, prices: PriceTable, prompt_tokens: float, answer_tokens: float, tier: str
) -> Serving | None:
    """How the model would be served on one's own, on the GPU named or a common one; None where it can't be priced."""
    shape = find_model(question.model)[1]
    cards = [find_gpu(question.gpu)] if question.gpu and question.gpu != "cpu" else []
    cards = cards or [all_gpus()[SERVE_GPU], all_gpus()["h100-sxm"]]
    for card in cards:
        for gpus in COUNTS:
            tiers = {question.tier if question.usd_per_gpu_hour is not None else tier, "on-demand"}
            offers = [offer for t in tiers if (offer := prices.gpu(card.key, t, gpus))]
            price = min(offers, key=lambda offer: offer.machines_usd(gpus), default=None)
            speed = serving_tokens_per_second(_served(shape), _card(card, gpus), prompt_tokens, answer_tokens)
            if price and speed:
                engine = ServingMachine(price.machines_usd(gpus), speed, f"{gpus} x {card.name}, {price.words()}")
                return Serving(gpus, price, engine, shape, card)
    return None


def _served(shape: ModelShape) -> ModelFootprint:
    return ModelFootprint(shape.parameters, BF16, 2 * shape.layers * shape.keys * BF16, shape.active_parameters)


def _card(gpu: Gpu, gpus: int) -> ServingGpu:
    return ServingGpu(gpu.gib * GIB * gpus, gpu.gb_s * 1e9 * gpus, gpu.tflops * 1e12 * gpus)


def bills(question: AdviceInput, prices: PriceTable, prompt_tokens: float) -> dict[str, MonthlyBill]:
    """A month of the tuned model on rented machines: batch, real-time, hybrid."""
    volume, answer = question.queries_per_day, question.answer_tokens
    if not volume or not answer:
        return {}
    traffic = QueryTraffic(volume, prompt_tokens, answer, question.peak, question.batch_share)
    now, later = (serving(question, prices, prompt_tokens, answer, tier) for tier in ("on-demand", "spot"))
    if not now or not later:
        return {}
    return {mode: monthly_bill(mode, traffic, now.engine, later.engine) for mode in MODES}


def token_lines(question: AdviceInput, prices: PriceTable, prompt_tokens: float) -> list[TokenPrice]:
    """Self-hosting by utilisation against hosted prices, for 1 million tokens at this mix."""
    answer = question.answer_tokens or 0.0
    lines = []
    for hosted in prices.hosted(question.model):
        rate = TokenRate(hosted.input, hosted.output)
        usd = rate.usd_per_query(prompt_tokens, answer) / (prompt_tokens + answer) * 1e6
        title, basis = f"{hosted.provider}, hosted", f"{hosted.date}, {hosted.source}"
        lines.append(TokenPrice(what=title, usd_per_million=usd, basis=basis))
    if machine := serving(question, prices, prompt_tokens, answer, "on-demand"):
        basis = f"about {machine.engine.tokens_per_second:,.0f} tokens/s (roofline); {machine.engine.source}"
        for share in (1.0, UTILISATION, 0.05):
            title = f"own {machine.gpus} x {machine.card.name}, {share:.0%} busy"
            usd = machine.engine.usd_per_million(share)
            lines.append(TokenPrice(what=title, usd_per_million=usd, basis=basis))
    return lines


def rate_of(question: AdviceInput, prices: PriceTable, model: str) -> TokenRate | None:
    """What tokens of a model cost: as given, else the cheapest hosted offer; None where there is none."""
    read, write = question.usd_per_million_input, question.usd_per_million_output
    if model == question.model and read is not None:
        return TokenRate(read, read if write is None else write, "given")
    best = next(iter(prices.hosted(model)), None)
    return TokenRate(best.input, best.output, f"{best.provider}, {best.date}") if best else None


def options_of(
    question: AdviceInput,
    prices: PriceTable,
    trained: Mapping[str, Machine],
    tuned_prompt: float,
    bill: MonthlyBill | None,
) -> list[Alternative]:
    """Today's prompt first, then what could be done instead; empty where a price or a length is missing."""
    rate = rate_of(question, prices, question.model)
    today = rate
    if question.baseline_usd_per_million_input is not None:
        read, write = question.baseline_usd_per_million_input, question.baseline_usd_per_million_output
        today = TokenRate(read, read if write is None else write, "given for today's model")
    baseline, answer = question.baseline_prompt_tokens, question.answer_tokens
    if rate is None or today is None or not baseline or answer is None:
        return []
    measured = question.measured
    hour = question.usd_per_engineer_hour
    quality, note = measured.prompt.value if measured and measured.prompt else None, f"tokens at {today.source}"
    work = "four hours of work, no shorter prompt"
    options = [
        Alternative("today's prompt", baseline, answer, today, quality=quality, note=note),
        Alternative("better prompt", baseline, answer, today, upfront_usd=4 * hour, note=work),
    ]
    larger = LARGER.get(question.model.removesuffix("-instruct"))
    higher = rate_of(question, prices, larger) if larger else None
    if larger and higher:
        note = f"tokens at {higher.source}"
        options.append(Alternative(f"larger model ({larger})", baseline, answer, higher, note=note))
    served, monthly = (TokenRate(0, 0, RENTED), bill.usd) if bill else (rate, 0.0)
    for method, training in trained.items():
        if training.cost is None:
            continue
        quality = measured.tuned.value if measured and measured.tuned and method == measured.method else None
        upfront, note = training.cost.usd, f"{_run_words(training)}; {_billed(served)}"
        month = monthly + _upkeep(question, upfront)
        options.append(Alternative(title_of(method), tuned_prompt, answer, served, upfront, month, quality, note))
    return [
        *options,
        *_hosted(question, prices, trained, options[-1]),
        *_distilled(question, prices, tuned_prompt, answer),
    ]


def _hosted(
    question: AdviceInput, prices: PriceTable, trained: Mapping[str, Machine], like: Alternative
) -> list[Alternative]:
    """The usual method trained by a service, as `run --on` does, and billed `like` another; none without a price."""
    usual, known, usd = trained.get(USUAL.name), prices.trained(question.stated_model), question.usd_per_million_tuning
    source = "given"
    if known and usd is None:
        usd, source = known.input, f"{known.provider}, {known.date}"
    if usd is None or usual is None or usual.cost is None or not question.training_tokens:
        return []
    people = sum(usual.cost.breakdown.get(part, 0.0) for part in ("engineering", "data preparation"))
    upfront = people + question.training_tokens * usd / MILLION
    note = f"{usd_words(usd)} for 1 million trained tokens ({source}); {_billed(like.rate)}"
    monthly = like.monthly_usd - _upkeep(question, like.upfront_usd) + _upkeep(question, upfront)
    return [replace(like, name="hosted tuning", upfront_usd=upfront, monthly_usd=monthly, quality=None, note=note)]


def _billed(rate: TokenRate) -> str:
    return rate.source if RENTED in rate.source else f"tokens at {rate.source}"


def _upkeep(question: AdviceInput, usd: float) -> float:
    return usd / question.retrain_months if question.retrain_months else 0.0


def _run_words(training: Machine) -> str:
    return f"{hours_words(training.hours)} on {training.job.gpus} x {training.job.gpu.key} a run"


def _distilled(question: AdviceInput, prices: PriceTable, prompt: float, answer: float) -> list[Alternative]:
    """The usual method on a smaller model with this one's answers: by the token where the tuned model is billed so and
    it has a price, else on rented machines."""
    smaller, teacher = DISTIL.get(question.model.removesuffix("-instruct")), rate_of(question, prices, question.model)
    if not smaller or teacher is None:
        return []
    unknown = dict.fromkeys(("usd_per_million_input", "usd_per_million_output", "measured"))
    student = question.model_copy(update={"model": smaller, **unknown})
    training = trainings(student, prices).get(USUAL.name)
    if training is None or training.cost is None:
        return []
    rate, monthly, mode = rate_of(student, prices, smaller), 0.0, question.serving
    if rate is None or mode != "token":
        mode = "real-time" if mode == "token" else mode
        bill = bills(student, prices, prompt).get(mode)
        if bill is None:
            return []
        rate, monthly = TokenRate(0, 0, f"no price by the token is known; {RENTED} ({mode})"), bill.usd
    writing = (question.rows or 0) * teacher.usd_per_query(question.baseline_prompt_tokens or prompt, answer)
    answers = f"{counted(question.rows or 0, 'answer')} written by {question.model}"
    note = f"{USUAL.title} on {smaller}: {_run_words(training)}; {answers}; {_billed(rate)}"
    upfront, monthly = training.cost.usd + writing, monthly + _upkeep(question, training.cost.usd)
    return [Alternative(f"distil into {smaller}", prompt, answer, rate, upfront, monthly, None, note)]
