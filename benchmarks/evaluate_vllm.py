"""A classifier evaluated through the real vLLM, next to our own engine: labels, probabilities and rows a second.

    TUNELOOP_VLLM=PYTHON python benchmarks/evaluate_vllm.py RUN FILE [--rows 150] [--cases bfloat16:float32] [--write]

RUN is a finished run that was trained to classify, FILE its test rows. Both engines get the same token ids and score the
labels of the run; `dp` is the difference of a label's probability to that of scoring all labels to their ends, which our
engine's evaluation bounds from below. With `plain` vLLM's last product
is in the model's type, which rounds its log probabilities to eighths of a nat. vLLM runs on one core, as `make test-vllm`
starts it, and our engine on one thread; the seconds are those of all answers, with everything loaded. PYTHON is that of an
environment with vLLM, which `make test-vllm` makes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks"), str(ROOT / "tests" / "helpers")]

from real_vllm import PYTHON, RealVllm  # noqa: E402
from train_table import put_into_results  # noqa: E402

from tuneloop.data.config import PrepareConfig  # noqa: E402
from tuneloop.data.dataset import load_dataset  # noqa: E402
from tuneloop.data.load_eval_file import read_whole  # noqa: E402
from tuneloop.evaluation.config import EvaluateConfig  # noqa: E402
from tuneloop.evaluation.evaluate import sample_rows  # noqa: E402
from tuneloop.inference.openai.target import Endpoint  # noqa: E402
from tuneloop.inference.protocol import ModelTarget, as_model  # noqa: E402
from tuneloop.inference.request import Request  # noqa: E402
from tuneloop.inference.targets import open_endpoint, open_model  # noqa: E402
from tuneloop.models.names import resolve  # noqa: E402
from tuneloop.pipeline.compared_systems import SystemAnswers, ask  # noqa: E402
from tuneloop.records.completion import Completion  # noqa: E402
from tuneloop.records.rows import Dataset  # noqa: E402

HEADING = "## Labels through vLLM"
CASES = "bfloat16:plain,bfloat16:float32,float32:float32"  # type of the weights, and of the last product
LINE = "| {:<8} | {:<7} | {:>6.1%} | {:>6.4f} | {:>6.4f} | {:>5.2f} | {:>5.2f} |"


def rows_of(run: Path, file: str, count: int) -> Dataset:
    """The run's data set with some rows of a file as its test split."""
    dataset = load_dataset(run / "dataset")
    rows = read_whole(file, PrepareConfig.model_validate(dataset.manifest.config), redact=True).rows
    rows = [row if row.label is not None else replace(row, label=row.answer) for row in rows]
    return replace(dataset, test=sample_rows(rows, count, seed=0, stratum=dataset.stratum))


def answers(target: ModelTarget, dataset: Dataset) -> SystemAnswers:
    """Labels and probabilities of the test rows, by a target that is loaded before the clock runs."""
    target.load()
    return ask(target, dataset, dataset.test, EvaluateConfig())[""]


def line(dtype: str, way: str, theirs: SystemAnswers, ours: SystemAnswers, exact: Sequence[Completion]) -> str:
    """One line of the table."""
    pairs = list(zip(theirs.completions, exact, strict=True))
    failed = [one.error for one, _ in pairs if one.error]
    if failed:
        sys.exit(f"{len(failed)} rows failed: {failed[0]}")
    same = sum(one.text == other.text for one, other in pairs) / len(pairs)
    gaps = [abs(one.confidence - other.confidence) for one, other in pairs if one.text == other.text]
    speeds = (len(pairs) / each.seconds for each in (theirs, ours))
    return LINE.format(dtype, way, same, max(gaps), sum(gaps) / len(gaps), *speeds)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("file")
    parser.add_argument("--rows", type=int, default=150)
    parser.add_argument("--cases", default=CASES, help="types of the weights and of vLLM's last product")
    parser.add_argument("--write", action="store_true", help="put the table into docs/records/results.md")
    options = parser.parse_args()
    if not PYTHON:
        sys.exit("Name the environment with vLLM: TUNELOOP_VLLM=PYTHON (make test-vllm makes one)")
    dataset = rows_of(options.run, options.file, options.rows)
    labels = len(dataset.manifest.labels or [])
    table = [
        f"`python benchmarks/evaluate_vllm.py RUN banking77/test.jsonl`: {len(dataset.test)} rows, {labels} labels, one core",
        "",
        "| weights | last product | equal labels | largest dp | mean dp | vLLM, rows/s | ours, rows/s |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(table), flush=True)
    ours: dict[str, SystemAnswers] = {}
    exact: dict[str, list[Completion]] = {}
    for dtype, last in (case.split(":") for case in options.cases.split(",")):
        os.environ["TUNELOOP_DTYPE"] = dtype
        own = open_model(str(options.run))
        if dtype not in ours:
            ours[dtype] = answers(own, dataset)
            requests = [Request(row.prompt, row.tools) for row in dataset.test]
            exact[dtype] = list(own.score(requests, dataset.manifest.labels or [], exact=True))
        more = () if last == "float32" else ("--hf-overrides", "{}")
        with TemporaryDirectory() as scratch:
            server = RealVllm(Path(resolve(own.untuned)), Path(scratch) / "vllm.log", "--dtype", dtype, *more).start()
            try:
                endpoint = Endpoint(f"{server.address}/v1", str(options.run), timeout=600, concurrency=48)
                target = as_model(open_endpoint(endpoint))
                assert target is not None
                theirs = answers(target, dataset)
                target.close()
            finally:
                server.kill()
        table.append(line(dtype, last, theirs, ours[dtype], exact[dtype]))
        print(table[-1], flush=True)
    if options.write:
        put_into_results(HEADING, "\n".join(table))


if __name__ == "__main__":
    main()
