"""The settings of the prepare stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, field_validator, model_validator

from tuneloop.core.confined import NAME, PLACE, TEXT
from tuneloop.core.files import Config, as_list
from tuneloop.core.urls import masked

# Settings of PrepareConfig that change nothing in a data set.
NO_CONTENT = {"workers", "engine", "allow_errors", "max_expansion", "patch", "leave_out"}
# Of a patch its lines count, not its name; rows are left out where that is requested, which the key then has too.


def _off(value: object) -> object:
    """YAML, and so the command line, reads `off` as false."""
    return "off" if value is False else value


# A path or an address, whose password is in no file that is written of it: a saved recipe can't fetch it again.
Source = Annotated[str, PlainSerializer(masked, return_type=str, when_used="json")]


class RepairConfig(Config):
    """What is repaired in texts; every change is in `repairs.jsonl`."""

    encoding: bool = Field(True, description="undo mojibake (UTF-8 read as another encoding) where it can be undone")
    html_entities: bool = Field(True, description="turn &amp; and the like into the characters that they mean")
    invisible: bool = Field(True, description="remove zero-width, control and soft-hyphen characters")
    unicode: Literal["nfc", "off"] = Field("nfc", description="Unicode normal form of texts")
    white_space: bool = Field(True, description="trim, unify line ends and exotic spaces, cut runs of blank lines")
    special_tokens: bool = Field(True, description="neutralise a model's control tokens inside texts")
    json_syntax: bool = Field(False, description="read raw control characters in strings, and NaN: JSON forbids them")

    _unicode_off = field_validator("unicode", mode="before")(_off)


class PersonalConfig(Config):
    """Personal data and secrets: what is looked for, and what happens to it."""

    mode: Literal["placeholder", "pseudonym", "reject", "report", "off"] = Field(
        "placeholder",
        description="placeholder: <EMAIL>; pseudonym: an invented value, the same one for the same value; "
        "reject: the row goes; report: counted only; off: not looked for",
    )
    kinds: Annotated[list[str] | None, TEXT] = Field(
        None, description="kinds to look for, as in [EMAIL, PHONE]; default: all"
    )
    names: bool = Field(False, description="person names too, by a language model for names: slow and less precise")
    region: Annotated[str, TEXT] = Field(
        "US", description="country of phone numbers without a country code (two letters)"
    )
    secret: str | None = Field(
        None, description="name of the environment variable with the key of pseudonyms; default: TUNELOOP_SECRET"
    )

    _mode_off = field_validator("mode", mode="before")(_off)


class DuplicatesConfig(Config):
    """Which rows count as the same, and which of them stays."""

    exact: bool = Field(True, description="drop rows that are equal up to Unicode form, white space and case")
    near: bool = Field(True, description="drop rows that are nearly equal")
    threshold: float = Field(0.8, gt=0.0, le=1.0, description="Jaccard similarity from which rows are near duplicates")
    on: Literal["row", "user", "both"] = Field(
        "row", description="row: prompt and answer together; user: what the user says alone; both: either of them"
    )
    keep: Literal["first", "longest", "newest", "best"] = Field("first", description="which row of a cluster stays")
    newest: Annotated[str, TEXT] = Field(
        "created", description="column with the time, for keep=newest and split.by=time"
    )
    best: Annotated[str, TEXT] = Field("rating", description="column with the rating, for keep=best")
    conflicts: Literal["report", "drop", "keep"] = Field(
        "report",
        description="one question with different answers. report: a check names them; drop: all go; "
        "keep: the one that `keep` names stays",
    )
    semantic: float | None = Field(
        None, gt=0.0, le=1.0, description="cosine similarity of duplicates' embeddings; default: off"
    )


class SplitConfig(Config):
    """How rows are divided."""

    val: float = Field(0.1, ge=0.0, le=0.5, description="share of rows for validation")
    test: Annotated[float | Source, PLACE] = Field(
        0.1, description="share of rows for the test, or a file that is the test set"
    )
    stratify: Annotated[str | None, TEXT] = Field(
        None, description="column whose shares all splits keep; default: the label"
    )
    group: Annotated[str | None, TEXT] = Field(
        None, description="column whose rows of one value stay in one split, such as user_id"
    )
    by: Literal["content", "time"] = Field(
        "content", description="time: the newest rows are the test, those before them validation"
    )
    time: Annotated[str, TEXT] = Field("created", description="column with the time, for by=time")
    freeze: Annotated[str | None, PLACE] = Field(
        None, description="data set whose val and test rows stay where they are"
    )

    @model_validator(mode="after")
    def _some_rows_to_train_on(self) -> SplitConfig:
        if not isinstance(self.test, str):
            if not 0.0 <= self.test <= 0.5:
                raise ValueError("test must be a share between 0 and 0.5, or a file")
            if self.val + self.test >= 1.0:
                raise ValueError("val and test together must leave rows for training")
        return self


class MixConfig(Config):
    """General data blended in against forgetting."""

    sources: Annotated[list[Source], PLACE] = Field(
        default_factory=list, description="files or prepared data sets with general rows"
    )
    share: float = Field(0.3, ge=0.0, lt=1.0, description="share of the general rows in the mixed training split")
    by: Literal["tokens", "rows"] = Field("tokens", description="what the share is counted in")
    weights: list[float] | None = Field(None, description="weights of the sources; default: their sizes")
    repeat: bool = Field(False, description="use general rows more than once when there are too few")
    in_test: bool = Field(False, description="general rows in the test split as well")

    _one_source = field_validator("sources", mode="before")(as_list)


class PrepareConfig(Config):
    """From files of any shape to the splits of a data set."""

    sources: Annotated[list[Source], PLACE] = Field(default_factory=list, description="files, globs or folders to read")
    format: Annotated[str, NAME] = Field(
        "auto",
        description="shape of the records; auto detects it and says what it found: alpaca, sharegpt, messages, "
        "prompt_completion, text_label, text, preference, thumbs, logs, fields",
    )
    task: Literal["auto", "classification", "generation", "chat"] = Field(
        "auto", description="classification: one label a row; generation: one answer; chat: conversations"
    )
    text: Annotated[str | None, TEXT] = Field(
        None, description="column with the input text (text + label); default: guessed"
    )
    label: Annotated[str | None, TEXT] = Field(
        None, description="column with the label; default: guessed for text + label"
    )
    instruction: Annotated[str | None, TEXT] = Field(None, description="system turn put before rows that have none")
    input: Annotated[str | None, TEXT] = Field(
        None, description="template of the user turn over the columns, as in '{text}'"
    )
    output: Annotated[str | None, TEXT] = Field(
        None, description="template of the answer over the columns, as in 'Queue: {queue}'"
    )
    labels: Annotated[list[str] | None, TEXT] = Field(None, description="allowed labels; default: those of the data")
    patch: Annotated[str | None, PLACE] = Field(
        None,
        description="file of corrected answers (`tuneloop ui` writes one): JSON Lines of source, line, was, becomes",
    )
    leave_out: Annotated[list[str], TEXT] = Field(
        default_factory=list,
        description="rows that are left out, by a column's value: [origin=model] leaves out what a model wrote",
    )
    repair: RepairConfig = RepairConfig()
    personal: PersonalConfig = PersonalConfig()
    language: Annotated[str | None, TEXT] = Field(
        None, description="rows in another language are rejected (two letters, as in en); default: reported only"
    )
    duplicates: DuplicatesConfig = DuplicatesConfig()
    split: SplitConfig = SplitConfig()
    mix: MixConfig = MixConfig()
    max_length: int = Field(2048, ge=16, description="longest row in tokens; too_long says what others become")
    too_long: Literal["reject", "truncate", "split"] = Field(
        "reject",
        description="rows over max_length. truncate: leave out the oldest turns, then the beginning of the question; "
        "split: make several rows, cut before user turns (a chat) or between paragraphs (a text)",
    )
    engine: Literal["processes", "ray"] = Field("processes", description="ray: work on a Ray cluster, same result")
    workers: int | None = Field(None, ge=1, description="processes, with the same result; default: one a core")
    max_expansion: float = Field(200.0, gt=1, description="how many times its size a compressed file may expand to")
    limit_per_label: int | None = Field(None, ge=1, description="keep at most this many training rows a label")
    limit: int | None = Field(None, ge=1, description="read at most this many records")
    allow_rejects: float = Field(0.2, ge=0.0, le=1.0, description="share of rejected records above which the job stops")
    allow_errors: bool = Field(False, description="let `run` and `train` continue although a check is at error")

    _one_of_a_list = field_validator("sources", "labels", "leave_out", mode="before")(as_list)

    @field_validator("leave_out")
    @classmethod
    def _has_column_and_value(cls, value: list[str]) -> list[str]:
        if wrong := [rule for rule in value if not rule.partition("=")[0] or "=" not in rule]:
            raise ValueError(f"{wrong[0]!r} is no COLUMN=VALUE, as in origin=model")
        return value
