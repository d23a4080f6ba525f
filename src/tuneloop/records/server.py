"""What a server keeps for the commands that come later: its state, decisions, and what was collected from its store."""

from __future__ import annotations

from typing import Any

from tuneloop.records.record import Part, Record


class ServedName(Part):
    """A model that a server has.

    Args:
        name: as clients ask for it; `adapter`: hash by which the engine knows it, or `base`.
        release: `NAME/VERSION` of the registry; None: it is not from there.
        source: run, artifact or registered version.
    """

    name: str
    adapter: str
    release: str | None = None
    source: str = ""


class ServerState(Record, noun="a server's state", file="state.json", again="start the server again"):
    """The server that works in a folder, or worked there last.

    Args:
        pid: of its process; `address`: where it listens, as in `http://127.0.0.1:8100`.
        started: ISO time; `base`, `engine`: the base model, and what computes.
        devices: names of its machine's GPUs, or of its processor; empty: the engine is at an address, on a machine that
            is not known.
        models: that it has.
        candidates: experiment -> why its candidate answers no one; empty: it is served.
        config: its settings, as in `tuneloop schema` under `serve`.
    """

    pid: int = 0
    address: str = ""
    started: str = ""
    base: str = ""
    engine: str = ""
    devices: list[str] = []
    models: list[ServedName] = []
    candidates: dict[str, str] = {}
    config: dict[str, Any] = {}

    @property
    def adapters(self) -> dict[str, str]:
        """Name -> source of the adapters that it serves."""
        return dict(self.config.get("adapters", {}))

    @property
    def store_url(self) -> str:
        """The database that its store is in; empty: a file in its folder."""
        return str(self.config.get("log", {}).get("store", ""))

    @property
    def usd_per_hour(self) -> float:
        """Price of its machine; 0: not said."""
        return float(self.config.get("prices", {}).get("usd_per_hour", 0.0))


class Decision(
    Record, noun="a decision", file="decisions.jsonl", again="read the store with the version that wrote it"
):
    """An event in the log of decisions. The state of anything follows from its events in the order of their ids.

    Args:
        id: UUIDv7; events sort by it.
        time: ISO 8601 in UTC.
        kind: what happened, in words with dots: `experiment.start`, `deployment.swap`, ...
        subject: what it is about: an experiment's, a model's or a monitor's name.
        data: all that the decision was made from, so that it can be made again.
        key: of idempotency: the same key again is the same event.
    """

    id: str
    time: str
    kind: str
    subject: str = ""
    data: dict[str, Any] = {}
    key: str | None = None


class CollectedManifest(Record, noun="a collection", file="collect.json", again="run `tuneloop collect` again"):
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
