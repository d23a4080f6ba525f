"""The teacher's part in `tuneloop distill`: its answers, the rows made of them, and its probabilities, each asked for once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tuneloop.combine.options import DistilOptions
from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, drop_torn_line, read_jsonl, sha256_file, write_jsonl
from tuneloop.core.progress import Progress, no_progress
from tuneloop.inference.request import Request
from tuneloop.records.completion import Completion
from tuneloop.records.dataset import MANIFEST, SplitFile
from tuneloop.records.distillation import TeacherLogits
from tuneloop.records.record import write_record
from tuneloop.records.rows import Dataset, Row
from tuneloop.workflows.targets import TaskTarget

Say = Callable[[str], None]
AT_ONCE = 64  # prompts that are asked before their answers are written
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
    """

    teacher: TaskTarget
    dataset: Dataset
    out: Path
    options: DistilOptions
    settings: Sequence[str] = ()
    progress: Progress = no_progress
    say: Say = lambda line: None
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def place(self) -> Path:
        """Where all that is not the student's run itself stands."""
        return self.out / PLACE

    @property
    def labels(self) -> list[str]:
        """The labels that a teacher on this machine scores; empty: it writes."""
        scores = self.dataset.task == "classification" and self.teacher.local is not None
        return list(self.dataset.manifest.labels or []) if scores else []


def taught_rows(job: DistilJob) -> Dataset:
    """The data set with the teacher's answers in its training rows, those left out that are no good.

    Raises:
        UserError: hardly an answer is usable.
    """
    from tuneloop.data.dataset import label_counts, load_dataset

    answers = _answers(job)
    kept: list[Row] = []
    for row in job.dataset.train:
        why = _unusable(answers[row.id], job.dataset)
        if why:
            job.dropped[why] += 1
            continue
        text = answers[row.id].text.strip()
        turns = [*row.prompt, {**row.messages[-1], "content": text}]
        label = text if row.label is not None else None
        kept.append(replace(row, messages=turns, label=label, meta={**row.meta, "teacher": job.teacher.name}))  # type: ignore[arg-type]
    if not kept:
        reasons = ", ".join(f"{count} {why}" for why, count in job.dropped.items())
        raise UserError(
            f"No answer of the teacher is usable ({reasons})", where=job.teacher.name, next_step="ask another teacher"
        )
    out, old = job.place / "dataset", job.dataset.manifest
    splits = {"train": kept, "val": list(job.dataset.val), "test": list(job.dataset.test)}
    about = {}
    for split, rows in splits.items():
        write_jsonl(out / f"{split}.jsonl", rows)
        counts = label_counts(rows) if job.dataset.task == "classification" else None
        about[split] = SplitFile(
            path=f"{split}.jsonl", rows=len(rows), sha256=sha256_file(out / f"{split}.jsonl"), labels=counts
        )
    hash_ = content_hash([old.hash, job.teacher.identity, [[row.id, row.answer] for row in kept]])
    sizes = old.counts.model_copy(update={"train": len(kept)})
    manifest = old.model_copy(
        update={"id": f"{old.name}-{hash_[:12]}", "hash": hash_, "key": "", "counts": sizes, "checks": [],
                "splits": old.splits.model_copy(update=about)}
    )  # fmt: skip
    write_record(out / MANIFEST, manifest)
    return load_dataset(out)


def _unusable(answer: Completion, dataset: Dataset) -> str:
    """Why an answer is not trained on; empty where it is."""
    if answer.error:
        return "failed"
    if not answer.text.strip():
        return "empty"
    if answer.finish == "length":
        return "cut off"
    labels = dataset.manifest.labels if dataset.task == "classification" else None
    return "no known label" if labels and answer.text.strip() not in labels else ""


def _answers(job: DistilJob) -> dict[str, Completion]:
    """The teacher's answer to each training row: those that are written down already, then the others."""
    from tuneloop.core.files import user_errors_of_the_disk

    file = job.place / f"answers-{content_hash([job.teacher.identity, job.dataset.manifest.hash])[:12]}.jsonl"
    known: dict[str, Completion] = {}
    if file.is_file():
        drop_torn_line(file)
        known = {line["id"]: Completion(text=line["text"], finish=line["finish"]) for line in read_jsonl(file)}
        job.say(f"teacher   {len(known)} answers are there already")
    left = [row for row in job.dataset.train if row.id not in known]
    limit = job.teacher.task.max_new_tokens if job.teacher.task else 256
    file.parent.mkdir(parents=True, exist_ok=True)
    with user_errors_of_the_disk(file), file.open("a", encoding="utf-8") as handle:
        for start in range(0, len(left), AT_ONCE):
            some = left[start : start + AT_ONCE]
            requests = [Request(messages=row.prompt, tools=row.tools, max_new_tokens=limit, id=row.id) for row in some]
            for row, answer in zip(some, asked(job, requests), strict=True):
                known[row.id] = answer
                if not answer.error:  # a request that failed is asked again next time
                    handle.write(json.dumps({"id": row.id, "text": answer.text, "finish": answer.finish}) + "\n")
            handle.flush()
            job.progress("asking the teacher", start + len(some), len(left))
    return known


def asked(job: DistilJob, requests: Sequence[Request]) -> Sequence[Completion]:
    if job.labels:
        return list(job.teacher.target.score(requests, job.labels, exact=False))
    return list(job.teacher.target.complete(requests))


def stored_probabilities(job: DistilJob, student: str, dataset: Dataset, temperature: float) -> str:
    """The folder with the teacher's probabilities for the training and validation rows, as a student's template renders them.

    What is there already is not computed again.

    Args:
        student: whose tokenizer and template count.
        temperature: of the divergence.

    Raises:
        UserError: teacher and student have different tokens or templates.
    """
    from tuneloop.models.load import load_tokenizer
    from tuneloop.train.distil import store_probabilities, stored_by
    from tuneloop.train.teachers import refuse_other_tokens
    from tuneloop.train.top_logits import TopStore

    local = job.teacher.local
    assert local is not None, "checked before"
    template, rows = load_tokenizer(student), [*dataset.train, *dataset.val]
    rendered = [template.render(row.messages, row.tools) for row in rows]
    refuse_other_tokens(local, rows[0], rendered[0], template)
    vocabulary = min(template.tokenizer.get_vocab_size(), local.model.head.shape[0])
    about = TeacherLogits(
        teacher=job.teacher.name, teacher_key=job.teacher.identity, vocabulary=vocabulary,
        top=min(job.options.top, vocabulary - 1), temperature=temperature,
    )  # fmt: skip
    folder = job.place / f"logits-{content_hash([about.teacher_key, about.top, temperature])[:12]}"
    store = TopStore.create(folder, about)
    store_probabilities(local.model, rendered, store, job.progress)
    stored_by.cache_clear()
    size = store.count * store.layout.width
    job.say(
        f"teacher   probabilities of {about.top} tokens at {store.count:,} positions: {size / 1e6:,.1f} MB, "
        f"{store.layout.width} bytes each"
    )
    return str(folder)
