"""URLs with a login in them: what is shown and kept of them, and what is sent."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

_PASSWORD = re.compile(r"(://[^\s/:@]*):[^\s,]*@")
_TOKEN = re.compile(r"(https?://)[^\s/:@?#]+@")  # in the place of a user
_KEY = re.compile(r"(?i)([?&](?:api[_-]?key|key|token|access_token|sig|secret|password)=)[^&#\s]+")


def masked(text: str) -> str:
    """A text with `***` in place of passwords and keys in its URLs."""
    return _KEY.sub(r"\1***", _TOKEN.sub(r"\1***@", _PASSWORD.sub(r"\1:***@", text)))


def split_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """A URL without its login, and that: user and password, or None."""
    parts = urlsplit(url.strip())
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    user, _, password = login.partition(":")
    return parts._replace(netloc=host).geturl(), (unquote(user), unquote(password))
