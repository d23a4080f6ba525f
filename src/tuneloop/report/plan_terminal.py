"""The planner's table on the terminal: every machine, then the memory of the first, what was assumed, what to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MOST_ROWS = 60


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print a plan of `plan_machines` as plain text."""
    share = plan["trainable_parameters"] / plan["total_parameters"]
    print(
        f"{plan['model']}, {plan['method']}: {_count(plan['trainable_parameters'])} of {_count(plan['total_parameters'])}"
        f" parameters trained ({share:.2%})\n"
    )
    print(f"{'':2}{'machine':<18}{'':6}{'peak GiB':>10}{'spare':>8}{'tokens/s':>11}{'hours':>9}{'dollars':>10}  range")
    for row in plan["table"][:_MOST_ROWS]:
        print(_line(row))
    memory, cpu = plan["memory"], plan["gpu"] == "cpu"
    machine = "this machine's processor" if cpu else f"{plan['gpus']} x {plan['gpu']}"
    verdict = "fits" if plan["fits"] else "does not fit"
    print(f"\n{machine}: {verdict}. Memory in GiB{'' if cpu else ' a GPU'}; the peak is the phase {memory['phase']!r}:")
    for name, gib in sorted(memory["terms"].items(), key=lambda item: -item[1]):
        print(f"  {gib:9.2f}  {name}")
    if cpu:
        print(f"  {memory['peak_gib']:9.2f}  resident at the peak")
        print(f"  {memory['required_gib']:9.2f}  required, of {memory['capacity_gib']:.2f} that this process may use")
    else:
        print(f"  {memory['peak_gib']:9.2f}  allocated at the peak (torch.cuda.max_memory_allocated)")
        print(f"  {memory['reserved_gib']:9.2f}  reserved (about what nvidia-smi shows)")
        print(f"  {memory['required_gib']:9.2f}  required, of {memory['capacity_gib']:.2f} that the driver reports")
    _print_time_and_cost(plan)
    print("\nAssumed:")
    for line in plan["assumptions"]:
        print(f"  {line}")
    if not plan["fits"]:
        nothing = "Nothing fits" if not any(row["fits"] for row in plan["table"]) else f"{machine} does not suffice"
        print(f"\n{nothing}. To change:" if plan["alternatives"] else f"\n{nothing}, whatever is changed.")
    for change in plan["alternatives"]:
        print(f"  {change['change']}: {change['why']} ({change['required_gib']:.1f} GiB required)")


def _print_time_and_cost(plan: Mapping[str, Any]) -> None:
    time, cost = plan["time"], plan["cost"]
    print(f"\nTime: {_hours(time['hours'])} hours, {_hours(time['low'])} to {_hours(time['high'])}")
    for name, hours in time["breakdown"].items():
        if hours >= 0.005 * time["hours"]:
            print(f"  {hours:9.3f}  {name}")
    if cost["usd"] is not None:
        print(f"Cost: {_usd(cost['usd'])} expected, {_usd(cost['p50'])} P50, {_usd(cost['p90'])} P90")
        for name, usd in cost["breakdown"].items():
            if usd >= 0.005:
                print(f"  {usd:9.2f}  {name}")


def _line(row: Mapping[str, Any]) -> str:
    mark = "~" if row["tight"] else "+" if row["fits"] else "-"
    name = f"{row['gpus']} x {row['gpu']}"
    shared = "" if row["sharding"] == "none" else row["sharding"]
    base = f"{mark} {name:<18}{shared:<6}{row['peak_gib']:>10.1f}{row['headroom_gib']:>8.1f}"
    if not row["fits"]:
        help_ = f"; fits with {row['fits_with']}" if row["fits_with"] else ""
        return f"{base}  does not fit: {row['required_gib']:.1f} of {row['capacity_gib']:.1f} GiB{help_}"
    usd = "no price" if row["usd"] is None else _usd(row["usd"])
    span = "" if row["usd"] is None else f"  {_usd(row['usd_low'])} to {_usd(row['usd_high'])}"
    tight = "  tight" if row["tight"] else ""
    return f"{base}{row['tokens_per_second']:>11,}{_hours(row['hours']):>9}{usd:>10}{span}{tight}"


def _usd(value: float) -> str:
    return f"${value:,.0f}" if value >= 100 else f"${value:.2f}"


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _count(value: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return str(value)
