"""The settings of the evaluate stage, and the options of `tuneloop evaluate`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from tuneloop.core.confined import PLACE, TEXT
from tuneloop.core.files import FROM_FILE, Config
from tuneloop.core.flag import flag, option
from tuneloop.core.python_file import trust_code


class EvaluateConfig(Config):
    """How answers are obtained and scored."""

    answer: Literal["auto", "generate", "choice"] = Field(
        "auto", description="free generation, or choice scoring over the labels; auto: choice for classification"
    )
    deterministic: bool = option(
        "our own engine on a processor: answers that don't depend on what is computed with them, as in `serve`", False
    )
    calibrate: bool = option("base models: also score choices minus their score without the text", True)
    primary: Annotated[str | None, TEXT] = option(
        "the metric that decides, by its name in eval.json; default: what fits (docs/metrics.md)"
    )
    fields: Annotated[dict[str, str], TEXT] = Field(
        default_factory=dict, description="parts scored on their own: name -> regular expression with one group"
    )
    json_schema: Annotated[str | None, PLACE] = option("file with the JSON schema that structured answers must fit")
    structured: bool | Literal["auto"] = option("score answers as JSON; auto: where nearly all references are", "auto")
    run_code: bool | Literal["auto"] = option(
        "run answers in a sandbox with their rows' unit tests (pass@k); auto: where rows bring tests", "auto"
    )
    scorers: dict[str, str] = Field(
        default_factory=dict, description="your own: name -> file.py:function, called with prediction and reference"
    )
    embedding: bool = option("also score the similarity of meaning, where the packaged MiniLM is installed", True)
    cluster: Annotated[str | None, TEXT] = option(
        "metadata field of rows that belong together; default: a conversation's usual names"
    )
    slices: Annotated[list[str] | None, TEXT] = option(
        "metadata fields to show results by; default: of 2 to 20 values, or numbers"
    )
    max_new_tokens: int | None = option("longest answer; default: a quarter over the longest trained on", ge=1)
    limit: int | None = option("at most this many rows of the split (seeded sample, labels by their share)", ge=1)
    samples: int = option("answers shown side by side; a page shows ten at once, or more; 0: none", 5, ge=0)
    general: Annotated[str | None, PLACE] = option(
        "file of general rows, to measure forgetting; default: those held out of a mix"
    )
    general_rows: int = Field(200, ge=10, description="at most this many of them (seeded sample)")
    memorisation: bool = option("share of training answers that the model completes verbatim beyond the base", False)
    consistency: int = option(
        "put a sample of rows in so many ways: how often answers agree; 0: not, 5: good", 0, ge=0, le=20
    )
    consistency_rows: int = Field(50, ge=2, description="rows of that sample (seeded)")
    bootstrap: int = Field(2000, ge=100, description="resamples for intervals and paired tests")

    def asked_again(self, rows: int) -> int:
        """Questions that measuring the consistency of answers to some rows puts to the model, at most."""
        return self.consistency * min(self.consistency_rows, rows)

    @field_validator("scorers")
    @classmethod
    def _named_in_python(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        if info.context is not FROM_FILE:
            trust_code(value)
        return value

    @field_validator("consistency")
    @classmethod
    def _one_way_says_nothing(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one way can't disagree with itself: give 2 or more, or 0 for none")
        return value


class BaselinesConfig(Config):
    """What the tuned model is compared with."""

    zero_shot: bool = Field(True, description="the base model with the instruction alone")
    few_shot: int | Literal["auto"] = Field(
        "auto", description="examples in the base model's prompt; auto: one a label (40 with more than 80), else 4"
    )
    prompt: Annotated[str | None, PLACE] = option(
        "file with the best prompt you have (see `evaluate --prompt`), which few-shot gets too"
    )
    prompt_rows: int = option(
        "validation rows on which few-shot's prompt is chosen: file or instruction, fewer or more examples; 0: none",
        0,
        ge=0,
    )
    search: int = option(
        "most answers of a search for the best prompt, where `max_minutes` does not forbid it; 0: none", 240, ge=0
    )
    classical: bool = option(
        "logistic regression on TF-IDF and, where installed, MiniLM: of labels, or of each field that holds labels",
        True,
    )


class EvalOptions(Config):
    """Rows and prompts of an evaluation; each field is an option."""

    predictions: str = flag("", "FILE", 'Measure answers made elsewhere: rows {"id" or "row", "prediction"}.')
    dataset: str = flag("", "FOLDER", "Prepared data set; a run knows its own.", "-d")
    split: str = flag("test", "NAME", "Split: train, val or test.", "-s")
    data: str = flag("", "FILE", "A file whose rows are used instead of a split's.", "--data", "--references")
    base: str = flag("", "MODEL", "Base of an adapter; what a model was made from, or what an endpoint serves.")
    train: str = flag("", "FILE", "Rows that an adapter's base gets as examples, and classifiers learn from.")
    few_shot: int = flag(0, "N", "Examples in the prompt, from the training split.", least=0)
    examples: Literal["balanced", "nearest"] = flag(
        "balanced", "NAME", "How they are picked: balanced, or nearest to each row."
    )
    prompt: str = flag("", "FILE", "Template with {input}: a text, or YAML with keys user and system.")
    name: str = flag("", "NAME", "Name of the system in the result; default: its kind.")
    out: str = flag("", "FOLDER", "Folder for eval.json; default: the run's, or in evals/.", "-o")
    on: str = flag("", "ray", "Ask the model by actors of a Ray cluster: ray, or ray://HOST:PORT.")
    actors: int = flag(0, "N", "Copies of the model there; default: one for each GPU, else for each machine.", least=0)


class PromptOptions(Config):
    """What a search for a prompt may use and spend; each field is an option."""

    calls: int = flag(1000, "N", "Most answers to ask for: search, check and test together.", least=1)
    max_usd: float | None = flag(None, "X", "Most dollars for them.", above=0)
    max_minutes: float | None = flag(None, "X", "Most minutes for them.", above=0)
    prompt: str = flag("", "FILE", "Your best prompt so far, which is tried too: a text, or YAML with user and system.")
    rules: str = flag("", "FILE", "A text with rules, which is tried behind the instruction.")
