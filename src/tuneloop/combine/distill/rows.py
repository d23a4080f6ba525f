"""What a student of `tuneloop distill` learns from: rows made of the teacher's answers."""

from __future__ import annotations

from dataclasses import replace

from tuneloop.combine.distill.answers import DistilJob, answers_of, unusable
from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, sha256_file, write_jsonl
from tuneloop.data.dataset import label_counts, load_dataset
from tuneloop.records.dataset import MANIFEST, SplitFile
from tuneloop.records.record import write_record
from tuneloop.records.rows import Dataset, Row


def taught_rows(job: DistilJob) -> Dataset:
    """The data set with the teacher's answers in its training rows and behind further requests, those left out that are no good.

    Raises:
        UserError: hardly an answer is usable.
    """
    answers = answers_of(job)
    kept: list[Row] = [] if job.options.answers == "teacher" else list(job.dataset.train)
    for row in job.for_teacher:
        why = unusable(answers[row.id], job, row)
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
