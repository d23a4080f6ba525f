"""A training step of `gpu.py`'s cases by other libraries, from the same weights: TRL, torchtune, Unsloth.

Each gives a function that does one optimizer step and returns its loss. TRL (1.16) and torchtune (0.6, which needs torch 2.8 or
older) were run on a processor with the tiny shape: their first losses are tuneloop's. Unsloth and vLLM need a GPU and have not been run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Step = Callable[[], float]


def plain_tokenizer(vocabulary: int) -> Any:
    """A tokenizer with a padding token and no words: rows are token ids already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    text = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=text, pad_token="<pad>", eos_token="<pad>", unk_token="<unk>")


def steps_of(net: Any, batches: list[Any], rows: int, loss_of: Callable[[Any, Any], Any]) -> Step:
    """Micro-batches, clipping and torch's fused AdamW; `loss_of` is the mean of a micro-batch."""
    learned = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, weight_decay=0.0, fused=True)

    def step() -> float:
        total = torch.zeros((), device=learned[0].device)
        for batch in batches:
            loss = loss_of(net, batch.to(learned[0].device)) * (len(batch) / rows)
            loss.backward()
            total += loss.detach().float()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(total)

    return step


def trl_step(net: Any, ids: list[list[int]], at_once: int, rank: int, method: str, recompute: bool) -> Step:
    """TRL's SFTTrainer: its collator, its loss and its backward pass, without its loop.

    Args:
        net: Transformers' model. ids: of the rows. at_once: rows of a micro-batch. method: `lora` or `full`.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    count = -(-len(ids) // at_once)
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=at_once, gradient_accumulation_steps=count,
        max_length=None, report_to=[], optim="adamw_torch_fused", learning_rate=1e-4, weight_decay=0.0,
        gradient_checkpointing=recompute, bf16=False, fp16=False, dataset_kwargs={"skip_prepare_dataset": True},
        use_cpu=next(net.parameters()).device.type == "cpu", disable_tqdm=True,
    )  # fmt: skip
    adapter = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        net, settings, train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in ids]),
        processing_class=plain_tokenizer(net.config.vocab_size), peft_config=adapter if method == "lora" else None,
    )  # fmt: skip
    optimizer = trainer.create_optimizer()
    model = trainer.model
    trainer.current_gradient_accumulation_steps = 1
    batches = [
        trainer.data_collator([{"input_ids": row, "labels": row} for row in ids[i : i + at_once]])
        for i in range(0, len(ids), at_once)
    ]

    def step() -> float:
        model.train()
        tokens = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        losses = [trainer.training_step(model, batch, num_items_in_batch=torch.tensor(tokens)) for batch in batches]
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(sum(losses))

    return step


def torchtune_step(
    config: dict[str, Any],
    state: dict[str, Any],
    batches: list[Any],
    rows: int,
    rank: int,
    method: str,
    recompute: bool,
) -> Step:
    """torchtune's Llama 3.1 with its chunked loss; its compiled recipes need a GPU and are not used.

    Args:
        config: as a `config.json` has it. state: the weights by Transformers' names, whose memory is taken.
    """
    from torchtune.models.convert_weights import hf_to_tune
    from torchtune.models.llama3_1 import llama3_1, lora_llama3_1
    from torchtune.modules.loss import CEWithChunkedOutputLoss
    from torchtune.modules.peft import get_adapter_params, set_trainable_params

    heads, kv, dim = config["num_attention_heads"], config["num_key_value_heads"], config["hidden_size"]
    shape = {
        "vocab_size": config["vocab_size"], "num_layers": config["num_hidden_layers"], "num_heads": heads,
        "num_kv_heads": kv, "embed_dim": dim, "max_seq_len": 8192, "intermediate_dim": config["intermediate_size"],
    }  # fmt: skip
    if config["tie_word_embeddings"] or dim // heads != config["head_dim"]:
        raise NotImplementedError("torchtune's builder of Llama 3.1 has no tied weights and no head size of its own")
    weight = next(iter(state.values()))
    before = torch.get_default_dtype()
    torch.set_default_dtype(weight.dtype)
    try:
        with weight.device:
            if method == "lora":
                net = lora_llama3_1(["q_proj", "k_proj", "v_proj", "output_proj"], apply_lora_to_mlp=True,
                                    lora_rank=rank, lora_alpha=2 * rank, **shape)  # fmt: skip
            else:
                net = llama3_1(**shape)
    finally:
        torch.set_default_dtype(before)
    net.load_state_dict(hf_to_tune(state, heads, kv, dim, config["head_dim"]), strict=method == "full")
    if method == "lora":
        set_trainable_params(net, get_adapter_params(net))
    if recompute:
        from torchtune.modules import TransformerSelfAttentionLayer
        from torchtune.training import set_activation_checkpointing

        set_activation_checkpointing(net, auto_wrap_policy={TransformerSelfAttentionLayer})
    loss = CEWithChunkedOutputLoss()
    net.set_num_output_chunks(loss.num_output_chunks)

    def loss_of(net: Any, ids: Any) -> Any:
        labels = torch.cat((ids[:, 1:], torch.full_like(ids[:, :1], loss.ignore_index)), 1)
        return loss(net(ids), labels)

    return steps_of(net, batches, rows, loss_of)


def unsloth_step(net: Any, batches: list[Any], rows: int, rank: int, method: str, recompute: bool, length: int) -> Step:
    """Unsloth's model with its kernels, read from a folder that is written for it. Not run: it needs a GPU."""
    from unsloth import FastLanguageModel

    folder, dtype = Path(tempfile.mkdtemp()), next(net.parameters()).dtype
    net.save_pretrained(folder)
    plain_tokenizer(net.config.vocab_size).save_pretrained(folder)
    del net
    model, _ = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=length, dtype=dtype, load_in_4bit=False, full_finetuning=method == "full"
    )
    if method == "lora":
        model = FastLanguageModel.get_peft_model(
            model, r=rank, lora_alpha=2 * rank, lora_dropout=0, target_modules=TARGETS, bias="none",
            use_gradient_checkpointing="unsloth" if recompute else False,
        )  # fmt: skip
    return steps_of(model, batches, rows, lambda net, ids: net(input_ids=ids, labels=ids).loss)


# --- answers


def vllm_rates(
    config: dict[str, Any], prompts: list[list[int]], new: int, labelled: list[list[int]], dtype: str
) -> dict[str, float]:
    """Tokens a second that vLLM writes, and rows a second whose given continuation it scores; random weights. Not run: it needs a GPU.

    Args:
        prompts: token ids. new: tokens of each answer. labelled: prompts with a continuation each.
    """
    import time

    from vllm import LLM, SamplingParams

    folder = Path(tempfile.mkdtemp())
    (folder / "config.json").write_text(json.dumps(config))
    llm = LLM(str(folder), load_format="dummy", skip_tokenizer_init=True, dtype=dtype, max_model_len=2048)

    def seconds(rows: list[list[int]], sampling: Any) -> float:
        asked = [{"prompt_token_ids": row} for row in rows]
        llm.generate(asked, sampling, use_tqdm=False)
        began = time.perf_counter()
        llm.generate(asked, sampling, use_tqdm=False)
        return time.perf_counter() - began

    writing = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
    scoring = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    return {
        "decode_tokens_per_second": round(len(prompts) * new / seconds(prompts, writing), 1),
        "scored_rows_per_second": round(len(labelled) / seconds(labelled, scoring), 1),
    }
