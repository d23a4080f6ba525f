"""`tuneloop distill`: a small model learns a larger one's answers, and is compared with itself taught by the rows alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.combine.options import DistilOptions
from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, read_json, read_jsonl, sha256_file, write_json, write_jsonl
from tuneloop.core.progress import Progress, no_progress
from tuneloop.inference.request import Request
from tuneloop.inference.targets.local import LocalTarget
from tuneloop.models.methods import WHOLE
from tuneloop.records.completion import Completion
from tuneloop.records.dataset import MANIFEST, SplitFile
from tuneloop.records.distillation import DistillationRecord, DistilledFigures, PrunedStudent
from tuneloop.records.record import write_record
from tuneloop.records.rows import Dataset, Row
from tuneloop.workflows.recipe import Recipe, make_recipe
from tuneloop.workflows.run_context import RunContext
from tuneloop.workflows.targets import TaskTarget, open_with_task
from tuneloop.workflows.train import train_alone

if TYPE_CHECKING:
    from tuneloop.combine.gains import Score
    from tuneloop.inference.client import Endpoint

Say = Callable[[str], None]
AT_ONCE = 64  # prompts that are asked before their answers are written
LOOKED_AT = 24  # conversations that show which layers matter
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


@dataclass(frozen=True)
class DistilInput:
    """Who teaches whom, on what.

    Args:
        teacher: a run, an adapter, a model, a GGUF file or an endpoint's URL.
        student: a model; empty with `DistilOptions.layers`: the teacher without some of its layers.
        dataset: a prepared data set. Its test rows judge; its validation rows keep their own answers.
        settings: `key=value`, of the student's recipe.
        endpoint: makes an endpoint from a URL.
    """

    teacher: str
    student: str
    dataset: str
    settings: Sequence[str] = ()
    endpoint: Callable[[str], Endpoint] | None = None


def distil(
    given: DistilInput, out: Path, options: DistilOptions, *, progress: Progress = no_progress, say: Say = lambda line: None
) -> DistillationRecord:  # fmt: skip
    """Let a teacher answer a data set's training prompts, train a student on that, and say whether it was worth it.

    Answers are written as they come: the same command goes on where it was cut short, and asks nothing twice.

    Args:
        given: who teaches whom, on what.
        out: the student's run.
        options: how the student is made and judged.

    Raises:
        UserError: no such teacher or rows; no student, or one that is no smaller; too few usable answers.
    """
    from tuneloop.data.dataset import load_dataset

    teacher, student = given.teacher, given.student
    if bool(student) == bool(options.layers):
        raise UserError(
            "Which student?", where="tuneloop distill", next_step="name a smaller model, or give --layers N, not both"
        )
    job = DistilJob(
        open_with_task(teacher, endpoint=given.endpoint),
        load_dataset(given.dataset),
        out,
        options,
        given.settings,
        progress,
        say,
    )
    if options.layers and job.teacher.local is None:
        raise UserError("Layers of a server's model can't be had", where=teacher, next_step="name a student model")
    taught = _taught_rows(job)
    made = _pruned(job) if options.layers else None
    model = str(job.place / "student") if made else student
    if not made:
        _refuse_larger(job, student)
    train_alone(_recipe(job, model, taught.path, out), progress=progress, say=say)
    control = None
    if not options.no_control:
        control = job.place / "control"
        say("control   the same student learns the rows' own answers")
        train_alone(_recipe(job, model, job.dataset.path, control), progress=progress, say=say)
    own = {row.id: row.answer.strip() for row in job.dataset.train}
    agreement = sum(own[row.id] == row.answer.strip() for row in taught.train) / max(len(taught.train), 1)
    record = DistillationRecord(
        teacher=teacher, teacher_key=job.teacher.identity, student=model, pruned=made, dataset=job.dataset.id,
        asked=len(job.dataset.train), kept=len(taught.train), dropped=dict(job.dropped), agreement=agreement,
        figures=_figures(job, control),
    )  # fmt: skip
    record = record.model_copy(update={"words": list(sentences(record))})
    write_record(out / DistillationRecord.file, record)
    for line in record.words:
        say(f"distill   {line}")
    return record


# --- the teacher's answers ---------------------------------------------------------------------


def _taught_rows(job: DistilJob) -> Dataset:
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
        _drop_torn_line(file)
        known = {line["id"]: Completion(text=line["text"], finish=line["finish"]) for line in read_jsonl(file)}
        job.say(f"teacher   {len(known)} answers are there already")
    left = [row for row in job.dataset.train if row.id not in known]
    limit = job.teacher.task.max_new_tokens if job.teacher.task else 256
    file.parent.mkdir(parents=True, exist_ok=True)
    with user_errors_of_the_disk(file), file.open("a", encoding="utf-8") as handle:
        for start in range(0, len(left), AT_ONCE):
            some = left[start : start + AT_ONCE]
            requests = [Request(messages=row.prompt, tools=row.tools, max_new_tokens=limit, id=row.id) for row in some]
            for row, answer in zip(some, _asked(job, requests), strict=True):
                known[row.id] = answer
                if not answer.error:  # a request that failed is asked again next time
                    handle.write(json.dumps({"id": row.id, "text": answer.text, "finish": answer.finish}) + "\n")
            handle.flush()
            job.progress("asking the teacher", start + len(some), len(left))
    return known


def _asked(job: DistilJob, requests: Sequence[Request]) -> Sequence[Completion]:
    if job.labels:
        return list(job.teacher.target.score(requests, job.labels, exact=False))
    return list(job.teacher.target.complete(requests))


def _drop_torn_line(file: Path) -> None:
    """Cut off a last line that a killed process has not finished."""
    data = file.read_bytes()
    if data and not data.endswith(b"\n"):
        file.write_bytes(data[: data.rfind(b"\n") + 1])


# --- the student -------------------------------------------------------------------------------


def _pruned(job: DistilJob) -> PrunedStudent:
    """The teacher without some layers, as a model's folder; found again where it was made already."""
    from tuneloop.combine.prune import layers_to_drop, write_pruned
    from tuneloop.models.names import resolve
    from tuneloop.release.tuned_weights import open_tuned

    local, out = job.teacher.local, job.place / "student"
    assert local is not None, "checked before"
    record = job.place / "student.json"
    key = content_hash([job.teacher.identity, job.options.layers])
    if (out / "config.json").is_file() and record.is_file():
        found = read_json(record)
        if found.get("key") == key:
            return PrunedStudent.model_validate(found["pruned"])
    template = local.model.template
    texts = [template.render(row.messages, row.tools).ids for row in job.dataset.train[:LOOKED_AT]]
    made = layers_to_drop(local.model, texts, job.options.layers)
    template.save(out)
    weights = open_tuned(local.base, local.trained or resolve(local.base))
    write_pruned(weights.config, weights.files, weights.tensor, made, out)
    write_json(record, {"version": 1, "key": key, "pruned": made})
    job.say(
        f"student   layers {made.dropped[0]} to {made.dropped[1]} of {made.of} are left out: {made.layers} are left"
    )
    return made


