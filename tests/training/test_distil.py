"""A student learns a teacher's probabilities: stored, live, or of its own answers; the loss is that of whole logits; runs resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from train_helpers import changed, make_rows

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_jsonl
from tuneloop.models.chat.template import Rendered
from tuneloop.models.load import Model, load_model
from tuneloop.models.trained import load_trained
from tuneloop.records.distillation import TeacherLogits
from tuneloop.records.rows import Row
from tuneloop.training import distil as module
from tuneloop.training.config import TrainConfig
from tuneloop.training.distil import store_probabilities
from tuneloop.training.loop import TrainingJob, train
from tuneloop.training.rows import Taught, last_answer, training_rows
from tuneloop.training.step import batch_loss
from tuneloop.training.teachers import TopStore, row_key

HARD = 0.25


@pytest.fixture
def teacher(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNELOOP_DTYPE", "float32")
    module.teacher_model.cache_clear()
    module.stored_by.cache_clear()
    return make_run("teacher")


def settings(teacher: Path | str, **more: Any) -> TrainConfig:
    return changed(loss="distil", teacher=str(teacher), hard_weight=HARD, **more)


def live(model: Model, count: int = 5) -> list[Taught]:
    return [Taught(row.ids, row.mask) for row in make_rows(model.template, count)]


def logits(model: Model, row: Rendered) -> torch.Tensor:
    with torch.no_grad():
        return (model.hidden(torch.tensor([row.ids]))[0] @ model.head.t()).double()[:-1]


def taught_by(folder: Path, base: Path) -> Model:
    model = load_model(str(base), dtype="float32")
    load_trained(model, folder / "adapter")
    return model


def expected(student: Model, teacher: Model, rows: list[Any], temperature: float) -> float:
    """Forward divergence and cross entropy by whole logits, a row at a time."""
    total = 0.0
    for row in rows:
        learned = torch.tensor(row.mask[1:]) > 0
        own, theirs = logits(student, row)[learned], logits(teacher, row)[learned]
        log_p, log_q = (F.log_softmax(item / temperature, -1) for item in (theirs, own))
        soft = temperature**2 * (log_p.exp() * (log_p - log_q)).sum()
        hard = F.cross_entropy(own, torch.tensor(row.ids[1:])[learned], reduction="sum")
        total += float((1 - HARD) * soft + HARD * hard)
    return total


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_that_of_whole_logits(
    teacher: Path, tiny_llama: Path, tiny_model: Model, temperature: float
) -> None:
    rows, config = live(tiny_model), settings(teacher, teacher_temperature=temperature)
    wanted = expected(tiny_model, taught_by(teacher, tiny_llama), rows, temperature)
    assert batch_loss(tiny_model, rows, 1.0, config).item() == pytest.approx(wanted, rel=1e-4)


def store(teacher: Path, model: Model, base: Path, folder: Path, rows: list[Rendered], top: int) -> list[Taught]:
    about = TeacherLogits(teacher=str(teacher), teacher_key="k", vocabulary=len(model.head), top=top, temperature=1.0)
    store_probabilities(taught_by(teacher, base), rows, TopStore.create(folder, about))
    return [Taught(row.ids, row.mask, row_key(row)) for row in rows]


def test_stored_probabilities_give_the_loss_and_gradient_of_a_live_teacher(
    teacher: Path, tiny_llama: Path, tiny_model: Model, tmp_path: Path
) -> None:
    rows = store(teacher, tiny_model, tiny_llama, tmp_path / "s", make_rows(tiny_model.template, 5), 4000)
    weight = tiny_model.net.get_parameter("model.layers.0.self_attn.q_proj.weight").requires_grad_()
    found = []
    for given, name in ((live(tiny_model), teacher), (rows, tmp_path / "s")):
        loss = batch_loss(tiny_model, given, 1.0, settings(name))
        (gradient,) = torch.autograd.grad(loss, weight)
        found.append((loss.item(), gradient))
    assert found[1][0] == pytest.approx(found[0][0], rel=5e-3)
    assert (
        float((found[0][1] - found[1][1]).norm() / found[0][1].norm()) < 0.04
    )  # logits of random weights lie far apart: coarse steps


def test_rows_are_stored_once(
    teacher: Path, tiny_llama: Path, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(tiny_model.template, 6)
    store(teacher, tiny_model, tiny_llama, tmp_path / "s", rows[:4], 8)
    read: list[int] = []
    plain = module.supervised_states
    monkeypatch.setattr(module, "supervised_states", lambda model, some: read.append(len(some)) or plain(model, some))
    store(teacher, tiny_model, tiny_llama, tmp_path / "s", rows, 8)
    assert sum(read) == 2


def distilled(base: Path, out: Path, config: TrainConfig, rows: Any, **more: Any) -> list[Any]:
    model = load_model(str(base), dtype="float32")
    train(model, rows, rows[:4], config, out, job=TrainingJob(data_id="d"), **more)
    return [(line["step"], line.get("loss"), line.get("val_loss")) for line in read_jsonl(out / "metrics.jsonl")]


@pytest.mark.parametrize("on_policy", [0.0, 0.7])
def test_a_run_comes_nearer_to_its_teacher_and_resumes_bit_for_bit(
    teacher: Path, tiny_llama: Path, tiny_model: Model, tmp_path: Path, on_policy: float
) -> None:
    config = settings(teacher, on_policy=on_policy, divergence="jensen-shannon", evaluations=1, epochs=2)
    rows = live(tiny_model, 8)
    whole = distilled(tiny_llama, tmp_path / "whole", config, rows)
    assert whole[-1][2] < whole[0][2]
    lines = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    assert {"divergence", "hard_loss"} <= set(lines[1]) and "val_divergence" in lines[0]

    class Stop(Exception):
        pass

    def log(record: dict[str, Any]) -> None:
        if record["step"] >= 2 and "loss" in record:
            raise Stop

    often = config.model_copy(update={"checkpoint_seconds": 0.0})
    with pytest.raises(Stop):
        distilled(tiny_llama, tmp_path / "halved", often, rows, log=log)
    assert distilled(tiny_llama, tmp_path / "halved", often, rows) == whole


def test_answers_of_the_student_count_as_much_as_the_rows_own(teacher: Path, tiny_model: Model) -> None:
    rows = live(tiny_model)
    torch.manual_seed(3)
    own = module._with_own_answers(tiny_model, rows, 1.0)
    torch.manual_seed(3)
    assert own == module._with_own_answers(tiny_model, rows, 1.0)
    for row, written in zip(rows, own, strict=True):
        begin, _ = last_answer(row)
        assert written.ids[:begin] == row.ids[:begin] and written.ids != row.ids
        assert sum(written.mask[1:]) == pytest.approx(sum(row.mask[1:])) and not any(written.mask[:begin])


def row(text: str) -> Row:
    return Row("1", [{"role": "user", "content": text}, {"role": "assistant", "content": "fine"}])


def test_what_can_not_be_taught_is_said(teacher: Path, tiny_llama: Path, tiny_model: Model, tmp_path: Path) -> None:
    template = tiny_model.template
    made = [template.render(row("hello").messages)]
    store(teacher, tiny_model, tiny_llama, tmp_path / "s", made, 8)
    assert training_rows([row("hello")], template, settings(tmp_path / "s")) == [
        Taught(made[0].ids, made[0].mask, row_key(made[0]))
    ]
    with pytest.raises(UserError, match="Of 1 of 2 rows no probabilities"):
        training_rows([row("hello"), row("new")], template, settings(tmp_path / "s"))
    with pytest.raises(UserError, match="answers that the student writes"):
        training_rows([row("hello")], template, settings(tmp_path / "s", on_policy=0.5))
    with pytest.raises(UserError, match="temperature of 1"):
        training_rows([row("hello")], template, settings(tmp_path / "s", teacher_temperature=2.0))
    other = replace(template, source="Hello " + template.source)
    with pytest.raises(UserError, match="different chat templates"):
        training_rows([row("hello")], other, settings(teacher))


def test_a_teacher_of_other_tokens_is_refused(teacher: Path, smollm2: Path) -> None:
    from tuneloop.models.load import load_tokenizer

    with pytest.raises(UserError, match="different tokens"):
        training_rows([row("hello")], load_tokenizer(str(smollm2)), settings(teacher))


def test_loss_and_teacher_go_together() -> None:
    for wrong in ({"loss": "distil"}, {"teacher": "run"}):
        with pytest.raises(ValueError, match="go together"):
            TrainConfig.model_validate(wrong)


def test_a_teacher_of_other_tokens_teaches_by_sorted_probabilities(
    teacher: Path, tiny_llama: Path, fewer_tokens: Path, tmp_path: Path
) -> None:
    student = load_model(str(fewer_tokens), dtype="float32")
    said = [
        row("hello"),
        Row("2", [*row("what is it").messages[:1], {"role": "assistant", "content": "The weather is fine."}]),
    ]
    config = settings(teacher, divergence="universal", teacher_temperature=2.0)
    rows: Any = training_rows(said, student.template, config)
    learned = [[weight > 0 for weight in made.mask].count(True) for made in rows]
    theirs = [[weight > 0 for weight in made.theirs.mask].count(True) for made in rows]
    assert learned[1] > theirs[1] and -1 in rows[1].aligned and rows[1].aligned[-1] == theirs[1] - 1
    master, total = taught_by(teacher, tiny_llama), 0.0
    for made in rows:
        of_student = logits(student, made)[torch.tensor(made.mask[1:]) > 0]
        of_teacher = logits(master, made.theirs)[torch.tensor(made.theirs.mask[1:]) > 0]
        targets = torch.tensor(made.ids[1:])[torch.tensor(made.mask[1:]) > 0]
        total += HARD * float(F.cross_entropy(of_student, targets, reduction="sum"))
        for path, known in enumerate(made.aligned):
            if known >= 0:
                p, q = (torch.softmax(item / 2.0, -1).sort().values for item in (of_teacher[known], of_student[path]))
                total += (1 - HARD) * 4.0 * float((p - q).abs().sum())
    assert batch_loss(student, rows, 1.0, config).item() == pytest.approx(total, rel=1e-4)

    about = TeacherLogits(teacher=str(teacher), teacher_key="k", vocabulary=len(master.head), top=4000, temperature=2.0)
    with pytest.raises(UserError, match="stored for a student with the teacher's own tokens"):
        TopStore.create(tmp_path / "s", about)
        training_rows(said, student.template, settings(tmp_path / "s", divergence="universal"))
    master.template.save(tmp_path / "s")
    store_probabilities(master, [made.theirs for made in rows], TopStore.create(tmp_path / "s", about))
    module.stored_by.cache_clear()
    stored = settings(tmp_path / "s", divergence="universal", teacher_temperature=2.0)
    kept: Any = training_rows(said, student.template, stored)
    assert batch_loss(student, kept, 1.0, stored).item() == pytest.approx(total, rel=5e-3)
    with pytest.raises(UserError, match="can't score what the student writes"):
        training_rows(said, student.template, settings(teacher, divergence="universal", on_policy=0.5))
