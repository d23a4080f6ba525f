"""`tuneloop distill`: a small model learns a larger one's answers, and is compared with itself taught by the rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.combine.distill.answers import DistilJob, reasons_of, taught_rows, teacher_answers
from tuneloop.combine.options import DistilOptions
from tuneloop.combine.retained_gain import Score, difference, kept_share, ratio
from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, read_json, write_bytes, write_json
from tuneloop.core.stats.tests import THAN, by_interval
from tuneloop.core.ui import say
from tuneloop.core.units import counted, span_words, usd_words
from tuneloop.data import load_dataset
from tuneloop.evaluation import sample_rows
from tuneloop.inference import Request
from tuneloop.models import Model, layers_of, skeleton
from tuneloop.models.files import resolve
from tuneloop.models.methods import WHOLE
from tuneloop.pipeline import RunContext, train_alone
from tuneloop.pipeline.answers import SystemAnswers, TaskTarget, open_with_task, prompt_turns, score
from tuneloop.recipe import Recipe, make_recipe
from tuneloop.records.distillation import DistillationRecord, DistilledFigures, ModelCost, PrunedStudent
from tuneloop.records.record import read_record, write_record
from tuneloop.records.rows import Row
from tuneloop.records.run import RunManifest
from tuneloop.registry import local_name
from tuneloop.release import open_tuned
from tuneloop.training import ProbabilityStore

if TYPE_CHECKING:
    from torch import Tensor

    from tuneloop.inference import Endpoint
    from tuneloop.records.merge import Share


SAMPLE = 24  # conversations that show which layers matter


def distil(
    names: tuple[str, str, str],
    out: Path,
    options: DistilOptions,
    settings: Sequence[str] = (),
    endpoint: Callable[[str], Endpoint] | None = None,
) -> DistillationRecord:
    """Let a teacher answer a data set's training prompts, train a student on that, and say whether it was worth it.

    Answers are written as they come: the same command continues where it was cut short, and requests nothing twice.

    Args:
        names: teacher (a run, an adapter, a model, a GGUF file or an endpoint's URL), student (a model; empty with
            `options.layers`: the teacher without some of its layers) and prepared data set: its test rows judge; its
            validation rows keep their own answers.
        out: the student's run.
        settings: `key=value`, of the student's recipe.
        endpoint: makes an endpoint from a URL.

    Raises:
        UserError: no such teacher or rows; no student, or one that is no smaller; too few usable answers.
    """
    teacher, student, dataset = names
    with closing(open_with_task(teacher, base=options.base, endpoint=endpoint)) as opened:
        return _distil(DistilJob(opened, load_dataset(dataset), out, options, settings), student)


def _distil(job: DistilJob, student: str) -> DistillationRecord:
    options, out = job.options, job.out
    _refuse_impossible(job, student)
    pruned = _pruned(job) if options.layers else None
    model = str(job.place / "student") if pruned else student
    if options.level == "logits":
        assert job.teacher.local is not None, "checked before"
        config, row = _recipe(job, model, job.dataset.path, out).train, job.dataset.train[0]
        key, top = job.teacher.identity, job.options.top
        job.store = ProbabilityStore.open(job.place, job.teacher.local, key, row, model, config, top)
    taught = taught_rows(job) if options.answers == "teacher" or options.prompts else job.dataset
    probabilities = ""
    if options.level != "text":
        probabilities = local_name(job.teacher.name)
        if job.store is not None and job.teacher.local is not None:
            job.store.complete(job.teacher.local, taught)
            probabilities = str(job.store.top.folder)
            job.store = None  # from here on, answers are only judged
        _forget_teacher(job)
    train_alone(_recipe(job, model, taught.path, out, probabilities), anyway=True)
    _forget_teacher(job)
    control = None if options.no_control else _train_control(job, model, len(taught.train))
    answers = {row.id: row.answer.strip() for row in job.dataset.train}
    same = [answers[row.id] == row.answer.strip() for row in taught.train if row.id in answers]
    fields: dict[str, Any] = {
        "teacher": job.teacher.name, "teacher_key": job.teacher.identity, "student": model, "pruned": pruned,
        "dataset": job.dataset.id, "asked": len(job.dataset.train) + len(job.unlabelled), "kept": len(taught.train),
        "dropped": dict(job.dropped), "agreement": sum(same) / len(same) if same else None,
        "unlabelled": len(job.unlabelled), "level": options.level, "answers": options.answers,
    }  # fmt: skip
    record = DistillationRecord(**fields, results=_measured(job, control))
    record = record.model_copy(update={"words": list(sentences(record))})
    write_record(out / DistillationRecord.file, record)
    for line in record.words:
        say(f"distill   {line}")
    return record


def _train_control(job: DistilJob, model: str, rows: int) -> Path:
    """Train the same student on the rows' own answers, in as many steps: on more passes where it has fewer than `rows`,
    and without the student's limit on minutes, in which a machine that is busier now would train it less."""
    say("control   the same student learns the rows' own answers")
    control = job.place / "control"
    recipe = _recipe(job, model, job.dataset.path, control)
    passes, own = recipe.train.epochs, max(len(job.dataset.train), 1)
    if recipe.train.max_minutes:
        passes = max(round(read_record(RunManifest, job.out).epochs * rows / own, 3), 1 / own)
    elif job.unlabelled:
        passes = round(passes * max(rows / own, 1.0), 2)
    train = recipe.train.model_copy(update={"epochs": passes, "max_minutes": None})
    train_alone(recipe.model_copy(update={"train": train}))
    return control


