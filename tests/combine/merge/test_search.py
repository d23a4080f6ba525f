"""What `--method auto` tries."""

from __future__ import annotations

from tuneloop.combine.merge.adapters import MergeSettings
from tuneloop.combine.merge.methods import METHODS
from tuneloop.combine.merge.tasks import TriedMerge, first_round, next_settings


def test_the_first_round_tries_each_kind_once_and_only_what_can_be_merged() -> None:
    plain, cut = list(first_round(3)), list(first_round(3, rank=8))
    assert len(set(plain)) == len(plain) and {s.method for s in plain} <= METHODS.keys()
    assert all(len(s.weights) == 3 for s in plain)
    assert not any(METHODS[s.method].exact for s in cut), "an exact method can't be cut to a rank"


def test_the_next_step_gives_the_worst_task_of_the_best_settings_more_weight() -> None:
    poor = TriedMerge(MergeSettings("cat", (1.0, 1.0)), (0.9, 0.1), 1.0)
    good = TriedMerge(MergeSettings("svd", (1.0, 1.0), 8), (0.5, 0.9), 1.0)
    step = next_settings([poor, good])
    assert step == MergeSettings("svd", (1.3, 0.85), 8)
    assert next_settings([poor, good, TriedMerge(step, (0.4, 0.4), 1.0)]) is None, "tried already"