def _refuse_larger(job: DistilJob, student: str) -> None:
    """A student is smaller than its teacher, where both sizes are known.

    Raises:
        UserError: it is not.
    """
    from tuneloop.models.names import resolve

    if job.teacher.local is None:
        return
    own, theirs = (_parameters(resolve(name)) for name in (student, job.teacher.local.base))
    if own > theirs:
        raise UserError(
            f"The student has {own / 1e6:,.0f}M parameters and its teacher {theirs / 1e6:,.0f}M", where=student,
            next_step="name a smaller model, or give --layers N",
        )  # fmt: skip


def _parameters(folder: Path) -> int:
    from tuneloop.models.load import skeleton

    return sum(parameter.numel() for parameter in skeleton(folder).parameters())


def _recipe(job: DistilJob, model: str, rows: str, out: Path) -> Recipe:
    """The student's recipe. A model that lost layers is trained as a whole unless the settings say otherwise."""
    method = {"train": {"method": WHOLE}} if job.options.layers else {}
    values: dict[str, Any] = {"name": "student", "track": {"report_to": "none"}, **method}
    recipe = make_recipe(values, job.settings)
    data = recipe.data.model_copy(update={"sources": [str(rows)]})
    return recipe.model_copy(update={"model": model, "output_dir": str(out), "data": data})


