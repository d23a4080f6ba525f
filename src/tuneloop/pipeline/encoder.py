"""The train stage of an encoder: a head on its vectors, with probabilities that say how often it is right.

The encoder stays as it is: its vectors of the training rows are computed once, and logistic regression reads labels
from them. The temperature, by which the head's scores are divided, is chosen on rows that the head was not fitted on
(Guo et al. 2017, arXiv 1706.04599).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, sha256_file, write_json, write_text
from tuneloop.core.ui import busy, say
from tuneloop.core.units import counted, verb
from tuneloop.data import task_spec
from tuneloop.evaluation.alternatives import fit_labels, fit_labels_apart
from tuneloop.evaluation.metrics import NO_LABELS, label_lists
from tuneloop.models import Encoder, Head, load_encoder, text_of_turns
from tuneloop.models.files import resolve
from tuneloop.models.methods import OWN
from tuneloop.pipeline.context import RunContext
from tuneloop.records.encoder import ENCODER_FOLDER, HEAD, EncoderManifest
from tuneloop.records.record import done_record, read_record, write_record
from tuneloop.records.rows import Dataset, Row
from tuneloop.records.run import RUN, RunManifest

if TYPE_CHECKING:
    import numpy as np

    from tuneloop.recipe import Recipe

METHOD = "frozen encoder, trained head"
LEAST_ROWS = (
    30  # validation rows that a temperature is chosen on; with fewer it is chosen on folds of the training rows
)
FOLDS = 5
BOUNDS = (0.02, 50.0)  # of the temperature
ALWAYS = 30.0  # score of a label that all rows have
CUT = 0.01  # share of rows whose end the encoder does not read, from which on it is worth a warning


def refuse_settings(recipe: Recipe) -> None:
    """Refuse what an encoder can't do, before anything is prepared.

    Raises:
        UserError: a limit on time, or a setting for models that write.
    """
    config = recipe.evaluate
    writing = {
        "general": config.general, "memorisation": config.memorisation,
        "consistency": config.consistency, "deterministic": config.deterministic,
    }  # fmt: skip
    if named := next((name for name, value in writing.items() if value), ""):
        message = f"{recipe.model} is an encoder: it chooses labels and writes no texts"
        raise UserError(message, where=f"evaluate.{named}", next_step="leave that setting out")
    if recipe.max_minutes:
        message = "max_minutes divides a run's time between prompts and training, and an encoder has neither"
        raise UserError(message, where="max_minutes", next_step="leave it out: training takes seconds to minutes")


def refuse_task(dataset: Dataset, model: str) -> None:
    """Refuse a data set without labels."""
    if dataset.task != "classification":
        message = f"{model} is an encoder, which chooses labels, and these rows have texts as answers"
        step = "name a model that writes, such as model=smollm2-135m, or the column: data.task=classification"
        raise UserError(message, where=dataset.path, next_step=step)


@dataclass(frozen=True)
class LabelledTexts:
    """What a head is fitted on: vectors (rows, width), with the labels of each row."""

    vectors: np.ndarray[Any, Any]
    labels: Sequence[str]
    lists: Sequence[frozenset[str]] | None  # where rows have several labels, else None

    def some(self, places: Sequence[int]) -> LabelledTexts:
        """Those at some places."""
        lists = None if self.lists is None else [self.lists[i] for i in places]
        return LabelledTexts(self.vectors[list(places)], [self.labels[i] for i in places], lists)


def head_stage(job: RunContext, dataset: Dataset) -> RunManifest:
    """Fit the head, or find it fitted.

    Raises:
        UserError: the rows have no labels, fewer than two, or all of them are test rows.
    """
    key = head_key(job, dataset)
    if before := done_record(RunManifest, job.folder, key):
        say("train     already done")
        return before
    began = time.monotonic()
    shutil.rmtree(job.folder / ENCODER_FOLDER, ignore_errors=True)
    test = {_plain(row) for row in dataset.test}
    train = [row for row in dataset.train if row.label is not None and _plain(row) not in test]
    validation = [row for row in dataset.val if row.label is not None and _plain(row) not in test]
    left_out = sum(row.label is not None for row in dataset.train) - len(train)
    if left_out:
        was = verb(left_out, "has the text of a test row and is", "have the texts of test rows and are")
        say(f"train     warn: {counted(left_out, 'training row')} {was} not used")
    refuse_few_labels(train, dataset)
    encoder = load_encoder(resolve(job.recipe.model))
    fit, held = _embedded(encoder, train, "training"), _embedded(encoder, validation, "validation")
    with busy("fitting the head"):
        manifest, head = fitted(job, encoder, fit, held)
    write_head(job, manifest, head, dataset)
    seconds = time.monotonic() - began
    run = RunManifest(
        id=job.folder.resolve().name,
        key=key,
        method=METHOD,
        model=job.recipe.model,
        model_fingerprint=job.fingerprint,
        dataset=dataset.id,
        rows=len(train),
        rows_seen=len(train),
        seen=f"all {counted(len(train), 'training row')}",
        trainable_parameters=head.weight.size + head.bias.size,
        seconds=round(seconds, 3),
        adapter_hash=read_record(EncoderManifest, job.folder / ENCODER_FOLDER).hash,
        usd=seconds / 3600 * job.recipe.plan.usd_per_hour,
        tags=job.recipe.track.tags,
        weights=ENCODER_FOLDER,
    )
    write_record(job.folder / RUN, run)
    labels, rows = counted(len(manifest.labels), "label"), counted(len(train), "row")
    say(f"train     a head for {labels} on {job.recipe.model}'s vectors of {rows}: {seconds:.1f} s")
    say(f"          temperature {manifest.temperature:.2f}, {manifest.calibrated_on}")
    return run


def head_key(job: RunContext, dataset: Dataset) -> str:
    """Hash of all that a head depends on."""
    return content_hash([job.fingerprint, job.recipe.seed, dataset.manifest.hash, METHOD, 1])


def refuse_few_labels(rows: Sequence[Row], dataset: Dataset) -> None:
    """Refuse rows that show fewer than two labels."""
    labels = {row.label for row in rows}
    if len(labels) < 2:
        message = f"A head needs rows of two labels at least, and the training rows show {len(labels)}"
        step = "check the label column, and that the training rows are not those of the test"
        raise UserError(message, where=dataset.path, next_step=step)


def _plain(row: Row) -> str:
    """A row's text as it is compared with those of test rows."""
    return " ".join(text_of_turns(row.prompt).casefold().split())


