"""Whether two sides' texts differ, and how: production or a test split against what was trained.

Texts become numbers, fast: hashed TF-IDF of words, word pairs and n-grams over one long array of code points, so that
10,000 short texts take about 0.2 s of one core. A classifier that tells the sides apart shows how much they differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import re
import textwrap
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tuneloop.core.errors import UserError
from tuneloop.data.checks.overview import CheckRows, Finding, Overview, question_of
from tuneloop.data.clean.repair import repair_text
from tuneloop.data.config import PrepareConfig, RepairConfig
from tuneloop.data.dataset import TRAIN, keyed_hash, mixed_bits, normalised
from tuneloop.data.formats.guess import TEXT_NAMES, FormatGuess, Parsed, detect, parse_record
from tuneloop.data.formats.turns import ROLES
from tuneloop.data.pii.redact import hidden
from tuneloop.data.sources.parse import SourceRecord
from tuneloop.data.sources.read import read_records
from tuneloop.records.dataset import DatasetManifest
from tuneloop.records.evaluation import Estimate
from tuneloop.records.rows import Message, Row

LONGEST = 1_000  # characters of a text that count: more adds time, hardly evidence
CHARACTER_NGRAMS = (3, 4, 5)
BITS = 20  # of the hash of a word or n-gram
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 2**64)


def one_thread() -> Any:
    """While it is open, matrix products use one thread: with more, the last digits depend on the number of cores."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def tfidf(texts: Sequence[str]) -> Any:
    """A `scipy.sparse.csr_matrix`: rows of unit length, half of it on words and word pairs, half on 3-, 4- and 5-grams.

    Counts are damped (1 + log) and weighted with the smoothed inverse document frequency. What only one text has is
    left out: it says nothing about another one.
    """
    from scipy import sparse

    rarity = np.log((1 + len(texts)) / (1 + np.arange(len(texts) + 1))) + 1.0
    rows, columns, values = [], [], []
    for number, (row, feature) in enumerate(_features(texts)):
        key, count = np.unique((row.astype(np.uint64) << np.uint64(BITS)) | feature, return_counts=True)
        column = (key & np.uint64(2**BITS - 1)).astype(np.int64)
        documents = np.bincount(column, minlength=2**BITS)[column]
        shared = documents > 1
        row, column = (key[shared] >> np.uint64(BITS)).astype(np.int64), column[shared]
        weight = (1.0 + np.log(count[shared])) * rarity[documents[shared]]
        length = np.sqrt(np.bincount(row, weight * weight, minlength=len(texts)))
        rows.append(row)
        columns.append(column + number * 2**BITS)
        values.append(weight / length[row] * 0.5**0.5)
    seen = np.zeros(2 * 2**BITS, dtype=bool)
    column = np.concatenate(columns)
    seen[column] = True
    positions = np.cumsum(seen) - 1
    return sparse.csr_matrix(
        (np.concatenate(values).astype(np.float32), (np.concatenate(rows), positions[column])),
        shape=(len(texts), int(seen.sum())),
    )


def sketch(table: Any, dimensions: int) -> Any:
    """A count sketch (Charikar et al. 2002): a dense array whose inner products estimate those of `table`."""
    from scipy import sparse

    mixed = mixed_bits(np.arange(1, table.shape[1] + 1, dtype=np.uint64) * np.uint64(_BASE))
    sign = np.where(mixed & np.uint64(1), np.float32(1), np.float32(-1))
    buckets = ((mixed >> np.uint64(33)) % np.uint64(dimensions)).astype(np.int64)
    fold = sparse.csr_matrix((sign, (np.arange(len(buckets)), buckets)), shape=(len(buckets), dimensions))
    return (table @ fold).toarray()


