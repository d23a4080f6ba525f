"""A GGUF artifact measured: the run's test rows through llama.cpp, compared with the run itself."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, lock_folder, plain, sha256_file, user_errors_of_the_disk
from tuneloop.core.ui import progress
from tuneloop.core.units import counted
from tuneloop.evaluation import ScoredAnswers, compare, load_evaluation, sample_rows, some_rows, write_scored
from tuneloop.evaluation.metrics import difference_in_words, lower_is_better, read_schema
from tuneloop.inference import Request, Served, complete
from tuneloop.inference.llamacpp import GgufTarget, LlamaCppEngine, server_installed
from tuneloop.models import load_model, trained_folder
from tuneloop.models.chat import load_template
from tuneloop.models.files import resolve
from tuneloop.pipeline import RunContext
from tuneloop.pipeline.answers import ask, cost_of, longest_answer, score
from tuneloop.records.artifact import EVALS, NEAR_TIE, PARTED, ArtifactCost, EvaluationExcerpt, SameAnswers
from tuneloop.records.evaluation import Comparison, Subject
from tuneloop.records.rows import Dataset, Row
from tuneloop.release.artifact import ArtifactMetrics
from tuneloop.release.gguf.convert import About, FloatType, write_gguf
from tuneloop.release.tuned_weights import open_tuned

if TYPE_CHECKING:
    import torch

BASE_TYPE: FloatType = "f16"  # of the base's file that a LoRA file is measured on
RUN = "run"  # name of the run in comparisons
KL_ROWS, KL_TOKENS = 8, 256  # rows whose distributions are compared, and tokens of each
END = -1  # behind the tokens of an answer: that it ends
SPEED_ROWS, SPEED_TOKENS = 5, 33  # prompts that are timed, and tokens written behind each
YOUNG = 60.0  # seconds


@dataclass(frozen=True)
class MeasuredRows:
    """What an artifact of a run is measured on: a seeded sample of its test rows; a larger one holds a smaller one."""

    job: RunContext
    dataset: Dataset
    rows: list[Row]


def rows_to_measure(job: RunContext, most: int) -> MeasuredRows | str:
    """The test rows that an artifact is measured on, at most so many (0: not wanted), or why there are none."""
    if not most:
        return "it was not requested"
    try:
        dataset = job.dataset()
    except UserError as error:
        return f"the run's data set is not available: {error.what}"
    limit = min(most, job.recipe.evaluate.limit or most)
    rows = sample_rows(dataset.test, limit, seed=job.recipe.seed, stratum=dataset.stratum)
    return MeasuredRows(job, dataset, rows) if rows else "the run's data set has no test rows"


def remove_stale_bases(folder: Path) -> None:
    """Remove what killed exports have left in a run's folder: folders `.base-*` with the base's GGUF file.

    The folder of an export that is at work is locked, and stays. So does one that is younger than a minute: its export
    may be about to lock it.
    """
    for left in folder.glob(".base-*"):
        with contextlib.suppress(UserError, FileNotFoundError):
            if time.time() - left.stat().st_ctime > YOUNG:
                with lock_folder(left):
                    shutil.rmtree(left, ignore_errors=True)


def measure_lora(sample: MeasuredRows, file: Path, name: str, id_: str) -> ArtifactMetrics:
    """`measure_artifact` of a LoRA file, on the base's GGUF file in f16, which is written for it and removed.

    Raises:
        UserError: see `measure_artifact`; no room for the base.
    """
    job = sample.job
    remove_stale_bases(job.folder)
    with (
        user_errors_of_the_disk(job.folder),
        tempfile.TemporaryDirectory(dir=job.folder, prefix=".base-") as folder,
        lock_folder(folder),
    ):
        base, model = Path(folder) / "base.gguf", resolve(job.recipe.model)
        write_gguf(open_tuned("", model), load_template(model), base, BASE_TYPE, About("base"))
        target = GgufTarget(str(file), base, adapters=(file,), tokenizer=trained_folder(job.folder))
        return measure_artifact(sample, file, name, id_, target)


def measure_artifact(
    sample: MeasuredRows, file: Path, name: str, id_: str, target: GgufTarget | None = None
) -> ArtifactMetrics:
    """A GGUF file's answers to the rows, compared with the run's.

    The evaluation with every answer is written into the run's folder, `evals/ID`: test rows do not travel with an
    artifact.

    Args:
        name: of its type of weights, by which it is named in comparisons.
        id_: the artifact's.
        target: that answers; default: the file.

    Raises:
        UserError: llama.cpp is missing or fails, or a row can't be answered.
    """
    job, dataset, rows = sample.job, sample.dataset, sample.rows
    target = target or GgufTarget(str(file), file)
    try:
        answers = ask(target, dataset, rows, job.recipe.evaluate, task=f"measuring {name}")[""]
        kl = _mean_kl(job, target, rows)
        cost = _cost(target, rows)
    finally:
        target.close()
    after = score(job, dataset, rows, answers)
    before = evaluation_of_run(job, dataset, rows)
    pairs = compare(RUN, before, name, after)
    folder = job.folder / EVALS / id_
    key = content_hash([sha256_file(file), dataset.manifest.hash, [row.id for row in rows]])
    subject = Subject(job.recipe.model, dataset.id, "test", name, key)
    more = {"comparisons": plain(pairs), "runs": {RUN: str(job.folder)}}
    write_scored(folder, after, subject, {name: cost_of(job, answers)}, more=more)
    scores = {"n": after.n, "primary": after.primary, "metrics": after.metrics, "comparisons": list(pairs)}
    text = _words(name, after, before, pairs)
    excerpt = EvaluationExcerpt(name=name, dataset=dataset.id, split="test", words=text, **scores)
    return ArtifactMetrics(
        excerpt,
        parted(job, same_answers(before, after), before, after),
        kl,
        cost.model_copy(update={"file_bytes": file.stat().st_size}),
        _structured(sample, file, before) if not target.adapters else None,
    )


def _structured(sample: MeasuredRows, file: Path, before: ScoredAnswers) -> SameAnswers | None:
    """The share of rows whose answer, held to the run's JSON Schema as by a server, is the one that was evaluated.

    None: the run has no schema, or llama.cpp's server is not installed.
    """
    config = sample.job.recipe.evaluate
    if not config.json_schema or not server_installed():
        return None
    schema = read_schema(config.json_schema)
    limit = longest_answer(sample.job.template, sample.dataset, config)
    engine = LlamaCppEngine(Served(str(file)))
    texts = {row.id: answer.text for row, answer in zip(before.rows, before.answers, strict=True)}

    async def count_same() -> int:
        await engine.start()
        try:
            same = 0
            for count, row in enumerate(sample.rows):
                progress("answers by the schema", count, len(sample.rows))
                request = Request(row.prompt, row.tools or (), max_new_tokens=limit, schema=schema, id=row.id)
                same += (await complete(engine, request)).text == texts[row.id]
            return same
        finally:
            await engine.stop()

    return SameAnswers(share=asyncio.run(count_same()) / len(sample.rows), n=len(sample.rows))


def same_answers(a: ScoredAnswers, b: ScoredAnswers) -> SameAnswers:
    """The share of rows to which both give the same answer: the same label, or the same text."""
    before = {row.id: (label, answer.text) for row, label, answer in zip(a.rows, a.predictions, a.answers, strict=True)}
    same = 0
    for row, label, answer in zip(b.rows, b.predictions, b.answers, strict=True):
        other_label, other_text = before[row.id]
        same += answer.text == other_text or (label is not None and label == other_label)
    return SameAnswers(share=same / b.n, n=b.n)


def parted(job: RunContext, same: SameAnswers, run: ScoredAnswers, artifact: ScoredAnswers) -> SameAnswers:
    """`same` with what the run says where written answers part: by how much it prefers its own token there.

    Greedy answers of two roundings of one model differ where two tokens are equally likely, and stay different. A gap
    near 0 is such a tie; a large one says that the model has changed.
    """
    import torch

    job.attach_trained()
    template, head = job.template, job.model.head.float().t()
    before = {row.id: answer.text for row, answer in zip(run.rows, run.answers, strict=True)}
    gaps: list[float] = []
    for row, label, answer in zip(artifact.rows, artifact.predictions, artifact.answers, strict=True):
        if label is not None or answer.error or answer.text == before[row.id] or len(gaps) == PARTED:
            continue
        first, second = ([*template.encode(text), END] for text in (before[row.id], answer.text))
        at = next(
            (i for i, (first_id, other) in enumerate(zip(first, second, strict=False)) if first_id != other), None
        )
        if at is None:  # the texts differ in outer white space alone
            continue
        ids = [*template.prompt_ids(row.prompt, row.tools or ()), *first[:at]]
        with torch.inference_mode():
            hidden = job.model.hidden(torch.tensor([ids], device=job.model.device))[0, -1:].float()
            logs = torch.log_softmax(hidden @ head, -1)[0]
        ends = logs[list(template.end_ids)].max()  # the model knows several, and ends its turns with one of them
        a, b = (ends if text[at] == END else logs[text[at]] for text in (first, second))
        gaps.append(float(a - b))
    if not gaps:
        return same
    ties = sum(gap < NEAR_TIE for gap in gaps)
    return same.model_copy(update={"parted": len(gaps), "ties": ties, "largest_gap": round(max(gaps), 4)})


def evaluation_of_run(job: RunContext, dataset: Dataset, rows: Sequence[Row]) -> ScoredAnswers:
    """The run's own evaluation on these rows: as it was made, or made now."""
    ids = {row.id for row in rows}
    try:
        earlier = load_evaluation(job.folder)
    except UserError:
        earlier = None
    if earlier is not None and ids <= {row.id for row in earlier.rows}:
        return earlier if earlier.n == len(ids) else some_rows(earlier, ids)
    job.attach_trained()
    answers = ask(job.target, dataset, rows, job.recipe.evaluate, task="the run itself")
    return score(job, dataset, rows, answers[""])


