"""The teacher's answers in `tuneloop distill`: to which requests, written once, and the best of several if so set."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from tuneloop.combine.options import DistilOptions
from tuneloop.core.errors import UserError
from tuneloop.core.files import (
    Config,
    build_config,
    content_hash,
    drop_torn_line,
    read_jsonl,
    read_yaml,
    user_errors_of_the_disk,
)
from tuneloop.core.patterns import compile_pattern
from tuneloop.core.ui import progress, say
from tuneloop.core.units import counted, verb
from tuneloop.data import load_dataset, prompt_reader, task_spec, write_splits
from tuneloop.data.formats import Rejection
from tuneloop.data.sources import SourceRecord, read_records
from tuneloop.evaluation import Judge
from tuneloop.evaluation.metrics import token_f1
from tuneloop.inference import Request, Sampling
from tuneloop.pipeline.answers import TaskTarget, choose_examples, prompt_turns
from tuneloop.records.completion import Completion
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.record import write_record
from tuneloop.records.rows import Dataset, Message, Row

if TYPE_CHECKING:
    from tuneloop.training import ProbabilityStore

SAME = "regular expressions with a group, which must have found the same in the row's own answer"


class AnswerGate(Config):
    """Conditions for every answer; what fails one is not learned. With `--best-of` the best of those that pass is."""

    version: int = Field(1, ge=1, le=1)
    contains: list[str] = Field(default_factory=list, description="each must occur, in any case")
    lacks: list[str] = Field(default_factory=list, description="none may occur, in any case")
    matches: list[str] = Field(default_factory=list, description="regular expressions, each to be found in the answer")
    same: list[str] = Field(default_factory=list, description=f"{SAME}; without one it is enough to find them")
    most_words: int | None = Field(None, ge=1, description="longest answer")

    @field_validator("matches", "same")
    @classmethod
    def _compiles(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                compile_pattern(pattern)
            except ValueError as error:
                raise ValueError(f"{pattern} is not a regular expression: {error}") from None
        return patterns

    @field_validator("same")
    @classmethod
    def _has_a_group(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            if compile_pattern(pattern).groups < 1:
                raise ValueError(f"{pattern} has no group: write what is compared in brackets")
        return patterns

    def breach(self, answer: str, row_answer: str = "") -> str:
        """The first condition that an answer fails; empty where it holds all.

        Args:
            row_answer: of the data set; empty where the row has none.
        """
        low = answer.casefold()
        for text in self.contains:
            if text.casefold() not in low:
                return f"lacks {text!r}"
        for text in self.lacks:
            if text.casefold() in low:
                return f"contains {text!r}"
        for pattern in self.matches:
            if not compile_pattern(pattern).search(answer):
                return f"does not match {pattern}"
        for pattern in self.same:
            search = compile_pattern(pattern).search
            match, expected = search(answer), search(row_answer) if row_answer else None
            if not match or (expected and match.group(1) != expected.group(1)):
                return f"another value of {pattern}"
        if self.most_words is not None and len(answer.split()) > self.most_words:
            return f"longer than {self.most_words} words"
        return ""


def load_gate(file: str) -> AnswerGate | None:
    """The conditions in a file; None where no file is named.

    Raises UserError: the file is missing or wrong, or demands nothing.
    """
    if not file:
        return None
    gate = build_config(AnswerGate, read_yaml(Path(file), "conditions"), where=file)
    if gate == AnswerGate():
        step = "add contains, lacks, matches, same or most_words"
        raise UserError("The file demands nothing of an answer", where=file, next_step=step)
    return gate


AT_ONCE = 64  # requests that are made before their answers are written
PLACE = "distill"  # in the run's folder: answers, rows, the student, the control


@dataclass
class DistilJob:
    """A distillation at work."""

    teacher: TaskTarget
    dataset: Dataset  # whose prompts it answers
    out: Path  # the student's run
    options: DistilOptions
    settings: Sequence[str] = ()  # `key=value`, of the student's recipe
    dropped: Counter[str] = field(default_factory=Counter)  # answers and requests, by reason
    store: ProbabilityStore | None = None  # where its probabilities go while it writes; None: they are not stored

    @property
    def place(self) -> Path:
        """Where all that is not the student's run itself is kept."""
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

    @cached_property
    def examples(self) -> list[Row]:
        """Training rows that the teacher sees before each request."""
        return choose_examples([r for r in self.dataset.train if r.shows_the_task], self.options.few_shot, seed=0)

    @property
    def labels(self) -> list[str]:
        """The labels that a teacher scores; empty: it writes."""
        scores = self.dataset.task == "classification" and self.teacher.model is not None
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


