"""A stored prompt is shown as the template of the weights that answered renders it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from traffic import request
from web_pages import pages_of

from tuneloop.models.chat.template import load_template
from tuneloop.records.record import write_record
from tuneloop.records.server import ServerState
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import opened


def test_the_text_is_that_of_the_weights_template(tmp_path: Path, tiny_llama: Path) -> None:
    run = tmp_path / "runs" / "a"
    shutil.copytree(tiny_llama, run / "adapter")
    (run / "config.yaml").write_text("model: tiny\n")
    (run / "adapter" / "tuneloop.json").write_text(json.dumps({"hash": "abc"}))
    asked = [{"role": "user", "content": "a <|eot_id|> b"}]
    with opened(tmp_path / "serve", create=True) as store:
        insert(store, [request(1, 1, adapter="abc", prompt=asked), request(2, 2, adapter="gone")])
    pages = pages_of(tmp_path)
    html = pages.get("/traffic/r000001?read=1")
    text = load_template(tiny_llama).text(asked, prompt=True)
    assert text.replace("<", "&lt;").replace(">", "&gt;") in html
    assert "not in these folders" in pages.get("/traffic/r000002?read=1", 404)


def test_without_trained_weights_it_is_the_bases(tmp_path: Path, tiny_llama: Path) -> None:
    with opened(tmp_path / "serve", create=True) as store:
        insert(store, [request(1, 1)])
    write_record(tmp_path / "serve" / ServerState.file, ServerState(base=str(tiny_llama)))
    assert "question 1" in pages_of(tmp_path).get("/traffic/r000001?read=1").partition("As the model read it")[2]
    (tmp_path / "serve" / ServerState.file).unlink()
    assert "not known which model" in pages_of(tmp_path).get("/traffic/r000001?read=1", 404)
