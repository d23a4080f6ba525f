"""What the prepare stage can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from tuneloop.files import Config


class SplitConfig(Config):
    """How rows are divided."""

    val: float = Field(0.1, ge=0.0, le=0.5, description="share of rows for validation")
    test: float = Field(0.1, ge=0.0, le=0.5, description="share of rows for the test")
    stratify: str | None = Field(
        None, description="column whose values keep their shares in every split; default: the label"
    )

    @model_validator(mode="after")
    def _some_rows_to_train_on(self) -> SplitConfig:
        if self.val + self.test >= 1.0:
            raise ValueError("val and test together must leave rows for training")
        return self


class PrepareConfig(Config):
    """From files of any shape to the splits of a data set."""

    sources: list[str] = Field(default_factory=list, description="files, globs or folders to read")
    format: Literal["auto", "alpaca", "sharegpt", "messages", "prompt_completion", "text_label", "fields"] = Field(
        "auto", description="shape of the records; auto detects it and says what it found"
    )
    task: Literal["auto", "classification", "generation", "chat"] = Field(
        "auto", description="classification: one label a row; generation: one answer; chat: conversations"
    )
    text: str | None = Field(None, description="column with the input text (text + label); default: guessed")
    label: str | None = Field(None, description="column with the label; default: guessed for text + label")
    instruction: str | None = Field(None, description="system turn put before rows that have none")
    input: str | None = Field(None, description="template of the user turn over the columns, as in '{text}'")
    output: str | None = Field(None, description="template of the answer over the columns, as in 'Queue: {queue}'")
    labels: list[str] | None = Field(None, description="allowed labels; default: those of the data")
    split: SplitConfig = SplitConfig()
    max_length: int = Field(
        2048, ge=16, description="longest row in tokens; longer ones are rejected with their length"
    )
    limit_per_label: int | None = Field(None, ge=1, description="keep at most this many training rows a label")
    limit: int | None = Field(None, ge=1, description="read at most this many records")
    allow_rejects: float = Field(0.2, ge=0.0, le=1.0, description="share of rejected records above which the job stops")

    @field_validator("sources", "labels", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value
