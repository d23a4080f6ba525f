"""`migration.json`: what was copied from a hosted service, and when its models stop."""

from __future__ import annotations

from typing import Any

from tuneloop.records.record import Part, Record


class HostedJob(Part):
    """A fine-tuning job at a service.

    Args:
        base, model: what was tuned, and the name of the result; None: there is none.
        created, finished: days, as in 2026-03-01; empty: not known.
        training_file, validation_file: ids at the service.
        stops: the day on which the model stops; empty: none is known. `stops_by`: who says so.
        checkpoints: names of further models, of the passes before the last one.
    """

    id: str
    status: str
    base: str
    model: str | None = None
    created: str = ""
    finished: str = ""
    training_file: str = ""
    validation_file: str | None = None
    result_files: list[str] = []
    method: str = "supervised"
    hyperparameters: dict[str, Any] = {}
    trained_tokens: int | None = None
    checkpoints: list[str] = []
    stops: str = ""
    stops_by: str = ""
    error: str = ""


class CopiedFile(Part):
    """A file of the copy: its size and hash, and what it is at the service: an id, a kind."""

    bytes: int
    sha256: str
    id: str = ""
    kind: str = ""


class Traffic(Part):
    """What stored completions say of a model's use: requests, tokens, the time of the first and last (Unix)."""

    model: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first: int = 0
    last: int = 0

    @property
    def a_day(self) -> float:
        """Requests a day, over at least one day."""
        return self.requests / max((self.last - self.first) / 86400, 1.0)


class Missing(Part):
    """What could not be copied, and why."""

    what: str
    why: str


class Migration(Record, noun="a copy of a hosted service", file="migration.json", again="run `tuneloop migrate` again"):
    """`migration.json`, written last: the copy is complete but for what `missing` names.

    Args:
        service: its URL. `copied`: when the copy was finished.
        files: path in the folder -> the file.
        traffic: by model, of the completions that the service had stored.
    """

    service: str
    copied: str
    jobs: list[HostedJob] = []
    files: dict[str, CopiedFile] = {}
    traffic: list[Traffic] = []
    missing: list[Missing] = []
