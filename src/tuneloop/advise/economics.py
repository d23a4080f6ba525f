"""When tuning pays: prices of tokens and queries, break-even, alternatives side by side, monthly bills.

Pure functions on records of plain numbers. A saving is a difference to a baseline: without the baseline's prompt and the
volume there is none, and these functions refuse to name one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tuneloop.core.errors import UserError
from tuneloop.records.advice import AssumptionSwing, MonthlyBill, Payback

DAYS_A_MONTH = 365 / 12
HOURS_A_MONTH = 24 * DAYS_A_MONTH
MILLION = 1_000_000


# --- what tokens cost --------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenRate:
    """Dollars for 1 million tokens read and written, and where that comes from."""

    input: float
    output: float
    source: str = ""

    def usd_per_query(self, prompt_tokens: float, answer_tokens: float) -> float:
        """Dollars of one query."""
        return (prompt_tokens * self.input + answer_tokens * self.output) / MILLION


@dataclass(frozen=True)
class Engine:
    """A machine that serves a model.

    Args:
        usd_per_hour: of the whole machine.
        tokens_per_second: read and written together, at full load with this mix of prompt and answer.
        source: what it is, for assumptions.
    """

    usd_per_hour: float
    tokens_per_second: float
    source: str = ""

    def usd_per_million(self, utilisation: float) -> float:
        """Dollars for 1 million tokens, read and written, when the machine is busy for this share of its paid time."""
        return usd_per_million_tokens(self.usd_per_hour, self.tokens_per_second, utilisation)


def usd_per_million_tokens(usd_per_hour: float, tokens_per_second: float, utilisation: float) -> float:
    """Dollars for 1 million tokens on a machine that is paid by the hour.

    Raises:
        UserError: a throughput or utilisation that can't be.
    """
    if not (tokens_per_second > 0 and 0 < utilisation <= 1 and usd_per_hour >= 0):
        raise UserError(
            "Tokens a second are above 0, utilisation lies above 0 and at most at 1, dollars are not negative",
            where=f"{tokens_per_second:g} tokens/s, utilisation {utilisation:g}, ${usd_per_hour:g} an hour",
            next_step="check the three figures",
        )
    return usd_per_hour * MILLION / (3600 * tokens_per_second * utilisation)


@dataclass(frozen=True)
class ServedModel:
    """What serving speed depends on: parameters, bytes of a weight, and the keys and values of one token in bytes."""

    parameters: float
    bytes_a_weight: float
    kv_bytes_a_token: float


@dataclass(frozen=True)
class ServingGpu:
    """A GPU's (or several GPUs') usable memory in bytes, bandwidth in bytes/s and arithmetic in FLOP/s."""

    memory: float
    bandwidth: float
    flops: float


# Shares of the peak that serving engines reach: published vLLM runs of Llama 3.1 8B on an A100 read weights at 77 % of the
# bandwidth for one request (johnmusgrave.com, 2026); prompts are computed at about half of the arithmetic peak.
BANDWIDTH_SHARE, ARITHMETIC_SHARE, MEMORY_SHARE = 0.7, 0.5, 0.9
MOST_TOGETHER = 256  # vLLM's default limit of sequences in a batch


def serving_tokens_per_second(
    model: ServedModel, gpu: ServingGpu, prompt_tokens: float, answer_tokens: float, together: int = MOST_TOGETHER
) -> float:
    """Tokens read and written a second at full load, by the roofline: prompts are bound by arithmetic, answers by memory.

    With B requests together, a written token costs (weights + B keys and values) / bandwidth for all B, a read token
    2 FLOPs a parameter (Pope et al., "Efficiently scaling transformer inference", 2022). B is what the memory holds,
    at most `together`. An estimate: scheduling and sampling are not in it. For one request it gives 64 written tokens/s where 75
    were measured (see `BANDWIDTH_SHARE`), for 4 to 48 together on another card 86 to 100 % of a published sweep (the test has it).

    Returns:
        0 where the model does not fit.
    """
    weights = model.parameters * model.bytes_a_weight
    room = gpu.memory * MEMORY_SHARE - weights
    held = model.kv_bytes_a_token * (prompt_tokens + answer_tokens)
    batch = min(together, math.floor(room / held)) if held else together
    if batch < 1:
        return 0.0
    read = 2 * model.parameters * prompt_tokens / (gpu.flops * ARITHMETIC_SHARE)
    seen = model.kv_bytes_a_token * (prompt_tokens + answer_tokens / 2)
    step = (weights + batch * seen) / (gpu.bandwidth * BANDWIDTH_SHARE)
    step = max(step, 2 * model.parameters * batch / (gpu.flops * ARITHMETIC_SHARE))
    seconds = read + answer_tokens * step / batch
    return (prompt_tokens + answer_tokens) / seconds if seconds else 0.0


# --- alternatives and break-even ---------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """A way to answer the queries.

    Args:
        name: what is done.
        prompt_tokens, answer_tokens: of one query, examples and instructions included.
        rate: what tokens cost.
        upfront_usd: paid once: training and people's time.
        monthly_usd: paid whatever the volume: hosting, retraining.
        quality: the metric, where it was measured; never part of a saving.
        note: what its figures rest on.
    """

    name: str
    prompt_tokens: float
    answer_tokens: float
    rate: TokenRate
    upfront_usd: float = 0.0
    monthly_usd: float = 0.0
    quality: float | None = None
    note: str = ""

    @property
    def usd_per_query(self) -> float:
        """Dollars of one query, without what is paid whatever the volume."""
        return self.rate.usd_per_query(self.prompt_tokens, self.answer_tokens)

    def usd_per_month(self, queries_per_day: float) -> float:
        """Dollars a month at this volume."""
        return self.usd_per_query * queries_per_day * DAYS_A_MONTH + self.monthly_usd


def break_even(baseline: Option, option: Option, queries_per_day: float | None) -> Payback:
    """When `option` has paid for itself.

    Raises:
        UserError: no volume or no baseline prompt is given: a saving would be a guess.
    """
    if not queries_per_day or not baseline.prompt_tokens:
        raise UserError(
            "A saving needs a baseline prompt and a volume",
            where="--baseline-prompt-tokens, --queries-per-day",
            next_step="give both: how many tokens a query takes today, and how many queries there are a day",
        )
    _check(baseline, option, queries_per_day)
    saved = baseline.usd_per_query - option.usd_per_query
    monthly = baseline.usd_per_month(queries_per_day) - option.usd_per_month(queries_per_day)
    upfront = option.upfront_usd - baseline.upfront_usd
    if upfront <= 0 and monthly >= 0:
        return Payback(usd_per_query_saved=saved, usd_per_month_saved=monthly, queries=0.0, days=0.0, why="")
    if monthly <= 0:
        reason = "a query costs no less" if saved <= 0 else "what is paid monthly eats what queries save"
        return Payback(usd_per_query_saved=saved, usd_per_month_saved=monthly, queries=None, days=None, why=reason)
    days = upfront / (monthly / DAYS_A_MONTH)
    return Payback(
        usd_per_query_saved=saved, usd_per_month_saved=monthly, queries=days * queries_per_day, days=days, why=""
    )


@dataclass(frozen=True)
class OptionRow:
    """An option's line in the table of alternatives; 1,000 queries cost their share of the month: a machine that is rented by
    the hour is in both figures."""

    option: Option
    usd_per_1000_queries: float
    usd_per_month: float
    total_usd: float
    against: Payback | None


def compare_options(options: Sequence[Option], queries_per_day: float, months: float) -> list[OptionRow]:
    """The options in the order given, each against the first; `total_usd` over `months`.

    Args:
        queries_per_day: above 0.
    """
    baseline, rows = options[0], []
    for option in options:
        month = option.usd_per_month(queries_per_day)
        against = None if option is baseline else break_even(baseline, option, queries_per_day)
        thousand, total = month / (queries_per_day * DAYS_A_MONTH) * 1000, option.upfront_usd + months * month
        rows.append(OptionRow(option, thousand, month, total, against))
    return rows


# --- sensitivity -------------------------------------------------------------------------------


def tornado(
    outcome: Callable[[Mapping[str, float]], float],
    values: Mapping[str, float],
    ranges: Mapping[str, tuple[float, float]],
) -> list[AssumptionSwing]:
    """One-at-a-time sensitivity: each assumption at its ends, the others as given; the widest swing first, without
    those that move nothing."""
    swings = [
        AssumptionSwing(
            name=name,
            low=low,
            high=high,
            at_low=outcome({**values, name: low}),
            at_high=outcome({**values, name: high}),
        )
        for name, (low, high) in ranges.items()
    ]
    return sorted((swing for swing in swings if swing.width), key=lambda swing: -swing.width)


def net_saving(values: Mapping[str, float], baseline: Option, option: Option, months: float) -> float:
    """Dollars left after `months` against the baseline, with `tornado`'s assumptions put in.

    Args:
        values: `queries a day`, `baseline prompt tokens`, `tuned prompt tokens`, `answer tokens`,
            `price of tokens` (a factor), `upfront dollars`, `monthly dollars`.
    """

    def rate(of: Option) -> TokenRate:
        factor = values["price of tokens"]
        return replace(of.rate, input=of.rate.input * factor, output=of.rate.output * factor)

    answer = values["answer tokens"]
    before = replace(
        baseline, prompt_tokens=values["baseline prompt tokens"], answer_tokens=answer, rate=rate(baseline)
    )
    after = replace(
        option, prompt_tokens=values["tuned prompt tokens"], answer_tokens=answer, rate=rate(option),
        upfront_usd=values["upfront dollars"], monthly_usd=values["monthly dollars"],
    )  # fmt: skip
    volume = values["queries a day"]
    saved = before.usd_per_month(volume) - after.usd_per_month(volume)
    return months * saved - (after.upfront_usd - before.upfront_usd)


def sensitivity(
    baseline: Option, option: Option, queries_per_day: float, months: float, upfront: tuple[float, float]
) -> list[AssumptionSwing]:
    """Which assumption moves the net saving most: volume, prompts and prices by half and double, the rest as known.

    Args:
        baseline, option: compared.
        queries_per_day: volume.
        months: horizon.
        upfront: P10 and P90 of the upfront dollars.
    """
    values = {
        "queries a day": queries_per_day,
        "baseline prompt tokens": baseline.prompt_tokens,
        "tuned prompt tokens": option.prompt_tokens,
        "answer tokens": option.answer_tokens,
        "price of tokens": 1.0,
        "upfront dollars": option.upfront_usd,
        "monthly dollars": option.monthly_usd,
    }
    ranges = {name: (value / 2, value * 2) for name, value in values.items() if value}
    if option.upfront_usd:
        ranges["upfront dollars"] = upfront
    return tornado(lambda at: net_saving(at, baseline, option, months), values, ranges)


# --- monthly bills -----------------------------------------------------------------------------

Mode = Literal["batch", "real-time", "hybrid"]
MODES: tuple[Mode, ...] = ("batch", "real-time", "hybrid")


@dataclass(frozen=True)
class Traffic:
    """Queries and how they come.

    Args:
        queries_per_day, prompt_tokens, answer_tokens: the volume.
        peak: busiest hour over the mean.
        batch_share: share that may wait for hours (hybrid).
        headroom: share of full load that a real-time machine may reach and still answer in time.
    """

    queries_per_day: float
    prompt_tokens: float
    answer_tokens: float
    peak: float = 3.0
    batch_share: float = 0.5
    headroom: float = 0.5

    @property
    def tokens_per_month(self) -> float:
        """Read and written."""
        return self.queries_per_day * DAYS_A_MONTH * (self.prompt_tokens + self.answer_tokens)


BATCH_UTILISATION = 0.9


def monthly_bill(mode: Mode, traffic: Traffic, real_time: Engine, batch: Engine) -> MonthlyBill:
    """What a month costs on rented machines.

    Real-time machines run all month, as many as the busiest hour needs with headroom; batch machines run while there is
    work, at 90 % load. In hybrid serving the share that may wait fills what real-time machines leave idle, the rest runs
    on batch machines.

    Args:
        mode: `batch`, `real-time` or `hybrid`.
        traffic: volume and shape.
        real_time, batch: machines; the second may be spot.
    """
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
    return MonthlyBill(
        mode=mode, usd=usd, replicas=replicas, batch_hours=hours, utilisation=busy,
        usd_per_million=usd / tokens * MILLION if tokens else 0.0,
    )  # fmt: skip


def _check(baseline: Option, option: Option, queries_per_day: float) -> None:
    for name, value in (("queries a day", queries_per_day), *_figures(baseline), *_figures(option)):
        if not math.isfinite(value) or value < 0:
            raise UserError(f"Not a possible figure for {name}: {value!r}", where=name, next_step="give 0 or more")


def _figures(option: Option) -> list[tuple[str, float]]:
    return [
        ("prompt tokens", option.prompt_tokens), ("answer tokens", option.answer_tokens), ("price", option.rate.input),
        ("price", option.rate.output), ("upfront dollars", option.upfront_usd), ("monthly dollars", option.monthly_usd),
    ]  # fmt: skip
