"""The planner on sources that its constants have not seen: each publisher of runs is left out once, what is fitted is fitted again to
the others, and the runs left out are scored. Prints the table of benchmarks/records/planner.md.

    python benchmarks/plan_left_out.py            # some minutes on one core
    python benchmarks/plan_left_out.py --write    # and into benchmarks/records/planner.md and src/tuneloop/planning/certainty.yaml

`FITTED` starts from its middle value each time, so nothing of the source left out is in it; a constant that no other source says
anything of stays there. The formulas around it were written with all of them in view, which no score can take back.
"""

from __future__ import annotations

import functools
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from published_runs import Point, read_points

from tuneloop.planning import job as jobs
from tuneloop.planning import memory, speed
from tuneloop.planning.certainty import KNOWN, groups_of, kind_of
from tuneloop.planning.memory import memory_of
from tuneloop.planning.speed import speed_of

ROOT = Path(__file__).parents[1]
PAGE, POINTS = ROOT / "benchmarks" / "records" / "planner.md", ROOT / "tests" / "planning" / "points"
MOST_A_SOURCE = 20  # runs that a source is fitted by: it counts as much as the others anyway
PARTS = ("memory", "speed")
CAP = math.log(1.6)  # errors beyond count no more, so that one misread setting does not bend a constant
ROUNDS = 2
COVERED = 0.94  # of the sources at hand, so that 90 % of a new one's runs are within: see `covered`
HEAD = """# How sure a plan is, made by benchmarks/plan_left_out.py --write. intervals: measured over planned of published runs, where no constant had seen
# their source, each source counting the same; published: who has published the memory of runs of each kind.
"""
TOO_LOW = 2.0  # how much more it counts when memory is planned too low


@dataclass(frozen=True)
class Fitted:
    """A constant that runs decide: where it is, and the values that are tried; the middle one comes first."""

    name: str
    put: Callable[[float], None]
    values: tuple[float, ...]
    concerns: Callable[[Point], bool] = lambda point: True  # runs that it changes


def _constant(module: Any, name: str) -> Callable[[float], None]:
    return functools.partial(setattr, module, name)


def _entries(table: dict[Any, float], *keys: str) -> Callable[[float], None]:
    return lambda value: table.update(dict.fromkeys(keys, value))


def _kernels(field: str, *names: str) -> Callable[[float], None]:
    def put(value: float) -> None:
        for name in names:
            jobs.KERNELS[name] = replace(jobs.KERNELS[name], **{field: value})  # type: ignore[index]

    return put


def _steps(low: float, high: float, count: int = 9) -> tuple[float, ...]:
    return tuple(low + (high - low) * step / (count - 1) for step in range(count))


def _with_kernels(*names: str) -> Callable[[Point], bool]:
    return lambda point: point.job.loss_kernel in names


def _shared_by(*names: str) -> Callable[[Point], bool]:
    return lambda point: point.job.sharding in names


