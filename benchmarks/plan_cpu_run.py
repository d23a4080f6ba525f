"""One small training run of `smollm2-135m` on the processor with plain Transformers and PEFT; prints how much resident memory grew.

Used by benchmarks/plan.py, one process a run: `python benchmarks/plan_cpu_run.py '{"method": "lora", ...}'`.
"""

from __future__ import annotations

import json
import sys


def main(job: dict[str, object]) -> None:
    import torch
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tuneloop.core.device import memory_now, peak_memory, reset_peak_memory
    from tuneloop.models.files.names import resolve

    torch.manual_seed(0)
    torch.ones(64, 64, requires_grad=True).mm(torch.ones(64, 64)).sum().backward()  # libraries start their threads
    before = memory_now()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[str(job["dtype"])]
    model = AutoModelForCausalLM.from_pretrained(
        resolve("smollm2-135m"), dtype=dtype, attn_implementation=str(job["attention"])
    )
    if job["method"] == "lora":
        targets = [f"{t}_proj" for t in ("q", "k", "v", "o", "gate", "up", "down")]
        targets = targets if job["targets"] == "all-linear" else [f"{t}_proj" for t in str(job["targets"]).split(",")]
        model = get_peft_model(model, LoraConfig(r=job["rank"], target_modules=targets, task_type="CAUSAL_LM"))
    elif job["method"] == "prefix":
        model = get_peft_model(
            model, PrefixTuningConfig(num_virtual_tokens=job["prefix_tokens"], task_type="CAUSAL_LM")
        )
    if job["grad_ckpt"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    ids = torch.randint(0, 49152, (int(job["micro_batch"]), int(job["seq_len"])))
    reset_peak_memory()
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(json.dumps({"growth_gib": peak_memory() - before}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