def teacher_answers(job: DistilJob, requests: Sequence[Request]) -> Sequence[Completion]:
    """What the teacher answers: a label that it scores, or text that it writes."""
    if job.labels:
        return list(job.teacher.target.score(requests, job.labels, exact=False))
    if job.store is not None and job.teacher.local is not None and job.options.best_of == 1:
        return job.store.while_writing(job.teacher.local, requests)
    return list(job.teacher.target.complete(requests))


# --- requests to the teacher -------------------------------------------------------------------

Draw = tuple[str, int]  # a row's id, and the number of the answer: 0 is the likeliest one, the others are sampled
Draws = Sequence[tuple[Row, int]]
TEMPERATURE = 0.8  # of the answers that are sampled
MOST_FAILED = 0.05  # share of requests that may fail for good


def answers_of(job: DistilJob) -> dict[str, Completion]:
    """The teacher's answer to each row, the best of `best_of`; what is written down already is not requested again.

    Raises UserError: too many requests failed, or another model answered.
    """
    more = [ids for rows in (job.unlabelled, job.examples) if (ids := [row.id for row in rows])]
    key = content_hash([job.teacher.identity, job.dataset.manifest.hash, *more])[:12]
    file = job.place / f"answers-{key}.jsonl"
    answers = {
        (line["id"], line.get("draw", 0)): Completion(line["text"], finish=line["finish"], error=line.get("error", ""))
        for line in _read(file)
    }
    if answers:
        say(f"teacher   {counted(len(answers), 'answer')} {verb(len(answers), 'is', 'are')} there already")
    draws = [(row, number) for number in range(job.options.best_of) for row in job.for_teacher]
    failed = _request_all(job, [(row, n) for row, n in draws if (row.id, n) not in answers], answers, file)
    if len(failed) > MOST_FAILED * len(draws):
        reason, _ = Counter(answer.error for answer in failed.values()).most_common(1)[0]
        message = f"{len(failed):,} of {counted(len(draws), 'request')} to the teacher failed, most often: {reason}"
        step = "the same command sends these again; what came is kept"
        raise UserError(message, where=job.teacher.name, next_step=step)
    _append(file, [_line(draw, answer) for draw, answer in failed.items()])  # so that the rows stay the same
    return _best(job, answers | failed)


def _request_all(job: DistilJob, draws: Draws, answers: dict[Draw, Completion], file: Path) -> dict[Draw, Completion]:
    """Add the teacher's answers, and write them down; returns those that failed."""
    failed: dict[Draw, Completion] = {}
    endpoint = job.teacher.target.endpoint
    count, other = 0, ""
    while count < len(draws) and not other:
        # A server gets one request before it gets many: another model may answer there, and its answers cost, too.
        some = draws[count : count + (1 if not count and endpoint else AT_ONCE)]
        lines = []
        requests = [_request(job, *pair) for pair in some]
        for (row, number), answer in zip(some, teacher_answers(job, requests), strict=True):
            draw = row.id, number
            checked = endpoint is not None and answer.served and not job.options.any_model
            if endpoint and checked and not same_model(endpoint.model, answer.served):
                other = other or answer.served
            elif answer.error:
                failed[draw] = answer
            else:
                answers[draw] = answer
                lines.append(_line(draw, answer))
        _append(file, lines)  # those of the right model, also where another one joined in
        count += len(some)
        progress("requesting the teacher's answers", count, len(draws))
    if other and endpoint:
        step = f"give --model {other}, or --any-model if that is the same; what the right one answered is kept"
        message = f"{other} has answered, and {endpoint.model} was requested"
        raise UserError(message, where=job.teacher.name, next_step=step)
    return failed


