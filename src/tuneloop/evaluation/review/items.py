"""Which answers people look at: systems read from evaluations, a sample of their rows, and the votes on disk.

A random part of the sample is kept apart: its plain mean is an unbiased estimate. Both parts are drawn at random within
each group of rows, so all reviewed rows, weighted by (rows in the group) / (reviewed rows in it), give a narrower one.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import (
    content_hash,
    lock_folder,
    sha256_file,
    user_errors_of_the_disk,
    wait_for_lock,
    write_jsonl,
)
from tuneloop.core.foreign import parse_line
from tuneloop.evaluation.metrics.text import token_f1
from tuneloop.evaluation.results import read_evaluation
from tuneloop.records import review as records
from tuneloop.records.evaluation import Sample, split_place
from tuneloop.records.record import as_line, read_lines, read_record, write_record
from tuneloop.records.review import ReviewedSystem, ReviewItem, ReviewMode, Vote

Mode = ReviewMode
ITEMS = "items.jsonl"
SHARE = 0.25  # of the rows that are reviewed: 25 of 100
RANDOM_PART = 0.4  # of the sample
DISAGREEMENTS = 0.6  # of the informative part
MOST_ITEMS = 1000  # no one looks at more
SAME = "same"  # the group of rows with equal answers: nothing to look at, they count as ties


@dataclass(frozen=True)
class ReviewedAnswer:
    """One system's answer to a row."""

    messages: list[dict[str, Any]]  # the turns before it; empty where they are the prompt alone
    prompt: str
    references: list[str]  # accepted answers
    label: str | None
    answer: str
    quality: float  # token F1 with the best reference
    unsure: bool  # it was cut off or invalid, or chosen with low confidence


@dataclass(frozen=True)
class System:
    """One system's answers, as an evaluation's `samples.jsonl` holds them."""

    name: str
    place: str  # the evaluation's folder, with `:NAME` for a baseline in it
    folder: Path
    sha256: str  # of its `samples.jsonl`
    samples: dict[str, ReviewedAnswer]  # row id -> its answer


@dataclass(frozen=True)
class ReviewFolder:
    """A review's folder, read: `review.json` (`manifest`), `items.jsonl` in the order in which they are shown,
    `votes.jsonl`. `populations`: systems of an item, joined by a line break -> group -> rows in the evaluation."""

    folder: Path
    mode: Mode
    systems: list[str]
    items: list[ReviewItem]
    populations: dict[str, dict[str, int]]
    manifest: records.Review = field(repr=False)

    @property
    def votes_path(self) -> Path:
        """The file of votes."""
        return self.folder / "votes.jsonl"


def read_systems(places: Sequence[str]) -> list[System]:
    """Read `FOLDER` or `FOLDER:BASELINE` arguments. Raises UserError: no evaluation, baseline or answers there."""
    systems = []
    for location in places:
        path, name = split_place(location)
        manifest, samples, baseline = read_evaluation(path, name)
        answers, file = {sample.id: _answer(sample, baseline) for sample in samples}, path / "samples.jsonl"
        if not answers:
            raise UserError("There are no answers to look at", where=str(file), next_step="evaluate again")
        systems.append(System(name or manifest.name, location, path, sha256_file(file), answers))
    names = [system.name for system in systems]
    if len(set(places)) < len(places):
        raise UserError("The same answers are named twice", where=" ".join(places), next_step="name each once")
    return [c if names.count(c.name) == 1 else replace(c, name=c.place) for c in systems]


def _answer(sample: Sample, baseline: str) -> ReviewedAnswer:
    references = sample.references or [sample.reference]
    answer = sample.baselines[baseline] if baseline else sample.prediction
    confidence = None if baseline else sample.confidence
    unfinished = not baseline and not (sample.valid and sample.finished)
    unsure = unfinished or (confidence is not None and confidence < 0.5)
    messages, quality = [dict(turn) for turn in sample.messages or ()], token_f1(references, answer)
    return ReviewedAnswer(messages, sample.prompt, references, sample.label, answer, quality, unsure)


