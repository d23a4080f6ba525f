"""One training job by another library, as `benchmarks/train.py` starts it in an environment of its own.

    python benchmarks/train_peers.py trainer|trl|plain JOB.json

JOB.json names the model's folder, the dtype of its weights (the one that is fast on this machine), rows (`ids` and `labels`, and `messages` for TRL), the method (`qv`, `all-linear`, `full`), learning rate, rank, batch
and the folder for the result. Nothing of tuneloop is imported here: this is the script that a user of those libraries would write, with the settings
that are fastest on a CPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TARGETS: dict[str, list[str] | str] = {"qv": ["q_proj", "v_proj"], "all-linear": "all-linear"}


def arguments(job: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What all trainers get: the same optimizer, schedule and batch."""
    return {
        "output_dir": job["out"] + "/trainer",
        "num_train_epochs": 1,
        "per_device_train_batch_size": job["batch"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "linear",
        "warmup_steps": job["warmup_steps"],
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1000,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "seed": 0,
        "disable_tqdm": True,
    } | more


def lora(job: dict[str, Any]) -> Any:
    """PEFT's configuration of the job; None for full tuning."""
    from peft import LoraConfig

    if job["method"] == "full":
        return None
    return LoraConfig(
        r=job["rank"], lora_alpha=2 * job["rank"], target_modules=TARGETS[job["method"]], task_type="CAUSAL_LM"
    )


def model_of(job: dict[str, Any], dtype: str) -> Any:
    """The base model in this dtype."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, dtype))


def trainer(job: dict[str, Any], *, dtype: str = "", pad_to: int = 0, grouped: bool = True, **more: Any) -> None:
    """Transformers' Trainer, with PEFT for the adapters."""
    import torch
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments

    model = model_of(job, dtype or job["dtype"])
    config = lora(job)
    if config is not None:
        model = get_peft_model(model, config)

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        length = pad_to or max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": job["pad"], "labels": -100, "attention_mask": 0}
        return {
            key: torch.tensor([row[key] + [value] * (length - len(row[key])) for row in rows])
            for key, value in fill.items()
        }

    rows = [
        {"input_ids": r["ids"], "labels": r["labels"], "attention_mask": [1] * len(r["ids"]), "length": len(r["ids"])}
        for r in job["rows"]
    ]
    sampling = {"train_sampling_strategy": "group_by_length"} if grouped else {}
    options = TrainingArguments(**arguments(job, **sampling, **more), remove_unused_columns=False)
    Trainer(model=model, args=options, train_dataset=rows, data_collator=collate).train()
    model.save_pretrained(job["out"])


def trl(job: dict[str, Any]) -> None:
    """TRL's SFTTrainer on tokens and labels made by us, rows grouped by length."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model = model_of(job, job["dtype"])
    rows = Dataset.from_list([{"input_ids": r["ids"], "labels": r["labels"]} for r in job["rows"]])
    options = SFTConfig(
        **arguments(job, train_sampling_strategy="group_by_length"),
        bf16=False,
        max_length=None,
        gradient_checkpointing=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    trainer = SFTTrainer(
        model=model, args=options, train_dataset=rows, processing_class=tokenizer, peft_config=lora(job)
    )
    trainer.train()
    trainer.save_model(job["out"])


SYSTEMS = {
    "plain": lambda job: trainer(job, dtype="float32", pad_to=512, grouped=False),
    "trainer": trainer,
    "trainer-autocast": lambda job: trainer(job, dtype="float32", bf16=True),
    "trl": trl,
}

if __name__ == "__main__":
    SYSTEMS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
