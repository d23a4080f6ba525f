"""The figures behind advice: what each method takes to train, what serving costs, and the alternatives side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tuneloop.advise import economics
from tuneloop.advise.economics import MODES, Engine, Option, ServedModel, ServingGpu, TokenRate, Traffic
from tuneloop.core.errors import UserError
from tuneloop.core.units import counted, hours_words
from tuneloop.models.methods import USUAL, methods, title_of
from tuneloop.models.shape import ModelShape
from tuneloop.plan.cost import ONE_RUN
from tuneloop.plan.gpus import Gpu, all_gpus, find_gpu
from tuneloop.plan.options import Ask, Lengths, machines
from tuneloop.plan.options import Option as Machine
from tuneloop.plan.prices import Price, PriceTable
from tuneloop.plan.remedies import COUNTS
from tuneloop.plan.shape import find_model
from tuneloop.plan.usual import usual_settings
from tuneloop.records.advice import MonthlyBill, TokenPrice

if TYPE_CHECKING:
    from tuneloop.advise.advise import AdviceInput

GIB, BF16 = 1024**3, 2
SERVE_GPU = "l40s"  # where no GPU is named: the cheapest common card that holds 8B parameters with room for requests
UTILISATION = 0.3  # of a real-time machine, over a day with a quiet night; stated with every figure that uses it
DISTIL = {  # a model and its student
    "llama-3.1-405b": "llama-3.3-70b", "llama-3.3-70b": "llama-3.1-8b", "llama-3.1-70b": "llama-3.1-8b",
    "llama-3.1-8b": "llama-3.2-3b", "llama-3-8b": "llama-3.2-3b", "llama-3.2-3b": "llama-3.2-1b",
}  # fmt: skip
RENTED = "served on rented machines"
LARGER = {"llama-3.1-8b": "llama-3.3-70b", "llama-3-8b": "llama-3.3-70b", "llama-3.3-70b": "llama-3.1-405b"}


def smaller_models(model: str) -> list[str]:
    """Smaller models of the family, the largest first."""
    found, name = [], model.removesuffix("-instruct")
    while name in DISTIL:
        name = DISTIL[name]
        found.append(name)
    return found


def trainings(question: AdviceInput, prices: PriceTable) -> dict[str, Machine]:
    """For each method that can run at all the cheapest machine that fits, or the one that lacks least; the fewest trained parameters first."""
    name, shape, _ = find_model(question.model)
    cpu = bool(question.gpu) and find_gpu(str(question.gpu)).is_cpu
    machine = {"gpu": question.gpu, "gpus": question.gpus or (1 if question.gpu else None)}
    efforts = replace(
        ONE_RUN, rows_to_label=question.rows_to_label, usd_per_labeller_hour=question.usd_per_labeller_hour,
        engineer_hours=question.engineer_hours, usd_per_engineer_hour=question.usd_per_engineer_hour, runs=question.runs,
        setup_hours=question.setup_hours, evaluation_hours=question.evaluation_hours,
    )  # fmt: skip
    lengths = question.lengths or Lengths(round((question.training_tokens or 0) / question.epochs))
    found = {}
    for method in (known.name for known in methods()):
        usual = usual_settings(method, shape, question.longest_row, cpu=cpu)
        asked = {**usual, **question.settings, **machine, "method": method}
        given = {key: value for key, value in asked.items() if value is not None}
        ask = Ask(name, shape, given, lengths, question.epochs, prices, question.tier, efforts)
        try:
            found[method] = machines(ask)[0][0]
        except UserError:  # 4-bit weights on a processor, a model of ten times its memory: no way at all
            continue
    return dict(sorted(found.items(), key=lambda item: item[1].job.trainable))


# --- serving -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Serving:
    """A model served by oneself: the machine at full load, and one request alone."""

    model: str
    gpu: str
    gpus: int
    price: Price
    engine: Engine
    shape: ModelShape
    card: Gpu

    def latency_ms(self, prompt_tokens: float, answer_tokens: float) -> float:
        """Milliseconds of one request alone: the roofline of `serving_tokens_per_second` with a batch of one."""
        speed = economics.serving_tokens_per_second(
            _served(self.shape), _card(self.card, self.gpus), prompt_tokens, answer_tokens, together=1
        )
        return (prompt_tokens + answer_tokens) / speed * 1000 if speed else float("inf")


def serving(
    question: AdviceInput, prices: PriceTable, prompt_tokens: float, answer_tokens: float, tier: str
) -> Serving | None:
    """How the model would be served on one's own, on the GPU asked for or a common one; None where it can't be priced."""
    name, shape, _ = find_model(question.model)
    cards = [find_gpu(question.gpu)] if question.gpu and question.gpu != "cpu" else []
    cards = cards or [all_gpus()[SERVE_GPU], all_gpus()["h100-sxm"]]
    for card in cards:
        for gpus in COUNTS:
            tiers = {question.tier if question.usd_per_gpu_hour is not None else tier, "on-demand"}
            offers = [offer for t in tiers if (offer := prices.gpu(card.key, t, gpus))]
            price = min(offers, key=lambda offer: offer.machines_usd(gpus), default=None)
            speed = economics.serving_tokens_per_second(_served(shape), _card(card, gpus), prompt_tokens, answer_tokens)
            if price and speed:
                engine = Engine(price.machines_usd(gpus), speed, f"{gpus} x {card.name}, {price.words()}")
                return Serving(name, card.key, gpus, price, engine, shape, card)
    return None


def _served(shape: ModelShape) -> ServedModel:
    return ServedModel(shape.parameters, BF16, 2 * shape.layers * shape.keys * BF16)


def _card(gpu: Gpu, gpus: int) -> ServingGpu:
    return ServingGpu(gpu.gib * GIB * gpus, gpu.gb_s * 1e9 * gpus, gpu.tflops * 1e12 * gpus)


def bills(question: AdviceInput, prices: PriceTable, prompt_tokens: float) -> dict[str, MonthlyBill]:
    """A month of the tuned model on rented machines: batch, real-time, hybrid."""
    if not question.queries_per_day or not question.answer_tokens:
        return {}
    traffic = Traffic(
        question.queries_per_day, prompt_tokens, question.answer_tokens, question.peak, question.batch_share
    )
    now = serving(question, prices, prompt_tokens, question.answer_tokens, "on-demand")
    later = serving(question, prices, prompt_tokens, question.answer_tokens, "spot")
    if not now or not later:
        return {}
    return {mode: economics.monthly_bill(mode, traffic, now.engine, later.engine) for mode in MODES}


def token_lines(question: AdviceInput, prices: PriceTable, prompt_tokens: float) -> list[TokenPrice]:
    """Self-hosting by utilisation against hosted prices, for 1 million tokens at this mix."""
    answer = question.answer_tokens or 0.0
    lines = []
    for hosted in prices.hosted(question.model):
        rate = TokenRate(hosted.input, hosted.output)
        usd = rate.usd_per_query(prompt_tokens, answer) / (prompt_tokens + answer) * 1e6
        lines.append(
            TokenPrice(what=f"{hosted.provider}, hosted", usd_per_million=usd, basis=f"{hosted.date}, {hosted.source}")
        )
    own = serving(question, prices, prompt_tokens, answer, "on-demand")
    if own:
        basis = f"about {own.engine.tokens_per_second:,.0f} tokens/s (roofline); {own.engine.source}"
        for share in (1.0, UTILISATION, 0.05):
            usd = own.engine.usd_per_million(share)
            lines.append(
                TokenPrice(what=f"own {own.gpus} x {own.card.name}, {share:.0%} busy", usd_per_million=usd, basis=basis)
            )
    return lines


# --- alternatives ------------------------------------------------------------------------------


def rate_of(question: AdviceInput, prices: PriceTable, model: str) -> TokenRate | None:
    """What tokens of a model cost: as given, else the cheapest hosted offer; None where there is none."""
    if model == question.model and question.usd_per_million_input is not None:
        output = question.usd_per_million_output
        return TokenRate(
            question.usd_per_million_input, question.usd_per_million_input if output is None else output, "given"
        )
    hosted = prices.hosted(model)
    if not hosted:
        return None
    best = hosted[0]
    return TokenRate(best.input, best.output, f"{best.provider}, {best.date}")


def options_of(
    question: AdviceInput,
    prices: PriceTable,
    trained: Mapping[str, Machine],
    tuned_prompt: float,
    bill: MonthlyBill | None,
) -> list[Option]:
    """Today's prompt first, then what could be done instead; empty where a price or a length is missing."""
    rate = rate_of(question, prices, question.model)
    today = rate
    if question.baseline_usd_per_million_input is not None:
        read, written = question.baseline_usd_per_million_input, question.baseline_usd_per_million_output
        today = TokenRate(read, read if written is None else written, "given for today's model")
    baseline, answer = question.baseline_prompt_tokens, question.answer_tokens
    if rate is None or today is None or not baseline or answer is None:
        return []
    measured = question.measured
    hour = question.usd_per_engineer_hour
    prompt_quality = measured.prompt.value if measured and measured.prompt else None
    options = [
        Option("today's prompt", baseline, answer, today, quality=prompt_quality, note=f"tokens at {today.source}"),
        Option(
            "better prompt", baseline, answer, today, upfront_usd=4 * hour, note="four hours of work, no shorter prompt"
        ),
    ]
    larger = LARGER.get(question.model.removesuffix("-instruct"))
    higher = rate_of(question, prices, larger) if larger else None
    if larger and higher:
        options.append(Option(f"larger model ({larger})", baseline, answer, higher, note=f"tokens at {higher.source}"))
    served, monthly = (TokenRate(0, 0, RENTED), bill.usd) if bill else (rate, 0.0)
    for method, training in trained.items():
        if training.cost is None:
            continue
        quality = measured.tuned.value if measured and measured.tuned and method == measured.method else None
        options.append(
            Option(
                title_of(method),
                tuned_prompt, answer, served, training.cost.usd, monthly + _upkeep(question, training), quality,
                f"{_run_words(training)}; {_billed(served)}",
            )
        )  # fmt: skip
    return options + _distilled(question, prices, tuned_prompt, answer)


