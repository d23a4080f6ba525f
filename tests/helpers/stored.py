"""What a released version has stored, kept in `tests/stored`, which each later version opens.

    python tests/helpers/stored.py tests/stored/1      # at a release: writes what this version stores

It is a server's folder (its store compressed, keys, lines written ahead, a batch under way), a run, and the tags of a
registered model.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from pathlib import Path

from tuneloop.core.files import write_json
from tuneloop.records.evaluation import Estimate, EvaluationManifest
from tuneloop.records.feedback import Feedback
from tuneloop.records.record import write_record
from tuneloop.records.request import StoredRequest
from tuneloop.records.run import RunManifest
from tuneloop.records.server import Decision
from tuneloop.registry.record import Lineage, RegistryEvent
from tuneloop.serving.batch.batch import INPUT, JOURNAL, make_batch
from tuneloop.serving.batch.file import encoded
from tuneloop.serving.keys import ApiKey, KeyFile
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import connect
from tuneloop.serving.store.writer import FILES, line_of

FIRST = Path(__file__).resolve().parents[1] / "stored" / "1"
DAY = "2026-11-29"


def request(number: int) -> StoredRequest:
    return StoredRequest(
        id=f"01a228f7-f33d-7000-8000-{number:012d}", time=f"{DAY}T20:21:{number:02d}.000Z", key="shop", model="tickets",
        release="tickets/3", user=f"user-{number % 3}", conversation=f"c{number % 2}", usd=0.001,
        prompt=[{"role": "user", "content": f"Where is parcel {number}?"}], completion=f"In box {number}.",
        prompt_tokens=12, completion_tokens=4, ttft_ms=20.5, total_ms=80.0, finish="stop", tier="default",
    )  # fmt: skip


def write(folder: Path) -> None:
    """Write what this version stores."""
    serve, run = folder / "serve", folder / "run"
    batch = serve / "batch" / "batches" / f"batch_{1:032x}"
    for item in (batch, run):
        item.mkdir(parents=True)
    store = connect(serve, create=True)
    insert(store, map(request, range(1, 9)))
    for number in (1, 2):
        about, time = request(number).id, f"{DAY}T21:00:0{number}.000Z"
        insert(store, [Feedback(id=f"f{number}", request=about, kind="thumbs", value=number == 1, time=time)])
        data = {"share": 0.1 * number}
        insert(store, [Decision(id=f"d{number}", time=time, kind="experiment.start", subject="e", data=data)])
    store.forget(whole=True)
    store.close()
    with gzip.GzipFile(serve / "store.db.gz", "wb", mtime=0) as file:
        file.write((serve / "store.db").read_bytes())
    for item in serve.glob("store.db*"):
        if item.suffix != ".gz":
            item.unlink()
    (serve / FILES[0]).write_bytes(line_of(request(9)))
    key = ApiKey(id="0a1b2c3d", name="shop", sha256="0" * 64, created=f"{DAY}T20:00:00.000Z")
    write_record(serve / KeyFile.file, KeyFile(keys=[key]))
    make_batch(batch, "/v1/chat/completions", created_at=1_796_000_000)
    body = {"model": "tickets", "messages": [{"role": "user", "content": "Where?"}]}
    lines = ({"custom_id": f"row-{i}", "method": "POST", "url": "/v1/chat/completions", "body": body} for i in (1, 2))
    (batch / INPUT).write_text("".join(json.dumps(line) + "\n" for line in lines))
    answer = {"id": request(1).id, "choices": [{"message": {"content": "Here."}}]}
    response = {"status_code": 200, "request_id": request(1).id, "body": answer}
    (batch / JOURNAL).write_bytes(encoded(1, {"custom_id": "row-1", "response": response, "error": None}))
    write_record(
        run / RunManifest.file, RunManifest(id="run", model="smollm2-135m", steps=3, rows=20, adapter="adapter")
    )
    accuracy = {"accuracy": Estimate(0.75, 0.6, 0.9)}
    write_record(run / EvaluationManifest.file, EvaluationManifest(n=20, metrics=accuracy, primary="accuracy"))
    lineage = Lineage(artifact="a1", manifest="0" * 64, format="merged", run="run", dataset="tickets-0123456789ab")
    event = RegistryEvent(
        id="20261129T200000-abc", action="register", model_version="1", aliases={"candidate": "1"}, who="anna@desk",
        when=f"{DAY}T20:00:00+00:00",
    )  # fmt: skip
    tags = {f"tuneloop.{name}": value for name, value in lineage if isinstance(value, str) and value}
    write_json(folder / "registry.json", {"version": tags, "model": {f"tuneloop.history.{event.id}": event.to_json()}})


def unpacked(folder: Path, source: Path = FIRST) -> Path:
    """A copy of what a version has stored, ready to be opened."""
    shutil.copytree(source, folder)
    packed = folder / "serve" / "store.db.gz"
    (folder / "serve" / "store.db").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    return folder


if __name__ == "__main__":
    write(Path(sys.argv[1]))
