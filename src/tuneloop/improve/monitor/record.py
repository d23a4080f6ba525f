"""What monitoring found in a window of production."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from tuneloop.core.files import Config
from tuneloop.core.flag import flag
from tuneloop.records.record import Number, Part, Record


class Detection(Part):
    """One detector in one window.

    Args:
        name: of the detector: `inputs`, `length`, `language`, ...
        compared_with: `reference` (the data set) or `earlier` (production before the window).
        p: chance of a difference of this size without any change, by permutation; `level` below which it is an alarm.
        excess: of the difference over those of chance, in their standard deviations.
        size: of the difference; `unit` says of what.
        alarm: whether it is one.
        rows: values that were compared, of before and of now.
        windows: the last ones, which were compared as one.
        sentence: what was found; of an alarm also `next_step`.
        words: that tell the window from before; `requests` the ids of those that differ most.
    """

    name: str
    compared_with: Literal["reference", "earlier"]
    p: float
    level: float
    excess: Number = 0.0
    size: Number
    unit: str
    alarm: bool
    rows: list[int]
    windows: int = 1
    sentence: str
    next_step: str = ""
    words: list[str] = []
    requests: list[str] = []


class QualityEstimate(Part):
    """The share of right answers in a window, from those that people judged.

    Args:
        estimated, low, high: share of right answers in the window, with a 95 % interval.
        before: the same of the windows before; NaN: too few were judged.
        judged: answers of the window.
    """

    estimated: Number
    low: Number
    high: Number
    before: Number
    judged: int


class ChangedAnswer(Part):
    """A canary prompt that is answered otherwise than before.

    Args:
        row: of the data set.
        prompt, before, now: its last turn, the last answer before and the one of now; empty where they are not kept.
        right_before, right_now: whether they are the right answer; None: no one knows it.
        request_before, request_now: ids in the store.
    """

    row: str
    prompt: str = ""
    before: str = ""
    now: str = ""
    right_before: bool | None = None
    right_now: bool | None = None
    request_before: str
    request_now: str


class CanaryRound(Part):
    """One pass over the canary prompts.

    Args:
        round: its id; `time` when it was sent.
        adapter, release: that answered; `new_release`: another one than in the round before.
        asked: prompts; `failed` of them got no answer, `compared` of them had one before.
        changed: answers that this model had not given before.
        chances, chance_changes: answers that were compared before, and how many of them were new: what chance does.
        p: chance of as many new answers if nothing has changed; `level` below which it is an alarm.
        alarm: whether it is one; a new release may answer otherwise and raises none.
        right_before, right_now: right answers among those that changed, where the right one is known; `known` how many.
        sentence: what was found, without any text of a prompt or an answer.
        next_step: of an alarm.
    """

    round: str
    time: str
    adapter: str | None
    release: str | None
    new_release: bool
    asked: int
    failed: int
    compared: int
    changed: list[ChangedAnswer]
    chances: int
    chance_changes: int
    p: float
    level: float
    alarm: bool
    right_before: int
    right_now: int
    known: int
    sentence: str
    next_step: str = ""


class MonitorReport(Record):
    """What one window shows.

    Args:
        model: the served name.
        since, until: of the window.
        requests: in it; `compared` of them, one a user.
        false_alarms_per_year: windows with an alarm without any change that are accepted in a year.
        detections: of each detector that had enough rows.
        skipped: detectors that had not, and why.
        learning: windows before this one, where they are too few to say what windows usually do; None: they are enough.
        quality: estimated; None: people judged too few answers of the window.
        canaries: the rounds of canary prompts in the window that differ from before, and `canary_rounds` how many there
            were.
        alarms: names of the detectors with an alarm that no one has said to ignore.
        ignored: those with an alarm that a person has said to ignore, and until when.
        summary: in words.
    """

    title: ClassVar[str] = "a monitor's report"
    file: ClassVar[str] = "monitor.json"
    again: ClassVar[str] = "run `tuneloop monitor` again"

    model: str
    since: str
    until: str
    requests: int
    compared: int
    false_alarms_per_year: float
    detections: list[Detection]
    skipped: dict[str, str]
    learning: int | None = None
    quality: QualityEstimate | None = None
    canaries: list[CanaryRound] = []
    canary_rounds: int = 0
    alarms: list[str]
    ignored: dict[str, str] = {}
    summary: list[str]
    config: dict[str, Any] = {}


class MonitorOptions(Config):
    """What is compared."""

    model: str = Field("", description="Served name; default: the only one of the window.")
    window: str = flag("7d", "TIME", "Length of the window, as in 7d or 12h.")
    until: str = flag("", "TIME", "End of the window, as in 2026-01-31; default: now.")
    false_alarms: float = Field(1.0, gt=0, le=50, description="Windows a year that may raise an alarm without cause.")
    canaries: int = Field(20, ge=1, le=500, description="Rows of the data set's test that --ask asks.")
    canaries_every: str = flag("1d", "TIME", "Time between two rounds of canary prompts, as in 1d or 12h.")
    seed: int = Field(0, ge=0, description="Seed of the permutations.")