def _billed(rate: TokenRate) -> str:
    return rate.source if RENTED in rate.source else f"tokens at {rate.source}"


def _upkeep(question: AdviceInput, training: Machine) -> float:
    return training.cost.usd / question.retrain_months if training.cost and question.retrain_months else 0.0


def _run_words(training: Machine) -> str:
    return f"{hours_words(training.hours)} on {training.job.gpus} x {training.job.gpu.key} a run"


def _distilled(question: AdviceInput, prices: PriceTable, prompt: float, answer: float) -> list[Option]:
    """The usual method on a smaller model with this one's answers: by the token where it has a price and the tuned model is billed so, else
    on rented machines."""
    smaller, teacher = DISTIL.get(question.model.removesuffix("-instruct")), rate_of(question, prices, question.model)
    if not smaller or teacher is None:
        return []
    student = question.model_copy(
        update={"model": smaller, "usd_per_million_input": None, "usd_per_million_output": None, "measured": None}
    )
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
    note = (
        f"{USUAL.title} on {smaller}: {_run_words(training)}; {counted(question.rows or 0, 'answer')} written by {question.model}; "
        f"{_billed(rate)}"
    )
    upfront, monthly = training.cost.usd + writing, monthly + _upkeep(question, training)
    return [Option(f"distil into {smaller}", prompt, answer, rate, upfront, monthly, None, note)]
