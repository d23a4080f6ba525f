"""A teacher's probabilities are those of a pass over its answers, though they are taken while it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tuneloop.inference.local.target import LocalTarget
from tuneloop.inference.request import Request
from tuneloop.models.chat.template import Rendered
from tuneloop.records.distillation import TeacherLogits
from tuneloop.training.distil import store_probabilities
from tuneloop.training.probabilities import ProbabilityStore
from tuneloop.training.teachers import TopStore, row_key

ASKED = (
    "What is two plus two? Say the number only.",
    "Name a colour in one word.",
    "Is fire hot? Answer yes or no.",
    "Say hi.",
)


@pytest.mark.slow
def test_probabilities_taken_while_writing_are_those_of_a_pass(smollm2: Path, tmp_path: Path) -> None:
    teacher = LocalTarget(str(smollm2), str(smollm2))
    template = teacher.model.template
    about = TeacherLogits(teacher="t", teacher_key="k", vocabulary=teacher.model.head.shape[0], top=32, temperature=2.0)
    store = ProbabilityStore(template, TopStore.create(tmp_path / "written", about))
    limits = (24, 24, 24, 2)  # the last answer is cut off
    requests = [
        Request(messages=[{"role": "user", "content": text}], max_new_tokens=limit, id=str(i))
        for i, (text, limit) in enumerate(zip(ASKED, limits, strict=True))
    ]
    answers = store.while_writing(teacher, requests)
    assert [answer.text for answer in answers] == [answer.text for answer in teacher.complete(requests)]
    ended = [i for i, answer in enumerate(answers) if answer.finish == "stop"]
    assert store.written == len(ended) == len(store.top.rows) > 1 and 3 not in ended
    rows: list[Rendered] = [
        template.render([*requests[i].messages, {"role": "assistant", "content": answers[i].text}]) for i in ended
    ]
    passed = TopStore.create(tmp_path / "passed", about)
    store_probabilities(teacher.model, rows, passed)
    for row in rows:
        ours, theirs = (np.zeros((sum(map(bool, row.mask)), about.vocabulary), np.float32) for _ in range(2))
        for whole, item in ((ours, store.top), (theirs, passed)):
            top = item.read([row_key(row)])
            np.put_along_axis(whole, top.ids_NK.numpy(), top.p_NK.numpy(), 1)
        assert np.abs(ours - theirs).max() < 0.03, "bf16 in another order of sums"
    before = store.top.count
    store.while_writing(teacher, requests)
    assert store.top.count == before, "nothing is stored twice"
