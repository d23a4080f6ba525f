"""What a student of `tuneloop distill` learns from: rows made of the teacher's answers, and its probabilities, stored once."""

from __future__ import annotations

from dataclasses import replace

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, sha256_file, write_jsonl
from tuneloop.records.dataset import MANIFEST, SplitFile
from tuneloop.records.distillation import TeacherLogits
from tuneloop.records.record import write_record
from tuneloop.records.rows import Dataset, Row
from tuneloop.workflows.distil_answers import DistilJob, answers_of, unusable


def taught_rows(job: DistilJob) -> Dataset:
    """The data set with the teacher's answers in its training rows and behind further requests, those left out that are no good.

    Raises:
        UserError: hardly an answer is usable.
    """
    from tuneloop.data.dataset import label_counts, load_dataset

    answers = answers_of(job)
    kept: list[Row] = [] if job.options.answers == "teacher" else list(job.dataset.train)
    for row in job.for_teacher:
        why = unusable(answers[row.id], job.dataset)
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
