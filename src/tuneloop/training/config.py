"""The settings of the training stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tuneloop.core.confined import NAME, PLACE
from tuneloop.core.errors import UserError
from tuneloop.core.files import FROM_FILE, Config
from tuneloop.core.python_file import trust_code
from tuneloop.models.methods import (
    SHIPPED,
    USUAL,
    FullSettings,
    LoraSettings,
    PrefixSettings,
    method_named,
    methods,
    names_of_methods,
)

if TYPE_CHECKING:
    from torch import Tensor

    from tuneloop.models import Model
    from tuneloop.models.chat import Template
    from tuneloop.records.rows import Row
    from tuneloop.training.rows import TrainRow

Context = Callable[[], AbstractContextManager[None]]
Divergence = Literal["forward", "reverse", "skewed", "skewed-reverse", "jensen-shannon", "universal"]


class DistilSettings(Config):
    """Of a student that learns a teacher's probabilities."""

    teacher: Annotated[str | None, PLACE] = Field(
        None,
        description="of distil: the teacher: a folder of stored probabilities, as `tuneloop distill --level logits` "
        "makes them, or a run or model that is queried in each step",
    )
    divergence: Divergence = Field(
        "forward", description="of distil: distance of teacher and student; universal: of models with different tokens"
    )
    teacher_temperature: float = Field(
        1.0, gt=0, le=100, description="of distil: divides both models' logits; above 1 rare tokens count more"
    )
    hard_weight: float = Field(
        0.5, ge=0, le=1, description="of distil: weight of the rows' tokens; the rest is the teacher's"
    )
    on_policy: float = Field(0.0, ge=0, le=1, description="of distil: share of answers that the student writes itself")
    teacher_bits: Literal[4, 16] = Field(
        16, description="of distil: bits of a weight of a teacher queried in each step"
    )


LOSS_NAMES = ("supervised", "dpo", "kto", "distil")  # what ships; LOSSES may have been given more

PREFERENCE_SHARE = 0.1  # of the rate: the model already answers well (Rafailov et al. 2023, appendix B)


def usual_rate(method: str, loss: str) -> float:
    """Peak learning rate of a method and a loss where none is given."""
    return method_named(method).learning_rate * (PREFERENCE_SHARE if loss in ("dpo", "kto") else 1.0)


_CHOICES = ", ".join(f"{method.name} ({method.about})" for method in SHIPPED)


def _rates() -> str:
    by_rate: dict[float, list[str]] = {}
    for method in sorted(SHIPPED, key=lambda method: method is not USUAL):
        by_rate.setdefault(method.learning_rate, []).append(method.name)
    return ", ".join(f"{', '.join(names)} {rate:.0e}".replace("e-0", "e-") for rate, names in by_rate.items())


class WhatIsTrained(Config):
    """The first settings of `train`."""

    method: Annotated[str, NAME] = Field(
        USUAL.name,
        json_schema_extra={"anyOf": [{"enum": [method.name for method in SHIPPED]}, {"pattern": r"\.py$"}]},
        description=f"what is trained: {_CHOICES}; or the Python file that describes a method of yours",
    )
    init: Annotated[str | None, PLACE] = Field(
        None, description="folder of an earlier run of the same method and base to continue from"
    )


