"""Requests and feedback of an experiment or a server, with times of one's own."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from tuneloop.core.ids import utc
from tuneloop.improve.experiment.record import ExperimentDesign
from tuneloop.improve.experiment.statistics import assign
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)


def at(days: float) -> str:
    """So many days after the beginning."""
    return utc((BEGIN + timedelta(days=days)).timestamp())


def design(**changes: object) -> ExperimentDesign:
    """A registration without shadow mode, which trusts votes."""
    given = {"name": "new", "model": "m", "candidate": "m@candidate", "champion": "m@champion", "shadow": False,
             "salt": "s", "hold_days": 1.0, "maturation_hours": 24.0, "missing": "one-way"}  # fmt: skip
    return ExperimentDesign.model_validate({**given, **changes})


def request(number: int, days: float, **changes: object) -> StoredRequest:
    """A stored request; its id follows from its number."""
    given = {"id": f"r{number:06d}", "time": at(days), "model": "m", "user": f"u{number}", "total_ms": 100.0, "usd": 0.001,
             "completion_tokens": 20, "finish": "stop", "prompt": [{"role": "user", "content": f"question {number}"}],
             "completion": f"answer {number}"}  # fmt: skip
    return StoredRequest(**{**given, **changes})


def thumb(number: int, days: float, up: bool, **changes: object) -> Feedback:
    """A thumb on a request."""
    given = {"id": f"f{number:06d}", "request": f"r{number:06d}", "kind": "thumbs", "value": up, "user": f"u{number}",
             "time": at(days)}  # fmt: skip
    return Feedback.model_validate({**given, **changes})


def traffic(
    registered: ExperimentDesign,
    share: float,
    users: int,
    days: float,
    *,
    rates: tuple[float, float] = (0.6, 0.6),
    seed: int = 0,
    first: int = 0,
    begin: float = 0.0,
) -> tuple[list[StoredRequest], list[Feedback]]:
    """Users that come evenly over some days, meet an arm and give a thumb an hour later.

    Args:
        rates: of liked answers, of candidate and champion.
    """
    rng = random.Random(seed)
    requests, feedback = [], []
    for i in range(first, first + users):
        when = begin + days * (i - first) / users
        arm = assign(registered, f"u{i}", share)
        requests.append(request(i, when, arm=arm, propensity=share))
        feedback.append(thumb(i, when + 1 / 24, rng.random() < rates[arm == "champion"]))
    return requests, feedback
