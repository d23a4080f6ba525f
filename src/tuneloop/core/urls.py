"""URLs with a login in them: what is shown and kept of them, and what is sent."""

from __future__ import annotations

import re
from base64 import b64encode
from urllib.parse import unquote, urlsplit

# Also of an address that was taken for a path, which loses a slash. Up to the last @ before a slash; of a password with
# a slash, up to the last one before a comma, where the next URL of a list may begin.
_PASSWORD = re.compile(r"(:/{1,2}[^\s/:@]*):(?:[^\s/]*|[^\s,]*)@")
_TOKEN = re.compile(r"(https?:/{1,2})[^\s/:@?#]+@")  # in the place of a user
_KEY = re.compile(
    r"(?i)([?&](?:api[_-]?key|key|token|access_token|sig|secret|password|awsaccesskeyid|signature"
    r"|x-(?:amz|goog)-(?:signature|credential|security-token))=)[^&#\s]+"
)


def is_url(text: str) -> bool:
    """Whether a place is an address, as `s3://BUCKET/FOLDER`, and no path."""
    return re.match(r"[a-z][a-z0-9+.]*://", text) is not None


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


def basic_login(login: tuple[str, str]) -> str:
    """User and password as the header `Authorization` has them."""
    return f"Basic {b64encode(':'.join(login).encode()).decode()}"
