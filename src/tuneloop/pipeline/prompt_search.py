"""A search for the best prompt on validation rows: which instruction, which examples and how many.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): all candidates answer a few rows, the better half of
them further ones, until two are left. The best then meets the plain few-shot prompt on rows that the search did not
see, and is kept only if it is better there: what is best of many on few rows is partly luck.

What a search may cost is fixed before its first call: a call is one row answered with one prompt. Answers are kept on
disk as they come, so the same command after an interruption repeats none.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, user_errors_of_the_disk, write_json, write_jsonl, write_text
from tuneloop.core.foreign import parse_line
from tuneloop.core.journal import JournalFile
from tuneloop.core.ui import busy, progress, reporting, say
from tuneloop.core.units import counted, verb
from tuneloop.data import task_spec
from tuneloop.evaluation import EvaluateConfig, sample_order
from tuneloop.evaluation.alternatives import fit_labels
from tuneloop.evaluation.metrics import lower_is_better
from tuneloop.inference import Target
from tuneloop.inference.prompt import AS_IT_IS, KeptPrompt, PromptTemplate
from tuneloop.models import minilm_embedder
from tuneloop.models.files import known_name
from tuneloop.models.methods import OWN
from tuneloop.pipeline.answers.asking import Asking, ask, longest_answer, uses_choice
from tuneloop.pipeline.answers.prompt import MOST_EXAMPLES, MOST_LABELS, choose_examples, labels_of, rarest_label
from tuneloop.pipeline.answers.scoring import SystemAnswers, score
from tuneloop.pipeline.context import RunContext
from tuneloop.records.completion import Completion
from tuneloop.records.prompt import EXAMPLES, PromptManifest, PromptSearch, Rung, write_prompt
from tuneloop.records.record import write_record
from tuneloop.records.rows import Dataset, Row, generous_limit, last_user_turn

LEAST_ROWS = 12  # validation rows; with fewer, chance alone would choose
CHECK_SHARE = 0.4  # of the validation rows, on which the best meets plain few-shot
FIRST_ROWS = 6  # that each candidate answers at least before any is dropped
PIECE = 16  # rows between two looks at the budget, and what an interruption loses at most
FEW = 8  # twice the examples are tried up to so many
NEAREST = 8  # examples that each question gets at most
POOL = 2000  # training rows that examples are chosen from
PLAIN = "plain few-shot"  # the rows' own instruction with balanced examples, which every other prompt has to beat
SEARCH_SHARE, CHECKED_SHARE = 0.5, 0.65  # of the money and the time, up to the end of the search and of the check


@dataclass
class SearchBudget:
    """What may still be spent.

    Args:
        calls: rows answered with a prompt, those known from before included, so that a resumed search ends the same.
        usd, seconds: None: no limit.
        price: dollars of a second here, or 0; `usd_of`: of tokens read and written, where a server has prices.
    """

    calls: int
    usd: float | None = None
    seconds: float | None = None
    price: float = 0.0
    usd_of: Callable[[float, float], float] | None = None
    spent_usd: float = 0.0
    tokens: int = 0
    _began: float = field(default_factory=time.monotonic)
    _asking: float = 0.0  # seconds of answers that were not known
    _asked: int = 0

    def affords(self, rows: int, read: float, written: float, share: float) -> int:
        """How many of the next rows a share of the money and the time is enough for.

        Args:
            read, written: most tokens of each.
        """
        pace = self._asking / self._asked if self._asked else 0.0
        if self.usd is not None and (worst := self.usd_of(read, written) if self.usd_of else pace * self.price):
            rows = min(rows, int((share * self.usd - self.spent_usd) / worst))
        if self.seconds is not None:
            left = share * self.seconds - (time.monotonic() - self._began)
            rows = min(rows, int(left / pace) if pace else rows if left > 0 else 0)
        return max(rows, 0)

    def take(self, answers: Sequence[Completion], seconds: float) -> None:
        """Note new answers."""
        read, written = sum(a.prompt_tokens for a in answers), sum(a.completion_tokens for a in answers)
        self.spent_usd += self.usd_of(read, written) if self.usd_of else seconds * self.price
        self.tokens += read + written
        self._asking += seconds
        self._asked += len(answers)


@dataclass(frozen=True)
class KeptAnswer:
    """An answer with its share of what its piece took."""

    answer: Completion
    seconds: float
    computed: float  # tokens


@dataclass
class KeptAnswers:
    """Asks with any prompt, and keeps each answer on disk."""

    job: RunContext
    dataset: Dataset
    target: Target
    budget: SearchBudget
    journal: JournalFile
    known: dict[str, KeptAnswer] = field(default_factory=dict)
    calls: set[str] = field(default_factory=set)  # that this search has made, or taken from an interrupted one

    @property
    def config(self) -> EvaluateConfig:
        """How answers are made and scored."""
        return self.job.recipe.evaluate

    def to(
        self, prompt: KeptPrompt, rows: Sequence[Row], share: float = 1.0, task: str = "trying prompts"
    ) -> SystemAnswers:
        """Answers to rows, or to the first of them where the budget ends; `share`: of it that may be spent by then."""
        turns = prompt.turns([row.prompt for row in rows])
        made = [self.target.identity, self.dataset.manifest.labels, self.config.answer, self.config.max_new_tokens]
        keys = [content_hash([*made, sent, row.tools]) for sent, row in zip(turns, rows, strict=True)]
        written, answers = longest(self.target, self.dataset, self.config), list[KeptAnswer]()
        while len(answers) < len(rows):
            first = len(answers)
            piece = range(first, min(first + PIECE, len(rows)))
            calls = [i for i in piece if keys[i] not in self.calls]
            new = [i for i in calls if keys[i] not in self.known]
            read = max((sum(len(turn["content"]) for turn in turns[i]) for i in new), default=0) / 2 + 64
            room = self.budget.affords(len(calls), read, written, share) if new else len(calls)
            room = min(room, self.budget.calls - len(self.calls))
            if room < len(calls):
                piece = range(first, calls[room])
                calls, new = calls[:room], [i for i in new if i < piece.stop]
            if not piece:
                break
            if new:
                how = Asking(prompts=[turns[i] for i in new], perplexity=False)
                with reporting(progress=lambda *_, **__: None):  # of one piece; the search has its own
                    asked = ask(self.target, self.dataset, [rows[i] for i in new], self.config, how, task=task)[""]
                self.budget.take(asked.completions, asked.seconds)
                self._keep([keys[i] for i in new], asked)
            self.calls.update(keys[i] for i in calls)
            answers += [self.known[keys[i]] for i in piece]
            progress(task, len(self.calls), self.budget.calls)
        computed, seconds = sum(kept.computed for kept in answers), sum(kept.seconds for kept in answers)
        return SystemAnswers([kept.answer for kept in answers], seconds, computed=round(computed))

    def _keep(self, keys: Sequence[str], asked: SystemAnswers) -> None:
        """Note answers and write them down; the next command requests those that failed again."""
        lines, shares = list[str](), (asked.seconds / len(keys), asked.computed / len(keys))
        for key, answer in zip(keys, asked.completions, strict=True):
            self.known[key] = KeptAnswer(answer, *shares)
            if not answer.error:
                line = {"key": key, "seconds": shares[0], "computed": shares[1], "answer": answer.to_json()}
                lines.append(f"{json.dumps(line)}\n")
        with user_errors_of_the_disk(self.journal.path):
            self.journal.append("".join(lines).encode())


@contextmanager
def kept_answers(
    job: RunContext, dataset: Dataset, target: Target, budget: SearchBudget, file: Path
) -> Iterator[KeptAnswers]:
    """Answers that are kept in a file, those of an interrupted search included."""
    with user_errors_of_the_disk(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    step = "wait for it, or choose another folder with --out"
    journal = JournalFile(file, UserError("Another search is working here", where=str(file), next_step=step))
    try:
        known: dict[str, KeptAnswer] = {}
        for line in journal.open():
            try:
                kept = parse_line(line)
                numbers = float(kept["seconds"]), float(kept["computed"])
                known[str(kept["key"])] = KeptAnswer(Completion.from_json(kept["answer"]), *numbers)
            except (ValueError, TypeError, KeyError):
                break
        journal.cut()
        if known:
            say(f"prompt    continues: {counted(len(known), 'answer')} {verb(len(known), 'is', 'are')} known")
        yield KeptAnswers(job, dataset, target, budget, journal, known)
    finally:
        journal.close()


# --- candidates ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptCandidate:
    """A prompt under a name that says what it is."""

    name: str
    prompt: KeptPrompt
    parts: tuple[str, str] = ("", "")  # its instruction and its examples, in words


@dataclass(frozen=True)
class Instructions:
    """What a user brings to the search."""

    template: PromptTemplate | None = None  # of --prompt
    rules: str = ""  # of --rules: a text that is put behind the instruction


def usual_number(dataset: Dataset) -> int:
    """Examples of plain few-shot: one of each label, at most `MOST_EXAMPLES` with very many of them; else four."""
    labels = dataset.manifest.labels or ()
    if dataset.task != "classification" or not labels:
        return 4
    return MOST_EXAMPLES if len(labels) > MOST_LABELS else len(labels)


def usable_examples(dataset: Dataset) -> list[Row]:
    """Training rows that may be shown: one question each, whose text is that of no test or validation row."""
    held = {" ".join(last_user_turn(row).casefold().split()) for row in (*dataset.val, *dataset.test)}
    rows = [row for row in dataset.train if row.shows_the_task and last_user_turn(row).strip()]
    rows = [row for row in rows if " ".join(last_user_turn(row).casefold().split()) not in held]
    single = [row for row in rows if sum(turn["role"] == "user" for turn in row.messages) == 1]
    return (single or rows)[:POOL]


def _balance(dataset: Dataset, rows: Sequence[Row]) -> dict[str, Any]:
    many = len(dataset.manifest.labels or ()) > MOST_LABELS
    return {"stratify": rarest_label(rows) if many else dataset.stratum, "frequent_first": many}


def _prompt(
    dataset: Dataset, model: PromptManifest, rows: Sequence[Row], template: PromptTemplate = AS_IT_IS, **how: Any
) -> KeptPrompt:
    manifest = model.model_copy(update={"user": template.user, "system": template.system, **how})
    plain = tuple(Row(row.id, row.messages, row.label, row.tools) for row in rows)
    return KeptPrompt("", manifest, plain, tuple(dataset.manifest.labels or ()))


def fitted(prompt: KeptPrompt, dataset: Dataset, target: Target, job: RunContext) -> KeptPrompt:
    """A prompt with as many of its examples as the model's context holds next to the longest question and answer."""
    reader = target.reader
    if reader is None or not prompt.examples:
        return prompt
    limit = reader.context - longest_answer(reader.template, dataset, job.recipe.evaluate) - 16
    asked = sorted((*dataset.val, *dataset.test), key=lambda row: sum(len(t["content"]) for t in row.prompt))[-3:]
    while prompt.examples:
        shown = prompt
        if prompt.manifest.chosen == "nearest":  # the longest ones may be a question's nearest
            some = sorted(prompt.examples, key=_size)[-prompt.manifest.shown :]
            shown = replace(prompt, examples=tuple(some), manifest=prompt.manifest.model_copy(update=FIXED))
        longest = max(
            (len(reader.template.prompt_ids(t)) for t in shown.turns([row.prompt for row in asked])), default=0
        )
        if longest < limit:
            break
        if prompt.manifest.chosen == "nearest" and prompt.manifest.shown > 1:
            fewer = prompt.manifest.model_copy(update={"shown": prompt.manifest.shown - 1})
            prompt = replace(prompt, manifest=fewer)
        else:
            longest_row = max(prompt.examples, key=_size)
            prompt = replace(prompt, examples=tuple(row for row in prompt.examples if row is not longest_row))
    return prompt


