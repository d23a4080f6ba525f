"""The teacher's answers in `tuneloop distill`: asked for once, several a prompt where wanted, and the best one picked."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.combine.distill.gate import AnswerGate, load_gate
from tuneloop.combine.distill.prompts import unlabelled_rows
from tuneloop.combine.options import DistilOptions
from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, drop_torn_line, read_jsonl, user_errors_of_the_disk
from tuneloop.core.ui import progress, say
from tuneloop.core.units import counted, verb
from tuneloop.evaluation.metrics.text import token_f1
from tuneloop.inference.client import EndpointTarget
from tuneloop.inference.local.sampling import Sampling
from tuneloop.inference.request import Request
from tuneloop.pipeline.judge import Judge, conversation_of
from tuneloop.pipeline.targets import TaskTarget
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Dataset, Row

if TYPE_CHECKING:
    from tuneloop.combine.distill.probabilities import ProbabilityStore

AT_ONCE = 64  # requests that are made before their answers are written
PLACE = "distill"  # in the run's folder: answers, rows, the student, the control


@dataclass
class DistilJob:
    """A distillation at work.

    Args:
        teacher: who answers.
        dataset: whose prompts are asked.
        out: the student's run.
        options: how.
        settings: `key=value`, of the student's recipe.
        store: where the teacher's probabilities go while it writes; None: they are not wanted.
    """

    teacher: TaskTarget
    dataset: Dataset
    out: Path
    options: DistilOptions
    settings: Sequence[str] = ()
    dropped: Counter[str] = field(default_factory=Counter)
    store: ProbabilityStore | None = None

    @property
    def place(self) -> Path:
        """Where all that is not the student's run itself stands."""
        return self.out / PLACE

    @cached_property
    def gate(self) -> AnswerGate | None:
        """What each answer must hold; None: nothing."""
        return load_gate(self.options.gate)

    @cached_property
    def unlabelled(self) -> list[Row]:
        """Further requests, without answers of their own, which the teacher answers as well."""
        return unlabelled_rows(self.options.prompts, self.dataset, self.dropped) if self.options.prompts else []

    @property
    def for_teacher(self) -> list[Row]:
        """The rows that the teacher answers: all, or those without an answer of their own."""
        return [*(self.dataset.train if self.options.answers == "teacher" else ()), *self.unlabelled]

    @property
    def labels(self) -> list[str]:
        """The labels that a teacher on this machine scores; empty: it writes."""
        scores = self.dataset.task == "classification" and self.teacher.local is not None
        return list(self.dataset.manifest.labels or []) if scores else []


def unusable(answer: Completion, job: DistilJob, row: Row) -> str:
    """Why an answer to a row is not trained on; empty where it is."""
    if answer.error:
        return "failed"
    if not answer.text.strip():
        return "empty"
    if answer.finish == "length":
        return "cut off"
    labels = job.dataset.manifest.labels if job.dataset.task == "classification" else None
    if labels and answer.text.strip() not in labels:
        return "no known label"
    return "fails the gate" if job.gate is not None and job.gate.breach(answer.text.strip(), row.answer) else ""


def asked(job: DistilJob, requests: Sequence[Request]) -> Sequence[Completion]:
    """What the teacher answers: a label that it scores, or text that it writes."""
    if job.labels:
        return list(job.teacher.target.score(requests, job.labels, exact=False))
    if job.store is not None and job.teacher.local is not None and job.options.best_of == 1:
        return job.store.while_writing(job.teacher.local, requests)
    return list(job.teacher.target.complete(requests))


# --- asking ------------------------------------------------------------------------------------

Draw = tuple[str, int]  # a row's id, and the number of the answer: 0 is the likeliest one, the others are drawn
TEMPERATURE = 0.8  # of the answers that are drawn
MOST_FAILED = 0.05  # share of requests that may fail for good


def answers_of(job: DistilJob) -> dict[str, Completion]:
    """The teacher's answer to each row that it is asked for, the best of `best_of`; what is written down already is not asked again.

    Raises:
        UserError: too many requests failed, or another model answered.
    """
    file = job.place / f"answers-{_key(job)}.jsonl"
    known = _read(file)
    if known:
        say(f"teacher   {counted(len(known), 'answer')} {verb(len(known), 'is', 'are')} there already")
    draws = [(row, number) for number in range(job.options.best_of) for row in job.for_teacher]
    left = [(row, number) for row, number in draws if (row.id, number) not in known]
    failed: dict[Draw, Completion] = {}
    done, lied = 0, ""
    while done < len(left) and not lied:
        # A server is asked once before it is asked much: another model may answer there, and its answers cost, too.
        some = left[done : done + (1 if not done and isinstance(job.teacher.target, EndpointTarget) else AT_ONCE)]
        lines = []
        for (row, number), answer in zip(some, asked(job, [_request(job, *each) for each in some]), strict=True):
            draw = row.id, number
            if not job.options.any_model and _is_of_another_model(job, answer):
                lied = lied or answer.served
            elif answer.error:
                failed[draw] = answer
            else:
                known[draw] = answer
                lines.append(_line(draw, answer))
        _append(file, lines)  # those of the right model, also where another one joined in
        done += len(some)
        progress("asking the teacher", done, len(left))
    if lied and isinstance(job.teacher.target, EndpointTarget):
        raise UserError(
            f"{lied} has answered, and {job.teacher.target.endpoint.model} was asked", where=job.teacher.name,
            next_step=f"give --model {lied}, or --any-model if that is a name for the same; what the right one answered is kept",
        )  # fmt: skip
    if len(failed) > MOST_FAILED * len(draws):
        reason, _ = Counter(answer.error for answer in failed.values()).most_common(1)[0]
        raise UserError(
            f"{len(failed):,} of {counted(len(draws), 'request')} to the teacher failed, most often: {reason}",
            where=job.teacher.name, next_step="the same command asks for these again; what came is kept",
        )  # fmt: skip
    _append(file, [_line(draw, answer) for draw, answer in failed.items()])  # so that the rows stay the same
    return _best(job, known | failed)


