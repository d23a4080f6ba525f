"""What was collected from a store as training data."""

from __future__ import annotations

from tuneloop.records.record import Record


class CollectedManifest(Record, what="a collection", file="collect.json", again="run `tuneloop collect` again"):
    """The manifest of a folder that `tuneloop collect` wrote.

    Args:
        store: that it came from.
        since, until: times of the requests; empty: no bound.
        requests, with_feedback: that were read, and those of them with feedback.
        counts: rows of each file: `sft`, `preference`, `kto`, `heldout`; `train` and `test` where they are for a run.
        origins: rows of `sft` and `heldout` by the source of their answer: `correction`, `label`, `liked`, `resolved`.
        own: rows of `sft` whose answer is the model's own.
        dropped: requests with feedback that gave no row in any file, by reason.
        task: kind of task of that run; empty: no run was named.
        heldout_share, per_user, own_share: as set by the options.
    """

    store: str
    since: str
    until: str
    requests: int
    with_feedback: int
    counts: dict[str, int]
    origins: dict[str, int]
    own: int
    dropped: dict[str, int]
    heldout_share: float
    per_user: int
    own_share: float
    task: str = ""