# --- the proof ---------------------------------------------------------------------------------


def _figures(job: DistilJob, control: Path | None) -> DistilledFigures | None:
    """Teacher, control and student on the same test rows."""
    from tuneloop.combine.gains import difference, kept_share
    from tuneloop.evaluate.evaluate import sample_rows

    rows = sample_rows(job.dataset.test, job.options.rows, seed=0, stratum=job.dataset.stratum)
    if not rows:
        job.say("distill   no test rows: nothing is measured")
        return None
    metric, teacher = _score(job, rows, job.teacher)
    _, student = _score(job, rows, open_with_task(str(job.out)))
    known = _score(job, rows, open_with_task(str(control)))[1] if control else None
    found = DistilledFigures(
        metric=metric, n=len(rows), teacher=abs(teacher.value), student=abs(student.value),
        kept=student.value / teacher.value if teacher.value > 0 else None,
    )  # fmt: skip
    if known is None:
        return found
    more = {
        "control": abs(known.value),
        "closed": kept_share(known, teacher, student),
        "over_control": difference(known, student),
    }
    return found.model_copy(update=more)


def _score(job: DistilJob, rows: Sequence[Row], target: TaskTarget) -> tuple[str, Score]:
    """The metric that decides, and what a target comes to on rows."""
    from tuneloop.combine.gains import Score
    from tuneloop.evaluate.metrics import lower_is_better
    from tuneloop.workflows.scoring import score
    from tuneloop.workflows.systems import SystemAnswers

    limit = target.task.max_new_tokens if target.task else 256
    requests = [Request(messages=row.prompt, tools=row.tools, max_new_tokens=limit, id=row.id) for row in rows]
    asked = list(_asked(replace(job, teacher=target), requests))
    if isinstance(target.target, LocalTarget):
        target.target.__dict__.pop("model", None)  # three models need not be in memory together
    recipe = make_recipe({"name": "student"}, job.settings)
    found = score(
        RunContext(recipe, job.out, job.progress), replace(job.dataset, test=rows), rows, SystemAnswers(asked, 0.0)
    )
    metric = found.primary
    value, draws = found.metrics[metric].value, found.draws[metric]
    return metric, Score.of(value, draws, lower_is_better=lower_is_better(metric))


def sentences(record: DistillationRecord) -> Sequence[str]:
    """What came of it."""
    lost = ", ".join(f"{count} {why}" for why, count in record.dropped.items())
    said = [f"{record.kept} of {record.asked} answers of the teacher were trained on" + (f" ({lost})" if lost else "")]
    found = record.figures
    if found is None:
        return said
    values = f"{found.metric} on {found.n} test rows: teacher {found.teacher:.3f}, student {found.student:.3f}"
    said.append(values + (f", control {found.control:.3f}" if found.control is not None else ""))
    if found.over_control is not None:
        delta = found.over_control
        verdict = "better than" if delta.low > 0 else "worse than" if delta.high < 0 else "not surely different from"
        said.append(
            f"The student is {verdict} the same model trained on the rows' own answers: {delta.value:+.3f} "
            f"[{delta.low:+.3f}, {delta.high:+.3f}]"
        )
    if found.closed is not None:
        said.append(
            f"It closes {found.closed.value:.0%} [{found.closed.low:.0%}, {found.closed.high:.0%}] of the gap to the teacher"
        )
    return said