def _key(job: DistilJob) -> str:
    """What a file of answers is named by: who was asked, and what."""
    asked_for = [row.id for row in job.unlabelled]
    return content_hash([job.teacher.identity, job.dataset.manifest.hash, *([asked_for] if asked_for else [])])[:12]


def _request(job: DistilJob, row: Row, number: int) -> Request:
    limit = job.teacher.task.max_new_tokens if job.teacher.task else 256
    more: dict[str, Any] = {"sampling": Sampling(temperature=TEMPERATURE, seed=number)} if number else {}
    return Request(messages=row.prompt, tools=row.tools, max_new_tokens=limit, id=row.id, **more)


def _read(file: Path) -> dict[Draw, Completion]:
    if not file.is_file():
        return {}
    drop_torn_line(file)
    return {
        (line["id"], line.get("draw", 0)): Completion(line["text"], finish=line["finish"], error=line.get("error", ""))
        for line in read_jsonl(file)
    }


def _line(draw: Draw, answer: Completion) -> str:
    about = {"id": draw[0], "draw": draw[1], "text": answer.text, "finish": answer.finish}
    return json.dumps(about | ({"error": answer.error} if answer.error else {})) + "\n"


def _append(file: Path, lines: Sequence[str]) -> None:
    if not lines:
        return
    with user_errors_of_the_disk(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as handle:
            handle.writelines(lines)


_VERSION = re.compile(r"[-_:@.]?(v?\d[\d.-]*|latest|preview|instruct|chat|hf|[-_:@.])*")


def same_model(wanted: str, said: str) -> bool:
    """Whether two names may be of one model: equal but for owner, case and what names a version."""
    one, other = sorted((name.lower().rstrip("/").rpartition("/")[2] for name in (wanted, said)), key=len)
    return other.startswith(one) and _VERSION.fullmatch(other[len(one) :]) is not None


def _is_of_another_model(job: DistilJob, answer: Completion) -> bool:
    """Whether a server says that another model than the one asked for has written an answer."""
    target = job.teacher.target
    if not isinstance(target, EndpointTarget) or not answer.served:
        return False
    return not same_model(target.endpoint.model, answer.served)


# --- the best of several -----------------------------------------------------------------------


def _best(job: DistilJob, known: dict[Draw, Completion]) -> dict[str, Completion]:
    """The best usable answer to each row; of equals the first."""
    count, rows = job.options.best_of, job.for_teacher
    if count == 1:
        return {row.id: known[row.id, 0] for row in rows}
    usable = {row.id: [n for n in range(count) if not unusable(known[row.id, n], job, row)] or [0] for row in rows}
    scores = _judged(job, known, usable) if job.options.pick == "judge" else _overlaps(job, known, usable)
    best = {row.id: max(usable[row.id], key=lambda n, i=row.id: scores[i, n]) for row in rows}  # type: ignore[misc]
    moved = sum(n != 0 for n in best.values())
    say(
        f"teacher   best of {count} by {job.options.pick}: of {moved:,} of {counted(len(best), 'row')} another than the first"
    )
    return {i: known[i, n] for i, n in best.items()}


def _overlaps(job: DistilJob, known: dict[Draw, Completion], usable: dict[str, list[int]]) -> dict[Draw, float]:
    """Mean overlap of words with the row's other answers, or overlap with the row's own answer.

    The first is the answer of least Bayes risk (Kumar and Byrne 2004) with token F1 as its gain; it needs no reference.
    """
    found = {}
    for row in job.for_teacher:
        texts = {n: known[row.id, n].text for n in usable[row.id]}
        for n, text in texts.items():
            others = (
                [row.answer]
                if job.options.pick == "reference" and row.answer
                else [t for m, t in texts.items() if m != n]
            )
            found[row.id, n] = sum(token_f1([other], text) for other in others) / max(len(others), 1)
    return found


def _judged(job: DistilJob, known: dict[Draw, Completion], usable: dict[str, list[int]]) -> dict[Draw, float]:
    """What a judge rates each usable answer, 1 to 5; its ratings are written down as they come."""
    from tuneloop.evaluation.judge import RatedAnswer, judge_answers, load_judge_prompt

    prompt = load_judge_prompt("rubric")
    draws = [(row, n) for row in job.for_teacher for n in usable[row.id]]
    key = content_hash([job.options.judge, prompt, [[row.id, n, known[row.id, n].text] for row, n in draws]])[:12]
    file = job.place / f"ratings-{key}.jsonl"
    if file.is_file():
        drop_torn_line(file)
    found = {(line["id"], line["draw"]): line["score"] for line in read_jsonl(file)} if file.is_file() else {}
    left = [(row, n) for row, n in draws if (row.id, n) not in found]
    choose = Judge(job.options.judge).choose() if left else None
    for start in range(0, len(left), AT_ONCE):
        some = left[start : start + AT_ONCE]
        items = [RatedAnswer(f"{row.id}", conversation_of(row), known[row.id, n].text, row.answer) for row, n in some]
        assert choose is not None
        ratings = judge_answers(items, choose, prompt).rows
        lines = []
        for (row, n), rating in zip(some, ratings, strict=True):
            found[row.id, n] = float(rating.score or 0)  # a rating that can't be read is the least
            lines.append(json.dumps({"id": row.id, "draw": n, "score": found[row.id, n]}) + "\n")
        _append(file, lines)
    return found
