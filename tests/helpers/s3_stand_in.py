"""An object store on this machine that speaks S3: moto's server, with one bucket."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BUCKET = "acme"


@contextmanager
def s3_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run it, point the usual variables at it, and give a client for it (boto3's)."""
    server_module = pytest.importorskip("moto.server")
    s3fs, boto3 = pytest.importorskip("s3fs"), pytest.importorskip("boto3")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    known = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1",
    }  # fmt: skip
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield client
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        _tell("reset-auth", "inf")
        _tell("reset")
        server.stop()


def check_rights() -> None:
    """From now on only keys that the store knows may do something, and what their rights allow."""
    _tell("reset-auth", "0")


def without_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask with the key of a user who exists and may do nothing; `check_rights` comes after it."""
    import boto3

    client = boto3.client("iam")
    client.create_user(UserName="intern")
    key = client.create_access_key(UserName="intern")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    forget_connections()


def forget_connections() -> None:
    """Read the variables of the environment anew: fsspec keeps what it has opened."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def _tell(message: str, value: str = "") -> None:
    request = urllib.request.Request(
        f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/{message}",
        value.encode(),
        {"Content-Type": "text/plain"},
        method="POST",
    )
    urllib.request.urlopen(request).read()
