"""A classifier evaluated through the real vLLM, next to our own engine: labels, probabilities and rows a second.

    TUNELOOP_VLLM=PYTHON python benchmarks/evaluate_vllm.py RUN FILE [--rows 150] [--cases bfloat16:float32]

RUN is a finished run that was trained to classify, FILE its test rows. Both engines get the same token ids and score
the labels of the run; `dp` is the difference of a label's probability to that of scoring all labels to their ends,
which our engine's evaluation bounds from below; `gap` is by how many nats a token the other label was worse, where
labels differ. With `plain` vLLM's last product is in the model's type, which rounds its log probabilities to eighths
of a nat. A case with `merged` serves the run's weights as one model: on a processor vLLM copies all weights of an
adapter for each token. A case with `ours` compares our engine in float32 with itself in another type: what rounding
alone does. In 16 bits the same answers are also compared with our engine in float32 (`against`): two engines whose
rounding is independent part from each other by more than each of them parts from the exact result. vLLM runs on one core, as `make test-vllm` starts it, and our engine on one thread; the seconds are those
of all answers, with everything loaded. PYTHON is that of an environment with vLLM, which `make test-vllm` makes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "helpers")]

from real_vllm import PYTHON, RealVllm  # noqa: E402

import tuneloop  # noqa: E402
from tuneloop.data.config import PrepareConfig  # noqa: E402
from tuneloop.data.dataset import load_dataset  # noqa: E402
from tuneloop.data.load_eval_file import read_whole  # noqa: E402
from tuneloop.evaluation.config import EvaluateConfig  # noqa: E402
from tuneloop.evaluation.evaluate import sample_rows  # noqa: E402
from tuneloop.inference.endpoint import Endpoint  # noqa: E402
from tuneloop.inference.protocol import ModelTarget  # noqa: E402
from tuneloop.inference.request import Request  # noqa: E402
from tuneloop.inference.targets import open_endpoint, open_model  # noqa: E402
from tuneloop.models.files.names import resolve  # noqa: E402
from tuneloop.pipeline.answers.asking import ask  # noqa: E402
from tuneloop.pipeline.answers.scoring import SystemAnswers  # noqa: E402
from tuneloop.records.completion import Completion  # noqa: E402
from tuneloop.records.rows import Dataset  # noqa: E402

# Type of the weights, and of the last product, and whether the adapter is merged.
CASES = "bfloat16:plain,bfloat16:float32,float32:float32,bfloat16:float32:merged,bfloat16:ours"
LINE = "| {:<8} | {:<7} | {:<7} | {:<8} | {:>6.1%} | {:.3f} | {:>6.4f} | {:>6.4f} | {:>5.2f} | {:>5.2f} |"


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


def line(case: Case, theirs: SystemAnswers, ours: SystemAnswers, exact: Sequence[Completion], against: str) -> str:
    """One line of the table: how far answers are from exact scores, of which `against` names the type."""
    pairs = list(zip(theirs.completions, exact, strict=True))
    failed = [item.error for item, _ in pairs if item.error]
    if failed:
        sys.exit(f"{len(failed)} rows failed: {failed[0]}")
    same = sum(item.text == other.text for item, other in pairs) / len(pairs)
    gaps = [abs(item.confidence - other.confidence) for item, other in pairs if item.text == other.text]
    scores = [(other.label_scores or {}, item.text, other.text) for item, other in pairs]
    tie = max(logs[right] - logs[text] for logs, text, right in scores)
    speeds = (len(pairs) / item.seconds for item in (theirs, ours))
    return LINE.format(
        case.dtype, case.weights, case.last, against, same, tie, max(gaps), sum(gaps) / len(gaps), *speeds
    )


@dataclass(frozen=True)
class Case:
    """What is compared."""

    dtype: str
    last: str
    weights: str = "adapter"

    def own(self, run: str, scratch: Path) -> ModelTarget:
        """The model in our engine."""
        os.environ["TUNELOOP_DTYPE"] = self.dtype
        if self.weights == "merged":
            run = str(tuneloop.export(run, form="merged", out=scratch / self.dtype, force=True).folder)
        return open_model(run)

    def answers(self, own: ModelTarget, dataset: Dataset, scratch: Path) -> SystemAnswers:
        """What vLLM answers."""
        merged = self.weights == "merged"
        base = own.name if merged else resolve(own.untuned)
        more = () if self.last == "float32" else ("--hf-overrides", "{}")
        server = RealVllm(Path(base), scratch / "vllm.log", "--dtype", self.dtype, *more, lora=not merged).start()
        try:
            name = "base" if merged else own.name
            endpoint = Endpoint(f"{server.address}/v1", name, timeout=600, concurrency=48)
            target = open_endpoint(endpoint, base=own.name if merged else "").reader
            assert target is not None
            theirs = answers(target, dataset)
            target.close()
            hits = (server.metric(f"vllm:prefix_cache_{name}_total") for name in ("hits", "queries"))
            print("prompt tokens in the cache: {:.0f} of {:.0f}".format(*hits), file=sys.stderr, flush=True)
            return theirs
        finally:
            server.kill()


def scored(own: ModelTarget, dataset: Dataset) -> list[Completion]:
    """All labels of the rows, to their ends."""
    requests = [Request(row.prompt, row.tools) for row in dataset.test]
    return list(own.score(requests, dataset.manifest.labels or [], exact=True))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("file")
    parser.add_argument("--rows", type=int, default=150)
    parser.add_argument("--cases", default=CASES, help="type of the weights, of vLLM's last product[, merged]")
    options = parser.parse_args()
    if not PYTHON:
        sys.exit("Name the environment with vLLM: TUNELOOP_VLLM=PYTHON (make test-vllm makes one)")
    dataset = rows_of(options.run, options.file, options.rows)
    labels = len(dataset.manifest.labels or [])
    print(f"{len(dataset.test)} rows, {labels} labels, one core", end="\n\n")
    print(
        "| weights | model | last product | against | equal labels | gap | largest dp | mean dp | vLLM, rows/s | ours, rows/s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for case in (Case(*part.split(":")) for part in options.cases.split(",")):
        with TemporaryDirectory() as scratch:
            own = case.own(str(options.run), Path(scratch))
            ours, exact = answers(own, dataset), {case.dtype: scored(own, dataset)}
            theirs = replace(ours, completions=exact[case.dtype])
            if case.last != "ours":
                theirs = case.answers(own, dataset, Path(scratch))
            if case.dtype != "float32":
                exact["float32"] = scored(replace(case, dtype="float32").own(str(options.run), Path(scratch)), dataset)
            if case.last == "ours":
                del exact[case.dtype]
        for dtype, scores in exact.items():
            print(line(case, theirs, ours, scores, dtype), flush=True)


if __name__ == "__main__":
    main()
