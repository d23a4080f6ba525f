"""A batch and an uploaded file, as a server keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from tuneloop.core.errors import UserError
from tuneloop.records.record import Part, Record, read_record

Status = Literal["validating", "in_progress", "finalizing", "cancelling", "completed", "failed", "expired", "cancelled"]
OVER = ("completed", "failed", "expired", "cancelled")
TIMES = tuple(f"{state_name}_at" for state_name in ("in_progress", "finalizing", "cancelling", *OVER))


class RequestCounts(Part):
    """Requests of a batch: all of them, those with an answer, and those with an error."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchState(Record):
    """A batch, with the names of OpenAI's API.

    Args:
        endpoint: that all requests are for; empty: each has its own.
        errors: why it failed as a whole.
        created_at, expires_at, ..._at: seconds since 1970.
        owner, key_id: name and id of the API key that made it; empty: it was made without one.
        key: of `tuneloop batch`: hash of what it depends on.
    """

    title: ClassVar[str] = "a batch's state"
    file: ClassVar[str] = "batch.json"
    again: ClassVar[str] = "delete the folder of that batch and start it again"

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str = ""
    errors: dict[str, Any] | None = None
    status: Status
    created_at: int
    expires_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    input_file_id: str | None = None
    completion_window: str | None = None
    metadata: dict[str, Any] | None = None
    owner: str = ""
    key_id: str = ""
    key: str = ""
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    cancelling_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelled_at: int | None = None

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.status in OVER


class FileState(Record):
    """An uploaded file, with the names of OpenAI's API.

    Args:
        bytes: its size.
        owner, key_id: see `BatchState`.
    """

    title: ClassVar[str] = "an uploaded file's state"
    file: ClassVar[str] = "file.json"
    again: ClassVar[str] = "upload the file again"

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str = "batch"
    status: str = "processed"
    owner: str = ""
    key_id: str = ""


def read_state(folder: Path) -> BatchState:
    """The state of a batch; UserError: it is missing or damaged."""
    path = folder / BatchState.file
    try:
        return read_record(BatchState, path)
    except (UserError, OSError) as error:
        reason = error.what if isinstance(error, UserError) else error.strerror
        message = f"The state of a batch is missing or damaged: {reason}"
        raise UserError(message, where=str(path), next_step=BatchState.again) from None
