"""What serving takes, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from tuneloop.core.units import counted
from tuneloop.records.serving import Served


def serving_lines(model: str, found: Sequence[Served], context: int, concurrency: int) -> list[str]:
    """The memory of each format, then its speed on each machine."""
    machines: dict[str, list[Served]] = {}
    for each in found:
        machines.setdefault(each.machine, []).append(each)
    first = next(iter(machines.values()))
    lines = [f"{model}: {counted(concurrency, 'request')} at a time of {context:,} tokens", ""]
    lines.append(f"{'':<16}" + "".join(f"{each.format:>16}" for each in first))
    for title, figure in (("weights GiB", "weights_gib"), ("keys, values", "cache_gib")):
        lines.append(f"{title:<16}" + "".join(f"{getattr(each, figure):>16.1f}" for each in first))
    lines += ["", "tokens a second written to all requests together (to one alone); N x: so many GPUs are needed"]
    for machine, row in machines.items():
        lines.append(f"{machine:<16}" + "".join(f"{_cell(each):>16}" for each in row))
    if len(first) == len(found):
        lines.append(f"{'prompt tokens/s':<16}" + "".join(f"{each.prompt or 0:>16,.0f}" for each in first))
        lines.append(f"{'GiB in all':<16}" + "".join(f"{each.peak_gib:>16.1f}" for each in first))
    return lines


def _cell(each: Served) -> str:
    if each.one is None or each.all is None:
        return "-"
    many = f"{each.gpus}x " if each.gpus > 1 else ""
    return f"{many}{_short(each.all)} ({_short(each.one)})"


def _short(speed: float) -> str:
    return f"{speed / 1000:.0f}k" if speed >= 10_000 else f"{speed / 1000:.1f}k" if speed >= 1000 else f"{speed:.3g}"