def _mean_kl(job: RunContext, target: GgufTarget, rows: Sequence[Row]) -> float:
    """Mean divergence, in nats, of the file's next-token distribution from the run's, over the tokens of some rows."""
    import torch

    job.attach_trained()
    head = job.model.head.float().t()

    def logs(ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = job.model.hidden(torch.tensor([ids], device=job.model.device))[0].float()
        ours = torch.log_softmax(hidden @ head, -1).cpu()
        theirs = torch.log_softmax(torch.from_numpy(target.llama.logits(ids).copy()), -1)
        return ours, theirs[:, : ours.shape[1]]

    return _mean_divergence(job, rows[:KL_ROWS], logs)


def kl_of_folder(sample: MeasuredRows, folder: Path) -> float:
    """The same of a model that Transformers loads, such as one in compressed-tensors' layout, on the processor.

    Raises:
        UserError: Transformers or what unpacks the weights is missing.
    """
    import torch

    job = sample.job
    job.attach_trained()
    other = load_model(str(folder), device="cpu")

    def logs(ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = [model.hidden(torch.tensor([ids]).to(model.device))[0].float() for model in (job.model, other)]
        heads = job.model.head.float().t(), other.head.float().t()
        ours, theirs = (torch.log_softmax((h @ head).cpu(), -1) for h, head in zip(hidden, heads, strict=True))
        return ours, theirs

    return _mean_divergence(job, sample.rows, logs)


def _mean_divergence(
    job: RunContext, rows: Sequence[Row], logs: Callable[[list[int]], tuple[torch.Tensor, torch.Tensor]]
) -> float:
    """Mean divergence a token, from the log probabilities of the run's next tokens and of the other model's."""
    import torch

    total, count = 0.0, 0
    for i, row in enumerate(rows):
        progress("comparing distributions", i, len(rows))
        ids = job.template.render(row.messages, row.tools).ids[:KL_TOKENS]
        with torch.inference_mode():
            ours, theirs = logs(ids)
            total += float((ours.exp() * (ours - theirs)).sum())
        count += len(ids)
    progress("comparing distributions", len(rows), len(rows))
    return total / max(count, 1)


def _cost(target: GgufTarget, rows: Sequence[Row]) -> ArtifactCost:
    prompts = [target.template.prompt_ids(row.prompt, row.tools or ()) for row in rows[:SPEED_ROWS]]
    replies = [target.llama.generate(ids, SPEED_TOKENS, []) for ids in prompts]
    reading, total = sum(reply["first"] for reply in replies), sum(reply["total"] for reply in replies)
    tokens = sum(len(reply["ids"]) - 1 for reply in replies)
    return ArtifactCost(
        file_bytes=target.file.stat().st_size,
        peak_bytes=target.llama.peak_bytes,
        threads=target.llama.threads,
        prompt_tokens_per_second=round(1000 * sum(map(len, prompts)) / reading, 1),
        answer_tokens_per_second=round(1000 * tokens / (total - reading), 1),
    )


def _words(name: str, artifact: ScoredAnswers, run: ScoredAnswers, pairs: Sequence[Comparison]) -> list[str]:
    primary = artifact.primary
    after, before = artifact.metrics[primary].value, run.metrics[primary].value
    text = f"On {counted(artifact.n, 'test row')} `{name}` has {primary} {after:.4g}, the run itself {before:.4g}"
    difference = difference_in_words(name, pairs, primary)
    return [f"{text}: {difference}." if difference else f"{text}."]


def acceptable(evaluation: EvaluationExcerpt, most: float) -> bool:
    """Whether an artifact's deciding metric lost at most `most`, and is not significantly worse."""
    for pair in evaluation.comparisons:
        if pair.metric == evaluation.primary:
            loss = pair.delta if lower_is_better(pair.metric) else -pair.delta
            return loss <= most and (pair.verdict != "worse" or loss <= 0)
    return False
