"""Fields of an answer are found by patterns."""

import pytest

from tuneloop.core.errors import UserError
from tuneloop.evaluation.metrics.fields import compile_fields, extract


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
