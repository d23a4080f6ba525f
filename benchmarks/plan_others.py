"""What other estimators say of published runs; run by `plan.py published PYTHON` in an environment with `accelerate transformers fitcheck-llm ftuneai`.

Jobs come as JSON on stdin, GiB by tool go to stdout as JSON; null where the tool has no way to say the job. No network: each tool gets the model's sizes, as it
would read them from `config.json`. `accelerate estimate-memory` itself asks the hub first, so its functions are called behind that.
"""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

from accelerate import init_empty_weights
from accelerate.commands.estimate import estimate_training_usage
from accelerate.utils import calculate_maximum_sizes
from fitcheck.config_parser import ModelConfig
from fitcheck.estimator import TrainingConfig as FitcheckJob
from fitcheck.estimator import estimate
from fitcheck.gpu_db import get_gpu
from ftuneai.core.memory import MemoryEstimator
from ftuneai.core.models import (
    FineTuneMethod,
    LoRATarget,
    ModelSpec,
    OptimizerType,
    Quantization,
    ShardingStrategy,
    TrainingConfig,
)
from transformers import AutoModelForCausalLM, LlamaConfig

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
SHARDING = {"none": "none", "ddp": "none", "fsdp": "fsdp", "zero2": "zero_2", "zero3": "zero_3"}


@functools.cache
def accelerate_gib(sizes: str) -> float:
    """Its column "Training using Adam" for bfloat16: it knows the model and nothing of the job."""
    shape = json.loads(sizes)
    config = LlamaConfig(
        vocab_size=shape["vocabulary"], hidden_size=shape["hidden"], intermediate_size=shape["feed_forward"],
        num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"], num_key_value_heads=shape["key_heads"],
        head_dim=shape["head_size"], tie_word_embeddings=shape["tied"], torch_dtype="float32",
    )  # fmt: skip
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    total, _ = calculate_maximum_sizes(model)
    return float(max(estimate_training_usage(total, "bfloat16").values())) / 1024**3


def fitcheck_gib(job: dict[str, Any]) -> float | None:
    """Its total; one GPU, and no prefixes."""
    if job["gpus"] > 1 or job["method"] == "prefix":
        return None
    shape = job["shape"]
    model = ModelConfig(
        name=job["model"], num_params=job["parameters"], hidden_size=shape["hidden"], num_layers=shape["layers"],
        num_attention_heads=shape["heads"], num_kv_heads=shape["key_heads"], intermediate_size=shape["feed_forward"],
        vocab_size=shape["vocabulary"], head_dim=shape["head_size"], tie_word_embeddings=shape["tied"],
    )  # fmt: skip
    settings = FitcheckJob(
        precision={"fp16": "fp16", "fp32": "fp32"}.get(job["dtype"], "bf16"), quantization=job["quant"].removesuffix("-dq"),
        double_quant=job["quant"] == "nf4-dq", optimizer={"sgd": "sgd"}.get(job["optimizer"], "adam8bit" if "8bit" in job["optimizer"] else "adamw"),
        optimizer_dtype="bf16" if job["optimizer"] == "adamw-bf16" else "fp32", batch_size=job["micro_batch"], seq_len=job["seq_len"],
        lora_rank=None if job["method"] == "full" else job["rank"], lora_targets=job["targets"], grad_checkpoint=job["grad_ckpt"],
        flash_attn=job["attention"] != "eager",
    )  # fmt: skip
    return float(estimate(model, settings, get_gpu("card", vram_mib=int(job["gib"] * 1024))).total_mib) / 1024


def ftuneai_gib(job: dict[str, Any]) -> float | None:
    """Its total; no prefixes."""
    if job["method"] == "prefix":
        return None
    shape, targets = job["shape"], set(job["targets"])
    model = ModelSpec(
        name=job["model"], parameters=job["parameters"], hidden_size=shape["hidden"], num_layers=shape["layers"],
        num_attention_heads=shape["heads"], num_kv_heads=shape["key_heads"], intermediate_size=shape["feed_forward"],
        vocab_size=shape["vocabulary"], max_seq_length=max(job["seq_len"], shape["context"]),
    )  # fmt: skip
    where = (
        "attention" if targets == {"q_proj", "v_proj"} else "attention_all" if targets <= ATTENTION else "all_linear"
    )
    settings = TrainingConfig(
        method=FineTuneMethod(job["method"]), quantization=Quantization("4bit" if job["quant"].startswith("nf4") else "8bit" if job["quant"] == "int8" else "none"),
        batch_size=job["micro_batch"], seq_length=job["seq_len"], gradient_checkpointing=job["grad_ckpt"],
        optimizer=OptimizerType("sgd" if job["optimizer"] == "sgd" else "adam_8bit" if "8bit" in job["optimizer"] else "adamw"),
        lora_rank=job["rank"], lora_target=LoRATarget(where), flash_attention=job["attention"] == "flash",
        sharding=ShardingStrategy(SHARDING[job["sharding"]]), num_gpus=job["gpus"],
    )  # fmt: skip
    return float(MemoryEstimator(model, settings).estimate().total_gb)


if __name__ == "__main__":
    jobs = json.load(sys.stdin)
    json.dump(
        [
            {
                "accelerate": accelerate_gib(json.dumps(job["shape"])),
                "fitcheck": fitcheck_gib(job),
                "ftuneai": ftuneai_gib(job),
            }
            for job in jobs
        ],
        sys.stdout,
    )
