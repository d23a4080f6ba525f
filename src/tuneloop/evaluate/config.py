"""What the evaluate stage can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tuneloop.files import Config


class EvaluateConfig(Config):
    """How answers are obtained and scored."""

    answer: Literal["auto", "generate", "choice"] = Field(
        "auto",
        description="free generation, or choice scoring over the allowed labels; auto: choice for classification",
    )
    calibrate: bool = Field(True, description="untouched models: also score choices minus their score without the text")
    fields: dict[str, str] = Field(
        default_factory=dict,
        description="parts of a structured answer scored by themselves: name -> regular expression with one group",
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="longest answer; default: a quarter over the longest reference of the training split"
    )
    limit: int | None = Field(None, ge=1, description="evaluate at most this many rows of the split (seeded sample)")
    samples: int = Field(5, ge=0, description="answers shown side by side")
    bootstrap: int = Field(2000, ge=100, description="resamples for intervals and paired tests")


class BaselinesConfig(Config):
    """What the tuned model is compared with."""

    zero_shot: bool = Field(True, description="the untouched model with the instruction alone")
    few_shot: int | Literal["auto"] = Field(
        "auto", description="examples in the untouched model's prompt; 0: none; auto: one a label, else 4"
    )
    classical: bool = Field(
        True,
        description="classification: TF-IDF and, where installed, MiniLM embeddings, each with logistic regression",
    )
