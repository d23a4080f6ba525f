"""`tuneloop batch` answers documents as people have them, each as the model was trained."""

from __future__ import annotations

import csv
import errno
import json
import threading
import time
import tracemalloc
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from local_http import Quiet, listening

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.pipeline.answers.predictions import predict
from tuneloop.serving.batch.command import BatchInput, _rows, is_request_file, read_hours, read_window, seconds_until

URL = "/v1/chat/completions"

MakeTuned = Callable[..., Path]
TEXTS = [f"where is parcel {i}" for i in range(6)]


def told(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    assert main(["batch", *arguments, "--json", "--quiet"]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def answers(path: str) -> dict[str, str]:
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}


def test_rows_texts_and_requests_get_what_predict_gives(
    make_tuned: MakeTuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(make_tuned(data={"instruction": "Name the kind of ticket."}))
    labels = [item.label for item in predict(run, [{"text": text} for text in TEXTS])]
    with open("rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "text"], *([f"t{i}", text] for i, text in enumerate(TEXTS))])
    found = told(capsys, "rows.csv", "--model", run)
    assert (found["status"], found["completed"], found["out"]) == ("completed", 6, "rows.answers.jsonl")
    assert answers(found["out"]) == {f"t{i}": label for i, label in enumerate(labels)}
    assert not Path("rows.answers.jsonl.batch").exists()
    with open("other.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "note", "body"], *([f"t{i}", "x", text] for i, text in enumerate(TEXTS))])
    assert main(["batch", "other.csv", "-m", run]) == 2
    assert "--column" in capsys.readouterr().err and not Path("other.answers.jsonl.batch").exists()
    found = told(capsys, "other.csv", "-m", run, "--column", "body")
    assert answers(found["out"]) == {f"t{i}": label for i, label in enumerate(labels)}
    for i, text in enumerate(TEXTS):
        (tmp_path / "texts" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / str(i % 2) / f"{i}.txt").write_text(text)
    (tmp_path / "texts" / "0" / "bad.txt").write_bytes(b"\xff\xfe\x00")
    found = told(capsys, "texts", "--model", run, "-o", "made/texts.jsonl", status=1)
    assert answers(found["out"]) == {f"{i % 2}/{i}.txt": label for i, label in enumerate(labels)}
    (wrong,) = Path(found["errors"]).read_text().splitlines()
    assert json.loads(wrong)["custom_id"] == "0/bad.txt"
    lines = [
        {"custom_id": f"c{i}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "any", "messages": [{"role": "user", "content": text}]}}
        for i, text in enumerate(TEXTS)
    ]  # fmt: skip
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert is_request_file(Path("in.jsonl")) and not is_request_file(Path("rows.csv"))
    found = told(capsys, "in.jsonl", "--model", run)
    assert answers(found["out"]) == {f"c{i}": label for i, label in enumerate(labels)}


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("text\nx\n")
    for arguments, message in (
        (["none.csv", "-m", "smollm2-135m"], "No such file"),
        (["rows.csv", "-m", "smollm2-135m", "--window", "soon"], "--window"),
        (["rows.csv", "-m", "smollm2-135m", "--hours", "25-26"], "--hours"),
        (["rows.csv", "-m", "smollm2-135m", "-o", "rows.csv"], "can't take that place"),
    ):
        assert main(["batch", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_hours_of_the_night_span_midnight() -> None:
    night = read_hours("22-06")
    assert night == (22, 6)
    assert seconds_until(night, datetime(2026, 1, 1, 23)) == 0 == seconds_until(night, datetime(2026, 1, 1, 5, 59))
    assert seconds_until(night, datetime(2026, 1, 1, 6)) == 16 * 3600
    assert seconds_until((8, 18), datetime(2026, 1, 1, 19)) == 13 * 3600
    assert (read_window("90m"), read_window("2d"), read_window(""), read_hours("")) == (5400, 172800, None, None)
    with pytest.raises(UserError):
        read_hours("6-6")


class Limited(Quiet):
    """An OpenAI-compatible server that answers five requests a second, in capitals."""

    taken: list[float]
    lock = threading.Lock()

    def do_GET(self) -> None:
        self.answer(*((200, {"data": [{"id": "m"}]}) if self.path.endswith("/models") else (404, {})))

    def do_POST(self) -> None:
        text = json.loads(self.body())["messages"][-1]["content"]
        with self.lock:
            now = time.monotonic()
            if len([at for at in self.taken if at > now - 1]) >= 5:
                self.answer(429, {"error": {"message": "slowly"}}, {"Retry-After": "1"})
                return
            self.taken.append(now)
        choice = {"index": 0, "delta": {"content": text.upper()}, "finish_reason": "stop"}
        events = [{"choices": [choice]}, {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}]
        data = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self.answer(200, data.encode(), {"Content-Type": "text/event-stream"})


def write_requests(path: str, texts: list[str], *more: str) -> None:
    lines = [
        json.dumps({"custom_id": f"c{i}", "method": "POST", "url": URL, "body": {"messages": [{"role": "user", "content": text}]}})
        for i, text in enumerate(texts)
    ]  # fmt: skip
    Path(path).write_text("\n".join([*more, *lines]) + "\n")


def test_the_rate_of_an_endpoint_costs_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Limited.taken = []
    write_requests("in.jsonl", TEXTS * 2, '{"custom_id": "poison", "body": {"max_tokens": 1e999}}', "{", "[" * 9000)
    assert is_request_file(Path("in.jsonl")), "although its first lines are none"
    with listening(Limited) as url:
        found = told(capsys, "in.jsonl", "-m", f"{url}/v1", "base=m", "--rows", "12", status=1)
    assert (found["completed"], found["failed"], len(Limited.taken)) == (12, 3, 12)
    assert answers(found["out"]) == {f"c{i}": text.upper() for i, text in enumerate(TEXTS * 2)}


@pytest.mark.parametrize("damage", ["empty", "half", "list", "types", "bytes", "folder", "missing", "journal"])
def test_a_damaged_batch_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Limited.taken = []
    write_requests("in.jsonl", TEXTS[:2])

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with listening(Limited) as url:
        command = ["batch", "in.jsonl", "-m", f"{url}/v1", "base=m", "--quiet"]
        with monkeypatch.context() as patch:
            patch.setattr("tuneloop.serving.batch.batch.BatchJob._results", killed)
            assert main(command) not in (0, 1, 2)
        capsys.readouterr()
        folder = Path("in.answers.jsonl.batch")
        state, journal = folder / "batch.json", folder / "journal.jsonl"
        assert len(journal.read_bytes().splitlines()) == 2
        raw = state.read_bytes()
        if damage in ("folder", "missing"):
            state.unlink()
        if damage == "folder":
            state.mkdir()
        elif damage == "journal":
            journal.write_bytes(b"{}\n")
        elif damage != "missing":
            types = json.dumps(json.loads(raw) | {"created_at": "noon"}).encode()
            new = {"empty": b"", "half": raw[:40], "list": b"[]", "types": types, "bytes": b"\xff"}
            state.write_bytes(new[damage])
        assert main(command) == 2
        said = capsys.readouterr().err
        assert ("journal of a batch is damaged" if damage == "journal" else "missing or damaged") in said
        assert len(said.splitlines()) <= 3 and "Traceback" not in said and "delete" in said


def test_a_full_disk_at_the_start_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_requests("in.jsonl", TEXTS)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tuneloop.serving.batch.command.shutil.copyfile", full)
    assert main(["batch", "in.jsonl", "-m", "http://127.0.0.1:9/v1", "base=m"]) == 2
    said = capsys.readouterr().err
    assert "No space left" in said and "Traceback" not in said and not Path("in.answers.jsonl.batch").exists()


def test_requests_without_any_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("\n \n")
    assert main(["batch", "in.jsonl", "-m", "http://127.0.0.1:9/v1", "base=m"]) == 2
    assert len(capsys.readouterr().err.splitlines()) <= 4


def test_rows_are_not_held_in_memory(tmp_path: Path) -> None:
    peaks = []
    for count in (5_000, 15_000):  # several chunks, as files are read
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(f'{{"id": "r{i}", "text": "{"hello" * 100}"}}\n' for i in range(count)))
        given = BatchInput(path, tmp_path / "out.jsonl")
        assert next(iter(_rows(given)))[0] == "r0"  # and all that this needs is imported
        tracemalloc.start()
        assert sum(1 for _ in _rows(given)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 100 * 10_000, peaks
