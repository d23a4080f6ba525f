"""An object store on this machine that speaks Google Cloud Storage's API: gcp-storage-emulator, with one bucket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import pytest

BUCKET = "acme"


@contextmanager
def gcs_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run it, point the usual variables at it, and give a client for it (google-cloud-storage's)."""
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    gcsfs = pytest.importorskip("gcsfs")
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    monkeypatch.setenv("NO_GCE_CHECK", "true")  # no search for the account of a machine of Google's
    # Whether a bucket has real folders is asked by gRPC, of Google alone, with credentials.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    host, port = server._api._httpd.server_address[:2]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{host}:{port}")
    gcsfs.GCSFileSystem.clear_instance_cache()
    try:
        yield storage.Client(project="acme", credentials=AnonymousCredentials())
    finally:
        gcsfs.GCSFileSystem.clear_instance_cache()
        server.stop()


def refuse_all(monkeypatch: pytest.MonkeyPatch, status: int, message: str) -> None:
    """From now on answer every request by a refusal in the form that Google's reference gives."""
    from gcp_storage_emulator import server

    def refuse(router: Any, method: str) -> None:
        response = server.Response(router._request_handler)
        response.status = HTTPStatus(status)
        response.json({"error": {"code": status, "message": message}})
        response.close()

    monkeypatch.setattr(server.Router, "handle", refuse)
