"""What becomes of many experiments, quickly: the logs of their wealth as a random walk.

One user's outcomes are few: so many good and bad values of so many requests. Their chances give the exact mean and
covariance of what one user adds to the logs of all stakes; `tally.with_matured` says what each outcome adds. Many users
add normal increments with these moments, so that the time does not grow with the traffic. Left out are guardrails and
the first users, from whom the guesses are learnt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tuneloop.core.lazy import Array, NDArray, np
from tuneloop.core.stats.betting import Book
from tuneloop.improve.experiment.decision import LIKELY_WORSE
from tuneloop.improve.experiment.record import ExperimentDesign
from tuneloop.improve.experiment.simulation import World
from tuneloop.improve.experiment.tally import Matured, empty_tally, with_matured

MOST_LOOKS = 400
BETWEEN_LOOKS = 0.5826  # standard deviations of a step by which a walk's maximum is above that of its looks
QUALITIES = 15  # kinds of users where their answers are correlated
Z_TWO_SIDED = 1.959963984540054
Column = tuple[str, int]  # book and claim


@dataclass(frozen=True)
class UserOutcomes:
    """What may come of one user of an arm: good and bad values per request, and the chance of each pair."""

    likes: Array
    dislikes: Array
    chance: Array

    @property
    def values(self) -> Array:
        """The mean value; NaN where there is none."""
        valued = self.likes + self.dislikes
        return np.asarray(np.divide(self.likes, valued, out=np.full_like(valued, np.nan), where=valued > 0))


def outcomes_of(world: World, *, candidate: bool) -> UserOutcomes:
    """All outcomes of a user of one arm, with their chances; `simulation.draw_users` draws from the same."""
    from scipy.special import gammaln, xlogy
    from scipy.stats import beta, poisson

    rate = min(1.0, max(0.0, world.base + world.effect * candidate))
    qualities = np.array([rate])
    if world.correlation and 0 < rate < 1:
        scale = (1 - world.correlation) / world.correlation
        qualities = beta.ppf((np.arange(QUALITIES) + 0.5) / QUALITIES, rate * scale, (1 - rate) * scale)
        qualities = np.clip(qualities + rate - qualities.mean(), 0.0, 1.0)
    good, bad = np.minimum(world.rated * np.array(world.rated_factors), 1.0)[slice(0, 2) if candidate else slice(2, 4)]
    numbers = np.arange(1, 2 if world.requests == 1 else int(world.requests + 6 * math.sqrt(world.requests)) + 2)
    weights = poisson.pmf(numbers - 1, world.requests - 1) if world.requests > 1 else np.ones(1)
    parts = []
    for number, weight in zip(numbers, weights / weights.sum(), strict=True):
        likes, dislikes = (grid.ravel() for grid in np.meshgrid(np.arange(number + 1), np.arange(number + 1)))
        likes, dislikes = likes[likes + dislikes <= number], dislikes[likes + dislikes <= number]
        none = number - likes - dislikes
        ways = gammaln(number + 1) - gammaln(likes + 1) - gammaln(dislikes + 1) - gammaln(none + 1)
        chances = (qualities * good)[:, None], ((1 - qualities) * bad)[:, None]
        logs = xlogy(likes, chances[0]) + xlogy(dislikes, chances[1]) + xlogy(none, 1 - chances[0] - chances[1])
        parts.append((likes / number, dislikes / number, weight * np.exp(ways + logs).mean(axis=0)))
    return UserOutcomes(*(np.concatenate(part) for part in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Moments:
    """What one user adds at one share of the candidate.

    Args:
        mean, root: of the logs of all stakes, then of the score; root of the covariance.
        valued: chance that a user of the candidate, and of the champion, has a value.
        information: p (1 - p) times the chance of a value.
    """

    mean: Array
    root: Array
    valued: tuple[float, float]
    information: float


def columns_of(design: ExperimentDesign) -> list[Column]:
    """The claims that decide, by book and place, as in `tally.findings_of`."""
    promotion = {"one-way": [("likes", 0), ("dislikes", 0)], "any": [("worst", 0)], "random": []}[design.missing]
    return [("measure", 0), ("measure", 1), ("measure", 2), *promotion]


def moments_of(design: ExperimentDesign, world: World, share: float) -> Moments:
    """The moments of one user; guesses are the true means."""
    arms = [outcomes_of(world, candidate=True), outcomes_of(world, candidate=False)]
    chance = np.concatenate([share * arms[0].chance, (1 - share) * arms[1].chance])
    candidate = np.repeat([True, False], [len(arms[0].chance), len(arms[1].chance)])[:, None]
    likes, dislikes, values = (
        np.concatenate([getattr(arm, name) for arm in arms])[:, None] for name in ("likes", "dislikes", "values")
    )
    rate = np.full(likes.shape, share)
    worst = np.where(candidate, likes, 1 - dislikes)
    tally = empty_tally(design, np.array([share]), len(chance))
    means = {"measure": values, "likes": likes, "dislikes": dislikes, "worst": worst}
    books = {name: _learnt(tally.books[name], value[:, 0], chance) for name, value in means.items()}
    tally = replace(tally, books={**tally.books, **books})
    after = with_matured(tally, design, Matured(candidate, rate, values, likes, dislikes)).books
    gains = [after[name].log_wealth[claim] - books[name].log_wealth[claim] for name, claim in columns_of(design)]
    matrix = np.concatenate([*gains, after["measure"].score[:, None]], axis=1)
    mean = chance @ matrix
    covariance = (matrix - mean).T @ ((matrix - mean) * chance[:, None])
    sizes, vectors = np.linalg.eigh(covariance)
    valued = tuple(float(arm.chance @ ~np.isnan(arm.values)) for arm in arms)
    information = share * (1 - share) * (share * valued[0] + (1 - share) * valued[1])
    return Moments(mean, vectors * np.sqrt(np.maximum(sizes, 0.0)), (valued[0], valued[1]), information)


def _learnt(book: Book, values: Array, chance: Array) -> Book:
    """A book whose guesses are settled."""
    valued = ~np.isnan(values)
    weights = np.where(valued, chance, 0.0) / max(float(chance @ valued), 1e-300)
    mean = float(weights @ np.where(valued, values, 0.0))
    square = float(weights @ np.where(valued, (values - mean) ** 2, 0.0))
    much = np.full(book.n.shape, 1e12)
    return replace(book, n=much, total=much * mean, squares=much * square, score=np.zeros(len(much)))


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


def schedule_of(design: ExperimentDesign, world: World, days: int) -> RampSchedule:
    """Users a day, and the ramp, which moves when it has been held and both arms are expected to have values."""
    steps = [share for share in design.ramp if share < 1]
    valued = [
        float(arm.chance @ ~np.isnan(arm.values)) for arm in (outcomes_of(world, candidate=c) for c in (True, False))
    ]
    window = math.ceil(design.maturation_hours / 24)
    new, at, left, step, since = np.zeros(days), np.zeros(days, dtype=np.int64), float(world.population), 0, 0
    again, visits = np.zeros(len(steps)), world.users_per_day  # the champion's users whose windows are over, by step
    chance = -math.expm1(visits * math.log1p(-1 / world.population)) if world.population > 1 else 1.0
    for day in range(days):
        if day >= window:
            again[at[day - window]] += new[day - window] * (1 - steps[at[day - window]])
        back = again[:step] * chance  # they are drawn again; see `state.Arms`
        again[:step] -= back
        first = left * chance if world.population else visits
        new[day] = first + back.sum() if world.population else visits
        left -= first
        at[day] = step
        ripe = slice(0, max(0, day + 1 - window))
        shares = np.array(steps)[at[ripe]]
        units = (new[ripe] @ shares * valued[0], new[ripe] @ (1 - shares) * valued[1])
        enough = min(units) >= design.least_units
        if step + 1 < len(steps) and day + 1 - since >= design.hold_days and enough:
            step, since = step + 1, day + 1
    return RampSchedule(new, at, np.cumsum(new * np.array(steps)[at]))


@dataclass(frozen=True)
class Looks:
    """Simulated experiments, looked at again and again; arrays are (experiments, looks) or (looks,).

    Args:
        days: of each look; `units` with a value by then, on average.
        promoted, rolled_back, futile: whether an experiment has so ended by then.
        z_promoted: whether the usual z-test has been significant for the candidate by then.
        one_look: share of the experiments in which this look alone would promote.
        met: users of the candidate until each experiment's end, (experiments,).
    """

    days: NDArray[np.int64]
    units: Array
    promoted: NDArray[np.bool_]
    rolled_back: NDArray[np.bool_]
    futile: NDArray[np.bool_]
    z_promoted: NDArray[np.bool_]
    one_look: Array
    met: Array


def walk(design: ExperimentDesign, world: World, *, days: int, experiments: int, seed: int) -> Looks:
    """Simulate experiments that are looked at daily; over long times less often, 400 times in all."""
    rng = np.random.default_rng(seed)
    schedule, window = schedule_of(design, world, days), math.ceil(design.maturation_hours / 24)
    steps = [share for share in design.ramp if share < 1]
    moments = [moments_of(design, world, share) for share in steps]
    every = math.ceil(days / MOST_LOOKS)
    at = np.arange(every, days + every, every)
    claims = _Claims(design)
    state = np.zeros((experiments, len(moments[0].mean)))
    best = np.zeros((experiments, claims.number))
    variance = information = total = 0.0
    first = np.full((experiments, 4), len(at))  # the look of promotion, roll-back, futility, z-test
    one_look, units = np.zeros(len(at)), np.zeros(len(at))
    for look, day in enumerate(at):
        ripe = slice(max(0, day - every - window), max(0, day - window))
        spread = np.zeros(state.shape[1])
        for step, one in enumerate(moments):
            users = float(schedule.new[ripe][schedule.step[ripe] == step].sum())
            if users:
                noise = rng.standard_normal(state.shape) @ one.root.T
                state += users * one.mean + math.sqrt(users) * noise
                spread += users * (one.root**2).sum(axis=1)
                variance += users * float((one.root[-1] ** 2).sum())
                information += users * one.information
                total += users * (steps[step] * one.valued[0] + (1 - steps[step]) * one.valued[1])
        now = claims.log_e(state)
        best = np.maximum(best, now + BETWEEN_LOOKS * np.sqrt(claims.main(spread)))
        difference = state[:, -1] / max(information, 1e-300)
        z = state[:, -1] > Z_TWO_SIDED * math.sqrt(variance or math.inf)
        hits = (*claims.outcomes(best, difference), z)
        first = np.minimum(first, np.where(np.stack(hits, axis=1), look, len(at)))
        one_look[look], units[look] = claims.outcomes(now, difference)[0].mean(), total
    return _looks(schedule, at, units, one_look, first)


class _Claims:
    """Where the stakes of the claims are in a walk's state, and what follows from them."""

    def __init__(self, design: ExperimentDesign) -> None:
        books = empty_tally(design, np.array([0.5])).books
        self.design = design
        self.columns = columns_of(design)
        self.weights = [np.log([w for w, _ in books[name].claims[claim].stakes]) for name, claim in self.columns]
        self.ends = np.cumsum([len(weights) for weights in self.weights])
        self.number, self.needed = len(self.columns), math.log(1 / design.alpha)

    def log_e(self, state: Array) -> Array:
        parts = np.split(state[:, :-1], self.ends[:-1], axis=1)
        logs = [np.logaddexp.reduce(part + weights, axis=1) for part, weights in zip(parts, self.weights, strict=True)]
        return np.stack(logs, axis=1)

    def main(self, values: Array) -> Array:
        """Of values of all stakes those of each claim's first one."""
        return np.asarray(values[[0, *self.ends[:-1]]])

    def outcomes(self, log_e: Array, difference: Array) -> tuple[NDArray[np.bool_], ...]:
        """Whether experiments are promoted, rolled back, futile; see `decision.outcome_of`."""
        proven = log_e >= self.needed
        promoted = np.asarray(proven[:, 3:].all(axis=1) if self.number > 3 else proven[:, 0])
        lost = (difference <= -self.design.effect) & (log_e[:, 1] >= LIKELY_WORSE * self.needed)
        return promoted, proven[:, 1] | (proven[:, 2] & lost), proven[:, 2]


def _looks(
    schedule: RampSchedule, at: NDArray[np.int64], units: Array, one_look: Array, first: NDArray[np.int64]
) -> Looks:
    """Ends at the first look at which a rule applied: a roll-back before a promotion, that before futility."""
    up, down, none, z = first.T
    end, looks = np.minimum(np.minimum(up, down), none), np.arange(len(at))

    def ended(kind: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.asarray((kind & (end < len(at)))[:, None] & (end[:, None] <= looks))

    last = np.minimum(at[np.minimum(end, len(at) - 1)], len(schedule.met)) - 1
    return Looks(
        days=at,
        units=units,
        promoted=ended((up == end) & (up < down)),
        rolled_back=ended(down == end),
        futile=ended(none < np.minimum(up, down)),
        z_promoted=z[:, None] <= looks,
        one_look=one_look,
        met=schedule.met[last],
    )
