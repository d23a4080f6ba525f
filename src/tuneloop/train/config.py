"""What the training stage can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tuneloop.core.files import Config

# What ships; METHODS and LOSSES may have been given more.
METHOD_NAMES = ("full", "lora", "qlora", "prefix")
LOSS_NAMES = ("supervised", "dpo", "kto")

# Peak learning rates where none is given; measured on small jobs, see docs/train.md.
LEARNING_RATES = {"lora": 5e-4, "qlora": 5e-4, "full": 1e-4, "prefix": 3e-2}
# Preferences move a model that already answers well: a tenth of the rate, as is usual (Rafailov et al. 2023, appendix B).
PREFERENCE_SHARE = 0.1


def usual_rate(method: str, loss: str) -> float:
    """Peak learning rate of a method and a loss where none is given."""
    return LEARNING_RATES.get(method, 5e-4) * (1.0 if loss == "supervised" else PREFERENCE_SHARE)


def refuse_unknown(name: str, table: Mapping[str, Any]) -> None:
    """Refuse what stands in no row of a table."""
    if name not in table:
        *first, last = table
        raise ValueError(f"must be {', '.join(first)} or {last}")


class TrainConfig(Config):
    """Defaults that were measured to work on small jobs; see docs/records/results.md."""

    method: str = Field(
        "lora",
        json_schema_extra={"enum": list(METHOD_NAMES)},
        description="what is trained: full (all weights), lora, qlora (lora on a base in 4 bits) or prefix (virtual tokens)",
    )
    init: str | None = Field(None, description="folder of an earlier run of the same method and base to go on from")
    rank: int = Field(16, ge=1, le=1024, description="rank of the LoRA matrices")
    ranks: dict[str, int] = Field(
        {}, description="rank of modules where it differs, by the end of their names: {q_proj: 8}"
    )
    alpha: float = Field(32.0, gt=0, description="LoRA scale; the update is multiplied by alpha / rank")
    rslora: bool = Field(False, description="multiply the update by alpha / sqrt(rank) instead")
    dora: bool = Field(False, description="learn the lengths of the weights as well (DoRA)")
    lora_init: Literal["default", "pissa"] = Field(
        "default", description="start of the LoRA matrices: random and zero, or the weight's principal parts (PiSSA)"
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout on the adapter's input")
    targets: list[str] | Literal["all-linear", "attention"] = Field(
        "all-linear", description="modules that get an adapter: all-linear, attention, or names as in [q_proj, v_proj]"
    )
    prefix_tokens: int = Field(64, ge=1, le=4096, description="virtual tokens of prefix tuning")
    prefix_text: str | None = Field(
        None, description="text whose keys and values the prefix starts from; default: the first training rows"
    )
    loss: str = Field(
        "supervised",
        json_schema_extra={"enum": list(LOSS_NAMES)},
        description="supervised, or preferences: dpo (chosen and rejected answers), kto (thumbs)",
    )
    train_on: Literal["assistant", "all", "last"] = Field(
        "assistant", description="tokens that are learned: every assistant turn, everything, or the last turn"
    )
    beta: float = Field(0.1, gt=0, description="how closely DPO and KTO hold the model to where it started")
    desirable_weight: float = Field(1.0, ge=0, description="weight of thumbs up in KTO")
    undesirable_weight: float = Field(1.0, ge=0, description="weight of thumbs down in KTO")
    kl: float = Field(
        0.0,
        ge=0,
        description="against forgetting: weight of the divergence from the untouched model on the learned tokens",
    )
    l2_start: float = Field(
        0.0, ge=0, description="against forgetting: weight of the squared distance of what is trained from its start"
    )
    learning_rate: float = Field(
        5e-4, gt=0, lt=10, description="peak learning rate; default by method: lora, qlora 5e-4, full 1e-4, prefix 3e-2; "
        "a tenth of that with dpo and kto",
    )  # fmt: skip
    range_test: bool = Field(
        False, description="find the learning rate by a short test before the first step; same as learning_rate=auto"
    )
    lora_plus: float = Field(
        10.0, gt=0, description="learning rate of LoRA's B matrices as a multiple of that of the A matrices"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="fall of the learning rate after warm-up"
    )
    warmup: float = Field(0.05, ge=0.0, lt=1.0, description="share of the steps in which the learning rate rises")
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = Field(
        "adamw",
        description="adamw, or adamw-8bit: moments in 8 bits, 2 bytes a parameter instead of 8 (6 of a full run in bf16); paged-adamw-8bit: those of "
        "bitsandbytes, which move to the host's memory when a GPU's is short",
    )
    optimizer_in_backward: bool = Field(
        False,
        description="of full: update each weight as soon as its gradient is there and free it; saves a number for each parameter where a step is "
        "one micro-batch; gradients are not clipped",
    )
    gradient_checkpointing: Literal["auto", "always", "never"] = Field(
        "auto",
        description="compute layers again in the backward pass instead of keeping them: less memory, about a third more time; auto: "
        "when a single row does not fit otherwise",
    )
    packing: bool = Field(
        False,
        description="lay the rows of a micro-batch one behind the other instead of padding them; no row sees another; for GPUs",
    )
    compile: bool = Field(
        False,
        description="torch.compile each layer; needs a compiler, pays on GPUs in long runs, and was slower on processors",
    )
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm above which gradients are scaled down")
    epochs: float = Field(3.0, gt=0, le=1000, description="passes over the training split")
    max_minutes: float | None = Field(
        None,
        gt=0,
        description="time that training may take with its validations and the reference of preferences; steps, validations and their rows follow from it and the measured speed",
    )
    rows_per_step: int = Field(8, ge=1, description="rows of one optimizer step, at least")
    tokens_per_step: int = Field(0, ge=0, description="a step takes more rows until it has this many tokens")
    micro_batch_tokens: int = Field(
        0,
        ge=0,
        description="tokens computed at once, padding included; bounds memory; 0: 2,048, or 1,024 for a full run on a processor",
    )
    evaluations: int = Field(
        6, ge=1, description="validation losses measured over the run, evenly spaced; at most, with max_minutes"
    )
    val_rows: int = Field(
        256,
        ge=1,
        description="validation rows that are measured, a seeded sample of the split; at most, with max_minutes",
    )
    patience: int = Field(2, ge=1, description="stop after this many evaluations in a row without a better loss")
    keep_checkpoints: int = Field(2, ge=1, description="latest checkpoints kept for resuming, beside the best weights")
    checkpoint_seconds: float = Field(60.0, ge=0, description="save a checkpoint at least this often")
    checkpoint_steps: int | None = Field(None, ge=1, description="save a checkpoint every so many steps as well")

    on_spike: Literal["warn", "stop", "rollback"] = Field(
        "warn",
        description="when the watcher finds a spike or a gradient explosion; rollback goes on from the last checkpoint at half the "
        "learning rate, without that batch",
    )
    on_divergence: Literal["warn", "stop", "rollback"] = Field(
        "stop", description="when the watcher finds divergence or too high a learning rate; stop keeps the best weights"
    )
    on_no_gain: Literal["warn", "stop"] = Field(
        "warn", description="when the watcher finds a plateau, a dead loss, memorising, or too low a learning rate"
    )

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        if value not in METHOD_NAMES:
            from tuneloop.train.methods import METHODS

            refuse_unknown(value, METHODS)
        return value

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, value: str) -> str:
        if value not in LOSS_NAMES:
            from tuneloop.train.loss import LOSSES

            refuse_unknown(value, LOSSES)
        return value

    @field_validator("targets", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        if isinstance(value, str) and value not in ("all-linear", "attention"):
            return [name.strip() for name in value.split(",")]
        return value

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _on_or_off(cls, value: object) -> object:
        return {True: "always", False: "never"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("ranks")
    @classmethod
    def _sane_ranks(cls, value: dict[str, int]) -> dict[str, int]:
        for name, rank in value.items():
            if not 1 <= rank <= 1024:
                raise ValueError(f"the rank of {name} must be between 1 and 1024")
        return value

    @model_validator(mode="before")
    @classmethod
    def _rate_of_the_method(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        if values.get("learning_rate") == "auto":
            values = {**values, "learning_rate": None, "range_test": True}
        if values.get("learning_rate") is not None:
            return values
        return {
            **values,
            "learning_rate": usual_rate(str(values.get("method", "lora")), str(values.get("loss", "supervised"))),
        }

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        if self.dora and self.method not in ("lora", "qlora"):
            raise ValueError("train.dora is of lora and qlora only")
        if self.lora_init != "default" and self.method not in ("lora", "qlora"):
            raise ValueError("train.lora_init is of lora and qlora only")
        if self.dora and self.lora_init == "pissa":
            raise ValueError(
                "train.dora and train.lora_init=pissa exclude each other: a saved PiSSA start is a plain LoRA"
            )
        if self.optimizer_in_backward and self.method != "full":
            raise ValueError("train.optimizer_in_backward is of full only: an adapter's gradients are small")
        if self.optimizer_in_backward and self.l2_start:
            raise ValueError("train.optimizer_in_backward and train.l2_start exclude each other")
        if self.packing and self.method == "prefix":
            raise ValueError(
                "train.packing and train.method=prefix exclude each other: a prefix stands before every row"
            )
        if self.kl and self.method == "full":
            raise ValueError(
                "train.kl needs the untouched model beside the trained one; with train.method=full use train.l2_start"
            )
        if self.kl and self.loss != "supervised":
            raise ValueError("train.kl is of the supervised loss; dpo and kto hold the model by train.beta")
        if self.train_on != "assistant" and self.loss != "supervised":
            raise ValueError("train.train_on is of the supervised loss; dpo and kto learn the rated answer")
        return self
