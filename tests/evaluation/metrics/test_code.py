import json
import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from places import DATA_SETS
from tuneloop.data.load_eval_file import row_of_problem
from tuneloop.evaluation.metrics.code import code_facts, pass_at_k, pass_scores, programs, run_tests
from tuneloop.evaluation.metrics.kinds import problem_of
from tuneloop.evaluation.sandbox import SandboxLimits
from tuneloop.records.rows import Row

DATA = DATA_SETS
PROMPT = 'from typing import List\n\ndef helper(x):\n    return x + 1\n\n\ndef twice(xs: List[int]) -> int:\n    """Sum, twice."""\n'
TEST = "\nimport math\n\ndef check(candidate):\n    assert candidate([1, 2]) == 6\n    assert candidate([]) == 0\n"


def task(**meta):
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "    return 2 * sum(xs)\n"}]
    return Row("t", turns, meta={"prompt": PROMPT, "test": TEST, "entry_point": "twice", **meta})


def passes(*answers, row=None):
    (outcomes,) = run_tests([row or task()], [answers], limits=SandboxLimits(seconds=3))
    return [outcome.passed for outcome in outcomes]


def test_the_forms_in_which_models_answer_are_read():
    body = "    return 2 * sum(xs)\n"
    right = [
        body,
        body.strip(),
        PROMPT + body,
        "def twice(xs):\n    return helper(2 * sum(xs)) - 1",
        f"Here it is:\n```python\n{PROMPT}{body}```\nIt adds and doubles.",
        f"```\n{body}```",
        "def twice(xs):\n    return 2 * sum(xs)\n\nThis function doubles the sum.",
        body + "\n\ndef unfinished(a:\n",
        "twice = lambda xs: 2 * sum(xs)",
    ]
    assert passes(*right) == [True] * len(right)


def test_a_prompt_and_an_answer_that_lost_the_white_space_around_them_are_read():
    assert passes("total = sum(xs)\n    return 2 * total", row=task(prompt=PROMPT.strip())) == [True]


def test_wrong_and_hostile_answers_fail():
    wrong = [
        "",
        "    pass",
        "    return sum(xs)",
        "I can't do that.",
        "    import os; os._exit(0)",
        "    raise SystemExit(0)",
        "def twice(xs):\n    return None",
        "\x00",
        "\ud800",
        "(" * 100_000,
    ]
    assert passes(*wrong) == [False] * len(wrong)


def test_tests_written_as_lists_of_assertions_are_run():
    row = Row(
        "m",
        [
            {"role": "user", "content": "Write double(x)."},
            {"role": "assistant", "content": "def double(x): return 2*x"},
        ],
        meta={"test_list": ["assert double(2) == 4", "assert double(ONE) == 2"], "test_setup_code": "ONE = 1"},
    )
    assert passes("def double(x):\n    return 2 * x", "def double(x):\n    return x", row=row) == [True, False]


def test_rows_without_tests_are_not_run():
    row = Row("x", [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}], meta={"test": "A/B"})
    assert problem_of(row) is None
    assert run_tests([row], [["print(1)"]]) == [[None]]


@given(st.text())
def test_any_answer_gives_programs(answer):
    assert all(isinstance(text, str) for text in programs(problem_of(task()), answer))


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(case):
    n, right, k = case
    draws = list(combinations([i < right for i in range(n)], k))
    assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="at least 5"):
        pass_at_k(3, 1, 5)


def test_each_rows_estimate_and_the_facts_of_the_runs():
    other = Row("o", task().messages)
    outcomes = run_tests(
        [task(), other], [["    return 2 * sum(xs)", "    return 1", "    return 1", "    x", "    y"], ["?"]]
    )
    scores = pass_scores(outcomes)
    assert scores["pass@1"][0] == pytest.approx(1 / 5) and scores["pass@5"][0] == 1.0
    assert math.isnan(scores["pass@1"][1])
    facts = code_facts(outcomes)
    assert facts["ended"] == {"passed": 1, "failed": 4} and facts["answers"] == 5
    assert facts["errors"] == {"AssertionError": 2, "NameError": 2}
    assert any("rlimits" in lock for lock in facts["protections"])


def humaneval():
    file = DATA / "humaneval" / "test.jsonl"
    if not file.is_file():
        pytest.skip("the HumanEval data set is not here")
    rows = [row_of_problem(json.loads(line)) for line in file.read_text().splitlines()]
    assert len(rows) == 164 and None not in rows
    return rows


@pytest.mark.nightly
@pytest.mark.slow
def test_all_reference_solutions_of_humaneval_pass_and_stubs_fail():
    rows = humaneval()
    outcomes = run_tests(rows, [[row.answer, "    pass\n"] for row in rows])
    assert [row.id for row, (right, _) in zip(rows, outcomes, strict=True) if not right.passed] == []
    assert [row.id for row, (_, stub) in zip(rows, outcomes, strict=True) if stub.passed] == []
