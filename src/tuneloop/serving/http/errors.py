"""Errors as OpenAI's API tells them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

TYPES = {
    400: "invalid_request_error", 401: "invalid_request_error", 403: "permission_error", 404: "invalid_request_error",
    405: "invalid_request_error", 408: "timeout_error", 409: "conflict_error", 413: "invalid_request_error", 415: "invalid_request_error",
    429: "rate_limit_error", 500: "server_error", 501: "invalid_request_error", 503: "server_error", 504: "timeout_error",
}  # fmt: skip


class ApiError(Exception):
    """A request that gets no answer.

    Args:
        status: of HTTP.
        message: what is wrong and what to do about it.
        param: the field that it concerns.
        code: a word that programs can test.
        headers: further ones of the response.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """For actors, which send it from one process to another."""
        more: dict[str, Any] = {"param": self.param, "code": self.code, "headers": self.headers}
        return partial(ApiError, self.status, self.message, **more), ()

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = "insufficient_quota" if self.code == "insufficient_quota" else TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}
