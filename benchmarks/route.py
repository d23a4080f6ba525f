"""Routers on public rows: who gets the right expert, what that is worth, what is told apart as none of these, and how long it takes.

    python benchmarks/route.py [domains] [outcomes] [time] [tasks --runs RUN,RUN,...] [--data FOLDER] [--features words,static,minilm] [--write]

`domains`: the 77 intents of banking77 in seven domains, each with an expert: a classifier of its own intents (logistic regression on
static vectors). A request is answered right where it comes to its domain's expert and that one is right. None of these: questions
from four other data sets, and, harder, each of the seven domains in turn, left out of fitting.

`outcomes`: RouteLLM's public answers of Mixtral 8x7B and GPT-4 to the 1,319 questions of GSM8K. Five parts take turns: three fit, one
validates, one is routed. The published routers next to it are read off the picture in their repository (assets/gsm8k.png); they were
fitted to other prompts than GSM8K's.

`time`: a decision for one request, as the server makes it.

`tasks`: whole runs as experts, named by `--runs`, and what is told apart as none of theirs. Not among the default parts.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from train_table import ROOT, put_into_results

if TYPE_CHECKING:
    from tuneloop.combine.route.router import Router
    from tuneloop.records.router import Features

HEADING = "## Routing"
# The first that an intent's name holds is its domain; the rest are of cards.
DOMAINS = {
    "topping up": ("top_up", "topping_up"),
    "transfers": ("transfer", "beneficiary", "receiving_money"),
    "cash": ("cash", "atm"),
    "exchange": ("exchange", "currency", "fiat"),
    "payments": ("payment", "charge", "refund", "fee", "debit", "transaction"),
    "account": ("pin", "passcode", "verify", "identity", "account", "personal", "age_limit", "country", "source_of_funds"),
    "cards": ("",),
}  # fmt: skip
FOLDS, SHARES = 5, np.linspace(0, 1, 11)
# Shares of the gap between both models at 0, 10, ... 100 % of calls to GPT-4, read off the picture.
PUBLISHED = {
    "a coin": (0, 0.09, 0.18, 0.25, 0.34, 0.47, 0.56, 0.65, 0.73, 0.84, 1),
    "RouteLLM's BERT": (0, 0.13, 0.24, 0.33, 0.44, 0.57, 0.65, 0.70, 0.81, 0.94, 1),
    "RouteLLM's matrix factorisation": (0, 0.15, 0.25, 0.37, 0.52, 0.58, 0.68, 0.77, 0.88, 0.95, 1),
    "RouteLLM's causal LLM": (0, 0.18, 0.32, 0.45, 0.58, 0.69, 0.77, 0.87, 0.90, 0.96, 1),
}


def domain_of(intent: str) -> str:
    """The domain of an intent."""
    return next(name for name, domain in DOMAINS.items() if any(word in intent.lower() for word in domain))


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The records of a file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def others(data: Path) -> list[str]:
    """Questions that are none of a bank's."""
    found = [row["instruction"] for row in json.loads((data / "alpaca_en_demo/train.json").read_text())][:150]
    found += [row["instruction"] for row in rows_of(data / "selfinstruct_seed/seed_tasks.jsonl")][:150]
    chats = rows_of(data / "taskmaster4_chats/train.jsonl")[:150]
    return found + [turn["content"] for chat in chats for turn in chat["messages"] if turn["role"] == "user"][:150]


class Seen:
    """Texts with their features, computed once.

    Args:
        features: `words`, `static` or `minilm`.
    """

    def __init__(self, features: Features) -> None:
        from tuneloop.combine.route.features import RouteJob

        self.job, self.known = RouteJob(features), dict[str, Any]()

    def __call__(self, texts: Sequence[str]) -> Any:
        new = list(dict.fromkeys(text for text in texts if text not in self.known))
        if new:
            self.known.update(zip(new, self.job.embed(new), strict=True))
        return np.stack([self.known[text] for text in texts])


