"""Rows whose answers are known from the evaluation, for the proof that an engine applies what it serves."""

from __future__ import annotations

from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_jsonl
from tuneloop.data.task import TaskSpec
from tuneloop.inference.canary import CanaryRow
from tuneloop.inference.request import Request
from tuneloop.pipeline.context import RunContext, dataset_of, load_run_recipe
from tuneloop.records.artifact import ARTIFACT
from tuneloop.records.evaluation import EVALUATION, EvaluationManifest
from tuneloop.records.record import read_record
from tuneloop.registry.registered import evaluation_of_artifact, find_run, local_name
from tuneloop.registry.verify import read_artifact

ROWS = 5  # of each adapter: some seconds
TOKENS = 16  # of an answer: an adapter that is not applied shows in the first words


def canaries_of(
    source: str, adapter: str, task: TaskSpec | None, rows: int = ROWS, tokens: int = TOKENS
) -> list[CanaryRow]:  # fmt: skip
    """Rows of the evaluation of a run, an artifact or a registered version, those with the shortest prompts.

    A quantised artifact is held to its own evaluation, and to none where it was not measured. There are none where no
    evaluation or no data set is at hand.

    Args:
        adapter: hash by which the engine knows it.
        rows, tokens: at most so many, and so many tokens of each answer.
    """
    try:
        run, evaluated = _places(Path(local_name(source)))
        if read_record(EvaluationManifest, evaluated / EVALUATION).split != "test":
            return []
        rows_by_id = {row.id: row for row in dataset_of(RunContext(load_run_recipe(run, []), run), True, "").test}
        samples = read_jsonl(evaluated / "samples.jsonl")
    except (UserError, OSError):
        return []
    labels = tuple(task.labels or ()) if task is not None and task.answer == "choice" else ()
    samples = [each for each in samples if each.get("id") in rows_by_id and each.get("prediction")]
    pairs = [(rows_by_id[str(each["id"])], each) for each in samples]
    pairs.sort(key=lambda pair: sum(len(str(turn.get("content") or "")) for turn in pair[0].prompt))
    canaries = []
    for row, sample in pairs[:rows]:
        request = Request(row.prompt, row.tools or (), max_new_tokens=tokens, adapter=adapter, choices=labels)
        ids = tuple((sample.get("completion") or {}).get("token_ids") or ())
        canaries.append(CanaryRow(request, str(sample["prediction"]), ids))
    return canaries


def _places(folder: Path) -> tuple[Path, Path]:
    """The run of a run's folder, its adapter's or an artifact, and the folder of the evaluation that counts."""
    if (folder / ARTIFACT).is_file():
        manifest = read_artifact(folder)
        if manifest.format == "gguf":
            evaluated = evaluation_of_artifact(folder)
            return evaluated.parent.parent, evaluated
        if (run := find_run(manifest.run.id, manifest.run.key)) is not None:
            return run, run
        raise UserError("The artifact's run is not at hand", where=str(folder))
    run = folder if (folder / "run.json").is_file() else folder.parent
    return run, run
