"""The playground asks real models, each in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tuneloop.web import speaker
from web.conftest import Site, keys

pytestmark = pytest.mark.process
MakeTuned = Callable[..., Path]


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    speaker.close_all()
    assert not speaker._children


def test_an_answer_comes_with_its_prompt_and_probabilities_and_the_model_stays_for_the_next(
    make_tuned: MakeTuned,
) -> None:
    run = make_tuned(data={"instruction": "Sort it."})
    events = list(speaker.ask(str(run), "", {"text": "where is it"}))
    assert "Sort it." in next(event["prompt"] for event in events if "prompt" in event)
    done = events[-1]["done"]
    assert done["text"] in ("late", "lost", "thanks") and sum(done["probabilities"].values()) == pytest.approx(
        1, abs=0.01
    )
    (child,) = speaker._children.values()
    base = list(speaker.ask(str(run), "base", {"text": "where is it"}))[-1]["done"]
    assert base["probabilities"] != done["probabilities"]
    assert list(speaker.ask(str(run), "", {"text": "where is it"}))[-1]["done"]["text"] == done["text"]
    assert child.poll() is None and len(speaker._children) == 2


def test_a_model_that_can_not_answer_says_why_and_a_reader_who_leaves_ends_its_process(
    make_tuned: MakeTuned, tmp_path: Path
) -> None:
    assert "error" in list(speaker.ask(str(tmp_path / "none"), "", {"text": "x"}))[-1]
    events = speaker.ask(str(make_tuned()), "", {"text": "x"})
    next(events)
    next(events)
    events.close()
    assert (str(tmp_path / "run"), "") not in speaker._children


def test_the_page_shows_columns_without_scripts_and_streams_with_them(make_tuned: MakeTuned, site: Site) -> None:
    make_tuned()
    client = site()
    (key,) = keys(client.get("/runs").text)
    address = f"/playground?token={client.token}&text=where+is+it&who=run+{key}&who=base+{key}"
    page = client.get(f"{address}&wait=yes").text
    assert page.count('class="answer"') == 2 and page.count("tokens read") == 2 and "sse-connect" not in page
    page = client.get(address).text
    stream = re.findall(r'sse-connect="([^"]+)"', page)[0].replace("&amp;", "&")
    events = client.get(stream).text
    assert events.index("event: prompt") < events.index("event: answer") < events.index("event: done")
    assert client.get(stream.replace(client.token, "other")).status_code == 403
    assert "sse-connect" not in client.get(address.replace(f"token={client.token}&", "")).text, (
        "a link of another site asks nothing"
    )


def test_a_row_of_the_data_is_asked_as_it_was_and_saved_for_the_suite(
    make_tuned: MakeTuned, site: Site, tmp_path: Path
) -> None:
    from tuneloop.evaluation.gate.suite import load_suite

    make_tuned()
    suite = tmp_path / "suite.yaml"
    suite.write_text("metrics: [{metric: accuracy, margin: 0.1}]\n", encoding="utf-8")
    client = site()
    (data,), (run,) = keys(client.get("/data").text, "data"), keys(client.get("/runs").text)
    link = re.search(r'href="(/playground\?row=[^"]+)"', client.get(f"/data/{data}").text)
    assert link is not None
    page = client.get(f"{link[1].replace('&amp;', '&')}&token={client.token}&who=run+{run}&wait=yes").text
    assert "Its answer" in page and "tokens read" in page
    assert 'value="late"' in page or 'value="lost"' in page or 'value="thanks"' in page
    form = {"token": client.token, "prompt": "where is it", "how": "equals", "value": "late", "suite": "suite.yaml"}
    assert client.post("/playground", data={**form, "value": ""}).status_code == 400
    assert client.post("/playground", data=form).status_code == 303
    assert client.post("/playground", data={**form, "suite": "../x.yaml"}).status_code == 400
    assert [(row.prompt, row.equals) for row in load_suite(suite).must_pass] == [("where is it", "late")]