# --- the student -------------------------------------------------------------------------------


def _pruned(job: DistilJob) -> PrunedStudent:
    """The teacher without some layers, as a model's folder; used again where it was made already."""
    local, out = job.teacher.local, job.place / "student"
    assert local is not None, "checked before"
    record = job.place / "student.json"
    key = content_hash([job.teacher.identity, job.options.layers])
    if (out / "config.json").is_file() and record.is_file():
        earlier = read_json(record)
        if earlier.get("key") == key:
            return PrunedStudent.model_validate(earlier["pruned"])
    template = local.template
    texts = [template.render(row.messages, row.tools).ids for row in job.dataset.train[:SAMPLE]]
    pruned = layers_to_drop(local.model, texts, job.options.layers)
    template.save(out)
    weights = open_tuned(local.base, local.trained or resolve(local.base))
    write_pruned(weights.config, weights.files, weights.tensor, pruned, out)
    write_json(record, {"version": 1, "key": key, "pruned": pruned})
    first, last = pruned.dropped
    say(f"student   layers {first} to {last} of {pruned.of} are left out: {pruned.layers} are left")
    return pruned


def _refuse_impossible(job: DistilJob, student: str) -> None:
    """Refuse what can't be distilled, before the teacher costs anything."""
    options, where = job.options, "tuneloop distill"
    for name, value, choices in (
        ("level", options.level, options.LEVELS),
        ("answers", options.answers, options.ANSWERS),
        ("pick", options.pick, options.PICKS),
    ):
        if value not in choices:
            raise UserError(f"--{name} {value} is not known", where=where, next_step=f"choose {', '.join(choices)}")
    if bool(student) == bool(options.layers):
        raise UserError("Which student?", where=where, next_step="name a smaller model, or give --layers N, not both")
    if options.level == "text" and options.answers == "own" and not options.prompts:
        step = "add --level logits, or --prompts FILE for the teacher to answer, or leave --answers out"
        raise UserError("The rows' own text alone is what the control learns", where=where, next_step=step)
    if options.best_of > 1 and job.labels:
        message = "Labels are scored: there is one answer to each row"
        raise UserError(message, where=where, next_step="leave --best-of out")
    _ = job.gate, job.unlabelled  # files that are wrong are reported before the teacher costs anything
    if (options.pick == "judge") != bool(options.judge):
        raise UserError("--pick judge and --judge MODEL go together", where=where, next_step="give both or none")
    name = job.teacher.name
    if job.teacher.local is None and options.layers:
        raise UserError("Layers of a server's model can't be had", where=name, next_step="name a student model")
    if job.teacher.local is None and options.level != "text":
        step = "leave --level out: the student learns the teacher's answers"
        raise UserError("Only a model that tuneloop loads gives its probabilities", where=name, next_step=step)
    if student and job.teacher.local is not None:
        small, large = (
            sum(parameter.numel() for parameter in skeleton(resolve(name)).parameters()) / 1e6
            for name in (student, job.teacher.local.base)
        )
        if small > large:
            message = f"The student has {small:,.0f}M parameters and its teacher {large:,.0f}M"
            raise UserError(message, where=student, next_step="name a smaller model, or give --layers N")


def _forget_teacher(job: DistilJob) -> None:
    """Free the teacher's memory; where it is needed again, it is loaded again."""
    if job.options.level == "live":
        from tuneloop.training import teacher_model

        teacher_model.cache_clear()
    job.teacher.close()


