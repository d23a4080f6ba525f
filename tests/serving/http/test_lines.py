"""Lines for a collector of logs: every request stands in one, none of its texts does, and no answer waits for a reader."""

from __future__ import annotations

import io
import json
import logging
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import StubEngine, live

from patience import HANG
from serving import running
from tuneloop.records.request import StoredRequest
from tuneloop.serving.gateway import ServedModel
from tuneloop.serving.http.lines import FIELDS, LogLines

SECRET = "zanzibarquokka"


def lines_of(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_each_request_is_a_line_without_its_texts(tmp_path: Path) -> None:
    lines = LogLines(out := io.StringIO())
    with lines.writing(), live(tmp_path, StubEngine(), {"stub": ServedModel("stub")}) as (url, gateway):
        gateway.ended = lines.ended
        for tokens in (5, 5_000):  # the second one is longer than the context
            body = {
                "model": "stub", "user": SECRET, "max_tokens": 4,
                "messages": [{"role": "user", "content": f"{SECRET} " * tokens}],
            }  # fmt: skip
            httpx.post(f"{url}/v1/chat/completions", json=body, timeout=HANG)
    answered, *more = lines_of(out)
    assert answered["event"] == "request" and answered["status"] == "ok" and answered["finish"] == "stop"
    assert set(answered) == {"time", "event", "status", *FIELDS} and answered["completion_tokens"] == 3
    assert len(more) == 1 and SECRET not in out.getvalue()


@pytest.mark.parametrize(
    ("said", "event", "message"),
    [
        ("batch     continues with 2 of an earlier server", "batch", "continues with 2 of an earlier server"),
        ("a record can't be written: a\nb", "note", "a record can't be written: a\nb"),
    ],
)
def test_a_note_is_one_line_with_its_topic(said: str, event: str, message: str) -> None:
    lines = LogLines(out := io.StringIO())
    with lines.writing():
        lines.say(said)
        logging.getLogger("a.library").warning("Invalid HTTP request received.")
    note, warning = lines_of(out)
    assert (note["event"], note["message"]) == (event, message)
    assert (warning["event"], warning["message"]) == ("warning", "Invalid HTTP request received.")


def test_a_reader_that_does_not_read_costs_lines_and_no_answer() -> None:
    goes_on = threading.Event()

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            goes_on.wait(20)
            return super().write(text)

    lines = LogLines(out := Slow(), most=5)
    with lines.writing():
        for number in range(50):  # would never end if it waited
            lines.ended(StoredRequest(id=f"r{number}", time="2026-01-01T00:00:00.000Z", model="m", prompt=[]), "ok")
        goes_on.set()
    found = lines_of(out)
    said = [line["message"] for line in found if line["event"] == "log"]
    assert said == [f"{lines.dropped} lines were dropped"] and lines.dropped >= 40
    assert sum(line["event"] == "request" for line in found) == 50 - lines.dropped


def test_a_server_writes_nothing_else_on_standard_error(
    tiny_llama: Path, tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    with running(str(tiny_llama), "log.lines=json", folder=tmp_path / "s", environment=cli_environment) as (
        url,
        process,
    ):
        body = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 2}
        assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=HANG).status_code == 200
        found = []
        while not found or found[-1]["event"] != "request":
            found.append(json.loads(process.stderr.readline()))
    assert [line["event"] for line in found][-2:] == ["serving", "request"] and url in found[-2]["message"]
    assert found[-1]["status"] == "ok" and found[-1]["completion_tokens"] == 2


def test_the_traceback_of_a_library_is_in_its_line() -> None:
    lines = LogLines(out := io.StringIO())
    with lines.writing():
        try:
            raise ValueError("this broke")
        except ValueError:
            logging.getLogger("a.library").exception("It failed")
    (line,) = lines_of(out)
    assert line["event"] == "error" and "It failed" in line["message"] and "ValueError: this broke" in line["message"]
