"""`tuneloop route fit --feedback STORE`: a router learns from what people said of the answers that it has sent for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tuneloop.combine.bandit import FEWEST, Logged, fit_bandit, judged_bandit
from tuneloop.combine.router import Array, Router, load_router
from tuneloop.core.errors import UserError
from tuneloop.core.progress import Progress, no_progress
from tuneloop.core.units import counted
from tuneloop.improve.collect import CollectOptions
from tuneloop.improve.experiment import unit_of
from tuneloop.improve.feedback import by_request, mean_value, talks_of
from tuneloop.serve.store import opened, read_feedback, read_requests, store_name
from tuneloop.workflows.route import PARTS, RouteJob, place_of

if TYPE_CHECKING:
    from tuneloop.combine.options import RouteOptions
    from tuneloop.records.request import StoredRequest

FEWEST_TEST = 20
MOST_OF_A_USER = CollectOptions().per_user


def routed_rows(place: str, models: int) -> tuple[list[str], Array, Counter[str]]:
    """Rated requests that a router sent somewhere: their texts, (number of the model, chance, worth) of each, and what was left out.

    Args:
        place: a server's folder, or its store.
        models: that the router chooses between.
    """
    with opened(place) as store:
        requests = list(read_requests(store, where="shadow IS NULL AND route IS NOT NULL"))
        feedback = list(read_feedback(store, origin=False))
    said = by_request(feedback, talks_of(requests))
    given: Counter[str] = Counter()  # rows of each user
    texts: list[str] = []
    rows: list[tuple[float, float, float]] = []
    left: Counter[str] = Counter()
    for request in requests:
        mean = mean_value(said.get(request.id, ()))
        route = request.route or {}
        names, chance = list(route.get("scores", {})), float(route.get("chance") or 0.0)
        why = (
            "without feedback" if mean is None
            else "no chance is known" if not 0 < chance <= 1
            else "of another router" if len(names) != models or route.get("model") not in names
            else "not kept" if not (text := _first_turn(request))
            else "of users who have given as many as one may" if given[unit_of(request)] >= MOST_OF_A_USER
            else ""
        )  # fmt: skip
        if why:
            left[why] += 1
            continue
        given[unit_of(request)] += 1
        texts.append(text)
        rows.append((names.index(route["model"]), chance, mean or 0.0))
    return texts, np.array(rows, dtype=np.float64).reshape(-1, 3), left


def _first_turn(request: StoredRequest) -> str:
    """The text that the router has looked at."""
    return next((str(turn.get("content") or "") for turn in request.prompt if turn["role"] == "user"), "")


def fit_from_feedback(
    place: str, start: str, out: Path, options: RouteOptions, *, progress: Progress = no_progress
) -> Router:
    """Fit a router to feedback, judge it on the rest of it, and write it.

    Equal texts stay together: 60 % of the rows fit, 20 % validate, 20 % judge, by a hash of the text.

    Args:
        place: a server's folder, or its store.
        start: folder of the router that was in use: its models, costs, price and features stay.
        out: folder of the new one.
        options: how many requests go to a model by chance from now on.

    Raises:
        UserError: no router or store, too little feedback, no choice by chance.
    """
    used = load_router(Path(start))
    like = used.record
    texts, rows, left = routed_rows(place, len(like.routes))
    reasons = ", ".join(f"{count} {why}" for why, count in left.most_common())
    if len(texts) < 5 * FEWEST:
        raise UserError(
            f"{counted(len(texts), 'rated request')} can be learned from, and {5 * FEWEST} are needed ({reasons or 'there are no others'})",
            where=store_name(place), next_step="serve a router that was fitted with --explore 0.2, and collect feedback",
        )  # fmt: skip
    if (rows[:, 1] > 1 - 1e-9).all():
        raise UserError(
            "No model was chosen by chance, so nobody knows what the others would have answered", where=store_name(place),
            next_step="fit the router in use with --explore 0.2 and serve it",
        )  # fmt: skip
    job = RouteJob(like.features, like.base, options.rows, progress)
    where = np.array([sum(place_of(text) >= end for end in PARTS) for text in texts])
    whole = Logged(job.embed(texts), rows[:, 0].astype(np.int64), rows[:, 1], rows[:, 2])
    if (where == 2).sum() < FEWEST_TEST or (where == 1).sum() < FEWEST_TEST:
        raise UserError(
            f"Too few different texts to fit, validate and judge on: {len(set(texts))}", where=store_name(place),
            next_step="collect more feedback",
        )  # fmt: skip
    update: dict[str, Any] = {"figures": None, "explore": options.explore, "source": store_name(place)}
    router = fit_bandit(
        whole.part(where == 0), whole.part(where == 1), Router(like.model_copy(update=update), used.numbers)
    )
    figures = judged_bandit(router, whole.part(where == 2))
    router = Router(router.record.model_copy(update={"figures": figures}), router.numbers)
    router.save(out)
    return router
