"""Answers that are programs: run against their unit tests in the sandbox, scored as pass@k."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from tuneloop.core.machine import cores
from tuneloop.core.ui import progress
from tuneloop.evaluation.metrics.kinds import Problem, problem_of
from tuneloop.evaluation.sandbox import Outcome, SandboxLimits, run_program
from tuneloop.records.metric import Metric
from tuneloop.records.rows import Row

PASS_AT = (1, 5, 10, 100)  # those that the number of answers a row allows are reported

_metric = partial(Metric, needs="programs", meaning="chance that one of so many answers passes its unit tests")
METRICS = (
    _metric("pass@1", "pass@1", "share", test="exact McNemar", headline="programs"),
    *(_metric(f"pass@{k}", f"pass@{k}", "share", test="by its scores") for k in PASS_AT[1:]),
)

_CUTS = 20  # parts at the end of an answer that are left out, one by one, until the rest compiles
LONGEST_PROGRAM = 1 << 17  # characters of an answer that are run

_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\r?\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE | re.IGNORECASE
)
_BREAK = re.compile(r"\n(?=\S)")  # a line at the left margin: where an answer may have run on


def programs(problem: Problem, answer: str) -> list[str]:
    """The programs that an answer may mean, the likeliest first; the first that compiles is run. An answer is a whole
    function or the continuation of the prompt, bare or in a Markdown fence; a continuation whose first line lost its
    indentation, or that runs on after the function, is read too."""
    answer = answer[:LONGEST_PROGRAM]
    fenced, name, prompt = [match[1] for match in _FENCE.finditer(answer)], problem.entry_point, problem.prompt
    defines = re.compile(rf"^(?:async\s+def|def|class)\s+{name}\b|^{name}\s*=", re.MULTILINE)
    pieces: list[str] = []
    for text in ["\n".join(fenced), *fenced[:1], answer] if fenced else [answer]:
        # The text, then what is left of it without its last parts: prose after the code, a function cut off.
        places = [match.start() for match in _BREAK.finditer(text)]
        for piece in (text, *(text[:position] for position in places[: -_CUTS - 1 : -1])):
            if not prompt:
                pieces.append(piece)
            elif name and defines.search(piece):
                # The stub before it brings the prompt's imports and helpers; the answer's definition replaces it.
                pieces.append(f"{prompt.rstrip()}\n    pass\n\n{piece}")
            else:
                pieces += [prompt.rstrip("\n") + "\n" + piece.lstrip("\n"), prompt.rstrip() + "\n    " + piece.lstrip()]
    return [f"{text}\n\n{problem.tests}" for text in dict.fromkeys(pieces)]


def run_tests(
    rows: Sequence[Row], answers: Sequence[Sequence[str]], *, limits: SandboxLimits | None = None
) -> list[list[Outcome | None]]:
    """Run each answer's program with its row's unit tests, as many at once as there are cores; None without tests."""
    problems = [(i, problem) for i, row in enumerate(rows) if (problem := problem_of(row))]
    jobs = [(i, j, problem, text) for i, problem in problems for j, text in enumerate(answers[i])]
    outcomes: list[list[Outcome | None]] = [[None] * len(texts) for texts in answers]
    with ThreadPoolExecutor(max_workers=max(1, min(cores(), 16))) as pool:
        results = pool.map(lambda job: run_program(programs(job[2], job[3]), limits), jobs)
        for number, ((i, j, _, _), outcome) in enumerate(zip(jobs, results, strict=True), 1):
            outcomes[i][j] = outcome
            progress("running unit tests", number, len(jobs))
    return outcomes


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that at least one of `k` answers drawn from `n`, of which `right` pass, is right. Unbiased: 1 - C(n -
    right, k) / C(n, k). Source: Chen et al. 2021, arXiv 2107.03374, eq. 1. Raises ValueError: k above n."""
    if not 0 < k <= n:
        raise ValueError(f"pass@{k} needs at least {k} answers, there are {n}")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def pass_scores(outcomes: Sequence[Sequence[Outcome | None]]) -> dict[str, list[float]]:
    """`pass@k` -> one estimate a row (NaN: the row has no tests), for the k that every row's answers allow."""
    counts = [(len(row), sum(o.passed for o in row if o)) if row and row[0] is not None else None for row in outcomes]
    fewest = min((count[0] for count in counts if count), default=0)
    return {
        f"pass@{k}": [pass_at_k(*count, k) if count else math.nan for count in counts] for k in PASS_AT if k <= fewest
    }


def code_facts(outcomes: Sequence[Sequence[Outcome | None]]) -> Mapping[str, Any]:
    """What `eval.json` tells of the runs: how they ended, and under which protections."""
    ran = [outcome for row in outcomes for outcome in row if outcome is not None]
    reasons = Counter(o.reason.partition(":")[0] for o in ran if o.status == "failed")
    return {
        "answers": len(ran),
        "ended": dict(Counter(outcome.status for outcome in ran)),
        "errors": dict(reasons.most_common(10)),
        "protections": sorted({lock for outcome in ran for lock in outcome.protections}),
        "seconds": round(sum(outcome.seconds for outcome in ran), 2),
    }
