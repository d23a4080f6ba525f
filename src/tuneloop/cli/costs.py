"""`tuneloop serve costs`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tuneloop.cli.console import Result
from tuneloop.cli.parameters import SERVER, Output
from tuneloop.core.flag import flag
from tuneloop.core.units import counted, hours_words

if TYPE_CHECKING:
    from tuneloop.serving.costs import CostRow, Costs


def command(
    folder: str = flag("serve", "FOLDER", SERVER, "-f"),
    since: str = flag("", "TIME", "Only requests since then: 24h, 7d, 2026-01-31."),
    usd_per_hour: float | None = flag(
        None, "USD", "What an hour of the machine costs; default: prices.usd_per_hour of the server.", least=0
    ),
    gpu: str = flag("", "GPU", "GPU of the planner's forecast; default: a common one."),
    *,
    output: Output,
) -> Result:
    """Say what served requests cost, by model, key and tier.

    Tokens, engine seconds, utilisation, dollars for a million tokens and for a request, next to the prices of hosted
    models, with the volume from which this machine is cheaper.
    """
    from tuneloop.serving.costs import costs_of, since_time

    costs = costs_of(folder, since_time(since), usd_per_hour, gpu)
    return Result(costs.to_json(), _lines(costs))


def _lines(found: Costs) -> Iterator[str]:
    asked, time = counted(found.total.requests, "request"), hours_words(found.hours)
    yield f"{asked} in {time}; the engine worked {100 * found.utilisation:.1f} % of that time"
    yield f"{'':<24} {'requests':>9} {'failed':>7} {'refused':>7} {'read':>12} {'written':>12} {'seconds':>9} {'USD':>10} {'USD/1M':>9} {'USD each':>10}"
    yield _line("all", found.total)
    for by, rows in found.groups.items():
        yield by
        for row in rows:
            yield _line(f"  {row.name}", row)
    if not found.usd_per_hour and not found.total.usd:
        yield "no prices: give --usd-per-hour, or set prices in serve.yaml"
    if (plan := found.forecast) is not None:
        yield (
            f"planned on {plan.machine}: {plan.tokens_per_second:,.0f} tokens/s (here {plan.measured:,.0f} while it worked), "
            f"{plan.usd_per_million_full:,.3g} USD for 1M tokens at full load"
            + ("" if plan.usd_per_million is None else f", {plan.usd_per_million:,.3g} when as idle as here")
        )
    for each in found.hosted:
        line = f"{each.provider} {each.model} ({each.date}): {each.usd:,.4f} USD for the same tokens"
        if each.tokens_a_month is not None:
            line += f"; this machine is cheaper from {each.tokens_a_month / 1e6:,.0f}M tokens a month on"
            line += "" if each.reachable else ", which is more than it can do"
        yield line


def _line(name: str, row: CostRow) -> str:
    figures = row.to_json()
    paid = row.usd if row.machine_usd is None else row.machine_usd
    million, each = figures["usd_per_million_tokens"], figures["usd_per_request"]
    return (
        f"{name[:24]:<24} {row.requests:>9,} {row.failed:>7,} {row.refused:>7,} {row.prompt_tokens:>12,} {row.completion_tokens:>12,} "
        f"{row.seconds:>9,.1f} {paid:>10,.4f} {million or 0:>9,.3f} {each or 0:>10,.6f}"
    )