def _embedded(encoder: Encoder, rows: Sequence[Row], name: str) -> LabelledTexts:
    with busy(f"embedding {name} rows"):
        ids = encoder.ids([text_of_turns(row.prompt) for row in rows])
        cut = sum(len(token_ids) >= encoder.max_tokens for token_ids in ids)
        if cut > CUT * max(len(rows), 1):
            rest = f"the end of {counted(cut, f'{name} row')} is not read"
            say(f"train     warn: the encoder reads {encoder.max_tokens} tokens of a text: {rest}")
        return LabelledTexts(encoder.embed_ids(ids), [str(row.label) for row in rows], label_lists(rows))


def fitted(job: RunContext, encoder: Encoder, fit: LabelledTexts, held: LabelledTexts) -> tuple[EncoderManifest, Head]:
    """A head fitted on some texts, its temperature chosen on held-out ones, or on folds where these are few."""
    labels, head = fit_head(fit)
    several = fit.lists is not None
    manifest = EncoderManifest(
        base=job.recipe.model,
        fingerprint=job.fingerprint,
        kind="labels" if several else "label",
        labels=labels,
        empty=NO_LABELS if several and any(not row_labels for row_labels in fit.lists or ()) else "",
        pooling=encoder.pooling,
        max_tokens=encoder.max_tokens,
        normalised=encoder.normalised,
    )
    known = [i for i, label in enumerate(held.labels) if several or label in labels]
    if len(known) >= LEAST_ROWS:
        scores, texts = head.scores(held.vectors[known]), held.some(known)
        where = f"chosen on {counted(len(known), 'validation row')}"
    else:
        scores, texts = _scores_of_folds(fit, labels)
        where = f"chosen on folds of {counted(len(texts.labels), 'training row')}"
    if not len(texts.labels):
        return manifest.model_copy(update={"calibrated_on": "not calibrated: no label has two rows"}), head
    temperature = best_temperature(manifest, scores, texts)
    return manifest.model_copy(update={"temperature": temperature, "calibrated_on": where}), head


def fit_head(texts: LabelledTexts) -> tuple[list[str], Head]:
    """A head's labels, in the order of its rows, and its weights: logistic regression, for each label on its own where
    rows have several."""
    import numpy as np

    if texts.lists is not None:
        models, width = fit_labels_apart(texts.vectors, texts.lists), texts.vectors.shape[1]
        rows = [np.zeros(width) if model is None else model.coef_[0] for model in models.values()]
        biases = [ALWAYS if model is None else model.intercept_[0] for model in models.values()]
        return list(models), Head(np.array(rows, np.float64), np.array(biases, np.float64))
    model = fit_labels(texts.vectors, texts.labels)
    weight, bias = np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64)
    if len(model.classes_) == 2:  # scikit-learn keeps the difference of the two labels
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    return [str(name) for name in model.classes_], Head(weight, bias)


