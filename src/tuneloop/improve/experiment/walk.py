"""What becomes of many experiments, quickly: the logs of their wealth as a random walk.

One user's outcomes are few: so many good and bad values of so many requests. Their chances give the exact mean and
covariance of what one user adds to the logs of all stakes; `tally.with_matured` says what each outcome adds. Many users
add normal increments with these moments, so that the time does not grow with the traffic. Unhappy users are few, and
each holds a promotion back: they are drawn one by one, with what one adds to the logs. Left out are the other
guardrails and roll-backs by any of them, which come later than those by the measure where all users are served alike,
and the first users, from whom the guesses are learnt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tuneloop.core.lazy import Array, NDArray, np
from tuneloop.core.stats.betting import Book
from tuneloop.improve.experiment.decision import ENDINGS, Proven, endings, next_share
from tuneloop.improve.experiment.record import ExperimentDesign
from tuneloop.improve.experiment.statistics import UNHAPPY_VALUES
from tuneloop.improve.experiment.tally import Matured, empty_tally, seem_more, with_matured

MOST_LOOKS = 400
QUALITIES = 15  # kinds of users where their answers are correlated
Z_TWO_SIDED = 1.959963984540054
Column = tuple[str, int]  # book and claim


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
    """What may come of one user of an arm: good and bad values per request, and the chance of each pair.

    `unhappy`: whether the user counts for that guardrail.
    """

    likes: Array
    dislikes: Array
    chance: Array
    unhappy: NDArray[np.bool_]

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
        unhappy = (likes == 0) & (dislikes >= UNHAPPY_VALUES)
        parts.append((likes / number, dislikes / number, weight * np.exp(ways + logs).mean(axis=0), unhappy))
    return UserOutcomes(*(np.concatenate(part) for part in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Moments:
    """What one user adds at one share of the candidate.

    Args:
        mean, variance: of the logs of all stakes, then of the score.
        root: of their covariance among users who are alike unhappy or not, and in that case of the same arm.
        unhappy: chance that a user is one of the candidate's unhappy users, and of the champion's, and `shifts` by how
            much more one of either adds than all others do, (2, columns).
        valued: chance that a user of the candidate, and of the champion, has a value.
        information: p (1 - p) times the chance of a value.
    """

    mean: Array
    variance: Array
    root: Array
    unhappy: Array
    shifts: Array
    valued: tuple[float, float]
    information: float


def columns_of(design: ExperimentDesign) -> list[Column]:
    """The claims that decide, by book and place, as in `tally.findings_of`."""
    promotion = {"one-way": [("likes", 0), ("dislikes", 0)], "any": [("worst", 0)], "random": []}[design.missing]
    return [("measure", 0), ("measure", 1), ("measure", 2), *promotion]


def moments_of(design: ExperimentDesign, traffic: PlannedTraffic, share: float) -> Moments:
    """The moments of one user; guesses are the true means."""
    arms = [outcomes_of(traffic, candidate=True), outcomes_of(traffic, candidate=False)]
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
    unhappy = np.concatenate([arm.unhappy for arm in arms])
    group = np.where(unhappy, np.where(candidate[:, 0], 1, 2), 0)
    groups = [np.where(group == number, chance, 0.0) for number in range(3)]
    means_of = np.stack([members @ matrix / max(members.sum(), 1e-300) for members in groups])
    apart = matrix - means_of[group]
    sizes, vectors = np.linalg.eigh(apart.T @ (apart * chance[:, None]))
    valued = tuple(float(arm.chance @ ~np.isnan(arm.values)) for arm in arms)
    information = share * (1 - share) * (share * valued[0] + (1 - share) * valued[1])
    return Moments(
        mean=mean,
        variance=chance @ (matrix - mean) ** 2,
        root=vectors * np.sqrt(np.maximum(sizes, 0.0)),
        unhappy=np.array([members.sum() for members in groups[1:]]),
        shifts=means_of[1:] - means_of[0],
        valued=(valued[0], valued[1]),
        information=information,
    )


def days_needed(design: ExperimentDesign, traffic: PlannedTraffic, share: float) -> float:
    """Days at this share until the slowest claim of a promotion is proven by the mean growth of its best stake;
    infinite where none grows."""
    claims, mean = _Claims(design), moments_of(design, traffic, share).mean[:-1] * traffic.users_per_day
    days = np.where(mean > 0, (claims.needed - claims.weights) / np.where(mean > 0, mean, 1.0), math.inf)
    of_claims = np.minimum.reduceat(days, claims.starts)
    return float(of_claims[:1].max() if design.missing == "random" else of_claims[3:].max())


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


def walk(design: ExperimentDesign, traffic: PlannedTraffic, *, days: int, experiments: int, seed: int) -> Looks:
    """Simulate experiments that are looked at daily; over long times less often, 400 times in all."""
    rng = np.random.default_rng(seed)
    schedule, window = schedule_of(design, traffic, days), math.ceil(design.maturation_hours / 24)
    steps = [share for share in design.ramp if share < 1]
    moments = [moments_of(design, traffic, share) for share in steps]
    every = math.ceil(days / MOST_LOOKS)
    at = np.arange(every, days + every, every)
    claims, rail = _Claims(design), next((rail for rail in design.guardrails if rail.name == "unhappy"), None)
    state, unhappy = np.zeros((experiments, len(moments[0].mean))), np.zeros((experiments, len(steps), 2))
    best, log_e = np.zeros((experiments, claims.number)), claims.wealth(state, state[0])[0]
    variance = information = total = 0.0
    end, z_first = np.full(experiments, len(at)), np.full(experiments, len(at))  # looks
    outcome = np.full(experiments, "continue", dtype=object)
    outcomes = np.array([name for name, _ in ENDINGS], dtype=object)
    one_look, units = np.zeros(len(at)), np.zeros(len(at))
    for look, day in enumerate(at):
        ripe = slice(max(0, day - every - window), max(0, day - window))
        spread = np.zeros(state.shape[1])
        for step, one in enumerate(moments):
            users = float(schedule.new[ripe][schedule.step[ripe] == step].sum())
            if users:
                half = rng.standard_normal((math.ceil(experiments / 2), state.shape[1]))
                noise = np.concatenate([half, -half])[:experiments] @ one.root.T  # opposites: their mean is nearer
                state += users * one.mean + math.sqrt(users) * noise
                if one.unhappy.any():
                    more = rng.poisson(users * one.unhappy, (experiments, 2))
                    state += (more - users * one.unhappy) @ one.shifts
                    unhappy[:, step] += more
                spread += users * one.variance
                variance += users * float(one.variance[-1])
                information += users * one.information
                total += users * (steps[step] * one.valued[0] + (1 - steps[step]) * one.valued[1])
        before, (log_e, deviation) = log_e, claims.wealth(state, spread)
        best = np.maximum(best, _highest(before, log_e, deviation, rng))
        difference = state[:, -1] / max(information, 1e-300)
        z = state[:, -1] > Z_TWO_SIDED * math.sqrt(variance or math.inf)
        held = seem_more("unhappy", unhappy, np.array(steps), rail.tolerance) if rail else np.zeros_like(z)
        found = outcomes[claims.endings(best, difference, float(day), held)]
        ended = (end == len(at)) & (found != "continue")
        end, outcome = np.where(ended, look, end), np.where(ended, found, outcome)
        z_first = np.minimum(z_first, np.where(z, look, len(at)))
        alone = outcomes[claims.endings(log_e, difference, float(day), held)]
        one_look[look], units[look] = (alone == "promote").mean(), total
    looks = np.arange(len(at))
    by_then = end[:, None] <= looks
    promoted, rolled_back, futile = (
        (outcome == name)[:, None] & by_then for name in ("promote", "roll back", "futility")
    )
    last = np.minimum(at[np.minimum(end, len(at) - 1)], len(schedule.met)) - 1
    z_promoted = z_first[:, None] <= looks
    return Looks(at, units, promoted, rolled_back, futile, z_promoted, one_look, schedule.met[last])


def _highest(before: Array, after: Array, deviation: Array, rng: np.random.Generator) -> Array:
    """The highest values of walks between two looks, (experiments, claims), as Brownian bridges have them."""
    rise, chance = after - before, rng.standard_exponential(after.shape)
    return np.asarray((before + after + np.sqrt(rise**2 + 2 * deviation**2 * chance)) / 2)


class _Claims:
    """Where the stakes of the claims are in a walk's state, and what follows from them."""

    def __init__(self, design: ExperimentDesign) -> None:
        books = empty_tally(design, np.array([0.5])).books
        self.design, self.columns = design, columns_of(design)
        sizes = [[share for share, _ in books[name].claims[claim].stakes] for name, claim in self.columns]
        self.weights, self.counts = np.log(np.concatenate(sizes)), [len(each) for each in sizes]
        self.starts = np.cumsum([0, *self.counts[:-1]])
        self.number, self.needed = len(sizes), math.log(1 / design.alpha)

    def wealth(self, state: Array, variance: Array) -> tuple[Array, Array]:
        """The log of each claim's wealth, and the standard deviation of its next step, (experiments, claims): that of
        its stakes, which move together, by their shares of the wealth. `variance`: of all stakes, then of the score."""
        logs = state[:, :-1] + self.weights
        most = np.maximum.reduceat(logs, self.starts, axis=1)
        stakes = np.exp(logs - np.repeat(most, self.counts, axis=1))
        whole = np.add.reduceat(stakes, self.starts, axis=1)
        deviation = np.add.reduceat(stakes * np.sqrt(variance[:-1]), self.starts, axis=1) / whole
        return most + np.log(whole), np.asarray(deviation)

    def endings(self, log_e: Array, difference: Array, day: float, held: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How experiments end or continue, by the rule that decides real ones."""
        proven, none = log_e / self.needed, np.zeros(len(log_e))
        promotion = proven[:, 3:].min(axis=1) if self.number > 3 else proven[:, 0]
        return endings(
            self.design,
            Proven(
                days=none,
                live_days=none + day,
                ratio=none,
                tripped=none > 0,
                held=held,
                worse=proven[:, 1],
                promotion=promotion,
                no_gain=proven[:, 2],
                whole_weeks=none + math.inf,  # left out, as is the time after which experiments end
                difference=difference,
            ),
        )
