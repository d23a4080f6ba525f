"""Production is looked at by `tuneloop review`, and what people say comes back as feedback."""

import json
import random
from collections import Counter

import pytest
from traffic import at, request, thumb

from tuneloop.cli.main import main
from tuneloop.core.ids import uuid7
from tuneloop.evaluation.review.items import append_vote, load_review
from tuneloop.improve.collect.command import collect_store
from tuneloop.improve.feedback.review import spread
from tuneloop.improve.monitor.detectors import estimate_quality
from tuneloop.records.review import Vote
from tuneloop.records.server import Decision
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import connect, opened, read_feedback, read_requests


@pytest.fixture
def store(tmp_path):
    """30 answers: three disliked, one to which a candidate said something else, one that an alarm names."""
    connection = connect(tmp_path / "serve", create=True)
    insert(
        connection,
        (request(i, i, prompt=[{"role": "user", "content": f"mail bo@example.com about {i}"}]) for i in range(30)),
    )
    insert(connection, [request(900, 9, arm="candidate", shadow="r000005", completion="other")])
    insert(connection, (thumb(i, i, False) for i in range(3)))
    alarm = {"detections": [{"alarm": True, "requests": ["r000007"]}, {"alarm": False, "requests": ["r000008"]}]}
    insert(connection, [Decision(id=uuid7(), time=at(29), kind="monitor.window", subject="m", data=alarm)])
    connection.close()
    return tmp_path / "serve"


def test_a_queue_goes_to_people_and_their_votes_become_training_rows(store, tmp_path, capsys):
    folder = tmp_path / "queue"
    assert main(["review", "draw", str(store), "-o", str(folder), "--rows", "10", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == 10 and told["strata"]["random"] == 4
    review = load_review(folder)
    assert review.populations == {"production": {"disliked": 3, "rest": 25, "disagreement": 1, "drifting": 1}}
    assert "bo@example.com" not in (folder / "items.jsonl").read_text()
    assert {item.group for item in review.items} >= {"disliked", "disagreement", "drifting"}
    item = next(item for item in review.items if item.group == "disagreement")
    assert item.row == "r000005" and item.answers == ("answer 5",)
    given = {"item": item.id, "reviewer": "Anna", "choice": "rating"}
    append_vote(review.votes_path, Vote(**given, time=at(31), thumb=True))
    append_vote(
        review.votes_path,
        Vote(**given, time=at(32), thumb=False, corrected="It is there, mail al@example.com", note="so"),
    )
    append_vote(review.votes_path, Vote(item=review.items[0].id, reviewer="Bo", choice="skip", time=at(32)))
    for added in (3, 0):  # the last vote counts, once
        assert main(["review", "votes", str(folder), "--store", str(store), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["added"] == added
    with opened(store) as connection:
        found = {item.kind: item.value for item in read_feedback(connection, where="\"user\" = 'reviewer:Anna'")}
    assert found == {"thumbs": False, "correction": "It is there, mail <EMAIL>", "comment": "so"}
    assert collect_store(store, tmp_path / "c", {}).origins == {"correction": 1}
    assert main(["review", "draw", str(store), "-o", str(tmp_path / "again"), "--rows", "40", "--json"]) == 0
    assert "r000005" not in (tmp_path / "again" / "items.jsonl").read_text()  # its answer is known now
    assert main(["review", str(folder), "--no-serve", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["reviewed"] == 1


def test_a_sample_that_measures_comes_back_as_one(store, tmp_path, capsys):
    """All rows are random, answers that people put right or disliked among them; the votes say where they are from."""
    with opened(store) as connection:
        insert(connection, (thumb(i, 30, True, id=f"c{i}", kind="correction", value="that") for i in range(10, 25)))
    folder = tmp_path / "week"
    assert main(["review", "draw", str(store), "-o", str(folder), "--rows", "20", "--measure", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["strata"] == {"random": 20}
    review = load_review(folder)
    assert sum(10 <= int(item.row[1:]) < 25 for item in review.items) >= 5
    for i, item in enumerate(review.items):
        vote = {"item": item.id, "reviewer": "Anna", "choice": "rating", "time": at(31)}
        append_vote(review.votes_path, Vote(**vote, thumb=i < 15))
    assert main(["review", "votes", str(folder), "--store", str(store)]) == 0
    with opened(store) as connection:
        votes = list(read_feedback(connection, where="\"user\" = 'reviewer:Anna'"))
        requests = list(read_requests(connection, where="shadow IS NULL"))
    assert {vote.source for vote in votes} == {"sample"}
    quality = estimate_quality(requests, (), {vote.request: [vote] for vote in votes})
    assert (quality.estimated, quality.judged) == (0.75, 20)


def test_a_sample_has_its_share_of_every_degree_of_sureness():
    rows = [request(i, i, completion={"content": "a", "probability": (i + 1) / 100}) for i in range(100)]
    counts = Counter()
    for seed in range(400):
        sample = spread(rows, 20, random.Random(seed))
        assert len(sample) == 20 and sorted(int(item.id[1:]) // 5 for item in sample) == list(range(20))
        counts.update(item.id for item in sample)
    assert min(counts.values()) > 40 and max(counts.values()) < 125  # each with the chance 1 in 5: 80


def test_the_given_answer_can_be_hidden(store, tmp_path):
    assert main(["review", "draw", str(store), "-o", str(tmp_path / "q"), "--hidden"]) == 0
    assert "answer 1" not in (tmp_path / "q" / "items.jsonl").read_text()


def test_bad_places_are_refused(store, tmp_path, capsys):
    assert main(["review", "draw", str(store), "-o", str(tmp_path / "q")]) == 0
    assert main(["review", "draw", str(store), "-o", str(tmp_path / "q")]) == 2
    assert "There is a review in this folder" in capsys.readouterr().err
    assert main(["review", "draw", str(store), "-o", str(tmp_path / "r"), "--model", "none"]) == 2
    assert main(["review", "votes", str(tmp_path / "nothing"), "--store", str(store)]) == 2
    manifest = json.loads((tmp_path / "q" / "review.json").read_text())
    manifest["systems"][0]["name"] = "tuned"
    (tmp_path / "q" / "review.json").write_text(json.dumps(manifest))
    assert main(["review", "votes", str(tmp_path / "q"), "--store", str(store)]) == 2
    assert "not a review of production" in capsys.readouterr().err
