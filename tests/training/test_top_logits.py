"""A teacher's likeliest tokens come back as they were written; a cut-short pass goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tuneloop.core.errors import UserError
from tuneloop.models.chat.template import Rendered
from tuneloop.records.distillation import TeacherLogits
from tuneloop.training.teachers import ROWS, TOKENS, TopStore, is_store, pack, row_key, top_of, unpack

ABOUT = TeacherLogits(teacher="big", teacher_key="k", vocabulary=500, top=8, temperature=1.0)
ONE, TWO = Rendered([1, 2, 3, 4], [0, 0, 1, 1]), Rendered([1, 2, 9], [0, 0, 1])


def packed(count: int, seed: int = 0, about: TeacherLogits = ABOUT) -> tuple[np.ndarray, torch.Tensor]:
    logits = torch.randn(count, about.vocabulary, generator=torch.Generator().manual_seed(seed)) * 4
    found = top_of(logits, about.top, about.temperature)
    return pack(*(match.numpy() for match in found)), logits


@pytest.mark.parametrize(("vocabulary", "top"), [(128256, 128), (49152, 128), (400, 64), (100, 99), (9, 1)])
def test_positions_come_back(vocabulary: int, top: int) -> None:
    about = ABOUT.model_copy(update={"vocabulary": vocabulary, "top": top})
    data, logits = packed(20, about=about)
    assert data.shape == (20,) and data.itemsize == 6 * top + 2
    ids, p, tail = unpack(data)
    probabilities = torch.softmax(logits.double(), -1)
    wanted = torch.from_numpy(ids)
    assert np.array_equal(np.sort(ids, 1), probabilities.topk(top, -1).indices.sort(-1).values.numpy())
    np.testing.assert_allclose(p, probabilities.gather(1, wanted), rtol=0.02)
    np.testing.assert_allclose(p.sum(1) + tail, 1, atol=1e-5)
    np.testing.assert_allclose(tail, 1 - probabilities.gather(1, wanted).sum(-1), rtol=0.01, atol=1e-4)


def test_a_certain_teacher_stays_certain() -> None:
    logits = torch.zeros(1, 500)
    logits[0, 7] = 80.0
    found = [item.numpy() for item in top_of(logits, 8, 1.0)]
    ids, p, tail = unpack(pack(*found))
    assert p[0, list(ids[0]).index(7)] == pytest.approx(1.0, abs=1e-6) and tail[0] < 1e-6


def test_a_pass_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    data, _ = packed(3)
    store = TopStore.create(tmp_path, ABOUT)
    store.add([ONE], data[:2])
    with (tmp_path / TOKENS).open("ab") as file:  # as a killed process leaves it
        file.write(b"half a position")
    with (tmp_path / ROWS).open("ab") as file:
        file.write(b'{"row": "to')
    again = TopStore.create(tmp_path, ABOUT)
    assert set(again.rows) == {row_key(ONE)}
    again.add([TWO], data[2:])
    found = TopStore.open(tmp_path).read([row_key(TWO), row_key(ONE)])
    ids, p, tail = unpack(data[[2, 0, 1]])
    assert np.array_equal(found.ids_NK, ids) and np.array_equal(found.p_NK, p) and np.array_equal(found.tail_N, tail)
    assert is_store(str(tmp_path)) and not is_store(str(tmp_path / "other"))


def test_a_row_is_known_by_its_tokens_and_by_which_are_learned() -> None:
    assert row_key(ONE) != row_key(Rendered(ONE.ids, [0, 1, 1, 1]))
    assert row_key(ONE) == row_key(Rendered(list(ONE.ids), [0, 0, 0.5, 1]))


def test_another_teacher_and_lost_positions_are_refused(tmp_path: Path) -> None:
    TopStore.create(tmp_path, ABOUT).add([ONE], packed(2)[0])
    with pytest.raises(UserError, match="another teacher"):
        TopStore.create(tmp_path, ABOUT.model_copy(update={"teacher_key": "other"}))
    (tmp_path / TOKENS).write_bytes(b"")
    with pytest.raises(UserError, match="shorter than it was"):
        TopStore.open(tmp_path)
