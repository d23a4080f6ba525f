"""What becomes of many experiments, quickly: the logs of their wealth as a random walk.

One user's outcomes are few: so many good and bad values of so many requests. Their chances give the exact mean and
covariance of what one user adds to the logs of all stakes; `tally.with_matured` says what each outcome adds. Many users
add normal increments with these moments, so that the time does not grow with the traffic. Votes of users' first days,
which end most bad candidates, come sooner than the rest and are walked on their own. Left out are the other guardrails,
what makes the ramp wait, and the first users, from whom the guesses are learnt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tuneloop.core.lazy import Array, NDArray, np
from tuneloop.improve.experiment.decision import ENDINGS, Proven, endings, next_share
from tuneloop.improve.experiment.record import ExperimentDesign
from tuneloop.improve.experiment.tally import (
    KINDS,
    WORSE,
    Arrivals,
    Matured,
    UserTally,
    empty_tally,
    kinds_of,
    levels_of,
    needed_by,
    proven_by,
    with_matured,
    with_values,
)

MOST_LOOKS = 400
QUALITIES = 15  # kinds of users where their answers are correlated


@dataclass(frozen=True)
class PlannedTraffic:
    """What is true of users and candidate.

    Args:
        users_per_day: that come; new ones, or of a `population` that comes again (0: endless).
        base, effect: chance that the champion's answer is good, and how much higher the candidate's is.
        rated: chance that a request gets a value; `rated_factors` multiply it for good and bad answers of the
            candidate, good and bad answers of the champion.
        requests: of a user within the window, on average; each has one at least.
        correlation: of the answers' qualities of one user.
    """

    users_per_day: float = 80.0
    base: float = 0.6
    effect: float = 0.0
    rated: float = 0.75
    rated_factors: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    requests: float = 1.0
    correlation: float = 0.0
    population: int = 0


@dataclass(frozen=True)
class UserOutcomes:
    """What may come of one user of an arm: good and bad values per request, the chance of each pair, and mean and
    standard deviation of the share of good answers, rated or not, in that case."""

    likes: Array
    dislikes: Array
    chance: Array
    good: Array
    good_spread: Array

    @property
    def values(self) -> Array:
        """The mean value; NaN where there is none."""
        valued = self.likes + self.dislikes
        return np.asarray(np.divide(self.likes, valued, out=np.full_like(valued, np.nan), where=valued > 0))


def outcomes_of(traffic: PlannedTraffic, *, candidate: bool) -> UserOutcomes:
    """All outcomes of a user of one arm, with their chances; simulated users are drawn from the same."""
    from scipy.special import gammaln, xlogy
    from scipy.stats import beta, poisson

    rate = min(1.0, max(0.0, traffic.base + traffic.effect * candidate))
    qualities = np.array([rate])
    if traffic.correlation and 0 < rate < 1:
        scale = (1 - traffic.correlation) / traffic.correlation
        qualities = beta.ppf((np.arange(QUALITIES) + 0.5) / QUALITIES, rate * scale, (1 - rate) * scale)
        qualities = np.clip(qualities + rate - qualities.mean(), 0.0, 1.0)
    rates = np.minimum(traffic.rated * np.array(traffic.rated_factors), 1.0)
    good, bad = rates[slice(0, 2) if candidate else slice(2, 4)]
    numbers = np.arange(1, 2 if traffic.requests == 1 else int(traffic.requests + 6 * math.sqrt(traffic.requests)) + 2)
    weights = poisson.pmf(numbers - 1, traffic.requests - 1) if traffic.requests > 1 else np.ones(1)
    parts = []
    for number, weight in zip(numbers, weights / weights.sum(), strict=True):
        likes, dislikes = (grid.ravel() for grid in np.meshgrid(np.arange(number + 1), np.arange(number + 1)))
        likes, dislikes = likes[likes + dislikes <= number], dislikes[likes + dislikes <= number]
        none = number - likes - dislikes
        ways = gammaln(number + 1) - gammaln(likes + 1) - gammaln(dislikes + 1) - gammaln(none + 1)
        chances = (qualities * good)[:, None], ((1 - qualities) * bad)[:, None]
        logs = xlogy(likes, chances[0]) + xlogy(dislikes, chances[1]) + xlogy(none, 1 - chances[0] - chances[1])
        joint = np.exp(ways + logs) / len(qualities)
        posterior = joint / np.maximum(joint.sum(axis=0), 1e-300)
        unrated = np.array([qualities * (1 - good), (1 - qualities) * (1 - bad)])
        hidden = (unrated[0] / np.maximum(unrated.sum(axis=0), 1e-300))[:, None]  # chance that an unrated one is good
        mean, square = (posterior * hidden).sum(axis=0), (posterior * hidden**2).sum(axis=0)
        spread = np.sqrt(np.maximum(none * (mean - square) + none**2 * (square - mean**2), 0.0))
        chances_of = weight * joint.sum(axis=0)
        parts.append((likes / number, dislikes / number, chances_of, (likes + none * mean) / number, spread / number))
    return UserOutcomes(*(np.concatenate(part) for part in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Moments:
    """What one user adds at one share of the candidate.

    Args:
        mean, variance: of the logs of all stakes, then of the score.
        root: of their covariance.
        first_mean, first_root: the same of the logs of stakes on votes of the first day.
        valued: chance that a user has a value; `information`: p (1 - p), times that where checks don't decide.
    """

    mean: Array
    variance: Array
    root: Array
    first_mean: Array
    first_root: Array
    valued: float
    information: float


def moments_of(design: ExperimentDesign, traffic: PlannedTraffic, share: float) -> Moments:
    """The moments of one user; guesses are the true means."""
    arms = [outcomes_of(traffic, candidate=True), outcomes_of(traffic, candidate=False)]
    chance = np.concatenate([share * arms[0].chance, (1 - share) * arms[1].chance])
    candidate = np.repeat([True, False], [len(arms[0].chance), len(arms[1].chance)])
    likes, dislikes, values, good, spread = (
        np.concatenate([getattr(arm, name) for arm in arms])
        for name in ("likes", "dislikes", "values", "good", "good_spread")
    )
    checked = np.full(len(chance), np.nan)
    if design.sample:  # not drawn, or checked with one of two findings of the right mean and spread
        odds = np.sqrt(np.clip(good, 1e-9, 1 - 1e-9) / np.clip(1 - good, 1e-9, 1 - 1e-9))
        checked = np.concatenate([checked, good - spread * odds, good + spread / odds])
        chance = np.concatenate([(1 - design.sample) * chance, *(design.sample * chance * p for p in (1 - good, good))])
        candidate, likes, dislikes, values = (np.tile(array, 3) for array in (candidate, likes, dislikes, values))
    columns = [array[:, None] for array in (likes, dislikes, checked)]
    users = Matured(candidate[:, None], np.full((len(chance), 1), share), values[:, None], *columns)
    tally = _learnt(design, empty_tally(design, np.array([share]), len(chance)), users, chance)
    after = with_matured(tally, design, users).books
    columns_of = list(needed_by(design))
    gains = [after[name].log_wealth[claim] - tally.books[name].log_wealth[claim] for name, claim in columns_of]
    book = after["checked" if design.sample else "measure"]
    matrix = np.concatenate([*gains, book.score[:, None]], axis=1)
    mean, root = _moments(chance, matrix)
    valued = float(chance @ ~np.isnan(values))
    first = np.zeros((len(chance), 0))
    if "dislikes" in tally.books:
        books = with_values(tally, design, "dislikes", Arrivals(users.candidate, users.propensity), users.outcome).books
        first = books["dislikes"].log_wealth[0] - tally.books["dislikes"].log_wealth[0]
    return Moments(
        *(mean, chance @ (matrix - mean) ** 2, root, *_moments(chance, first)),
        valued=valued,
        information=float(chance @ book.information),
    )


def _moments(chance: Array, matrix: Array) -> tuple[Array, Array]:
    """The mean of the columns, and a root of their covariance."""
    mean = chance @ matrix
    apart = matrix - mean
    sizes, vectors = np.linalg.eigh(apart.T @ (apart * chance[:, None]))
    return mean, vectors * np.sqrt(np.maximum(sizes, 0.0))


def days_needed(design: ExperimentDesign, traffic: PlannedTraffic, share: float) -> float:
    """Days at this share until a promotion is proven by the mean growth of its best stakes; infinite where none
    grows."""
    claims, mean = _Claims(design), moments_of(design, traffic, share).mean[:-1] * traffic.users_per_day
    days = np.where(mean > 0, (claims.stakes_needed - claims.weights) / np.where(mean > 0, mean, 1.0), math.inf)
    of_claims = dict(zip(claims.columns, -np.minimum.reduceat(days, claims.starts)[:, None], strict=True))
    return float(-proven_by(of_claims)["promotion"][0])


def _learnt(design: ExperimentDesign, tally: UserTally, users: Matured, chance: Array) -> UserTally:
    """The tally with guesses that are settled."""

    def weighted(values: Array, there: NDArray[np.bool_]) -> float:
        return float(chance @ np.where(there, values, 0.0)) / max(float(chance @ there), 1e-300)

    much = 1e12
    outcomes = {
        "measure": users.outcome, "dislikes": users.outcome, "likes per request": users.likes,
        "dislikes per request": users.dislikes, "rated": users.likes + users.dislikes,
        "worst": np.where(users.candidate, users.likes, 1 - users.dislikes),
    }  # fmt: skip
    checks = tally.checks
    if design.sample and users.checked is not None:
        checked, votes = users.checked[:, 0], kinds_of(np.ones(len(chance)), users.likes[:, 0], users.dislikes[:, 0])
        seen = ~np.isnan(checked)
        guess = np.array([weighted(checked, seen & (votes == kind)) for kind in range(KINDS)])
        parts = np.array([chance @ (votes == kind) for kind in range(KINDS)])
        checks = np.tile(
            much * np.stack([parts, parts * design.sample, parts * design.sample * guess], -1), (len(chance), 1, 1)
        )
        missed = np.where(seen, (checked - guess[votes]) / design.sample, 0.0)
        outcomes["checked"] = (guess[votes] + missed)[:, None]
    books = dict(tally.books)
    for name, values in outcomes.items():
        if name in books:
            valued = ~np.isnan(values[:, 0])
            mean = weighted(values[:, 0], valued)
            square = weighted((values[:, 0] - mean) ** 2, valued)
            numbers = np.zeros(books[name].n.shape)
            numbers[:, 0] = much
            books[name] = replace(
                books[name], n=numbers, total=numbers * mean, squares=numbers * square, score=np.zeros(len(chance))
            )
    return replace(tally, books=books, checks=checks)


@dataclass(frozen=True)
class RampSchedule:
    """What comes each day, without chance: arrays (days,).

    Args:
        new: users who are drawn; `step` of the ramp at which they come.
        met: users who have met the candidate by then.
    """

    new: Array
    step: NDArray[np.int64]
    met: Array


def schedule_of(design: ExperimentDesign, traffic: PlannedTraffic, days: int) -> RampSchedule:
    """Users a day, and the ramp, which moves when it has been held and both arms are expected to have values."""
    steps = [share for share in design.ramp if share < 1]
    valued = [
        float(arm.chance @ ~np.isnan(arm.values)) for arm in (outcomes_of(traffic, candidate=c) for c in (True, False))
    ]
    window = math.ceil(design.maturation_hours / 24)
    new, at, left, step, since = np.zeros(days), np.zeros(days, dtype=np.int64), float(traffic.population), 0, 0
    again, visits = np.zeros(len(steps)), traffic.users_per_day  # the champion's users whose windows are over, by step
    chance = -math.expm1(visits * math.log1p(-1 / traffic.population)) if traffic.population > 1 else 1.0
    for day in range(days):
        if day >= window:
            again[at[day - window]] += new[day - window] * (1 - steps[at[day - window]])
        back = again[:step] * chance  # they are drawn again; see `state.Arms`
        again[:step] -= back
        first = left * chance if traffic.population else visits
        new[day] = first + back.sum() if traffic.population else visits
        left -= first
        at[day] = step
        ripe = slice(0, max(0, day + 1 - window))
        shares = np.array(steps)[at[ripe]]
        units = (new[ripe] @ shares * valued[0], new[ripe] @ (1 - shares) * valued[1])
        if next_share(design, steps[step], day + 1 - since, min(units)) != steps[step]:
            step, since = step + 1, day + 1
    return RampSchedule(new, at, np.cumsum(new * np.array(steps)[at]))


@dataclass(frozen=True)
class Looks:
    """Simulated experiments, looked at again and again; arrays are (experiments, looks) or (looks,).

    Args:
        days: of each look; `units` with a value by then, on average.
        promoted, rolled_back, futile: whether an experiment has so ended by then.
        met: users of the candidate until each experiment's end, (experiments,).
    """

    days: NDArray[np.int64]
    units: Array
    promoted: NDArray[np.bool_]
    rolled_back: NDArray[np.bool_]
    futile: NDArray[np.bool_]
    met: Array


def walk(design: ExperimentDesign, traffic: PlannedTraffic, *, days: int, experiments: int, seed: int) -> Looks:
    """Simulate experiments that are looked at daily; over long times less often, 400 times in all."""
    rng = np.random.default_rng(seed)
    schedule, window = schedule_of(design, traffic, days), math.ceil(design.maturation_hours / 24)
    steps = [share for share in design.ramp if share < 1]
    moments = [moments_of(design, traffic, share) for share in steps]
    every = math.ceil(days / MOST_LOOKS)
    at = np.arange(every, days + every, every)
    claims = _Claims(design)
    state, first = np.zeros((experiments, len(moments[0].mean))), np.zeros((experiments, len(moments[0].first_mean)))
    best, log_e = np.zeros((experiments, claims.number)), claims.wealth(state, state[0])[0]
    information = total = 0.0
    end, outcome = np.full(experiments, len(at)), np.full(experiments, "continue", dtype=object)
    outcomes = np.array([name for name, _ in ENDINGS], dtype=object)
    units, tripped = np.zeros(len(at)), np.zeros(experiments, dtype=bool)

    def users_of(begin: int, end: int) -> list[tuple[float, Moments]]:
        """Users of some days, by step of the ramp."""
        new, step = schedule.new[max(0, begin) : max(0, end)], schedule.step[max(0, begin) : max(0, end)]
        return [(float(new[step == k].sum()), of_user) for k, of_user in enumerate(moments) if (step == k).any()]

    def noise(root: Array) -> Array:
        half = rng.standard_normal((math.ceil(experiments / 2), len(root)))
        return np.asarray(np.concatenate([half, -half])[:experiments] @ root.T)  # opposites: their mean is nearer

    for look, day in enumerate(at.tolist()):
        spread = np.zeros(state.shape[1])
        for users, of_user in users_of(day - every - window, day - window):
            state += users * of_user.mean + math.sqrt(users) * noise(of_user.root)
            spread += users * of_user.variance
            information += users * of_user.information
            total += users * of_user.valued
        for users, of_user in users_of(day - every - 1, day - 1):
            first += users * of_user.first_mean + math.sqrt(users) * noise(of_user.first_root)
        tripped |= claims.tripped(first)
        before, (log_e, deviation) = log_e, claims.wealth(state, spread)
        best = np.maximum(best, _highest(before, log_e, deviation, rng))
        found = outcomes[claims.endings(best, state[:, -1] / max(information, 1e-300), float(day), tripped)]
        ended = (end == len(at)) & (found != "continue")
        end, outcome = np.where(ended, look, end), np.where(ended, found, outcome)
        units[look] = total
    by_then = end[:, None] <= np.arange(len(at))
    promoted, rolled_back, futile = (
        (outcome == name)[:, None] & by_then for name in ("promote", "roll back", "futility")
    )
    last = np.minimum(at[np.minimum(end, len(at) - 1)], len(schedule.met)) - 1
    return Looks(at, units, promoted, rolled_back, futile, schedule.met[last])


def _highest(before: Array, after: Array, deviation: Array, rng: np.random.Generator) -> Array:
    """The highest values of walks between two looks, (experiments, claims), as Brownian bridges have them."""
    rise, chance = after - before, rng.standard_exponential(after.shape)
    return np.asarray((before + after + np.sqrt(rise**2 + 2 * deviation**2 * chance)) / 2)


class _Claims:
    """Where the stakes of the claims are in a walk's state, and what follows from them."""

    def __init__(self, design: ExperimentDesign) -> None:
        books, levels = empty_tally(design, np.array([0.5])).books, levels_of(design)
        self.design, self.columns = design, list(needed_by(design))
        self.needed = np.array(list(needed_by(design).values()))
        sizes = [[share for share, _ in books[name].claims[claim].stakes] for name, claim in self.columns]
        self.weights, self.counts = np.log(np.concatenate(sizes)), [len(of_claim) for of_claim in sizes]
        self.starts, self.number = np.cumsum([0, *self.counts[:-1]]), len(sizes)
        self.stakes_needed = np.repeat(self.needed, self.counts)
        self.first = [(math.log(share), -math.log(levels["dislikes"])) for share, _ in WORSE if "dislikes" in books]

    def wealth(self, state: Array, variance: Array) -> tuple[Array, Array]:
        """The log of each claim's wealth, and the standard deviation of its next step, (experiments, claims): that of
        its stakes, which move together, by their shares of the wealth. `variance`: of all stakes, then of the score."""
        logs = state[:, :-1] + self.weights
        most = np.maximum.reduceat(logs, self.starts, axis=1)
        stakes = np.exp(logs - np.repeat(most, self.counts, axis=1))
        whole = np.add.reduceat(stakes, self.starts, axis=1)
        deviation = np.add.reduceat(stakes * np.sqrt(variance[:-1]), self.starts, axis=1) / whole
        return most + np.log(whole), np.asarray(deviation)

    def tripped(self, first: Array) -> NDArray[np.bool_]:
        """Whether votes of the first day end an experiment. `first`: logs of the stakes on them."""
        if not self.first:
            return np.zeros(len(first), dtype=bool)
        weights, needed = np.array(self.first).T
        return np.asarray(np.logaddexp.reduce(first + weights, axis=1) >= needed[0])

    def endings(self, log_e: Array, estimate: Array, day: float, tripped: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How experiments end or continue, by the rule that decides real ones."""
        proven = proven_by(dict(zip(self.columns, (log_e / self.needed).T, strict=True)))
        none, never = np.zeros(len(log_e)), np.zeros(len(log_e), dtype=bool)
        return endings(
            self.design,
            Proven(
                days=none,
                live_days=none + day,
                ratio=none,
                unlikely=never,
                tripped=tripped,
                held=never,
                suspected=never,
                **{name: proven[name] for name in ("worse", "promotion", "no_gain")},
                whole_weeks=none + math.inf,  # left out, as is the time after which experiments end
                estimate=estimate,
            ),
        )