MEMORY = (
    Fitted("context of the driver", _constant(memory, "CONTEXT_GIB"), _steps(0.4, 1.2)),
    Fitted("buffers of the collectives", _constant(memory, "NCCL_GIB"), _steps(0.2, 1.4)),
    Fitted("logits of Transformers", _kernels("logits", "eager"), _steps(3, 8, 11), _with_kernels("eager")),
    Fitted("logits of Triton kernels", _kernels("logits", "triton"), _steps(2, 6), _with_kernels("triton")),
    Fitted("logits with torch.compile", _kernels("logits", "compiled"), _steps(3, 8, 11), _with_kernels("compiled")),
    Fitted("blocks of Transformers' logits", _kernels("logit_blocks", "eager", "compiled", "chunked"), _steps(1, 2)),
    Fitted("blocks of Triton's logits", _kernels("logit_blocks", "triton"), _steps(1, 2.4), _with_kernels("triton")),
    Fitted("holes", _constant(memory, "HOLES"), _steps(0, 0.4)),
    Fitted("blocks not shared", _constant(memory, "UNSHARED"), _steps(0, 0.4)),
    Fitted("rows of new lengths", _constant(memory, "VARIED"), _steps(1, 3), lambda point: point.job.varied),
    Fitted("inputs that bitsandbytes keeps", _constant(memory, "KEPT_INPUTS"), _steps(0, 2), lambda point: point.job.quant != "none"),
)  # fmt: skip
SPEED = (
    Fitted(
        "traffic of Transformers",
        _entries(speed.TRAFFIC, "eager", "tuneloop"),
        _steps(0.4, 2, 9),
        _with_kernels("eager"),
    ),
    Fitted(
        "traffic of fused norms",
        _entries(speed.TRAFFIC, "triton", "fused"),
        _steps(0.1, 1),
        _with_kernels("triton", "fused"),
    ),
    Fitted(
        "traffic of torch.compile",
        _entries(speed.TRAFFIC, "compiled", "chunked"),
        _steps(0.1, 1),
        _with_kernels("compiled", "chunked"),
    ),
    Fitted("width of half the rate", _constant(speed, "HALF_WIDTH"), _steps(0, 1000)),
    Fitted("FSDP apart from transfers", _entries(speed.SHARDED, "fsdp"), _steps(0.8, 1), _shared_by("fsdp")),
    Fitted(
        "ZeRO apart from transfers",
        _entries(speed.SHARDED, "zero2", "zero3"),
        _steps(0.6, 1),
        _shared_by("zero2", "zero3"),
    ),
    Fitted("transfers not hidden", _constant(speed, "EXPOSED"), _steps(0, 0.4), lambda point: point.job.gpus > 1),
    Fitted(
        "those through the host",
        _constant(speed, "EXPOSED_BY_HOST"),
        _steps(0, 0.8),
        lambda point: not point.job.gpu.p2p,
    ),
    Fitted("launches", _constant(speed, "LAUNCH_SECONDS"), _steps(0.0002, 0.0014)),
)
RATES = _steps(0.3, 1.1, 17)  # share of the peak that matrix products reach, of each card


class Rates:
    """Shares of the peaks by card, in place of those of `gpus.yaml`."""

    def __init__(self, cards: Sequence[str]) -> None:
        self.shares = dict.fromkeys(cards, statistics.median(RATES))

    def constants(self) -> list[Fitted]:
        """One for each card."""
        return [
            Fitted(
                f"rate of {card}",
                functools.partial(self.shares.__setitem__, card),
                RATES,
                functools.partial(_is_on, card),
            )
            for card in self.shares
        ]

    def job(self, point: Point) -> jobs.TrainingSetup:
        """The point's job on its card with that share."""
        return replace(point.job, gpu=replace(point.job.gpu, matmul=self.shares[point.job.gpu.key]))


def _is_on(card: str, point: Point) -> bool:
    return point.job.gpu.key == card


def memory_errors(point: Point) -> list[float]:
    """Logarithms of planned over measured: the peak, and what was reserved where the card was not full."""
    found = [math.log(memory_of(point.job).peak / point.gib)] if point.gib else []
    if (error := point.reserve_error) is not None:
        found.append(math.log(1 + error))
    if point.card_gib:
        found.append(math.log(memory_of(point.job).required / point.card_gib))
    return found


def speed_errors(point: Point, rates: Rates) -> list[float]:
    """Likewise of the tokens a second."""
    if not point.tokens_per_second:
        return []
    return [math.log(speed_of(rates.job(point)).tokens_per_second / point.tokens_per_second)]


