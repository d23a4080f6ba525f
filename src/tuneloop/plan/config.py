"""Settings of the planner: the recipe's section, and the options of `tuneloop plan`, some also of `advise`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tuneloop.core.files import Config
from tuneloop.core.flag import Flag, flag, switch
from tuneloop.models.methods import names_of_methods
from tuneloop.plan.prices import CPU_USD_PER_HOUR


def option(description: str, **limits: Any) -> Any:
    """An option that may be left out."""
    return Field(None, description=description, **limits)


FILE, FOLDER = Flag(metavar="FILE"), Flag(metavar="FOLDER")


class PlanConfig(Config):
    """Prices and limits of the machine at hand."""

    usd_per_hour: float = Field(
        CPU_USD_PER_HOUR, ge=0.0, description="price of this machine; 0.05 is two shared cloud cores"
    )


class CostOptions(Config):
    """What a run costs besides the training itself."""

    PANEL: ClassVar[str] = "Prices and people"

    tier: Literal["on-demand", "spot", "community", "reserved"] = Field(
        "on-demand", description="How the GPU is rented: on-demand, spot, community (private hosts) or reserved."
    )
    usd_per_gpu_hour: float | None = option("Price of an hour of the GPU in --gpu.", ge=0, le=10**4)
    prices: Annotated[str | None, FILE] = option("Your own price file.")
    runs: float = Field(1.0, ge=1, le=1000, description="Training runs until one is kept.")
    setup_hours: float = Field(0.0, ge=0, le=10**5, description="Paid machine hours before the first useful step.")
    evaluation_hours: float = Field(0.0, ge=0, le=10**5, description="Paid machine hours of evaluation after each run.")
    rows_to_label: int = Field(0, ge=0, le=10**8, description="Examples that people still have to write or check.")
    usd_per_labeller_hour: float = Field(
        0.0, ge=0, le=10**4, description="Price of an hour of their work, at a minute an example."
    )
    engineer_hours: float = Field(16.0, ge=0, le=10**5, description="Hours of engineering.")
    usd_per_engineer_hour: float = Field(
        0.0, ge=0, le=10**4, description="Price of an hour of engineering; 0 leaves it out."
    )


class TrainedOn(Config):
    """What is trained, on how much."""

    PANEL: ClassVar[str] = "Model and data"

    model: Annotated[str, Flag(("--model", "-m"), "MODEL")] = Field(
        "", description="Model: short name, hub name, folder or config.json."
    )
    dataset: Annotated[str | None, FOLDER] = option("The same as DATA, as an option.")
    tokens: int | None = option("Training tokens of one pass over the data.")
    epochs: float | None = option("Passes over the data.")
    seq_len: int | None = option("Tokens of a row.")
    packing: Annotated[bool | None, Flag(("--packing/--no-packing",))] = option(
        "Whether rows are packed to the full length."
    )


class MachineOptions(Config):
    """On which machines."""

    PANEL: ClassVar[str] = "Machine"

    gpu: Annotated[str | None, Flag(metavar="GPU")] = option("Plan for this GPU alone, as in h100-sxm, or for cpu.")
    gpus: int | None = option("Plan for this many GPUs alone [default: 1 of the GPU in --gpu, else all counts].")
    sharding: str | None = option("How GPUs share the work: none, ddp, fsdp, zero2 or zero3.")
    offload: bool | None = option("Keep the optimizer (and sharded weights) in the host's memory.")
    offload_activations: bool | None = option("Keep checkpointed layer inputs in the host's memory too.")
    gpu_memory: Annotated[float | None, Flag(metavar="GIB")] = option(
        "Memory of a GPU that the table does not have, or that has another size."
    )
    gpu_tflops: float | None = option("Its dense 16-bit peak in TFLOPS.")
    gpu_bandwidth: float | None = option("The bandwidth of its memory in GB/s.")
    gpu_link: float | None = option("GB/s to a neighbour: 56 with an NVLink bridge.")
    gpu_price: float | None = option("Price of an hour of it.")
    interruptions_per_hour: float | None = Field(
        None,
        description="How often a machine is taken away or fails [default: spot 0.1; else one GPU in 50,000 hours].",
    )
    checkpoint_minutes: float | None = option("Minutes between checkpoints [default: the best interval].")


class MethodOptions(Config):
    """How it is trained."""

    PANEL: ClassVar[str] = "Method"

    method: str | None = option(f"Method: {names_of_methods()}.")
    rank: int | None = option("Rank of the adapter.")
    targets: str | None = option("Matrices with an adapter: all-linear, attention, mlp, or names as in q,v.")
    prefix_tokens: int | None = option("Virtual tokens of prefix tuning.")
    quant: str | None = option("Type of the frozen weights: nf4, nf4-dq, int8 or none.")
    head_fp32: bool | None = option("Keep embeddings, head and norms in fp32, as PEFT prepares quantised models.")
    micro_batch: int | None = option("Rows that a GPU computes at once.")
    grad_accum: int | None = option("Micro-batches of a step.")
    grad_ckpt: Annotated[bool | None, Flag(("--grad-ckpt/--no-grad-ckpt",))] = option(
        "Whether layers are computed again in the backward pass."
    )
    attention: str | None = option("Attention: flash, sdpa or eager.")
    loss_kernel: str | None = option("Loss: eager, compiled, triton, chunked, fused or tuneloop (its own loop).")
    dtype: str | None = Field(
        None,
        description="Type of weights and computation: bf16, fp16, fp32, mixed (fp32 weights) or autocast (those under "
        "torch.autocast).",
    )
    optimizer: str | None = option("Optimizer: adamw, adamw-bf16, adamw-8bit, paged-adamw-8bit or sgd.")
    optimizer_in_backward: bool | None = option("Update each weight as its gradient arrives.")


class PlanWanted(Config):
    """What to do in place of a training's plan; each field is an option."""

    calibrate: bool = switch("Train a few steps here, and keep what was predicted and measured.")
    history: bool = switch("Show what was predicted and what came, run by run.")
    serve: bool = switch("Plan serving: memory and tokens a second of each format on each GPU and on this machine.")
    context: int = flag(8192, "N", "With --serve: tokens of a prompt with its answer.")
    concurrency: int = flag(16, "N", "With --serve: requests that are answered at a time.")


class PlanOptions(TrainedOn, MachineOptions, MethodOptions, CostOptions):
    """The options of `tuneloop plan`. What is not given follows from the model, the data and the machine."""
