"""A regression suite: what must hold before a model may replace the one in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tuneloop.core.errors import UserError
from tuneloop.core.files import Config, build_config, read_jsonl, read_yaml
from tuneloop.core.patterns import compile_pattern

Status = Literal["pass", "fail", "inconclusive"]


class MustPass(Config):
    """A row that must pass. Without a condition of its own the answer must be right: its label, or its text."""

    id: str = Field("", description="a row of the evaluation")
    prompt: str = Field("", description="a new prompt instead; it is asked of the candidate's model")
    system: str = Field("", description="system prompt of a new prompt")
    request: str = Field("", description="request that it was made of, by which `tuneloop data forget` finds it")
    equals: str | None = Field(None, description="the answer, but for case and outer spaces")
    contains: list[str] | str = Field(default_factory=list, description="each must occur, in any case")
    lacks: list[str] | str = Field(default_factory=list, description="none may occur, in any case")
    matches: str | None = Field(None, description="regular expression to be found in the answer")

    @model_validator(mode="before")
    @classmethod
    def _of_id(cls, value: Any) -> Any:
        return {"id": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _complete(self) -> MustPass:
        if bool(self.id) == bool(self.prompt):
            raise ValueError("give either id or prompt")
        if self.prompt and not self.has_condition:
            raise ValueError("a new prompt needs equals, contains, lacks or matches")
        if self.matches is not None:
            try:
                compile_pattern(self.matches)
            except ValueError as error:
                raise ValueError(f"matches is not a regular expression: {error}") from None
        return self

    @property
    def has_condition(self) -> bool:
        """Whether it says itself what must hold."""
        return self.equals is not None or self.matches is not None or bool(self.contains or self.lacks)


class MetricLimit(Config):
    """How much worse than the base a metric may be, or where it must stand at least or at most."""

    metric: str = Field(description="name in eval.json")
    margin: float | None = Field(None, ge=0, description="at most this much worse than the base, in the metric's units")
    at_least: float | None = Field(None, description="the candidate's value itself")
    at_most: float | None = Field(None, description="the candidate's value itself")
    slice: dict[str, Any] = Field(
        default_factory=dict, description="only rows with these values, as in {label: refund}"
    )
    by: str = Field("", description="each value of this field by itself")
    min_rows: int = Field(20, ge=2, description="of `by`: values with fewer rows are left out")

    @model_validator(mode="after")
    def _complete(self) -> MetricLimit:
        if self.margin is None and self.at_least is None and self.at_most is None:
            raise ValueError("give margin, at_least or at_most")
        return self


class Forgetting(Config):
    """How much general ability may be lost."""

    at_most: float = Field(0.05, description="forgetting score in eval.json: the share of what the base could do")


class Latency(Config):
    """How slow answers may be, as measured during the evaluation."""

    seconds_per_row: float | None = Field(None, gt=0, description="mean seconds for an answer")
    ratio: float | None = Field(None, gt=0, description="at most this many times the base's; needs the same machine")


class Suite(Config):
    """A regression suite."""

    version: Literal[1] = 1
    name: str = Field("regression", description="for people")
    must_pass: list[MustPass] = Field(default_factory=list, description="ids, or mappings with conditions")
    must_pass_file: str = Field("", description="JSON Lines with more of them, in the suite's folder")
    repeat: int = Field(
        3, ge=0, le=20, description="how often a row that failed is asked again, where that is possible"
    )
    flaky: Status = Field("inconclusive", description="what a row is that passes sometimes")
    metrics: list[MetricLimit] = Field(default_factory=list, description="margins and limits")
    forgetting: Forgetting | None = Field(None, description="limit on forgetting")
    latency: Latency | None = Field(None, description="limits on time")
    judge_alone: bool = Field(False, description="allow a suite whose only evidence is a judge model")


def load_suite(path: Path | str) -> Suite:
    """Read and check a suite.

    Raises:
        UserError: the file is missing or wrong, demands nothing, or rests on a judge model alone.
    """
    path = Path(path)
    suite = build_config(Suite, read_yaml(path, "suite"), where=str(path))
    if suite.must_pass_file:
        records = read_jsonl(path.parent / suite.must_pass_file)
        more = [
            build_config(MustPass, {"id": r} if isinstance(r, str) else r, where=suite.must_pass_file) for r in records
        ]
        suite = suite.model_copy(update={"must_pass": [*suite.must_pass, *more]})
    if not (suite.must_pass or suite.metrics or suite.forgetting or suite.latency):
        raise UserError("The suite demands nothing", where=str(path), next_step="add must_pass or metrics")
    judged = [limit for limit in suite.metrics if limit.metric.split(".")[0].startswith("judge")]
    if judged and len(judged) == len(suite.metrics) and not suite.must_pass and not suite.judge_alone:
        raise UserError(
            "The suite's only evidence is a judge model, which can be wrong in the same way each time",
            where=str(path),
            next_step="add must_pass rows or another metric, or set judge_alone: true",
        )
    return suite
