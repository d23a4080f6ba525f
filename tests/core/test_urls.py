"""What stands in a URL and is nobody's affair is neither shown nor lost."""

from __future__ import annotations

import pytest

from tuneloop.core.urls import masked, split_login


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://anna:s3cret@host:8000/v1", "http://anna:***@host:8000/v1"),
        ("http://anna:s3/c@r:et@host/v1", "http://anna:***@host/v1"),
        ("at http://a:s3cret@h/v1,https://b:s3cret@i/v1 twice", "at http://a:***@h/v1,https://b:***@i/v1 twice"),
        ("https://s3cret@host/v1", "https://***@host/v1"),
        ("http://:s3cret@host", "http://:***@host"),
        ("https://host/v1?api-version=2&api_key=s3cret&x=1", "https://host/v1?api-version=2&api_key=***&x=1"),
        ("http://anna:s3cret,x@h:80,http://b:s3cret@i/v1", "http://anna:***@h:80,http://b:***@i/v1"),
        (
            "https://b/o?X-Amz-Credential=s3cret&X-Amz-Signature=s3cret",
            "https://b/o?X-Amz-Credential=***&X-Amz-Signature=***",
        ),
        ("https://b/o?X-Goog-Signature=s3cret&Signature=s3cret", "https://b/o?X-Goog-Signature=***&Signature=***"),
        ("the folder http:/anna:s3cret@host does not exist", "the folder http:/anna:***@host does not exist"),
        ("postgresql://anna@host/db", "postgresql://anna@host/db"),
        ("write to anna@example.com about http://host:80/x", "write to anna@example.com about http://host:80/x"),
    ],
)
def test_a_password_is_masked_wherever_a_url_stands(text: str, shown: str) -> None:
    assert masked(text) == shown and "s3cret" not in masked(text)


def test_a_login_is_split_off_for_the_connection() -> None:
    assert split_login("http://anna:p%40ss%2F@host:80/v1") == ("http://host:80/v1", ("anna", "p@ss/"))
    assert split_login("http://host/v1") == ("http://host/v1", None)
