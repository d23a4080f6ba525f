"""Options of `tuneloop merge`, `route` and `distill`."""

from __future__ import annotations

from typing import ClassVar

from tuneloop.core.files import Config
from tuneloop.core.flag import flag, switch

AUTO = "auto"


class MergeOptions(Config):
    """How to merge."""

    method: str = flag("svd", "NAME", "linear, cat, svd, or auto: search; see docs/merge.md.")
    weights: str = flag("", "X,Y,...", "A weight for each adapter; default: 1 for each.")
    rank: int = flag(0, "N", "Rank of the result; default: what the method says.", least=0)
    base: str = flag("", "MODEL", "The base model, where an adapter doesn't name it.")


class TaskJudgeOptions(Config):
    """How the merged model is judged, task by task."""

    PANEL: ClassVar[str] = "Judging by task"

    rows: int = flag(100, "N", "Rows of each task to answer, of its test; of its validation by --method auto.", least=1)
    allow: float = flag(0.1, "X", "Most of an expert's gain over the base that its task may lose, as a share.", least=0)
    minutes: float = flag(5.0, "X", "Time for the search of --method auto.", least=0)
    pooled: str = flag("", "RUN", "One adapter on all tasks' rows, to compare with; trained first if it is not there.")
    no_judge: bool = switch("Merge only; answer no rows.")


class RouteOptions(Config):
    """What a router sees, and what it may cost."""

    outside: str = flag("", "FILE", "Requests that belong to no model, to measure how many are recognised.")
    features: str = flag("", "NAME", "static (default), minilm, words, or hidden: the base model's own states.")
    base: str = flag("", "MODEL", "The base model for --features hidden.")
    max_cost: float = flag(0.0, "X", "Most mean cost of an answer; 0: no limit.", least=0)
    rows: int = flag(600, "N", "Most rows of each task and split.", least=1)


class DistilOptions(Config):
    """Who learns, and how it is judged."""

    LEVELS: ClassVar[tuple[str, ...]] = ("text", "logits", "live")
    ANSWERS: ClassVar[tuple[str, ...]] = ("teacher", "own")
    PICKS: ClassVar[tuple[str, ...]] = ("agree", "reference", "judge")

    model: str = flag("", "NAME", "The teacher, as its endpoint names it.", "-m")
    base: str = flag("", "MODEL", "What an endpoint serves: prompts become its token ids, and labels are scored.")
    level: str = flag(
        "text", "NAME", "What is learned: text (answers), logits (probabilities, stored), live (each step)."
    )
    answers: str = flag("teacher", "NAME", "Whose answers the student reads: the teacher's, or the rows' own.")
    prompts: str = flag("", "FILE", "Further requests for the teacher, without answers: a file or a prepared data set.")
    few_shot: int = flag(0, "N", "Training rows that the teacher sees as examples in each prompt.", least=0)
    best_of: int = flag(1, "N", "The teacher's answers to each prompt; the best is learned.", least=1, most=64)
    pick: str = flag("agree", "NAME", "The best: agree (most like the others), reference (like the row's own), judge.")
    gate: str = flag("", "FILE", "What an answer must hold to be learned: contains, matches ...; see docs/distill.md.")
    judge: str = flag("", "MODEL", "Model on this machine that rates answers for --pick judge.")
    any_model: bool = switch("Accept a server whose model calls itself otherwise.")
    top: int = flag(128, "N", "Likeliest tokens that --level logits stores at each position.", least=1)
    layers: int = flag(0, "N", "Make the student of the teacher: leave out layers until N are left.", least=0)
    rows: int = flag(300, "N", "Most test rows that are answered.", least=1)
    plan: bool = switch("Only say what it takes on rented GPUs: memory, hours, dollars, storage; run nothing.")
    measured: str = flag("", "A,B", "Evaluations of the teacher and of a tuned student: --plan says if it should pay.")
    no_control: bool = switch("Don't train the same student on the rows' own answers, to compare with.")
