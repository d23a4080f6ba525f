"""Our rows as a task of Inspect, run by it on the packaged model: are its scores ours?

    python benchmarks/referee.py [--inspect BIN] [--statsmodels PYTHON] [--write]

A server (`tuneloop serve smollm2-135m`) answers. `tuneloop evaluate` measures it, `tuneloop data export` writes the same
rows as a task, Inspect runs it through its own OpenAI client, and what it wrote is read back and compared item by item
with ours. BIN is the `bin` folder of an environment with the tool. Then the p-values of the comparison are put next to
those of scipy and statsmodels on the same pairs. What is not named is left out. Rows: tickets of `examples/` with their queue as a label, and as a text with an instruction.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
from golden import serving  # noqa: E402
from train_table import put_into_results  # noqa: E402

from tuneloop.core.stats.intervals import PairedMean, mcnemar_p  # noqa: E402
from tuneloop.evaluation.foreign.align import of_ours  # noqa: E402
from tuneloop.evaluation.foreign.read import read_foreign  # noqa: E402
from tuneloop.evaluation.results import load_evaluation  # noqa: E402

HEADING = "## Our rows in other evaluation tools"
MODEL = "smollm2-135m"
ENVIRONMENT = {"OPENAI_API_KEY": "none", "TUNELOOP_API_KEY": "none", "PROMPTFOO_DISABLE_TELEMETRY": "1",
               "PROMPTFOO_DISABLE_UPDATE": "1", "PROMPTFOO_CACHE_ENABLED": "false", "HF_HUB_OFFLINE": "1",
               "HF_DATASETS_OFFLINE": "1"}  # fmt: skip


def write_rows(folder: Path, count: int) -> dict[str, Path]:
    """Two files of rows: with labels, and with texts to write."""
    tickets = [json.loads(line) for line in (ROOT / "examples/tickets/tickets.jsonl").read_text().splitlines()]
    queues = sorted({ticket["queue"] for ticket in tickets})
    files = {}
    for kind, text, column in (("labels", "text", "label"), ("texts", "prompt", "completion")):
        lines = []
        for i, ticket in enumerate(tickets[:: len(tickets) // count][:count]):
            question = f"Which queue: {', '.join(queues)}? Answer with one of them.\n\n{ticket['text'][:300]}"
            column_text = ticket["queue"] if kind == "labels" else f"Queue: {ticket['queue']}"
            lines.append({"id": f"t{i}", text: question, column: column_text})
        files[kind] = folder / f"{kind}.jsonl"
        files[kind].write_text("".join(json.dumps(line) + "\n" for line in lines))
    return files


def tuneloop(*text: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    line = [sys.executable, "-m", "tuneloop", *text, "--json", "--quiet"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}: {done.stdout}{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def run_inspect(path: str, task: Path, command: str, folder: Path) -> Path:
    """Run an exported task by the command that its export prints; what it wrote."""
    text = shlex.split(command.removeprefix(f"cd {task} && "))
    text[0] = str((Path(path) / text[0]).resolve())
    text += ["--log-dir", str(folder / "logs"), "--display", "none"]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(text, capture_output=True, text=True, check=False, env=environment, cwd=task)
    wrote = next((folder / "logs").glob("*.eval"), None)
    if wrote is None:
        raise SystemExit(f"Inspect wrote nothing: {done.stdout[-3000:]}{done.stderr[-3000:]}")
    return wrote


def equal_scores(ours: Any, theirs: Any, metric: str) -> tuple[int, int]:
    """Items with the same score of a metric, of those in both."""
    shared = [i for i in ours.items if i in theirs.items]
    same = sum(math.isclose(ours.items[i].mean(metric), theirs.items[i].mean(metric), abs_tol=1e-9) for i in shared)
    return same, len(shared)


def p_values(python: str) -> list[str]:
    """Our p-values next to those of others, on pairs drawn with a fixed seed: lines of a table."""
    from scipy import stats

    rng = np.random.default_rng(7)
    a, b = rng.random(150) < 0.6, rng.random(150) < 0.7
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    x, clusters = rng.random(150), np.repeat(np.arange(50), 3)
    y = x + rng.normal(0.03, 0.2, 150) + np.repeat(rng.normal(0, 0.1, 50), 3)
    rows = [
        ("exact McNemar", "scipy binomtest", mcnemar_p(only_a, only_b),
         stats.binomtest(only_a, only_a + only_b, 0.5).pvalue),
        ("paired t", "scipy ttest_rel", PairedMean.of(y - x).p, stats.ttest_rel(y, x).pvalue),
    ]  # fmt: skip
    if python:
        code = (
            "import json, sys, numpy as np, statsmodels.api as sm\n"
            "from statsmodels.stats.contingency_tables import mcnemar\n"
            "d = json.load(sys.stdin)\n"
            "g = np.array(d['gaps']); one = np.ones((len(g), 1))\n"
            "fit = sm.OLS(g, one).fit(cov_type='cluster', cov_kwds={'groups': d['clusters']}, use_t=True)\n"
            "print(json.dumps([mcnemar([[0, d['b']], [d['a'], 0]], exact=True).pvalue, float(fit.pvalues[0])]))\n"
        )
        pairs = {"gaps": (y - x).tolist(), "clusters": clusters.tolist(), "a": only_a, "b": only_b}
        done = subprocess.run([python, "-c", code], input=json.dumps(pairs), capture_output=True, text=True, check=True)
        exact, clustered = json.loads(done.stdout)
        rows += [
            ("exact McNemar", "statsmodels mcnemar", mcnemar_p(only_a, only_b), exact),
            ("paired t, clusters", "statsmodels OLS, cluster", PairedMean.of(y - x, clusters.tolist()).p, clustered),
        ]
    return [f"| {test} | {other} | {p:.10f} | {q:.10f} | {abs(p - q):.1e} |" for test, other, p, q in rows]


def table(options: argparse.Namespace, folder: Path) -> str:
    """Both tables."""
    lines = ["| rows | metric | ours | Inspect's | equal scores |", "|---|---|---|---|---|"]
    with serving(folder / "serve", f"base={MODEL}") as address:
        for kind, file in write_rows(folder, options.rows).items():
            url = f"{address}/v1"
            out = folder / f"ours-{kind}"
            limit = f"evaluate.max_new_tokens={options.max_tokens}"
            target = ("--model", MODEL, "--data", str(file), "--out", str(out), "--no-cache", limit)
            tuneloop("evaluate", url, *target)
            ours = of_ours("ours", load_evaluation(out))
            if not options.inspect:
                continue
            task = folder / f"{kind}-inspect"
            where = ("-o", str(task), "-m", MODEL, "--endpoint", url)
            made = tuneloop("data", "export", str(file), *where, "--max-tokens", str(options.max_tokens))
            theirs = read_foreign(str(run_inspect(options.inspect, task, made["run"], task)))[0]
            for metric in made["metrics"]:
                same, shared = equal_scores(ours, theirs, metric)
                means = [np.mean([i.mean(metric) for i in e.items.values()]) for e in (ours, theirs)]
                lines.append(f"| {kind} | {metric} | {means[0]:.3f} | {means[1]:.3f} | {same} of {shared} |")
                print(lines[-1], flush=True)
    lines += ["", "| test | other | ours | theirs | difference |", "|---|---|---|---|---|"]
    return "\n".join(lines + p_values(options.statsmodels))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("inspect", "statsmodels"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=12)
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/records/results.md")
    options = parser.parse_args()
    with TemporaryDirectory() as path:
        text = table(options, Path(path))
    print(text)
    if options.write:
        put_into_results(HEADING, text)


if __name__ == "__main__":
    main()
