"""What the training stage can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from tuneloop.files import Config


class TrainConfig(Config):
    """Defaults that were measured to work on small jobs; see docs/results.md."""

    method: Literal["lora"] = Field("lora", description="what is trained")
    rank: int = Field(16, ge=1, le=1024, description="rank of the LoRA matrices")
    alpha: float = Field(32.0, gt=0, description="LoRA scale; the update is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout on the adapter's input")
    targets: list[str] | Literal["all-linear", "attention"] = Field(
        "all-linear", description="modules that get an adapter: all-linear, attention, or names as in [q_proj, v_proj]"
    )
    learning_rate: float = Field(5e-4, gt=0, lt=10, description="peak learning rate")
    lora_plus: float = Field(
        10.0, gt=0, description="learning rate of LoRA's B matrices as a multiple of that of the A matrices"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="fall of the learning rate after warm-up"
    )
    warmup: float = Field(0.05, ge=0.0, lt=1.0, description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm above which gradients are scaled down")
    epochs: float = Field(3.0, gt=0, description="passes over the training split")
    max_minutes: float | None = Field(
        None, gt=0, description="plan no more steps than fit into this time at the speed measured before the first step"
    )
    rows_per_step: int = Field(8, ge=1, description="rows of one optimizer step, at least")
    tokens_per_step: int = Field(0, ge=0, description="a step takes more rows until it has this many tokens")
    micro_batch_tokens: int = Field(2048, ge=16, description="tokens computed at once, padding included; bounds memory")
    evaluations: int = Field(6, ge=1, description="validation losses measured over the run, evenly spaced")
    val_rows: int = Field(256, ge=1, description="validation rows that are measured, a seeded sample of the split")
    patience: int = Field(2, ge=1, description="stop after this many evaluations in a row without a better loss")
    keep_checkpoints: int = Field(2, ge=1, description="latest checkpoints kept for resuming")
    checkpoint_seconds: float = Field(60.0, ge=0, description="save a checkpoint at least this often")

    @field_validator("targets", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        if isinstance(value, str) and value not in ("all-linear", "attention"):
            return [name.strip() for name in value.split(",")]
        return value
