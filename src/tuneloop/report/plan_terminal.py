"""What `tuneloop plan` prints: machines, memory, time and cost of a training, or of serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuneloop.core.units import counted, hours_expected, hours_words, usd_words
from tuneloop.records.plan import OTHERS, PlannedCost, ServingFit

MOST_ROWS = 10


def print_plan(plan: Mapping[str, Any], *, everything: bool = False) -> None:
    """Print a plan of `plan_machines` as plain text, with all machines or the first ten."""
    share = plan["trainable_parameters"] / plan["total_parameters"]
    trained, total = _count(plan["trainable_parameters"]), _count(plan["total_parameters"])
    print(f"{plan['model']}, {plan['method']}: {trained} of {total} parameters trained ({share:.2%})\n")
    table = plan["table"]
    rows = table if everything else table[:MOST_ROWS]
    heads = f"{'peak GiB':>10}{'spare':>8}{'tokens/s':>11}{'a run takes':>13}{'and costs':>11}  range"
    print(f"{'':2}{'machine':<18}{'':6}{heads}")
    for row in rows:
        print(_line(row))
    if left := len(table) - len(rows):
        fitting = sum(row["fits"] for row in table[len(rows) :])
        print(f"  {left} more, {f'{fitting} of them fit' if fitting else 'none of them fits'}: --all shows them")
    _print_memory(plan)
    time, cost = plan["time"], plan["cost"]
    if time.get("hours") is not None:
        print(f"\nTime of a run: {hours_expected(time['hours'], time['low'], time['high'])}")
        for name, hours in time["breakdown"].items():
            if hours >= 0.005 * time["hours"]:
                print(f"  {hours_words(hours):>12}  {name}")
        if cost["usd"] is not None:
            print("\n".join(cost_lines(PlannedCost(**cost))))
    print("\n  ".join(["\nAssumed:", *plan["assumptions"]]))
    if not plan["fits"]:
        some = plan["alternatives"]
        print("\nWhat would make it fit:" if some else "\nNo change that the planner knows makes it fit.")
    for change in plan["alternatives"]:
        print(f"  {change['change']}: {change['why']} ({change['required_gib']:.1f} GiB required)")
    print(f"\nRecommendation: {plan['recommendation']}")


def _print_memory(plan: Mapping[str, Any]) -> None:
    memory, cpu = plan["memory"], plan["gpu"] == "cpu"
    machine = "this machine's processor" if cpu else f"{plan['gpus']} x {plan['gpu']}"
    sure = plan["certainty"]
    verdict = "may not fit" if sure["may_not_fit"] else "fits" if plan["fits"] else "does not fit"
    print(f"\n{machine}: {verdict}. Memory in GiB{'' if cpu else ' a GPU'}; the peak is the phase {memory['phase']!r}:")
    for name, gib in sorted(memory["terms"].items(), key=lambda item: -item[1]):
        print(f"  {gib:9.2f}  {name}")
    peak = "resident at the peak" if cpu else "allocated at the peak (torch.cuda.max_memory_allocated)"
    print(f"  {memory['peak_gib']:9.2f}  {peak}")
    if not cpu:
        print(f"  {memory['reserved_gib']:9.2f}  reserved (about what nvidia-smi shows)")
    capacity = f"{memory['capacity_gib']:.2f} that {'this process may use' if cpu else 'the driver reports'}"
    print(f"  {memory['required_gib']:9.2f}  required, of {capacity}")
    print("\n".join(certainty_lines(sure)))


def certainty_lines(sure: Mapping[str, Any]) -> list[str]:
    """How sure a plan is, in two lines."""
    published = f"{counted(sure['runs'], 'run')} of its kind by {counted(sure['sources'], 'source')}"
    reason = (
        f" ({published})" if sure["basis"] == OTHERS else "; no runs of its kind are published" * (not sure["runs"])
    )
    slow, fast = sure["tokens_per_second_low"], sure["tokens_per_second_high"]
    memory = f"{sure['required_low_gib']:.1f} to {sure['required_high_gib']:.1f} GiB required"
    return [f"How sure: {sure['basis']}{reason}", f"  nine times in ten: {memory}, {slow:,.0f} to {fast:,.0f} tokens/s"]


def shown_parts(cost: PlannedCost) -> dict[str, float]:
    """The parts of a cost that are worth a line: half a cent, or a hundredth of the total."""
    least = min(0.005, 0.01 * (cost.usd or 0.0))
    return {name: usd for name, usd in cost.breakdown.items() if usd >= least and usd > 0}


def cost_lines(cost: PlannedCost) -> list[str]:
    """A cost in words, for `plan` and `advise`: the total, its parts that add up to it, and what several runs cost."""
    parts, explanations = shown_parts(cost), cost.explained or {}
    width = max((len(usd_words(usd)) for usd in parts.values()), default=0)
    expected, high = usd_words(cost.usd or 0.0), usd_words(cost.p90 or 0.0)
    spread = f"; one time in ten more than {high}" if high != expected else ""
    run_note = " of this run" if cost.until_kept else ""  # else the runs are those that were named
    lines = [f"Cost{run_note}: {expected} expected{spread}"]
    lines += [f"  {usd_words(usd):>{width}}  {name}: {explanations[name]}" for name, usd in parts.items()]
    if text := until_kept_words(cost):
        lines.append(f"{text.removesuffix('.')} (--runs 3 --setup-hours 0.5 --evaluation-hours 0.5)")
    return lines


def until_kept_words(cost: PlannedCost) -> str:
    """What it costs until a run is kept, in a sentence; empty where that is not planned."""
    several = cost.until_kept and usd_words(cost.until_kept.usd)
    runs = "Until a run is kept, about three such runs are made, with setup and evaluation"
    return f"{runs}: {several} in all, this one included." if several else ""


def _line(row: Mapping[str, Any]) -> str:
    mark = "~" if row["tight"] or row["may_not_fit"] else "+" if row["fits"] else "-"
    name = f"{row['gpus']} x {row['gpu']}"
    shared = "" if row["sharding"] == "none" else row["sharding"]
    base = f"{mark} {name:<18}{shared:<6}{row['peak_gib']:>10.1f}{row['headroom_gib']:>8.1f}"
    if not row["fits"]:
        help_ = f"; fits with {row['fits_with']}" if row["fits_with"] else ""
        return f"{base}  does not fit: {row['required_gib']:.1f} of {row['capacity_gib']:.1f} GiB{help_}"
    usd = "no price" if row["usd"] is None else usd_words(row["usd"])
    span = "" if row["usd"] is None else f"  {usd_words(row['usd_low'])} to {usd_words(row['usd_high'])}"
    tight = "  may not fit" if row["may_not_fit"] else "  tight" if row["tight"] else ""
    return f"{base}{row['tokens_per_second']:>11,}{hours_words(row['hours']):>13}{usd:>11}{span}{tight}"


def _count(value: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return str(value)


def serving_lines(model: str, table: Sequence[ServingFit], context: int, concurrency: int) -> list[str]:
    """The memory of each format, then its speed on each machine."""
    machines: dict[str, list[ServingFit]] = {}
    for serving in table:
        machines.setdefault(serving.machine, []).append(serving)
    first = next(iter(machines.values()))
    lines = [f"{model}: {counted(concurrency, 'request')} at a time of {context:,} tokens", ""]
    lines.append(f"{'':<16}" + "".join(f"{entry.format:>16}" for entry in first))
    for title, field in (("weights GiB", "weights_gib"), ("keys, values", "cache_gib")):
        lines.append(f"{title:<16}" + "".join(f"{getattr(entry, field):>16.1f}" for entry in first))
    lines += ["", "tokens a second written to all requests together (to one alone); N x: so many GPUs are needed"]
    for machine, row in machines.items():
        cells = []
        for serving in row:
            count = f"{serving.gpus}x " if serving.gpus > 1 else ""
            speeds = (
                None if serving.one is None or serving.all is None else f"{_short(serving.all)} ({_short(serving.one)})"
            )
            cells.append(f"{count}{speeds}" if speeds else "-")
        lines.append(f"{machine:<16}" + "".join(f"{cell:>16}" for cell in cells))
    if len(first) == len(table):
        lines.append(f"{'prompt tokens/s':<16}" + "".join(f"{entry.prompt or 0:>16,.0f}" for entry in first))
        lines.append(f"{'GiB in all':<16}" + "".join(f"{entry.peak_gib:>16.1f}" for entry in first))
    return lines


def _short(speed: float) -> str:
    return f"{speed / 1000:.0f}k" if speed >= 10_000 else f"{speed / 1000:.1f}k" if speed >= 1000 else f"{speed:.3g}"
