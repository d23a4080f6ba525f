"""What a server says of itself in its folder, for the commands that come later."""

from __future__ import annotations

from typing import Any

from tuneloop.records.record import Part, Record


class ServedName(Part):
    """A model that a server has.

    Args:
        name: as clients ask for it.
        adapter: hash by which the engine knows it, or `base`.
        release: `NAME/VERSION` of the registry; None: it is not from there.
        source: run, artifact or registered version.
    """

    name: str
    adapter: str
    release: str | None = None
    source: str = ""


class ServerState(Record, what="a server's state", file="state.json", again="start the server again"):
    """The server that works in a folder, or worked there last.

    Args:
        pid: of its process.
        address: where it listens, as in `http://127.0.0.1:8100`.
        started: ISO time.
        base, engine: the base model, and what computes.
        models: that it has.
        config: its settings, as in `tuneloop schema` under `serve`.
    """

    pid: int = 0
    address: str = ""
    started: str = ""
    base: str = ""
    engine: str = ""
    models: list[ServedName] = []
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