def _scores_of_folds(texts: LabelledTexts, labels: Sequence[str]) -> tuple[np.ndarray[Any, Any], LabelledTexts]:
    """Scores of rows (rows, labels) by heads that were fitted without them, and these rows.

    The rows of each label are dealt over the folds. A row whose label no other fold has is left out.
    """
    import numpy as np

    order = sorted(range(len(texts.labels)), key=lambda i: texts.labels[i])
    index = {label: i for i, label in enumerate(labels)}
    scores, places = list[np.ndarray[Any, Any]](), list[int]()
    for fold in range(FOLDS):
        inside, outside = order[fold::FOLDS], [i for n, i in enumerate(order) if n % FOLDS != fold]
        part = texts.some(outside)
        if not inside or len(set(part.labels)) < 2:
            continue
        names, head = fit_head(part)
        columns = [index[name] for name in names]
        inside = [i for i in inside if texts.lists is not None or texts.labels[i] in names]
        values = np.full((len(inside), len(labels)), -1e4)
        values[:, columns] = head.scores(texts.vectors[inside])
        scores.append(values)
        places += inside
    table = np.concatenate(scores) if scores else np.empty((0, len(labels)))
    return table, texts.some(places)


def best_temperature(manifest: EncoderManifest, scores: np.ndarray[Any, Any], texts: LabelledTexts) -> float:
    """The temperature that gives the rows' labels the highest likelihood.

    Args:
        scores: of the labels (rows, labels), by heads that were not fitted on these rows.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar

    if texts.lists is None:
        index = {label: i for i, label in enumerate(manifest.labels)}
        chosen = np.array([index[label] for label in texts.labels])
    else:
        holds = np.array([[label in row_labels for label in manifest.labels] for row_labels in texts.lists])

    def loss(log_temperature: float) -> float:
        at = manifest.model_copy(update={"temperature": float(np.exp(log_temperature))})
        if texts.lists is None:
            return -float(at.log_probabilities(scores)[np.arange(len(chosen)), chosen].mean())
        return -float(np.where(holds, at.log_probabilities(scores), at.log_probabilities(-scores)).mean())

    result = minimize_scalar(loss, bounds=tuple(np.log(BOUNDS)), method="bounded", options={"xatol": 1e-4})
    return round(float(np.exp(result.x)), 6)


def write_head(job: RunContext, manifest: EncoderManifest, head: Head, dataset: Dataset) -> None:
    """Write `encoder/`: the head, its card and its task, and last its manifest."""
    folder = job.folder / ENCODER_FOLDER
    folder.mkdir(parents=True)
    head.save(folder / HEAD)
    depends = manifest.model_dump(mode="json", exclude={"hash", "base", "calibrated_on"})
    manifest = manifest.model_copy(update={"hash": content_hash([sha256_file(folder / HEAD), depends])})
    answer: Literal["choice", "generate"] = "choice" if manifest.kind == "label" else "generate"
    task = task_spec(dataset, answer=answer, max_new_tokens=256, chat_template="")
    write_json(
        folder / OWN, {"version": 1, "base_fingerprint": manifest.fingerprint, "hash": manifest.hash, "task": task}
    )
    write_text(folder / "README.md", card(manifest, dataset))
    write_record(folder / manifest.file, manifest)


def card(manifest: EncoderManifest, dataset: Dataset) -> str:
    """The model card of a head."""
    several = "any number of labels" if manifest.kind == "labels" else "one label"
    shown = "\n".join(f"- {label}" for label in manifest.labels[:50])
    more = f"\n- and {len(manifest.labels) - 50} more" if len(manifest.labels) > 50 else ""
    return f"""---
pipeline_tag: text-classification
base_model: {manifest.base}
---

# A head for {manifest.base}

It gives a text {several}, from the vectors of {manifest.base}, which was not changed. Trained on {dataset.id}.

- `{HEAD}`: weight (labels, width) and bias (labels,); scores are divided by the temperature {manifest.temperature:g}
  ({manifest.calibrated_on}).
- `encoder.json`: labels, encoder, pooling, hash {manifest.hash}.

## Labels

{shown}{more}
"""
