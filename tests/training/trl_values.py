"""What TRL makes of DPO and KTO on a small batch, frozen in `trl_values.json`; `python tests/training/trl_values.py` makes it again.

The model is a Llama of two layers whose numbers come from a formula, with a LoRA adapter that does something.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import torch

FILE = Path(__file__).with_suffix(".json")
BETA = 0.3
SCALES = {"dpo": 0.15, "kto": 0.3}  # of the adapter's numbers; KTO's so that its reference point is above 0
TARGETS = ["q_proj", "v_proj", "down_proj"]
WORDS = 60  # t4 to t59 are words, before them pad, bos, eos, unknown


def fill(parameters: Any, scale: float) -> None:
    """Numbers that are the same on every machine and version."""
    with torch.no_grad():
        for path, parameter in enumerate(parameters):
            steps = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_((torch.sin(steps * 0.37 + path) * scale).view_as(parameter))


def base(folder: Path) -> Any:
    """The base model, saved in a folder for our own loader."""
    from transformers import LlamaConfig, LlamaForCausalLM

    net = LlamaForCausalLM(LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ))  # fmt: skip
    fill((p for name, p in sorted(net.named_parameters()) if "norm" not in name), 0.4)
    net.save_pretrained(folder)
    return net


def rows() -> list[tuple[str, str, str, bool]]:
    """(prompt, answer, other answer, thumb) as words."""
    made = []
    for i in range(4):
        text = [f"t{4 + (7 * i + 5 * j) % (WORDS - 4)}" for j in range(14)]
        made.append((" ".join(text[: 4 + i]), " ".join(text[6 : 9 + i]), " ".join(text[10:13]), i % 2 == 0))
    return made


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", "<unk>", *(f"t{i}" for i in range(4, WORDS))]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def adapter() -> Any:
    """TRL puts it in itself: the reference is then the disabled adapter, and not a copy of what it starts as."""
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM")


def fill_adapter(net: Any, loss: str) -> None:
    fill((p for name, p in sorted(net.named_parameters()) if "lora_" in name), SCALES[loss])


def listed(batch: dict[str, Any], prefix: str = "") -> list[dict[str, list[int]]]:
    """Each row's ids and mask without its padding."""
    keys = (f"{prefix}input_ids", f"{prefix}attention_mask", f"{prefix}completion_mask")
    made = []
    for ids, real, mask in zip(*(batch[key].tolist() for key in keys), strict=True):
        kept = [i for i, r in enumerate(real) if r]
        made.append({"ids": [ids[i] for i in kept], "mask": [mask[i] for i in kept]})
    return made


def values(folder: Path) -> dict[str, Any]:
    """Losses and rewards by TRL, with the ids that they are of."""
    import datasets.fingerprint
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    # It hashes functions to cache what they make, and can't hash some versions of pyarrow; nothing is cached here.
    datasets.fingerprint.Hasher.hash = classmethod(lambda cls, value: uuid.uuid4().hex)
    common: Any = {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": 4, "beta": BETA, "report_to": "none", "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip
    found: dict[str, Any] = {"beta": BETA}
    pairs = [{"prompt": p + " ", "chosen": a, "rejected": o} for p, a, o, _ in rows()]
    dpo = DPOTrainer(
        model=base(folder),
        args=DPOConfig(**common),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer(),
        peft_config=adapter(),
    )
    batch = next(iter(dpo.get_train_dataloader()))
    fill_adapter(dpo.model.eval(), "dpo")
    loss = dpo.compute_loss(dpo.model, batch)
    every = listed(batch)
    found["dpo"] = {
        "chosen": every[:4], "rejected": every[4:], "loss": float(loss),
        "reward_margin": dpo._metrics["eval"]["rewards/margins"][-1], "reward_accuracy": dpo._metrics["eval"]["rewards/accuracies"][-1],
    }  # fmt: skip
    thumbs = [{"prompt": p + " ", "completion": a, "label": good} for p, a, _, good in rows()]
    kto = KTOTrainer(
        model=base(folder),
        args=KTOConfig(**common),
        train_dataset=Dataset.from_list(thumbs),
        processing_class=tokenizer(),
        peft_config=adapter(),
    )
    batch = next(iter(kto.get_train_dataloader()))
    fill_adapter(kto.model.eval(), "kto")
    loss = kto.compute_loss(kto.model, batch)
    found["kto"] = {
        "answers": listed(batch), "others": listed(batch, "KL_"), "good": [bool(x) for x in batch["label"]], "loss": float(loss),
        "kl": kto._metrics["eval"]["kl"][-1],
    }  # fmt: skip
    assert all(math.isfinite(found[name]["loss"]) for name in ("dpo", "kto"))
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        made = values(Path(scratch))
    FILE.write_text(json.dumps(made, indent=1) + "\n")
    json.dump(made, sys.stdout)