def _request(job: DistilJob, row: Row, number: int) -> Request:
    limit = job.teacher.task.max_new_tokens if job.teacher.task else 256
    more: dict[str, Any] = {"sampling": Sampling(temperature=TEMPERATURE, seed=number)} if number else {}
    turns = prompt_turns(row, examples=job.examples) if job.examples else row.prompt
    return Request(messages=turns, tools=row.tools, max_new_tokens=limit, id=row.id, **more)


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    drop_torn_line(file)
    return list(read_jsonl(file))


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


def same_model(*names: str) -> bool:
    """Whether two names may be of one model: equal but for owner, case and what names a version."""
    short, long = sorted((name.lower().rstrip("/").rpartition("/")[2] for name in names), key=len)
    return long.startswith(short) and _VERSION.fullmatch(long[len(short) :]) is not None


# --- the best of several -----------------------------------------------------------------------


def _best(job: DistilJob, answers: dict[Draw, Completion]) -> dict[str, Completion]:
    """The best usable answer to each row; of equals the first."""
    count, rows = job.options.best_of, job.for_teacher
    if count == 1:
        return {row.id: answers[row.id, 0] for row in rows}
    usable = {row.id: [n for n in range(count) if not unusable(answers[row.id, n], job, row)] or [0] for row in rows}
    scores = (_ratings if job.options.pick == "judge" else _overlaps)(job, answers, usable)
    best = {row.id: max(usable[row.id], key=lambda n, i=row.id: scores[i, n]) for row in rows}  # type: ignore[misc]
    moved = f"{sum(n != 0 for n in best.values()):,} of {counted(len(best), 'row')}"
    say(f"teacher   best of {count} by {job.options.pick}: of {moved} another than the first")
    return {i: answers[i, n] for i, n in best.items()}


def _overlaps(job: DistilJob, answers: dict[Draw, Completion], usable: dict[str, list[int]]) -> dict[Draw, float]:
    """Mean overlap of words with the row's other answers, or overlap with the row's own answer.

    The first is the answer of least Bayes risk (Kumar and Byrne 2004) with token F1 as its gain; it needs no reference.
    """
    overlaps = {}
    for row in job.for_teacher:
        texts = {n: answers[row.id, n].text for n in usable[row.id]}
        for n, text in texts.items():
            others = [other for m, other in texts.items() if m != n]
            if job.options.pick == "reference" and row.answer:
                others = [row.answer]
            overlaps[row.id, n] = sum(token_f1([other], text) for other in others) / max(len(others), 1)
    return overlaps


def _ratings(job: DistilJob, answers: dict[Draw, Completion], usable: dict[str, list[int]]) -> dict[Draw, float]:
    """What a judge rates each usable answer, 1 to 5; its ratings are written down as they come."""
    judge = Judge(job.options.judge)
    draws = [(row, n) for row in job.for_teacher for n in usable[row.id]]
    key = content_hash([judge.identity, [[row.id, n, answers[row.id, n].text] for row, n in draws]])[:12]
    file = job.place / f"ratings-{key}.jsonl"
    ratings = {(line["id"], line["draw"]): line["score"] for line in _read(file)}
    left = [(row, n) for row, n in draws if (row.id, n) not in ratings]
    for start in range(0, len(left), AT_ONCE):
        some = left[start : start + AT_ONCE]
        ratings_of_some = judge.rate([(row, answers[row.id, n].text) for row, n in some]).rows
        lines = []
        for (row, n), rating in zip(some, ratings_of_some, strict=True):
            ratings[row.id, n] = float(rating.score or 0)  # a rating that can't be read is the least
            lines.append(json.dumps({"id": row.id, "draw": n, "score": ratings[row.id, n]}) + "\n")
        _append(file, lines)
    return ratings


