"""What goes wrong on the way to a Ray cluster is said with what to do."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from tuneloop.core.errors import UserError
from tuneloop.core.ray.cluster import load_ray, on_ray, refusal


def test_other_versions_on_the_cluster_are_named() -> None:
    pytest.importorskip("ray")
    from ray._private.utils import check_version_info

    with pytest.raises(RuntimeError) as caught:  # Ray's own message
        check_version_info({"ray_version": "2.9.0", "python_version": "3.9.1"}, "Ray Client")
    error = refusal(caught.value, "ray://head:10001")
    assert "The cluster runs Ray 2.9.0 with Python 3.9.1, this machine has Ray 2." in error.what
    assert error.where == "ray://head:10001" and "same versions" in error.next_step


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Version mismatch: something new", "another version of Ray"),
        ("Token authentication is enabled but no authentication token was found", "asks for its token"),
        ("ray client connection timeout", "No Ray cluster answers"),
    ],
)
def test_what_a_failed_connection_means_is_said(text: str, said: str) -> None:
    pytest.importorskip("ray")
    assert said in refusal(ConnectionError(text), "ray://head:10001").what


def test_a_cluster_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(
        ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("ray client connection timeout"))
    )
    with pytest.raises(UserError, match="No Ray cluster answers") as caught, on_ray("ray://nowhere:10001"):
        pass
    assert "10001" in caught.value.next_step


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="not installed") as caught:
        load_ray()
    assert "tuneloop[ray]" in caught.value.next_step


def test_a_node_that_starts_slowly_gets_a_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    tries: list[object] = []

    def init(**options: object) -> None:
        tries.append(options)
        if len(tries) == 1:
            raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    with on_ray():
        pass
    assert len(tries) == 2


def test_the_note_of_a_cluster_that_was_killed_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    asked: list[object] = []
    monkeypatch.setattr(ray, "init", lambda address=None, **options: asked.append(address))
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
    with on_ray():
        assert asked == [None], "it answers: Ray finds it by itself"
    listener.close()
    with on_ray():
        assert asked[1:] == ["local"]