def make_review(
    systems: Sequence[System],
    out: Path,
    *,
    mode: Mode,
    share: float = SHARE,
    seed: int = 0,
    conversations: Mapping[str, list[dict[str, Any]]] | None = None,
) -> ReviewFolder:
    """Draw the sample and write `items.jsonl`, then `review.json`; a review that is there already is continued.

    `systems`: one system or more; `pairwise` needs two. `share`: of the evaluation's rows to look at (for each pair, or
    each system). `conversations`: row id -> the turns before the answer, where samples hold only the last one. Raises
    UserError: the folder holds another review, the systems share no row, or all their answers are equal.
    """
    if mode == "pairwise" and len(systems) < 2:
        next_step = "tuneloop review A B, or RUN RUN:zero-shot, or --mode rating"
        raise UserError("Two systems are needed", next_step=next_step)
    if not 0 < share <= 1:
        raise UserError(f"A share is between 0 and 1, got {share:g}", where="--share", next_step="leave it out: 0.25")
    key = content_hash([mode, [[c.name, c.sha256] for c in systems], share, seed, 1])
    with lock_folder(out):
        if (out / records.Review.file).is_file():
            if read_record(records.Review, out).key != key:
                message = "This folder holds a review of other answers, or with other settings"
                raise UserError(
                    message, where=str(out), next_step="choose another folder with --out, or delete this one"
                )
            return load_review(out)
        items, populations = _draw(systems, mode, share, seed, conversations or {})
        write_jsonl(out / ITEMS, items)
        reviewed = [ReviewedSystem(name=c.name, place=c.place, sha256=c.sha256) for c in systems]
        manifest = records.Review(
            key=key, mode=mode, systems=reviewed, share=share, seed=seed, items=len(items), populations=populations
        )
        write_record(out / records.Review.file, manifest)
    return load_review(out)


def load_review(folder: Path | str) -> ReviewFolder:
    """Read a review's folder. Raises UserError: there is none, or it is damaged."""
    folder = Path(folder)
    if not (folder / records.Review.file).is_file():
        raise UserError("No review there", where=str(folder), next_step="start one with `tuneloop review A B`")
    manifest = read_record(records.Review, folder)
    items, names = read_lines(ReviewItem, folder / ITEMS, records.Review.again), [c.name for c in manifest.systems]
    return ReviewFolder(folder, manifest.mode, names, items, manifest.populations, manifest)


def _draw(
    systems: Sequence[System], mode: Mode, share: float, seed: int, conversations: Mapping[str, list[dict[str, Any]]]
) -> tuple[list[ReviewItem], dict[str, dict[str, int]]]:
    size = 2 if mode == "pairwise" else 1
    sets = list(itertools.combinations(systems, size))
    rng = random.Random(seed)
    items: list[ReviewItem] = []
    populations: dict[str, dict[str, int]] = {}
    for sides in sets:
        rows = [row for row in sides[0].samples if all(row in c.samples for c in sides)]
        if not rows:
            where = " ".join(c.place for c in sides)
            message = "The two evaluations share no row"
            raise UserError(message, where=where, next_step="evaluate both on the same split")
        groups = _pair_groups(rows, *sides) if size == 2 else _rating_groups(rows, sides[0])
        names = tuple(c.name for c in sides)
        populations["\n".join(names)] = dict(Counter(groups.values()))
        budget = min(max(round(share * len(rows) / len(sets)), 1), MOST_ITEMS)
        for row, stratum in sample_rows(groups, budget, rng).items():
            first = sides[0].samples[row]
            messages = first.messages or conversations.get(row) or [{"role": "user", "content": first.prompt}]
            parts: dict[str, Any] = {
                "id": content_hash([row, list(names)])[:12], "row": row, "systems": names,
                "answers": tuple(c.samples[row].answer for c in sides), "messages": [turn for turn in messages if turn],
                "references": first.references, "label": first.label, "stratum": stratum, "group": groups[row],
            }  # fmt: skip
            items.append(ReviewItem(**parts))
    if not items:
        message = "All answers are equal: there is nothing to compare"
        where = " ".join(c.place for c in systems)
        raise UserError(message, where=where, next_step="compare other systems, or rate one with --mode rating")
    rng.shuffle(items)  # a reviewer who stops early has seen a fair part of each group
    return items, populations


