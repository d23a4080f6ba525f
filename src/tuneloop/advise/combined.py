"""What was measured of merging, routing and distilling, for the rules of advice: facts and sentences from their records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json
from tuneloop.core.significance import by_interval
from tuneloop.core.units import counted, verb
from tuneloop.records.distillation import DistillationRecord
from tuneloop.records.merge import MergeRecord, Share
from tuneloop.records.record import Record, as_record
from tuneloop.records.router import CascadeRecord, RouterRecord

FILES = (DistillationRecord.file, MergeRecord.file, RouterRecord.file, CascadeRecord.file)


def combined_facts(files: Sequence[str]) -> dict[str, Any]:
    """Facts for the rules from `distillation.json`, `merge.json`, `router.json` and `cascade.json`.

    Args:
        files: of these names, or folders that hold them.

    Raises:
        UserError: there is none, or it is damaged.
    """
    found: dict[str, Any] = {}
    for name in files:
        for file in _records(Path(name)):
            kind, facts = READERS[file.name]
            found |= facts(as_record(kind, read_json(file), str(file)))
    return found


def _records(place: Path) -> list[Path]:
    found = [place] if place.is_file() and place.name in FILES else [place / f for f in FILES if (place / f).is_file()]
    if not found:
        raise UserError(
            "Nothing was measured of merging, routing or distilling here", where=str(place),
            next_step=f"name a folder that holds {', '.join(FILES[:-1])} or {FILES[-1]}",
        )  # fmt: skip
    return found


def _share(share: Share) -> str:
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def _distilled(record: Any) -> dict[str, Any]:
    figures = record.figures
    if figures is None:
        return {}
    words = f"A student was distilled: {figures.metric} {figures.student:.3f} on {counted(figures.n, 'test row')}, its teacher {figures.teacher:.3f}"
    if figures.kept is not None:
        words += f" ({_share(figures.kept)} of it kept)"
    cost = figures.student_cost, figures.teacher_cost
    if cost[0] is not None and cost[1] is not None:
        words += f", at {cost[1].rows_per_second / cost[0].rows_per_second:.0%} of the teacher's time for an answer"
    over = figures.over_control
    if over is None:
        return {"distilled_words": words + "."}
    words += f". Tuned on the same rows without a teacher it has {figures.control:.3f}."
    return {"distilled_words": words, "distilled_helps": by_interval(over.low, over.high) == "better"}


def _merged(record: Any) -> dict[str, Any]:
    shares = {task.task: task.kept for task in record.tasks if task.kept is not None}
    if not shares:
        return {}
    worst = min(shares, key=lambda task: shares[task].value)
    count = len(record.sources)
    words = (
        f"{counted(count, 'adapter')} {verb(count, 'was', 'were')} merged by {record.method} into one of rank {record.rank}; the worst task, {worst}, keeps "
        f"{_share(shares[worst])} of its expert's gain."
    )
    return {"merged_words": words, "merged_routed": ", ".join(record.routed), "merged_all": not record.routed}


def _routed(record: Any) -> dict[str, Any]:
    figures = record.figures
    if figures is None or not figures.singles:
        return {}
    best = max(figures.singles[:-1], key=lambda one: one.quality)
    words = (
        f"A router has {figures.quality.value:.3f} [{figures.quality.low:.3f}, {figures.quality.high:.3f}] on {counted(figures.n, 'test row')} "
        f"at a mean cost of {figures.cost:g}; the best single model, {best.name}, has {best.quality:.3f} at {best.cost:g}."
    )
    return {"routed_words": words, "routed_exclusive": record.exclusive}


def _cascade(record: Any) -> dict[str, Any]:
    over = record.over_large
    words = (
        f"A cascade of {record.small} and {record.large} has {record.quality.value:.3f} on {counted(record.n, 'test row')} at "
        f"{record.cost / record.costs[1]:.0%} of the large model's cost; the difference to it is {over.value:+.3f} "
        f"[{over.low:+.3f}, {over.high:+.3f}]."
    )
    return {"cascade_words": words, "cascade_pays": record.cost < record.costs[1] and not over.high < 0}


READERS: dict[str, tuple[type[Record], Callable[[Any], dict[str, Any]]]] = {
    DistillationRecord.file: (DistillationRecord, _distilled),
    MergeRecord.file: (MergeRecord, _merged),
    RouterRecord.file: (RouterRecord, _routed),
    CascadeRecord.file: (CascadeRecord, _cascade),
}