def _recipe(job: DistilJob, model: str, rows: str, out: Path, teacher: str = "") -> Recipe:
    """The student's recipe. A model that lost layers is trained as a whole unless the settings say otherwise.

    Args:
        teacher: whose probabilities it learns; empty: the rows alone.
    """
    train: dict[str, Any] = {"method": WHOLE} if job.options.layers else {}
    if teacher:
        train |= {"loss": "distil", "teacher": teacher}
    values: dict[str, Any] = {"name": "student", "track": {"report_to": "none"}, "train": train}
    recipe = make_recipe(values, job.settings)
    data = recipe.data.model_copy(update={"sources": [str(rows)]})
    return recipe.model_copy(update={"model": model, "output_dir": str(out), "data": data})


# --- the measurement ---------------------------------------------------------------------------


def _measured(job: DistilJob, control: Path | None) -> DistilledFigures | None:
    """Teacher, control and student on the same test rows."""
    rows = sample_rows(job.dataset.test, job.options.rows, seed=0, stratum=job.dataset.stratum)
    if not rows:
        say("distill   no test rows: nothing is measured")
        return None
    teacher = _score(job, rows, job.teacher)
    student = _score(job, rows, open_with_task(str(job.out)))
    values: dict[str, Any] = {"kept": ratio(teacher.score, student.score)}
    if control:
        rival = _score(job, rows, open_with_task(str(control))).score
        values["control"] = abs(rival.value)
        values["closed"] = kept_share(rival, teacher.score, student.score)
        values["over_control"] = difference(rival, student.score)
    return DistilledFigures(
        metric=teacher.metric,
        n=len(rows),
        teacher=abs(teacher.score.value),
        student=abs(student.score.value),
        teacher_cost=teacher.cost,
        student_cost=student.cost,
        **values,
    )


@dataclass(frozen=True)
class _Scored:
    metric: str  # that decides
    score: Score
    cost: ModelCost  # of its answers


def _score(job: DistilJob, rows: Sequence[Row], target: TaskTarget) -> _Scored:
    """A model's answers to rows, judged."""
    limit = target.task.max_new_tokens if target.task else 256
    shown = job.examples if target is job.teacher else []
    turns = [prompt_turns(row, examples=shown) if shown else row.prompt for row in rows]
    requests = [
        Request(messages=messages, tools=row.tools, max_new_tokens=limit, id=row.id)
        for row, messages in zip(rows, turns, strict=True)
    ]
    target.target.load()
    local = target.local
    parameters = sum(weight.numel() for weight in local.model.net.parameters()) if local else None
    began = time.monotonic()
    answers = list(teacher_answers(replace(job, teacher=target), requests))
    seconds = time.monotonic() - began
    target.close()  # three models need not be in memory together
    recipe = make_recipe({"name": "student"}, job.settings)
    scored = score(RunContext(recipe, job.out), replace(job.dataset, test=rows), rows, SystemAnswers(answers, 0.0))
    price = recipe.plan.usd_per_hour
    endpoint = target.target.endpoint
    usd = endpoint.usage(answers)["usd"] if endpoint else price * seconds / 3600
    cost = ModelCost(
        parameters=parameters,
        rows_per_second=len(rows) / max(seconds, 1e-9),
        usd_per_1000=1000 * usd / len(rows) or None,
        usd_per_hour=None if endpoint else price,
    )
    return _Scored(scored.primary, Score.of(scored, scored.primary), cost)


def sentences(record: DistillationRecord) -> Sequence[str]:
    """What came of it."""
    reasons = reasons_of(record.dropped)
    whose = "answers of the teacher" if record.answers == "teacher" else "rows' own answers"
    if record.unlabelled and record.answers == "own":
        whose = f"own answers and the teacher's to {counted(record.unlabelled, 'further request')}"
    with_ = {"logits": ", with its stored probabilities", "live": ", with its probabilities"}.get(record.level, "")
    lines = [f"{record.kept} of {record.asked} {whose} were trained on{with_}" + (f" ({reasons})" if reasons else "")]
    result = record.results
    if result is None:
        return lines
    scores = f"teacher {result.teacher:.3f}, student {result.student:.3f}"
    if result.control is not None:
        scores += f", control {result.control:.3f}"
    lines.append(f"{result.metric} on {counted(result.n, 'test row')}: {scores}")
    if result.kept is not None:
        lines.append(f"The student keeps {_share(result.kept)} of the teacher")
    if delta := result.over_control:
        control = f"{THAN[by_interval(delta.low, delta.high)]} the same model trained on the rows' own answers"
        lines.append(f"The student is {control}: {delta.in_words()}")
        no_gap = "The teacher is not shown to be better than that model, so no gap can be measured"
        lines.append(f"It closes {_share(result.closed)} of the gap between the two" if result.closed else no_gap)
    if result.teacher_cost and result.student_cost:
        lines.append(_cost_words(result.teacher_cost, result.student_cost))
    return lines