def groups(texts: Sequence[str]) -> Any:
    """A number for each text, the same for texts that are equal up to Unicode form, white space and case."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(normalised(text), len(number)) for text in texts], dtype=np.int64)


def folds(texts: Sequence[str], count: int, seed: int) -> Any:
    """The fold of each text for cross-validation; equal texts are in one fold, wherever they stand."""
    return np.array([keyed_hash(normalised(text), seed)[0] % count for text in texts], dtype=np.int64)


def sample(texts: Sequence[str], size: int, seed: int) -> list[int]:
    """Indices of at most `size` texts, chosen by their hashes, in their order: the same texts give the same ones."""
    if len(texts) <= size:
        return list(range(len(texts)))
    order = sorted(range(len(texts)), key=lambda index: (keyed_hash(texts[index], seed), index))
    return sorted(order[:size])


def _features(texts: Sequence[str]) -> Iterator[tuple[Any, Any]]:
    clean = [" ".join(text[:LONGEST].lower().split()) for text in texts]
    code = np.frombuffer(("\n " + " \n ".join(clean) + " ").encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    row = np.cumsum(code == 10) - 1  # a line feed begins each text: `clean` holds none
    powers, inverse = _powers(_BASE, len(code)), _powers(_INVERSE, len(code) + 1)
    sums = np.zeros(len(code) + 1, dtype=np.uint64)  # polynomial hash of every prefix, modulo 2^64
    np.cumsum((code.astype(np.uint64) + np.uint64(1)) * powers, out=sums[1:])

    def spans(start: Any, end: Any) -> Any:
        return mixed_bits((sums[end] - sums[start]) * inverse[start] + (end - start).astype(np.uint64))

    shift = np.uint64(64 - BITS)
    letter = ((code >= 97) & (code <= 122)) | ((code >= 48) & (code <= 57)) | (code > 127)
    edge = np.diff(np.concatenate([[False], letter, [False]]).astype(np.int8))
    start, end = np.flatnonzero(edge == 1), np.flatnonzero(edge == -1)
    word, row_of_word = spans(start, end), row[start]
    neighbours = row_of_word[1:] == row_of_word[:-1]
    pair = mixed_bits(word[:-1] * np.uint64(31) + word[1:])[neighbours]
    yield np.concatenate([row_of_word, row_of_word[1:][neighbours]]), np.concatenate([word, pair]) >> shift

    places, ngrams = [], []
    for size in CHARACTER_NGRAMS:
        start = np.arange(max(len(code) - size + 1, 0))
        start = start[(row[start] == row[start + size - 1]) & (code[start] != 10)]
        places.append(row[start])
        ngrams.append(spans(start, start + size) >> shift)
    yield np.concatenate(places), np.concatenate(ngrams)


def _powers(base: int, count: int) -> Any:
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)


WARN_AUC, WARN_LOW = 0.65, 0.55  # a difference that a user notices, and that is no accident of the sample
# Most texts show which side they are from: measured on one, nothing holds on the other.
ERROR_AUC, ERROR_LOW = (0.85, 0.75)
FEW = 20  # distinct texts a side below which nothing is said
MOST = 2000  # distinct texts a side that are looked at
DIMENSIONS = 512
RIDGE = 1.0
FOLDS = 5
# The classifiers of the folds share most of their texts, so their errors hang together: the correction of Nadeau and
# Bengio (2003, doi 10.1023/A:1024068626366), 1/k + 1/(k-1) for 1/k, of the variance. On halves of one set of 200 and
# 800 texts it raises the share of intervals that hold 0.5 from 70 and 90 % to 95 %.
FOLDS_SHARE = ((1 / FOLDS + 1 / (FOLDS - 1)) * FOLDS) ** 0.5
MOST_SHOWN = 10  # words and examples shown
_WORD = re.compile(r"[^\W\d_]{2,}(?:['’][^\W\d_]+)?")


@dataclass(frozen=True)
class Drift:
    """How b differs from a."""

    level: Literal["ok", "warn", "error"]  # `warn` from an AUC of 0.65 (low end above 0.55), `error` from 0.85 (0.75)
    auc: Estimate  # with its 95 % interval (DeLong et al. 1988, widened by FOLDS_SHARE; NaN below 20 texts a side)
    rows: tuple[int, int]  # distinct texts of a and b that were looked at
    length_ratio: float  # median characters of b over those of a
    label_distance: float | None  # total variation distance of the label shares, 0 to 1; None without labels
    new_words: float  # share of b's words that a never uses; `usual_new_words`: the same for a tenth of a and the rest
    usual_new_words: float
    words_a: list[str]  # those that are typical of either side, the most typical first
    words_b: list[str]
    examples: list[int]  # indices of texts of b that a has nothing like, the most foreign first


def compare_with(
    texts_a: Sequence[str],
    texts_b: Sequence[str],
    labels_a: Sequence[str] | None = None,
    labels_b: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> Drift:
    """Compare texts b (production, test) with texts a (train).

    Texts that are equal up to case and white space count once a side and are in one fold: copies neither sharpen the
    interval nor give a side away. Of more than 2,000 texts a side a sample is taken, by their hashes.
    """
    chosen_a, chosen_b = _distinct(texts_a, seed), _distinct(texts_b, seed)
    a, b = [texts_a[i] for i in chosen_a], [texts_b[i] for i in chosen_b]
    lengths_a, lengths_b = np.array([len(t) for t in a] or [0]), np.array([len(t) for t in b] or [0])
    auc = Estimate(0.5, float("nan"), float("nan"))
    examples: list[int] = []
    if min(len(a), len(b)) >= FEW:
        auc, score, vectors = tell_apart(a, b, seed)
        with one_thread():
            nearest = (vectors[len(a) :] @ vectors[: len(a)].T).max(axis=1)
        likely = np.flatnonzero(score[len(a) :] >= np.quantile(score[len(a) :], 0.75))
        examples = likely[np.lexsort((likely, nearest[likely]))][:MOST_SHOWN].tolist()
    counts_a, counts_b = _words(a), _words(b)
    others = _words([text for index, text in enumerate(a) if index % 10])
    return Drift(
        level=level_of(auc),
        auc=auc,
        rows=(len(a), len(b)),
        length_ratio=float(np.median(lengths_b) / max(np.median(lengths_a), 1)),
        label_distance=total_variation(Counter(labels_a), Counter(labels_b)) if labels_a and labels_b else None,
        new_words=_new_word_share(b, counts_a),
        usual_new_words=_new_word_share(a[::10], others),
        words_a=_typical_words(counts_a, counts_b, len(a), len(b)),
        words_b=_typical_words(counts_b, counts_a, len(b), len(a)),
        examples=[chosen_b[i] for i in examples],
    )


def level_of(auc: Estimate) -> Literal["ok", "warn", "error"]:
    """What an AUC between two sides means; see the constants."""
    if auc.value >= ERROR_AUC and auc.low > ERROR_LOW:
        return "error"
    return "warn" if auc.value >= WARN_AUC and auc.low > WARN_LOW else "ok"


def auc_estimate(of_a: Any, of_b: Any) -> Estimate:
    """The probability that a score of b is above one of a (ties: half), with the interval of DeLong et al. 1988."""
    sorted_a, sorted_b = np.sort(of_a), np.sort(of_b)
    # by row: the share of the other side that it is right about
    right_b = (np.searchsorted(sorted_a, of_b, "left") + np.searchsorted(sorted_a, of_b, "right")) / (2 * len(of_a))
    wrong_a = (np.searchsorted(sorted_b, of_a, "left") + np.searchsorted(sorted_b, of_a, "right")) / (2 * len(of_b))
    value = float(right_b.mean())
    half = 1.96 * float(np.sqrt(right_b.var(ddof=1) / len(of_b) + wrong_a.var(ddof=1) / len(of_a)))
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0))


def kolmogorov_smirnov(a: Any, b: Any) -> tuple[float, float]:
    """The largest distance of two distribution functions, and its asymptotic p-value (Smirnov 1948)."""
    everything = np.concatenate([a, b])
    below_a = np.searchsorted(np.sort(a), everything, "right") / len(a)
    below_b = np.searchsorted(np.sort(b), everything, "right") / len(b)
    distance = float(np.abs(below_a - below_b).max())
    x = distance * (len(a) * len(b) / (len(a) + len(b))) ** 0.5
    if x < 0.3:  # the series below converges slowly, and the p-value is 1 to five digits
        return distance, 1.0
    terms = [(-1) ** (j - 1) * np.exp(-2 * j * j * x * x) for j in range(1, 50)]
    return distance, float(min(max(2 * sum(terms), 0.0), 1.0))


def chi_square(a: Any, b: Any) -> tuple[float, float]:
    """Whether counts by category have the same shares: p-value of Pearson's test, and Cramér's V as size, 0 to 1."""
    from scipy.special import chdtrc

    table = np.array([a, b], dtype=float)
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2 or not table.sum(axis=1).all():
        return 1.0, 0.0
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    return float(chdtrc(table.shape[1] - 1, statistic)), float((statistic / table.sum()) ** 0.5)


def total_variation(a: Counter[str], b: Counter[str]) -> float:
    """Half the sum of the differences of all shares: the share of rows that would have to change their label."""
    of_a, of_b = max(a.total(), 1), max(b.total(), 1)
    return 0.5 * sum(abs(a[name] / of_a - b[name] / of_b) for name in a.keys() | b.keys())


def _distinct(texts: Sequence[str], seed: int) -> list[int]:
    first: dict[str, int] = {}
    for index in sample(texts, 4 * MOST, seed):
        first.setdefault(normalised(texts[index]), index)
    indices = [index for text, index in first.items() if text]
    return [indices[i] for i in sample([texts[index] for index in indices], MOST, seed)]


def tell_apart(a: Sequence[str], b: Sequence[str], seed: int = 0) -> tuple[Estimate, Any, Any]:
    """Learn to tell texts b from a, at least two each: ridge regression on TF-IDF, by folds; equal texts are in one.

    Returns the AUC on texts that were not trained on, with its 95 % interval (DeLong et al. 1988, widened by
    FOLDS_SHARE); the score of each text of a, then of b, above 0 where it looks like b; the texts' vectors.
    """
    texts = [*a, *b]
    is_b = np.arange(len(texts)) >= len(a)
    fold = folds(texts, FOLDS, seed)
    score = np.zeros(len(texts), dtype=np.float32)
    with one_thread():
        vectors = sketch(tfidf(texts), DIMENSIONS)
        with_bias = np.concatenate([vectors, np.full((len(texts), 1), 0.5, dtype=np.float32)], axis=1)

        def moments(rows: Any) -> tuple[Any, Any, int]:
            some = with_bias[rows]
            return some.T @ some, some.sum(axis=0), len(some)

        of_fold = [[moments((fold == number) & (is_b == side)) for side in (False, True)] for number in range(FOLDS)]
        for number in range(FOLDS):
            matrix, target = RIDGE * np.eye(DIMENSIONS + 1, dtype=np.float32), 0.0
            for side, sign in ((0, -1.0), (1, 1.0)):
                others = [of_fold[other][side] for other in range(FOLDS) if other != number]
                # both sides weigh the same in each training set, or the scores of a fold would lean against its
                # majority
                weight = np.float32(len(texts) / 2 / max(sum(count for *_, count in others), 1))
                matrix = matrix + weight * sum(square for square, *_ in others)
                target = target + sign * weight * sum(total for _, total, _ in others)
            inside = fold == number
            score[inside] = with_bias[inside] @ np.linalg.solve(matrix, target)
    auc = auc_estimate(score[: len(a)], score[len(a) :])
    low, high = (auc.value + FOLDS_SHARE * (end - auc.value) for end in (auc.low, auc.high))
    return Estimate(auc.value, max(low, 0.0), min(high, 1.0)), score, vectors


def _words(texts: Sequence[str]) -> Counter[str]:
    return Counter(word for text in texts for word in set(_WORD.findall(text.lower())))


def _new_word_share(texts: Sequence[str], vocabulary: Collection[str]) -> float:
    words = [word for text in texts for word in _WORD.findall(text.lower())]
    return sum(word not in vocabulary for word in words) / len(words) if words else 0.0


def _typical_words(counts: Counter[str], other: Counter[str], rows: int, other_rows: int) -> list[str]:
    """Words of more texts of one side than chance allows: z-scores of log odds ratios (Woolf 1955)."""
    scores = {}
    for word, count in counts.items():
        if count < 3:  # hardly telling, and rare words may be names
            continue
        cells = (count + 0.5, rows - count + 0.5, other[word] + 0.5, other_rows - other[word] + 0.5)
        odds_ratio = cells[0] * cells[3] / (cells[1] * cells[2])
        scores[word] = math.log(odds_ratio) / math.sqrt(sum(1 / cell for cell in cells))
    words = [word for word, score in scores.items() if score > 3.0]
    return sorted(words, key=lambda word: (-scores[word], word))[:MOST_SHOWN]


SAMPLE = 2000  # records looked at to find the format
PROMPT_NAMES = ("prompt", "instruction", "input", "user", "request", *TEXT_NAMES)
DEPTH = 4  # of objects in which turns and texts are looked for: logs wrap requests


def as_prepared(manifest: DatasetManifest, sources: Sequence[str]) -> PrepareConfig:
    """How production records are read for a prepared data set: by its columns and templates, where they have these."""
    form = manifest.format
    columns = form.columns if form and form.name == "text_label" else {}
    settings = {key: manifest.config.get(key) for key in ("input", "output", "task", "format", "text", "label")}
    settings |= {key: columns[key] for key in ("text", "label") if columns.get(key)}
    settings = {key: value for key, value in settings.items() if value is not None}
    return PrepareConfig.model_validate({**settings, "sources": list(sources)})


def read_production(sources: Sequence[str], config: PrepareConfig | None = None) -> tuple[list[Row], int]:
    """Production records as rows (the user's turns, an empty answer, maybe a label), and how many held no such turn.

    Records are read as training data are. Of one that is no training example because nothing is answered, the turns or
    the text column are taken. Raises UserError: a source is missing or empty, or no record holds a user's question.
    """
    config = config or PrepareConfig(sources=list(sources))
    records = iter(read_records(sources))
    sample = list(itertools.islice(records, SAMPLE))
    guess = None
    with contextlib.suppress(UserError):  # of no known format
        guess = detect([item.value for item in sample if isinstance(item, SourceRecord)], config)
    rows, without = [], 0
    for item in itertools.chain(sample, records):
        texts, label = user_turns(item.value, guess, config) if isinstance(item, SourceRecord) else ([], None)
        if texts:
            name = hashlib.blake2b("\n".join(texts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
            messages: list[Message] = [{"role": "user", "content": text} for text in texts]
            messages.append({"role": "assistant", "content": ""})
            rows.append(Row(name, messages, label, meta={"source": item.source, "line": item.line}))
        else:
            without += 1
    if not rows:
        step = "give records with messages, or with a column named text or prompt"
        raise UserError(f"No record of {without:,} holds a user's question", where=", ".join(sources), next_step=step)
    return rows, without


def user_turns(
    record: dict[str, Any], guess: FormatGuess | None, config: PrepareConfig
) -> tuple[list[str], str | None]:
    """What the user says in a record, empty if nothing is found, and the label of a classified text."""
    if guess is not None:
        parsed = parse_record(record, guess, config)
        if isinstance(parsed, Parsed) and (
            texts := [m["content"] for m in parsed.messages if m["role"] == "user" and m["content"].strip()]
        ):
            return texts, parsed.label
    text = record.get(config.text) if config.text else None
    if isinstance(text, str) and text.strip():
        return [text], None
    return next(_turns(record, DEPTH), None) or next(_text_columns(record, DEPTH), []), None


def _turns(value: Any, depth: int) -> Iterator[list[str]]:
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
        speakers = (str(turn.get("role", turn.get("from", turn.get("speaker", "")))).casefold() for turn in value)
        users = [turn for turn, name in zip(value, speakers, strict=True) if ROLES.get(name) == "user"]
        texts = [text for turn in users if (text := _text_of(turn))]
        if texts:
            yield texts
    if depth and isinstance(value, Mapping):
        for item in value.values():
            yield from _turns(item, depth - 1)


def _text_of(turn: Mapping[str, Any]) -> str:
    content = next((turn[key] for key in ("content", "value", "text") if key in turn), "")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) and content.strip() else ""


def _text_columns(record: Any, depth: int) -> Iterator[list[str]]:
    if not isinstance(record, Mapping):
        return
    texts = {str(key).casefold(): value for key, value in record.items() if isinstance(value, str) and value.strip()}
    for name in PROMPT_NAMES:
        if name in texts:
            yield [texts[name]]
    if len(texts) == 1:
        yield list(texts.values())
    if depth:
        for value in record.values():
            yield from _text_columns(value, depth - 1)


EXAMPLE_LENGTH = 200  # characters of a production text that are shown


def compare_with_production(overview: Overview, against: Sequence[Row]) -> Finding:
    """Production against the task's own training rows, both repaired and without personal data, as in training."""
    rows = [overview.row(i) for i in overview.some(overview.rows(TRAIN), 4_000).tolist()]
    questions = [question_of(row) for row in against]
    places = sample(questions, 4 * MOST, overview.seed)
    texts = [_comparable(questions[i]) for i in places]
    labels_a = labels_b = None
    if overview.task == "classification":
        column, names = overview.columns["label"], overview.names["label"]
        labels_a = [names[column[i]] for i in overview.rows(TRAIN).tolist() if column[i] >= 0]
        labels_b = [row.label for row in against if row.label is not None]
    training_texts = [_comparable(question_of(row)) for row in rows if "mix" not in row.meta]
    drift = compare_with(training_texts, texts, labels_a, labels_b, seed=overview.seed)
    examples = []
    for number in drift.examples:
        row, text = against[places[number]], textwrap.shorten(texts[number], EXAMPLE_LENGTH, placeholder=" …")
        location = {"source": row.meta.get("source", ""), "line": row.meta.get("line", 0)}
        examples.append({**location, "id": row.id, "text": text})
    remedy = "Add training rows of the kind that the examples show, and words such as those named."
    return Finding(drift.level, drift_message(drift), len(against), remedy, CheckRows((), examples))


def _comparable(text: str) -> str:
    return hidden(repair_text(text, RepairConfig())[0])


def drift_message(drift: Drift) -> str:
    """A drift in one sentence."""
    auc = drift.auc
    if auc.low != auc.low:
        return f"too few production texts to tell ({drift.rows[1]} distinct ones)"
    parts = [
        f"a classifier tells production from train with AUC {auc.value:.2f} ({auc.low:.2f} to {auc.high:.2f}; 0.5: "
        f"alike)",
        f"texts are {drift.length_ratio:.1f} times as long",
        f"{drift.new_words:.0%} of the words are new to train (of train's own {drift.usual_new_words:.0%})",
    ]
    if drift.label_distance is not None:
        parts.append(f"{drift.label_distance:.0%} of the labels would have to change")
    if drift.level != "ok" and drift.words_b:
        parts.append(f"production has more of {', '.join(map(repr, drift.words_b))}")
    if drift.level != "ok" and drift.words_a:
        parts.append(f"train has more of {', '.join(map(repr, drift.words_a))}")
    return "; ".join(parts)