def with_examples(prompt: KeptPrompt) -> str:
    """`16 examples`, or `the 8 nearest of 400 examples to each question`."""
    number = counted(len(prompt.examples), "example")
    return f"the {prompt.manifest.shown} nearest of {number}" if prompt.manifest.chosen == "nearest" else number


FIXED: dict[str, Any] = {"chosen": "fixed", "shown": 0}


def _size(row: Row) -> int:
    return sum(len(turn["content"]) for turn in row.messages)


def candidates_of(
    dataset: Dataset, target: Target, job: RunContext, model: PromptManifest, brought: Instructions
) -> list[PromptCandidate]:
    """What may be tried, the most promising first: the usual and the nearest examples, other instructions, further
    examples, then both; the first is plain few-shot."""
    with busy("choosing examples"):
        rows = usable_examples(dataset)
        sets = _example_sets(dataset, rows, job.recipe.seed)
    templates = _templates(dataset, rows, brought)
    own, *others = templates
    pairs = [(own, s) for s in sets[:2]] + [(t, sets[0]) for t in others] + [(own, s) for s in sets[2:]]
    pairs += [(t, s) for s in sets[1:] for t in others]
    found: dict[str, PromptCandidate] = {}
    for (words, template), (title, examples, how) in pairs:
        name = ", ".join(filter(None, (words, title)))
        prompt = fitted(_prompt(dataset, model, examples, template, **how), dataset, target, job)
        found.setdefault(prompt.hash, PromptCandidate(name if found else PLAIN, prompt, (words, title)))
    return list(found.values())


