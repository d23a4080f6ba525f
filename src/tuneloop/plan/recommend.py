"""A plan's last word: which machine to take, for how long, for how much; or why none, and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.units import hours_words, usd_words
from tuneloop.plan.gpus import find_gpu

LONG_HOURS = 1.0  # from here on a plan for this machine mentions rented ones


def recommendation(plan: Mapping[str, Any]) -> str:
    """One recommendation in words, as in `Rent an L40S 48 GB for 9 minutes: $0.12.`

    Args:
        plan: as `plan_machines` makes it, with its table.
    """
    table = plan["table"]
    if not plan["fits"]:
        return _none_fits(plan)
    row = next(r for r in table if (r["gpu"], r["gpus"]) == (plan["gpu"], max(plan["gpus"], 1)))
    machine, usd = _machine(row), plan["cost"]["usd"]
    if plan["gpu"] == "cpu":
        return f"This machine's processor does it in {hours_words(row['hours'])}."
    if usd is None:
        return f"Take {machine} for {hours_words(row['hours'])}; what it costs is not known (--usd-per-gpu-hour)."
    said = f"{'Use' if str(row['gpu']).startswith('own-') else 'Rent'} {machine} for {hours_words(row['hours'])}: {_price(plan)}."
    roomy = next((r for r in table if r["fits"] and not r["tight"] and r["usd"] is not None), None)
    if row["tight"] and roomy:
        said += (
            f" Its memory is tight; with room to spare: {_machine(roomy)} for {hours_words(roomy['hours'])}, "
            f"{usd_words(roomy['usd'])}."
        )
    return said


def recommendation_here(plan: Mapping[str, Any]) -> str:
    """Likewise of a plan for the machine at hand, as `estimate` makes it."""
    if not plan["fits"]:
        change = plan["alternatives"][0]["change"] if plan["alternatives"] else "a smaller model"
        return f"It does not fit on this machine. Change: {change}."
    took = f"{hours_words(plan['time']['hours'])}, {usd_words(plan['cost']['usd'])}"
    said = f"Train on this machine: {took}."
    if plan["time"]["hours"] >= LONG_HOURS:
        said += " Rented GPUs are faster: `tuneloop plan DATA --gpu l40s` tells how much, and at what price."
    return said


def _price(plan: Mapping[str, Any]) -> str:
    cost = plan["cost"]
    people = sum(cost["breakdown"][name] for name in ("data preparation", "engineering"))
    if not people:
        return usd_words(cost["usd"])
    return f"{usd_words(cost['usd'])}, {usd_words(people)} of it people's time"


def _machine(row: Mapping[str, Any]) -> str:
    """`an L40S 48 GB`, `4 x H100 SXM 80 GB`."""
    try:
        name = find_gpu(row["gpu"]).name
    except UserError:
        return f"{row['gpus']} cards of your own" if row["gpus"] > 1 else "a card of your own"
    if row["gpus"] > 1:
        return f"{row['gpus']} x {name}"
    return f"{'an' if name[0] in 'AEFHILMNORSX' else 'a'} {name}"


def _none_fits(plan: Mapping[str, Any]) -> str:
    fitting = next((r for r in plan["table"] if r["fits"]), None)
    change = plan["alternatives"][0]["change"] if plan["alternatives"] else ""
    if fitting:
        usd = "" if fitting["usd"] is None else f": {usd_words(fitting['usd'])}"
        return f"It does not fit on {_machine({**plan, 'gpus': max(plan['gpus'], 1)})}. Take {_machine(fitting)} for {hours_words(fitting['hours'])}{usd}."
    return f"Nothing fits as it stands. Change: {change}." if change else "Nothing fits. Take a smaller model."
