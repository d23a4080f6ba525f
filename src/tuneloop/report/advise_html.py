"""The page of `tuneloop advise --html`: the answer, why, what it costs, and what would change it."""

from __future__ import annotations

from typing import Any

from tuneloop.core.units import counted, exactly, usd_words
from tuneloop.evaluate.metrics import metric_of
from tuneloop.models.methods import method_named, title_of
from tuneloop.records.advice import AdviceRecord, AdvisedAlternative, AdvisedTraining, MeasuredSystem, MonthlyBill
from tuneloop.report.advise_charts import cost_chart, dollars, quality_chart, tornado_chart
from tuneloop.report.charts import chart_pair, short
from tuneloop.report.facts import count, figure, gib, minutes, usd
from tuneloop.report.html import page_template
from tuneloop.report.plan_terminal import shown_parts

ANSWERS = {"dont": "Don't fine-tune", "prompt": "Prompt first", "tune": "Fine-tune"}


def render_advise_page(advice: AdviceRecord) -> str:
    """The page of an advice, as `tuneloop advise --json` prints it, as text; one file, no network."""
    return page_template("advise.html.j2").render(page=page_of_advice(advice))


def page_of_advice(advice: AdviceRecord) -> dict[str, Any]:
    """Everything that the template shows, computed and written out."""
    question, rows = advice.question, advice.alternatives
    method = title_of(advice.method)
    chosen = next((row for row in rows if row.name == method), None)
    months = question["months"]
    net = _net(chosen, months) if chosen else 0.0
    return {
        "title": ANSWERS[advice.answer] + _with(advice),
        "model": question["model"],
        "words": advice.reasons[0].says,
        "figures": _figures(advice, chosen, months),
        "reasons": advice.reasons,
        "steps": advice.steps,
        "missing": advice.missing,
        "alternatives": [_alternative(row, advice.leaderboard) for row in rows],
        "months": exactly(months, "month"),
        "method": method,
        "costs": chart_pair(cost_chart, rows, months, method),
        "tornado": chart_pair(tornado_chart, advice.sensitivity, net) if advice.sensitivity else "",
        "leaderboard": [_entry(c) for c in advice.leaderboard],
        "quality": chart_pair(quality_chart, advice.leaderboard),
        "bills": [_bill(mode, bill) for mode, bill in advice.monthly_bills.items()],
        "tokens": [(t.what, "$" + short(float(f"{t.usd_per_million:.3g}")), t.basis) for t in advice.token_prices],
        "trainings": [_training(name, t) for name, t in advice.trainings.items()],
        "breakdown": _breakdown(advice),
        "until_kept": _until_kept(advice),
        "assumptions": advice.assumptions,
    }


def _with(advice: AdviceRecord) -> str:
    """By what method, where the answer is to tune."""
    if advice.answer != "tune":
        return ""
    return f" {method_named(advice.method).how}"


def _figures(advice: AdviceRecord, chosen: AdvisedAlternative | None, months: float) -> list[tuple[str, str, str]]:
    """(name, value, detail) of the figures at the top."""
    found = []
    training = advice.trainings.get(advice.method)
    if training and training.cost and training.hours is not None:
        usual, high = usd_words(training.cost.usd or 0.0), usd_words(training.cost.p90 or 0.0)
        found.append(("cost, expected", usual, f"one time in ten more than {high}"))
        found.append(("one run", minutes(training.hours * 60), f"{training.gpus} x {training.gpu}"))
    if chosen:
        days = chosen.break_even_days
        found.append(
            ("pays back after", payback(days), chosen.why_never or
             f"{counted(chosen.break_even_queries or 0, 'query')}")
        )  # fmt: skip
        found.append((f"saved in {exactly(months, 'month')}", dollars(_net(chosen, months)),
                      "against today's prompt"))  # fmt: skip
    return found


def _net(row: AdvisedAlternative, months: float) -> float:
    """Dollars that an alternative saves in all, what it costs at first taken off."""
    return months * (row.saves_usd_per_month or 0.0) - row.upfront_usd


def payback(days: float | None) -> str:
    """Days until the money is back, in words."""
    return "never" if days is None else "under a day" if days < 1 else counted(days, "day")


def _pays(row: AdvisedAlternative) -> str:
    """When an alternative pays back; nothing for today's way, and for one that saves nothing and costs nothing."""
    if not row.saves_usd_per_month and not row.upfront_usd:
        return ""
    return payback(row.break_even_days)


def _alternative(row: AdvisedAlternative, leaderboard: list[MeasuredSystem]) -> dict[str, str]:
    metric = leaderboard[0].metric if leaderboard else "accuracy"
    return {
        "name": row.name,
        "quality": figure(row.quality, metric) if row.quality is not None else "unknown",
        "upfront": dollars(row.upfront_usd),
        "query": usd_words(row.usd_per_1000_queries),
        "month": dollars(row.usd_per_month),
        "total": dollars(row.total_usd),
        "pays": _pays(row),
        "note": row.note + (f"; {row.why_never}" if row.why_never else ""),
    }


def _entry(c: MeasuredSystem) -> dict[str, str]:
    gain = c.gain_over_prompt
    return {
        "name": c.name,
        "value": figure(c.value, c.metric),
        "bounds": "" if c.low == c.high else f"[{figure(c.low, c.metric)}, {figure(c.high, c.metric)}]",
        "gain": "" if gain is None else f"{gain:+.2f}".replace("-", "−"),
        "tokens": "" if c.prompt_tokens is None else count(c.prompt_tokens),
        "query": "" if c.usd_per_1000_queries is None else usd(c.usd_per_1000_queries),
        "training": "" if c.training_usd is None else usd(c.training_usd),
        "kind": "tuned" if c.name == "tuned" else "",
        "metric": metric_of(c.metric).title,
    }


def _bill(mode: str, bill: MonthlyBill) -> tuple[str, str, str, str, str]:
    return (
        mode, dollars(bill.usd), count(bill.replicas, "machine") if bill.replicas else "none",
        f"{bill.batch_hours:,.0f} h", f"{bill.utilisation:.0%}",
    )  # fmt: skip


def _training(name: str, t: AdvisedTraining) -> tuple[str, str, str, str, str]:
    fits = "fits" if t.fits else "does not fit"
    known = t.fits and t.cost and t.hours is not None
    return (
        title_of(name), f"{t.gpus} x {t.gpu}", f"{gib(t.peak_gib)} of {gib(t.capacity_gib)}, {fits}",
        minutes((t.hours or 0.0) * 60) if known else "–", usd(t.usd_a_run) if known else "–",
    )  # fmt: skip


def _breakdown(advice: AdviceRecord) -> list[tuple[str, str, str, float]]:
    """(part, how it comes about, dollars, share) of the advised method's expected cost."""
    training = advice.trainings.get(advice.method)
    if not training or not training.cost:
        return []
    items = shown_parts(training.cost)
    whole = sum(items.values()) or 1.0
    why = training.cost.explained or {}
    return [(name, why[name], usd_words(value), value / whole) for name, value in items.items()]


def _until_kept(advice: AdviceRecord) -> str:
    """What several runs cost in all, where one is counted."""
    training = advice.trainings.get(advice.method)
    kept = training.cost.until_kept if training and training.cost else None
    return (
        f"Until a run is kept, about three are made, with setup and evaluation: {usd_words(kept.usd)} in all."
        if kept
        else ""
    )