ExampleSet = tuple[str, Sequence[Row], dict[str, Any]]  # in words, the rows, and how they are shown


def _example_sets(dataset: Dataset, rows: Sequence[Row], seed: int) -> list[ExampleSet]:
    """Ways to choose examples; the usual one first."""
    usual, balance = usual_number(dataset), _balance(dataset, rows)
    embed = minilm_embedder()
    by = "minilm" if embed else "words"

    def balanced(k: int, seed: int = seed) -> list[Row]:
        return choose_examples(rows, k, seed=seed, **balance)

    sets: list[ExampleSet] = [(counted(usual, "balanced example"), balanced(usual), FIXED)]
    for k in dict.fromkeys((min(NEAREST, len(rows)), min(NEAREST // 2, len(rows)))):
        title = f"{k} nearest {'example' if k == 1 else 'examples'}"
        sets.append((title, _short(rows), {"chosen": "nearest", "shown": k, "by": by}))
    sets.append((f"{usual} balanced examples, others", balanced(usual, seed + 1), FIXED))
    if (diverse := _diverse(rows, usual, embed, seed)) is not None:
        sets.append((counted(len(diverse), "diverse example"), diverse, FIXED))
    if hard := _hard(rows, usual, embed):
        sets.append((counted(len(hard), "hard example"), hard, FIXED))
    for k in (max(usual // 2, 1), *((2 * usual,) if usual <= FEW else ())):
        sets.append((counted(k, "balanced example"), balanced(k), FIXED))
    return [*sets, ("no examples", [], FIXED)]


def _short(rows: Sequence[Row]) -> list[Row]:
    """Rows that are not much longer than most: of the nearest any may be shown."""
    longest = 2 * median(map(_size, rows)) if rows else 0
    return [row for row in rows if _size(row) <= longest]


def _diverse(rows: Sequence[Row], k: int, embed: Callable[[Sequence[str]], Any] | None, seed: int) -> list[Row] | None:
    """Rows that are far from each other: each next one is the farthest from those before (Gonzalez 1985)."""
    import numpy as np

    pool = _short(rows)
    if embed is None or len(pool) <= k:
        return None
    table = embed([last_user_turn(row) for row in pool])
    places = [random.Random(seed).randrange(len(pool))]
    nearest = table @ table[places[0]]
    while len(places) < k:
        places.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, table @ table[places[-1]])
    return [pool[i] for i in places]


def _hard(rows: Sequence[Row], k: int, embed: Callable[[Sequence[str]], Any] | None) -> list[Row]:
    """Rows that a classifier gets right without having seen them, but only just; each label in turn.

    Those that it gets wrong are often mislabelled, and a wrong example teaches the wrong thing.
    """
    import numpy as np

    rows = [row for row in _short(rows) if len(labels_of(row)) == 1]
    if embed is None or len(rows) < 3 * k or len({row.label for row in rows}) < 2:
        return []
    table, labels = embed([last_user_turn(row) for row in rows]), [str(row.label) for row in rows]
    margins: dict[str, list[tuple[float, int]]] = {}
    for fold in range(3):
        inside = [i for i in range(len(rows)) if i % 3 != fold]
        if len({labels[i] for i in inside}) < 2:
            return []
        model = fit_labels(table[inside], [labels[i] for i in inside])
        outside = [i for i in range(len(rows)) if i % 3 == fold]
        for i, row in zip(outside, np.sort(model.predict_proba(table[outside]), axis=1), strict=True):
            if model.predict(table[i : i + 1])[0] == labels[i]:
                margins.setdefault(labels[i], []).append((float(row[-1] - row[-2]), i))
    queues = [[i for _, i in sorted(margins[label])] for label in sorted(margins)]
    places: list[int] = []
    while len(places) < k and any(queues):
        places += [queue.pop(0) for queue in queues if queue][: k - len(places)]
    return [rows[i] for i in places]


def _templates(dataset: Dataset, rows: Sequence[Row], brought: Instructions) -> list[tuple[str, PromptTemplate]]:
    """Instructions in words and as templates: the rows' own first, then yours, then what is put behind it."""
    systems = {turn["content"] for row in rows for turn in row.messages[:1] if turn["role"] == "system"}
    shared = systems.pop() if len(systems) == 1 else ""
    own = brought.template or AS_IT_IS

    def behind(text: str) -> PromptTemplate:
        if systems and own.system is None:  # the rows have several: what is added stands behind their text
            return PromptTemplate(f"{own.user}\n\n{text}", None)
        before = own.system if own.system is not None else shared
        return PromptTemplate(own.user, f"{before}\n\n{text}".strip())

    templates = [("your prompt" if brought.template else "", own)]
    if brought.template:
        templates.append(("the rows' instruction", AS_IT_IS))
    if brought.rules:
        templates.append(("your rules", behind(brought.rules)))
    if dataset.task == "classification" and len(dataset.manifest.labels or ()) > 1:
        templates.append(("label list", behind("Answer with one of these labels and nothing else:\n{labels}")))
    elif (form := answer_form(rows)) is not None:
        templates.append(("answer format", behind(form)))
    if shared:
        templates.append(("no instruction", PromptTemplate(own.user, "")))
    return templates


def answer_form(rows: Sequence[Row]) -> str | None:
    """What the answers of rows look like, as a sentence to a model: the keys of an object, or how long a text is."""
    answers = [row.answer for row in rows[:500]]
    if not answers:
        return None
    objects = [value for value in map(_as_object, answers) if value is not None]
    if len(objects) > 0.9 * len(answers):
        keys = list(dict.fromkeys(key for value in objects for key in value))
        return f"Answer with one JSON object with the keys {', '.join(keys[:20])}, and with nothing else."
    lengths = sorted(len(answer.split()) for answer in answers)
    low, high = lengths[len(lengths) // 10], lengths[9 * len(lengths) // 10]
    return f"Answer in {low} to {high} words." if 1 < low < high else f"Answer in at most {max(high, 1)} words."


def _as_object(text: str) -> dict[str, Any] | None:
    try:
        value = parse_line(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# --- the search ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchSchedule:
    """How many candidates and rows a number of calls is enough for."""

    candidates: int
    rounds: tuple[int, ...]  # candidates of each round
    rows: int  # further rows of each round
    check: int  # rows on which the best meets plain few-shot

    @property
    def calls(self) -> int:
        """At most so many; the candidate that joins in the second round answers the rows of the first too."""
        return self.rows * (sum(self.rounds) + 1) + 2 * self.check


def schedule_for(calls: int, rows: int, candidates: int) -> SearchSchedule | None:
    """The schedule within a number of calls and validation rows; None: too few of either for a search."""
    check = min(round(CHECK_SHARE * rows), max(calls // 6, 0))
    search, left = rows - check, calls - 2 * check
    if rows < LEAST_ROWS or check < 4:
        return None
    for number in range(candidates, 1, -1):
        rounds = [number]
        while rounds[-1] > 2:
            rounds.append(math.ceil(rounds[-1] / 2))
        further = min(left // (sum(rounds) + 1), search // len(rounds))
        if further >= FIRST_ROWS or (number == 2 and further > 0):
            return SearchSchedule(number, tuple(rounds), further, check)
    return None


def search_prompt(
    asker: KeptAnswers, dataset: Dataset, candidates: Sequence[PromptCandidate], calls: int
) -> tuple[PromptCandidate, PromptSearch]:
    """The prompt to keep, and how it was found; plain few-shot where nothing better was.

    Args:
        candidates: plain few-shot is the first; where there are not calls enough for all, the first ones are tried.
        calls: for the search and its check.
    """
    job, rows, plain = asker.job, _spread(dataset.val, asker.job.recipe.seed, dataset), candidates[0]
    schedule = schedule_for(calls, len(rows), len(candidates))
    record = PromptSearch(plain=plain.name, kept=plain.name)
    if schedule is None:
        few = f"{counted(len(rows), 'validation row')} and {counted(calls, 'call')} are too few for a search"
        return plain, record.model_copy(update={"words": f"{few}: plain few-shot is kept."})
    check, search = rows[: schedule.check], rows[schedule.check :]
    say(
        f"prompt    {schedule.candidates} of {counted(len(candidates), 'candidate')}, on {schedule.rows} to "
        f"{schedule.rows * len(schedule.rounds)} validation rows each, {schedule.check} rows kept for the check: "
        f"at most {schedule.calls:,} calls"
    )
    alive, rungs = list(candidates[: schedule.candidates]), dict[str, Rung]()
    metric, lower = "", False

    def value_of(candidate: PromptCandidate, some: Sequence[Row], share: float) -> tuple[int, float, float]:
        nonlocal metric, lower
        answers = asker.to(candidate.prompt, some, share)
        if not answers.completions:
            return 0, math.nan, 0.0
        evaluation = score(job, dataset, some[: len(answers.completions)], answers)
        metric, lower = evaluation.primary, lower_is_better(evaluation.primary)
        number = len(answers.completions)
        return number, evaluation.metrics[metric].value, answers.prompt_tokens / number

    def order(name: str) -> tuple[float, ...]:
        rung = rungs[name]
        return (-rung.round, rung.value if lower else -rung.value, rung.tokens)

    for number, size in enumerate(schedule.rounds, 1):
        alive, some = alive[:size], search[: schedule.rows * number]
        for candidate in alive:
            answered, value, tokens = value_of(candidate, some, SEARCH_SHARE)
            if answered == len(some):
                rung = Rung(name=candidate.name, rows=answered, value=value, tokens=tokens, round=number)
                rungs[candidate.name] = rung
        done = [c for c in alive if c.name in rungs and rungs[c.name].round == number]
        if len(done) < len(alive):
            say("prompt    the budget ends the search here")
            break
        alive = sorted(done, key=lambda candidate: order(candidate.name))
        if number == 1:
            alive = _with_best_of_both(alive, candidates)
    tried = [rungs[name] for name in sorted(rungs, key=order)]
    best = next((c for c in candidates if tried and c.name == tried[0].name), plain)
    record = record.model_copy(
        update={"metric": metric, "search_rows": max((r.rows for r in tried), default=0), "tried": tried}
    )
    return _checked(record, best, plain, check, value_of)


def _with_best_of_both(
    ranked: Sequence[PromptCandidate], candidates: Sequence[PromptCandidate]
) -> list[PromptCandidate]:
    """The candidates of a first round, the best first, with the one that joins the best instruction and the best
    examples, each as they did next to the usual other part; it comes second."""
    usual = candidates[0].parts
    instruction = next((c.parts[0] for c in ranked if c.parts[1] == usual[1]), usual[0])
    examples = next((c.parts[1] for c in ranked if c.parts[0] == usual[0]), usual[1])
    joined = next((c for c in candidates if c.parts == (instruction, examples)), None)
    if joined is None or joined in ranked:
        return list(ranked)
    return [ranked[0], joined, *ranked[1:]]


def _checked(
    record: PromptSearch,
    best: PromptCandidate,
    plain: PromptCandidate,
    check: Sequence[Row],
    value_of: Callable[[PromptCandidate, Sequence[Row], float], tuple[int, float, float]],
) -> tuple[PromptCandidate, PromptSearch]:
    """Whether the best of a search is better than plain few-shot on rows that it did not see."""
    if best.name == plain.name:
        return plain, record.model_copy(update={"words": "Nothing did better than plain few-shot, which is kept."})
    answered, value, _ = value_of(best, check, CHECKED_SHARE)
    answered_plain, before, _ = value_of(plain, check[:answered], CHECKED_SHARE)
    if answered < len(check) or answered_plain < answered:
        words = "The budget left no check of the best prompt on rows that the search did not see: plain few-shot stays."
        return plain, record.model_copy(update={"words": words})
    better = value < before if lower_is_better(record.metric) else value > before
    on = f"{record.metric} {value:.3f} against {before:.3f} on {counted(answered, 'row')} that the search did not see"
    words = f"{best.name[:1].upper()}{best.name[1:]}: {on}."
    if not better:
        words = f"The best of the search ({best.name}) is not better there ({on}): plain few-shot stays."
    found = {"check_rows": answered, "best_value": value, "plain_value": before, "words": words}
    kept = best if better else plain
    return kept, record.model_copy(update={**found, "kept": kept.name})


def _spread(rows: Sequence[Row], seed: int, dataset: Dataset) -> list[Row]:
    """Rows in a seeded order whose beginnings are balanced."""
    return [rows[i] for i in sample_order(rows, seed, dataset.stratum)]


# --- what was found ------------------------------------------------------------------------------


def write_found(
    folder: Path, job: RunContext, dataset: Dataset, target: Target, prompt: KeptPrompt, search: PromptSearch
) -> None:
    """Write a prompt with its task, its card and how it was found, as `open_prompt` reads it."""
    config = job.recipe.evaluate
    task = task_spec(
        dataset,
        answer="choice" if uses_choice(dataset, config) and not target.no_scores[0] else "generate",
        max_new_tokens=longest(target, dataset, config),
        chat_template="",
    )
    write_jsonl(folder / EXAMPLES, [row.to_json() for row in prompt.examples])
    write_prompt(folder, prompt.manifest)
    write_json(folder / OWN, {"version": 1, "base_fingerprint": "", "hash": prompt.hash, "task": task})
    write_text(folder / "README.md", card(prompt, search, dataset))
    write_record(folder / PromptSearch.file, search)


def longest(target: Target, dataset: Dataset, config: EvaluateConfig) -> int:
    """Most tokens of an answer."""
    if (reader := target.reader) is not None:
        return longest_answer(reader.template, dataset, config)
    return config.max_new_tokens or generous_limit(dataset.train[:2000] or dataset.test[:2000])


def best_prompt(job: RunContext, dataset: Dataset, calls: int, folder: Path) -> tuple[KeptPrompt, PromptSearch] | None:
    """The prompt that a search of so many calls finds for a run's base, kept in a folder; None: plain few-shot stays.

    The caller applies the base alone.
    """
    began, budget = time.monotonic(), SearchBudget(calls, price=job.recipe.plan.usd_per_hour / 3600)
    if len(dataset.val) < LEAST_ROWS or not usable_examples(dataset):
        return None
    model = PromptManifest(model=known_name(job.recipe.model))
    with kept_answers(job, dataset, job.target, budget, folder / "answers.jsonl") as asker:
        candidates = candidates_of(dataset, job.target, job, model, Instructions())
        kept, search = search_prompt(asker, dataset, candidates, calls)
        say(f"prompt    {search.words}")
        spent: dict[str, Any] = {"most_calls": calls, "calls": len(asker.calls), "tokens": budget.tokens}
    search = search.model_copy(update={**spent, "usd": budget.spent_usd, "seconds": time.monotonic() - began})
    write_found(folder, job, dataset, job.target, kept.prompt, search)
    return None if kept is candidates[0] else (kept.prompt, search)


def card(prompt: KeptPrompt, search: PromptSearch, dataset: Dataset) -> str:
    """The card of a prompt."""
    tried = "\n".join(f"| {rung.name} | {rung.rows} | {rung.value:.3f} | {rung.tokens:,.0f} |" for rung in search.tried)
    who = prompt.manifest.served_as or prompt.manifest.model
    return f"""# A prompt for {who}

It shows {with_examples(prompt)} of {dataset.id}. {search.words}

- `prompt.yaml`: the instruction and how examples are chosen; edit it, and it is another prompt with another hash.
- `{EXAMPLES}`: the rows that may be shown.
- `search.json`: how it was found, with {counted(search.calls, "call")}.

| candidate | validation rows | {search.metric or "value"} | tokens of a prompt |
|---|---|---|---|
{tried}
"""
