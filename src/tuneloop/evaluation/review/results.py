"""What the votes come to: agreement, ranking, win rates, ratings, and data to learn from."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_jsonl
from tuneloop.core.lazy import Array, NDArray, np
from tuneloop.core.stats.tests import Z95, by_interval
from tuneloop.evaluation.review.items import SAME, ReviewFolder, read_votes, standing
from tuneloop.records.evaluation import Estimate
from tuneloop.records.review import ReviewItem, Vote

RESAMPLES = 1000
# A system that won every vote has no finite strength; this much of a normal prior gives it one. It moves
# strengths from more than a handful of votes by less than 0.01.
RIDGE = 1e-3

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(units: Sequence[Sequence[Hashable]], level: Level = "nominal") -> float:
    """How far raters agree beyond chance: 1 is perfect, 0 is chance, below 0 is systematic disagreement.

    Own code because the package for it is under the GPL.

    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".

    `units`: the values that each item got, one for each rater who rated it; any number of raters; `level`:
    `nominal` for kinds; `ordinal` and `interval` for numbers. Returns naN where it is not defined: no item has two
    ratings, or all ratings are the same value.
    """
    pairable = [list(unit) for unit in units if len(unit) >= 2]
    values = sorted({value for unit in pairable for value in unit}, key=lambda v: (str(type(v)), v))
    if len(values) < 2:
        return math.nan
    index = {value: i for i, value in enumerate(values)}
    coincidences = np.zeros((len(values), len(values)))
    for unit in pairable:
        counts = np.bincount([index[value] for value in unit], minlength=len(values)).astype(float)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = coincidences.sum(axis=0)
    distance = 1.0 - np.eye(len(values))
    if level != "nominal":  # an ordinal value is at the middle of its ranks
        at = np.cumsum(totals) - totals / 2 if level == "ordinal" else np.array(values, dtype=float)
        distance = (at[:, None] - at[None, :]) ** 2
    expected = (np.outer(totals, totals) * distance).sum() / (totals.sum() - 1)
    return float(1 - (coincidences * distance).sum() / expected)


def alpha_with_interval(units: Sequence[Sequence[Hashable]], level: Level = "nominal") -> Estimate:
    """`krippendorff_alpha` with a 95 % percentile bootstrap interval over items."""
    value = krippendorff_alpha(units, level)
    pairable = [unit for unit in units if len(unit) >= 2]
    if math.isnan(value) or len(pairable) < 3:
        return Estimate(value, math.nan, math.nan)
    draws = _resampled(len(pairable), lambda places: krippendorff_alpha([pairable[i] for i in places], level), 0)
    return Estimate(value, *_percentiles(draws))


def _resampled(n: int, function: Callable[[NDArray[np.int64]], Any], seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return np.array([function(rng.integers(0, n, n)) for _ in range(RESAMPLES)], dtype=float)


def _percentiles(draws: Array) -> tuple[float, float]:
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def bradley_terry(wins: Array) -> Array:
    """Strengths (K,), mean 0, as log odds, whose differences give the chance that one system beats another. Source:
    Bradley & Terry 1952; ties count as half a win for each side. Newton's method on the log likelihood, with a ridge of
    `RIDGE`. `wins` (K, K): how often, or with what weight, row i won against column j."""
    k = len(wins)
    games = wins + wins.T
    strength = np.zeros(k)
    for _ in range(100):
        chance = 1 / (1 + np.exp(strength[None, :] - strength[:, None]))
        gradient = wins.sum(axis=1) - (games * chance).sum(axis=1) - RIDGE * strength
        information = games * chance * (1 - chance)
        hessian = np.diag(information.sum(axis=1) + RIDGE) - information
        step = np.linalg.solve(hessian, gradient)
        strength += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-10:
            break
    centred: Array = strength - strength.mean()
    return centred


@dataclass(frozen=True)
class Duel:
    """One reviewed item of two systems."""

    pair: tuple[int, int]  # their places
    shares: tuple[float, float, float]  # of the votes: first won, second won, neither
    weight: float  # how many rows of the test set the item represents


def ranking(names: Sequence[str], duels: Sequence[Duel], *, seed: int = 0) -> dict[str, Estimate]:
    """Bradley-Terry strengths with 95 % percentile bootstrap intervals over items, the strongest first. The likelihood
    counts an item once, however many reviewers voted on it; its weight says for how many rows it stands."""
    if not duels:
        return {}
    scale = sum(duel.weight for duel in duels) / len(duels)
    cells = np.zeros((len(duels), len(names), len(names)))
    for cell, duel in zip(cells, duels, strict=True):
        (a, b), (first, second, neither) = duel.pair, duel.shares
        cell[a, b] = (first + neither / 2) * duel.weight / scale
        cell[b, a] = (second + neither / 2) * duel.weight / scale
    strengths = bradley_terry(cells.sum(axis=0))
    draws = _resampled(len(duels), lambda places: bradley_terry(cells[places].sum(axis=0)), seed)
    bounds = [_percentiles(draws[:, i]) if len(duels) > 2 else (math.nan, math.nan) for i in range(len(names))]
    order = sorted(range(len(names)), key=lambda i: -strengths[i])
    return {names[i]: Estimate(float(strengths[i]), *bounds[i]) for i in order}


def stratified_mean(scores: Mapping[str, Sequence[float]], sizes: Mapping[str, int]) -> Estimate:
    """The mean of a 0 to 1 score over a whole test set, from samples of its groups, with its 95 % interval.

    Each reviewed row represents (rows of its group) / (reviewed rows of its group) rows, the inverse of the chance
    that it was drawn. The interval is computed with two made-up rows in each group, a 0 and a 1: a group whose few
    votes all say the same is not taken as certain. Simulated coverage with 40 rows of each of two groups: 97 %.

    Source: Cochran 1977, "Sampling Techniques", ch. 5; the made-up rows as in Agresti & Coull 1998. No correction
    for a finite population: the claim is about rows like these, not these alone.

    `scores`: group -> scores of its reviewed rows. `sizes`: group -> its rows in the test set. Groups without a
    reviewed row are left out, and the estimate then speaks of the others alone.
    """
    reviewed = {group: np.array(values, dtype=float) for group, values in scores.items() if len(values)}
    total = sum(sizes[group] for group in reviewed)
    if not reviewed or not total:
        return Estimate(math.nan, math.nan, math.nan)
    shares = {group: sizes[group] / total for group in reviewed}
    value = sum(shares[group] * float(values.mean()) for group, values in reviewed.items())
    padded = {group: np.append(values, [0.0, 1.0]) for group, values in reviewed.items()}
    centre = sum(shares[group] * float(values.mean()) for group, values in padded.items())
    half = Z95 * math.sqrt(sum(shares[group] ** 2 * float(np.var(v)) / len(v) for group, v in padded.items()))
    return Estimate(value, max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half)))


Export = Literal["preference", "kto", "corrected"]
Votes = Mapping[str, Sequence[Vote]]  # item id -> the votes that count


def votes_by_item(review: ReviewFolder) -> tuple[dict[str, list[Vote]], int]:
    """Item id -> one vote for each reviewer (skips left out), and the number of unreadable lines."""
    votes, damaged = read_votes(review.votes_path)
    ids = {item.id for item in review.items}
    by_item: dict[str, list[Vote]] = defaultdict(list)
    for vote in standing(votes).values():
        if vote.item in ids and vote.choice != "skip":
            by_item[vote.item].append(vote)
    return dict(by_item), damaged


def open_and_disputed(review: ReviewFolder) -> tuple[int, int]:
    """How many answers no one has judged, and about how many reviewers differ."""
    votes, _ = votes_by_item(review)
    opinions = ({(vote.winner or vote.choice, thumb_of(vote)) for vote in item} for item in votes.values())
    return len(review.items) - len(votes), sum(len(different) > 1 for different in opinions)


def results_of(review: ReviewFolder) -> dict[str, Any]:
    """All that the votes say, as one JSON-like object.

    Returns `items`, `reviewed`, `votes`, `reviewers` (name -> items), `agreement` (Krippendorff's alpha by question),
    `median_seconds`, and `pairs` with `ranking` (pairwise) or `ratings` (rating). Estimates are of the whole test
    set (`estimate`, weighted), and from the random stratum alone (`random`).
    """
    votes, damaged = votes_by_item(review)
    reviewers = Counter(vote.reviewer for item_votes in votes.values() for vote in item_votes)
    seconds = [v.seconds for item_votes in votes.values() for v in item_votes if v.seconds is not None]
    questions: list[tuple[str, list[list[Hashable]], Level]]
    if review.mode == "pairwise":
        questions = [("preference", [[v.winner or v.choice for v in duel] for duel in votes.values()], "nominal")]
    else:
        stars: list[list[Hashable]] = [[v.stars for v in duel if v.stars is not None] for duel in votes.values()]
        thumbs: list[list[Hashable]] = [[v.thumb for v in duel if v.thumb is not None] for duel in votes.values()]
        questions = [("stars", stars, "ordinal"), ("thumbs", thumbs, "nominal")]
    shared: dict[str, Any] = {
        "folder": str(review.folder), "mode": review.mode, "items": len(review.items), "reviewed": len(votes),
        "votes": sum(reviewers.values()), "reviewers": dict(sorted(reviewers.items())),
        "corrections": sum(v.corrected is not None for item_votes in votes.values() for v in item_votes),
        "damaged_lines": damaged,
        "median_seconds": statistics.median(seconds) if seconds else None,
        "agreement": {name: alpha_with_interval(units, level) for name, units, level in questions},
    }  # fmt: skip
    return shared | (_pairwise(review, votes) if review.mode == "pairwise" else _ratings(review, votes))


def _pairwise(review: ReviewFolder, votes: Votes) -> dict[str, Any]:
    pairs, duels = [], []
    for joined, sizes in review.populations.items():
        names = joined.split("\n")
        items = [item for item in review.items if list(item.systems) == names and item.id in votes]
        pairs.append(_pair(names, sizes, items, votes))
        reviewed = Counter(item.group for item in items)
        pair = tuple(review.systems.index(name) for name in names)
        for item in items:
            shares = _shares(votes[item.id], names)
            duels.append(Duel((pair[0], pair[1]), shares, sizes[item.group] / reviewed[item.group]))
    return {"pairs": pairs, "ranking": ranking(review.systems, duels, seed=review.manifest.seed)}


def _shares(item_votes: Sequence[Vote], names: Sequence[str]) -> tuple[float, float, float]:
    first, second = (sum(v.winner == name for v in item_votes) / len(item_votes) for name in names)
    return first, second, 1 - first - second


def _pair(names: Sequence[str], sizes: Mapping[str, int], items: Sequence[ReviewItem], votes: Votes) -> dict[str, Any]:
    a, b = names
    cast = [vote for item in items for vote in votes[item.id]]
    shares = {item.id: _shares(votes[item.id], names) for item in items}
    scores = {item: second + neither / 2 for item, (_, second, neither) in shares.items()}
    # Equal answers are ties by definition: known, not estimated, so they add certainty and no variance.
    unequal = {group: n for group, n in sizes.items() if group != SAME}
    total, same = sum(sizes.values()), sizes.get(SAME, 0)
    estimate, simple = (_mixed(seen, total - same, same) for seen in _estimates(items, scores, unequal))
    verdict = by_interval(estimate.low - 0.5, estimate.high - 0.5)
    return {
        "a": a, "b": b, "rows": total, "equal_answers": same, "reviewed": len(items),
        "wins_a": sum(v.winner == a for v in cast), "wins_b": sum(v.winner == b for v in cast),
        "ties": sum(v.choice == "tie" for v in cast), "both_bad": sum(v.choice == "both_bad" for v in cast),
        "left_wins": sum(bool(v.winner and v.shown and v.winner == v.shown[0]) for v in cast),
        "tags": _tags(cast), "win_rate": {"estimate": estimate, "random": simple},
        "unseen_groups": sorted(unequal.keys() - {item.group for item in items}), "verdict": verdict,
    }  # fmt: skip


def _estimates(
    items: Sequence[ReviewItem], scores: Mapping[str, float], sizes: Mapping[str, int]
) -> tuple[Estimate, Estimate]:
    """The mean over the whole test set, weighted, and from the random stratum alone; `scores`: of items by id."""
    by_group: dict[str, list[float]] = defaultdict(list)
    for item in items:
        if item.id in scores:
            by_group[item.group].append(scores[item.id])
    simple = [scores[item.id] for item in items if item.stratum == "random" and item.id in scores]
    return stratified_mean(by_group, sizes), stratified_mean({"": simple}, {"": sum(sizes.values())})


def _tags(votes: Sequence[Vote]) -> dict[str, int]:
    return dict(Counter(tag for vote in votes for tag in vote.tags).most_common())


def _mixed(seen: Estimate, rows: int, same: int) -> Estimate:
    """The estimate of rows with unequal answers, with `same` rows at one half."""
    share = rows / (rows + same)
    return Estimate(*(bound * share + 0.5 * (1 - share) for bound in (seen.value, seen.low, seen.high)))


def thumb_of(vote: Vote) -> bool | None:
    """A vote as up or down: its thumb, else 4 and 5 stars are up, 1 and 2 down."""
    if vote.thumb is not None or vote.stars is None:
        return vote.thumb
    return True if vote.stars >= 4 else False if vote.stars <= 2 else None


def _ratings(review: ReviewFolder, votes: Votes) -> dict[str, Any]:
    rated: dict[str, Any] = {}
    for name, sizes in review.populations.items():
        items = [item for item in review.items if item.systems == (name,) and item.id in votes]
        ratings: dict[str, Any] = {"rows": sum(sizes.values()), "reviewed": len(items)}
        thumbs = {item.id: [float(t) for t in map(thumb_of, votes[item.id]) if t is not None] for item in items}
        stars = {item.id: [(v.stars - 1) / 4 for v in votes[item.id] if v.stars is not None] for item in items}
        for question, values, start, scale in (("good", thumbs, 0.0, 1.0), ("stars", stars, 1.0, 4.0)):
            scores = {item: statistics.fmean(item_scores) for item, item_scores in values.items() if item_scores}
            ratings[question] = {
                kind: Estimate(*(start + scale * x for x in (e.value, e.low, e.high)))
                for kind, e in zip(("estimate", "random"), _estimates(items, scores, sizes), strict=True)
            }
        rated[name] = ratings | {"tags": _tags([vote for item in items for vote in votes[item.id]])}
    return {"ratings": rated}


def export(review: ReviewFolder, kind: Export, path: Path | str) -> dict[str, Any]:
    """Write the votes as data that `tuneloop prepare` reads.

    `preference`: `{"messages", "chosen", "rejected"}` where most reviewers of an item prefer one answer; a corrected
    answer is preferred to both. `kto`: `{"messages", "label"}` with the answer as last turn and whether it is good.
    `corrected`: every reviewed row with its reference, or what the reviewers made of it, as a test set.

    Returns `path`, `rows`, `left_out` (reason -> items), `conflicts` (rows corrected in more than one way), `prepare`
    (the command that reads it). Raises UserError: no vote gives such a row.
    """
    votes, _ = votes_by_item(review)
    left_out: Counter[str] = Counter()
    conflicts: list[str] = []
    if kind == "corrected":
        rows = list(_corrected(review, votes, conflicts))
    else:
        rows = list((_preferences if kind == "preference" else _thumbs)(review, votes, left_out))
    if not rows:
        message = "no item has a corrected or preferred answer" if kind == "preference" else "no item has such a vote"
        where = str(review.votes_path)
        raise UserError(f"Nothing to export: {message}", where=where, next_step="vote on some items first")
    write_jsonl(path, rows)
    labelled = kind == "corrected" and all("label" in row for row in rows)
    return {
        "path": str(path), "rows": len(rows), "left_out": dict(left_out), "conflicts": conflicts,
        "prepare": f"tuneloop prepare {path}" + (" task=classification" if labelled else ""),
    }  # fmt: skip


def _correction(item_votes: Sequence[Vote]) -> tuple[str | None, bool]:
    texts = [(v.corrected or "").strip() for v in sorted(item_votes, key=lambda v: v.time)]
    counts = Counter(filter(None, texts))
    if not counts:
        return None, False
    most = max(counts.values())
    return next(text for text in reversed(texts) if counts[text] == most), len(counts) > 1


def _meta(item: ReviewItem, item_votes: Sequence[Vote]) -> dict[str, Any]:
    return {"row": item.row, "reviewers": sorted({v.reviewer for v in item_votes}), "stratum": item.stratum}


def _voted(review: ReviewFolder, votes: Votes, left_out: Counter[str]) -> Iterable[tuple[ReviewItem, Sequence[Vote]]]:
    for item in review.items:
        if item_votes := votes.get(item.id):
            yield item, item_votes
        else:
            left_out["no vote"] += 1


def _preferences(review: ReviewFolder, votes: Votes, left_out: Counter[str]) -> Iterable[dict[str, Any]]:
    for item, item_votes in _voted(review, votes, left_out):
        corrected, _ = _correction(item_votes)
        wins = Counter(v.winner for v in item_votes if v.winner).most_common()
        best, most = wins[0] if wins else (None, 0)
        rejected = [answer for answer in item.answers if answer.strip() != corrected]
        if corrected is not None and rejected:
            # The answer that was preferred is the harder negative.
            worse = item.answers[item.systems.index(best)] if best else rejected[0]
            worse = worse if worse in rejected else rejected[0]
            yield {"messages": item.messages, "chosen": corrected, "rejected": worse, **_meta(item, item_votes)}
        elif best is None:
            left_out["tie or both bad"] += 1
        elif 2 * most <= len(item_votes):
            left_out["reviewers disagree"] += 1
        else:
            winner = item.systems.index(best)
            if not item.answers[winner].strip():
                left_out["the preferred answer is empty"] += 1
                continue
            pair = {"chosen": item.answers[winner], "rejected": item.answers[1 - winner]}
            yield {"messages": item.messages, **pair, **_meta(item, item_votes)}


def _thumbs(review: ReviewFolder, votes: Votes, left_out: Counter[str]) -> Iterable[dict[str, Any]]:
    for item, item_votes in _voted(review, votes, left_out):
        corrected, _ = _correction(item_votes)
        for name, answer in zip(item.systems, item.answers, strict=True):
            up = sum(v.winner == name or (v.choice == "rating" and thumb_of(v) is True) for v in item_votes)
            down = sum(
                v.choice == "both_bad"
                or bool(v.winner and v.winner != name)
                or (v.choice == "rating" and thumb_of(v) is False)
                for v in item_votes
            )
            if up == down:
                left_out["no opinion or reviewers disagree"] += 1
            elif answer.strip():
                yield _thumb(item, answer, up > down, item_votes)
        if corrected is not None and corrected not in [answer.strip() for answer in item.answers]:
            yield _thumb(item, corrected, True, item_votes)


def _thumb(item: ReviewItem, answer: str, good: bool, item_votes: Sequence[Vote]) -> dict[str, Any]:
    turns = [*item.messages, {"role": "assistant", "content": answer}]
    return {"messages": turns, "thumb": "up" if good else "down", **_meta(item, item_votes)}


def _corrected(review: ReviewFolder, votes: Votes, conflicts: list[str]) -> Iterable[dict[str, Any]]:
    by_row: dict[str, list[ReviewItem]] = defaultdict(list)
    for item in review.items:
        by_row[item.row].append(item)
    for row, items in by_row.items():
        item_votes = [vote for item in items for vote in votes.get(item.id, ())]
        if not item_votes:
            continue
        corrected, differ = _correction(item_votes)
        if differ:
            conflicts.append(row)
        first = items[0]
        answer = first.references[0] if corrected is None else corrected
        record: dict[str, Any] = {"id": row, "messages": [*first.messages, {"role": "assistant", "content": answer}]}
        if isinstance(first.label, str):
            # A label is its answer's text where the two were the same.
            record["label"] = answer if first.references[0] == first.label else first.label
        if corrected is None and len(first.references) > 1:
            record["references"] = first.references
        yield record | {"corrected": corrected is not None, "reviewers": sorted({v.reviewer for v in item_votes})}
