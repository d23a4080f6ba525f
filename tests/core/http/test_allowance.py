"""Services of someone else that have no end, no form or no good will: each client of them leaves with a sentence."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_service import ESCAPES, WRONG, Hostile, hostile

from tuneloop.core.errors import UserError
from tuneloop.core.http import allowance
from tuneloop.core.http import service as client
from tuneloop.core.http.allowance import Allowance
from tuneloop.core.http.service import Service
from tuneloop.core.http.wire import Broken, HttpRefused
from tuneloop.deploy import hosted
from tuneloop.deploy.services import TrainingService
from tuneloop.imports.pages import Pages
from tuneloop.migrate.copy import copy_all
from tuneloop.migrate.survey import survey_of

LISTS = ("endless", "circle", "no news", "many pages")
ANSWERS = ("html", "redirect", "bad redirect", "gzip", "truncated", "deep", "large", "huge number", "escapes")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small limits, and no time between two tries."""
    monkeypatch.setattr(allowance, "MOST_PAGES", 50)
    monkeypatch.setattr(client, "TRIES", 0)


def asked(service: Hostile, work: Any) -> Any:
    async def main() -> Any:
        item = Service(f"{service.address}/v1", "sk-secret", 0.01)
        try:
            return await work(item)
        finally:
            await item.aclose()

    return asyncio.run(main())


@pytest.mark.parametrize("kind", ["endless", "circle", "no news"])
def test_a_list_without_end_is_left_and_what_came_is_kept(kind: str) -> None:
    with hostile(kind) as service:
        pages: list[Any] = []
        with pytest.raises(UserError, match="The list has no end") as raised:
            for page in Pages(service.address, ("a", "b")).rows("/traces", {}, ""):
                pages.append(page)
        assert "kept" in str(raised.value.next_step) and pages[0][1] and pages[-1][0] == ""
        assert len(service.requests) <= 52

        with pytest.raises(Broken, match="has no end"):
            asked(service, lambda item: item.items("/files"))
        assert len(service.requests) <= 110


def test_a_billion_pages_are_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile("many pages") as service, pytest.raises(UserError, match="more than 50 pages"):
        list(Pages(service.address, ("a", "b")).rows("/traces", {}, ""))
    assert len(service.requests) == 1


