import math

import pytest

from tuneloop.core.errors import UserError
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import evaluate
from tuneloop.evaluation.metrics.custom import compile_fields, extract, load_scorer, own_scores
from tuneloop.evaluation.paired import compare
from tuneloop.evaluation.results import ComparedWith, load_evaluation, write_evaluation
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Subject
from tuneloop.records.rows import Row

FILE = """
def polite(prediction):
    return "please" in prediction.lower()

def ratio(reference, prediction):
    return len(prediction) / len(reference)

def by_position(a, b, c):
    return float(a == b and c["meta"]["line"] > 0)

def rich(answer, references, prompt, meta, limit=3):
    return None if meta["line"] == 1 else len(references) + len(prompt) + limit

def fails(prediction):
    return 1 / 0

def wordy(prediction):
    return "good"

def endless(prediction):
    return float("inf")

def greedy(a, b, c, d):
    return 1

number = 3
"""


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    monkeypatch.setenv("TUNELOOP_TRUSTED_CODE", "*")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def row(i, answer="yes"):
    turns = [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": answer}]
    return Row(f"r{i}", turns, meta={"line": i})


ROWS = [row(1), row(2), row(3)]


def scores(file, function, answers=("yes", "Please wait", "no")):
    return own_scores(load_scorer(function, f"{file}:{function}"), ROWS, answers)


def test_parameters_are_filled_by_name_or_else_in_order(file):
    assert scores(file, "polite") == [0.0, 1.0, 0.0]
    assert scores(file, "ratio") == pytest.approx([1.0, 11 / 3, 2 / 3])
    assert scores(file, "by_position") == [1.0, 0.0, 0.0]
    found = scores(file, "rich")
    assert math.isnan(found[0]) and found[1:] == [6.0, 6.0]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("mine.py", "Not file.py:function"),
        ("nowhere.py:f", "No file"),
        ("{file}:absent", "no function"),
        ("{file}:number", "no function"),
        ("{file}:greedy", "asks for a, b, c, d"),
        ("{file}:fails", r"ZeroDivisionError: division by zero \(line 15\)"),
        ("{file}:wordy", "returned str"),
        ("{file}:endless", "returned inf"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(file, path, said):
    with pytest.raises(UserError, match=said):
        own_scores(load_scorer("mine", path.format(file=file)), ROWS, ["a", "b", "c"])


def test_a_file_that_does_not_load_is_told_with_its_line(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_that_name\n")
    with pytest.raises(UserError, match="ModuleNotFoundError"):
        load_scorer("x", f"{path}:f")


def evaluated(file, answers, **scorers):
    config = EvaluateConfig(bootstrap=100, embedding=False, scorers=scorers)
    return evaluate(ROWS, [Completion(a) for a in answers], task="generation", labels=None, config=config, seed=0)


def test_an_own_scorer_is_a_metric_with_interval_and_test_and_outlives_its_file(file, tmp_path):
    a = evaluated(file, ["no", "no", "no"], polite=f"{file}:polite")
    b = evaluated(file, ["please", "no", "please"], polite=f"{file}:polite")
    assert b.metrics["polite"].value == pytest.approx(2 / 3)
    assert {c.metric: c.test for c in compare("a", a, "b", b)}["polite"] == "exact McNemar"
    write_evaluation(tmp_path / "e", b, Subject("m", "d", "test", name="b"), ComparedWith({"a": a}, []))
    file.unlink()
    assert load_evaluation(tmp_path / "e").metrics == b.metrics
    assert load_evaluation(tmp_path / "e", "a").metrics == a.metrics


def test_a_name_that_is_taken_is_refused(file):
    with pytest.raises(UserError, match="already"):
        evaluated(file, ["a", "b", "c"], rougeL=f"{file}:polite")


@pytest.mark.parametrize(("pattern", "said"), [("Queue: (", "regular expression"), ("Queue", "one group")])
def test_a_bad_field_pattern_names_its_key(pattern, said):
    with pytest.raises(UserError, match=said) as error:
        compile_fields({"queue": pattern})
    assert error.value.where == "evaluate.fields.queue"


def test_fields_are_read_by_line():
    pattern = compile_fields({"queue": r"^Queue: (.+)$"})["queue"]
    assert extract(pattern, "Hello\nQueue:  billing \nIssue: x") == "billing"
    assert extract(pattern, "no queue") is None


def test_a_pattern_that_backtracks_is_named_and_holds_nobody():
    pattern = compile_fields({"queue": "Queue: ((?:a|aa)+)$"})["queue"]
    assert extract(pattern, "Queue: aaaa") == "aaaa"
    with pytest.raises(UserError, match="takes more than") as error:
        extract(pattern, "Queue: " + "a" * 60 + "!")
    assert error.value.where == "Queue: ((?:a|aa)+)$"
