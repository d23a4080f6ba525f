"""The standard: what a hosted model answers to the test rows, requested while it lives and kept for ever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.units import counted, usd_words
from tuneloop.data import load_dataset
from tuneloop.evaluation import EvalOptions, EvaluateConfig, deciding_of, sample_rows
from tuneloop.evaluation.gate import write_first_suite
from tuneloop.inference import Endpoint
from tuneloop.migrate.notices import price_of
from tuneloop.migrate.record import Migration
from tuneloop.pipeline import evaluate_target
from tuneloop.records.record import read_record
from tuneloop.records.rows import Dataset, Message, Row, generous_limit

NAME = "openai-ft"
SUITE = "suite.yaml"
ANSWERS = "answers"  # folder of the replies, next to eval.json
TOP_LOGPROBS = 5


@dataclass(frozen=True)
class FreezingPrice:
    """What it takes to ask a model all rows: tokens by the length of the texts, and dollars (None: no price known)."""

    rows: int
    prompt_tokens: int
    tokens: int  # if its answers are as long as the references
    usd: float | None
    most_usd: float | None  # if each answer is as long as it may be
    price: str  # where the prices are from

    @property
    def words(self) -> str:
        """In a line."""
        size = f"{counted(self.rows, 'request')}, about {self.prompt_tokens:,} tokens read, {self.tokens:,} written"
        if self.usd is None or self.most_usd is None:
            return f"{size}; no price is known: name it by --usd-per-million-input and --usd-per-million-output"
        return f"{size}: {usd_words(self.usd)}, at most {usd_words(self.most_usd)} ({self.price})"


def tokens_of(text: str) -> float:
    """About how many tokens a text takes, rather too many: 3.5 characters of English, 1 of other scripts."""
    plain = len(text.encode("ascii", "ignore"))
    return plain / 3.5 + (len(text) - plain)


def budget_of(rows: Sequence[Row], endpoint: Endpoint, most: int, price: str) -> FreezingPrice:
    """What it takes to ask an endpoint rows.

    Args:
        most: tokens of an answer. `price`: where the endpoint's prices are from.
    """

    def size(turns: Sequence[Message]) -> float:
        return sum(tokens_of(str(turn["content"])) + 4 for turn in turns)

    read = sum(size(row.prompt) + tokens_of(str(row.tools or "")) for row in rows)
    written, longest = sum(tokens_of(row.answer) + 1 for row in rows), most * len(rows)
    known = endpoint.usd_per_million_input or endpoint.usd_per_million_output
    usd, most_usd = (endpoint.usd(read, tokens) if known else None for tokens in (written, max(longest, written)))
    return FreezingPrice(len(rows), round(read), round(written), usd, most_usd, price)


@dataclass(frozen=True)
class Freezing:
    """What is to be frozen: a model's answers to the test rows of a data set, at a price."""

    endpoint: Endpoint  # with its prices, where they are known
    dataset: str
    limit: int  # rows at most; 0: all
    most: int  # tokens of an answer
    budget: FreezingPrice
    notes: list[str]


def plan_freezing(endpoint: Endpoint, dataset: str, *, copy: Path, most_usd: float, limit: int = 0) -> Freezing:
    """What freezing a model takes; nothing is sent.

    Args:
        endpoint: the service and its model.
        dataset: a prepared data set. `limit`: test rows at most, a sample; 0: all.
        copy: folder of `tuneloop migrate openai`, which says what the model was trained on.
        most_usd: the most that it may cost; 0: any sum.

    Raises:
        UserError: no data set, no test rows, or it may cost more.
    """
    data = load_dataset(dataset)
    if not data.test:
        step = "prepare with split.test=0.2 or a file"
        raise UserError("The data set has no test rows", where=dataset, next_step=step)
    rows = sample_rows(data.test, limit or None, seed=0, stratum=data.stratum)
    most = generous_limit(data.train[:2000] or data.test[:2000])
    listed = price_of(endpoint.model)
    if listed and not endpoint.usd_per_million_input and not endpoint.usd_per_million_output:
        endpoint = replace(endpoint, usd_per_million_input=listed.input, usd_per_million_output=listed.output)
    else:
        listed = None
    budget = budget_of(rows, endpoint, most, f"{listed.source}, {listed.date}" if listed else "your price")
    if most_usd and (budget.most_usd is None or budget.most_usd > most_usd):
        known = budget.most_usd is not None
        message = "It may cost more than --max-usd" if known else "No price is known, so no limit can be kept"
        step = "raise it, name the prices, or freeze fewer rows with --limit"
        raise UserError(f"{message}: {budget.words}", where=f"--max-usd {most_usd:g}", next_step=step)
    kind = f"{len(data.manifest.labels)} labels" if data.manifest.labels else f"task: {data.task}"
    metric = deciding_of(data, EvaluateConfig())  # it follows from the rows alone
    decides = f"decides   {metric} ({kind}): by it `gate --margin` compares a successor"
    return Freezing(endpoint, dataset, limit, most, budget, [decides, *_what_it_has_seen(data, endpoint.model, copy)])


def freeze_answers(plan: Freezing, out: Path) -> int:
    """Ask the model, and make a baseline and a gate's first suite of its answers.

    Replies are kept in `out/answers`, with log probabilities where the service gives them; the same command, and
    `evaluate --cache`, find them there when the model has ended.

    Returns:
        How many requests have failed for good.

    Raises:
        UserError: what `evaluate` refuses.
    """
    endpoint = replace(plan.endpoint, cache=out / ANSWERS, logprobs=TOP_LOGPROBS)
    settings = [f"evaluate.max_new_tokens={plan.most}", *([f"evaluate.limit={plan.limit}"] if plan.limit else [])]
    options = EvalOptions(dataset=plan.dataset, out=str(out), name=NAME)
    result = evaluate_target(endpoint.url, options, settings, endpoint=lambda _: endpoint)
    if not (out / SUITE).exists():
        write_first_suite(str(out), str(out / SUITE))
    return result.failed


def _what_it_has_seen(data: Dataset, model: str, folder: Path) -> list[str]:
    """Whether the model was trained on the test rows: then its answers to them are too good a standard."""
    if not (folder / Migration.file).is_file():
        return [f"note      whether the model was trained on these rows is not known: {folder} is no copy of its jobs"]
    jobs = read_record(Migration, folder).jobs
    files = {job.training_file for job in jobs if model == job.model or model in job.checkpoints}
    names = [Path(str(row.meta.get("source", ""))).name for row in data.test]
    seen = sum(any(name == file or name.startswith(f"{file}-") for file in files) for name in names)
    if not seen:
        return []
    rows = f"{seen:,} of {counted(len(names), 'test row')}"
    return [
        f"warn: the model was trained on {rows}: its answers to them are better than to new ones, and a successor that "
        "has not seen them is held to that. Prefer rows of its validation file, or of later traffic"
    ]