class TrainConfig(DistilSettings, FullSettings, PrefixSettings, LoraSettings, WhatIsTrained):
    """Defaults that were measured to work on small jobs; see benchmarks/records/results.md."""

    loss: Annotated[str, NAME] = Field(
        "supervised",
        json_schema_extra={"enum": list(LOSS_NAMES)},
        description="supervised; of preferences: dpo (chosen and rejected answers), kto (thumbs); of a teacher: distil",
    )
    train_on: Literal["assistant", "all", "last"] = Field(
        "assistant", description="tokens that are trained: every assistant turn, everything, or the last turn"
    )
    reasoning: Literal["auto", "on", "off"] = Field(
        "auto",
        description="reasoning (reasoning_content, <think>) in the chat template; auto: as its makers meant; on, off: "
        "enable_thinking; off leaves it out of all turns",
    )
    earlier_reasoning: Literal["drop", "keep"] = Field(
        "drop", description="reasoning of the turns before the last question: models are usually trained without it"
    )
    reasoning_weight: float = Field(
        1.0, ge=0, le=1, description="weight of the tokens of reasoning in the loss; 0: the answer alone is trained"
    )
    beta: float = Field(0.1, gt=0, description="how closely DPO and KTO hold the model to where it started")
    desirable_weight: float = Field(1.0, ge=0, description="weight of thumbs up in KTO")
    undesirable_weight: float = Field(1.0, ge=0, description="weight of thumbs down in KTO")
    kl: float = Field(
        0.0, ge=0, description="against forgetting: weight of the divergence from the base on the supervised tokens"
    )
    l2_start: float = Field(
        0.0, ge=0, description="against forgetting: weight of the squared distance of what is trained from its start"
    )
    learning_rate: float = Field(
        USUAL.learning_rate,
        gt=0,
        lt=10,
        description=f"peak learning rate; default by method: {_rates()}; a tenth of that with dpo and kto",
    )
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="learning rate after the warm-up")
    warmup: float = Field(0.05, ge=0.0, lt=1.0, description="share of the steps in which the learning rate rises")
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = Field(
        "adamw",
        description="adamw; adamw-8bit: moments in 8 bits, 2 bytes a parameter instead of 8 (6 of a full run in bf16); "
        "paged-adamw-8bit: those of bitsandbytes, which move to the host's memory when a GPU's is short",
    )
    gradient_checkpointing: Literal["auto", "always", "never"] = Field(
        "auto",
        description="compute layers again in the backward pass instead of keeping them: less memory, about a third "
        "more time; auto: when a single row does not fit otherwise",
    )
    packing: bool = Field(
        False, description="concatenate a micro-batch's rows instead of padding them; no row sees another; for GPUs"
    )
    compile: bool = Field(False, description="torch.compile each layer; needs a compiler; pays on GPUs in long runs")
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm above which gradients are scaled down")
    epochs: float = Field(3.0, gt=0, le=1000, description="passes over the training split")
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="time for training with its validations and the reference of preferences; steps, validations and "
        "their rows follow from it and the measured speed",
    )
    rows_per_step: int = Field(8, ge=1, description="rows of one optimizer step, at least")
    tokens_per_step: int = Field(0, ge=0, description="a step takes more rows until it has this many tokens")
    gpus: int | Literal["auto"] = Field(
        "auto",
        exclude=True,  # the result does not depend on it: a run continues with another number
        description="GPUs that share the training, a process on each, started by `tuneloop run` and `train`; auto: all "
        "that torch sees; on a processor, processes",
    )
    micro_batch_tokens: int = Field(
        0,
        ge=0,
        description="tokens computed at once, padding included; bounds memory; 0: as many as fit into a GPU's memory; "
        "on a processor 2,048, or 1,024 for a full run",
    )
    evaluations: int = Field(6, ge=1, description="validations, evenly spaced over the run; at most, with max_minutes")
    val_rows: int = Field(256, ge=1, description="validation rows, a seeded sample; at most, with max_minutes")
    patience: int = Field(2, ge=1, description="stop after this many evaluations in a row without a better loss")
    keep_checkpoints: int = Field(2, ge=1, description="latest checkpoints kept, next to the best weights")
    checkpoint_seconds: float = Field(60.0, ge=0, description="save a checkpoint at least this often")
    checkpoint_steps: int | None = Field(None, ge=1, description="save a checkpoint every so many steps as well")

    on_spike: Literal["warn", "stop", "rollback"] = Field(
        "warn",
        description="when the monitor finds a spike or a gradient explosion; rollback resumes from the last checkpoint "
        "at half the learning rate, without that batch",
    )
    on_divergence: Literal["warn", "stop", "rollback"] = Field(
        "stop", description="when the monitor finds divergence or too high a learning rate; stop keeps the best weights"
    )

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        try:
            method_named(value)
        except UserError:
            if value.endswith(".py"):
                raise
            choices = f"{names_of_methods()}, or the Python file that describes a method of yours"
            raise ValueError(f"must be {choices}") from None
        return value

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, value: str) -> str:
        losses = list(dict.fromkeys([*LOSS_NAMES, *LOSSES]))
        if value not in losses:
            raise ValueError(f"must be {', '.join(losses[:-1])} or {losses[-1]}")
        return value

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _on_or_off(cls, value: object) -> object:
        return {True: "always", False: "never"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("gpus")
    @classmethod
    def _sane_gpus(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 1 <= value <= 1024:
            raise ValueError("train.gpus is auto or a number from 1 to 1,024")
        return value

    @model_validator(mode="before")
    @classmethod
    def _rate_of_the_method(cls, values: Any, info: ValidationInfo) -> Any:
        if not isinstance(values, Mapping):
            return values
        if info.context is not FROM_FILE:
            trust_code(values.get("method"))
        if values.get("learning_rate") is not None:
            return values
        try:
            rate = usual_rate(str(values.get("method", USUAL.name)), str(values.get("loss", "supervised")))
        except UserError:  # the method's own check says what is wrong
            return values
        return {**values, "learning_rate": rate}

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        method = method_named(self.method)
        for setting, reason in {name: cause for other in methods() for name, cause in other.exclusive.items()}.items():
            if setting in method.exclusive or getattr(self, setting) == type(self).model_fields[setting].default:
                continue
            owners = " and ".join(other.name for other in methods() if setting in other.exclusive)
            raise ValueError(f"train.{setting} is of {owners} only{f': {reason}' if reason else ''}")
        if conflict := method.conflict(self):
            raise ValueError(conflict)
        if self.kl and method.disabled is None:
            raise ValueError(f"train.kl needs the base model too; with train.method={self.method} use train.l2_start")
        if self.kl and self.loss != "supervised":
            others = "dpo and kto hold the model by train.beta, distil by its teacher"
            raise ValueError(f"train.kl is of the supervised loss; {others}")
        if (self.loss == "distil") != (self.teacher is not None):
            raise ValueError("train.loss=distil and train.teacher go together")
        if self.train_on != "assistant" and self.loss != "supervised":
            raise ValueError("train.train_on is of the supervised loss; the others learn answers")
        return self


@dataclass(frozen=True)
class RowKind:
    """What a loss learns from."""

    usable: Callable[[Row], bool]  # whether a row of a data set is of the kind
    make: Callable[[Sequence[Row], Template, TrainConfig], list[TrainRow]]  # what those rows become
    needed: str = ""  # what a row must have, for the error when none has it


@dataclass(frozen=True)
class Batch:
    """A micro-batch and what a loss may need with it."""

    model: Model
    rows: Sequence[Any]  # of the micro-batch
    share: float  # what one unit counts: 1 / units of the whole step, so that its division changes nothing
    config: TrainConfig
    base: Context = nullcontext  # in it the model computes as before training
    constant: float = 0.0  # of the step, see `Loss`


@dataclass(frozen=True)
class Loss:
    """A loss."""

    # Sum over the micro-batch times `share`, and metrics for `metrics.jsonl` summed alike.
    value: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]
    units: Callable[[TrainRow], float] = lambda row: 1.0  # the mean is taken over: 1, or a row's supervised tokens
    constant: Callable[[Batch], float] = lambda step: 0.0  # of all rows of a step, before its first micro-batch
    rows: RowKind | None = None  # what it learns from; None: conversations


# `training/loss.py` puts in what ships; a file of your own may put in more.
LOSSES: dict[str, Loss] = {}