def fit(
    sources: Mapping[str, Sequence[Point]], errors: Callable[[Point], list[float]], constants: Sequence[Fitted]
) -> None:
    """Set each constant in turn to the value of least error, all sources counting the same."""
    points = [(source, point) for source, runs in sources.items() for point in runs]
    counts = Counter(source for source, point in points if errors(point))

    weight = TOO_LOW if errors is memory_errors else 1.0

    def losses(chosen: Iterable[int]) -> dict[int, float]:
        return {
            index: statistics.mean(_loss(error, weight) for error in found) / counts[points[index][0]]
            for index in chosen
            if (found := errors(points[index][1]))
        }

    for constant in constants:
        constant.put(constant.values[len(constant.values) // 2])
    now = losses(range(len(points)))
    for _ in range(ROUNDS):
        before = sum(now.values())
        for constant in constants:
            concerned = [index for index, (_, point) in enumerate(points) if constant.concerns(point)]
            tried: list[tuple[float, float, dict[int, float]]] = []
            middle = statistics.median(constant.values)
            for value in constant.values:
                constant.put(value)
                found = losses(concerned)
                tried.append((round(sum(found.values()), 9), abs(value - middle), {**found, -1: value}))
            best = min(tried, key=lambda item: item[:2])[2]
            constant.put(best.pop(-1))
            now |= best
        if before - sum(now.values()) < 1e-4:
            break


def _loss(error: float, too_low: float) -> float:
    """Of a logarithm of planned over measured: too little memory is what spoils a run."""
    return min(abs(error), CAP) * (too_low if error < 0 else 1.0)


def by_source() -> dict[str, list[Point]]:
    """All published runs by who published them."""
    sources: dict[str, list[Point]] = {}
    for path in sorted(POINTS.glob("*.yaml")):
        for point in read_points(path):
            sources.setdefault(point.source, []).append(point)
    return sources


@dataclass(frozen=True)
class Scored:
    """A run that its source's constants have not seen: logarithms of planned over measured, and whether it fits."""

    point: Point
    memory: tuple[float, ...]
    speed: tuple[float, ...]
    says_fits: bool | None  # None where nothing is known of its memory
    required: float  # of the card, as a share


def left_out() -> Iterator[tuple[str, list[Scored]]]:
    """Each source with its runs, scored by constants of the others."""
    sources = by_source()
    few = {name: runs[:: max(len(runs) // MOST_A_SOURCE, 1)] for name, runs in sources.items()}
    cards = sorted({point.job.gpu.key for runs in sources.values() for point in runs})
    for name, runs in sources.items():
        others = {other: points for other, points in few.items() if other != name}
        fit(others, memory_errors, MEMORY)
        rates = Rates(cards)
        fit(others, lambda point, rates=rates: speed_errors(point, rates), [*rates.constants(), *SPEED])  # type: ignore[misc]
        yield name, [_scored(point, rates) for point in runs]


def _scored(point: Point, rates: Rates) -> Scored:
    planned = memory_of(point.job)
    known = point.gib or point.nvidia_gib or point.reserved_gib or not point.fits
    return Scored(point, tuple(memory_errors(point)), tuple(speed_errors(point, rates)),
                  planned.fits if known else None, planned.required / planned.capacity)  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Print the table and how much the intervals cover, and write both where that is asked for."""
    scores = dict(left_out())
    table, known = "\n".join(_table(scores)), certainty_of(scores)
    print(table)
    print(yaml.safe_dump(known, sort_keys=False, default_flow_style=None))
    for part, (of_sources, of_numbers) in covered(scores).items():
        print(
            f"{part}: of a source that the interval has not seen {of_sources:.0%} is within it, of all numbers {of_numbers:.0%}"
        )
    if "--write" in arguments:
        text = PAGE.read_text(encoding="utf-8")
        before, _, rest = text.partition("<!-- left out -->\n")
        _, _, after = rest.partition("<!-- /left out -->")
        PAGE.write_text(f"{before}<!-- left out -->\n{table}\n<!-- /left out -->{after}", encoding="utf-8")
        KNOWN.write_text(f"{HEAD}{yaml.safe_dump(known, sort_keys=False, default_flow_style=None)}", encoding="utf-8")


def _table(scores: Mapping[str, Sequence[Scored]]) -> list[str]:
    lines = ["| left out | memory: numbers | median error | within 15 % | over 5 % too low | said to fit and did not, by over 3 % | speeds | within 25 % |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    seen = {name for name, runs in scores.items() if runs[0].point.seen}
    lines += [
        _line(name + r" \*" * (name in seen), [runs])
        for name, runs in sorted(scores.items(), key=lambda item: item[0].lower())
    ]
    lines.append(_line("**all, each source counting the same**", list(scores.values())))
    lines.append(
        _line("**the same without those marked \\***", [runs for name, runs in scores.items() if name not in seen])
    )
    lines.append(_line("**all, each number counting the same**", [[run for runs in scores.values() for run in runs]]))
    lines.append("| aimed at | | 8 % | 80 % | 10 % | 0 | | 80 % |")
    return lines


def _line(name: str, groups: Sequence[Sequence[Scored]]) -> str:
    memories = [[error for run in runs for error in run.memory] for runs in groups]
    speeds = [[error for run in runs for error in run.speed] for runs in groups]
    fits = [run for runs in groups for run in runs if run.says_fits is not None]
    false = sum(bool(run.says_fits) and not run.point.fits and run.required < 0.97 for run in fits)
    counts = [sum(map(len, item)) for item in (memories, speeds)]
    memories, speeds = [item for item in memories if item], [item for item in speeds if item]
    cells = [str(counts[0] or "")]
    cells.append(f"{statistics.mean(statistics.median(map(_size, item)) for item in memories):.0%}" if memories else "")
    cells += [
        _share(memories, lambda error: _size(error) <= 0.15),
        _share(memories, lambda error: math.exp(error) < 0.95),
    ]
    cells += [
        f"{false} of {len(fits)}" if fits else "",
        str(counts[1] or ""),
        _share(speeds, lambda error: _size(error) <= 0.25),
    ]
    return f"| {name} | " + " | ".join(cells).replace("%", " %") + " |"


def _size(error: float) -> float:
    return abs(math.exp(error) - 1)


def _share(groups: Sequence[Sequence[float]], holds: Callable[[float], bool]) -> str:
    return f"{statistics.mean(statistics.mean(map(holds, group)) for group in groups):.0%}" if groups else ""


def certainty_of(scores: Mapping[str, Sequence[Scored]]) -> dict[str, Any]:
    """What `certainty.yaml` holds: intervals of measured over planned, and who has published runs of each kind."""
    kinds: dict[str, Counter[str]] = {}
    for name, runs in scores.items():
        for run in runs:
            if run.memory:
                kinds.setdefault(kind_of(run.point.job), Counter())[name] += 1
    published = {kind: {"sources": len(found), "runs": found.total()} for kind, found in sorted(kinds.items())}
    return {"version": 1, "date": str(date.today()), "intervals": intervals_of(scores), "published": published}


def intervals_of(scores: Mapping[str, Sequence[Scored]]) -> dict[str, dict[str, list[float]]]:
    """Measured over planned, between which `COVERED` of the numbers are, each source counting the same."""
    found: dict[str, dict[str, list[float]]] = {}
    for part in PARTS:
        grouped: dict[str, list[tuple[float, float]]] = {}
        for runs in scores.values():
            errors: dict[str, list[float]] = {}
            for run in runs:
                errors.setdefault(groups_of(run.point.job)[part], []).extend(-error for error in getattr(run, part))
            for group, some in errors.items():
                grouped.setdefault(group, []).extend((error, 1 / len(some)) for error in some)
        for group, weighed in sorted(grouped.items()):
            low, high = (
                math.exp(_quantile(sorted(weighed), share)) for share in ((1 - COVERED) / 2, (1 + COVERED) / 2)
            )
            found.setdefault(part, {})[group] = [round(min(low, 1.0), 2), round(max(high, 1.0), 2)]
    return found


def covered(scores: Mapping[str, Sequence[Scored]]) -> dict[str, tuple[float, float]]:
    """Shares of the numbers of memory and of speed that are within the interval which the other sources give: each source
    counting the same, and each number."""
    inside: dict[str, dict[str, list[bool]]] = {part: {} for part in PARTS}
    for name, runs in scores.items():
        known = intervals_of({other: found for other, found in scores.items() if other != name})
        for run in runs:
            for part, shares in inside.items():
                low, high = known[part][groups_of(run.point.job)[part]]
                shares.setdefault(name, []).extend(low <= math.exp(-error) <= high for error in getattr(run, part))
    means = {part: [statistics.mean(found) for found in shares.values() if found] for part, shares in inside.items()}
    every = {part: [match for found in shares.values() for match in found] for part, shares in inside.items()}
    return {part: (statistics.mean(means[part]), statistics.mean(every[part])) for part in inside}


def _quantile(weighed: Sequence[tuple[float, float]], share: float) -> float:
    total, so_far = sum(weight for _, weight in weighed), 0.0
    for value, weight in weighed:
        so_far += weight
        if so_far >= share * total:
            return value
    return weighed[-1][0]


if __name__ == "__main__":
    main(sys.argv[1:])