def sample_rows(groups: Mapping[str, str], budget: int, rng: random.Random) -> dict[str, str]:
    """Row -> stratum of the rows to look at: a random part of all, then informative ones, random within each group.
    `groups`: row -> group; rows of the group `same` are never drawn. `budget`: rows to draw, at most. `rng`: of the
    draw."""
    left = [row for row, group in groups.items() if group != SAME]
    rng.shuffle(left)
    n_random = min(len(left), max(1, round(RANDOM_PART * budget)))
    strata = dict.fromkeys(left[:n_random], "random")
    kinds = ("disagreement", "uncertain", "rest")
    queues = {name: [row for row in left[n_random:] if groups[row] == name] for name in kinds}
    shares = {"disagreement": round(DISAGREEMENTS * (budget - n_random)), "uncertain": budget, "rest": budget}
    for limits in (shares, dict.fromkeys(queues, budget)):  # what one group can't fill, the others do
        for name, queue in queues.items():
            take = max(0, min(limits[name], budget - len(strata), len(queue)))
            strata |= dict.fromkeys(queue[:take], name)
            del queue[:take]
    return strata


def _pair_groups(rows: Sequence[str], a: System, b: System) -> dict[str, str]:
    """`same`: equal answers. `disagreement`: closeness to the reference (token F1) differs at least as much as in half
    of the unequal rows. `uncertain`: it does not, but the answers have less than half of their words in common, or one
    was cut off or invalid, or chosen with low confidence. `rest`: all else."""
    unequal = [row for row in rows if a.samples[row].answer.strip() != b.samples[row].answer.strip()]
    gaps = {row: abs(a.samples[row].quality - b.samples[row].quality) for row in unequal}
    middle = sorted(gaps.values())[len(gaps) // 2] if gaps else 0.0
    groups = dict.fromkeys(rows, SAME)
    for row in unequal:
        pair = a.samples[row], b.samples[row]
        if gaps[row] > 0 and gaps[row] >= middle:
            groups[row] = "disagreement"
        elif any(s.unsure for s in pair) or token_f1([pair[0].answer], pair[1].answer) < 0.5:
            groups[row] = "uncertain"
        else:
            groups[row] = "rest"
    return groups


def _rating_groups(rows: Sequence[str], system: System) -> dict[str, str]:
    """`disagreement`: the answer is among the third that is farthest from the reference, and not equal to it.
    `uncertain`: it was cut off or invalid, or chosen with low confidence. `rest`: all else."""
    answers = {row: system.samples[row] for row in rows}
    third = sorted(answer.quality for answer in answers.values())[len(rows) // 3]
    far = {row for row, answer in answers.items() if answer.quality < 1 and answer.quality <= third}
    return {row: "disagreement" if row in far else "uncertain" if a.unsure else "rest" for row, a in answers.items()}


def append_vote(path: Path | str, vote: Vote) -> None:
    """Add a vote to the file and return when it is on the disk. One write under a lock of the file: processes may
    append at the same time. A line that a crash cut off before is ended first; a disk that fills up leaves no half
    line. Raises UserError: the file can't be written."""
    record = {key: value for key, value in vote.to_json().items() if value not in (None, "", [])}
    line = json.dumps(record, ensure_ascii=False).encode("utf-8", errors="backslashreplace") + b"\n"
    with user_errors_of_the_disk(path):
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            wait_for_lock(descriptor)
            end = os.lseek(descriptor, 0, os.SEEK_END)
            if end:
                os.lseek(descriptor, end - 1, os.SEEK_SET)
                line = line if os.read(descriptor, 1) == b"\n" else b"\n" + line
            try:
                while line:
                    line = line[os.write(descriptor, line) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)


def read_votes(path: Path | str) -> tuple[list[Vote], int]:
    """All votes in the order they were given, and how many lines can't be read."""
    path = Path(path)
    if not path.exists():
        return [], 0
    with user_errors_of_the_disk(path):
        lines = path.read_bytes().split(b"\n")
    votes, damaged = [], 0
    for line in filter(bytes.strip, lines):
        try:
            votes.append(as_line(Vote, parse_line(line), str(path), "vote again"))
        except (ValueError, RecursionError, UserError):
            damaged += 1
    return votes, damaged


def standing(votes: Iterable[Vote]) -> dict[tuple[str, str], Vote]:
    """(item, reviewer) -> the vote that counts: a reviewer's last one on the item."""
    return {(vote.item, vote.reviewer): vote for vote in votes}
