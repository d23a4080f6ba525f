"""General data blended into the training split, so that tuning on one task does not cost the model its other skills.

Replaying general data is the common remedy against catastrophic forgetting; a small share helps (Scialom et al. 2022,
arXiv 2205.12393). `plan_mix` decides on numbers alone which rows are trained on; `mix_rows` does it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_jsonl
from tuneloop.core.units import counted, verb
from tuneloop.data.config import MixConfig
from tuneloop.data.dataset import Split, keyed_hash, normalised, prompt_key
from tuneloop.records.dataset import MANIFEST, Check, Mix, MixSource, RowsAndTokens
from tuneloop.records.rows import Row

GENERAL_FILE = "general.jsonl"  # next to the splits: general rows held out of training
HELD_OUT_SHARE, HELD_OUT_ROWS = 0.05, 200  # of the general rows, and at most
TEST_SHARE = 0.2  # of the general rows, with in_test: training must keep the most of them
TOLERANCE = 0.01  # of the share; rows are whole
# Up to four passes over the same data are nearly as good as new data, more are not (Muennighoff et al. 2023,
# arXiv 2305.16264).
MANY_TIMES = 4


class MixSize(NamedTuple):
    """How much of something: rows, and their tokens."""

    rows: int
    tokens: int


class Place(NamedTuple):
    """A general row: the number of its source, and its number in it."""

    source: int
    row: int


@dataclass(frozen=True)
class GeneralSizes:
    """A source of general rows as numbers: the distinct ids (hashes of the content) of its rows, and their tokens."""

    name: str
    ids: Sequence[str]
    tokens: Sequence[int]


@dataclass(frozen=True)
class MixPlan:
    """Which general rows go where."""

    train: tuple[Place, ...]  # those to train on, in the order drawn; one that stands here again is used again
    held_out: tuple[Place, ...]  # those to measure forgetting with; disjoint from the others
    test: tuple[Place, ...]  # those in the test split (`in_test`)
    share: float  # general part of the mixed training split, in `by`
    target_share: float  # the share requested
    by: Literal["tokens", "rows"]  # what the shares are counted in
    general: MixSize  # how much of `train` there is
    exhausted: bool  # whether all general rows are used up

    @property
    def times(self) -> int:
        """How often the row that is used most is used."""
        return max(Counter(self.train).values(), default=0)


def plan_mix(
    task: MixSize, general: Sequence[GeneralSizes], config: MixConfig, seed: int, *, task_test: MixSize = MixSize(0, 0)
) -> MixPlan:
    """Which general rows to blend in, by their ids and the seed alone; weights that don't fit the sources are a
    UserError.

    The rows are drawn from one fixed sequence, of which the task's size decides only where it ends: with more task rows
    the same general rows are drawn, and more. The sources take turns by their weights; when one is used up the others
    fill its place, or with `config.repeat` it starts over.

    `task`: of the training split without general rows; `task_test`: of the test split, for `config.in_test`.
    """
    weights = _weights(general, config)
    train, held_out, test = _divide_rows(general, config, seed, task_test)
    target = config.share / (1.0 - config.share) * (task.tokens if config.by == "tokens" else task.rows)
    sequence: list[Place] = []
    total, exhausted = 0, True
    for location, cost in _drawn_rows(general, train, weights, config):
        if total + cost / 2 >= target:  # without this row the share is nearer
            exhausted = False
            break
        sequence.append(location)
        total += cost
    size = MixSize(len(sequence), sum(general[path.source].tokens[path.row] for path in sequence))
    mine, others = (size.tokens, task.tokens) if config.by == "tokens" else (size.rows, task.rows)
    share = mine / (mine + others) if mine + others else 0.0
    exhausted = exhausted and total < target
    return MixPlan(tuple(sequence), held_out, test, share, config.share, config.by, size, exhausted)


def _weights(general: Sequence[GeneralSizes], config: MixConfig) -> list[float]:
    if config.weights is None:
        return [float(sum(g.tokens) if config.by == "tokens" else len(g.ids)) for g in general]
    if len(config.weights) != len(general):
        message = f"{len(config.weights)} weights for {counted(len(general), 'source')} of general data"
        step = "give one weight for each of data.mix.sources"
        raise UserError(message, where="data.mix.weights", next_step=step)
    if min(config.weights, default=0.0) < 0.0 or (general and not any(config.weights)):
        message = "The weights of general data must be 0 or more, and one of them above 0"
        raise UserError(message, where="data.mix.weights", next_step="set data.mix.weights=[1, 2], or leave it out")
    return list(config.weights)


def _divide_rows(
    general: Sequence[GeneralSizes], config: MixConfig, seed: int, task_test: MixSize
) -> tuple[list[list[int]], tuple[Place, ...], tuple[Place, ...]]:
    """The rows of each source for training, in the order they are drawn in; those held out; those for the test. Those
    with the smallest hashes are held out, so that new rows in a source hardly move the others.
    """
    ranked = sorted(
        (keyed_hash(f"held out {g.ids[row]}", seed), g.ids[row], Place(number, row))
        for number, g in enumerate(general)
        for row in range(len(g.ids))
    )
    places = [path for _, _, path in ranked]
    held_out = min(HELD_OUT_ROWS, round(len(places) * HELD_OUT_SHARE))
    test = 0
    if config.in_test:
        target = config.share / (1.0 - config.share) * (task_test.tokens if config.by == "tokens" else task_test.rows)
        total = 0
        for location in places[held_out : held_out + int(len(places) * TEST_SHARE)]:
            cost = _cost(general[location.source], location.row, config)
            if total + cost / 2 >= target:
                break
            total, test = total + cost, test + 1
    train: list[list[int]] = [[] for _ in general]
    for location in places[held_out + test :]:
        train[location.source].append(location.row)
    for number, rows in enumerate(train):
        ids = general[number].ids
        rows.sort(key=lambda row, ids=ids: (keyed_hash(ids[row], seed), ids[row]))  # type: ignore[misc]
    return train, tuple(places[:held_out]), tuple(places[held_out : held_out + test])


def _cost(general: GeneralSizes, row: int, config: MixConfig) -> int:
    return max(general.tokens[row], 1) if config.by == "tokens" else 1


def _drawn_rows(
    general: Sequence[GeneralSizes], train: Sequence[Sequence[int]], weights: Sequence[float], config: MixConfig
) -> Iterator[tuple[Place, int]]:
    """General rows with their cost, endless with `repeat`: next comes the source with the least for its weight."""
    costs, places = [0] * len(general), [0] * len(general)
    open_ = [number for number, rows in enumerate(train) if rows and weights[number] > 0.0]
    while open_:
        source = min(open_, key=lambda number: costs[number] / weights[number])
        row = train[source][places[source] % len(train[source])]
        cost = _cost(general[source], row, config)
        yield Place(source, row), cost
        costs[source] += cost
        places[source] += 1
        if places[source] == len(train[source]) and not config.repeat:
            open_.remove(source)


def interleaved(task: int, general: int) -> list[int]:
    """Positions of general rows in the mixed split, from 0, ascending: any n rows hold n times their share, give or
    take 1 (a balanced word, Morse and Hedlund 1940).
    """
    rows = task + general
    return [(2 * k + 1) * rows // (2 * general) for k in range(general)]


@dataclass(frozen=True)
class GeneralRows:
    """A source of general rows: its name, its rows, and the tokens of each."""

    name: str
    rows: Sequence[Row]
    tokens: Sequence[int]


@dataclass(frozen=True)
class Mixed:
    """General rows for a data set, each marked with `meta.mix`."""

    train: list[Row]  # in the order drawn; they stand at the positions of `interleaved`
    held_out: list[Row]  # for `general.jsonl`
    test: list[Row]  # for the test split
    record: Mix  # what the manifest says about it
    check: Check  # a check of the share reached


def _user_key(row: Row) -> bytes:
    """What the user says, whatever the system turn: the same ticket with another instruction is the same ticket."""
    return keyed_hash("\n".join(normalised(m["content"]) for m in row.messages if m["role"] == "user"), 0)


def mix_rows(
    splits: Mapping[Split, Iterable[Row]],
    sizes: Mapping[Split, MixSize],
    general: Sequence[GeneralRows],
    config: MixConfig,
    seed: int,
) -> Mixed:
    """The general rows to put into a data set's splits.

    A general row is left out as a leak if the user says the same in a row of the task (the system turn may differ), and
    as a copy if its whole prompt is that of one before it. Rows that are used again get the id `ID-2`, `ID-3` ...

    Args:
        splits: the task's rows; each is looked at once.
        sizes: of the task's splits: `train`, and with `config.in_test` also `test`.
    """
    questions = {_user_key(row) for rows in splits.values() for row in rows}
    seen: set[bytes] = set()
    usable: list[list[int]] = []
    for source in general:
        usable.append([])
        for number, row in enumerate(source.rows):
            key = keyed_hash(prompt_key(row), 0)
            if key not in seen and _user_key(row) not in questions:
                seen.add(key)
                usable[-1].append(number)
    numbers = [
        GeneralSizes(source.name, [source.rows[i].id for i in places], [source.tokens[i] for i in places])
        for source, places in zip(general, usable, strict=True)
    ]
    plan = plan_mix(sizes["train"], numbers, config, seed, task_test=sizes.get("test", MixSize(0, 0)))
    times: Counter[Place] = Counter()

    def drawn(location: Place) -> Row:
        times[location] += 1
        source = general[location.source]
        row = source.rows[usable[location.source][location.row]]
        again = f"-{times[location]}" if times[location] > 1 else ""
        return replace(row, id=row.id + again, meta={**row.meta, "mix": source.name})

    train, held_out, test = (
        [drawn(location) for location in places] for places in (plan.train, plan.held_out, plan.test)
    )
    return Mixed(train, held_out, test, _record(plan, general, numbers, sizes["train"]), check_share(plan))


def _record(plan: MixPlan, general: Sequence[GeneralRows], usable: Sequence[GeneralSizes], task: MixSize) -> Mix:
    sources = []
    for number, source in enumerate(general):
        times = Counter(location for location in plan.train if location.source == number)
        held_out, test = (sum(p.source == number for p in places) for places in (plan.held_out, plan.test))
        tokens = sum(usable[number].tokens[location.row] * n for location, n in times.items())
        numbers = {"train": len(times), "uses": times.total(), "tokens": tokens, "held_out": held_out, "test": test}
        rows, left_out = len(source.rows), len(source.rows) - len(usable[number].ids)
        sources.append(MixSource(name=source.name, rows=rows, left_out=left_out, **numbers))
    return Mix(
        by=plan.by,
        wanted=plan.target_share,
        share=round(plan.share, 4),
        task=RowsAndTokens(**task._asdict()),
        general=RowsAndTokens(**plan.general._asdict()),
        times=plan.times,
        sources=sources,
    )


def check_share(plan: MixPlan) -> Check:
    """The check `mix_share`: whether the general part has the size requested, and how often its rows are used."""
    message, remedy = f"{plan.share:.1%} of the training {plan.by} are general data", ""
    if abs(plan.share - plan.target_share) > TOLERANCE:
        message += f", {plan.target_share:.1%} were requested"
        if plan.exhausted:
            rows = plan.general.rows
            message += f": all {counted(rows, 'row')} there {verb(rows, 'is was', 'are were')} used"
            remedy = "add sources to data.mix.sources, set data.mix.repeat=true, or lower data.mix.share"
        else:
            message += ": general rows are too large for a share of so few task rows"
            remedy = "add task rows, or general rows that are shorter, or set data.mix.by=rows"
    elif plan.times > MANY_TIMES:
        message += f", rows used up to {plan.times} times: above {MANY_TIMES} they teach little"
        remedy = "add sources to data.mix.sources, or lower data.mix.share"
    elif plan.times > 1:
        message += f", rows used up to {plan.times} times"
    level: Literal["ok", "warn"] = "warn" if remedy else "ok"
    return Check(name="mix_share", level=level, message=message, rows=plan.general.rows, remedy=remedy, examples=[])


def dataset_rows(source: str) -> list[Row] | None:
    """The training rows of a prepared data set as general data; None if the source is not one. A data set without its
    `train.jsonl`, or a damaged one, is a UserError.
    """
    folder = Path(source).parent if Path(source).name == MANIFEST else Path(source)
    if not (folder / MANIFEST).is_file():
        return None
    return [Row.from_json(record) for record in read_jsonl(folder / "train.jsonl")]