def _share(share: Share) -> str:
    """A share with its interval; a bound of ten times and more is not reported."""
    low, high = (f"{bound:.0%}" if abs(bound) < 10 else "no bound" for bound in (share.low, share.high))
    return f"{share.value:.0%} [{low}, {high}]"


def _cost_words(teacher: ModelCost, student: ModelCost) -> str:
    sizes = ""
    if teacher.parameters and student.parameters:
        sizes = f"has {student.parameters / 1e6:,.0f}M parameters instead of {teacher.parameters / 1e6:,.0f}M, and "
    times = student.rows_per_second / teacher.rows_per_second
    summary = f"It {sizes}answers {times:.1f} times as many rows a second"
    if student.usd_per_1000 and teacher.usd_per_1000:
        price, before = usd_words(student.usd_per_1000, 2), usd_words(teacher.usd_per_1000, 2)
        hour = usd_words(student.usd_per_hour or 0.0)
        return f"{summary}: 1,000 answers cost {price} instead of {before}, this machine at {hour} an hour"
    span, before = (span_words(1 / cost.rows_per_second) for cost in (student, teacher))
    return f"{summary}: {span} an answer instead of {before}"


def layers_to_drop(model: Model, texts: Sequence[Sequence[int]], layers: int) -> PrunedStudent:
    """Which consecutive layers to leave out so that `layers` are left.

    Those before and after which the states of the last token differ least in angle (Gromov et al. 2024, arXiv
    2403.17887, equations 6 and 7). The first and the last layer stay.

    `texts`: token ids of some conversations. Raises UserError: more layers than the model has, or fewer than two.
    """
    import torch
    from torch.nn.functional import cosine_similarity

    modules = layers_of(model.net)
    count = len(modules) - layers
    if layers < 2 or count < 1:
        message = f"A student of {layers} layers can't be made of a model of {len(modules)}"
        raise UserError(message, where=f"--layers {layers}", next_step=f"choose 2 to {len(modules) - 1}")
    before: list[Tensor] = []

    def watch(_: Any, inputs: Any) -> None:
        before.append(inputs[0][0, -1].float())

    hooks = [module.register_forward_pre_hook(watch) for module in modules]
    total = torch.zeros(len(modules) - count - 1)
    try:
        with torch.inference_mode():
            for ids in texts:
                before.clear()
                model.hidden(torch.tensor([list(ids)], device=model.device))
                states = torch.stack(before)
                near = cosine_similarity(states[1 : 1 + len(total)], states[1 + count : 1 + count + len(total)], dim=-1)
                total += near.clamp(-1, 1).arccos().cpu() / torch.pi
    finally:
        for hook in hooks:
            hook.remove()
    first = 1 + int(total.argmin())
    distance = float(total.min() / max(len(texts), 1))
    return PrunedStudent(layers=layers, of=len(modules), dropped=(first, first + count - 1), distance=distance)


def write_pruned(
    config: Mapping[str, Any], names: Iterable[str], tensor: Callable[[str], Tensor], pruned: PrunedStudent, out: Path
) -> None:
    """Write a model without some of its layers into a folder that has its tokenizer; `config.json` comes last.

    `config`: the model's `config.json`. `names`: of its tensors; `tensor` gives one.
    """
    from safetensors.torch import save

    first, last = pruned.dropped
    count = last - first + 1
    state: dict[str, Tensor] = {}
    dtype = None
    # The embedding first: its dtype counts, and an adapted weight comes in fp32.
    for name in sorted(names, key=lambda name: "embed" not in name):
        head, mark, rest = name.partition(".layers.")
        number, _, end = rest.partition(".")
        target = name
        if mark and number.isdigit():
            if first <= int(number) <= last:
                continue
            target = f"{head}.layers.{int(number) - count * (int(number) > last)}.{end}"
        value = tensor(name)
        dtype = dtype or value.dtype
        state[target] = value.to(dtype).contiguous()
    write_bytes(out / "model.safetensors", save(state, metadata={"format": "pt"}))
    settings = dict(config) | {"num_hidden_layers": pruned.layers}
    if isinstance(kinds := config.get("layer_types"), list):
        settings["layer_types"] = [*kinds[:first], *kinds[last + 1 :]]
    write_json(out / "config.json", settings)
