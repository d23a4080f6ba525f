"""Routers on made-up features: what they learn, what they refuse, and that a saved one decides alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from routed import outcomes, record, tasks

from tuneloop.combine.route.router import (
    NONE,
    Outcomes,
    Router,
    fit_router,
    load_router,
    log_loss,
    similarity,
    softened,
    unit,
)
from tuneloop.core.errors import UserError


@pytest.mark.parametrize("kind", ["centroid", "knn", "logreg"])
def test_each_kind_learns_which_task_a_row_belongs_to(kind: str, tmp_path: Path) -> None:
    router = fit_router(tasks(150, 0), tasks(60, 1), record(), [kind])  # type: ignore[list-item]
    test = tasks(300, 2)
    sure = router.quality(test.features)
    assert router.record.kind == kind and (sure.argmax(1) == test.quality.argmax(1)).mean() > 0.9
    assert sure.sum(1) == pytest.approx(1.0, abs=1e-5)
    router.save(tmp_path)
    again = load_router(tmp_path)
    assert (again.choose(test.features) == router.choose(test.features)).all() and again.record == router.record


def test_two_tasks_are_told_apart_as_well_as_three() -> None:
    part = [
        Outcomes(o.features[o.quality[:, 2] == 0], o.quality[o.quality[:, 2] == 0][:, :2])
        for o in map(tasks, (150, 60), (0, 1))
    ]
    router = fit_router(part[0], part[1], record(2), ["logreg"])
    picks = router.quality(part[1].features).argmax(1)
    assert (picks == part[1].quality.argmax(1)).mean() > 0.9


def test_the_best_kind_on_validation_rows_is_kept_and_all_are_listed() -> None:
    router = fit_router(tasks(150, 0), tasks(60, 1), record())
    tried = {candidate.kind: candidate for candidate in router.record.candidates}
    assert set(tried) == {"constant", "centroid", "knn", "logreg"}
    assert tried[router.record.kind].quality == max(item.quality for item in tried.values()) > tried["constant"].quality


def test_what_is_like_no_fitted_row_goes_to_none_of_them() -> None:
    router = fit_router(tasks(150, 0), tasks(60, 1), record())
    far = np.tile(np.array([[0, 0, 0, 9.0]], dtype=np.float32), (5, 1))
    assert (router.choose(far) == NONE).all()
    assert (router.choose(tasks(200, 3).features) != NONE).mean() > 0.85


def test_outcomes_are_learned_for_each_model_and_a_price_moves_rows_to_the_cheap_one() -> None:
    fitted = fit_router(outcomes(300, 0), outcomes(100, 1), record(2, False, (1.0, 10.0)), ["logreg"])
    assert fitted.record.threshold is None and fitted.record.kind == "logreg"
    test = outcomes(200, 2)
    free, priced = (
        Router(fitted.record.model_copy(update={"price": price}), fitted.numbers).choose(test.features)
        for price in (0.0, 0.03)
    )
    assert 0 < (free == 0).mean() < (priced == 0).mean() < 1
    assert test.quality[np.arange(200), priced].mean() > test.quality[:, 0].mean() + 0.2


def test_a_model_that_is_never_right_is_not_chosen() -> None:
    rows = outcomes(100, 0)
    never = Outcomes(rows.features, np.stack([np.zeros(100), rows.quality[:, 1]], 1))
    router = fit_router(never, never, record(2, False), ["logreg", "knn"])
    assert (router.choose(rows.features) == 1).all()


def test_calibration_does_not_worsen_the_log_loss() -> None:
    train, val = tasks(150, 0, noise=3.0), tasks(90, 1, noise=3.0)
    router = fit_router(train, val, record(), ["knn"])
    plain = Router(router.record.model_copy(update={"temperature": 1.0}), router.numbers)
    loss, before = (log_loss(r.quality(val.features), val.quality, True) for r in (router, plain))
    assert loss <= before + 1e-9
    assert softened(np.array([[0.9, 0.1]]), 1e6, True) == pytest.approx(0.5, abs=1e-3)


def test_similarity_is_the_mean_cosine_with_the_nearest_rows() -> None:
    rows = unit(np.eye(4, dtype=np.float32))
    assert similarity(rows[:1], rows)[0] == pytest.approx(
        0.25
    )  # of four rows one is the same, the others stand at right angles


def test_what_can_not_be_fitted_is_refused(tmp_path: Path) -> None:
    item = Outcomes(tasks(9, 0).features, np.ones((9, 1)))
    with pytest.raises(UserError, match="two models or more"):
        fit_router(item, item, record(1))
    lone = Outcomes(tasks(9, 0).features, np.eye(3)[[0] * 9])
    with pytest.raises(UserError, match="no training rows"):
        fit_router(lone, lone, record())
    with pytest.raises(UserError, match="rows to fit and to validate"):
        fit_router(tasks(9, 0), Outcomes(np.zeros((0, 4)), np.zeros((0, 3))), record())
    with pytest.raises(UserError, match="no fitted router"):
        load_router(tmp_path)