def fitted(seen: Seen, train: tuple[Any, Any], val: tuple[Any, Any], names: Sequence[str], exclusive: bool) -> Router:
    """The best router of all kinds."""
    from tuneloop.combine.route.router import Outcomes, fit_router
    from tuneloop.records.router import RouterRecord, RouteTarget

    routes = [RouteTarget(name=name) for name in names]
    like = RouterRecord(kind="constant", features=seen.job.features, exclusive=exclusive, routes=routes)
    return fit_router(Outcomes(seen(train[0]), train[1]), Outcomes(seen(val[0]), val[1]), like)


def domains(data: Path, features: Sequence[Features]) -> list[str]:
    """The table of domains."""
    train, test = (rows_of(data / f"banking77/{split}.jsonl") for split in ("train", "test"))
    names = list(DOMAINS)
    path = {name: i for i, name in enumerate(names)}
    rng = np.random.default_rng(0)
    order = rng.permutation(len(train))
    val_rows, train_rows = [train[i] for i in order[:1500]], [train[i] for i in order[1500:]]
    experts, whole = expert_answers(train_rows, test, names)
    own = np.array([path[domain_of(row["label"])] for row in test])
    right = np.array(
        [[row["label"] == answer for answer in answers] for row, answers in zip(test, experts, strict=True)]
    )
    pooled = float(np.mean([row["label"] == answer for row, answer in zip(test, whole, strict=True)]))
    oracle, single = right[np.arange(len(test)), own], right.mean(0)
    made = [
        f"{len(train_rows):,} rows fit, {len(val_rows):,} validate, {len(test):,} are routed, {len(names)} domains. Right answers: "
        f"the oracle (each row to its own expert) {oracle.mean():.3f}, the best single expert ({names[int(single.argmax())]}) "
        f"{single.max():.3f}, one classifier for all intents {pooled:.3f}.",
        "",
        "| features | kind | comes to its expert | right answers | other questions told apart, AUROC | sent away of them, of own rows | "
        "a domain left out, AUROC | sent away |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    far = others(data)
    for feature in features:
        seen = Seen(feature)
        made.append(domain_line(seen, (train_rows, val_rows, test), own, right, far))
        print(made[-1], file=sys.stderr, flush=True)
    return made


def domain_line(seen: Seen, splits: Sequence[Any], own: Any, right: Any, far: Sequence[str]) -> str:
    """The line of one kind of features."""
    from tuneloop.combine.route.router import NONE, auroc
    from tuneloop.core.stats.tests import wilson_interval

    names = list(DOMAINS)

    def of(rows: Any, left: Sequence[str]) -> tuple[list[str], Any]:
        kept = [(row["text"], left.index(name)) for row in rows if (name := domain_of(row["label"])) in left]
        return [text for text, _ in kept], np.eye(len(left), dtype=np.float32)[[number for _, number in kept]]

    train, val, test = splits
    router = fitted(seen, of(train, names), of(val, names), names, True)
    x, away = seen([row["text"] for row in test]), seen(far)
    best = router.quality(x).argmax(1)
    hits, worth = best == own, right[np.arange(len(own)), best]
    near, cut = router.similarity(x), float(router.record.threshold or 0)
    harder, sent = [], []
    for gone, name in enumerate(names):
        left = [item for item in names if item != name]
        less = fitted(seen, of(train, left), of(val, left), left, True)
        harder.append(auroc(less.similarity(x[own != gone]), less.similarity(x[own == gone])))
        sent.append(float((less.choose(x[own == gone]) == NONE).mean()))
    low, high = wilson_interval(float(hits.sum()), len(hits))
    cells = [
        str(seen.job.features), router.record.kind, f"{hits.mean():.3f} [{low:.3f}, {high:.3f}]", f"{worth.mean():.3f}",
        f"{auroc(near, router.similarity(away)):.3f}",
        f"{(router.similarity(away) < cut).mean():.0%}, {(near < cut).mean():.0%}", f"{np.mean(harder):.3f}", f"{np.mean(sent):.0%}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def expert_answers(
    train: Sequence[Any], test: Sequence[Any], names: Sequence[str]
) -> tuple[list[list[str]], list[str]]:
    """What each domain's classifier answers to each row, and what one for all intents does."""
    from sklearn.linear_model import LogisticRegression

    seen = Seen("static")
    x, y = seen([row["text"] for row in train]), np.array([row["label"] for row in train])
    z = seen([row["text"] for row in test])
    home = np.array([domain_of(label) for label in y])
    columns = [
        LogisticRegression(C=10, max_iter=300).fit(x[home == name], y[home == name]).predict(z) for name in names
    ]
    whole = LogisticRegression(C=10, max_iter=300).fit(x, y).predict(z)
    return [list(row) for row in zip(*columns, strict=True)], list(whole)


def outcomes(data: Path, features: Sequence[Features]) -> list[str]:
    """The table of RouteLLM's outcomes."""
    with (data / "routellm_gsm8k/responses.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    names = ["mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"]
    quality = np.array([[row[name] == "True" for name in names] for row in rows], dtype=np.float32)
    texts = [row["prompt"] for row in rows]
    fold = np.random.default_rng(0).permutation(len(rows)) % FOLDS
    alone = quality.mean(0)
    made = [
        f"Right answers: Mixtral {alone[0]:.3f}, GPT-4 {alone[1]:.3f}, the oracle {quality.max(1).mean():.3f} with "
        f"{(quality[:, 0] < quality[:, 1]).mean():.0%} of calls to GPT-4. Share of the gap between both models:",
        "",
        "| router | 20 % of calls to GPT-4 | 40 % | 60 % | 80 % | mean over all shares |",
        "|---|---|---|---|---|---|",
    ]
    for name, curve in PUBLISHED.items():
        made.append(curve_line(f"{name}, read off its picture", np.array(curve), ""))
    for feature in features:
        seen, rank = Seen(feature), np.zeros(len(rows))
        for turn in range(FOLDS):
            test, val = fold == turn, fold == (turn + 1) % FOLDS
            parts = [([texts[i] for i in np.nonzero(part)[0]], quality[part]) for part in (~(test | val), val)]
            router = fitted(seen, parts[0], parts[1], names, False)
            sure = router.quality(seen([texts[i] for i in np.nonzero(test)[0]]))
            gain = sure[:, 1] - sure[:, 0]
            rank[test] = (gain.argsort().argsort() + 0.5) / len(gain)
        rng, draws = np.random.default_rng(1), []
        for _ in range(500):
            some = rng.integers(0, len(rows), len(rows))
            draws.append(float(np.trapezoid(curve_of(rank[some], quality[some]), SHARES)))
        low, high = np.quantile(draws, [0.025, 0.975])
        made.append(curve_line(f"tuneloop, {feature}", curve_of(rank, quality), f" [{low:.2f}, {high:.2f}]"))
        print(made[-1], file=sys.stderr, flush=True)
    return made


def curve_of(rank: Any, quality: Any) -> Any:
    """Share of the gap at each share of calls: those rows go to the strong model that rank highest."""
    weak, strong = quality.mean(0)
    order = np.argsort(-rank, kind="stable")
    gains = np.concatenate([[0.0], np.cumsum((quality[:, 1] - quality[:, 0])[order])]) / len(rank)
    return np.interp(SHARES * len(rank), np.arange(len(rank) + 1), gains) / (strong - weak)


def curve_line(name: str, curve: Any, interval: str) -> str:
    """A line of the table."""
    shown = " | ".join(f"{curve[i]:.2f}" for i in (2, 4, 6, 8))
    return f"| {name} | {shown} | {np.trapezoid(curve, SHARES):.2f}{interval} |"


def times(data: Path, features: Sequence[Features]) -> list[str]:
    """The table of times."""
    from tuneloop.serving.router import decider

    train, test = (rows_of(data / f"banking77/{split}.jsonl")[::5] for split in ("train", "test"))
    names = list(DOMAINS)
    made = [
        "Seconds of the processor tell what a decision takes on a machine that others use, too.",
        "",
        "| features | p50 | p50, processor | p99, processor | goal, 2 ms |",
        "|---|---|---|---|---|",
    ]
    for feature in features:
        seen = Seen(feature)
        parts = []
        for rows in (train[:1500], train[1500:]):
            own = [names.index(domain_of(row["label"])) for row in rows]
            parts.append(([row["text"] for row in rows], np.eye(len(names), dtype=np.float32)[own]))
        decide = decider(fitted(seen, parts[0], parts[1], names, True), seen.job, names, names[0])
        took = []
        for row in test[:20] + test[:300]:
            began, used = time.perf_counter(), time.process_time()
            decide(row["text"])
            took.append((1000 * (time.perf_counter() - began), 1000 * (time.process_time() - used)))
        wall, own = np.array(took[20:]).T
        p99 = float(np.quantile(own, 0.99))
        made.append(
            f"| {feature} | {np.median(wall):.2f} ms | {np.median(own):.2f} ms | {p99:.2f} ms | {'met' if p99 < 2 else 'missed'} |"
        )
        print(made[-1], file=sys.stderr, flush=True)
    return made


def tasks(data: Path, features: Sequence[Features], runs: Sequence[str]) -> list[str]:
    """The table of whole runs as experts."""
    from tuneloop.cli.main import main as tuneloop
    from tuneloop.records.record import read_record
    from tuneloop.records.router import RouterRecord

    far = others(data)
    made = [
        f"{len(runs)} runs, {len(far)} questions that are none of theirs.",
        "",
        "| features | kind | test rows | comes to its expert | of each run's rows | others told apart, AUROC | sent away of "
        "them | of the own rows |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(dir=".") as path:
        outside = Path(path) / "outside.jsonl"
        outside.write_text("".join(json.dumps({"text": text}) + "\n" for text in far), encoding="utf-8")
        for feature in features:
            out = Path(path) / feature
            sentence = [
                "route",
                "fit",
                *runs,
                "--outside",
                str(outside),
                "--features",
                feature,
                "--out",
                str(out),
                "-q",
            ]
            if tuneloop(sentence):
                sys.exit("the router could not be fitted")
            record = read_record(RouterRecord, out / "router.json")
            found = record.results
            assert found is not None and found.caught is not None and found.auroc is not None
            q, recall = found.quality, ", ".join(f"{value:.2f}" for value in found.recall.values())
            made.append(
                f"| {feature} | {record.kind} | {found.n} | {q.value:.3f} [{q.low:.3f}, {q.high:.3f}] | {recall} | "
                f"{found.auroc:.3f} | {found.caught:.0%} | {1 - found.kept:.0%} |"
            )
    return made


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="domains, outcomes, time; default: all")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--features", default="words,static,minilm")
    parser.add_argument("--runs", default="", help="of `tasks`, with commas")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/records/results.md")
    options = parser.parse_args()
    if not (options.data / "banking77").is_dir():
        sys.exit(f"No folder {options.data}/banking77: name that of the data sets with --data")
    tables = {"domains": domains, "outcomes": outcomes, "time": times}
    known = tables | {"tasks": partial(tasks, runs=options.runs.split(","))}
    features = options.features.split(",")
    made = [line for part in options.parts or tables for line in [*known[part](options.data, features), ""]]
    print("\n".join(made))
    if options.write:
        put_into_results(HEADING, "`python benchmarks/route.py`\n\n" + "\n".join(made).rstrip())


if __name__ == "__main__":
    main()
