"""The gate's three verdicts, on evaluations with known differences."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from places import ROOT
from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.files import sha256_file
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import evaluate
from tuneloop.evaluation.gate import decide as gate
from tuneloop.evaluation.gate.decide import read_side, run_gate
from tuneloop.evaluation.gate.suite import MustPass, load_suite
from tuneloop.evaluation.results import write_evaluation
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import GateCheck, GateResult, Subject
from tuneloop.records.record import write_record
from tuneloop.records.rows import Row

N = 200
LABELS = ["billing", "delivery", "refund"]
Folder = Callable[..., Path]


@pytest.fixture
def evaluation(tmp_path: Path) -> Folder:
    """Write an evaluation of 200 rows whose answers are wrong at the given places."""

    def make(
        name: str,
        wrong: Sequence[int] = (),
        *,
        seconds: float = 10.0,
        numbers: Sequence[int] = range(N),
        **manifest: Any,
    ) -> Path:
        rows = [
            Row(f"r{i}", [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": LABELS[i % 3]}], LABELS[i % 3])
            for i in numbers
        ]  # fmt: skip
        answers = [Completion(LABELS[(i + (i in set(wrong))) % 3]) for i in numbers]
        scored = evaluate(
            rows, answers, task="classification", labels=LABELS, config=EvaluateConfig(bootstrap=200), seed=0
        )
        costs = {"tuned": {"seconds": seconds, "usd": 0.0}}
        path = write_evaluation(tmp_path / name, scored, Subject("m", "d", "test", key="k"), more={"costs": costs})  # fmt: skip
        path.write_text(json.dumps(json.loads(path.read_text()) | manifest))
        return path.parent

    return make


@pytest.fixture
def judged(tmp_path: Path, evaluation: Folder) -> Callable[..., dict[str, Any]]:
    """Gate a candidate that is wrong on `new` against a base that is wrong on `old`."""

    def run(suite: dict[str, Any], *, new: Sequence[int] = (), old: Sequence[int] = (), **more: Any) -> dict[str, Any]:
        (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
        options = {key: more.pop(key) for key in ("ask", "fields") if key in more}
        candidate, base = evaluation("new", new, **more), evaluation("old", old)
        sides = read_side(str(candidate)), read_side(str(base))
        return run_gate(load_suite(tmp_path / "suite.yaml"), *sides, **options)

    return run


def test_rows_that_both_were_asked_are_judged_and_the_line_says_so(evaluation: Folder, tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(ACCURACY))
    sides = [
        read_side(str(evaluation("a", numbers=range(60)))),
        read_side(str(evaluation("b", numbers=range(30, 150)))),
    ]
    outcome = run_gate(load_suite(tmp_path / "suite.yaml"), *sides)
    (check,) = outcome.checks
    assert check.rows == 30 and check.message.endswith("(on the 30 rows that both answered)")


@pytest.mark.parametrize("same", [True, False])
def test_what_cannot_be_judged_is_refused_before_the_model_is_asked(
    evaluation: Folder, tmp_path: Path, same: bool
) -> None:
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({**ACCURACY, "must_pass": [{"id": "r1"}]}))
    candidate = evaluation("a", wrong=[1], numbers=range(60))
    base = candidate if same else evaluation("b", numbers=range(50, 90))
    asked: list[object] = []

    def ask(rows: Sequence[Row]) -> list[Completion]:
        asked.extend(rows)
        return [Completion("billing") for _ in rows]

    with pytest.raises(UserError, match="same evaluation" if same else "different rows"):
        run_gate(load_suite(tmp_path / "suite.yaml"), read_side(str(candidate)), read_side(str(base)), ask=ask)
    assert not asked


def test_a_row_that_must_pass_is_shown_with_its_text(judged: Any) -> None:
    (check,) = judged({"must_pass": [{"id": "r7"}]}).checks
    assert check.name == "r7" and check.message == 'r7 "q7": passes'


ACCURACY = {"metrics": [{"metric": "accuracy", "margin": 0.05}]}


@pytest.mark.parametrize(
    ("new", "expected"),
    [([], "pass"), (range(2), "pass"), (range(40), "fail"), (range(8), "inconclusive")],
    ids=["equal", "slightly worse", "much worse", "near the margin"],
)
def test_a_margin_has_three_verdicts(judged: Any, new: Sequence[int], expected: str) -> None:
    outcome = judged(ACCURACY, new=new)
    (check,) = outcome.checks
    assert outcome.status == expected, check.message
    assert check.limit == -0.05 and check.low <= check.value <= check.high
    if expected == "inconclusive":
        assert "rows would settle it" in check.message


def test_one_failed_check_fails_the_gate_and_an_open_one_leaves_it_open(judged: Any) -> None:
    two = {"metrics": [{"metric": "accuracy", "margin": 0.05}, {"metric": "macro_f1", "at_least": 0.99}]}
    assert judged(two, new=range(8), old=range(8)).status == "fail"
    assert judged({"metrics": [*ACCURACY["metrics"], {"metric": "accuracy", "at_least": 0.97}]}, new=range(5)).status == "inconclusive"  # fmt: skip


def test_a_loss_in_one_slice_fails_though_the_whole_passes(judged: Any) -> None:
    wrong = [i for i in range(72) if i % 3 == 2]  # refunds alone: 12 points of all, 36 of refunds
    by = {"metrics": [{"metric": "accuracy", "margin": 0.2}, {"metric": "accuracy", "margin": 0.15, "by": "label"}]}
    outcome = judged(by, new=wrong)
    assert {c.name: c.status for c in outcome.checks} == {
        "accuracy": "pass", "accuracy [label billing]": "pass", "accuracy [label delivery]": "pass",
        "accuracy [label refund]": "fail",
    }  # fmt: skip
    item = judged({"metrics": [{"metric": "accuracy", "margin": 0.15, "slice": {"label": "refund"}}]}, new=wrong)
    assert item.status == "fail" and item.checks[0].rows == 66


def test_slices_by_columns_of_the_data_set(judged: Any) -> None:
    fields = {f"r{i}": {"language": "de" if i < 50 else "en"} for i in range(N)}
    suite = {"metrics": [{"metric": "accuracy", "margin": 0.1, "slice": {"language": "de"}}]}
    assert judged(suite, new=range(30), fields=fields).status == "fail"
    assert judged(suite, new=range(60, 90), fields=fields).status == "pass"


def test_rows_that_must_pass(judged: Any) -> None:
    outcome = judged({"must_pass": ["r0", "r1", {"id": "r2", "contains": "fund", "lacks": ["bill"]}]}, new=[1])
    assert [c.status for c in outcome.checks] == ["pass", "fail", "pass"]
    assert outcome.status == "fail"


@pytest.mark.parametrize(("flaky", "status"), [("inconclusive", "inconclusive"), ("fail", "fail"), ("pass", "pass")])
def test_a_row_that_passes_sometimes_is_flaky(judged: Any, flaky: str, status: str) -> None:
    calls: list[int] = []

    def ask(rows: Sequence[Row]) -> list[Completion]:
        calls.append(len(rows))
        return [Completion("delivery" if len(calls) > 1 else "refund") for _ in rows]

    outcome = judged({"must_pass": ["r0", "r1"], "repeat": 3, "flaky": flaky}, new=[1], ask=ask)
    assert [vars(row) for row in outcome.flaky] == [{"row": "r1", "passed": 2, "asked": 4}]
    assert outcome.status == status and calls == [1, 1, 1]


def test_a_row_that_keeps_failing_is_no_flake(judged: Any) -> None:
    outcome = judged({"must_pass": ["r1"], "repeat": 2}, new=[1], ask=lambda rows: [Completion("refund")] * len(rows))
    assert outcome.status == "fail" and not outcome.flaky
    assert "3 of 3 times" in outcome.checks[0].message


def test_a_new_prompt_is_asked_of_the_model_and_is_open_where_there_is_none(judged: Any) -> None:
    suite = {"must_pass": [{"prompt": "Where is my parcel?", "matches": "^deliv"}]}
    assert judged(suite).status == "inconclusive"
    asked: list[Row] = []

    def ask(rows: Sequence[Row]) -> list[Completion]:
        asked.extend(rows)
        return [Completion("delivery") for _ in rows]

    assert judged(suite, ask=ask).status == "pass"
    assert asked[0].prompt[-1]["content"] == "Where is my parcel?" and len(asked) == 1


def test_must_pass_rows_from_a_file_beside_the_suite(judged: Any, tmp_path: Path) -> None:
    (tmp_path / "golden.jsonl").write_text('{"id": "r1"}\n"r2"\n')
    outcome = judged({"must_pass_file": "golden.jsonl"}, new=[2])
    assert [c.status for c in outcome.checks] == ["pass", "fail"]


@pytest.mark.parametrize(
    ("measured", "expected"),
    [({"score": {"value": 0.01, "low": 0.0, "high": 0.03}}, "pass"), ({"score": {"value": 0.2, "low": 0.1, "high": 0.3}}, "fail"),
     ({"score": {"value": 0.04, "low": 0.01, "high": 0.09}}, "inconclusive"), (None, "inconclusive")],
)  # fmt: skip
def test_forgetting_has_a_limit(judged: Any, measured: Any, expected: str) -> None:
    assert judged({"forgetting": {"at_most": 0.05}}, forgetting=measured).status == expected


def test_latency_has_limits(judged: Any) -> None:
    both = {"latency": {"seconds_per_row": 0.1, "ratio": 1.5}}
    assert judged(both, seconds=12.0).status == "pass"
    assert [c.status for c in judged(both, seconds=18.0).checks] == ["pass", "fail"]
    assert [c.status for c in judged(both, seconds=30.0).checks] == ["fail", "fail"]


@pytest.mark.parametrize(
    ("suite", "match"),
    [
        ({}, "demands nothing"),
        ({"must_pas": ["r1"]}, "Unknown key"),
        ({"metrics": [{"metric": "accuracy"}]}, "give margin"),
        ({"metrics": [{"metric": "acuracy", "margin": 0.1}]}, "no metric"),
        ({"metrics": [{"metric": "accuracy", "margin": -1}]}, "metrics.0.margin"),
        ({"metrics": [{"metric": "accuracy", "margin": 0.1, "slice": {"label": "nix"}}]}, "No row has"),
        ({"metrics": [{"metric": "accuracy", "margin": 0.1, "by": "colour"}]}, "no field"),
        ({"metrics": [{"metric": "accuracy", "margin": 0.1, "by": "label", "min_rows": 500}]}, "500 rows"),
        ({"metrics": [{"metric": "judge.win_rate", "margin": 0.1}]}, "judge"),
        ({"must_pass": ["nowhere"]}, "no row"),
        ({"must_pass": [{"prompt": "new"}]}, "needs equals"),
        ({"must_pass": [{"id": "r1", "matches": "("}]}, "regular expression"),
        ({"must_pass_file": "nowhere.jsonl"}, "No such file"),
    ],
)
def test_a_bad_suite_is_refused_with_the_reason(judged: Any, suite: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        judged(suite)


def test_the_status_of_a_run_goes_stale_with_its_evaluation(judged: Any, evaluation: Folder) -> None:
    folder = evaluation("run")
    assert gate.status(folder) == "none"
    outcome = judged(ACCURACY, new=range(40))
    write_record(folder.parent / "new" / GateResult.file, outcome)
    assert gate.status(folder.parent / "new") == "fail"
    evaluation("new", [1, 2])
    assert gate.status(folder.parent / "new") == "stale"


@pytest.mark.parametrize(
    ("new", "said"),
    [(range(40), "gate is red"), (range(8), "not enough evidence"), ((), "")],
    ids=["red", "open", "green"],
)
def test_nothing_is_made_of_a_run_at_a_red_gate_unless_forced_and_that_is_recorded(
    judged: Any, evaluation: Folder, new: Any, said: str
) -> None:
    path = evaluation("run").parent / "new"
    assert gate.gate_for_release(path.parent / "run") == {"status": "none", "suite": None, "forced": False}
    write_record(path / GateResult.file, judged(ACCURACY, new=new))
    if not said:
        assert (
            gate.gate_for_release(path) == gate.gate_for_release(path, force=True)
            and not gate.gate_for_release(path)["forced"]
        )
        return
    with pytest.raises(UserError, match=said):
        gate.gate_for_release(path)
    forced = gate.gate_for_release(path, force=True)
    assert forced["forced"] and forced["status"] == gate.status(path) and forced["suite"]["hash"]


def test_a_refused_release_names_the_line_that_failed_and_not_one_without_evidence(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text("{}")
    checks = [
        GateCheck("metric", "accuracy", "pass", "accuracy holds"),
        GateCheck("forgetting", "forgetting", "inconclusive", "forgetting: not measured"),
        GateCheck("metric", "macro_f1", "fail", "macro_f1: -0.2 against the base"),
    ]
    evaluation = sha256_file(tmp_path / "eval.json")
    write_record(tmp_path / GateResult.file, GateResult(status="fail", checks=checks, evaluation=evaluation))
    with pytest.raises(UserError, match="The gate is red") as error:
        gate.gate_for_release(tmp_path)
    assert "macro_f1" in str(error.value.where) and "forgetting" not in str(error.value.where)
    write_record(
        tmp_path / GateResult.file, GateResult(status="inconclusive", checks=checks[:2], evaluation=evaluation)
    )
    with pytest.raises(UserError, match="not enough evidence") as error:
        gate.gate_for_release(tmp_path)
    assert "forgetting" in str(error.value.where)


@pytest.mark.parametrize(("new", "status"), [((), 0), (range(40), 1), (range(8), 3)])
def test_the_command_tells_by_its_exit_status(
    evaluation: Folder, cli: Any, tmp_path: Path, new: Any, status: int
) -> None:
    evaluation("new", new), evaluation("old")
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(ACCURACY))
    done = cli("gate", "new", "--against", "old", "--suite", "suite.yaml", "--json")
    assert done.returncode == status, done.stderr
    assert json.loads(done.stdout)["status"] == json.loads((tmp_path / "new" / "gate.json").read_text())["status"]


def test_the_example_suite_parses() -> None:
    suite = load_suite(ROOT / "examples" / "regression.yaml")
    assert suite.must_pass and suite.metrics and suite.latency


def test_a_suite_that_is_not_there_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text("version: 1\n")
    with pytest.raises(UserError, match="No such suite") as error:
        load_suite(tmp_path / "suit.yaml")
    assert "suite.yaml" in (error.value.next_step or "")


def test_a_demand_that_backtracks_is_named() -> None:
    demand = MustPass(prompt="x", matches="^(a|aa)+$")
    side: Any = None  # a new prompt is in no evaluation
    assert gate._passes(demand, side, None, Completion("aaa"))
    with pytest.raises(UserError, match="takes more than") as error:
        gate._passes(demand, side, None, Completion("a" * 60 + "!"))
    assert error.value.where == "^(a|aa)+$"


def test_a_margin_alone_is_enough_for_a_verdict(evaluation: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    old, new, bad = (
        str(evaluation(name, wrong)) for name, wrong in (("old", [1]), ("new", [2]), ("bad", range(0, 200, 3)))
    )
    assert main(["gate", new, "--against", old, "--margin", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["suite"]["name"] == "not worse by more than 5 points" and gate.status(new) == "pass"
    assert main(["gate", new, "--against", old, "--margin", "0.5", "--json"]) == 3
    needed = json.loads(capsys.readouterr().out)["checks"][0]["message"]
    assert "not shown" in needed and "would settle it" in needed
    assert main(["gate", bad, "--against", old, "--margin", "5"]) == 1
    assert "refuted" in capsys.readouterr().out
    assert main(["gate", new, "--against", new, "--margin", "5"]) == 2
    assert main(["gate", new, "--against", old, "--margin", "5", "--suite", "s.yaml"]) == 2