def taught_rows(job: DistilJob) -> Dataset:
    """The data set with the teacher's answers to its training rows and to further requests, without unusable ones.

    Raises UserError: hardly an answer is usable.
    """
    answers = answers_of(job)
    rows: list[Row] = [] if job.options.answers == "teacher" else list(job.dataset.train)
    for row in job.for_teacher:
        reason = unusable(answers[row.id], job, row)
        if reason:
            job.dropped[reason] += 1
            continue
        text = answers[row.id].text.strip()
        turns: list[Message] = [*row.prompt, {**row.messages[-1], "content": text}]
        label = text if row.label is not None else None
        rows.append(replace(row, messages=turns, label=label, meta={**row.meta, "teacher": job.teacher.name}))
    if not rows:
        message = f"No answer of the teacher is usable ({reasons_of(job.dropped)})"
        raise UserError(message, where=job.teacher.name, next_step="use another teacher")
    out, old = job.place / "dataset", job.dataset.manifest
    files = write_splits(out, {"train": rows, "val": job.dataset.val, "test": job.dataset.test}, job.dataset.task)
    hash_ = content_hash([old.hash, job.teacher.identity, [[row.id, row.answer] for row in rows]])
    fields = {
        "id": f"{old.name}-{hash_[:12]}", "hash": hash_, "key": "", "checks": [],
        "counts": old.counts.model_copy(update={"train": len(rows)}), "splits": old.splits.model_copy(update=files),
    }  # fmt: skip
    write_record(out / MANIFEST, old.model_copy(update=fields))
    return load_dataset(out)


# --- requests without answers of their own -----------------------------------------------------

SAMPLE = 2000  # records that show which columns there are
UNREADABLE = "not readable"
Prompt = tuple[list[Message], list[dict[str, Any]]]  # turns, and tools


def reasons_of(dropped: Mapping[str, int]) -> str:
    """What was left out, in words, as in `3 empty, 1 failed`."""
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items())


def unlabelled_rows(source: str, dataset: Dataset, dropped: Counter[str]) -> list[Row]:
    """The requests of a transfer set as rows without an answer, in the form of the data set that the student learns.

    Left out is what occurs in the data set's training rows or twice, and what is equal or near to a validation or test
    row, which would give it away.

    `source`: a file of any format that `prepare` reads, with or without answers, or a prepared data set (its training
    rows); `dropped`: counts what is left out, by reason. Raises UserError: no such file, other columns than the data
    set's, or nothing is left.
    """
    label = "" if dataset.task == "classification" else None  # the teacher's answer will be it
    keys = {_prompt_key(row.prompt) for row in dataset.train}
    rows: list[Row] = []
    for messages, tools in _prompts(source, dataset, dropped):
        key = _prompt_key(messages)
        if key in keys:
            dropped["there twice"] += 1
            continue
        keys.add(key)
        empty: Message = {"role": "assistant", "content": ""}
        rows.append(Row(key, [*messages, empty], label, tools, meta={"source": source}))
    from tuneloop.data import uncontaminated

    clean = uncontaminated(rows, dataset)
    if len(clean) < len(rows):
        dropped["near a validation or test row"] += len(rows) - len(clean)
    if not clean:
        message = f"No request is left for the teacher ({reasons_of(dropped)})"
        raise UserError(message, where=source, next_step="give other requests, or leave --prompts out")
    return clean


def _prompt_key(messages: Iterable[Message]) -> str:
    return content_hash([[turn["role"], " ".join(turn["content"].split()).casefold()] for turn in messages])[:16]


def _prompts(source: str, dataset: Dataset, dropped: Counter[str]) -> list[Prompt]:
    if (Path(source) / MANIFEST).is_file():
        return [(row.prompt, row.tools) for row in load_dataset(source).train]
    items = list(read_records([source]))
    records: list[Mapping[str, Any]] = [item.value for item in items if isinstance(item, SourceRecord)]
    if len(records) < len(items):
        dropped[UNREADABLE] += len(items) - len(records)
    if not records:
        raise UserError("The file holds no records", where=source, next_step="give JSON Lines, JSON, CSV or Parquet")
    spec = task_spec(dataset, answer="generate", max_new_tokens=1, chat_template="")
    read = prompt_reader(spec, records[:SAMPLE])
    prompts: list[Prompt] = []
    for prompt in map(read, records):
        if isinstance(prompt, Rejection) or not prompt.messages:
            dropped[UNREADABLE] += 1
        else:
            prompts.append((prompt.messages, prompt.tools))
    return prompts