@pytest.mark.parametrize("kind", ["meta", "meta.page", "meta.totalPages"])
def test_a_page_of_wrong_types_is_an_error_of_the_service_and_not_ours(kind: str) -> None:
    with hostile(kind) as service, pytest.raises(UserError, match="Not a page of a list"):
        list(Pages(service.address, ("a", "b")).rows("/traces", {}, ""))


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_of_no_use_is_an_error_and_no_key_goes_elsewhere(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with hostile("html") as other, hostile(kind, elsewhere=other.address) as service:
        with pytest.raises(UserError) as raised:
            list(Pages(service.address, ("a", "b")).rows("/traces", {}, ""))
        assert len(str(raised.value)) < 1000
        with pytest.raises((Broken, HttpRefused, UserError)) as refused:
            asked(service, survey_of)
        assert len(str(refused.value)) < 1000 and "\x1b" not in str(refused.value)
        if kind == "redirect":
            asked(service, lambda item: item.download("/files/x/content", tmp_path / "x", lambda size: None))
            assert other.requests and not any(other.keys)


def test_bytes_and_seconds_of_a_list_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "20 GiB" in Allowance().fault(["a"], "c", size=(20 << 30) + 1)
    assert "6 hours" in Allowance(begun=time.monotonic() - 6 * 3600 - 1).fault(["a"], "c")
    ok = Allowance()
    assert not any(ok.fault([f"{n}"], f"c{n}", 1000) for n in range(50))


def test_a_file_that_drips_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(Broken, match="bytes a second"):
        client._refuse_endless(1000, 1000.0)
    client._refuse_endless(2_000_000, 1000.0)
    with pytest.raises(Broken, match="GiB"):
        client._refuse_endless(allowance.MOST_OF_A_FILE + 1, 1.0)


FIELDS = (
    "id", "status", "state", "fine_tuned_model", "trained_tokens", "token_count", "events", "metrics", "error", "data",
    "outputModel", "model_output_name", "result_files", "training_file", "method", "choices", "usage", "created",
    "created_at", "purpose", "bytes", "filename", "checkpoints", "shutdown_date", "filenameToSignedUrls", "name",
    "deployedModelRefs", "metadata", "suffix", "displayName", "hyperparameters", "has_more",
)  # fmt: skip
JOB = {
    "id": "job-1", "name": "accounts/a/supervisedFineTuningJobs/j", "status": "succeeded", "object": "x",
    "state": "JOB_STATE_COMPLETED", "fine_tuned_model": "ft:m", "outputModel": "m", "model_output_name": "m",
    "trained_tokens": 5, "token_count": 5, "created": 1_790_000_000, "purpose": "fine-tune", "bytes": 3,
    "choices": [{"message": {"role": "assistant", "content": "x"}}],
}  # fmt: skip


def wrong_of(field: str) -> list[tuple[str, Any]]:
    """What a field may hold instead; ten million characters where they take the place of a name."""
    return [(name, value) for name, value in WRONG.items() if name != "long" or field in ("id", "fine_tuned_model")]


@pytest.fixture(scope="module")
def stand_in() -> Iterator[Hostile]:
    """One service, whose answers tests choose."""
    with hostile("object") as service:
        yield service


@pytest.mark.parametrize("field", FIELDS)
def test_a_copy_of_wrong_types_ends_in_a_record_or_a_sentence_and_stays_in_its_folder(
    stand_in: Hostile, tmp_path: Path, field: str
) -> None:
    service = stand_in
    for name, value in wrong_of(field):
        item = {**JOB, field: value}
        answer = {
            **item,
            "data": [item],
            "has_more": False,
            **({field: value} if field in ("data", "has_more") else {}),
        }
        folder = tmp_path / f"copy-{name}"

        async def copied(service: Service, folder: Path = folder) -> Any:
            return await copy_all(service, await survey_of(service), folder)

        service.object_ = answer
        try:
            asked(service, copied)
        except UserError as error:
            assert len(str(error)) < 2000 and ESCAPES not in str(error)
        assert {path.name for path in tmp_path.iterdir()} <= {f"copy-{item}" for item in WRONG}


@pytest.mark.parametrize("of", hosted.SERVICES.values(), ids=lambda of: of.title)
def test_a_training_service_of_wrong_types_ends_in_a_state_or_a_sentence(
    of: TrainingService, stand_in: Hostile, tmp_path: Path
) -> None:
    async def looked(service: Service) -> Any:
        await hosted._job_of(of, service, "key")
        state = await of.look(service, of.jobs + "/job-1")
        if of.weights:
            await hosted.fetch(of.weights(service, "job-1", "m"), service, tmp_path / "weights")
        return state

    for field in FIELDS:
        for value in (WRONG[name] for name in ("text", "list", "huge", "object", "escapes")):
            stand_in.object_ = {**JOB, field: value}
            with contextlib.suppress(Broken, HttpRefused, UserError, *hosted._SHAPES):
                asked(stand_in, looked)
    assert {path.name for path in tmp_path.iterdir()} <= {"weights"}


@pytest.mark.parametrize("name", ["../x", "/etc/x", "adapter/..", "a/../b", "", ".", "a/b/c", "x\n", "-" * 300])
def test_weights_leave_their_folder_under_no_name(tmp_path: Path, name: str) -> None:
    async def files() -> dict[str, str]:
        return {name: "/file"}

    with hostile("html") as service, pytest.raises(Broken, match="is named"):
        asked(service, lambda item: hosted.fetch(files(), item, tmp_path))
    assert not service.requests and not list(tmp_path.iterdir())
