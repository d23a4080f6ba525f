"""A service as it is read: its lists while they change, waits that it names, files that break off."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from openai_service import KEY, MODEL, job
from openai_service import Service as StandIn

from tuneloop.core.errors import UserError
from tuneloop.core.http.service import Service, place_of
from tuneloop.core.http.wire import Broken, HttpRefused


def with_service(stand_in: StandIn, work: Any, key: str = KEY) -> Any:
    async def main() -> Any:
        service = Service(stand_in.url, key)
        try:
            return await work(service)
        finally:
            await service.aclose()

    return asyncio.run(main())


def jobs_of(stand_in: StandIn) -> list[str]:
    items = with_service(stand_in, lambda service: service.items("/fine_tuning/jobs", limit=10))
    return [item["id"] for item in items]


def test_the_official_client_takes_the_stand_in_for_openai(service: StandIn) -> None:
    client = openai.OpenAI(base_url=service.url, api_key=KEY, max_retries=0)
    (item,) = client.fine_tuning.jobs.list()
    assert (item.fine_tuned_model, item.hyperparameters.n_epochs) == (MODEL, 3)
    assert len(list(client.fine_tuning.jobs.list_events(item.id, limit=10))) == 30
    assert next(iter(client.fine_tuning.jobs.checkpoints.list(item.id))).step_number == 90
    assert {model.id: model.shutdown_date for model in client.models.list()} == {MODEL: None, item.model: "2027-01-14"}
    assert [file.id for file in client.files.list()][:2] == ["file-train", "file-val"]
    assert client.files.content("file-train").read() == service.files["file-train"][1]
    stored = list(client.chat.completions.list())
    assert len(stored) == 7 and stored[0].usage is not None
    (turn,) = client.chat.completions.messages.list(stored[0].id)
    assert turn.content == "where is parcel 0"
    question = service.turns["chatcmpl-0"][0]["content"]
    reply = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": question}], logprobs=True)
    assert reply.choices[0].message.content == "billing" and reply.choices[0].logprobs is not None
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=service.url, api_key="sk-wrong", max_retries=0).models.list()


def test_a_list_that_grows_and_shrinks_meanwhile_is_read_once_each(service: StandIn) -> None:
    service.jobs = [job(f"ftjob-{i}") for i in range(25)]

    def change(path: str) -> None:
        if "after=ftjob-9" in path and service.jobs[0]["id"] == "ftjob-0":
            service.jobs.insert(0, job("ftjob-new"))
            service.jobs = [item for item in service.jobs if item["id"] not in ("ftjob-9", "ftjob-20")]

    service.before = change
    assert jobs_of(service) == [f"ftjob-{i}" for i in range(10)] + ["ftjob-new"] + [
        f"ftjob-{i}" for i in range(10, 25) if i != 20
    ]


def test_a_list_that_turns_in_a_circle_ends(service: StandIn) -> None:
    service.jobs = [job(f"ftjob-{i % 20}") for i in range(60)]
    with pytest.raises(Broken, match="circle"):
        jobs_of(service)
    service.lists["/broken"] = [{"object": "fine_tuning.job"}]
    with pytest.raises(Broken, match="no list of objects"):
        with_service(service, lambda item: item.items("/broken"))


def test_the_service_s_wait_is_kept_and_a_spent_quota_is_not_waited_for(service: StandIn) -> None:
    service.faults = {"GET /v1/fine_tuning/jobs": [(429, {"Retry-After": "0.3"}, "slow down"), (503, {}, "busy")]}
    began = time.monotonic()
    assert jobs_of(service) == ["ftjob-1"]
    assert time.monotonic() - began >= 0.3 and len(service.calls) == 3
    service.faults = {"GET": [(429, {}, "insufficient_quota")] * 3}
    with pytest.raises(HttpRefused):
        jobs_of(service)
    assert len(service.calls) == 4


def test_a_file_that_breaks_off_is_fetched_again_and_is_whole_or_not_there(service: StandIn, tmp_path: Path) -> None:
    path, sizes = tmp_path / "x" / "train.jsonl", list[int]()

    def fetch(service: Service) -> Any:
        return service.download(place_of("files", "file-train", "content"), path, sizes.append)

    service.faults = {"content": ["cut", "cut"]}
    with_service(service, fetch)
    assert path.read_bytes() == service.files["file-train"][1] and sum(sizes) == path.stat().st_size
    path.unlink()
    service.faults = {"content": ["cut"] * 20}
    with pytest.raises(Broken):
        with_service(service, fetch)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(("url", "key"), [("ftp://x", KEY), ("api.openai.com/v1", KEY), ("http://x/v1", "sk-\n1")])
def test_what_is_no_url_or_key_is_refused(url: str, key: str) -> None:
    with pytest.raises(UserError) as refused:
        Service(url, key)
    assert "sk-" not in str(refused.value) and refused.value.next_step


def test_an_id_leads_nowhere_else() -> None:
    assert place_of("files", "../../models?x=1") == "/files/..%2F..%2Fmodels%3Fx%3D1"
