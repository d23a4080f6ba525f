"""Settings of the planner: the recipe's section, and the options of `tuneloop plan`, some also of `advise`."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import ClassVar

from tuneloop.core.files import Config
from tuneloop.core.flag import flag, option, switch
from tuneloop.models.methods import names_of_methods
from tuneloop.planning.catalogue.prices import CPU_USD_PER_HOUR, Tier
from tuneloop.planning.cost import ONE_RUN, Efforts


class PlanConfig(Config):
    """Prices and limits of the available machine."""

    usd_per_hour: float = option("price of this machine; 0.05 is two shared cloud cores", CPU_USD_PER_HOUR, ge=0.0)


class CostOptions(Config):
    """What a run costs besides the training itself."""

    PANEL: ClassVar[str] = "Prices and people"

    tier: Tier = option("How the GPU is rented: on-demand, spot, community (private hosts) or reserved.", "on-demand")
    usd_per_gpu_hour: float | None = option("Price of an hour of the GPU in --gpu.", ge=0, le=10**4)
    prices: str | None = flag(None, "FILE", "Your own price file.")
    runs: float = option("Training runs until one is kept.", 1.0, ge=1, le=1000)
    setup_hours: float = option("Paid machine hours before the first useful step.", 0.0, ge=0, le=10**5)
    evaluation_hours: float = option("Paid machine hours of evaluation after each run.", 0.0, ge=0, le=10**5)
    rows_to_label: int = option("Examples that people still have to write or check.", 0, ge=0, le=10**8)
    usd_per_labeller_hour: float = option("Price of an hour of their work, a minute an example.", 0.0, ge=0, le=10**4)
    engineer_hours: float = option("Hours of engineering.", 16.0, ge=0, le=10**5)
    usd_per_engineer_hour: float = option("Price of an hour of engineering; 0 leaves it out.", 0.0, ge=0, le=10**4)

    @property
    def efforts(self) -> Efforts:
        """What one run takes apart from training, as far as it is stated here."""
        stated = {f.name: getattr(self, f.name) for f in fields(Efforts) if f.name in CostOptions.model_fields}
        return replace(ONE_RUN, **stated)


class TrainedOn(Config):
    """What is trained, on how much."""

    PANEL: ClassVar[str] = "Model and data"

    model: str = flag("", "MODEL", "Model: short name, hub name, folder or config.json.", "--model", "-m")
    dataset: str | None = flag(None, "FOLDER", "The same as DATA, as an option.")
    tokens: int | None = option("Training tokens of one pass over the data.")
    epochs: float | None = option("Passes over the data.")
    seq_len: int | None = option("Tokens of a row.")
    packing: bool | None = flag(None, "", "Whether rows are packed to the full length.", "--packing/--no-packing")


class MachineOptions(Config):
    """On which machines."""

    PANEL: ClassVar[str] = "Machine"

    gpu: str | None = flag(None, "GPU", "Plan for this GPU alone, as in h100-sxm, or for cpu.")
    gpus: int | None = option("Plan for this many GPUs alone [default: 1 of the GPU in --gpu, else all counts].")
    sharding: str | None = option("How GPUs share the work: none, ddp, fsdp, zero2 or zero3.")
    offload: bool | None = option("Keep the optimizer (and sharded weights) in the host's memory.")
    offload_activations: bool | None = option("Keep checkpointed layer inputs in the host's memory too.")
    gpu_memory: float | None = flag(None, "GIB", "Memory of a GPU that is not in the table, or has another size.")
    gpu_tflops: float | None = option("Its dense 16-bit peak in TFLOPS.")
    gpu_bandwidth: float | None = option("The bandwidth of its memory in GB/s.")
    gpu_link: float | None = option("GB/s to a neighbour: 56 with an NVLink bridge.")
    interruptions_per_hour: float | None = option(
        "How often a machine is taken away or fails [default: spot 0.1; else one GPU in 50,000 hours]."
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
    grad_ckpt: bool | None = flag(None, "", "Recompute layers in the backward pass.", "--grad-ckpt/--no-grad-ckpt")
    attention: str | None = option("Attention: flash, sdpa or eager.")
    loss_kernel: str | None = option("Loss: eager, compiled, triton, chunked, fused or tuneloop (its own loop).")
    dtype: str | None = option("Number type: bf16, fp16, fp32, mixed (fp32 weights) or autocast (torch.autocast).")
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
